"""ONNX Runtime's sessions: how they are set, and that of a model folder's own ONNX file."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import onnxruntime

from crossrank.errors import CheckpointError
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.int8 import PARITY_FILE, passed_parity
from crossrank.runtime.onnx_file import OnnxFacts, onnx_digest, read_facts
from crossrank.runtime.stored_forms import why_no_int8

__all__ = ["FileSession", "new_session", "open_file", "session_options"]

_SLOW_FUSIONS = ["SkipLayerNormFusion", "BiasGeluFusion"]  # each takes longer than what it replaces
_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}
# The exact float32 exports, best known first; O3 and O4 approximate, others are quantised or half-precision.
_ONNX_FILES = ("model.onnx", "model_O1.onnx", "model_O2.onnx")
_ONNX_OUTPUTS = {"logits": ("logits",), "tokens": ("last_hidden_state", "token_embeddings")}


class FileSession(NamedTuple):
    """A session of an ONNX file.

    Attributes:
        session: see above.
        path: of the file.
        output: name of the output that was asked for.
        precision: what its linear layers compute in: "float32" or "int8".
        digest: gives SHA-256 (hex) of the file, computed when first asked for.
    """

    session: onnxruntime.InferenceSession
    path: Path
    output: str
    precision: str
    digest: Callable[[], str]


def session_options(threads: int = 1) -> onnxruntime.SessionOptions:
    """Return how sessions are set whose runs take this many threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3  # errors only: a library does not print
    # Spinning threads burn the cores that other processes, and a container's quota, need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def new_session(model: bytes | str, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    """Make a session on the CPU of a serialised model, or of the file at a path."""
    return onnxruntime.InferenceSession(
        model, options, providers=["CPUExecutionProvider"], disabled_optimizers=_SLOW_FUSIONS
    )


def open_file(
    checkpoint: Checkpoint, output: str | Callable[..., str], precision: str, threads: int = 1
) -> FileSession:
    """Open the ONNX file of a checkpoint's own folder.

    Args:
        checkpoint: the opened folder.
        output: what the file must give; see `engine.open_engine`.
        precision: what its linear layers must compute in; "auto" takes what it has.
        threads: of one run.

    Raises:
        CheckpointError: there is no such file, or none that can be trusted to give the model's scores.
    """
    by_name = {file.name: file for file in checkpoint.onnx_files}
    file = next((by_name[name] for name in _ONNX_FILES if name in by_name), None)
    if file is None:
        found = ", ".join(by_name) or "no ONNX file"
        raise CheckpointError(
            f"{checkpoint.folder} has {found} under onnx/, but none of {', '.join(_ONNX_FILES)}; quantised "
            "and half-precision files are not used, as they give a pair another score in another batch"
        )
    try:
        session = new_session(str(file), session_options(threads))
    except Exception as error:  # ONNX Runtime has no public exception type
        raise CheckpointError(f"{file} cannot be opened: {error}; fetch the model again") from error
    facts = read_facts(session.get_modelmeta().custom_metadata_map)
    if facts is None:
        _check_foreign(file, checkpoint, output)
        facts = OnnxFacts(str(output), "float32")
    if facts.output != str(output):
        raise CheckpointError(
            f"{file} was written to give {facts.output}, and {output} is asked for; open it without options "
            "that choose another output, or open the model that it was made of"
        )
    if precision not in ("auto", facts.precision):
        raise CheckpointError(
            why_no_int8(checkpoint)
            if precision == "int8"
            else f"{file} computes in int8, not float32; open the model that it was made of"
        )
    digest = cache(partial(onnx_digest, file))
    if facts.precision == "int8" and not passed_parity(file.parent, digest):
        raise CheckpointError(
            f"{file} is in int8, and {file.parent / PARITY_FILE} does not say that this file, SHA-256 "
            f"{digest()}, passed the parity gate; write it again with `crossrank export`"
        )
    unknown = sorted({value.name for value in session.get_inputs()} - _INPUTS)
    if unknown:
        raise CheckpointError(f"{file} wants inputs that crossrank does not give: {', '.join(unknown)}")
    given = [value.name for value in session.get_outputs()]
    names = _ONNX_OUTPUTS["tokens" if output == "tokens" else "logits"]
    wanted = next((name for name in names if name in given), None)
    if wanted is None:
        raise CheckpointError(
            f"{file} gives {', '.join(given)}, but {output} needs one of {', '.join(names)}"
            + ("; it has no trained classification head" if output == "logits" else "")
        )
    return FileSession(session, file, wanted, facts.precision, digest)


def _check_foreign(file: Path, checkpoint: Checkpoint, output: str | Callable[..., str]) -> None:
    """Refuse a file of another exporter for what no exporter but ours writes."""
    if checkpoint.is_modular_cross_encoder and output == "logits":
        raise CheckpointError(
            f"{file} ends before the Dense modules that give this model's scores; its safetensors are needed"
        )
    if callable(output):
        raise CheckpointError(
            f"{file} does not say that it gives {output}; the model's safetensors are needed"
        )
