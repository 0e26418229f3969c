"""Models of sentence pairs: trains the four recipes, and puts what they reach beside a bi-encoder's cosine.

Each model is measured on the test split of its data with `crossrank evaluate-pairs`, and so is the cosine of
the built-in bi-encoder, which no recipe has trained; pairs that are in the training data, too, are left out.
Where labels are 0 and 1, both take the threshold that is best on the dev split; where they are classes, the
cosine is told them by the training pairs: it is cut into steps with as many pairs each, and a step says the
class that most of its pairs have.

    python scripts/pair_models.py --page docs/similarity.md
    python scripts/pair_models.py --limit 40 --steps 2 --work small --output small/table.json

Run it from the top of the repository, as the recipes. Stopped at any moment it goes on when it is called
again: trainings from their last checkpoint, and what is done is not done again. Writes
benchmarks/results/pair_models.json, and the table of a page between its markers.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from crossrank import BiEncoder
from crossrank.evaluation.pairs import LabelledPair, agreement, pair_values, read_labelled_pairs
from crossrank.whole_files import write_whole

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import harness  # noqa: E402

BASELINE = "crossrank-embed"
STEPS_OF_COSINE = 20
MEASURES = {
    "pearson": "Pearson",
    "spearman": "Spearman",
    "accuracy": "accuracy",
    "f1": "F1",
    "macro_f1": "macro F1",
    "roc_auc": "ROC AUC",
}


class Task(NamedTuple):
    """A recipe, and what its data asks.

    Attributes:
        recipe: name of the file in recipes/.
        question: what is asked about a pair.
        labels: "grades", "two" (0 and 1), or "classes".
    """

    recipe: str
    question: str
    labels: str


TASKS = {
    "stsb": Task("similarity", "how alike", "grades"),
    "sick_relatedness": Task("sick_relatedness", "how related", "grades"),
    "mrpc": Task("mrpc", "paraphrase or not", "two"),
    "sick_nli": Task("nli", "entailment, neutral, contradiction", "classes"),
}
"""Name of the data -> its task."""


def prepared(task: Task, args: argparse.Namespace) -> tuple[Path, dict[str, Path]]:
    """Write the recipe as it is run here; return it, and split -> file."""
    recipe = yaml.safe_load((ROOT / "recipes" / f"{task.recipe}.yaml").read_text(encoding="utf-8"))
    recipe["output"] = str(args.work / task.recipe)
    files = {"train": Path(recipe["data"][0]["file"]), "dev": Path(recipe["held_out"]["file"])}
    files["test"] = files["train"].with_name("test.jsonl.gz")
    if args.limit is not None:
        files = {split: first_rows(file, args.limit, args.work / "data") for split, file in files.items()}
        for part in [*recipe["data"], recipe["held_out"]]:
            part["file"] = str(first_rows(Path(part["file"]), args.limit, args.work / "data"))
    if args.steps is not None:
        recipe["schedule"].pop("epochs", None)
        recipe["schedule"]["steps"] = args.steps
    trained_on = [Path(part["file"]) for part in recipe["data"]]
    files["test"] = unseen(files["test"], trained_on, args.work / f"{task.recipe}-test.jsonl")
    path = args.work / f"{task.recipe}.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path, files


def unseen(test: Path, trained_on: Sequence[Path], path: Path) -> Path:
    """Write the test pairs whose two texts are, in either order, no pair of the training data."""
    seen = {same_pair(row) for file in trained_on for row in read_labelled_pairs(file)}
    kept = [row for row in read_labelled_pairs(test) if same_pair(row) not in seen]
    rows = ({"text1": row.first, "text2": row.second, "label": row.label} for row in kept)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def same_pair(row: LabelledPair) -> frozenset[str]:
    """What two pairs have in common that differ in order, case and punctuation at most."""
    return frozenset(" ".join(re.findall(r"\w+", text.casefold())) for text in (row.first, row.second))


def first_rows(file: Path, count: int, folder: Path) -> Path:
    """The beginning of a file of pairs, as a file of its own."""
    folder.mkdir(exist_ok=True)
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        kept = "".join(itertools.islice(lines, count))
    path = folder / f"{file.parent.name}-{file.name.removesuffix('.gz')}"
    path.write_text(kept, encoding="utf-8")
    return path


def told(*command: str) -> dict[str, Any]:
    """What a command of crossrank says as JSON; its progress goes to the terminal."""
    done = subprocess.run(
        [sys.executable, "-m", "crossrank", *command, "--json"], check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def once(record: Path, *command: str) -> dict[str, Any]:
    """What a command says, kept in a file: it runs where there is none."""
    if not record.exists():
        text = json.dumps(told(*command))
        write_whole(record, lambda path: path.write_text(text, encoding="utf-8"))
    found: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    return found


def trained(task: Task, recipe: Path, work: Path) -> dict[str, Any]:
    """Train, or go on, or only say what it took."""
    run = work / task.recipe / "training" / "run.json"
    record = work / f"{task.recipe}-training.json"
    finished = run.exists() and json.loads(run.read_text(encoding="utf-8")).get("finished")
    # Stopped between the end of the training and its record: the model is made anew, to the same weights.
    return once(record, "train", str(recipe), *(["--replace"] if finished and not record.exists() else []))


def measured(model: str, task: Task, files: Mapping[str, Path], record: Path) -> dict[str, Any]:
    """What `evaluate-pairs` says of a model on the test split."""
    chosen = ["--choose-on", str(files["dev"])] if task.labels == "two" else []
    return once(record, "evaluate-pairs", model, str(files["test"]), *chosen)


def classes_by_cosine(model: BiEncoder, files: Mapping[str, Path]) -> dict[str, Any]:
    """How well the cosine tells classes that the training pairs put into its steps."""
    pairs = {split: list(read_labelled_pairs(files[split])) for split in ("train", "test")}
    cosines = {split: pair_values(model, rows) for split, rows in pairs.items()}
    labels = {split: [str(row.label) for row in rows] for split, rows in pairs.items()}
    names = sorted({*labels["train"], *labels["test"]})
    edges = np.quantile(cosines["train"], np.linspace(0, 1, STEPS_OF_COSINE + 1)[1:-1])
    steps = {split: np.searchsorted(edges, values) for split, values in cosines.items()}
    counts = np.zeros((STEPS_OF_COSINE, len(names)), np.int64)
    np.add.at(counts, (steps["train"], [names.index(label) for label in labels["train"]]), 1)
    found = agreement([names[place] for place in counts.argmax(1)[steps["test"]]], labels["test"], names)
    return {
        "model": model.name,
        "num_pairs": len(pairs["test"]),
        "measures": {"accuracy": found.accuracy, "macro_f1": found.macro_f1},
        "f1": found.f1,
        "counts": found.counts,
    }


def table(result: Mapping[str, Any]) -> str:
    """The page's table, as Markdown; intervals are bootstrap ones of 95 %, over the test pairs."""
    rows = []
    for name, row in result["tasks"].items():
        baseline, model = row["baseline"], row["model"]
        for number, (key, label) in enumerate(
            (key, label) for key, label in MEASURES.items() if key in model["measures"]
        ):
            first = (
                [f"[{name}](../recipes/{row['recipe']}.yaml)", row["question"], f"{model['num_pairs']:,}"]
                if number == 0
                else ["", "", ""]
            )
            rows.append([*first, label, shown(baseline, key), shown(model, key)])
    columns = ["data", "what is asked", "test pairs", "measure", f"cosine of {BASELINE}"]
    return "\n".join(harness.markdown_table([*columns, "trained by the recipe"], rows, words=2))


def shown(found: Mapping[str, Any], measure: str) -> str:
    """A value, with its interval where there is one."""
    if measure not in found["measures"]:
        return ""
    interval = found.get("intervals", {}).get(measure)
    ends = "" if interval is None else f" [{interval[0]:.3f}, {interval[1]:.3f}]"
    return f"{found['measures'][measure]:.3f}{ends}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=TASKS, nargs="+", default=list(TASKS), help="these data alone")
    parser.add_argument("--work", type=Path, default=ROOT / "work" / "pair-models")
    parser.add_argument("--steps", type=harness.at_least_one, help="of each training, in place of its epochs")
    parser.add_argument("--limit", type=harness.at_least_one, help="the first so many pairs of each split")
    parser.add_argument("--threads", type=harness.at_least_one, default=2)
    parser.add_argument("--output", type=Path, help="JSON file; default: a file in benchmarks/results")
    harness.page_option(parser)
    args = parser.parse_args()
    harness.limit_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    settings = {"steps": args.steps, "limit": args.limit, "threads": args.threads}
    baseline = BiEncoder(BASELINE, threads=args.threads)
    harness.settled(args.work, {**settings, "baseline": baseline.fingerprint})
    tasks = {}
    for name in args.only:
        task = TASKS[name]
        recipe, files = prepared(task, args)
        print(f"{name}: training", file=sys.stderr)
        training = trained(task, recipe, args.work)
        print(f"{name}: measuring", file=sys.stderr)
        model = measured(str(args.work / task.recipe), task, files, args.work / f"{task.recipe}-test.json")
        if task.labels == "classes":
            beside = classes_by_cosine(baseline, files)
        else:
            beside = measured(BASELINE, task, files, args.work / f"{task.recipe}-baseline.json")
        tasks[name] = {
            "recipe": task.recipe,
            "question": task.question,
            "training": {key: value for key, value in training.items() if key != "output"},  # a path of here
            "baseline": beside,
            "model": model,
        }
    result = {
        "script": "pair_models",
        "machine": harness.machine("crossrank", "torch", "transformers", "sentence-transformers"),
        "settings": settings,
        "tasks": tasks,
    }
    harness.publish("pair_models", result, table(result), args)


if __name__ == "__main__":
    main()
