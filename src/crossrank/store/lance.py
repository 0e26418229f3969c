"""An index of documents on disk, over LanceDB."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, get_args

import numpy as np
import numpy.typing as npt

from crossrank.checks import as_vectors, check_count
from crossrank.errors import IndexMismatchError, InputError
from crossrank.store import upkeep
from crossrank.store.filters import FilterLike, as_filter
from crossrank.store.info import IndexInfo, index_info
from crossrank.store.ingest import Ingestion
from crossrank.store.readers import DocumentReader
from crossrank.store.schema import ModelSettings, Settings, TokenColumn, typed_fields
from crossrank.store.search import text_rankings, token_rankings, valid_strings, vector_rankings
from crossrank.store.store import AddReport, DocumentLike, OnDuplicate, OnError, VectorEncoder
from crossrank.store.table import DocumentTable
from crossrank.store.token_ids import TokenIdWriter, reopened
from crossrank.store.tokens import (
    CODEC_FILES,
    StoredTokens,
    TokenWriter,
    as_codec,
    check_same_tokens,
    token_column,
    write_codec,
)
from crossrank.store.vectors import check_same_vectors, check_vectors, model_settings
from crossrank.types import Document, Ranking

if TYPE_CHECKING:
    from crossrank.models.late_interaction import LateInteraction
    from crossrank.models.token_codec import TokenCodec

__all__ = ["Index"]

GRACE_S = 600.0
"""Old versions of an index stay this long for processes that may be reading them."""

_LOCK_TIMEOUT_S = 300.0
_IDS_AT_A_TIME = 8192


class Index:
    """Documents with their words, vectors and metadata, in a folder.

    Made with `Index.create` or `Index.open`. Any number of processes and threads may search while one
    writes; writers take turns. What `add` has returned for, or reported through `on_batch`, survives
    the death of the process at any moment. (A power failure is left to the file system.)

    Text search is BM25 with k1 = 1.2 and b = 0.75 over title and text, idf = ln(1 + (N - df + 0.5) /
    (df + 0.5)); words are split at everything that is not a letter or digit, lower-cased, stripped of
    accents, stemmed (Snowball) and freed of stop words by language. Vector search is by inner product.

    Example:
        >>> index = Index.create("my-index", fields={"year": int})  # doctest: +SKIP
        >>> index.add([{"id": "a", "text": "a red fox", "year": 1999}])  # doctest: +SKIP
        >>> index.search_text(["foxes"], filter="year < 2000")[0].document_ids  # doctest: +SKIP
        ('a',)
    """

    def __init__(
        self,
        table: DocumentTable,
        bi_encoder: VectorEncoder | None,
        late_interaction: LateInteraction | None = None,
        id_writer: TokenIdWriter | None = None,
    ) -> None:
        self._table = table
        self._bi_encoder = bi_encoder
        self._late_interaction = late_interaction
        self._stored_tokens: StoredTokens | None = None
        self._id_writer = id_writer

    @classmethod
    def create(
        cls,
        path: str | Path,
        bi_encoder: VectorEncoder | None = None,
        *,
        late_interaction: LateInteraction | None = None,
        token_codec: str | TokenCodec = "int8",
        token_ids_for: str | Path | None = None,
        language: str | None = "english",
        fields: Mapping[str, type | str] | None = None,
        overwrite: bool = False,
        lock_timeout_s: float = _LOCK_TIMEOUT_S,
    ) -> Index:
        """Make an empty index.

        Args:
            path: its folder; made where it does not exist.
            bi_encoder: gives the documents their vectors; None for text search alone.
            late_interaction: gives the documents token vectors, which are kept: see `search_late` and
                `late_reranker.StoredLateInteraction`.
            token_codec: how they are kept: "float16", "int8", or a `token_codec.ResidualCodec` trained on
                vectors of such documents.
            token_ids_for: a reranker's name or folder. What its tokenizer makes of the documents is kept, so
                that rerankers of the same tokenizer need not tokenise what is found. No score changes.
            language: of the text index: english, german, ...; None for no stemming, no stop words
                and word boundaries for any script.
            fields: metadata that can be filtered on: name -> str, int, float or bool, or the type's
                name. All other metadata is kept and returned, but cannot be filtered on.
            overwrite: replace an index that is there, in one step; without it that is an error.
            lock_timeout_s: how long a write waits for another process that is writing.

        Raises:
            InputError: an unknown language, or a field with an unusable name or type.
            CheckpointError: there is no model `token_ids_for`, or its tokenizer cannot be opened.
            IndexStoreError: there is an index already, or the folder cannot be written.
            MissingExtraError: lancedb is not installed.
        """
        id_writer = None if token_ids_for is None else TokenIdWriter(token_ids_for)
        settings = Settings(
            language=language.lower() if isinstance(language, str) else language,
            fields=typed_fields(fields or {}),
            model=None if bi_encoder is None else model_settings(bi_encoder),
            tokens=None
            if late_interaction is None
            else token_column(late_interaction, as_codec(token_codec)),
            token_ids=None if id_writer is None else id_writer.column,
        )
        if late_interaction is not None:
            write_codec(Path(path), as_codec(token_codec))
        table = DocumentTable.create(path, settings, overwrite=overwrite, lock_timeout_s=lock_timeout_s)
        with table.writing():
            upkeep.prepare(table)
        return cls(table, bi_encoder, late_interaction, id_writer)

    @classmethod
    def open(
        cls,
        path: str | Path,
        bi_encoder: VectorEncoder | None = None,
        *,
        late_interaction: LateInteraction | None = None,
        lock_timeout_s: float = _LOCK_TIMEOUT_S,
    ) -> Index:
        """Open an index.

        Args:
            path: its folder.
            bi_encoder: the one the index was made with; without it there is text search, `get` and
                `delete`, but no vector search, and no `add` if the index has vectors.
            late_interaction: the late-interaction model the index was made with; without it there is no
                comparison of token vectors, and no `add` if the index has them.
            lock_timeout_s: how long a write waits for another process that is writing.

        Raises:
            IndexMismatchError: the index was made with another model, or without one.
            IndexStoreError: there is no index, it is damaged, or a newer crossrank made it.
            MissingExtraError: lancedb is not installed.
        """
        table = DocumentTable.open(path, lock_timeout_s=lock_timeout_s)
        if bi_encoder is not None:
            check_same_vectors(path, table.settings.model, bi_encoder)
        if late_interaction is not None:
            check_same_tokens(path, table.settings.tokens, late_interaction)
        return cls(table, bi_encoder, late_interaction)

    @staticmethod
    def exists(path: str | Path) -> bool:
        """Return whether there is an index at `path`; where there is none, one can be created.

        A `create` that was killed before its first commit leaves no index.

        Raises:
            IndexStoreError: the folder has no index and other files in it, which are not to be mixed with
                an index's. Hidden files do not count.
        """
        folder = Path(path)
        return DocumentTable.exists(folder, beside={file.name for file in folder.glob(CODEC_FILES)})

    @property
    def path(self) -> Path:
        """The index's folder."""
        return self._table.path

    @property
    def fields(self) -> Mapping[str, type]:
        """Metadata fields that can be filtered on, and their types."""
        return dict(self._table.settings.fields)

    @property
    def bi_encoder(self) -> VectorEncoder | None:
        """The bi-encoder the index was opened with."""
        return self._bi_encoder

    @property
    def model(self) -> ModelSettings | None:
        """The bi-encoder the index was made with; None for text search alone."""
        return self._table.settings.model

    @property
    def late_interaction(self) -> LateInteraction | None:
        """The late-interaction model the index was opened with."""
        return self._late_interaction

    @property
    def tokens(self) -> TokenColumn | None:
        """The late-interaction model the index was made with, and how its vectors are kept."""
        return self._table.settings.tokens

    def stored_tokens(self) -> StoredTokens:
        """Return the token vectors of the documents.

        Raises:
            IndexMismatchError: the index has none.
        """
        if self._stored_tokens is None:
            self._stored_tokens = StoredTokens(self._table)
        return self._stored_tokens

    def needed_late_interaction(self, what: str) -> LateInteraction:
        """Return the late-interaction model that the index was opened with.

        Raises:
            IndexMismatchError: it was opened without; `what` says what cannot be done.
        """
        stored = self.stored_tokens().column.model
        if self._late_interaction is None:
            raise IndexMismatchError(
                f"{self.path}: this index was opened without its late-interaction model, so {what}; open it "
                f"with {stored.name!r}: Index.open(path, late_interaction=LateInteraction(...))"
            )
        return self._late_interaction

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
        """Store documents, batch by batch, and make them searchable.

        A document that is stored already with the same content costs a look-up and nothing more, so a
        call that was interrupted is resumed by repeating it. When an error ends the call, the
        batches before stay stored.

        An index with token ids opens their tokenizer itself. Where it is not to be had, or is another one
        by now, a WARNING says so, and the documents are stored without.

        Args:
            documents: documents, dicts (see `readers.document_from`), or a `DocumentReader` over files.
            on_duplicate: for an id that is taken by another content, in the index or earlier in the
                call: "error", "skip" (the earlier document stays) or "replace".
            on_error: "raise", or "collect" to list documents that cannot be stored in the report and go
                on. A `DocumentReader` keeps its own setting.
            batch_size: documents that are encoded and stored at a time.
            progress: True shows a bar, False does not, None does for long calls on a terminal.
            on_batch: called with the ids of each batch as soon as it is stored for good.

        Raises:
            InputError: a document that cannot be stored, or a duplicate; FileFormatError where the
                documents come from a file. The message says which one.
            IndexMismatchError: the index has vectors and was opened without their model.
            IndexStoreError: the index cannot be written.
        """
        if isinstance(documents, (str, bytes, Path, Document, Mapping)) or not isinstance(
            documents, Iterable
        ):
            raise InputError(
                f"documents must be an iterable of documents, not a single {type(documents).__name__}; "
                "wrap a document in a list, and read a file with DocumentReader(path)"
            )
        for name, value, known in (
            ("on_duplicate", on_duplicate, get_args(OnDuplicate)),
            ("on_error", on_error, get_args(OnError)),
        ):
            if value not in known:
                raise InputError(f"{name} must be one of {', '.join(known)}, not {value!r}")
        check_count(batch_size, "batch_size")
        if self.model is not None and self._bi_encoder is None:
            raise self._needs_bi_encoder("documents cannot be added")
        token_writer = None
        if self.tokens is not None:
            model = self.needed_late_interaction("documents cannot be added")
            token_writer = TokenWriter(model, self.stored_tokens().codec)
        if self._id_writer is None and self._table.settings.token_ids is not None:
            self._id_writer = reopened(self._table.settings.token_ids)
        if isinstance(documents, DocumentReader):
            on_error = documents.on_error
            if documents.fields is None:
                documents = documents.with_fields(self.fields)
        ingestion = Ingestion(
            table=self._table,
            encoder=self._bi_encoder,
            token_writer=token_writer,
            id_writer=self._id_writer,
            on_duplicate=on_duplicate,
            on_error=on_error,
            batch_size=batch_size,
            on_batch=on_batch,
            grace_s=GRACE_S,
        )
        return ingestion.run(documents, progress=progress)

    def upsert(
        self,
        documents: Iterable[DocumentLike],
        *,
        on_error: OnError = "raise",
        batch_size: int = 1024,
        progress: bool | None = None,
        on_batch: Callable[[tuple[str, ...]], None] | None = None,
    ) -> AddReport:
        """Store documents, in place of those that have their ids: `add` with `on_duplicate="replace"`."""
        return self.add(
            documents,
            on_duplicate="replace",
            on_error=on_error,
            batch_size=batch_size,
            progress=progress,
            on_batch=on_batch,
        )

    def delete(self, ids: Sequence[str]) -> int:
        """Delete documents and return how many of the ids were stored."""
        ids = valid_strings(ids, "ids")
        with self._table.writing():
            deleted = self._table.delete(ids)
            if deleted >= max(64, self._table.count() // 10):
                upkeep.fold(self._table, grace_s=GRACE_S)
        return deleted

    def get(self, ids: Sequence[str]) -> list[Document | None]:
        """Return the documents with these ids, in this order; None for an id that is not stored."""
        ids = valid_strings(ids, "ids")
        settings = self._table.settings
        rows = self._table.rows_by_id(ids, settings.document_columns())
        return [settings.document(rows[name]) if name in rows else None for name in ids]

    def ids(self, filter: FilterLike | None = None) -> Iterator[str]:
        """Yield the ids of all documents, or of those that match, in the order they are stored.

        Nothing but ids is read, and some thousand at a time. What is written meanwhile is not seen.

        Args:
            filter: a condition on fields.

        Raises:
            InputError: a filter that does not fit the fields.
        """
        batches = self._table.batches(["id"], self._sql(filter), _IDS_AT_A_TIME)
        return (str(name) for batch in batches for name in batch["id"].to_pylist())

    def documents(self, filter: FilterLike | None = None) -> Iterator[Document]:
        """Yield all documents, or those that match, in the order they are stored.

        Documents deleted meanwhile are left out, and ones added meanwhile are not seen.
        """
        ids = self._table.ids(self._sql(filter))
        for start in range(0, len(ids), 1000):
            yield from (found for found in self.get(ids[start : start + 1000]) if found is not None)

    def count(self, filter: FilterLike | None = None) -> int:
        """Return how many documents there are, or how many match."""
        return self._table.count(self._sql(filter))

    def __len__(self) -> int:
        return self.count()

    def search_text(
        self, queries: Sequence[str], top_k: int = 100, filter: FilterLike | None = None
    ) -> list[Ranking]:
        """Return one BM25 ranking per query, in the order of the queries.

        Documents that share no word with the query are not found. Equal scores go by id, the largest
        first, as in trec_eval.

        Args:
            queries: texts; none of their characters has a special meaning.
            top_k: the most hits a ranking may have.
            filter: only documents that it matches are found. Document frequencies, and so scores, are
                those of all documents.

        Raises:
            InputError: queries that are not strings, or a filter that does not fit the fields.
        """
        texts = valid_strings(queries, "queries")
        return text_rankings(self._table, texts, top_k, self._sql(filter))

    def search_vector(
        self,
        queries: Sequence[str] | npt.NDArray[np.float32],
        top_k: int = 100,
        filter: FilterLike | None = None,
    ) -> list[Ranking]:
        """Return one ranking per query by inner product, in the order of the queries.

        Exact: below `upkeep.ANN_THRESHOLD` documents every vector is compared.
        Approximate: above, the scores are as exact, but documents in the parts of the space farthest from
        the query can be missed (see `upkeep.num_probes`). Equal scores go by id, the largest first, as
        in trec_eval.

        Args:
            queries: texts, encoded by the bi-encoder; or their vectors, (n, dimensions) float32.
            top_k: the most hits a ranking may have.
            filter: only documents that it matches are found.

        Raises:
            IndexMismatchError: an index without vectors, or texts and no bi-encoder to encode them.
            InputError: vectors of another shape or with NaN, or a filter that does not fit the fields.
        """
        model = self.model
        if model is None:
            raise IndexMismatchError(
                f"{self.path}: this index has no vectors; create it with a bi-encoder to search by vector"
            )
        if isinstance(queries, np.ndarray):
            vectors = as_vectors(queries, "query vectors", dimensions=model.dimensions)
            texts = [""] * len(vectors)
        else:
            texts = valid_strings(queries, "queries")
            if self._bi_encoder is None:
                raise self._needs_bi_encoder("texts cannot be searched for by vector")
            if not texts:
                return []
            vectors = check_vectors(self._bi_encoder.encode_queries(texts), len(texts), self._bi_encoder)
        return vector_rankings(self._table, texts, vectors, top_k, self._sql(filter))

    def search_late(
        self, queries: Sequence[str], top_k: int = 100, filter: FilterLike | None = None
    ) -> list[Ranking]:
        """Return one ranking per query by MaxSim over token vectors, in the order of the queries.

        Exact: the token vectors of all documents, as they are kept, are read and compared, a block at a time.
        The queries of a call share one reading. Equal scores go by id, the largest first, as in trec_eval.

        Args:
            queries: texts, encoded by the late-interaction model.
            top_k: the most hits a ranking may have.
            filter: only documents that it matches are read.

        Raises:
            IndexMismatchError: an index without token vectors, or opened without their model.
            InputError: queries that are not strings, or a filter that does not fit the fields.
            QueryTooLongError: as `LateInteraction`.
        """
        model = self.needed_late_interaction("texts cannot be searched for by their tokens")
        texts = valid_strings(queries, "queries")
        check_count(top_k)
        where = self._sql(filter)
        if not texts:
            return []
        vectors = model.encode_queries(texts)
        scale = [1 / len(each) if model.settings.is_mean else 1.0 for each in vectors]
        return token_rankings(
            self._table,
            self.stored_tokens(),
            texts=texts,
            vectors=vectors,
            scale=scale,
            top_k=top_k,
            where=where,
        )

    def optimize(self, *, grace_s: float = GRACE_S) -> None:
        """Take all documents into the indices, merge small files, and delete old versions.

        Never needed: `add` and `delete` do it when it pays. Worth it after a last change, for exact
        BM25 statistics and a smaller folder.

        Args:
            grace_s: versions of the index younger than this stay, for processes that may be reading
                them. 0 frees the most space; use it when no other process has the index open.
        """
        with self._table.writing():
            upkeep.prepare(self._table)
            upkeep.fold(self._table, grace_s=grace_s, exact=True)

    def info(self) -> IndexInfo:
        """Return what the index is and how big."""
        return index_info(self._table)

    def close(self) -> None:
        """Let go of the index's files; any further use is an error."""
        self._table.close()

    def __enter__(self) -> Index:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        model = self.model.name if self.model is not None else None
        return f"Index({str(self.path)!r}, model={model!r}, fields={sorted(self.fields)})"

    def _sql(self, filter: FilterLike | None) -> str | None:
        return None if filter is None else as_filter(filter).to_sql(self._table.settings.fields)

    def _needs_bi_encoder(self, what: str) -> IndexMismatchError:
        name = self.model.name if self.model is not None else ""
        return IndexMismatchError(
            f"{self.path}: this index was opened without a bi-encoder, so {what}; "
            f"open it with {name!r}: Index.open(path, bi_encoder=...)"
        )
