"""Heads at earlier layers: trained together with the last, measured, written, resumed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sentence_transformers")

import torch
from safetensors.numpy import load_file
from sentence_transformers import CrossEncoder as TorchCrossEncoder
from training_inputs import GOLDEN, WORDS, lists, recipe_values, write_jsonl, write_recipe

from crossrank import CrossEncoder
from crossrank.errors import CheckpointError, InputError
from crossrank.runtime.exits import EXITS_FILE
from crossrank.training.exits import EXIT_SCORES, ExitLoss, add_exits, exits_of
from crossrank.training.forms import FORMS
from crossrank.training.losses.gradient_cache import PackedLoss
from crossrank.training.losses.table import LOSSES, loss_named, options_of
from crossrank.training.recipes import Lengths, LossChoice, StudentChoice, read_recipe, recipe_of
from crossrank.training.students import STUDENTS
from crossrank.training.train import train

BASE = GOLDEN / "bert_exits"
PROCESS = Path(__file__).with_name("training_process.py")
PAIRS = [("what is a cat", "a cat is an animal"), ("blue river", "the old river " * 8), ("how old", "a")]
SCORER_NAMES = [name for family, name in LOSSES if family == "scorer" and name != "ce"]
STUDENT = {"kind": "cross_encoder", "base": str(BASE), "exits": [1, 3]}


def opened(base: str = "bert_exits", exits: tuple[int, ...] = (1, 2)) -> Any:
    model = TorchCrossEncoder(str(GOLDEN / base), device="cpu")
    add_exits(model, exits, GOLDEN / base)
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    model.transformers_model.config.attention_probs_dropout_prob = 0.0
    return model


def plain_scores(model: Any, pairs: list[tuple[str, str]]) -> list[torch.Tensor]:
    """Of each head, by hidden states alone."""
    transformer = model.transformers_model
    inputs = model.tokenizer(*map(list, zip(*pairs, strict=True)), padding=True, return_tensors="pt")
    body = transformer.bert(**inputs, output_hidden_states=True)
    heads = [
        classifier(torch.tanh(dense(body.hidden_states[int(layer)][:, 0])))
        for layer, (dense, classifier) in transformer.exits.items()
    ]
    return [*heads, transformer.classifier(transformer.dropout(body.pooler_output))]


def inputs_of(form: str) -> tuple[Any, Any]:
    rng = random.Random(1)

    def text() -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(1, 9)))

    queries = [text() for _ in range(4)]
    if FORMS[form].lists:
        sizes = [4, 3, 5, 4]
        labels = [torch.tensor([1.0] + [0.0] * (size - 1)) for size in sizes]
        if form == "scored_lists":
            labels = [torch.stack([torch.linspace(0, 2, len(each)), each], dim=1) for each in labels]
        return [queries, [[text() for _ in range(size)] for size in sizes]], labels
    columns = 3 if form == "scored_triplets" else 2
    return [queries, *([text() for _ in queries] for _ in range(columns - 1))], torch.linspace(0, 1, 4)


class _Given:
    """A model that gives scores computed before, call by call."""

    num_labels = 1
    device = torch.device("cpu")

    def __init__(self, model: Any, head: int) -> None:
        self.model, self.head = model, head

    def preprocess(self, pairs: Any, **options: Any) -> dict[str, Any]:
        return {"pairs": [tuple(pair) for pair in pairs]}

    def __call__(self, features: Any) -> dict[str, torch.Tensor]:
        return {"scores": plain_scores(self.model, features["pairs"])[self.head]}


def gradients(model: Any, value: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    value.backward()
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("form", ["plain", "packed", "cached"])
@pytest.mark.parametrize("name", SCORER_NAMES)
def test_gradients_are_those_of_the_plain_sum(name: str, form: str) -> None:
    model = opened().train()
    choice = LossChoice(name)
    loss = loss_named(choice, "scorer")
    inputs, labels = inputs_of(loss.form)
    expected = None
    for head, weight in enumerate((0.3, 0.3, 1.0)):
        alone = loss.build(model, options_of(choice, loss), 0)
        del alone.model
        alone.model = _Given(model, head)
        term = weight * alone([*inputs], labels)
        expected = term if expected is None else expected + term
    wanted = gradients(model, expected)
    joint = ExitLoss(loss.build(model, options_of(choice, loss), 0), 0.3)
    if form != "plain":
        joint = PackedLoss(joint, token_budget=48, cache=form == "cached")
    value = joint([*inputs], labels)
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)
    found = gradients(model, value)
    assert found.keys() == wanted.keys()
    assert any(name.endswith("exits.1.0.weight") for name in found)
    for parameter, gradient in wanted.items():
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-3, atol=1e-5, msg=parameter)


def test_the_layers_run_once_a_step_for_all_heads() -> None:
    model = opened()
    runs = []
    model.transformers_model.bert.encoder.layer[0].register_forward_hook(lambda *_: runs.append(1))
    loss = loss_named(LossChoice("margin_mse"), "scorer")  # which asks for scores twice
    inputs, labels = inputs_of(loss.form)
    ExitLoss(loss.build(model, options_of(LossChoice("margin_mse"), loss), 0), 0.3)(inputs, labels)
    assert len(runs) == 2


@pytest.mark.parametrize("base", ["bert", "roberta", "electra", "distilbert", "xlm_roberta"])
def test_a_new_head_begins_as_the_models_own(base: str) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    model = TorchCrossEncoder(str(GOLDEN / base), device="cpu")
    torch.set_rng_state(state)
    add_exits(model, [1], GOLDEN / base)
    assert torch.equal(torch.get_rng_state(), state)  # what comes after draws as it would have drawn
    dense, classifier = model.transformers_model.exits["1"]
    own = dict(model.transformers_model.named_parameters())
    shapes = {dense.weight.shape, classifier.weight.shape}
    copies = [name for name, each in own.items() if "exits" not in name and each.shape in shapes]
    assert any(torch.equal(own[name], dense.weight) for name in copies)
    assert any(torch.equal(own[name], classifier.weight) for name in copies)


def test_a_bases_own_heads_go_on_from_there() -> None:
    heads = load_file(BASE / EXITS_FILE)
    model = opened(exits=(1, 3))
    np.testing.assert_array_equal(model.transformers_model.exits["1"][0].weight.detach(), heads["1.0.weight"])
    dense = model.transformers_model.exits["3"][0].weight
    assert torch.equal(dense, model.transformers_model.bert.pooler.dense.weight)


@pytest.mark.parametrize(("exits", "said"), [(None, True), ((1,), False)])
def test_that_heads_of_the_base_are_left_out_is_said(
    exits: tuple[int, ...] | None, said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    choice = StudentChoice("cross_encoder", str(BASE), exits=exits)
    STUDENTS["cross_encoder"].open(choice, BASE, Lengths())
    assert ("what is trained from it will have none; student.exits: [" in caplog.text) is said


@pytest.mark.parametrize(
    ("base", "exits", "error", "message"),
    [
        ("bert_exits", (4,), InputError, "after layers 1 to 3, not after 4"),
        ("modernbert", (1,), CheckpointError, "models of the BERT family do"),
        ("deberta_v3", (1,), CheckpointError, "models of the BERT family do"),
    ],
)
def test_what_gets_no_heads_says_so(base: str, exits: tuple[int, ...], error: type, message: str) -> None:
    model = TorchCrossEncoder(str(GOLDEN / base), device="cpu")
    with pytest.raises(error, match=message):
        add_exits(model, exits, GOLDEN / base)


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ({"exits": [2, 2]}, "student: exits must be different layers"),
        ({"exits": []}, "student: exits must be different layers"),
        ({"exits": [0]}, "student: exits must be different layers"),
        ({"exits": 2}, "student.exits must be a list"),
        ({"exits": [1], "kind": "bi_encoder"}, "student: exits are heads of a cross_encoder"),
        ({"exits": [1], "exit_weight": -1}, "student.exit_weight must be at least 0"),
    ],
)
def test_recipes_that_cannot_be_followed(tmp_path: Path, student: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        recipe_of(
            recipe_values(tmp_path, student=student, loss={"name": "mnr" if "kind" in student else "lce"})
        )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exits")
    train(recipe_of(recipe_values(folder, student=STUDENT)))
    return folder / "model"


def test_the_folder_gives_the_same_exit_scores_as_torch(trained: Path) -> None:
    model = TorchCrossEncoder(str(trained), device="cpu").eval()
    add_exits(model, (1, 3), trained)
    with torch.no_grad():
        joint = model(model.preprocess(PAIRS))[EXIT_SCORES].numpy()
    for column, layer in enumerate((1, 3, None)):
        ours = CrossEncoder(trained, precision="float32", exit_layer=layer).score(PAIRS)
        np.testing.assert_allclose(ours, joint[:, column], atol=1e-5)
    assert set(load_file(trained / EXITS_FILE)) == {
        f"{layer}.{part}.{tensor}" for layer in (1, 3) for part in (0, 1) for tensor in ("weight", "bias")
    }
    assert not any("exits" in name for name in load_file(trained / "model.safetensors"))
    theirs = TorchCrossEncoder(str(trained), device="cpu").predict(PAIRS, activation_fn=torch.nn.Identity())
    np.testing.assert_allclose(CrossEncoder(trained, precision="float32").score(PAIRS), theirs, atol=1e-5)


def test_the_card_has_the_measure_of_each_exit(trained: Path) -> None:
    from crossrank.evaluation.measures import evaluate

    recipe = read_recipe(trained / "recipe.yaml")
    assert recipe.student.exits == (1, 3)
    dev = [json.loads(line) for line in Path(recipe.held_out.file).read_text().splitlines()]
    card = (trained / "README.md").read_text(encoding="utf-8")
    for layer in (1, 3):
        model = CrossEncoder(trained, precision="float32", max_length=64, exit_layer=layer)
        run, qrels = {}, {}
        for i, row in enumerate(dev):
            scores = model.score([(row["query"], text) for text in row["documents"]])
            run[str(i)] = {str(j): float(score) for j, score in enumerate(scores)}
            qrels[str(i)] = {str(j): label for j, label in enumerate(row["labels"])}
        assert f"| {layer} | {evaluate(run, qrels, ['nDCG@10'])['nDCG@10']:.4f} |" in card


def test_heads_learn_what_the_layers_before_them_can(tmp_path: Path) -> None:
    # what is relevant has the word "light": one layer is enough
    schedule = {"steps": 60, "lists_per_step": 8, "learning_rate": 0.003, "gradient_cache": False}
    write_jsonl(tmp_path / "train.jsonl", lists(64))
    write_jsonl(tmp_path / "dev.jsonl", lists(12, seed=1))
    values = recipe_values(tmp_path, student=STUDENT, schedule=schedule, held_out={"every": 60})
    report = train(recipe_of(values))
    assert set(report.exits) == {1, 3}
    assert min(report.exits.values()) > 0.8


def test_a_killed_run_goes_on_and_ends_with_the_same_heads(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "student": STUDENT,
        "held_out": None,
        "schedule": {"steps": 6, "checkpoint_every": 2},
    }
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    data = [{"file": str(write_jsonl(tmp_path / "data.jsonl", lists(32)))}]
    train(recipe_of(recipe_values(whole, data=data, **changes)))
    recipe = write_recipe(killed, data=data, **changes)
    process = subprocess.run(
        [sys.executable, str(PROCESS), str(recipe), "3"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    train(read_recipe(recipe))
    for file in ("model.safetensors", EXITS_FILE):
        assert (whole / "model" / file).read_bytes() == (killed / "model" / file).read_bytes()


def test_adapters_and_exits_together(tmp_path: Path) -> None:
    train(recipe_of(recipe_values(tmp_path, student=STUDENT, lora={"rank": 2}, held_out=None)))
    before, after = load_file(BASE / EXITS_FILE), load_file(tmp_path / "model" / EXITS_FILE)
    assert not np.array_equal(before["1.1.weight"], after["1.1.weight"])
    assert CrossEncoder(tmp_path / "model", exit_layer=3).score(PAIRS).shape == (3,)


def test_exits_of_a_model_without_any() -> None:
    assert exits_of(TorchCrossEncoder(str(GOLDEN / "bert"), device="cpu")) == ()
    assert exits_of(opened()) == (1, 2)
