"""Make the folders of the built-in models: int8 weights, parity record, model card.

Takes float32 folders, quantises them with a few hundred unlabelled pairs of the training lists, compares int8
with float32 on collections that were never trained on, and writes a folder only if it passes the gate.

    python build.py --data ../../../shared/data --lists work/lists/web.jsonl --crossrank-mini work/mini \
        --crossrank-tiny work/tiny --crossrank-embed work/embed --crossrank-colbert work/colbert \
        --out ../../src/crossrank/models/builtin
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save

from crossrank.evaluation.collections import Collection
from crossrank.evaluation.trec import read_qrels
from crossrank.markdown import markdown_table
from crossrank.models.hub import BUILT_IN, Kind
from crossrank.models.quantize import (
    Candidates,
    calibration_inputs,
    open_model,
    parity_figures,
    score_candidates,
)
from crossrank.retrieval.bm25 import BM25
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.exits import EXITS_FILE, Exits
from crossrank.runtime.int8 import INT8_FILE, write_parity
from crossrank.runtime.quantization import LIMITS, calibrate, write_int8
from crossrank.runtime.weights import file_digest
from crossrank.types import Qrels

CALIBRATION_PAIRS = 768
MOST_PARAMETERS_IN_FLOAT16 = 10_000_000
WEIGHTS = "model.safetensors"
COPIED = ("config.json", "tokenizer.json", "tokenizer_config.json", "modules.json", "1_Pooling/config.json")
COPIED += ("sentence_bert_config.json", "config_sentence_transformers.json", "2_Normalize/config.json")
COPIED += ("1_Dense/config.json", "1_Dense/model.safetensors", "2_MultiVectorMask/config.json")
COPIED += ("3_Normalize/config.json",)


def candidates(data: Path, name: str, depth: int) -> tuple[Candidates, Qrels]:
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


def calibration_pairs(lists: Path) -> list[tuple[str, str]]:
    """Unlabelled pairs of the training lists."""
    pairs = []
    with lists.open(encoding="utf-8") as lines:
        for i, line in enumerate(itertools.islice(lines, 20_000, 20_000 + CALIBRATION_PAIRS)):
            row = json.loads(line)
            text = row["passages"][i % len(row["passages"])]
            if i % 4 == 0:  # some long inputs
                text = " ".join(row["passages"][:3])
            pairs.append((row["query"], text))
    return pairs


def card(name: str, record: dict, sha256: str) -> str:
    """Fill a model card with the figures of the parity record."""
    columns = ["collection", "candidates", "nDCG@10 float32", "nDCG@10 int8", "mean, max of the differences"]
    rows = []
    for collection, row in record["collections"].items():
        values = [f"{row[each]:.4f}" for each in ("ndcg@10_float32", "ndcg@10_int8")]
        values += [f"{row['mean_delta']:.4f}, {row['max_delta']:.4f}", f"{row['kendall_tau']:.3f}"]
        rows.append([collection, row["candidates"], *values])
    table = markdown_table([*columns, "Kendall's tau"], rows, words=2)
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


def halve_if_small(path: Path) -> bool:
    """Write a small model's weights as float16, which ships beside int8; say whether it is one."""
    tensors = load_file(path)
    if sum(tensor.size for tensor in tensors.values()) > MOST_PARAMETERS_IN_FLOAT16:
        return False
    path.write_bytes(
        save({name: tensor.astype(np.float16) for name, tensor in tensors.items()}, {"format": "pt"})
    )
    return True


def build(source: Path, out: Path, args: argparse.Namespace, kind: Kind) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch) / out.name
        work.mkdir()
        # a folder without float32 weights keeps its int8 ones, and gets new scales of the layers' inputs
        weights = WEIGHTS if (source / WEIGHTS).is_file() else INT8_FILE
        for name in (*COPIED, EXITS_FILE, weights):
            if (source / name).is_file():
                (work / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(source / name, work / name)
        has_float16 = weights == WEIGHTS and halve_if_small(work / WEIGHTS)
        checkpoint = Checkpoint.open(work)
        layers = calibrate(
            checkpoint,
            "logits" if kind == "cross-encoder" else "tokens",
            calibration_inputs(checkpoint, kind, calibration_pairs(args.lists)),
            rows_per_input=6,
        )
        exits = Exits(checkpoint).layers
        write_int8(work / INT8_FILE, checkpoint.tensors(), layers)
        write_parity(work, {"passed": True})  # to be measured now
        record: dict = {"reference": "float32", "limits": LIMITS, "collections": {}, "passed": True}
        for name, depth in (("msmarco_dl19", 100), ("scifact", 10), ("cranfield", 10)):
            lists, qrels = candidates(args.data, name, depth)
            row: dict = {"candidates": f"BM25 top {depth}"}
            for layer in (None, *exits):
                reference, got = (
                    score_candidates(open_model(work, kind, precision, exit_layer=layer), lists)
                    for precision in ("float32", "int8")
                )
                figures, exceeded = parity_figures(reference, got, lists, qrels)
                if layer is None:
                    row |= figures
                else:
                    row.setdefault("exits", {})[str(layer)] = figures
                record["passed"] &= not exceeded
            record["collections"][name] = row
            print(out.name, name, json.dumps(row), flush=True)
        record["onnxruntime"] = importlib.metadata.version("onnxruntime")
        write_parity(work, record)
        if not record["passed"]:
            raise SystemExit(f"{out.name} fails the parity gate; nothing was written")
        (work / "README.md").write_text(
            card(out.name, record, file_digest(work / INT8_FILE)), encoding="utf-8"
        )
        if not has_float16:
            (work / WEIGHTS).unlink(missing_ok=True)
        shutil.copytree(work, out, dirs_exist_ok=True)
    print(f"wrote {out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--lists", type=Path, required=True)
    for name in BUILT_IN:
        parser.add_argument(f"--{name}", type=Path, help="float32 folder to make this model from")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    for name, kind in BUILT_IN.items():
        source = getattr(args, name.replace("-", "_"))
        if source is not None:
            build(source, args.out / name, args, kind)


if __name__ == "__main__":
    main()
