"""What MonoT5, RankT5 and DuoT5 share: how they are opened, and which tokens and words they use."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crossrank.errors import CheckpointError, InputError
from crossrank.models.declaration import Declaration, read_declaration, write_declaration
from crossrank.models.t5_families import FAMILIES, PUBLISHED, Family
from crossrank.runtime.backends import Backend, Precision, choose_backend
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.encoders.t5 import TokenScore
from crossrank.runtime.engine import Engine, open_engine
from crossrank.runtime.settings import bad_setting
from crossrank.runtime.tokenization import Tokenizer

__all__ = [
    "answer_ids",
    "check_kind",
    "declare_t5",
    "find_family",
    "model_name",
    "open_step",
    "stated_prompt",
    "token_id",
]


def check_kind(checkpoint: Checkpoint, declared: Declaration, kind: str) -> None:
    """Refuse a folder that is no T5, or says that it is another kind of reranker.

    Raises:
        CheckpointError: says what it is.
    """
    if checkpoint.architecture != "t5":
        raise CheckpointError(
            f"{checkpoint.folder} is no T5 but {checkpoint.architecture}; crossrank.load opens what it is"
        )
    if declared.kind not in (None, kind):
        raise CheckpointError(
            f"{declared.source} says that the model is of the kind {declared.kind!r}, not {kind!r}; "
            "crossrank.load opens it as what it is"
        )


def find_family(name: str, checkpoint: Checkpoint, family: str | None) -> Family:
    """The family that a checkpoint answers as: the one asked for, the published one, or its model type's.

    Raises:
        InputError: there is no such family.
    """
    if family is None:
        family = PUBLISHED[name][1] if name in PUBLISHED else str(checkpoint.config["model_type"])
    if family not in FAMILIES:
        raise InputError(f"family is {family!r}; choose one of {', '.join(FAMILIES)}")
    return FAMILIES[family]


def stated_prompt(declared: Declaration) -> str | None:
    """The prompt a folder says it was trained with; None where it does not say."""
    prompt = declared.settings.get("prompt")
    if prompt is not None and not isinstance(prompt, str):
        raise bad_setting(declared.source, "prompt", prompt, "a string")
    return prompt


def answer_ids(
    tokenizer: Tokenizer,
    checkpoint: Checkpoint,
    tokens: Sequence[str | int] | None,
    declared: Declaration,
    family: Family,
) -> tuple[int, int]:
    """The ids of (false, true).

    Args:
        tokenizer: the model's.
        checkpoint: for messages.
        tokens: asked for; None takes those that the folder states, or the family's.
        declared: what the folder states.
        family: what its kin answer.

    Raises:
        InputError: tokens that are not two, or not in the vocabulary.
        CheckpointError: those of the folder are not, or it states none and its family's are not there.
    """
    stated: Any = declared.settings.get("tokens") if tokens is None else tokens
    if stated is None:
        known = ", ".join(f"{name} {' '.join(each.tokens)}" for name, each in FAMILIES.items())
        try:
            false, true = (token_id(tokenizer, checkpoint, token) for token in family.tokens)
        except InputError:
            raise CheckpointError(
                f"{checkpoint.folder} does not say which tokens it answers with, and its vocabulary does not "
                f"have both {' and '.join(family.tokens)}; give tokens=(false, true), or family= one of: "
                f"{known}"
            ) from None
        return false, true
    error: type[InputError | CheckpointError] = CheckpointError if tokens is None else InputError
    where = f"{declared.source}: tokens" if tokens is None else "tokens"
    if isinstance(stated, str) or not isinstance(stated, Sequence) or len(stated) != 2:
        raise error(f"{where} must be the two tokens (false, true), not {stated!r}")
    try:
        false, true = (token_id(tokenizer, checkpoint, token) for token in stated)
    except InputError as reason:
        raise error(f"{where}: {reason}") from None
    if false == true:
        raise error(f"{where} must differ, not {stated!r}")
    return false, true


def token_id(tokenizer: Tokenizer, checkpoint: Checkpoint, token: str | int) -> int:
    """The id of a token given as the vocabulary spells it, or by its id.

    Raises:
        InputError: there is no such token.
    """
    if isinstance(token, int) and not isinstance(token, bool):
        if 0 <= token < int(checkpoint.config["vocab_size"]):
            return token
    elif isinstance(token, str):
        found = tokenizer.token_id(token)
        if found is not None:
            return found
    raise InputError(
        f"{token!r} is no token of {checkpoint.tokenizer_file}; give it as the vocabulary spells it ('▁' "
        "stands for the space before a word), or its id"
    )


def open_step(
    checkpoint: Checkpoint,
    score: TokenScore,
    *,
    precision: Precision,
    backend: Backend,
    device: str | None,
    threads: int | None,
    identity: str,
    may_change_precision: bool = False,
) -> Engine:
    """Open a T5 for one score an input, read off the first step of its decoder.

    Args:
        checkpoint: the model.
        score: what is read.
        precision: "float32", "int8" where there is a form that passed its parity gate, "bf16" with torch;
            "auto" is int8 where there is such a form for our own graph, else float32.
        backend: "onnx" for our own graph, "torch" for transformers' model, "auto" for torch where there is a
            GPU that it can use, or a device or bf16 is asked for, else our own graph.
        device: of torch: "cpu", "cuda", ...; None takes a GPU where there is one.
        threads: batches that run at a time.
        identity: what else the fingerprint is to tell apart: the prompt.
        may_change_precision: see `crossrank.runtime.engine.open_engine`.

    Raises:
        InputError: a precision or backend that is none, or two that do not go together.
        MissingExtraError: torch is not installed (extra "torch").
    """
    identity = f" {score!r} {identity}"
    wants_torch = backend == "torch" or (backend == "auto" and (device is not None or precision == "bf16"))
    if wants_torch and not checkpoint.weight_files:
        raise CheckpointError(
            f"{checkpoint.folder} has no model.safetensors, which backend='torch' needs; leave it out, "
            "or open the model that the folder was made of"
        )
    if backend == "auto" and not wants_torch and not _torch_can_run(checkpoint):
        backend = "onnx"
    chosen = choose_backend(
        backend,
        device,
        precision=precision,
        source="auto",
        checkpoint=checkpoint,
        torch_architectures=("t5",),
    )
    if chosen == "torch":
        from crossrank.runtime.torch_t5 import TorchT5Engine

        wide = precision != "bf16"
        return TorchT5Engine(checkpoint, score, bf16=not wide, device=device, identity=identity)
    assert precision != "bf16"  # refused by choose_backend
    return open_engine(
        checkpoint,
        output=score,
        precision=precision,
        threads=threads,
        identity=identity,
        may_change_precision=may_change_precision,
    )


def _torch_can_run(checkpoint: Checkpoint) -> bool:
    """Whether torch's form needs nothing that is not there: it is transformers' own, of float32 weights."""
    return bool(checkpoint.weight_files) and importlib.util.find_spec("transformers") is not None


def declare_t5(folder: Path, kind: str, prompt: str, score: TokenScore | None) -> None:
    """Say in a folder how its model is opened, so far as it does not say so itself.

    What is known of a model from its published name or its card would be lost in a copy.

    Args:
        folder: of a copy.
        kind: what the model was opened as: "mono_t5", "rank_t5" or "duo_t5".
        prompt: what it was opened with.
        score: the same; None for an encoder with a dense layer behind it.
    """
    found: dict[str, Any] = {"prompt": prompt}
    if score is not None and score.against is not None:
        found["tokens"] = [score.against, score.token]
    elif score is not None:
        found["token"] = score.token
    declared = read_declaration(folder)
    if declared.kind is None or found.keys() - declared.settings.keys():
        write_declaration(folder, kind, {**found, **declared.settings})


def model_name(model: str | Path, folder: Path) -> str:
    """What a model is called: by the name it was asked for, or its folder's."""
    return model if isinstance(model, str) and model != str(folder) else folder.resolve().name
