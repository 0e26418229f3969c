"""Heads at earlier layers in training: they read the first token there, and share every loss with the last.

`add_exits` gives a cross-encoder of sentence-transformers the heads, `ExitLoss` adds up a loss over all heads
of one forward pass, `save_exits` writes what `crossrank.runtime.exits` describes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from crossrank.errors import CheckpointError, InputError
from crossrank.runtime.exits import EXITS_FILE
from crossrank.training.evaluated import evaluated
from crossrank.training.held_out import HeldOutSet

__all__ = ["EXIT_SCORES", "ExitLoss", "add_exits", "exits_of", "measured_exits", "save_exits"]

EXIT_SCORES = "exit_scores"
"""Output of a model with exits: (rows, heads × labels), of the exits in ascending order and then the last."""

_LAYERS = ("encoder.layer", "transformer.layer")  # DistilBERT has the second
# What a model's own head is made of: (dense, classifier) in BERT, in RoBERTa and ELECTRA, in DistilBERT.
_HEADS = (
    ("bert.pooler.dense", "classifier"),
    ("classifier.dense", "classifier.out_proj"),
    ("pre_classifier", "classifier"),
)


def add_exits(model: Any, layers: Sequence[int], folder: Path) -> None:
    """Give a model heads after some of its layers.

    A head that the base has already goes on from there; another begins as a copy of the model's own.

    Args:
        model: a `CrossEncoder` over a plain sequence classifier; afterwards it gives `EXIT_SCORES`, too.
        layers: counted from 1; before the last.
        folder: of the base.

    Raises:
        InputError: a layer that the model has not, or its last.
        CheckpointError: a model that is not of the BERT family.
    """
    transformer = model.transformers_model
    body = _find(getattr(transformer, transformer.base_model_prefix, transformer), _LAYERS)
    own = next((found for names in _HEADS if (found := _linears(transformer, names))), None)
    if body is None or own is None:
        raise CheckpointError(
            f"student.exits: a {type(transformer).__name__} gets no heads at earlier layers; models of the "
            "BERT family do"
        )
    for layer in layers:
        if not 1 <= layer < len(body):
            raise InputError(
                f"student.exits: there can be a head after layers 1 to {len(body) - 1}, not after {layer}"
            )
    stored: Mapping[str, Tensor] = {}
    if (folder / EXITS_FILE).is_file():
        stored = safetensors.torch.load_file(folder / EXITS_FILE)
    exits = nn.ModuleDict()
    for layer in sorted(layers):
        head = nn.ModuleList(_copy(linear) for linear in own)
        mine = {
            name.partition(".")[2]: value for name, value in stored.items() if name.startswith(f"{layer}.")
        }
        if mine:
            try:
                head.load_state_dict(mine)
            except RuntimeError as error:
                raise CheckpointError(f"{folder / EXITS_FILE}: after layer {layer}: {error}") from error
        exits[str(layer)] = head
    # Below the transformer, so that weights, checkpoints, devices and optimisers have it; the model itself
    # runs its modules one after another.
    transformer.exits = exits
    reached: dict[str, Tensor] = {}
    for name in exits:
        body[int(name) - 1].register_forward_hook(_keep_first(reached, name))
    model.register_forward_hook(_score(exits, reached))


def _keep_first(reached: dict[str, Tensor], name: str) -> Any:
    def hook(module: Any, arguments: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        reached[name] = hidden[:, 0]

    return hook


def _score(exits: nn.ModuleDict, reached: dict[str, Tensor]) -> Any:
    def hook(module: Any, arguments: Any, output: dict[str, Tensor]) -> None:
        last = output["scores"]
        scores = []
        for name, head in exits.items():
            dense, classifier = cast("nn.ModuleList", head)
            scores.append(classifier(torch.tanh(dense(reached.pop(name)))).float())
        output[EXIT_SCORES] = torch.cat([*scores, last.view(len(last), -1).float()], dim=1)

    return hook


def exits_of(model: Any) -> tuple[int, ...]:
    """Return the layers after which a model in training has heads, ascending."""
    exits = getattr(getattr(model, "transformers_model", None), "exits", None)
    return tuple(int(name) for name in exits) if isinstance(exits, nn.ModuleDict) else ()


def save_exits(model: Any, folder: Path) -> None:
    """Write a model's heads to a folder that has the model already."""
    exits = model.transformers_model.exits
    weights = {name: value.detach().float().contiguous().cpu() for name, value in exits.state_dict().items()}
    # Written by hand: save_file would keep other users from reading the file.
    (folder / EXITS_FILE).write_bytes(safetensors.torch.save(weights))


def measured_exits(
    model: Any, held_out: HeldOutSet, token_budget: int, preprocess_options: Mapping[str, Any]
) -> dict[int, float]:
    """Return the held-out measure of each head before the last.

    Args:
        model: with or without exits.
        held_out: what is measured.
        token_budget: padded tokens of one forward pass.
        preprocess_options: for `model.preprocess`.
    """
    layers = exits_of(model)
    if not layers:
        return {}
    pairs = [
        (query, text)
        for query, texts in zip(held_out.queries.values(), held_out.documents, strict=True)
        for text in texts
    ]
    scores = evaluated(model, pairs, EXIT_SCORES, token_budget, **preprocess_options)
    bounds = np.cumsum([len(texts) for texts in held_out.documents])[:-1]
    heads = np.split(scores, len(layers) + 1, axis=1)
    return {
        layer: held_out.measured(
            [part[:, 0] if part.shape[1] == 1 else part for part in np.split(head, bounds)]
        ).value
        for layer, head in zip(layers, heads, strict=False)
    }


class ExitLoss(nn.Module):
    """A loss of the last head, and the same of each earlier one with a weight, over one forward pass.

    Args:
        loss: for a model with exits; it is changed: its `model` becomes a view of one head at a time.
        weight: of each earlier head's loss.
    """

    output_name = EXIT_SCORES
    """What a `PackedLoss` is to ask the model for."""

    def __init__(self, loss: nn.Module, weight: float) -> None:
        super().__init__()
        self.model = loss.model
        self._weights = [*[weight] * len(exits_of(loss.model)), 1.0]
        view = _HeadView(self)
        for part in loss.modules():
            if "model" in part._modules:
                del part.model  # a module's child can only be replaced by a module
                part.model = view  # type: ignore[assignment]
        self.loss = loss
        self._head = 0
        self._calls: list[Tensor] = []
        self._next = 0

    def forward(self, inputs: Any, labels: Any, **options: Any) -> Tensor:
        """Return the weighted sum."""
        self._calls = []
        values: list[Tensor] = []
        try:
            for head, weight in enumerate(self._weights):
                self._head, self._next = head, 0
                values.append(weight * self.loss(inputs, labels, **options))
        finally:
            self._calls = []
        return torch.stack(values).sum()

    def _outputs(self, features: Any) -> dict[str, Tensor]:
        model: Any = self.model
        found: dict[str, Tensor] = model(features)
        return found

    def scores(self, features: Any) -> Tensor:
        """Return one head's scores; the first head's loss makes the calls, and the others repeat them."""
        if self._next == len(self._calls):
            found = self._outputs(features)
            # A stand-in that packs mini-batches has been told the name of the output already.
            self._calls.append(found.get(EXIT_SCORES, found["scores"]))
        joint = self._calls[self._next]
        self._next += 1
        return joint.chunk(len(self._weights), dim=1)[self._head].contiguous()


class _HeadView:
    """What a loss takes for its model: the scores of one head."""

    def __init__(self, owner: ExitLoss) -> None:
        self._owner = owner

    def __call__(self, features: Any) -> dict[str, Tensor]:
        return {"scores": self._owner.scores(features)}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._owner.model, name)


def _find(module: Any, paths: Sequence[str]) -> Any:
    modules = dict(module.named_modules())
    return next((modules[path] for path in paths if path in modules), None)


def _linears(transformer: Any, names: tuple[str, str]) -> list[nn.Linear] | None:
    found = [_find(transformer, [name]) for name in names]
    return found if all(isinstance(each, nn.Linear) for each in found) else None


def _copy(linear: nn.Linear) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):  # draws of the model's own stay what they were
        copy = nn.Linear(linear.in_features, linear.out_features)
    copy.load_state_dict({"weight": linear.weight.detach(), "bias": linear.bias.detach()})
    return copy
