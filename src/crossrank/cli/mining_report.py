"""How a mining run is shown to a person."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby, islice
from typing import TYPE_CHECKING

from rich.text import Text

from crossrank.cli.output import console, messages, table

if TYPE_CHECKING:
    from rich.table import Table

    from crossrank.training.corpus import Corpus
    from crossrank.training.report import MiningReport

__all__ = ["print_report"]

SHOWN_SUSPECTS = 3
"""How many suspected false negatives of each reason are shown; `--json` has more."""


def print_report(report: MiningReport, queries: Mapping[str, str], corpus: Corpus) -> None:
    """Show a person what a mining run did: counts, and the worst suspects with their texts.

    Args:
        report: of the run.
        queries: query id -> text.
        corpus: has the texts of positives and suspects.
    """
    shown = table("", "count", numeric=["count"])
    shown.add_row("queries", f"{report.num_queries:,}", style="bold")
    _add(
        shown,
        {
            "with too few negatives": len(report.short),
            "with none": len(report.without_negatives),
            "without a positive left": len(report.without_positives),
        },
    )
    shown.add_row("positives", f"{report.num_positives:,}", style="bold")
    _add(shown, {f"lost: {_words(reason)}": count for reason, count in report.positives_lost.items()})
    shown.add_row("negatives", f"{report.num_negatives:,}", style="bold")
    _add(shown, {f"from {name}": count for name, count in report.negatives.items()}, zeros=True)
    shown.add_row("refused candidates", f"{sum(report.refused.values()):,}", style="bold")
    _add(shown, {_words(reason): count for reason, count in report.refused.items()})
    shown.add_row("suspected false negatives", f"{sum(report.suspected.values()):,}", style="bold")
    _add(shown, {_words(reason): count for reason, count in report.suspected.items()})
    console().print(shown)
    if report.examples:
        _print_examples(report, queries, corpus)
    rows = f"{report.num_rows:,} {report.form if report.num_rows != 1 else report.form.removesuffix('s')}"
    messages().print(f"{rows} in {report.path}", markup=False)


def _add(shown: Table, counts: Mapping[str, int], *, zeros: bool = False) -> None:
    for name, count in counts.items():
        if count or zeros:
            shown.add_row(Text(f"  {name}"), f"{count:,}")


def _print_examples(report: MiningReport, queries: Mapping[str, str], corpus: Corpus) -> None:
    examples = [
        each
        for _, of_reason in groupby(report.examples, key=lambda each: each.reason)
        for each in islice(of_reason, SHOWN_SUSPECTS)
    ]
    ids = sorted({name for each in examples for name in (each.positive_id, each.document_id)})
    found = zip(ids, corpus.get(ids), strict=True)
    texts = {name: "" if document is None else document.full_text for name, document in found}
    shown = table("query", "positive", "suspect", "score", "positive's", numeric=["score", "positive's"])
    for each in examples:
        cells = (
            _excerpt(queries[each.query_id]),
            f"{each.positive_id}: {_excerpt(texts[each.positive_id])}",
            f"{each.document_id} ({_words(each.reason)}): {_excerpt(texts[each.document_id])}",
            *(f"{score:#.4g}" for score in (each.score, each.positive_score)),
        )
        shown.add_row(*map(Text, cells))
    console().print("")
    console().print(shown)


def _words(reason: str) -> str:
    return reason.replace("_", " ")


def _excerpt(text: str, max_chars: int = 120) -> str:
    line = " ".join(text.split())
    return line if len(line) <= max_chars else line[: max_chars - 1].rstrip() + "…"
