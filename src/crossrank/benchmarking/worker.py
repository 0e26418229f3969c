"""A process that has one contestant loaded, and runs it when told to.

Runs in any environment that has the contestant's library: nothing of crossrank is imported unless crossrank
is the contestant. It is started as `python worker.py`, reads one JSON object a line on standard input and
answers each with one: first what to load, then what to run. What libraries print goes to standard error.

    {"contestant": "sentence-transformers", "folder": ..., "max_length": 512, "threads": 2}
    -> {"variants": ["batches of 32", ...], "versions": {...}, "load_s": ...}
    {"variant": "batches of 32", "pairs": [[query, document], ...], "keep_scores": false}
    -> {"wall_s": ..., "cpu_s": ..., "peak_mb": ..., "scores": null}
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["CONTESTANTS", "Scorer", "is_installed", "main"]

Scorer = Callable[[list[tuple[str, str]]], Any]
"""Pairs (query, document) -> one number each."""

DYNAMIC_INT8 = "model_dynamic_int8.onnx"
"""In the folder "onnx" of a model: its export after ONNX Runtime's `quantize_dynamic`."""
FUSED_DYNAMIC_INT8 = "model_fused_dynamic_int8.onnx"
"""The same, after ONNX Runtime's optimiser for transformers."""

_BATCH_SIZES = (4, 8, 16, 64)
_OWN_PACKAGES = ("crossrank", "onnxruntime", "tokenizers")


def crossrank(folder: Path, options: dict[str, Any], precision: str) -> dict[str, Scorer]:
    """The library's own engine; the int8 form is in the folder "int8" beside the float32 one."""
    from crossrank.models.cross_encoder import CrossEncoder

    settings: dict[str, Any] = {"precision": precision, "progress": False}
    settings |= {name: options[name] for name in ("max_length", "threads")}
    return {"": CrossEncoder(folder.parent / precision, **settings).score}


def sentence_transformers(folder: Path, options: dict[str, Any], backend: str = "torch") -> dict[str, Scorer]:
    """CrossEncoder.predict: 32 pairs a batch unless told otherwise, sorted by characters."""
    import torch
    from sentence_transformers import CrossEncoder

    torch.set_num_threads(options["threads"])
    settings: dict[str, Any] = {} if backend == "torch" else {"backend": backend}
    if backend == "onnx":
        settings["model_kwargs"] = {"provider": "CPUExecutionProvider"}
    model = CrossEncoder(str(folder), device="cpu", max_length=options["max_length"], **settings)

    def scorer(batch_size: int) -> Scorer:
        return lambda pairs: model.predict(
            pairs, batch_size=batch_size, activation_fn=torch.nn.Identity(), show_progress_bar=False
        )

    return {f"batches of {size}": scorer(size) for size in (32, *_BATCH_SIZES)}


def onnx_dynamic_int8(folder: Path, options: dict[str, Any], file: str) -> dict[str, Scorer]:
    """An int8 file of ONNX Runtime's dynamic quantisation, pairs sorted by tokens."""
    score = _onnx_runtime(folder / "onnx" / file, folder, options)
    return {f"batches of {size}": score(size, is_sorted=True) for size in (8, 4, 16, 32)}


def flashrank_way(folder: Path, options: dict[str, Any]) -> dict[str, Scorer]:
    """What FlashRank 0.2 does, with the same weights: dynamic int8, all candidates in one batch."""
    score = _onnx_runtime(folder / "onnx" / DYNAMIC_INT8, folder, options)
    return {"one batch": score(100_000, is_sorted=False)}


def fastembed(folder: Path, options: dict[str, Any]) -> dict[str, Scorer]:
    """TextCrossEncoder with a custom model: float32, 64 pairs a batch as they come."""
    models = import_module("fastembed.rerank.cross_encoder").TextCrossEncoder
    name = "crossrank-benchmark/model"
    source = import_module("fastembed.common.model_description").ModelSource(hf=name)
    models.add_custom_model(name, model_file="onnx/model.onnx", sources=source)
    model = models(name, specific_model_path=str(folder), threads=options["threads"])

    def scorer(batch_size: int) -> Scorer:
        return lambda pairs: list(model.rerank_pairs(pairs, batch_size=batch_size))

    return {f"batches of {size}": scorer(size) for size in (64, 4, 8, 16)}


def rerankers(folder: Path, options: dict[str, Any]) -> dict[str, Scorer]:
    """TransformerRanker: 16 pairs a batch as they come; it takes one query at a time."""
    import torch

    library = import_module("rerankers")
    torch.set_num_threads(options["threads"])

    def scorer(batch_size: int) -> Scorer:
        model = library.Reranker(
            str(folder), model_type="cross-encoder", device="cpu", dtype="float32", batch_size=batch_size
        )

        def score(pairs: list[tuple[str, str]]) -> list[float]:
            scores = [0.0] * len(pairs)
            for query in dict.fromkeys(query for query, _ in pairs):
                rows = [row for row, pair in enumerate(pairs) if pair[0] == query]
                ranked = model.rank(query, [pairs[row][1] for row in rows], doc_ids=rows)
                for result in ranked.results:
                    scores[int(result.doc_id)] = float(result.score)
            return scores

        return score

    return {f"batches of {size}": scorer(size) for size in (16, 4, 8)}


def infinity(folder: Path, options: dict[str, Any]) -> dict[str, Scorer]:
    """infinity_emb's engine: sorts by length within a queue; one query a call."""
    import asyncio

    import torch

    library = import_module("infinity_emb")
    torch.set_num_threads(options["threads"])
    loop = asyncio.new_event_loop()

    def scorer(batch_size: int) -> Scorer:
        arguments = library.EngineArgs(
            model_name_or_path=str(folder),
            engine="torch",
            device="cpu",
            dtype="float32",
            batch_size=batch_size,
            bettertransformer=False,
            compile=False,
        )
        engine = library.AsyncEmbeddingEngine.from_args(arguments)
        loop.run_until_complete(engine.astart())

        async def ask(pairs: list[tuple[str, str]]) -> list[float]:
            scores = [0.0] * len(pairs)
            for query in dict.fromkeys(query for query, _ in pairs):
                rows = [row for row, pair in enumerate(pairs) if pair[0] == query]
                ranked, _ = await engine.rerank(
                    query=query, docs=[pairs[row][1] for row in rows], raw_scores=True
                )
                for result in ranked:
                    scores[rows[result.index]] = float(result.relevance_score)
            return scores

        return lambda pairs: loop.run_until_complete(ask(pairs))

    return {f"batches of {size}": scorer(size) for size in (32, 8)}


CONTESTANTS: dict[str, tuple[Callable[[Path, dict[str, Any]], dict[str, Scorer]], tuple[str, ...]]] = {
    "crossrank float32": (partial(crossrank, precision="float32"), _OWN_PACKAGES),
    "crossrank int8": (partial(crossrank, precision="int8"), _OWN_PACKAGES),
    "sentence-transformers": (sentence_transformers, ("sentence-transformers", "torch", "transformers")),
    "sentence-transformers onnx": (
        partial(sentence_transformers, backend="onnx"),
        ("sentence-transformers", "optimum-onnx", "onnxruntime", "transformers"),
    ),
    "sentence-transformers openvino": (
        partial(sentence_transformers, backend="openvino"),
        ("sentence-transformers", "optimum-intel", "openvino", "transformers"),
    ),
    "onnxruntime dynamic int8": (
        partial(onnx_dynamic_int8, file=DYNAMIC_INT8),
        ("onnxruntime", "tokenizers"),
    ),
    "onnxruntime fused dynamic int8": (
        partial(onnx_dynamic_int8, file=FUSED_DYNAMIC_INT8),
        ("onnxruntime", "tokenizers"),
    ),
    "flashrank way": (flashrank_way, ("onnxruntime", "tokenizers")),
    "fastembed": (fastembed, ("fastembed", "onnxruntime", "tokenizers")),
    "rerankers": (rerankers, ("rerankers", "torch", "transformers")),
    "infinity": (infinity, ("infinity-emb", "torch", "transformers")),
}
"""Name -> (loads it: folder, options -> variants, its default first; the packages it needs)."""


def is_installed(contestant: str) -> bool:
    """Whether a contestant's packages are installed in this environment."""
    try:
        return all(version(package) for package in CONTESTANTS[contestant][1])
    except PackageNotFoundError:
        return False


def limit_threads(threads: int) -> None:
    """Give every library the same threads; to be called before any of them is imported."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ["CROSSRANK_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    os.environ["HF_HUB_OFFLINE"] = "1"  # every model here is a folder
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["TQDM_DISABLE"] = "1"  # bars of loading weights


def peak_mb(*, reset: bool = False) -> float | None:
    """Most memory this process had resident, in MB, since the last reset where the system can do that."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 1)
    except (OSError, ValueError):
        pass
    return None


def _onnx_runtime(file: Path, folder: Path, options: dict[str, Any]) -> Callable[..., Scorer]:
    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(options["max_length"], strategy="longest_first")
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options["threads"]
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])
    wanted = [value.name for value in session.get_inputs()]

    def scorer(batch_size: int, *, is_sorted: bool) -> Scorer:
        def score(pairs: list[tuple[str, str]]) -> Any:
            encoded = tokenizer.encode_batch_fast(pairs)
            order = list(range(len(pairs)))
            if is_sorted:
                order.sort(key=lambda row: len(encoded[row]), reverse=True)
            scores = np.empty(len(pairs), np.float32)
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                length = max(len(encoded[row]) for row in rows)
                arrays = np.zeros((3, len(rows), length), np.int64)  # 0 pads BERT's three inputs
                for place, row in enumerate(rows):
                    one = encoded[row]
                    arrays[:, place, : len(one)] = one.ids, one.attention_mask, one.type_ids
                feed = dict(zip(("input_ids", "attention_mask", "token_type_ids"), arrays, strict=True))
                found = session.run(["logits"], {name: feed[name] for name in wanted})[0]
                scores[rows] = found[:, 0]
            return scores

        return score

    return scorer


def main() -> None:
    """Answer until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print what they like; the answers stay clean

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    options = json.loads(sys.stdin.readline())
    limit_threads(options["threads"])
    load, packages = CONTESTANTS[options["contestant"]]
    start = time.perf_counter()
    try:
        variants = load(Path(options["folder"]), options)
    except Exception as error:  # whatever a library raises, the others still run
        answer({"error": f"{type(error).__name__}: {error}"})
        return
    versions = {name: version(name) for name in packages}
    load_s = round(time.perf_counter() - start, 3)
    answer({"variants": list(variants), "versions": versions, "load_s": load_s, "idle_mb": peak_mb()})
    pairs: list[tuple[str, str]] = []
    for line in sys.stdin:
        asked = json.loads(line)
        if "pairs" in asked:
            pairs = [(query, document) for query, document in asked["pairs"]]
        before = peak_mb(reset=True)
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            scores = variants[asked["variant"]](pairs)
        except Exception as error:
            answer({"error": f"{type(error).__name__}: {error}"})
            continue
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        given = [float(score) for score in scores] if asked.get("keep_scores") else None
        answer({"wall_s": wall, "cpu_s": cpu, "before_mb": before, "peak_mb": peak_mb(), "scores": given})


if __name__ == "__main__":
    main()
