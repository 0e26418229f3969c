"""What only a GPU can show: the variable-length kernel, graphs, pinned transfers, memory.

Skipped without one. Golden values and helpers are those of `test_torch_engine`.
"""

from __future__ import annotations

import gc
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from crossrank import CrossEncoder  # noqa: E402
from crossrank.models.pooling import pool  # noqa: E402
from crossrank.runtime.backends import default_precision  # noqa: E402
from crossrank.runtime.checkpoint import Checkpoint  # noqa: E402
from crossrank.runtime.engine import open_engine  # noqa: E402
from crossrank.runtime.tokenization import ModelInputs  # noqa: E402
from crossrank.runtime.torch_backend.attention import attend, choose_way  # noqa: E402
from crossrank.runtime.torch_backend.capability import find_capability  # noqa: E402
from crossrank.runtime.torch_backend.engine import TorchEngine  # noqa: E402
from crossrank.runtime.torch_backend.packing import Packed  # noqa: E402
from crossrank.runtime.torch_backend.transfer import stage, token_batch  # noqa: E402

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that torch can use")

GOLDEN = Path(__file__).parent.parent / "golden"
NAMES = ["bert", "roberta", "distilbert", "electra", "deberta_v3", "modernbert", "modernbert_mean"]
BF16 = {"rtol": 0, "atol": 0.2}  # of the wild weights of tests/golden


def engine(name: str, output: str = "logits", precision: str = "bf16", **options: Any) -> TorchEngine:
    checkpoint = Checkpoint.open(GOLDEN / name)
    return TorchEngine(checkpoint, output, device=torch.device("cuda", 0), precision=precision, **options)


def golden(name: str, copies: int = 1) -> tuple[list[ModelInputs], np.ndarray]:
    """The golden pairs, a batch each, and their logits; so many times over."""
    rows = json.loads((GOLDEN / name / "expected.json").read_text(encoding="utf-8"))["rows"]
    batches = []
    for row in rows * copies:
        ids = np.array([row["ids"]], np.int64)
        batches.append(ModelInputs(ids, np.ones_like(ids), np.array([row["types"]], np.int64)))
    with np.load(GOLDEN / name / "expected.npz") as arrays:
        return batches, np.tile(arrays["logits"], (copies, 1))


@pytest.fixture(scope="module")
def has_kernel() -> bool:
    capability = find_capability(torch.device("cuda", 0), torch.bfloat16)
    return choose_way(capability, 64, window=True) == "varlen"


@pytest.mark.parametrize("name", NAMES)
def test_float32_is_exact(name: str) -> None:
    batches, logits = golden(name)
    found = np.concatenate(list(engine(name, precision="float32").run_all(batches)))
    np.testing.assert_allclose(found, logits, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_bf16_is_near_and_does_not_depend_on_the_batch(name: str) -> None:
    batches, logits = golden(name, copies=3)
    made = engine(name)
    together = np.concatenate(list(made.run_all(batches)))
    np.testing.assert_allclose(together, logits, **BF16)
    alone = np.concatenate([made.run(*batch) for batch in batches])
    np.testing.assert_allclose(alone, together, rtol=0, atol=0.1)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("size", [8, 32, 64, 128])
def test_the_kernel_computes_what_padding_and_a_mask_do(
    has_kernel: bool, size: int, window: int | None
) -> None:
    if not has_kernel:
        pytest.skip("this GPU, or this torch, has no variable-length kernel with windows")
    lengths = np.array([5, 1, 70, 200, 33], np.int32)
    tokens = np.zeros(lengths.sum(), np.int32)
    packed = Packed(tokens, tokens, lengths, lengths, 200)
    batch = token_batch(stage(packed, pinned=True).cuda(), packed)
    generator = torch.Generator("cuda").manual_seed(0)
    joined = torch.randn(len(tokens), 3, 4, size, generator=generator, device="cuda").bfloat16()
    query, key, value = joined.unbind(1)  # as a fused projection gives them
    found = attend("varlen", batch, query, key, value, window=window)
    wanted = attend("padded", batch, query.float(), key.float(), value.float(), window=window)
    assert (found.float() - wanted).norm() / wanted.norm() < 0.01
    if window is None:
        firsts = attend("varlen", batch, query[batch.firsts.long()], key, value)
        assert (firsts.float() - wanted[batch.firsts.long()]).norm() / wanted.norm() < 0.01


def test_nested_attention_computes_what_padding_does() -> None:
    lengths = np.array([5, 1, 70, 33], np.int32)
    tokens = np.zeros(lengths.sum(), np.int32)
    packed = Packed(tokens, tokens, lengths, lengths, 70)
    batch = token_batch(stage(packed, pinned=True).cuda(), packed)
    generator = torch.Generator("cuda").manual_seed(0)
    inputs = [torch.randn(len(tokens), 4, 32, generator=generator, device="cuda") for _ in range(3)]
    with torch.no_grad():
        found, wanted = (attend(way, batch, *inputs) for way in ("nested", "padded"))
        firsts = attend("nested", batch, inputs[0][batch.firsts.long()], *inputs[1:])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(firsts, wanted[batch.firsts.long()], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert", "modernbert_mean"])
def test_a_graph_gives_what_single_launches_give(has_kernel: bool, name: str) -> None:
    if not has_kernel:
        pytest.skip("graphs need the variable-length kernel")
    batches, _ = golden(name, copies=4)
    with_graphs, without = engine(name), engine(name, graphs=False)
    graphs = with_graphs._graphs
    assert graphs is not None
    wanted = np.concatenate(list(without.run_all(batches)))
    for _ in range(4):  # as it is, captured, replayed
        found = np.concatenate(list(with_graphs.run_all(batches)))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=0.1)
    assert graphs._can_capture
    assert any(graph is not None for graph in graphs._graphs.values())
    # Another batch of the same shape reads other numbers by the same graph.
    backwards = np.concatenate(list(with_graphs.run_all(batches[::-1])))[::-1]
    np.testing.assert_allclose(backwards, wanted, rtol=0, atol=0.1)


def test_many_threads_replay_in_turns() -> None:
    batches, logits = golden("bert", copies=5)
    made = engine("bert")
    for _ in range(3):
        list(made.run_all(batches))
    with ThreadPoolExecutor(8) as threads:
        for found in threads.map(lambda count: list(made.run_all(batches[:count])), range(1, 31)):
            np.testing.assert_allclose(np.concatenate(found), logits[: len(found)], **BF16)


@pytest.mark.parametrize("modes", [("mean",), ("cls",), ("max", "weightedmean")], ids="+".join)
def test_pooling_on_the_device_is_pooling_here(modes: tuple[Any, ...]) -> None:
    batches, _ = golden("bert")
    made = engine("bert", "tokens", "float32")
    for batch, pooled in zip(batches, made.run_pooled(batches, modes, 2), strict=True):
        here = pool(made.run(*batch), batch.attention_mask.sum(axis=1), modes, 2)
        np.testing.assert_allclose(pooled, here, rtol=0, atol=2e-5)


def test_vectors_of_padding_are_those_of_onnx_runtime() -> None:
    [batch, *_], _ = golden("bert")
    wider = ModelInputs(*(np.pad(array, ((0, 0), (0, 9))) for array in batch))
    other = open_engine(Checkpoint.open(GOLDEN / "bert"), output="tokens", threads=1)
    made = engine("bert", "tokens", "float32", vectors_of_padding=True)
    np.testing.assert_allclose(made.run(*wider), other.run(*wider), rtol=0, atol=2e-5)


def test_memory_does_not_grow_with_calls() -> None:
    batches, _ = golden("bert", copies=20)
    made = engine("bert")
    for _ in range(4):
        list(made.run_all(batches))
    gc.collect()
    before = torch.cuda.memory_allocated()
    for _ in range(20):
        list(made.run_all(batches))
    gc.collect()
    assert torch.cuda.memory_allocated() <= before


def test_a_model_takes_the_gpu_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CROSSRANK_BACKEND", raising=False)
    model = CrossEncoder()
    assert model.precision == default_precision(torch, torch.device("cuda", 0))
    pairs = [("who wrote Hamlet", text) for text in ("Hamlet is by Shakespeare.", "A hamlet is a village.")]
    exact = CrossEncoder(backend="onnx", precision="float32").score(pairs)
    np.testing.assert_allclose(model.score(pairs), exact, rtol=0, atol=0.2)
    assert model.score(pairs)[0] > model.score(pairs)[1]
