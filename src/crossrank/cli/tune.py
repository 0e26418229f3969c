"""`crossrank tune`: how a model runs fastest on this machine, measured once and kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from crossrank.cli.loading import DEFAULT_RERANKER, JsonOption, RevisionOption, ThreadsOption
from crossrank.cli.output import console, emit_json, messages, table
from crossrank.cli.wording import in_options

if TYPE_CHECKING:
    from crossrank.benchmarking.tune import TuneReport

__all__ = ["tune"]


def tune(
    model: Annotated[
        str, typer.Argument(help="Any model: a built-in one, a folder, or a hub name.")
    ] = DEFAULT_RERANKER,
    *,
    rounds: Annotated[int, typer.Option(min=3, help="Runs of each way, in turns.")] = 5,
    again: Annotated[bool, typer.Option("--again", help="Measure also where that was done already.")] = False,
    revision: RevisionOption = None,
    threads: ThreadsOption = None,
    json: JsonOption = False,
) -> None:
    """Measure how a model runs fastest on this CPU, and keep that for whenever it opens.

    Precisions are compared, then batches of 512, 1024 and 2048 tokens on one thread each or on several. What
    is found holds for models of this shape, with this number of threads and these versions; another call
    shows it. Batches change no score. float32 takes the place of int8 only where it is 15 % faster in every
    round, and never where vectors of an index or a calibration may be bound to int8. Other precisions are for
    you to choose. Options of other commands go before what is found, and CROSSRANK_TUNED=off leaves it out.

    Example: `crossrank tune`

    Example: `crossrank tune BAAI/bge-reranker-base --threads 4 --again`
    """
    from crossrank.benchmarking.tune import tune as measure

    report = measure(model, revision=revision, threads=threads, rounds=rounds, again=again)
    if json:
        emit_json(report.as_dict(), indent=2)
        return
    _print(report)


def _print(report: TuneReport) -> None:
    tuned = report.tuned
    out = console()
    shown = table("precision", "ms", "times", "", numeric=("ms", "times"))
    own = tuned.precisions[0].median_s
    for each in tuned.precisions:
        note = "other scores: only where asked for" if each.precision == "bf16" else ""
        note = "taken" if each.precision == tuned.precision else note
        shown.add_row(
            Text(each.precision), f"{1000 * each.median_s:,.1f}", f"{each.median_s / own:.2f}", Text(note)
        )
    out.print(shown)
    for precision, why in tuned.left_out.items():
        out.print(Text(f"{precision} was left out: {in_options(why)}"), style="dim")
    columns = ("tokens a batch", "batches at a time", "threads of each", "ms", "times")
    shown = table(*columns, "", numeric=columns)
    usual = tuned.batches[0].median_s
    for each in tuned.batches:
        is_taken = (each.token_budget, each.run_threads) == (tuned.token_budget, tuned.run_threads)
        numbers = (f"{each.token_budget:,}", str(each.workers), str(each.run_threads))
        times = f"{each.median_s / usual:.2f}"
        shown.add_row(*numbers, f"{1000 * each.median_s:,.1f}", times, "taken" if is_taken else "")
    out.print()
    out.print(shown)
    say = messages()
    for note in report.notes:
        say.print(in_options(note), markup=False, style="yellow")
    rounds = len(tuned.batches[0].rounds_s)
    say.print(
        f"medians of {rounds} rounds of {tuned.num_pairs} inputs with {tuned.num_tokens:,} tokens, "
        f"{tuned.threads} threads, {tuned.measured_at}"
        + ("" if report.load_average is None else f"; load average before: {report.load_average}"),
        markup=False,
        style="dim",
    )
    if report.why:
        kept = "it is not kept" if report.path is None else f"kept in {report.path}"
        say.print(f"measured, since {report.why}; {kept}", markup=False, style="dim")
    else:
        say.print(f"read from {report.path}; --again measures again", markup=False, style="dim")
