"""`import crossrank` is light: what it must not bring in, whatever is installed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {
    "fastapi",
    "huggingface_hub",
    "lancedb",
    "numpy",
    "openai",
    "onnx",
    "onnxruntime",
    "pyarrow",
    "pytrec_eval",
    "sentence_transformers",
    "starlette",
    "tokenizers",
    "torch",
    "transformers",
    "typer",
    "uvicorn",
}
OPTIONAL = {
    "fastapi",
    "lancedb",
    "openai",
    "pyarrow",
    "pytrec_eval",
    "sentence_transformers",
    "starlette",
    "torch",
    "transformers",
    "uvicorn",
}


def modules_after(statement: str) -> set[str]:
    program = (
        f"{statement}\nimport json, sys\nprint(json.dumps([name.split('.')[0] for name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert modules_after("import crossrank") & HEAVY == set()


def test_the_command_line_starts_without_models_or_stores() -> None:
    assert modules_after("import crossrank.cli") & (HEAVY - {"typer"}) == set()


def test_an_index_needs_no_library_of_tokenizers() -> None:
    assert "tokenizers" not in modules_after("from crossrank import Index, Searcher")


@pytest.mark.parametrize(
    "statement",
    [
        "from crossrank import BM25, Dense, Hybrid",
        "from crossrank import CrossEncoder, BiEncoder",
        "from crossrank import Searcher",
        "from crossrank import Index",
        "from crossrank import Collection, evaluate, read_run",
        "import crossrank; [getattr(crossrank, name) for name in crossrank.__all__]",
    ],
)
def test_public_names_load_without_optional_packages(statement: str) -> None:
    assert modules_after(statement) & OPTIONAL == set()
