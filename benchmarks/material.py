"""What the benchmarks run on: one set of weights in several forms, and texts of chosen lengths."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from crossrank.models.hub import Kind, resolve
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.int8 import INT8_FILE, PARITY_FILE, passed_parity, write_parity
from crossrank.runtime.quantization import calibrate, write_int8
from crossrank.runtime.tokenization import ModelInputs, Tokenizer

SAMPLE = Path(__file__).parents[1] / "data" / "sample"
_CALIBRATION_TEXTS = 384


class Folders(NamedTuple):
    """One model as folders.

    Attributes:
        float32: model.safetensors, which every library can read.
        int8: crossrank's static int8, without model.safetensors.
        origin: where the weights, and the int8 form, are from.
    """

    float32: Path
    int8: Path
    origin: dict[str, str]


def folders(weights: Path | None, kind: Kind, scratch: Path) -> Folders:
    """Write a model out so that every contestant runs the same weights.

    The int8 form is the folder's own. A folder that has none is quantised here, with texts of the sample
    collection; such a form has passed no parity gate, so it is for timing only (the tables show its deltas).

    Args:
        weights: a model folder; None for the built-in model.
        kind: what the model is.
        scratch: where to write.
    """
    source = resolve(weights, kind=kind)
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
        inputs = _calibration_inputs(checkpoint, pairs=kind == "cross-encoder")
        layers = calibrate(checkpoint, "logits" if kind == "cross-encoder" else "tokens", inputs)
        write_int8(int8 / place / INT8_FILE, checkpoint.tensors(), layers)
        write_parity(int8 / place, {"passed": True})
    return Folders(float32, int8, origin)


def lengths(profile: str, count: int) -> npt.NDArray[np.int64]:
    """Lengths of texts in tokens, like those of passages people search.

    Args:
        profile: "marco" has a mean of about 75 (MS MARCO passages), "nq" of about 170 with a long tail
            (Natural Questions), "short" of about 15 (sentences), all log-normal; "fixed" is 75 always.
        count: how many.
    """
    mean, sigma, low, high = {
        "marco": (75, 0.45, 15, 230),
        "nq": (170, 0.75, 20, 480),
        "short": (15, 0.40, 4, 40),
        "fixed": (75, 0.0, 75, 75),
    }[profile]
    drawn = np.random.default_rng(0).lognormal(np.log(mean) - sigma**2 / 2, sigma, count)
    return np.clip(np.rint(drawn), low, high).astype(np.int64)


def texts(targets: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """Cut different texts of exactly these lengths from the sample corpus; each begins with a sentence."""
    articles: dict[str, list[str]] = {}
    for row in _rows("corpus.jsonl.gz"):
        articles.setdefault(row["title"], []).append(row["text"])
    whole = [" ".join(paragraphs) for paragraphs in articles.values()]
    offsets: list[npt.NDArray[np.int32]] = []
    starts: list[tuple[int, int]] = []  # article, token
    for number, (text, tokens) in enumerate(zip(whole, tokenizer.encode(whole, offsets=True), strict=True)):
        assert tokens.offsets is not None  # asked for
        offsets.append(tokens.offsets)
        characters = tokens.offsets[:, 0].tolist()
        starts += [(number, token) for token, at in enumerate(characters) if text[at - 2 : at] == ". "]
    order = np.random.default_rng(0).permutation(len(starts))
    found: dict[str, None] = {}
    tried = 0
    for target in targets:
        while True:
            if tried == 100 * len(starts):
                raise SystemExit(f"the sample corpus has too few texts of {target} tokens")
            number, first = starts[order[tried % len(order)]]
            tried += 1
            text, places, last = whole[number], offsets[number], first + int(target)
            # Cut only before a space: elsewhere the cut text might have other tokens.
            if last < len(places) and text[places[last, 0] - 1] == " ":
                cut = text[places[first, 0] : places[last, 0] - 1]
                if cut not in found:
                    found[cut] = None
                    break
    return list(found)


def corpus() -> list[str]:
    """The texts of the sample collection."""
    return [row["text"] for row in _rows("corpus.jsonl.gz")]


def queries(count: int) -> list[str]:
    """The first questions of the sample collection."""
    return [row["text"] for row in _rows("queries.jsonl.gz")[:count]]


def _calibration_inputs(checkpoint: Checkpoint, *, pairs: bool) -> list[ModelInputs]:
    tokenizer = Tokenizer(checkpoint)
    passages = tokenizer.encode(texts(lengths("marco", _CALIBRATION_TEXTS).tolist(), tokenizer))
    questions = tokenizer.encode(queries(_CALIBRATION_TEXTS))
    inputs = []
    for number, passage in enumerate(passages):
        question = questions[number % len(questions)]
        if pairs:
            ids, types = tokenizer.join(question, passage)
        else:
            ids, types = tokenizer.wrap(passage if number % 3 else question)
        inputs.append(ModelInputs(ids[None], np.ones((1, len(ids)), np.int64), types[None]))
    return inputs


def _rows(name: str) -> list[dict[str, str]]:
    with gzip.open(SAMPLE / name, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
