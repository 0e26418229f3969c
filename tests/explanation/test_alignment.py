"""MaxSim alignments: each query token's best goes to its word, to the word it met, and to both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crossrank.errors import ModelOutputError
from crossrank.explanation.alignment import Aligner
from crossrank.explanation.explain import explain
from crossrank.models.late_interaction import LateInteraction
from crossrank.models.maxsim import Aligned

GOLDEN = Path(__file__).parent.parent / "models" / "golden_late"
LAYOUTS = sorted(path.parent.name for path in GOLDEN.glob("*/golden.json"))
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


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_alignments_of_a_model_make_its_score(layout):
    model = LateInteraction(GOLDEN / layout, progress=False, threads=1)
    for query, document in [
        ("the red fox", "Whales, the red ones, swim. A fox!"),
        ("fox", ""),
        ("fox", "red " * 400),
    ]:
        explanation = explain(query, document, model)
        assert explanation.method == "alignment"
        assert explanation.score == pytest.approx(float(model.score([(query, document)])[0]), abs=1e-4)
        for text, terms in ((query, explanation.query_terms), (document, explanation.document_terms)):
            assert all(text[term.start : term.end] == term.text for term in terms)
        terms = [term.text for term in explanation.query_terms]
        assert [word for word in query.split() if word in terms] == terms, "each once; one layout skips some"
        assert "fox" in terms
        cut = model.rank(query, [document])[0].truncated_tokens
        assert bool(cut) is any("did not read" in note for note in explanation.notes)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_word_meets_itself_in_its_place(layout):
    model = LateInteraction(GOLDEN / layout, progress=False, threads=1)
    aligned = model.alignments("red fox", "red fox")
    assert len(aligned.query_spans) == len(model.encode_queries(["red fox"])[0])
    assert len(aligned.document_spans) == len(model.encode_documents(["red fox"])[0])
    assert {(0, 3), (4, 7)} <= {tuple(span) for span in aligned.document_spans.tolist()}
