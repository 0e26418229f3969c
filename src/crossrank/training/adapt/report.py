"""What an adaptation gained and lost, as a Markdown page with pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crossrank.errors import require
from crossrank.markdown import markdown_table
from crossrank.training.adapt.recipes import PARTS
from crossrank.training.plots import plot_metrics

__all__ = ["negatives_found", "verdict", "write_report"]

_NAMES = {"bi_encoder": "bi-encoder", "reranker": "reranker"}
_MEASURED = {
    "bi_encoder": "The bi-encoder with BM25",
    "bi_encoder_alone": "The bi-encoder alone",
    "reranker": "The reranker",
    "search": "The whole search",
}

_REFUSED = {
    "false_negative": (
        "that may answer the query, too (the old reranker gives them no less than the query's own document, "
        "and than half of all queries' own documents)"
    ),
    "near_duplicate_of_positive": "with nearly the text of the query's own document",
    "near_duplicate_of_negative": "with nearly the text of another negative",
    "empty": "without text",
}
"""Why a candidate was not taken, after their number."""


def write_report(
    folder: Path,
    whole: Mapping[str, Any],
    metrics: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    num_documents: int,
) -> None:
    """Write report.md, and its pictures into figures/.

    Args:
        folder: to write into.
        whole: what adaptation.json has.
        metrics: of each training, as its run has them.
        num_documents: of the corpus.
    """
    stages, settings = whole["stages"], whole["settings"]
    measure = settings["measure"]
    figures = folder / "figures"
    figures.mkdir()
    lines = ["# Adaptation to a corpus", "", *(f"- {line}" for line in verdict(whole)), ""]
    for measured in stages["measured"]:
        picture = f"figures/measured_{stages['measured'].index(measured) + 1}.png"
        _plot_systems(measured["systems"], folder / picture, measure)
        lines += _measured(measured, measure, settings["significance"], picture)
    lines += _queries(stages["queries"], num_documents)
    lines += _negatives(stages["negatives"])
    lines += ["## Training", ""]
    for part in PARTS:
        taught = f" It learned from the {stages['taught']['by']}." if part == "bi_encoder" else ""
        lines += [_training(part, stages[part], measure) + taught, ""]
        if any("loss" in line for line in metrics[part]):
            plot_metrics(metrics[part], figures / f"{part}.png", measure)
            lines += [f"![Loss and {measure} on the dev queries, by step](figures/{part}.png)", ""]
    lines += ["## int8 and calibration", "", *_forms(stages), ""]
    lines += ["## Time", "", *_time(whole), ""]
    lines += [
        "## Settings",
        "",
        *markdown_table(("setting", "value"), ((name, f"`{value}`") for name, value in settings.items())),
    ]
    (folder / "report.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def verdict(whole: Mapping[str, Any]) -> list[str]:
    """Return what came of it in sentences: of each model, of each measurement, of doing without reranker."""
    stages, settings = whole["stages"], whole["settings"]
    decisive = stages["measured"][0]
    measure = settings["measure"]
    found = []
    for part in PARTS:
        name, old = _NAMES[part], settings[part]
        status = stages[part]["status"]
        if whole["kept"][part]:
            text = f"**The new {name} is kept**: {_shown(decisive['comparisons'], part, measure)}."
        elif status == "stopped":
            text = f"**The old {name} ({old}) stays**: training was stopped: {stages[part]['why']}"
        elif status == "nothing better":
            text = f"**The old {name} ({old}) stays**: no measurement while training was above its own."
        else:
            text = (
                f"**The old {name} ({old}) stays**: the new one is not significantly better "
                f"({_shown(decisive['comparisons'], part, measure)})."
            )
        found.append(text)
    for measured in stages["measured"]:
        if "search" in measured["comparisons"]:
            search = measured["comparisons"]["search"]
            found.append(
                f"The search on {measured['name']}: {_change(search, measure, settings['significance'])}"
            )
        if without := _without_reranker(measured, measure, new_first_stage=whole["kept"]["bi_encoder"]):
            found.append(without)
    return found


def _without_reranker(measured: Mapping[str, Any], measure: str, *, new_first_stage: bool) -> str:
    """Return a warning where the first stage alone orders no worse than the search with its reranker."""
    systems = measured["systems"]
    alone = systems[f"BM25 + bi-encoder {'after' if new_first_stage else 'before'}"]
    search = systems.get("search with what is kept", systems["search before"])
    if alone < search:
        return ""
    return (
        f"**On {measured['name']} the first stage alone is no worse**: {measure} {alone:.4f} for BM25 and "
        f"the bi-encoder, {search:.4f} with the reranker. Search without it, or mix both (`--fuse`)."
    )


def _shown(comparisons: Mapping[str, Any], part: str, measure: str) -> str:
    """Return what decided about a model; a bi-encoder's own figures stand beside those of the first stage."""
    if part != "bi_encoder":
        return _difference(comparisons[part], measure)
    alone = _difference(comparisons["bi_encoder_alone"], measure)
    return f"with BM25 {_difference(comparisons[part], measure)}; alone {alone}"


def _time(whole: Mapping[str, Any]) -> list[str]:
    """Return what the stages took, and how that fits the budget."""
    seconds: Mapping[str, float] = whole["seconds"]
    total = sum(seconds.values()) / 60
    asked = whole["settings"]["budget_minutes"]
    rows = [(stage.replace("_", " "), f"{each:,.0f}") for stage, each in seconds.items()]
    line = f"{total:,.1f} minutes in all."
    if asked is not None:
        sizes = whole["stages"]["steps"]
        line = (
            f"{total:,.1f} minutes in all, of {asked:,.1f} that were given. When the trainings were sized, "
            f"{sizes['for_trainings_s'] / 60:,.1f} were left for them, with {sizes['for_later_s'] / 60:,.1f} "
            "reckoned for what follows."
        )
    return [line, "", *markdown_table(("stage", "seconds"), rows)]


def _change(comparison: Mapping[str, Any], measure: str, significance: float) -> str:
    return (
        f"{_difference(comparison, measure)}; {comparison['wins']} queries gain, {comparison['ties']} stay, "
        f"{comparison['losses']} lose.{_warning(comparison, significance)}"
    )


def _warning(comparison: Mapping[str, Any], significance: float) -> str:
    is_worse = comparison["difference"]["value"] < 0 and comparison["p_value"] < significance
    return " **It is significantly worse there.**" if is_worse else ""


def _difference(comparison: Mapping[str, Any], measure: str) -> str:
    difference = comparison["difference"]
    return (
        f"{measure} {comparison['other_mean']['value']:.4f} → {comparison['mean']['value']:.4f}, "
        f"{difference['value']:+.4f} [{difference['low']:+.4f}, {difference['high']:+.4f}], "
        f"p = {comparison['p_value']:.2g}"
    )


def _measured(measured: Mapping[str, Any], measure: str, significance: float, picture: str) -> list[str]:
    lines = [f"## {measured['name'][0].upper()}{measured['name'][1:]}", ""]
    queries = _counted(measured["queries"], "query", "queries")
    lines += [f"{queries} over {_counted(measured['documents'], 'document', 'documents')}.", ""]
    lines += markdown_table(
        ("system", measure), ((name, f"{value:.4f}") for name, value in measured["systems"].items())
    )
    lines += ["", f"![{measure} of the systems]({picture})", ""]
    for part, comparison in measured["comparisons"].items():
        lines += [f"### {_MEASURED[part]}, before and after", ""]
        lines += [
            _change(comparison, measure, significance),
            "",
        ]
        if comparison["sources"]:
            rows = (
                (source, f"{each['queries']:,}", f"{each['before']:.4f}", f"{each['after']:.4f}")
                for source, each in comparison["sources"].items()
            )
            lines += [*markdown_table(("source", "queries", "before", "after"), rows), ""]
        if comparison["lost_most"]:
            lost = (
                (each["query"], f"{each['before']:.3f}", f"{each['after']:.3f}")
                for each in comparison["lost_most"]
            )
            lines += ["Queries that lost most:", "", *markdown_table(("query", "before", "after"), lost), ""]
    return lines


def _queries(found: Mapping[str, Any], num_documents: int) -> list[str]:
    columns = ("drawn", "near_duplicates", "not_found", "kept")
    rows = [
        (source, *(f"{found[column].get(source, 0):,}" for column in columns)) for source in found["drawn"]
    ]
    rows.append(("all", *(f"{sum(found[column].values()):,}" for column in columns)))
    splits = ", ".join(f"{count:,} {split}" for split, count in found["splits"].items())
    lines = ["## Pseudo-queries", "", f"Of {num_documents:,} documents; {splits}, split by document.", ""]
    lines += [*markdown_table(("source", "drawn", "near-duplicates", "not found again", "kept"), rows), ""]
    examples = ((source, text) for source, texts in found["examples"].items() for text in texts)
    return [*lines, *markdown_table(("source", "for example"), examples, words=2), ""]


def negatives_found(found: Mapping[str, Any]) -> str:
    """Return in a line what mining found and what it refused.

    Args:
        found: the result of the stage.
    """
    negatives = sum(found["negatives"].values())
    line = f"{negatives:,} negatives for {_counted(found['rows'], 'query', 'queries')}"
    if found["short"]:
        line += f", fewer than asked for {_counted(found['short'], 'of them', 'of them')}"
    refused = ", ".join(f"{count:,} {_REFUSED.get(name, name)}" for name, count in found["refused"].items())
    return f"{line}; refused: {refused or 'none'}"


def _negatives(found: Mapping[str, Any]) -> list[str]:
    by_source = ", ".join(f"{count:,} {source}" for source, count in found["negatives"].items())
    line = negatives_found(found)
    return [
        "## Negatives",
        "",
        f"{line[0].upper()}{line[1:]}. By source: {by_source}. The old reranker gives half of the queries' "
        f"own documents {found['suspect_from']:.2f} or more.",
        "",
    ]


def _counted(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _training(part: str, found: Mapping[str, Any], measure: str) -> str:
    name = _NAMES[part].capitalize()
    if found["status"] == "stopped":
        return f"{name}: stopped. {found['why']}"
    best = f"the best at step {found['best_step']:,}" if found["best_step"] else "none was above the base"
    return (
        f"{name}: {_counted(found['steps'], 'step', 'steps')} in {found['precision']}, "
        f"{found['seconds']:,.0f} s with its measurements; {measure} on the dev queries "
        f"{found['dev_before']:.4f} → {found['dev_best']:.4f} "
        f"({best})."
    )


def _forms(stages: Mapping[str, Any]) -> list[str]:
    lines = []
    for part, found in stages["quantized"].items():
        if found["passed"]:
            size = f"{found['float32_bytes'] / 1e6:,.1f} MB → {found['int8_bytes'] / 1e6:,.1f} MB"
            lines.append(
                f"- {_NAMES[part].capitalize()}: int8 passed the parity gate, {size}; measured as it is."
            )
        else:
            why = found.get("why") or f"limits broken: {', '.join(found['exceeded'])}"
            lines.append(f"- {_NAMES[part].capitalize()}: stays float32; {why}.")
    calibrated = stages["calibrated"]
    if calibrated["done"]:
        eces = f"{calibrated['ece_before']:.4f} → {calibrated['ece_after']:.4f}"
        lines.append(
            f"- Probabilities by {calibrated['method']} over {calibrated['pairs']:,} pairs of dev queries: "
            f"expected calibration error {eces} (held out)."
        )
    else:
        lines.append(f"- No calibration: {calibrated['why']}.")
    return lines


def _plot_systems(systems: Mapping[str, float], path: Path, measure: str) -> None:
    require("matplotlib", "train")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.6 + 0.4 * len(systems)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    names = [*systems][::-1]
    colours = ["tab:blue" if "after" in name or "kept" in name else "0.7" for name in names]
    bars = axes.barh(names, [systems[name] for name in names], color=colours)
    axes.bar_label(bars, fmt="%.4f", padding=3)
    axes.set(xlabel=measure, xlim=(0, 1.15 * max(*systems.values(), 1e-9)))
    figure.savefig(path, dpi=120)
