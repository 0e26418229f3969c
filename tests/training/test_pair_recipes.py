"""Models of sentence pairs from recipe to figures: similarity from 0 to 1, and names of classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crossrank import CrossEncoder
from crossrank.evaluation.pairs import LabelledPair, pair_values
from crossrank.training.recipes import recipe_of

ROOT = Path(__file__).parents[2]
BASE = ROOT / "tests" / "golden" / "sbert_bi_encoder"
WORDS = ["the", "cat", "dog", "river", "city", "water", "light", "mountain", "bird", "old", "new", "blue"]
TEXTS = [
    (" ".join(WORDS[i % 12 : i % 12 + 3]), " ".join(WORDS[i // 2 % 12 : i // 2 % 12 + 2])) for i in range(48)
]
CLASSES = ["contradiction", "entailment", "neutral"]


@pytest.fixture
def installed() -> None:
    """What the extra `train` brings."""
    for name in ("yaml", "torch", "sentence_transformers"):
        pytest.importorskip(name)


def written(path: Path, labels: list[Any], *, last_word: str = "") -> Path:
    rows = [
        {"text1": first + last_word, "text2": second, "label": label}
        for (first, second), label in zip(TEXTS, labels, strict=True)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def trained(folder: Path, labels: list[Any], **changes: Any) -> CrossEncoder:
    from crossrank.training.train import train

    path = written(folder / "pairs.jsonl", labels)
    values: dict[str, Any] = {
        "student": {"kind": "cross_encoder", "base": str(BASE), **changes.pop("student", {})},
        "data": [{"file": str(path), **changes.pop("data", {})}],
        "schedule": {"steps": 4, "lists_per_step": 8, "learning_rate": 0.001},
        "lengths": {"max_length": 48},
        "precision": "float32",
        "output": str(folder / "model"),
        **changes,
    }
    values["held_out"]["file"] = str(written(folder / "dev.jsonl", labels, last_word=" light"))
    train(recipe_of(values))
    return CrossEncoder(folder / "model", threads=1)


@pytest.mark.usefixtures("installed")
def test_a_model_of_similarity_gives_what_sentence_transformers_gives(tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder as Reference

    model = trained(
        tmp_path,
        [i % 6 for i in range(48)],
        data={"label_range": [0, 5]},
        loss={"name": "bce"},
        held_out={"measure": "spearman", "every": 2},
        guards={"below_baseline": 2.0, "constant_scores": 0.0},
    )
    assert model.activation == "sigmoid"
    values = pair_values(model, [LabelledPair(*texts, 0) for texts in TEXTS])
    assert ((values > 0) & (values < 1)).all()
    reference = Reference(str(tmp_path / "model"), device="cpu").predict(TEXTS)
    np.testing.assert_allclose(values, reference, atol=1e-5)


@pytest.mark.usefixtures("installed")
def test_what_bce_trains_ends_with_a_sigmoid_whatever_its_base_ended_with(tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder as Reference

    base = tmp_path / "base"
    shutil.copytree(BASE.with_name("bert"), base)
    config = json.loads((base / "config.json").read_text())
    config["sentence_transformers"] = {"activation_fn": "torch.nn.modules.linear.Identity"}
    (base / "config.json").write_text(json.dumps(config))
    assert CrossEncoder(base, threads=1).activation == "identity"
    model = trained(
        tmp_path,
        [i % 2 for i in range(48)],
        student={"base": str(base)},
        loss={"name": "bce"},
        held_out={"measure": "accuracy", "every": 2},
        guards={"below_baseline": 1.0, "constant_scores": 0.0},
    )
    assert model.activation == "sigmoid"
    reference = Reference(str(tmp_path / "model"), device="cpu").predict(TEXTS)
    values = pair_values(model, [LabelledPair(*texts, 0) for texts in TEXTS])
    np.testing.assert_allclose(values, reference, atol=1e-5)


@pytest.mark.usefixtures("installed")
def test_a_model_of_entailment_has_its_classes_in_their_order(tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder as Reference

    model = trained(
        tmp_path,
        [CLASSES[i % 3] for i in range(48)],
        student={"classes": CLASSES},
        loss={"name": "ce"},
        held_out={"measure": "accuracy", "every": 2},
        guards={"below_baseline": 1.0, "constant_scores": 0.0},
    )
    assert list(model.labels) == CLASSES
    reference = Reference(str(tmp_path / "model"), device="cpu").predict(TEXTS)
    logits = model.score(TEXTS)
    np.testing.assert_allclose(logits, reference, atol=1e-4)
    ranked = CrossEncoder(tmp_path / "model", threads=1, label="entailment").rank(
        "the cat", [b for _, b in TEXTS]
    )
    assert len(ranked) == 48
