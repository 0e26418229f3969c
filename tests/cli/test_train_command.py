"""`crossrank train`: a recipe to a model, and what the command says on the way."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("sentence_transformers")

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from training_inputs import write_recipe

from crossrank import CrossEncoder


def test_it_plans_trains_and_refuses_to_train_over_what_is_there(run, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    planned = run("train", recipe, "--dry-run", "--json", "--set", "schedule.steps=2")
    assert planned.exit_code == 0, planned.stderr
    found = json.loads(planned.stdout)
    assert (found["num_steps"], found["prepared"]["num_pairs"]) == (2, 128)
    assert not (tmp_path / "model").exists()

    output = tmp_path / "elsewhere"
    trained = run("train", recipe, "--set", "schedule.steps=2", "--output", output)
    assert trained.exit_code == 0, trained.stderr
    assert "step 0/2: held-out nDCG@10" in trained.stderr
    assert "pairs/s" in trained.stderr
    assert "base" in trained.stdout
    assert CrossEncoder(output, precision="float32").score([("cat", "dog")]).shape == (1,)

    again = run("train", recipe, "--set", "schedule.steps=2", "--output", output)
    assert again.exit_code == 1
    assert "replace it with --replace" in again.stderr


def test_any_name_of_a_folder_is_an_output(run, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    output = tmp_path / 'it\'s "new": é 😀'
    trained = run("train", recipe, "--set", "schedule.steps=1", "--set", "held_out=null", "--output", output)
    assert trained.exit_code == 0, trained.stderr
    assert (output / "model.safetensors").is_file()


def test_a_plan_says_what_would_stop_the_run(run, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "kept.txt").write_text("mine")
    cut = ("--set", "lengths.max_length=12", "--set", "guards.truncated_positives=0.1")
    planned = run("train", recipe, "--dry-run", *cut)
    assert planned.exit_code == 0, planned.stderr
    said = " ".join(planned.stderr.split())
    assert "would stop at once: " in said
    assert "is not empty, and has no training run in it" in said
    assert "guards.truncated_positives allows 10%" in said
    (tmp_path / "model" / "kept.txt").unlink()
    trained = run("train", recipe, "--set", "schedule.steps=1", "--set", "held_out=null")
    assert trained.exit_code == 0, trained.stderr
    assert "neither the base nor the result is measured" in " ".join(trained.stderr.split())
    found = json.loads(run("train", recipe, "--dry-run", "--json").stdout)
    assert [each.partition("; ")[2] for each in found["obstacles"]] == [
        "name another output, or replace it with --replace"
    ]
    assert json.loads(run("train", recipe, "--dry-run", "--json", "--replace").stdout)["obstacles"] == []


def test_a_recipe_that_cannot_be_followed_is_one_line(run, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    result = run("train", recipe, "--set", "schedule.stepps=3")
    assert result.exit_code == 1
    assert "recipe.yaml: there is no schedule.stepps; did you mean steps?" in result.stderr
    result = run("train", recipe, "--set", "loss.name=mse", "--set", "data=[{file: gone.jsonl}]")
    assert result.exit_code == 1
    assert "gone.jsonl" in result.stderr


def test_a_guard_that_stops_is_an_error_of_one_line(run, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    result = run("train", recipe, "--set", "guards.constant_scores=100")
    assert result.exit_code == 1
    assert "collapsed" in result.stderr
    assert "best-0.pt" in result.stderr
