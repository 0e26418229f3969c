"""The exceptions crossrank raises for input it cannot use.

CrossrankError
 ├── InputError (ValueError)            a query, document, pair or option that cannot be used
 │    ├── QueryTooLongError             the query takes more than its share of the model's window
 │    └── FileFormatError               a row of a file; carries `path` and `line`
 ├── CheckpointError (ValueError)       a model folder that cannot be opened as what was asked for
 │    ├── CheckpointNotFoundError       no such folder, or not in the local hub cache while offline
 │    └── UnsupportedArchitectureError  a known checkpoint whose architecture has no graph here
 ├── ModelOutputError (RuntimeError)    NaN or infinity where a score should be
 ├── DeviceMemoryError (RuntimeError)   a GPU with too little memory for a model or a single input
 ├── EndpointError (RuntimeError)       a model's server that fails, refuses, or gives no answer
 ├── BudgetError (RuntimeError)         the next call could go over the budget; carries `usage`
 ├── IndexStoreError (RuntimeError)     an index that is missing, locked, damaged or incompatible
 │    └── IndexMismatchError            the index was made with another bi-encoder or schema
 ├── TrainingStoppedError (RuntimeError) a training that goes wrong, and was stopped
 └── MissingExtraError (ImportError)    an optional part is not installed; the text has the command

Every message says what was wrong, where, and what to do. Library code raises these for anything a
caller can cause; other exceptions are bugs.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crossrank.models.llm.model import Usage

__all__ = [
    "BudgetError",
    "CheckpointError",
    "CheckpointNotFoundError",
    "CrossrankError",
    "DeviceMemoryError",
    "EndpointError",
    "FileFormatError",
    "IndexMismatchError",
    "IndexStoreError",
    "InputError",
    "MissingExtraError",
    "ModelOutputError",
    "QueryTooLongError",
    "TrainingStoppedError",
    "UnknownOptionError",
    "UnsupportedArchitectureError",
]


class CrossrankError(Exception):
    """Base of every error crossrank raises on purpose."""


class InputError(CrossrankError, ValueError):
    """A query, document, pair or option that cannot be used."""


class QueryTooLongError(InputError):
    """The query takes more tokens than its share of the model's window."""


class UnknownOptionError(InputError):
    """Options that a kind of model does not have.

    Attributes:
        options: their names, as Python has them.
    """

    def __init__(self, message: str, options: Sequence[str]) -> None:
        super().__init__(message)
        self.options = tuple(options)


class FileFormatError(InputError):
    """A row of a file that cannot be read.

    Attributes:
        path: the file.
        line: 1-based line (or row) number, None when the whole file is meant.
    """

    def __init__(self, message: str, path: str | Path, line: int | None = None) -> None:
        where = f"{path}:{line}" if line is not None else f"{path}"
        super().__init__(f"{where}: {message}")
        self.path = Path(path)
        self.line = line


class CheckpointError(CrossrankError, ValueError):
    """A model folder that cannot be opened as what was asked for."""


class CheckpointNotFoundError(CheckpointError):
    """No such folder, and not to be had from the hub (or its cache while offline)."""


class UnsupportedArchitectureError(CheckpointError):
    """A checkpoint whose architecture crossrank has no graph for."""


class ModelOutputError(CrossrankError, RuntimeError):
    """A model gave NaN or infinity where a score should be."""


class DeviceMemoryError(CrossrankError, RuntimeError):
    """A GPU has too little memory for a model's weights, or for a single input."""


class EndpointError(CrossrankError, RuntimeError):
    """A language model's server that cannot be reached, fails, refuses, or gives no answer."""


class BudgetError(CrossrankError, RuntimeError):
    """The next call could go over a budget of tokens or money, and was not made.

    Attributes:
        usage: what was used so far.
    """

    def __init__(self, message: str, usage: Usage) -> None:
        super().__init__(message)
        self.usage = usage


class IndexStoreError(CrossrankError, RuntimeError):
    """An index that is missing, locked, damaged or incompatible."""


class IndexMismatchError(IndexStoreError):
    """The index was made with another bi-encoder or another schema."""


class TrainingStoppedError(CrossrankError, RuntimeError):
    """A training went wrong: NaN, constant scores, a fall below where it began, positives cut away."""


class MissingExtraError(CrossrankError, ImportError):
    """An optional part of crossrank is not installed."""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency, or say which extra brings it.

    Args:
        module: dotted module name.
        extra: the extra of crossrank that installs it.

    Raises:
        MissingExtraError: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module.split(".", maxsplit=1)[0] != error.name.split(".", maxsplit=1)[0]:
            raise
        raise MissingExtraError(
            f"{module} is not installed; it comes with an extra: pip install 'crossrank[{extra}]'"
        ) from error
