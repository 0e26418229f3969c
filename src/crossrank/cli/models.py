"""`crossrank models`: the models that ship with crossrank, and the families it can open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.text import Text

from crossrank.cli.loading import JsonOption
from crossrank.cli.output import console, emit_json, table
from crossrank.errors import CheckpointError
from crossrank.models.hub import BUILT_IN, resolve

__all__ = ["FAMILIES", "model_facts", "models"]

FAMILIES = {
    "bert": "BERT, MiniLM: cross-encoder/ms-marco-MiniLM-L6-v2, all-MiniLM-L6-v2, BAAI/bge-small-en-v1.5",
    "electra": "ELECTRA: cross-encoder/ms-marco-electra-base",
    "roberta": "RoBERTa: cross-encoder/nli-roberta-base, all-distilroberta-v1",
    "xlm-roberta": "XLM-RoBERTa: BAAI/bge-reranker-v2-m3, intfloat/multilingual-e5-base",
    "camembert": "CamemBERT: antoinelouis/crossencoder-camembert-base-mmarcoFR",
    "distilbert": "DistilBERT: msmarco-distilbert-base-v4",
    "deberta-v2": "DeBERTa v2 and v3: mixedbread-ai/mxbai-rerank-base-v1, cross-encoder/nli-deberta-v3-base",
    "modernbert": "ModernBERT: Alibaba-NLP/gte-reranker-modernbert-base, the ettin rerankers",
    "t5": "T5, Flan-T5: castorini/monot5-base-msmarco, castorini/duot5-base-msmarco, Soyoung97/RankT5-base",
    "mt5": "mT5: unicamp-dl/mt5-base-mmarco-v2",
}
"""`model_type` in a model's config.json -> the family, with checkpoints people use."""


def models(*, json: JsonOption = False) -> None:
    """List the models that ship with crossrank and the model families it can open.

    Example: `crossrank models --json`
    """
    built_in = [{"name": name, **model_facts(resolve(name, kind=kind))} for name, kind in BUILT_IN.items()]
    if json:
        emit_json({"built_in": built_in, "families": FAMILIES}, indent=2)
        return
    out = console()
    out.print("Built in", style="bold")
    for facts in built_in:
        shown = table("", "")
        shown.show_header = False
        for name in ("kind", "architecture", "max_length", "size_mb", "license", "base_model", "datasets"):
            if name in facts:
                shown.add_row(f"  {name.replace('_', ' ')}", Text(_line(facts[name])))
        for result in facts.get("results", ()):
            shown.add_row("  measured", Text(result))
        out.print(Text(f"\n{facts['name']}"))
        out.print(shown)
    out.print("\nFamilies that can be opened, from a folder or the hub", style="bold")
    families = table("model_type", "for example")
    for model_type, examples in FAMILIES.items():
        families.add_row(model_type, examples)
    out.print(families)


def model_facts(folder: Path) -> dict[str, Any]:
    """Say what a model folder is, from its own files."""
    from crossrank.models.calibration import read_calibration
    from crossrank.models.load import kind_of
    from crossrank.runtime.checkpoint import Checkpoint
    from crossrank.runtime.exits import Exits

    checkpoint = Checkpoint.open(folder)
    try:
        kind = kind_of(folder)
    except CheckpointError:  # that a folder does not say what it is is a fact, too
        kind = "not stated"
    facts: dict[str, Any] = {
        "kind": kind.replace("_", "-"),
        "architecture": checkpoint.architecture,
        "max_length": checkpoint.max_length,
    }
    if kind == "cross_encoder":
        facts["labels"] = list(checkpoint.labels)
        facts["activation"] = checkpoint.activation
        if exits := Exits(checkpoint).layers:
            facts["exit_layers"] = list(exits)
        try:
            calibration = read_calibration(folder)
            facts["calibration"] = None if calibration is None else calibration.holds_for
        except CheckpointError as error:
            facts["calibration"] = f"cannot be read: {error}"
    weights = checkpoint.weight_files or checkpoint.onnx_files
    if checkpoint.int8_file is not None:
        weights = (*weights, checkpoint.int8_file)
    facts["size_mb"] = round(sum(file.stat().st_size for file in weights) / 1e6, 1)
    facts["files_fingerprint"] = checkpoint.fingerprint
    facts["folder"] = str(folder)
    return {**facts, **_card_facts(folder / "README.md")}


def _card_facts(card: Path) -> dict[str, Any]:
    """Read licence, origin and results from the front matter of a model card, in the hub's form."""
    from huggingface_hub.repocard import metadata_load

    try:
        stated = metadata_load(card) or {}
    except Exception:  # a card is for people: whatever is wrong with it is no reason to fail here
        return {}
    facts = {key: stated[key] for key in ("license", "base_model", "datasets") if key in stated}
    results = [
        f"{result['dataset']['name']}: {metric['type']} {metric['value']}"
        for model in stated.get("model-index") or ()
        for result in model.get("results") or ()
        for metric in result.get("metrics") or ()
    ]
    return {**facts, "results": results} if results else facts


def _line(value: Any) -> str:
    return ", ".join(str(item) for item in value) if isinstance(value, list) else str(value)
