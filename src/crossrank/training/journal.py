"""What a mining run has found so far, on disk: a killed run goes on from there.

A text file beside the output. Its first line says what the run is made with; each further line is a block
of queries, done. A line is written in one go and counts once its end is there, so whatever moment the
process dies at, the file is a run that stopped between two blocks. Blocks are never done in part: models
see the batches that they would have seen without the interruption, and give the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crossrank.errors import FileFormatError, InputError
from crossrank.training.selection import Negative, Outcome, Suspect

__all__ = ["Journal", "check_free"]

_FORM = 1  # of the file


class Journal:
    """The blocks of a mining run that are done.

    Args:
        output: the file the run is to write; the journal is beside it, with ".mining" added to the name.
        made_with: what decides the result; plain JSON, by names that a message can list.
        overwrite: forget a run that is there, and take the place of an output that is there.

    Attributes:
        path: the journal.
        num_queries: queries that are done.

    Raises:
        InputError: the output is there already, or a run with other settings is, and not `overwrite`.
        FileFormatError: a journal that cannot be read.
    """

    def __init__(self, output: Path, made_with: Mapping[str, Any], *, overwrite: bool) -> None:
        self.path = _journal_of(output)
        self.num_queries = 0
        header = {"crossrank_mining": _FORM, **json.loads(_line(made_with))}
        check_free(output, overwrite=overwrite)
        if overwrite:
            self.path.unlink(missing_ok=True)
        if _is_journal(self.path):
            self._resume(header)
            return
        try:
            self.path.write_bytes(_line(header))
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error.strerror or error}") from error

    def _resume(self, header: Mapping[str, Any]) -> None:
        _, earlier = next(self._lines())
        if not isinstance(earlier, dict) or earlier.get("crossrank_mining") != _FORM:
            raise FileFormatError("this is no journal of a mining run; remove it", self.path, 1)
        if earlier != header:
            names = sorted({*earlier, *header})
            other = [name for name in names if earlier.get(name) != header.get(name)]
            raise InputError(
                f"{self.path} is of an unfinished run with other {', '.join(other)}; give the same to finish "
                "it, or start anew with overwrite=True"
            )
        with self.path.open("rb+") as file:
            file.truncate(sum(len(line) for line in file if line.endswith(b"\n")))
        lines = self._lines()
        next(lines)
        self.num_queries = sum(len(block) for _, block in lines)

    def append(self, outcomes: Sequence[Outcome]) -> None:
        """Write down a block of queries that are done."""
        with self.path.open("ab") as file:
            file.write(_line([asdict(outcome) for outcome in outcomes]))
        self.num_queries += len(outcomes)

    def blocks(self) -> Iterator[list[Outcome]]:
        """Yield the blocks in the order they were written."""
        lines = self._lines()
        next(lines)
        for number, rows in lines:
            yield self._block(rows, number)

    def _block(self, rows: Any, line: int) -> list[Outcome]:
        try:
            return [_outcome(row) for row in rows]
        except (KeyError, TypeError) as error:
            raise self._damaged(f"not a block of queries ({error!r})", line) from None

    def remove(self) -> None:
        """Delete the journal: the run is finished."""
        self.path.unlink(missing_ok=True)

    def _lines(self) -> Iterator[tuple[int, Any]]:
        with self.path.open("rb") as file:
            number = 0
            try:
                for number, line in enumerate(file, start=1):
                    yield number, json.loads(line)
            except ValueError as error:
                raise self._damaged(f"not JSON ({error})", number) from None

    def _damaged(self, reason: str, line: int) -> FileFormatError:
        return FileFormatError(
            f"{reason}; the file is damaged: start anew with overwrite=True", self.path, line
        )


def check_free(output: Path, *, overwrite: bool) -> None:
    """Find out, before models are loaded, that an output is there and must not be replaced.

    One with a journal beside it is of a run that died at its very end, or that was to replace it.

    Raises:
        InputError: it is there.
    """
    if output.exists() and not overwrite and not _is_journal(_journal_of(output)):
        raise InputError(f"{output} exists; name another file, or replace it with overwrite=True")


def _journal_of(output: Path) -> Path:
    return output.with_name(output.name + ".mining")


def _is_journal(path: Path) -> bool:
    """Return whether a run is there; one that died before it wrote its first line is none."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.readline().endswith(b"\n")


def _line(value: Any) -> bytes:
    # numbers may be numpy's, in the settings of a retriever for example
    return json.dumps(value, separators=(",", ":"), default=float).encode() + b"\n"


def _outcome(row: Mapping[str, Any]) -> Outcome:
    return Outcome(
        query_id=row["query_id"],
        positives=row["positives"],
        lost=row["lost"],
        negatives=[Negative(**each) for each in row["negatives"]],
        refused=row["refused"],
        suspects=[Suspect(**each) for each in row["suspects"]],
    )
