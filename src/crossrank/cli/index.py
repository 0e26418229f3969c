"""`crossrank index`: files to an index, or into one that is there."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crossrank.cli.inputs import STDIN, as_file, name_of
from crossrank.cli.loading import (
    DEFAULT_BI_ENCODER,
    Backend,
    BackendOption,
    DeviceOption,
    JsonOption,
    Precision,
    PrecisionOption,
    RevisionOption,
    ThreadsOption,
    Where,
    open_bi_encoder,
    open_index,
    open_late_interaction,
)
from crossrank.cli.output import emit_json, messages, resumable
from crossrank.cli.usage import refuse
from crossrank.cli.wording import in_options

if TYPE_CHECKING:
    from crossrank.models.late_interaction import LateInteraction
    from crossrank.models.token_codec import TokenCodec
    from crossrank.store.info import IndexInfo
    from crossrank.store.lance import Index
    from crossrank.store.readers import DocumentReader
    from crossrank.store.store import AddReport, Rejected

__all__ = ["index"]

SAMPLED_DOCUMENTS = 2000
"""How many documents the centroids of --token-form residual-... are found in."""

SHOWN_REJECTIONS = 20
"""How many rejected rows are listed for a person; `--json` has them all."""


# The id that `crossrank.store.readers` gives a row without one: "faq.csv:17".
_MADE_ID = re.compile(r".+\.(jsonl|ndjson|csv|tsv|parquet)(\.gz)?:\d+", re.IGNORECASE | re.DOTALL)


class TokenForm(Enum):
    """How token vectors are kept: see `crossrank.models.token_codec`."""

    float16 = "float16"
    int8 = "int8"
    residual_4bit = "residual-4bit"
    residual_2bit = "residual-2bit"
    residual_1bit = "residual-1bit"


class OnDuplicate(Enum):
    """What becomes of a document whose id is stored with another content."""

    replace = "replace"
    skip = "skip"
    error = "error"


def index(
    ctx: typer.Context,
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="JSONL, CSV, Parquet, BEIR folders, folders of texts; '-' is JSON lines on stdin."
        ),
    ],
    *,
    to: Annotated[Path, typer.Option("--to", help="The folder of the index.")],
    replace_index: Annotated[
        bool, typer.Option("--replace", help="Start anew where there is an index.")
    ] = False,
    field: Annotated[
        list[str] | None, typer.Option(help="NAME:TYPE to filter on; str, int, float or bool. Repeatable.")
    ] = None,
    language: Annotated[
        str | None, typer.Option(help="Stemming and stop words; default english, 'none' for neither.")
    ] = None,
    vectors: Annotated[
        bool,
        typer.Option("--vectors/--no-vectors", help="Whether documents get vectors, or text search only."),
    ] = True,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help=f"The bi-encoder; default {DEFAULT_BI_ENCODER}.")
    ] = None,
    late_interaction: Annotated[
        str | None,
        typer.Option(
            help="Also keep token vectors of this late-interaction model (built in: crossrank-colbert)."
        ),
    ] = None,
    token_form: Annotated[
        TokenForm | None, typer.Option(help="How token vectors are kept: exact to small. Default int8.")
    ] = None,
    token_ids_for: Annotated[
        str | None,
        typer.Option(help="Also keep what this reranker's tokenizer makes of documents: searches save that."),
    ] = None,
    id_column: Annotated[str | None, typer.Option(help="Column with the id; default: id, _id, ...")] = None,
    text_column: Annotated[str | None, typer.Option(help="Column with the text; default: text, ...")] = None,
    title_column: Annotated[str | None, typer.Option(help="Column with the title; default: title.")] = None,
    on_duplicate: Annotated[
        OnDuplicate, typer.Option(help="What to do with an id stored with another content.")
    ] = OnDuplicate.replace,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Exit with 0 even where rows were rejected.")
    ] = False,
    precision: PrecisionOption = Precision.auto,
    threads: ThreadsOption = None,
    backend: BackendOption = Backend.auto,
    device: DeviceOption = None,
    revision: RevisionOption = None,
    json: JsonOption = False,
) -> None:
    """Build an index from files, or add to it. Giving the command again resumes an interrupted one.

    Rows that cannot be used are listed with file and line; the rest is indexed, and the exit code is 1.

    Example: `crossrank index data/sample --to my-index`

    Example: `crossrank index data/sample --to my-index --late-interaction crossrank-colbert`

    Example: `crossrank index news.csv --to my-index --field year:int --text-column body`
    """
    from crossrank.store.lance import Index
    from crossrank.store.readers import DocumentReader

    if to == STDIN:
        raise typer.BadParameter("--to: an index is a folder and cannot go to standard output; name one")
    if paths.count(STDIN) > 1 or (STDIN in paths and sys.stdin.isatty()):
        raise typer.BadParameter("'-' stands for documents on standard input, once; name files otherwise")
    fields = _fields(field or [])
    with ExitStack() as files:
        # Every source is looked at before the index is touched: a wrong name must not cost an index.
        sources = [files.enter_context(as_file(path, "stdin.jsonl")) for path in paths]

        def new_readers() -> list[DocumentReader]:
            return [
                DocumentReader(
                    source,
                    id_column=id_column,
                    text_column=text_column,
                    title_column=title_column,
                    on_error="collect",
                )
                for source in sources
            ]

        readers = new_readers()
        is_new = not Index.exists(to)
        opened = _open(
            ctx,
            to,
            replace=replace_index,
            fields=fields,
            language=language,
            vectors=vectors,
            model=model,
            late_interaction=late_interaction,
            token_form=token_form,
            token_ids_for=token_ids_for,
            sample=lambda: _sample(new_readers()),
            precision=precision,
            threads=threads,
            revision=revision,
            where=Where(backend, device),
        )
        made_ids = 0

        def count_made_ids(ids: tuple[str, ...]) -> None:
            nonlocal made_ids
            made_ids += sum(_MADE_ID.fullmatch(document_id) is not None for document_id in ids)

        with opened:
            with resumable(replace=replace_index):
                reports = [
                    opened.add(reader, on_duplicate=on_duplicate.value, on_batch=count_made_ids)
                    for reader in readers
                ]
            if is_new and opened.count():
                # Nobody had this index open before, so no old version of it is kept for readers.
                opened.optimize(grace_s=0)
            rejected = [
                _as_named(row, path, reader)
                for path, reader, report in zip(paths, readers, reports, strict=True)
                for row in report.rejected
            ]
            _report(
                to,
                reports,
                rejected,
                num_documents=opened.count(),
                empty_fields=[name for name in fields if not opened.count(f"{name} is not null")],
                made_ids=made_ids,
                as_json=json,
            )
    if rejected and not skip_bad_rows:
        raise typer.Exit(1)


def _open(
    ctx: typer.Context,
    to: Path,
    *,
    replace: bool,
    fields: Mapping[str, type],
    language: str | None,
    vectors: bool,
    model: str | None,
    late_interaction: str | None,
    token_form: TokenForm | None,
    token_ids_for: str | None,
    sample: Callable[[], list[str]],
    precision: Precision,
    threads: int | None,
    revision: str | None,
    where: Where,
) -> Index:
    """Make the index, or open the one that is there after checking that it is what the options say."""
    from crossrank.store.lance import Index

    spoken = None if language == "none" else (language or "english").lower()
    is_there = Index.exists(to) and not replace
    if is_there:
        with Index.open(to) as found:
            info = found.info()
        stored, tokens = info.model, info.tokens
        made_in = None if stored is None else stored.precision
        other = [
            ("--field", bool(fields) and dict(info.fields) != fields),
            ("--language", language is not None and info.language != spoken),
            ("--no-vectors", not vectors and stored is not None),
            ("--late-interaction", late_interaction is not None and tokens is None),
            (
                "--token-form",
                token_form is not None and (tokens is None or tokens.codec != token_form.value),
            ),
            ("--token-ids-for", token_ids_for is not None and not _keeps_ids_for(info, token_ids_for)),
            ("--precision", precision is not Precision.auto and made_in not in (None, precision.value)),
        ]
        if any(differs for _, differs in other):
            options = ", ".join(option for option, differs in other if differs)
            raise typer.BadParameter(
                f"{to} was made otherwise than {options} says, and that cannot be changed; leave it out to "
                "add to the index, or give --replace to start anew"
            )
        vectors = stored is not None
    if not vectors:
        refuse(
            ctx,
            "model",
            "revision",
            "precision",
            "threads",
            "backend",
            "device",
            because="the index has no vectors (--no-vectors)",
        )
    if late_interaction is None and not is_there:
        refuse(ctx, "token_form", because="there is no --late-interaction")
    if is_there:
        return open_index(
            to,
            model=model,
            with_vectors=True,
            precision=precision,
            threads=threads,
            revision=revision,
            late_interaction=(
                "its own"
                if late_interaction is None
                else open_late_interaction(late_interaction, threads=threads, where=where)
            ),
            where=where,
        )
    bi_encoder = None
    if vectors:
        bi_encoder = open_bi_encoder(
            model or DEFAULT_BI_ENCODER, precision=precision, threads=threads, revision=revision, where=where
        )
    late, codec = None, None
    if late_interaction is not None:
        late = open_late_interaction(late_interaction, threads=threads, where=where)
        codec = _codec(token_form or TokenForm.int8, late, sample)
    return Index.create(
        to,
        bi_encoder,
        late_interaction=late,
        token_codec=codec or "int8",
        token_ids_for=token_ids_for,
        language=spoken,
        fields=fields,
        overwrite=replace,
    )


def _keeps_ids_for(info: IndexInfo, reranker: str) -> bool:
    """Say whether an index keeps the token ids of this reranker's tokenizer."""
    from crossrank.store.token_ids import TokenIdWriter

    kept = info.token_ids
    return kept is not None and kept.fingerprint == TokenIdWriter(reranker).column.fingerprint


def _codec(form: TokenForm, model: LateInteraction, sample: Callable[[], list[str]]) -> str | TokenCodec:
    """Return how token vectors are kept; centroids are found among those of a sample."""
    kind, _, bits = form.value.partition("-")
    if kind != "residual":
        return form.value
    import numpy as np

    from crossrank.models.token_codec import ResidualCodec

    texts = sample()
    if not texts:
        raise typer.BadParameter(f"--token-form {form.value} needs documents to find centroids in")
    vectors = np.concatenate(model.encode_documents(texts))
    return ResidualCodec.train(vectors, bits=int(bits.removesuffix("bit")))


def _sample(readers: list[DocumentReader]) -> list[str]:
    """Return the texts of the first documents of each source."""
    each = -(-SAMPLED_DOCUMENTS // len(readers))
    documents = (document for reader in readers for document in islice(reader, each))
    return [document.full_text for document in documents if document.full_text.strip()]


def _fields(stated: list[str]) -> dict[str, type]:
    from crossrank.store.schema import FIELD_TYPES

    fields: dict[str, type] = {}
    for entry in stated:
        name, _, kind = entry.partition(":")
        if kind not in FIELD_TYPES:
            raise typer.BadParameter(f"{entry!r} is not NAME:TYPE with TYPE one of {', '.join(FIELD_TYPES)}")
        if name in fields:
            raise typer.BadParameter(f"--field names {name!r} twice")
        fields[name] = FIELD_TYPES[kind]
    return fields


def _as_named(row: Rejected, path: Path, reader: DocumentReader) -> Rejected:
    """Return a rejected row as the command line speaks of it."""
    copied = path == STDIN and row.path == reader.path
    return replace(row, reason=in_options(row.reason), path=Path(name_of(path)) if copied else row.path)


def _report(
    to: Path,
    reports: list[AddReport],
    rejected: list[Rejected],
    *,
    num_documents: int,
    empty_fields: list[str],
    made_ids: int,
    as_json: bool,
) -> None:
    counts: Counter[str] = Counter()
    for report in reports:
        counts.update({name: getattr(report, name) for name in ("added", "replaced", "unchanged", "skipped")})
    if as_json:
        emit_json(
            {
                "index": str(to),
                "num_documents": num_documents,
                **counts,
                "ids_from_lines": made_ids,
                "empty_fields": empty_fields,
                "rejected": [_rejection(row) for row in rejected],
            }
        )
        return
    out = messages()
    changes = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or "nothing new"
    out.print(f"{to}: {num_documents:,} documents ({changes})", markup=False)
    if made_ids:
        out.print(
            f"rows without an id column: {made_ids:,}; their ids are file and line (--id-column names one)",
            markup=False,
        )
    for name in empty_fields:
        out.print(f"no document has the field {name!r} of --field", markup=False, style="yellow")
    if rejected:
        out.print(f"{len(rejected):,} rows rejected:", style="yellow")
        for row in rejected[:SHOWN_REJECTIONS]:
            out.print(f"  {row}", markup=False)
        if len(rejected) > SHOWN_REJECTIONS:
            out.print(f"  and {len(rejected) - SHOWN_REJECTIONS:,} more; --json lists them all")


def _rejection(row: Rejected) -> dict[str, object]:
    return {
        "path": None if row.path is None else str(row.path),
        "line": row.line,
        "document_id": row.document_id,
        "reason": row.reason,
    }
