"""An explanation as data, in the terminal and as a page: complete, and safe whatever the texts hold."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from crossrank.explanation.result import Explanation, Link, Term
from crossrank.explanation.shading import LEVELS, Shading, visible
from crossrank.retrieval.text import word_spans

HOSTILE = [
    "<script>alert(1)</script> fox",
    '"><img src=x onerror=alert(1)> fox',
    "</p></body></html><script src='http://evil.example/x.js'></script>",
    "<!-- fox --> <style>*{display:none}</style> &lt;b&gt; &amp;",
    "\x1b[31mred\x1b[0m \x00 \x9b31m fox \x07",
    "\u202efox\u202c \u2066fox\u2069",
    "[red]markup[/red] [bold] [/] \\[x] {query} %s",
    "👩‍👩‍👧 水 fo\u0301x",
]


def made(query="red fox", document="the fox", **options):
    terms = {
        name: tuple(
            Term(text[start:end], start, end, (-1) ** place * (place + 1) / 10)
            for place, (start, end) in enumerate(word_spans(text))
        )
        for name, text in (("query_terms", query), ("document_terms", document))
    }
    links = (Link(0, 0, -0.5),) if terms["query_terms"] and terms["document_terms"] else ()
    return Explanation(query, document, "model", "occlusion", 1.25, links=links, **terms, **options)


class Page(HTMLParser):
    """The elements of a page, their attributes, and the texts of its boxes."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self.attributes, self.boxes = [], [], []
        self._inside = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.attributes += [(tag, *each) for each in attrs]
        if ("class", "text") in attrs:
            self._inside = True
            self.boxes.append("")

    def handle_endtag(self, tag):
        if tag == "p":
            self._inside = False

    def handle_data(self, data):
        if self._inside:
            self.boxes[-1] += data


OWN = {
    *("html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "mark"),
    *("div", "table", "caption", "tr", "th", "td"),
}


def terminal(explanation, **options):
    out = Console(file=io.StringIO(), width=100, force_terminal=True, color_system="truecolor", **options)
    out.print(explanation)
    return out.file.getvalue()


@pytest.mark.parametrize("text", HOSTILE)
def test_the_page_shows_hostile_texts_as_they_are(text):
    explanation = made(query=text, document=text, notes=(text,), passages=(Term(text, 0, len(text), 1.0),))
    page = Page(explanation.to_html())
    assert set(page.elements) <= OWN
    assert page.boxes == [visible(text)] * 2
    assert {name for _, name, _ in page.attributes} <= {
        *("lang", "charset", "name", "content", "http-equiv", "class", "title"),
    }
    assert not any("evil" in (value or "") for _, _, value in page.attributes)


@given(st.text(max_size=60))
def test_no_text_breaks_out_of_the_page(text):
    page = Page(made(query=f"fox {text}", document=text).to_html())
    assert set(page.elements) <= OWN
    assert page.boxes == [visible(f"fox {text}"), visible(text)]


def test_the_page_needs_nothing_else_and_runs_nothing():
    html = made().to_html()
    assert not re.search(r"https?://|<script|<link|<img|url\(|@import|javascript:", html, re.IGNORECASE)
    assert "default-src 'none'" in html
    assert "prefers-color-scheme: dark" in html
    assert html.startswith("<!doctype html>")


def test_the_page_has_the_weights():
    explanation = made(document="the fox", passages=(Term("the fox", 0, 7, 0.75),), baseline=-0.5)
    html = explanation.to_html()
    for shown in ('title="-0.200">fox', ">+0.100<", ">-0.500<", ">+0.750<", "1.25", "-0.5 without any words"):
        assert shown in html


@pytest.mark.parametrize("text", HOSTILE)
def test_the_terminal_gets_no_control_characters_of_the_texts(text):
    shown = terminal(made(query=text, document=text, notes=(text,)))
    left = re.sub(r"\x1b\[[\d;]*m", "", shown)  # rich's own colours
    assert not set(left) & {
        chr(code) for code in [*range(0x20), 0x7F, *range(0x80, 0xA0)] if chr(code) != "\n"
    }
    assert not set(left) & set("\u202e\u2066\u200f")
    plain = io.StringIO()
    Console(file=plain, width=200).print(made(query=text, document=text))
    assert "".join(visible(text).split()) in "".join(plain.getvalue().split())


def test_the_terminal_shades_by_weight():
    shown = terminal(made(document="the fox"))
    assert "\x1b[1;30;48;2;255;148;51mfox" in shown, "the strongest that takes off"
    assert re.search(r"\x1b\[30;48;2;[\d;]+mthe", shown)
    assert "-0.200" in shown


def test_the_terminal_shows_a_long_document_where_its_words_were_looked_at():
    document = "word " * 2000 + "fox. " + "word " * 2000
    place = document.index("fox")
    explanation = Explanation(
        *("red fox", document, "model", "occlusion", 1.0),
        query_terms=(Term("red", 0, 3, 0.0), Term("fox", 4, 7, 1.0)),
        document_terms=(Term("fox", place, place + 3, 1.0),),
        passages=(Term(document, 0, len(document), 1.0), Term("fox.", place, place + 4, 1.0)),
    )
    out = io.StringIO()
    Console(file=out, width=100).print(explanation)
    assert "… fox." in out.getvalue()
    assert len(out.getvalue()) < 2000


def test_levels_go_by_the_strongest_weight():
    shading = Shading(made(document="a b c d e f g h i j"))
    assert shading.level(1.0) == LEVELS
    assert shading.level(-1.0) == -LEVELS
    assert shading.level(0.3) == 2
    assert shading.level(0.01) == shading.level(0.0) == 0
    assert Shading(made(query="?", document="")).level(0.0) == 0


@given(st.text(max_size=40))
def test_what_is_made_visible_keeps_its_length(text):
    assert len(visible(text)) == len(text)
    assert visible(visible(text)) == visible(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_as_data_it_goes_through_json(text):
    explanation = made(document=text, notes=("a note",))
    row = explanation.to_dict()
    assert json.loads(json.dumps(row)) == row
    assert row["document"] == text
    assert row["document_terms"] == [
        {"text": term.text, "start": term.start, "end": term.end, "weight": term.weight}
        for term in explanation.document_terms
    ]
    assert row["links"] == [{"query_term": 0, "document_term": 0, "weight": -0.5}] * len(explanation.links)
