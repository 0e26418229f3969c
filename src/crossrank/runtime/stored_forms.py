"""The forms a checkpoint's weights are stored in, and which of them is computed with."""

from __future__ import annotations

from typing import Literal

from crossrank.errors import CheckpointError
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.exits import EXITS_FILE
from crossrank.runtime.int8 import INT8_FILE, PARITY_FILE, passed_parity

__all__ = ["stored_precision", "why_no_int8"]


def stored_precision(
    checkpoint: Checkpoint, precision: str, *, exits: bool = False
) -> Literal["float32", "int8"]:
    """Say which of a checkpoint's forms to compute with.

    Args:
        checkpoint: the opened folder.
        precision: what was asked for; see `engine.open_engine`.
        exits: whether scores after earlier layers are wanted, which must have passed the parity gate, too.

    Raises:
        CheckpointError: there is no such form.
    """
    int8_file = checkpoint.int8_file
    if precision == "int8" or (precision == "auto" and int8_file):
        exits_digest = checkpoint.exits_digest if exits else ""
        if int8_file and passed_parity(int8_file.parent, lambda: checkpoint.int8_digest, exits_digest):
            return "int8"
        if precision == "int8" or not checkpoint.weight_files:
            raise CheckpointError(why_no_int8(checkpoint, exits=exits))
    return "float32"


def why_no_int8(checkpoint: Checkpoint, *, exits: bool = False) -> str:
    """Say why a checkpoint has no int8 form to compute with, and what to do."""
    why = f"there is no {INT8_FILE}; use precision='float32'"
    if checkpoint.int8_file:
        why = (
            f"{PARITY_FILE} does not say so of its {INT8_FILE}, SHA-256 {checkpoint.int8_digest}; "
            "fetch both again, or use precision='float32'"
        )
        if exits and passed_parity(checkpoint.int8_file.parent, lambda: checkpoint.int8_digest):
            why = (
                f"{PARITY_FILE} does not say so of its {EXITS_FILE}, the heads at earlier layers; quantise "
                "the model again with them, or use precision='float32'"
            )
    return f"{checkpoint.folder} has no int8 form that passed the parity gate: {why}"
