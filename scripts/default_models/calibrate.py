"""Calibrate the built-in cross-encoder on questions it was not trained on.

Questions of squad11 train that are in none of the training lists, each with the first 10 candidates that the
built-in bi-encoder and BM25 together (the default of `crossrank search`) find among all 18,896 paragraphs of
the split; a paragraph that the question was not written for counts as not relevant.

    python calibrate.py --data ../../../shared/data --lists work/lists/*.jsonl --work work \
        --model ../../src/crossrank/models/builtin/crossrank-mini
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from crossrank import BM25, BiEncoder, Collection, CrossEncoder, Dense, Hybrid, ScoreCache
from crossrank.evaluation.plots import plot_reliability
from crossrank.models.quantize import in_hash_order
from crossrank.training.calibration import calibrate, judged_pairs, save_calibration

DEPTH = 10
HOLDS_FOR = (
    "English questions whose answer is in a corpus of Wikipedia paragraphs (SQuAD 1.1 train, {n:,} questions "
    "that the model was not trained on), over the first 10 candidates of BM25 and crossrank-embed together; "
    "not for questions written so that a paragraph seems to answer them, other kinds of text, or other depths"
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--lists", type=Path, nargs="+", required=True, help="whose questions are left out")
    parser.add_argument("--model", type=Path, required=True, help="folder that gets the calibration")
    parser.add_argument("--questions", type=int, default=1500)
    parser.add_argument("--work", type=Path, required=True, help="folder that keeps candidates and scores")
    args = parser.parse_args()

    trained = set()
    for path in args.lists:
        with path.open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        trained |= {row.get("of", row["query"]) for row in rows}
    collection = Collection.open(args.data / "squad11")
    queries = {
        name: text
        for name, text in collection.queries("train").items()
        if text.strip() and text not in trained
    }
    chosen = {name: queries[name] for name in in_hash_order(queries)[: args.questions]}
    documents = [document for document in collection.documents() if document.id.startswith("train-")]
    args.work.mkdir(parents=True, exist_ok=True)
    bi_encoder = BiEncoder()
    kept = args.work / f"calibration_candidates_{bi_encoder.fingerprint[:16]}.json"
    if not kept.is_file():
        hybrid = Hybrid([BM25(documents), Dense(documents, bi_encoder)])
        found = hybrid.retrieve(list(chosen.values()), DEPTH)
        rows = {name: list(ranking.document_ids) for name, ranking in zip(chosen, found, strict=True)}
        kept.write_text(json.dumps(rows), encoding="utf-8")
    rows = json.loads(kept.read_text(encoding="utf-8"))
    by_id = {document.id: document for document in documents}
    candidates = {name: (text, [by_id[each] for each in rows[name]]) for name, text in chosen.items()}
    cache = ScoreCache(args.work / "calibration_scores.db")
    model = CrossEncoder(args.model, long_query="truncate", cache=cache)
    pairs = judged_pairs(candidates, collection.qrels("train"))
    for name, figures in calibrate(model, pairs, wanted_precision=()).methods.items():
        print(f"{name:12s}" + "  ".join(f"{key} {value:.4f}" for key, value in figures.items()))
    # A staircase fits no better to speak of, and would give equal probabilities to scores that differ.
    report = calibrate(
        model,
        pairs,
        method="platt",
        wanted_precision=(0.3, 0.5, 0.7, 0.9),
        wanted_recall=(0.95,),
        holds_for=HOLDS_FOR.format(n=len(candidates)),
    )
    curves = {"sigmoid of the score": report.before, "Platt, held out": report.after}
    plot_reliability(curves, args.work / "reliability.png", title=model.name)
    path = save_calibration(report.calibration, args.model, overwrite=True)
    for each in report.calibration.thresholds:
        print(
            f"{each.aim} {each.wanted:g}: score {each.score:.3f}, probability {each.probability:.4f}, "
            f"precision {each.precision:.3f}, recall {each.recall:.3f}, held out {each.held_out:.3f}"
        )
    for aim, wanted in report.unreached:
        print(f"{aim} {wanted:g}: no score reaches it")
    print(f"ROC AUC {report.roc_auc:.4f}; written to {path}")


if __name__ == "__main__":
    main()
