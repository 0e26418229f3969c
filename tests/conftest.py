"""For all tests."""

from __future__ import annotations

import os

from hypothesis import settings

from crossrank.runtime.backends import BACKEND_VARIABLE
from crossrank.runtime.tuned import TUNED_VARIABLE

# What is tested is the same on any machine: a GPU is used where a test asks for it.
os.environ.setdefault(BACKEND_VARIABLE, "onnx")
# Nor does it depend on what was measured here: tests that measure name a folder of their own.
os.environ[TUNED_VARIABLE] = "off"

# A deadline would be a wall time asserted by accident: machines are shared and noisy.
settings.register_profile("crossrank", deadline=None)
settings.load_profile("crossrank")
