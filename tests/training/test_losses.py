"""Losses: values against independent arithmetic, gradients against the plain form, bytes that are saved."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sentence_transformers")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer import losses as encoder_losses
from sentence_transformers.sentence_transformer.modules import Normalize
from training_inputs import BI_ENCODER, CROSS_ENCODER, WORDS

from crossrank.errors import InputError
from crossrank.training.forms import FORMS
from crossrank.training.losses import listwise
from crossrank.training.losses.gradient_cache import PackedLoss, pack
from crossrank.training.losses.saved_bytes import SavedBytes
from crossrank.training.losses.table import LOSSES, loss_named, options_of
from crossrank.training.recipes import LossChoice

SCORER_NAMES = [name for family, name in LOSSES if family == "scorer" and name != "ce"]


@pytest.fixture(scope="module")
def cross_encoder() -> CrossEncoder:
    return CrossEncoder(str(CROSS_ENCODER), device="cpu")


def _softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max())
    return powers / powers.sum()


class _Scores:
    """A model whose scores are given: only the arithmetic of a loss is left."""

    num_labels = 1


def _of_scores(loss: Any, scores: list[list[float]], labels: list[Any]) -> np.ndarray:
    """The loss of each query, from scores of different lengths."""
    pad = torch.nn.utils.rnn.pad_sequence
    mask = pad([torch.ones(len(each), dtype=torch.bool) for each in scores], batch_first=True)
    found = loss.of_scores(
        pad([torch.tensor(each) for each in scores], batch_first=True, padding_value=7.0),
        pad(
            [torch.tensor(each, dtype=torch.float32) for each in labels], batch_first=True, padding_value=3.0
        ),
        mask,
    )
    return found.numpy()


SCORES = [[0.3, -1.2, 2.0, 0.1], [1.5, 0.2], [0.0, 0.4, -0.3]]
LABELS = [[0, 1, 1, 0], [1, 0], [0, 0, 2]]


def test_softmax_losses_are_what_the_papers_say() -> None:
    softmax, poly, lce = [], [], []
    for scores, labels in zip(SCORES, LABELS, strict=True):
        probabilities = _softmax(np.array(scores))
        targets = np.array(labels) / sum(labels)
        softmax.append(-(targets * np.log(probabilities)).sum())
        poly.append(softmax[-1] + 0.7 * (1 - (targets * probabilities).sum()))
        negatives = [score for score, label in zip(scores, labels, strict=True) if not label]
        alone = [
            -np.log(_softmax(np.array([score, *negatives]))[0])
            for score, label in zip(scores, labels, strict=True)
            if label
        ]
        lce.append(np.mean(alone))
    model = _Scores()
    np.testing.assert_allclose(
        _of_scores(listwise.ListwiseSoftmax(model), SCORES, LABELS), softmax, rtol=1e-5
    )
    np.testing.assert_allclose(_of_scores(listwise.Poly1(model, 0.7), SCORES, LABELS), poly, rtol=1e-5)
    np.testing.assert_allclose(
        _of_scores(listwise.LocalizedContrastive(model), SCORES, LABELS), lce, rtol=1e-5
    )


def test_distillation_is_the_divergence_with_temperatures_and_labels() -> None:
    teacher = [[2.0, 0.5, -1.0, 0.0], [0.1, 0.9], [3.0, 3.0, 1.0]]
    both = [list(zip(t, labels, strict=True)) for t, labels in zip(teacher, LABELS, strict=True)]
    expected = []
    for scores, wanted, labels in zip(SCORES, teacher, LABELS, strict=True):
        p = _softmax(np.array(wanted) / 0.5)
        q = _softmax(np.array(scores) / 2.0)
        loss = 4.0 * (p * np.log(p / q)).sum()
        targets = np.array(labels) / sum(labels)
        expected.append(loss - 0.3 * (targets * np.log(_softmax(np.array(scores)))).sum())
    loss = listwise.ListwiseDistillation(
        _Scores(), teacher_temperature=0.5, student_temperature=2.0, label_weight=0.3
    )
    np.testing.assert_allclose(_of_scores(loss, SCORES, both), expected, rtol=1e-5)


def test_distilling_what_is_the_same_already_costs_nothing() -> None:
    both = [[(score, 0) for score in scores] for scores in SCORES]
    np.testing.assert_allclose(
        _of_scores(listwise.ListwiseDistillation(_Scores()), SCORES, both), 0.0, atol=1e-6
    )


@given(
    st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=6),
    st.floats(-5, 5, width=32),
)
@settings(max_examples=50, deadline=None)
def test_list_losses_do_not_change_when_all_scores_rise_alike(scores: list[float], rise: float) -> None:
    labels = [[1] + [0] * (len(scores) - 1)]
    higher = [[score + rise for score in scores]]
    for make in (listwise.ListwiseSoftmax, listwise.LocalizedContrastive, listwise.Poly1):
        one, other = (_of_scores(make(_Scores()), each, labels) for each in ([scores], higher))
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def _inputs(form: str, seed: int = 0) -> tuple[Any, Any]:
    """What the trainer gives a loss: columns of texts of many lengths, and labels."""
    rng = random.Random(seed)

    def text() -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(1, 12)))

    queries = [text() for _ in range(4)]
    if FORMS[form].lists:
        sizes = [5, 3, 6, 4]
        documents = [[text() for _ in range(size)] for size in sizes]
        labels = [torch.tensor([1.0] + [0.0] * (size - 1)) for size in sizes]
        if form == "scored_lists":
            labels = [torch.stack([torch.randn(len(each)), each], dim=1) for each in labels]
        return [queries, documents], labels
    if form == "scored_triplets":
        return [queries, [text() for _ in queries], [text() for _ in queries]], torch.rand(4)
    return [queries, [text() for _ in queries]], torch.rand(4)


def _gradients(model: Any, run: Callable[[], torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model.train()
    torch.manual_seed(seed)
    (run() * 0.5).backward()  # a trainer that accumulates scales the loss
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def _close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, other[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("name", SCORER_NAMES)
@pytest.mark.parametrize("budget", [32, 100_000])
def test_cached_gradients_are_those_of_the_plain_form_with_dropout(
    cross_encoder: CrossEncoder, name: str, budget: int
) -> None:
    choice = LossChoice(name)
    loss = loss_named(choice, "scorer")
    inputs, labels = _inputs(loss.form)

    def packed(*, cache: bool) -> PackedLoss:
        inner = loss.build(cross_encoder, options_of(choice, loss), budget)
        return PackedLoss(inner, token_budget=budget, cache=cache)

    plain = _gradients(cross_encoder, lambda: packed(cache=False)(inputs, labels), seed=3)
    cached = _gradients(cross_encoder, lambda: packed(cache=True)(inputs, labels), seed=3)
    _close(plain, cached)
    other = _gradients(cross_encoder, lambda: packed(cache=True)(inputs, labels), seed=4)
    assert any(not torch.equal(plain[name], other[name]) for name in plain)  # dropout was on


def test_cached_gradients_over_classes_are_those_of_the_plain_form_with_dropout() -> None:
    model = CrossEncoder(
        str(CROSS_ENCODER), num_labels=3, device="cpu", model_kwargs={"ignore_mismatched_sizes": True}
    )
    loss = loss_named(LossChoice("ce"), "scorer")
    columns, _ = _inputs(loss.form)
    classes = torch.tensor([0, 2, 1, 2])

    def packed(*, cache: bool) -> PackedLoss:
        inner = loss.build(model, options_of(LossChoice("ce", {"label_smoothing": 0.1}), loss), 32)
        return PackedLoss(inner, token_budget=32, cache=cache)

    plain = _gradients(model, lambda: packed(cache=False)(columns, classes), seed=3)
    _close(plain, _gradients(model, lambda: packed(cache=True)(columns, classes), seed=3))


@pytest.mark.parametrize("name", SCORER_NAMES)
def test_packing_changes_neither_loss_nor_gradients(cross_encoder: CrossEncoder, name: str) -> None:
    choice = LossChoice(name)
    loss = loss_named(choice, "scorer")
    inputs, labels = _inputs(loss.form)
    for part in cross_encoder.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p, part.kept = 0.0, part.p
    attention = cross_encoder.transformers_model.config
    kept, attention.attention_probs_dropout_prob = attention.attention_probs_dropout_prob, 0.0
    try:
        own = loss.build(cross_encoder, options_of(choice, loss), 0)
        values = []

        def run(module: Any) -> Callable[[], torch.Tensor]:
            def step() -> torch.Tensor:
                values.append(module([*inputs], labels))
                return values[-1]

            return step

        untouched = _gradients(cross_encoder, run(own), seed=0)
        inner = loss.build(cross_encoder, options_of(choice, loss), 0)
        _close(untouched, _gradients(cross_encoder, run(PackedLoss(inner, token_budget=48, cache=True)), 0))
        assert values[0].item() == pytest.approx(values[1].item(), rel=1e-4)
    finally:
        attention.attention_probs_dropout_prob = kept
        for part in cross_encoder.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = part.kept


@pytest.mark.parametrize("name", ["mnr", "margin_mse", "kl"])
@pytest.mark.parametrize("dimensions", [None, [16, 8]])
def test_encoder_losses_are_cached_alike(name: str, dimensions: list[int] | None) -> None:
    model = SentenceTransformer(str(BI_ENCODER), device="cpu")
    choice = LossChoice(name)
    loss = loss_named(choice, "encoder")
    rng = random.Random(0)
    columns = [[" ".join(rng.choices(WORDS, k=rng.randint(1, 9))) for _ in range(5)] for _ in range(4)]
    features = [model.preprocess(column) for column in columns]
    labels = None if name == "mnr" else torch.randn(5, 3)

    def packed(*, cache: bool) -> PackedLoss:
        inner = loss.build(model, options_of(choice, loss), 32)
        if dimensions:
            inner = encoder_losses.MatryoshkaLoss(model, inner, dimensions)
        return PackedLoss(inner, token_budget=32, cache=cache)

    plain = _gradients(model, lambda: packed(cache=False)(features, labels), seed=1)
    _close(plain, _gradients(model, lambda: packed(cache=True)(features, labels), seed=1))


@pytest.mark.parametrize("base", ["bare", "normalised"])
def test_an_encoder_learns_margins_of_the_size_of_logits(base: str) -> None:
    model = SentenceTransformer(str(BI_ENCODER), device="cpu")
    if base == "normalised":
        model.append(Normalize())
    texts = [["what is new", "old news"], ["a cat", "the city"], ["the old city", "a river"]]
    features = [model.preprocess(column) for column in texts]
    margins = torch.tensor([[6.0], [5.0]])  # of plain cosines, 2 at most, the error would stay above 9
    loss = loss_named(LossChoice("margin_mse"), "encoder")
    built = loss.build(model, options_of(LossChoice("margin_mse"), loss), 0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.eval()  # without dropout
    for _ in range(60):
        optimiser.zero_grad()
        error = built(features, margins)
        error.backward()
        optimiser.step()
    assert error.item() < 0.5
    vectors = [model(dict(each))["sentence_embedding"] for each in features]
    cosines = [torch.cosine_similarity(vectors[0], each) for each in vectors[1:]]
    torch.testing.assert_close(20 * (cosines[0] - cosines[1]), margins[:, 0], rtol=0.2, atol=0)


def test_caching_bounds_what_is_saved_however_long_the_lists(cross_encoder: CrossEncoder) -> None:
    def peak(num_documents: int, *, cache: bool) -> int:
        rng = random.Random(0)
        documents = [" ".join(rng.choices(WORDS, k=10)) for _ in range(num_documents)]
        labels = [torch.tensor([1.0] + [0.0] * (num_documents - 1))]
        loss = PackedLoss(listwise.ListwiseSoftmax(cross_encoder), token_budget=64, cache=cache)
        cross_encoder.train()
        cross_encoder.zero_grad()
        with SavedBytes(cross_encoder) as saved:
            loss((["what is new"], [documents]), labels).backward()
        return saved.peak

    assert peak(32, cache=True) < 1.1 * peak(4, cache=False)
    assert peak(32, cache=False) > 6 * peak(4, cache=False)


def test_saved_bytes_are_those_of_the_tensors() -> None:
    layer = torch.nn.Linear(10, 20)
    inputs = torch.randn(8, 10)
    with SavedBytes(layer) as saved:
        outputs = layer(inputs).exp().sum()
        # the layer saves its input, exp its output; the weight is there anyway
        assert saved.peak == 4 * (8 * 10 + 8 * 20)
        outputs.backward()


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 120))
def test_every_row_is_packed_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = pack(lengths, budget)
    assert sorted(row for rows in batches for row in rows) == [*range(len(lengths))]
    for rows in batches:
        assert len(rows) == 1 or len(rows) * max(lengths[row] for row in rows) <= budget


def test_a_loss_or_an_option_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match=r"no loss 'infonce' for this .*; there are bce, ce, .*kl"):
        loss_named(LossChoice("infonce"), "scorer")
    choice = LossChoice("kl", {"temperature": 2})
    with pytest.raises(InputError, match=r"no loss\.temperature; did you mean .*label_weight"):
        options_of(choice, loss_named(choice, "scorer"))
