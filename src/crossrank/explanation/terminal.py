"""An explanation for a terminal: the texts with their terms shaded, and the weights as numbers."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from crossrank.explanation.result import Explanation, Term
from crossrank.explanation.shading import Shading, pieces, top_links, top_terms, visible

__all__ = ["rendered"]

# Blue adds, orange takes off: told apart by the colour-blind, too. Black on them reads on any background.
_UP = ("", "black on #d6e6ff", "black on #a9cbff", "black on #79adff", "bold black on #4a90ff")
_DOWN = ("", "black on #ffe6cc", "black on #ffcc99", "black on #ffb066", "bold black on #ff9433")

_ROWS = 10
_WHOLE = 4000  # characters of a document that is shown from end to end


def rendered(explanation: Explanation) -> RenderableType:
    """Return what `rich` prints."""
    shading = Shading(explanation)
    parts: list[RenderableType] = [_headline(explanation), Text()]
    parts += [
        Text("query", style="bold"),
        _shaded(explanation.query, explanation.query_terms, shading),
        Text(),
    ]
    parts += [Text("document", style="bold"), *_document(explanation, shading), Text()]
    if explanation.query_terms or explanation.document_terms:
        parts.append(_weights(explanation, shading))
    if explanation.links:
        parts += [Text(), _links(explanation)]
    parts += [Text(f"note: {visible(note)}", style="yellow") for note in explanation.notes]
    return Group(*parts)


def _headline(explanation: Explanation) -> Text:
    text = Text.assemble((visible(explanation.model), "bold"), f" gives {explanation.score:.4g}")
    if explanation.baseline is not None:
        text.append(f" ({explanation.baseline:.4g} without any words)")
    text.append(f", by {explanation.method}: ")
    text.append(" adds ", style=_UP[2])
    text.append(" takes off ", style=_DOWN[2])
    return text


def _document(explanation: Explanation, shading: Shading) -> list[Text]:
    """The whole document, or of a long one the passages whose words were looked at."""
    if len(explanation.document) <= _WHOLE:
        return [_shaded(explanation.document, explanation.document_terms, shading)]
    shown: list[Text] = []
    terms = explanation.document_terms
    # A passage may hold narrower ones: the narrowest that holds a term shows it.
    places = explanation.passages or top_terms(terms, _ROWS)
    narrowest = {
        (term.start, term.end): min(
            (place for place in places if place.start <= term.start and term.end <= place.end),
            key=lambda place: place.end - place.start,
            default=term,
        )
        for term in terms
    }
    for start, end in sorted({(place.start, place.end) for place in narrowest.values()}):
        inside = tuple(
            Term(term.text, term.start - start, term.end - start, term.weight)
            for term in terms
            if start <= term.start and term.end <= end
        )
        shown.append(Text("… ") + _shaded(explanation.document[start:end], inside, shading))
    return shown


def _shaded(text: str, terms: tuple[Term, ...], shading: Shading) -> Text:
    made = Text(overflow="fold")
    for piece in pieces(text, terms):
        level = 0 if piece.term is None else shading.level(piece.term.weight)
        made.append(piece.text, style=(_UP if level >= 0 else _DOWN)[abs(level)])
    return made


def _weights(explanation: Explanation, shading: Shading) -> Table:
    table = _table("query term", "weight", "document term", "weight", "at")
    query = top_terms(explanation.query_terms, _ROWS)
    document = top_terms(explanation.document_terms, _ROWS)
    for row in range(max(len(query), len(document))):
        table.add_row(
            *(_cells(query[row], shading) if row < len(query) else ("", "")),
            *(_cells(document[row], shading) if row < len(document) else ("", "")),
            str(document[row].start) if row < len(document) else "",
        )
    return table


def _cells(term: Term, shading: Shading) -> tuple[Text, str]:
    level = shading.level(term.weight)
    return Text(visible(term.text), style=(_UP if level >= 0 else _DOWN)[abs(level)]), f"{term.weight:+.3f}"


def _links(explanation: Explanation) -> Table:
    table = _table("query term", "met", "weight", "at")
    for link in top_links(explanation, _ROWS):
        term = explanation.document_terms[link.document_term]
        table.add_row(
            Text(visible(explanation.query_terms[link.query_term].text)),
            Text(visible(term.text)),
            f"{link.weight:+.3f}",
            str(term.start),
        )
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in columns:
        is_number = name in ("weight", "at")
        table.add_column(name, justify="right" if is_number else "left", overflow="fold", no_wrap=is_number)
    return table
