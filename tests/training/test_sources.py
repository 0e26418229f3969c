"""Windows, orders in which candidates are tried, and draws from the corpus."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mining_inputs import DOCUMENTS, run_of

from crossrank import BM25, Hybrid
from crossrank.errors import InputError, ModelOutputError
from crossrank.training.corpus import as_corpus
from crossrank.training.sources import Source, random_candidates, window

RANKING = run_of({"q": [(f"d{rank}", 100.0 - rank) for rank in range(1, 41)]})


def tried(source: Source, excluded: set[str] = frozenset(), seed: int = 0, query_id: str = "q") -> list[int]:
    [ranking] = source.rankings({"q": "text"})
    found = window(source, ranking, excluded, seed=seed, query_id=query_id)
    assert all(candidate.document_id == f"d{candidate.rank}" for candidate in found)
    return [candidate.rank for candidate in found]


def test_a_window_is_of_ranks_with_positives_counted() -> None:
    assert tried(Source(RANKING, 4, skip_top=2, depth=8), {"d1", "d4"}) == [3, 5, 6, 7, 8]


def test_random_is_an_order_of_the_window_by_seed_and_query() -> None:
    source = Source(RANKING, 4, skip_top=10, sampling="random")
    orders = {tuple(tried(source, seed=seed, query_id=name)) for seed in (1, 2) for name in ("a", "b")}
    assert len(orders) == 4
    assert {tuple(sorted(order)) for order in orders} == {tuple(range(11, 41))}
    assert tried(source, seed=1) == tried(source, seed=1)


@given(st.integers(1, 12), st.integers(0, 2**64), st.sets(st.integers(1, 40), max_size=38))
def test_spread_tries_every_part_once_before_any_part_again(count: int, seed: int, gone: set[int]) -> None:
    excluded = {f"d{rank}" for rank in gone}
    order = tried(Source(RANKING, count, sampling="spread"), excluded, seed=seed)
    left = [rank for rank in range(1, 41) if rank not in gone]
    assert sorted(order) == left
    part_of = {
        rank: sum(len(left) * p // count <= n for p in range(1, count + 1)) for n, rank in enumerate(left)
    }
    if len(left) >= count:
        assert {part_of[rank] for rank in order[:count]} == set(range(count))


def test_spread_reaches_the_end_of_the_window() -> None:
    first = sorted(tried(Source(RANKING, 4, sampling="spread"))[:4])
    assert [(rank - 1) // 10 for rank in first] == [0, 1, 2, 3]


def test_random_documents_are_distinct_and_even() -> None:
    corpus = as_corpus([f"text {number}" for number in range(200)])
    source = Source("random", 1, depth=20)
    counts: Counter[str] = Counter()
    for number in range(500):
        found = random_candidates(source, corpus, {"7"}, seed=0, query_id=f"q{number}")
        ids = [candidate.document_id for candidate in found]
        assert len(set(ids)) == len(ids) >= 19
        counts.update(ids)
    assert "7" not in counts
    assert 20 < min(counts[str(n)] for n in range(200) if n != 7) <= max(counts.values()) < 85  # 50 expected


def test_random_documents_of_a_small_corpus_are_all_of_it() -> None:
    found = random_candidates(Source("random", 1), as_corpus(DOCUMENTS), set(), seed=0, query_id="q")
    assert sorted(each.document_id for each in found) == sorted(each.id for each in DOCUMENTS)


def test_names_are_the_first_stages_own() -> None:
    bm25 = BM25(["a"])
    names = [Source(stage, 1).name for stage in (bm25, Hybrid([bm25]), RANKING, dict(RANKING), "random")]
    assert names == ["bm25", "hybrid", "first", "run", "random"]
    assert Source(bm25, 1, "other").name == "other"


def test_a_description_tells_first_stages_apart() -> None:
    texts = ["a red fox", "a blue whale"]
    stages = [
        *(BM25(texts), BM25(texts, k1=1.2), BM25(texts, language=None), Hybrid([BM25(texts)]), "random"),
        *(RANKING, run_of({"q": [("d1", 1.0)]})),
    ]
    descriptions = [str(Source(stage, 1, "same").description) for stage in stages]
    assert len(set(descriptions)) == len(stages)
    assert Source(BM25(texts), 1).description == Source(BM25(texts), 1).description


@pytest.mark.parametrize("score", [float("nan"), float("inf"), 1e300])
def test_scores_must_be_finite(score: float) -> None:
    source = Source(run_of({"q": [("d1", score)]}), 1)
    with pytest.raises(ModelOutputError, match=r"first gave the score .* for query 'q'"):
        window(source, source.rankings({"q": ""})[0], set(), seed=0, query_id="q")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"first_stage": "bm25"}, "a source needs a retriever"),
        ({"count": 0}, "count of source 'first'"),
        ({"depth": 0}, "depth of source 'first'"),
        ({"skip_top": -1}, "skip_top of source 'first'"),
        ({"skip_top": 100}, "skips 100 hits and looks at 100"),
        ({"sampling": "best"}, "one of top, random, spread"),
        ({"first_stage": "random", "sampling": "spread"}, "would do nothing"),
    ],
)
def test_bad_sources(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Source(**{"first_stage": RANKING, "count": 1, **arguments})
