"""The dict form of filters.

Every key must hold. A key is a field, with a value, a list of values or a dict of operators and values;
or one of "and", "or" (with a list of filters) and "not" (with a filter).

    {"year": {">=": 1990, "<": 2000}, "lang": "en"}
    {"lang": ["en", "de"], "not": {"draft": True}}
    {"or": [{"year": {"<": 1950}}, {"tag": {"in": ["classic", "essay"]}}]}

Operators: =, ==, !=, <, <=, >, >=, in, not in. The value None stands for a missing field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from crossrank.errors import InputError
from crossrank.store.filters import MAX_DEPTH, OPERATORS, And, Comparison, Filter, In, Missing, Not, Or

__all__ = ["from_mapping"]


def from_mapping(condition: Mapping[str, Any], depth: int = 0) -> Filter:
    """Return the filter that a dict describes.

    Args:
        condition: the dict.
        depth: how deep it is nested in another.

    Raises:
        InputError: a dict that is no filter.
    """
    if depth > MAX_DEPTH:
        raise InputError(f"a filter may be nested {MAX_DEPTH} deep at most")
    parts: list[Filter] = []
    for key, value in condition.items():
        if not isinstance(key, str):
            raise InputError(f"the keys of a filter are field names, not {key!r}")
        if key in ("and", "or"):
            if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
                raise InputError(f"filter: {key!r} takes a list of filters, not {value!r}")
            inner = tuple(_from_inner(key, item, depth + 1) for item in value)
            parts.append(And(inner) if key == "and" else Or(inner))
        elif key == "not":
            parts.append(Not(_from_inner(key, value, depth + 1)))
        else:
            parts.extend(_from_field(key, value))
    return parts[0] if len(parts) == 1 else And(tuple(parts))


def _from_inner(key: str, value: Any, depth: int) -> Filter:
    if not isinstance(value, Mapping):
        raise InputError(f"filter: {key!r} takes filters in dict form, not {value!r}")
    return from_mapping(value, depth)


def _from_field(field: str, value: Any) -> list[Filter]:
    if not isinstance(value, Mapping):
        return [_test(field, "in" if _is_list(value) else "=", value)]
    if not value:
        raise InputError(
            f'filter on {field!r}: no operator given; write for example {{"{field}": {{"<": 5}}}}'
        )
    return [_test(field, op, operand) for op, operand in value.items()]


def _test(field: str, op: Any, value: Any) -> Filter:
    if op in ("!=", "not in"):
        return Not(_test(field, "=" if op == "!=" else "in", value))
    if op in ("=", "=="):
        return Missing(field) if value is None else Comparison(field, "=", value)
    if op == "in":
        if not _is_list(value):
            raise InputError(f"filter on {field!r}: 'in' takes a list of values, not {value!r}")
        return In(field, tuple(value))
    if op not in OPERATORS:
        known = ", ".join([*OPERATORS, "!=", "in", "not in"])
        raise InputError(f"filter on {field!r}: unknown operator {op!r}; use one of {known}")
    return Comparison(field, op, value)


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple, set, frozenset))
