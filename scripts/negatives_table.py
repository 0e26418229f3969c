"""What negatives do: a small cross-encoder trained with random, BM25 and bi-encoder negatives, in one table.

All three start from the same reranker, and see the same queries with the same positives in the same number
of steps; only where the negatives are from differs. Each is trained with several seeds, and measured by
reranking the same BM25 candidates: of SQuAD's dev questions, and of other collections that are named. A
query's value is the mean over the seeds.

    python scripts/negatives_table.py --squad ../shared/data/squad11 --also ../shared/data/scifact
    python scripts/negatives_table.py --squad ../shared/data/squad11 --queries 24 --passages 200 --work small
    python scripts/negatives_table.py --squad ../shared/data/squad11 --base crossrank-embed  # with a new head

Stopped at any moment it goes on when it is called again. Writes benchmarks/results/negatives.json; on 2 cores
it is sized for some 25 minutes. With --output benchmarks/results/negatives_new_head.json the page's section
is "negatives_new_head".
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from crossrank import BM25, BiEncoder, Collection, CrossEncoder, Dense, Document, load
from crossrank.cli.train import quieten
from crossrank.evaluation.significance import compare, mean_interval
from crossrank.training.held_out import HeldOutSet, open_held_out
from crossrank.training.negatives import Source, mine
from crossrank.training.recipes import HeldOut, recipe_of
from crossrank.training.train import train

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import harness  # noqa: E402

BI_ENCODER = "crossrank-embed"
NEGATIVES = 5
MAX_LENGTH = 192
SEED = 7
ARMS = {"random": "random", "bm25": "BM25", "dense": "bi-encoder"}


def draw_queries(collection: Collection, count: int) -> dict[str, str]:
    """Questions spread evenly over the articles."""
    queries = collection.queries("train")
    step = max(1, len(queries) // count)
    return dict(list(queries.items())[::step][:count])


def draw_documents(collection: Collection, queries: dict[str, str], count: int) -> list[Document]:
    """The passages of these questions, and others spread evenly over the articles."""
    qrels = collection.qrels("train")
    judged = {name for query_id in queries for name in qrels[query_id]}
    documents = list(collection.documents())
    others = [each.id for each in documents if each.id not in judged]
    kept = judged | {*others[:: max(1, len(others) // max(1, count - len(judged)))]}
    return [each for each in documents if each.id in kept]


def mine_arms(collection: Collection, queries: dict[str, str], passages: int, work: Path) -> None:
    """Write a file of lists for each arm that has none."""
    missing = [name for name in ARMS if not (work / f"{name}.jsonl").exists()]
    if not missing:
        return
    documents = draw_documents(collection, queries, passages)
    for name in missing:
        first_stage = "random"
        if name == "bm25":
            first_stage = BM25(documents)
        elif name == "dense":
            first_stage = Dense(documents, BiEncoder(BI_ENCODER))
        # the best hits of a question may answer it without being judged
        source = Source(first_stage, NEGATIVES, name=name, skip_top=0 if name == "random" else 2, depth=50)
        qrels = collection.qrels("train")
        mine(queries, qrels, documents, [source], work / f"{name}.jsonl", seed=SEED)


def train_arm(name: str, seed: int, base: str, work: Path, steps: int | None) -> dict[str, float]:
    """Train one arm with a seed, or go on with it; return what it took."""
    output = work / f"model-{name}-{seed}"
    record = work / f"{name}-{seed}.json"
    if record.exists():
        return json.loads(record.read_text())
    recipe = recipe_of(
        {
            "student": {"kind": "cross_encoder", "base": base},
            "held_out": None,
            "data": [{"file": str(work / f"{name}.jsonl")}],
            "loss": {"name": "lce"},
            "schedule": {
                **({"epochs": 1} if steps is None else {"steps": steps}),
                "learning_rate": 1e-4,
                "lists_per_step": 16,
                "list_size": NEGATIVES + 1,
                "token_budget": 2048,
                "gradient_cache": False,  # a step fits into memory; one forward pass less
                "checkpoint_every": 25,
            },
            "lengths": {"max_length": MAX_LENGTH},
            "precision": "float32",
            "seed": seed,
            "output": str(output),
        }
    )
    report = train(recipe, overwrite=output.exists() and (output / "model.safetensors").exists(), report=show)
    took = {"training_s": round(report.training_s, 1), "pairs": report.num_pairs, "steps": report.num_steps}
    record.write_text(json.dumps(took))
    return took


def show(told) -> None:
    if told.step % 25 == 0:
        print(
            f"  step {told.step}/{told.num_steps}: loss {told.loss:.3f}, {told.pairs_per_s:.1f} pairs/s",
            flush=True,
        )


def measured(held_out: HeldOutSet, model: CrossEncoder | None, path: Path) -> dict[str, float]:
    """nDCG@10 of each query: of the model's order, or of the candidates' own; kept in a file."""
    if path.exists():
        return json.loads(path.read_text())
    if model is None:
        import numpy as np

        scores = [np.arange(len(each), 0, -1, dtype=np.float32) for each in held_out.documents]
    else:
        queries = zip(held_out.queries.values(), held_out.documents, strict=True)
        scores = [model.score([(query, text) for text in documents]) for query, documents in queries]
    values = dict(held_out.measured(scores).per_query)
    path.write_text(json.dumps(values))
    return values


def measured_everywhere(
    opened: dict[str, HeldOutSet], model: CrossEncoder | None, work: Path, stem: str
) -> dict[str, dict[str, float]]:
    return {
        name: measured(held_out, model, work / f"{stem}-{name.replace(' ', '-')}.values.json")
        for name, held_out in opened.items()
    }


def mean_of(found: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each query's values."""
    return {query_id: sum(each[query_id] for each in found) / len(found) for query_id in found[0]}


def cell(values: dict[str, float]) -> str:
    found = mean_interval(values)
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--squad", type=Path, required=True, help="SQuAD 1.1 in BEIR form")
    parser.add_argument(
        "--also", type=Path, action="append", default=[], help="another collection; repeatable"
    )
    parser.add_argument("--queries", type=int, default=3000, help="questions to train on")
    parser.add_argument("--base", default="crossrank-tiny", help="what is trained: a model's name or folder")
    parser.add_argument("--passages", type=int, default=6000, help="that negatives are mined from")
    parser.add_argument("--held-out", type=int, default=1000, help="most queries of each collection")
    parser.add_argument("--seeds", type=int, nargs="+", default=[7, 8, 9], help="of the trainings")
    parser.add_argument("--depth", type=int, default=30, help="BM25 candidates a query")
    parser.add_argument("--steps", type=int, help="in place of one pass over the data")
    parser.add_argument("--work", type=Path, default=ROOT / "work" / "negatives")
    parser.add_argument("--output", type=Path, help="JSON file; default: benchmarks/results/negatives.json")
    harness.page_option(parser)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    quieten()

    names = ("queries", "passages", "held_out", "depth", "steps", "seeds")
    settings = {name: getattr(args, name) for name in names}
    settings |= {"negatives": NEGATIVES, "max_length": MAX_LENGTH, "seed": SEED, "base": args.base}
    base = load(args.base)
    harness.settled(args.work, {**settings, "squad": str(args.squad), "weights": base.fingerprint})
    collection = Collection.open(args.squad)
    mine_arms(collection, draw_queries(collection, args.queries), args.passages, args.work)
    print(f"mined after {time.monotonic() - begun:.0f} s", flush=True)
    options = {"depth": args.depth, "queries": args.held_out}
    sets = {"SQuAD dev": HeldOut(collection=str(args.squad), split="dev", **options)}
    sets |= {folder.name: HeldOut(collection=str(folder), **options) for folder in args.also}
    opened = {name: open_held_out(choice, SEED) for name, choice in sets.items()}
    values = {"BM25's own order": measured_everywhere(opened, None, args.work, "first-stage")}
    training = {}
    if isinstance(base, CrossEncoder):
        before = CrossEncoder(args.base, precision="float32", max_length=MAX_LENGTH)
        values[f"{args.base} before"] = measured_everywhere(opened, before, args.work, "base")
    for arm, label in ARMS.items():
        print(f"{label} negatives", flush=True)
        by_seed = []
        for seed in args.seeds:
            stem = f"{arm}-{seed}"
            training[f"{label}, seed {seed}"] = train_arm(arm, seed, args.base, args.work, args.steps)
            model = CrossEncoder(args.work / f"model-{stem}", precision="float32", max_length=MAX_LENGTH)
            by_seed.append(measured_everywhere(opened, model, args.work, stem))
            print(f"measured after {time.monotonic() - begun:.0f} s", flush=True)
        values[label] = {name: mean_of([found[name] for found in by_seed]) for name in opened}

    columns = ["negatives"]
    for name in opened:
        columns += [f"{name}: nDCG@10", "against random"]
    lines, rows = [], []
    for label, found in values.items():
        cells = [label]
        for name in opened:
            difference = ""
            if label in ARMS.values() and label != "random":
                other = compare(found[name], values["random"][name])
                difference = f"{other.difference.value:+.3f} (p = {other.p_value:.2g})"
            cells += [cell(found[name]), difference]
            interval = mean_interval(found[name])
            rows.append(
                {"negatives": label, "collection": name, "nDCG@10": interval.value}
                | {"low": interval.low, "high": interval.high, "queries": len(found[name])}
            )
        lines.append(cells)
    result = {
        "benchmark": "negatives",
        "machine": harness.machine("crossrank", "torch", "transformers", "sentence-transformers"),
        "settings": settings,
        "training": training,
        "rows": rows,
    }
    told = [f"By `scripts/negatives_table.py`, {harness.machine_line(result)}.", ""]
    told += harness.markdown_table(columns, lines)
    section = args.output.stem if args.output else None
    harness.publish("negatives", result, "\n".join(told), args, section=section)


if __name__ == "__main__":
    main()
