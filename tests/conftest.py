"""For all tests."""

from __future__ import annotations

import os

from hypothesis import settings

from crossrank.runtime.backends import BACKEND_VARIABLE

# What is tested is the same on any machine: a GPU is used where a test asks for it.
os.environ.setdefault(BACKEND_VARIABLE, "onnx")

# A deadline would be a wall time asserted by accident: machines are shared and noisy.
settings.register_profile("crossrank", deadline=None)
settings.load_profile("crossrank")
