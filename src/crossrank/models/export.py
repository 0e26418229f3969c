"""A model as an ONNX file that other programs run, in a folder that crossrank opens again.

The file has the very graph that crossrank runs, of every kind of model: encoder and head of a cross-encoder,
encoder and one step of the decoder of a T5, token vectors of encoders with what is made of them. Beside it
lie tokenizer and configs, and `onnx/inputs.json`, which says how texts become the file's inputs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from crossrank.errors import CheckpointError, InputError, ModelOutputError
from crossrank.models.bi_encoder import BiEncoder
from crossrank.models.calibration import read_calibration, write_calibration
from crossrank.models.cross_encoder import CrossEncoder
from crossrank.models.duo_t5 import DuoT5
from crossrank.models.late_interaction import LateInteraction
from crossrank.models.load import kind_of, load
from crossrank.models.model_folder import Draft, copy_model, open_source
from crossrank.models.mono_t5 import MonoT5
from crossrank.models.rank_t5 import RankT5
from crossrank.models.t5_opening import declare_t5
from crossrank.models.token_settings import token_modules
from crossrank.runtime.backends import Precision
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.encoders.encoder import Encoder
from crossrank.runtime.encoders.heads import write_layers, write_pooling, write_unit_length
from crossrank.runtime.engine import Further, Output, build_graph
from crossrank.runtime.exits import Exits
from crossrank.runtime.graph import Graph
from crossrank.runtime.int8 import PARITY_FILE, Int8Linear, write_parity
from crossrank.runtime.modules import Dense, Module, Pooling
from crossrank.runtime.native import left_out
from crossrank.runtime.onnx_file import ONNX_FILE, ONNX_FOLDER, OnnxFacts, TwoPaths, onnx_digest, write_onnx
from crossrank.runtime.settings import read_object
from crossrank.runtime.tokenization import Tokenizer

__all__ = ["INPUTS_FILE", "ExportReport", "export"]

INPUTS_FILE = "inputs.json"
"""Name of the file beside the ONNX file that says how it is fed."""

_TOLERANCE = 1e-5
_QUERY = "what is it"
_TEXTS = ("It is a fox.", "the red fox runs over the old river", "")

AnyModel = CrossEncoder | DuoT5 | BiEncoder | LateInteraction


@dataclass(frozen=True)
class ExportReport:
    """What `export` wrote.

    Attributes:
        model: as it was named.
        kind: a key of `load.KINDS`.
        path: the folder.
        precision: of the linear layers: "float32" or "int8".
        files: the ONNX file and, above 2 GB, that of its weights.
        size_bytes: of these.
        inputs: names of the file's inputs.
        outputs: of its outputs, and what each is.
        largest_difference: between what the model gave for a few texts before and what the folder gives.
        exits_left_out: layers with a head that is not in the folder (`exit_layer`, `EarlyExit`): an ONNX file
            is run whole.
    """

    model: str
    kind: str
    path: Path
    precision: str
    files: tuple[Path, ...]
    size_bytes: int
    inputs: tuple[str, ...]
    outputs: Mapping[str, str]
    largest_difference: float
    exits_left_out: tuple[int, ...]


def export(
    model: str | Path,
    to: str | Path,
    *,
    precision: Precision = "auto",
    revision: str | None = None,
    overwrite: bool = False,
    threads: int | None = None,
) -> ExportReport:
    """Write a model as a folder with an ONNX file, and check that the folder gives what the model gives.

    `crossrank.load` opens the folder as what the model is. It has no weights but the ONNX file's, so what
    needs weights (training, torch, another precision, scores after earlier layers) is for the model itself.

    Args:
        model: a built-in model, a folder, or a hub name, with safetensors weights of an architecture that
            crossrank has a graph for; its files say what it is (see `load`).
        to: the folder to write: it is not there or empty, or a model that `overwrite` allows to replace.
        precision: what linear layers compute in: "float32", "int8" where the model has a form that passed
            its parity gate, or "auto" for the fastest there is. An int8 file has the products that are exact
            on every processor, which are slower on those with instructions of their own for int8.
        revision: commit, tag or branch of a hub model.
        overwrite: replace a model folder at `to`.
        threads: batches that run at a time while the folder is checked; None takes the cores this process
            may use.

    Raises:
        CheckpointError: the model cannot be opened, does not say what it is, or has no weights.
        InputError: a `to` that cannot be written, or a precision that is none.
        ModelOutputError: the folder gives other numbers; nothing is written then.
    """
    if precision == "bf16":
        raise InputError("an ONNX file is in float32 or int8; ONNX Runtime has no bf16 kernels for CPUs")
    folder = Path(to)
    checkpoint = open_source(model, folder, revision=revision, overwrite=overwrite)
    source = checkpoint.folder
    if not checkpoint.has_weights:
        raise CheckpointError(
            f"{checkpoint.transformer_folder} has no safetensors weights to write a graph from; export the "
            "model that it was made of"
        )
    kind = kind_of(source, name=str(model))
    options: dict[str, Any] = {} if kind == "bi_encoder" else {"long_query": "truncate"}
    options |= {"threads": threads, "progress": False, "backend": "onnx"}
    with left_out():  # the file has ONNX Runtime's operators alone, and is compared to the bit
        opened: AnyModel = load(model, revision=revision, precision=precision, **options)
    graph, output = _graph(checkpoint, opened)
    with Draft.of(folder) as draft:
        work = draft.folder
        copy_model(source, work)
        if isinstance(opened, (MonoT5, RankT5, DuoT5)):
            declare_t5(work, kind, opened.prompt, opened.token_score)
        if isinstance(opened, LateInteraction) and checkpoint.is_stanford_colbert and not checkpoint.modules:
            _write_projection(work, token_modules(checkpoint))
        place = work / ONNX_FOLDER
        place.mkdir()
        files = write_onnx(
            place / ONNX_FILE,
            graph,
            OnnxFacts(str(output), opened.precision),
            reads_types=checkpoint.uses_token_types,
        )
        if opened.precision == "int8":
            record = read_object(checkpoint.transformer_folder / PARITY_FILE)
            record["int8_weights_sha256"] = checkpoint.int8_digest
            write_parity(place, record, onnx_digest(place / ONNX_FILE))
        inputs = _inputs(checkpoint, opened, graph)
        text = json.dumps(
            {"kind": kind, "precision": opened.precision, **inputs}, indent=2, ensure_ascii=False
        )
        (place / INPUTS_FILE).write_text(text + "\n", encoding="utf-8")
        written: AnyModel = load(work, **options)
        difference = _difference(opened, written)
        if isinstance(opened, CrossEncoder) and isinstance(written, CrossEncoder):
            _bind_calibration(work, opened, written)
        report = ExportReport(
            model=str(model),
            kind=kind,
            path=folder,
            precision=opened.precision,
            files=tuple(folder / ONNX_FOLDER / file.name for file in files),
            size_bytes=sum(file.stat().st_size for file in files),
            inputs=tuple(inputs["inputs"]),
            outputs=inputs["outputs"],
            largest_difference=difference,
            exits_left_out=Exits(checkpoint).layers,
        )
        draft.keep()
    return report


def _graph(checkpoint: Checkpoint, opened: AnyModel) -> tuple[TwoPaths, Output]:
    """The graph that a model runs, with what other programs need behind it; and what it gives."""
    further: Further | None = None
    output: Output = "logits"
    if isinstance(opened, (MonoT5, RankT5, DuoT5)):
        output = opened.token_score or "logits"
    elif isinstance(opened, BiEncoder):
        output, further = "tokens", _embedding(checkpoint.modules)
    elif isinstance(opened, LateInteraction):
        output, further = "tokens", _token_embeddings(token_modules(checkpoint))

    def write(padded: bool) -> Graph:
        int8 = opened.precision == "int8"
        form = Int8Linear(anywhere=True) if int8 else None
        tensors = checkpoint.int8_tensors() if int8 else None
        return build_graph(checkpoint, output, form, tensors, padded=padded, further=further)

    return TwoPaths(write(True), write(False)), output


def _embedding(modules: Sequence[Module]) -> Further | None:
    pooling, *after = modules
    assert isinstance(pooling, Pooling)  # a BiEncoder has looked
    if not pooling.include_prompt:  # which tokens are the prompt's, the inputs do not say
        return None

    def write(graph: Graph, encoder: Encoder, tokens: str) -> None:
        vector = write_layers(graph, write_pooling(graph, encoder.frame, tokens, pooling.modes), after)
        graph.output(write_unit_length(graph, vector), "sentence_embedding", ["batch", "dimensions"])

    return write


def _token_embeddings(modules: Sequence[Module]) -> Further:
    def write(graph: Graph, encoder: Encoder, tokens: str) -> None:
        vectors = write_layers(graph, tokens, modules)
        width = graph.node("Shape", [vectors], start=1, end=2)
        ids = graph.node("Shape", [encoder.frame.ids])
        deep = graph.node("Reshape", [vectors, graph.node("Concat", [ids, width], axis=0)])
        graph.output(deep, "token_embeddings", ["batch", "length", "dimensions"])

    return write


def _inputs(checkpoint: Checkpoint, opened: AnyModel, graph: TwoPaths) -> dict[str, Any]:
    """What `INPUTS_FILE` says: how texts become inputs, and what the outputs are."""
    reads = ["input_ids", "attention_mask"]
    if checkpoint.uses_token_types and "token_type_ids" in graph.input_names:
        reads.append("token_type_ids")
    outputs = dict.fromkeys(graph.output_names, "")
    stated: dict[str, Any] = {
        "inputs": dict.fromkeys(reads, "int64 (batch, length)"),
        "padding": {"side": "right", "token_id": Tokenizer(checkpoint).pad_id},
        "lowercase_texts_first": checkpoint.lowercase,
        "outputs": outputs,
    }
    if isinstance(opened, (MonoT5, RankT5, DuoT5)):
        score = opened.token_score
        outputs["logits"] = f"float32 (batch, 1): {score or 'the score'}"
        return {**stated, "text": opened.prompt, "max_length": opened.settings.max_length}
    if isinstance(opened, CrossEncoder):
        outputs["logits"] = f"float32 (batch, {len(opened.labels)}): a raw score for each label"
        settings = {"query_prompt": opened.settings.prompt, "max_length": opened.settings.max_length}
        return {**stated, **settings, "labels": opened.labels, "activation": opened.activation}
    outputs["last_hidden_state"] = "float32 (batch, length, hidden): token vectors of the transformer"
    if isinstance(opened, BiEncoder):
        if "sentence_embedding" in outputs:
            outputs["sentence_embedding"] = f"float32 (batch, {opened.dimensions}), each of length 1"
        prompts = {"query_prompt": opened.query_prompt, "document_prompt": opened.document_prompt}
        return {**stated, **prompts, "max_length": opened.max_length}
    outputs["token_embeddings"] = f"float32 (batch, length, {opened.dimensions}): what MaxSim compares"
    return {**stated, **asdict(opened.settings)}


def _write_projection(folder: Path, modules: Sequence[Module]) -> None:
    """Write the projection that ColBERT's own layout has among the transformer's weights as a module."""
    projection = next(module for module in modules if isinstance(module, Dense))
    place = folder / "1_Dense"
    place.mkdir()
    content = safetensors.numpy.save({"linear.weight": np.ascontiguousarray(projection.weight)})
    (place / "model.safetensors").write_bytes(content)
    width, hidden = projection.weight.shape
    identity = "torch.nn.modules.linear.Identity"
    config = {"in_features": hidden, "out_features": width, "bias": False, "activation_function": identity}
    (place / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    listed = [("", "sentence_transformers.models.Transformer"), ("1_Dense", "pylate.models.Dense.Dense")]
    entries = [
        {"idx": number, "name": str(number), "path": path, "type": kind}
        for number, (path, kind) in enumerate(listed)
    ]
    (folder / "modules.json").write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def _difference(opened: AnyModel, written: AnyModel) -> float:
    """The largest difference between what two models give for a few texts; refuses more than rounding."""
    before, after = _probe(opened), _probe(written)
    difference = float(np.abs(before - after).max()) if before.shape == after.shape else float("inf")
    if not difference <= _TOLERANCE * max(1.0, float(np.abs(before).max())):
        raise ModelOutputError(
            f"the ONNX file gives other numbers than the model (they differ by {difference:.2g}), so nothing "
            "was written; please report it with the model's name and the versions that `crossrank info` shows"
        )
    return difference


def _probe(model: AnyModel) -> npt.NDArray[Any]:
    if isinstance(model, BiEncoder):
        return model.encode_documents(_TEXTS)
    if isinstance(model, DuoT5):
        return model.prefer([(_QUERY, first, second) for first in _TEXTS for second in _TEXTS])
    return model.score([(_QUERY, text) for text in _TEXTS])


def _bind_calibration(folder: Path, opened: CrossEncoder, written: CrossEncoder) -> None:
    """Let a calibration that holds for the model hold for the folder, whose scores are the same."""
    try:
        found = read_calibration(folder)
    except CheckpointError:  # opening the model has said so
        return
    before, after = opened.score_identity, written.score_identity
    keys = ("fingerprint", "precision")
    if found is None or any(found.made_with.get(key) != before[key] for key in keys):
        return
    made_with = {**found.made_with, **{key: after[key] for key in keys}}
    write_calibration(replace(found, made_with=made_with), folder)
