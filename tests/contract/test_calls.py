"""Every family: many threads, scores computed before, progress, and calls that are broken off."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from families import parameters

from crossrank import progress
from crossrank.cache import ScoreCache

QUERY = "what is the water of the river"
TEXTS = ["the water of the river is blue", "a cat and a dog", "old city", "the mountain " * 12, "bird"]
QUERIES = [QUERY, "old city", "where is the blue bird", "how old is the dog"]


def test_many_threads_get_what_one_gets(family, reranker, same):
    work = [(query, TEXTS[: 2 + number % 4]) for number, query in enumerate(QUERIES * 4)]
    expected = [reranker.rank(query, texts) for query, texts in work]
    ready = threading.Barrier(4)

    def rank(position):
        ready.wait(timeout=30)
        return reranker.rank(*work[position])

    with ThreadPoolExecutor(4) as pool:
        rankings = list(pool.map(rank, range(len(work)), timeout=120))
    for ranking, wanted in zip(rankings, expected, strict=True):
        same(ranking, wanted, family.tolerance)


@pytest.mark.parametrize("cached", parameters(lambda family: family.cached))
def test_a_cache_changes_nothing_but_the_work(cached, tmp_path, same):
    plain = cached.build(progress=False).rank_many(QUERIES, [TEXTS] * len(QUERIES))
    with ScoreCache(tmp_path / "scores.cache") as scores:
        reranker = cached.build(progress=False, cache=scores)
        cold = reranker.rank_many(QUERIES, [TEXTS] * len(QUERIES))
        computed = scores.misses
        assert computed > 0
        assert reranker.rank_many(QUERIES, [TEXTS] * len(QUERIES)) == cold
        again = cached.build(progress=False, cache=scores)
        for query, expected in zip(QUERIES, cold, strict=True):
            assert again.rank(query, TEXTS) == expected
        assert scores.misses == computed
    with ScoreCache(tmp_path / "scores.cache") as scores:  # another process
        assert cached.build(progress=False, cache=scores).rank(QUERY, TEXTS) == cold[0]
        assert scores.misses == 0
    for ranking, expected in zip(cold, plain, strict=True):
        same(ranking, expected, cached.tolerance)


@pytest.mark.parametrize("cached", parameters(lambda family: family.cached))
def test_two_families_do_not_meet_in_a_cache(cached, same):
    scores = ScoreCache()
    for family in (each.values[0] for each in parameters(lambda family: family.cached)):
        if family.name != cached.name:
            family.build(progress=False, cache=scores).rank(QUERY, TEXTS)
            break
    ranking = cached.build(progress=False, cache=scores).rank(QUERY, TEXTS)
    same(ranking, cached.build(progress=False).rank(QUERY, TEXTS), cached.tolerance)


@pytest.fixture
def tracks(monkeypatch):
    """Every bar that a call opens."""
    opened = []

    class Recorded(progress.Track):
        def __init__(self, total, description, *, shown, delay_s):
            super().__init__(total, description, shown=False, delay_s=delay_s)
            self.description, self.asked = description, shown
            opened.append(self)

    monkeypatch.setattr(progress, "Track", Recorded)
    return opened


@pytest.mark.parametrize("family", parameters(lambda family: family.reports_progress))
@pytest.mark.parametrize("shown", [True, False])
def test_progress_is_reported_to_the_end(family, shown, tracks):
    family.build(progress=shown).rank_many(QUERIES, [TEXTS] * len(QUERIES))
    assert tracks
    for tracked in tracks:
        assert tracked.asked is shown
        assert tracked.description
        assert tracked.done == tracked.total
    assert max(tracked.total for tracked in tracks) > 0


@pytest.mark.parametrize("family", parameters(lambda family: family.reports_progress))
def test_an_interrupted_call_leaves_the_model_usable(family, monkeypatch, same):
    reranker = family.build(progress=False, **({"cache": ScoreCache()} if family.cached else {}))
    expected = family.build(progress=False).rank(QUERY, TEXTS)
    with monkeypatch.context() as patch:

        def interrupt(self, count=1):
            raise KeyboardInterrupt

        patch.setattr(progress.Track, "advance", interrupt)
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                reranker.rank(QUERY, TEXTS)
    same(reranker.rank(QUERY, TEXTS), expected, family.tolerance)
    with ThreadPoolExecutor(1) as pool:  # no lock is left behind
        same(pool.submit(reranker.rank, QUERY, TEXTS).result(timeout=60), expected, family.tolerance)
