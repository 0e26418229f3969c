"""How an index lays out documents: its settings, its columns, and rows to and from documents.

Columns of the table: `id`, `content` (title and text joined by a space, what is searched),
`title_length` (characters of `content` that are the title), `content_hash`, `extra` (metadata
without a declared field, as JSON), `meta_<field>` for each declared field, and `vector` when the
index has a bi-encoder. With a late-interaction model also `tokens` (the vectors of a document's
tokens as a codec keeps them, end to end), `num_tokens` (how many they are) and `tokens_cut` (how
many of its tokens were not read). Vectors are null where there is no text. `token_ids` are what a
reranker's tokenizer makes of `content`, null where they were not kept. The settings are stored
in the table's own schema, so that they appear and change in the same atomic step as the table.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from crossrank.errors import IndexStoreError, InputError, require
from crossrank.store.filters import column_of
from crossrank.types import Document, TokenIds

__all__ = [
    "FIELD_TYPES",
    "FORMAT_VERSION",
    "LANGUAGES",
    "ModelSettings",
    "Row",
    "Settings",
    "TokenColumn",
    "TokenIdColumn",
]

FORMAT_VERSION = 3
"""Rises when an older crossrank could no longer read what a newer one writes. 2 has token vectors, 3 token
ids; an index without them is still written as 1."""

FIELD_TYPES: Mapping[str, type] = {"str": str, "int": int, "float": float, "bool": bool}
"""The types a metadata field can have, by the name the CLI and the stored settings use."""

LANGUAGES = frozenset(
    {"arabic", "danish", "dutch", "english", "finnish", "french", "german", "greek", "hungarian"}
    | {"italian", "norwegian", "portuguese", "romanian", "russian", "spanish", "swedish", "tamil"}
    | {"turkish"}
)
"""Languages the text index can stem and remove stop words for."""

_METADATA_KEY = b"crossrank"
_FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TAKEN_NAMES = frozenset({"id", "text", "title", "and", "or", "not", "in", "is", "null", "true", "false"})
_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True)
class ModelSettings:
    """The bi-encoder an index was made with.

    Attributes:
        name: what people call it; for messages.
        fingerprint: changes whenever its vectors would.
        dimensions: length of its vectors.
        precision: what it computed in, "float32" or "int8"; None where it does not say.
    """

    name: str
    fingerprint: str
    dimensions: int
    precision: str | None = None

    @property
    def described(self) -> str:
        """What messages say of the model."""
        precision = f"{self.precision}, " if self.precision else ""
        return f"{self.name!r} ({precision}{self.dimensions} dimensions, fingerprint {self.fingerprint[:12]})"


@dataclass(frozen=True)
class TokenColumn:
    """The late-interaction model an index was made with, and how its vectors are kept.

    Attributes:
        model: what it is.
        codec: the name of the form: "float16", "int8", "residual-2bit".
        codec_fingerprint: changes whenever the bytes would mean something else.
    """

    model: ModelSettings
    codec: str
    codec_fingerprint: str


@dataclass(frozen=True)
class TokenIdColumn:
    """The tokenizer whose ids of its documents an index keeps.

    Attributes:
        name: the model it is of: a built-in model, a folder, or a hub name.
        fingerprint: changes whenever its ids would; see `Tokenizer.fingerprint`.
        dtype: of the ids: "<u2", or "<i4" where there are larger ones.
    """

    name: str
    fingerprint: str
    dtype: str


@dataclass(frozen=True)
class Settings:
    """What is decided when an index is created.

    Attributes:
        language: stemming and stop words of text search; None for neither (any script).
        fields: metadata fields that can be filtered on, and their types.
        model: the bi-encoder, None for an index with text search alone.
        tokens: the late-interaction model, None for an index without token vectors.
        token_ids: a reranker's tokenizer, None for an index without token ids.
    """

    language: str | None = "english"
    fields: Mapping[str, type] = field(default_factory=dict)
    model: ModelSettings | None = None
    tokens: TokenColumn | None = None
    token_ids: TokenIdColumn | None = None

    @property
    def format_version(self) -> int:
        """The layout of the table: the oldest that has what these settings need."""
        if self.token_ids is not None:
            return 3
        return 1 if self.tokens is None else 2

    def __post_init__(self) -> None:
        if self.language is not None and self.language not in LANGUAGES:
            raise InputError(
                f"language {self.language!r} is not known to the text index; use one of "
                f"{', '.join(sorted(LANGUAGES))}, or None for no stemming and no stop words"
            )
        seen: dict[str, str] = {}
        for name in self.fields:
            if not isinstance(name, str) or not _FIELD_NAME.fullmatch(name) or name.lower() in _TAKEN_NAMES:
                raise InputError(
                    f"{name!r} cannot be the name of a field: use letters, digits and _, and none of "
                    f"{', '.join(sorted(_TAKEN_NAMES))}"
                )
            if seen.setdefault(name.lower(), name) != name:
                raise InputError(f"the fields {seen[name.lower()]!r} and {name!r} differ only in case")

    def arrow_schema(self) -> Any:
        """Return the table's `pyarrow.Schema`, with these settings in it."""
        pa = require("pyarrow", "search")
        arrow_types = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
        columns = [
            pa.field("id", pa.string(), nullable=False),
            pa.field("content", pa.string(), nullable=False),
            pa.field("title_length", pa.int32(), nullable=False),
            pa.field("content_hash", pa.string(), nullable=False),
            pa.field("extra", pa.string()),
        ]
        columns += [pa.field(column_of(name), arrow_types[kind]) for name, kind in self.fields.items()]
        if self.model is not None:
            columns.append(pa.field("vector", pa.list_(pa.float32(), self.model.dimensions)))
        if self.tokens is not None:
            columns += [
                pa.field("tokens", pa.binary()),
                pa.field("num_tokens", pa.int32()),
                pa.field("tokens_cut", pa.int32()),
            ]
        if self.token_ids is not None:
            columns.append(pa.field("token_ids", pa.binary()))
        return pa.schema(columns, metadata={_METADATA_KEY: self._to_json()})

    @classmethod
    def from_arrow_schema(cls, schema: Any, where: str) -> Settings:
        """Read the settings back from a table's schema.

        Args:
            schema: the `pyarrow.Schema`.
            where: the index's path, for messages.

        Raises:
            IndexStoreError: the table is not an index of crossrank, or a newer crossrank made it.
        """
        stored = (schema.metadata or {}).get(_METADATA_KEY)
        if stored is None:
            raise IndexStoreError(f"{where}: this table was not made by crossrank; create an index elsewhere")
        values = json.loads(stored)
        if values["format_version"] > FORMAT_VERSION:
            raise IndexStoreError(
                f"{where}: this index has format {values['format_version']}, and this crossrank reads up to "
                f"format {FORMAT_VERSION}; upgrade crossrank"
            )
        model, tokens, token_ids = values["model"], values.get("tokens"), values.get("token_ids")
        if tokens is not None:
            tokens = TokenColumn(**{**tokens, "model": ModelSettings(**tokens["model"])})
        return cls(
            language=values["language"],
            fields={name: FIELD_TYPES[kind] for name, kind in values["fields"].items()},
            model=None if model is None else ModelSettings(**model),
            tokens=tokens,
            token_ids=None if token_ids is None else TokenIdColumn(**token_ids),
        )

    def _to_json(self) -> str:
        model = self.model
        values: dict[str, Any] = {
            "format_version": self.format_version,
            "language": self.language,
            "fields": {name: kind.__name__ for name, kind in self.fields.items()},
            "model": None if model is None else asdict(model),
        }
        if self.tokens is not None:
            values["tokens"] = asdict(self.tokens)
        if self.token_ids is not None:
            values["token_ids"] = asdict(self.token_ids)
        return json.dumps(values)

    def row(self, document: Document) -> Row:
        """Return the document as a row of the table.

        Raises:
            InputError: text that is not valid Unicode, or metadata that does not fit.
        """
        metadata = document.metadata
        fields = {name: _checked_value(name, metadata.get(name), kind) for name, kind in self.fields.items()}
        extra = {name: value for name, value in metadata.items() if name not in self.fields}
        extra_json = _as_json(extra)
        parts = [document.title, document.text, fields, extra_json]
        try:
            document.id.encode()
            identity = json.dumps(parts, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"it has text that is not valid Unicode ({error.reason}, character {error.start}); "
                "repair it, for example with text.encode(errors='replace').decode()"
            ) from None
        return Row(
            id=document.id,
            content=document.full_text,
            title_length=len(document.title),
            content_hash=hashlib.blake2b(identity, digest_size=16).hexdigest(),
            extra=extra_json,
            fields=fields,
        )

    def document(self, columns: Mapping[str, Any]) -> Document:
        """Return the document that a row of the table holds."""
        content, title_length = columns["content"], columns["title_length"]
        metadata = {name: columns[column_of(name)] for name in self.fields}
        metadata = {name: value for name, value in metadata.items() if value is not None}
        if columns["extra"] is not None:
            metadata.update(json.loads(columns["extra"]))
        token_ids = None
        if self.token_ids is not None and columns.get("token_ids") is not None:
            ids = np.frombuffer(columns["token_ids"], dtype=self.token_ids.dtype)
            token_ids = TokenIds(self.token_ids.fingerprint, content, ids)
        return Document(
            id=columns["id"],
            text=content[title_length + 1 :] if title_length else content,
            title=content[:title_length],
            metadata=metadata,
            token_ids=token_ids,
        )

    def document_columns(self) -> list[str]:
        """Return the columns that `document` needs."""
        return ["id", "content", "title_length", "extra", *map(column_of, self.fields)]

    def hit_columns(self) -> list[str]:
        """Return the columns of documents that may be reranked: with their token ids."""
        return [*self.document_columns(), *(["token_ids"] if self.token_ids is not None else [])]


@dataclass(frozen=True)
class Row:
    """A document as the table has it, without its vector.

    Attributes:
        id: the document's id.
        content: title and text, joined by a space.
        title_length: how many characters of `content` are the title.
        content_hash: changes with any part of the document.
        extra: metadata without a declared field, as JSON.
        fields: values of the declared fields; None where missing.
    """

    id: str
    content: str
    title_length: int
    content_hash: str
    extra: str | None
    fields: Mapping[str, Any]

    @property
    def has_text(self) -> bool:
        """Whether there is anything to search; a document without it has no vector."""
        return bool(self.content.strip())


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A document's token vectors as the table has them.

    Attributes:
        codes: what the codec gives for each token, end to end; None for a document without text.
        count: how many tokens that is.
        cut: how many of the document's tokens were not read.
    """

    codes: bytes | None = None
    count: int | None = None
    cut: int | None = None


def to_arrow(
    rows: Sequence[Row],
    vectors: Any,
    tokens: Sequence[TokenRow] | None,
    token_ids: Sequence[bytes] | None,
    schema: Any,
) -> Any:
    """Return the rows as a `pyarrow.Table`.

    Args:
        rows: n rows.
        vectors: (n, dimensions) float32, None for an index without a bi-encoder; those of rows without
            text are not stored.
        tokens: of each row, None for an index without token vectors; those of rows without text are not
            stored.
        token_ids: of each row, None for an index without them, or where they cannot be made.
        schema: the table's `pyarrow.Schema`.
    """
    pa = require("pyarrow", "search")
    columns: dict[str, Any] = {
        name: [getattr(row, name) for row in rows]
        for name in ("id", "content", "title_length", "content_hash", "extra")
    }
    for name in rows[0].fields if rows else ():
        columns[column_of(name)] = [row.fields[name] for row in rows]
    if vectors is not None:
        columns["vector"] = pa.FixedSizeListArray.from_arrays(
            pa.array(vectors.ravel()), vectors.shape[1], mask=pa.array([not row.has_text for row in rows])
        )
    if tokens is not None:
        kept = [each if row.has_text else TokenRow() for row, each in zip(rows, tokens, strict=True)]
        columns["tokens"] = [each.codes for each in kept]
        columns["num_tokens"] = [each.count for each in kept]
        columns["tokens_cut"] = [each.cut for each in kept]
    if "token_ids" in schema.names:
        columns["token_ids"] = [None] * len(rows) if token_ids is None else token_ids
    return pa.table(columns, schema=schema)


def _checked_value(name: str, value: Any, kind: type) -> Any:
    """Return the value as its field stores it: None, or exactly of the field's type."""
    if value is None:
        return None
    if isinstance(value, bool) or kind is bool:
        fits = isinstance(value, bool) and kind is bool
    elif kind is float:
        fits = isinstance(value, (int, float))
    else:
        fits = isinstance(value, kind)
    if not fits:
        raise InputError(f"its field {name!r} must be of type {kind.__name__}, not {value!r}")
    if kind is int and value not in _INT64:
        raise InputError(f"its field {name!r} does not fit into 64 bits: {value!r}")
    if kind is float:
        try:
            value = float(value)
        except OverflowError:
            value = math.inf
        if not math.isfinite(value):
            raise InputError(
                f"its field {name!r} must be a finite number, not {value!r}; leave it out instead"
            )
        return value + 0.0  # -0.0 becomes 0.0: the store orders the two, Python does not
    return value


def typed_fields(fields: Mapping[str, type | str]) -> dict[str, type]:
    """Return fields with their types, which may be given by name: "str", "int", "float" or "bool".

    Raises:
        InputError: no mapping, or another type.
    """
    if not isinstance(fields, Mapping):
        raise InputError(f"fields must be a mapping of name to type, not {type(fields).__name__}")
    types = {
        name: FIELD_TYPES.get(kind, kind) if isinstance(kind, str) else kind for name, kind in fields.items()
    }
    for name, kind in types.items():
        if kind not in FIELD_TYPES.values():
            raise InputError(f"field {name!r} must be str, int, float or bool, not {kind!r}")
    return types  # type: ignore[return-value]


def _as_json(extra: Mapping[str, Any]) -> str | None:
    """Return metadata as JSON; None when there is none.

    Raises:
        InputError: a value that JSON cannot hold, or would give back as another one.
    """
    for name, value in extra.items():
        if not isinstance(name, str):
            raise InputError(f"the keys of its metadata must be strings, not {name!r}")
        try:
            stored = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"its metadata {name!r} cannot be stored as JSON: {error}") from None
        if stored != value:
            raise InputError(
                f"its metadata {name!r} would not come back as it is: use lists for tuples, and strings as "
                "keys"
            )
    # Sorted, so that the order of the keys does not count as a change of the document.
    return json.dumps(extra, ensure_ascii=False, sort_keys=True) if extra else None
