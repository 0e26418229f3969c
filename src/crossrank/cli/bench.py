"""`crossrank bench`: how fast a reranker is on this machine, beside other libraries."""

from __future__ import annotations

import json as json_form
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from crossrank.cli.inputs import read_documents
from crossrank.cli.loading import DEFAULT_RERANKER, JsonOption, ThreadsOption
from crossrank.cli.output import console, emit_json, messages, table
from crossrank.errors import InputError

if TYPE_CHECKING:
    from crossrank.benchmarking.bench import BenchReport

__all__ = ["bench"]

_JSON = ".json"


def bench(
    model: Annotated[
        str, typer.Argument(help="Cross-encoder: a built-in model, a folder, or a hub name.")
    ] = DEFAULT_RERANKER,
    *,
    profile: Annotated[
        list[str] | None,
        typer.Option(help="Lengths of documents: short, marco, nq or fixed. Repeatable; default: all four."),
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(
            help="Your own documents, as `rerank` reads them, in place of --profile: --documents different "
            "ones at least. The first words of each are a query."
        ),
    ] = None,
    documents: Annotated[int, typer.Option(min=1, help="Candidates of a query.")] = 100,
    queries: Annotated[int, typer.Option(min=1, help="Queries in one call, for throughput.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each contestant, in turns.")] = 7,
    max_length: Annotated[int, typer.Option(min=8, help="Tokens of a pair.")] = 512,
    alone: Annotated[
        bool, typer.Option("--alone", help="crossrank only, also where other libraries are installed.")
    ] = False,
    other: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=PYTHON: a contestant in an environment of its own, like rerankers=/venv/bin/python. "
            "Repeatable."
        ),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            metavar="PYTHON",
            help="Export the model to ONNX by this Python (its environment has torch, transformers, onnx and "
            "onnxruntime), for FlashRank, fastembed, infinity's optimum and ONNX Runtime's dynamic int8.",
        ),
    ] = None,
    judged: Annotated[
        list[Path] | None,
        typer.Option(help="Judged collection in BEIR form, to prove the class tolerance on. Repeatable."),
    ] = None,
    judged_queries: Annotated[
        int | None, typer.Option(min=2, help="The first of its judged queries; default: all.")
    ] = None,
    depth: Annotated[int, typer.Option(min=1, help="BM25's candidates of a judged query.")] = 50,
    to: Annotated[
        list[Path] | None,
        typer.Option("--to", help="Write .json, or a picture: .png, .svg or .pdf. Repeatable."),
    ] = None,
    threads: ThreadsOption = None,
    json: JsonOption = False,
) -> None:
    """Measure reranking on this machine: latency of one query and throughput of several.

    Libraries that are installed in this environment (sentence-transformers, rerankers, infinity; with
    --export also those that read ONNX files) take part with the same weights, texts and threads, each at its
    default and at other batch sizes. Every figure has a class: exact (no logit differs from float32 by
    1e-4), tolerance (the 95 % interval of the difference of nDCG@10 lies within 0.003 on every --judged
    collection; without one, within the int8 parity gate), or approximate. A machine that does other things
    measures those, too: see the load average.

    Example: `crossrank bench --profile marco --rounds 9 --to bench.json --to bench.svg`

    Example: `crossrank bench my-model --texts corpus.jsonl --alone`

    Example: `crossrank bench my-model --judged data/sample --judged-queries 100 --to bench.json`
    """
    from crossrank.benchmarking.bench import bench as measure
    from crossrank.benchmarking.contestants import add_onnx_files, installed
    from crossrank.benchmarking.fidelity import read_judged
    from crossrank.benchmarking.plots import plot_bench
    from crossrank.benchmarking.texts import PROFILES
    from crossrank.evaluation.plots import check_plot

    targets = to or []
    for target in targets:
        if target.suffix.lower() != _JSON:
            check_plot(target)
        elif not target.resolve().parent.is_dir():
            raise InputError(f"{target}: there is no folder {target.resolve().parent}; make it first")
    interpreters = dict(_name_and_python(each) for each in other or ())
    here = installed(with_onnx_files=export is not None)
    found = [name for name in here if not alone or name.startswith("crossrank")]
    report = measure(
        model,
        profiles=profile or list(PROFILES),
        texts=None if texts is None else [each.full_text for each in read_documents(texts)],
        num_documents=documents,
        num_queries=queries,
        rounds=rounds,
        threads=threads,
        max_length=max_length,
        contestants=list(dict.fromkeys([*found, *interpreters])),
        interpreters=interpreters,
        prepare=None if export is None else partial(add_onnx_files, interpreter=export),
        judged=[read_judged(folder, depth=depth, num_queries=judged_queries) for folder in judged or ()],
    )
    for target in targets:
        if target.suffix.lower() == _JSON:
            target.write_text(json_form.dumps(report.as_dict(), indent=2) + "\n", encoding="utf-8")
        else:
            plot_bench(report, target)
    if json:
        emit_json(report.as_dict(), indent=2)
    else:
        _print(report)


def _name_and_python(text: str) -> tuple[str, str]:
    name, equals, python = text.partition("=")
    if not (name and equals and python):
        raise typer.BadParameter(f"{text!r} is not NAME=PYTHON", param_hint="--other")
    return name, python


def _print(report: BenchReport) -> None:
    out = console()
    for name, profile in report.profiles.items():
        out.print(Text(f"\n{name}: pairs of {profile['mean_tokens']} tokens on average", style="bold"))
        columns = ("ms", "min ms", "CPU ms", "peak MB", "padding", "max |Δ|", "alone |Δ|", "pairs/s")
        shown = table("", "class", *columns, numeric=columns)
        for label, found in profile["latency"].items():
            throughput = profile["throughput"].get(label, {})
            shown.add_row(Text(label), found["class"], *_cells(found, throughput))
        out.print(shown)
        for pair, ratio in profile["ratios"].items():
            out.print(Text(f"{ratio:6.2f} × {pair}"))
        for label, gain in profile["control"]["unsorted_against_sorted"].items():
            out.print(Text(f"{gain:6.2f} × {label}: unsorted against sorted"))
        if profile["curves"]:
            out.print(_curves_table(profile["curves"]))
    if report.judged:
        out.print(_judged_table(report.judged))
    facts, settings = report.machine, report.settings
    versions = ", ".join(
        f"{package} {version}"
        for package, version in dict.fromkeys(
            item for each in report.contestants.values() for item in each["versions"].items()
        )
    )
    out.print(
        Text(
            f"\n{settings['num_documents']} candidates of one query, {settings['threads']} threads, "
            f"{settings['rounds']} rounds; int8: {settings['int8']}\n"
            f"{facts['cpu']}, {facts['cpus']} CPUs, {' '.join(facts['flags'])}; "
            f"load average before: {facts['load_average_before']}\n{versions}"
        )
    )
    for name, why in report.left_out.items():
        messages().print(Text(f"{name} was left out: {why}"))


def _curves_table(curves: dict[str, dict[str, list[dict[str, float]]]]) -> Table:
    columns = ("reranked", "ms", "nDCG@10")
    shown = table("nDCG@10 against milliseconds", *columns, numeric=columns)
    for label, collections in curves.items():
        for collection, points in collections.items():
            for point in points:
                cells = (f"{point['depth']:.0f}", f"{point['ms']:,.1f}", f"{point['ndcg@10']:.4f}")
                shown.add_row(Text(f"{label} on {collection}"), *cells)
    return shown


def _judged_table(judged: dict[str, dict[str, Any]]) -> Table:
    columns = ("queries", "float32", "its own", "difference", "95 %", "tau", "top 10")
    shown = table("nDCG@10", *columns, numeric=columns)
    for name, collections in judged.items():
        for collection, found in collections.items():
            low, high = found["interval"]
            shown.add_row(
                Text(f"{name} on {collection}"),
                str(found["queries"]),
                f"{found['float32']:.4f}",
                f"{found['other']:.4f}",
                f"{found['difference']:+.4f}",
                f"{low:+.4f} to {high:+.4f}",
                f"{found['kendall_tau']:.3f}",
                f"{found['top10_overlap']:.3f}",
            )
    return shown


def _cells(found: dict[str, Any], throughput: dict[str, Any]) -> list[str]:
    peak = found.get("peak_mb")
    rate = throughput.get("pairs_per_s")
    return [
        f"{1000 * found['median_s']:,.1f}",
        f"{1000 * found['min_s']:,.1f}",
        f"{1000 * found['cpu_median_s']:,.1f}",
        "" if peak is None else f"{peak:,.0f}",
        f"{found['padding']:.2f}",
        f"{found['max_delta']:.1e}",
        f"{found['max_delta_alone']:.1e}",
        "" if rate is None else f"{rate:,.0f}",
    ]
