"""The metrics of a training run as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crossrank.errors import require

__all__ = ["plot_metrics"]


def plot_metrics(metrics: Sequence[Mapping[str, Any]], path: Path, measure: str) -> None:
    """Draw the loss, and the held-out measure where there is one, by step.

    Args:
        metrics: lines of a run's metrics.
        path: the PNG file to write.
        measure: its name; "" without one.
    """
    require("matplotlib", "train")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    losses = [(line["step"], line["loss"]) for line in metrics if "loss" in line]
    axes.plot(*zip(*losses, strict=True), color="tab:blue", linewidth=1) if losses else None
    axes.set_xlabel("step")
    axes.set_ylabel("training loss", color="tab:blue")
    measured = [(line["step"], line["held_out"]) for line in metrics if "held_out" in line]
    if measured:
        right = axes.twinx()
        right.plot(*zip(*measured, strict=True), color="tab:orange", marker="o", markersize=3)
        right.set_ylabel(f"held-out {measure}", color="tab:orange")
    figure.savefig(path, dpi=120)
