"""Training a cross-encoder: against sentence-transformers' trainer, and what a step is made of.

Trainings: the same lists of passages, the same base, loss (ListNet) and lists a step. A training's time is
the median of its steps, updates included, without the first one.

    crossrank train             a recipe's defaults: precision and attention by machine, gradient caching
    ... gradient_cache: false   without it, where the memory is there
    CrossEncoderTrainer         its defaults: float32, mini-batches of as many pairs as lists a step
    ... mini-batch N, bf16      other mini-batches, and bf16=True; the table names the best of all

Steps: every contestant runs forward and backward over the same lists with the same listwise loss; no update
is made, so all see the same weights. Beside pairs a second is what autograd held at once.

    plain               one forward pass over all pairs of the step, padded to the longest
    packed              mini-batches by length, to a token budget (schedule.gradient_cache: false)
    cached              the same with gradient caching (true)
    ... bf16            under bf16 autocast (precision: bf16)
    ... bf16 weights    a copy of the weights in bf16, as is kept beside float32 ones that are updated
    ... fused           with torch's fused attention (attention: sdpa)
    ... frozen          without gradients for embeddings and the two lowest layers (freeze)

    python benchmarks/train_speed.py --page docs/training.md
    python benchmarks/train_speed.py --only trainings --mini-batches 16 64 256
    python benchmarks/train_speed.py --lists 2 --documents 4 --rounds 1 --train-steps 3 --mini-batches 4
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness

PACKAGES = ("crossrank", "sentence-transformers", "torch", "transformers")


class Material:
    """The base, and lists of one relevant passage among others.

    Args:
        args: of the command line.
        scratch: a folder for what is written.
    """

    def __init__(self, args: argparse.Namespace, scratch: Path) -> None:
        import material

        from crossrank.runtime.checkpoint import Checkpoint
        from crossrank.runtime.tokenization import Tokenizer

        scratch.mkdir()
        self.weights = material.folders(args.weights, "cross-encoder", scratch)
        self.base = self.weights.float32
        tokenizer = Tokenizer(Checkpoint.open(self.base))
        lengths = material.lengths(args.profile, args.lists * args.documents).tolist()
        texts = material.texts(lengths, tokenizer)
        self.queries = [f"{query} {i}" for i, query in enumerate(material.queries(args.lists))]
        # no list may have a text twice
        self.documents = [
            [f"{j} {text}" for j, text in enumerate(texts[i :: args.lists])] for i in range(args.lists)
        ]
        self.labels = [[1.0] + [0.0] * (args.documents - 1) for _ in self.queries]
        self.max_length = args.max_length

    def model(self) -> Any:
        from sentence_transformers import CrossEncoder

        return CrossEncoder(str(self.base), device="cpu", max_length=self.max_length)


def by_recipe(material: Material, scratch: Path, steps: int, **schedule: Any) -> tuple[list[float], str]:
    """The seconds of each step of `crossrank train`, and the arithmetic it chose."""
    from crossrank.training.recipes import recipe_of
    from crossrank.training.train import train

    data = scratch / "lists.jsonl"
    rows = [
        {"query": query, "documents": documents, "labels": labels}
        for query, documents, labels in zip(
            material.queries, material.documents, material.labels, strict=True
        )
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    size = {"lists_per_step": len(material.queries), "list_size": len(material.documents[0])}
    recipe = recipe_of(
        {
            "student": {"kind": "cross_encoder", "base": str(material.base)},
            "held_out": None,
            "data": [{"file": str(data)}],
            "loss": {"name": "listnet"},
            "schedule": {"steps": steps, **size, "checkpoint_every": steps, **schedule},
            "lengths": {"max_length": material.max_length},
            "guards": {"truncated_positives": 1.0},
            "output": str(scratch / f"trained-{time.monotonic_ns()}"),
        }
    )
    ends: list[float] = []
    report = train(recipe, report=lambda told: ends.append(time.perf_counter()))
    # the last step is told of after its checkpoint
    return [b - a for a, b in itertools.pairwise(ends[:-1])], report.precision


def by_trainer(
    material: Material, scratch: Path, steps: int, *, mini_batch: int | None, bf16: bool
) -> list[float]:
    """The seconds of each step of sentence-transformers' trainer."""
    from datasets import Dataset
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import ListNetLoss
    from transformers import PrinterCallback, TrainerCallback

    ends: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

    model = material.model()
    columns = {"query": material.queries, "docs": material.documents, "labels": material.labels}
    trainer = CrossEncoderTrainer(
        model=model,
        args=CrossEncoderTrainingArguments(
            output_dir=str(scratch / "trainer"),
            per_device_train_batch_size=len(material.queries),
            max_steps=steps,
            bf16=bf16,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict(columns),
        loss=ListNetLoss(model, mini_batch_size=mini_batch),
        callbacks=[Clock()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return [b - a for a, b in itertools.pairwise(ends)]


def trainings(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """The median step of each training, in pairs a second."""
    material = Material(args, scratch)
    steps = args.train_steps
    num_pairs = args.lists * args.documents
    found: dict[str, list[float]] = {}
    chosen: dict[str, str] = {}

    def contestants() -> Iterator[tuple[str, Callable[[], tuple[list[float], str]]]]:
        yield "crossrank train", lambda: by_recipe(material, scratch, steps)
        yield (
            "crossrank train, gradient_cache: false",
            lambda: by_recipe(material, scratch, steps, gradient_cache=False),
        )
        for bf16 in (False, True):
            for mini_batch in (None, *args.mini_batches):
                name = "CrossEncoderTrainer" + (f", mini-batch {mini_batch}" if mini_batch else "")
                yield (
                    name + (", bf16" if bf16 else ""),
                    lambda mini_batch=mini_batch, bf16=bf16: (  # type: ignore[misc]
                        by_trainer(material, scratch, steps, mini_batch=mini_batch, bf16=bf16),
                        "bf16" if bf16 else "float32",
                    ),
                )

    load = harness.load_average()
    for turn in range(args.rounds):
        for name, run in contestants():
            harness.say(f"training {turn + 1}: {name}")
            seconds, chosen[name] = run()
            found.setdefault(name, []).extend(seconds)
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    peers = {name: each for name, each in medians.items() if name.startswith("CrossEncoderTrainer")}
    best = min(peers, key=lambda name: peers[name])
    return {
        "steps": steps,
        "load_average_before": load,
        "best_of_trainer": best,
        "contestants": {
            name: {
                "pairs_per_s": round(num_pairs / median, 2),
                "median_s": round(median, 4),
                "precision": chosen[name],
                "against_defaults": round(medians["CrossEncoderTrainer"] / median, 2),
                "against_best": round(peers[best] / median, 2),
            }
            for name, median in medians.items()
        },
    }


def steps(model: Any, halved: Any, inputs: Any, labels: Any, budget: int) -> dict[str, Callable[[], None]]:
    """Name of each contestant -> its step; `halved` is the model with its weights in bf16."""
    import torch

    from crossrank.training.adapting import freeze
    from crossrank.training.attention import faster_attention
    from crossrank.training.losses.gradient_cache import PackedLoss
    from crossrank.training.losses.listwise import ListwiseSoftmax
    from crossrank.training.recipes import Freeze

    def packed(of: Any = model, *, cache: bool) -> PackedLoss:
        options = {"processing_kwargs": {"text": {"truncation": "only_second"}}}
        loss = ListwiseSoftmax(of)
        return PackedLoss(loss, token_budget=budget, cache=cache, preprocess_options=options)

    forms = {"plain": ListwiseSoftmax(model), "packed": packed(cache=False), "cached": packed(cache=True)}
    made = {}

    def add(
        name: str,
        loss: Any,
        of: Any = model,
        *,
        bf16: bool = False,
        frozen: bool = False,
        fused: bool = False,
    ) -> None:
        def step() -> None:
            of.requires_grad_(True)
            if frozen:
                freeze(of, Freeze(embeddings=True, layers=2))
            of.zero_grad(set_to_none=True)
            autocast = torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else contextlib.nullcontext()
            with contextlib.nullcontext() if fused else faster_attention(of):
                with autocast:
                    value = loss(inputs, labels)
                value.backward()

        made[name] = step

    for name, loss in forms.items():
        add(f"{name}, float32", loss)
        add(f"{name}, bf16", loss, bf16=True)
    add("packed, bf16, fused", forms["packed"], bf16=True, fused=True)
    add("packed, bf16 weights", packed(halved, cache=False), halved)
    add("packed, float32, frozen", forms["packed"], frozen=True)
    add("packed, bf16, frozen", forms["packed"], bf16=True, frozen=True)
    return made


def run(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    import torch

    from crossrank.training.losses.saved_bytes import SavedBytes

    torch.manual_seed(0)
    material = Material(args, scratch)
    model = material.model()
    model.train()
    num_pairs = args.lists * args.documents
    labels = [torch.tensor(each) for each in material.labels]
    halved = copy.deepcopy(model).bfloat16()
    inputs = (material.queries, material.documents)
    contestants = steps(model, halved, inputs, labels, args.token_budget)
    saved = {}
    for name, step in contestants.items():
        harness.say(f"warming up: {name}")
        with SavedBytes(torch.nn.ModuleList([model, halved])) as held:
            step()
        saved[name] = held.peak
    load = harness.load_average()
    timings = harness.interleave(contestants, args.rounds)
    return {
        "load_average_before": load,
        "contestants": {
            name: {
                "pairs_per_s": round(num_pairs / timing.median_s, 2),
                "saved_bytes": saved[name],
                **timing.summary(),
            }
            for name, timing in timings.items()
        },
    }


def text(result: dict[str, Any]) -> str:
    """The page's tables, as Markdown."""
    settings = result["settings"]
    lines = [
        f"By `benchmarks/train_speed.py`, {settings['threads']} threads, {harness.machine_line(result)}. "
        f"Steps of {settings['lists']} queries with {settings['documents']} documents each "
        f"({settings['profile']}), up to {settings['max_length']} tokens; medians.",
    ]
    if "trainings" in result:
        found = result["trainings"]
        columns = [
            "training",
            "pairs/s",
            "s a step",
            "precision",
            "times the peer's defaults",
            "times its best",
        ]
        rows = [
            [
                name + (" (its best)" if name == found["best_of_trainer"] else ""),
                f"{each['pairs_per_s']:.1f}",
                f"{each['median_s']:.2f}",
                each["precision"],
                f"{each['against_defaults']:.2f}",
                f"{each['against_best']:.2f}",
            ]
            for name, each in found["contestants"].items()
        ]
        lines += ["", f"Load average before: {found['load_average_before']}.", ""]
        lines += harness.markdown_table(columns, rows)
    if "steps" in result:
        found = result["steps"]
        columns = ["a step without its update", "pairs/s", "s", "held for the backward pass"]
        rows = [
            [
                name,
                f"{each['pairs_per_s']:.1f}",
                f"{each['median_s']:.2f}",
                f"{each['saved_bytes'] / 1e6:,.0f} MB",
            ]
            for name, each in found["contestants"].items()
        ]
        lines += ["", f"Load average before: {found['load_average_before']}.", ""]
        lines += harness.markdown_table(columns, rows)
    return "\n".join(lines)


def main() -> None:
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--lists", type=harness.at_least_one, default=8, help="queries a step (default: 8)")
    parser.add_argument("--documents", type=harness.at_least_one, default=8, help="of each (default: 8)")
    parser.add_argument("--max-length", type=harness.at_least_one, default=256)
    parser.add_argument("--token-budget", type=harness.at_least_one, default=1024, help="of single steps")
    parser.add_argument("--profile", choices=("marco", "nq", "fixed"), default="nq", help="lengths of texts")
    parser.add_argument("--rounds", type=harness.at_least_one, default=3)
    parser.add_argument("--only", choices=("trainings", "steps"), help="one of the two tables")
    parser.add_argument("--train-steps", type=harness.at_least_one, default=8, help="of each training")
    parser.add_argument(
        "--mini-batches",
        type=harness.at_least_one,
        nargs="+",
        default=[4, 16, 64],
        help="of the peer's trainer beside its default, in pairs",
    )
    harness.page_option(parser)
    args = parser.parse_args()
    if args.train_steps < 3:
        parser.error("--train-steps must be 3 or more: the first and the last are not timed")
    harness.limit_threads(args.threads)
    import torch

    torch.set_num_threads(args.threads)
    result: dict[str, Any] = {
        "benchmark": "train_speed",
        "settings": {
            name: getattr(args, name)
            for name in ("threads", "lists", "documents", "max_length", "token_budget", "profile", "rounds")
        },
        "machine": harness.machine(*PACKAGES),
    }
    with tempfile.TemporaryDirectory() as scratch:
        if args.only != "steps":
            result["trainings"] = trainings(args, Path(scratch, "trainings"))
        if args.only != "trainings":
            result["steps"] = run(args, Path(scratch, "steps"))
    harness.publish("train_speed", result, text(result), args)


if __name__ == "__main__":
    main()
