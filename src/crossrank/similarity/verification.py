"""A cross-encoder's second look at pairs whose cosine alone does not decide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from crossrank.checks import as_number, check_count
from crossrank.errors import InputError
from crossrank.models.cross_encoder import CrossEncoder
from crossrank.similarity.paraphrases import Ints, SimilarPairs

__all__ = ["Verification", "check_verifier", "verify"]


class Verification(NamedTuple):
    """What a cross-encoder says of pairs.

    Attributes:
        pairs: those that stay, in the order they had; `num_above` is that of all.
        values: float64 (pairs,), the cross-encoder's value for each that it has read, NaN for the others.
        num_borderline: pairs with a cosine inside the band.
        num_verified: those of them that were read.
        num_rejected: those that were read, and do not stay.
        num_unread: pairs of the band beyond `most`, which do not stay either.
    """

    pairs: SimilarPairs
    values: npt.NDArray[np.float64]
    num_borderline: int
    num_verified: int
    num_rejected: int
    num_unread: int


def verify(
    pairs: SimilarPairs,
    texts: Sequence[str],
    cross_encoder: CrossEncoder,
    *,
    band: tuple[float, float] = (-1.0, 1.0),
    least: float | None = None,
    most: int = 10_000,
) -> Verification:
    """Read the pairs of a band of cosines with a cross-encoder, and keep those it confirms.

    Each pair is read both ways round and the two values averaged: what is said of two texts does not depend
    on which comes first. The value is the calibrated probability where the model has one, otherwise what its
    activation makes of the score: for a model of similarity from 0 to 1, that similarity.

    Args:
        pairs: of `similar_pairs`.
        texts: of the rows that the pairs name.
        cross_encoder: a model of sentence pairs (similarity, paraphrase, entailment), opened with the label
            that is meant where it has several.
        band: (low, high): pairs with low <= cosine < high are read. Those above stay unread; those below
            stay as they are, too: `similar_pairs` has left out what is too low.
        least: the value from which on a pair stays. Default: 0.5, for a model with a calibration or an
            activation. Raw scores have no known range, so for a model with neither it must be given.
        most: pairs that are read, those of the highest cosines first.

    Raises:
        InputError: a band that is none, a model with several labels and none chosen, or one of raw scores
            without `least`.
    """
    low, high = as_number(band[0], "band[0]", -1, 1), as_number(band[1], "band[1]", -1, 1)
    if not low < high:
        raise InputError(f"band is from {low:g} to {high:g}; the first must be less")
    check_count(most, "most")
    least = check_verifier(cross_encoder, least)
    inside = (pairs.scores >= np.float32(low)) & (pairs.scores < np.float32(high))
    places = np.flatnonzero(inside)
    read = places[:most]
    values = np.full(len(pairs), np.nan)
    if len(read):
        values[read] = _values(pairs.first[read], pairs.second[read], texts, cross_encoder)
    stays = ~inside
    stays[read] = values[read] >= least
    return Verification(
        SimilarPairs(pairs.first[stays], pairs.second[stays], pairs.scores[stays], pairs.num_above),
        values[stays],
        num_borderline=len(places),
        num_verified=len(read),
        num_rejected=int(np.count_nonzero(~stays[read])),
        num_unread=len(places) - len(read),
    )


def check_verifier(cross_encoder: CrossEncoder, least: float | None) -> float:
    """Find out, before anything is computed, whether a model can confirm pairs; returns the least value.

    Args:
        cross_encoder: see `verify`.
        least: see `verify`.

    Raises:
        InputError: see `verify`.
    """
    if not isinstance(cross_encoder, CrossEncoder):
        raise InputError(
            f"{cross_encoder.name} does not read two texts together and score them; give a cross-encoder"
        )
    if cross_encoder.label is None:
        raise InputError(
            f"{cross_encoder.name} gives {len(cross_encoder.labels)} scores "
            f"({', '.join(cross_encoder.labels)}); open it with label= the one that means similar"
        )
    if least is None:
        if cross_encoder.calibration is None and cross_encoder.activation == "identity":
            raise InputError(
                f"{cross_encoder.name} has neither a calibration nor an activation: its values are raw "
                "scores of no known range, and 0.5 says nothing of them; give the least that counts, in that "
                "range, or calibrate the model"
            )
        least = 0.5
    return as_number(least, "least", -1e30)


def _values(
    first: Ints, second: Ints, texts: Sequence[str], cross_encoder: CrossEncoder
) -> npt.NDArray[np.float64]:
    ends = list(zip(first.tolist(), second.tolist(), strict=True))
    both_ways = [(texts[a], texts[b]) for a, b in ends] + [(texts[b], texts[a]) for a, b in ends]
    logits = cross_encoder.score(both_ways)
    place = cross_encoder.labels.index(str(cross_encoder.label))
    if cross_encoder.calibration is not None:
        values = cross_encoder.calibration.probability(logits if logits.ndim == 1 else logits[:, place])
    else:
        activated = np.asarray(cross_encoder.activate(logits), dtype=np.float64)
        values = activated if activated.ndim == 1 else activated[:, place]
    return np.asarray(values.reshape(2, -1).mean(axis=0))
