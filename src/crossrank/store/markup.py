"""Plain text and titles from HTML and Markdown, with the standard library alone."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import NamedTuple

__all__ = ["Page", "read_html", "read_markdown"]

_HIDDEN = frozenset({"script", "style", "noscript", "template", "svg"})
# Elements that end a line of text; all others (a, b, span, ...) run on.
_BLOCK = re.compile(
    "address|article|aside|blockquote|body|br|caption|dd|details|div|dl|dt|fieldset|figcaption|figure|footer|"
    "form|h[1-6]|head|header|hr|html|li|main|nav|ol|option|p|pre|section|summary|table|tbody|td|tfoot|th|"
    "thead|title|tr|ul"
)
# Elements that an HTML parser takes for the end of an <svg> that was never closed.
_ENDS_SVG = re.compile(
    "b|big|blockquote|body|br|center|code|dd|div|dl|dt|em|embed|h[1-6]|head|hr|i|img|li|listing|menu|meta|"
    "nobr|ol|p|pre|ruby|s|small|span|strike|strong|sub|sup|table|tt|u|ul|var"
)
_HEADING = re.compile(r" {0,3}#{1,6}[ \t]+(?P<title>.+?)(?:[ \t]+#+)?[ \t]*$")
_FENCE = re.compile(r" {0,3}(```|~~~)")


class Page(NamedTuple):
    """A title, empty when there is none, and the text without it."""

    title: str
    text: str


def read_html(source: str) -> Page:
    """Return the <title> of an HTML page and its visible text, one line per block element."""
    parser = _TextParser()
    parser.feed(source)
    parser.close()
    return Page(" ".join("".join(parser.title).split()), _lines("".join(parser.text)))


def read_markdown(source: str) -> Page:
    """Return the first heading of a Markdown page as its title, and the rest as it is written."""
    lines = source.splitlines()
    fenced = False
    for number, line in enumerate(lines):
        if _FENCE.match(line):
            fenced = not fenced
        heading = None if fenced else _HEADING.match(line)
        if heading:
            return Page(heading["title"], "\n".join([*lines[:number], *lines[number + 1 :]]).strip())
    return Page("", source.strip())


class _TextParser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.title: list[str] = []
        self.text: list[str] = []
        self._hidden: list[str] = []  # open elements whose text is not shown
        self._in_title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._hidden and self._hidden[-1] == "svg" and _ENDS_SVG.fullmatch(tag):
            self._hidden.pop()
        if tag in _HIDDEN:
            self._hidden.append(tag)
        if tag == "title" and not self.title and not self._hidden:
            self._in_title = True
        if _BLOCK.fullmatch(tag):
            self.text.append("\n")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if _BLOCK.fullmatch(tag):  # a self-closed <script/> or <svg/> hides nothing
            self.text.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._hidden:
            while self._hidden.pop() != tag:
                pass
        if tag == "title":
            self._in_title = False
        if _BLOCK.fullmatch(tag):
            self.text.append("\n")

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title.append(data)
        elif not self._hidden:
            self.text.append(data)


def _lines(text: str) -> str:
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return "\n".join(line for line in lines if line)
