"""`crossrank paraphrases` and `crossrank cluster`: texts that say the same."""

from __future__ import annotations

import csv
import json as json_form
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from enum import Enum
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.text import Text

from crossrank.cli.inputs import STDIN, as_file
from crossrank.cli.loading import (
    DEFAULT_BI_ENCODER,
    Backend,
    BackendOption,
    DeviceOption,
    JsonOption,
    LabelOption,
    LongQuery,
    Precision,
    PrecisionOption,
    RevisionOption,
    ThreadsOption,
    Where,
    open_bi_encoder,
    open_reranker,
)
from crossrank.cli.output import console, emit_json, messages, table
from crossrank.cli.usage import ReplaceFileOption, check_new, refuse
from crossrank.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from crossrank.models.cross_encoder import CrossEncoder
    from crossrank.similarity.paraphrases import SimilarPairs
    from crossrank.similarity.verification import Verification
    from crossrank.types import Document

__all__ = ["cluster", "paraphrases"]

SHOWN = 20
"""Pairs or clusters that a person is shown; --json and --to have all."""

PathsArgument = Annotated[
    list[Path],
    typer.Argument(help="JSONL, CSV, Parquet, BEIR folders, folders of texts; '-' is JSON lines on stdin."),
]
ToOption = Annotated[Path | None, typer.Option("--to", help="Write all of it to this file: .jsonl or .csv.")]
ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="Bi-encoder: a built-in model, a folder, or a hub name.")
]
VerifyOption = Annotated[
    str | None,
    typer.Option(
        help="Cross-encoder of sentence pairs that reads the pairs of --band: a folder, a hub name."
    ),
]
BandOption = Annotated[
    str, typer.Option(help="LOW:HIGH, the cosines of the pairs that --verify reads; others stay as they are.")
]
LeastOption = Annotated[
    float | None,
    typer.Option(
        help="The value --verify must give: its probability, or its activated score; default 0.5. For a "
        "model with neither it must be given, and is a raw score."
    ),
]
MostOption = Annotated[
    int, typer.Option(min=1, help="Pairs that --verify reads; more in the band are dropped.")
]
VERIFY_OPTIONS = ("band", "least", "most", "label")


class SecondLook(NamedTuple):
    """The model of --verify, and what the options beside it say."""

    model: CrossEncoder
    band: tuple[float, float]
    least: float | None
    most: int

    def at(self, pairs: SimilarPairs, documents: Sequence[Document]) -> Verification:
        """Read the pairs of the band, and say how many were."""
        from crossrank.similarity.verification import verify

        texts = [document.full_text for document in documents]
        found = verify(pairs, texts, self.model, band=self.band, least=self.least, most=self.most)
        unread = f", {found.num_unread:,} beyond --most were dropped unread" if found.num_unread else ""
        messages().print(
            f"{found.num_borderline:,} borderline pairs: {found.num_verified:,} read, "
            f"{found.num_rejected:,} rejected{unread}"
        )
        return found


class MethodName(str, Enum):
    """What makes a cluster."""

    communities = "communities"
    components = "components"
    average = "average"
    complete = "complete"


def paraphrases(
    ctx: typer.Context,
    paths: PathsArgument,
    *,
    threshold: Annotated[float, typer.Option(min=-1, max=1, help="The least cosine.")] = 0.8,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="The most pairs, best first.")] = 100_000,
    to: ToOption = None,
    replace: ReplaceFileOption = False,
    model: ModelOption = DEFAULT_BI_ENCODER,
    verify: VerifyOption = None,
    band: BandOption = "-1:1",
    least: LeastOption = None,
    most: MostOption = 10_000,
    label: LabelOption = None,
    precision: PrecisionOption = Precision.auto,
    threads: ThreadsOption = None,
    backend: BackendOption = Backend.auto,
    device: DeviceOption = None,
    revision: RevisionOption = None,
    json: JsonOption = False,
) -> None:
    """Find the most similar pairs among all pairs of the texts; every pair is looked at.

    A row has `score` (the cosine), both ids and both texts, and with --verify the cross-encoder's `value`.

    Example: `crossrank paraphrases questions.jsonl --threshold 0.9 --to duplicates.csv`
    """
    from crossrank.similarity.paraphrases import similar_pairs

    limits = _checked(ctx, to, verify, band, replace=replace, as_json=json)
    where, look = Where(backend, device), None
    if verify is not None:
        look = SecondLook(_verifier(verify, label, threads, least, where), limits, least, most)
    documents = _read(paths)
    vectors = _encoded(documents, model, precision=precision, threads=threads, revision=revision, where=where)
    pairs = similar_pairs(vectors, threshold=threshold, top_k=top_k)
    values = None
    if look is not None:
        checked = look.at(pairs, documents)
        pairs, values = checked.pairs, checked.values
    rows = [_pair_row(documents, pairs, values, place) for place in range(len(pairs))]
    if pairs.num_above > top_k:
        messages().print(
            f"{pairs.num_above:,} pairs are at or above {threshold:g}; the best {top_k:,} were kept",
            style="yellow",
        )
    if _written(rows, to, as_json=json):
        return
    numbers = ["score"] if values is None else ["score", "value"]
    shown = table(*numbers, "first", "second", numeric=numbers)
    for row in rows[:SHOWN]:
        ends = (f"{row[f'id{end}']}: {_excerpt(row[f'text{end}'])}" for end in (1, 2))
        cells = ("" if row[name] is None else f"{row[name]:.4f}" for name in numbers)
        shown.add_row(*cells, *map(Text, ends))
    console().print(shown if rows else "no two texts are that similar")
    _say_more(len(rows), "pairs")


def cluster(
    ctx: typer.Context,
    paths: PathsArgument,
    *,
    threshold: Annotated[
        float, typer.Option(min=-1, max=1, help="The cosine that --method asks for.")
    ] = 0.75,
    min_size: Annotated[int, typer.Option(min=1, help="Leave out smaller clusters.")] = 2,
    method: Annotated[
        MethodName,
        typer.Option(help="communities: around a centre; components: chains; average, complete: linkage."),
    ] = MethodName.communities,
    to: ToOption = None,
    replace: ReplaceFileOption = False,
    model: ModelOption = DEFAULT_BI_ENCODER,
    verify: VerifyOption = None,
    band: BandOption = "-1:1",
    least: LeastOption = None,
    most: MostOption = 10_000,
    label: LabelOption = None,
    precision: PrecisionOption = Precision.auto,
    threads: ThreadsOption = None,
    backend: BackendOption = Backend.auto,
    device: DeviceOption = None,
    revision: RevisionOption = None,
    json: JsonOption = False,
) -> None:
    """Put similar texts into clusters; texts that are like no other are in none.

    A row is a text in a cluster: `cluster` (0 is the largest), `score` (its cosine to the cluster's centre,
    which comes first), `id` and `text`. With --verify, pairs of borderline cosine must be confirmed by a
    cross-encoder, and clusters are what the pairs that are left join: it needs --method components.

    Example: `crossrank cluster questions.jsonl --threshold 0.8 --to clusters.csv`
    """
    from crossrank.similarity.clusters import cluster as find_clusters
    from crossrank.similarity.clusters import clusters_of_pairs
    from crossrank.similarity.paraphrases import similar_pairs

    limits = _checked(ctx, to, verify, band, replace=replace, as_json=json)
    if verify is not None and method is not MethodName.components:
        raise typer.BadParameter("--verify looks at pairs; it goes with --method components")
    where, look = Where(backend, device), None
    if verify is not None:
        look = SecondLook(_verifier(verify, label, threads, least, where), limits, least, most)
    documents = _read(paths)
    vectors = _encoded(documents, model, precision=precision, threads=threads, revision=revision, where=where)
    if look is None:
        found = find_clusters(vectors, threshold=threshold, min_size=min_size, method=method.value)
    else:
        pairs = similar_pairs(vectors, threshold=threshold, top_k=MOST_PAIRS)
        if pairs.num_above > MOST_PAIRS:
            raise InputError(
                f"{pairs.num_above:,} pairs are at or above {threshold:g}, more than {MOST_PAIRS:,}; give a "
                "higher --threshold"
            )
        checked = look.at(pairs, documents)
        ends = list(zip(checked.pairs.first.tolist(), checked.pairs.second.tolist(), strict=True))
        found = clusters_of_pairs(vectors, ends, min_size=min_size)
    rows = [
        {"cluster": number, "score": score, "id": documents[row].id, "text": documents[row].full_text}
        for number, each in enumerate(found)
        for row, score in zip(each.members, each.scores, strict=True)
    ]
    num_clustered = len(rows)
    if not _written(rows, to, as_json=json):
        shown = table("cluster", "size", "centre", "least", numeric=["cluster", "size", "least"])
        for number, each in enumerate(found[:SHOWN]):
            centre = documents[each.members[0]]
            text = Text(f"{centre.id}: {_excerpt(centre.full_text)}")
            shown.add_row(str(number), str(len(each.members)), text, f"{min(each.scores):.4f}")
        console().print(shown if found else "no texts are that similar")
        _say_more(len(found), "clusters")
    if not json:
        messages().print(
            f"{len(found):,} clusters of {num_clustered:,} of {len(documents):,} texts", style="dim"
        )


MOST_PAIRS = 5_000_000
"""Pairs that are held to be verified."""


def _checked(
    ctx: typer.Context, to: Path | None, verify: str | None, band: str, *, replace: bool, as_json: bool
) -> tuple[float, float]:
    """Look at options that stand alone; returns the band."""
    if to is not None and to.suffix.lower() not in (".jsonl", ".csv"):
        raise typer.BadParameter(f"--to {to}: the file's name ends in .jsonl or .csv")
    if to is not None and as_json:
        raise typer.BadParameter("--to and --json both ask for all rows; give one")
    if to is None:
        refuse(ctx, "replace", because="no file is written (--to)")
    check_new(to, replace=replace)
    if verify is None:
        refuse(ctx, *VERIFY_OPTIONS, because="there is no cross-encoder (--verify)")
    low, _, high = band.partition(":")
    try:
        return float(low), float(high)
    except ValueError:
        raise typer.BadParameter(f"--band {band!r} is not LOW:HIGH, two cosines") from None


def _read(paths: Sequence[Path]) -> list[Document]:
    from crossrank.store.readers import DocumentReader

    if paths.count(STDIN) > 1 or (STDIN in paths and sys.stdin.isatty()):
        raise typer.BadParameter("'-' stands for documents on standard input, once; name files otherwise")
    documents: dict[str, Document] = {}
    num_empty = 0
    with ExitStack() as files:
        for path in paths:
            for document in DocumentReader(files.enter_context(as_file(path, "stdin.jsonl"))):
                if not document.full_text.strip():
                    num_empty += 1
                elif documents.setdefault(document.id, document) is not document:
                    raise InputError(f"two documents have the id {document.id!r}; give each one of its own")
    if num_empty:
        messages().print(f"{num_empty} documents without text were left out", style="yellow")
    if len(documents) < 2:
        raise InputError(f"{len(documents)} texts have no pair; give at least 2")
    return list(documents.values())


def _encoded(
    documents: Sequence[Document],
    model: str,
    *,
    precision: Precision,
    threads: int | None,
    revision: str | None,
    where: Where,
) -> npt.NDArray[np.float32]:
    encoder = open_bi_encoder(model, precision=precision, threads=threads, revision=revision, where=where)
    return encoder.encode_documents(documents)


def _verifier(
    name: str, label: str | None, threads: int | None, least: float | None, where: Where
) -> CrossEncoder:
    """Open the model of --verify, and find out before texts are encoded whether it can be used."""
    from crossrank.similarity.verification import check_verifier

    model: CrossEncoder = open_reranker(
        name, threads=threads, label=label, long_query=LongQuery.truncate, where=where
    )
    check_verifier(model, least)
    return model


def _say_more(count: int, what: str) -> None:
    if count > SHOWN:
        messages().print(f"{count - SHOWN:,} more {what}; --to or --json has all", style="dim")


def _pair_row(
    documents: Sequence[Document],
    pairs: SimilarPairs,
    values: npt.NDArray[np.float64] | None,
    place: int,
) -> dict[str, Any]:
    first, second = documents[pairs.first[place]], documents[pairs.second[place]]
    row: dict[str, Any] = {"score": float(pairs.scores[place])}
    if values is not None:
        value = float(values[place])
        row["value"] = None if isnan(value) else value
    return row | {
        "id1": first.id,
        "id2": second.id,
        "text1": first.full_text,
        "text2": second.full_text,
    }


def _written(rows: Iterable[Mapping[str, Any]], to: Path | None, *, as_json: bool) -> bool:
    """Write rows where the options say; False where a person is to be shown them."""
    rows = list(rows)
    if as_json:
        for row in rows:
            emit_json(row)
        return True
    if to is None:
        return False
    with to.open("w", encoding="utf-8", newline="") as file:
        if to.suffix.lower() == ".csv":
            writer = csv.DictWriter(file, list(rows[0]) if rows else ["score"])
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json_form.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    messages().print(f"{len(rows):,} rows in {to}", markup=False)
    return True


def _excerpt(text: str, max_chars: int = 100) -> str:
    line = " ".join(text.split())
    return line if len(line) <= max_chars else line[: max_chars - 1].rstrip() + "…"
