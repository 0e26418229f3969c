"""An explanation as a page of HTML: complete in itself, no script, every text escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from crossrank.explanation.result import Explanation, Term
from crossrank.explanation.shading import LEVELS, Shading, pieces, top_links, top_terms, visible

__all__ = ["page"]

_ROWS = 25
_CHARACTERS = 160  # of a passage in the table

# Blue adds, orange takes off: told apart by the colour-blind, too; what takes off is also underlined.
_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --text: #1c1e21; --quiet: #5c6370; --line: #d8dce2;
  --up: 37, 99, 235; --down: 217, 119, 6; --base: 0.1; --step: 0.1; }
@media (prefers-color-scheme: dark) {
  :root { --page: #15171b; --text: #e8eaed; --quiet: #a0a7b4; --line: #343942;
    --up: 76, 141, 255; --down: 224, 130, 28; --base: 0.14; --step: 0.11; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem 1rem 3rem; background: var(--page);
  color: var(--text); font: 16px/1.6 system-ui, sans-serif; }
h1 { font-size: 1.25rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1rem; margin: 1.75rem 0 .5rem; }
.quiet, caption { color: var(--quiet); font-size: .875rem; }
.text { margin: 0; padding: .75rem 1rem; border: 1px solid var(--line); border-radius: .5rem;
  white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }
mark { color: inherit; background: none; border-radius: .2rem; padding: .05rem 0; }
.tables { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 1rem 2rem; }
table { border-collapse: collapse; }
caption { text-align: left; padding-bottom: .25rem; white-space: nowrap; }
.quiet mark { color: var(--text); }
th, td { text-align: left; padding: .15rem 1rem .15rem 0; vertical-align: top;
  overflow-wrap: anywhere; unicode-bidi: isolate; }
th { font-weight: 600; border-bottom: 1px solid var(--line); }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
"""


def page(explanation: Explanation) -> str:
    """Return the page."""
    shading = Shading(explanation)
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        # nothing may be fetched or run, whatever a text manages to be
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">",
        f"<title>{_shown(explanation.query[:80])} – {_shown(explanation.model)}</title>",
        f"<style>{_STYLE}{_shades()}</style>\n</head>\n<body>",
        f"<h1>{_shown(explanation.query)}</h1>",
        f'<p class="quiet">{_headline(explanation)}</p>',
        *(f'<p class="quiet">Note: {_shown(note)}.</p>' for note in explanation.notes),
        "<h2>Query</h2>",
        _text(explanation.query, explanation.query_terms, shading),
        "<h2>Document</h2>",
        _text(explanation.document, explanation.document_terms, shading),
        '<h2>Weights</h2>\n<div class="tables">',
        _terms("Query terms", explanation.query_terms, shading),
        _terms("Document terms", explanation.document_terms, shading),
        _links(explanation),
        "</div>",
        _passages(explanation, shading),
        "</body>\n</html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _headline(explanation: Explanation) -> str:
    baseline = ""
    if explanation.baseline is not None:
        baseline = f" ({explanation.baseline:.4g} without any words)"
    return (
        f"{_shown(explanation.model)} gives this pair {explanation.score:.4g}{baseline}; weights by "
        f"{_shown(explanation.method)}. A term "
        '<mark class="up3">adds</mark> to the score or <mark class="down3">takes off</mark>; its weight '
        "shows when the pointer rests on it."
    )


def _shades() -> str:
    rows = []
    for level in range(1, LEVELS + 1):
        strength = f"calc(var(--base) + {level} * var(--step))"
        rows += [
            f".up{level} {{ background: rgba(var(--up), {strength}); }}",
            f".down{level} {{ background: rgba(var(--down), {strength});",
            "  text-decoration: underline dotted; }",
        ]
    return "\n".join(rows) + "\n"


def _shown(text: str) -> str:
    return escape(visible(text), quote=True)


def _class(level: int) -> str:
    return f' class="{"up" if level > 0 else "down"}{abs(level)}"' if level else ""


def _text(text: str, terms: tuple[Term, ...], shading: Shading) -> str:
    shown = []
    for piece in pieces(text, terms):
        escaped = escape(piece.text, quote=True)
        if piece.term is None:
            shown.append(escaped)
        else:
            weight = piece.term.weight
            shown.append(f'<mark{_class(shading.level(weight))} title="{weight:+.3f}">{escaped}</mark>')
    return f'<p class="text">{"".join(shown)}</p>'


def _table(caption: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A table of cells that are HTML; columns "weight" and "at" hold numbers."""
    if not rows:
        return ""
    number = tuple(' class="number"' if name in ("weight", "at") else "" for name in columns)
    head = "".join(f"<th{style}>{name}</th>" for style, name in zip(number, columns, strict=True))
    body = "\n".join(
        "<tr>" + "".join(f"<td{style}>{cell}</td>" for style, cell in zip(number, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f"<table>\n<caption>{caption}</caption>\n<tr>{head}</tr>\n{body}\n</table>"


def _terms(caption: str, terms: tuple[Term, ...], shading: Shading) -> str:
    top = top_terms(terms, _ROWS)
    left = sum(bool(term.weight) for term in terms) - len(top)
    return _table(
        caption + (f" (the first {_ROWS}, {left} more)" if left else ""),
        ("term", "weight", "at"),
        [
            (
                f"<mark{_class(shading.level(term.weight))}>{_shown(term.text)}</mark>",
                f"{term.weight:+.3f}",
                str(term.start),
            )
            for term in top
        ],
    )


def _links(explanation: Explanation) -> str:
    return _table(
        "Terms that met",
        ("query term", "document term", "weight", "at"),
        [
            (
                _shown(explanation.query_terms[link.query_term].text),
                _shown(explanation.document_terms[link.document_term].text),
                f"{link.weight:+.3f}",
                str(explanation.document_terms[link.document_term].start),
            )
            for link in top_links(explanation, _ROWS)
        ],
    )


def _passages(explanation: Explanation, shading: Shading) -> str:
    if not explanation.passages:
        return ""
    rows = []
    for passage in explanation.passages:
        text = " ".join(passage.text.split())
        cut = text if len(text) <= _CHARACTERS else text[: _CHARACTERS - 1] + "…"
        rows.append(
            (
                f"<mark{_class(shading.passage_level(passage.weight))}>{_shown(cut)}</mark>",
                f"{passage.weight:+.3f}",
                str(passage.start),
            )
        )
    return "<h2>Passages</h2>\n" + _table("What each did as a whole", ("passage", "weight", "at"), rows)
