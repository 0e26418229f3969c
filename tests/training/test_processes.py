"""Two processes train one model: one writes, and a run that was killed ends as one that was not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import crossrank

pytest.importorskip("sentence_transformers")

from safetensors.numpy import load_file
from training_inputs import lists, write_jsonl, write_recipe

from crossrank import CrossEncoder

KILLED = str(Path(__file__).with_name("training_process.py"))
TRAIN = ["-m", "crossrank", "train"]


def in_two_processes(*command: str) -> subprocess.CompletedProcess[str]:
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    launch += ["--rdzv-endpoint", "localhost:0"]  # a free port
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *launch, *command], capture_output=True, text=True, check=False, env=environment
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)  # torch is imported nine times
def test_two_processes_train_one_model_and_resume_to_the_same_weights(tmp_path: Path) -> None:
    # a token budget that makes several cached mini-batches of a step: gradients go round once
    changes = {"schedule": {"steps": 6, "token_budget": 64}, "precision": "auto"}
    data = [{"file": str(write_jsonl(tmp_path / "data.jsonl", lists(32)))}]
    folders = whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in folders:
        folder.mkdir()
    recipe = write_recipe(whole, data=data, **changes)
    process = in_two_processes(*TRAIN, str(recipe), "--json")
    assert process.returncode == 0, process.stderr
    report = json.loads(process.stdout)  # one document: the first process speaks alone
    assert report["num_steps"] == 6
    assert report["num_pairs"] == 2 * 6 * 4 * 4
    assert CrossEncoder(whole / "model", precision="float32").score([("cat", "dog")]).shape == (1,)

    # which arithmetic is faster may be found to be another the second time
    changes["precision"] = report["precision"]
    recipe = write_recipe(killed, data=data, **changes)
    process = in_two_processes(KILLED, str(recipe), "3")
    assert process.returncode != 0
    assert [path.name for path in (killed / "model" / "training").glob("checkpoint-*")] == ["checkpoint-2"]
    process = in_two_processes(*TRAIN, str(recipe), "--json")
    assert process.returncode == 0, process.stderr
    assert "step 3/6" in process.stderr
    assert "step 1/6" not in process.stderr  # it did not begin again
    a, b = (load_file(folder / "model" / "model.safetensors") for folder in folders)
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[name], b[name]) for name in a)
    lines = [(folder / "model" / "training" / "metrics.jsonl").read_text().splitlines() for folder in folders]
    measured = [[line for line in map(json.loads, each) if "held_out" in line] for each in lines]
    assert measured[0] == measured[1]


@pytest.mark.slow
def test_what_stops_the_first_process_is_said_and_stops_the_others(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "kept.txt").write_text("mine")
    process = in_two_processes(*TRAIN, str(recipe))
    assert process.returncode != 0
    assert "has no training run in it" in process.stderr
    # The launcher, which stops the others when one has failed, ends with a traceback; our processes do not.
    own, _, of_launcher = process.stderr.partition("Traceback")
    assert "error: " in own
    assert "torch/distributed" in of_launcher
    assert str(Path(crossrank.__file__).parent) not in of_launcher
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["kept.txt"]
