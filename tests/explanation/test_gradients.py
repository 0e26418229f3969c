"""Integrated gradients: complete, true to the reranker, and right where the answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crossrank.errors import InputError, ModelOutputError
from crossrank.explanation.explain import explain
from crossrank.models.cross_encoder import CrossEncoder
from crossrank.models.mono_t5 import MonoT5
from crossrank.models.rank_t5 import RankT5

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from crossrank.explanation.gradients import IntegratedGradients  # noqa: E402

GOLDEN = Path(__file__).parent.parent / "golden"
QUERY = "what is the water?"
DOCUMENT = "The old river, in the new city, is blue and the birds of the mountain."
PLAIN = (
    *("bert", "roberta", "xlm_roberta", "distilbert", "electra", "deberta_v2", "deberta_v3"),
    *("modernbert", "modernbert_mean", "sbert_cross_encoder", "bert_bfloat16"),
)


def opened(name, **options):
    return CrossEncoder(GOLDEN / name, threads=1, progress=False, **options)


@pytest.mark.parametrize("name", PLAIN)
def test_the_weights_add_up_to_the_score_without_the_baseline(name):
    reranker = opened(name)
    explanation = IntegratedGradients(reranker, steps=300).explain(QUERY, DOCUMENT, progress=False)
    assert explanation.score == pytest.approx(float(reranker.score([(QUERY, DOCUMENT)])[0]), abs=1e-4)
    total = sum(term.weight for term in (*explanation.query_terms, *explanation.document_terms))
    difference = explanation.score - explanation.baseline
    assert total == pytest.approx(difference, rel=0.02, abs=1e-4)


@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [
        *((MonoT5, name, {"family": "t5"}) for name in ("t5", "t5_v1_1", "mt5")),
        *((RankT5, name, {}) for name in ("t5", "t5_v1_1", "mt5")),
        (MonoT5, "t5", {"family": "t5", "prompt": "Is {query} in {document} ?"}),
    ],
)
def test_t5_rerankers_are_explained_too(kind, name, options):
    reranker = kind(GOLDEN.parent / "golden_t5" / name, threads=1, progress=False, **options)
    explanation = IntegratedGradients(reranker, steps=300).explain(QUERY, DOCUMENT, progress=False)
    assert explanation.score == pytest.approx(float(reranker.score([(QUERY, DOCUMENT)])[0]), abs=1e-4)
    terms = (*explanation.query_terms, *explanation.document_terms)
    assert "".join(term.text for term in terms) == (QUERY + DOCUMENT).replace(" ", "")
    total = sum(term.weight for term in terms)
    assert total == pytest.approx(explanation.score - explanation.baseline, rel=0.02, abs=1e-4)


def test_terms_are_words_and_marks_in_their_places():
    explanation = explain(QUERY, DOCUMENT, opened("bert"), method="integrated-gradients", progress=False)
    assert [term.text for term in explanation.query_terms] == ["what", "is", "the", "water", "?"]
    for term in explanation.document_terms:
        assert DOCUMENT[term.start : term.end] == term.text
    assert "".join(term.text for term in explanation.document_terms) == DOCUMENT.replace(" ", "")


def test_weights_are_those_of_a_plain_sum_over_the_path():
    """The definition, with another quadrature, written against transformers alone."""
    import transformers

    explanation = IntegratedGradients(opened("bert"), steps=64).explain("what is", "the cat", progress=False)
    folder = str(GOLDEN / "bert")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(folder)("what is", "the cat", return_tensors="pt")
    special = torch.tensor([token in (2, 3) for token in tokens["input_ids"][0].tolist()])
    padded = torch.where(special, tokens["input_ids"], torch.zeros_like(tokens["input_ids"]))
    embed = model.get_input_embeddings()
    high, low = embed(tokens["input_ids"]).detach(), embed(padded).detach()
    slopes = torch.zeros_like(high)
    points = 2000
    for step in range(points):  # midpoints
        point = (low + (step + 0.5) / points * (high - low)).requires_grad_()
        score = model(inputs_embeds=point, token_type_ids=tokens["token_type_ids"]).logits.sum()
        slopes += torch.autograd.grad(score, point)[0] / points
    expected = ((high - low) * slopes).sum(-1)[0][~special].tolist()
    weights = [term.weight for term in (*explanation.query_terms, *explanation.document_terms)]
    np.testing.assert_allclose(weights, expected, rtol=0, atol=2e-4)


def test_a_chosen_label_is_explained():
    reranker = opened("camembert", label="neutral")
    explanation = IntegratedGradients(reranker).explain(QUERY, DOCUMENT, progress=False)
    expected = reranker.score([(QUERY, DOCUMENT)])[0, reranker.labels.index("neutral")]
    assert explanation.score == pytest.approx(float(expected), abs=1e-4)
    with pytest.raises(InputError, match="label="):
        IntegratedGradients(opened("camembert"))


def test_the_float32_form_of_an_int8_model_is_explained_and_the_difference_said():
    explanation = explain(
        "who wrote Hamlet", "By Shakespeare.", CrossEncoder(), method="integrated-gradients"
    )
    exact = CrossEncoder(precision="float32").score([("who wrote Hamlet", "By Shakespeare.")])
    assert explanation.score == pytest.approx(float(exact[0]), abs=1e-4)
    assert any(note.startswith("the int8 form gives") for note in explanation.notes)


def test_documents_are_cut_where_the_model_cuts_them():
    reranker = opened("bert")
    explanation = IntegratedGradients(reranker).explain("cat", "the dog " * 100, progress=False)
    hit = reranker.rank("cat", ["the dog " * 100])[0]
    assert explanation.score == pytest.approx(hit.score, abs=1e-4)
    assert f"the last {hit.truncated_tokens} tokens" in explanation.notes[0]
    assert len(explanation.document_terms) == 200 - hit.truncated_tokens


def test_an_empty_document_and_a_prompt():
    assert IntegratedGradients(opened("bert")).explain("cat", "", progress=False).document_terms == ()
    prompted = opened("bert", prompt="water of ")
    explanation = IntegratedGradients(prompted).explain("cat", "the dog", progress=False)
    assert explanation.score == pytest.approx(float(prompted.score([("cat", "the dog")])[0]), abs=1e-4)
    assert [term.text for term in explanation.query_terms] == ["cat"]
    assert any("such as a prompt" in note for note in explanation.notes)


def test_another_computation_is_refused(monkeypatch):
    gradients = IntegratedGradients(opened("bert"))
    with torch.no_grad():
        gradients._model._model.classifier.bias += 1
    with pytest.raises(ModelOutputError, match="another computation"):
        gradients.explain("cat", "the dog")


def test_what_has_no_gradients():
    with pytest.raises(InputError, match="no plain classifier"):
        IntegratedGradients(opened("sbert_modular_cross_encoder"))
    with pytest.raises(InputError, match="no plain classifier"):
        IntegratedGradients(opened("bert_onnx", source="onnx"))
    with pytest.raises(InputError, match="no plain classifier"):
        IntegratedGradients(RankT5(GOLDEN.parent / "golden_t5" / "t5_encoder", threads=1))
    with pytest.raises(InputError, match="steps"):
        IntegratedGradients(opened("bert"), steps=0)
