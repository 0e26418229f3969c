"""Models run by torch on the CPU give what they give on ONNX Runtime: the same verbs, settings and errors."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from crossrank import BiEncoder, CrossEncoder, ScoreCache, load
from crossrank.errors import InputError
from crossrank.models import pair_scorer
from crossrank.models.late_interaction import LateInteraction

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "golden"
BI_ENCODERS = sorted(path.name for path in (HERE / "golden_bi").iterdir() if path.is_dir())
LATE = sorted(path.name for path in (HERE / "golden_late").iterdir() if path.is_dir())
QUERY = "what is the water"
TEXTS = ["the river", "the water of the mountain is in the river " * 4, "", "a cat", "birds and dogs " * 9]
TOLERANCE = 1e-5


@pytest.mark.parametrize(
    "name", ["bert", "xlm_roberta", "deberta_v3", "modernbert", "sbert_modular_cross_encoder"]
)
def test_cross_encoders(name: str) -> None:
    here = CrossEncoder(GOLDEN / name, backend="onnx")
    there = CrossEncoder(GOLDEN / name, device="cpu")
    pairs = [(QUERY, text) for text in TEXTS]
    np.testing.assert_allclose(there.score(pairs), here.score(pairs), rtol=0, atol=TOLERANCE)
    ranking = there.rank(QUERY, TEXTS)
    assert [hit.index for hit in ranking] == [hit.index for hit in here.rank(QUERY, TEXTS)]
    assert there.precision == "float32"
    assert there.fingerprint == here.fingerprint


def test_windows_of_long_documents() -> None:
    options: dict[str, Any] = {"long_documents": "max", "window_tokens": 20}
    here = CrossEncoder(GOLDEN / "bert", backend="onnx", **options)
    there = CrossEncoder(GOLDEN / "bert", backend="torch", device="cpu", **options)
    for hit, other in zip(there.rank(QUERY, TEXTS), here.rank(QUERY, TEXTS), strict=True):
        assert (hit.index, hit.span) == (other.index, other.span)
        assert hit.score == pytest.approx(other.score, abs=TOLERANCE)


@pytest.mark.parametrize("name", BI_ENCODERS)
def test_bi_encoders(name: str) -> None:
    here = BiEncoder(HERE / "golden_bi" / name, backend="onnx")
    there = BiEncoder(HERE / "golden_bi" / name, device="cpu")
    for encode in ("encode_queries", "encode_documents"):
        np.testing.assert_allclose(
            getattr(there, encode)(TEXTS), getattr(here, encode)(TEXTS), rtol=0, atol=TOLERANCE
        )
    assert there.fingerprint == here.fingerprint


@pytest.mark.parametrize("name", LATE)
def test_late_interaction(name: str) -> None:
    """Query expansion included: vectors of tokens that none attends to count in some of them."""
    here = LateInteraction(HERE / "golden_late" / name, backend="onnx")
    there = LateInteraction(HERE / "golden_late" / name, device="cpu")
    queries = [QUERY, "blue river"]
    for found, wanted in (
        (there.encode_queries(queries), here.encode_queries(queries)),
        (there.encode_documents(TEXTS), here.encode_documents(TEXTS)),
    ):
        for each, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(each, other, rtol=0, atol=TOLERANCE)
    pairs = [(query, text) for query in queries for text in TEXTS]
    np.testing.assert_allclose(there.score(pairs), here.score(pairs), rtol=0, atol=1e-4)


def test_some_late_interaction_models_have_unattended_expansion() -> None:
    found = {LateInteraction(HERE / "golden_late" / name).settings.has_unattended_expansion for name in LATE}
    assert found == {False, True}


def test_bf16_is_another_precision_to_caches_and_calibrations() -> None:
    here, there = (
        CrossEncoder(backend="onnx", precision="float32"),
        CrossEncoder(precision="bf16", device="cpu"),
    )
    assert there.precision == "bf16"
    assert there.fingerprint != here.fingerprint
    assert there.calibration is None
    assert "bf16" in there.why_uncalibrated
    texts = [
        "Hamlet is a tragedy by William Shakespeare.",
        "A hamlet is a small village.",
        "Fish live in water.",
    ]
    pairs = [("who wrote Hamlet", text) for text in texts]
    np.testing.assert_allclose(there.score(pairs), here.score(pairs), rtol=0, atol=0.1)


def test_blocks_are_prepared_while_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than one thread works on a long call; what comes out is the same, and in order."""
    monkeypatch.setattr(pair_scorer, "_BLOCK_PAIRS", 3)
    here, there = CrossEncoder(GOLDEN / "bert", backend="onnx"), CrossEncoder(GOLDEN / "bert", device="cpu")
    compute = there._scorer._compute
    names = set()

    def noted(*arguments: Any) -> Any:
        names.add(threading.current_thread().name)
        return compute(*arguments)

    monkeypatch.setattr(there._scorer, "_compute", noted)
    pairs = [(QUERY, " ".join(["river"] * count)) for count in range(1, 40)]
    np.testing.assert_allclose(there.score(pairs), here.score(pairs), rtol=0, atol=TOLERANCE)
    assert len(names) == 2
    assert all(name.startswith("crossrank-overlap") for name in names)


def test_blocks_share_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_scorer, "_BLOCK_PAIRS", 3)
    cache = ScoreCache(tmp_path / "scores.sqlite")
    model = CrossEncoder(GOLDEN / "bert", device="cpu", cache=cache)
    pairs = [(QUERY, " ".join(["river"] * count)) for count in range(1, 20)]
    first = model.score(pairs)
    np.testing.assert_array_equal(model.score(pairs), first)
    # In float32 what one backend computed serves the other.
    np.testing.assert_array_equal(
        CrossEncoder(GOLDEN / "bert", backend="onnx", cache=cache).score(pairs), first
    )


def test_load_passes_backend_and_device_on() -> None:
    assert load(str(GOLDEN / "bert"), backend="torch", device="cpu", precision="bf16").precision == "bf16"


def test_a_position_is_named_in_errors_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_scorer, "_BLOCK_PAIRS", 2)
    model = CrossEncoder(GOLDEN / "bert", device="cpu")
    run = model._scorer._engine.run_all

    def broken(batches: Any) -> Any:
        for output in run(batches):
            yield np.full_like(output, np.nan)

    monkeypatch.setattr(model._scorer._engine, "run_all", broken)
    with pytest.raises(RuntimeError, match=r"NaN or infinity for pairs\[\d\]"):
        model.score([(QUERY, text) for text in TEXTS])


def test_a_device_that_is_none_is_refused_by_every_kind() -> None:
    for open_model in (
        lambda: CrossEncoder(GOLDEN / "bert", device="gpu"),
        lambda: BiEncoder(HERE / "golden_bi" / "mean", device="gpu"),
        lambda: LateInteraction(HERE / "golden_late" / "pylate", device="gpu"),
    ):
        with pytest.raises(InputError, match="device is 'gpu'; choose"):
            open_model()
