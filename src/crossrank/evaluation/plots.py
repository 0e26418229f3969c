"""Pictures of what was measured, as PNG, SVG or PDF: the file's name says which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crossrank.errors import InputError, require
from crossrank.evaluation.probabilities import Bin, Roc

__all__ = ["FORMATS", "check_plot", "plot_reliability", "plot_roc", "save_plot"]

FORMATS = (".png", ".svg", ".pdf")

_RESOLUTION = 150
_SALT = "crossrank"  # in place of random ids: the same picture, the same bytes


def check_plot(path: Path) -> None:
    """Refuse a picture that could not be written, before anything is computed.

    Raises:
        InputError: another ending than those of `FORMATS`, or no such folder.
        MissingExtraError: matplotlib is not installed (extra "train").
    """
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"{path}: a picture's name ends in one of {', '.join(FORMATS)}")
    if not path.resolve().parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.resolve().parent}; make it first")
    require("matplotlib", "train")


def plot_reliability(bins: Mapping[str, Sequence[Bin]], path: Path, *, title: str = "") -> None:
    """Draw promised probabilities against the shares that were relevant, and how many pairs each bin has.

    Args:
        bins: name of a curve -> its bins, as `probabilities.reliability` gives them.
        path: the file to write.
        title: above the picture.

    Raises:
        InputError: see `check_plot`.
        MissingExtraError: see `check_plot`.
    """
    check_plot(path)
    figure = require("matplotlib.figure", "train").Figure(figsize=(5.5, 6.5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1, label="perfect")
    for number, (name, found) in enumerate(bins.items()):
        shown = [each for each in found if each.num_pairs]
        upper.plot(
            [each.probability for each in shown],
            [each.share for each in shown],
            marker="o",
            markersize=4,
            label=name,
        )
        width = (found[0].high - found[0].low) / (len(bins) + 0.5)
        lower.bar(
            [each.low + width * (number + 0.75) for each in found],
            [each.num_pairs for each in found],
            width=width,
        )
    upper.set(ylabel="share of relevant pairs", xlim=(0, 1), ylim=(0, 1), title=title)
    upper.legend(loc="upper left")
    lower.set(xlabel="probability", ylabel="pairs", yscale="log")
    save_plot(figure, path)


def plot_roc(curves: Mapping[str, Roc], path: Path, *, title: str = "") -> None:
    """Draw receiver operating characteristics.

    Args:
        curves: name of a curve -> its points.
        path: the file to write.
        title: above the picture.

    Raises:
        InputError: see `check_plot`.
        MissingExtraError: see `check_plot`.
    """
    check_plot(path)
    figure = require("matplotlib.figure", "train").Figure(figsize=(5.5, 5.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1, label="chance")
    for name, curve in curves.items():
        axes.plot(curve.false_positive_rate, curve.true_positive_rate, label=name)
    axes.set(
        xlabel="share of irrelevant pairs taken",
        ylabel="share of relevant pairs taken",
        xlim=(0, 1),
        ylim=(0, 1),
        title=title,
    )
    axes.legend(loc="lower right")
    save_plot(figure, path)


def save_plot(figure: Any, path: Path) -> None:
    """Write a figure: the same figure, the same bytes."""
    with require("matplotlib", "train").rc_context({"svg.hashsalt": _SALT}):
        metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower())
        figure.savefig(path, dpi=_RESOLUTION, metadata=metadata)
