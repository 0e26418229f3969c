"""Checks of arguments that every layer makes in the same words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np
import numpy.typing as npt

from crossrank.errors import CrossrankError, InputError

__all__ = ["as_list", "as_number", "as_strings", "as_vectors", "check_count", "check_text", "check_texts"]


def as_list(items: Any, name: str) -> list[Any]:
    """Return the items of any ordered iterable, called `name` in messages, as a list.

    Raises:
        InputError: a single string, something without an order (a set, a mapping), or no iterable.
    """
    if isinstance(items, (str, bytes)):
        raise InputError(f"{name} must be a list, not a single {type(items).__name__}; wrap it in a list")
    if isinstance(items, (Mapping, Set)) or not isinstance(items, Iterable):
        raise InputError(f"{name} must be a list, not {type(items).__name__}")
    return list(items)


def as_strings(items: Any, name: str) -> list[str]:
    """Return the strings of any ordered iterable, called `name` in messages, as a list.

    Raises:
        InputError: see `as_list`, or an item that is no string.
    """
    strings = as_list(items, name)
    for position, item in enumerate(strings):
        if not isinstance(item, str):
            raise InputError(f"{name}[{position}] must be a string, not {type(item).__name__}")
    return strings


def check_texts(texts: Sequence[str], name: str) -> None:
    """Refuse what is no text: other types, and strings that have no UTF-8 form.

    Args:
        texts: any sequence.
        name: what the texts are, for the message: "documents".

    Raises:
        InputError: names the first bad position.
    """
    for position, text in enumerate(texts):
        if not isinstance(text, str) or not text.isascii():  # the usual text costs no more than this
            check_text(text, f"{name}[{position}]")


def check_text(text: str, name: str) -> None:
    """Refuse one text, as `check_texts` does.

    Raises:
        InputError: it is no string, or no valid Unicode.
    """
    if not isinstance(text, str):
        raise InputError(f"{name} must be a string, not {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name} has a lone surrogate (U+{ord(text[error.start]):04X}) at character {error.start}, so "
            "it is not valid Unicode; decode its source with the right encoding, or clean it with "
            "text.encode('utf-8', 'replace').decode('utf-8')"
        ) from None


def check_count(value: Any, name: str = "top_k") -> None:
    """Raise InputError unless `value`, called `name` in the message, is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise InputError(f"{name} must be a whole number of at least 1, not {value!r}")


def as_number(value: Any, name: str, low: float, high: float = float("inf")) -> float:
    """Return a finite number from `low` to `high` as a float.

    Raises:
        InputError: something else, called `name` in the message.
    """
    number = float("nan")
    if isinstance(value, (int, float, np.number)):
        with contextlib.suppress(OverflowError):  # an int of any size
            number = float(value)
    if isinstance(value, bool) or not (low <= number <= high and number < float("inf")):
        bounds = f"of at least {low:g}" if high == float("inf") else f"between {low:g} and {high:g}"
        raise InputError(f"{name} must be a number {bounds}, not {value!r}")
    return number


def as_vectors(
    vectors: Any,
    name: str,
    *,
    rows: int | None = None,
    dimensions: int | None = None,
    error: type[CrossrankError] = InputError,
) -> npt.NDArray[np.float32]:
    """Return vectors as a C-contiguous float32 array (rows, dimensions).

    Args:
        vectors: rows of real numbers.
        name: what they are, for messages: "query vectors".
        rows: how many there must be; None for any number.
        dimensions: how long they must be; None for any length.
        error: what to raise.

    Raises:
        error: another shape, other things than real numbers, NaN or infinity.
    """
    try:
        array = np.asarray(vectors)
    except ValueError:  # rows of different lengths
        raise error(f"{name} must have one length") from None
    if array.dtype.kind not in "fiu":
        raise error(f"{name} must be real numbers, not {array.dtype}")
    shape = (rows, dimensions)
    if array.ndim != 2 or any(want not in (None, got) for want, got in zip(shape, array.shape, strict=True)):
        wanted = f"({'n' if rows is None else rows}, {'dimensions' if dimensions is None else dimensions})"
        raise error(f"{name} must have shape {wanted}, one row each, not {array.shape}")
    array = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(array).all():
        bad = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
        raise error(f"{name} have NaN or infinity in row {bad} of {len(array)}")
    return array
