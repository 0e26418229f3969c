"""Documents by id and by number, from a list or an index: what a miner asks of a corpus."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from crossrank.checks import check_text
from crossrank.errors import InputError
from crossrank.retrieval.retriever import as_documents
from crossrank.types import Document

if TYPE_CHECKING:
    from crossrank.store.lance import Index

__all__ = ["Corpus", "as_corpus"]


class Corpus(Protocol):
    """Documents that can be looked up.

    Attributes:
        fingerprint: changes whenever a document does; plain JSON.
    """

    @property
    def fingerprint(self) -> Any:
        """Changes whenever a document does; plain JSON."""
        ...

    def __len__(self) -> int: ...

    def get(self, ids: Sequence[str]) -> list[Document | None]:
        """Return the documents with these ids, in this order; None for an unknown id."""
        ...

    def id_at(self, number: int) -> str:
        """Return the id of one document; numbers go from 0 to len - 1 and mean the same every time."""
        ...


def as_corpus(documents: Sequence[str | Document] | Index) -> Corpus:
    """Return a corpus over a list of documents, or over an index.

    Raises:
        InputError: no documents, something that is no document, or an id that occurs twice.
    """
    corpus: Corpus
    if callable(getattr(documents, "search_text", None)):
        corpus = _IndexCorpus(documents)  # type: ignore[arg-type]
    else:
        corpus = _ListCorpus(documents)  # type: ignore[arg-type]
    if not len(corpus):
        raise InputError("there are no documents to take negatives from")
    return corpus


class _ListCorpus:
    """Documents in memory; beside them it keeps a number for each id."""

    def __init__(self, documents: Sequence[str | Document]) -> None:
        self._documents = as_documents(documents)
        self._rows = {document.id: row for row, document in enumerate(self._documents)}

    def __len__(self) -> int:
        return len(self._documents)

    def get(self, ids: Sequence[str]) -> list[Document | None]:
        rows = map(self._rows.get, ids)
        return [None if row is None else self._documents[row] for row in rows]

    def id_at(self, number: int) -> str:
        return self._documents[number].id

    @cached_property
    def fingerprint(self) -> Any:
        hasher = hashlib.sha256()
        for document in self._documents:
            for part in (document.id, document.full_text):
                check_text(part, f"document {document.id!r}")  # all of it must fit into a file
                data = part.encode()
                hasher.update(len(data).to_bytes(8, "big") + data)
        return hasher.hexdigest()


class _IndexCorpus:
    """Documents on disk; ids are kept in memory once one is asked for by number."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def __len__(self) -> int:
        return self._index.count()

    def get(self, ids: Sequence[str]) -> list[Document | None]:
        return self._index.get(ids)

    def id_at(self, number: int) -> str:
        return self._ids[number]

    @cached_property
    def _ids(self) -> list[str]:
        # The order on disk changes when files are merged.
        return sorted(self._index.ids())

    @cached_property
    def fingerprint(self) -> Any:
        info = self._index.info()
        return {"documents": info.documents, "version": info.version, "path": str(info.path.resolve())}
