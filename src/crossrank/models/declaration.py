"""What a model folder says it is: crossrank.json, or the same under `crossrank` in the head of its card.

A T5 can be trained to answer in several ways, and its config does not tell which. Training with crossrank
writes `crossrank.json`; whoever publishes a model made elsewhere can put the same settings at the head of its
README.md. Nothing is concluded from a name.

    {"kind": "mono_t5", "prompt": "Query: {query} Document: {document} Relevant:",
     "tokens": ["▁false", "▁true"]}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crossrank.errors import CheckpointError
from crossrank.runtime.settings import read_object, read_setting

__all__ = ["CARD", "DECLARATION_FILE", "Declaration", "read_declaration", "write_declaration"]

DECLARATION_FILE = "crossrank.json"
CARD = "README.md"


@dataclass(frozen=True)
class Declaration:
    """What a folder says of itself.

    Attributes:
        kind: what it is to be opened as ("mono_t5", ...); None where it does not say.
        settings: what else it says.
        source: the file, for messages.
    """

    kind: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    source: Path = Path(DECLARATION_FILE)


def read_declaration(folder: Path) -> Declaration:
    """Read what a folder says it is, in crossrank.json or else in its card.

    Raises:
        CheckpointError: crossrank.json is damaged, or a kind that is no string.
    """
    path = folder / DECLARATION_FILE
    settings = read_object(path)
    if not settings and (folder / CARD).is_file():
        path = folder / CARD
        settings = _of_card(path)
    return Declaration(read_setting(settings, "kind", str, None, source=path), settings, path)


def write_declaration(folder: Path, kind: str, settings: Mapping[str, Any]) -> None:
    """Write crossrank.json.

    Args:
        folder: of the model.
        kind: what it is to be opened as.
        settings: what else its class reads; values have a form in JSON.
    """
    content = json.dumps({"kind": kind, **settings}, indent=2, ensure_ascii=False)
    (folder / DECLARATION_FILE).write_text(content + "\n", encoding="utf-8")


def _of_card(path: Path) -> dict[str, Any]:
    from huggingface_hub.repocard import metadata_load

    try:
        stated = (metadata_load(path) or {}).get("crossrank")
    except Exception:  # a card is for people: one that cannot be read says nothing
        return {}
    if stated is None:
        return {}
    if not isinstance(stated, dict):
        raise CheckpointError(f"{path}: crossrank is {stated!r:.60}; it must be settings, such as a kind")
    return dict(stated)
