"""The model card of a trained model, and its recipe as a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossrank.errors import require
from crossrank.markdown import markdown_table
from crossrank.models.hub import BUILT_IN
from crossrank.training.examples import TrainingData
from crossrank.training.held_out import HeldOutSet
from crossrank.training.preparation import Prepared
from crossrank.training.recipes import Recipe
from crossrank.training.students import student_of

if TYPE_CHECKING:
    from crossrank.training.train import TrainingReport

__all__ = ["write_card"]


def write_card(
    folder: Path,
    recipe: Recipe,
    data: TrainingData,
    prepared: Prepared,
    *,
    report: TrainingReport,
    held_out: HeldOutSet | None,
) -> None:
    """Write README.md and recipe.yaml.

    Args:
        folder: of the model.
        recipe: it was trained by.
        data: it was trained on.
        prepared: the rows of it.
        report: of the run.
        held_out: what it was measured on.
    """
    yaml: Any = require("yaml", "train")
    text = yaml.safe_dump(recipe.as_dict(), sort_keys=False, allow_unicode=True)
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    lines = [
        "---",
        *_front_matter(recipe),
        "---",
        "",
        f"# {Path(recipe.output).name}",
        "",
        f"A {recipe.student.kind.replace('_', '-')} trained from `{recipe.student.base}` with crossrank.",
        "",
        "## Figures",
        "",
        *_figures(report, held_out),
        "",
        "![Loss and held-out measure by step](metrics.png)",
        "",
        "## Data",
        "",
        *markdown_table(
            ("file", "SHA-256", "queries"),
            ((name, f"`{data.digests[name][:16]}…`", f"{count:,}") for name, count in data.counts.items()),
            words=2,
        ),
        "",
        f"Queries: {prepared.num_lists:,}; left out, since they are held out: {prepared.left_out:,}; "
        f"that give no row, for lack of positives or negatives: {prepared.unused:,}. Pairs of query and "
        f"document: {prepared.num_pairs:,}. Tokens an epoch: {prepared.num_tokens:,}. Cut: "
        f"{prepared.cut_documents:,} of the documents, {prepared.cut_queries:,} of the queries. Positives "
        f"that were not read whole: {prepared.cut_positives:,} of {prepared.num_positives:,}.",
        "",
        "## Recipe",
        "",
        f"Steps: {report.num_steps:,}, in {report.precision}. As a file: [recipe.yaml](recipe.yaml).",
        "",
        "```yaml",
        text.rstrip(),
        "```",
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def _front_matter(recipe: Recipe) -> list[str]:
    is_encoder = recipe.student.kind == "bi_encoder"
    base = recipe.student.base
    is_on_hub = base not in BUILT_IN and not Path(base).exists()
    return [
        *([f"base_model: {base}"] if is_on_hub else []),
        f"pipeline_tag: {'sentence-similarity' if is_encoder else 'text-ranking'}",
        f"library_name: {student_of(recipe.student).hub_library}",
        "tags: [crossrank]",
    ]


def _figures(report: TrainingReport, held_out: HeldOutSet | None) -> list[str]:
    if held_out is None or report.baseline is None or report.best is None:
        return ["Not measured: the recipe has no held-out set."]
    where = f"{held_out.name}, {len(held_out.queries):,} queries, {held_out.num_pairs:,} pairs"
    found = report.comparison
    if found is None:
        rows = [("base", f"{report.baseline:.4f}"), ("this model", f"{report.best:.4f}")]
    else:
        rows = [
            ("base", _interval(found.other_mean)),
            ("this model", _interval(found.mean)),
            ("difference", f"{_interval(found.difference, sign='+')} (p = {found.p_value:.2g})"),
        ]
    lines = [f"On {where}:", "", *markdown_table(("", report.measure), rows)]
    if found is not None:
        lines += [
            "",
            "Intervals are 95 % bootstrap intervals over the queries; p is of a paired randomisation test. "
            "The step was chosen by this measure, so a collection of its own says more.",
        ]
    if report.exits:
        lines += [
            "",
            "It has heads at earlier layers, too; the same measure of these:",
            "",
            *markdown_table(
                ("after layer", report.measure),
                ((str(layer), f"{value:.4f}") for layer, value in report.exits.items()),
                words=0,
            ),
        ]
    if report.best_step == 0:
        lines += ["", "No measurement was better than the base: these are the base's weights."]
    else:
        lines += ["", f"The weights are those of step {report.best_step:,}, the best that was measured."]
    return lines


def _interval(value: Any, sign: str = "") -> str:
    return f"{value.value:{sign}.4f} [{value.low:{sign}.4f}, {value.high:{sign}.4f}]"
