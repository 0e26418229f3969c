"""Calibration: maps against scikit-learn, held-out figures, thresholds, and what a model does with them."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossrank import CrossEncoder, Document, LateInteraction
from crossrank.errors import CheckpointError, InputError
from crossrank.evaluation.probabilities import expected_calibration_error, log_loss
from crossrank.models.calibration import CALIBRATION_FILE, ProbabilityMap, read_calibration, sigmoid
from crossrank.models.hub import resolve
from crossrank.models.quantize import as_candidates
from crossrank.training.calibration import JudgedPair, calibrate, judged_pairs, save_calibration
from crossrank.training.probability_maps import METHODS, fit_isotonic, fit_map, fit_platt, fit_temperature
from crossrank.training.thresholds import choose_threshold

GOLDEN = Path(__file__).parents[1] / "golden"
WORDS = ["the", "cat", "dog", "river", "city", "water", "light", "mountain", "bird", "old", "new", "blue"]


def logistic_sample(n: int = 4000, slope: float = 0.7, intercept: float = -2.0, seed: int = 0):
    random = np.random.default_rng(seed)
    scores = random.normal(0, 4, n)
    return scores, (random.random(n) < sigmoid(slope * scores + intercept)).astype(float)


# --- maps ------------------------------------------------------------------------------------------------


def test_platt_is_the_logistic_regression_of_his_targets() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    scores, relevant = logistic_sample(600)
    positives, negatives = relevant.sum(), (1 - relevant).sum()
    targets = np.where(relevant == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    reference = linear_model.LogisticRegression(C=1e12, tol=1e-10, max_iter=10_000).fit(
        np.concatenate([scores, scores])[:, None],
        np.repeat([1, 0], len(scores)),
        sample_weight=np.concatenate([targets, 1 - targets]),
    )
    found = fit_platt(scores, relevant)
    assert found.slope == pytest.approx(float(reference.coef_[0, 0]), rel=1e-4)
    assert found.intercept == pytest.approx(float(reference.intercept_[0]), rel=1e-4)


def test_temperature_is_the_slope_of_least_log_loss() -> None:
    scores, relevant = logistic_sample(600, intercept=0)
    found = fit_temperature(scores, relevant)
    losses = [log_loss(sigmoid(slope * scores), relevant) for slope in found.slope * np.array([0.9, 1, 1.1])]
    assert losses[1] < min(losses[0], losses[2])
    assert found(0.0) == 0.5


@pytest.mark.parametrize("digits", [6, 0])  # with 0, many scores are equal
def test_isotonic_is_scikit_learns(digits: int) -> None:
    isotonic = pytest.importorskip("sklearn.isotonic")
    scores, relevant = logistic_sample(700)
    scores = scores.round(digits)
    least = 1 / (len(scores) + 2)
    reference = isotonic.IsotonicRegression(y_min=least, y_max=1 - least, out_of_bounds="clip")
    reference.fit(scores, relevant)
    asked = np.linspace(scores.min() - 1, scores.max() + 1, 501)
    np.testing.assert_allclose(fit_isotonic(scores, relevant)(asked), reference.predict(asked), atol=1e-9)


@given(
    st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=4, max_size=60),
    st.sampled_from(METHODS),
)
def test_probabilities_rise_with_the_score_and_stay_within_0_and_1(rows, method) -> None:
    scores, relevant = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    try:
        fitted = fit_map(method, scores, relevant)
    except InputError:
        return
    values = fitted(np.linspace(-10, 10, 101))
    assert (np.diff(values) >= 0).all()
    assert (values >= 0).all()
    assert (values <= 1).all()


def test_labels_the_wrong_way_round_are_said_to_be() -> None:
    scores, relevant = logistic_sample(600, intercept=0)
    for method in ("temperature", "platt"):
        with pytest.raises(InputError, match="wrong way round"):
            fit_map(method, scores, 1 - relevant)
    with pytest.raises(InputError, match="relevant pairs and irrelevant ones"):
        fit_map("platt", scores, np.ones_like(scores))


def test_scores_that_part_the_classes_have_a_finite_slope() -> None:
    scores = np.repeat([-1.0, 1.0], 50)
    found = fit_platt(scores, (scores > 0).astype(float))
    assert np.isfinite(found.slope)
    assert 0.9 < found(1.0) < 1


# --- thresholds ------------------------------------------------------------------------------------------


def threshold(scores, relevant, resamples=200, **options):
    queries = np.arange(len(scores))
    folds = [np.flatnonzero(queries % 5 == fold) for fold in range(5)]
    fitted = ProbabilityMap("platt", 0.7, -2.0)
    return choose_threshold(
        np.asarray(scores, float),
        np.asarray(relevant, float),
        queries,
        folds,
        fitted,
        resamples=resamples,
        **options,
    )


@pytest.mark.parametrize("wanted", [0.6, 0.9])
def test_a_threshold_for_precision_is_the_lowest_score_that_has_it(wanted: float) -> None:
    scores, relevant = logistic_sample()
    found = threshold(scores, relevant, aim="precision", wanted=wanted)
    by_hand = [
        each for each in scores if (scores >= each).sum() >= 10 and relevant[scores >= each].mean() >= wanted
    ]
    assert found.score == min(by_hand)
    assert found.precision == relevant[scores >= found.score].mean() >= wanted
    assert found.recall == relevant[scores >= found.score].sum() / relevant.sum()
    assert found.interval[0] <= found.precision <= found.interval[1]
    assert found.score_interval[0] <= found.score <= found.score_interval[1]
    assert found.held_out == pytest.approx(wanted, abs=0.05)
    assert found.probability == pytest.approx(float(sigmoid(0.7 * found.score - 2)))


def test_a_threshold_for_recall_is_the_highest_score_that_has_it() -> None:
    scores, relevant = logistic_sample(500)
    found = threshold(scores, relevant, aim="recall", wanted=0.8)
    above = np.sort(scores[scores > found.score])
    assert found.recall >= 0.8
    assert relevant[scores >= above[0]].sum() / relevant.sum() < 0.8


def test_a_precision_that_no_score_reaches_has_no_threshold() -> None:
    random = np.random.default_rng(0)
    assert threshold(random.random(200), np.arange(200) % 2, aim="precision", wanted=0.99) is None


@pytest.mark.parametrize(("aim", "wanted", "num_positives"), [("precision", 1.0, 10), ("recall", 0.5, 1)])
def test_resamples_that_never_reach_the_aim_have_no_interval(
    aim: str, wanted: float, num_positives: int
) -> None:
    scores = np.arange(40.0)
    relevant = scores >= 40 - num_positives  # the sample of seed 3 has 8 of 10, none of 1
    with pytest.raises(InputError, match=f"{aim} {wanted:g} has no interval.* the 1 resamples; give more"):
        threshold(scores, relevant, aim=aim, wanted=wanted, resamples=1, seed=3)
    assert threshold(scores, relevant, aim=aim, wanted=wanted) is not None


# --- with a model ----------------------------------------------------------------------------------------


def chance(*parts: object) -> float:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big") / 2**32


@pytest.fixture(scope="module")
def model() -> CrossEncoder:
    return CrossEncoder(GOLDEN / "bert", threads=1)


@pytest.fixture(scope="module")
def pairs(model: CrossEncoder) -> list[JudgedPair]:
    """Pairs that are relevant with a probability that their score decides."""
    texts = [
        (
            f"{WORDS[i % 12]} {WORDS[i // 12]}",
            " ".join(WORDS[(i * j + k) % 12] for k in range(1 + (i + j) % 9)),
        )
        for i in range(60)
        for j in range(8)
    ]
    scores = model.score(texts).astype(np.float64)
    scale = 4 / scores.std()
    return [
        JudgedPair(query, text, chance(query, text) < sigmoid(scale * (score - scores.mean()) - 1))
        for (query, text), score in zip(texts, scores, strict=True)
    ]


@pytest.fixture(scope="module")
def report(model: CrossEncoder, pairs: list[JudgedPair]):
    return calibrate(model, pairs, wanted_precision=[0.7], wanted_recall=[0.9], holds_for="made-up pairs")


def test_the_figures_are_of_pairs_that_the_map_was_not_fitted_on(model, pairs, report) -> None:
    scores = model.score([(pair.query, pair.document) for pair in pairs])
    relevant = np.array([pair.relevant for pair in pairs])
    in_sample = log_loss(fit_map("isotonic", scores, relevant)(scores), relevant)
    assert report.methods["isotonic"]["log_loss"] > in_sample + 0.01
    assert report.methods["sigmoid"]["ece"] == pytest.approx(
        expected_calibration_error(sigmoid(scores), relevant)
    )
    assert report.calibration.figures["after"]["ece"] < report.calibration.figures["before"]["ece"] / 2
    assert sum(each.num_pairs for each in report.after) == len(pairs)
    best = min(METHODS, key=lambda name: report.methods[name]["log_loss"])
    assert report.calibration.map == fit_map(best, scores, relevant)


def test_the_same_arguments_give_the_same_calibration(model, pairs, report) -> None:
    again = calibrate(model, pairs, wanted_precision=[0.7], wanted_recall=[0.9], holds_for="made-up pairs")
    assert again.calibration == report.calibration


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "bert", tmp_path / "model"))


def test_a_saved_calibration_gives_hits_probabilities_and_leaves_scores_alone(model, report, folder) -> None:
    save_calibration(report.calibration, folder)
    assert read_calibration(folder) == report.calibration
    opened = CrossEncoder(folder, threads=1)
    assert opened.why_uncalibrated == ""
    documents = ["the cat", "old city", Document("7", "blue water of the river")]
    before, after = model.rank("the river", documents), opened.rank("the river", documents)
    assert before.scores == after.scores
    assert all(hit.probability is None for hit in before)
    expected = report.calibration.map(np.array(after.scores, dtype=np.float32))
    assert [hit.probability for hit in after] == expected.tolist()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_survives_its_file(model, pairs, folder, method) -> None:
    fitted = calibrate(model, pairs, method=method, resamples=10).calibration
    save_calibration(fitted, folder)
    assert CrossEncoder(folder, threads=1).calibration == fitted


def test_a_calibration_does_not_speak_for_a_model_opened_otherwise(report, folder, caplog) -> None:
    save_calibration(report.calibration, folder)
    assert CrossEncoder(folder, threads=1, long_query="truncate").calibration == report.calibration
    with caplog.at_level(logging.INFO, logger="crossrank"):
        opened = CrossEncoder(folder, threads=1, long_documents="max")
    assert opened.calibration is None
    assert "long_documents is 'max' and was 'truncate'" in opened.why_uncalibrated
    assert opened.why_uncalibrated in caplog.text
    assert opened.rank("cat", ["the cat"])[0].probability is None


def test_a_calibration_does_not_speak_for_other_weights(report, folder) -> None:
    save_calibration(report.calibration, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 32}))
    assert "have changed" in CrossEncoder(folder, threads=1).why_uncalibrated


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"map": {"method": "magic", "slope": 1.0, "intercept": 0.0, "knots": []}}, "method is 'magic'"),
        ({"map": {"method": "platt", "slope": -1.0, "intercept": 0.0, "knots": []}}, "slope"),
        (
            {"map": {"method": "isotonic", "slope": 1.0, "intercept": 0.0, "knots": [[1, 0.5], [0, 0.6]]}},
            "knots",
        ),
        ({"map": {"method": "isotonic", "slope": 1.0, "intercept": 0.0, "knots": []}}, "knots"),
        ({"num_pairs": "many"}, "num_pairs is 'many'"),
        ({"thresholds": [3]}, "no object"),
    ],
)
def test_a_damaged_file_takes_the_probabilities_alone_and_is_named(report, folder, change, match) -> None:
    path = save_calibration(report.calibration, folder)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError, match=match):
        read_calibration(folder)
    opened = CrossEncoder(folder, threads=1)
    assert opened.calibration is None
    assert match.strip("^$").replace("\\", "") in opened.why_uncalibrated
    assert opened.rank("a query", ["a text"])[0].probability is None
    save_calibration(report.calibration, folder, overwrite=True)
    assert CrossEncoder(folder, threads=1).calibration == report.calibration


def test_where_a_calibration_is_written(report, folder, tmp_path) -> None:
    with pytest.raises(InputError, match="not a folder of yours"):
        save_calibration(report.calibration, "crossrank-mini")
    copy = tmp_path / "copy"
    assert save_calibration(report.calibration, folder, copy) == copy / CALIBRATION_FILE
    assert CrossEncoder(copy, threads=1).calibration == report.calibration
    assert not (folder / CALIBRATION_FILE).exists()
    with pytest.raises(InputError, match="not empty"):
        save_calibration(report.calibration, folder, copy)
    save_calibration(report.calibration, folder, copy, overwrite=True)
    save_calibration(report.calibration, folder)
    with pytest.raises(InputError, match="has a calibration already"):
        save_calibration(report.calibration, folder)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_candidates_without_a_judgement_are_irrelevant_and_unjudged_queries_left_out() -> None:
    candidates = as_candidates([("a", "first"), ("a", "second"), ("b", "third")])
    assert judged_pairs(candidates, {"a": {"0": 1, "1": 0}}) == [("a", "first", True), ("a", "second", False)]
    assert judged_pairs(candidates, {"a": {"0": 1}}, relevance_level=2)[0].relevant is False


@pytest.mark.parametrize(
    ("rows", "options", "match"),
    [
        ([("a", "b")], {}, r"pairs\[0\] must be"),
        ([("a", "b", True)] * 30, {}, "0 of 30 pairs are irrelevant"),
        ([("a", "b", i % 2) for i in range(60)], {}, "1 queries cannot be put into 5 folds"),
        ([(f"{i}", "b", i % 2) for i in range(60)], {"method": "magic"}, "choose one of"),
        ([(f"{i}", "b", i % 2) for i in range(60)], {"wanted_precision": [2]}, "wanted_precision"),
    ],
)
def test_what_cannot_be_calibrated_on_is_refused(model, rows, options, match) -> None:
    with pytest.raises(InputError, match=match):
        calibrate(model, rows, **options)


def test_late_interaction_is_not_calibrated() -> None:
    model = LateInteraction(Path(__file__).parents[1] / "models" / "golden_late" / "stanford", threads=1)
    with pytest.raises(InputError, match="is a LateInteraction; calibration is for cross-encoders"):
        calibrate(model, [(f"{i}", "b", bool(i % 2)) for i in range(60)])


def test_the_shipped_calibration_holds_for_the_shipped_model() -> None:
    opened = CrossEncoder(threads=1)
    assert opened.why_uncalibrated == ""
    stated = read_calibration(resolve(None, kind="cross-encoder"))
    assert stated.figures["after"]["ece"] < stated.figures["before"]["ece"]
    assert stated.holds_for
