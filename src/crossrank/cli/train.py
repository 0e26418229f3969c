"""`crossrank train`: a recipe to a trained model."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crossrank.cli.loading import JsonOption
from crossrank.cli.output import console, emit_json, messages, resumable, table
from crossrank.cli.wording import in_options

if TYPE_CHECKING:
    from crossrank.training.guards import Progress
    from crossrank.training.train import TrainingPlan, TrainingReport

__all__ = ["quieten", "shown", "train"]


def train(
    recipe: Annotated[Path, typer.Argument(help="YAML file: student, data, loss, schedule, ...")],
    *,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE in place of the recipe's: schedule.steps=100. Repeatable."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The folder of the model, in place of the recipe's.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done: rows, tokens, cuts, steps, memory.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace a model in the folder, and forget an interrupted run.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Train a reranker or bi-encoder by a recipe; ends with a folder that every command here opens.

    Giving the command again resumes an interrupted one, to the same weights. Measures the base first and
    stops where training goes wrong. Several GPUs: `accelerate launch -m crossrank train recipe.yaml`.

    Example: `crossrank train recipe.yaml --dry-run`

    Example: `crossrank train recipe.yaml --set schedule.steps=100 --output models/short`
    """
    from crossrank.errors import require
    from crossrank.training.recipes import read_recipe

    for module in ("torch", "sentence_transformers", "accelerate", "datasets"):
        require(module, "train")
    overrides = [*(settings or [])]
    if output is not None:
        overrides.append(f"output={dumps(str(output), ensure_ascii=False)}")  # JSON is YAML
    wanted = read_recipe(recipe, overrides)
    is_first = os.environ.get("RANK", "0") == "0"  # of several processes the first one speaks
    if wanted.held_out is None and is_first:
        messages().print("nothing is held out: neither the base nor the result is measured", style="yellow")
    quieten()
    from crossrank.training.train import plan
    from crossrank.training.train import train as train_model

    if dry_run:
        found = plan(wanted, overwrite=replace)
        obstacles = [in_options(each) for each in found.obstacles]
        if json:
            emit_json({**vars(found), "prepared": _counts(found), "obstacles": obstacles})
        else:
            _print_plan(found)
            for each in obstacles:
                messages().print(f"the run would stop at once: {each}", markup=False)
        return
    measure = wanted.held_out.measure if wanted.held_out else ""
    with shown(measure) as report, resumable(replace=replace, place="the last checkpoint"):
        result = train_model(wanted, overwrite=replace, report=report)
    if not is_first:
        return
    if json:
        emit_json(result)
    else:
        _print_result(result)


def quieten() -> None:
    """Leave bars and notices to our own lines: theirs come several a second."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    chosen = logging.getLogger("crossrank.training")
    chosen.setLevel(logging.INFO)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    if not chosen.handlers:
        chosen.addHandler(handler)


@contextmanager
def shown(measure: str) -> Iterator[Callable[[Progress], None]]:
    """Give what shows progress on standard error: a bar on a terminal, and lines.

    Lines are for measurements, and for a loss now and then: a log should tell how it went.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bars

    out = messages()
    columns = (TextColumn("Training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[now]}"))
    with Bars(*columns, console=out, transient=True, disable=not out.is_terminal) as bars:
        task = bars.add_task("", total=None, now="")

        def report(told: Progress) -> None:
            line = _line(told, measure)
            bars.update(task, total=told.num_steps, completed=told.step)
            if told.measured is None:
                bars.update(task, now=line)
            is_due = told.step % max(1, told.num_steps // 20) == 0
            if told.measured is not None or (is_due and not out.is_terminal):
                out.print(f"step {told.step:,}/{told.num_steps:,}: {line}", markup=False)

        yield report


def _line(told: Progress, measure: str) -> str:
    if told.measured is not None:
        best = f"best {told.best:.4f} at step {told.best_step:,}"
        if told.best_step == told.step:
            best = "the best so far" if told.step else "the base"
        return f"held-out {measure} {told.measured:.4f} ({best})"
    return f"loss {told.loss:.4f}, {told.pairs_per_s:.1f} pairs/s, {_duration(told.eta_s or 0.0)} left"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _counts(found: TrainingPlan) -> dict[str, object]:
    return {name: value for name, value in vars(found.prepared).items() if name != "columns"}


def _print_plan(found: TrainingPlan) -> None:
    prepared = found.prepared
    shown = table("", "count", numeric=["count"])
    shown.add_row("queries", f"{prepared.num_lists:,}", style="bold")
    for file, count in found.files.items():
        shown.add_row(f"  of {file}", f"{count:,}")
    shown.add_row("  left out: held out, too", f"{prepared.left_out:,}")
    shown.add_row("  that give no row", f"{prepared.unused:,}")
    shown.add_row("  cut", f"{prepared.cut_queries:,}")
    shown.add_row("pairs of query and document", f"{prepared.num_pairs:,}", style="bold")
    shown.add_row("  whose document is cut", f"{prepared.cut_documents:,}")
    shown.add_row("positives", f"{prepared.num_positives:,}")
    shown.add_row("  not read whole", f"{prepared.cut_positives:,} ({prepared.cut_share:.1%})")
    shown.add_row("tokens an epoch", f"{prepared.num_tokens:,}", style="bold")
    shown.add_row("  of the longest input", f"{prepared.longest:,}")
    shown.add_row(f"rows ({found.row})", f"{prepared.num_rows:,}", style="bold")
    shown.add_row("steps", f"{found.num_steps:,}", style="bold")
    shown.add_row("parameters", f"{found.num_parameters:,}", style="bold")
    shown.add_row("  that are trained", f"{found.num_trained:,}")
    shown.add_row("memory of weights, gradients, optimiser", _bytes(found.weights_bytes))
    shown.add_row("memory of the longest step, measured", _bytes(found.saved_bytes))
    if found.held_out:
        shown.add_row(f"held-out pairs: {found.held_out}", f"{found.held_out_pairs:,}", style="bold")
    console().print(shown)


def _print_result(result: TrainingReport) -> None:
    if result.baseline is not None and result.best is not None:
        shown = table("", result.measure, numeric=[result.measure])
        shown.add_row("base", f"{result.baseline:.4f}")
        shown.add_row(f"best, step {result.best_step:,}", f"{result.best:.4f}", style="bold")
        if result.comparison is not None:
            difference = result.comparison.difference
            interval = f"{difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"
            shown.add_row(f"difference (p = {result.comparison.p_value:.2g})", interval)
        console().print(shown)
    early = ", stopped early" if result.stopped_early else ""
    worse = "; nothing was better than the base, whose weights these are" if result.best_step == 0 else ""
    steps = "1 step" if result.num_steps == 1 else f"{result.num_steps:,} steps"
    messages().print(
        f"{steps} in {result.precision}{early}: a model in {result.output}{worse}",
        markup=False,
    )


def _bytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count < 1e9 else f"{count / 1e9:,.2f} GB"
