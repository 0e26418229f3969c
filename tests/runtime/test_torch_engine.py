"""The torch engine on CPU tensors gives what transformers and ONNX Runtime give, whatever is run together."""

from __future__ import annotations

import itertools
import json
import logging
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from crossrank.errors import CheckpointError, DeviceMemoryError, InputError  # noqa: E402
from crossrank.models.pooling import apply_modules, pool  # noqa: E402
from crossrank.runtime.backends import _TORCH_ARCHITECTURES  # noqa: E402
from crossrank.runtime.checkpoint import Checkpoint  # noqa: E402
from crossrank.runtime.engine import open_engine  # noqa: E402
from crossrank.runtime.modules import Dense, Normalize  # noqa: E402
from crossrank.runtime.tokenization import ModelInputs  # noqa: E402
from crossrank.runtime.torch_backend.engine import ENCODERS, TorchEngine, budget_for  # noqa: E402
from crossrank.runtime.torch_backend.packing import pack  # noqa: E402
from crossrank.runtime.torch_backend.shapes import fill, shape_for  # noqa: E402
from crossrank.runtime.torch_backend.transfer import stage, token_batch  # noqa: E402

GOLDEN = Path(__file__).parent.parent / "golden"
CLASSIFIERS = sorted(
    path.parent.name
    for path in GOLDEN.glob("*/expected.npz")
    if path.parent.name not in ("sbert_bi_encoder", "bert_onnx")  # no scores; no weights
)
WITHOUT_VECTORS = {"sbert_cross_encoder", "sbert_modular_cross_encoder"}
ENCODER_FOLDERS = [*sorted({*CLASSIFIERS} - WITHOUT_VECTORS), "sbert_bi_encoder"]
ARCHITECTURES = ["bert", "roberta", "distilbert", "electra", "deberta_v2", "deberta_v3", "modernbert"]
TOLERANCE = 1e-5
CPU = torch.device("cpu")


@cache
def engine(name: str, output: str = "logits", precision: str = "float32") -> TorchEngine:
    return TorchEngine(Checkpoint.open(GOLDEN / name), output, device=CPU, precision=precision)


def joining(name: str, output: str = "logits", budget: int = 10_000, **options: Any) -> TorchEngine:
    """An engine that joins batches, as one on a GPU does."""
    checkpoint = Checkpoint.open(GOLDEN / name)
    made = TorchEngine(checkpoint, output, device=CPU, precision="float32", **options)
    made.token_budget = budget
    return made


def expected(name: str) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    rows = json.loads((GOLDEN / name / "expected.json").read_text(encoding="utf-8"))["rows"]
    with np.load(GOLDEN / name / "expected.npz") as arrays:
        return rows, dict(arrays)


def batch_of(name: str, rows: list[dict[str, Any]], length: int | None = None) -> ModelInputs:
    length = length or max(len(row["ids"]) for row in rows)
    padding = Checkpoint.open(GOLDEN / name).config["pad_token_id"]
    ids = np.full((len(rows), length), padding, np.int64)
    mask, types = np.zeros_like(ids), np.zeros_like(ids)
    for i, row in enumerate(rows):
        size = len(row["ids"])
        ids[i, :size], mask[i, :size], types[i, :size] = row["ids"], 1, row["types"]
    return ModelInputs(ids, mask, types)


def test_torch_runs_the_architectures_it_is_said_to() -> None:
    assert set(ENCODERS) == set(_TORCH_ARCHITECTURES)
    assert {Checkpoint.open(GOLDEN / name).architecture for name in CLASSIFIERS} == set(ENCODERS)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_logits_are_those_of_transformers(name: str) -> None:
    rows, arrays = expected(name)
    together = engine(name).run(*batch_of(name, rows, length=90))
    assert together.dtype == np.float32
    np.testing.assert_allclose(together, arrays["logits"], rtol=0, atol=TOLERANCE)
    alone = np.concatenate([engine(name).run(*batch_of(name, [row])) for row in rows])
    np.testing.assert_allclose(alone, arrays["logits"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_logits_are_those_of_onnx_runtime(name: str) -> None:
    rows, _ = expected(name)
    batch = batch_of(name, rows)
    other = open_engine(Checkpoint.open(GOLDEN / name), output="logits", threads=1)
    np.testing.assert_allclose(engine(name).run(*batch), other.run(*batch), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ENCODER_FOLDERS)
def test_token_vectors_are_those_of_transformers(name: str) -> None:
    rows, arrays = expected(name)
    vectors = engine(name, "tokens").run(*batch_of(name, rows, length=93))
    for i, row in enumerate(rows):
        size = len(row["ids"])
        np.testing.assert_allclose(vectors[i, :size], arrays[f"tokens_{i}"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_batches_joined_into_one_give_the_same_in_their_order(name: str) -> None:
    rows, arrays = expected(name)
    batches = [batch_of(name, rows[:2], 80), batch_of(name, rows[2:3]), batch_of(name, rows[3:][::-1], 90)]
    found = list(joining(name).run_all(batches))
    assert [len(each) for each in found] == [2, 1, len(rows) - 3]
    logits = np.concatenate([found[0], found[1], found[2][::-1]])
    np.testing.assert_allclose(logits, arrays["logits"], rtol=0, atol=TOLERANCE)
    vectors = joining(name, "tokens").run_all(batches)
    for batch, each in zip(batches, vectors, strict=True):
        assert each.shape[:2] == batch.input_ids.shape
        alone = engine(name, "tokens").run(*batch)
        np.testing.assert_allclose(each, alone, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["bert", "roberta", "deberta_v3", "modernbert", "modernbert_mean"])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_score_depends_on_the_pair_alone(name: str, data: st.DataObject) -> None:
    token = st.integers(5, 70)
    rows = data.draw(st.lists(st.lists(token, min_size=2, max_size=40), min_size=1, max_size=6))
    budget = data.draw(st.integers(1, 300))
    row_of = [{"ids": row, "types": [0] * len(row)} for row in rows]
    batches = [batch_of(name, [row], data.draw(st.integers(len(row["ids"]), 64))) for row in row_of]
    together = np.concatenate(list(joining(name, budget=budget).run_all(batches)))
    alone = np.concatenate([engine(name).run(*batch_of(name, [row])) for row in row_of])
    np.testing.assert_allclose(together, alone, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_bf16_is_near_float32(name: str) -> None:
    rows, arrays = expected(name)
    batch = batch_of(name, rows)
    logits = engine(name, precision="bf16").run(*batch)
    assert logits.dtype == np.float32
    # 8 bits of mantissa, some twenty roundings one after the other, weights that are wild.
    spread = np.abs(arrays["logits"]).max()
    assert 0 < np.abs(logits - arrays["logits"]).max() < 0.06 * max(1.0, spread)
    vectors = engine(name, "tokens", "bf16").run(*batch)[0, : len(rows[0]["ids"])]
    assert 0 < np.abs(vectors - arrays["tokens_0"]).max() < 0.2


def test_scores_of_bf16_have_the_digits_of_float32() -> None:
    rows, _ = expected("bert")
    logits = engine("bert", precision="bf16").run(*batch_of("bert", rows))
    rounded = torch.tensor(logits).bfloat16().float().numpy()
    assert (logits != rounded).any()


@pytest.mark.parametrize("name", ["bert", "roberta", "deberta_v3", "modernbert", "modernbert_mean"])
def test_a_batch_filled_up_to_a_shape_gives_the_same(name: str) -> None:
    """What a CUDA graph computes, launched kernel by kernel."""
    rows, arrays = expected(name)
    made = engine(name)
    packed = pack([batch_of(name, rows)])
    shape = shape_for(len(packed.ids), len(rows), packed.longest, made._checkpoint.max_positions)
    assert shape is not None
    filled = fill(packed, shape)
    assert len(filled.lengths) > len(rows)
    with torch.no_grad():
        logits = made._forward(token_batch(stage(filled, pinned=False), filled))[: len(rows)]
    np.testing.assert_allclose(logits.numpy(), arrays["logits"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("skip", [0, 3])
@pytest.mark.parametrize("name", ["bert", "modernbert", "deberta_v3"])
@pytest.mark.parametrize(
    "modes",
    [
        ("cls",),
        ("mean",),
        ("max",),
        ("lasttoken",),
        ("weightedmean",),
        ("mean_sqrt_len_tokens", "cls", "max"),
    ],
    ids="+".join,
)
def test_pooling_on_the_device_is_pooling_here(name: str, modes: tuple[Any, ...], skip: int) -> None:
    rows, _ = expected(name)
    rows[1]["ids"] = rows[1]["ids"][:2]  # all of it is skipped
    rows[1]["types"] = rows[1]["types"][:2]
    batches = [batch_of(name, rows[:3], 70), batch_of(name, rows[3:], 90)]
    for budget in (1, 10_000):
        found = joining(name, "tokens", budget).run_pooled(batches, modes, skip)
        for batch, pooled in zip(batches, found, strict=True):
            vectors = engine(name, "tokens").run(*batch)
            here = pool(vectors, batch.attention_mask.sum(axis=1), modes, skip)
            np.testing.assert_allclose(pooled, here, rtol=0, atol=TOLERANCE)


def test_vectors_of_padding_are_computed_where_they_are_wanted() -> None:
    rows, _ = expected("bert")
    batch = batch_of("bert", rows[:3], 80)
    wanted = TorchEngine(
        Checkpoint.open(GOLDEN / "bert"), "tokens", device=CPU, precision="float32", vectors_of_padding=True
    )
    other = open_engine(Checkpoint.open(GOLDEN / "bert"), output="tokens", threads=1)
    np.testing.assert_allclose(wanted.run(*batch), other.run(*batch), rtol=0, atol=TOLERANCE)


def test_fingerprints_tell_precisions_apart_and_not_backends() -> None:
    checkpoint = Checkpoint.open(GOLDEN / "bert")
    other = open_engine(checkpoint, output="logits", threads=1)
    assert engine("bert").fingerprint == other.fingerprint
    assert engine("bert", precision="bf16").fingerprint != other.fingerprint
    assert engine("bert", precision="bf16").precision == "bf16"
    assert engine("roberta").fingerprint != other.fingerprint


def test_a_tokenizer_without_token_types_means_zeros(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "bert", tmp_path / "model")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "model_input_names": ["input_ids", "attention_mask"]}))
    ids, mask, types = batch_of("bert", expected("bert")[0])
    without = TorchEngine(Checkpoint.open(folder), "logits", device=CPU, precision="float32")
    np.testing.assert_array_equal(without.run(ids, mask, types), without.run(ids, mask, types * 0))
    assert np.abs(engine("bert").run(ids, mask, types) - without.run(ids, mask, types)).max() > 0.01


def test_unusable_arrays_are_refused_as_elsewhere() -> None:
    ones = np.ones((2, 5), np.int64)
    with pytest.raises(InputError, match=r"one shape \(batch, length\)"):
        engine("bert").run(ones, ones[:, :4], ones)
    with pytest.raises(InputError, match="empty batch"):
        engine("bert").run(ones[:0], ones[:0], ones[:0])
    long = np.ones((1, 97), np.int64)
    with pytest.raises(InputError, match="97 tokens is longer than the model's 96 positions"):
        engine("bert").run(long, long, long)


def test_a_checkpoint_is_checked_as_for_a_graph(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "bert", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="calls for 1 layers only"):
        TorchEngine(Checkpoint.open(folder), "logits", device=CPU, precision="float32")


def test_batches_are_taken_as_they_are_needed() -> None:
    batch = batch_of("bert", expected("bert")[0])
    taken = itertools.count()
    outputs = joining("bert", budget=3 * batch.input_ids.size).run_all(batch for _ in taken)
    for _ in range(4):
        next(outputs)
    assert next(taken) <= 4 + 3 * 3 + 1


def test_many_threads_share_an_engine() -> None:
    batch = batch_of("bert", expected("bert")[0])
    made = joining("bert")
    wanted = made.run(*batch)
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(lambda _: list(made.run_all([batch] * 3)), range(12)):
            for each in found:
                np.testing.assert_allclose(each, wanted, rtol=0, atol=TOLERANCE)


# --- memory -------------------------------------------------------------------------------------------


def holding(tokens: int, made: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Give an engine a device that holds so many tokens; returns the sizes that were tried."""
    forward: Callable[[Any], torch.Tensor] = made._forward
    tried: list[int] = []

    def limited(batch: Any) -> torch.Tensor:
        tried.append(len(batch.ids))
        if len(batch.ids) > tokens:
            raise torch.OutOfMemoryError("tried to allocate")
        return forward(batch)

    monkeypatch.setattr(made, "_forward", limited)
    return tried


def test_too_little_memory_makes_batches_smaller(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows, arrays = expected("bert")
    made = joining("bert")
    sizes = [len(row["ids"]) for row in rows]
    tried = holding(max(sizes), made, monkeypatch)  # one row at a time at the worst
    batches = [batch_of("bert", rows[:4]), batch_of("bert", rows[4:])] * 2
    with caplog.at_level(logging.WARNING):
        found = np.concatenate(list(made.run_all(batches)))
    np.testing.assert_allclose(found, np.tile(arrays["logits"], (2, 1)), rtol=0, atol=TOLERANCE)
    assert max(tried) > max(sizes)
    assert "cpu is out of memory at" in caplog.text
    assert made.token_budget is not None
    assert made.token_budget < sum(batch.input_ids.size for batch in batches)
    # The budget is kept: what follows is not tried in the size that failed.
    tried.clear()
    list(made.run_all(batches * 2))
    assert max(tried) < 2 * sum(sizes)


def test_an_input_that_never_fits_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, _ = expected("bert")
    made = joining("bert")
    holding(5, made, monkeypatch)
    with pytest.raises(
        DeviceMemoryError, match=r"cpu has too little memory for a single input of .* max_length"
    ):
        list(made.run_all([batch_of("bert", rows)]))


def test_weights_that_do_not_fit_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("tried to allocate")

    monkeypatch.setitem(ENCODERS, "bert", full)  # type: ignore[index]
    with pytest.raises(DeviceMemoryError, match=r"weights of .* do not fit the memory of cpu"):
        TorchEngine(Checkpoint.open(GOLDEN / "bert"), "logits", device=CPU, precision="float32")


def test_the_budget_follows_the_memory_and_the_model() -> None:
    small = SimpleNamespace(hidden_size=384, inner_size=1536, num_heads=12, ways={"varlen"})
    large = SimpleNamespace(hidden_size=1024, inner_size=4096, num_heads=16, ways={"varlen"})
    padded = SimpleNamespace(hidden_size=1024, inner_size=4096, num_heads=16, ways={"padded"})
    gigabyte = 1 << 30
    assert budget_for(70 * gigabyte, small, 2, longest=512) == 65_536  # more are no faster
    budgets = [budget_for(2 * gigabyte, each, 2, longest=512) for each in (small, large, padded)]
    assert 65_536 > budgets[0] > budgets[1] > budgets[2] > 1024
    assert budget_for(2 * gigabyte, large, 4, longest=512) < budgets[1]
    assert budget_for(1 << 20, large, 2, longest=512) == 1024  # and out of memory is met when it comes


def test_on_the_cpu_batches_run_as_they_come() -> None:
    assert engine("bert").token_budget is None


def test_projecting_on_the_device_is_projecting_here() -> None:
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(12, 32)).astype(np.float32), rng.normal(size=12).astype(np.float32)
    modules = (Dense(weight, bias, "tanh"), Dense(weight[:, :12], None, "identity", "identity"), Normalize())
    rows, _ = expected("bert")
    batches = [batch_of("bert", rows[:3], 70), batch_of("bert", rows[3:])]
    made = joining("bert", "tokens")
    for wanted in (modules, modules[:1], modules):
        for batch, found in zip(batches, made.run_projected(batches, wanted), strict=True):
            vectors = engine("bert", "tokens").run(*batch)
            real = batch.attention_mask.astype(bool)
            here = apply_modules(vectors[real], wanted)
            assert found.shape == (*batch.input_ids.shape, 12)
            np.testing.assert_allclose(found[real], here, rtol=0, atol=TOLERANCE)
