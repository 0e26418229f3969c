"""Recipes: small YAML files with everything that changes what a training ends with."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from crossrank.errors import FileFormatError, InputError, require
from crossrank.training.typed_fields import limited, read_fields

__all__ = [
    "DataSource",
    "Freeze",
    "Guards",
    "HeldOut",
    "Lengths",
    "LoRA",
    "LossChoice",
    "Recipe",
    "Schedule",
    "StudentChoice",
    "read_recipe",
]


@dataclass(frozen=True)
class StudentChoice:
    """The model that is trained.

    Attributes:
        kind: a kind of `crossrank.training.students`: "cross_encoder", "bi_encoder", ...
        base: what training starts from: a folder or a name on the hub, with float32 weights.
        revision: commit, tag or branch of a base from the hub.
        classes: names of the outputs of a classifier, in their order; None for one score.
        dimensions: of token vectors, for late interaction from a base without a projection; None is 128.
        exits: layers (counted from 1, before the last) after which a cross-encoder gets a head of its own,
            trained together with the last one: see `crossrank.runtime.exits`.
        exit_weight: of the loss of each of these heads, where that of the last counts 1.
    """

    kind: str
    base: str
    revision: str | None = None
    classes: tuple[str, ...] | None = None
    dimensions: int | None = limited(None, least=1)
    exits: tuple[int, ...] | None = None
    exit_weight: float = limited(0.3, least=0.0)

    def __post_init__(self) -> None:
        if self.exits is None:
            return
        if self.kind != "cross_encoder":
            raise InputError(f"exits are heads of a cross_encoder, not of a {self.kind}")
        if not self.exits or len({*self.exits}) < len(self.exits) or min(self.exits) < 1:
            raise InputError(f"exits must be different layers counted from 1, not {[*self.exits]}")


@dataclass(frozen=True)
class DataSource:
    """A file of training data: see `crossrank.training.examples` for what it may look like.

    Attributes:
        file: JSON lines (also gzipped) or Parquet, as `crossrank mine` writes them.
        limit: the most queries that are taken from it.
        share: of its queries, drawn with the recipe's seed; more than 0.
        label_range: the lowest and highest label, which become 0 and 1: [0, 5] for graded similarity.
    """

    file: str
    limit: int | None = limited(None, least=1)
    share: float = limited(1.0, least=0.0, most=1.0)
    label_range: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.share == 0:
            raise InputError("share is 0, which leaves no query; leave the file out, or give a share up to 1")
        if self.label_range is not None and not (
            len(self.label_range) == 2 and self.label_range[0] < self.label_range[1]
        ):
            raise InputError("label_range must be [lowest, highest]")


@dataclass(frozen=True)
class LossChoice:
    """The loss by its name in the table of `crossrank.training.losses.table`, with its options.

    Attributes:
        name: "lce", "kl", "mnr", ...
        options: what else stands beside the name; read by the loss's own dataclass.
        matryoshka: dimensions that the first components must work for, too (bi-encoders; Kusupati et al.
            2022, arXiv:2205.13147); None for the whole vector only.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict, metadata={"inner": True})
    matryoshka: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Schedule:
    """How long, how fast, and in what pieces.

    Attributes:
        epochs: times over the data; None with `steps`.
        steps: updates of the weights; None with `epochs`.
        learning_rate: the highest.
        warmup: share of the steps in which the rate rises from 0.
        decay: how it falls from there.
        weight_decay: of AdamW; biases and norms have none.
        max_gradient_norm: longer gradients are scaled down; 0 for none.
        lists_per_step: rows of data an update; a row is a query with its documents (pairs and triplets are
            counted alone).
        accumulate: updates are of this many times `lists_per_step`.
        list_size: documents a query at most, positives included; at least 2.
        gradient_cache: scores of a step are computed twice and only `token_budget` tokens of them are held
            for the gradient at a time; false holds all. auto is true for lists.
        token_budget: padded tokens of one forward pass; None is what is fast on the device: see
            `padded_tokens`.
        checkpoint_every: steps between two checkpoints, where nothing is held out; with `held_out`, each
            measurement comes with one.
    """

    epochs: float | None = limited(None, least=0.0)
    steps: int | None = limited(None, least=1)
    learning_rate: float = limited(2e-5, least=0.0)
    warmup: float = limited(0.1, least=0.0, most=1.0)
    decay: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: float = limited(0.01, least=0.0)
    max_gradient_norm: float = limited(1.0, least=0.0)
    lists_per_step: int = limited(8, least=1)
    accumulate: int = limited(1, least=1)
    list_size: int = limited(8, least=1)
    gradient_cache: bool | Literal["auto"] = "auto"
    token_budget: int | None = limited(None, least=1)
    checkpoint_every: int = limited(100, least=1)

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise InputError("give one of epochs and steps")
        if self.epochs == 0:
            raise InputError("epochs must be more than 0")
        if self.list_size == 1:
            raise InputError(
                "list_size is 1, which leaves a positive without a document to compare it with; give 2 or "
                "more (sentence pairs, of one document each, stay as they are)"
            )

    def padded_tokens(self, *, on_cpu: bool) -> int:
        """Return `token_budget`, or 1024 on a CPU, whose caches hold no more, and 4096 elsewhere."""
        if self.token_budget is not None:
            return self.token_budget
        return 1024 if on_cpu else 4096


@dataclass(frozen=True)
class Lengths:
    """How much of a text is read.

    Attributes:
        max_length: tokens of an input, special ones included; None is what the base has.
        max_query_length: tokens of a query; a longer one counts as cut. None is half of `max_length`.
    """

    max_length: int | None = limited(None, least=8)
    max_query_length: int | None = limited(None, least=1)


@dataclass(frozen=True)
class Freeze:
    """What stays as it is.

    Attributes:
        embeddings: the embeddings, words' and positions'.
        layers: the lowest layers.
    """

    embeddings: bool = False
    layers: int = limited(0, least=0)


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters instead of all weights (Hu et al. 2021, arXiv:2106.09685), by peft.

    They are merged into the weights at the end.

    Attributes:
        rank: of the update of each matrix.
        alpha: the update is scaled by alpha / rank.
        dropout: on the adapters' input.
        targets: names of the linear layers; None takes all linear layers but the head.
    """

    rank: int = limited(8, least=1)
    alpha: float = limited(16.0, least=0.0)
    dropout: float = limited(0.0, least=0.0, most=1.0)
    targets: tuple[str, ...] | None = None


@dataclass(frozen=True)
class HeldOut:
    """What the model is measured on while it trains; never trained on.

    Without `collection` and `file`, some queries of the training data are held out, with their documents.

    Attributes:
        collection: a folder in BEIR form: candidates of a first stage are reranked.
        file: or a file of lists or pairs like the training data: its documents are ranked.
        split: which judgements of the collection.
        candidates: "bm25", or the name of a run of the collection.
        depth: candidates a query.
        queries: the most queries; they are drawn with the recipe's seed. None takes all, and of training
            data a twentieth: at least 20, or a fifth where there are few, and at most 200.
        measure: a measure of `crossrank.evaluation`, or "spearman" or "accuracy" for pairs of sentences.
        every: steps between two measurements, and between two checkpoints.
        patience: measurements without a new best after which training stops; None never.
    """

    collection: str | None = None
    file: str | None = None
    split: str = "test"
    candidates: str = "bm25"
    depth: int = limited(50, least=2)
    queries: int | None = limited(None, least=1)
    measure: str = "nDCG@10"
    every: int = limited(100, least=1)
    patience: int | None = limited(None, least=1)

    def __post_init__(self) -> None:
        if self.collection is not None and self.file is not None:
            raise InputError("give one of collection and file")
        if self.collection is None and (self.split, self.candidates, self.depth) != ("test", "bm25", 50):
            raise InputError("split, candidates and depth are of a collection: name it")


@dataclass(frozen=True)
class Guards:
    """When training stops because it goes wrong.

    Attributes:
        below_baseline: how far the held-out measure may fall below that of the base.
        after: steps before that counts: a new head needs some.
        constant_scores: a standard deviation of held-out scores below this is a collapse.
        truncated_positives: the share of positives that may be cut by `max_length`.
    """

    below_baseline: float = limited(0.05, least=0.0)
    after: int = limited(0, least=0)
    constant_scores: float = limited(1e-4, least=0.0)
    truncated_positives: float = limited(0.5, least=0.0, most=1.0)


@dataclass(frozen=True)
class Recipe:
    """Everything that changes what a training ends with; see the parts.

    Attributes:
        student: the model.
        data: files of training data, mixed.
        loss: what is minimised.
        schedule: how long, how fast.
        output: the folder of the trained model; no part of what decides the result.
        held_out: what it is measured on; by default some of the training data's queries. None measures
            nothing, and guards nothing but the loss.
        seed: of draws, shuffling, dropout and new weights.
        lengths: how much of a text is read.
        precision: of the forward and backward pass; weights stay float32. auto takes bf16 where it is
            measured to be faster on this machine.
        attention: auto takes the form that is faster in that arithmetic on a CPU (see `attention.py`); sdpa
            is torch's fused one everywhere.
        freeze: what stays as it is.
        lora: adapters instead of all weights.
        base_share: how far back to the base's weights those go that are measured and kept: 0.5 is half way,
            which gives up some of what was learnt and forgets less (see `interpolation.py`). For bases that
            have all of the model's layers: a new head has nothing to go back to.
        guards: when training stops because it goes wrong.
    """

    student: StudentChoice
    data: tuple[DataSource, ...]
    loss: LossChoice
    schedule: Schedule
    output: str
    held_out: HeldOut | None = field(default_factory=HeldOut)
    seed: int = limited(13, least=0)
    lengths: Lengths = field(default_factory=Lengths)
    precision: Literal["float32", "bf16", "auto"] = "auto"
    attention: Literal["auto", "sdpa"] = "auto"
    freeze: Freeze = field(default_factory=Freeze)
    lora: LoRA | None = None
    base_share: float = limited(0.0, least=0.0, most=1.0)
    guards: Guards = field(default_factory=Guards)

    def __post_init__(self) -> None:
        if not self.data:
            raise InputError("data must name one file or more")
        if self.base_share == 1:
            raise InputError("base_share is 1, which keeps nothing of what is learnt; give less")
        if self.base_share and self.lora is not None:
            raise InputError("base_share is for weights that are trained themselves: leave it or lora out")

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, as a recipe file has them: `read_recipe` reads them back."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        plain["loss"] = {"name": self.loss.name, **plain["loss"]["options"]}
        if self.loss.matryoshka is not None:
            plain["loss"]["matryoshka"] = [*self.loss.matryoshka]
        return plain


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file.

    Args:
        path: YAML. Paths in it are relative to the working directory, as a command's own are.
        overrides: KEY=VALUE with dots for keys in keys ("schedule.steps=100"); the value is YAML, too.

    Raises:
        InputError: an override that is none, or a recipe with keys that are not known or missing, or values
            of another type; names file, key and what is allowed.
        FileFormatError: no such file, or no YAML.
        MissingExtraError: PyYAML is not there.
    """
    path = Path(path)
    yaml = require("yaml", "train")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileFormatError(f"cannot be read: {error.strerror or error}", path) from error
    except UnicodeDecodeError as error:
        raise FileFormatError(f"not UTF-8: {error}", path) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise FileFormatError(f"not YAML: {problem}", path, mark and mark.line + 1) from error
    if not isinstance(values, dict):
        raise FileFormatError("a recipe is a mapping of keys such as student, data and loss", path)
    for override in overrides:
        _override(values, override, yaml)
    try:
        return recipe_of(values)
    except InputError as error:
        raise FileFormatError(str(error), path) from None


def recipe_of(values: Mapping[str, Any]) -> Recipe:
    """Return a recipe from plain values, as a recipe file has them.

    Raises:
        InputError: see `read_recipe`.
    """
    from crossrank.training.losses.table import check_caching, loss_named, options_of
    from crossrank.training.students import student_of

    options: dict[str, Any] = {}
    if isinstance(values.get("loss"), Mapping):
        loss = dict(values["loss"])
        options = {key: loss.pop(key) for key in [*loss] if key not in ("name", "matryoshka")}
        values = {**values, "loss": loss}
    recipe = read_fields(Recipe, values)
    recipe = dataclasses.replace(recipe, loss=dataclasses.replace(recipe.loss, options=options))
    named = loss_named(recipe.loss, student_of(recipe.student).family)
    options_of(recipe.loss, named)
    check_caching(recipe.schedule.gradient_cache, named)
    return recipe


def _override(values: dict[str, Any], override: str, yaml: Any) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise InputError(f"{override!r} sets nothing; give KEY=VALUE, such as schedule.steps=100")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"{override!r}: the value is not YAML") from None
    *parents, last = key.strip().split(".")
    inner = values
    for parent in parents:
        within = inner.get(parent)
        if within is None:
            within = inner[parent] = {}
        if not isinstance(within, dict):
            raise InputError(f"{override!r}: {parent} has no keys in it")
        inner = within
    inner[last] = value
