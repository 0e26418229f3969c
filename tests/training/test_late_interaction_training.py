"""Late interaction through recipes: every loss, from a bi-encoder and from models of other libraries."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sentence_transformers")
pytest.importorskip("accelerate")

from crossrank.errors import CheckpointError, InputError
from crossrank.models.late_interaction import LateInteraction
from crossrank.training.recipes import recipe_of
from crossrank.training.train import plan, train

MODELS = Path(__file__).parents[1] / "models"
ANIMALS = ["red fox", "blue whale", "brown dog", "quick fox", "blue dog", "red whale"]


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """Queries that name an animal: the relevant document has its words, the others have other ones."""
    path = tmp_path / "lists.jsonl"
    with path.open("w", encoding="utf-8") as lines:
        for number, animal in enumerate(ANIMALS * 2):
            others = [other for other in ANIMALS if other != animal][:3]
            row = {
                "query": f"find the {animal}" if number < len(ANIMALS) else f"the {animal} runs",
                "documents": [f"a {name} swims in the sea" for name in (animal, *others)],
                "labels": [1, 0, 0, 0],
                "teacher_scores": [0.9, *(0.3 * any(w in animal for w in o.split()) for o in others)],
            }
            lines.write(json.dumps(row) + "\n")
    return path


def recipe(lists: Path, base: Path, output: Path, **changes: Any) -> Any:
    values: dict[str, Any] = {
        "student": {"kind": "late_interaction", "base": str(base)},
        "data": [{"file": str(lists)}],
        "loss": {"name": "kl", "teacher_temperature": 0.1},
        "schedule": {"steps": 2, "learning_rate": 1e-3, "lists_per_step": 4, "list_size": 4},
        "output": str(output),
        "precision": "float32",
        "held_out": None,
    }
    return recipe_of({**values, **changes})


@pytest.mark.parametrize("loss", ["kl", "margin_mse", "mnr", "cached_mnr"])
def test_what_is_written_has_one_meaning_everywhere(loss: str, lists: Path, tmp_path: Path) -> None:
    from sentence_transformers import MultiVectorEncoder

    base = MODELS / "golden_bi" / "mean"
    student = {"kind": "late_interaction", "base": str(base), "dimensions": 8}
    train(recipe(lists, base, tmp_path / "out", student=student, loss={"name": loss}))
    ours = LateInteraction(tmp_path / "out", progress=False)
    theirs = MultiVectorEncoder(str(tmp_path / "out"), device="cpu")
    assert ours.dimensions == 8
    texts = [f"a {name} swims in the sea ." for name in ANIMALS]
    scores = theirs.similarity(theirs.encode_query(ANIMALS), theirs.encode_document(texts)).numpy()
    got = ours.score([(query, text) for query in ANIMALS for text in texts])
    np.testing.assert_allclose(got.reshape(scores.shape), scores, atol=5e-5)


def test_distillation_brings_the_model_to_its_teacher(lists: Path, tmp_path: Path) -> None:
    import torch
    from transformers import BertConfig, BertModel

    base = tmp_path / "base"
    shutil.copytree(MODELS / "golden_late" / "multi_vector", base)
    config = BertConfig.from_pretrained(base)
    config.initializer_range = 0.1  # the golden models' 0.5 is for figures, not for learning
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    torch.manual_seed(0)
    BertModel(config).save_pretrained(base)
    schedule = {"steps": 40, "learning_rate": 5e-3, "lists_per_step": 12, "list_size": 4}
    train(recipe(lists, base, tmp_path / "out", schedule=schedule))

    def divergence(folder: Path) -> float:
        model, found = LateInteraction(folder, progress=False), []
        for row in map(json.loads, lists.read_text(encoding="utf-8").splitlines()):
            scores = model.score([(row["query"], text) for text in row["documents"]])
            student = scores / len(model.encode_queries([row["query"]])[0]) / 0.05
            teacher = np.array(row["teacher_scores"]) / 0.1
            student, teacher = (x - np.log(np.exp(x).sum()) for x in (student, teacher))
            found.append(float((np.exp(teacher) * (teacher - student)).sum()))
        return float(np.mean(found))

    assert divergence(tmp_path / "out") < 0.2 * divergence(base)


def test_markers_and_expansion_of_another_library_are_kept(lists: Path, tmp_path: Path) -> None:
    base = MODELS / "golden_late" / "pylate"
    train(recipe(lists, base, tmp_path / "out"))
    before, after = LateInteraction(base), LateInteraction(tmp_path / "out")
    query = "find the red fox"
    assert [v.shape for v in after.encode_queries([query])] == [
        v.shape for v in before.encode_queries([query])
    ]
    assert after.settings.query.expansion == before.settings.query.expansion
    assert after.settings.document.skipped == before.settings.document.skipped
    # Two steps change vectors, and not by much: the marker, wherever it is stated, is still read.
    change = np.abs(after.encode_queries([query])[0] - before.encode_queries([query])[0])
    assert 1e-6 < change.max() < 0.2


def test_choices_that_cannot_be_are_refused(lists: Path, tmp_path: Path) -> None:
    for base, dimensions, message in (
        (MODELS / "golden_bi" / "mean", 17, "the base has 16"),
        (MODELS / "golden_late" / "pylate", 4, "has a projection"),
    ):
        student = {"kind": "late_interaction", "base": str(base), "dimensions": dimensions}
        with pytest.raises(InputError, match=message):
            plan(recipe(lists, base, tmp_path / "out", student=student))
    student = {"kind": "late_interaction", "base": "crossrank-mini"}  # which is written out as float32 before
    with pytest.raises(
        CheckpointError, match=r"student\.base: crossrank-mini is of the kind cross_encoder; a late"
    ):
        plan(recipe(lists, MODELS, tmp_path / "out", student=student))
    with pytest.raises(InputError, match="there are mnr, cached_mnr, margin_mse, kl"):
        recipe(lists, MODELS / "golden_late" / "pylate", tmp_path / "out", loss={"name": "lce"})
