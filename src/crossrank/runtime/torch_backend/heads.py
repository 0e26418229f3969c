"""What follows an encoder run by torch: scores, or pooled vectors. Always in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch.nn import functional

from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.modules import Dense, LayerNorm, Module, Pooling, PoolingMode
from crossrank.runtime.settings import read_setting
from crossrank.runtime.torch_backend.attention import TokenBatch
from crossrank.runtime.torch_backend.encoder import Encoder, first_prefix
from crossrank.runtime.torch_backend.weights import Linear, Weights, activation

__all__ = ["open_head", "open_modules", "pool"]

Head = Callable[[Encoder, TokenBatch], torch.Tensor]

# (dense, activation, classifier) of each architecture's ForSequenceClassification class, as in encoders/*.py.
_CLASSIFIERS = {
    "bert": ("pooler.dense", "tanh", "classifier"),
    "electra": ("classifier.dense", "gelu", "classifier.out_proj"),
    "roberta": ("classifier.dense", "tanh", "classifier.out_proj"),
    "distilbert": ("pre_classifier", "relu", "classifier"),
    "deberta-v2": ("pooler.dense", "gelu", "classifier"),
    "modernbert": ("head.dense", "gelu", "classifier"),
}


def open_head(weights: Weights, checkpoint: Checkpoint) -> Head:
    """Open what gives a checkpoint's scores: the modules of a modular cross-encoder, or its trained head.

    Returns:
        A function of encoder and batch that gives logits (rows, labels) float32.
    """
    if checkpoint.is_modular_cross_encoder:
        pooling = checkpoint.modules[0]
        assert isinstance(pooling, Pooling)  # the graph was written
        after = open_modules(checkpoint.modules[1:], weights.device)
        return lambda encoder, batch: after(_pooled(encoder, batch, pooling.modes[0]))
    config, architecture = checkpoint.config, checkpoint.architecture
    dense_name, kind, classifier_name = _CLASSIFIERS[architecture]
    if architecture == "bert":  # the pooler is the encoder's own
        dense_name = first_prefix(weights, ("bert.", ""), f"{dense_name}.weight") + dense_name
    if architecture == "deberta-v2":
        kind = read_setting(config, "pooler_hidden_act", str, kind)
    mode: PoolingMode = "cls"
    layers: list[Callable[[torch.Tensor], torch.Tensor]] = [weights.head_linear(dense_name)]
    if architecture == "modernbert":
        kind = read_setting(config, "classifier_activation", str, kind)
        mode = "mean" if config.get("classifier_pooling") == "mean" else "cls"
        norm = weights.norm("head.norm", config.get("norm_eps", 1e-5), torch.float32)
        layers += [activation(kind), norm]
    else:
        layers.append(activation(kind))
    layers.append(weights.head_linear(classifier_name))
    return lambda encoder, batch: _applied(layers, _pooled(encoder, batch, mode))


def open_modules(modules: Sequence[Module], device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """Open modules that make a vector of a vector, as `crossrank.models.pooling.apply_modules` computes them.

    Returns:
        A function of (rows, in), float32, that gives (rows, out).
    """
    weights = Weights({}, device, torch.float32)
    return partial(_applied, [_open_module(weights, module) for module in modules])


def pool(
    vectors: torch.Tensor, batch: TokenBatch, modes: Sequence[PoolingMode], skip: int = 0
) -> torch.Tensor:
    """Make one vector a row of its tokens', as `crossrank.models.pooling.pool` does, on the device.

    Args:
        vectors: (tokens, hidden).
        batch: says where rows are.
        modes: their results are joined, in this order.
        skip: tokens at the beginning of each row that do not count: a prompt's.

    Returns:
        (rows, len(modes) × hidden) float32.
    """
    vectors = vectors.float()
    counts = (batch.positions >= skip).float()
    real = vectors * counts[:, None] if skip else vectors
    starts = batch.starts.long()
    lengths = starts.diff()
    num_tokens = (lengths - skip).clamp(min=1)[:, None]
    lasts = (starts[1:] - 1).clamp(min=0)

    def summed(values: torch.Tensor) -> torch.Tensor:
        return torch.segment_reduce(values, "sum", offsets=starts, unsafe=True)

    parts = []
    for mode in modes:
        if mode == "cls":
            part = real.index_select(0, torch.minimum(batch.firsts.long() + skip, lasts))
        elif mode == "lasttoken":
            part = real.index_select(0, lasts)
        elif mode == "max":
            shown = vectors.masked_fill(counts[:, None] == 0, -torch.inf) if skip else vectors
            part = torch.segment_reduce(shown, "max", offsets=starts, unsafe=True)
            part = part.masked_fill((lengths <= skip)[:, None], 0)
        elif mode == "weightedmean":
            weights = (counts * (batch.positions + 1))[:, None]
            part = summed(vectors * weights) / summed(weights).clamp(min=1)
        else:
            part = summed(real) / (num_tokens if mode == "mean" else num_tokens.sqrt())
        parts.append(part)
    return torch.cat(parts, dim=1)


def _pooled(encoder: Encoder, batch: TokenBatch, mode: PoolingMode) -> torch.Tensor:
    if mode == "cls":
        return encoder.first(batch).float()
    return pool(encoder.tokens(batch), batch, (mode,))


def _applied(layers: Sequence[Callable[[torch.Tensor], torch.Tensor]], x: torch.Tensor) -> torch.Tensor:
    for layer in layers:
        x = layer(x)
    return x


def _open_module(weights: Weights, module: Module) -> Callable[[torch.Tensor], torch.Tensor]:
    if isinstance(module, Dense):
        bias = None if module.bias is None else weights.copied(module.bias)
        residual: Linear | str | None = None
        if module.residual is not None:
            stated = module.residual
            residual = stated if isinstance(stated, str) else Linear(weights.copied(stated), None)
        return _DenseLayer(Linear(weights.copied(module.weight), bias), module.activation, residual)
    if isinstance(module, LayerNorm):
        weight, bias = weights.copied(module.weight), weights.copied(module.bias)
        return lambda x: functional.layer_norm(x, weight.shape, weight, bias, 1e-5)
    return lambda x: functional.normalize(x, dim=1, eps=1e-12)


class _DenseLayer:
    """A Dense module: linear, activation, and perhaps what went in added to it."""

    def __init__(self, linear: Linear, kind: str, residual: Linear | str | None) -> None:
        self._linear = linear
        self._activation = activation(kind)
        self._residual = residual

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        y = self._activation(self._linear(x))
        if self._residual is None:
            return y
        return y + (x if isinstance(self._residual, str) else self._residual(x))
