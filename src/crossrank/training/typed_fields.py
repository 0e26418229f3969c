"""A mapping, as YAML gives it, to a dataclass: every key known, every value of its type.

Dataclasses say what there is: their fields' types (bool, int, float, str, Literal, tuple[..., ...], another
dataclass, or one of these or None), their defaults, and, where a number has limits, `limited`.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from crossrank.errors import InputError

__all__ = ["limited", "read_fields"]

_T = TypeVar("_T")
_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "null"}
_REQUIRED = dataclasses.MISSING


def limited(default: Any = _REQUIRED, *, least: float | None = None, most: float | None = None) -> Any:
    """Return a dataclass field whose number lies between `least` and `most`, both allowed."""
    return dataclasses.field(default=default, metadata={"least": least, "most": most})


def read_fields(cls: type[_T], values: Any, where: str = "") -> _T:
    """Return an instance of a dataclass from a mapping of its fields.

    Args:
        cls: the dataclass.
        values: field -> value; a field that is not there has its default.
        where: the key that `values` stand under, for messages: "schedule".

    Raises:
        InputError: no mapping, a key that is not known or missing, or a value of another type or beyond its
            limits; says which and what is allowed.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"{where or 'the recipe'} must be a mapping of {_keys(cls)}, not {values!r:.80}")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            meant = f"; did you mean {near[0]}?" if near else "."
            raise InputError(f"there is no {_path(where, key)}{meant} The keys here: {_keys(cls)}")
    hints = get_type_hints(cls)
    found = {}
    for name, field in fields.items():
        if name in values:
            found[name] = _value(hints[name], values[name], _path(where, name), field.metadata)
        elif field.default is _REQUIRED and field.default_factory is _REQUIRED:
            raise InputError(f"{_path(where, name)} is missing; it must be {_meaning(hints[name])}")
    try:
        return cls(**found)
    except InputError as error:  # what a dataclass finds when it looks at its fields together
        raise InputError(f"{where}: {error}" if where else str(error)) from None


def _value(kind: Any, value: Any, where: str, limits: Mapping[str, Any]) -> Any:
    allowed = _alternatives(kind)
    if value is None and type(None) in allowed:
        return None
    for each in allowed:
        if dataclasses.is_dataclass(each) and isinstance(value, Mapping):
            return read_fields(each, value, where)  # type: ignore[arg-type]
        if get_origin(each) is tuple and isinstance(value, (list, tuple)):
            of = get_args(each)[0]
            return tuple(_value(of, item, f"{where}[{i}]", limits) for i, item in enumerate(value))
        if get_origin(each) is Literal and any(
            value == one and type(value) is type(one) for one in get_args(each)
        ):
            return value
        if each is float and (number := _number(value)) is not None:
            return _within(number, where, limits)
        if each is int and isinstance(value, int) and not isinstance(value, bool):
            return int(_within(value, where, limits))
        if each in (bool, str) and isinstance(value, each):
            if each is str and not value:
                break
            return value
    raise InputError(f"{where} must be {_meaning(kind)}, not {value!r:.80}")


def _number(value: Any) -> float | None:
    """Return a number as a float; YAML 1.1 takes 2e-5, without a point, for a text."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) < float("inf") else None


def _within(value: float, where: str, limits: Mapping[str, Any]) -> float:
    least, most = limits.get("least"), limits.get("most")
    if (least is not None and value < least) or (most is not None and value > most):
        bounds = f"at least {least:g}" if most is None else f"at most {most:g}"
        if least is not None and most is not None:
            bounds = f"between {least:g} and {most:g}"
        raise InputError(f"{where} must be {bounds}, not {value:g}")
    return value


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _meaning(kind: Any) -> str:
    words = []
    for each in _alternatives(kind):
        if dataclasses.is_dataclass(each):
            words.append(f"a mapping of {_keys(each)}")
        elif get_origin(each) is tuple:
            words.append(f"a list, each {_meaning(get_args(each)[0])}")
        elif get_origin(each) is Literal:
            words.append(" | ".join(str(one) for one in get_args(each)))
        else:
            words.append(_NAMES[each])
    return " or ".join(words)


def _keys(cls: Any) -> str:
    names = [field.name for field in dataclasses.fields(cls) if not field.metadata.get("inner")]
    return ", ".join(names) or "nothing"


def _path(where: str, key: object) -> str:
    return f"{where}.{key}" if where else f"{key}"
