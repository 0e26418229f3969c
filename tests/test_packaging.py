"""What people install has all it needs: code, types, model weights, licences."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "crossrank"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheel and source distribution, built in a used checkout in a folder called dist."""
    root = tmp_path_factory.mktemp("build") / "work" / "dist"
    skipped = (
        ".venv",
        ".git",
        ".mypy_cache",
        ".hypothesis",
        ".pytest_cache",
        ".ruff_cache",
        "*.so",
        "*-index",
        "dist",
        "__pycache__",
    )
    shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns(*skipped))
    for left in ("demo-index/documents.lance/1.manifest", ".venv/bin/python", ".git/config", "notes.txt"):
        (root / left).parent.mkdir(parents=True, exist_ok=True)
        (root / left).write_text("left by use", encoding="utf-8")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    return folder


def package_files() -> set[str]:
    return {
        path.relative_to(ROOT / "src").as_posix()
        for path in SOURCE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so"
    }


def platform_tag() -> str:
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")


def test_the_wheel_has_every_file_of_the_package(built: Path) -> None:
    [wheel] = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    inside = {name for name in names if name.startswith("crossrank/")}
    libraries = {name for name in inside if name.endswith(".so")}
    assert inside - libraries == package_files()
    # A wheel with a compiled library is of one platform, and of any Python.
    assert wheel.name.endswith(f"-py3-none-{platform_tag() if libraries else 'any'}.whl")
    assert "crossrank/py.typed" in inside
    assert {Path(name).name for name in names if "/licenses/" in name} == {"LICENSE", "NOTICE"}


def test_the_source_distribution_can_build_and_test_itself(built: Path) -> None:
    [source] = built.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"src/{name}" for name in package_files()} <= names
    for needed in ("pyproject.toml", "Makefile", "LICENSE", "NOTICE", "README.md", "tests/test_packaging.py"):
        assert needed in names
    assert {f"data/sample/{name}" for name in ("corpus.jsonl.gz", "qrels/test.tsv", "README.md")} <= names
    assert not [name for name in names if name.startswith((".venv", ".git/", "demo-index", "notes"))]


def test_the_library_is_compiled_where_there_is_a_compiler(built: Path) -> None:
    if sys.platform != "linux" or platform.machine() != "x86_64" or shutil.which("cc") is None:
        pytest.skip("needs Linux on x86-64 and a C compiler")
    [wheel] = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        [library] = [name for name in archive.namelist() if name.endswith(".so")]
    source = SOURCE / "runtime" / "native" / "bert_layer.c"
    assert hashlib.sha256(source.read_bytes()).hexdigest()[:16] in library


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_the_wheel_is_for_any_platform(compiler: str, tmp_path: Path, built: Path) -> None:
    [source] = built.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path, filter="data")
    [root] = tmp_path.iterdir()
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    ran = subprocess.run(
        command, cwd=root, check=True, capture_output=True, text=True, env={**os.environ, "CC": compiler}
    )
    [wheel] = (tmp_path / "dist").glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    if sys.platform == "linux" and platform.machine() == "x86_64":
        assert "without the native library" in ran.stdout + ran.stderr
