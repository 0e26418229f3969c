"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["write_whole"]


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file so that it appears whole or not at all.

    Args:
        path: the file.
        write: writes to the path it is given.
    """
    temporary = path.with_name(f".{path.name}.part")
    write(temporary)
    os.replace(temporary, path)
