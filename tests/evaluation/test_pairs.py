"""Measures of sentence pairs against scipy's and scikit-learn's, and reading labelled pairs."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossrank import BiEncoder, CrossEncoder
from crossrank.errors import FileFormatError, InputError
from crossrank.evaluation.pairs import (
    LabelledPair,
    agreement,
    best_threshold,
    interval_over_pairs,
    pair_values,
    pearson,
    read_labelled_pairs,
    spearman,
)

GOLDEN = Path(__file__).parents[1] / "golden"
PAIRS = [LabelledPair("the cat", "the old cat", 1), LabelledPair("river", "blue water", 0)]


@pytest.mark.parametrize("digits", [6, 0])  # with 0, many values are equal
def test_correlations_are_scipys(digits: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(0)
    first = random.normal(0, 2, 300)
    second = (first + random.normal(0, 2, 300)).round(digits)
    assert pearson(first, second) == pytest.approx(stats.pearsonr(first, second).statistic, abs=1e-12)
    assert spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-12)


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=2, max_size=30))
def test_rank_correlation_knows_the_order_alone(rows) -> None:
    first, second = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    if len(set(first)) == 1 or len(set(second)) == 1:
        with pytest.raises(InputError, match="constant"):
            spearman(first, second)
        return
    value = spearman(first, second)
    assert -1 <= value <= 1
    assert spearman(np.exp(first), second) == pytest.approx(value)
    assert spearman(-first, second) == pytest.approx(-value)
    assert spearman(first, first) == pytest.approx(1)


def test_agreement_is_scikit_learns() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    classes = ["contradiction", "entailment", "neutral"]
    labels = random.choice(classes, 200).tolist()
    predicted = [label if random.random() < 0.6 else random.choice(classes) for label in labels]
    found = agreement(predicted, labels, classes)
    assert found.accuracy == pytest.approx(metrics.accuracy_score(labels, predicted))
    assert list(found.f1.values()) == pytest.approx(
        metrics.f1_score(labels, predicted, labels=classes, average=None).tolist()
    )
    assert found.macro_f1 == pytest.approx(metrics.f1_score(labels, predicted, average="macro"))
    matrix = metrics.confusion_matrix(labels, predicted, labels=classes)
    assert [list(row.values()) for row in found.counts.values()] == matrix.tolist()


def test_a_class_that_is_never_right_has_no_f1() -> None:
    assert agreement(["a", "a"], ["a", "b"], ["a", "b"]).f1 == {"a": pytest.approx(2 / 3), "b": 0.0}
    with pytest.raises(InputError, match="'c' is none of the classes a, b"):
        agreement(["c"], ["a"], ["a", "b"])
    with pytest.raises(InputError, match="0 predictions and 1 labels"):
        agreement([], ["a"], ["a"])


@given(st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=1, max_size=20))
def test_no_other_threshold_is_more_accurate(rows) -> None:
    values, relevant = (np.array(column) for column in zip(*rows, strict=True))

    def accuracy(threshold: float) -> float:
        return float(np.mean((values >= threshold) == relevant))

    chosen = accuracy(best_threshold(values, relevant))
    assert chosen == max(accuracy(each) for each in [*range(-5, 6)])


def test_an_interval_holds_the_value_and_narrows_with_more_pairs() -> None:
    random = np.random.default_rng(0)
    first = random.normal(size=2000)
    second = first + random.normal(size=2000)
    low, high = interval_over_pairs(pearson, first, second, resamples=200)
    assert low < pearson(first, second) < high
    fewer = interval_over_pairs(pearson, first[:100], second[:100], resamples=200)
    assert high - low < fewer[1] - fewer[0]
    assert interval_over_pairs(pearson, first, second, resamples=200) == (low, high)
    with pytest.raises(InputError, match="no sample"):
        interval_over_pairs(pearson, [1, 1], [1, 2], resamples=3)


def test_values_of_a_cross_encoder_are_what_its_activation_makes() -> None:
    model = CrossEncoder(GOLDEN / "bert", threads=1, activation="sigmoid")
    logits = model.score([pair[:2] for pair in PAIRS])
    np.testing.assert_allclose(pair_values(model, PAIRS), 1 / (1 + np.exp(-logits.astype(float))))


def test_values_of_a_bi_encoder_are_cosines() -> None:
    model = BiEncoder(GOLDEN / "sbert_bi_encoder", threads=1)
    vectors = model.encode_documents([text for pair in PAIRS for text in pair[:2]])
    np.testing.assert_allclose(
        pair_values(model, PAIRS), [vectors[0] @ vectors[1], vectors[2] @ vectors[3]], atol=1e-6
    )


def test_pairs_are_read_from_every_form(tmp_path: Path) -> None:
    rows = [{"text1": "a", "text2": "b", "label": 0.5}, {"text1": "c", "text2": "d", "label": "neutral"}]
    with gzip.open(tmp_path / "pairs.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "pairs.csv").write_text("sentence1,sentence2,label\na,b,0.5\nc,d,neutral\n")
    expected = [("a", "b", 0.5), ("c", "d", "neutral")]
    for name in ("pairs.jsonl.gz", "pairs.csv"):
        assert list(read_labelled_pairs(tmp_path / name)) == expected
    (tmp_path / "judged.jsonl").write_text('{"query": "q", "document": "d", "title": "t", "label": true}\n')
    assert list(read_labelled_pairs(tmp_path / "judged.jsonl")) == [("q", "t d", 1.0)]


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ('{"text1": "a", "label": 1}', "needs text1, text2 and label.* has text1, label"),
        ('{"text1": "a", "text2": 3, "label": 1}', "text2 must be a string, not int"),
        ('{"text1": "a", "text2": "b", "label": null}', "label must be a number"),
        ("[1]", "object"),
        ("", "no pairs in it"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, line: str, match: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(line)
    with pytest.raises(FileFormatError, match=match):
        list(read_labelled_pairs(path))
