"""Clusters: against sentence-transformers' and scipy's, and what each kind promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossrank.errors import InputError
from crossrank.similarity import clusters as clusters_module
from crossrank.similarity import paraphrases
from crossrank.similarity.clusters import cluster, clusters_of_pairs, components
from crossrank.similarity.paraphrases import similar_pairs, unit_vectors

METHODS = ["communities", "components", "average", "complete"]


def grouped(n: int = 400, seed: int = 0) -> np.ndarray:
    """Vectors around some centres, near enough that clusters touch."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(30, 24))
    return (centres[random.integers(30, size=n)] + 0.8 * random.normal(size=(n, 24))).astype(np.float32)


def groups(found) -> list[list[int]]:
    return sorted(sorted(each.members) for each in found)


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.7])
@pytest.mark.parametrize("min_size", [2, 5])
def test_communities_are_those_of_sentence_transformers(threshold: float, min_size: int) -> None:
    util = pytest.importorskip("sentence_transformers.util")
    vectors = grouped()
    expected = util.community_detection(vectors, threshold=threshold, min_community_size=min_size)
    found = cluster(vectors, threshold=threshold, min_size=min_size)
    assert len(expected) > 3
    assert groups(found) == sorted(sorted(map(int, each)) for each in expected)
    assert {each.members[0] for each in found} == {int(each[0]) for each in expected}


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
@pytest.mark.parametrize(
    ("method", "linkage"), [("components", "single"), ("average", "average"), ("complete", "complete")]
)
def test_linkage_is_scipys(method, linkage: str, threshold: float) -> None:
    hierarchy = pytest.importorskip("scipy.cluster.hierarchy")
    distance = pytest.importorskip("scipy.spatial.distance")
    vectors = grouped()
    units = unit_vectors(vectors).astype(np.float64)
    apart = np.maximum(1 - units @ units.T, 0)
    np.fill_diagonal(apart, 0)
    tree = hierarchy.linkage(distance.squareform(apart, checks=False), linkage)
    labels = hierarchy.fcluster(tree, 1 - threshold, "distance")
    expected = sorted(np.flatnonzero(labels == label).tolist() for label in set(labels))
    assert groups(cluster(vectors, threshold=threshold, min_size=1, method=method)) == expected


@pytest.mark.parametrize("method", METHODS)
def test_blocks_change_nothing(method, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = cluster(grouped(), threshold=0.55, method=method)
    monkeypatch.setattr(paraphrases, "_ROWS", 17)
    monkeypatch.setattr(paraphrases, "_COLUMNS", 50)
    assert [each.members for each in cluster(grouped(), threshold=0.55, method=method)] == [
        each.members for each in whole
    ]


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.floats(-0.5, 0.95), st.integers(1, 4), st.sampled_from(METHODS))
def test_what_every_cluster_promises(n: int, threshold: float, min_size: int, method) -> None:
    vectors = grouped(n)
    found = cluster(vectors, threshold=threshold, min_size=min_size, method=method)
    members = [row for each in found for row in each.members]
    assert len(members) == len(set(members))
    assert [len(each.members) for each in found] == sorted(map(len, groups(found)), reverse=True)
    scores = np.clip(unit_vectors(vectors) @ unit_vectors(vectors).T, -1, 1)
    for each in found:
        assert len(each.members) >= min_size
        assert each.scores[0] == 1
        assert list(each.scores[1:]) == sorted(each.scores[1:], reverse=True)
        np.testing.assert_allclose(each.scores, scores[each.members[0], list(each.members)], atol=1e-5)
        if method == "communities":
            assert min(each.scores) >= threshold - 1e-6
        if method == "complete":
            assert scores[np.ix_(each.members, each.members)].min() >= threshold - 1e-6


def test_equal_texts_are_one_cluster_with_the_first_as_its_centre() -> None:
    vectors = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)[[0, 4, 8, 1, 5, 9, 2, 6]]
    for method in METHODS:
        found = cluster(vectors, threshold=0.99, method=method)
        assert [each.members for each in found] == [(0, 3, 6), (1, 4, 7), (2, 5)]


def test_components_are_those_of_the_pairs_in_any_order() -> None:
    pairs = [(5, 6), (0, 1), (1, 2), (6, 4)]
    for order in (pairs, pairs[::-1], [(b, a) for a, b in pairs]):
        assert [group.tolist() for group in components(8, order)] == [[0, 1, 2], [3], [4, 5, 6], [7]]
    long_chain = np.random.default_rng(0).permutation([(i, i + 1) for i in range(999)])
    assert [len(group) for group in components(1000, long_chain)] == [1000]


def test_clusters_of_all_pairs_above_a_threshold_are_its_components() -> None:
    vectors = grouped()
    pairs = similar_pairs(vectors, threshold=0.55)
    ends = np.stack([pairs.first, pairs.second], axis=1)
    assert clusters_of_pairs(vectors, ends) == cluster(vectors, threshold=0.55, method="components")


def test_what_cannot_be_clustered_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="choose one of communities"):
        cluster(grouped(3), method="magic")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="min_size"):
        cluster(grouped(3), min_size=0)
    monkeypatch.setattr(clusters_module, "MOST_FOR_LINKAGE", 2)
    with pytest.raises(InputError, match="3 vectors are too many for 'average'"):
        cluster(grouped(3), method="average")
