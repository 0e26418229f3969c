"""The vectors of an index: whose they are, and whether they can be stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crossrank.checks import as_vectors
from crossrank.errors import IndexMismatchError, InputError, ModelOutputError
from crossrank.store.schema import ModelSettings
from crossrank.store.store import VectorEncoder

__all__ = ["check_same_vectors", "check_vectors", "model_settings"]


def model_settings(bi_encoder: VectorEncoder) -> ModelSettings:
    """Return what an index says of the bi-encoder it is made with.

    Raises:
        InputError: it is none.
    """
    if not all(hasattr(bi_encoder, name) for name in ("name", "fingerprint", "dimensions", "encode_queries")):
        raise InputError(
            f"a bi-encoder has a name, a fingerprint and dimensions, {bi_encoder!r} has not; open a model "
            "with BiEncoder(name)"
        )
    return ModelSettings(
        bi_encoder.name,
        bi_encoder.fingerprint,
        int(bi_encoder.dimensions),
        getattr(bi_encoder, "precision", None),
    )


def check_same_vectors(path: str | Path, stored: ModelSettings | None, bi_encoder: VectorEncoder) -> None:
    """Refuse a bi-encoder whose vectors are not those of an index.

    Raises:
        IndexMismatchError: says which is which.
    """
    given = model_settings(bi_encoder)
    if stored is None:
        raise IndexMismatchError(
            f"{path}: this index has no vectors, so it cannot be used with {given.name!r}; open it "
            "without a bi-encoder, or create it anew with one"
        )
    if (stored.fingerprint, stored.dimensions) != (given.fingerprint, given.dimensions):
        raise IndexMismatchError(
            f"{path}: the vectors in this index are those of {stored.described}, which cannot be "
            f"compared with those of {given.described}; open it with the former, or create it anew"
        )


def check_vectors(vectors: Any, rows: int, encoder: VectorEncoder) -> npt.NDArray[np.float32]:
    """Return the vectors as float32 after checking them.

    Raises:
        ModelOutputError: another shape than (rows, dimensions), or NaN or infinity.
    """
    name = f"the vectors of {encoder.name}"
    return as_vectors(vectors, name, rows=rows, dimensions=encoder.dimensions, error=ModelOutputError)
