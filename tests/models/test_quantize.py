"""`quantize`: what is calibrated on and what is checked, what is written, and when nothing is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from crossrank.errors import CheckpointError, InputError, UnsupportedArchitectureError
from crossrank.models import quantize as quantize_module
from crossrank.models.bi_encoder import BiEncoder
from crossrank.models.cross_encoder import CrossEncoder
from crossrank.models.duo_t5 import DuoT5
from crossrank.models.late_interaction import LateInteraction
from crossrank.models.load import load
from crossrank.models.mono_t5 import MonoT5
from crossrank.models.quantize import (
    Candidates,
    as_candidates,
    calibration_inputs,
    in_hash_order,
    parity_figures,
    quantize,
)
from crossrank.models.t5_quantization import comparison_inputs, comparison_scores
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.int8 import INT8_FILE, PARITY_FILE
from crossrank.runtime.prompts import PromptTokenizer
from crossrank.runtime.quantization import LIMITS, Parity, compare, exceeded
from crossrank.runtime.tokenization import Tokenizer
from crossrank.types import Document

TESTS = Path(__file__).parents[1]
GOLDEN, GOLDEN_BI = TESTS / "golden", Path(__file__).parent / "golden_bi"
GOLDEN_T5 = TESTS / "golden_t5"
CROSS_ENCODERS = [
    *("bert_float16", "bert_sharded", "roberta", "distilbert", "electra", "deberta_v2", "modernbert"),
    "sbert_modular_cross_encoder",
]
BI_ENCODERS = [GOLDEN / "sbert_bi_encoder", GOLDEN_BI / "mean", GOLDEN_BI / "cls_dense"]
WORDS = ["the", "red", "fox", "runs", "over", "blue", "whale", "swims", "whales", ",", "wood", "animal"]


def texts(seed: int, count: int, longest: int) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(2, longest))) for _ in range(count)]


def pairs(num_queries: int = 60, depth: int = 6) -> list[tuple[str, str]]:
    queries = [f"{text} {number}" for number, text in enumerate(texts(1, num_queries, 6))]
    documents = iter(texts(2, num_queries * depth, 30))
    return [(query, next(documents)) for query in queries for _ in range(depth)]


@pytest.fixture
def wide_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights 32 wide average little out: what is written is tested here, not how near it is."""
    for name, limit in {"mean_delta_in_std": 1.0, "kendall_tau": -1.0, "delta_ndcg@10": 1.0}.items():
        monkeypatch.setitem(LIMITS, name, limit)  # type: ignore[arg-type]


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.usefixtures("wide_limits")
@pytest.mark.parametrize("name", CROSS_ENCODERS)
def test_a_cross_encoder_opens_in_int8_and_a_pairs_score_is_its_own(name: str, tmp_path: Path) -> None:
    report = quantize(GOLDEN / name, tmp_path / "int8", as_candidates(pairs()), progress=False)
    assert (report.kind, report.passed) == ("cross-encoder", True)
    model = CrossEncoder(tmp_path / "int8", threads=2)
    assert model.precision == "int8"
    some = pairs()[:40]
    together = model.score(some)
    np.testing.assert_array_equal(np.concatenate([model.score([pair]) for pair in some]), together)
    np.testing.assert_array_equal(model.score(some[::-1])[::-1], together)
    exact = CrossEncoder(tmp_path / "int8", precision="float32").score(some)
    np.testing.assert_array_equal(exact, CrossEncoder(GOLDEN / name, precision="float32").score(some))
    assert 0 < np.abs(together - exact).max() < 0.3 * (1 + np.abs(exact).max())


@pytest.mark.usefixtures("wide_limits")
@pytest.mark.parametrize("source", BI_ENCODERS, ids=lambda path: path.name)
def test_a_bi_encoder_opens_in_int8_and_a_texts_vector_is_its_own(source: Path, tmp_path: Path) -> None:
    report = quantize(source, tmp_path / "int8", as_candidates(pairs()), progress=False)
    assert (report.kind, report.passed) == ("bi-encoder", True)
    model = BiEncoder(tmp_path / "int8", threads=2)
    assert model.precision == "int8"
    some = [text for _, text in pairs()[:40]]
    together = model.encode_documents(some)
    alone = np.concatenate([model.encode_documents([text]) for text in some])
    # Dense modules are float32 products outside the graph: their last bits may depend on the rows.
    np.testing.assert_allclose(alone, together, atol=1e-6, rtol=0)
    exact = BiEncoder(source, precision="float32").encode_documents(some)
    assert 0 < np.abs(together - exact).max() < 0.5


@pytest.mark.usefixtures("wide_limits")
def test_what_the_folder_holds(tmp_path: Path) -> None:
    source = GOLDEN / "sbert_bi_encoder"
    report = quantize(source, tmp_path / "both", as_candidates(pairs()), name="mine", progress=False)
    written, original = files_of(tmp_path / "both"), files_of(source)
    assert set(written) == {*original, INT8_FILE, PARITY_FILE} - {"expected.npz"}
    assert all(written[name] == original[name] for name in set(written) & set(original))
    record = json.loads(written[PARITY_FILE])
    assert record["passed"] is True
    assert record["limits"] == dict(LIMITS)
    assert record["collections"] == {"mine": {"queries": report.num_checked_queries, **report.figures}}
    assert record["source"]["fingerprint"] == Checkpoint.open(source).fingerprint
    assert record["calibration"]["pairs"] == report.num_calibration_pairs
    assert report.int8_bytes == len(written[INT8_FILE])
    assert report.float32_bytes == len(original["model.safetensors"])
    assert [path.name for path in tmp_path.iterdir()] == ["both"]


@pytest.mark.usefixtures("wide_limits")
@pytest.mark.parametrize("name", ["bert_sharded", "sbert_bi_encoder"])
def test_without_float32_weights(name: str, tmp_path: Path) -> None:
    alone, both = tmp_path / "alone", tmp_path / "both"
    quantize(GOLDEN / name, alone, as_candidates(pairs()), keep_float32=False, progress=False)
    quantize(GOLDEN / name, both, as_candidates(pairs()), progress=False)
    assert not Checkpoint.open(alone).weight_files
    assert len(Checkpoint.open(both).weight_files) == len(Checkpoint.open(GOLDEN / name).weight_files)
    assert (alone / INT8_FILE).read_bytes() == (both / INT8_FILE).read_bytes()
    opened = BiEncoder(alone) if name == "sbert_bi_encoder" else CrossEncoder(alone)
    assert opened.precision == "int8"


@pytest.mark.usefixtures("wide_limits")
def test_a_transformer_in_a_folder_of_its_own(tmp_path: Path) -> None:
    source = tmp_path / "model"
    shutil.copytree(GOLDEN_BI / "mean", source)
    modules = json.loads((source / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    modules.insert(2, {"idx": 9, "name": "9", "path": "9_Dropout", "type": "sentence_transformers.Dropout"})
    (source / "modules.json").write_text(json.dumps(modules))
    (source / "0_Transformer").mkdir()
    (source / "9_Dropout").mkdir()
    (source / "9_Dropout" / "config.json").write_text('{"dropout": 0.1}')
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (source / name).rename(source / "0_Transformer" / name)
    (source / "sentence_bert_config.json").rename(source / "0_Transformer" / "sentence_bert_config.json")
    (source / "checkpoint-5").mkdir()
    (source / "checkpoint-5" / "config.json").write_text("{}")
    quantize(source, tmp_path / "int8", as_candidates(pairs()), progress=False)
    written = files_of(tmp_path / "int8")
    added = {f"0_Transformer/{name}" for name in (INT8_FILE, PARITY_FILE)}
    assert set(written) == {*files_of(source), *added} - {"checkpoint-5/config.json"}
    assert BiEncoder(tmp_path / "int8").precision == "int8"


@pytest.mark.usefixtures("wide_limits")
def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        quantize(GOLDEN / "bert", tmp_path / name, as_candidates(pairs()), seed=seed, progress=False)
    one, two, other = (files_of(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two
    assert one[INT8_FILE] != other[INT8_FILE]


@pytest.mark.parametrize("limit", list(LIMITS))
def test_nothing_is_left_of_a_model_that_fails_the_gate(
    limit: str, tmp_path: Path, wide_limits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LIMITS, limit, 1.1 if limit == "kendall_tau" else -1.0)  # type: ignore[arg-type]
    candidates = as_candidates(pairs())
    qrels = {query: {"2": 1} for query in candidates}
    report = quantize(GOLDEN / "bert", tmp_path / "int8", candidates, qrels=qrels, progress=False)
    assert not report.passed
    assert report.exceeded == (limit,)
    assert report.figures["num_pairs"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, set[str]]]:
    """The queries that calibration and gate see."""
    seen: dict[str, set[str]] = {"calibrated": set(), "checked": set()}
    inputs, score = quantize_module.calibration_inputs, quantize_module.score_candidates

    def watched_inputs(checkpoint, kind, given, **rest):
        seen["calibrated"] |= {query for query, _ in given}
        return inputs(checkpoint, kind, given, **rest)

    def watched_scores(model, given):
        seen["checked"] |= {query for query, _ in given.values()}
        return score(model, given)

    monkeypatch.setattr(quantize_module, "calibration_inputs", watched_inputs)
    monkeypatch.setattr(quantize_module, "score_candidates", watched_scores)
    return seen


@pytest.mark.parametrize("seed", range(3))
def test_calibration_and_gate_see_different_queries(seed: int, split: dict, tmp_path: Path) -> None:
    once = as_candidates(pairs(300, 5))
    # The same query under two ids is one query.
    twice: Candidates = {f"{name} {query}": row for query, row in once.items() for name in ("a", "b")}
    report = quantize(GOLDEN / "bert", tmp_path / "int8", twice, seed=seed, progress=False)
    assert not split["calibrated"] & split["checked"]
    assert split["calibrated"] | split["checked"] <= {query for query, _ in twice.values()}
    assert report.num_calibration_pairs == 256
    assert report.num_calibration_queries == len(split["calibrated"]) > 50
    assert report.figures["num_pairs"] == 1000
    qrels = {name: {"0": 1} for name in twice}
    judged = quantize(GOLDEN / "bert", tmp_path / "judged", twice, qrels=qrels, seed=seed, progress=False)
    assert judged.figures["num_pairs"] > 2000


def test_the_order_of_queries_depends_on_each_text_alone() -> None:
    queries = {str(number): text for number, text in enumerate(texts(5, 40, 9))}
    order = in_hash_order(queries, 1)
    assert order == in_hash_order(dict(reversed(queries.items())), 1)
    assert order != in_hash_order(queries, 2)
    some = {name: queries[name] for name in list(queries)[:20]}
    assert in_hash_order(some, 1) == [name for name in order if name in some]


def test_too_few_pairs_say_how_many_are_needed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"40 pairs of 10 queries are too few.* 32 and 96 are needed; give"):
        quantize(GOLDEN / "bert", tmp_path / "int8", as_candidates(pairs(10, 4)))
    with pytest.raises(InputError, match=r"^0 pairs of 0 queries are too few"):
        quantize(GOLDEN / "bert", tmp_path / "int8", {})
    with pytest.raises(InputError, match="seed must be a whole number of at least 0, not -1"):
        quantize(GOLDEN / "bert", tmp_path / "int8", as_candidates(pairs()), seed=-1)


def test_pairs_of_one_document_a_query_have_no_tau(wide_limits: None, tmp_path: Path) -> None:
    report = quantize(GOLDEN / "bert", tmp_path / "int8", as_candidates(pairs(300, 1)), progress=False)
    assert report.passed
    assert report.figures["kendall_tau"] is None


@pytest.mark.usefixtures("wide_limits")
def test_judgements_are_compared_by_ndcg(tmp_path: Path) -> None:
    candidates = as_candidates(pairs())
    qrels = {query: {"2": 1} for query in candidates}
    figures = quantize(GOLDEN / "bert", tmp_path / "a", candidates, qrels=qrels, progress=False).figures
    assert figures["delta_ndcg@10"] == figures["ndcg@10_int8"] - figures["ndcg@10_float32"]
    assert 0.3 < figures["ndcg@10_float32"] < 1
    with pytest.raises(InputError, match="none of the queries to check has judgements"):
        quantize(GOLDEN / "bert", tmp_path / "b", candidates, qrels={"other": {"2": 1}})


def test_each_of_several_labels_is_a_ranking_and_its_level_no_spread() -> None:
    reference = [np.array([[1.0, 101], [2, 103], [3, 102]]), np.array([[0.0, 100], [4, 104]])]
    candidates = as_candidates([("q", "a"), ("q", "b"), ("q", "c"), ("r", "d"), ("r", "e")])
    figures, broken = parity_figures(reference, [scores + 0.1 for scores in reference], candidates)
    assert figures["num_pairs"] == 10
    assert figures["kendall_tau"] == 1
    assert figures["reference_std"] == pytest.approx(np.std([1, 2, 3, 0, 4]))
    assert broken == []


def test_calibration_inputs_are_cut_as_the_model_cuts_them() -> None:
    checkpoint = Checkpoint.open(GOLDEN / "bert")
    long = "fox " * 500
    limit = min(checkpoint.max_length, 320)
    whole, short = calibration_inputs(checkpoint, "cross-encoder", [(long, long), ("red fox", "whale")])
    assert whole.input_ids.shape == (1, limit)
    assert short.input_ids.shape == short.attention_mask.shape == short.token_type_ids.shape
    assert whole.input_ids[0, -1] == short.input_ids[0, -1]  # [SEP]
    texts_alone = calibration_inputs(checkpoint, "bi-encoder", [("fox", "whale")] * 2, prompts=("red ", ""))
    first, second = Tokenizer(checkpoint).encode(["red fox", "whale"])  # every third text is a query
    for row, tokens in zip(texts_alone, (first, second), strict=True):
        np.testing.assert_array_equal(row.input_ids[0, 1:-1], tokens.ids)


def test_the_gate_takes_no_nan_and_says_what_is_broken() -> None:
    fine = Parity(num_pairs=9, max_delta=0.2, mean_delta=0.1, reference_std=1.0, kendall_tau=0.9)
    assert exceeded(fine, 0.005) == exceeded(fine, -0.005) == exceeded(fine._replace(kendall_tau=None)) == []
    assert exceeded(fine, -0.0051) == ["delta_ndcg@10"]
    assert exceeded(fine._replace(mean_delta=0.11, kendall_tau=0.89)) == ["mean_delta_in_std", "kendall_tau"]
    nan = float("nan")
    assert exceeded(Parity(9, nan, nan, nan, nan), nan) == list(LIMITS)


def test_short_rankings_count_for_the_deltas_alone() -> None:
    rankings = (
        [np.array([1.0, 2.0]), np.array([1.0, 2.0, 3.0])],
        [np.array([2.0, 1.0]), np.array([1.0, 2, 3])],
    )
    assert compare(*rankings).kendall_tau == 0
    assert compare(*rankings, shortest=3).kendall_tau == 1
    assert compare(*rankings, shortest=4).kendall_tau is None


@pytest.mark.usefixtures("wide_limits")
def test_only_a_model_is_replaced_and_only_when_asked(tmp_path: Path) -> None:
    candidates, target = as_candidates(pairs()), tmp_path / "int8"
    target.mkdir()
    assert quantize(GOLDEN / "bert", target, candidates, progress=False).passed  # an empty folder is free
    (target / "left").write_text("over")
    with pytest.raises(InputError, match=r"is not empty; .* replace it with overwrite=True"):
        quantize(GOLDEN / "bert", target, candidates)
    assert quantize(GOLDEN / "electra", target, candidates, overwrite=True, progress=False).passed
    assert not (target / "left").exists()
    assert Checkpoint.open(target).architecture == "electra"
    other = tmp_path / "notes"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    for path, message in (
        (other, "no model, so it is not replaced"),
        (other / "notes.txt", "is a file"),
        (tmp_path / "gone" / "int8", "there is no folder"),
    ):
        with pytest.raises(InputError, match=message):
            quantize(GOLDEN / "bert", path, candidates, overwrite=True)
    for path in (target, tmp_path):
        with pytest.raises(InputError, match="holds the model itself"):
            quantize(target, path, candidates, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["int8", "notes"]


def test_models_without_float32_weights_or_graph_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no model\.safetensors to quantise"):
        quantize("crossrank-mini", tmp_path / "a", as_candidates(pairs()))
    with pytest.raises(CheckpointError, match=r"no model\.safetensors to quantise"):
        quantize(GOLDEN / "bert_onnx", tmp_path / "b", as_candidates(pairs()))
    unknown = tmp_path / "unknown"
    shutil.copytree(GOLDEN / "bert", unknown)
    config = json.loads((unknown / "config.json").read_text())
    (unknown / "config.json").write_text(json.dumps(config | {"architectures": ["XyzModel"]}))
    with pytest.raises(UnsupportedArchitectureError):
        quantize(unknown, tmp_path / "c", as_candidates(pairs()))


def test_late_interaction_models_are_quantised_by_their_own_scores(tmp_path: Path) -> None:
    source = Path(__file__).parent / "golden_late" / "stanford"
    candidates = {
        str(number): (query, [Document(str(place), text) for place, text in enumerate(texts(number, 20, 20))])
        for number, query in enumerate(dict.fromkeys(texts(99, 60, 6)))
    }
    report = quantize(source, tmp_path / "int8", candidates, progress=False)
    assert report.kind == "late-interaction"
    assert report.passed == (tmp_path / "int8").exists()
    assert 0 < report.figures["mean_delta"] < 1  # of sums of 16 cosines
    assert report.passed
    model = LateInteraction(tmp_path / "int8", precision="int8")
    assert model.settings == LateInteraction(source).settings


@pytest.mark.usefixtures("wide_limits")
@pytest.mark.parametrize(
    ("name", "kind"),
    [("t5", "mono_t5"), ("t5_v1_1", "mono_t5"), ("mt5", "rank_t5"), ("t5_encoder", "rank_t5")],
)
def test_a_t5_opens_in_int8_as_what_it_was(name: str, kind: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(GOLDEN_T5 / name, source)
    # In a card, which is no part of the copy; the tokens are others than the family's.
    prompt = "Question: {query} Text: {document} Answer:"
    tokens = "tokens: [3, 5]" if kind == "mono_t5" else "token: 7"
    (source / "crossrank.json").unlink(missing_ok=True)
    (source / "README.md").write_text(
        f'---\ncrossrank:\n  kind: {kind}\n  prompt: "{prompt}"\n  {tokens}\n---\n', encoding="utf-8"
    )
    some = pairs()[:40]
    reference = load(source, precision="float32", threads=1)
    report = quantize(source, tmp_path / "int8", as_candidates(pairs()), progress=False)
    assert (report.kind, report.passed) == (kind, True)
    model = load(tmp_path / "int8", threads=2)
    assert (type(model), model.precision) == (type(reference), "int8")
    assert (model.prompt, model.token_score) == (reference.prompt, reference.token_score)
    exact = load(tmp_path / "int8", precision="float32")
    np.testing.assert_array_equal(exact.score(some), reference.score(some))
    scores = model.score(some)
    np.testing.assert_allclose(
        np.concatenate([model.score([pair]) for pair in some]), scores, atol=1e-5, rtol=0
    )
    assert 0 < np.abs(scores - reference.score(some)).max() < 0.3 * (1 + np.abs(reference.score(some)).max())


def test_t5_inputs_are_calibrated_on_in_the_models_prompt(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wide_limits: None
) -> None:
    source = tmp_path / "source"
    shutil.copytree(GOLDEN_T5 / "t5", source)
    (source / "crossrank.json").write_text('{"kind": "mono_t5"}', encoding="utf-8")
    seen = []
    calibrate = quantize_module.calibrate
    monkeypatch.setattr(
        quantize_module,
        "calibrate",
        lambda checkpoint, output, inputs, **rest: (
            seen.append((output, inputs)) or calibrate(checkpoint, output, inputs, **rest)
        ),
    )
    quantize(source, tmp_path / "int8", as_candidates(pairs()), progress=False)
    [(output, inputs)] = seen
    model = MonoT5(source)
    assert output == model.token_score
    prompted = PromptTokenizer(Checkpoint.open(source), model.prompt, ("query", "document"))
    empty = prompted.pair_inputs([(np.empty(0, np.int32),) * 2], prompted.num_special_tokens).input_ids[0]
    first, last = empty[0], empty[-2:].tolist()  # "Query:" or its first piece; ":" and the end
    assert all(each.input_ids[0, 0] == first and each.input_ids[0, -2:].tolist() == last for each in inputs)


@pytest.fixture
def duo(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    shutil.copytree(GOLDEN_T5 / "t5_v1_1", source)
    (source / "crossrank.json").write_text('{"kind": "duo_t5", "tokens": [3, 5]}', encoding="utf-8")
    return source


@pytest.mark.usefixtures("wide_limits")
def test_a_duo_opens_in_int8_and_a_comparison_is_its_own(duo: Path, tmp_path: Path) -> None:
    report = quantize(duo, tmp_path / "int8", as_candidates(pairs()), progress=False)
    assert (report.kind, report.passed) == ("duo_t5", True)
    reference, model = load(duo, precision="float32", threads=1), load(tmp_path / "int8", threads=2)
    assert (type(model), model.precision, model.token_ids) == (DuoT5, "int8", (3, 5))
    some = [(query, text, other) for (query, text), (_, other) in zip(pairs(), pairs()[1:40], strict=False)]
    margins = model.margins(some)
    alone = np.concatenate([model.margins([each]) for each in some])
    np.testing.assert_allclose(alone, margins, atol=1e-5, rtol=0)
    exact = reference.margins(some)
    assert 0 < np.abs(margins - exact).max() < 0.3 * (1 + np.abs(exact).max())
    np.testing.assert_allclose(model.prefer(some), 1 / (1 + np.exp(-margins.astype(np.float64))), rtol=1e-6)
    np.testing.assert_array_equal(
        load(tmp_path / "int8", precision="float32", threads=1).margins(some), exact
    )


def test_a_duos_scores_in_the_gate_are_its_comparisons_with_neighbours(duo: Path) -> None:
    model = load(duo, threads=1)
    query, texts_ = "the red fox", ["a whale", "the fox runs", "blue wood", "animal"]
    lists = [(query, texts_), (query, texts_[:2]), (query, texts_[:1]), (query, [])]
    four, two, one, none = comparison_scores(model, lists)

    def won(i: int, j: int) -> float:
        first, second = model.margins([(query, texts_[i], texts_[j]), (query, texts_[j], texts_[i])])
        return float(first - second)

    expected = [won(i, (i + 1) % 4) + won(i, (i - 1) % 4) for i in range(4)]
    np.testing.assert_allclose(four, expected, atol=1e-5)
    np.testing.assert_allclose(two, [won(0, 1), won(1, 0)], atol=1e-5)
    assert (one.tolist(), none.tolist()) == ([0.0], [])


def test_a_duo_is_calibrated_on_comparisons_in_its_prompt(duo: Path) -> None:
    model = load(duo, threads=1)
    tokenizer = PromptTokenizer(Checkpoint.open(duo), model.prompt, ("query", "document0", "document1"))
    some = [("q a", "the fox"), ("q b", "old"), ("q a", "whale " * 90), ("q a", "animal")]
    inputs = comparison_inputs(tokenizer, some, 64)
    others = ["whale " * 90, "whale " * 90, "animal", "the fox"]
    room = 64 - tokenizer.num_special_tokens
    for (query, text), other, arrays in zip(some, others, inputs, strict=True):
        asked, first, second = (tokens.ids for tokens in tokenizer.encode([query, text, other]))
        share = (room - len(asked)) // 2
        row = asked, first[:share], second[:share]
        (ids,) = tokenizer.inputs([row], tokenizer.num_special_tokens + sum(map(len, row))).input_ids
        assert arrays.input_ids[0].tolist() == ids.tolist()
        assert arrays.input_ids.size <= 64


def test_a_t5_that_does_not_say_what_it_is_gets_no_int8_form(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(GOLDEN_T5 / "t5", source)
    with pytest.raises(CheckpointError, match="does not say what it was trained for"):
        quantize(source, tmp_path / "int8", as_candidates(pairs()))
    (source / "crossrank.json").write_text('{"kind": "cross_encoder"}', encoding="utf-8")
    with pytest.raises(InputError, match="'cross_encoder', of which no int8 form is made"):
        quantize(source, tmp_path / "int8", as_candidates(pairs()))
    assert not (tmp_path / "int8").exists()
