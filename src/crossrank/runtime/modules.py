"""The modules of a sentence-transformers folder: what happens to token vectors after the transformer.

`modules.json` lists them in order; each has a folder with a config.json and, where it was trained, weights.
Source: sentence-transformers 6 (base/modules, sentence_transformer/modules); older layouts read the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from crossrank.errors import CheckpointError, UnsupportedArchitectureError
from crossrank.runtime.settings import read_json, read_object, read_setting
from crossrank.runtime.weights import open_tensors, weight_files

__all__ = [
    "Dense",
    "LayerNorm",
    "Module",
    "Normalize",
    "Pooling",
    "PoolingMode",
    "TokenMask",
    "read_modules",
]

PoolingMode = Literal["cls", "mean", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens"]

_LEGACY_MODES: dict[str, PoolingMode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# What graphs and models call them; torch classes by their last name.
_ACTIVATIONS = {
    "Identity": "identity",
    "Tanh": "tanh",
    "ReLU": "relu",
    "GELU": "gelu",
    "SiLU": "silu",
    "Sigmoid": "sigmoid",
}


@dataclass(frozen=True, slots=True)
class Pooling:
    """Token vectors (length, hidden) -> one vector, several modes being joined end to end.

    Attributes:
        modes: in the order their results are joined.
        include_prompt: False leaves a prompt's tokens out of the pooling.
    """

    modes: tuple[PoolingMode, ...]
    include_prompt: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """A trained linear layer on the pooled vector, or on every token's.

    Attributes:
        weight: (out, in) float32.
        bias: (out,) float32, or None.
        activation: "identity", "tanh", "relu", "gelu", "silu" or "sigmoid", applied after it.
        residual: None, "identity", or a (out, in) float32 projection: what is added after the activation.
        gives_scores: whether this is the last layer of a cross-encoder rather than part of an embedding.
    """

    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32] | None
    activation: str
    residual: npt.NDArray[np.float32] | Literal["identity"] | None = None
    gives_scores: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class LayerNorm:
    """LayerNorm (epsilon 1e-5) on the pooled vector.

    Attributes:
        weight: (dimension,) float32.
        bias: (dimension,) float32.
    """

    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Normalize:
    """L2 normalisation of the pooled vector."""


@dataclass(frozen=True, slots=True)
class TokenMask:
    """Which token vectors of a late-interaction model count (sentence-transformers' MultiVectorMask).

    Attributes:
        skipped_words: tokens, as the vocabulary has them, that do not count.
        skipped_in: the texts in which they do not: "query", "document".
    """

    skipped_words: tuple[str, ...]
    skipped_in: tuple[str, ...]


Module = Pooling | Dense | LayerNorm | Normalize | TokenMask


def read_modules(folder: Path) -> tuple[Path, list[Module], list[Path]]:
    """Read modules.json and what it names.

    Args:
        folder: the model folder; without a modules.json it is a plain transformers one.

    Returns:
        The folder of the transformer itself, the modules after it, and the files they were read from.

    Raises:
        CheckpointError: a module's config or weights are missing or damaged.
        UnsupportedArchitectureError: a module, pooling mode or activation crossrank does not know.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return folder, [], []
    entries = read_json(path)
    try:
        listed = [
            (str(entry["type"]).rsplit(".", 1)[-1], folder / str(entry.get("path", ""))) for entry in entries
        ]
    except (TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a list of modules with type and path") from error
    for _, place in listed:
        if not place.resolve().is_relative_to(folder.resolve()):
            raise CheckpointError(f"{path} names a folder outside the model's own: {place}")
    if not listed or listed[0][0] != "Transformer":
        first = listed[0][0] if listed else "nothing"
        raise UnsupportedArchitectureError(
            f"{path} begins with {first}; only models that begin with a Transformer module are supported"
        )
    modules: list[Module] = []
    files = [path]
    for kind, place in listed[1:]:
        if kind == "Dropout":  # does nothing outside training
            continue
        if kind not in _READERS:
            raise UnsupportedArchitectureError(
                f"{path} has a module {kind}, which is not supported; "
                f"supported: Transformer, Dropout, {', '.join(sorted(_READERS))}"
            )
        config_path = place / "config.json"
        modules.append(_READERS[kind](place, read_object(config_path)))
        files += [file for file in (config_path, *weight_files(place)) if file.is_file()]
    return listed[0][1], modules, files


def _read_pooling(place: Path, config: dict[str, Any]) -> Pooling:
    path, stated = place / "config.json", config.get("pooling_mode")
    if isinstance(stated, str):
        stated = [stated]
    elif stated is None:
        stated = [mode for key, mode in _LEGACY_MODES.items() if config.get(key)] or ["mean"]
    else:
        stated = read_setting(config, "pooling_mode", list, source=path)
    modes = tuple(stated)
    for mode in modes:
        if mode not in _LEGACY_MODES.values():
            raise UnsupportedArchitectureError(
                f"{path}: pooling mode {mode!r} is not supported; "
                f"supported: {', '.join(_LEGACY_MODES.values())}"
            )
    return Pooling(modes, read_setting(config, "include_prompt", bool, True, source=path))


def _read_dense(place: Path, config: dict[str, Any]) -> Dense:
    path, tensors = place / "config.json", _module_tensors(place)
    expected = (config.get("out_features"), config.get("in_features"))
    has_bias = read_setting(config, "bias", bool, True, source=path)
    for part, shape in (("weight", expected), ("bias", expected[:1] if has_bias else None)):
        found = tensors[f"linear.{part}"].shape if f"linear.{part}" in tensors else None
        if found != shape:
            raise CheckpointError(
                f"{place}: Dense should have a {part} of shape {shape}, but it is {found}; "
                "fetch the model again"
            )
    residual: npt.NDArray[np.float32] | Literal["identity"] | None = None
    if read_setting(config, "use_residual", bool, False, source=path):
        residual = tensors.get("residual.weight", "identity")
    output = config.get("module_output_name") or config.get("module_input_name") or "sentence_embedding"
    if output not in ("sentence_embedding", "token_embeddings", "scores"):
        raise UnsupportedArchitectureError(f"{path}: a Dense module that writes {output!r} is not supported")
    # sentence-transformers' own default is Tanh.
    stated = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    activation = _ACTIVATIONS.get(stated.rsplit(".", 1)[-1])
    if activation is None or not stated.startswith("torch."):
        raise UnsupportedArchitectureError(
            f"{path}: activation {stated!r} is not supported; supported: torch.nn's {', '.join(_ACTIVATIONS)}"
        )
    return Dense(
        tensors["linear.weight"], tensors.get("linear.bias"), activation, residual, output == "scores"
    )


def _read_layer_norm(place: Path, config: dict[str, Any]) -> LayerNorm:
    tensors = _module_tensors(place)
    if "norm.weight" not in tensors or "norm.bias" not in tensors:
        raise CheckpointError(f"{place}: LayerNorm has no weights; fetch the model again")
    return LayerNorm(tensors["norm.weight"], tensors["norm.bias"])


def _read_normalize(place: Path, config: dict[str, Any]) -> Normalize:
    return Normalize()


def _read_token_mask(place: Path, config: dict[str, Any]) -> TokenMask:
    path = place / "config.json"
    if config.get("keep_only_token_ids"):
        raise UnsupportedArchitectureError(
            f"{path}: keep_only_token_ids, which is for pages as images, is not supported"
        )
    words = read_setting(config, "skiplist_words", list, [], source=path)
    tasks = read_setting(config, "skiplist_tasks", list, ["document"], source=path)
    return TokenMask(tuple(map(str, words)), tuple(map(str, tasks)))


def _module_tensors(place: Path) -> dict[str, npt.NDArray[np.float32]]:
    files = weight_files(place)
    if not files:
        raise CheckpointError(
            f"{place} has no model.safetensors; weights are read only from safetensors: save the model again "
            "with a current sentence-transformers"
        )
    return dict(open_tensors(files).items())


_READERS: dict[str, Callable[[Path, dict[str, Any]], Module]] = {
    "Pooling": _read_pooling,
    "Dense": _read_dense,
    "LayerNorm": _read_layer_norm,
    "MultiVectorMask": _read_token_mask,
    "Normalize": _read_normalize,
}
