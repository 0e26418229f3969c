"""Clusters of vectors by cosine: communities around a centre, connected components, linkage.

What each promises differs. Every member of a community is as similar to the centre as asked for. Members of a
component are joined by a chain of pairs that similar, so its ends may have little in common. Linkage joins
groups while their mean (or least) similarity is that high.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from crossrank.checks import as_number, check_count
from crossrank.errors import InputError
from crossrank.progress import Track, track
from crossrank.similarity.paraphrases import Ints, Vectors, blocks_above, unit_vectors

__all__ = ["MOST_FOR_LINKAGE", "Cluster", "ClusterMethod", "cluster", "clusters_of_pairs", "components"]

ClusterMethod = Literal["communities", "components", "average", "complete"]

MOST_FOR_LINKAGE = 20_000
"""Vectors that "average" and "complete" take: they hold all similarities, 1.6 GB for so many."""


class Cluster(NamedTuple):
    """Rows that belong together.

    Attributes:
        members: rows; the centre first, then by falling score, equal ones by row.
        scores: cosine of each member to the centre, 1 for the centre itself.
    """

    members: tuple[int, ...]
    scores: tuple[float, ...]


def cluster(
    vectors: npt.ArrayLike,
    *,
    threshold: float = 0.75,
    min_size: int = 2,
    method: ClusterMethod = "communities",
    progress: bool | None = None,
) -> list[Cluster]:
    """Put similar vectors into clusters; no vector is in two, and some are in none.

    Args:
        vectors: (n, dimensions); they need not have length 1.
        threshold: the cosine that `method` asks for.
        min_size: smaller clusters are left out.
        method: "communities": all within the threshold of a centre, the largest taken first, as
            sentence-transformers' `community_detection` does. "components": all that a chain of pairs within
            the threshold joins (single linkage). "average", "complete": agglomerative, groups are joined
            while the mean, or the least, similarity of their members is at or above it; for at most 20,000
            vectors. A cluster's centre is, but for communities, the member most similar to the others.
        progress: see `crossrank.progress.track`.

    Returns:
        Clusters by falling size, equal ones by their centre's row.

    Raises:
        InputError: no vectors, a setting out of its range, or more vectors than a method takes.
    """
    if method not in get_args(ClusterMethod):
        raise InputError(f"method is {method!r}; choose one of {', '.join(get_args(ClusterMethod))}")
    threshold = as_number(threshold, "threshold", -1, 1)
    check_count(min_size, "min_size")
    rows = unit_vectors(vectors)
    if method in ("average", "complete") and len(rows) > MOST_FOR_LINKAGE:
        raise InputError(
            f"{len(rows):,} vectors are too many for {method!r}, which holds all their similarities; it "
            f"takes {MOST_FOR_LINKAGE:,}. Use 'communities' or 'components'"
        )
    with track(len(rows), "Clustering", progress=progress) as tracked:
        if method == "communities":
            found = _communities(rows, threshold, min_size, tracked)
        else:
            groups = (
                _components(rows, threshold, tracked)
                if method == "components"
                else _linkage(rows, threshold, complete=method == "complete", tracked=tracked)
            )
            found = [_centred(rows, group) for group in groups if len(group) >= min_size]
    return _by_size(found)


def clusters_of_pairs(
    vectors: npt.ArrayLike, pairs: Sequence[tuple[int, int]] | npt.NDArray[np.int64], *, min_size: int = 2
) -> list[Cluster]:
    """Return the clusters that pairs make, such as those a cross-encoder has confirmed: their components.

    Args:
        vectors: (n, dimensions), for centres and scores.
        pairs: (pairs, 2) rows each.
        min_size: smaller clusters are left out.

    Raises:
        InputError: no vectors, or a size that is none.
    """
    check_count(min_size, "min_size")
    rows = unit_vectors(vectors)
    found = [_centred(rows, group) for group in components(len(rows), pairs) if len(group) >= min_size]
    return _by_size(found)


def components(num_rows: int, pairs: Sequence[tuple[int, int]] | npt.NDArray[np.int64]) -> list[Ints]:
    """Return the rows that pairs join, in chains of any length; a row in no pair is a group by itself.

    Args:
        num_rows: rows there are.
        pairs: (pairs, 2) rows each.

    Returns:
        Groups of rising rows, by their first row.
    """
    edges = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
    return _groups(_joined(np.arange(num_rows), edges[:, 0], edges[:, 1]))


def _by_size(found: list[Cluster]) -> list[Cluster]:
    return sorted(found, key=lambda each: (-len(each.members), each.members[0]))


def _communities(rows: Vectors, threshold: float, min_size: int, tracked: Track) -> list[Cluster]:
    candidates: list[tuple[int, Ints, Vectors]] = []
    for first, second, scores in blocks_above(rows, threshold, tracked):
        centres, starts, sizes = np.unique(first, return_index=True, return_counts=True)
        for centre, start, size in zip(centres.tolist(), starts.tolist(), sizes.tolist(), strict=True):
            if size >= min_size:
                part = slice(start, start + size)
                candidates.append((centre, second[part], scores[part]))
    taken = np.zeros(len(rows), dtype=bool)
    found = []
    for centre, members, scores in sorted(candidates, key=lambda each: (-len(each[1]), each[0])):
        free = ~taken[members]
        if taken[centre] or np.count_nonzero(free) < min_size:
            continue
        members, scores = members[free], scores[free]  # noqa: PLW2901
        taken[members] = True
        found.append(_ordered(centre, members, scores))
    return found


def _components(rows: Vectors, threshold: float, tracked: Track) -> list[Ints]:
    labels = np.arange(len(rows))
    for first, second, _ in blocks_above(rows, threshold, tracked):
        labels = _joined(labels, first, second)
    return _groups(labels)


def _joined(labels: Ints, first: Ints, second: Ints) -> Ints:
    """Labels after joining: each row's is the smallest row of its group."""
    labels = labels.copy()
    while True:
        least = np.minimum(labels[first], labels[second])
        before = labels.copy()
        for ends in (first, second):
            np.minimum.at(labels, before[ends], least)  # of the group's smallest row
            np.minimum.at(labels, ends, least)
        while not np.array_equal(labels, shorter := labels[labels]):
            labels = shorter
        if np.array_equal(labels, before):
            return labels


def _groups(labels: Ints) -> list[Ints]:
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(order) else []


def _linkage(rows: Vectors, threshold: float, *, complete: bool, tracked: Track) -> list[Ints]:
    """Agglomerative clustering by chains of nearest neighbours, which gives the same joins as the best first.

    Source:
        Murtagh 1983, "A Survey of Recent Advances in Hierarchical Clustering Algorithms".
    """
    similarities = np.clip(rows @ rows.T, -1, 1)
    np.fill_diagonal(similarities, -np.inf)
    sizes = np.ones(len(rows))
    alive = np.ones(len(rows), dtype=bool)
    joins: list[tuple[int, int]] = []
    chain: list[int] = []
    for _ in range(len(rows) - 1):
        if not chain:
            chain.append(int(np.argmax(alive)))
        while True:
            last = chain[-1]
            nearest = int(np.argmax(similarities[last]))
            # The one before stays where it is as near: the chain ends there.
            if len(chain) > 1 and similarities[last, chain[-2]] >= similarities[last, nearest]:
                nearest = chain[-2]
                break
            chain.append(nearest)
        del chain[-2:]
        similarity = similarities[last, nearest]
        if similarity >= np.float32(threshold):
            joins.append((last, nearest))
        first, second = similarities[last], similarities[nearest]
        if complete:
            merged = np.minimum(first, second)
        else:
            weights = sizes[last] + sizes[nearest]
            merged = ((sizes[last] * first + sizes[nearest] * second) / weights).astype(np.float32)
        merged[[last, nearest]] = -np.inf
        similarities[nearest], similarities[:, nearest] = merged, merged
        similarities[last], similarities[:, last] = -np.inf, -np.inf
        sizes[nearest] += sizes[last]
        alive[last] = False
        tracked.advance()
    return components(len(rows), joins)


def _centred(rows: Vectors, group: Ints) -> Cluster:
    """A group around the member that is most similar to the group's mean."""
    members = rows[group]
    centre = int(group[np.argmax(members @ members.mean(axis=0, dtype=np.float64).astype(np.float32))])
    return _ordered(centre, group, np.clip(members @ rows[centre], -1, 1))


def _ordered(centre: int, members: Ints, scores: Vectors) -> Cluster:
    order = np.lexsort((members, -scores, members != centre))
    return Cluster(tuple(members[order].tolist()), (1.0, *scores[order][1:].tolist()))
