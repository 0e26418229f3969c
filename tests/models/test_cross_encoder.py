"""CrossEncoder: reference scores, invariance, rankings, truncation, windows, bad input, cache, threads."""

import json
import logging
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossrank.benchmarking.worker import peak_mb
from crossrank.cache import ScoreCache
from crossrank.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    InputError,
    ModelOutputError,
    QueryTooLongError,
)
from crossrank.models import pair_scorer
from crossrank.models.cross_encoder import CrossEncoder
from crossrank.models.reranker import Reranker
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.tokenization import Tokenizer
from crossrank.types import Document, Pair

GOLDEN = Path(__file__).parent.parent / "golden"
CLASSIFIERS = sorted(
    path.parent.name for path in GOLDEN.glob("*/expected.npz") if path.parent.name != "sbert_bi_encoder"
)
TOLERANCE = 1e-5
WORDS = (  # each a token of the golden vocabularies
    *("the", "of", "and", "in", "cat", "dog", "bird", "river", "mountain", "city", "water", "light"),
    *("how", "what", "where", "is", "blue", "old", "new"),
)
PHRASE = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join)


@cache
def model(name="bert", **options):
    return CrossEncoder(GOLDEN / name, **{"threads": 1, **options})


@cache
def one_label():
    """A golden checkpoint with one label."""
    return model("bert")


def tokens(text, name="bert"):
    return len(Tokenizer(Checkpoint.open(GOLDEN / name)).encode([text])[0].ids)


def scores_of(ranking):
    """Scores in the order of the documents."""
    return np.array([hit.score for hit in sorted(ranking, key=lambda hit: hit.index)], dtype=np.float32)


# --- scores ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_scores_are_the_reference_librarys(name):
    rows = json.loads((GOLDEN / name / "expected.json").read_text(encoding="utf-8"))["rows"]
    with np.load(GOLDEN / name / "expected.npz") as arrays:
        expected = arrays["logits"]
    reranker = model(name)
    limit = reranker.settings.max_length
    short = [i for i, row in enumerate(rows) if len(row["ids"]) < limit]  # the reference cuts otherwise
    assert len(short) >= 4
    logits = reranker.score([tuple(rows[i]["pair"]) for i in short])
    assert logits.dtype == np.float32
    assert logits.shape == (
        (len(short),) if len(reranker.labels) == 1 else (len(short), len(reranker.labels))
    )
    np.testing.assert_allclose(logits.reshape(len(short), -1), expected[short], rtol=0, atol=TOLERANCE)


@given(
    pairs=st.lists(st.tuples(PHRASE, st.one_of(PHRASE, st.just(""))), min_size=1, max_size=30),
    order=st.randoms(use_true_random=False),
    budget=st.sampled_from([1, 64, 300, 4096]),
)
@settings(max_examples=25, deadline=None)
def test_a_pairs_score_depends_on_the_pair_alone(pairs, order, budget):
    reference = one_label()
    alone = np.concatenate([reference.score([pair]) for pair in pairs])
    shuffled = list(range(len(pairs))) * 2  # neighbours, order and duplicates
    order.shuffle(shuffled)
    other = model("bert", token_budget=budget, threads=2)
    together = other.score([pairs[i] for i in shuffled])
    np.testing.assert_allclose(together, alone[shuffled], rtol=0, atol=TOLERANCE)


def test_equal_pairs_are_computed_once(monkeypatch):
    reranker = CrossEncoder(GOLDEN / "bert", threads=1)
    rows = []
    run = reranker._engine.run
    monkeypatch.setattr(
        reranker._engine, "run", lambda *arrays: (rows.append(len(arrays[0])), run(*arrays))[1]
    )
    logits = reranker.score([("cat", "dog"), ("cat", "bird"), ("cat", "dog")] * 5)
    assert sum(rows) == 2
    assert len(set(logits.tolist())) == 2
    assert logits.tolist() == logits.tolist()[:3] * 5


def test_no_pairs_give_no_scores():
    assert one_label().score([]).shape == (0,)
    several = model("sbert_modular_cross_encoder")
    assert several.score([]).shape == ((0,) if len(several.labels) == 1 else (0, len(several.labels)))


def test_many_threads_agree():
    reranker = CrossEncoder(GOLDEN / "bert", threads=1, cache=ScoreCache())
    pairs = [(WORDS[i % 7], " ".join(WORDS[: i % 19])) for i in range(150)]
    expected = one_label().score(pairs)
    results = []
    threads = [threading.Thread(target=lambda: results.append(reranker.score(pairs))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 6
    for result in results:
        np.testing.assert_allclose(result, expected, rtol=0, atol=TOLERANCE)


# --- rankings -------------------------------------------------------------------------------------------


def test_ranking_is_by_score_and_ties_keep_their_order():
    documents = ["old city", "blue river", "old city", Document("d", "river", title="blue"), ""]
    reranker = one_label()
    ranking = reranker.rank("blue", documents)
    expected = reranker.score(
        [("blue", text) for text in ["old city", "blue river", "old city", "blue river", ""]]
    )
    assert scores_of(ranking).tolist() == expected.tolist()
    assert list(ranking.scores) == sorted(ranking.scores, reverse=True)
    assert [hit.rank for hit in ranking] == [1, 2, 3, 4, 5]
    ids = ranking.document_ids
    assert sorted(ids) == ["0", "1", "2", "4", "d"]
    assert ids.index("0") < ids.index("2")
    assert ids.index("1") < ids.index("d")
    by_id = {hit.document_id: hit for hit in ranking}
    assert (by_id["d"].document, by_id["d"].index) == (documents[3], 3)
    assert (by_id["0"].document, by_id["0"].stage, by_id["0"].span) == (None, "bert", None)
    assert reranker.rank("blue", documents, top_k=2).hits == ranking.hits[:2]


def test_rank_many_is_many_ranks():
    queries = ["blue river", "old city"]
    documents = [["river", "city", "water"], [], ["city", "light"]]
    reranker = one_label()
    together = reranker.rank_many([*queries, "river"], [documents[0], documents[1], documents[2]], top_k=2)
    assert [ranking.query for ranking in together] == [*queries, "river"]
    assert [len(ranking) for ranking in together] == [2, 0, 2]
    for ranking, candidates in zip(together, documents, strict=True):
        alone = reranker.rank(ranking.query, candidates, top_k=2)
        assert ranking.document_ids == alone.document_ids
        np.testing.assert_allclose(ranking.scores, alone.scores, rtol=0, atol=TOLERANCE)
    assert reranker.rank_many([], []) == []


def test_blocks_do_not_show(monkeypatch):
    documents = [" ".join(WORDS[: i % 15]) for i in range(100)]
    documents = [f"{text} {i % 30}" for i, text in enumerate(documents)]
    expected = one_label().rank("blue cat", documents)
    monkeypatch.setattr(pair_scorer, "_BLOCK_PAIRS", 7)
    monkeypatch.setattr(pair_scorer, "_BLOCK_CHARACTERS", 200)
    ranking = one_label().rank("blue cat", documents)
    np.testing.assert_allclose(scores_of(ranking), scores_of(expected), rtol=0, atol=TOLERANCE)


def test_it_is_a_reranker():
    assert isinstance(one_label(), Reranker)
    assert repr(one_label()) == "CrossEncoder('bert', precision='float32', max_length=96)"


def test_models_with_several_labels_rank_by_a_chosen_one(several_labels):
    several = CrossEncoder(several_labels, threads=1)
    assert several.labels == ("contradiction", "entailment", "neutral")
    documents = ["old river", "new city", "light"]
    with pytest.raises(InputError, match="label= the one to rank by"):
        several.rank("blue", documents)
    logits = several.score([("blue", text) for text in documents])
    for label in ("entailment", 1):
        ranking = CrossEncoder(several_labels, threads=1, label=label).rank("blue", documents)
        np.testing.assert_allclose(scores_of(ranking), logits[:, 1], rtol=0, atol=TOLERANCE)
    with pytest.raises(InputError, match="no label 'relevant'; its labels are contradiction"):
        CrossEncoder(several_labels, label="relevant")


@pytest.fixture(scope="module")
def several_labels(tmp_path_factory):
    """A golden checkpoint with a head of three labels."""
    from safetensors.numpy import load_file, save_file

    source, folder = GOLDEN / "bert", tmp_path_factory.mktemp("nli")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_bytes((source / file).read_bytes())
    config = json.loads((source / "config.json").read_text())
    config["id2label"] = {"0": "contradiction", "1": "entailment", "2": "neutral"}
    config["label2id"] = {"contradiction": 0, "entailment": 1, "neutral": 2}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(source / "model.safetensors")
    generator = np.random.default_rng(0)
    tensors["classifier.weight"] = generator.normal(size=(3, 32)).astype(np.float32)
    tensors["classifier.bias"] = generator.normal(size=3).astype(np.float32)
    save_file(tensors, folder / "model.safetensors")
    return folder


# --- activation -----------------------------------------------------------------------------------------


def test_activations(several_labels):
    logits = np.array([-1000, -2, 0, 40, 41], dtype=np.float32)
    assert model(activation="identity").activate(logits) is logits
    sigmoid = model(activation="sigmoid").activate(logits)
    assert sigmoid.dtype == np.float64
    np.testing.assert_allclose(sigmoid[:3], [0, 1 / (1 + np.exp(2)), 0.5], rtol=1e-12)
    assert model(activation="sigmoid").activate(np.float32([20, 21]))[0] < 1
    softmax = CrossEncoder(several_labels, activation="softmax", threads=1)
    probabilities = softmax.activate(np.array([[1, 2, 3], [1000, 0, 0]], dtype=np.float32))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    np.testing.assert_allclose(probabilities[0, 0], np.exp(1) / (np.exp(1) + np.exp(2) + np.exp(3)))
    with pytest.raises(InputError, match="single label"):
        CrossEncoder(GOLDEN / "bert", activation="softmax")
    with pytest.raises(InputError, match="choose one of identity"):
        CrossEncoder(GOLDEN / "bert", activation="tanh")


def test_the_configs_activation_is_the_default():
    for name in CLASSIFIERS:
        stated = Checkpoint.open(GOLDEN / name).activation
        assert model(name).activation == (stated or "identity")


# --- truncation -----------------------------------------------------------------------------------------


def test_documents_are_cut_and_queries_never():
    query, document = "blue river", " ".join(WORDS * 6)
    reranker = model(max_length=40)
    room = 40 - 3 - tokens(query)
    hit = reranker.rank(query, [document])[0]
    assert hit.truncated_tokens == tokens(document) - room > 0
    assert hit.span is None
    # The words that fit exactly, and nothing of the others, decide the score.
    kept = document
    while tokens(kept) > room:
        kept = kept.rsplit(" ", 1)[0]
    if tokens(kept) == room:
        np.testing.assert_allclose(reranker.score([(query, kept)])[0], hit.score, rtol=0, atol=TOLERANCE)
    assert reranker.rank(query, [kept])[0].truncated_tokens == 0


def test_long_queries():
    query = " ".join(["blue"] * 60)
    with pytest.raises(QueryTooLongError, match=r"query has \d+ tokens; of the 96 .* may take 48.*truncate"):
        one_label().rank(query, ["river"])
    with pytest.raises(QueryTooLongError, match=r"queries\[1\]"):
        one_label().rank_many(["cat", query], [["river"], ["river"]])
    cut = model(long_query="truncate").score([(query, "river")])
    same = model(max_query_length=90).score([(" ".join(["blue"] * 48), "river")])
    np.testing.assert_allclose(cut, same, rtol=0, atol=TOLERANCE)


def test_a_query_may_take_its_whole_share():
    reranker = model(max_length=9, max_query_length=5)
    scores = reranker.score([("the of and in cat", "dog bird river"), ("the of and in cat", "dog")])
    np.testing.assert_allclose(scores[0], scores[1], rtol=0, atol=TOLERANCE)  # one token is left


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 97}, "positions for 96"),
        ({"max_length": 4}, "need at least 5"),
        ({"max_length": 10, "max_query_length": 7}, "from 1 to 6"),
        ({"max_length": "x"}, "max_length must be a whole number"),
        ({"max_query_length": 0}, "max_query_length must be a whole number of at least 1"),
        ({"max_query_length": 95}, "from 1 to 92"),
        ({"long_query": "cut"}, "long_query"),
        ({"long_documents": "mean"}, "long_documents"),
        ({"window_tokens": 0}, "window_tokens must be"),
        ({"window_tokens": 20}, "window_tokens has no effect with long_documents='truncate'"),
        ({"window_tokens": 93, "long_documents": "max"}, "window_tokens is 93; .* at most 92 tokens"),
        ({"top_windows": 0}, "top_windows must be"),
        ({"top_windows": 2, "long_documents": "max"}, "top_windows has no effect"),
        ({"window_overlap": 1.0}, "window_overlap is 1.0"),
        ({"window_overlap": "x"}, "window_overlap must be a number"),
        ({"window_overlap": 0.5, "long_documents": "first"}, "window_overlap has no effect"),
        ({"token_budget": 0}, "token_budget must be"),
        ({"token_budget": 2.5}, "token_budget must be"),
        ({"threads": -1}, "threads must be"),
        ({"precision": "fp16"}, "precision is 'fp16'; choose one of auto, float32, int8"),
        ({"source": "torch"}, "source is 'torch'; choose one of auto, weights, onnx"),
        ({"cache": "x.db"}, r"cache must be a ScoreCache, not str: ScoreCache\(path\)"),
        ({"prompt": 5}, "prompt must be a string, not int"),
        ({"prompt": "a\ud800"}, "prompt has a lone surrogate"),
        ({"prompt": "blue " * 48}, "the prompt has 48 tokens, .* max_query_length=48"),
        ({"label": True}, "no label True"),
        ({"revision": "main"}, "revision is 'main', but .* is on this machine"),
    ],
)
def test_settings_that_do_not_fit(options, message):
    with pytest.raises(InputError, match=message):
        CrossEncoder(GOLDEN / "bert", **options)


def test_the_folders_own_onnx_file_where_asked_for(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN / "bert", folder)
    with pytest.raises(CheckpointError, match="no ONNX file"):
        CrossEncoder(folder, source="onnx")
    shutil.copytree(GOLDEN / "bert_onnx" / "onnx", folder / "onnx")
    exported = CrossEncoder(folder, source="onnx", threads=1)
    assert exported.fingerprint != CrossEncoder(folder, threads=1).fingerprint
    pairs = [("blue", "old river"), ("where is the cat", "a dog")]
    np.testing.assert_allclose(exported.score(pairs), one_label().score(pairs), rtol=0, atol=TOLERANCE)


# --- windows --------------------------------------------------------------------------------------------

LONG = " ".join(f"{WORDS[i % 19]} {WORDS[(i * 7 + i // 19) % 19]}" for i in range(80))


def window_scores(query, size):
    """Scores and spans of the windows of LONG, scored one by one as documents of their own."""
    encoded = Tokenizer(Checkpoint.open(GOLDEN / "bert")).encode([LONG], offsets=True)[0]
    assert len(encoded.ids) == 160 == len(LONG.split())  # a token for each word
    stride = size - size // 4
    starts = [*range(0, 160 - size, stride), 160 - size]
    spans = [(int(encoded.offsets[s, 0]), int(encoded.offsets[s + size - 1, 1])) for s in starts]
    return one_label().score([(query, LONG[start:end]) for start, end in spans]), spans


def test_max_of_windows_with_the_winners_span():
    query = "blue river"
    expected, spans = window_scores(query, 96 - 3 - 2)
    hit = model(long_documents="max").rank(query, ["short", LONG])
    long = next(one for one in hit if one.index == 1)
    np.testing.assert_allclose(long.score, expected.max(), rtol=0, atol=TOLERANCE)
    assert long.span == spans[int(expected.argmax())]
    assert long.truncated_tokens == 0
    short = next(one for one in hit if one.index == 0)
    assert (short.span, short.truncated_tokens) == (None, 0)


def test_windows_of_another_size():
    query = "old city"
    expected, spans = window_scores(query, 20)
    assert len(spans) > 5
    long = model(long_documents="max", window_tokens=20).rank(query, [LONG])[0]
    np.testing.assert_allclose(long.score, expected.max(), rtol=0, atol=TOLERANCE)
    assert long.span == spans[int(expected.argmax())]
    mean = model(long_documents="mean_top_k", window_tokens=20).rank(query, [LONG])[0]
    np.testing.assert_allclose(mean.score, np.sort(expected)[-3:].mean(), rtol=0, atol=TOLERANCE)
    assert mean.span == long.span
    first = model(long_documents="first", window_tokens=20).rank(query, [LONG])[0]
    np.testing.assert_allclose(first.score, expected[0], rtol=0, atol=TOLERANCE)
    assert (first.span, first.truncated_tokens) == (spans[0], 140)


def test_spans_count_code_points():
    document = "🙂 é " + LONG
    long = model(long_documents="max", window_tokens=20).rank("old city", [document])[0]
    window = document[slice(*long.span)]
    assert window == window.strip()
    assert tokens(window) == 20
    np.testing.assert_allclose(
        one_label().score([("old city", window)])[0], long.score, rtol=0, atol=TOLERANCE
    )


# --- prompts --------------------------------------------------------------------------------------------


def test_the_models_default_prompt_is_put_before_queries(tmp_path):
    for file in (GOLDEN / "bert").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    content = {"prompts": {"query": "what is "}, "default_prompt_name": "query"}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(content))
    plain = one_label().score([("what is blue", "river"), ("blue", "river")])
    prompted = CrossEncoder(tmp_path, threads=1)
    np.testing.assert_allclose(prompted.score([("blue", "river")]), plain[:1], rtol=0, atol=TOLERANCE)
    without = CrossEncoder(tmp_path, threads=1, prompt="")
    np.testing.assert_allclose(without.score([("blue", "river")]), plain[1:], rtol=0, atol=TOLERANCE)
    assert prompted.rank("blue", ["river"]).query == "blue"


# --- bad input ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["", "  \n"])
def test_empty_queries(query):
    with pytest.raises(InputError, match="query is empty"):
        one_label().rank(query, ["river"])
    with pytest.raises(InputError, match=r"the query of pairs\[1\] is empty"):
        one_label().score([("a", "b"), (query, "river")])


@pytest.mark.parametrize("query", ["\x00", "\u200b", "\ufeff", "\u00ad", " \u200b\n"])
@pytest.mark.parametrize("prompt", ["", "what is "])
def test_queries_without_tokens(query, prompt):
    reranker = model(prompt=prompt)
    with pytest.raises(InputError, match=r"query has no tokens.*nothing to be relevant to"):
        reranker.rank(query, ["river"])
    with pytest.raises(InputError, match=r"queries\[1\] has no tokens"):
        reranker.rank_many(["blue", query], [["river"], ["river"]])
    with pytest.raises(InputError, match=r"the query of pairs\[0\] has no tokens"):
        reranker.score([(query, "river")])


def test_empty_and_strange_documents_are_scored(caplog):
    documents = ["", " ", "a\0b", "\u200b", "🙂", "x" * 5000, "река"]
    with caplog.at_level(logging.WARNING, "crossrank"):
        ranking = one_label().rank("blue", documents)
    assert [record.getMessage() for record in caplog.records] == [
        "2 of 7 documents are empty; their scores mean nothing"
    ]
    assert len(ranking) == 7
    assert np.isfinite(ranking.scores).all()
    caplog.clear()
    assert one_label().rank("blue", []).hits == ()
    one_label().rank_many(["blue", "old"], [["river"], [Document("a", "", title="city")]])
    assert not caplog.records


@contextmanager
def little_more_memory() -> Iterator[None]:
    """Fail where the peak of this process rises by 80 MB, on systems that tell it."""
    before = peak_mb(reset=True)
    yield
    after = peak_mb()
    if before is not None and after is not None:
        assert after - before < 80


def test_a_hundred_thousand_documents():
    documents = [" ".join(WORDS[i // 19**place % 19] for place in range(4)) for i in range(100_000)]
    assert len(set(documents)) == 100_000
    reranker = model(token_budget=16_384)
    reranker.rank("blue", documents[:1000])
    with little_more_memory():
        ranking = reranker.rank("blue", documents, top_k=5)
    assert len(ranking) == 5
    alone = one_label().score([("blue", documents[hit.index]) for hit in ranking])
    np.testing.assert_allclose(ranking.scores, alone, rtol=0, atol=TOLERANCE)


def test_a_document_of_two_megabytes():
    document = "the river of the old city and the mountain " * 48_000  # 432,000 tokens
    reranker = one_label()
    reranker.rank("blue", ["cat"])
    with little_more_memory():
        hit = reranker.rank("blue", ["cat", document])
    long = next(one for one in hit if one.index == 1)
    assert long.truncated_tokens == 432_000 - (96 - 3 - 1)
    start = " ".join(document.split()[:92])
    np.testing.assert_allclose(one_label().score([("blue", start)])[0], long.score, rtol=0, atol=TOLERANCE)
    windowed = model(long_documents="max", token_budget=16_384).rank("blue", [document[:100_000]])[0]
    assert tokens(document[slice(*windowed.span)]) == 92


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.rank(3, ["a"]), "query must be a string, not int"),
        (lambda m: m.rank("q", ["a", None]), r"documents\[1\] must be a string, not NoneType"),
        (lambda m: m.rank("q", ["a", "\ud800"]), r"documents\[1\] has a lone surrogate"),
        (lambda m: m.rank("q\ud800", ["a"]), "query has a lone surrogate"),
        (lambda m: m.rank("q", "text"), "documents must be a list, not a single str"),
        (lambda m: m.rank("q", {"a", "b"}), "documents must be a list, not set"),
        (lambda m: m.rank("q", ["a"], top_k=0), "top_k must be a whole number of at least 1, not 0"),
        (lambda m: m.rank("q", ["a"], top_k=2.5), "top_k must be a whole number"),
        (lambda m: m.rank("q", ["a"], top_k="2"), "top_k must be a whole number"),
        (lambda m: m.rank("q", ["a"], top_k=True), "top_k must be a whole number"),
        (lambda m: m.rank_many(["q", "r"], [["a"]]), "got 2 and 1"),
        (lambda m: m.rank_many("q", [["a"]]), "queries must be a list, not a single str"),
        (lambda m: m.rank_many(None, [["a"]]), "queries must be a list, not NoneType"),
        (lambda m: m.rank_many({"q"}, [["a"]]), "queries must be a list, not set"),
        (lambda m: m.rank_many(["q"], 5), "documents must be a list, not int"),
        (lambda m: m.rank_many(["q"], [None]), r"documents\[0\] must be a list, not NoneType"),
        (lambda m: m.rank_many(["q", "r"], [["a"], ["b", b"c"]]), r"documents\[1\]\[1\] must be"),
        (lambda m: m.score([("a", "b"), "cd"]), r"pairs\[1\] must be a \(query, document\) pair, not str"),
        (lambda m: m.score([("a", "b", "c")]), r"pairs\[0\] .* tuple of 3"),
        (lambda m: m.score([("a", 5)]), r"the document of pairs\[0\] must be a string"),
        (lambda m: m.score("ab"), "pairs must be a list"),
    ],
)
def test_what_is_no_text_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call(one_label())


def test_generators_are_lists():
    lists = [["river", "city"], ["cat"]]
    together = one_label().rank_many((query for query in ["blue", "old"]), (iter(texts) for texts in lists))
    assert together == one_label().rank_many(["blue", "old"], lists)


def test_nothing_of_the_callers_changes():
    documents = ["river", Document("a", "blue", metadata={"x": 1}), "city"]
    pairs = [["blue", "river"], Pair("old", "city")]
    before = ([*documents], [list(pair) for pair in pairs])
    one_label().rank("blue", documents)
    one_label().score(pairs)
    assert ([*documents], [list(pair) for pair in pairs]) == before


def test_nan_names_the_pair(monkeypatch):
    cache = ScoreCache()
    reranker = CrossEncoder(GOLDEN / "bert", threads=1, cache=cache)
    run = reranker._engine.run

    def broken(ids, mask, types):
        logits = run(ids, mask, types)
        logits[mask.sum(axis=1) == 3 + 1 + 3] = np.nan  # the pair with a document of three tokens
        return logits

    monkeypatch.setattr(reranker._engine, "run", broken)
    with pytest.raises(
        ModelOutputError, match=r"gave NaN or infinity for documents\[1\] \(query 'blue', document 'the"
    ):
        reranker.rank("blue", ["the old", "the old city", "the old city"])
    monkeypatch.setattr(reranker._engine, "run", run)
    assert np.isfinite(reranker.score([("blue", "the old city")])).all()  # nothing bad was kept


def test_no_such_model(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match="no folder"):
        CrossEncoder(tmp_path / "nothing")


# --- cache ----------------------------------------------------------------------------------------------


def test_a_cache_gives_the_same_hits(tmp_path):
    documents = ["river", LONG, "", "old city", "river"]
    plain = model(long_documents="max").rank("blue", documents)
    path = tmp_path / "scores.sqlite"
    with ScoreCache(path) as scores:
        first = CrossEncoder(GOLDEN / "bert", threads=1, long_documents="max", cache=scores)
        assert first.rank("blue", documents).hits == plain.hits
        assert (scores.misses, scores.hits) == (4, 0)
    with ScoreCache(path) as scores:
        again = CrossEncoder(GOLDEN / "bert", threads=1, long_documents="max", cache=scores)
        assert again.rank("blue", documents).hits == plain.hits  # spans and truncation too
        assert (scores.misses, scores.hits) == (0, 4)


def test_every_setting_that_decides_a_score_changes_the_fingerprint(several_labels):
    options = [
        {},
        {"max_length": 50},
        {"max_query_length": 10},
        {"long_query": "truncate"},
        {"long_documents": "max"},
        {"long_documents": "max", "window_tokens": 20},
        {"long_documents": "max", "window_overlap": 0.5},
        {"long_documents": "mean_top_k", "top_windows": 2},
        {"long_documents": "mean_top_k"},
        {"prompt": "what is "},
    ]
    fingerprints = [CrossEncoder(GOLDEN / "bert", threads=1, **option).fingerprint for option in options]
    fingerprints += [model("electra").fingerprint, CrossEncoder(several_labels, threads=1).fingerprint]
    assert len(set(fingerprints)) == len(options) + 2
    same = CrossEncoder(
        GOLDEN / "bert", threads=2, token_budget=64, cache=ScoreCache(), max_length=np.int64(96)
    )
    assert same.fingerprint == fingerprints[0]  # what decides only speed is not part of it
