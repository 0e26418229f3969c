"""Can the reranker say that nothing here answers the question?

Two tests on squad20_dev_pairs (SQuAD 2.0 dev: questions about a paragraph, half of them written so that it
does not answer them, though it looks as if it did):

- adversarial: question and its paragraph; is it answered? A model of relevance is not made for that.
- other articles: an answerable question and BM25's candidates, once among all paragraphs, once among those
  of other articles only, where nothing answers it; the score is the best candidate's. This is what a search
  meets when the corpus has no answer.

Prints ROC AUC and, for a wanted precision, a threshold that was measured on held-out questions; draws both
curves. Scores are kept in --cache, so that a second run costs seconds.

    python benchmarks/unanswerable.py ../shared/data/squad20_dev_pairs
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import harness

from crossrank import BM25, CrossEncoder, Document, ScoreCache
from crossrank.evaluation.plots import plot_roc
from crossrank.evaluation.probabilities import roc
from crossrank.training.calibration import CalibrationReport, JudgedPair, calibrate

PACKAGES = ("crossrank", "numpy", "onnxruntime", "tokenizers")


def adversarial(rows: list[dict[str, Any]]) -> list[JudgedPair]:
    return [JudgedPair(row["text1"], f"{row['title']} {row['text2']}", row["label"] == 1) for row in rows]


def among_other_articles(
    rows: list[dict[str, Any]], model: CrossEncoder, num_questions: int, depth: int
) -> list[JudgedPair]:
    """For each question its best candidate among all paragraphs, and among those of other articles."""
    paragraphs = {(row["title"], row["text2"]) for row in rows}
    documents = [
        Document(str(number), text, title) for number, (title, text) in enumerate(sorted(paragraphs))
    ]
    answerable = {row["text1"]: row["title"] for row in rows if row["label"] == 1}
    questions = sorted(answerable, key=lambda text: hashlib.sha256(text.encode()).digest())[:num_questions]
    found = BM25(documents).retrieve(questions, len(documents))
    queries: list[str] = []
    candidates: list[list[Document]] = []
    for question, ranking in zip(questions, found, strict=True):
        hits = [hit.document for hit in ranking if hit.document is not None]
        elsewhere = [document for document in hits if document.title != answerable[question]]
        queries += [question, question]
        candidates += [hits[:depth], elsewhere[:depth]]
    rankings = model.rank_many(queries, candidates, top_k=1)
    return [
        JudgedPair(ranking.query, ranking[0].document.full_text, place % 2 == 0)
        for place, ranking in enumerate(rankings)
        if len(ranking) and ranking[0].document is not None
    ]


def record(report: CalibrationReport) -> dict[str, Any]:
    calibration = report.calibration
    return {
        "pairs": calibration.num_pairs,
        "share_answered": round(calibration.share_relevant, 4),
        "roc_auc": round(report.roc_auc, 4),
        "methods": {
            name: {key: round(value, 4) for key, value in figures.items()}
            for name, figures in report.methods.items()
        },
        "thresholds": [
            {
                "wanted_precision": each.wanted,
                "score": round(each.score, 3),
                "probability": round(each.probability, 4),
                "held_out_precision": round(each.held_out, 4),
                "precision_interval": [round(value, 4) for value in each.interval],
                "recall": round(each.recall, 4),
            }
            for each in calibration.thresholds
        ],
        "unreached": [wanted for _, wanted in report.unreached],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder with dev.jsonl.gz")
    parser.add_argument("--reranker", default="crossrank-mini")
    parser.add_argument(
        "--questions", type=harness.at_least_one, default=500, help="of the second test, twice each"
    )
    parser.add_argument("--depth", type=harness.at_least_one, default=10, help="candidates a question")
    parser.add_argument("--wanted", type=float, nargs="+", default=[0.6, 0.7, 0.8, 0.9, 0.95])
    parser.add_argument("--cache", type=Path, help="keep scores in this file: NAME.db")
    parser.add_argument("--threads", type=harness.at_least_one)
    parser.add_argument("--output", type=Path, default=harness.RESULTS / "unanswerable.json")
    args = parser.parse_args()
    with gzip.open(args.data / "dev.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    model = CrossEncoder(
        args.reranker, long_query="truncate", threads=args.threads, cache=ScoreCache(args.cache)
    )
    tests = {
        "adversarial": adversarial(rows),
        "other articles": among_other_articles(rows, model, args.questions, args.depth),
    }
    result: dict[str, Any] = {
        "benchmark": "unanswerable",
        "machine": harness.machine(*PACKAGES),
        "settings": {
            "reranker": model.name,
            "fingerprint": model.fingerprint,
            "precision": model.precision,
            "questions": args.questions,
            "depth": args.depth,
        },
        "tests": {},
    }
    curves = {}
    for name, pairs in tests.items():
        report = calibrate(model, pairs, wanted_precision=args.wanted)
        result["tests"][name] = found = record(report)
        scores = model.score([(pair.query, pair.document) for pair in pairs])
        curves[f"{name}: AUC {report.roc_auc:.3f}"] = roc(scores, [pair.relevant for pair in pairs])
        print(f"\n{name}: {found['pairs']:,} pairs, ROC AUC {found['roc_auc']:.4f}")
        for each in found["thresholds"]:
            low, high = each["precision_interval"]
            print(
                f"  precision {each['wanted_precision']:g}: score {each['score']:.3f}, probability "
                f"{each['probability']:.3f}; held out {each['held_out_precision']:.3f} "
                f"(95 % {low:.3f} to {high:.3f}), recall {each['recall']:.3f}"
            )
        for wanted in found["unreached"]:
            print(f"  precision {wanted:g}: no score reaches it")
    for suffix in (".png", ".svg"):
        plot_roc(curves, args.output.with_suffix(suffix), title=f"Does it answer? {model.name}")
    harness.write("unanswerable", result, args.output)


if __name__ == "__main__":
    main()
