"""Recipes: every key checked, overrides, and what they say when something is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("yaml")

import yaml

from crossrank.errors import FileFormatError, InputError
from crossrank.training.recipes import Recipe, read_recipe, recipe_of

ROOT = Path(__file__).parents[2]
SMALL: dict[str, Any] = {
    "student": {"kind": "cross_encoder", "base": "somewhere"},
    "data": [{"file": "lists.jsonl"}],
    "loss": {"name": "kl", "teacher_temperature": 2},
    "schedule": {"steps": 10},
    "output": "model",
}


def _changed(**changes: Any) -> dict[str, Any]:
    return {**SMALL, **changes}


def test_a_recipe_has_defaults_and_survives_being_written(tmp_path: Path) -> None:
    recipe = recipe_of(SMALL)
    assert recipe.schedule.learning_rate == 2e-5
    assert recipe.loss.options == {"teacher_temperature": 2}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.as_dict()))
    assert read_recipe(path) == recipe


def test_gradient_caching_may_be_asked_for_where_it_is_done() -> None:
    schedule = {"steps": 10, "gradient_cache": True}
    for kind, loss in (("cross_encoder", "lce"), ("bi_encoder", "mnr"), ("late_interaction", "cached_mnr")):
        student = {"kind": kind, "base": "b"}
        recipe = recipe_of(_changed(student=student, loss={"name": loss}, schedule=schedule))
        assert recipe.schedule.gradient_cache is True


def test_a_number_that_yaml_takes_for_a_text_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(SMALL) + "seed: 3\nguards:\n  constant_scores: 1e-6\n")
    recipe = read_recipe(path, ["schedule.learning_rate=3e-5"])
    assert (recipe.guards.constant_scores, recipe.schedule.learning_rate) == (1e-6, 3e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (_changed(sead=1), r"there is no sead; did you mean seed\?"),
        (
            _changed(schedule={"steps": 10, "lr": 1}),
            r"there is no schedule\.lr\. The keys here: epochs, steps",
        ),
        (
            _changed(schedule={"steps": 10, "list_size": 1}),
            r"schedule: list_size is 1, which leaves a positive",
        ),
        (_changed(data=[{"file": "a", "share": 0}]), r"data\[0\]: share is 0, which leaves no query"),
        (
            _changed(student={"kind": "cross_encoder", "base": "b", "dimensions": 8}),
            r"student\.dimensions is for the kind late_interaction, not for cross_encoder",
        ),
        (
            _changed(student={"kind": "mono_t5", "base": "b", "classes": ["a", "b"]}, loss={"name": "bce"}),
            r"student\.classes is for the kind cross_encoder, not for mono_t5",
        ),
        (_changed(schedule={"steps": "ten"}), r"schedule\.steps must be a whole number or null, not 'ten'"),
        (_changed(schedule={"steps": True}), r"schedule\.steps must be a whole number"),
        (_changed(schedule={"steps": 0}), r"schedule\.steps must be at least 1, not 0"),
        (_changed(schedule={}), r"schedule: give one of epochs and steps"),
        (_changed(schedule={"steps": 1, "epochs": 1}), r"schedule: give one of epochs and steps"),
        (_changed(precision="fp16"), r"precision must be float32 \| bf16 \| auto, not 'fp16'"),
        (_changed(data=[]), r"data must name one file or more"),
        (_changed(data="lists.jsonl"), r"data must be a list"),
        (_changed(data=[{"file": "a", "share": 2}]), r"data\[0\]\.share must be between 0 and 1, not 2"),
        (_changed(data=[{"file": "a", "label_range": [5, 0]}]), r"data\[0\]: label_range must be"),
        (_changed(loss={"name": "hinge"}), r"loss\.name: there is no loss 'hinge'"),
        (_changed(loss={"name": "lce", "scale": 3}), r"there is no loss\.scale"),
        (_changed(student={"kind": "gpt", "base": "b"}), r"student\.kind: there is no kind 'gpt'"),
        (_changed(student={"kind": "cross_encoder"}), r"student\.base is missing; it must be a text"),
        (
            _changed(
                student={"kind": "late_interaction", "base": "b"},
                schedule={"steps": 10, "gradient_cache": True},
            ),
            r"schedule\.gradient_cache is true, .* the loss kl has .* or take cached_mnr$",
        ),
        (
            _changed(
                student={"kind": "bi_encoder", "base": "b"},
                loss={"name": "cached_mnr"},
                schedule={"steps": 10, "gradient_cache": False},
            ),
            r"schedule\.gradient_cache is false, .* cached_mnr always caches: leave it out, or take mnr$",
        ),
        (_changed(held_out={"split": "dev"}), r"held_out: split, candidates and depth are of a collection"),
        (_changed(held_out={"file": "a", "collection": "b"}), r"held_out: give one of collection and file"),
        ({**SMALL, "student": "mini"}, r"student must be a mapping of kind, base"),
    ],
)
def test_what_is_wrong_is_said_with_its_key_and_what_is_allowed(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(FileFormatError, match=message) as raised:
        read_recipe(path)
    assert str(raised.value).startswith(str(path))


def test_no_file_no_yaml_and_no_mapping_are_said(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="cannot be read: No such file"):
        read_recipe(tmp_path / "gone.yaml")
    path = tmp_path / "recipe.yaml"
    path.write_text("a: [1,\nb: 2")
    with pytest.raises(FileFormatError, match=r"recipe\.yaml:2: not YAML"):
        read_recipe(path)
    path.write_text("- 1")
    with pytest.raises(FileFormatError, match="a recipe is a mapping"):
        read_recipe(path)


def test_overrides_take_the_place_of_keys_and_make_parts(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    recipe = read_recipe(
        path, ["schedule.steps=7", "lora.rank=4", "freeze={layers: 2}", "loss.label_weight=0.5"]
    )
    assert recipe.lora is not None
    assert (recipe.schedule.steps, recipe.lora.rank, recipe.freeze.layers) == (7, 4, 2)
    assert recipe.loss.options == {"teacher_temperature": 2, "label_weight": 0.5}
    for bad in ("steps", "=3", "seed.deep=1"):
        with pytest.raises(InputError):
            read_recipe(path, [bad])


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_the_recipes_that_come_along_are_read(path: Path) -> None:
    assert isinstance(read_recipe(path), Recipe)
