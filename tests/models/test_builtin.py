"""The models that ship with the package: whole, honest about themselves, and as good as they must be."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossrank import BiEncoder, Collection, CrossEncoder, LateInteraction, Run, evaluate, load
from crossrank.evaluation.trec import read_qrels
from crossrank.models.hub import BUILT_IN, DEFAULT_MODELS, resolve
from crossrank.runtime.int8 import INT8_FILE, PARITY_FILE

REPO = Path(__file__).parents[2]
DL19 = REPO.parent / "shared" / "data" / "msmarco_dl19"
SENTENCES = [
    "What is the capital of France?",
    "Paris is the capital and largest city of France.",
    "Berlin is the capital of Germany, and Paris is not.",
    "The mitochondrion is the powerhouse of the cell. " * 12,
    "",
    "A short one.",
    "Fleas live for up to a year, depending on warmth, moisture and the hosts that they find. " * 4,
    "naïve café, 北京, Ω and 🚀",
]


@pytest.fixture(scope="module", params=[name for name, kind in BUILT_IN.items() if kind == "cross-encoder"])
def reranker(request: pytest.FixtureRequest) -> CrossEncoder:
    return CrossEncoder(request.param, threads=1)


@pytest.fixture(scope="module")
def bi_encoder() -> BiEncoder:
    return BiEncoder(threads=1)


@pytest.fixture(scope="module")
def late_interaction() -> LateInteraction:
    return LateInteraction(threads=1)


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_weights_are_those_that_passed_the_gate(name: str) -> None:
    folder = resolve(name, kind=BUILT_IN[name])
    record = json.loads((folder / PARITY_FILE).read_text(encoding="utf-8"))
    assert record["sha256"] == hashlib.sha256((folder / INT8_FILE).read_bytes()).hexdigest()
    limits = record["limits"]
    for row in record["collections"].values():
        assert row["mean_delta"] <= limits["mean_delta_in_std"] * row["reference_std"]
        assert row["kendall_tau"] >= limits["kendall_tau"]
        assert abs(row["delta_ndcg@10"]) <= limits["delta_ndcg@10"]
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert record["sha256"] in card


def test_the_defaults_run_in_int8(
    reranker: CrossEncoder, bi_encoder: BiEncoder, late_interaction: LateInteraction
) -> None:
    assert {model.precision for model in (reranker, bi_encoder, late_interaction)} == {"int8"}
    assert load(DEFAULT_MODELS["late-interaction"]).fingerprint == late_interaction.fingerprint


def test_the_rerankers_prefer_the_answer(reranker: CrossEncoder, late_interaction: LateInteraction) -> None:
    for model in (reranker, late_interaction):
        assert model.rank(SENTENCES[0], SENTENCES[1:])[0].index == 0


def among_neighbours(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test with some sentences, and batches of some size."""
    rows = st.lists(st.integers(0, len(SENTENCES) - 1), min_size=1, max_size=12)
    return settings(max_examples=15, deadline=None)(given(rows=rows, budget=st.integers(1, 3000))(test))


@among_neighbours
def test_a_pair_scores_the_same_among_any_neighbours(
    reranker: CrossEncoder, rows: list[int], budget: int
) -> None:
    other = CrossEncoder(reranker.name, threads=2, token_budget=budget)
    pairs = [(SENTENCES[0], SENTENCES[row]) for row in rows]
    alone = np.concatenate([reranker.score([pair]) for pair in pairs])
    np.testing.assert_allclose(reranker.score(pairs), alone, atol=1e-4, rtol=0)
    np.testing.assert_allclose(other.score(pairs), alone, atol=1e-4, rtol=0)


@among_neighbours
def test_a_text_has_the_same_vector_among_any_neighbours(
    bi_encoder: BiEncoder, rows: list[int], budget: int
) -> None:
    other = BiEncoder(threads=2, token_budget=budget)
    texts = [SENTENCES[row] for row in rows]
    alone = np.concatenate([bi_encoder.encode_documents([text]) for text in texts])
    np.testing.assert_allclose(bi_encoder.encode_documents(texts), alone, atol=1e-4, rtol=0)
    np.testing.assert_allclose(other.encode_documents(texts), alone, atol=1e-4, rtol=0)


@among_neighbours
def test_a_token_has_the_same_vector_among_any_neighbours(
    late_interaction: LateInteraction, rows: list[int], budget: int
) -> None:
    other = LateInteraction(threads=2, token_budget=budget)
    texts = [SENTENCES[row] for row in rows]
    for text, vectors in zip(texts, other.encode_documents(texts), strict=True):
        alone = late_interaction.encode_documents([text])[0]
        np.testing.assert_allclose(vectors, alone, atol=1e-4, rtol=0)


def test_many_threads_get_the_scores_of_one(reranker: CrossEncoder) -> None:
    pairs = [(SENTENCES[0], text) for text in SENTENCES]
    wanted = reranker.score(pairs)
    with ThreadPoolExecutor(8) as pool:
        for got in pool.map(lambda _: reranker.score(pairs), range(16)):
            np.testing.assert_allclose(got, wanted, atol=1e-4, rtol=0)


def test_int8_vectors_are_near_float32_ones(bi_encoder: BiEncoder) -> None:
    # Texts of no words at all ("", "?") are further off, as the model card says.
    texts = [text for text in SENTENCES if text]
    exact = BiEncoder(precision="float32", threads=1).encode_documents(texts)
    cosines = (exact * bi_encoder.encode_documents(texts)).sum(axis=1)
    assert cosines.min() > 0.97


@pytest.mark.skipif(not DL19.is_dir(), reason="the TREC DL 2019 collection is not beside the repository")
@pytest.mark.parametrize(("name", "gain"), [("crossrank-mini", 0.16), ("crossrank-tiny", 0.13)])
def test_reranking_the_bm25_lists_of_trec_dl_2019_gains_as_much(name: str, gain: float) -> None:
    collection = Collection.open(DL19)
    qrels = read_qrels(DL19 / "qrels_full_official.txt")
    given_run, queries = collection.run("bm25.top100"), collection.queries()
    documents = {document.id: document for document in collection.documents()}
    judged = [query_id for query_id in given_run if query_id in qrels]
    rankings = CrossEncoder(name).rank_many(
        [queries[query_id] for query_id in judged],
        [[documents[hit.document_id] for hit in given_run[query_id]] for query_id in judged],
    )
    before = evaluate(given_run, qrels, ["nDCG@10"])["nDCG@10"]
    after = evaluate(Run(dict(zip(judged, rankings, strict=True))), qrels, ["nDCG@10"])["nDCG@10"]
    assert before == pytest.approx(0.5058, abs=1e-4)
    assert after >= before + gain
