"""Scores before the first layer: what they are, whatever form the weights have, and as a stage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from crossrank.composition.early_exit import EarlyExit
from crossrank.errors import UnsupportedArchitectureError
from crossrank.models.cross_encoder import CrossEncoder

GOLDEN = Path(__file__).parents[1] / "golden"
QUERY = "what is the old city"
TEXTS = ["the old city", "birds", "", "the old city is what it is", "cats and dogs " * 30]


def plain(folder: Path, query: str, text: str) -> float:
    """By the formula, token by token."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tensors = load_file(folder / "model.safetensors")
    [table] = [
        tensors[name]
        for name in tensors
        if name.endswith(("word_embeddings.weight", "tok_embeddings.weight"))
    ]
    table = table.astype(np.float64)
    ids = [tokenizer.encode(each, add_special_tokens=False).ids for each in (query, text)]
    if not ids[1]:
        return -1.0
    best = []
    for token in ids[0]:
        cosines = [
            table[token] @ table[other] / np.linalg.norm(table[token]) / np.linalg.norm(table[other])
            for other in ids[1]
        ]
        best.append(max(cosines))
    return float(np.mean(best))


@pytest.mark.parametrize("name", ["bert", "roberta", "electra", "deberta_v3", "modernbert"])
def test_scores_are_the_mean_of_the_best_cosines(name: str) -> None:
    model = CrossEncoder(GOLDEN / name, exit_layer=0, max_length=90)
    scores = model.score([(QUERY, text) for text in TEXTS[:4]])
    expected = [plain(GOLDEN / name, QUERY, text) for text in TEXTS[:4]]
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert model.name == f"{name}@0"
    assert scores[3] == pytest.approx(1.0, abs=1e-6)  # it has all words of the query
    assert model.rank(QUERY, TEXTS)[0].index == 3


def test_a_score_is_the_pairs_own_and_reads_what_the_model_would() -> None:
    model = CrossEncoder(GOLDEN / "bert", exit_layer=0, max_length=32)
    together = model.rank(QUERY, [*TEXTS, *["water and light"] * 7])
    for hit in together:
        alone = model.rank(QUERY, [TEXTS[hit.index] if hit.index < 5 else "water and light"])[0]
        assert alone.score == pytest.approx(hit.score, abs=1e-6)
        assert alone.truncated_tokens == hit.truncated_tokens
    assert next(hit for hit in together if hit.index == 4).truncated_tokens > 0
    windows = CrossEncoder(GOLDEN / "bert", exit_layer=0, max_length=32, long_documents="max")
    assert windows.rank(QUERY, ["birds " * 40 + "the old city"])[0].span is not None


def test_it_filters_before_the_layers_of_a_model_without_heads() -> None:
    model = CrossEncoder(GOLDEN / "bert")
    ranking = EarlyExit(model, 0, [(2, 3)]).rank(QUERY, TEXTS)
    assert [hit.stage for hit in ranking] == ["bert"] * 3 + ["bert@0"] * 2
    whole = model.score([(QUERY, text) for text in TEXTS])
    assert all(hit.score == whole[hit.index] for hit in ranking[:3])
    both = EarlyExit(CrossEncoder(GOLDEN / "bert_exits"), 0, [(1, 4), (4, 2)]).rank(QUERY, TEXTS)
    assert [hit.stage for hit in both] == ["bert_exits"] * 2 + ["bert_exits@1"] * 2 + ["bert_exits@0"]


def test_a_model_without_word_embeddings_says_so() -> None:
    with pytest.raises(UnsupportedArchitectureError, match="no table of word embeddings"):
        CrossEncoder(GOLDEN / "bert_onnx", exit_layer=0)
