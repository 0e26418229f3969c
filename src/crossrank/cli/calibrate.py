"""`crossrank calibrate`: judged pairs to probabilities and thresholds, saved with the model."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from crossrank.cli.inputs import as_file, name_of
from crossrank.cli.loading import (
    DEFAULT_BI_ENCODER,
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
    RevisionOption,
    ThreadsOption,
    Where,
    open_bi_encoder,
    open_reranker,
)
from crossrank.cli.mine import in_memory
from crossrank.cli.output import console, emit_json, messages, table
from crossrank.cli.usage import refuse
from crossrank.errors import InputError

if TYPE_CHECKING:
    from crossrank.training.calibration import CalibrationReport, JudgedPair

__all__ = ["calibrate"]

DEPTH = 10


class MethodName(str, Enum):
    """How probabilities are made of scores; auto takes the best of the three on held-out pairs."""

    auto = "auto"
    temperature = "temperature"
    platt = "platt"
    isotonic = "isotonic"


class FirstStage(str, Enum):
    """What finds the candidates of a collection."""

    bm25 = "bm25"
    dense = "dense"
    hybrid = "hybrid"


def calibrate(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="Cross-encoder: a built-in model, a folder, or a hub name.")],
    *,
    to: Annotated[
        Path | None,
        typer.Option(
            "--to", help="Folder for a copy of the model with its calibration; default: the model's own."
        ),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(help="Rows with query, document and label (1 is relevant, 0 not): JSON lines, CSV, ..."),
    ] = None,
    collection: Annotated[
        Path | None, typer.Option(help="BEIR folder: the first stage's candidates with its judgements.")
    ] = None,
    split: Annotated[str, typer.Option(help="Which judgements of the collection.")] = "dev",
    run: Annotated[
        Path | None, typer.Option(help="TREC run with the candidates, in place of --retriever.")
    ] = None,
    retriever: Annotated[FirstStage, typer.Option(help="What finds the candidates.")] = FirstStage.hybrid,
    depth: Annotated[
        int, typer.Option("--depth", "-d", min=1, help="Candidates a query; as many as hits are shown.")
    ] = DEPTH,
    relevance_level: Annotated[int, typer.Option(min=1, help="The lowest grade that is relevant.")] = 1,
    method: Annotated[
        MethodName, typer.Option(help="auto takes the best of the three on held-out pairs.")
    ] = MethodName.auto,
    wanted_precision: Annotated[
        list[float] | None,
        typer.Option(min=0, max=1, help="Choose a threshold for this precision. Repeatable; default 0.9."),
    ] = None,
    wanted_recall: Annotated[
        list[float] | None, typer.Option(min=0, max=1, help="Choose a threshold for this recall. Repeatable.")
    ] = None,
    holds_for: Annotated[
        str, typer.Option(help="In words, what kind of pairs these are; default: names of the files.")
    ] = "",
    plot: Annotated[
        Path | None, typer.Option(help="Draw a reliability diagram: a .png, .svg or .pdf file.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace a calibration, or a model at --to.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of folds and bootstrap samples.")] = 0,
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
    """Fit probabilities to a reranker's scores of judged pairs, and thresholds; save them with the model.

    Every figure is of pairs that the map was not fitted on. The probabilities hold for pairs like these, and
    for the model as it is opened here: precision, label, how long documents are read.

    Example: `crossrank calibrate my-model --collection my-data --split dev --wanted-precision 0.95`

    Example: `crossrank calibrate crossrank-mini --pairs judged.jsonl --to my-mini --plot reliability.svg`
    """
    from crossrank.evaluation.plots import check_plot, plot_reliability
    from crossrank.models.hub import resolve
    from crossrank.training.calibration import calibrate as fit
    from crossrank.training.calibration import calibration_target, save_calibration

    if (pairs is None) == (collection is None):
        raise typer.BadParameter("give --pairs or --collection")
    if collection is None:
        refuse(
            ctx,
            *("split", "run", "retriever", "depth", "relevance_level"),
            because="there is no collection (--collection)",
        )
    elif run is not None:
        refuse(ctx, "retriever", because="the candidates are those of --run")
    if plot is not None:
        check_plot(plot)
    folder = resolve(model, kind="cross-encoder", revision=revision)
    calibration_target(model, folder, to, overwrite=replace)
    if collection is None:
        assert pairs is not None  # one of the two is there
        judged, source = _read(pairs), f"pairs of {name_of(pairs)}"
    else:
        judged = _of_collection(
            collection,
            split=split,
            run=run,
            retriever=retriever,
            depth=depth,
            relevance_level=relevance_level,
            threads=threads,
            where=Where(backend, device),
        )
        first = "a run" if run is not None else retriever.value
        source = f"the first {depth} candidates of {first} in {collection.resolve().name}, {split}"
    opened = open_reranker(
        model,
        precision=precision,
        threads=threads,
        revision=revision,
        label=label,
        long_query=long_query,
        long_documents=long_documents,
        where=Where(backend, device),
    )
    report = fit(
        opened,
        judged,
        method=None if method is MethodName.auto else method.value,
        wanted_precision=wanted_precision or ([] if wanted_recall else [0.9]),
        wanted_recall=wanted_recall or [],
        holds_for=holds_for or source,
        seed=seed,
    )
    path = save_calibration(report.calibration, model, to, revision=revision, overwrite=replace)
    if plot is not None:
        after = f"{report.calibration.map.method}, held out"
        plot_reliability({"sigmoid of the score": report.before, after: report.after}, plot, title=model)
    if json:
        emit_json({**_document(report), "path": str(path), "plot": None if plot is None else str(plot)})
        return
    _print(report)
    messages().print(f"wrote {path}" + ("" if plot is None else f" and {plot}"), markup=False)


def _read(path: Path) -> list[JudgedPair]:
    from crossrank.evaluation.pairs import read_labelled_pairs
    from crossrank.training.calibration import JudgedPair

    with as_file(path, "stdin.jsonl") as file:
        rows = list(read_labelled_pairs(file))
    for row in rows:
        if row.label not in (0, 1):
            raise InputError(f"{name_of(path)}: a label is {row.label!r}; a calibration needs 1 and 0")
    return [JudgedPair(row.first, row.second, bool(row.label)) for row in rows]


def _of_collection(
    folder: Path,
    *,
    split: str,
    run: Path | None,
    retriever: FirstStage,
    depth: int,
    relevance_level: int,
    threads: int | None,
    where: Where,
) -> list[JudgedPair]:
    """The candidates of the judged queries of a collection."""
    from crossrank.evaluation.collections import Collection
    from crossrank.evaluation.trec import read_run
    from crossrank.stages import documents_of
    from crossrank.training.calibration import judged_pairs

    judged = Collection.open(folder)
    qrels = judged.qrels(split)
    queries = {name: text for name, text in judged.queries(split).items() if name in qrels}
    documents = list(judged.documents())
    if run is None:
        first = in_memory(
            {retriever.value},
            documents,
            lambda: open_bi_encoder(DEFAULT_BI_ENCODER, threads=threads, where=where),
        )[retriever.value]
        found = first.retrieve(list(queries.values()), depth)
        candidates = {
            name: (text, documents_of(ranking, first.name))
            for (name, text), ranking in zip(queries.items(), found, strict=True)
        }
    else:
        by_id = {document.id: document for document in documents}
        candidates = {}
        for name, ranking in read_run(run, queries).items():
            if name not in queries:
                continue
            lacking = [each for each in ranking.document_ids[:depth] if each not in by_id]
            if lacking:
                raise InputError(
                    f"{run}: document {lacking[0]!r} is not in {folder}; is it this run's corpus?"
                )
            candidates[name] = queries[name], [by_id[each] for each in ranking.document_ids[:depth]]
    return judged_pairs(candidates, qrels, relevance_level=relevance_level)


def _document(report: CalibrationReport) -> dict[str, object]:
    return {
        "calibration": report.calibration,
        "methods": report.methods,
        "roc_auc": report.roc_auc,
        "unreached": [{"aim": aim, "wanted": wanted} for aim, wanted in report.unreached],
    }


def _print(report: CalibrationReport) -> None:
    calibration = report.calibration
    columns = ("ECE", "Brier", "log loss")
    shown = table("", *columns, "", numeric=columns)
    for name, figures in report.methods.items():
        chosen = name == calibration.map.method
        shown.add_row(
            "sigmoid of the score, unfitted" if name == "sigmoid" else name,
            *(f"{figures[key]:.4f}" for key in ("ece", "brier", "log_loss")),
            "saved" if chosen else "",
            style="bold" if chosen else "",
        )
    console().print(shown)
    aims = ("score", "probability", "precision", "recall", "95 %", "held out")
    shown = table("threshold for", *aims, numeric=aims)
    for each in calibration.thresholds:
        shown.add_row(
            f"{each.aim} {each.wanted:g}",
            f"{each.score:.3f}",
            f"{each.probability:.4f}",
            f"{each.precision:.3f}",
            f"{each.recall:.3f}",
            f"{each.interval[0]:.3f} to {each.interval[1]:.3f}",
            f"{each.held_out:.3f}",
        )
    if calibration.thresholds:
        console().print("")
        console().print(shown)
    out = messages()
    for aim, wanted in report.unreached:
        out.print(f"no score reaches {aim} {wanted:g} on these pairs", style="yellow")
    out.print(
        Text(
            f"{calibration.num_pairs:,} pairs of {calibration.num_queries:,} queries, "
            f"{calibration.share_relevant:.1%} relevant; ROC AUC {report.roc_auc:.4f}; "
            f"holds for {calibration.holds_for}"
        ),
        style="dim",
    )
