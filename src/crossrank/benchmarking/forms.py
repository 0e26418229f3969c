"""One model in the forms that contestants read: float32 safetensors, int8, ONNX files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.numpy

from crossrank.models.hub import Kind, resolve
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.int8 import INT8_FILE, PARITY_FILE, passed_parity, write_parity
from crossrank.runtime.quantization import calibrate, write_int8
from crossrank.runtime.tokenization import ModelInputs

__all__ = ["Forms", "set_max_length", "write_forms"]

Inputs = Callable[[Checkpoint], Sequence[ModelInputs]]


class Forms(NamedTuple):
    """One model as folders.

    Attributes:
        float32: model.safetensors, which every library can read.
        int8: crossrank's static int8, without model.safetensors.
        origin: where the weights, and the int8 form, are from.
    """

    float32: Path
    int8: Path
    origin: dict[str, str]


def write_forms(model: str | Path | None, kind: Kind, scratch: Path, calibration: Inputs) -> Forms:
    """Write a model out so that every contestant runs the same weights.

    The int8 form is the folder's own. A folder that has none is quantised here; such a form has passed no
    parity gate, so it is for timing only (the tables show its deltas).

    Args:
        model: a built-in model, a folder, or a hub name; None for the built-in model.
        kind: what the model is.
        scratch: where to write.
        calibration: gives inputs to quantise with where there is no int8 form.
    """
    source = resolve(model, kind=kind)
    checkpoint = Checkpoint.open(source)
    float32, int8 = scratch / "float32", scratch / "int8"
    place = checkpoint.transformer_folder.relative_to(source)
    others = shutil.ignore_patterns("*.safetensors", PARITY_FILE, "*.pt", "*.md", "onnx")
    for folder in (float32, int8):
        shutil.copytree(source, folder, ignore=others)
    safetensors.numpy.save_file(
        {name: np.ascontiguousarray(array) for name, array in checkpoint.tensors().items()},
        float32 / place / "model.safetensors",
        metadata={"format": "pt"},  # transformers looks for it
    )
    origin = {"weights": "/".join(source.resolve().parts[-2:]), "int8": "the folder's own"}
    if checkpoint.int8_file and passed_parity(checkpoint.int8_file.parent):
        for name in (INT8_FILE, PARITY_FILE):
            shutil.copyfile(checkpoint.int8_file.parent / name, int8 / place / name)
    else:
        origin["int8"] = "made for this run, no parity gate"
        layers = calibrate(
            checkpoint, "logits" if kind == "cross-encoder" else "tokens", calibration(checkpoint)
        )
        write_int8(int8 / place / INT8_FILE, checkpoint.tensors(), layers)
        write_parity(int8 / place, {"passed": True})
    return Forms(float32, int8, origin)


def set_max_length(folder: Path, max_length: int) -> None:
    """Write into a model's tokenizer settings how many tokens a pair has, for libraries that only look there.

    Args:
        folder: the model.
        max_length: tokens of a pair.
    """
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    # fastembed takes the smaller of the two.
    settings |= {"model_max_length": max_length, "max_length": max_length}
    path.write_text(json.dumps(settings, indent=2), encoding="utf-8")
