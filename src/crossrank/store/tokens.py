"""Token vectors in an index: what writes them, what reads them, and the file of their centroids."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from crossrank.checks import as_vectors
from crossrank.errors import (
    CheckpointError,
    IndexMismatchError,
    IndexStoreError,
    InputError,
    ModelOutputError,
)
from crossrank.models.maxsim import TokenVectors
from crossrank.models.token_codec import CODECS, ResidualCodec, TokenCodec
from crossrank.store.schema import ModelSettings, Row, TokenColumn, TokenRow
from crossrank.store.table import DocumentTable

if TYPE_CHECKING:
    from crossrank.models.late_interaction import LateInteraction

__all__ = [
    "StoredTokens",
    "TokenBlock",
    "TokenWriter",
    "as_codec",
    "check_same_tokens",
    "open_codec",
    "token_column",
    "write_codec",
]

CODEC_FILES = "token-codec-*.safetensors"
"""Centroids of an index's codec, named by their fingerprint."""

_ROWS_PER_BATCH = 512  # documents read at a time in a scan
_COUNTS_PER_BATCH = 1 << 16


def token_column(model: LateInteraction, codec: TokenCodec) -> TokenColumn:
    """Return what an index stores of a model and a codec.

    Raises:
        InputError: something that is no late-interaction model, or centroids of other dimensions.
    """
    if not all(hasattr(model, name) for name in ("fingerprint", "encode_documents_with_cuts", "dimensions")):
        raise InputError(
            f"late_interaction must be a LateInteraction, not {type(model).__name__}: LateInteraction(name)"
        )
    if isinstance(codec, ResidualCodec) and codec.centroids.shape[1] != model.dimensions:
        raise InputError(
            f"the token codec was trained on vectors of {codec.centroids.shape[1]} dimensions, and those of "
            f"{model.name!r} have {model.dimensions}"
        )
    settings = ModelSettings(model.origin, model.fingerprint, model.dimensions, model.precision)
    return TokenColumn(settings, codec.name, codec.fingerprint)


def check_same_tokens(path: str | Path, stored: TokenColumn | None, model: LateInteraction) -> None:
    """Refuse a model whose vectors are not those of an index.

    Raises:
        IndexMismatchError: says which is which.
    """
    if stored is None:
        raise IndexMismatchError(
            f"{path}: this index has no token vectors, so it cannot be used with {model.name!r}; open it "
            "without late_interaction, or create it anew with it"
        )
    given = ModelSettings(model.origin, model.fingerprint, model.dimensions, model.precision)
    if (stored.model.fingerprint, stored.model.dimensions) != (given.fingerprint, given.dimensions):
        raise IndexMismatchError(
            f"{path}: the token vectors in this index are those of {stored.model.described}, which cannot "
            f"be compared with those of {given.described}; open it with the former, or create it anew"
        )


def as_codec(codec: str | TokenCodec) -> TokenCodec:
    """Return a codec that may be given by name.

    Raises:
        InputError: a name that is none, or of a codec that has to be trained.
    """
    if not isinstance(codec, str):
        return codec
    if codec not in CODECS:
        raise InputError(
            f"token_codec must be one of {', '.join(CODECS)}, or a ResidualCodec that was trained on vectors "
            f"of such documents, not {codec!r}"
        )
    return CODECS[codec]()


def write_codec(folder: Path, codec: TokenCodec) -> None:
    """Write the centroids of a codec that has them beside the table, whole or not at all."""
    if not isinstance(codec, ResidualCodec):
        return
    path = _codec_file(folder, codec.fingerprint)
    folder.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    codec.save(scratch)
    scratch.replace(path)


def open_codec(folder: Path, column: TokenColumn) -> TokenCodec:
    """Open the codec of an index.

    Raises:
        IndexStoreError: its file is missing, damaged or another one.
    """
    if column.codec in CODECS:
        return CODECS[column.codec]()
    path = _codec_file(folder, column.codec_fingerprint)
    try:
        codec = ResidualCodec.load(path)
    except CheckpointError as error:
        raise IndexStoreError(f"{folder}: the index's token vectors cannot be read: {error}") from error
    if codec.fingerprint != column.codec_fingerprint:
        raise IndexStoreError(f"{path}: these are not the centroids the index was made with")
    return codec


def _codec_file(folder: Path, fingerprint: str) -> Path:
    return folder / CODEC_FILES.replace("*", fingerprint[:16])


class TokenWriter(NamedTuple):
    """Encodes the rows of a batch.

    Attributes:
        model: gives the vectors.
        codec: keeps them.
    """

    model: LateInteraction
    codec: TokenCodec

    def encode(self, rows: Sequence[Row]) -> dict[str, TokenRow]:
        """Return the token vectors of rows by id; those without text have none."""
        found = {row.id: TokenRow() for row in rows}
        rows = [row for row in rows if row.has_text]
        if rows:
            vectors, cut = self.model.encode_documents_with_cuts([row.content for row in rows])
            for row, each, num_cut in zip(rows, vectors, cut.tolist(), strict=True):
                name = f"the token vectors of {self.model.name}"
                checked = as_vectors(each, name, dimensions=self.model.dimensions, error=ModelOutputError)
                found[row.id] = TokenRow(self.codec.encode(checked).tobytes(), len(checked), num_cut)
        return found


class TokenBlock(NamedTuple):
    """The token vectors of some documents.

    Attributes:
        ids: of the documents.
        tokens: as the codec keeps them.
        cut: int32, tokens of each document that were not read.
    """

    ids: list[str]
    tokens: TokenVectors
    cut: npt.NDArray[np.int32]


class StoredTokens:
    """The token vectors of an index.

    Args:
        table: the index's.

    Attributes:
        column: what they are.
        codec: how they are kept.

    Raises:
        IndexMismatchError: the index has none.
        IndexStoreError: the file of the codec is missing or damaged.
    """

    def __init__(self, table: DocumentTable) -> None:
        if table.settings.tokens is None:
            raise IndexMismatchError(
                f"{table.path}: this index has no token vectors; create it with late_interaction= to compare "
                "by them"
            )
        self.column = table.settings.tokens
        self.codec = open_codec(table.path, self.column)
        self._table = table
        self._width = self.codec.bytes_per_token(self.column.model.dimensions)

    def of(self, ids: Sequence[str]) -> Mapping[str, tuple[str, npt.NDArray[np.uint8], int]]:
        """Return content, vectors as the codec keeps them, and cut tokens of documents, by id.

        Unknown ids and documents without text are left out.
        """
        rows = self._table.rows_by_id(ids, ["id", "content", "tokens", "tokens_cut"])
        return {
            name: (row["content"], self._rows(row["tokens"]), row["tokens_cut"])
            for name, row in rows.items()
            if row["tokens"] is not None
        }

    def blocks(self, where: str | None = None) -> Iterator[TokenBlock]:
        """Yield the token vectors of all documents that have them, some hundred documents at a time."""
        for batch in self._table.batches(["id", "tokens", "tokens_cut"], where, _ROWS_PER_BATCH):
            columns = batch.to_pydict()
            kept = [place for place, codes in enumerate(columns["tokens"]) if codes is not None]
            if kept:
                texts = [self._rows(columns["tokens"][place]) for place in kept]
                yield TokenBlock(
                    [columns["id"][place] for place in kept],
                    TokenVectors.of(texts, self._width),
                    np.array([columns["tokens_cut"][place] for place in kept], dtype=np.int32),
                )

    def size(self) -> tuple[int, int]:
        """Return how many documents have token vectors, and the bytes of them all."""
        documents = num_tokens = 0
        for batch in self._table.batches(["num_tokens"], "num_tokens is not null", _COUNTS_PER_BATCH):
            counts = batch["num_tokens"].to_numpy(zero_copy_only=False)
            documents += len(counts)
            num_tokens += int(counts.sum())
        return documents, num_tokens * self._width

    def _rows(self, codes: bytes) -> npt.NDArray[np.uint8]:
        if len(codes) % self._width:
            raise IndexStoreError(f"{self._table.path}: token vectors of an odd size; the index is damaged")
        return np.frombuffer(codes, dtype=np.uint8).reshape(-1, self._width)
