"""Training lists: a query, its passages, the teacher's scores of them, one JSON object a line."""

from __future__ import annotations

import json
from typing import Any


def read_lists(spec: str) -> list[dict[str, Any]]:
    """Read FILE or FILE:START:STOP, lists START to STOP of the file."""
    path, start, stop = spec.split(":") if ":" in spec else (spec, None, None)
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines][int(start or 0) : int(stop) if stop else None]
