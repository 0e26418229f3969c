"""T5 rerankers are trained by recipes: losses, exports that score the same, cuts, what cannot be trained."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from training_inputs import recipe_values

pytest.importorskip("sentence_transformers")

import torch

from crossrank.errors import CheckpointError, InputError
from crossrank.models.declaration import read_declaration
from crossrank.models.duo_t5 import DuoT5
from crossrank.models.load import load
from crossrank.models.mono_t5 import MonoT5
from crossrank.models.pairwise import AllPairs
from crossrank.models.rank_t5 import RankT5
from crossrank.training.losses.gradient_cache import PackedLoss
from crossrank.training.losses.listwise import ListwiseSoftmax, Poly1
from crossrank.training.losses.pairwise import ComparisonLoss
from crossrank.training.recipes import Lengths, StudentChoice, read_recipe, recipe_of
from crossrank.training.students import STUDENTS
from crossrank.training.train import train

GOLDEN = Path(__file__).parents[1] / "golden_t5"
QUERY = "what is blue"
TEXTS = ["the cat of the river", "old light", "dog bird city " * 30, ""]
CASES = [
    ("mono_t5", "t5", {"name": "bce"}, MonoT5),
    ("mono_t5", "mt5", {"name": "bce"}, MonoT5),
    ("rank_t5", "t5_v1_1", {"name": "rankt5_softmax"}, RankT5),
    ("rank_t5", "t5", {"name": "poly1"}, RankT5),
    ("duo_t5", "t5_v1_1", {"name": "duo"}, DuoT5),
]


def opened(kind, base, max_length=64):
    choice = StudentChoice(kind, str(GOLDEN / base))
    return STUDENTS[kind].open(choice, GOLDEN / base, Lengths(max_length=max_length))


@pytest.mark.parametrize(("kind", "base", "loss", "model_class"), CASES)
def test_a_recipe_trains_what_load_opens(tmp_path, kind, base, loss, model_class):
    values = recipe_values(
        tmp_path,
        student={"kind": kind, "base": str(GOLDEN / base)},
        loss=loss,
        schedule={"learning_rate": 0.01},
        lengths={"max_length": 160},
        held_out=None,
    )
    before = Path(GOLDEN / base / "model.safetensors").read_bytes()
    assert train(recipe_of(values)).num_steps > 0
    assert Path(GOLDEN / base / "model.safetensors").read_bytes() == before
    model = load(tmp_path / "model", threads=1)
    assert type(model) is model_class
    assert model.settings.max_length == 160
    assert read_declaration(tmp_path / "model").kind == kind
    documents = TEXTS[:3]
    student = STUDENTS[kind]
    again = student.open(StudentChoice(kind, str(tmp_path / "model")), tmp_path / "model", Lengths())
    scores = student.score_lists(again, [QUERY], [documents], 4096)[0]
    if kind == "duo_t5":
        ranking = DuoT5(tmp_path / "model", plan=AllPairs(), threads=1).rank(QUERY, documents)
        got = [hit.score for hit in sorted(ranking, key=lambda hit: hit.index)]
    else:
        got = model.score([(QUERY, text) for text in documents])
    np.testing.assert_allclose(got, scores, rtol=0, atol=1e-5)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() != before
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert "\nlibrary_name: transformers\n" in card  # sentence-transformers has no class for it


@pytest.mark.parametrize(("kind", "base", "loss", "model_class"), CASES)
def test_inputs_and_scores_in_training_are_those_of_the_reranker(kind, base, loss, model_class):
    model = opened(kind, base)
    if kind == "duo_t5":
        reranker = DuoT5(GOLDEN / base, max_length=64, family="t5", threads=1)
        inputs = [(QUERY, TEXTS[i], TEXTS[j]) for i, j in ((0, 2), (2, 0), (1, 3), (2, 2))]
        wanted = reranker.prefer(inputs)
    else:
        family = {"family": base if base == "mt5" else "t5"} if kind == "mono_t5" else {}
        reranker = model_class(GOLDEN / base, max_length=64, threads=1, **family)
        inputs = [(QUERY, text) for text in TEXTS]
        wanted = reranker.score(inputs)
    with torch.no_grad():
        scores = model.eval()(model.preprocess(inputs))["scores"]
    assert scores.shape == (len(inputs), 1)
    got = scores[:, 0].double()
    got = {"mono_t5": torch.nn.functional.logsigmoid, "duo_t5": torch.sigmoid}.get(kind, lambda x: x)(got)
    np.testing.assert_allclose(got.numpy(), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("base", ["t5", "t5_v1_1"])
@pytest.mark.parametrize("cache", [True, False])
def test_gradients_are_those_of_the_plain_loss(base, cache):
    lists = ([QUERY, "old"], [TEXTS[:3], TEXTS[2:]])
    labels = [torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0])]
    for kind, make, inputs, targets in (
        ("rank_t5", ListwiseSoftmax, lists, labels),
        ("rank_t5", Poly1, lists, labels),
        ("duo_t5", ComparisonLoss, ([QUERY, "old"], TEXTS[:2], TEXTS[1:3]), None),
    ):
        gradients = []
        for packed in (False, True):
            model = opened(kind, base).eval()
            loss = make(model)
            if packed:
                loss = PackedLoss(loss, token_budget=40, cache=cache)
            value = loss(inputs, targets)
            value.backward()
            gradients.append({name: each.grad for name, each in model.named_parameters()})
        for name, gradient in gradients[0].items():
            if gradient is not None:
                torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-5)


def test_comparing_is_cross_entropy_in_both_orders():
    model = opened("duo_t5", "t5").eval()
    loss = ComparisonLoss(model)(([QUERY], [TEXTS[0]], [TEXTS[1]]))
    p = DuoT5(GOLDEN / "t5", max_length=64, threads=1).prefer(
        [(QUERY, TEXTS[0], TEXTS[1]), (QUERY, TEXTS[1], TEXTS[0])]
    )
    assert float(loss.detach()) == pytest.approx((-np.log(p[0]) - np.log(1 - p[1])) / 2, abs=1e-5)


def test_a_duo_is_measured_on_long_lists_by_samples(monkeypatch):
    model = opened("duo_t5", "t5")
    lists = [TEXTS[:3], [f"city {i}" for i in range(20)], []]
    rows = []
    forward = model[0].forward
    monkeypatch.setattr(
        model[0], "forward", lambda f, **o: (rows.append(len(f["input_ids"])), forward(f, **o))[1]
    )
    scores = STUDENTS["duo_t5"].score_lists(model, [QUERY] * 3, lists, 4096)
    assert [len(each) for each in scores] == [3, 20, 0]
    assert sum(rows) == 6 + 160


def test_lengths_are_those_of_the_prompt():
    for kind, share in (("mono_t5", 1), ("duo_t5", 2)):
        model = opened(kind, "t5")
        lengths = STUDENTS[kind].text_lengths(model)
        tokens = lengths.count([QUERY, TEXTS[2]])
        room = lengths.max_length - lengths.num_special - tokens[0]
        special = model[0].prompt_tokenizer.num_special_tokens
        assert room <= (64 - special - tokens[0]) // share
        cut = lengths.cut(TEXTS[2], 10)
        assert TEXTS[2].startswith(cut)
        assert lengths.count([cut])[0] <= 10
        assert lengths.cut("old", 10) == "old"


@pytest.mark.parametrize(
    ("kind", "base", "message"),
    [
        ("mono_t5", "t5_encoder", "has no decoder"),
        ("rank_t5", "../golden/bert", "is no T5 but bert"),
    ],
)
def test_what_cannot_be_trained_says_so(kind, base, message):
    folder = (GOLDEN / base).resolve()
    with pytest.raises(CheckpointError, match=f"^my-base {message}"):
        STUDENTS[kind].open(StudentChoice(kind, "my-base"), folder, Lengths())


@pytest.mark.parametrize("kind", ["mono_t5", "rank_t5", "duo_t5"])
def test_the_recipes_run_with_a_small_t5(tmp_path, monkeypatch, kind):
    root = Path(__file__).parents[2]
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, root / "scripts" / "train_small_t5.py", "work/small-t5", "--data-only"]
    subprocess.run([*command, "--steps", "2", "--lists-per-step", "16"], check=True)
    changes = ["schedule.steps=2", "schedule.lists_per_step=4", "held_out.queries=4"]
    report = train(read_recipe(root / "recipes" / f"{kind}.yaml", changes))
    assert report.num_steps == 2
    assert load(report.output).rank("a", ["b", "c"]).document_ids


def test_an_input_must_have_room():
    with pytest.raises(InputError, match="the prompt alone has"):
        opened("mono_t5", "t5", max_length=10)


def test_a_duo_may_start_from_a_mono(tmp_path):
    base = tmp_path / "mono"
    shutil.copytree(GOLDEN / "t5", base)
    declaration = {"kind": "mono_t5", "prompt": "{query} {document}", "tokens": ["▁no", "▁yes"]}
    (base / "crossrank.json").write_text(json.dumps(declaration), encoding="utf-8")
    model = STUDENTS["duo_t5"].open(StudentChoice("duo_t5", str(base)), base, Lengths())
    assert "{document0}" in model[0].prompt_tokenizer.prompt
    mono = STUDENTS["mono_t5"].open(StudentChoice("mono_t5", str(base)), base, Lengths())
    assert mono[0].prompt_tokenizer.prompt == "{query} {document}"
    exported = tmp_path / "exported"
    STUDENTS["mono_t5"].export(mono, exported)
    assert load(exported).token_ids == load(base).token_ids


@pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning"
)  # peft asks transformers for it
def test_adapters_are_merged(tmp_path):
    values = recipe_values(
        tmp_path,
        student={"kind": "rank_t5", "base": str(GOLDEN / "t5")},
        loss={"name": "lce"},
        lora={"rank": 2},
        schedule={"learning_rate": 0.02},
        lengths={"max_length": 160},
        held_out=None,
    )
    train(recipe_of(values))
    before = RankT5(GOLDEN / "t5", threads=1).score([(QUERY, TEXTS[0])])
    assert RankT5(tmp_path / "model", threads=1).score([(QUERY, TEXTS[0])])[0] != before[0]
