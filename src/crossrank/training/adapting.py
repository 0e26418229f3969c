"""Which weights of a model are trained: frozen layers, and low-rank adapters."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from crossrank.errors import InputError, require
from crossrank.training.recipes import Freeze, LoRA

__all__ = ["add_lora", "count_trained", "freeze", "merge_lora"]


def freeze(model: Any, choice: Freeze) -> None:
    """Take embeddings and the lowest layers out of training.

    Args:
        model: of sentence-transformers, over a transformer.
        choice: of the recipe.

    Raises:
        InputError: the model has no more layers than are to be frozen.
    """
    transformer = _backbone(model.transformers_model)
    frozen: list[nn.Module] = []
    if choice.embeddings:
        embeddings = getattr(transformer, "embeddings", None)
        frozen.append(embeddings if embeddings is not None else transformer.get_input_embeddings())
    if choice.layers:
        layers = _layers(transformer)
        if choice.layers >= len(layers):
            raise InputError(f"freeze.layers is {choice.layers}, and the model has {len(layers)} layers")
        frozen += layers[: choice.layers]
    for module in frozen:
        module.requires_grad_(False)


def add_lora(model: Any, choice: LoRA) -> None:
    """Give a model low-rank adapters; they are trained, and a head, and nothing else.

    Layers that `freeze` has taken out of training get none.

    Args:
        model: of sentence-transformers, over a transformer.
        choice: of the recipe.

    Raises:
        InputError: targets that the model has not, or that are all frozen.
        MissingExtraError: peft is not there.
    """
    peft = require("peft", "train")
    whole = model.transformers_model
    backbone = _backbone(whole)
    prefix = next((f"{name}." for name, child in whole.named_children() if child is backbone), "")
    head = whole.get_output_embeddings()  # of models that answer with a token
    linear = {
        prefix + name: part
        for name, part in backbone.named_modules()
        if isinstance(part, nn.Linear) and part is not head
    }
    known = {_last(name) for name in linear}
    wanted = known if choice.targets is None else {*choice.targets}
    if wanted - known:
        raise InputError(
            f"lora.targets: there is no linear layer {min(wanted - known)!r}; there are "
            f"{', '.join(sorted(known))}"
        )
    targets = [name for name, part in linear.items() if _last(name) in wanted and part.weight.requires_grad]
    if not targets:
        raise InputError(
            f"lora.targets: every linear layer {' or '.join(sorted(wanted))} is frozen; name others, or "
            "freeze less"
        )
    config = peft.LoraConfig(
        r=choice.rank, lora_alpha=choice.alpha, lora_dropout=choice.dropout, target_modules=targets
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, about how peft calls it
        peft.inject_adapter_in_model(config, whole)  # which freezes all else
    for child in whole.children():
        if backbone is not whole and child is not backbone:
            child.requires_grad_(True)


def merge_lora(model: Any) -> None:
    """Add what the adapters have learnt to the weights, and take them away."""
    tuners = require("peft.tuners.tuners_utils", "train")
    transformer = model.transformers_model
    for name, part in [*transformer.named_modules()]:
        if isinstance(part, tuners.BaseTunerLayer):
            part.merge()
            parent, _, last = name.rpartition(".")
            setattr(transformer.get_submodule(parent), last, part.get_base_layer())


def count_trained(model: nn.Module) -> tuple[int, int]:
    """Return how many parameters are trained, and how many there are."""
    sizes = [(each.numel(), each.requires_grad) for each in model.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)


def _last(name: str) -> str:
    """Return the last part of a module's dotted name."""
    return name.rpartition(".")[2]


def _backbone(transformer: Any) -> Any:
    """Return the model without its head."""
    return getattr(transformer, transformer.base_model_prefix, transformer)


def _layers(backbone: nn.Module) -> list[nn.Module]:
    lists = [part for part in backbone.modules() if isinstance(part, nn.ModuleList) and len(part) > 1]
    if not lists:
        raise InputError("the model has no list of layers to freeze")
    return [*lists[0]]
