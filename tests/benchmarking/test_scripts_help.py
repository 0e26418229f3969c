"""Every script opens, and says what it does: one that cannot be imported any more is seen here."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(
    path
    for folder in ("benchmarks", "scripts", "scripts/default_models")
    for path in (ROOT / folder).glob("*.py")
    if "\ndef main(" in path.read_text(encoding="utf-8")
)
EXTRAS = {"torch", "transformers", "sentence_transformers", "safetensors", "scipy", "yaml", "datasets"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_script_says_what_it_does(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = set(sys.modules)
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    monkeypatch.setattr(sys, "path", [str(script.parent), *sys.path])  # as Python does for a script
    monkeypatch.setenv("CROSSRANK_BACKEND", "onnx")  # which benchmarks set
    try:
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(script), run_name="__main__")
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        pytest.skip(f"{error.name} is not installed")
    finally:
        for name in set(sys.modules) - loaded:  # modules beside one script are not those of another
            place = getattr(sys.modules[name], "__file__", None)
            if place is not None and Path(place).parent == script.parent:
                del sys.modules[name]
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")
