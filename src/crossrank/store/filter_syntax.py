"""The string form of filters: a small language with a recursive-descent parser.

    condition  = conjunction { "or" conjunction }
    conjunction = factor { "and" factor }
    factor     = "not" factor | "(" condition ")" | test
    test       = field comparison value
               | field [ "not" ] "in" "(" value { "," value } ")"
               | field "is" [ "not" ] "null"
    comparison = "=" | "==" | "!=" | "<>" | "<" | "<=" | ">" | ">="
    value      = "'" text "'" | '"' text '"' | number | "true" | "false"
    field      = letter or "_", then letters, digits, "_"

Words of the language may be written in any case. A quote inside a text is written twice.
"""

from __future__ import annotations

import re
from typing import NamedTuple, NoReturn

from crossrank.errors import InputError
from crossrank.store.filters import MAX_DEPTH, And, Comparison, Filter, In, Missing, Not, Or, Scalar

__all__ = ["parse"]

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
      | (?P<word>[^\W\d]\w*)
      | (?P<text>'(?:[^']|'')*'|"(?:[^"]|"")*")
      | (?P<symbol><=|>=|<>|!=|==|[=<>(),])
      | (?P<end>$)
    )""",
    re.VERBOSE,
)
_KEYWORDS = frozenset({"and", "or", "not", "in", "is", "null", "true", "false"})
_COMPARISONS = frozenset({"=", "==", "!=", "<>", "<", "<=", ">", ">="})


class _Token(NamedTuple):
    kind: str  # number, text, symbol, end, field, or the keyword itself
    text: str
    position: int  # 0-based, of its first character


def parse(text: str) -> Filter:
    """Return the filter that `text` describes.

    Raises:
        InputError: the text is not a filter; the message shows where.

    Example:
        >>> parse("year < 2000 and lang in ('en', 'de')")  # doctest: +ELLIPSIS
        And(filters=(Comparison(field='year', op='<', value=2000), In(...)))
    """
    parser = _Parser(text)
    condition = parser.condition(depth=0)
    if parser.token.kind != "end":
        parser.fail("'and', 'or' or the end")
    return condition


class _Parser:
    """One token of look-ahead over the text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.token = self._read(0)

    def _read(self, start: int) -> _Token:
        match = _TOKEN.match(self.text, start)
        if match is None:
            rest = self.text[start:]
            position = start + len(rest) - len(rest.lstrip())
            if self.text[position] in "'\"":
                self._fail_at(position, "a text that is not closed")
            self._fail_at(position, f"{self.text[position]!r} is not understood here")
        kind = str(match.lastgroup)
        value = match[kind]
        self._next_start = match.end()
        if kind == "word":
            kind = value.lower() if value.lower() in _KEYWORDS else "field"
        elif kind == "symbol" and value in _COMPARISONS:
            kind = "comparison"
        elif kind == "symbol":
            kind = value
        return _Token(kind, value, match.start(match.lastgroup or 0))

    def advance(self) -> _Token:
        token, self.token = self.token, self._read(self._next_start)
        return token

    def accept(self, kind: str) -> bool:
        if self.token.kind == kind:
            self.advance()
            return True
        return False

    def expect(self, kind: str, wanted: str) -> _Token:
        if self.token.kind != kind:
            self.fail(wanted)
        return self.advance()

    def fail(self, wanted: str) -> NoReturn:
        found = "the end" if self.token.kind == "end" else repr(self.token.text)
        self._fail_at(self.token.position, f"expected {wanted}, found {found}")

    def _fail_at(self, position: int, what: str) -> NoReturn:
        raise InputError(
            f"filter, character {position + 1}: {what}\n  {self.text}\n  {' ' * position}^"
        ) from None

    def condition(self, depth: int) -> Filter:
        if depth > MAX_DEPTH:
            self._fail_at(self.token.position, f"nested more than {MAX_DEPTH} deep")
        parts = [self.conjunction(depth)]
        while self.accept("or"):
            parts.append(self.conjunction(depth))
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def conjunction(self, depth: int) -> Filter:
        parts = [self.factor(depth)]
        while self.accept("and"):
            parts.append(self.factor(depth))
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def factor(self, depth: int) -> Filter:
        if depth > MAX_DEPTH:
            self._fail_at(self.token.position, f"nested more than {MAX_DEPTH} deep")
        if self.accept("not"):
            return Not(self.factor(depth + 1))
        if self.accept("("):
            inner = self.condition(depth + 1)
            self.expect(")", "')'")
            return inner
        return self.test()

    def test(self) -> Filter:
        field = self.expect("field", "a field name").text
        if self.accept("is"):
            negated = self.accept("not")
            self.expect("null", "'null'")
            return Not(Missing(field)) if negated else Missing(field)
        if self.accept("not"):
            self.expect("in", "'in'")
            return Not(self.members(field))
        if self.accept("in"):
            return self.members(field)
        op = self.expect("comparison", "a comparison (=, !=, <, <=, >, >=), 'in' or 'is'").text
        start = self.token
        value = self.value()
        negated = op in ("!=", "<>")
        try:
            comparison = Comparison(field, "=" if negated or op == "==" else op, value)
        except InputError as error:
            self._fail_at(start.position, str(error))
        return Not(comparison) if negated else comparison

    def members(self, field: str) -> Filter:
        start = self.expect("(", "'('")
        values = [self.value()]
        while self.accept(","):
            values.append(self.value())
        self.expect(")", "',' or ')'")
        try:
            return In(field, tuple(values))
        except InputError as error:
            self._fail_at(start.position, str(error))

    def value(self) -> Scalar:
        token = self.token
        if token.kind == "null":
            self._fail_at(token.position, "nothing equals null; write 'is null' or 'is not null'")
        if token.kind == "field":
            self._fail_at(token.position, f"expected a value, found {token.text!r}; put a text in quotes")
        if token.kind not in ("text", "number", "true", "false"):
            self.fail("a value")
        self.advance()
        if token.kind == "text":
            quote = token.text[0]
            return token.text[1:-1].replace(quote * 2, quote)
        if token.kind == "number":
            # Short whole numbers only: int() refuses thousands of digits, and 64 bits hold 19.
            return int(token.text) if re.fullmatch(r"[+-]?\d{1,30}", token.text) else float(token.text)
        return token.kind == "true"
