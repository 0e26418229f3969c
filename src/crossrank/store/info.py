"""What an index is and how big."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from crossrank.store import upkeep
from crossrank.store.schema import ModelSettings, TokenColumn, TokenIdColumn
from crossrank.store.table import DocumentTable
from crossrank.store.tokens import StoredTokens

__all__ = ["IndexInfo", "index_info"]


@dataclass(frozen=True)
class IndexInfo:
    """What an index is and how big.

    Attributes:
        path: its folder.
        documents: how many there are.
        language: of text search; None for no stemming and no stop words.
        fields: metadata fields and their types.
        model: the bi-encoder it was made with, None for text search alone.
        tokens: the late-interaction model it was made with and how its vectors are kept; None without one.
        token_ids: the tokenizer whose ids of its documents it keeps; None without.
        token_bytes_per_document: mean size of a document's token vectors, of those that have them.
        unindexed: documents that text search still finds by a scan.
        vector_index_rows: documents the vector index was trained on; None while all are compared.
        version: rises with every write.
        size_bytes: on disk, old versions included.
    """

    path: Path
    documents: int
    language: str | None
    fields: Mapping[str, type]
    model: ModelSettings | None
    tokens: TokenColumn | None
    token_ids: TokenIdColumn | None
    token_bytes_per_document: float | None
    unindexed: int
    vector_index_rows: int | None
    version: int
    size_bytes: int


def index_info(table: DocumentTable) -> IndexInfo:
    """Return what the index behind a table is and how big."""
    settings = table.settings
    per_document = None
    if settings.tokens is not None:
        documents, num_bytes = StoredTokens(table).size()
        per_document = num_bytes / documents if documents else None
    return IndexInfo(
        path=table.path,
        documents=table.count(),
        language=settings.language,
        fields=dict(settings.fields),
        model=settings.model,
        tokens=settings.tokens,
        token_ids=settings.token_ids,
        token_bytes_per_document=per_document,
        unindexed=upkeep.unindexed_rows(table),
        vector_index_rows=upkeep.vector_index_rows(table),
        version=table.version,
        size_bytes=_folder_bytes(table.path),
    )


def _folder_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # another process deletes old versions
            total += path.stat().st_size if path.is_file() else 0
    return total
