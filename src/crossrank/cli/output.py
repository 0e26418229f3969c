"""What commands print: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from crossrank.abstention import NOTHING_ANSWERS
from crossrank.cli.wording import error_text
from crossrank.types import Hit, Ranking

__all__ = [
    "console",
    "emit_json",
    "emit_text",
    "is_interactive",
    "messages",
    "nothing_found",
    "print_notes",
    "print_ranking",
    "ranking_row",
    "ranking_table",
    "resumable",
    "show_error",
    "table",
]


class _Console(Console):
    """A console whose closed pipe is the command line's business, as any other one is."""

    def on_broken_pipe(self) -> None:
        raise  # noqa: PLE0704  (rich calls this while it handles the BrokenPipeError)


def console() -> Console:
    """Give a console on standard output, as wide as the terminal.

    For a file or a pipe that is what COLUMNS says, or 120, so that rows stay whole.
    """
    columns = os.environ.get("COLUMNS", "")
    width = int(columns) if columns.isdecimal() and int(columns) > 0 else 120
    return _Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else width)


def messages() -> Console:
    """Give a console on standard error, for progress, reports and errors."""
    width = max(shutil.get_terminal_size().columns, 80)
    return Console(file=sys.stderr, highlight=False, soft_wrap=True, width=width)


def show_error(error: Exception) -> None:
    """Say on standard error what went wrong."""
    out = messages()
    out.print(f"error: {error_text(error, out.width)}", markup=False, style="red")


@contextmanager
def resumable(*, replace: bool, place: str = "here") -> Iterator[None]:
    """Say on an interruption that the same command goes on.

    Args:
        replace: whether the command was told to start anew, which would forget what is done.
        place: from where it goes on.
    """
    try:
        yield
    except KeyboardInterrupt:
        again = " without --replace" if replace else ""
        messages().print(f"interrupted; the same command{again} goes on from {place}")
        raise


def is_interactive() -> bool:
    """Say whether a person types and reads: both standard input and output are a terminal."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def emit_json(value: Any, *, indent: int | None = None) -> None:
    """Write one JSON document and a line end to standard output.

    Dataclasses become objects, numpy scalars and arrays become numbers and lists.
    """
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=indent, default=_plain) + "\n")


def emit_text(text: str) -> None:
    """Write text and a line end to standard output as it is, without wrapping or markup."""
    sys.stdout.write(text + "\n")


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return value.tolist()
    if hasattr(value, "isoformat"):  # dates and times in metadata
        return value.isoformat()
    return str(value)


def ranking_row(ranking: Ranking) -> dict[str, Any]:
    """Turn a ranking into what `--json` prints for one query."""
    row: dict[str, Any] = {} if ranking.query_id is None else {"query_id": ranking.query_id}
    row |= {"query": ranking.query, "status": ranking.status, "notes": list(ranking.notes)}
    if ranking.timings_ms:
        row["timings_ms"] = dict(ranking.timings_ms)
    row["hits"] = [_hit_row(hit) for hit in ranking.hits]
    return row


def _hit_row(hit: Hit) -> dict[str, Any]:
    row: dict[str, Any] = {
        "rank": hit.rank,
        "document_id": hit.document_id,
        "score": hit.score,
        "stage": hit.stage,
    }
    if hit.index is not None:
        row["index"] = hit.index
    for name in ("probability", "first_stage_rank", "first_stage_score", "span"):
        if getattr(hit, name) is not None:
            row[name] = getattr(hit, name)
    if hit.stage_scores:
        row["stage_scores"] = dict(hit.stage_scores)
    if hit.truncated_tokens:
        row["truncated_tokens"] = hit.truncated_tokens
    if hit.document is not None:
        row["title"] = hit.document.title
        row["text"] = hit.document.text
        row["metadata"] = dict(hit.document.metadata)
    return row


def nothing_found(ranking: Ranking, otherwise: str = "nothing found") -> str:
    """Return what stands in place of an empty ranking's table.

    Args:
        ranking: without hits.
        otherwise: what is said where hits were not left out as improbable.
    """
    improbable = any(note.startswith(NOTHING_ANSWERS) for note in ranking.notes)
    return NOTHING_ANSWERS if improbable else otherwise


def print_ranking(ranking: Ranking, *, as_json: bool, otherwise: str = "nothing found") -> None:
    """Print a ranking, and on standard error what it notes.

    Args:
        ranking: what to print.
        as_json: as one line, notes and all.
        otherwise: see `nothing_found`.
    """
    if as_json:
        emit_json(ranking_row(ranking))
        return
    console().print(ranking_table(ranking) if ranking.hits else nothing_found(ranking, otherwise))
    for note in ranking.notes:
        messages().print(note, markup=False, style="yellow")


def print_notes(rankings: Iterable[Ranking]) -> None:
    """Say on standard error how many of many rankings have notes, and what the first one says."""
    noted = [ranking for ranking in rankings if ranking.notes]
    if noted:
        name = noted[0].query_id or noted[0].query
        messages().print(
            f"rankings with notes: {len(noted)}; the first, of query {name}: {noted[0].notes[0]}",
            markup=False,
            style="yellow",
        )


def table(*columns: str, numeric: Sequence[str] = ()) -> Table:
    """Give an empty table in the one style all commands use.

    Args:
        columns: headings.
        numeric: headings of the columns to set flush right.
    """
    built = Table(box=None, header_style="bold", pad_edge=False)
    for name in columns:
        is_number = name in numeric
        # What does not fit goes on in the next line: an id with its end cut off cannot be copied.
        built.add_column(name, justify="right" if is_number else "left", no_wrap=is_number, overflow="fold")
    return built


def ranking_table(ranking: Ranking, *, max_chars: int = 160) -> Table:
    """Lay a ranking out for a person: where each hit stands, where it stood before, and its text.

    Scores of several stages are of several scales, so where there are several, each row names its own.

    Args:
        ranking: the ranking.
        max_chars: how much of each text to show.
    """
    columns: dict[str, Callable[[Hit], str]] = {"rank": lambda hit: str(hit.rank)}
    if any(hit.first_stage_rank is not None for hit in ranking):
        columns["first"] = lambda hit: str(hit.first_stage_rank or "-")
    columns["score"] = lambda hit: f"{hit.score:#.4g}"
    if any(hit.probability is not None for hit in ranking):
        columns["prob."] = lambda hit: "-" if hit.probability is None else f"{hit.probability:.3f}"
    if len({hit.stage for hit in ranking}) > 1:
        columns["stage"] = lambda hit: hit.stage
    columns["id"] = lambda hit: hit.document_id
    columns["text"] = lambda hit: _shown(hit, max_chars)
    built = table(*columns, numeric=("rank", "first", "score", "prob."))
    for hit in ranking:
        # Text, not str: a document may hold what rich would take for markup.
        built.add_row(*(Text(cell(hit)) for cell in columns.values()))
    return built


def _shown(hit: Hit, max_chars: int) -> str:
    if hit.document is None:
        return ""
    document = hit.document
    text = f"{document.title}: {document.text}" if document.title else document.text
    line = " ".join(text.split())
    return line if len(line) <= max_chars else line[: max_chars - 1].rstrip() + "…"
