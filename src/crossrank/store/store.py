"""What a store of documents does, whatever keeps them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from crossrank.store.filters import FilterLike
from crossrank.types import Document, Ranking

__all__ = ["AddReport", "DocumentLike", "OnDuplicate", "OnError", "Rejected", "Store", "VectorEncoder"]

OnDuplicate: TypeAlias = Literal["error", "skip", "replace"]
OnError: TypeAlias = Literal["raise", "collect"]
DocumentLike: TypeAlias = "Document | Mapping[str, Any]"
"""A document, or a dict with id, text, optional title, and metadata in its other keys."""


class VectorEncoder(Protocol):
    """What an index needs of a bi-encoder."""

    @property
    def name(self) -> str:
        """What people call the model; for messages."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes whenever the vectors would."""
        ...

    @property
    def dimensions(self) -> int:
        """Length of the vectors."""
        ...

    def encode_queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return (len(texts), dimensions) float32."""
        ...

    def encode_documents(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return (len(texts), dimensions) float32."""
        ...


@dataclass(frozen=True)
class Rejected:
    """A row of the input that did not become a document of the index.

    Attributes:
        reason: what is wrong with it.
        path: the file, None for documents that do not come from a file.
        line: 1-based line (row in Parquet, document in an iterable), None for a whole file.
        document_id: its id where it has one.
    """

    reason: str
    path: Path | None = None
    line: int | None = None
    document_id: str | None = None

    def __str__(self) -> str:
        place = str(self.path) if self.path is not None else "document"
        line = f":{self.line}" if self.path is not None and self.line is not None else ""
        number = f" {self.line}" if self.path is None and self.line is not None else ""
        named = f" ({self.document_id!r})" if self.document_id is not None else ""
        return f"{place}{line}{number}{named}: {self.reason}"


@dataclass(frozen=True)
class AddReport:
    """What became of the documents of one call of `add`; the counts sum to what was read.

    Attributes:
        added: new documents.
        replaced: documents whose earlier version they took the place of.
        unchanged: documents that were stored already, with the same content.
        skipped: documents whose id was taken by another content (`on_duplicate="skip"`).
        rejected: rows that could not be stored, with file, line and reason.
    """

    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    skipped: int = 0
    rejected: tuple[Rejected, ...] = ()


@runtime_checkable
class Store(Protocol):
    """Keeps documents and finds them by their words, their vectors and their metadata."""

    def add(
        self,
        documents: Iterable[DocumentLike],
        *,
        on_duplicate: OnDuplicate = "error",
        on_error: OnError = "raise",
        batch_size: int = 1024,
        progress: bool | None = None,
        on_batch: Callable[[tuple[str, ...]], None] | None = None,
    ) -> AddReport:
        """Store documents; see `Index.add`."""
        ...

    def upsert(self, documents: Iterable[DocumentLike]) -> AddReport:
        """Store documents, in place of those that have their ids."""
        ...

    def delete(self, ids: Sequence[str]) -> int:
        """Delete documents and return how many there were."""
        ...

    def get(self, ids: Sequence[str]) -> list[Document | None]:
        """Return the documents with these ids, in this order; None for an unknown id."""
        ...

    def count(self, filter: FilterLike | None = None) -> int:
        """Return how many documents there are, or how many match."""
        ...

    def search_text(
        self, queries: Sequence[str], top_k: int = 100, filter: FilterLike | None = None
    ) -> list[Ranking]:
        """Return one BM25 ranking per query."""
        ...

    def search_vector(
        self,
        queries: Sequence[str] | npt.NDArray[np.float32],
        top_k: int = 100,
        filter: FilterLike | None = None,
    ) -> list[Ranking]:
        """Return one ranking per query by inner product, from texts or from their vectors."""
        ...

    def close(self) -> None:
        """Let go of files and memory."""
        ...
