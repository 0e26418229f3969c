"""`crossrank info`: versions, the machine, facts of a model or an index."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from crossrank.cli.loading import JsonOption
from crossrank.cli.models import model_facts
from crossrank.cli.output import console, emit_json, table
from crossrank.cli.wording import in_options
from crossrank.errors import CrossrankError
from crossrank.models.hub import resolve

if TYPE_CHECKING:
    from crossrank.store.info import IndexInfo

__all__ = ["info"]

PACKAGES = (
    "numpy",
    "onnxruntime",
    "tokenizers",
    "huggingface-hub",
    "lancedb",
    "pyarrow",
    "pytrec-eval-terrier",
    "torch",
)


def info(
    target: Annotated[str | None, typer.Argument(help="An index, a model folder, or a hub name.")] = None,
    *,
    json: JsonOption = False,
) -> None:
    """Show versions and machine, or the facts of an index or a model.

    Example: `crossrank info my-index`
    """
    facts = _environment() if target is None else _facts_of(target)
    if json:
        emit_json(facts, indent=2)
        return
    shown = table("", "")
    shown.show_header = False
    for name, value in facts.items():
        shown.add_row(Text(name.replace("_", " "), style="bold"), Text(_readable(value)))
    console().print(shown)


def _environment() -> dict[str, Any]:
    import onnxruntime

    from crossrank.runtime.limits import available_cores
    from crossrank.runtime.native import library
    from crossrank.runtime.processor import processor

    return {
        "crossrank": version("crossrank"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor().name,
        "cpu_features": processor().features,
        "cores_to_use": available_cores(),
        "native_library": library() is not None,
        "onnxruntime_providers": onnxruntime.get_available_providers(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _readable(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, dict):
        items = (f"{name} {'-' if item is None else _readable(item)}" for name, item in value.items())
        return ", ".join(items) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(_readable(item) for item in value) or "none"
    return str(value)


def _facts_of(target: str) -> dict[str, Any]:
    folder = Path(target)
    is_model = (folder / "config.json").is_file() or (folder / "modules.json").is_file()
    if folder.is_dir() and not is_model:
        return _index_facts(folder)
    facts = {"name": target, **model_facts(resolve(target, kind="cross-encoder"))}
    return {**facts, **_opened_facts(target)}


def _opened_facts(name: str) -> dict[str, Any]:
    """Say what a model is as it opens by default: what an index has the fingerprint of."""
    from crossrank.models.load import load

    try:
        model = load(name)
    except CrossrankError as error:  # that it does not open is a fact, too
        return {"opens": f"no: {in_options(str(error))}"}
    return {"precision": model.precision, "fingerprint": model.fingerprint}


def _token_facts(found: IndexInfo) -> dict[str, Any]:
    if found.tokens is None:
        return {}
    size = found.token_bytes_per_document
    return {
        "late_interaction": found.tokens.model.name,
        "late_interaction_fingerprint": found.tokens.model.fingerprint,
        "token_dimensions": found.tokens.model.dimensions,
        "token_form": found.tokens.codec,
        "token_bytes_per_document": None if size is None else round(size),
    }


def _index_facts(folder: Path) -> dict[str, Any]:
    from crossrank.store.lance import Index

    with Index.open(folder) as index:
        found = index.info()
    return {
        "index": str(found.path),
        "documents": found.documents,
        "language": found.language,
        "fields": {name: kind.__name__ for name, kind in found.fields.items()},
        "model": None if found.model is None else found.model.name,
        "model_fingerprint": None if found.model is None else found.model.fingerprint,
        "precision": None if found.model is None else found.model.precision,
        "dimensions": None if found.model is None else found.model.dimensions,
        **_token_facts(found),
        **({} if found.token_ids is None else {"token_ids_for": found.token_ids.name}),
        "documents_not_in_text_index": found.unindexed,
        "vector_index_rows": found.vector_index_rows,
        "size_mb": round(found.size_bytes / 1e6, 1),
    }
