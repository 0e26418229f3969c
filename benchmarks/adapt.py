"""What `crossrank adapt` gains and loses on judged collections whose judgements it does not see.

Each collection's documents alone are adapted to; its judgements are measured on before and after, and decide
nothing. Reports stay in the output folder, one folder a collection; an interrupted run goes on.

    python benchmarks/adapt.py ../shared/data/cranfield ../shared/data/cisi ../shared/data/vaswani_npl \
        ../shared/data/nfcorpus_stopped --folder work/adapted --budget-minutes 60
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness

from crossrank import Collection
from crossrank.training.adapt.adaptation import adapt
from crossrank.training.adapt.report import verdict
from crossrank.training.adapt.settings import AdaptationSettings
from crossrank.training.guards import Progress

PACKAGES = ("crossrank", "onnxruntime", "torch", "transformers", "sentence-transformers")


def adapted(folder: Path, split: str, output: Path, settings: AdaptationSettings) -> dict[str, Any]:
    """What an adaptation ended with, done or read if it was done before."""
    written = output / "adaptation.json"
    if not written.is_file():
        documents = [*Collection.open(folder).documents()]
        adapt(documents, output, settings, judged=(folder, split), on_stage=print, on_training=measurements)
    found: dict[str, Any] = json.loads(written.read_text(encoding="utf-8"))
    return found


@contextmanager
def measurements() -> Iterator[Any]:
    """Print what is measured while a model is trained."""

    def tell(told: Progress) -> None:
        if told.measured is not None:
            print(f"  step {told.step:,}/{told.num_steps:,}: {told.measured:.4f}", flush=True)

    yield tell


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("collections", type=Path, nargs="+", help="folders in BEIR form")
    parser.add_argument("--split", default="test")
    parser.add_argument("--folder", type=Path, required=True, help="where adaptations go")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--steps", type=int)
    size.add_argument("--budget-minutes", type=float, help="of the trainings of each collection")
    parser.add_argument("--max-queries", type=int, default=AdaptationSettings().max_queries)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "adapt.json")
    args = parser.parse_args()
    settings = replace(AdaptationSettings(), max_queries=args.max_queries)
    if args.budget_minutes is not None:
        settings = replace(settings, steps=None, budget_minutes=args.budget_minutes)
    elif args.steps is not None:
        settings = replace(settings, steps=args.steps)
    result: dict[str, Any] = {
        "benchmark": "adapt",
        "machine": harness.machine(*PACKAGES),
        "collections": {},
    }
    for folder in args.collections:
        name = folder.resolve().name
        print(f"\n{name}", flush=True)
        found = adapted(folder, args.split, args.folder / name, settings)
        result["settings"] = found["settings"]
        result["collections"][name] = {"kept": found["kept"], **found["stages"]}
        for line in verdict(found):
            print(f"  {line.replace('**', '')}")
        for measured in found["stages"]["measured"]:
            print(f"  {measured['name']}")
            for system, value in measured["systems"].items():
                print(f"    {system:40} {value:.4f}")
    harness.write("adapt", result, args.output)


if __name__ == "__main__":
    main()
