"""Compiles the native library when the package is built, where that can be done.

Without it everything works, and int8 is slower.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = "src/crossrank/runtime/native"
SOURCE = "bert_layer.c"
# The instructions are those that are looked for before the library is loaded; the compiler must round every
# product by itself, so that no sum depends on what else is in a tile.
FLAGS = "-O3 -std=gnu11 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mfma -ffp-contract=off"


def compilation(source: Path, library: Path, *options: str) -> list[str]:
    """The command that compiles the library."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    options = (*FLAGS.split(), "-shared", "-fPIC", "-fvisibility=hidden", *options, "-o", str(library))
    return [*compiler, *options, str(source), "-lm", "-lpthread"]


class NativeLibrary(BuildHookInterface):  # type: ignore[type-arg]
    """Puts the library into wheels, and beside its source for editable installs."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; a wheel with a library is of one platform."""
        if self.target_name != "wheel":
            return
        library = self.compile(Path(self.root, FOLDER))
        if library is None:
            return
        build_data["artifacts"].append(f"{FOLDER}/{library.name}")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"

    def compile(self, folder: Path) -> Path | None:
        """The library, or None where it cannot be made, which is said."""
        if sys.platform != "linux" or platform.machine() != "x86_64":
            return None
        # Its name has the source's hash: a library of other source is never loaded.
        digest = hashlib.sha256((folder / SOURCE).read_bytes()).hexdigest()[:16]
        library = folder / f"bert_layer-{digest}.so"
        if library.exists():
            return library
        for old in folder.glob("bert_layer-*.so"):
            old.unlink()
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch, library.name)
            command = compilation(folder / SOURCE, made)
            try:
                ran = subprocess.run(command, capture_output=True, text=True, check=False)
            except OSError as error:
                return self._without(f"there is no C compiler ({error})")
            if ran.returncode:
                last = (ran.stderr.strip().splitlines() or [f"it ends with {ran.returncode}"])[-1]
                return self._without(f"{command[0]} does not compile {SOURCE}: {last}")
            made.replace(library)
        return library

    def _without(self, why: str) -> None:
        self.app.display_warning(f"int8 will run without the native library: {why}")
