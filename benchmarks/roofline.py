"""How close a cross-encoder comes to what one core can multiply, and where the rest of the time goes.

Measures the core's matrix peaks (the best of ONNX Runtime and, where it is installed, torch; bf16 by torch)
and how fast it copies memory, counts the model's operations for 100 candidates by part, runs it on one thread
without padding, and sums ONNX Runtime's profile by kind of operator; int8 with the native library, where it
runs, and without. What the native library does within a layer is counted in cycles by a copy that is compiled
for it. bf16 is torch's: its seconds only. Writes results/roofline.json, and the tables of a page between its
markers.

    python benchmarks/roofline.py --page docs/performance.md
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import harness
import material
import numpy as np
import onnx
import onnxruntime

from crossrank.runtime.batching import plan
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.engine import build_stored_graph, open_session
from crossrank.runtime.graph import Graph
from crossrank.runtime.native import library
from crossrank.runtime.tokenization import ModelInputs, Tokenizer

Precision = Literal["float32", "int8"]

ROOT = Path(__file__).parents[1]
SIZE = 1024  # of the square matrices that the peaks are measured with
LINEAR, ATTENTION, REST = "linear layers", "attention", "everything else"
LAYERS = "whole layers, by the native library"
ROUNDING, NORMS = "rounding to int8", "normalisation"
WITHIN = (ROUNDING, LINEAR, "linear layers with GELU on their sums", ATTENTION, NORMS)
"""What the native library counts cycles of, in its order."""
KINDS = {
    "Gemm": LINEAR,
    "FusedGemm": LINEAR,
    "MatMulIntegerToFloat": LINEAR,
    "MultiHeadAttention": ATTENTION,
    "BertLayer": LAYERS,
    "Gelu": "activation functions",
    "BiasGelu": "activation functions",
    "FastGelu": "activation functions",
    "LayerNormalization": NORMS,
    "QuantizeLinear": ROUNDING,
    "Abs": ROUNDING,
    "ReduceMax": ROUNDING,
    "Max": ROUNDING,
    "Expand": ROUNDING,
    "Mul": "smoothing and scales by row",
    "Add": "additions",
}


def fastest(run: Callable[[], object], rounds: int) -> float:
    """CPU seconds of the fastest of several runs."""
    run()
    taken = []
    for _ in range(rounds):
        start = time.process_time()
        run()
        taken.append(time.process_time() - start)
    return min(taken)


def peaks(rounds: int) -> dict[str, float]:
    """10^9 operations a second of one core, a multiplication and an addition being two."""
    operations = 2 * SIZE**3 / 1e9
    found = {}
    random = np.random.default_rng(0)
    for name, dtype, op, outputs in (
        ("float32", np.float32, "MatMul", onnx.TensorProto.FLOAT),
        ("int8", np.uint8, "MatMulInteger", onnx.TensorProto.INT32),
    ):
        weight_type = np.int8 if name == "int8" else np.float32
        weight = random.integers(-127, 127, (SIZE, SIZE)).astype(weight_type)
        x = random.integers(0, 255, (SIZE, SIZE)).astype(dtype)
        kind = onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node(op, ["x", "weight"], ["y"])],
            "peak",
            [onnx.helper.make_tensor_value_info("x", kind, [SIZE, SIZE])],
            [onnx.helper.make_tensor_value_info("y", outputs, [SIZE, SIZE])],
            [onnx.numpy_helper.from_array(weight, "weight")],
        )
        made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            made.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        seconds = fastest(lambda session=session, x=x: session.run(None, {"x": x}), rounds)
        found[name] = round(operations / seconds, 1)
    try:
        import torch
    except ImportError:
        return found
    torch.set_num_threads(1)
    for name, dtype, multiply in (
        ("float32", torch.float32, torch.mm),
        ("bf16", torch.bfloat16, torch.mm),
        ("int8", torch.int8, torch._int_mm),
    ):
        a, b = (torch.randn(SIZE, SIZE).mul(30).to(dtype) for _ in range(2))
        seconds = fastest(lambda multiply=multiply, a=a, b=b: multiply(a, b), rounds)
        found[name] = max(found.get(name, 0.0), round(operations / seconds, 1))
    return found


def copied(rounds: int) -> float:
    """Bytes that one core copies in a second, read and written, out of its caches."""
    source = np.ones(32 * 2**20)
    target = np.empty_like(source)
    return 2 * source.nbytes / fastest(lambda: np.copyto(target, source), rounds)


def operations(config: Mapping[str, Any], lengths: Iterable[int]) -> dict[str, float]:
    """10^9 operations by part; of the last layer, what only the first token needs is counted once a pair."""
    layers, hidden = config["num_hidden_layers"], config["hidden_size"]
    inner = config["intermediate_size"]
    found: collections.Counter[str] = collections.Counter()
    for length in lengths:
        all_tokens = (layers - 1) * length
        found["query, key, value"] += 2 * hidden * hidden * (3 * all_tokens + 2 * length + 1)
        found["attention"] += 4 * hidden * length * (all_tokens + 1)
        found["output of attention"] += 2 * hidden * hidden * (all_tokens + 1)
        found["feed-forward"] += 4 * hidden * inner * (all_tokens + 1)
    return {part: round(count / 1e9, 2) for part, count in found.items()}


def profile(graph: Graph, batches: list[ModelInputs], rounds: int) -> tuple[float, dict[str, float]]:
    """CPU seconds without a profile, and milliseconds by kind of operator with one."""
    with tempfile.TemporaryDirectory() as folder:
        sessions, _kept = zip(
            open_session(graph), open_session(graph, profile=Path(folder, "profile")), strict=True
        )
        wanted = {value.name for value in sessions[0].get_inputs()}
        feeds = [
            {name: each for name, each in arrays._asdict().items() if name in wanted} for arrays in batches
        ]

        def run(session: onnxruntime.InferenceSession) -> None:
            for feed in feeds:
                session.run(None, feed)

        seconds = fastest(lambda: run(sessions[0]), rounds)
        for _ in range(rounds):
            run(sessions[1])
        events = json.loads(Path(sessions[1].end_profiling()).read_text(encoding="utf-8"))
    kernels = [each for each in events if each.get("cat") == "Node" and each["name"].endswith("kernel_time")]
    per_round = len(kernels) // rounds
    kinds: collections.Counter[str] = collections.Counter()
    for place in range(per_round):
        taken = min(kernels[place + number * per_round]["dur"] for number in range(rounds))
        kinds[KINDS.get(kernels[place]["args"]["op_name"], REST)] += taken
    return seconds, {kind: round(taken / 1e3, 2) for kind, taken in kinds.most_common()}


def within_layers(
    checkpoint: Checkpoint, batches: list[ModelInputs], rounds: int, scratch: Path
) -> dict[str, float]:
    """Shares of the native library's time by what it does; empty where a copy cannot be compiled."""
    sys.path.insert(0, str(ROOT))
    try:
        from hatch_build import FOLDER, SOURCE, compilation
    except ImportError:  # hatchling is not installed
        return {}
    compiled = scratch / "profile.so"
    command = compilation(ROOT / FOLDER / SOURCE, compiled, "-DCROSSRANK_PROFILE")
    subprocess.run(command, check=True)
    session, _kept = open_session(build_stored_graph(checkpoint, "logits", "int8", compiled, padded=False))
    wanted = {value.name for value in session.get_inputs()}
    cycles = (ctypes.c_uint64 * len(WITHIN)).in_dll(ctypes.CDLL(str(compiled)), "crossrank_cycles")
    for number in range(rounds + 1):
        for arrays in batches:
            session.run(None, {name: each for name, each in arrays._asdict().items() if name in wanted})
        if not number:  # the first run is a warm-up
            ctypes.memset(cycles, 0, ctypes.sizeof(cycles))
    return {part: count / sum(cycles) for part, count in zip(WITHIN, cycles, strict=True)}


def torch_seconds(folder: Path, pairs: list[tuple[str, str]], rounds: int) -> float | None:
    """CPU seconds of the torch backend in bf16, tokenisation included; None without torch."""
    if importlib.util.find_spec("torch") is None:
        return None
    from crossrank import CrossEncoder

    options: dict[str, Any] = {"precision": "bf16", "backend": "torch", "device": "cpu", "threads": 1}
    model = CrossEncoder(folder, **options, progress=False)
    return fastest(lambda: model.score(pairs), rounds)


def run(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    forms = material.folders(args.weights, "cross-encoder", scratch)
    checkpoints = {"float32": Checkpoint.open(forms.float32), "int8": Checkpoint.open(forms.int8)}
    tokenizer = Tokenizer(checkpoints["float32"])
    question = material.queries(1)[0]
    texts = material.texts(material.lengths(args.profile, args.passages).tolist(), tokenizer)
    query, passages = tokenizer.encode([question])[0], tokenizer.encode(texts)
    lengths = [tokenizer.pair_length(len(query.ids), len(passage.ids)) for passage in passages]
    batches = [
        tokenizer.pair_inputs([(query.ids, passages[row].ids) for row in batch.rows], batch.length)
        for batch in plan(lengths, grouping="exact")
    ]
    # int8 weights of a layer: attention's four matrices and the feed-forward's two
    hidden, inner = (checkpoints["int8"].config[name] for name in ("hidden_size", "intermediate_size"))
    layer_bytes = 4 * hidden * hidden + 2 * hidden * inner
    counted = operations(checkpoints["float32"].config, lengths)
    before = peaks(args.rounds)
    paths: dict[str, dict[str, Any]] = {}
    ways: list[tuple[str, Precision, Path | None]] = [("float32", "float32", None)]
    if library() is not None:
        ways.append(("int8, native library", "int8", library()))
    ways.append(("int8, ONNX Runtime's operators", "int8", None))
    for name, precision, compiled in ways:
        graph = build_stored_graph(checkpoints[precision], "logits", precision, compiled, padded=False)
        harness.say(f"running {name}")
        seconds, kinds = profile(graph, batches, args.rounds)
        if compiled is not None and LAYERS in kinds:
            for part, share in within_layers(checkpoints["int8"], batches, args.rounds, scratch).items():
                kinds[part] = round(kinds.get(part, 0.0) + share * kinds[LAYERS], 2)
            if len(kinds) > 1:
                del kinds[LAYERS]
        attention = "float32" if compiled is None else "int16"
        paths[name] = {"cpu_s": seconds, "linear": precision, "attention": attention, "kinds_ms": kinds}
    pairs = [(question, text) for text in texts]
    if "bf16" in before and (seconds_in_bf16 := torch_seconds(forms.float32, pairs, args.rounds)):
        paths["bf16, torch"] = {
            "cpu_s": seconds_in_bf16,
            "linear": "bf16",
            "attention": "bf16",
            "kinds_ms": {},
        }
    # others may use the machine while the peaks are measured: they are measured twice, and the best counts
    core = {name: max(value, before[name]) for name, value in peaks(args.rounds).items()}
    core["int16"] = round(core["int8"] / 2, 1)  # an instruction multiplies half as many
    total = sum(counted.values())
    for path in paths.values():
        ideal = (total - counted["attention"]) / core[path["linear"]]
        ideal += counted["attention"] / core[path["attention"]]
        path |= {
            "cpu_s": round(path["cpu_s"], 4),
            "gops": round(total / path["cpu_s"], 1),
            "ideal_s": round(ideal, 4),
            "share_of_peak": round(ideal / path["cpu_s"], 3),
        }
    return {
        "benchmark": "roofline",
        "machine": harness.machine("crossrank", "onnxruntime", "torch"),
        "load_average_before": harness.load_average(),
        "settings": {
            "profile": args.profile,
            "passages": args.passages,
            "mean_tokens": round(float(np.mean(lengths)), 1),
            "batches": len(batches),
            **forms.origin,
        },
        "peaks_gops": core,
        "copied_gb_per_s": round(copied(args.rounds) / 1e9, 1),
        "weights_mb": round(checkpoints["int8"].config["num_hidden_layers"] * layer_bytes / 1e6, 1),
        "operations_g": counted,
        "paths": paths,
    }


def tables(result: Mapping[str, Any]) -> str:
    """The page's tables, as Markdown."""
    settings, machine = result["settings"], result["machine"]
    lines = [
        f"{machine['cpu']}, {' '.join(machine['flags'])}; one core, {settings['passages']} pairs of "
        f"{settings['mean_tokens']} tokens on average ({settings['profile']}), {settings['weights']}; load "
        f"average before: {result['load_average_before']}.",
        "",
        *harness.markdown_table(
            ["matrix peak of a core", "10⁹ operations/s"],
            ([name, f"{value:,.0f}"] for name, value in sorted(result["peaks_gops"].items())),
        ),
        "",
        *harness.markdown_table(
            ["part of the model", "10⁹ operations"],
            ([name, f"{value:,.1f}"] for name, value in result["operations_g"].items()),
        ),
        "",
    ]
    rows = []
    for name, path in result["paths"].items():
        milliseconds = [f"{1000 * path[each]:,.0f}" for each in ("cpu_s", "ideal_s")]
        rows.append([name, path["attention"], *milliseconds, f"{path['share_of_peak']:.0%}"])
    columns = ["path", "attention", "CPU ms", "at the peak", "share of the peak"]
    lines += [*harness.markdown_table(columns, rows, words=2), ""]
    profiled = {name: path["kinds_ms"] for name, path in result["paths"].items() if path["kinds_ms"]}
    kinds = dict.fromkeys(kind for found in profiled.values() for kind in found)
    rows = [[kind, *(f"{found.get(kind, 0):,.0f}" for found in profiled.values())] for kind in kinds]
    lines += [*harness.markdown_table(["where the time goes, ms", *profiled], rows), ""]
    rate = result["copied_gb_per_s"]
    read_ms = settings["batches"] * result["weights_mb"] / rate
    lines.append(
        f"Memory: {settings['batches']} batches read {result['weights_mb']} MB of int8 weights each; at the "
        f"{rate} GB/s that the core copies with, that is {read_ms:.0f} ms, if none of them stay in a cache."
    )
    return "\n".join(lines)


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--profile", choices=("short", "marco", "nq", "fixed"), default="marco")
    parser.add_argument("--passages", type=harness.at_least_one, default=100)
    parser.add_argument("--rounds", type=harness.at_least_one, default=7)
    harness.page_option(parser)
    args = parser.parse_args()
    result = harness.carry_out(run, args, threads=1)
    harness.publish("roofline", result, tables(result), args)


if __name__ == "__main__":
    main()
