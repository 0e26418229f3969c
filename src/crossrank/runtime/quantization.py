"""Calibration of static int8, and the parity gate it must pass.

Per layer, the smoothing of input features (Xiao et al. 2023, arXiv:2211.10438, eq. 4) and the clipping of the
input range are those that give the least squared error of the layer's output on unlabelled inputs, and the
scale is a row's own, as in nearly all layers, where that has less. Layers that read the same input, as query,
key and value do, share all of this, so that the input is smoothed and rounded once. The mean error that is
left is taken off the bias (Nagel et al. 2019, arXiv:1906.04721, sec. 4.2). int8.py runs the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from crossrank.errors import InputError
from crossrank.progress import track
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.engine import Output, build_graph, open_session
from crossrank.runtime.graph import Float32Linear, Graph
from crossrank.runtime.int8 import Dequantized
from crossrank.runtime.limits import num_threads
from crossrank.runtime.tokenization import ModelInputs
from crossrank.whole_files import write_whole

__all__ = ["LIMITS", "Parity", "QuantizedLayer", "calibrate", "compare", "exceeded", "write_int8"]

LIMITS: Mapping[str, float] = {"mean_delta_in_std": 0.1, "kendall_tau": 0.9, "delta_ndcg@10": 0.005}
"""Of the parity gate: the most that the mean |difference| (in standard deviations of the reference's scores)
and |Δ nDCG@10| may be, and the least that Kendall's tau may be."""

Array = npt.NDArray[Any]

_LEVELS = 255  # of uint8 inputs
_MAX_WEIGHT = 127  # symmetric int8
_CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
_SMOOTHINGS = (None, 0.5, 0.7, 0.85, 1.0)
_ROW_ZERO_POINTS = (128, 64, 32)  # inputs after a GELU are hardly ever much below 0


class QuantizedLayer(NamedTuple):
    """One linear layer in int8; see the module's description for the names."""

    weight: Array  # (out, in) int8
    weight_scale: Array  # (out,) float32
    bias: Array | None  # (out,) float32; None where the float32 layer has none
    bias_correction: Array  # (out,) float32: added to the bias, makes up for the mean error of int8
    input_scale: Array  # (1,) float32
    input_zero_point: Array  # (1,) uint8
    input_smooth: Array | None  # (in,) float32: inputs are multiplied by it
    by_row: Array | None = None  # (1,) uint8, present where the scale is that of a row's largest |value|


class _Observer:
    """A float32 form that also makes the input of every linear layer an output of the graph.

    Attributes:
        inputs: layer name -> name of the output that has its input, (rows, in) float32.
    """

    operators: Path | None = None

    def __init__(self) -> None:
        self.inputs: dict[str, str] = {}
        self._seen: dict[str, str] = {}

    def linear(self, graph: Graph, x: str, name: str) -> str:
        """Write the layer in float32 and show its input."""
        if x not in self._seen:
            self._seen[x] = f"observed_{len(self._seen)}"
            graph.output(x, self._seen[x], ["rows", graph.array(f"{name}.weight").shape[1]])
        self.inputs[name] = self._seen[x]
        return Float32Linear().linear(graph, x, name)

    def linear_many(self, graph: Graph, x: str, names: Sequence[str]) -> list[str]:
        """Write the layers in float32 and show their input once."""
        return [self.linear(graph, x, name) for name in names]


def _quantize_together(
    inputs: Array,
    weights: Sequence[Array],
    biases: Sequence[Array | None],
    kept: Sequence[Array | None],
) -> list[QuantizedLayer]:
    """Quantise layers that read the same inputs, as one; each counts by its error relative to its output.

    Args:
        inputs: (rows, in) float32, real activations.
        weights: (out, in) float32 each.
        biases: (out,) float32 each, or None.
        kept: the smoothing that weights were rounded with before, which gives the same bits again; or none.
    """
    shares = [np.full(len(weight), 1 / max(float((inputs @ weight.T).var()), 1e-12)) for weight in weights]
    weight = np.concatenate(weights)
    made = [None if alpha is None else _smoothing(inputs, weight, alpha) for alpha in _SMOOTHINGS]
    importance = np.concatenate(shares).astype(np.float32)
    joined = _quantize_layer(inputs, weight, importance, [*kept, *made])
    ends = np.cumsum([len(weight) for weight in weights])[:-1]
    parts = (np.split(part, ends) for part in (joined.weight, joined.weight_scale, joined.bias_correction))
    return [
        joined._replace(
            weight=weight,
            weight_scale=scale,
            bias_correction=correction,
            bias=None if bias is None else np.array(bias),
        )
        for weight, scale, correction, bias in zip(*parts, biases, strict=True)
    ]


def _quantize_layer(
    inputs: Array, weight: Array, importance: Array, smoothings: Sequence[Array | None]
) -> QuantizedLayer:
    """Quantise one layer so that its output on the given inputs changes least.

    Args:
        inputs: (rows, in) float32, real activations.
        weight: (out, in) float32.
        importance: (out,) float32, what the squared error of an output is multiplied with.
        smoothings: to choose from: (in,) each, or None.
    """
    exact = inputs @ weight.T  # (rows, out)
    # First how to smooth, then how far to clip: the best of all combinations is hardly ever better.
    rounded = partial(_rounded, inputs, weight, exact, importance)
    static = [rounded(smooth, clip=_CLIPS[0]) for smooth in smoothings]
    smooth = min(static, key=itemgetter(0))[1].input_smooth
    static += [rounded(smooth, clip=clip) for clip in _CLIPS[1:]]
    by_row = [
        rounded(smooth, row_zero_point=zero_point) for smooth in smoothings for zero_point in _ROW_ZERO_POINTS
    ]
    # A range that was fixed beforehand is too narrow for some other text; a row's own never is.
    return min(*static, *by_row, key=itemgetter(0))[1]


def _rounded(
    inputs: Array,
    weight: Array,
    exact: Array,
    importance: Array,
    smooth: Array | None,
    *,
    clip: float = 1.0,
    row_zero_point: int | None = None,
) -> tuple[float, QuantizedLayer]:
    """Quantise a layer in one way; the mean of its weighted squared errors, and the layer without a bias."""
    x = inputs if smooth is None else inputs * smooth
    scaled_weight = weight if smooth is None else weight / smooth
    weight_scale = np.maximum(np.abs(scaled_weight).max(axis=1), 1e-12).astype(np.float32) / _MAX_WEIGHT
    rounded_weight = np.rint(scaled_weight / weight_scale[:, None])
    largest = np.float32(1)
    if row_zero_point is None:
        low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
        scale = np.float32(max((high - low) * clip / _LEVELS, 1e-12))
        zero_point = float(np.rint(np.clip(-low * clip / scale, 0, _LEVELS)))
    else:
        largest = np.maximum(np.abs(x).max(axis=1, keepdims=True), np.float32(1e-12))  # (rows, 1)
        scale, zero_point = np.float32(1 / (_LEVELS - row_zero_point)), row_zero_point
    rounded = np.clip(np.rint(x / largest / scale) + zero_point, 0, _LEVELS) - zero_point
    got = (rounded.astype(np.float32) @ rounded_weight.T.astype(np.float32)) * (scale * weight_scale)
    difference = got * largest - exact
    drift = difference.mean(axis=0)
    layer = QuantizedLayer(
        rounded_weight.astype(np.int8),
        weight_scale,
        None,
        (-drift).astype(np.float32),
        np.array([scale], np.float32),
        np.array([zero_point], np.uint8),
        smooth,
        None if row_zero_point is None else np.ones(1, np.uint8),
    )
    return float((np.square(difference - drift) * importance).mean()), layer


def _quantize_table(table: Array) -> tuple[Array, Array]:
    """An embedding table as int8 rows and one float32 scale a row, (rows, 1)."""
    scale = np.maximum(np.abs(table).max(axis=1, keepdims=True), 1e-12).astype(np.float32) / _MAX_WEIGHT
    return np.rint(table / scale).astype(np.int8), scale


def calibrate(
    checkpoint: Checkpoint,
    output: Output,
    inputs: Sequence[ModelInputs],
    *,
    rows_per_input: int = 8,
    seed: int = 0,
    threads: int | None = None,
    progress: bool | None = None,
) -> dict[str, QuantizedLayer]:
    """Quantise every linear layer of a checkpoint's encoder.

    Args:
        checkpoint: with float32 weights. Of one that has int8 weights alone a layer keeps them, to the bit,
            with their smoothing, unless another smoothing has less error, rounding once more included.
        output: what the model will be run for; layers see other inputs for "logits" than for "tokens".
        inputs: a few hundred unlabelled inputs like those the model will meet, one row each, unpadded.
        rows_per_input: token positions taken of each input: the first, whose activations are like no other's
            in many models and which scores are read from, and others at random.
        seed: of that choice.
        threads: of one forward; None takes the cores this process may use.
        progress: whether a progress bar is shown; None shows it on a terminal.

    Raises:
        InputError: there are no inputs, or a number of threads that is none.
    """
    if not inputs:
        raise InputError("calibration needs inputs: a few hundred unlabelled texts or pairs")
    observer = _Observer()
    session, _kept = open_session(build_graph(checkpoint, output, observer), num_threads(threads))
    declared = {value.name for value in session.get_inputs()}
    outputs = sorted(set(observer.inputs.values()))
    seen: dict[str, list[Array]] = {name: [] for name in outputs}
    random = np.random.default_rng(seed)
    with track(len(inputs), "Reading", progress=progress) as tracked:
        for arrays in inputs:
            feed = {name: array for name, array in arrays._asdict().items() if name in declared}
            for name, rows in zip(outputs, session.run(outputs, feed), strict=True):
                others = 1 + random.permutation(len(rows) - 1)[: rows_per_input - 1]
                seen[name].append(rows[[0, *others]])
            tracked.advance()
    tensors = checkpoint.tensors()
    kept = tensors.stored if isinstance(tensors, Dequantized) else {}
    layers: dict[str, QuantizedLayer] = {}
    readers: dict[str, list[str]] = {}
    for name, source in observer.inputs.items():
        readers.setdefault(source, []).append(name)
    with track(len(observer.inputs), "Quantising", progress=progress) as tracked:
        for source, names in readers.items():
            together = _quantize_together(
                np.concatenate(seen[source]),
                [np.array(tensors[f"{name}.weight"]) for name in names],
                [tensors.get(f"{name}.bias") for name in names],
                [kept.get(f"{names[0]}.input_smooth")] if kept else [],
            )
            layers.update(zip(names, together, strict=True))
            for name in names if kept else ():
                if np.array_equal(layers[name].weight, kept[f"{name}.weight"]):
                    layers[name] = layers[name]._replace(weight_scale=kept[f"{name}.weight_scale"])
            tracked.advance(len(names))
    return layers


class Parity(NamedTuple):
    """How far the scores of a faster form are from the reference.

    Attributes:
        num_pairs: scores compared.
        max_delta: largest |difference|.
        mean_delta: mean |difference|.
        reference_std: standard deviation of the reference scores, to read the differences by.
        kendall_tau: mean over the rankings of Kendall's tau-b; None where all are too short for one.
    """

    num_pairs: int
    max_delta: float
    mean_delta: float
    reference_std: float
    kendall_tau: float | None


def compare(reference: Sequence[Array], scores: Sequence[Array], *, shortest: int = 1) -> Parity:
    """Compare the scores of rankings, one array a query.

    Args:
        reference: float32 scores of the reference form, (documents,) a query.
        scores: the same of the other form.
        shortest: documents of the shortest ranking that Kendall's tau is taken of.
    """
    wanted, got = np.concatenate(reference), np.concatenate(scores)
    delta = np.abs(wanted - got)
    taus = [_kendall_tau(a, b) for a, b in zip(reference, scores, strict=True) if len(a) >= shortest]
    return Parity(
        num_pairs=len(wanted),
        max_delta=float(delta.max()),
        mean_delta=float(delta.mean()),
        reference_std=float(wanted.std()),
        kendall_tau=float(np.mean(taus)) if taus else None,
    )


def exceeded(parity: Parity, delta_ndcg: float | None = None) -> list[str]:
    """Return the names of the `LIMITS` that a comparison breaks: none where it passes the parity gate.

    Args:
        parity: the comparison.
        delta_ndcg: difference in nDCG@10; None where there are no judgements.
    """
    # Written so that NaN passes nothing.
    kept = {
        "mean_delta_in_std": parity.mean_delta <= LIMITS["mean_delta_in_std"] * parity.reference_std,
        "kendall_tau": parity.kendall_tau is None or parity.kendall_tau >= LIMITS["kendall_tau"],
        "delta_ndcg@10": delta_ndcg is None or abs(delta_ndcg) <= LIMITS["delta_ndcg@10"],
    }
    return [name for name, is_kept in kept.items() if not is_kept]


def _at_least_a_fifth_of_the_mean(values: Array) -> Array:
    result: Array = np.maximum(values, max(0.2 * float(values.mean()), 1e-6))
    return result


def _kendall_tau(a: Array, b: Array) -> float:
    """Kendall's tau-b (Kendall 1945), by all pairs."""
    rows, columns = np.triu_indices(len(a), 1)
    x, y = np.sign(a[rows] - a[columns]), np.sign(b[rows] - b[columns])
    ties = float(np.sqrt(np.count_nonzero(x) * np.count_nonzero(y)))
    return float((x * y).sum()) / ties if ties else 1.0


def write_int8(path: Path, tensors: Mapping[str, Array], layers: Mapping[str, QuantizedLayer]) -> None:
    """Write `model.int8.safetensors`: layers and word embeddings in int8, the rest as it is.

    Args:
        path: the file; written beside it first and moved into place whole.
        tensors: the float32 checkpoint; a table of int8 weights as float32 is written as it is stored.
        layers: quantised layers by name.
    """
    stored = tensors.stored if isinstance(tensors, Dequantized) else {}
    content: dict[str, Array] = {}
    for name in tensors:
        if name.rpartition(".")[0] not in layers:
            content[name] = np.array(tensors[name])
    for name, array in list(content.items()):
        if name.endswith("word_embeddings.weight"):
            is_stored = f"{name}_scale" in stored
            table = (stored[name], stored[f"{name}_scale"]) if is_stored else _quantize_table(array)
            content[name], content[f"{name}_scale"] = table
    for name, layer in layers.items():
        for part, value in layer._asdict().items():
            if value is not None:
                content[f"{name}.{part}"] = np.ascontiguousarray(value)
    # Written by hand: save_file would keep other users from reading the file.
    write_whole(path, lambda scratch: scratch.write_bytes(safetensors.numpy.save(content)))


def _smoothing(inputs: Array, weight: Array, alpha: float) -> Array:
    """Factors of the input features: large activations shrink, and their weights grow instead."""
    # A feature that slept during calibration may wake later, so none counts as much smaller than the others.
    largest_input = _at_least_a_fifth_of_the_mean(np.abs(inputs).max(axis=0))
    largest_weight = _at_least_a_fifth_of_the_mean(np.abs(weight).max(axis=0))
    factor = largest_weight ** (1 - alpha) / largest_input**alpha
    result: Array = (factor / np.exp(np.log(factor).mean())).astype(np.float32)
    return result
