"""What training starts from: a folder with float32 weights that transformers opens."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from crossrank.errors import CheckpointError
from crossrank.models.hub import Kind, resolve
from crossrank.models.load import kind_of
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.exits import EXITS_FILE
from crossrank.runtime.weights import weight_files

__all__ = ["base_folder", "check_base"]


@contextmanager
def base_folder(base: str, kind: Kind, revision: str | None = None) -> Iterator[Path]:
    """Give the folder of a base; one with int8 weights alone is written out as float32 for as long.

    The built-in models are such: what is trained then starts from their rounded weights.

    Args:
        base: the name of a built-in model, a folder, or a name on the hub.
        kind: what it is looked for as.
        revision: commit, tag or branch of a base from the hub.

    Raises:
        CheckpointNotFoundError: there is no such model.
        CheckpointError: there are no weights to train.
    """
    folder = resolve(base, kind=kind, revision=revision)
    if weight_files(folder) or any(folder.glob("0_*/*.safetensors")):
        yield folder
        return
    checkpoint = Checkpoint.open(folder)
    if not checkpoint.has_weights:
        raise CheckpointError(f"{folder} has no weights to train from; safetensors are needed")
    from safetensors.numpy import save_file

    with tempfile.TemporaryDirectory(prefix="crossrank-base-") as temporary:
        whole = Path(temporary, folder.name)
        other_forms = shutil.ignore_patterns("*.safetensors", "parity.json", "*.onnx")
        shutil.copytree(folder, whole, ignore=other_forms)
        if checkpoint.exits_file is not None:
            shutil.copyfile(checkpoint.exits_file, whole / EXITS_FILE)
        tensors = checkpoint.tensors()
        weights = {name: np.array(tensors[name], dtype=np.float32) for name in tensors}
        save_file(weights, whole / "model.safetensors", metadata={"format": "pt"})
        yield whole


def check_base(name: str, folder: Path, kinds: Collection[str], student: str) -> None:
    """Refuse a base that was trained to be something else; its weights would be taken in silence.

    Args:
        name: of the base, for messages.
        folder: its files.
        kinds: of `crossrank.models.load.KINDS`, that may be trained; so may a plain transformer.
        student: what is trained, in words.

    Raises:
        CheckpointError: it is of another kind.
    """
    try:
        kind = kind_of(folder)
    except CheckpointError:
        return  # it does not say that it is anything but a transformer
    if kind not in kinds:
        raise CheckpointError(
            f"student.base: {name} is of the kind {kind}; {student} is trained from a plain transformer or "
            f"the kind {' or '.join(kinds)}"
        )
