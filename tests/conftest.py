"""For all tests."""

from __future__ import annotations

import os

from crossrank.runtime.backends import BACKEND_VARIABLE

# What is tested is the same on any machine: a GPU is used where a test asks for it.
os.environ.setdefault(BACKEND_VARIABLE, "onnx")
