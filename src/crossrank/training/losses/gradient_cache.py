"""Any loss of a model in packed mini-batches, with gradient caching where memory must be bounded.

A loss asks its model for scores of pairs, or for vectors of texts. Here the model is replaced by something
that runs them in mini-batches: sorted by length and packed to a token budget, so that little is padded.
There are two ways.

    packed    the graph of each mini-batch is kept until the backward pass: memory grows with the pairs
    cached    mini-batches are run without a graph; the loss gives the gradient of each score; then each
              mini-batch is run again with its graph and takes its part of the gradient (Gao et al. 2021,
              arXiv:2101.06983): memory is that of one mini-batch, and time that of one forward pass more

Both give the gradients of the plain loss. Dropout draws the same masks in both passes of "cached", since
the generators' state before each mini-batch is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import get_device_states, set_device_states

from crossrank.errors import InputError

__all__ = ["PackedLoss", "pack", "packed_outputs"]


class PackedLoss(nn.Module):
    """A loss whose model is run in packed mini-batches.

    Args:
        loss: for cross-encoders or bi-encoders, one of sentence-transformers' or of
            `crossrank.training.losses.listwise`; it is changed: its `model` (that of a loss within it, too)
            becomes a stand-in, and mini-batches of its own are turned off.
        token_budget: padded tokens of a mini-batch; a longer pair is one of its own.
        cache: gradient caching.
        preprocess_options: keyword arguments for the model's `preprocess` of pairs.

    Attributes:
        model: the model; trainers that wrap it set this.
        num_tokens: tokens that have been read for training, without padding.
    """

    model: Any

    def __init__(
        self,
        loss: nn.Module,
        *,
        token_budget: int,
        cache: bool,
        preprocess_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = loss.model
        self.token_budget = token_budget
        self.cache = cache
        self.preprocess_options = dict(preprocess_options or {})
        self.num_tokens = 0
        self.output_name: str = getattr(loss, "output_name", "scores")  # what pairs are scored by
        stand_in = _StandIn(self)
        for part in loss.modules():
            if "model" in part._modules:
                del part.model  # a module's child can only be replaced by a module
                part.model = stand_in  # type: ignore[assignment]
            if hasattr(part, "mini_batch_size"):
                part.mini_batch_size = -1  # type: ignore[assignment]  # all pairs in one call
        self.loss = loss
        self._recorded: list[_Recorded] | None = None

    def forward(self, inputs: Any, labels: Any, **options: Any) -> Tensor:
        """Return the loss; its backward pass runs the model again where gradients are cached."""
        if not (self.cache and torch.is_grad_enabled()):
            result: Tensor = self.loss(inputs, labels, **options)
            return result
        recorded: list[_Recorded] = []
        self._recorded = recorded
        try:
            value: Tensor = self.loss(inputs, labels, **options)
        finally:
            self._recorded = None
        gradients = torch.autograd.grad(value, [each.leaf for each in recorded])
        result = value.detach().requires_grad_()
        result.register_hook(  # type: ignore[no-untyped-call]
            lambda scale: self._replay(recorded, gradients, scale)
        )
        return result

    def outputs(self, features: Mapping[str, Any], name: str) -> Tensor:
        """Return what the model gives for each row under this name, (rows, n), for the loss inside."""
        batches, run, num_tokens = _mini_batches(self.model, features, name, self.token_budget)
        if torch.is_grad_enabled():
            self.num_tokens += num_tokens
        recorded = self._recorded
        if recorded is None:
            return _in_order([run(rows) for rows in batches], batches)
        for each in recorded:
            each.live = None  # several calls: more than one mini-batch
        alone = len(batches) == 1 and not recorded
        states, parts = [], []
        with nullcontext() if alone else torch.no_grad():
            for rows in batches:
                states.append(_RandomState(self.model.device))
                parts.append(run(rows))
        joined = _in_order(parts, batches)
        leaf = joined.detach().requires_grad_()
        live = joined if alone else None
        recorded.append(_Recorded(run, batches, states, _Autocast(self.model.device), leaf, live))
        return leaf

    def _replay(self, recorded: Sequence[_Recorded], gradients: Sequence[Tensor], scale: Tensor) -> None:
        """Run each mini-batch again, with its graph, and give it its part of the gradient."""
        left = sum(len(each.batches) for each in recorded)
        for each, gradient in zip(recorded, gradients, strict=True):
            if each.live is not None:
                each.live.backward(gradient * scale)  # type: ignore[no-untyped-call]
                return
            for rows, state in zip(each.batches, each.states, strict=True):
                left -= 1
                with torch.enable_grad(), each.autocast(), state.restored(), self._synchronised(left == 0):
                    part = each.run(rows)
                    wanted = gradient[torch.tensor(rows, device=gradient.device)] * scale
                    part.backward(wanted)  # type: ignore[no-untyped-call]

    def _synchronised(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients go between processes once a step, with the last mini-batch."""
        if isinstance(self.model, DistributedDataParallel) and not last:
            context: AbstractContextManager[Any] = self.model.no_sync()
            return context
        return nullcontext()


class _StandIn:
    """What a loss takes for its model: pairs are passed through, and run by the `PackedLoss`."""

    def __init__(self, owner: PackedLoss) -> None:
        self._owner = owner

    def preprocess(self, pairs: Sequence[Any], **options: Any) -> dict[str, Any]:
        return {"pairs": pairs, "options": options}

    def forward(self, features: Mapping[str, Any]) -> dict[str, Tensor]:
        owner = self._owner
        if "pairs" not in features:
            return {"sentence_embedding": owner.outputs(features, "sentence_embedding")}
        inputs = owner.model.preprocess(
            [*features["pairs"]], **features["options"], **owner.preprocess_options
        )
        return {"scores": owner.outputs(inputs, owner.output_name)}

    def __call__(self, features: Mapping[str, Any]) -> dict[str, Tensor]:
        return self.forward(features)  # which a matryoshka loss replaces while it runs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._owner.model, name)


@dataclass
class _Recorded:
    """One call for scores, as it must be repeated; `live` is what need not be, since its graph is there."""

    run: Callable[[list[int]], Tensor]
    batches: Sequence[list[int]]
    states: Sequence[_RandomState]
    autocast: _Autocast
    leaf: Tensor
    live: Tensor | None


class _RandomState:
    """The state of the generators at a moment."""

    def __init__(self, device: torch.device) -> None:
        self._cpu = torch.get_rng_state()
        self._device = device
        self._devices, self._states = get_device_states(torch.empty(0, device=device))

    @contextmanager
    def restored(self) -> Iterator[None]:
        kind = "cuda" if self._device.type == "cpu" else self._device.type
        with torch.random.fork_rng(devices=self._devices, device_type=kind):
            torch.set_rng_state(self._cpu)
            set_device_states(self._devices, self._states)
            yield


class _Autocast:
    """Whether and how autocast was on: the backward pass runs outside of the trainer's context."""

    def __init__(self, device: torch.device) -> None:
        self._kind = device.type
        self._enabled = torch.is_autocast_enabled(device.type)
        self._dtype = torch.get_autocast_dtype(device.type)

    def __call__(self) -> torch.autocast:
        return torch.autocast(self._kind, dtype=self._dtype, enabled=self._enabled)


def packed_outputs(model: Any, features: Mapping[str, Any], name: str, token_budget: int) -> Tensor:
    """Return what a model gives for each row under a name, (rows, n), in packed mini-batches.

    Args:
        model: of sentence-transformers.
        features: what its `preprocess` gave.
        name: of the output.
        token_budget: padded tokens of a mini-batch.

    Raises:
        InputError: features without an attention mask.
    """
    batches, run, _ = _mini_batches(model, features, name, token_budget)
    return _in_order([run(rows) for rows in batches], batches)


def _mini_batches(
    model: Any, features: Mapping[str, Any], name: str, token_budget: int
) -> tuple[list[list[int]], Callable[[list[int]], Tensor], int]:
    """Return the rows of each mini-batch, what runs one, and the tokens of all."""
    lengths, width = _lengths(features)

    def run(rows: list[int]) -> Tensor:
        batch = _rows(features, rows, width, max(lengths[row] for row in rows), model.device)
        found: Tensor = model(batch)[name]
        return found.view(len(rows), -1)

    return pack(lengths, token_budget), run, sum(lengths)


def pack(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Return rows in mini-batches of at most `token_budget` padded tokens, the longest rows first.

    Not `crossrank.runtime.batching.plan`, which keeps rows of different lengths apart so that a score does
    not depend on its batch: training needs fewer, fuller mini-batches instead.
    """
    batches: list[list[int]] = []
    length = 0
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not batches or (len(batches[-1]) + 1) * length > token_budget:
            batches.append([])
            length = lengths[row]
        batches[-1].append(row)
    return batches


def _lengths(features: Mapping[str, Any]) -> tuple[list[int], int]:
    """Return the tokens of each row, and to what they are padded."""
    mask = features.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        raise InputError(
            "inputs of this model cannot be parted into mini-batches: there is no attention mask of rows; "
            "set schedule.gradient_cache: false"
        )
    lengths = mask.sum(1).tolist()
    if any(not bool(row[:length].all()) for row, length in zip(mask, lengths, strict=True)):
        # padded on the left: nothing is cut off
        lengths = [mask.shape[1]] * len(lengths)
    return [max(1, int(length)) for length in lengths], int(mask.shape[1])


def _in_order(parts: Sequence[Tensor], batches: Sequence[list[int]]) -> Tensor:
    """Return what mini-batches gave in the order of the rows."""
    joined = torch.cat([*parts])
    order = torch.tensor([row for rows in batches for row in rows])
    return joined[order.argsort().to(joined.device)]


def _rows(
    features: Mapping[str, Any], rows: list[int], width: int, length: int, device: torch.device
) -> dict[str, Any]:
    """Return some rows of features, with the padding that they do not need cut off."""
    count = len(features["attention_mask"])
    batch = {}
    for name, value in features.items():
        if isinstance(value, Tensor) and value.dim() > 0 and len(value) == count:
            part = value[rows]
            batch[name] = (part[:, :length] if part.dim() > 1 and part.shape[1] == width else part).to(device)
        else:
            batch[name] = value
    return batch
