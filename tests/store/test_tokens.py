"""Token vectors in an index: kept, compared, searched by, and never mixed with another model's."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from crossrank.errors import IndexMismatchError, IndexStoreError, InputError
from crossrank.explanation.explain import explain
from crossrank.models.late_interaction import LateInteraction
from crossrank.models.maxsim import TokenVectors, maxsim
from crossrank.models.token_codec import CODECS, ResidualCodec, TokenCodec
from crossrank.pipeline import Searcher
from crossrank.retrieval.from_index import index_retriever
from crossrank.store.lance import Index
from crossrank.store.late_reranker import StoredLateInteraction
from crossrank.types import Document

pytest.importorskip("lancedb")

GOLDEN = Path(__file__).parents[1] / "models" / "golden_late"
WORDS = ("the", "red", "fox", "runs", "over", "blue", "whale", "swims", "in", "sea", "quick", "dog")
QUERIES = ["the red fox", "whale in the sea", "quick dog"]


@pytest.fixture(scope="module")
def model() -> LateInteraction:
    return LateInteraction(GOLDEN / "multi_vector_min", progress=False)


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    rng = np.random.default_rng(3)
    texts = [" ".join(rng.choice(WORDS, size=int(rng.integers(1, 25)))) for _ in range(60)]
    return [
        Document(f"d{n:02d}", text, title="Sea" if n % 3 else "", metadata={"year": n})
        for n, text in enumerate(texts)
    ]


def codec_named(name: str, model: LateInteraction, documents: list[Document]) -> TokenCodec:
    if name in CODECS:
        return CODECS[name]()
    vectors = np.concatenate(model.encode_documents(documents))
    return ResidualCodec.train(vectors, bits=4, num_centroids=32)


def filled(path: Path, model: LateInteraction, documents: list[Document], codec: object = "int8") -> Index:
    index = Index.create(path, late_interaction=model, token_codec=codec, fields={"year": int})
    index.add(documents, batch_size=25)
    return index


def expected_scores(
    model: LateInteraction, codec: TokenCodec, query: str, documents: list[Document]
) -> dict[str, float]:
    """Each document's MaxSim with the query, from vectors that went through the codec."""
    kept = [codec.decode(codec.encode(each)) for each in model.encode_documents(documents)]
    scores = maxsim(model.encode_queries([query]), TokenVectors.of(kept, model.dimensions))[:, 0]
    return dict(zip((document.id for document in documents), scores.tolist(), strict=True))


@pytest.mark.parametrize("name", ["float16", "int8", "residual"])
def test_first_stage_and_reranker_give_the_scores_of_what_is_kept(
    name: str, model: LateInteraction, documents: list[Document], tmp_path: Path
) -> None:
    codec = codec_named(name, model, documents)
    filled(tmp_path / "index", model, documents, codec).close()
    with Index.open(tmp_path / "index", late_interaction=model) as index:
        rankings = index_retriever(index, "late").retrieve(QUERIES, top_k=60)
        reranker = StoredLateInteraction(index)
        for query, ranking in zip(QUERIES, rankings, strict=True):
            wanted = expected_scores(model, codec, query, documents)
            assert set(ranking.document_ids) == set(wanted)
            assert list(ranking.scores) == sorted(ranking.scores, reverse=True)
            for hit in (*ranking, *reranker.rank(query, documents)):
                assert hit.score == pytest.approx(wanted[hit.document_id], abs=1e-5)
                assert hit.document in documents


def test_search_takes_the_best_and_breaks_ties_by_id(model: LateInteraction, tmp_path: Path) -> None:
    texts = ["the red fox", "the blue whale"] * 10
    twins = [Document(f"d{n:02d}", text) for n, text in enumerate(texts)]
    with filled(tmp_path / "index", model, twins) as index:
        whole = index.search_late(["the red fox"], top_k=20)[0]
        assert index.search_late(["the red fox"], top_k=7)[0].hits == whole.hits[:7]
        keys = [(hit.score, hit.document_id) for hit in whole]
        assert keys == sorted(keys, reverse=True)


def test_a_filter_decides_what_is_read(
    model: LateInteraction, documents: list[Document], tmp_path: Path
) -> None:
    with filled(tmp_path / "index", model, documents) as index:
        found = index.search_late(QUERIES, top_k=100, filter="year < 10")
        assert all(set(each.document_ids) == {d.id for d in documents[:10]} for each in found)
        assert index.search_late([], top_k=3) == []


def test_stored_documents_are_not_encoded_again(
    model: LateInteraction, documents: list[Document], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with filled(tmp_path / "index", model, documents) as index:
        reranker = StoredLateInteraction(index)
        encoded: list[str] = []
        encode = LateInteraction.encode_wanted

        def recorded(self, wanted, tracked):
            encoded.extend(each.text for each in wanted)
            return encode(self, wanted, tracked)

        monkeypatch.setattr(LateInteraction, "encode_wanted", recorded)
        before = reranker.rank(QUERIES[0], documents)
        assert encoded == []
        changed = Document(documents[5].id, "red fox and whale", title="Sea")
        texts = [*documents[:3], changed, "a text of the caller"]
        after = reranker.rank(QUERIES[0], texts)
        assert encoded == [changed.full_text, "a text of the caller"]
        scores = {hit.document_id: hit.score for hit in before}
        assert {hit.document_id: hit.score for hit in after if hit.index in (0, 1, 2)} == {
            document.id: pytest.approx(scores[document.id], abs=1e-5) for document in documents[:3]
        }
        # Whether a text is stored makes no difference to its score.
        as_text = reranker.rank(QUERIES[0], [documents[4].full_text])
        assert as_text[0].score == pytest.approx(scores[documents[4].id], abs=1e-5)
        pairs = [(QUERIES[0], document.full_text) for document in documents[:5]]
        wanted = [scores[document.id] for document in documents[:5]]
        np.testing.assert_allclose(reranker.score(pairs), wanted, rtol=0, atol=1e-5)


def test_a_stored_score_is_explained_by_the_vectors_that_are_kept(
    model: LateInteraction, documents: list[Document], tmp_path: Path
) -> None:
    codec = codec_named("residual", model, documents)
    with filled(tmp_path / "index", model, documents, codec) as index:
        reranker = StoredLateInteraction(index)
        (hit,) = reranker.rank(QUERIES[0], [documents[4]])
        explanation = explain(QUERIES[0], documents[4], reranker)
        assert explanation.method == "alignment"
        assert explanation.score == pytest.approx(hit.score, abs=1e-5)
        assert abs(explain(QUERIES[0], documents[4], model).score - hit.score) > 1e-3


def test_cut_tokens_come_back(model: LateInteraction, tmp_path: Path) -> None:
    long = Document("long", "fox " * 30)
    with filled(tmp_path / "index", model, [long]) as index:
        stored = StoredLateInteraction(index).rank("fox", [long])[0]
        assert stored.truncated_tokens == model.rank("fox", [long])[0].truncated_tokens > 0


def test_a_searcher_reranks_from_the_index(
    model: LateInteraction, documents: list[Document], tmp_path: Path
) -> None:
    with filled(tmp_path / "index", model, documents) as index:
        searcher = Searcher(index_retriever(index, "bm25"), StoredLateInteraction(index), depth=20)
        ranking = searcher.search("the red fox", top_k=5)
        wanted = expected_scores(model, CODECS["int8"](), "the red fox", documents)
        assert ranking.status == "ok"
        assert [hit.score for hit in ranking] == [
            pytest.approx(wanted[hit.document_id], abs=1e-5) for hit in ranking
        ]


def test_replaced_and_deleted_documents_have_no_old_vectors(
    model: LateInteraction, documents: list[Document], tmp_path: Path
) -> None:
    with filled(tmp_path / "index", model, documents) as index:
        index.upsert([Document("d01", "quick quick quick")])
        index.delete(["d02"])
        found = index.search_late(["quick"], top_k=100)[0]
        assert "d02" not in found.document_ids
        wanted = expected_scores(model, CODECS["int8"](), "quick", [Document("d01", "quick quick quick")])
        scores = dict(zip(found.document_ids, found.scores, strict=True))
        assert scores["d01"] == pytest.approx(wanted["d01"], abs=1e-5)


def test_documents_without_text_are_not_found(
    model: LateInteraction, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.WARNING),
        filled(tmp_path / "index", model, [Document("a", "fox"), Document("b", " ")]) as index,
    ):
        assert index.search_late(["fox"])[0].document_ids == ("a",)
        assert index.info().token_bytes_per_document == 8 * 4  # [CLS] the fox [SEP]; 6 + 2 bytes


def test_resuming_encodes_nothing_twice(
    model: LateInteraction, documents: list[Document], tmp_path: Path
) -> None:
    index = Index.create(tmp_path / "index", late_interaction=model)
    index.add(documents[:30])
    report = index.add(documents)
    assert (report.added, report.unchanged) == (30, 30)
    assert len(index.search_late(["fox"], top_k=100)[0]) == 60


def test_info_says_how_vectors_are_kept(
    model: LateInteraction, documents: list[Document], tmp_path: Path
) -> None:
    sizes = {}
    for name in ("float16", "int8", "residual"):
        with filled(tmp_path / name, model, documents, codec_named(name, model, documents)) as index:
            info = index.info()
            assert info.tokens is not None
            assert info.tokens.model.fingerprint == model.fingerprint
            sizes[info.tokens.codec] = info.token_bytes_per_document
    num_tokens = sum(map(len, model.encode_documents(documents))) / len(documents)
    assert sizes == {
        "float16": pytest.approx(num_tokens * 12),
        "int8": pytest.approx(num_tokens * 8),
        "residual-4bit": pytest.approx(num_tokens * 5),
    }


def test_vectors_of_another_model_are_refused(
    model: LateInteraction, documents: list[Document], tmp_path: Path
) -> None:
    filled(tmp_path / "index", model, documents).close()
    other = LateInteraction(GOLDEN / "multi_vector_min", document_length=19, progress=False)
    with pytest.raises(IndexMismatchError, match=r"are those of '.*multi_vector_min'"):
        Index.open(tmp_path / "index", late_interaction=other)
    with Index.open(tmp_path / "index") as index:
        for call in (
            lambda: index.search_late(["fox"]),
            lambda: index.add(documents),
            lambda: StoredLateInteraction(index),
            lambda: index_retriever(index, "late"),
        ):
            with pytest.raises(IndexMismatchError, match="opened without its late-interaction model"):
                call()
        assert index.search_text(["fox"])[0]
    with Index.create(tmp_path / "plain") as plain:
        assert plain.info().tokens is None
        with pytest.raises(IndexMismatchError, match="has no token vectors"):
            plain.search_late(["fox"])
        with pytest.raises(IndexMismatchError, match="has no token vectors"):
            Index.open(tmp_path / "plain", late_interaction=model)


def test_centroids_are_checked(model: LateInteraction, documents: list[Document], tmp_path: Path) -> None:
    codec = codec_named("residual", model, documents)
    filled(tmp_path / "index", model, documents, codec).close()
    assert Index.exists(tmp_path / "index")
    (file,) = (tmp_path / "index").glob("token-codec-*.safetensors")
    other = ResidualCodec(np.zeros((2, 6)), codec.borders, codec.values)
    other.save(file)
    with (
        Index.open(tmp_path / "index", late_interaction=model) as index,
        pytest.raises(IndexStoreError, match="not the centroids"),
    ):
        index.search_late(["fox"])
    file.unlink()
    with (
        Index.open(tmp_path / "index", late_interaction=model) as index,
        pytest.raises(IndexStoreError, match="cannot be read"),
    ):
        index.search_late(["fox"])


def test_codecs_that_do_not_fit_are_refused(model: LateInteraction, tmp_path: Path) -> None:
    wide = ResidualCodec(np.zeros((2, 8)), np.array([0.0]), np.array([-0.1, 0.1]))
    for codec, message in (("int4", "must be one of float16, int8"), (wide, "8 dimensions")):
        with pytest.raises(InputError, match=message):
            Index.create(tmp_path / "index", late_interaction=model, token_codec=codec)
    with pytest.raises(InputError, match="must be a LateInteraction, not str"):
        Index.create(tmp_path / "index", late_interaction="crossrank-colbert")
    assert not Index.exists(tmp_path / "index")
