"""`crossrank evaluate-pairs`: a model of sentence pairs against labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crossrank.cli.inputs import STDIN, as_file, name_of
from crossrank.cli.loading import (
    Backend,
    BackendOption,
    DeviceOption,
    JsonOption,
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
from crossrank.cli.usage import refuse
from crossrank.errors import InputError

if TYPE_CHECKING:
    from crossrank.evaluation.pairs import Agreement, LabelledPair
    from crossrank.models.bi_encoder import BiEncoder
    from crossrank.models.cross_encoder import CrossEncoder

__all__ = ["evaluate_pairs"]

_POSITIVE, _NEGATIVE = "positive", "negative"


def evaluate_pairs(
    ctx: typer.Context,
    model: Annotated[
        str, typer.Argument(help="Cross-encoder or bi-encoder: a built-in model, a folder, or a hub name.")
    ],
    pairs: Annotated[
        Path, typer.Argument(help="Rows with text1, text2 and label: JSON lines, CSV, ...; '-' is stdin.")
    ],
    *,
    threshold: Annotated[
        float | None, typer.Option(help="Labels 0 and 1: the value from which on a pair is called positive.")
    ] = None,
    choose_on: Annotated[
        Path | None, typer.Option(help="Labels 0 and 1: choose that value for accuracy on these pairs.")
    ] = None,
    precision: PrecisionOption = Precision.auto,
    threads: ThreadsOption = None,
    backend: BackendOption = Backend.auto,
    device: DeviceOption = None,
    revision: RevisionOption = None,
    json: JsonOption = False,
) -> None:
    """Measure how a model of sentence pairs agrees with labels.

    Graded labels (similarity): Pearson and Spearman. Labels 0 and 1: ROC AUC, and accuracy and F1 from a
    threshold on, 0.5 for a model with a sigmoid. Names of classes (entailment): accuracy and F1. A
    bi-encoder's value is the cosine, a cross-encoder's what its activation makes of its score.

    Example: `crossrank evaluate-pairs my-similarity-model stsb/test.jsonl`
    """
    from crossrank.evaluation.pairs import pair_values, read_labelled_pairs

    if threshold is not None and not math.isfinite(threshold):
        raise typer.BadParameter(f"--threshold must be a finite number, not {threshold}")
    if threshold is not None and choose_on is not None:
        raise typer.BadParameter("give --threshold or --choose-on, not both")
    if pairs == STDIN and choose_on == STDIN:
        raise typer.BadParameter("only one of PAIRS and --choose-on can be standard input")
    with as_file(pairs, "stdin.jsonl") as file:
        rows = list(read_labelled_pairs(file))
    opened = _open(model, precision, threads, revision, Where(backend, device))
    several = len(getattr(opened, "labels", ())) > 1
    is_binary = not several and all(row.label in (0, 1) for row in rows)
    if not is_binary:
        refuse(ctx, "threshold", "choose_on", because="labels are not 0 and 1 for a model of one score")
    values = pair_values(opened, rows)
    if several:
        document = _of_classes(opened, rows, values, name_of(pairs))
    elif is_binary:
        if choose_on is not None:
            threshold = _chosen(opened, choose_on)
        elif threshold is None and getattr(opened, "activation", None) == "sigmoid":
            threshold = 0.5
        document = _of_two(values, [float(row.label) for row in rows], threshold)
    else:
        document = _of_grades(values, rows, name_of(pairs))
    document = {"model": opened.name, "num_pairs": len(rows), **document}
    if json:
        emit_json(document)
    else:
        _print(document)


def _open(
    name: str, precision: Precision, threads: int | None, revision: str | None, where: Where
) -> CrossEncoder | BiEncoder:
    from crossrank.models.cross_encoder import CrossEncoder
    from crossrank.models.hub import resolve
    from crossrank.models.load import kind_of

    if kind_of(resolve(name, kind="cross-encoder", revision=revision), name) == "bi_encoder":
        return open_bi_encoder(name, precision=precision, threads=threads, revision=revision, where=where)
    model = open_reranker(
        name,
        precision=precision,
        threads=threads,
        revision=revision,
        long_query=LongQuery.truncate,
        where=where,
    )
    if not isinstance(model, CrossEncoder):
        raise InputError(
            f"{name} does not read two texts together, as cross-encoders do, and is no bi-encoder; sentence "
            "pairs are for these"
        )
    return model


def _of_grades(values: Any, rows: Sequence[LabelledPair], source: str) -> dict[str, Any]:
    from crossrank.evaluation.pairs import interval_over_pairs, pearson, spearman

    labels = [row.label for row in rows]
    named = next((label for label in labels if isinstance(label, str)), None)
    if named is not None:
        raise InputError(
            f"{source}: a label is {named!r}, the name of a class, and the model gives one score"
        )
    measures = {"pearson": pearson, "spearman": spearman}
    return {
        "measures": {name: measure(values, labels) for name, measure in measures.items()},
        "intervals": {
            name: interval_over_pairs(measure, values, labels) for name, measure in measures.items()
        },
    }


def _of_two(values: Any, labels: Sequence[float], threshold: float | None) -> dict[str, Any]:
    from crossrank.evaluation.pairs import agreement, interval_over_pairs
    from crossrank.evaluation.probabilities import roc_auc

    document: dict[str, Any] = {
        "measures": {"roc_auc": roc_auc(values, labels)},
        "intervals": {"roc_auc": interval_over_pairs(roc_auc, values, labels)},
    }
    if threshold is None:
        return document
    found = agreement(
        [_POSITIVE if value >= threshold else _NEGATIVE for value in values],
        [_POSITIVE if label else _NEGATIVE for label in labels],
        [_POSITIVE, _NEGATIVE],
    )
    document["measures"] |= {"accuracy": found.accuracy, "f1": found.f1[_POSITIVE]}
    return {**document, "threshold": threshold, "counts": found.counts}


def _of_classes(
    model: CrossEncoder | BiEncoder, rows: Sequence[LabelledPair], values: Any, source: str
) -> dict[str, Any]:
    from crossrank.evaluation.pairs import agreement

    classes = getattr(model, "labels")  # noqa: B009  (only a cross-encoder gets here)
    by_name = {name.casefold(): name for name in classes}
    labels = []
    for row in rows:
        if isinstance(row.label, str):
            name = by_name.get(row.label.casefold())
        else:
            name = classes[int(row.label)] if row.label in range(len(classes)) else None
        if name is None:
            raise InputError(
                f"{source}: a label is {row.label!r}; the model's are {', '.join(classes)}, from 0 as numbers"
            )
        labels.append(name)
    found: Agreement = agreement([classes[place] for place in values.argmax(axis=1)], labels, classes)
    return {
        "measures": {"accuracy": found.accuracy, "macro_f1": found.macro_f1},
        "f1": found.f1,
        "counts": found.counts,
    }


def _chosen(model: CrossEncoder | BiEncoder, path: Path) -> float:
    from crossrank.evaluation.pairs import best_threshold, pair_values, read_labelled_pairs

    with as_file(path, "stdin.jsonl") as file:
        rows = list(read_labelled_pairs(file))
    if any(row.label not in (0, 1) for row in rows):
        raise InputError(f"{name_of(path)}: labels must be 0 and 1, as those of the pairs to measure on")
    return best_threshold(pair_values(model, rows), [float(row.label) for row in rows])


def _print(document: dict[str, Any]) -> None:
    intervals = document.get("intervals", {})
    shown = table("measure", "value", "95 %", numeric=["value", "95 %"])
    for name, value in document["measures"].items():
        ends = intervals.get(name)
        shown.add_row(
            name.replace("_", " "), f"{value:.4f}", "" if ends is None else f"{ends[0]:.4f} to {ends[1]:.4f}"
        )
    for name, value in document.get("f1", {}).items():
        shown.add_row(f"f1 of {name}", f"{value:.4f}", "")
    console().print(shown)
    counts = document.get("counts")
    if counts is not None:
        names = list(counts)
        grid = table("label", *names, numeric=names)
        for label, row in counts.items():
            grid.add_row(label, *(f"{row[name]:,}" for name in names))
        console().print("")
        console().print(grid)
    out = messages()
    out.print(f"{document['num_pairs']:,} pairs", style="dim")
    if "threshold" in document:
        out.print(f"positive from {document['threshold']:.4f} on", style="dim")
