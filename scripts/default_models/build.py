"""Make the folders of the built-in models: int8 weights, parity record, model card.

Takes float32 folders (the fine-tuned cross-encoder, all-MiniLM-L6-v2), quantises them with a few hundred
unlabelled pairs of the training lists, compares int8 with float32 on collections that were never trained on,
and writes a folder only if it passes the gate.

    python build.py --data ../../../shared/data --lists work/lists/lists.jsonl \
        --cross-encoder work/ce --bi-encoder MINILM_FOLDER --out ../../src/crossrank/models/builtin
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from crossrank.evaluation.collections import Collection
from crossrank.evaluation.measures import evaluate
from crossrank.evaluation.trec import read_qrels
from crossrank.models.bi_encoder import BiEncoder
from crossrank.models.cross_encoder import CrossEncoder
from crossrank.retrieval.bm25 import BM25
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.int8 import INT8_FILE, write_parity
from crossrank.runtime.quantization import calibrate, compare, write_int8
from crossrank.runtime.tokenization import ModelInputs, Tokenizer
from crossrank.runtime.weights import file_digest
from crossrank.types import Document, Qrels

LIMITS = {"mean_delta_in_std": 0.1, "kendall_tau": 0.9, "delta_ndcg@10": 0.005}
CALIBRATION_PAIRS = 384
COPIED = ("config.json", "tokenizer.json", "tokenizer_config.json", "modules.json", "1_Pooling/config.json")
COPIED += ("sentence_bert_config.json", "config_sentence_transformers.json", "2_Normalize/config.json")

Lists = dict[str, tuple[str, list[Document]]]  # query id -> query, candidates


def candidates(data: Path, name: str, depth: int) -> tuple[Lists, Qrels]:
    """The BM25 candidates of a collection kept for measuring."""
    collection = Collection.open(data / name)
    documents = {document.id: document for document in collection.documents()}
    if "bm25.top100" in collection.runs:
        queries, qrels = collection.queries(), read_qrels(data / name / "qrels_full_official.txt")
        run = collection.run("bm25.top100")
        rows = {q: [documents[hit.document_id] for hit in run[q][:depth]] for q in run if q in qrels}
    else:
        queries, qrels = collection.queries("test"), collection.qrels("test")
        index = BM25(list(documents.values()))
        found = index.retrieve(list(queries.values()), depth)
        rows = {
            q: [documents[hit.document_id] for hit in ranking]
            for q, ranking in zip(queries, found, strict=True)
        }
    return {q: (queries[q], docs) for q, docs in rows.items()}, qrels


def ndcg(lists: Lists, scores: Sequence[np.ndarray], qrels: Qrels) -> float:
    run = {
        q: {document.id: float(s) for document, s in zip(docs, row, strict=True)}
        for (q, (_, docs)), row in zip(lists.items(), scores, strict=True)
    }
    return evaluate(run, qrels, ["nDCG@10"])["nDCG@10"]


def cross_encoder_scores(folder: Path, precision: str, lists: Lists) -> list[np.ndarray]:
    model = CrossEncoder(folder, precision=precision, long_query="truncate")
    pairs = [(query, document.full_text) for query, documents in lists.values() for document in documents]
    return np.split(model.score(pairs), np.cumsum([len(d) for _, d in lists.values()])[:-1])


def bi_encoder_scores(folder: Path, precision: str, lists: Lists) -> list[np.ndarray]:
    model = BiEncoder(folder, precision=precision)
    queries = model.encode_queries([query for query, _ in lists.values()])
    texts = {document.id: document for _, documents in lists.values() for document in documents}
    vectors = dict(zip(texts, model.encode_documents(list(texts.values())), strict=True))
    return [
        np.array([query @ vectors[document.id] for document in documents])
        for query, (_, documents) in zip(queries, lists.values(), strict=True)
    ]


def calibration_inputs(checkpoint: Checkpoint, lists: Path, *, pairs: bool) -> list[ModelInputs]:
    """Unlabelled pairs (or their texts) of lists behind those that were trained on."""
    tokenizer = Tokenizer(checkpoint)
    limit = min(checkpoint.max_length, 320)
    inputs = []
    with lists.open(encoding="utf-8") as lines:
        for i, line in enumerate(itertools.islice(lines, 20_000, 20_000 + CALIBRATION_PAIRS)):
            row = json.loads(line)
            text = row["passages"][i % len(row["passages"])]
            if i % 4 == 0:  # some long inputs
                text = " ".join(row["passages"][:3])
            query, document = tokenizer.encode([row["query"], text])
            if pairs:
                ids, types = tokenizer.join(query, document)
            else:
                ids, types = tokenizer.wrap(query if i % 3 == 0 else document)
            if len(ids) > limit:
                ids, types = np.append(ids[: limit - 1], ids[-1]), types[:limit]
            inputs.append(ModelInputs(ids[None], np.ones((1, len(ids)), np.int64), types[None]))
    return inputs


def card(name: str, record: dict, sha256: str) -> str:
    """Fill a model card with the figures of the parity record."""
    heads = ("collection", "candidates", "nDCG@10 float32", "nDCG@10 int8", "mean, max of the differences")
    rows = [
        f"| {collection} | {row['candidates']} | {row['ndcg@10_float32']:.4f} | {row['ndcg@10_int8']:.4f} "
        f"| {row['mean_delta']:.4f}, {row['max_delta']:.4f} | {row['kendall_tau']:.3f} |"
        for collection, row in record["collections"].items()
    ]
    table = [f"| {' | '.join(heads)} | Kendall's tau |", "|---|---|---:|---:|---:|---:|", *rows]
    results = [
        {
            "task": {"type": "text-ranking"},
            "dataset": {"name": f"{collection}, {row['candidates']}", "type": collection},
            "metrics": [{"type": "nDCG@10", "value": round(row["ndcg@10_int8"], 4)}],
        }
        for collection, row in record["collections"].items()
    ]
    model_index = "model-index: " + json.dumps([{"name": name, "results": results}])
    template = (Path(__file__).parent / "cards" / f"{name}.md").read_text(encoding="utf-8")
    return (
        template.replace("{parity_table}", "\n".join(table))
        .replace("{sha256}", sha256)
        .replace("{model_index}", model_index)
    )


def build(
    source: Path,
    out: Path,
    args: argparse.Namespace,
    scores: Callable[[Path, str, Lists], list[np.ndarray]],
    *,
    pairs: bool,
) -> None:
    checkpoint = Checkpoint.open(source)
    layers = calibrate(
        checkpoint,
        "logits" if pairs else "tokens",
        calibration_inputs(checkpoint, args.lists, pairs=pairs),
        rows_per_input=6,
    )
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch) / out.name
        work.mkdir()
        for name in (*COPIED, "model.safetensors"):
            if (source / name).is_file():
                (work / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(source / name, work / name)
        write_int8(work / INT8_FILE, checkpoint.tensors(), layers)
        write_parity(work, {"passed": True})  # to be measured now
        record: dict = {"reference": "float32", "limits": LIMITS, "collections": {}, "passed": True}
        for name, depth in (("msmarco_dl19", 100), ("scifact", 10), ("cranfield", 10)):
            lists, qrels = candidates(args.data, name, depth)
            reference, got = (scores(work, precision, lists) for precision in ("float32", "int8"))
            parity = compare(reference, got)
            exact, quantised = ndcg(lists, reference, qrels), ndcg(lists, got, qrels)
            row = {
                "candidates": f"BM25 top {depth}",
                **parity._asdict(),
                "ndcg@10_float32": exact,
                "ndcg@10_int8": quantised,
                "delta_ndcg@10": quantised - exact,
            }
            record["collections"][name] = row
            print(out.name, name, json.dumps(row), flush=True)
            record["passed"] &= (
                parity.mean_delta <= LIMITS["mean_delta_in_std"] * parity.reference_std
                and parity.kendall_tau >= LIMITS["kendall_tau"]
                and abs(quantised - exact) <= LIMITS["delta_ndcg@10"]
            )
        record["onnxruntime"] = importlib.metadata.version("onnxruntime")
        write_parity(work, record)
        if not record["passed"]:
            raise SystemExit(f"{out.name} fails the parity gate; nothing was written")
        (work / "README.md").write_text(
            card(out.name, record, file_digest(work / INT8_FILE)), encoding="utf-8"
        )
        (work / "model.safetensors").unlink()
        shutil.copytree(work, out, dirs_exist_ok=True)
    print(f"wrote {out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--lists", type=Path, required=True)
    parser.add_argument("--cross-encoder", type=Path)
    parser.add_argument("--bi-encoder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.bi_encoder:
        build(args.bi_encoder, args.out / "crossrank-embed", args, bi_encoder_scores, pairs=False)
    if args.cross_encoder:
        build(args.cross_encoder, args.out / "crossrank-mini", args, cross_encoder_scores, pairs=True)


if __name__ == "__main__":
    main()
