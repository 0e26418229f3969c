"""Markdown tables."""

from __future__ import annotations

from crossrank.markdown import markdown_table


def test_a_cell_may_have_bars_and_numbers_stand_to_the_right() -> None:
    assert markdown_table(["query", "source", "nDCG@10"], [["a|b", "title", "0.5"]], words=2) == [
        "| query | source | nDCG@10 |",
        "| --- | --- | ---: |",
        r"| a\|b | title | 0.5 |",
    ]
