"""The documents are true: their Python blocks run and print what is shown, and links lead somewhere."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *(
        ROOT / "docs" / f"{name}.md"
        for name in (
            "guide",
            "late-interaction",
            "composition",
            "t5",
            "export",
            "negatives",
            "llm",
            "training",
            "calibration",
            "similarity",
            "adapt",
            "performance",
            "less-work",
            "gpu",
        )
    ),
]
# What a page needs beyond the core, where that is not what every test run has.
NEEDS = {"training.md": "sentence_transformers", "gpu.md": "torch"}
LINKED = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("data/*/*.md"), *ROOT.glob("recipes/*.md")]
)
# A Python block, and the block of its output where one follows.
BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```\n(?:\n?^```text\n(?P<output>.*?)^```\n)?", re.MULTILINE | re.DOTALL
)
LINK = re.compile(r"\[[^\]]*\]\((?!https?://|#)([^)#\s]+)")


@pytest.fixture
def sample_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder that has data/sample, as a clone has, a small model, and may be written to."""
    shutil.copytree(ROOT / "tests" / "models" / "golden_late" / "multi_vector", tmp_path / "my-colbert")
    shutil.copytree(ROOT / "data" / "sample", tmp_path / "data" / "sample")
    shutil.copytree(ROOT / "tests" / "golden" / "bert_exits", tmp_path / "my-reranker")
    for name in ("my-monot5", "my-duot5"):  # random weights: pages show no scores of them
        shutil.copytree(ROOT / "tests" / "golden_t5" / "t5", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("sample_folder")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run_and_print_what_the_page_shows(page: Path) -> None:
    if page.name in NEEDS:
        pytest.importorskip(NEEDS[page.name])
    text = page.read_text(encoding="utf-8")
    blocks = list(BLOCK.finditer(text))
    assert blocks, f"{page.name} has no Python block"
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks:
        line = text.count("\n", 0, block.start()) + 2
        code = compile("\n" * (line - 1) + block["code"], str(page), "exec")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        if block["output"] is not None:
            assert printed.getvalue() == block["output"], f"{page.name}:{line}"


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_to_files(page: Path) -> None:
    missing = [
        target
        for target in LINK.findall(page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert missing == []
