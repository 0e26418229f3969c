"""The folder of a training run: what it is made with, its metrics, its checkpoints, its result.

    OUTPUT/                 at the end: the model, README.md, recipe.yaml, metrics.png
    OUTPUT/training/        run.json (what the run is made with), metrics.jsonl (a line a measurement),
                            and until the end checkpoint-STEP/ and best-STEP.pt (weights of the best
                            measurement)

Every file appears whole or not at all. The metrics are also what a resumed run knows of the past: lines
after the checkpoint it starts from are taken back, and so are best weights. Those that were best before are
therefore kept until there is a checkpoint of the step that surpassed them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crossrank.errors import FileFormatError, InputError
from crossrank.whole_files import write_whole

__all__ = ["RunFolder"]

_FORM = 1  # of run.json
_STAGING = ".writing"


class RunFolder:
    """The folder of one run.

    Args:
        output: of the recipe.

    Attributes:
        output: where the model goes.
        folder: where the run keeps what it needs.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.folder = output / "training"
        self._run_path = self.folder / "run.json"
        self._metrics_path = self.folder / "metrics.jsonl"

    def begin(self, made_with: Mapping[str, Any], *, overwrite: bool) -> bool:
        """Start a run, or go on with the one that is there.

        Args:
            made_with: what decides the result; plain JSON, by names that a message can list.
            overwrite: forget what is there.

        Returns:
            Whether there is something to go on with.

        Raises:
            InputError: a finished model, a run of another recipe, or other files are there.
            FileFormatError: the record of the run cannot be read.
        """
        self.check(made_with, overwrite=overwrite)
        if overwrite:
            self._forget()
        if self.has_begun:
            return True
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.output} cannot be written: {error.strerror or error}") from error
        self._write_record({"made_with": json.loads(json.dumps(made_with))})
        return False

    def check(self, made_with: Mapping[str, Any], *, overwrite: bool) -> None:
        """Find out whether a run can begin here, or go on; writes nothing.

        Args:
            made_with: see `begin`.
            overwrite: see `begin`.

        Raises:
            See `begin`.
        """
        if self.has_begun and not overwrite:
            earlier = self.record()
            if earlier.get("finished"):
                raise InputError(
                    f"{self.output} exists; name another output, or replace it with overwrite=True"
                )
            other = _differing(earlier.get("made_with", {}), json.loads(json.dumps(made_with)))
            if other:
                raise InputError(
                    f"{self.output} has an unfinished run with other {', '.join(other)}; give the same to go "
                    "on with it, or start anew with overwrite=True"
                )
        if not self.has_begun and self.output.is_dir() and any(self.output.iterdir()):
            raise InputError(f"{self.output} is not empty, and has no training run in it; name another")

    @property
    def has_begun(self) -> bool:
        """Whether there is a run, finished or not."""
        return self._run_path.is_file()

    def record(self) -> dict[str, Any]:
        """Return what is known of the run.

        Raises:
            FileFormatError: it cannot be read.
        """
        try:
            found = json.loads(self._run_path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise FileFormatError(
                f"not JSON: {error}; start anew with overwrite=True", self._run_path
            ) from None
        if not isinstance(found, dict) or found.get("crossrank_training") != _FORM:
            raise FileFormatError("this is no record of a training run", self._run_path)
        return found

    def note(self, **values: Any) -> None:
        """Add to the record of the run."""
        self._write_record({**self.record(), **values})

    def _write_record(self, values: Mapping[str, Any]) -> None:
        whole = {"crossrank_training": _FORM, **values}
        text = json.dumps(whole, indent=2) + "\n"
        write_whole(self._run_path, lambda path: path.write_text(text, encoding="utf-8"))

    def log(self, **values: Any) -> None:
        """Add a line to the metrics."""
        with self._metrics_path.open("ab") as file:
            file.write(json.dumps(values).encode() + b"\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of the metrics, in order."""
        if not self._metrics_path.is_file():
            return []
        lines = self._metrics_path.read_bytes().split(b"\n")[:-1]  # what has no end was being written
        return [json.loads(line) for line in lines]

    def best_path(self, step: int) -> Path:
        """Return where the weights of a step are, if its measurement was the best until then."""
        return self.folder / f"best-{step}.pt"

    def _best_steps(self) -> list[int]:
        """Return the steps whose weights are kept, the last and best one at the end."""
        return sorted(_step_of(path.stem) for path in self.folder.glob("best-*.pt"))

    def take_back(self, step: int) -> None:
        """Forget metrics and best weights of later steps: they will be measured again."""
        for later in [each for each in self._best_steps() if each > step]:
            self.best_path(later).unlink()
        kept = [json.dumps(line) + "\n" for line in self.metrics() if line["step"] <= step]
        write_whole(self._metrics_path, lambda path: path.write_text("".join(kept), encoding="utf-8"))

    def last_checkpoint(self) -> Path | None:
        """Return the checkpoint of the highest step; parts of one that was being written are removed."""
        shutil.rmtree(self.staging, ignore_errors=True)
        found = {_step_of(path.name): path for path in self.folder.glob("checkpoint-*")}
        return found[max(found)] if found else None

    @property
    def staging(self) -> Path:
        """A folder that a checkpoint is written in before it gets its name."""
        return self.folder / _STAGING

    def commit_checkpoint(self, written: Path) -> None:
        """Give a whole checkpoint its place, and remove earlier ones, and weights that are no longer best."""
        place = self.folder / written.name
        shutil.rmtree(place, ignore_errors=True)
        os.replace(written, place)
        shutil.rmtree(self.staging, ignore_errors=True)
        for path in self.folder.glob("checkpoint-*"):
            if path != place:
                shutil.rmtree(path)
        for surpassed in self._best_steps()[:-1]:
            self.best_path(surpassed).unlink()

    def finish(self, exported: Path) -> None:
        """Move the files of the result to their place and remove what the run needed.

        Args:
            exported: a folder beside `folder`, with the files.
        """
        self.note(files=sorted(path.name for path in exported.iterdir()))
        for path in sorted(exported.iterdir()):
            place = self.output / path.name
            if place.is_dir():
                shutil.rmtree(place)
            os.replace(path, place)
        exported.rmdir()
        self.note(finished=True)
        for path in self.folder.glob("checkpoint-*"):
            shutil.rmtree(path)
        for step in self._best_steps():
            self.best_path(step).unlink()

    def _forget(self) -> None:
        """Remove a run, and the files of its model; others are left and refused."""
        if not self.has_begun:
            return
        for name in self.record().get("files", []):
            path = self.output / name
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        shutil.rmtree(self.folder)


def _step_of(name: str) -> int:
    """Return the step that ends a name."""
    return int(name.rpartition("-")[2])


def _differing(earlier: Mapping[str, Any], now: Mapping[str, Any], where: str = "") -> list[str]:
    """Return the keys, with dots, whose values differ."""
    names = []
    for key in [*dict.fromkeys([*earlier, *now])]:
        a, b = earlier.get(key), now.get(key)
        if a == b:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            names += _differing(a, b, f"{where}{key}.")
        else:
            names.append(f"{where}{key}")
    return names
