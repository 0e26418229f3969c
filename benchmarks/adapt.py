"""What `crossrank adapt` gains and loses on judged collections whose judgements it does not see.

Each collection's documents alone are adapted to; its judgements are measured on before and after, and decide
nothing. Reports stay in the output folder, one folder a collection; an interrupted run goes on, and what is
known so far is written after each collection.

    python benchmarks/adapt.py ../shared/data/cranfield ../shared/data/cisi ../shared/data/vaswani_npl \
        ../shared/data/nfcorpus_stopped --folder work/adapted --budget-minutes 60
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import harness

from crossrank import BiEncoder, Collection, CrossEncoder
from crossrank.cli.train import quieten
from crossrank.training.adapt.adaptation import adapt
from crossrank.training.adapt.recipes import PARTS, Part
from crossrank.training.adapt.report import verdict
from crossrank.training.adapt.settings import AdaptationSettings
from crossrank.training.guards import Progress

say = partial(print, flush=True)

NAMES = {
    "bi_encoder": "BM25 + bi-encoder",
    "bi_encoder_alone": "bi-encoder",
    "reranker": "reranker",
    "search": "what is kept",
}

PANELS = ("pseudo-queries", "questions that people asked")

PACKAGES = ("crossrank", "onnxruntime", "torch", "transformers", "sentence-transformers")


def adapted(folder: Path, split: str, output: Path, settings: AdaptationSettings) -> dict[str, Any]:
    """What an adaptation ended with, done or read if it was done before."""
    written = output / "adaptation.json"
    if not written.is_file():
        documents = [*Collection.open(folder).documents()]
        adapt(documents, output, settings, judged=(folder, split), on_stage=say, on_training=progress)
    found: dict[str, Any] = json.loads(written.read_text(encoding="utf-8"))
    run = json.loads((output / "training" / "run.json").read_text(encoding="utf-8"))
    same_settings = found["settings"] == json.loads(json.dumps(asdict(settings)))
    if not same_settings or run["made_with"]["models"] != fingerprints(settings):
        raise SystemExit(
            f"{output} was made with other settings or models; remove it, or give another --folder"
        )
    return found


def fingerprints(settings: AdaptationSettings) -> list[str]:
    """Of the two models, opened as `adapt` does: their names stay when a release brings other weights."""
    reranker = CrossEncoder(settings.reranker, long_query="truncate")
    return [BiEncoder(settings.bi_encoder).fingerprint, reranker.fingerprint]


@contextmanager
def progress() -> Iterator[Any]:
    """Print what is measured while a model is trained, and a loss now and then."""

    def tell(told: Progress) -> None:
        if told.measured is not None:
            say(f"  step {told.step:,}/{told.num_steps:,}: {told.measured:.4f}")
        elif told.step % max(1, told.num_steps // 10) == 0:
            rest = f"{told.pairs_per_s:.1f} pairs/s, {told.eta_s:,.0f} s left"
            say(f"  step {told.step:,}/{told.num_steps:,}: loss {told.loss:.4f}, {rest}")

    yield tell


def changes(collections: dict[str, Any]) -> list[dict[str, str]]:
    """A row for each model that was trained, and for the search with what is kept, on each set of queries."""
    rows = []
    for name, found in collections.items():
        for measured in found["measured"]:
            for part, each in measured["comparisons"].items():
                ends = each["difference"]
                rows.append(
                    {
                        "collection": name,
                        "queries": measured["name"],
                        "what": NAMES[part],
                        "before": f"{each['other_mean']['value']:.4f}",
                        "after": f"{each['mean']['value']:.4f}",
                        "difference": f"{ends['value']:+.4f} [{ends['low']:+.4f}, {ends['high']:+.4f}]",
                        "p": f"{each['p_value']:.2g}",
                        "gain / lose": f"{each['wins']} / {each['losses']}",
                        "kept": {True: "yes", False: "no"}.get(found["kept"].get(part), ""),
                    }
                )
    return rows


def as_markdown(result: dict[str, Any], rows: list[dict[str, str]]) -> str:
    """The rows as a table, and of each collection what became of its two models and what that took."""
    lines = [f"By `benchmarks/adapt.py`, {harness.machine_line(result)}.", ""]
    if rows:
        lines += [*harness.markdown_table([*rows[0]], ([*row.values()] for row in rows), words=3), ""]
    outcomes = [
        [
            name,
            f"{found['measured'][0]['documents']:,}",
            *(f"{found['queries']['splits'][split]:,}" for split in ("train", "dev", "test")),
            *(outcome(found, part) for part in PARTS),
            f"{sum(found['seconds'].values()) / 60:.0f}",
        ]
        for name, found in result["collections"].items()
    ]
    columns = ["collection", "documents", "train queries", "dev", "test", "bi-encoder", "reranker", "minutes"]
    lines += harness.markdown_table(columns, outcomes)
    return "\n".join(lines)


def outcome(found: Mapping[str, Any], part: Part) -> str:
    """What became of a model, and what the dev queries said of it while it was trained."""
    training = found[part]
    if training["status"] == "stopped":
        return "old one stays: training was stopped"
    dev = f"{training['dev_before']:.4f} → {training['dev_best']:.4f}, step {training['best_step']}"
    return f"{'new one kept' if found['kept'][part] else 'old one stays'} (dev {dev})"


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Draw the differences, a panel for each set of queries."""
    panels: dict[str, dict[str, dict[str, Any]]] = {}
    for name, found in result["collections"].items():
        for title, measured in zip(PANELS, found["measured"], strict=True):
            for part, each in measured["comparisons"].items():
                series = panels.setdefault(title, {})
                series.setdefault(NAMES[part], {})[name] = each["difference"]
    harness.plot_gains(panels, path, label="change of nDCG@10, 95 % interval")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("collections", type=Path, nargs="+", help="folders in BEIR form")
    parser.add_argument("--split", default="test")
    parser.add_argument("--folder", type=Path, required=True, help="where adaptations go")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--steps", type=int)
    size.add_argument("--budget-minutes", type=float, help="of each collection, for everything")
    parser.add_argument("--reranker", default=AdaptationSettings().reranker)
    parser.add_argument("--bi-encoder", default=AdaptationSettings().bi_encoder)
    parser.add_argument("--max-queries", type=int, default=AdaptationSettings().max_queries)
    parser.add_argument("--output", type=Path, help="JSON file; default: benchmarks/results/adapt.json")
    harness.page_option(parser)
    args = parser.parse_args()
    settings = AdaptationSettings(
        reranker=args.reranker, bi_encoder=args.bi_encoder, max_queries=args.max_queries
    )
    if args.budget_minutes is not None:
        settings = replace(settings, steps=None, budget_minutes=args.budget_minutes)
    elif args.steps is not None:
        settings = replace(settings, steps=args.steps)
    result: dict[str, Any] = {
        "benchmark": "adapt",
        "machine": harness.machine(*PACKAGES),
        "models": fingerprints(settings),
        "collections": {},
    }
    quieten()
    for folder in args.collections:
        Collection.open(folder).qrels(args.split)  # what cannot be read is said now
    for folder in args.collections:
        name = folder.resolve().name
        say(f"\n{name}")
        found = adapted(folder, args.split, args.folder / name, settings)
        result["settings"] = found["settings"]
        result["collections"][name] = {
            "kept": found["kept"],
            "seconds": found["seconds"],
            **found["stages"],
        }
        for line in verdict(found):
            say(f"  {line.replace('**', '')}")
        for measured in found["stages"]["measured"]:
            say(f"  {measured['name']}")
            for system, value in measured["systems"].items():
                say(f"    {system:40} {value:.4f}")
        harness.write("adapt", result, args.output)
    rows = changes(result["collections"])
    # where all old models stay, there is no difference to draw
    harness.publish("adapt", result, as_markdown(result, rows), args, plot=plot if rows else None)


if __name__ == "__main__":
    main()
