"""The picture of a `BenchReport`."""

from __future__ import annotations

from pathlib import Path

from crossrank.benchmarking.bench import BenchReport
from crossrank.errors import require
from crossrank.evaluation.plots import check_plot, save_plot

__all__ = ["plot_bench"]

_COLOURS = {"exact": "C0", "tolerance": "C2", "approximate": "C3"}


def plot_bench(report: BenchReport, path: Path) -> None:
    """Draw what one query takes: a bar a contestant, median and minimum, coloured by class.

    Args:
        report: what `bench` measured.
        path: the file to write: .png, .svg or .pdf.

    Raises:
        InputError: see `check_plot`.
        MissingExtraError: see `check_plot`.
    """
    check_plot(path)
    most = max(len(profile["latency"]) for profile in report.profiles.values())
    size = (5.0 * len(report.profiles) + 2, 0.35 * most + 1.5)
    figure = require("matplotlib.figure", "train").Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(report.profiles), squeeze=False)[0]
    for panel, (name, profile) in zip(panels, report.profiles.items(), strict=True):
        found = sorted(profile["latency"].items(), key=lambda each: -each[1]["median_s"])
        labels = [label for label, _ in found]
        medians = [1000 * each["median_s"] for _, each in found]
        panel.barh(labels, medians, color=[_COLOURS[each["class"]] for _, each in found])
        panel.plot([1000 * each["min_s"] for _, each in found], labels, "k|", markersize=9)
        panel.set(
            xlabel="ms (bar: median, mark: minimum)", title=f"{name}, mean {profile['mean_tokens']} tokens"
        )
    for kind, colour in _COLOURS.items():
        panels[-1].barh([0], [0], color=colour, label=kind)
    panels[-1].legend(loc="upper right")
    settings = report.settings
    figure.suptitle(f"{settings['num_documents']} candidates of one query, {settings['threads']} threads")
    save_plot(figure, path)
