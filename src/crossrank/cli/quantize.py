"""`crossrank quantize`: a float32 model to a folder with an int8 form that passed the parity gate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crossrank.cli.inputs import name_of, read_pairs
from crossrank.cli.loading import JsonOption, RevisionOption, ThreadsOption
from crossrank.cli.output import console, emit_json, messages, table
from crossrank.cli.usage import ReplaceModelOption, refuse

if TYPE_CHECKING:
    from crossrank.models.quantize import Candidates, QuantizationReport
    from crossrank.types import Qrels

__all__ = ["quantize"]

DEPTH = 10
"""Candidates a query of a collection: those nDCG@10 is about."""
MOST_QUERIES = 1024
"""Queries that candidates are looked for: more than calibration and gate take."""


def quantize(
    ctx: typer.Context,
    model: Annotated[
        str,
        typer.Argument(help="Any reranker or bi-encoder: a folder, or a hub name."),
    ],
    *,
    to: Annotated[Path, typer.Option("--to", help="The folder to write; new or empty.")],
    pairs: Annotated[
        Path | None, typer.Option(help="Pairs of query and document, as `score` reads them; no labels.")
    ] = None,
    collection: Annotated[
        Path | None, typer.Option(help="BEIR folder: its queries with BM25's top 10 are the pairs.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Which judgements of the collection; default test, where there are any."),
    ] = None,
    without_float32: Annotated[
        bool, typer.Option("--without-float32", help="Leave the float32 weights out of the folder.")
    ] = False,
    replace: ReplaceModelOption = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of pairs.")] = 0,
    revision: RevisionOption = None,
    threads: ThreadsOption = None,
    json: JsonOption = False,
) -> None:
    """Make an int8 form of a model that keeps a pair's score its own; writes it if it passes the parity gate.

    Calibrates on some of the queries and compares int8 with float32 on others. Exit code 1, and nothing
    written, where they differ too much.

    Example: `crossrank quantize BAAI/bge-reranker-base --collection data/sample --to bge-int8`

    Example: `crossrank quantize my-model --pairs pairs.tsv --to my-model-int8`
    """
    from crossrank.models.quantize import as_candidates
    from crossrank.models.quantize import quantize as quantize_model

    if (pairs is None) == (collection is None):
        raise typer.BadParameter("give --pairs or --collection")
    qrels: Qrels | None = None
    if collection is None:
        assert pairs is not None  # one of the two is there
        refuse(ctx, "split", because="there is no collection (--collection)")
        candidates = as_candidates(pair for _, pair in read_pairs(pairs))
        name = name_of(pairs)
    else:
        candidates, qrels = _of_collection(collection, split, seed)
        name = collection.resolve().name
    report = quantize_model(
        model,
        to,
        candidates,
        qrels=qrels,
        name=name,
        revision=revision,
        seed=seed,
        keep_float32=not without_float32,
        overwrite=replace,
        threads=threads,
    )
    if json:
        emit_json(report)
    else:
        _print(report)
    if not report.passed:
        messages().print(
            f"{model} does not pass the parity gate; nothing was written", markup=False, style="red"
        )
        raise typer.Exit(1)
    if not json:
        messages().print(f"wrote {to}; it opens in int8", markup=False)


def _of_collection(folder: Path, split: str | None, seed: int) -> tuple[Candidates, Qrels | None]:
    """BM25's first documents for queries of a collection, and the judgements if there are any."""
    from crossrank.evaluation.collections import Collection
    from crossrank.models.quantize import in_hash_order
    from crossrank.retrieval.bm25 import BM25
    from crossrank.stages import documents_of

    opened = Collection.open(folder)
    if split is None and "test" in opened.splits:
        split = "test"
    queries = {name: text for name, text in opened.queries(split).items() if text.strip()}
    chosen = {name: queries[name] for name in in_hash_order(queries, seed)[:MOST_QUERIES]}
    bm25 = BM25(list(opened.documents()))
    candidates = {
        name: (text, documents_of(ranking, bm25.name))
        for (name, text), ranking in zip(
            chosen.items(), bm25.retrieve(list(chosen.values()), DEPTH), strict=True
        )
    }
    return candidates, None if split is None else opened.qrels(split)


def _print(report: QuantizationReport) -> None:
    figures, limits = report.figures, report.limits
    shown = table("", "float32", "int8", "difference", "limit", numeric=["float32", "int8", "difference"])
    before, after = report.float32_bytes, report.int8_bytes
    shown.add_row(
        "weights", f"{before / 1e6:,.1f} MB", f"{after / 1e6:,.1f} MB", f"{after / before - 1:+.0%}"
    )
    spread = limits["mean_delta_in_std"]
    allowed = f"{spread * figures['reference_std']:.4f} ({spread:g} of the scores' standard deviation)"
    shown.add_row("score, mean of |Δ|", "", "", f"{figures['mean_delta']:.4f}", allowed)
    shown.add_row("score, largest |Δ|", "", "", f"{figures['max_delta']:.4f}")
    tau = figures["kendall_tau"]
    if tau is not None:
        shown.add_row("Kendall's tau a query", "", "", f"{tau:.4f}", f"at least {limits['kendall_tau']:g}")
    if "delta_ndcg@10" in figures:
        shown.add_row(
            "nDCG@10",
            f"{figures['ndcg@10_float32']:.4f}",
            f"{figures['ndcg@10_int8']:.4f}",
            f"{figures['delta_ndcg@10']:+.4f}",
            f"±{limits['delta_ndcg@10']:g}",
        )
    for layer, at_exit in report.exits.items():
        shown.add_row(f"after layer {layer}, mean of |Δ|", "", "", f"{at_exit['mean_delta']:.4f}")
        if at_exit["kendall_tau"] is not None:
            shown.add_row(f"after layer {layer}, Kendall's tau", "", "", f"{at_exit['kendall_tau']:.4f}")
    console().print(shown)
    messages().print(
        f"{report.kind}; calibrated on {report.num_calibration_pairs} pairs of "
        f"{report.num_calibration_queries} queries, checked on {figures['num_pairs']:,} scores of "
        f"{report.num_checked_queries} other queries",
        style="dim",
    )
