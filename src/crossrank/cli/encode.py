"""`crossrank encode`: texts to embeddings."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from crossrank.cli.inputs import STDIN, read_documents
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
)
from crossrank.cli.output import emit_json, messages
from crossrank.cli.usage import ReplaceFileOption, check_new, refuse

__all__ = ["encode"]


class Role(str, Enum):
    """What the texts are: a model may treat the two differently."""

    document = "document"
    query = "query"


def encode(
    ctx: typer.Context,
    input: Annotated[  # the argument's name
        Path, typer.Argument(help="Texts: lines or JSON lines; '-' is standard input.")
    ] = STDIN,
    *,
    to: Annotated[
        Path | None,
        typer.Option("--to", help="Write a .npy array (n, dim) float32 here; '-' is standard output."),
    ] = None,
    replace: ReplaceFileOption = False,
    role: Annotated[Role, typer.Option("--as", help="What the texts are.")] = Role.document,
    model: Annotated[
        str, typer.Option("--model", "-m", help="A built-in model, a folder, or a hub name.")
    ] = DEFAULT_BI_ENCODER,
    dimensions: Annotated[
        int | None, typer.Option(min=1, help="Keep this many (for models trained for it).")
    ] = None,
    precision: PrecisionOption = Precision.auto,
    threads: ThreadsOption = None,
    backend: BackendOption = Backend.auto,
    device: DeviceOption = None,
    revision: RevisionOption = None,
    json: JsonOption = False,
) -> None:
    """Turn texts into embeddings of length 1: JSON lines on standard output, or a .npy file.

    A line is a text, a JSON string, or an object with `text` and perhaps `title`.

    Example: `crossrank encode passages.txt --to passages.npy`
    """
    import numpy as np

    if input == STDIN and sys.stdin.isatty():
        raise typer.BadParameter("give a file of texts, or texts on standard input")
    if to == STDIN and json:
        raise typer.BadParameter("--to - and --json would both write to standard output; name a file")
    if to == STDIN and sys.stdout.isatty():
        raise typer.BadParameter("--to - would write an array to the terminal; redirect standard output")
    if to is None or to == STDIN:
        refuse(ctx, "replace", because="no file is written (--to)")
    check_new(to, replace=replace)
    texts = [document.full_text for document in read_documents(input)]
    encoder = open_bi_encoder(
        model,
        precision=precision,
        threads=threads,
        revision=revision,
        dimensions=dimensions,
        where=Where(backend, device),
    )
    embeddings = encoder.encode_queries(texts) if role is Role.query else encoder.encode_documents(texts)
    if to is None:
        for text, embedding in zip(texts, embeddings, strict=True):
            emit_json({"text": text, "embedding": embedding})
        return
    if to == STDIN:
        np.save(sys.stdout.buffer, embeddings)
        return
    with to.open("wb") as file:
        np.save(file, embeddings)
    facts = {"path": str(to), "num_texts": len(texts), "dimensions": encoder.dimensions}
    if json:
        emit_json(facts)
    else:
        messages().print(
            "{num_texts} embeddings of {dimensions} dimensions in {path}".format(**facts), markup=False
        )
