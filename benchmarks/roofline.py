"""How close a cross-encoder comes to what one core can multiply, and where the rest of the time goes.

Measures the core's matrix peaks (the best of ONNX Runtime and, where it is installed, torch; bf16 by torch),
counts the model's operations for 100 candidates by part, runs it on one thread without padding, and sums ONNX
Runtime's profile by kind of operator; int8 with the native library, where it runs, and without. Writes
results/roofline.json, and the tables of a page between its markers.

    python benchmarks/roofline.py --page docs/performance.md
"""

from __future__ import annotations

import argparse
import collections
import json
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
from crossrank.runtime.native import attention_in_bf16, library
from crossrank.runtime.tokenization import ModelInputs, Tokenizer

Precision = Literal["float32", "int8"]

SIZE = 1024  # of the square matrices that the peaks are measured with
LINEAR, ATTENTION, REST = "linear layers", "attention", "everything else"
KINDS = {
    "Gemm": LINEAR,
    "FusedGemm": LINEAR,
    "MatMulIntegerToFloat": LINEAR,
    "MultiHeadAttention": ATTENTION,
    "BertLayer": "whole layers, by the native library",
    "Gelu": "activation functions",
    "BiasGelu": "activation functions",
    "FastGelu": "activation functions",
    "LayerNormalization": "normalisation",
    "QuantizeLinear": "rounding to int8",
    "Abs": "rounding to int8",
    "ReduceMax": "rounding to int8",
    "Max": "rounding to int8",
    "Expand": "rounding to int8",
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


def run(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    forms = material.folders(args.weights, "cross-encoder", scratch)
    checkpoints = {"float32": Checkpoint.open(forms.float32), "int8": Checkpoint.open(forms.int8)}
    tokenizer = Tokenizer(checkpoints["float32"])
    query = tokenizer.encode(material.queries(1))[0]
    passages = tokenizer.encode(
        material.texts(material.lengths(args.profile, args.passages).tolist(), tokenizer)
    )
    lengths = [tokenizer.pair_length(len(query.ids), len(passage.ids)) for passage in passages]
    batches = [
        tokenizer.pair_inputs([(query.ids, passages[row].ids) for row in batch.rows], batch.length)
        for batch in plan(lengths, exact=True)
    ]
    counted = operations(checkpoints["float32"].config, lengths)
    core = peaks(args.rounds)
    paths = {}
    ways: list[tuple[str, Precision, Path | None]] = [("float32", "float32", None)]
    if library() is not None:
        ways.append(("int8, native library", "int8", library()))
    ways.append(("int8, ONNX Runtime's operators", "int8", None))
    for name, precision, compiled in ways:
        graph = build_stored_graph(checkpoints[precision], "logits", precision, compiled, padded=False)
        harness.say(f"running {name}")
        seconds, kinds = profile(graph, batches, args.rounds)
        total = sum(counted.values())
        attention = "bf16" if compiled is not None and attention_in_bf16() and "bf16" in core else "float32"
        ideal = (total - counted["attention"]) / core[precision] + counted["attention"] / core[attention]
        paths[name] = {
            "cpu_s": round(seconds, 4),
            "gops": round(total / seconds, 1),
            "attention": attention,
            "ideal_s": round(ideal, 4),
            "share_of_peak": round(ideal / seconds, 3),
            "kinds_ms": kinds,
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
    kinds = dict.fromkeys(kind for path in result["paths"].values() for kind in path["kinds_ms"])
    rows = [
        [kind, *(f"{path['kinds_ms'].get(kind, 0):,.0f}" for path in result["paths"].values())]
        for kind in kinds
    ]
    lines += harness.markdown_table(["where the time goes, ms", *result["paths"]], rows)
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
