"""The loop both training scripts share: schedule, optimiser, checkpoints, progress; stopped runs go on."""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lists import read_lists

STATE = "training_state.pt"


class Step(NamedTuple):
    """What a step's lists give.

    Attributes:
        loss: their mean loss.
        hits: of how many lists the model puts first what is to be first.
        texts: how many passages were read.
    """

    loss: torch.Tensor
    hits: int
    texts: int


def options(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that both scripts have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lists", nargs="+", required=True, help="FILE or FILE:START:STOP")
    parser.add_argument("--base", type=Path, required=True, help="folder of weights to start from")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lists-per-step", type=int, default=6)
    parser.add_argument("--learning-rate", type=float, default=8e-5)
    parser.add_argument("--decay", type=float, default=0.5, help="share of steps in which the rate falls")
    parser.add_argument("--steps", type=int, help="end after so many; default: all lists once")
    parser.add_argument("--token-budget", type=int, default=900, help="tokens a forward pass")
    parser.add_argument("--max-length", type=int, default=384, help="tokens of an input")
    parser.add_argument("--checkpoint-every", type=int, default=100, help="steps")
    parser.add_argument("--seed", type=int, default=13)
    return parser


def shuffled_lists(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The lists of all files, mixed where there are several."""
    lists = [row for spec in args.lists for row in read_lists(spec)]
    if len(args.lists) > 1:
        random.Random(args.seed).shuffle(lists)
    return lists


def train(
    args: argparse.Namespace,
    lists: Sequence[dict[str, Any]],
    parameters: Sequence[torch.nn.Parameter],
    step_of: Callable[[Sequence[dict[str, Any]], random.Random], Step],
    save: Callable[[], None],
) -> None:
    """Run the steps that are left.

    Args:
        args: of `options`.
        lists: in the order in which they are taken.
        parameters: those that are trained.
        step_of: the forward pass of a step's lists.
        save: writes the weights to `args.out`.
    """
    num_steps = args.steps or len(lists) // args.lists_per_step
    optimizer = torch.optim.AdamW(parameters, lr=args.learning_rate, weight_decay=0.01, fused=True)
    warmup = max(1, min(100, num_steps // 20))
    first_step, path = 0, args.out / STATE
    if path.exists():
        state = torch.load(path)
        optimizer.load_state_dict(state["optimizer"])
        first_step = state["step"]

    started, texts, losses, hits = time.monotonic(), 0, [], 0
    for step in range(first_step, num_steps):
        rate = min((step + 1) / warmup, (num_steps - step) / max(1.0, args.decay * num_steps), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * rate
        rows = lists[step * args.lists_per_step : (step + 1) * args.lists_per_step]
        found = step_of(rows, random.Random(args.seed * 1_000_003 + step))
        if not torch.isfinite(found.loss):
            raise SystemExit(f"step {step}: the loss is {found.loss.item()}; nothing was saved after it")
        found.loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        texts, hits = texts + found.texts, hits + found.hits
        losses.append(found.loss.item())
        done = step + 1
        if done % 20 == 0:
            speed = texts / (time.monotonic() - started)
            left = (num_steps - done) * found.texts / speed
            print(
                f"step {done}/{num_steps}  loss {sum(losses) / len(losses):.4f}  "
                f"right passage first {hits / len(losses) / args.lists_per_step:.3f}  "
                f"{speed:.1f} passages/s  {left / 60:.0f} min left",
                flush=True,
            )
            losses, hits = [], 0
        if done % args.checkpoint_every == 0 or done == num_steps:
            save()
            temporary = path.with_suffix(".tmp")
            torch.save({"optimizer": optimizer.state_dict(), "step": done}, temporary)
            temporary.replace(path)
