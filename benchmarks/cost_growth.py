"""How cost grows: with candidates, with tokens, with threads, with callers; and that memory does not.

Each series is the built-in model in int8 on cuts of the sample collection, the median of a few rounds. The
exponent is the slope of log time over log size: 1 for candidates, between 1 and 2 for tokens (attention grows
with the square of a pair's length). Texts with more tokens than the model has positions are read in windows
(`long_documents="max"`), so from there on tokens cost what candidates do. Peak memory is measured in a
process of its own for each size, by candidates, tokens, callers and token budget, up to a document of 1 MB
and a call with 100,000 candidates; its exponent is 0 where it is flat. Writes results/cost_growth.json with
plots, and the tables of a page between its markers.

    python benchmarks/cost_growth.py --page docs/performance.md
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import harness
import material
import numpy as np

from crossrank.models.cross_encoder import CrossEncoder
from crossrank.models.hub import resolve
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.tokenization import Tokenizer

CANDIDATES = (10, 30, 100, 300, 1_000, 3_000, 10_000)
TOKENS = (32, 64, 128, 256, 512, 1_024, 2_048, 4_096, 8_192)
CALLERS = (1, 2, 4, 8)
BUDGETS = (256, 512, 1_024, 2_048, 4_096)
OF_BUDGETS = (100, 1_000, 3_000)  # candidates that peaks are measured with for each budget
OF_CALLERS = 50  # candidates of each
POSITIONS = 512  # of the model: longer texts are read in windows
LABELS = {"candidates": "candidates", "tokens": "tokens of a document", "callers": "callers"}


class Work(NamedTuple):
    """What a process whose memory is measured scores.

    Attributes:
        documents: how many, for each caller.
        tokens: of a document; 0 for lengths like those of MS MARCO.
        num_bytes: of one document, in place of these; 0 for none.
        callers: at a time.
        token_budget: of the model.
    """

    documents: int = 1
    tokens: int = 0
    num_bytes: int = 0
    callers: int = 1
    token_budget: int = 1_024


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float | None:
    """The slope of log cost over log size; None for a single size."""
    if len(sizes) < 2:
        return None
    return round(float(np.polyfit(np.log(sizes), np.log(costs), 1)[0]), 3)


def grown(sizes: Sequence[int], costs: Sequence[float], name: str) -> dict[str, Any]:
    """Costs by size, with their exponent."""
    return {"sizes": list(sizes), name: list(costs), "exponent": exponent(sizes, costs)}


def series(sizes: Sequence[int], call: Callable[[int], Callable[[], object]], rounds: int) -> dict[str, Any]:
    """Median seconds of each size, and the exponent."""
    medians = []
    for size in sizes:
        harness.say(f"{size:,}")
        run = call(size)
        run()
        medians.append(round(harness.interleave({"it": run}, rounds)["it"].median_s, 4))
    return grown(sizes, medians, "median_s")


def by_tokens(found: dict[str, Any]) -> dict[str, Any]:
    """A series by tokens, with exponents of the sizes that fit the model and of those that take windows."""
    for name, fits in (("exponent_one_window", True), ("exponent_windows", False)):
        kept = [
            (size, median)
            for size, median in zip(found["sizes"], found["median_s"], strict=True)
            if (size < POSITIONS if fits else size > POSITIONS)
        ]
        found[name] = exponent(*zip(*kept, strict=True)) if kept else None
    return found


@cache
def passages() -> list[str]:
    """A thousand different ones, of the lengths that MS MARCO's have."""
    tokenizer = Tokenizer(Checkpoint.open(resolve(None, kind="cross-encoder")))
    return material.texts(material.lengths("marco", 1_000).tolist(), tokenizer)


def documents(count: int) -> list[str]:
    """Passages with a number before each, since equal ones would be scored once."""
    return [f"{number}: {text}" for number, text in zip(range(count), itertools.cycle(passages()))]


def long_documents(num_tokens: int, count: int) -> list[str]:
    """Texts of about this many tokens."""
    words = " ".join(material.articles()).split()
    size = max(1, int(num_tokens / 1.3))  # a word of the sample is 1.3 tokens
    return [" ".join(words[start : start + size]) for start in range(0, count * 50, 50)]


def callers(model: CrossEncoder, pairs: list[tuple[str, str]], count: int) -> None:
    """The same call from several threads at once."""
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(model.score, [pairs] * count))


def pairs_of(texts: Sequence[str]) -> list[tuple[str, str]]:
    question = material.queries(1)[0]
    return [(question, text) for text in texts]


def peak(work: Work, threads: int) -> dict[str, Any]:
    """What `measure_peak` finds in a process of its own."""
    harness.say(f"memory: {work}")
    command = [sys.executable, __file__, "--peak", json.dumps(work), "--threads", str(threads)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found


def measure_peak(work: Work, threads: int) -> dict[str, Any]:
    """Score in this process: MB of the texts, MB before and at most, seconds."""
    from crossrank.benchmarking.worker import peak_mb

    if work.num_bytes:
        whole = " ".join(material.articles()).encode()
        texts = [whole[: work.num_bytes].decode(errors="ignore")]
    elif work.tokens:
        texts = long_documents(work.tokens, work.documents)
    else:
        texts = documents(work.documents)
    pairs = pairs_of(texts)
    model = CrossEncoder(
        threads=threads, progress=False, long_documents="max", token_budget=work.token_budget
    )
    before, start = peak_mb(), time.perf_counter()
    callers(model, pairs, work.callers)
    return {
        "texts_mb": round(sum(len(text.encode()) for text in texts) / 1e6, 2),
        "before_mb": before,
        "peak_mb": peak_mb(),
        "seconds": round(time.perf_counter() - start, 2),
    }


def peaks(works: Mapping[int, Work], threads: int) -> dict[str, Any]:
    """Peak MB by size, with the exponent; None where the system does not tell."""
    found = [peak(work, threads) for work in works.values()]
    if any(each["peak_mb"] is None for each in found):
        return {"sizes": list(works), "peak_mb": None, "exponent": None}
    return grown(list(works), [each["peak_mb"] for each in found], "peak_mb")


def plot(result: Mapping[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    from crossrank.evaluation.plots import save_plot

    figure = Figure(figsize=(14, 7.5), layout="constrained")
    above, below = figure.subplots(2, 3)
    for panel, (kind, label) in zip(above, LABELS.items(), strict=True):
        for name, found in result[kind].items():
            panel.loglog(
                found["sizes"], found["median_s"], marker="o", label=f"{name}: exponent {found['exponent']}"
            )
        panel.set(xlabel=label, ylabel="seconds")
        panel.legend()
    for panel, (kind, label) in zip(below, LABELS.items(), strict=True):
        shown = {kind: result["peaks"][kind]}
        if kind == "candidates":
            shown = {f"{name} tokens": found for name, found in result["peaks"]["budgets"].items()}
        for name, found in shown.items():
            if found["peak_mb"] is not None:
                panel.semilogx(found["sizes"], found["peak_mb"], marker="o", label=name)
        panel.set(xlabel=label, ylabel="peak MB")
        panel.set_ylim(0, 1.1 * panel.get_ylim()[1])
        if kind == "candidates":
            panel.legend(title="token budget")
    for panel in (above[2], below[2]):  # less than a decade: its own ticks would lie on one another
        panel.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        panel.set_xticks(sizes := result["peaks"]["callers"]["sizes"], [str(size) for size in sizes])
    save_plot(figure, path)


def run(args: argparse.Namespace) -> dict[str, Any]:
    result: dict[str, Any] = {
        "benchmark": "cost_growth",
        "machine": harness.machine("crossrank", "numpy", "onnxruntime", "tokenizers"),
        "load_average_before": harness.load_average(),
        "settings": {
            "rounds": args.rounds,
            "documents_of_tokens": args.documents,
            "documents_of_callers": OF_CALLERS,
            "threads_of_peaks": args.threads,
        },
        "candidates": {},
        "tokens": {},
        "callers": {},
    }
    for threads in args.thread_counts:
        name = f"{threads} thread{'s' * (threads > 1)}"
        model = CrossEncoder(threads=threads, progress=False, long_documents="max")

        def scoring(texts: list[str], model: CrossEncoder = model) -> Callable[[], object]:
            return partial(model.score, pairs_of(texts))

        result["candidates"][name] = series(
            args.candidates, lambda size, scoring=scoring: scoring(documents(size)), args.rounds
        )
        result["tokens"][name] = by_tokens(
            series(
                args.tokens,
                lambda size, scoring=scoring: scoring(long_documents(size, args.documents)),
                args.rounds,
            )
        )
        result["callers"][name] = series(
            args.callers,
            lambda size, model=model: partial(callers, model, pairs_of(documents(OF_CALLERS)), size),
            args.rounds,
        )
    result["peaks"] = {
        "candidates": peaks({size: Work(size) for size in args.candidates}, args.threads),
        "tokens": peaks({size: Work(args.documents, size) for size in args.tokens}, args.threads),
        "callers": peaks({size: Work(OF_CALLERS, callers=size) for size in args.callers}, args.threads),
        "budgets": {
            str(budget): peaks(
                {size: Work(size, token_budget=budget) for size in args.of_budgets}, args.threads
            )
            for budget in args.budgets
        },
    }
    result["largest"] = {
        f"a document of {args.bytes:,} bytes": peak(Work(num_bytes=args.bytes), args.threads),
        f"{args.most:,} candidates": peak(Work(args.most), args.threads),
    }
    return result


def tables(result: Mapping[str, Any]) -> str:
    """The page's tables, as Markdown."""
    settings = result["settings"]
    lines = [
        f"{harness.machine_line(result)}; median of {settings['rounds']} rounds, "
        f"memory with {settings['threads_of_peaks']} threads; load average before: "
        f"{result['load_average_before']}."
    ]
    for kind, label in LABELS.items():
        sizes = next(iter(result[kind].values()))["sizes"]
        rows = [
            [name, *(f"{seconds:.2f} s" for seconds in found["median_s"]), _exponents(found)]
            for name, found in result[kind].items()
        ]
        rows.append(_peak_row("peak MB", result["peaks"][kind]))
        lines += ["", *harness.markdown_table([label, *_counts(sizes), "exponent"], rows)]
    sizes = next(iter(result["peaks"]["budgets"].values()))["sizes"]
    columns = ["token budget, peak MB by candidates", *_counts(sizes), "exponent"]
    rows = [_peak_row(f"{int(budget):,}", found) for budget, found in result["peaks"]["budgets"].items()]
    lines += ["", *harness.markdown_table(columns, rows)]
    rows = []
    for name, found in result["largest"].items():
        memory = ["" if found[each] is None else f"{found[each]:,.0f}" for each in ("before_mb", "peak_mb")]
        rows.append([name, f"{found['texts_mb']:.1f}", *memory, f"{found['seconds']:,.1f}"])
    columns = ["", "MB of texts", "MB before", "peak MB", "seconds"]
    return "\n".join([*lines, "", *harness.markdown_table(columns, rows)])


def _counts(sizes: Sequence[int]) -> list[str]:
    return [f"{size:,}" for size in sizes]


def _exponents(found: Mapping[str, Any]) -> str:
    parts = {"": "exponent", " in one window": "exponent_one_window", " in several": "exponent_windows"}
    shown = [f"{found[key]:.2f}{words}" for words, key in parts.items() if found.get(key) is not None]
    return ", ".join(shown)


def _peak_row(name: str, found: Mapping[str, Any]) -> list[str]:
    peaks_mb = found["peak_mb"] or [None] * len(found["sizes"])
    cells = ["" if each is None else f"{each:,.0f}" for each in peaks_mb]
    return [name, *cells, _exponents(found)]


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--candidates", type=harness.at_least_one, nargs="+", default=CANDIDATES)
    parser.add_argument("--tokens", type=harness.at_least_one, nargs="+", default=TOKENS)
    parser.add_argument("--callers", type=harness.at_least_one, nargs="+", default=CALLERS)
    parser.add_argument("--thread-counts", type=harness.at_least_one, nargs="+", default=(1, 2))
    parser.add_argument("--budgets", type=harness.at_least_one, nargs="+", default=BUDGETS, help="in tokens")
    parser.add_argument("--of-budgets", type=harness.at_least_one, nargs="+", default=OF_BUDGETS)
    parser.add_argument("--documents", type=harness.at_least_one, default=8, help="of each number of tokens")
    parser.add_argument("--bytes", type=harness.at_least_one, default=1_000_000, help="of the long document")
    parser.add_argument("--most", type=harness.at_least_one, default=100_000, help="candidates of one call")
    parser.add_argument("--rounds", type=harness.at_least_one, default=3)
    parser.add_argument("--peak", help=argparse.SUPPRESS)  # what the processes are started with
    harness.page_option(parser)
    args = parser.parse_args()
    harness.limit_threads(max(*args.thread_counts, args.threads))
    if args.peak:
        print(json.dumps(measure_peak(Work(*json.loads(args.peak)), args.threads)))
        return
    result = run(args)
    harness.publish("cost_growth", result, tables(result), args, plot=plot)


if __name__ == "__main__":
    main()
