"""Adding documents: checked, compared with what is stored, encoded and written batch by batch.

A batch is written in one atomic step, and is safe from then on. Adding the same documents again
finds them by id and content hash and neither encodes nor writes them, so an interrupted call is
resumed by repeating it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from crossrank.errors import FileFormatError, InputError
from crossrank.progress import track
from crossrank.store import upkeep
from crossrank.store.readers import DocumentReader, document_from
from crossrank.store.schema import Row, TokenRow
from crossrank.store.store import AddReport, DocumentLike, OnDuplicate, OnError, Rejected, VectorEncoder
from crossrank.store.table import DocumentTable
from crossrank.store.token_ids import TokenIdWriter
from crossrank.store.tokens import TokenWriter
from crossrank.store.vectors import check_vectors
from crossrank.types import Document

__all__ = ["Ingestion"]

_logger = logging.getLogger(__name__)

_BATCH_CHARACTERS = 1 << 24  # a batch of huge documents is cut short of this much text


class _Source(NamedTuple):
    """Where a document came from: a line of a file, or its 1-based position in the iterable."""

    path: Path | None
    line: int


@dataclass
class Ingestion:
    """One call of `Index.add`.

    Attributes:
        table: where the documents go.
        encoder: gives the vectors; None for an index without a bi-encoder.
        token_writer: gives the token vectors; None for an index without a late-interaction model.
        id_writer: gives the token ids; None for an index without them, or where they cannot be made.
        on_duplicate: what to do with an id that is stored with another content.
        on_error: whether a document that cannot be stored ends the call or is listed in the report.
        batch_size: documents in a batch.
        on_batch: called with the ids of a batch once all its documents are stored.
        grace_s: see `upkeep.fold`.
    """

    table: DocumentTable
    encoder: VectorEncoder | None
    token_writer: TokenWriter | None
    id_writer: TokenIdWriter | None
    on_duplicate: OnDuplicate
    on_error: OnError
    batch_size: int
    on_batch: Callable[[tuple[str, ...]], None] | None
    grace_s: float
    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    skipped: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    _batch: dict[str, tuple[Row, _Source]] = field(default_factory=dict)
    _characters: int = 0
    _num_blank: int = 0

    def run(self, documents: Iterable[DocumentLike], *, progress: bool | None) -> AddReport:
        """Store the documents and return what became of them."""
        with self.table.writing():
            upkeep.prepare(self.table)
        with track(_size(documents), "Indexing", progress=progress) as bar:
            for document, source in self._checked(documents):
                self._take(document, source)
                if len(self._batch) >= self.batch_size or self._characters >= _BATCH_CHARACTERS:
                    self._flush()
                    self._upkeep(writing=True)
                    done = documents.read_bytes if isinstance(documents, DocumentReader) else source.line
                    bar.advance(done - bar.done)
            self._flush()
        self._upkeep(writing=False)
        if self._num_blank:
            _logger.warning(
                "documents without text: %d; they are stored, and no search finds them", self._num_blank
            )
        return AddReport(self.added, self.replaced, self.unchanged, self.skipped, tuple(self.rejected))

    def _upkeep(self, *, writing: bool) -> None:
        if upkeep.needs_folding(self.table, writing=writing):
            with self.table.writing():
                upkeep.fold(self.table, grace_s=self.grace_s)

    def _checked(self, documents: Iterable[DocumentLike]) -> Iterator[tuple[Document, _Source]]:
        reader = documents if isinstance(documents, DocumentReader) else None
        taken_over = 0
        for position, item in enumerate(documents, start=1):
            if reader is not None:
                self.rejected.extend(reader.rejected[taken_over:])
                taken_over = len(reader.rejected)
            source = _Source(None, position) if reader is None else _Source(reader.path, reader.line)
            try:
                yield document_from(item), source
            except InputError as error:
                self._reject(str(error), item.get("id") if isinstance(item, Mapping) else None, source)
        if reader is not None:
            self.rejected.extend(reader.rejected[taken_over:])

    def _take(self, document: Document, source: _Source) -> None:
        try:
            row = self.table.settings.row(document)
        except InputError as error:
            self._reject(str(error), document.id, source)
            return
        earlier = self._batch.get(row.id)
        if earlier is None:
            self._characters += len(row.content)
        elif earlier[0].content_hash == row.content_hash:
            self.unchanged += 1
            return
        elif self.on_duplicate == "skip":
            self.skipped += 1
            return
        elif self.on_duplicate == "error":
            self._reject_duplicate(row, source)
            return
        else:
            self.replaced += 1
        self._batch[row.id] = (row, source)

    def _flush(self) -> None:
        """Write the batch. Encoding, the slow part, happens while other writers may write."""
        vectors: dict[str, npt.NDArray[np.float32]] = {}
        tokens: dict[str, TokenRow] = {}
        while self._batch:
            version = self.table.version
            stored = self.table.hashes(list(self._batch))
            unchanged = [i for i, (row, _) in self._batch.items() if stored.get(i) == row.content_hash]
            taken = [i for i in self._batch if i in stored and i not in set(unchanged)]
            if self.on_duplicate == "error" and taken:
                for name in taken:  # raises unless errors are collected
                    self._reject_duplicate(*self._batch.pop(name))
                continue
            left_alone = {*unchanged, *(taken if self.on_duplicate == "skip" else ())}
            rows = [row for i, (row, _) in self._batch.items() if i not in left_alone]
            self._encode([row for row in rows if row.id not in vectors], vectors)
            if self.token_writer is not None:
                tokens.update(self.token_writer.encode([row for row in rows if row.id not in tokens]))
            token_ids = None if self.id_writer is None else self.id_writer.encode(rows)
            with self.table.writing():
                if self.table.version != version:
                    continue  # another writer came first: look again
                if rows:
                    stacked = np.stack([vectors[row.id] for row in rows]) if self.encoder else None
                    token_rows = [tokens[row.id] for row in rows] if self.token_writer else None
                    replace = any(row.id in stored for row in rows)
                    self.table.write(rows, stacked, token_rows, token_ids, replace=replace)
            replaced = sum(row.id in stored for row in rows)
            self.replaced += replaced
            self.added += len(rows) - replaced
            self.unchanged += len(unchanged)
            self.skipped += len(left_alone) - len(unchanged)
            self._num_blank += sum(not row.has_text for row in rows)
            ids = tuple(i for i in self._batch if i not in taken or self.on_duplicate == "replace")
            self._batch, self._characters = {}, 0
            if self.on_batch is not None:
                self.on_batch(ids)

    def _encode(self, rows: list[Row], vectors: dict[str, npt.NDArray[np.float32]]) -> None:
        if self.encoder is None or not rows:
            return
        # The vector of a text without words says nothing, and would match any query a little.
        nothing = np.zeros(self.encoder.dimensions, np.float32)
        vectors.update((row.id, nothing) for row in rows if not row.has_text)
        rows = [row for row in rows if row.has_text]
        if rows:
            encoded = self.encoder.encode_documents([row.content for row in rows])
            checked = check_vectors(encoded, len(rows), self.encoder)
            vectors.update(zip((row.id for row in rows), checked, strict=True))

    def _reject_duplicate(self, row: Row, source: _Source) -> None:
        self._reject(
            "another document has this id; use on_duplicate='replace' (or upsert) to store the new one "
            "in its place, or 'skip' to keep the earlier one",
            row.id,
            source,
        )

    def _reject(self, reason: str, document_id: Any, source: _Source) -> None:
        rejected = Rejected(reason, *source, document_id if isinstance(document_id, str) else None)
        if self.on_error == "collect":
            self.rejected.append(rejected)
            return
        if rejected.path is not None:
            raise FileFormatError(
                f"document {rejected.document_id!r}: {reason}", rejected.path, rejected.line
            ) from None
        raise InputError(str(rejected)) from None


def _size(documents: Iterable[DocumentLike]) -> int | None:
    """Return what progress is counted in: bytes of files, else documents; None when nobody can tell."""
    if isinstance(documents, DocumentReader):
        return documents.size_bytes
    return len(documents) if isinstance(documents, Sized) else None
