"""Scores that were computed before: in memory, and on disk across processes.

A cache maps keys to rows of numbers. The key is a hash of everything that decides a score (`score_key`), so
an entry can never be of another model, setting or text; a checksum binds a row on disk to its key, so a
damaged file can cost time and never gives a wrong score.

On disk the rows are in SQLite in WAL mode: many processes may read and write one file.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from crossrank.checks import check_count
from crossrank.errors import InputError

if TYPE_CHECKING:
    from crossrank.score_file import ScoreFile

__all__ = ["ScoreCache", "score_key"]

Scores = npt.NDArray[np.float32]


def score_key(fingerprint: str, query: str, document: str) -> bytes:
    """Hash a pair and everything else that decides its score; 20 bytes.

    Args:
        fingerprint: of the model: weights, tokenizer, template, truncation, precision.
        query: text.
        document: text.
    """
    digest = hashlib.blake2b(digest_size=20)
    for part in (fingerprint, query, document):
        content = part.encode("utf-8")
        digest.update(len(content).to_bytes(8, "little"))  # so that no two splits of a text are alike
        digest.update(content)
    return digest.digest()


class ScoreCache:
    """Computed rows by key; share one among models, threads and (with a path) processes.

    Args:
        path: SQLite file, made when missing; None keeps rows in memory only. Its name must end in .cache,
            .db, .sqlite or .sqlite3: a file of such a name that SQLite cannot read is taken for a damaged
            cache, renamed aside and made anew, with a warning in the log. No other file is ever renamed, and
            a database that has other tables is refused.
        max_items: rows kept in memory; the least recently used go first. About 300 bytes each.
        max_bytes: size of the file; the oldest rows go first. Its write-ahead log may add a few MB.

    Attributes:
        hits: rows that were found, since this object was made.
        misses: rows that had to be computed.

    Raises:
        InputError: a limit below 1, max_bytes below 64 KiB, or a path that is no score cache's.

    Example:
        >>> cache = ScoreCache(max_items=1000)
        >>> cache.get_or_compute([b"key"], lambda missing: [np.float32([1.5])])[0]
        array([1.5], dtype=float32)
    """

    def __init__(
        self, path: str | Path | None = None, *, max_items: int = 200_000, max_bytes: int = 256 * 2**20
    ) -> None:
        check_count(max_items, "max_items")
        check_count(max_bytes, "max_bytes")
        if max_bytes < 65_536:
            raise InputError(f"max_bytes is {max_bytes}; it must be at least 65536")
        self.hits = 0
        self.misses = 0
        self._max_items = max_items
        self._rows: OrderedDict[bytes, Scores] = OrderedDict()
        self._in_flight: dict[bytes, Future[Scores | None]] = {}
        self._lock = threading.Lock()
        self._file: ScoreFile | None = None
        if path is not None:
            if not isinstance(path, (str, Path)):
                raise InputError(f"path must be a file's name, not {type(path).__name__}")
            from crossrank.score_file import ScoreFile  # brings SQLite, which memory alone does not need

            self._file = ScoreFile(Path(path), max_bytes)

    def get_or_compute(
        self, keys: Sequence[bytes], compute: Callable[[list[int]], Sequence[Scores]]
    ) -> list[Scores]:
        """Look rows up, and compute those that are missing.

        A row that another thread is computing is waited for, not computed twice. If that thread fails, it is
        computed here.

        Args:
            keys: one for each row; equal keys are computed once.
            compute: called with the positions (in `keys`) of missing rows, ascending; returns their rows in
                that order. What it raises comes out here, and nothing is stored.

        Returns:
            Read-only float32 rows, in the order of the keys.
        """
        found: dict[bytes, Scores] = {}
        wanted = {key: position for position, key in reversed(list(enumerate(keys)))}
        while wanted:
            mine, theirs = self._claim(wanted, found)
            if mine:
                self._compute(mine, found, compute)
            # Waiting comes after this thread's own rows are done, so two threads never wait for each other.
            for key, future in theirs.items():
                row = future.result()
                if row is not None:
                    found[key] = row
            wanted = {key: position for key, position in wanted.items() if key not in found}
        return [found[key] for key in keys]

    def __len__(self) -> int:
        return len(self._rows)

    def close(self) -> None:
        """Close the file; rows in memory stay usable."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> ScoreCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _claim(
        self, wanted: dict[bytes, int], found: dict[bytes, Scores]
    ) -> tuple[dict[bytes, int], dict[bytes, Future[Scores | None]]]:
        """Move what is in memory to `found`; of the rest, say what is this thread's to compute."""
        mine: dict[bytes, int] = {}
        theirs: dict[bytes, Future[Scores | None]] = {}
        with self._lock:
            for key, position in wanted.items():
                row = self._rows.get(key)
                if row is not None:
                    self._rows.move_to_end(key)
                    found[key] = row
                    self.hits += 1
                elif key in self._in_flight:
                    theirs[key] = self._in_flight[key]
                    self.hits += 1
                else:
                    self._in_flight[key] = Future()
                    mine[key] = position
        return mine, theirs

    def _compute(
        self,
        mine: dict[bytes, int],
        found: dict[bytes, Scores],
        compute: Callable[[list[int]], Sequence[Scores]],
    ) -> None:
        rows: dict[bytes, Scores] = {}
        try:
            if self._file is not None:
                rows.update(self._file.read(list(mine)))
            missing = sorted((position, key) for key, position in mine.items() if key not in rows)
            with self._lock:
                self.hits += len(rows)
                self.misses += len(missing)
            if missing:
                computed = compute([position for position, _ in missing])
                new = {key: _frozen(row) for (_, key), row in zip(missing, computed, strict=True)}
                rows.update(new)
                if self._file is not None:
                    self._file.write(new)
        finally:
            with self._lock:
                for key in mine:
                    future = self._in_flight.pop(key)
                    future.set_result(rows.get(key))  # None tells the waiting to compute it themselves
                for key, row in rows.items():
                    self._rows[key] = row
                while len(self._rows) > self._max_items:
                    self._rows.popitem(last=False)
        found.update(rows)


def _frozen(row: Scores) -> Scores:
    copy = np.array(row, dtype=np.float32)
    copy.flags.writeable = False
    return copy
