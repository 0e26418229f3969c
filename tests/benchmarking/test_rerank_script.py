"""benchmarks/rerank.py: environments are made once, and say why they cannot be made."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from crossrank.benchmarking.contestants import ContestantError

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield import_module("rerank")
    for name in ("rerank", "harness", "material"):
        sys.modules.pop(name, None)


def wheel(folder: Path, version: str) -> str:
    """A wheel of a package without content."""
    path = folder / f"nothing_at_all-{version}-py3-none-any.whl"
    place = f"nothing_at_all-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(
            f"{place}/METADATA", f"Metadata-Version: 2.1\nName: nothing-at-all\nVersion: {version}\n"
        )
        file.writestr(f"{place}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{place}/RECORD", "")
    return str(path)


def test_an_environment_is_made_once_and_again_for_other_requirements(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def version() -> str:
        python = script.environment(tmp_path / "environments", "flashrank")
        code = "from importlib.metadata import version; print(version('nothing-at-all'))"
        ran = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
        return ran.stdout.strip()

    script.REQUIREMENTS["flashrank"] = (wheel(tmp_path, "1.0"),)
    assert version() == "1.0"
    assert "installing" in capsys.readouterr().out
    assert version() == "1.0"
    assert "installing" not in capsys.readouterr().out
    script.REQUIREMENTS["flashrank"] = (wheel(tmp_path, "2.0"),)
    assert version() == "2.0"


def test_what_does_not_install_is_named_with_its_reason(script: ModuleType, tmp_path: Path) -> None:
    missing = str(tmp_path / "absent-1.0-py3-none-any.whl")
    script.REQUIREMENTS["infinity"] = (missing,)
    script.REQUIREMENTS["flashrank"] = (wheel(tmp_path, "1.0"),)
    found, failed = script.environments(["infinity", "infinity optimum", "flashrank"], tmp_path)
    assert list(found) == ["flashrank"]
    assert list(failed) == ["infinity", "infinity optimum"]
    for reason in failed.values():
        assert reason.startswith("it does not install: ERROR")
        assert Path(missing).name in reason


def test_every_contestant_has_an_environment(script: ModuleType) -> None:
    from crossrank.benchmarking.worker import CONTESTANTS

    assert set(script.ENVIRONMENTS) | set(script.OURS) == set(CONTESTANTS)
    assert set(script.ENVIRONMENTS.values()) == set(script.REQUIREMENTS)


@pytest.mark.parametrize("fails", ["environment", "add_onnx_files"])
def test_without_exported_files_the_others_are_measured(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def failing(*arguments: object) -> None:
        raise {"environment": script.InstallError, "add_onnx_files": ContestantError}[fails]("no space left")

    monkeypatch.setattr(script, "environment", lambda folder, name: Path(sys.executable))
    found, failed = script.environments(["flashrank"], tmp_path)
    monkeypatch.setattr(script, "environments", lambda names, folder: (dict(found), dict(failed)))
    monkeypatch.setattr(script, fails, failing)
    monkeypatch.setattr(
        sys, "argv", ["rerank.py", "--profiles", "short", "--contestants", "flashrank", "--rounds", "1"]
    )
    sys.argv += ["--documents", "3", "--queries", "1", "--threads", "1", "--output", str(tmp_path / "r.json")]
    script.main()
    result = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert set(result["profiles"]["short"]["latency"]) == set(script.OURS)
    assert list(result["left_out"]) == ["flashrank"]
    assert result["left_out"]["flashrank"].endswith("no space left")
