"""`crossrank index`: files to an index, or into one that is there."""

from __future__ import annotations

from collections import Counter
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crossrank.cli.loading import (
    DEFAULT_BI_ENCODER,
    JsonOption,
    Precision,
    PrecisionOption,
    RevisionOption,
    ThreadsOption,
    open_bi_encoder,
    open_index,
)
from crossrank.cli.output import emit_json, messages

if TYPE_CHECKING:
    from crossrank.store.store import AddReport, Rejected

__all__ = ["index"]

SHOWN_REJECTIONS = 20
"""How many rejected rows are listed for a person; `--json` has them all."""


class OnDuplicate(Enum):
    """What becomes of a document whose id is stored with another content."""

    replace = "replace"
    skip = "skip"
    error = "error"


def index(
    paths: Annotated[list[Path], typer.Argument(help="JSONL, CSV, Parquet, BEIR folders, folders of texts.")],
    *,
    to: Annotated[Path, typer.Option("--to", help="The folder of the index.")],
    replace: Annotated[bool, typer.Option("--replace", help="Start anew where there is an index.")] = False,
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
    revision: RevisionOption = None,
    json: JsonOption = False,
) -> None:
    """Build an index from files, or add to it. Giving the command again resumes an interrupted one.

    Rows that cannot be used are listed with file and line; the rest is indexed, and the exit code is 1.

    Example: `crossrank index data/sample --to my-index`

    Example: `crossrank index news.csv --to my-index --field year:int --text-column body`
    """
    from crossrank.store.lance import Index
    from crossrank.store.readers import DocumentReader

    fields = _fields(field or [])
    # Every source is looked at before the index is touched: a wrong name must not cost an index.
    readers = [
        DocumentReader(
            path,
            id_column=id_column,
            text_column=text_column,
            title_column=title_column,
            on_error="collect",
        )
        for path in paths
    ]
    if replace or not _has_files(to):
        opened = Index.create(
            to,
            bi_encoder=open_bi_encoder(
                model or DEFAULT_BI_ENCODER, precision=precision, threads=threads, revision=revision
            )
            if vectors
            else None,
            language=None if language == "none" else language or "english",
            fields=fields,
            overwrite=replace,
        )
    else:
        if fields or language is not None or not vectors:
            raise typer.BadParameter(
                f"{to} is there already: --field, --language and --no-vectors are decided when an index is "
                "made; leave them out to add to it, or give --replace to start anew"
            )
        opened = open_index(
            to, model=model, with_vectors=True, precision=precision, threads=threads, revision=revision
        )
    with opened:
        reports = [opened.add(reader, on_duplicate=on_duplicate.value) for reader in readers]
        _report(to, reports, num_documents=opened.count(), as_json=json)
    if any(report.rejected for report in reports) and not skip_bad_rows:
        raise typer.Exit(1)


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _fields(stated: list[str]) -> dict[str, type]:
    from crossrank.store.schema import FIELD_TYPES

    fields: dict[str, type] = {}
    for entry in stated:
        name, _, kind = entry.partition(":")
        if kind not in FIELD_TYPES:
            raise typer.BadParameter(f"{entry!r} is not NAME:TYPE with TYPE one of {', '.join(FIELD_TYPES)}")
        fields[name] = FIELD_TYPES[kind]
    return fields


def _report(to: Path, reports: list[AddReport], *, num_documents: int, as_json: bool) -> None:
    counts: Counter[str] = Counter()
    for report in reports:
        counts.update({name: getattr(report, name) for name in ("added", "replaced", "unchanged", "skipped")})
    rejected = [row for report in reports for row in report.rejected]
    if as_json:
        emit_json(
            {
                "index": str(to),
                "num_documents": num_documents,
                **counts,
                "rejected": [_rejection(row) for row in rejected],
            }
        )
        return
    out = messages()
    changes = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or "nothing new"
    out.print(f"{to}: {num_documents:,} documents ({changes})", markup=False)
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
