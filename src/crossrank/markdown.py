"""Tables of reports, model cards and pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["markdown_table"]


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1) -> list[str]:
    """Return the lines of a Markdown table.

    Args:
        columns: their heads.
        rows: a cell a column; a "|" in a cell is escaped.
        words: the first so many columns hold words, the others numbers, to the right.
    """
    rule = ["---" if number < words else "---:" for number in range(len(columns))]
    return [_line(columns), _line(rule), *map(_line, rows)]


def _line(cells: Sequence[str]) -> str:
    escaped = (cell.replace("|", r"\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"
