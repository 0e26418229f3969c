"""`crossrank explain` shows which words of a document met which words of a query."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from crossrank.cli.loading import (
    DEFAULT_RERANKER,
    Backend,
    BackendOption,
    DeviceOption,
    JsonOption,
    LabelOption,
    LongDocuments,
    LongDocumentsOption,
    LongQuery,
    LongQueryOption,
    Precision,
    PrecisionOption,
    RerankerOption,
    RevisionOption,
    ThreadsOption,
    Where,
    open_reranker,
)
from crossrank.cli.output import console, emit_json, messages
from crossrank.cli.usage import ReplaceFileOption, check_new, refuse
from crossrank.errors import FileFormatError

__all__ = ["explain"]


class Method(str, Enum):
    """How the score is taken apart."""

    occlusion = "occlusion"
    integrated_gradients = "integrated-gradients"
    alignment = "alignment"


def explain(
    ctx: typer.Context,
    query: Annotated[str, typer.Argument(help="The query.")],
    document: Annotated[
        str, typer.Argument(help="The document's text; @FILE reads it from a file, @- from standard input.")
    ],
    *,
    reranker: RerankerOption = DEFAULT_RERANKER,
    method: Annotated[
        Method | None,
        typer.Option(
            help="occlusion leaves words out and looks at the score; integrated-gradients shares it out by "
            "derivatives (needs the extra torch); alignment is for late interaction. Default: alignment "
            "where the model has it, else occlusion."
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(help="Write a page of HTML to this file instead of printing.", dir_okay=False),
    ] = None,
    replace: ReplaceFileOption = False,
    label: LabelOption = None,
    long_query: LongQueryOption = LongQuery.error,
    long_documents: LongDocumentsOption = LongDocuments.truncate,
    precision: PrecisionOption = Precision.auto,
    threads: ThreadsOption = None,
    backend: BackendOption = Backend.auto,
    device: DeviceOption = None,
    revision: RevisionOption = None,
    json: JsonOption = False,
) -> None:
    """Show which words made a document's score, and which words of the query they met.

    A weight is what a word adds to the score, or takes off it. By occlusion it is what the score loses when
    the word is left out; a pair's weight is what its two words do together, beyond what each does alone. A
    long document is looked at by passages first, then by the words of the weightiest.

    Example: `crossrank explain "who wrote Hamlet" "Hamlet is a play by William Shakespeare."`

    Example: `crossrank explain "who wrote Hamlet" @article.txt --html why.html`
    """
    if not query.strip():
        raise typer.BadParameter("the query is empty")
    if html is not None and json:
        raise typer.BadParameter("give --html or --json, not both")
    if html is None:
        refuse(ctx, "replace", because="no file is written (--html)")
    check_new(html, replace=replace)
    text = _text(document)
    opened = open_reranker(
        reranker,
        precision=precision,
        threads=threads,
        revision=revision,
        label=label,
        long_query=long_query,
        long_documents=long_documents,
        where=Where(backend, device),
    )
    from crossrank.explanation.explain import explain as explain_pair

    explanation = explain_pair(query, text, opened, method=None if method is None else method.value)
    if json:
        emit_json(explanation.to_dict())
    elif html is not None:
        html.write_text(explanation.to_html(), encoding="utf-8")
        messages().print(f"wrote {html}", markup=False)
    else:
        console().print(explanation)


def _text(document: str) -> str:
    """The document's text: the argument itself, or what @FILE holds."""
    if not document.startswith("@"):
        return document
    name = document.removeprefix("@")
    content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where = "<stdin>" if name == "-" else name
        raise FileFormatError(f"not UTF-8 text: {error.reason} at byte {error.start}", where) from None
