"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from crossrank.errors import InputError

__all__ = ["opened_whole", "write_whole"]


@contextmanager
def opened_whole(path: str | Path) -> Iterator[BinaryIO]:
    """Open a caller's file for bytes, so that it appears whole or not at all.

    A link stays a link, and what is no regular file (a pipe, /dev/stdout) is written as it comes.

    Args:
        path: the file.

    Raises:
        InputError: it cannot be written.
    """
    target = Path(os.path.realpath(path))
    is_device = target.exists() and not target.is_file()  # nothing to move onto
    temporary = target if is_device else _beside(target)
    try:
        with temporary.open("wb") as file:
            yield file
        if not is_device:
            os.replace(temporary, target)
    except BaseException as error:
        if not is_device:
            with contextlib.suppress(OSError):
                temporary.unlink()
        if isinstance(error, OSError):
            raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
        raise


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file so that it appears whole or not at all; writers beside each other do not meet.

    Args:
        path: the file.
        write: writes to the path it is given.
    """
    temporary = _beside(path)
    try:
        write(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _beside(path: Path) -> Path:
    """A name in the same folder that no other writer has."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")
