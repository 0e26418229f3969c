"""MaxSim alignments: each query token's best goes to its word, to the word it met, and to both."""

from __future__ import annotations

import numpy as np
import pytest

from crossrank.errors import ModelOutputError
from crossrank.explanation.alignment import Aligned, Aligner
from crossrank.explanation.explain import explain

QUERY, DOCUMENT = "red foxes", "A red, foxy day"


class Late:
    """Similarities as given, for the tokens [Q] red fox ##es [MASK] and [D] a red , fox ##y day."""

    name = "late"

    def __init__(self, similarities=None):
        self.similarities = similarities

    def alignments(self, query, document):
        spans = (
            [(0, 0), (0, 3), (4, 7), (7, 9), (0, 0)],
            [(0, 0), (0, 1), (2, 5), (5, 6), (7, 10), (10, 11), (12, 15)],
        )
        made = np.zeros((5, 7), dtype=np.float32) if self.similarities is None else self.similarities
        if self.similarities is None:
            made[0, 0], made[1, 2], made[2, 4], made[3, 5], made[4, 6] = 0.5, 1.0, 0.75, 0.25, 0.125
            made[1, 4] = 0.875  # not the best of its row
        return Aligned(np.array(spans[0]), np.array(spans[1]), made)


def test_the_sum_of_the_best_is_taken_apart():
    explanation = explain(QUERY, DOCUMENT, Late())
    assert isinstance(Late(), Aligner)
    assert (explanation.method, explanation.score) == ("alignment", 2.625)
    assert [(term.text, term.weight) for term in explanation.query_terms] == [("red", 1.0), ("foxes", 1.0)]
    assert [(term.text, term.weight) for term in explanation.document_terms] == [
        *(("A", 0.0), ("red", 1.0), (",", 0.0), ("foxy", 1.0), ("day", 0.125)),
    ]
    assert [(link.query_term, link.document_term, link.weight) for link in explanation.links] == [
        (0, 1, 1.0),
        (1, 3, 1.0),
    ]
    assert explanation.notes == ("0.625 of the score is of tokens that stand for no characters",)


def test_a_document_without_tokens_scores_nothing():
    class Empty(Late):
        def alignments(self, query, document):
            return Aligned(np.array([(0, 3)]), np.zeros((0, 2), dtype=int), np.zeros((1, 0)))

    explanation = explain(QUERY, "", Empty())
    assert (explanation.score, explanation.links) == (0.0, ())


def test_similarities_must_fit_the_tokens():
    with pytest.raises(ModelOutputError, match=r"\(2, 2\) for 5 query and 7 document tokens"):
        explain(QUERY, DOCUMENT, Late(np.zeros((2, 2))))
