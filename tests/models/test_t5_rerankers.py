"""MonoT5 and RankT5: reference scores, cuts, batches, what the folder says, options, torch."""

import importlib.util
import json
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossrank.cache import ScoreCache
from crossrank.errors import CheckpointError, InputError, QueryTooLongError
from crossrank.models.declaration import read_declaration, write_declaration
from crossrank.models.duo_t5 import DuoT5
from crossrank.models.mono_t5 import MonoT5
from crossrank.models.rank_t5 import RankT5
from crossrank.models.reranker import Reranker
from crossrank.models.t5_families import FAMILIES, MONO_PROMPT, PUBLISHED
from crossrank.models.t5_opening import find_family
from crossrank.runtime import backends
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.encoders.t5 import TokenScore
from crossrank.runtime.int8 import INT8_FILE, write_parity
from crossrank.runtime.prompts import PromptTokenizer
from crossrank.runtime.quantization import calibrate, write_int8
from crossrank.runtime.tokenization import Tokenizer
from crossrank.types import Document

GOLDEN = Path(__file__).parent.parent / "golden_t5"
NAMES = ("t5", "t5_v1_1", "mt5")
TOLERANCE = 1e-5
QUERY = "what is the water"
LONG = "the water of the old river in the mountain is blue " * 60
TEXTS = st.lists(st.sampled_from(["the", "river", "cat", "old", "7", "+", "x?", "(y)"]), max_size=20).map(
    " ".join
)


@cache
def mono(name="t5", **options):
    return MonoT5(GOLDEN / name, **{"threads": 1, "family": "t5", **options})


@cache
def rank(name="t5", **options):
    return RankT5(GOLDEN / name, **{"threads": 1, **options})


def golden(name, kind):
    rows = json.loads((GOLDEN / name / "expected.json").read_text(encoding="utf-8"))["rows"]
    with np.load(GOLDEN / name / "expected.npz") as arrays:
        logits = arrays["logits"]
    chosen = [i for i, row in enumerate(rows) if row["kind"] == kind]
    return [tuple(rows[i]["texts"]) for i in chosen], logits[chosen]


def id_of(name, token):
    return Tokenizer(Checkpoint.open(GOLDEN / name)).token_id(token)


@pytest.fixture
def copy(tmp_path):
    def make(name, declaration=None, card=None, **changes):
        folder = tmp_path / name
        shutil.copytree(GOLDEN / name, folder)
        if declaration is not None:
            (folder / "crossrank.json").write_text(json.dumps(declaration), encoding="utf-8")
        if card is not None:
            (folder / "README.md").write_text(card, encoding="utf-8")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")
        return folder

    return make


# --- scores ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_mono_scores_are_log_probabilities_of_true(name):
    pairs, logits = golden(name, "mono")
    false, true = (logits[:, id_of(name, token)].astype(np.float64) for token in ("▁false", "▁true"))
    scores = mono(name).score(pairs)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, true - np.logaddexp(false, true), rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(
        mono(name).activate(scores), np.exp(true) / (np.exp(false) + np.exp(true)), rtol=1e-5
    )


@pytest.mark.parametrize("name", NAMES)
def test_rank_scores_are_logits_of_a_sentinel(name):
    pairs, logits = golden(name, "rank")
    wanted = logits[:, id_of(name, "<extra_id_10>")]
    np.testing.assert_allclose(rank(name).score(pairs), wanted, rtol=0, atol=TOLERANCE)
    other = rank(name, token="<extra_id_3>").score(pairs)
    np.testing.assert_allclose(other, logits[:, id_of(name, "<extra_id_3>")], rtol=0, atol=TOLERANCE)


def test_rank_scores_of_an_encoder_are_its_dense_layers():
    pairs, scores = golden("t5_encoder", "rank")
    np.testing.assert_allclose(rank("t5_encoder").score(pairs), scores, rtol=0, atol=TOLERANCE)
    assert rank("t5_encoder").token_id is None


@pytest.mark.parametrize("open_model", [mono, rank, lambda **o: rank("t5_encoder", **o)])
def test_they_rank_as_other_rerankers_do(open_model):
    model = open_model()
    assert isinstance(model, Reranker)
    documents = [Document("a", "the cat", title="old"), Document("b", "the river"), Document("c", "")]
    ranking = model.rank(QUERY, documents)
    scores = model.score([(QUERY, document.full_text) for document in documents])
    assert [hit.index for hit in ranking] == np.argsort(-scores, kind="stable").tolist()
    assert {hit.stage for hit in ranking} == {model.name}
    assert type(model).__name__ in repr(model)


@given(
    pairs=st.lists(st.tuples(TEXTS.filter(str.strip), TEXTS), min_size=1, max_size=16),
    order=st.randoms(use_true_random=False),
    budget=st.sampled_from([1, 64, 4096]),
)
@settings(max_examples=15, deadline=None)
def test_a_score_depends_on_the_pair_alone(pairs, order, budget):
    alone = np.concatenate([mono("t5_v1_1").score([pair]) for pair in pairs])
    shuffled = list(range(len(pairs))) * 2
    order.shuffle(shuffled)
    together = mono("t5_v1_1", token_budget=budget, threads=2).score([pairs[i] for i in shuffled])
    np.testing.assert_allclose(together, alone[shuffled], rtol=0, atol=TOLERANCE)


# --- cuts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("open_model", "end"), [(mono, "Relevant:"), (rank, "")])
def test_only_the_document_is_cut(open_model, end, monkeypatch):
    model = open_model(max_length=40)
    seen = []
    run = model._engine.run
    monkeypatch.setattr(model._engine, "run", lambda ids, *rest: (seen.append(ids), run(ids, *rest))[1])
    hit = model.rank(QUERY, [LONG])[0]
    ids = [each for each in seen[0][0].tolist() if each != 0]
    tokenizer = model._scorer._tokenizer
    parts = [tokens.ids.tolist() for tokens in tokenizer.encode(["Query:", QUERY, "Document:", LONG, end])]
    kept = 40 - 1 - sum(map(len, parts)) + len(parts[3])
    assert ids == [*parts[0], *parts[1], *parts[2], *parts[3][:kept], *parts[4], 1]
    assert len(ids) == 40
    assert hit.truncated_tokens == len(parts[3]) - kept
    short = model.rank(QUERY, ["the river"])[0]
    assert short.truncated_tokens == 0


def test_a_cut_document_scores_as_what_is_left_of_it():
    model = mono(max_length=64)
    words = LONG.split()
    hit = model.rank(QUERY, [LONG])[0]
    encode = model._scorer._tokenizer.encode
    size = len(encode([LONG])[0].ids) - hit.truncated_tokens
    whole_words = next(
        n for n in range(len(words), 0, -1) if len(encode([" ".join(words[:n])])[0].ids) <= size
    )
    ids = [len(encode([" ".join(words[:n])])[0].ids) for n in range(1, whole_words + 1)]
    if ids[-1] == size:  # the cut falls between two words
        assert model.score([(QUERY, " ".join(words[:whole_words]))])[0] == pytest.approx(hit.score, abs=1e-6)
    windows = mono(max_length=64, long_documents="max").rank(QUERY, [LONG])[0]
    assert windows.score >= hit.score
    assert windows.span is not None


def test_a_query_that_is_too_long_is_an_error():
    model = mono(max_length=40)
    with pytest.raises(QueryTooLongError, match="max_query_length"):
        model.rank("river " * 40, ["the cat"])
    assert len(mono(max_length=40, long_query="truncate").rank("river " * 40, ["the cat"])) == 1


def test_the_prompt_must_leave_room():
    with pytest.raises(InputError, match="max_length is 10"):
        mono(max_length=10)


# --- tokens and prompts ---------------------------------------------------------------------------------


def test_tokens_are_those_asked_for_declared_or_of_the_family(copy):
    assert mono("t5").token_ids == (id_of("t5", "▁false"), id_of("t5", "▁true"))
    assert MonoT5(GOLDEN / "mt5").token_ids == (id_of("mt5", "▁no"), id_of("mt5", "▁yes"))
    assert mono("t5", family="ptt5").token_ids == (id_of("t5", "▁não"), id_of("t5", "▁sim"))
    assert mono("t5", family="mt5-true").token_ids == (id_of("t5", "▁"), id_of("t5", "▁true"))
    assert mono("t5", tokens=(5, "▁sim")).token_ids == (5, id_of("t5", "▁sim"))
    declared = copy("t5", {"kind": "mono_t5", "tokens": ["▁Não", "▁Sim"]})
    assert MonoT5(declared).token_ids == (id_of("t5", "▁Não"), id_of("t5", "▁Sim"))
    assert MonoT5(declared, tokens=("▁no", "▁yes")).token_ids == (id_of("t5", "▁no"), id_of("t5", "▁yes"))


def test_a_card_may_say_it_too(copy):
    card = "---\nlicense: mit\ncrossrank:\n  kind: mono_t5\n  tokens: ['▁no', '▁yes']\n---\n# A model\n"
    model = MonoT5(copy("t5", card=card))
    assert model.token_ids == (id_of("t5", "▁no"), id_of("t5", "▁yes"))
    assert model.prompt == MONO_PROMPT


def test_the_file_comes_before_the_card(copy):
    folder = copy("t5", {"kind": "rank_t5"}, card="---\ncrossrank:\n  kind: mono_t5\n---\n")
    assert read_declaration(folder).kind == "rank_t5"


def test_prompts_are_those_asked_for_declared_or_of_the_family(copy):
    portuguese = FAMILIES["monoptt5"].prompt
    assert mono("t5").prompt == MONO_PROMPT
    assert mono("t5", family="monoptt5").prompt == portuguese
    own = "{query} Document: {document} true"
    assert MonoT5(copy("t5", {"prompt": own})).prompt == own
    asked = mono("t5", prompt=own)
    pair = (QUERY, "the river")
    assert asked.score([pair])[0] != mono("t5").score([pair])[0]
    tokenizer = PromptTokenizer(Checkpoint.open(GOLDEN / "t5"), own, ("query", "document"))
    expected = tokenizer._tokenizer.encode("what is the water Document: the river true").ids
    ids = tokenizer.pair_inputs([tuple(t.ids for t in tokenizer.encode(pair))], len(expected)).input_ids
    assert ids[0].tolist() == expected


def test_what_was_declared_can_be_read(tmp_path):
    write_declaration(tmp_path, "mono_t5", {"tokens": ["▁não", "▁sim"]})
    found = read_declaration(tmp_path)
    assert (found.kind, found.settings["tokens"]) == ("mono_t5", ["▁não", "▁sim"])


def test_published_models_are_known_by_their_full_names_alone():
    checkpoint = Checkpoint.open(GOLDEN / "mt5")
    name = "unicamp-dl/mt5-13b-mmarco-100k"
    assert find_family(name, checkpoint, None).tokens == ("▁", "▁true")
    assert find_family(f"{name}-mine", checkpoint, None).tokens == ("▁no", "▁yes")
    assert find_family("unicamp-dl/monoptt5-base", Checkpoint.open(GOLDEN / "t5"), None).prompt.startswith(
        "Perg"
    )
    assert {family for _, family in PUBLISHED.values()} == set(FAMILIES)


@pytest.mark.parametrize(
    ("declaration", "message"),
    [
        ({"kind": "duo_t5"}, "of the kind 'duo_t5', not 'mono_t5'"),
        ({"tokens": ["▁false"]}, "must be the two tokens"),
        ({"tokens": "▁false"}, "must be the two tokens"),
        ({"tokens": ["▁false", "▁nonsense"]}, "'▁nonsense' is no token"),
        ({"tokens": [True, 3]}, "True is no token"),
        ({"tokens": [3, 3]}, "must differ"),
        ({"prompt": 3}, "prompt is 3"),
        ({"kind": 3}, "kind is 3"),
    ],
)
def test_a_declaration_that_cannot_be_is_an_error(copy, declaration, message):
    with pytest.raises(CheckpointError, match=message):
        MonoT5(copy("t5", declaration))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"family": "t6"}, "family is 't6'; choose one of t5, mt5"),
        ({"tokens": ("▁false",)}, "must be the two tokens"),
        ({"tokens": ("▁false", "nonsense")}, "'nonsense' is no token"),
        ({"tokens": (3, 100_000)}, "100000 is no token"),
        ({"prompt": "Query: {query}"}, "must have"),
        ({"token_budget": 0}, "token_budget"),
    ],
)
def test_options_that_cannot_be_are_errors(options, message):
    with pytest.raises(InputError, match=message):
        MonoT5(GOLDEN / "t5", **options)


def test_a_vocabulary_without_the_familys_tokens_says_what_to_give(copy):
    folder = copy("t5")
    path = folder / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"▁true"', '"▁tru"'), encoding="utf-8")
    with pytest.raises(
        CheckpointError, match=r"give tokens=\(false, true\), or family= one of: t5 ▁false ▁true"
    ):
        MonoT5(folder)


def test_rank_reads_its_token_from_the_folder(copy):
    assert RankT5(copy("t5", {"token": "<extra_id_3>"})).token_id == id_of("t5", "<extra_id_3>")
    with pytest.raises(InputError, match="no token"):
        rank(token="<extra_id_99>")
    with pytest.raises(InputError, match="token has no effect"):
        rank("t5_encoder", token=3)
    for options in ({"backend": "torch"}, {"precision": "bf16"}, {"device": "cpu"}, {"backend": "jax"}):
        with pytest.raises(InputError, match="runs on backend='onnx'"):
            rank("t5_encoder", **options)


@pytest.mark.parametrize("model_class", [MonoT5, RankT5])
def test_no_t5_is_refused(model_class):
    with pytest.raises(CheckpointError, match="is no T5 but bert"):
        model_class(GOLDEN.parent / "golden" / "bert")


def test_an_encoder_is_no_mono():
    with pytest.raises(CheckpointError, match="of the kind 'rank_t5', not 'mono_t5'"):
        MonoT5(GOLDEN / "t5_encoder")


# --- fingerprints, caches, precisions -------------------------------------------------------------------


def test_whatever_changes_a_score_changes_the_fingerprint():
    models = [
        mono("t5"),
        mono("t5_v1_1"),
        mono("t5", tokens=("▁no", "▁yes")),
        mono("t5", tokens=("▁true", "▁false")),
        mono("t5", prompt="{query} Document: {document} true"),
        mono("t5", max_length=100),
        rank("t5"),
        rank("t5", token="<extra_id_3>"),
        rank("t5", prompt="{query} {document}"),
        rank("t5_encoder"),
        rank("t5_encoder", prompt="{query} {document}"),
    ]
    assert len({model.fingerprint for model in models}) == len(models)
    assert mono("t5", threads=2).fingerprint == mono("t5").fingerprint


def test_a_cache_saves_the_work(tmp_path):
    with ScoreCache(tmp_path / "scores.cache") as cache_:
        first = MonoT5(GOLDEN / "t5", cache=cache_).rank(QUERY, ["the cat", "the river"])
        assert cache_.misses == 2
        assert MonoT5(GOLDEN / "t5", cache=cache_).rank(QUERY, ["the cat", "the river"]) == first
        assert cache_.misses == 2


@pytest.mark.parametrize("name", NAMES)
def test_torch_gives_the_same_scores(name):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    pairs, _ = golden(name, "mono")
    wanted = mono(name).score(pairs)
    same = MonoT5(GOLDEN / name, family="t5", backend="torch", device="cpu")
    assert same.precision == "float32"
    np.testing.assert_allclose(same.score(pairs), wanted, rtol=0, atol=TOLERANCE)
    short = MonoT5(GOLDEN / name, family="t5", backend="torch", precision="bf16", device="cpu")
    assert short.precision == "bf16"
    assert len({model.fingerprint for model in (mono(name), same, short)}) == 3
    scores = short.score(pairs)
    np.testing.assert_allclose(scores, wanted, rtol=0, atol=0.1 * np.abs(wanted).max() + 0.02)
    alone = np.concatenate([short.score([pair]) for pair in pairs])
    np.testing.assert_allclose(scores, alone, rtol=0, atol=2e-2)
    ranked = RankT5(GOLDEN / name, backend="torch", device="cpu").score(pairs)
    np.testing.assert_allclose(ranked, rank(name).score(pairs), rtol=0, atol=TOLERANCE)


def test_auto_takes_torch_where_that_is_asked_for_or_there_is_a_gpu(monkeypatch, copy):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")

    def engine(model):
        return type(model._engine if isinstance(model, DuoT5) else model._scorer._engine).__name__

    folder = GOLDEN / "t5_v1_1"
    kinds = [(MonoT5, {"family": "t5"}), (RankT5, {}), (DuoT5, {"family": "t5"})]
    for kind, options in kinds:
        assert engine(kind(folder, **options)) != "TorchT5Engine"  # no GPU here, or none is looked for
        for asked in ({"device": "cpu"}, {"precision": "bf16", "device": "cpu"}, {"backend": "torch"}):
            model = kind(folder, **asked, **options)
            assert engine(model) == "TorchT5Engine"
            assert model.precision == asked.get("precision", "float32")
    monkeypatch.setattr(backends, "_gpu_is_there", lambda: True)
    assert engine(MonoT5(folder, family="t5")) == "TorchT5Engine"
    assert engine(MonoT5(folder, family="t5", backend="onnx")) != "TorchT5Engine"
    assert engine(RankT5(GOLDEN / "t5_encoder")) != "TorchT5Engine"  # it has no torch form
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert engine(MonoT5(folder, family="t5")) != "TorchT5Engine"


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    """What is tested here does not depend on the machine."""
    monkeypatch.delenv(backends.BACKEND_VARIABLE, raising=False)
    monkeypatch.setattr(backends, "_gpu_is_there", lambda: False)


def test_an_int8_form_runs_and_a_batch_changes_nothing(copy):
    folder = copy("t5_v1_1")
    checkpoint = Checkpoint.open(folder)
    pairs, _ = golden("t5_v1_1", "mono")
    reference = mono("t5_v1_1")
    false, true = reference.token_ids
    tokenizer = PromptTokenizer(checkpoint, MONO_PROMPT, ("query", "document"))
    texts = [[tokens.ids for tokens in tokenizer.encode(pair)] for pair in pairs]
    inputs = [tokenizer.inputs([row], sum(map(len, row)) + tokenizer.num_special_tokens) for row in texts]
    layers = calibrate(checkpoint, TokenScore(true, against=false, log_probability=True), inputs, threads=1)
    assert {name.split(".")[0] for name in layers} == {"encoder"}
    write_int8(folder / INT8_FILE, checkpoint.tensors(), layers)
    with pytest.raises(CheckpointError, match="no int8 form that passed"):
        MonoT5(folder, family="t5", precision="int8")
    write_parity(folder, {"passed": True})
    model = MonoT5(folder, family="t5", threads=1)
    assert model.precision == "int8"
    assert model.fingerprint != reference.fingerprint
    scores = model.score(pairs)
    assert 0 < np.abs(scores - reference.score(pairs)).max() < np.inf  # how far is for the gate to say
    alone = np.concatenate([model.score([pair]) for pair in pairs])
    np.testing.assert_allclose(scores, alone, rtol=0, atol=TOLERANCE)


def test_a_device_that_is_not_there_is_an_error():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    with pytest.raises(InputError, match="device is 'nonsense'"):
        MonoT5(GOLDEN / "t5", backend="torch", device="nonsense")
