"""What a model's size costs: milliseconds for 100 documents, and megabytes on disk.

Weights are random, since time does not depend on them; shapes are those of well-known checkpoints. The
bi-encoder's row is one query against vectors that are there already. nDCG@10 is that of the built-in model of
the shape, int8, which reranks the candidates of a judged collection; the MRR@10 on MS MARCO dev that is
quoted beside a shape is what a card on the hub states, and was not measured here.
With --device there is a column of that GPU, in bf16 by torch.

    python benchmarks/model_shapes.py --judged ../shared/data/msmarco_dl19 --run bm25.top100 \
        --qrels ../shared/data/msmarco_dl19/qrels_full_official.txt --page docs/performance.md
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import harness
import material
import numpy as np
import safetensors.numpy

from crossrank.benchmarking.fidelity import Judged, read_judged
from crossrank.models.bi_encoder import BiEncoder
from crossrank.models.cross_encoder import CrossEncoder
from crossrank.models.hub import resolve
from crossrank.models.quantize import calibration_inputs
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.int8 import INT8_FILE, write_parity
from crossrank.runtime.quantization import calibrate, write_int8
from crossrank.runtime.tokenization import Tokenizer


class Shape(NamedTuple):
    """A BERT's size, and the checkpoint that has it."""

    layers: int
    hidden: int
    heads: int
    checkpoint: str
    stated_mrr: float | None = None


SHAPES = {
    "tiny": Shape(2, 128, 2, "cross-encoder/ms-marco-TinyBERT-L2-v2", 32.56),
    "mini": Shape(6, 384, 12, "cross-encoder/ms-marco-MiniLM-L6-v2", 39.01),
    "12-layer": Shape(12, 384, 12, "cross-encoder/ms-marco-MiniLM-L12-v2", 39.02),
    "base": Shape(12, 768, 12, "cross-encoder/ms-marco-electra-base", 36.41),
    "large": Shape(24, 1024, 16, "nboost/pt-bert-large-msmarco", 36.48),
}
"""Name -> its shape; MRR@10 on MS MARCO dev as the table in `STATED_BY` has it, in per cent."""

STATED_BY = "cross-encoder/ms-marco-MiniLM-L6-v2"
"""The checkpoint whose card compares all of these."""

TRAINED = {"tiny": "crossrank-tiny", "mini": "crossrank-mini"}
"""Built-in models of these shapes."""


def write_model(shape: Shape, folder: Path) -> Path:
    """A cross-encoder of a shape with random weights, in float32, with the built-in model's tokenizer."""
    built_in = resolve(None, kind="cross-encoder")
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(built_in / name, folder / name)
    hidden, inner = shape.hidden, 4 * shape.hidden
    stated = json.loads((built_in / "config.json").read_text(encoding="utf-8"))
    config = stated | {
        "num_hidden_layers": shape.layers,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": shape.heads,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    random = np.random.default_rng(0)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return random.standard_normal((rows, columns), dtype=np.float32) * np.float32(0.02)

    tensors: dict[str, np.ndarray] = {}

    def linear(name: str, rows: int, columns: int) -> None:
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = matrix(rows, columns), np.zeros(rows, np.float32)

    def norm(name: str) -> None:
        tensors[f"{name}.weight"] = np.ones(hidden, np.float32)
        tensors[f"{name}.bias"] = np.zeros(hidden, np.float32)

    tables = {
        "word": config["vocab_size"],
        "position": config["max_position_embeddings"],
        "token_type": config["type_vocab_size"],
    }
    for name, rows in tables.items():
        tensors[f"bert.embeddings.{name}_embeddings.weight"] = matrix(rows, hidden)
    norm("bert.embeddings.LayerNorm")
    for number in range(shape.layers):
        layer = f"bert.encoder.layer.{number}"
        for part in ("query", "key", "value"):
            linear(f"{layer}.attention.self.{part}", hidden, hidden)
        linear(f"{layer}.attention.output.dense", hidden, hidden)
        linear(f"{layer}.intermediate.dense", inner, hidden)
        linear(f"{layer}.output.dense", hidden, inner)
        norm(f"{layer}.attention.output.LayerNorm")
        norm(f"{layer}.output.LayerNorm")
    linear("bert.pooler.dense", hidden, hidden)
    linear("classifier", 1, hidden)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def add_int8(folder: Path) -> None:
    """An int8 form for timing: with random weights there is nothing to hold a parity gate against."""
    checkpoint = Checkpoint.open(folder)
    texts = material.queries(8)
    inputs = calibration_inputs(checkpoint, "cross-encoder", [(texts[0], text) for text in texts])
    layers = calibrate(checkpoint, "logits", inputs, progress=False)
    write_int8(folder / INT8_FILE, checkpoint.tensors(), layers)
    write_parity(folder, {"passed": True})


def qualities(judged: Judged, threads: int) -> dict[str, float]:
    """nDCG@10 of the built-in models, by the row of their shape."""
    embed = BiEncoder(threads=threads, progress=False)
    queries = embed.encode_queries(list(judged.queries.values()))
    texts = judged.scored(lambda pairs: embed.encode_documents([text for _, text in pairs]))
    found = {"bi-encoder": judged.quality([each @ query for each, query in zip(texts, queries, strict=True)])}
    for row, name in TRAINED.items():
        model = CrossEncoder(name, precision="int8", long_query="truncate", threads=threads, progress=False)
        config = Checkpoint.open(model.folder).config
        if (config["num_hidden_layers"], config["hidden_size"]) != SHAPES[row][:2]:
            raise SystemExit(f"{name} has not the shape of the row {row!r}")
        found[row] = judged.quality(judged.scored(model.score))
    return found


def run(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    query = material.queries(1)[0]
    tokenizer = Tokenizer(Checkpoint.open(resolve(None, kind="cross-encoder")))
    documents = material.texts(material.lengths(args.profile, args.documents).tolist(), tokenizer)
    pairs = [(query, document) for document in documents]
    rows: dict[str, dict[str, Any]] = {}
    embed = BiEncoder(threads=args.threads, progress=False)
    vectors = embed.encode_documents(documents)
    load = harness.load_average()
    rows["bi-encoder"] = {
        "checkpoint": "built-in crossrank-embed, vectors at hand",
        "int8_mb": _megabytes(resolve(None, kind="bi-encoder") / INT8_FILE),
        "int8": _timed(partial(_search, embed, query, vectors), args.rounds),
    }
    for name in args.shapes:
        shape = SHAPES[name]
        harness.say(f"writing {name}")
        folder = write_model(shape, scratch / name)
        add_int8(folder)
        rows[name] = {
            "checkpoint": shape.checkpoint,
            "layers": shape.layers,
            "hidden": shape.hidden,
            "stated_mrr": shape.stated_mrr,
            "float32_mb": _megabytes(folder / "model.safetensors"),
            "int8_mb": _megabytes(folder / INT8_FILE),
        }
        for precision in ("int8", "float32"):
            model = CrossEncoder(folder, precision=precision, threads=args.threads, progress=False)
            rows[name][precision] = _timed(partial(model.score, pairs), args.rounds)
            del model
        if args.device:
            options = {"precision": "bf16", "backend": "torch", "device": args.device}
            model = CrossEncoder(folder, **options, threads=args.threads, progress=False)
            rows[name]["bf16"] = _timed(partial(model.score, pairs), args.rounds)
            del model
        shutil.rmtree(folder)
    judged = None
    if args.judged is not None:
        harness.say(f"nDCG@10 on {args.judged.name}")
        judged = read_judged(args.judged, depth=args.documents, run=args.run, qrels=args.qrels)
        for name, value in qualities(judged, args.threads).items():
            if name in rows:
                rows[name]["ndcg@10"] = round(value, 4)
    return {
        "benchmark": "model_shapes",
        "machine": harness.machine("crossrank", "onnxruntime", "tokenizers", *["torch"] * bool(args.device)),
        "load_average_before": load,
        "settings": {
            "profile": args.profile,
            "documents": args.documents,
            "threads": args.threads,
            "rounds": args.rounds,
            "device": args.device and _device(args.device),
            "judged": judged and judged.name,
        },
        "shapes": rows,
    }


def table(result: Mapping[str, Any]) -> str:
    """The page's table, as Markdown."""
    settings, machine = result["settings"], result["machine"]
    lines = [
        f"{machine['cpu']}, {settings['threads']} threads, {settings['documents']} documents "
        f"({settings['profile']}), median of {settings['rounds']} rounds; random weights; load average "
        f"before: {result['load_average_before']}. nDCG@10: the built-in model of that shape reranks the "
        f"{settings['documents']} candidates of {settings['judged'] or 'no collection'}. MRR@10: MS MARCO "
        f"dev, as the table on {_link(STATED_BY)}'s card states it.",
        "",
    ]
    device = settings["device"]
    timed = {"int8": "int8 ms", "float32": "float32 ms"} | ({"bf16": f"bf16 ms, {device}"} if device else {})
    columns = ["", "shape of", *timed.values(), "int8 MB", "float32 MB", "nDCG@10", "MRR@10 stated"]
    rows = []
    for name, row in result["shapes"].items():
        times = [_milliseconds(row[each]["median_s"]) if each in row else "" for each in timed]
        sizes = [f"{row[each]:,.0f}" if each in row else "" for each in ("int8_mb", "float32_mb")]
        quality = f"{row['ndcg@10']:.3f}" if "ndcg@10" in row else ""
        shape = row["checkpoint"]
        if name in SHAPES:
            shape = _link(shape)
        rows.append([name, shape, *times, *sizes, quality, str(row.get("stated_mrr") or "")])
    return "\n".join([*lines, *harness.markdown_table(columns, rows, words=2)])


def _link(checkpoint: str) -> str:
    return f"[{checkpoint}](https://huggingface.co/{checkpoint})"


def _search(model: BiEncoder, query: str, vectors: np.ndarray) -> np.ndarray:
    return (vectors @ model.encode_queries([query])[0]).argsort()


def _timed(call: Any, rounds: int) -> dict[str, Any]:
    call()
    return harness.interleave({"it": call}, rounds)["it"].summary()


def _device(name: str) -> str:
    import torch

    return torch.cuda.get_device_name(name) if name.startswith("cuda") else name


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.{0 if seconds >= 0.1 else 1}f}"


def _megabytes(file: Path) -> float:
    return round(file.stat().st_size / 1e6, 1)


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--profile", choices=("short", "marco", "nq", "fixed"), default="marco")
    parser.add_argument("--documents", type=harness.at_least_one, default=100)
    parser.add_argument("--rounds", type=harness.at_least_one, default=5)
    parser.add_argument("--device", help="torch's name of a GPU, such as cuda: times there, too")
    parser.add_argument("--judged", type=Path, help="collection in BEIR form, for nDCG@10")
    parser.add_argument("--run", help="rerank this run of the collection in place of BM25's candidates")
    parser.add_argument("--qrels", type=Path, help="judgements to use in place of the test split's")
    harness.page_option(parser)
    args = parser.parse_args()
    result = harness.carry_out(run, args)
    harness.publish("model_shapes", result, table(result), args, section="shapes")


if __name__ == "__main__":
    main()
