"""A training step of a cross-encoder: which arithmetic, which packing, and what gradient caching costs.

Every contestant runs forward and backward over the same lists of passages with the same listwise loss; no
update is made, so all see the same weights. Beside pairs a second is what autograd held at once.

    plain               one forward pass over all pairs of the step, padded to the longest
    packed              mini-batches by length, to a token budget (schedule.gradient_cache: false)
    cached              the same with gradient caching (true)
    ... bf16            under bf16 autocast (precision: bf16)
    ... frozen          without gradients for embeddings and the two lowest layers (freeze)

    python benchmarks/train_speed.py
    python benchmarks/train_speed.py --lists 2 --documents 4 --rounds 1
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness

PACKAGES = ("crossrank", "sentence-transformers", "torch", "transformers")


def steps(model: Any, inputs: Any, labels: Any, budget: int) -> dict[str, Callable[[], None]]:
    import torch

    from crossrank.training.adapting import freeze
    from crossrank.training.losses.gradient_cache import PackedLoss
    from crossrank.training.losses.listwise import ListwiseSoftmax
    from crossrank.training.recipes import Freeze

    def packed(*, cache: bool) -> PackedLoss:
        options = {"processing_kwargs": {"text": {"truncation": "only_second"}}}
        loss = ListwiseSoftmax(model)
        return PackedLoss(loss, token_budget=budget, cache=cache, preprocess_options=options)

    forms = {"plain": ListwiseSoftmax(model), "packed": packed(cache=False), "cached": packed(cache=True)}
    made = {}

    def add(name: str, loss: Any, *, bf16: bool, frozen: bool) -> None:
        def step() -> None:
            model.requires_grad_(True)
            if frozen:
                freeze(model, Freeze(embeddings=True, layers=2))
            model.zero_grad(set_to_none=True)
            autocast = torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else contextlib.nullcontext()
            with autocast:
                value = loss(inputs, labels)
            value.backward()

        made[name] = step

    for name, loss in forms.items():
        add(f"{name}, float32", loss, bf16=False, frozen=False)
        add(f"{name}, bf16", loss, bf16=True, frozen=False)
    add("packed, float32, frozen", forms["packed"], bf16=False, frozen=True)
    add("packed, bf16, frozen", forms["packed"], bf16=True, frozen=True)
    return made


def run(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    import material
    import torch
    from sentence_transformers import CrossEncoder

    from crossrank.runtime.checkpoint import Checkpoint
    from crossrank.runtime.tokenization import Tokenizer
    from crossrank.training.losses.saved_bytes import SavedBytes

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    weights = material.folders(args.weights, "cross-encoder", scratch)
    tokenizer = Tokenizer(Checkpoint.open(weights.float32))
    model = CrossEncoder(str(weights.float32), device="cpu", max_length=args.max_length)
    model.train()
    num_pairs = args.lists * args.documents
    lengths = material.lengths(args.profile, num_pairs).tolist()
    texts = material.texts(lengths, tokenizer)
    queries = material.queries(args.lists)
    documents = [texts[i :: args.lists] for i in range(args.lists)]
    labels = [torch.tensor([1.0] + [0.0] * (args.documents - 1)) for _ in queries]
    contestants = steps(model, (queries, documents), labels, args.token_budget)
    saved = {}
    for name, step in contestants.items():
        harness.say(f"warming up: {name}")
        with SavedBytes(model) as held:
            step()
        saved[name] = held.peak
    load = harness.load_average()
    timings = harness.interleave(contestants, args.rounds)
    return {
        "settings": {
            name: getattr(args, name)
            for name in ("threads", "lists", "documents", "max_length", "token_budget", "profile", "rounds")
        },
        "weights": weights.origin,
        "machine": harness.machine(*PACKAGES),
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


def main() -> None:
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--lists", type=harness.at_least_one, default=8, help="queries a step (default: 8)")
    parser.add_argument("--documents", type=harness.at_least_one, default=8, help="of each (default: 8)")
    parser.add_argument("--max-length", type=harness.at_least_one, default=256)
    parser.add_argument("--token-budget", type=harness.at_least_one, default=2048)
    parser.add_argument("--profile", choices=("marco", "nq", "fixed"), default="nq", help="lengths of texts")
    parser.add_argument("--rounds", type=harness.at_least_one, default=5)
    args = parser.parse_args()
    harness.limit_threads(args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        result = run(args, Path(scratch))
    rows = [
        {
            "step": name,
            "pairs/s": f"{found['pairs_per_s']:.1f}",
            "median s": f"{found['median_s']:.3f}",
            "held for the backward pass": f"{found['saved_bytes'] / 1e6:.0f} MB",
        }
        for name, found in result["contestants"].items()
    ]
    harness.table("a training step", rows)
    harness.print_machine(result)
    harness.write("train_speed", result, args.output)


if __name__ == "__main__":
    main()
