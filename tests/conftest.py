"""For all tests."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from crossrank.runtime.backends import BACKEND_VARIABLE
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.int8 import INT8_FILE, write_parity
from crossrank.runtime.quantization import calibrate, write_int8
from crossrank.runtime.tokenization import ModelInputs
from crossrank.runtime.tuned import TUNED_VARIABLE

# What is tested is the same on any machine: a GPU is used where a test asks for it.
os.environ.setdefault(BACKEND_VARIABLE, "onnx")
# Nor does it depend on what was measured here: tests that measure name a folder of their own.
os.environ[TUNED_VARIABLE] = "off"

# A deadline would be a wall time asserted by accident: machines are shared and noisy. Examples are the same
# each time.
settings.register_profile("crossrank", deadline=None, derandomize=True)
settings.load_profile("crossrank")


@pytest.fixture(scope="module")
def in_int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A golden model with an int8 form that passed its gate."""
    place = tmp_path_factory.mktemp("int8") / "model"
    shutil.copytree(Path(__file__).parent / "golden" / "bert", place)
    opened = Checkpoint.open(place)
    ids = np.arange(5, 37, dtype=np.int64).reshape(2, 16)
    inputs = [ModelInputs(ids, np.ones_like(ids), np.zeros_like(ids))]
    write_int8(place / INT8_FILE, opened.tensors(), calibrate(opened, "logits", inputs))
    write_parity(place, {"passed": True})
    return place
