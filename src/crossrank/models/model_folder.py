"""A model folder made of another: where it may go, what comes along, written whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crossrank.errors import InputError
from crossrank.models.hub import resolve
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.int8 import PARITY_FILE
from crossrank.runtime.modules import read_modules
from crossrank.runtime.settings import read_json

__all__ = ["WEIGHT_INDEX", "Draft", "check_target", "copy_model", "open_source"]

WEIGHT_INDEX = "model.safetensors.index.json"
"""Name of the list of shards of a transformer whose weights are in several files."""

_COPIED = (
    "*.json",
    "*.txt",
    "*.model",
    "artifact.metadata",
    "LICENSE*",
    "NOTICE*",
)  # configs, tokenizers, what goes with a copy


class Draft:
    """A folder to fill beside the one it is to become; made with `of`.

    Attributes:
        folder: to be filled. Gone at the end, unless it was kept.
    """

    def __init__(self, target: Path, scratch: Path) -> None:
        self._target = target
        self._scratch = scratch
        self.folder = scratch / target.name

    @classmethod
    @contextmanager
    def of(cls, target: Path) -> Iterator[Draft]:
        """Give a draft of a folder that `check_target` has passed."""
        target = target.resolve()
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
            yield cls(target, Path(scratch))

    def keep(self) -> None:
        """Put the folder in its place; what is there goes."""
        if self._target.exists():
            self._target.rename(self._scratch / ".replaced")  # goes with the temporary folder
        self.folder.rename(self._target)


def open_source(model: str | Path, to: Path, *, revision: str | None, overwrite: bool) -> Checkpoint:
    """Open the model that a folder is to be made of, once it is known that the folder can be written.

    Args:
        model: a built-in model, a folder, or a hub name.
        to: the folder; see `check_target`.
        revision: commit, tag or branch of a hub model.
        overwrite: see `check_target`.

    Raises:
        CheckpointNotFoundError: there is no such model.
        CheckpointError: it cannot be opened.
        InputError: see `check_target`.
    """
    source = resolve(model, kind="cross-encoder", revision=revision)
    check_target(to, source, overwrite=overwrite)
    return Checkpoint.open(source)


def check_target(folder: Path, source: Path, *, overwrite: bool) -> None:
    """Refuse a folder that cannot become a model made of another, before anything is computed.

    Args:
        folder: new, empty, or a model that may be overwritten; not the other model's own.
        source: the folder of the other model.
        overwrite: whether a model that is there may be replaced.

    Raises:
        InputError: names what is there.
    """
    target = folder.resolve()
    if not target.parent.is_dir():
        raise InputError(f"{folder}: there is no folder {target.parent}; make it first")
    if source.resolve().is_relative_to(target):
        raise InputError(f"{folder} holds the model itself; name another folder")
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not target.is_dir():
        raise InputError(f"{folder} is a file; name a folder")
    if not overwrite:
        raise InputError(f"{folder} is not empty; name another folder, or replace it with overwrite=True")
    if not (target / "config.json").is_file() and not (target / "modules.json").is_file():
        raise InputError(f"{folder} is not empty and no model, so it is not replaced; name another folder")


def copy_model(source: Path, to: Path) -> None:
    """Copy what a model is besides the transformer's weights: configs, tokenizer, modules with theirs.

    Args:
        source: the model.
        to: a folder; files keep their places in it.
    """
    transformer, _, files = read_modules(source)
    places = {source, transformer}
    if (source / "modules.json").is_file():
        places |= {source / str(entry.get("path", "")) for entry in read_json(source / "modules.json")}
    found = {file for place in places for pattern in _COPIED for file in place.glob(pattern)}
    left = {transformer / name for name in (WEIGHT_INDEX, PARITY_FILE)}
    for file in sorted({*found, *files} - left):
        copy = to / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
