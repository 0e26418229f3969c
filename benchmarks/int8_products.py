"""Which integer product to build int8 layers from: ways of writing one in ONNX Runtime, timed on one thread.

Shapes are those of a 6-layer, 384-wide BERT over 512 tokens. CPU time, so that a busy machine disturbs less;
median of the rounds. "depends on batch" says whether a row's result depends on the rows beside it.

    python benchmarks/int8_products.py
"""

from __future__ import annotations

import argparse
import platform
import time
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

SHAPES = {"q, k, v": (384, 1152), "attention output": (384, 384), "up": (384, 1536), "down": (1536, 384)}
ROWS = 512


def session(nodes: list[Any], constants: dict[str, np.ndarray], size: tuple[int, int]) -> Any:
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", size[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", size[1]])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def contestants(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> dict[str, Any]:
    size = weight.shape
    scale = (np.abs(weight).max(axis=0) / 127).astype(np.float32)
    signed = np.rint(weight / scale).astype(np.int8)
    x_scale = np.float32((x.max() - x.min()) / 255)
    x_zero = np.uint8(np.rint(-x.min() / x_scale))
    quantised = {"scale": scale, "x_scale": np.array(x_scale), "x_zero": np.array(x_zero), "bias": bias}

    def static(stored: np.ndarray, zero: np.ndarray) -> Any:
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["r"]),
            helper.make_node(
                "MatMulIntegerToFloat",
                ["r", "w", "x_scale", "scale", "x_zero", "zero", "bias"],
                ["y"],
                domain="com.microsoft",
            ),
        ]
        return session(nodes, {**quantised, "w": stored, "zero": zero}, size)

    blocks = weight.T.reshape(size[1], -1, 128)
    block_scale = (np.abs(blocks).max(axis=-1) / 127).astype(np.float32)
    return {
        "float32": session(
            [helper.make_node("Gemm", ["x", "w", "bias"], ["y"])], {"w": weight, "bias": bias}, size
        ),
        "static, uint8 x int8": static(signed, np.zeros(size[1], np.int8)),
        "static, uint8 x uint8": static(
            (signed.astype(np.int16) + 128).astype(np.uint8), np.full(size[1], 128, np.uint8)
        ),
        "dynamic, one scale a batch": session(
            [
                helper.make_node(
                    "DynamicQuantizeMatMul",
                    ["x", "w", "scale", "zero", "bias"],
                    ["y"],
                    domain="com.microsoft",
                )
            ],
            {"w": signed, "scale": scale, "zero": np.zeros(size[1], np.int8), "bias": bias},
            size,
        ),
        "dynamic, a scale a row and block": session(
            [
                helper.make_node(
                    "MatMulNBits",
                    ["x", "w", "scale", "", "", "bias"],
                    ["y"],
                    domain="com.microsoft",
                    K=size[0],
                    N=size[1],
                    bits=8,
                    block_size=128,
                    accuracy_level=4,
                )
            ],
            {
                "w": np.clip(np.rint(blocks / block_scale[..., None]) + 128, 0, 255).astype(np.uint8),
                "scale": block_scale.reshape(-1),
                "bias": bias,
            },
            size,
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, ONNX Runtime {onnxruntime.__version__}, one thread")
    random = np.random.default_rng(0)
    for name, (inner, outer) in SHAPES.items():
        x = random.standard_normal((ROWS, inner)).astype(np.float32)
        weight = (random.standard_normal((inner, outer)) * 0.05).astype(np.float32)
        bias = random.standard_normal(outer).astype(np.float32)
        ways = contestants(x, weight, bias)
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(args.rounds + 2):
            for way, run in ways.items():
                start = time.process_time()
                run.run(None, {"x": x})
                times[way].append((time.process_time() - start) * 1000)
        reference = float(np.median(times["float32"][2:]))
        print(f"\n{name}: ({ROWS} x {inner}) ({inner} x {outer})")
        for way, run in ways.items():
            median = float(np.median(times[way][2:]))
            together = run.run(None, {"x": x})[0][:1]
            depends = np.abs(together - run.run(None, {"x": x[:1]})[0]).max() > 1e-4
            print(
                f"  {way:34s}{median:8.2f} ms {reference / median:6.2f}x float32   "
                f"depends on batch: {'yes' if depends else 'no'}"
            )


if __name__ == "__main__":
    main()
