"""Which backend, device and precision a model gets, and what is said where one cannot be had."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from crossrank.errors import CheckpointError, InputError, MissingExtraError, UnsupportedArchitectureError
from crossrank.runtime import backends
from crossrank.runtime.backends import BACKEND_VARIABLE, choose_backend, open_backend
from crossrank.runtime.checkpoint import Checkpoint

GOLDEN = Path(__file__).parent.parent / "golden"
BUILT_IN = Path(backends.__file__).parent.parent / "models" / "builtin" / "crossrank-mini"


@pytest.fixture(autouse=True)
def _nothing_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(BACKEND_VARIABLE, raising=False)


def chosen(name: str = "bert", gpu: bool = False, **options: Any) -> str:
    options = {"precision": "auto", "source": "auto", "backend": "auto", "device": None, **options}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends, "_gpu_is_there", lambda: gpu)
        backend, device = options.pop("backend"), options.pop("device")
        return choose_backend(backend, device, checkpoint=Checkpoint.open(GOLDEN / name), **options)


@pytest.mark.parametrize(
    ("options", "backend"),
    [
        ({}, "onnx"),
        ({"gpu": True}, "torch"),
        ({"gpu": True, "precision": "float32"}, "torch"),
        ({"gpu": True, "precision": "int8"}, "onnx"),
        ({"gpu": True, "source": "onnx"}, "onnx"),
        ({"gpu": True, "backend": "onnx"}, "onnx"),
        ({"gpu": True, "name": "bert_onnx"}, "onnx"),  # no weights
        ({"precision": "bf16"}, "torch"),
        ({"device": "cpu"}, "torch"),
        ({"backend": "torch"}, "torch"),
    ],
)
def test_what_auto_and_the_others_choose(options: dict[str, Any], backend: str) -> None:
    assert chosen(**options) == backend


def test_a_variable_says_what_auto_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BACKEND_VARIABLE, "onnx")
    assert chosen(gpu=True) == "onnx"
    assert chosen(gpu=True, backend="torch") == "torch"
    monkeypatch.setenv(BACKEND_VARIABLE, "torch")
    assert chosen() == "torch"
    assert chosen(precision="int8") == "onnx"  # which torch does not have
    monkeypatch.setenv(BACKEND_VARIABLE, "tensorrt")
    with pytest.raises(
        InputError, match=r"CROSSRANK_BACKEND is 'tensorrt'; set it to one of auto, onnx, torch"
    ):
        chosen()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "tensorrt"}, "backend is 'tensorrt'; choose one of auto, onnx, torch"),
        ({"precision": "fp16"}, "precision is 'fp16'; choose one of auto, float32, int8, bf16"),
        ({"backend": "onnx", "device": "cuda"}, "device is of backend='torch'"),
        ({"backend": "onnx", "precision": "bf16"}, "'bf16' needs backend='torch'"),
        ({"backend": "torch", "precision": "int8"}, "'int8' is of backend='onnx'"),
        ({"device": "cpu", "precision": "int8"}, "'int8' is of backend='onnx'"),
        ({"backend": "torch", "source": "onnx"}, "source 'onnx' is of backend='onnx'"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        chosen(**options)


def test_a_model_without_weights_cannot_run_on_torch() -> None:
    with pytest.raises(CheckpointError, match="no safetensors weights, which torch computes with"):
        chosen("bert_onnx", backend="torch")


def test_an_architecture_that_torch_does_not_run(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(GOLDEN.with_name("golden_t5") / "t5")
    with pytest.raises(UnsupportedArchitectureError, match=r"'t5' is not run by torch here; bert, .* are"):
        choose_backend("torch", None, precision="auto", source="auto", checkpoint=checkpoint)


def test_a_missing_torch_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    with pytest.raises(MissingExtraError, match=r"pip install 'crossrank\[torch\]'"):
        open_backend(Checkpoint.open(GOLDEN / "bert"), output="logits", backend="torch")


def test_auto_does_not_import_torch_where_no_driver_is() -> None:
    code = (
        "import sys; from crossrank.runtime import backends; backends._driver_is_there = lambda: False; "
        "from crossrank import CrossEncoder; "
        f"model = CrossEncoder({str(GOLDEN / 'bert')!r}, threads=1); "
        "print(model.precision, 'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "float32 False"


# --- with torch ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "", "tpu", 3.5])
def test_a_device_that_is_none(device: Any) -> None:
    pytest.importorskip("torch")
    with pytest.raises(InputError, match=r"device is .*; choose 'cpu', 'cuda', 'cuda:1'"):
        open_backend(Checkpoint.open(GOLDEN / "bert"), output="logits", device=device)


class FakeTorch:
    """What is asked of torch before a device is used, as other machines would answer."""

    def __init__(self, gpus: int, built_with: str | None = "13.0", bf16: bool = True) -> None:
        real = pytest.importorskip("torch")
        self.device = real.device
        self.version = type("version", (), {"cuda": built_with})
        self.cuda = type(
            "cuda",
            (),
            {
                "is_available": staticmethod(lambda: gpus > 0),
                "device_count": staticmethod(lambda: gpus),
                "current_device": staticmethod(lambda: 0),
                "is_bf16_supported": staticmethod(lambda including_emulation: bf16),
            },
        )
        none = type("mps", (), {"is_available": staticmethod(lambda: False)})
        self.backends = type("backends", (), {"mps": none})


def test_devices_that_are_there() -> None:
    two = FakeTorch(2)
    assert str(backends.open_device(two, None)) == "cuda:0"
    assert str(backends.open_device(two, "cuda:1")) == "cuda:1"
    assert str(backends.open_device(two, "cpu")) == "cpu"
    assert str(backends.open_device(FakeTorch(0), None)) == "cpu"


@pytest.mark.parametrize(
    ("torch", "device", "message"),
    [
        ((0, None), "cuda", "this torch was built without CUDA: install one that has it"),
        ((0, "13.0"), "cuda:1", "torch sees no GPU: see nvidia-smi, and CUDA_VISIBLE_DEVICES"),
        ((2, "13.0"), "cuda:2", "'cuda:2', which is not there; torch sees cuda:0, cuda:1"),
        ((0, None), "mps", "of Apple's GPUs; torch sees none"),
    ],
)
def test_a_device_that_is_not_there(torch: tuple[int, str | None], device: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        backends.open_device(FakeTorch(*torch), device)


def test_bf16_is_for_gpus_that_compute_in_it() -> None:
    real = pytest.importorskip("torch")
    gpu, cpu = real.device("cuda", 0), real.device("cpu")
    assert backends.default_precision(FakeTorch(1), gpu) == "bf16"
    assert backends.default_precision(FakeTorch(1, bf16=False), gpu) == "float32"
    assert backends.default_precision(FakeTorch(0), cpu) == "float32"


def test_int8_weights_that_nothing_vouches_for(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    assert open_backend(Checkpoint.open(BUILT_IN), output="logits", device="cpu").precision == "float32"
    folder = shutil.copytree(BUILT_IN, tmp_path / "model")
    (folder / "parity.json").write_text('{"passed": false}', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"does not say that they passed the parity gate"):
        open_backend(Checkpoint.open(folder), output="logits", device="cpu")
    stated = open_backend(Checkpoint.open(folder), output="logits", device="cpu", precision="float32")
    assert stated.precision == "float32"
