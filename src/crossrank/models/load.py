"""A model of any kind by its name: what a folder is, said by its own files, and the class for that.

The first that speaks is believed: a built-in model's name; crossrank.json or the model's card
(declaration.py); the full name of a published T5 that says nothing of itself (t5_families.py);
sentence-transformers' model type; its modules; the class in config.json. Nothing is guessed from parts of a
name, and no head is made up: what is not known by then is an error.
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

from crossrank.errors import CheckpointError, UnknownOptionError
from crossrank.models.declaration import DECLARATION_FILE, read_declaration
from crossrank.models.hub import BUILT_IN, resolve
from crossrank.models.t5_families import PUBLISHED
from crossrank.runtime.settings import read_json, read_object, read_setting

__all__ = ["KINDS", "kind_of", "load"]

KINDS: dict[str, tuple[str, str]] = {
    "cross_encoder": ("crossrank.models.cross_encoder", "CrossEncoder"),
    "bi_encoder": ("crossrank.models.bi_encoder", "BiEncoder"),
    "late_interaction": ("crossrank.models.late_interaction", "LateInteraction"),
    "mono_t5": ("crossrank.models.mono_t5", "MonoT5"),
    "rank_t5": ("crossrank.models.rank_t5", "RankT5"),
    "duo_t5": ("crossrank.models.duo_t5", "DuoT5"),
}
"""Kinds of models: the module and the class of each."""

_STATED_TYPES = {
    "CrossEncoder": "cross_encoder",
    "SentenceTransformer": "bi_encoder",
    "MultiVectorEncoder": "late_interaction",
    "ColBERT": "late_interaction",  # PyLate
}
_STANFORD_COLBERT = "HF_ColBERT"
_CLASSIFIER = "ForSequenceClassification"
_T5_TYPES = ("t5", "mt5")


def load(name_or_path: str | Path, *, revision: str | None = None, **options: Any) -> Any:
    """Open a model as what it is.

    Args:
        name_or_path: the name of a built-in model, a local folder, or a hub name.
        revision: commit, tag or branch; for hub models only.
        options: those of the model's class, such as `precision=` or `threads=`.

    Returns:
        A reranker (`CrossEncoder`, `MonoT5`, `RankT5`, `DuoT5`, `LateInteraction`), or a `BiEncoder`.

    Raises:
        CheckpointNotFoundError: there is no such model.
        CheckpointError: its files do not say what it is, or it cannot be opened as that.
        UnknownOptionError: an option that its class does not have.
        InputError: an option that cannot be used with this model.

    Example:
        >>> reranker = load("crossrank-mini", threads=1)
        >>> reranker.rank("who wrote Hamlet", ["A hamlet is a village.", "Shakespeare's Hamlet"])[0].index
        1
    """
    folder = resolve(name_or_path, kind="cross-encoder", revision=revision)
    kind = kind_of(folder, name=str(name_or_path))
    place, name = KINDS[kind]
    model_class = getattr(importlib.import_module(place), name)
    known = inspect.signature(model_class).parameters
    if unknown := [option for option in options if option not in known]:
        takes = ", ".join(option for option in known if option not in ("model", "revision"))
        raise UnknownOptionError(
            f"{name_or_path} is a {name}, which has no option {', '.join(unknown)}; it takes {takes}", unknown
        )
    return model_class(name_or_path, revision=revision, **options)


def kind_of(folder: Path, name: str = "") -> str:
    """Say what a model folder is: a key of `KINDS`.

    Args:
        folder: a local folder.
        name: what the model was asked for by: a full name may tell what the folder does not.

    Raises:
        CheckpointError: the folder does not say, or it is something that cannot be opened here.
    """
    if name in BUILT_IN:
        return BUILT_IN[name].replace("-", "_")
    declared = read_declaration(folder)
    if declared.kind is not None:
        if declared.kind not in KINDS:
            raise CheckpointError(
                f"{declared.source} says that the model is of the kind {declared.kind!r}; there are "
                f"{', '.join(KINDS)}"
            )
        return declared.kind
    if name in PUBLISHED:
        return PUBLISHED[name][0]
    return _kind_of_modules(folder) or _kind_of_config(folder)


def _kind_of_modules(folder: Path) -> str | None:
    """What sentence-transformers or PyLate saved; None for a folder that is not theirs."""
    path = folder / "config_sentence_transformers.json"
    settings = read_object(path)
    stated = read_setting(settings, "model_type", str, None, source=path)
    if "query_prefix" in settings:  # PyLate's first versions name no type
        return "late_interaction"
    has_modules = (folder / "modules.json").is_file()
    if stated is not None and (has_modules or stated != "SentenceTransformer"):
        if stated not in _STATED_TYPES:
            raise CheckpointError(
                f"{path} says that the model is a {stated}, which cannot be opened here; there are "
                f"{', '.join(_STATED_TYPES)}"
            )
        return _STATED_TYPES[stated]
    return "bi_encoder" if has_modules and _has_pooling(folder / "modules.json") else None


def _has_pooling(path: Path) -> bool:
    entries = read_json(path)
    types = [str(entry.get("type", "")) for entry in entries if isinstance(entry, dict)]
    return any(each.rpartition(".")[2] == "Pooling" for each in types)


def _kind_of_config(folder: Path) -> str:
    path = folder / "config.json"
    config = read_object(path)
    classes = [str(each) for each in read_setting(config, "architectures", list, None, source=path) or ()]
    if _STANFORD_COLBERT in classes:
        return "late_interaction"
    if classes and all(each.endswith(_CLASSIFIER) for each in classes):
        return "cross_encoder"
    if config.get("model_type") in _T5_TYPES:
        raise CheckpointError(
            f"{folder} is a T5, and does not say what it was trained for: open it with MonoT5, RankT5 or "
            f'DuoT5, or write what it is into its {DECLARATION_FILE}: {{"kind": "mono_t5"}}, "rank_t5" or '
            '"duo_t5"'
        )
    found = ", ".join(classes) or "no class"
    raise CheckpointError(
        f"{folder} does not say what it is: config.json names {found}, which has no head for scores, and "
        "there are no modules for embeddings. Fine-tune it first, open it with BiEncoder and the pooling its "
        f"card names, or write what it is into its {DECLARATION_FILE} as its kind, one of {', '.join(KINDS)}"
    )
