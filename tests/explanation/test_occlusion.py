"""Occlusion: weights that can be worked out by hand, the number of calls, long documents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crossrank import progress
from crossrank.composition.ensemble import Ensemble
from crossrank.errors import InputError
from crossrank.explanation.explain import explain
from crossrank.explanation.occlusion import Occlusion
from crossrank.models.cross_encoder import CrossEncoder
from crossrank.retrieval.fusion import WeightedSum
from crossrank.types import Document

GOLDEN = Path(__file__).parent.parent / "golden"


class Counting:
    """Scores a pair by a formula, and counts."""

    name = "counting"

    def __init__(self, formula):
        self.formula = formula
        self.sizes = []

    def score(self, pairs):
        self.sizes.append(len(pairs))
        return np.array([self.formula(query, document) for query, document in pairs], dtype=np.float32)


def overlap(query, document):
    """2 for each word of both; 1 for a document's "fox" whatever the query; -3 for "spam"."""
    words = document.split()
    shared = sum(2.0 * words.count(word) for word in query.split())
    return shared + words.count("fox") - 3 * words.count("spam")


def weights(terms):
    return [(term.text, term.weight) for term in terms]


def test_weights_are_what_the_score_loses():
    explanation = Occlusion().explain("red fox", "the red fox and spam", Counting(overlap))
    assert explanation.score == 2.0
    assert weights(explanation.query_terms) == [("red", 2.0), ("fox", 2.0)]
    assert weights(explanation.document_terms) == [
        *(("the", 0.0), ("red", 2.0), ("fox", 3.0), ("and", 0.0), ("spam", -3.0)),
    ]


def test_links_are_what_two_words_do_together_alone():
    explanation = Occlusion(link_terms=3).explain("red fox", "the red fox and spam", Counting(overlap))
    found = {
        (
            explanation.query_terms[link.query_term].text,
            explanation.document_terms[link.document_term].text,
        ): (link.weight)
        for link in explanation.links
    }
    # "fox" adds 1 without its query word, "spam" takes off 3 whatever the query: neither is a meeting
    assert found == {
        **{("red", "red"): 2.0, ("fox", "fox"): 2.0, ("red", "fox"): 0.0, ("fox", "red"): 0.0},
        **{("red", "spam"): 0.0, ("fox", "spam"): 0.0},
    }
    assert [abs(link.weight) for link in explanation.links] == [2.0, 2.0, 0.0, 0.0, 0.0, 0.0]


def test_offsets_are_those_of_the_texts():
    query, document = "Wer  schrieb\tFaust?", "Goethe's «Faust», von 1808.\nJa."
    explanation = Occlusion().explain(query, document, Counting(overlap))
    for text, terms in ((query, explanation.query_terms), (document, explanation.document_terms)):
        assert [text[term.start : term.end] for term in terms] == [term.text for term in terms]
    assert [term.text for term in explanation.document_terms] == ["Goethe's", "Faust", "von", "1808", "Ja"]


@pytest.mark.parametrize("link_terms", [0, 2, 8])
@pytest.mark.parametrize(
    ("query", "document"),
    [
        ("red fox", "the red fox"),
        ("fox", "the red fox"),
        ("red fox", ""),
        ("?!", "the"),
        ("a b c", "x " * 64),
    ],
)
def test_the_number_of_calls_is_known_beforehand(query, document, link_terms):
    scorer = Counting(overlap)
    occlusion = Occlusion(link_terms=link_terms)
    explanation = occlusion.explain(query, document, scorer)
    assert occlusion.calls(query, document) == explanation.calls == sum(scorer.sizes)
    assert len(scorer.sizes) <= 4, "a step is one call of the model"


def test_a_query_of_one_word_says_that_it_has_no_weight():
    explanation = Occlusion().explain("fox", "the fox", Counting(overlap))
    assert weights(explanation.query_terms) == [("fox", 0.0)]
    assert explanation.links == ()
    assert "one word" in explanation.notes[0]


FILLER = [f"filler number {number} says nothing." for number in range(300)]


def test_long_documents_are_narrowed_to_the_passages_that_matter():
    document = " ".join([*FILLER[:211], "here is a red fox at last", *FILLER[211:]])
    scorer = Counting(overlap)
    occlusion = Occlusion(max_words=24)
    explanation = occlusion.explain("red fox", document, scorer)
    found = {term.text: term.weight for term in explanation.document_terms if term.weight}
    assert found == {"red": 2.0, "fox": 3.0}
    assert len(explanation.document_terms) <= 24
    assert explanation.calls == sum(scorer.sizes) <= occlusion.calls("red fox", document) < 200
    best = max(explanation.passages, key=lambda passage: (passage.weight, passage.start - passage.end))
    assert "red fox" in best.text
    assert best.weight == 5.0
    assert f"of {len(document.replace('.', '').split())}" in explanation.notes[0]


def test_a_long_document_of_one_sentence_is_narrowed_too():
    document = "word " * 5000 + "fox " + "word " * 5000
    occlusion = Occlusion(max_words=16)
    explanation = occlusion.explain("red fox", document, Counting(overlap))
    assert [(term.text, term.weight) for term in explanation.document_terms if term.weight] == [("fox", 3.0)]
    assert explanation.calls <= occlusion.calls("red fox", document) < 150


def test_a_models_own_scores_are_what_is_taken_apart():
    reranker = CrossEncoder(GOLDEN / "bert", threads=1, progress=False)
    query, document = "what is the water", "the old river is blue"
    explanation = explain(query, Document("d", "river is blue", title="the old"), reranker)
    assert (explanation.document, explanation.model) == (document, "bert")
    whole, without_old, without_what, without_both = reranker.score(
        [
            (query, document),
            (query, "the river is blue"),
            ("is the water", document),
            ("is the water", "the river is blue"),
        ]
    ).tolist()
    assert explanation.score == whole
    assert explanation.document_terms[1].weight == pytest.approx(whole - without_old, abs=1e-6)
    assert explanation.query_terms[0].weight == pytest.approx(whole - without_what, abs=1e-6)
    link = next(link for link in explanation.links if (link.query_term, link.document_term) == (0, 1))
    assert link.weight == pytest.approx(whole - without_old - without_what + without_both, abs=1e-5)


def test_a_chosen_label_is_explained():
    reranker = CrossEncoder(GOLDEN / "camembert", label="neutral", threads=1, progress=False)
    explanation = explain("what is water", "the river is blue", reranker)
    expected = reranker.score([("what is water", "the river is blue")])[0, reranker.label_position]
    assert explanation.score == pytest.approx(float(expected), abs=1e-6)
    with pytest.raises(InputError, match="label="):
        explain("what is water", "the river", CrossEncoder(GOLDEN / "camembert", threads=1))


def test_what_the_model_did_not_read_is_said():
    reranker = CrossEncoder(GOLDEN / "bert", threads=1, progress=False)
    explanation = Occlusion(max_words=4, link_terms=0).explain("cat", "the dog " * 100, reranker)
    assert any("did not read the last" in note for note in explanation.notes)


def test_ensembles_of_raw_scores_have_them_others_do_not():
    members = [CrossEncoder(GOLDEN / name, threads=1, progress=False) for name in ("bert", "roberta")]
    explanation = explain("what is", "the cat", Ensemble(members, WeightedSum((1, 2), "none")))
    parts = [explain("what is", "the cat", member) for member in members]
    assert explanation.document_terms[1].weight == pytest.approx(
        parts[0].document_terms[1].weight + 2 * parts[1].document_terms[1].weight, abs=1e-5
    )
    with pytest.raises(InputError, match="ensemble has no score of a pair by itself"):
        explain("what is", "the cat", Ensemble(members))


def test_progress_goes_to_the_end(monkeypatch):
    tracks = []

    class Recorded(progress.Track):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            tracks.append(self)

    monkeypatch.setattr(progress, "Track", Recorded)
    Occlusion(max_words=8).explain("red fox", " ".join(FILLER[:30]), Counting(overlap), progress=False)
    assert [tracked.done for tracked in tracks] == [tracked.total for tracked in tracks] != []


@pytest.mark.parametrize(
    ("query", "document", "options", "named"),
    [
        ("", "the cat", {}, "query is empty"),
        (3, "the cat", {}, "query must be a string"),
        ("cat", None, {}, "document must be a string"),
        ("cat", "\ud800", {}, "lone surrogate"),
        ("cat", "the cat", {"method": "attention"}, "occlusion, integrated-gradients, alignment"),
        ("cat", "the cat", {"method": "alignment"}, "no token similarities"),
        ("cat", "the cat", {"method": "integrated-gradients"}, "need a CrossEncoder"),
    ],
)
def test_what_cannot_be_explained(query, document, options, named):
    with pytest.raises(InputError, match=named):
        explain(query, document, Counting(overlap), **options)


def test_settings_are_whole_numbers():
    with pytest.raises(InputError, match="max_words"):
        Occlusion(max_words=0)
    with pytest.raises(InputError, match="link_terms"):
        Occlusion(link_terms=-1)
