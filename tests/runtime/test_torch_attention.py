"""Ways of attention: which is chosen, and that they give the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from crossrank.runtime.torch_backend import attention, capability  # noqa: E402
from crossrank.runtime.torch_backend.attention import (  # noqa: E402
    Capability,
    TokenBatch,
    attend,
    choose_way,
)
from crossrank.runtime.torch_backend.capability import find_capability  # noqa: E402
from crossrank.runtime.torch_backend.packing import Packed  # noqa: E402
from crossrank.runtime.torch_backend.transfer import stage, token_batch  # noqa: E402

H100 = Capability("cuda", half=True, compute=(9, 0), varlen=True, varlen_windows=True)
LENGTHS = [5, 1, 9, 9, 3]
HEADS, SIZE = 2, 8


def batch_of(lengths: list[int], attended: list[int] | None = None, longest: int | None = None) -> TokenBatch:
    tokens = np.zeros(sum(lengths), np.int32)
    packed = Packed(
        tokens,
        tokens,
        np.array(lengths, np.int32),
        np.array(attended or lengths, np.int32),
        longest or max(lengths),
    )
    return token_batch(stage(packed, pinned=False), packed)


def inputs(lengths: list[int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [
        torch.randn(sum(lengths), HEADS, SIZE, generator=generator, dtype=torch.float64) for _ in range(3)
    ]


def reference(
    lengths: list[int], query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None = None
) -> torch.Tensor:
    """Row by row, written out."""
    rows = []
    for q, k, v in zip(*(each.split(lengths) for each in (query, key, value)), strict=True):
        scores = torch.einsum("ihs,jhs->hij", q, k) / SIZE**0.5
        if window is not None:
            places = torch.arange(len(q))
            scores = scores.masked_fill((places[:, None] - places).abs() > window, -torch.inf)
        rows.append(torch.einsum("hij,jhs->ihs", scores.softmax(-1), v))
    return torch.cat(rows)


@pytest.mark.parametrize(
    ("capability", "head_size", "window", "way"),
    [
        (H100, 64, False, "varlen"),
        (H100, 64, True, "varlen"),
        (H100, 32, False, "varlen"),
        (H100, 26, False, "nested"),  # no multiple of 8: TinyBERT's
        (H100, 26, True, "padded"),
        (H100, 264, False, "nested"),
        (H100._replace(half=False), 64, False, "nested"),  # float32
        (H100._replace(half=False), 64, True, "padded"),
        (H100._replace(compute=(7, 5)), 64, False, "nested"),
        (H100._replace(compute=(8, 0)), 64, False, "varlen"),
        (H100._replace(varlen=False, varlen_windows=False), 64, False, "nested"),
        (H100._replace(varlen=False, varlen_windows=False), 64, True, "padded"),
        (H100._replace(varlen_windows=False), 64, False, "varlen"),  # torch 2.10
        (H100._replace(varlen_windows=False), 64, True, "padded"),
        (H100._replace(device="cpu"), 64, False, "padded"),
        (H100._replace(device="mps"), 64, True, "padded"),
    ],
)
def test_the_way_follows_from_what_torch_and_the_device_can(
    capability: Capability, head_size: int, window: bool, way: str
) -> None:
    assert choose_way(capability, head_size, window=window) == way


def test_the_capability_of_a_cpu() -> None:
    found = find_capability(torch.device("cpu"), torch.bfloat16)
    assert (found.device, found.half, found.compute) == ("cpu", True, (0, 0))
    assert not find_capability(torch.device("cpu"), torch.float32).half


@pytest.mark.parametrize("way", ["padded", "nested"])
@pytest.mark.parametrize("lengths", [LENGTHS, [4, 4, 4], [1], [7]])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_attention_is_among_the_tokens_of_a_row(way: str, lengths: list[int]) -> None:
    query, key, value = inputs(lengths)
    expected = reference(lengths, query, key, value)
    with torch.no_grad():
        batch = batch_of(lengths)
        found = attend(way, batch, query, key, value)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        firsts = batch.firsts
        of_firsts = attend(way, batch, query[firsts], key, value)
    torch.testing.assert_close(of_firsts, expected[firsts], rtol=0, atol=1e-12)


@pytest.mark.parametrize("way", ["padded", "nested"])
@pytest.mark.parametrize("window", [0, 2, 100])
def test_a_window_leaves_far_tokens_out(way: str, window: int) -> None:
    query, key, value = inputs(LENGTHS)
    with torch.no_grad():
        found = attend(way, batch_of(LENGTHS), query, key, value, window=window)
    torch.testing.assert_close(found, reference(LENGTHS, query, key, value, window), rtol=0, atol=1e-12)


def test_a_bound_in_place_of_the_longest_changes_nothing() -> None:
    query, key, value = inputs(LENGTHS)
    with torch.no_grad():
        found = attend("padded", batch_of(LENGTHS, longest=16), query, key, value)
    torch.testing.assert_close(found, reference(LENGTHS, query, key, value), rtol=0, atol=1e-12)


@pytest.mark.parametrize("way", ["padded", "varlen"])
def test_tokens_that_are_not_attended_to_attend_themselves(way: str) -> None:
    lengths, attended = [6, 6], [4, 2]
    query, key, value = inputs(lengths)
    with torch.no_grad():  # varlen and nested cannot: padded stands in
        found = attend(way, batch_of(lengths, attended), query, key, value)
    for row, count in enumerate(attended):
        rows = slice(6 * row, 6 * row + 6)
        q, k, v = query[rows], key[rows][:count], value[rows][:count]
        weights = (torch.einsum("ihs,jhs->hij", q, k) / SIZE**0.5).softmax(-1)
        torch.testing.assert_close(found[rows], torch.einsum("hij,jhs->ihs", weights, v), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("error", "said"), [(0.0, ""), (0.1, "is wrong on cpu"), (None, "fails on cpu")])
def test_a_kernel_is_tried_before_it_is_relied_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: float | None, said: str
) -> None:
    """In place of the kernel: padding, right or a little off, or what was not built for the device."""
    padded = attention._WAYS["padded"]

    def kernel(*arguments: Any) -> torch.Tensor:
        if error is None:
            raise NotImplementedError("no kernel image is available for execution on the device")
        return padded(*arguments) * (1 + error)

    monkeypatch.setitem(attention._WAYS, "varlen", kernel)
    monkeypatch.setattr(capability, "choose_way", lambda *_, **__: "varlen")
    found = find_capability(torch.device("cpu"), torch.bfloat16)
    works = error == 0.0
    assert (found.varlen, found.varlen_windows) == (works, works and H100.varlen_windows)
    assert said in caplog.text


def test_the_kernel_is_called_as_this_torch_declares_it() -> None:
    """Without a GPU its arguments and shapes can be tried: on the meta device nothing is computed."""
    pytest.importorskip("torch.nn.attention.varlen")
    query, key, value = (each.to("meta", torch.bfloat16) for each in inputs(LENGTHS))
    batch = batch_of(LENGTHS)
    on_meta = TokenBatch(
        *(
            getattr(batch, name).to("meta")
            for name in ("ids", "types", "positions", "rows", "starts", "attended")
        ),
        longest=batch.longest,
        partly_attended=False,
    )
    assert attend("varlen", on_meta, query, key, value).shape == query.shape
    if find_capability(torch.device("cpu"), torch.bfloat16).varlen_windows:
        assert attend("varlen", on_meta, query, key, value, window=4).shape == query.shape
    firsts = query[: len(LENGTHS)]
    assert attend("varlen", on_meta, firsts, key, value).shape == firsts.shape
