"""The JSON files of a model folder, and the settings in them: of the type they should have, or an error."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar, cast, overload

from crossrank.errors import CheckpointError

__all__ = ["bad_setting", "read_json", "read_object", "read_setting", "settings_digest"]

_Value = TypeVar("_Value", bool, int, float, str, list[Any], dict[str, Any])

_TOO_LARGE = 2**31  # for a size of anything in a model
_REQUIRED: Final[Any] = object()
_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}
_NAMES |= {list: "a list", dict: "an object"}


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        CheckpointError: it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}); fetch the model again") from error


def read_object(path: Path) -> dict[str, Any]:
    """The content of a JSON file that must be an object; {} where there is no such file.

    Raises:
        CheckpointError: it is not JSON, or no object.
    """
    content = read_json(path) if path.is_file() else {}
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object; fetch the model again")
    return content


@overload
def read_setting(
    settings: Mapping[str, Any],
    key: str,
    kind: type[_Value],
    *,
    source: Path | str = ...,
    least: float | None = ...,
) -> _Value: ...
@overload
def read_setting(
    settings: Mapping[str, Any],
    key: str,
    kind: type[_Value],
    default: _Value,
    *,
    source: Path | str = ...,
    least: float | None = ...,
) -> _Value: ...
@overload
def read_setting(
    settings: Mapping[str, Any],
    key: str,
    kind: type[_Value],
    default: None,
    *,
    source: Path | str = ...,
    least: float | None = ...,
) -> _Value | None: ...
def read_setting(
    settings: Mapping[str, Any],
    key: str,
    kind: type[_Value],
    default: _Value | None = _REQUIRED,
    *,
    source: Path | str = "config.json",
    least: float | None = None,
) -> _Value | None:
    """A setting of the type it must have.

    Args:
        settings: the file's content.
        key: of the setting.
        kind: bool, int, float (which takes whole numbers too), str, list or dict.
        default: what a missing key means; without one the key must be there. Where it is None, null means
            the same; elsewhere null is an error, as it is to the reference libraries.
        source: the file, for the message.
        least: the smallest number allowed.

    Raises:
        CheckpointError: names the file and the key.
    """
    value = settings.get(key, default)
    if value is _REQUIRED:
        raise CheckpointError(f"{source}: {key} is missing; fetch the model again")
    if value is None and default is None:
        return None
    fits = isinstance(value, (int, float) if kind is float else kind)
    if isinstance(value, bool) and kind is not bool:  # which Python counts as a number
        fits = False
    if kind is int and fits and abs(value) >= _TOO_LARGE:
        fits = False
    if not fits or (least is not None and not value >= least):  # NaN is not either
        raise bad_setting(source, key, value, _NAMES[kind] + ("" if least is None else f", {least} or more"))
    return cast(_Value, float(value) if kind is float else value)  # ONNX tells 1 from 1.0


def bad_setting(source: Path | str, key: str, value: object, expected: str) -> CheckpointError:
    """The error for a setting that has no meaning.

    Args:
        source: the file.
        key: of the setting.
        value: what the file says.
        expected: what it may say: "a whole number".
    """
    shown = repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return CheckpointError(f"{source}: {key} is {shown}; it must be {expected}: fetch the model again")


def settings_digest(settings: Mapping[str, Any]) -> str:
    """Return SHA-256 (hex) of settings, whatever their order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
