"""Rows of float32 numbers by key, in an SQLite file that processes share.

Nothing that happens to the file may break or change a score: a row whose checksum does not fit its key and
numbers counts as missing, a file SQLite cannot make sense of is renamed aside and made anew, and a file that
is busy, full or read-only is left alone.

Whose file it is decides what may be done to it. Damage can wipe out any mark inside, so there are two: the
end of the name, without which nothing is opened, and in SQLite's header an application id, without which a
database that can be read and has tables is somebody else's.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from crossrank.errors import InputError

__all__ = ["ScoreFile"]

Scores = npt.NDArray[np.float32]
_Result = TypeVar("_Result")

_logger = logging.getLogger(__name__)

_TABLE = (
    "scores (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, row BLOB NOT NULL, checksum BLOB NOT NULL)"
)
_APPLICATION_ID = int.from_bytes(b"xrnk", "big")
_SUFFIXES = (".cache", ".db", ".sqlite", ".sqlite3")
# What a damaged file can lead to: a damaged length asks for any amount of memory, and sqlite3 cannot always
# decode SQLite's message about a damaged schema.
_DAMAGE = (sqlite3.Error, MemoryError, UnicodeDecodeError)
_VARIABLES = 500  # of one statement; old SQLite versions allow 999
_BUSY_S = 5.0
# The file is sound, but not to be had now: by another process's lock, or by permissions or a full disk.
_PASSING = ("locked", "busy", "readonly", "full", "unable to open")


class ScoreFile:
    """A file of rows; all methods are safe to call from many threads and processes.

    Args:
        path: made when missing, with its folders.
        max_bytes: what the rows may take; the oldest go first.

    Raises:
        InputError: a name that a score cache cannot have, or another program's database.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        if path.suffix.lower() not in _SUFFIXES or "\0" in str(path):
            raise InputError(
                f"{str(path)!r} cannot be a score cache: its name must end in one of {', '.join(_SUFFIXES)}, "
                "so that no other file is taken for a damaged cache"
            )
        self.path = path
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._process = 0
        self._warned = False
        self._opened = False
        with self._lock:
            self._try(lambda connection: None, default=None)
            self._opened = True

    def read(self, keys: Sequence[bytes]) -> dict[bytes, Scores]:
        """Find rows; those that are missing or damaged are left out."""
        with self._lock:
            return self._try(lambda connection: _read(connection, keys), default={})

    def write(self, rows: Mapping[bytes, Scores]) -> None:
        """Store rows, and drop the oldest ones if the file has grown too large."""
        with self._lock:
            self._try(lambda connection: _write(connection, rows, self._max_bytes), default=None)

    def close(self) -> None:
        """Close the file; it opens again when used."""
        with self._lock:
            self._disconnect()

    def _try(
        self, work: Callable[[sqlite3.Connection], _Result], default: _Result, again: bool = True
    ) -> _Result:
        try:
            return work(self._connect())
        except (OSError, InputError) as error:
            if isinstance(error, InputError) and not self._opened:
                raise
            self._warn(f"the score cache {self.path} cannot be used now: {error}")
            return default
        except _DAMAGE as error:
            if any(word in str(error) for word in _PASSING):
                self._warn(f"the score cache {self.path} cannot be used now: {error}")
                return default
            self._disconnect()
            if again and self._set_aside(error):
                return self._try(work, default, again=False)
            return default

    def _connect(self) -> sqlite3.Connection:
        # A connection must not cross a fork: the child opens its own and leaves the parent's alone.
        if self._connection is None or self._process != os.getpid():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(
                self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
            )
            try:
                self._claim(connection)
                connection.execute("PRAGMA journal_mode=WAL")
                # A row lost in a power cut is computed again; waiting for the disk would cost more.
                connection.execute("PRAGMA synchronous=OFF")
                connection.execute("PRAGMA cell_size_check=ON")
                connection.execute("PRAGMA journal_size_limit=4194304")
                connection.execute(f"CREATE TABLE IF NOT EXISTS {_TABLE}")
                connection.execute("SELECT id, key, row, checksum FROM scores LIMIT 1").fetchone()
            except BaseException:
                connection.close()
                raise
            self._connection, self._process = connection, os.getpid()
        return self._connection

    def _claim(self, connection: sqlite3.Connection) -> None:
        """Mark a new file as a score cache, and leave another program's alone."""
        if connection.execute("PRAGMA application_id").fetchone() == (_APPLICATION_ID,):
            return
        stored = {sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master")}
        if not stored:
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        elif f"CREATE TABLE {_TABLE}" not in stored:  # with it, the mark alone was damaged
            raise InputError(
                f"{self.path} is another program's database; give the score cache a file of its own"
            )

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and self._process == os.getpid():
            try:
                connection.close()
            except _DAMAGE as error:  # closing writes the log back, which a damaged file may refuse
                _logger.debug("closing %s: %s", self.path, error)

    def _set_aside(self, error: Exception) -> bool:
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.time_ns()}")
        try:
            self.path.replace(aside)
            for suffix in ("-wal", "-shm"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        except OSError as failure:
            self._warn(f"the score cache {self.path} is damaged ({error}) and cannot be renamed: {failure}")
            return False
        _logger.warning(
            "the score cache %s is damaged (%s): renamed to %s and made anew; scores are computed again",
            self.path,
            error,
            aside.name,
        )
        return True

    def _warn(self, message: str) -> None:
        _logger.log(logging.DEBUG if self._warned else logging.WARNING, "%s", message)
        self._warned = True


def _read(connection: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, Scores]:
    rows: dict[bytes, Scores] = {}
    for start in range(0, len(keys), _VARIABLES):
        part = keys[start : start + _VARIABLES]
        marks = ",".join("?" * len(part))
        wanted = set(part)
        for key, row, checksum in connection.execute(
            f"SELECT key, row, checksum FROM scores WHERE key IN ({marks})", part
        ):
            # Damage may have changed the types as well as the contents.
            if not all(isinstance(field, bytes) for field in (key, row, checksum)) or key not in wanted:
                continue
            if len(row) % 4 == 0 and checksum == _checksum(key, row):
                rows[key] = np.frombuffer(row, dtype="<f4").astype(np.float32, copy=False)
    return rows


def _write(connection: sqlite3.Connection, rows: Mapping[bytes, Scores], max_bytes: int) -> None:
    contents = {key: row.astype("<f4").tobytes() for key, row in rows.items()}
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.executemany(
            "INSERT OR REPLACE INTO scores (key, row, checksum) VALUES (?, ?, ?)",
            [(key, content, _checksum(key, content)) for key, content in contents.items()],
        )
        for _ in range(100):  # an end even where damage keeps rows from going
            if _size(connection) <= max_bytes:
                break
            first, last = connection.execute("SELECT min(id), max(id) FROM scores").fetchone()
            if first is None:
                raise sqlite3.DatabaseError("it is too large, and yet has no rows")
            # A tenth of the ids at a time, so that not every write has to clear up.
            connection.execute("DELETE FROM scores WHERE id <= ?", (first + (last - first) // 10,))
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _size(connection: sqlite3.Connection) -> int:
    pages, free, page_bytes = (
        int(connection.execute(f"PRAGMA {name}").fetchone()[0])
        for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * page_bytes


def _checksum(key: bytes, row: bytes) -> bytes:
    return hashlib.blake2b(row, key=key, digest_size=8).digest()
