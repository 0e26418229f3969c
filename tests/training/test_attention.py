"""The form of attention that is taken while training on a CPU computes what torch's own does."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sentence_transformers")

import sentence_transformers
import torch
from training_inputs import CROSS_ENCODER, recipe_values

from crossrank.training import attention
from crossrank.training.attention import PLAIN_LENGTH, faster_attention
from crossrank.training.recipes import Schedule, recipe_of
from crossrank.training.train import train

GOLDEN = Path(__file__).parents[1] / "golden"
PAIRS = [("cat", "the old cat is in the city"), ("dog river", "new light"), ("a", "blue " * 9)]


def _model(folder: Path) -> Any:
    model = sentence_transformers.CrossEncoder(str(folder), device="cpu", model_kwargs={"dtype": "float32"})
    return model.eval()


def _gradients(model: Any, **autocast: Any) -> dict[str, torch.Tensor]:
    """Of the sum of the scores; the model's dropout is off."""
    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", **autocast):
        scores = model(model.preprocess(PAIRS))["scores"]
    scores.float().sum().backward()
    found = {"scores": scores.detach().float()}
    return found | {
        name: part.grad.clone() for name, part in model.named_parameters() if part.grad is not None
    }


@pytest.mark.parametrize("family", ["bert", "distilbert", "electra", "modernbert", "roberta"])
def test_scores_and_gradients_are_those_of_the_fused_form(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _model(GOLDEN / family)
    exact = _gradients(copy.deepcopy(model), enabled=False)
    fused = _gradients(model, dtype=torch.bfloat16)
    with faster_attention(model):
        float32 = _gradients(model, enabled=False)
        monkeypatch.delattr(attention, "sdpa_attention_forward")
        plain = _gradients(model, dtype=torch.bfloat16)
    for name, wanted in exact.items():
        torch.testing.assert_close(float32[name], wanted)  # which is the fused form still
        # bf16 is off by as much in one form as in the other, give or take
        off, bound = (plain[name] - wanted).norm(), (fused[name] - wanted).norm()
        assert off <= 2 * bound + 1e-3 * wanted.norm() + 1e-6, name


def test_which_form_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    fused: list[int] = []
    theirs = attention.sdpa_attention_forward

    def noted(module: Any, query: torch.Tensor, *rest: Any, **options: Any) -> Any:
        fused.append(query.shape[2])
        return theirs(module, query, *rest, **options)

    monkeypatch.setattr(attention, "sdpa_attention_forward", noted)
    layer = torch.nn.Module()
    layer.is_causal = False

    def attend(tokens: int, dtype: torch.dtype, **options: Any) -> torch.Size:
        parts = [torch.randn(2, 3, tokens, 4, dtype=dtype) for _ in range(3)]
        return attention._attention(layer, *parts, None, **options)[0].shape

    assert attend(PLAIN_LENGTH, torch.bfloat16) == (2, PLAIN_LENGTH, 3, 4)
    assert fused == []
    assert attend(PLAIN_LENGTH + 1, torch.bfloat16) == (2, PLAIN_LENGTH + 1, 3, 4)
    attend(8, torch.float32)
    attend(8, torch.bfloat16, is_causal=True)
    layer.is_causal = True
    attend(9, torch.bfloat16)
    assert fused == [PLAIN_LENGTH + 1, 8, 8, 9]


def test_dropout_of_both_passes_of_gradient_caching_is_the_same(tmp_path: Path) -> None:
    values = recipe_values(tmp_path, precision="bf16", held_out=None, schedule={"token_budget": 48})
    train(recipe_of(values))
    cached = (tmp_path / "model" / "training" / "metrics.jsonl").read_text().splitlines()
    values["schedule"]["gradient_cache"] = False
    train(recipe_of({**values, "output": str(tmp_path / "plain")}))
    plain = (tmp_path / "plain" / "training" / "metrics.jsonl").read_text().splitlines()
    losses = [[json.loads(line)["loss"] for line in lines] for lines in (cached, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_nothing_of_it_is_left_in_the_model_or_its_folder(tmp_path: Path) -> None:
    model = _model(CROSS_ENCODER)
    with faster_attention(model):
        assert model.transformers_model.config._attn_implementation != "sdpa"
        model.save_pretrained(str(tmp_path / "within"))
    assert model.transformers_model.config._attn_implementation == "sdpa"
    train(recipe_of(recipe_values(tmp_path, precision="bf16", held_out=None)))
    for folder in (tmp_path / "within", tmp_path / "model"):
        for file in folder.glob("*.json"):
            assert "attn" not in file.read_text(encoding="utf-8"), file


def test_a_model_without_fused_attention_is_left_as_it_is() -> None:
    folder = next(GOLDEN.glob("deberta*"))
    model = _model(folder)
    before = model.transformers_model.config._attn_implementation
    with faster_attention(model):
        assert model.transformers_model.config._attn_implementation == before
        assert model(model.preprocess(PAIRS))["scores"].shape == (len(PAIRS), 1)


def test_the_token_budget_fits_the_device() -> None:
    assert Schedule(steps=1).padded_tokens(on_cpu=True) < Schedule(steps=1).padded_tokens(on_cpu=False)
    assert Schedule(steps=1, token_budget=77).padded_tokens(on_cpu=True) == 77
