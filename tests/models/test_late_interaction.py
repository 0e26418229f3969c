"""LateInteraction against PyLate and sentence-transformers, and what must hold for any texts."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossrank.errors import CheckpointError, InputError, QueryTooLongError, UnsupportedArchitectureError
from crossrank.models.bi_encoder import BiEncoder
from crossrank.models.cross_encoder import CrossEncoder
from crossrank.models.late_interaction import LateInteraction
from crossrank.types import Document

GOLDEN = Path(__file__).parent / "golden_late"
PYLATE = ["pylate", "pylate_attended", "pylate_without_expansion", "pylate_modernbert", "stanford"]
LAYOUTS = [*PYLATE, "multi_vector", "multi_vector_min", "multi_vector_fixed"]
QUERY = "the red fox"

_plain = LateInteraction(GOLDEN / "multi_vector_min", progress=False, long_query="truncate")
texts_of_the_vocabulary = st.lists(
    st.lists(st.sampled_from(["the", "red", "fox", "whales", ",", "swims"]), max_size=30).map(" ".join),
    max_size=12,
)


def golden(layout: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((GOLDEN / layout / "golden.json").read_text(encoding="utf-8"))
    return content


def opened(layout: str, **options: Any) -> LateInteraction:
    return LateInteraction(GOLDEN / layout, long_query="truncate", progress=False, **options)


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., Path]:
    """Make a copy of a golden folder with some keys of its JSON files changed."""

    def change(layout: str, files: dict[str, dict[str, Any]]) -> Path:
        folder = tmp_path / layout
        shutil.copytree(GOLDEN / layout, folder)
        for name, content in files.items():
            path = folder / name
            whole = json.loads(path.read_text(encoding="utf-8")) | content
            path.write_text(json.dumps(whole), encoding="utf-8")
        return folder

    return change


@pytest.mark.parametrize("layout", LAYOUTS)
def test_vectors_and_scores_are_those_of_the_reference(layout: str) -> None:
    expected = golden(layout)
    model = opened(layout)
    for encode, texts, wanted in (
        (model.encode_queries, expected["queries"], expected["query_vectors"]),
        (model.encode_documents, expected["documents"], expected["document_vectors"]),
    ):
        vectors = encode(texts)
        assert [len(each) for each in vectors] == [len(each) for each in wanted]
        for got, want in zip(vectors, wanted, strict=True):
            assert got.dtype == np.float32
            np.testing.assert_allclose(got, np.array(want).reshape(got.shape), atol=1e-5)
    pairs = [(query, document) for query in expected["queries"] for document in expected["documents"]]
    scores = model.score(pairs).reshape(len(expected["queries"]), -1)
    np.testing.assert_allclose(scores, expected["scores"], atol=5e-5)  # sums of up to 24 products


@pytest.mark.parametrize("layout", PYLATE)
def test_sentence_transformers_agrees_on_other_layouts(layout: str) -> None:
    pytest.importorskip("sentence_transformers", minversion="6.2")
    from sentence_transformers import MultiVectorEncoder

    expected = golden(layout)
    reference = MultiVectorEncoder(str(GOLDEN / layout), device="cpu")
    wanted = reference.encode_query(expected["queries"], batch_size=1, convert_to_numpy=True)
    for got, want in zip(opened(layout).encode_queries(expected["queries"]), wanted, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_settings_are_the_folders() -> None:
    settings = opened("stanford").settings
    assert (settings.query.max_length, settings.document.max_length) == (16, 24)
    assert settings.query.expansion is not None
    assert settings.query.expansion.length == 16
    assert not settings.query.expansion.attended
    assert len(settings.document.skipped) > 0
    assert settings.query.skipped == ()
    assert len(settings.query.marker) == len(settings.document.marker) == 1
    both = opened("multi_vector_fixed").settings
    assert both.query.skipped == both.document.skipped != ()


def test_lengths_can_be_chosen() -> None:
    model = opened("pylate", query_length=7, document_length=9)
    assert len(model.encode_queries([QUERY])[0]) == 7
    vectors, cut = model.encode_documents_with_cuts(["fox " * 20])
    assert len(vectors[0]) == 9
    assert cut.tolist() == [14]  # room for 6 beside [CLS], marker and [SEP]
    for option in ({"query_length": 3}, {"document_length": 65}):
        with pytest.raises(InputError, match="takes at least 4 and at most 64 tokens"):
            opened("pylate", **option)


def test_ranking_has_scores_positions_and_what_was_not_read() -> None:
    documents = ["a blue whale", Document("b", "fox " * 30, title="the red"), "the red fox"]
    ranking = _plain.rank(QUERY, documents, top_k=2)
    scores = _plain.score(
        [(QUERY, "a blue whale"), (QUERY, "the red " + "fox " * 30), (QUERY, "the red fox")]
    )
    best = np.argsort(-scores, kind="stable")[:2]
    assert [hit.index for hit in ranking] == best.tolist()
    np.testing.assert_array_equal(ranking.scores, scores[best])
    cut = {hit.document_id: hit.truncated_tokens for hit in _plain.rank(QUERY, documents)}
    assert cut["b"] > 0
    assert cut["0"] == cut["2"] == 0


@settings(max_examples=30, deadline=None)
@given(texts=texts_of_the_vocabulary, budget=st.sampled_from([8, 64, 1024]))
def test_a_document_s_vectors_depend_on_it_alone(texts: list[str], budget: int) -> None:
    together = LateInteraction(
        GOLDEN / "multi_vector_min", token_budget=budget, progress=False
    ).encode_documents(texts)
    for text, vectors in zip(texts, together, strict=True):
        np.testing.assert_allclose(vectors, _plain.encode_documents([text])[0], atol=1e-5)


def test_rankings_do_not_depend_on_what_is_ranked_with_them() -> None:
    expected = golden("multi_vector_min")
    many = _plain.rank_many(expected["queries"], [expected["documents"]] * len(expected["queries"]))
    for query, ranking in zip(expected["queries"], many, strict=True):
        alone = _plain.rank(query, expected["documents"])
        np.testing.assert_allclose(ranking.scores, alone.scores, atol=1e-5)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = golden("pylate")
    model = opened("pylate")
    pairs = [(query, document) for document in expected["documents"] for query in expected["queries"]]
    whole = model.score(pairs)
    monkeypatch.setattr("crossrank.models.token_encoder._BLOCK_TEXTS", 2)
    np.testing.assert_allclose(model.score(pairs), whole, atol=1e-5)


def test_a_long_query_is_an_error_or_cut() -> None:
    model = LateInteraction(GOLDEN / "pylate", progress=False)
    long = "the red fox " * 5
    with pytest.raises(QueryTooLongError, match=r"queries\[1\] has 6 tokens more than the 12"):
        model.rank_many([QUERY, long], [[], []])
    with pytest.raises(QueryTooLongError, match=r"the query of pairs\[1\]"):
        model.score([(QUERY, "a"), (long, "a")])
    assert len(opened("pylate").rank(long, ["a", "fox"])) == 2


def test_cut_documents_are_said_once_a_call(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        _plain.encode_documents(["fox", "fox " * 30, "whale " * 25])
    assert [record.getMessage() for record in caplog.records] == [
        "2 of 3 documents have more than document_length=20 tokens and were cut at the end; the "
        "longest lost 13"
    ]


def test_mean_maxsim_divides_by_the_query_s_tokens(changed: Callable[..., Path]) -> None:
    folder = changed(
        "multi_vector", {"config_sentence_transformers.json": {"similarity_fn_name": "meanmaxsim"}}
    )
    summed, mean = opened("multi_vector"), LateInteraction(folder, progress=False)
    pair = [(QUERY, "a blue whale")]
    num_tokens = len(summed.encode_queries([QUERY])[0])
    np.testing.assert_allclose(mean.score(pair), summed.score(pair) / num_tokens, rtol=1e-6)
    assert mean.fingerprint != summed.fingerprint


def test_fingerprint_changes_with_what_decides_a_score(changed: Callable[..., Path]) -> None:
    folder = changed("stanford", {"artifact.metadata": {"doc_maxlen": 23}})
    prints = [opened("stanford").fingerprint, LateInteraction(folder).fingerprint]
    prints.append(opened("stanford", query_length=15).fingerprint)
    assert len(set(prints)) == 3
    assert LateInteraction(GOLDEN / "stanford").fingerprint == prints[0]


@pytest.mark.parametrize(
    ("layout", "files", "error", "message"),
    [
        (
            "pylate",
            {"config_sentence_transformers.json": {"query_prefix": "[X] "}},
            CheckpointError,
            "no token",
        ),
        (
            "multi_vector",
            {"config_sentence_transformers.json": {"similarity_fn_name": "xtr"}},
            UnsupportedArchitectureError,
            "'xtr'",
        ),
        (
            "multi_vector",
            {"2_MultiVectorMask/config.json": {"keep_only_token_ids": [3]}},
            UnsupportedArchitectureError,
            "keep_only_token_ids",
        ),
        ("multi_vector_min", {"2_Dense/config.json": {"in_features": 9}}, CheckpointError, "shape"),
        ("stanford", {"artifact.metadata": {"query_maxlen": 65}}, CheckpointError, "expands queries to 65"),
        ("stanford", {"artifact.metadata": {"query_maxlen": "x"}}, CheckpointError, "query_maxlen"),
    ],
)
def test_folders_that_cannot_be_are_refused(
    changed: Callable[..., Path],
    layout: str,
    files: dict[str, dict[str, Any]],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        LateInteraction(changed(layout, files))


def test_other_kinds_of_models_are_told_apart() -> None:
    with pytest.raises(CheckpointError, match="no late-interaction model"):
        LateInteraction(GOLDEN.parent / "golden_bi" / "mean")
    for layout in LAYOUTS:
        with pytest.raises(CheckpointError, match="open it with LateInteraction"):
            BiEncoder(GOLDEN / layout, pooling="mean")
    with pytest.raises(CheckpointError, match="no trained classification head"):
        CrossEncoder(GOLDEN / "stanford")
