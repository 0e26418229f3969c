"""What the benchmarks share: comparing contestants in one process, tables, JSON files, options.

Rounds and the facts of the machine are `crossrank.benchmarking`'s, as in `crossrank bench`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossrank.benchmarking import rounds as _rounds
from crossrank.benchmarking.rounds import Timing, histogram, load_average, machine
from crossrank.benchmarking.worker import limit_threads
from crossrank.markdown import markdown_table

__all__ = [
    "RESULTS",
    "Comparison",
    "at_least_one",
    "carry_out",
    "compare",
    "histogram",
    "interleave",
    "limit_threads",
    "load_average",
    "machine",
    "machine_line",
    "markdown_table",
    "page_option",
    "parser",
    "plot_gains",
    "print_histogram",
    "print_machine",
    "print_verdict",
    "publish",
    "put_into",
    "say",
    "settled",
    "table",
    "write",
]

RESULTS = Path(__file__).parent / "results"

os.environ.setdefault("CROSSRANK_BACKEND", "onnx")  # what is measured is a CPU; gpu.py says torch


def interleave(contestants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Time contestants in turns; the caller has warmed them up."""
    return _rounds.interleave(contestants, rounds, say)


@dataclass
class Comparison:
    """What `compare` found: a record of each contestant, its timing, its output, and the load before."""

    records: dict[str, dict[str, Any]]
    timings: dict[str, Timing]
    outputs: dict[str, Any]
    load_average_before: float | None

    def ratios(self, ours: Sequence[str], peers: Mapping[str, str]) -> dict[str, float]:
        """How many times ours a peer's median is; a peer is the best contestant whose name starts so."""
        seconds = {
            peer: min(timing.median_s for name, timing in self.timings.items() if name.startswith(prefix))
            for peer, prefix in peers.items()
        }
        return {
            f"{name} against {peer}": round(taken / self.timings[name].median_s, 2)
            for name in ours
            for peer, taken in seconds.items()
        }


def compare(
    contestants: Mapping[str, Callable[[list[Any]], Any]],
    inputs: list[Any],
    sizes: Sequence[int],
    rounds: int,
) -> Comparison:
    """Time functions of a list and compare what they return with what the first of them does.

    Each is also given eight of the inputs, short and long ones, by themselves.
    """
    import numpy as np

    few = sorted(range(len(inputs)), key=sizes.__getitem__)[:: max(1, len(inputs) // 8)][:8]
    records: dict[str, dict[str, Any]] = {}
    outputs: dict[str, Any] = {}
    for name, contestant in contestants.items():
        say(f"warming up: {name}")
        outputs[name] = output = np.asarray(contestant(inputs), np.float32)
        reference = next(iter(outputs.values()))
        alone = np.asarray(contestant([inputs[row] for row in few]), np.float32)
        records[name] = {
            "max_delta_to_sentence_transformers": float(np.abs(output - reference).max()),
            "max_delta_alone": float(np.abs(alone - output[few]).max()),
        }
    load = load_average()
    timings = interleave(
        {
            name: (lambda contestant=contestant: contestant(inputs))
            for name, contestant in contestants.items()
        },
        rounds,
    )
    for name, timing in timings.items():
        records[name] |= timing.summary()
    return Comparison(records, timings, outputs, load)


Plot = Callable[[Mapping[str, Any], Path], None]
"""Draws a script's result into a picture file."""


def write(name: str, result: Mapping[str, Any], output: Path | None, plot: Plot | None = None) -> None:
    """Write a script's result as JSON, and its pictures beside it."""
    path = output or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"written to {path}")
    if plot is not None:
        for suffix in (".png", ".svg"):
            plot(result, path.with_suffix(suffix))


Gains = Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]
"""Panel -> series -> row -> a difference's "value", "low" and "high"."""


def plot_gains(panels: Gains, path: Path, *, label: str) -> None:
    """Draw differences with their intervals, a panel beside the other, the same rows in all.

    Args:
        panels: their titles, series, rows and differences.
        path: the picture to write.
        label: of the axis.
    """
    from matplotlib.figure import Figure

    from crossrank.evaluation.plots import save_plot

    rows = list(dict.fromkeys(row for series in panels.values() for each in series.values() for row in each))
    most = max(len(series) for series in panels.values())
    figure = Figure(
        figsize=(5.5 * len(panels), 1.2 + 0.2 * max(len(rows), 2) * (most + 1)), layout="constrained"
    )
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (title, series) in zip(axes, panels.items(), strict=True):
        for number, (name, gains) in enumerate(series.items()):
            axis.errorbar(
                [gain["value"] for gain in gains.values()],
                [rows.index(row) + 0.8 * ((number + 0.5) / len(series) - 0.5) for row in gains],
                xerr=[
                    [gain["value"] - gain["low"] for gain in gains.values()],
                    [gain["high"] - gain["value"] for gain in gains.values()],
                ],
                fmt="o",
                markersize=4,
                capsize=2,
                label=name,
            )
        axis.axvline(0, color="0.6", linewidth=1)
        axis.set(title=title, xlabel=label)
        axis.legend(fontsize="small")
    axes[0].set_yticks(range(len(rows)), rows)
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    save_plot(figure, path)


def settled(work: Path, settings: Mapping[str, Any]) -> None:
    """Note what a folder's files are made with; refuse one that was made with something else."""
    path = work / "settings.json"
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != settings:
        raise SystemExit(f"{work} was made with other settings or models; remove it, or give another --work")
    path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def put_into(page: Path, section: str, text: str) -> None:
    """Replace what is between a page's lines `<!-- section -->` and `<!-- end of section -->`."""
    opening, closing = f"<!-- {section} -->", f"<!-- end of {section} -->"
    before, start, rest = page.read_text(encoding="utf-8").partition(opening)
    _, end, after = rest.partition(closing)
    if not (start and end):
        raise SystemExit(f"{page} lacks the lines {opening} and {closing}")
    page.write_text(f"{before}{start}\n{text}\n{end}{after}", encoding="utf-8")


def publish(
    name: str,
    result: Mapping[str, Any],
    text: str,
    args: argparse.Namespace,
    *,
    section: str | None = None,
    plot: Plot | None = None,
) -> None:
    """Print what a script found, write the JSON file, and put it into the page that it was given.

    Args:
        name: of the JSON file.
        result: goes into it.
        text: the tables, as Markdown.
        args: with `page` (see `page_option`) and `output`.
        section: of the page; None where it is called as the file.
        plot: draws the pictures beside the JSON file.
    """
    say("")
    print(text)
    if args.page is not None:
        put_into(args.page, section or name, text)
    write(name, result, args.output, plot)


def table(title: str, rows: Sequence[Mapping[str, str]]) -> None:
    """Print rows, whose keys are the columns, with numbers to the right."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=title, title_justify="left")
    for number, column in enumerate(rows[0]):
        shown.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        shown.add_row(*row.values())
    # A pipe has no width; columns must not be cut there.
    Console(width=None if sys.stdout.isatty() else 200).print(shown)


def print_machine(result: Mapping[str, Any]) -> None:
    print(machine_line(result))


def machine_line(result: Mapping[str, Any]) -> str:
    """The machine and the versions of a result, in words."""
    facts = result["machine"]
    versions = ", ".join(f"{name} {value}" for name, value in facts["versions"].items())
    flags = " ".join(facts["flags"])
    native = ", native library" if facts.get("native_library") else ""
    return f"{facts['cpu']}, {facts['cpus']} CPUs, {flags}{native}; Python {facts['python']}, {versions}"


def print_verdict(result: Mapping[str, Any]) -> None:
    """What stands below the table of times: ratios, machine, load."""
    for name, ratio in result["ratios"].items():
        print(f"{ratio:6.2f} × {name}")
    print_machine(result)
    print(f"load average before: {result['load_average_before']}")


def print_histogram(title: str, counts: Mapping[str, int]) -> None:
    print(title)
    longest = max(counts.values())
    for label, count in counts.items():
        print(f"  {label:>9} {count:6,} {'#' * round(40 * count / longest)}")


def say(text: str) -> None:
    """Say on a terminal what is going on."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def at_least_one(text: str) -> int:
    """An argument that counts something."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return value


def carry_out(
    run: Callable[[argparse.Namespace, Path], dict[str, Any]],
    args: argparse.Namespace,
    *,
    threads: int | None = None,
) -> dict[str, Any]:
    """Run a script's measurements, with a folder that is gone afterwards.

    Args:
        run: given the arguments and the folder.
        args: of the script.
        threads: None takes those of the arguments.
    """
    limit_threads(threads or args.threads)
    with tempfile.TemporaryDirectory(prefix="crossrank-", ignore_cleanup_errors=True) as scratch:
        result = run(args, Path(scratch))
    say("")
    return result


def named(folders: Sequence[Path]) -> dict[str, Path]:
    """Folders of collections by what they are called: "xquad/en" beside "scifact"."""
    parents = os.path.commonpath([folder.resolve().parent for folder in folders])
    return {folder.resolve().relative_to(parents).as_posix(): folder for folder in folders}


def page_option(made: argparse.ArgumentParser) -> None:
    """Give a parser the option that `publish` reads."""
    made.add_argument("--page", type=Path, help="put the tables between this page's markers")


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options that all scripts share."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--threads", type=at_least_one, default=2, help="for every contestant (default: 2)")
    made.add_argument("--weights", type=Path, help="model folder; default: the built-in model")
    made.add_argument("--output", type=Path, help="JSON file; default: a file in benchmarks/results")
    return made
