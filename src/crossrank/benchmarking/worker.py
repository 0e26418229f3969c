"""A process that has one contestant loaded, and runs it when told to.

Runs in any environment that has the contestant's library: nothing of crossrank is imported unless crossrank
is the contestant. It is started as `python worker.py`, reads one JSON object a line on standard input and
answers each with one: first what to load, then what to run. What libraries print goes to standard error.

    {"contestant": "sentence-transformers", "folder": ..., "max_length": 512, "threads": 2}
    -> {"variants": ["batches of 32", ...], "versions": {...}, "python": ..., "load_s": ..., "idle_mb": ...}
    {"variant": "batches of 32", "pairs": [[query, document], ...], "keep_scores": false}
    -> {"wall_s": ..., "cpu_s": ..., "peak_mb": ..., "scores": null}
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
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

ONE_BATCH = "one batch"
"""The variant that takes all pairs of a query at once."""
UNSORTED = "unsorted "
"""How the variant begins that takes pairs as they come, where the others sort."""

_BATCH_SIZES = (4, 8, 16, 64)
_OWN_PACKAGES = ("crossrank", "onnxruntime", "tokenizers")


def crossrank(folder: Path, options: dict[str, Any], precision: str) -> dict[str, Scorer]:
    """The library's own engine; the int8 form is in the folder "int8" beside the float32 one."""
    from crossrank.models.cross_encoder import CrossEncoder

    settings: dict[str, Any] = {"precision": precision, "backend": "onnx", "progress": False}
    settings |= {name: options[name] for name in ("max_length", "threads")}
    return {"": CrossEncoder(folder.parent / precision, **settings).score}


def sentence_transformers(folder: Path, options: dict[str, Any], backend: str = "torch") -> dict[str, Scorer]:
    """CrossEncoder.predict: 32 pairs a batch unless told otherwise, sorted by characters."""
    import torch
    from sentence_transformers import CrossEncoder

    torch.set_num_threads(options["threads"])
    settings: dict[str, Any] = {} if backend == "torch" else {"backend": backend}
    if backend == "onnx":
        arguments = {"provider": "CPUExecutionProvider", "session_options": _session_options(options)}
        settings["model_kwargs"] = arguments
    elif backend == "openvino":
        settings["model_kwargs"] = {"ov_config": {"INFERENCE_NUM_THREADS": str(options["threads"])}}
    model = CrossEncoder(str(folder), device="cpu", max_length=options["max_length"], **settings)

    def scorer(batch_size: int) -> Scorer:
        return lambda pairs: model.predict(
            pairs, batch_size=batch_size, activation_fn=torch.nn.Identity(), show_progress_bar=False
        )

    return {f"batches of {size}": scorer(size) for size in (32, *_BATCH_SIZES)}


def onnx_dynamic_int8(folder: Path, options: dict[str, Any], file: str) -> dict[str, Scorer]:
    """An int8 file of ONNX Runtime's dynamic quantisation, pairs sorted by tokens; once also unsorted."""
    score = _onnx_runtime(folder / "onnx" / file, folder, options)
    sizes = (8, 4, 16, 32)
    ordered = {f"batches of {size}": score(size, is_sorted=True) for size in sizes}
    return {**ordered, f"{UNSORTED}batches of {sizes[0]}": score(sizes[0], is_sorted=False)}


def flashrank(folder: Path, options: dict[str, Any]) -> dict[str, Scorer]:
    """Ranker over this model's dynamic int8 file: all candidates of a query in one batch.

    It knows models by name and reads them from a folder of that name. It gives probabilities, which are
    turned back into logits; its session has no setting for threads, so it is given one of the same kind.
    """
    import numpy as np
    import onnxruntime

    library, known = import_module("flashrank"), import_module("flashrank.Config").model_file_map
    name = "ms-marco-MiniLM-L-12-v2"
    place = folder.parent / "flashrank" / name
    place.mkdir(parents=True, exist_ok=True)
    for file in ("config.json", "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json"):
        shutil.copyfile(folder / file, place / file)
    shutil.copyfile(folder / "onnx" / DYNAMIC_INT8, place / known[name])
    ranker = library.Ranker(name, str(place.parent), options["max_length"], log_level="ERROR")
    ranker.session = onnxruntime.InferenceSession(
        str(place / known[name]), _session_options(options), providers=["CPUExecutionProvider"]
    )

    def score(pairs: list[tuple[str, str]]) -> Any:
        chances = np.empty(len(pairs), np.float64)
        for query, rows in _by_query(pairs):
            passages = [{"id": row, "text": pairs[row][1]} for row in rows]
            for passage in ranker.rerank(library.RerankRequest(query, passages)):
                chances[passage["id"]] = passage["score"]
        chances = np.clip(chances, 1e-9, 1 - 1e-9)
        return np.log(chances / (1 - chances))

    return {ONE_BATCH: score}


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
    model = library.Reranker(str(folder), model_type="cross-encoder", device="cpu", dtype="float32")

    def scorer(batch_size: int) -> Scorer:
        def score(pairs: list[tuple[str, str]]) -> list[float]:
            scores = [0.0] * len(pairs)
            for query, rows in _by_query(pairs):
                documents = [pairs[row][1] for row in rows]
                for result in model.rank(query, documents, doc_ids=rows, batch_size=batch_size).results:
                    scores[int(result.doc_id)] = float(result.score)
            return scores

        return score

    return {f"batches of {size}": scorer(size) for size in (16, 4, 8)}


def infinity(folder: Path, options: dict[str, Any], engine: str = "torch") -> dict[str, Scorer]:
    """infinity_emb's engine: sorts by characters within four batches; one query a call."""
    import asyncio

    import torch

    library = import_module("infinity_emb")
    torch.set_num_threads(options["threads"])
    if engine == "optimum":
        if options["threads"] != os.cpu_count():
            raise ValueError("this engine takes as many threads as there are cores")
        folder = _with_one_onnx_file(folder, folder.parent / "infinity")
    loop = asyncio.new_event_loop()

    @cache
    def engine_of(batch_size: int) -> Any:  # each holds a model of its own
        arguments = library.EngineArgs(
            model_name_or_path=str(folder),
            engine=engine,
            device="cpu",
            dtype="float32",
            batch_size=batch_size,
            bettertransformer=False,
            compile=False,
            model_warmup=False,
        )
        running = library.AsyncEmbeddingEngine.from_args(arguments)
        loop.run_until_complete(running.astart())
        return running

    async def ask(running: Any, pairs: list[tuple[str, str]]) -> list[float]:
        scores = [0.0] * len(pairs)
        for query, rows in _by_query(pairs):
            documents = [pairs[row][1] for row in rows]
            ranked, _ = await running.rerank(query=query, docs=documents, raw_scores=True)
            for result in ranked:
                scores[rows[result.index]] = float(result.relevance_score)
        return scores

    def scorer(batch_size: int) -> Scorer:
        return lambda pairs: loop.run_until_complete(ask(engine_of(batch_size), pairs))

    sizes = (32, 8)
    scorers = {f"batches of {size}": scorer(size) for size in sizes}
    engine_of(sizes[0])  # the default's is loaded now
    return scorers


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
    "flashrank": (flashrank, ("flashrank", "onnxruntime", "tokenizers")),
    "fastembed": (fastembed, ("fastembed", "onnxruntime", "tokenizers")),
    "rerankers": (rerankers, ("rerankers", "torch", "transformers")),
    "infinity": (infinity, ("infinity-emb", "torch", "transformers")),
    "infinity optimum": (
        partial(infinity, engine="optimum"),
        ("infinity-emb", "optimum", "onnxruntime", "transformers"),
    ),
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


def _reason(error: BaseException) -> str:
    """An error with what led to it: libraries say "not available" of what they could not import."""
    found, cause = f"{type(error).__name__}: {error}", error.__cause__
    return f"{found} (from {_reason(cause)})" if cause else found


def _by_query(pairs: list[tuple[str, str]]) -> Iterator[tuple[str, list[int]]]:
    """Each query with the rows of its pairs, for libraries that take one query at a time."""
    for query in dict.fromkeys(query for query, _ in pairs):
        yield query, [row for row, pair in enumerate(pairs) if pair[0] == query]


def _with_one_onnx_file(folder: Path, place: Path) -> Path:
    """The model with its float32 export alone, for a library that takes any ONNX file it finds."""
    shutil.copytree(folder, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("onnx", "openvino"))
    (place / "onnx").mkdir(exist_ok=True)
    shutil.copyfile(folder / "onnx" / "model.onnx", place / "onnx" / "model.onnx")
    return place


def _session_options(options: dict[str, Any]) -> Any:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options["threads"]
    settings.log_severity_level = 3
    return settings


def _onnx_runtime(file: Path, folder: Path, options: dict[str, Any]) -> Callable[..., Scorer]:
    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(options["max_length"], strategy="longest_first")
    session = onnxruntime.InferenceSession(
        str(file), _session_options(options), providers=["CPUExecutionProvider"]
    )
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
        answer({"error": _reason(error)})
        return
    versions = {name: version(name) for name in packages}
    load_s = round(time.perf_counter() - start, 3)
    loaded = {"versions": versions, "python": platform.python_version(), "load_s": load_s}
    answer({"variants": list(variants), **loaded, "idle_mb": peak_mb()})
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
            answer({"error": _reason(error)})
            continue
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        given = [float(score) for score in scores] if asked.get("keep_scores") else None
        answer({"wall_s": wall, "cpu_s": cpu, "before_mb": before, "peak_mb": peak_mb(), "scores": given})


if __name__ == "__main__":
    main()
