"""The LanceDB table behind an index: opening, locking, reading and writing rows.

Readers take no lock: every operation reads the newest committed version of the table. Writers take an
advisory lock (a file beside the table, released by the operating system when a process dies) for the
moment of a write, so that "is this id stored?" and the write that follows are one step; two writers
take turns, batch by batch. A write is committed by one atomic rename of the table's manifest, so a
process killed at any moment leaves the version before or the version after, never half of one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence, Set
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crossrank.errors import IndexMismatchError, IndexStoreError, InputError, require
from crossrank.store.schema import Row, Settings, TokenRow, to_arrow

__all__ = ["DocumentTable"]

_TABLE = "documents"
_LOCK_FILE = "writer.lock"
_IDS_PER_QUERY = 1000  # keeps the SQL text of one query small


class DocumentTable:
    """One table of documents in a folder.

    Attributes:
        path: the index's folder.
        settings: what was decided when the index was created.
        lock_timeout_s: how long a writer waits for another one.
    """

    def __init__(self, path: Path, table: Any, settings: Settings, lock_timeout_s: float) -> None:
        self.path = path
        self.settings = settings
        self.lock_timeout_s = lock_timeout_s
        self._lance = table

    @classmethod
    def create(
        cls, path: str | Path, settings: Settings, *, overwrite: bool, lock_timeout_s: float
    ) -> DocumentTable:
        """Make an empty table; with `overwrite` the one that is there is replaced in one atomic step.

        Raises:
            IndexStoreError: there is an index already, or the folder cannot be written.
        """
        folder = Path(path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise IndexStoreError(f"{folder}: no index can be created here: {error}") from error
        schema = settings.arrow_schema()
        with _locked(folder, lock_timeout_s), _store_errors(folder):
            database = _connect(folder)
            try:
                table = database.create_table(_TABLE, schema=schema)
            except ValueError as error:
                if "already exists" not in str(error):
                    raise
                if not overwrite:
                    raise IndexStoreError(
                        f"{folder}: there is an index already; use Index.open to add to it, "
                        "or overwrite=True to start anew"
                    ) from None
                table = database.create_table(_TABLE, schema=schema, mode="overwrite")
        return cls(folder, table, settings, lock_timeout_s)

    @classmethod
    def open(cls, path: str | Path, *, lock_timeout_s: float) -> DocumentTable:
        """Open the table in a folder.

        Raises:
            IndexStoreError: no index is there, it is damaged, or a newer crossrank made it.
        """
        folder = Path(path)
        missing = f"{folder}: there is no index here; make one with Index.create or `crossrank index`"
        if not (folder / f"{_TABLE}.lance").is_dir():  # connecting would create the folder
            raise IndexStoreError(missing)
        with _store_errors(folder):
            try:
                table = _connect(folder).open_table(_TABLE)
            except ValueError as error:
                if "not found" not in str(error):
                    raise
                raise IndexStoreError(missing) from None
            schema = table.schema
        return cls(folder, table, Settings.from_arrow_schema(schema, str(folder)), lock_timeout_s)

    @staticmethod
    def exists(folder: Path, *, beside: Set[str]) -> bool:
        """Return whether there is a table in a folder; where there is none, one can be created.

        Args:
            folder: need not be there.
            beside: names of other files that are an index's.

        Raises:
            IndexStoreError: there is none, and the folder has files that are no index's. Hidden ones do not
                count.
        """
        # Lance commits a version of a table by renaming its manifest into place.
        if any(folder.glob(f"{_TABLE}.lance/_versions/*.manifest")):
            return True
        names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
        own = {f"{_TABLE}.lance", _LOCK_FILE, *beside}
        other = [name for name in names if name not in own and not name.startswith(".")]
        if other:
            raise IndexStoreError(
                f"{folder}: this folder has no index, and it has other files ({', '.join(other[:3])}"
                f"{', ...' if len(other) > 3 else ''}); give a new folder or an empty one"
            )
        return False

    @property
    def lance(self) -> Any:
        """The `lancedb` table at its newest version.

        Raises:
            IndexStoreError: the table was closed.
            IndexMismatchError: the index was created anew, with other settings, since it was opened.
        """
        if self._lance is None:
            raise IndexStoreError(f"{self.path}: this index was closed; open it again with Index.open")
        with _store_errors(self.path):
            schema = self._lance.schema
        if Settings.from_arrow_schema(schema, str(self.path)) != self.settings:
            raise IndexMismatchError(
                f"{self.path}: the index was created anew with other settings since it was opened; "
                "open it again"
            )
        return self._lance

    def close(self) -> None:
        """Let go of the table; a second call does nothing."""
        self._lance = None

    def writing(self) -> contextlib.AbstractContextManager[None]:
        """Hold the writer's lock.

        Raises:
            IndexStoreError: another process keeps writing for longer than `lock_timeout_s`.
        """
        return _locked(self.path, self.lock_timeout_s)

    def errors(self) -> contextlib.AbstractContextManager[None]:
        """Turn what the store raises into errors that name the index."""
        return _store_errors(self.path)

    @property
    def version(self) -> int:
        """Number of the newest version; rises with every write."""
        with _store_errors(self.path):
            return int(self.lance.version)

    def count(self, where: str | None = None) -> int:
        """Return how many rows there are, or how many meet an SQL condition."""
        with _store_errors(self.path):
            return int(self.lance.count_rows(where))

    def rows_by_id(self, ids: Sequence[str], columns: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        """Return the rows with these ids, by id; unknown ids are left out."""
        found: dict[str, Mapping[str, Any]] = {}
        for condition in _id_conditions(ids):
            with _store_errors(self.path):
                query = self.lance.search().where(condition).select(list(columns))
                for row in query.limit(_IDS_PER_QUERY).to_list():
                    found[row["id"]] = row
        return found

    def hashes(self, ids: Sequence[str]) -> dict[str, str]:
        """Return the content hashes of the documents with these ids; unknown ids are left out."""
        rows = self.rows_by_id(ids, ["id", "content_hash"])
        return {name: row["content_hash"] for name, row in rows.items()}

    def batches(self, columns: Sequence[str], where: str | None, rows: int) -> Iterator[Any]:
        """Yield all rows that meet an SQL condition as `pyarrow.RecordBatch`, at most `rows` at a time."""
        with _store_errors(self.path):
            query = self.lance.search().select(list(columns))
            yield from (query if where is None else query.where(where)).to_batches(batch_size=rows)

    def ids(self, where: str | None = None) -> list[str]:
        """Return the ids of all rows that meet an SQL condition, in the order they are stored."""
        with _store_errors(self.path):
            query = self.lance.search().select(["id"])
            table = (query.where(where) if where is not None else query).to_arrow()
        return [str(value) for value in table["id"].to_pylist()]

    def write(
        self,
        rows: Sequence[Row],
        vectors: npt.NDArray[np.float32] | None,
        tokens: Sequence[TokenRow] | None = None,
        token_ids: Sequence[bytes] | None = None,
        *,
        replace: bool,
    ) -> None:
        """Store rows in one atomic step; the caller holds the lock and knows which ids are stored.

        Args:
            rows: rows with ids of their own.
            vectors: (len(rows), dimensions) float32, None for an index without a bi-encoder.
            tokens: of each row, None for an index without token vectors.
            token_ids: of each row, None for an index without them, or where they cannot be made.
            replace: whether some of the ids are stored; their rows are replaced.
        """
        with _store_errors(self.path):
            table = self.lance
            data = to_arrow(rows, vectors, tokens, token_ids, table.schema)
            if replace:
                merge = table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
                merge.execute(data, on_bad_vectors="null")
            else:
                table.add(data, on_bad_vectors="null")  # a null vector counts as a bad one

    def delete(self, ids: Sequence[str]) -> int:
        """Delete the rows with these ids and return how many there were; the caller holds the lock."""
        deleted = 0
        for condition in _id_conditions(ids):
            with _store_errors(self.path):
                deleted += int(self.lance.delete(condition).num_deleted_rows)
        return deleted


def _connect(folder: Path) -> Any:
    lancedb = require("lancedb", "search")
    # An interval of 0 makes every operation look for the newest version first (0.15 ms).
    return lancedb.connect(str(folder), read_consistency_interval=timedelta(0))


def _id_conditions(ids: Sequence[str]) -> Iterator[str]:
    for start in range(0, len(ids), _IDS_PER_QUERY):
        quoted = ", ".join(
            "'" + name.replace("'", "''") + "'" for name in ids[start : start + _IDS_PER_QUERY]
        )
        yield f"id IN ({quoted})"


@contextlib.contextmanager
def _locked(folder: Path, timeout_s: float) -> Iterator[None]:
    filelock = require("filelock", "search")
    try:
        # A lock object for each use, so that the threads of one process exclude each other too.
        lock = filelock.FileLock(folder / _LOCK_FILE, timeout=timeout_s, thread_local=False)
        lock.acquire()
    except filelock.Timeout:
        raise IndexStoreError(
            f"{folder}: another process has been writing to this index for {timeout_s:g} s; "
            "try again when it is done"
        ) from None
    except OSError as error:
        raise IndexStoreError(f"{folder}: this index cannot be written: {error}") from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _store_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except (IndexStoreError, InputError):
        raise
    except (RuntimeError, OSError, ValueError) as error:
        raise IndexStoreError(f"{folder}: the store failed: {error}") from error
