"""Scripts that are rarely run, run to their ends in small: a GPU may be there for minutes only."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def run(script: str, *arguments: str, output: Path) -> dict[str, Any]:
    command = [sys.executable, f"benchmarks/{script}", *arguments, "--output", str(output)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return found


def test_contestants_on_a_gpu_give_the_same_scores(tmp_path: Path) -> None:
    for name in ("torch", "sentence_transformers", "onnx"):
        pytest.importorskip(name)
    arguments = ("--device", "cpu", "--trial", "--size", "trial")
    [found] = run("gpu.py", *arguments, output=tmp_path / "trial.json")["sizes"]
    for name, figures in found["throughput"].items():
        if name.startswith("crossrank"):
            limit = 1e-5 if "float32" in name else 0.1 * found["logits_std"] + 1e-3
            assert figures["max_delta_to_sentence_transformers"] < limit, name
            assert figures["max_delta_alone"] < 1e-6, name
    assert "crossrank bf16, ids of an index" in found["latency"]


def test_the_parts_of_a_profile_are_all_of_it(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    found = run("roofline.py", "--passages", "3", "--rounds", "1", output=tmp_path / "roofline.json")
    assert {"float32", "int8"} <= {*found["peaks_gops"]}
    for name, path in found["paths"].items():
        assert path["cpu_s"] > 0, name
        if name == "int8, native library":  # parts in place of whole layers
            pytest.importorskip("hatchling")
            assert {"linear layers", "attention", "normalisation", "rounding to int8"} <= {*path["kinds_ms"]}
            assert "whole layers, by the native library" not in path["kinds_ms"]
