"""EarlyExit: who goes on, what the ranking says of it, and that finishing changes no score."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from crossrank.cache import ScoreCache
from crossrank.composition import early_exit
from crossrank.composition.cascade import Cascade
from crossrank.composition.early_exit import EarlyExit
from crossrank.depths import Margin, TimeBudget
from crossrank.errors import InputError
from crossrank.models.calibration import Calibration, ProbabilityMap, write_calibration
from crossrank.models.cross_encoder import CrossEncoder
from crossrank.pipeline import Searcher
from crossrank.retrieval.bm25 import BM25
from crossrank.runtime import staged_engine
from crossrank.types import Document

FOLDER = Path(__file__).parents[1] / "golden" / "bert_exits"
QUERY = "what is the old city"
WORDS = ["the", "of", "cat", "dog", "bird", "river", "mountain", "city", "water", "light", "blue", "old"]


@pytest.fixture(scope="module")
def model() -> CrossEncoder:
    return CrossEncoder(FOLDER, threads=2)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    random = np.random.default_rng(4)
    return [" ".join(random.choice(WORDS, random.integers(1, 20))) for _ in range(30)]


class Clock:
    """Goes on by a fixed time with every look at it."""

    def __init__(self, step_s: float) -> None:
        self.now, self.step_s = 0.0, step_s

    def __call__(self) -> float:
        self.now += self.step_s
        return self.now


def test_who_goes_on_has_the_whole_models_bits_and_the_others_where_they_left(model, texts):
    early = EarlyExit(model, 1, [(2, 12), (4, 5)])
    ranking = early.rank(QUERY, texts)
    assert [hit.stage for hit in ranking] == ["bert_exits"] * 5 + ["bert_exits@2"] * 7 + ["bert_exits@1"] * 18
    whole = model.score([(QUERY, text) for text in texts])
    first = CrossEncoder(FOLDER, exit_layer=1).score([(QUERY, text) for text in texts])
    for hit in ranking[:5]:
        assert hit.score == whole[hit.index]
        assert list(hit.stage_scores) == ["bert_exits@1", "bert_exits@2", "bert_exits"]
    left = [hit.index for hit in ranking[12:]]
    assert left == [index for index in np.argsort(-first, kind="stable").tolist() if index in left]
    for start, stop in ((0, 5), (5, 12), (12, 30)):
        scores = ranking.scores[start:stop]
        assert list(scores) == sorted(scores, reverse=True)
    assert list(ranking.timings_ms) == ["bert_exits@1", "bert_exits@2", "bert_exits"]


def test_it_is_the_cascade_of_the_cut_models(model, texts):
    cut = CrossEncoder(FOLDER, exit_layer=2)
    early = EarlyExit(model, 2, [(4, 7)]).rank(QUERY, texts)
    cascade = Cascade(cut, [(model, 7)]).rank(QUERY, texts)
    assert early.document_ids == cascade.document_ids
    np.testing.assert_allclose(early.scores, cascade.scores, rtol=0, atol=1e-5)
    assert [hit.stage for hit in early] == [hit.stage for hit in cascade]


def test_all_going_on_is_the_whole_model(model, texts):
    early = EarlyExit(model, 1, [(4, len(texts))]).rank(QUERY, texts)
    whole = model.rank(QUERY, texts)
    assert dict(zip(early.document_ids, early.scores, strict=True)) == dict(
        zip(whole.document_ids, whole.scores, strict=True)
    )


def test_a_margin_decides_for_each_query(model, texts):
    rule = Margin(0.2, top_k=3)
    early = EarlyExit(model, 2, [(4, rule)])
    for ranking in early.rank_many([QUERY, "blue river"], [texts, texts[:20]]):
        at_exit = sorted((hit.stage_scores["bert_exits@2"] for hit in ranking), reverse=True)
        on = [hit for hit in ranking if hit.stage == "bert_exits"]
        assert len(on) == rule(at_exit)
        assert 3 <= len(on) < len(ranking)


def test_a_time_budget_takes_what_it_has_time_for_and_says_so(model, texts):
    ranking = EarlyExit(model, 1, [(4, TimeBudget(50.0))], clock=Clock(0.004)).rank(QUERY, texts)
    done = [hit for hit in ranking if hit.stage == "bert_exits"]
    assert 0 < len(done) < len(texts)
    assert ranking.notes == (
        f"bert_exits scored {len(done)} of {len(texts)} candidates within the budget of 50 ms",
    )
    assert list(ranking[: len(done)].__iter__()) == done
    at_exit = sorted(ranking, key=lambda hit: -hit.stage_scores["bert_exits@1"])[: len(done)]
    assert {hit.index for hit in done} == {hit.index for hit in at_exit}  # from the best down
    none = EarlyExit(model, 1, [(4, TimeBudget(0.0))]).rank(QUERY, texts)
    assert {hit.stage for hit in none} == {"bert_exits@1"}


def test_many_queries_in_blocks_of_few_pairs(model, texts, monkeypatch):
    early = EarlyExit(model, 2, [(4, 4)])
    queries = [QUERY, "blue river", "how old", "a dog", "the light"]
    lists = [texts, texts[:3], [], texts[5:25], texts]
    together = early.rank_many(queries, lists)
    monkeypatch.setattr(early_exit, "_BLOCK_PAIRS", 25)
    for whole, parted in zip(together, early.rank_many(queries, lists), strict=True):
        assert [hit.index for hit in whole] == [hit.index for hit in parted]
        np.testing.assert_allclose(whole.scores, parted.scores, rtol=0, atol=1e-5)


def test_hidden_states_do_not_outlive_a_call(model, texts, monkeypatch):
    made = []

    class Watched(staged_engine.KeptStates):
        def __init__(self):
            super().__init__()
            made.append(self)

    early = EarlyExit(model, 2, [(4, 3)])
    monkeypatch.setattr("crossrank.models.cross_encoder.KeptStates", Watched)
    early.rank(QUERY, texts)
    early.rank(QUERY, texts)
    assert len(made) == 2
    assert [len(kept._states) for kept in made] == [len(set(texts))] * 2


def test_the_whole_models_cache_is_used(texts, monkeypatch):
    cache = ScoreCache()
    cached = CrossEncoder(FOLDER, cache=cache)
    whole = cached.score([(QUERY, text) for text in texts])
    early = EarlyExit(cached, 2, [(4, 6)])
    runs = []
    run = staged_engine.StagedEngine.run
    monkeypatch.setattr(
        staged_engine.StagedEngine,
        "run",
        lambda self, inputs, source, stage, states: (
            runs.append(stage) or run(self, inputs, source, stage, states)
        ),
    )
    ranking = early.rank(QUERY, texts)
    assert set(runs) == {0}  # the last layer's scores were there
    assert all(hit.score == whole[hit.index] for hit in ranking[:6])


def test_probabilities_are_of_the_last_layer_alone(texts):
    calibrated = CrossEncoder(FOLDER)
    calibrated.calibration = object.__new__(Calibration)  # never asked: the exits have none
    first, last = calibrated.staged((2, 4))()
    assert first.calibration is None
    assert "last layer" in first.why_uncalibrated
    assert last.calibration is calibrated.calibration


def test_it_is_calibrated_where_its_last_layer_is_the_models(texts, tmp_path):
    folder = shutil.copytree(FOLDER, tmp_path / "model")
    made_with = CrossEncoder(folder).score_identity
    write_calibration(
        Calibration(ProbabilityMap("platt", 0.5, 0.1), "LABEL_0", made_with, "", 9, 3, 0.5, {}), folder
    )
    model = CrossEncoder(folder)
    whole = {hit.index: hit.probability for hit in model.rank(QUERY, texts)}
    early = EarlyExit(model, 2, [(4, 3)])
    assert early.calibration == model.calibration
    assert early.why_uncalibrated == ""
    ranking = early.rank(QUERY, texts)
    found = [hit.probability for hit in ranking]
    assert found[:3] == [whole[hit.index] for hit in ranking[:3]]
    assert found[3:] == [None] * (len(texts) - 3)
    documents = [Document(f"d{number}", text) for number, text in enumerate(texts)]
    searcher = Searcher(BM25(documents, language=None), early, min_probability=0.0)
    assert len(searcher.search("old city water")) == 3


def test_a_search_hears_at_once_why_there_are_no_probabilities(model, texts):
    documents = [Document(f"d{number}", text) for number, text in enumerate(texts)]
    for early, why in (
        (EarlyExit(model, 1, [(4, 3)]), "has no calibration"),
        (EarlyExit(model, 1, [(2, 3)]), "for its last layer"),
    ):
        assert early.calibration is None
        with pytest.raises(InputError, match=why):
            Searcher(BM25(documents, language=None), early, min_probability=0.5)


def test_it_is_a_second_stage_whose_own_layers_are_told(model, texts):
    documents = [Document(f"d{number}", text) for number, text in enumerate(texts)]
    early = EarlyExit(model, 1, [(4, Margin(1.0, top_k=2))])
    found = Searcher(BM25(documents, language=None), [(early, Margin(0.5, most=12))]).search("old city water")
    assert found.status == "ok"
    assert found[0].stage == "early-exit"
    assert found[0].stage_scores["bert_exits"] == found[0].score
    assert list(found[0].stage_scores) == ["bm25", "bert_exits@1", "bert_exits", "early-exit"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda model: EarlyExit(model, 3, [(4, 5)]), r"no head after layer 3; .* 1, 2, 4 \(its last\)"),
        (lambda model: EarlyExit(model, 2, [(1, 5)]), "must ascend"),
        (lambda model: EarlyExit(model, 1, [(2, 5), (4, 6)]), "may not grow"),
        (lambda model: EarlyExit(model, 1, [4, 5]), r"list of \(layer, depth\), not of int"),
        (lambda model: EarlyExit(model, 1, 5), "then must be"),
        (lambda model: EarlyExit("mini", 1, [(4, 5)]), "of a CrossEncoder, not of str.*Cascade"),
    ],
)
def test_what_cannot_be_is_refused(model, make, message):
    with pytest.raises(InputError, match=message):
        make(model)
