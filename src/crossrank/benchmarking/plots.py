"""The picture of a `BenchReport`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crossrank.benchmarking.bench import BenchReport
from crossrank.errors import require
from crossrank.evaluation.plots import check_plot, save_plot

__all__ = ["plot_bench"]

_COLOURS = {"exact": "C0", "tolerance": "C2", "approximate": "C3"}


def plot_bench(report: BenchReport, path: Path) -> None:
    """Draw what one query takes: a bar a contestant, median and minimum, coloured by class.

    Below, where the report has judged queries: nDCG@10 against milliseconds, by how many candidates are
    reranked, of those whose scores are not exact.

    Args:
        report: what `bench` measured; at least one profile.
        path: the file to write: .png, .svg or .pdf.

    Raises:
        InputError: see `check_plot`.
        MissingExtraError: see `check_plot`.
    """
    check_plot(path)
    profiles = report.profiles.values()
    most = max(len(profile["latency"]) for profile in profiles)
    heights = [0.22 * most + 1.5] + ([4.0] if any(profile["curves"] for profile in profiles) else [])
    size = (8.0 * len(report.profiles) + 1, sum(heights))
    figure = require("matplotlib.figure", "train").Figure(figsize=size, layout="constrained")
    rows = figure.subplots(len(heights), len(report.profiles), squeeze=False, height_ratios=heights)
    for number, (name, profile) in enumerate(report.profiles.items()):
        _draw_bars(rows[0][number], name, profile)
        if len(rows) > 1:
            _draw_curves(rows[1][number], profile["curves"])
    last = rows[0][-1]
    for kind, colour in _COLOURS.items():
        last.barh([0], [0], color=colour, label=kind)
    last.legend(loc="upper right")
    settings = report.settings
    figure.suptitle(f"{settings['num_documents']} candidates of one query, {settings['threads']} threads")
    save_plot(figure, path)


def _draw_bars(panel: Any, name: str, profile: Mapping[str, Any]) -> None:
    found = sorted(profile["latency"].items(), key=lambda each: -each[1]["median_s"])
    labels = [label for label, _ in found]
    medians = [1000 * each["median_s"] for _, each in found]
    panel.barh(labels, medians, color=[_COLOURS[each["class"]] for _, each in found])
    panel.plot([1000 * each["min_s"] for _, each in found], labels, "k|", markersize=9)
    panel.margins(y=0.01)
    panel.set(xlabel="ms (bar: median, mark: minimum)", title=f"{name}, mean {profile['mean_tokens']} tokens")


def _draw_curves(panel: Any, curves: Mapping[str, Mapping[str, Any]]) -> None:
    for label, collections in curves.items():
        for collection, points in collections.items():
            panel.plot(
                [each["ms"] for each in points],
                [each["ndcg@10"] for each in points],
                marker="o",
                label=f"{label} on {collection}",
            )
    panel.set(xlabel="ms", ylabel="nDCG@10")
    if curves:
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), fontsize="small")  # below
