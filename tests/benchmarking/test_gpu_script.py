"""gpu.py runs to its end, on the CPU: a machine with a GPU may be there for minutes only."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_a_trial_runs_every_contestant_to_the_same_scores(tmp_path: Path) -> None:
    for name in ("torch", "sentence_transformers", "onnx"):
        pytest.importorskip(name)
    written = tmp_path / "trial.json"
    command = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--trial", "--size", "trial"]
    ran = subprocess.run(
        [*command, "--output", str(written)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    [found] = json.loads(written.read_text(encoding="utf-8"))["sizes"]
    for name, figures in found["throughput"].items():
        if name.startswith("crossrank"):
            limit = 1e-5 if "float32" in name else 0.1 * found["logits_std"] + 1e-3
            assert figures["max_delta_to_sentence_transformers"] < limit, name
            assert figures["max_delta_alone"] < 1e-6, name
    assert "crossrank bf16, ids of an index" in found["latency"]
