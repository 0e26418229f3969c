"""Filters on metadata: which documents may be found.

A filter is written as a dict or as a string, checked against the fields of an index, and then either
compiled to SQL for the store or evaluated in Python; both give the same answer.

Forms: `crossrank.store.filter_mapping` for dicts, `crossrank.store.filter_syntax` for strings.

Logic has two values. A comparison with a field that a document does not have is false, and `not`
turns false into true: a document without `year` matches `not year = 2000` and `year != 2000`, and
does not match `year < 2000`. Strings compare by code point. The field `id` is the document's id.
"""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from crossrank.errors import InputError
from crossrank.types import Document

__all__ = ["And", "Comparison", "Filter", "FilterLike", "In", "Missing", "Not", "Or", "Scalar", "as_filter"]

Scalar: TypeAlias = "str | int | float | bool"
FieldTypes: TypeAlias = "Mapping[str, type]"

OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
"""The comparisons; `==` is another way to write `=`, and `!=` is `not =`."""

MAX_DEPTH = 24  # of nesting: far more than people write; the store's SQL parser gives up at about 36
_INT64 = range(-(2**63), 2**63)


def column_of(field: str) -> str:
    """Return the column of the store that holds a field."""
    return "id" if field == "id" else f"meta_{field}"


class Filter(ABC):
    """A condition on a document's metadata. Combine with `&`, `|` and `~`."""

    @abstractmethod
    def matches(self, document: Document) -> bool:
        """Return whether the document meets the condition."""

    @abstractmethod
    def to_sql(self, fields: FieldTypes, *, negated: bool = False) -> str:
        """Return the condition as SQL over the store's columns.

        Args:
            fields: the index's fields and their types: str, int, float or bool.
            negated: return the opposite. `NOT` never appears in the SQL around anything but a single
                comparison: the store's parser takes exponential time over nested ones.

        Raises:
            InputError: a field the index does not have, or a value of another type.
        """

    def __and__(self, other: Filter) -> Filter:
        return And((self, other))

    def __or__(self, other: Filter) -> Filter:
        return Or((self, other))

    def __invert__(self) -> Filter:
        return Not(self)


FilterLike: TypeAlias = "Filter | Mapping[str, Any] | str"
"""What callers may pass as a filter."""


@dataclass(frozen=True)
class Comparison(Filter):
    """A field compared with a value.

    Attributes:
        field: name of the field.
        op: one of =, <, <=, >, >=.
        value: what to compare with.
    """

    field: str
    op: str
    value: Scalar

    def __post_init__(self) -> None:
        if self.op not in OPERATORS:
            raise InputError(
                f"filter on {self.field!r}: unknown operator {self.op!r}; use one of {', '.join(OPERATORS)}"
            )
        _check_value(self.field, self.value)
        if isinstance(self.value, bool) and self.op != "=":
            raise InputError(f"filter on {self.field!r}: true and false have no order; use =")

    def matches(self, document: Document) -> bool:
        """Return whether the document has the field and the comparison holds."""
        return _holds(_value_of(document, self.field), self.op, self.value)

    def to_sql(self, fields: FieldTypes, *, negated: bool = False) -> str:
        """Return the comparison as SQL."""
        column = column_of(self.field)
        test = f"`{column}` {self.op} {_literal(self.field, self.value, fields)}"
        return _with_missing(column, test, negated)


@dataclass(frozen=True)
class In(Filter):
    """A field that equals one of several values.

    Attributes:
        field: name of the field.
        values: the values; none of them means that nothing matches.
    """

    field: str
    values: tuple[Scalar, ...]

    def __post_init__(self) -> None:
        for value in self.values:
            _check_value(self.field, value)

    def matches(self, document: Document) -> bool:
        """Return whether the document's field is one of the values."""
        stored = _value_of(document, self.field)
        return any(_holds(stored, "=", value) for value in self.values)

    def to_sql(self, fields: FieldTypes, *, negated: bool = False) -> str:
        """Return the membership as SQL."""
        _type_of(self.field, fields)
        if not self.values:
            return "true" if negated else "false"
        column = column_of(self.field)
        literals = ", ".join(_literal(self.field, value, fields) for value in self.values)
        return _with_missing(column, f"`{column}` IN ({literals})", negated)


@dataclass(frozen=True)
class Missing(Filter):
    """A field the document does not have.

    Attributes:
        field: name of the field.
    """

    field: str

    def matches(self, document: Document) -> bool:
        """Return whether the document lacks the field."""
        return _value_of(document, self.field) is None

    def to_sql(self, fields: FieldTypes, *, negated: bool = False) -> str:
        """Return the test as SQL."""
        _type_of(self.field, fields)
        return f"`{column_of(self.field)}` IS {'NOT ' if negated else ''}NULL"


@dataclass(frozen=True)
class And(Filter):
    """All of several conditions; none of them means that everything matches.

    Attributes:
        filters: the conditions.
    """

    filters: tuple[Filter, ...]

    def matches(self, document: Document) -> bool:
        """Return whether all conditions hold."""
        return all(part.matches(document) for part in self.filters)

    def to_sql(self, fields: FieldTypes, *, negated: bool = False) -> str:
        """Return the conjunction as SQL."""
        return _joined("OR" if negated else "AND", self.filters, fields, negated)


@dataclass(frozen=True)
class Or(Filter):
    """At least one of several conditions; none of them means that nothing matches.

    Attributes:
        filters: the conditions.
    """

    filters: tuple[Filter, ...]

    def matches(self, document: Document) -> bool:
        """Return whether a condition holds."""
        return any(part.matches(document) for part in self.filters)

    def to_sql(self, fields: FieldTypes, *, negated: bool = False) -> str:
        """Return the disjunction as SQL."""
        return _joined("AND" if negated else "OR", self.filters, fields, negated)


@dataclass(frozen=True)
class Not(Filter):
    """The opposite of a condition.

    Attributes:
        filter: the condition.
    """

    filter: Filter

    def matches(self, document: Document) -> bool:
        """Return whether the condition does not hold."""
        return not self.filter.matches(document)

    def to_sql(self, fields: FieldTypes, *, negated: bool = False) -> str:
        """Return the negation as SQL."""
        return self.filter.to_sql(fields, negated=not negated)


def as_filter(condition: FilterLike) -> Filter:
    """Return the filter that a dict or a string describes; a `Filter` is returned as it is.

    Raises:
        InputError: the condition cannot be understood; for a string the message has the position.
    """
    if isinstance(condition, Filter):
        _check_depth(condition)
        return condition
    if isinstance(condition, str):
        from crossrank.store.filter_syntax import parse

        return parse(condition)
    if isinstance(condition, Mapping):
        from crossrank.store.filter_mapping import from_mapping

        return from_mapping(condition)
    raise InputError(
        f"a filter must be a dict, a string or a Filter, not {type(condition).__name__}: {condition!r}"
    )


def _check_value(field: str, value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"filter on {field!r}: {value!r} cannot be compared with; use a finite number")
    if isinstance(value, int) and not isinstance(value, bool) and value not in _INT64:
        raise InputError(f"filter on {field!r}: {value!r} does not fit into 64 bits")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"filter on {field!r}: {value!r} is not valid Unicode: {error.reason}") from None
    if not isinstance(value, (str, int, float)):
        raise InputError(
            f"filter on {field!r}: a value must be a string, a number, true or false, "
            f"not {type(value).__name__}: {value!r}"
        )


def _value_of(document: Document, field: str) -> Any:
    return document.id if field == "id" else document.metadata.get(field)


def _holds(stored: Any, op: str, value: Scalar) -> bool:
    """Compare as the store does: values of different kinds are never equal, nor ordered."""
    if isinstance(stored, bool) or isinstance(value, bool):
        return isinstance(stored, bool) and isinstance(value, bool) and OPERATORS[op](stored, value)
    if isinstance(stored, str) and isinstance(value, str):
        return OPERATORS[op](stored, value)
    if isinstance(stored, (int, float)) and isinstance(value, (int, float)):
        if isinstance(stored, float) or isinstance(value, float):
            stored, value = float(stored), float(value)  # 2**53 + 1 as the store's float column has it
        return OPERATORS[op](stored, value)
    return False


def _type_of(field: str, fields: FieldTypes) -> type:
    if field == "id":
        return str
    if field not in fields:
        known = ", ".join(f"{name} ({kind.__name__})" for name, kind in fields.items())
        raise InputError(
            f"filter: the index has no field {field!r}; it has id (str){', ' + known if known else ''}"
        )
    return fields[field]


def _literal(field: str, value: Scalar, fields: FieldTypes) -> str:
    kind = _type_of(field, fields)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is float and number:
        # + 0.0 turns -0.0 into 0.0: the store orders the two, Python does not.
        return f"CAST('{float(value) + 0.0!r}' AS DOUBLE)"
    if kind is bool and isinstance(value, bool):
        return "true" if value else "false"
    if kind is int and number and isinstance(value, int):
        return f"CAST('{value}' AS BIGINT)"  # a bare -2**63 would be read as minus an unsigned number
    if kind is str and isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    raise InputError(
        f"filter: the field {field!r} holds {kind.__name__} values and cannot be compared with {value!r}"
    )


def _with_missing(column: str, test: str, negated: bool) -> str:
    """Return the test as SQL that is true or false, never unknown."""
    return f"(`{column}` IS NULL OR NOT {test})" if negated else f"(`{column}` IS NOT NULL AND {test})"


def _joined(joiner: str, filters: Sequence[Filter], fields: FieldTypes, negated: bool) -> str:
    parts = [part.to_sql(fields, negated=negated) for part in filters]
    if not parts:
        return "true" if joiner == "AND" else "false"
    return f"({f' {joiner} '.join(parts)})"


def _check_depth(condition: Filter, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise InputError(f"a filter may be nested {MAX_DEPTH} deep at most")
    if isinstance(condition, Not):
        _check_depth(condition.filter, depth + 1)
    elif isinstance(condition, (And, Or)):
        for part in condition.filters:
            _check_depth(part, depth + 1)
