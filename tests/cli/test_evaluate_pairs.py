"""`crossrank evaluate-pairs`: the library's numbers for grades, two classes, and names of classes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from crossrank import BiEncoder, CrossEncoder
from crossrank.evaluation.pairs import best_threshold, pearson, spearman

GOLDEN = Path(__file__).parents[1] / "golden"
WORDS = ["the", "cat", "dog", "river", "city", "water", "light", "mountain", "bird", "old", "new", "blue"]
TEXTS = [(f"{WORDS[i % 12]} {WORDS[i // 5]}", " ".join(WORDS[i % 7 : i % 7 + 3])) for i in range(40)]


def written(path: Path, labels: list[object]) -> Path:
    rows = [
        {"text1": first, "text2": second, "label": label}
        for (first, second), label in zip(TEXTS, labels, strict=True)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_grades_are_correlated_with_a_bi_encoders_cosines(run, tmp_path: Path) -> None:
    labels = [i * 7 % 11 / 2 for i in range(40)]
    path = written(tmp_path / "grades.jsonl", list(labels))
    result = run("evaluate-pairs", GOLDEN / "sbert_bi_encoder", path, "--json", "--threads", 1)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    model = BiEncoder(GOLDEN / "sbert_bi_encoder", threads=1)
    first = model.encode_documents([text for text, _ in TEXTS]).astype(float)
    cosines = (first * model.encode_documents([text for _, text in TEXTS])).sum(axis=1)
    assert found["measures"]["pearson"] == pytest.approx(pearson(cosines, labels), abs=1e-5)
    assert found["measures"]["spearman"] == pytest.approx(spearman(cosines, labels), abs=0.01)
    low, high = found["intervals"]["pearson"]
    assert low < found["measures"]["pearson"] < high
    shown = run("evaluate-pairs", GOLDEN / "sbert_bi_encoder", path, "--threads", 1)
    assert f"{found['measures']['pearson']:.4f}" in shown.stdout


def test_two_classes_need_a_threshold_to_be_told_apart(run, tmp_path: Path) -> None:
    path = written(tmp_path / "binary.jsonl", [i % 2 for i in range(40)])
    arguments = ("evaluate-pairs", GOLDEN / "bert", path, "--json", "--threads", 1)
    assert set(json.loads(run(*arguments).stdout)["measures"]) == {"roc_auc"}
    scores = CrossEncoder(GOLDEN / "bert", threads=1).score(TEXTS)
    chosen = json.loads(run(*arguments, "--choose-on", path).stdout)
    assert chosen["threshold"] == pytest.approx(best_threshold(scores, np.arange(40) % 2), abs=1e-4)
    stated = json.loads(run(*arguments, "--threshold", chosen["threshold"]).stdout)
    assert stated["measures"] == chosen["measures"]
    assert chosen["measures"]["accuracy"] == pytest.approx(
        np.mean((scores >= chosen["threshold"]) == np.arange(40) % 2)
    )


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_threshold_is_a_number(run, tmp_path: Path, value: str) -> None:
    path = written(tmp_path / "binary.jsonl", [i % 2 for i in range(40)])
    result = run("evaluate-pairs", GOLDEN / "bert", path, "--threshold", value)
    assert result.exit_code == 2
    assert "must be a finite number" in " ".join(result.stderr.split())


def test_classes_go_by_name_or_by_place(run, tmp_path: Path) -> None:
    folder = next(
        path.parent
        for path in sorted(GOLDEN.glob("*/expected.npz"))
        if path.parent.name != "sbert_bi_encoder" and len(CrossEncoder(path.parent).labels) > 1
    )
    model = CrossEncoder(folder, threads=1)
    best = model.score(TEXTS).argmax(axis=1).tolist()
    names = [model.labels[place].upper() for place in best]
    places = [place if i % 4 else (place + 1) % len(model.labels) for i, place in enumerate(best)]
    by_name = run("evaluate-pairs", folder, written(tmp_path / "names.jsonl", list(names)), "--json")
    assert json.loads(by_name.stdout)["measures"]["accuracy"] == 1
    by_place = run("evaluate-pairs", folder, written(tmp_path / "places.jsonl", list(places)))
    assert by_place.exit_code == 0, by_place.stderr
    assert "0.7500" in by_place.stdout
    wrong = run("evaluate-pairs", folder, written(tmp_path / "wrong.jsonl", ["unheard of"] * 40))
    assert wrong.exit_code == 1
    assert "'unheard of'" in wrong.stderr


def test_options_that_would_do_nothing_are_refused(run, tmp_path: Path) -> None:
    path = written(tmp_path / "grades.jsonl", [i / 7 for i in range(40)])
    result = run("evaluate-pairs", GOLDEN / "bert", path, "--threshold", 0.5)
    assert result.exit_code == 2
    assert "would do nothing" in result.stderr
    result = run("evaluate-pairs", GOLDEN / "bert", path, "--threshold", 0.5, "--choose-on", path)
    assert result.exit_code == 2
    result = run("evaluate-pairs", GOLDEN / "bert", written(tmp_path / "names.jsonl", ["yes"] * 40))
    assert result.exit_code == 1
    assert "the name of a class" in result.stderr
