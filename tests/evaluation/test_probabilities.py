"""Measures of probabilities against scikit-learn's and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossrank.errors import InputError
from crossrank.evaluation.plots import plot_reliability, plot_roc
from crossrank.evaluation.probabilities import (
    brier_score,
    expected_calibration_error,
    log_loss,
    probability_figures,
    reliability,
    roc,
    roc_auc,
)

sklearn_metrics = pytest.importorskip("sklearn.metrics")


def drawn(n: int = 500, seed: int = 0, *, digits: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    probabilities = random.random(n) if digits is None else random.random(n).round(digits)
    return probabilities, (random.random(n) < probabilities**2).astype(int)


@pytest.mark.parametrize("digits", [None, 1])
def test_figures_are_those_of_scikit_learn(digits: int | None) -> None:
    probabilities, relevant = drawn(digits=digits)
    clipped = np.clip(probabilities, 1e-9, 1 - 1e-9)
    assert brier_score(probabilities, relevant) == pytest.approx(
        sklearn_metrics.brier_score_loss(relevant, probabilities), abs=1e-12
    )
    assert log_loss(clipped, relevant) == pytest.approx(sklearn_metrics.log_loss(relevant, clipped))
    assert roc_auc(probabilities, relevant) == pytest.approx(
        sklearn_metrics.roc_auc_score(relevant, probabilities), abs=1e-12
    )
    curve = roc(probabilities, relevant)
    false, true, scores = sklearn_metrics.roc_curve(relevant, probabilities, drop_intermediate=False)
    np.testing.assert_allclose(curve.false_positive_rate, false)
    np.testing.assert_allclose(curve.true_positive_rate, true)
    np.testing.assert_allclose(curve.scores, scores)


def test_the_calibration_error_by_hand() -> None:
    # Two bins: 0.2 and 0.4 promised where one of two is relevant; 0.9 promised where it is.
    assert expected_calibration_error([0.2, 0.4, 0.9], [0, 1, 1], bins=2) == pytest.approx(
        (2 * abs(0.3 - 0.5) + abs(0.9 - 1)) / 3
    )


def test_a_perfectly_calibrated_source_has_a_small_error_and_a_wrong_one_a_large() -> None:
    random = np.random.default_rng(1)
    probabilities = random.random(20_000)
    relevant = random.random(20_000) < probabilities
    assert expected_calibration_error(probabilities, relevant) < 0.02
    assert expected_calibration_error(1 - probabilities, relevant) > 0.4


def test_every_pair_is_in_one_bin() -> None:
    found = reliability([0.0, 0.5, 1.0, 1.0], [0, 1, 1, 0], bins=4)
    assert [each.num_pairs for each in found] == [1, 0, 1, 2]
    assert (found[3].probability, found[3].share) == (1, 0.5)
    assert np.isnan(found[1].share)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40))
def test_figures_lie_within_their_bounds(rows: list[tuple[float, bool]]) -> None:
    probabilities, relevant = zip(*rows, strict=True)
    figures = probability_figures(probabilities, relevant)
    assert 0 <= figures["ece"] <= 1
    assert 0 <= figures["brier"] <= 1
    assert figures["log_loss"] >= 0


@given(st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=40))
def test_the_area_does_not_change_with_the_scale_and_turns_with_the_sign(rows) -> None:
    scores, relevant = (np.array(column) for column in zip(*rows, strict=True))
    if relevant.all() or not relevant.any():
        with pytest.raises(InputError, match="both kinds"):
            roc_auc(scores, relevant)
        return
    area = roc_auc(scores, relevant)
    assert roc_auc(np.exp(scores / 3), relevant) == pytest.approx(area)
    assert roc_auc(-scores, relevant) == pytest.approx(1 - area)


@pytest.mark.parametrize(
    ("probabilities", "relevant", "match"),
    [
        ([0.5, 1.5], [0, 1], "from 0 to 1"),
        ([0.5], [0, 1], "one entry a pair, not 1 and 2"),
        ([], [], "one entry a pair"),
        ([0.5, float("nan")], [0, 1], "finite"),
        ([0.5, 0.5], [0, 2], "0 or 1"),
        ([[0.5]], [[1]], "one column"),
        (["a"], [1], "numbers"),
    ],
)
def test_what_is_no_column_of_probabilities_is_refused(probabilities, relevant, match: str) -> None:
    with pytest.raises(InputError, match=match):
        brier_score(probabilities, relevant)


def test_pictures_are_written_and_the_same_each_time(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    probabilities, relevant = drawn()
    first, second = tmp_path / "a.svg", tmp_path / "b.svg"
    for path in (first, second):
        plot_reliability({"held out": reliability(probabilities, relevant)}, path, title="a title")
    assert first.read_bytes() == second.read_bytes()
    assert b"<svg" in first.read_bytes()
    plot_roc({"scores": roc(probabilities, relevant)}, tmp_path / "roc.png")
    assert (tmp_path / "roc.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match=r"ends in one of .png"):
        plot_roc({}, tmp_path / "roc.txt")
    with pytest.raises(InputError, match="no folder"):
        plot_roc({}, tmp_path / "none" / "roc.png")
