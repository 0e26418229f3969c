"""A model's name to the local folder that holds it.

Three places, in this order: what ships with the package, a folder on this machine, the Hugging Face hub. Only
files that decide a score are fetched from the hub; no code of a model repository is ever fetched or run.
"""

from __future__ import annotations

import importlib.resources
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from crossrank.errors import CheckpointNotFoundError, InputError

if TYPE_CHECKING:
    from crossrank.runtime.engine import Source

__all__ = ["BUILT_IN", "DEFAULT_MODELS", "Kind", "is_offline", "resolve"]

Kind = Literal["cross-encoder", "bi-encoder", "late-interaction"]

BUILT_IN: dict[str, Kind] = {
    "crossrank-mini": "cross-encoder",
    "crossrank-tiny": "cross-encoder",
    "crossrank-embed": "bi-encoder",
    "crossrank-colbert": "late-interaction",
}
"""The models that ship with the package, and what they are."""

DEFAULT_MODELS: dict[Kind, str] = {kind: name for name, kind in reversed(BUILT_IN.items())}
"""The built-in model of each kind that is used where none is named: the first of its kind."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# "*" reaches into folders: modules such as 1_Pooling come along. A card may say what kind a model is of, and
# artifact.metadata how a ColBERT reads.
_FILES = ["*.json", "*.safetensors", "README.md", "artifact.metadata"]
_ONNX_FILES = ["onnx/model.onnx", "onnx/model.onnx_data"]
# Other forms of the same weights; what fits is made here.
_OTHER_FORMS = ["onnx/*", "openvino/*", "coreml/*", "*/checkpoint-*", "checkpoint-*"]
_TRUE = {"1", "ON", "YES", "TRUE"}


def is_offline() -> bool:
    """Say whether `HF_HUB_OFFLINE` (or `TRANSFORMERS_OFFLINE`) forbids the network; read at every call."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").strip().upper() in _TRUE for name in names)


def resolve(
    model: str | Path | None, *, kind: Kind, revision: str | None = None, source: Source = "auto"
) -> Path:
    """Find the folder of a model, fetching it from the hub if need be.

    Args:
        model: None for the default built-in model of this kind, the name of a built-in model, a local folder,
            or a name on the hub such as "BAAI/bge-reranker-base". A local folder comes before a hub name.
        kind: what the model is to be used as.
        revision: commit, tag or branch of a hub model; None is its main branch. Give a commit to be sure of
            the same scores tomorrow.
        source: "onnx" fetches the model's ONNX file from the hub too; see `engine.open_engine`.

    Raises:
        CheckpointNotFoundError: there is no such model, or it is not in the local cache while offline.
        InputError: something that is no name, or a revision of a model that is not on the hub.
    """
    if model is not None and not isinstance(model, (str, Path)):
        raise InputError(f"model must be a name or a folder, not {type(model).__name__}")
    if revision is not None and not isinstance(revision, str):
        raise InputError(f"revision must be a string, not {type(revision).__name__}")
    name = DEFAULT_MODELS[kind] if model is None else str(model)
    local = _local(name, model)
    if local is None:
        return _fetch(name, revision, with_onnx=source == "onnx")
    if revision is not None:
        raise InputError(
            f"revision is {revision!r}, but {name} is on this machine; a revision pins a model from the hub: "
            "leave it out"
        )
    return local


def _local(name: str, model: str | Path | None) -> Path | None:
    """The folder of a model on this machine; None for a name that may be one on the hub."""
    if name in BUILT_IN and not isinstance(model, Path):
        return _built_in(name)
    try:
        folder = Path(name).expanduser()
        if name and folder.is_dir():
            return folder
        is_file = folder.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, not readable, no such user's home
        raise CheckpointNotFoundError(f"{_short(name)} cannot be opened: {error}{_names()}") from error
    if is_file:
        raise CheckpointNotFoundError(f"{folder} is a file; give the folder that holds the model")
    if isinstance(model, Path) or not _HUB_NAME.fullmatch(name):
        raise CheckpointNotFoundError(f"there is no folder {_short(name)}{_names()}")
    return None


def _short(name: str) -> str:
    return repr(name if len(name) <= 200 else name[:197] + "...")


def _built_in(name: str) -> Path:
    folder = Path(str(importlib.resources.files("crossrank.models"))) / "builtin" / name
    if not (folder / "config.json").is_file():
        raise CheckpointNotFoundError(
            f"the built-in model {name} is not in {folder}; install crossrank again, "
            "or name a model folder or a hub model"
        )
    return folder


def _fetch(name: str, revision: str | None, *, with_onnx: bool) -> Path:
    if not with_onnx:
        folder = _snapshot(name, revision, _FILES, _OTHER_FORMS)
        # The transformer's weights lie at the top, or in a first module's folder of older layouts.
        if any(folder.glob("*.safetensors")) or any(folder.glob("0_*/*.safetensors")):
            return folder
    # Asked for, or published as ONNX alone, perhaps; where there is neither, opening the folder says so.
    return _snapshot(name, revision, [*_FILES, *_ONNX_FILES], _OTHER_FORMS[1:])


def _snapshot(name: str, revision: str | None, files: list[str], leave: list[str]) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f"{name} at revision {revision}" if revision else name
    try:
        return Path(
            huggingface_hub.snapshot_download(
                name,
                revision=revision,
                allow_patterns=files,
                ignore_patterns=leave,
                local_files_only=is_offline(),
            )
        )
    except GatedRepoError as error:
        reason = "needs its licence accepted on its hub page, and a token (run `hf auth login`)"
        raise CheckpointNotFoundError(f"{at} {reason}") from error
    except RepositoryNotFoundError as error:
        reason = "is neither a local folder nor a public model on the hub"
        raise CheckpointNotFoundError(f"{at} {reason}{_names()}") from error
    except RevisionNotFoundError as error:
        raise CheckpointNotFoundError(f"{name} has no revision {revision} on the hub") from error
    except HFValidationError as error:
        raise CheckpointNotFoundError(f"{at} is no hub name: {error}") from error
    except LocalEntryNotFoundError as error:
        reason = (
            "is not (complete) in the local hub cache, and HF_HUB_OFFLINE forbids fetching it; fetch it once "
            f"with the network on (`hf download {name}`) or unset HF_HUB_OFFLINE"
            if is_offline()
            else f"is not in the local hub cache, and the hub cannot be reached: {error.__cause__ or error}"
        )
        raise CheckpointNotFoundError(f"{at} {reason}") from error
    except OSError as error:  # connection errors and HTTP errors while fetching
        raise CheckpointNotFoundError(f"{at} could not be fetched from the hub: {error}") from error


def _names() -> str:
    return (
        f"; give a folder, a hub name such as 'cross-encoder/ms-marco-MiniLM-L6-v2', or one of the "
        f"built-in models: {', '.join(BUILT_IN)}"
    )
