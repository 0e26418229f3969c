"""Errors of the library in the words of the command line: its advice names options, not arguments."""

from __future__ import annotations

import re

from crossrank.errors import CheckpointNotFoundError
from crossrank.models.hub import BUILT_IN

__all__ = ["WORDING", "error_text", "in_options"]

WORDING = {
    "make one with Index.create or `crossrank index`": "make one with `crossrank index`",
    "use Index.open to add to it, or overwrite=True to start anew": "give --replace to start anew",
    "anew with overwrite=True": "anew with --replace",
    "or replace it with overwrite=True": "or replace it with --replace",
    "made with a bi-encoder and opened with it: Index.open(path, bi_encoder=...); text search needs none": (
        "with vectors, and this one was made with --no-vectors; use --retriever bm25"
    ),
    "open it with the former, or create it anew": (
        "name the former with --model or --late-interaction, or make the index anew with "
        "`crossrank index --replace`"
    ),
    "create it with late_interaction= to": "make it with `crossrank index --late-interaction` to",
    "use on_duplicate='replace' (or upsert)": "use --on-duplicate replace",
    "or 'skip' to keep the earlier one": "or --on-duplicate skip to keep the earlier one",
    ", or give its encoding: DocumentReader(path, encoding=...)": "",
    "or None for no stemming": "or none for no stemming",
    "Shorten it, open the model with a larger max_query_length (documents then get less) or max_length, "
    "or allow cutting with long_query='truncate'": (
        "Shorten it, or allow cutting with --long-query truncate"
    ),
    "open the model with a larger query_length, or allow cutting with long_query='truncate'": (
        "or allow cutting with --long-query truncate"
    ),
    "open it with label= the one to explain": "name the one to explain with --label",
    "use method='occlusion'": "use --method occlusion",
    "open it with label= the one to rank by, or use score()": (
        "name the one to rank by with --label, or use `crossrank score`"
    ),
    "precision='float32'": "--precision float32",
    "precision='bf16'": "--precision bf16",
    "device is of backend='torch'": "--device is of --backend torch",
    "backend='onnx'": "--backend onnx",
    "backend='torch'": "--backend torch",
    "or use device='cpu'": "or use --device cpu",
    "min_probability needs": "--min-probability needs",
    "; name a folder for a copy with to=": "; name a folder for a copy with --to",
    "replace it with overwrite=True, or name a folder for a copy with to=": (
        "replace it with --replace, or name a folder for a copy with --to"
    ),
    "open it with label= the one to calibrate": "name the one to calibrate with --label",
    "min_score and max_score are": "--min-score and --max-score are",
    "give a teacher, or mine": "give a --teacher, or mine",
    "filter by without a teacher": "filter by without a --teacher",
    ", or give api_key; for another server give base_url": "; for another server give --base-url",
    "a larger round_trip_top, or queries of": "a larger --round-trip-top, or --queries of",
    "; open it with CrossEncoder": ", and a bi-encoder is needed here",
    "open it with label= the one that means similar": "name the one that means similar with --label",
    "give the least that counts, in that range, or calibrate the model": (
        "give --least in that range, or calibrate the model with `crossrank calibrate`"
    ),
    " and no bi-encoder; crossrank.load opens it": ", and a bi-encoder is needed here",
    "; open it with LateInteraction": ", and a bi-encoder is needed here",
    "open it with MonoT5, RankT5 or DuoT5, or write": "write",
    "Fine-tune it first, open it with BiEncoder and the pooling its card names, or write": (
        "Fine-tune it first, or write"
    ),
    "open a bi-encoder with BiEncoder, or train a": "train a",
    ", or clean it with text.encode('utf-8', 'replace').decode('utf-8')": "",
    ", for example with text.encode(errors='replace').decode()": "",
}
"""What the library says -> what the command line says instead."""

_COLUMN = re.compile(r"\b(id|text|title)_column\b")
# Commands hand rows to a model some at a time: a position among them is no line of the file.
_QUERY = re.compile(r"\b(?:the query of pairs|queries)\[\d+\]")
_PAIR = re.compile(r"\b(?:pairs|documents)(?:\[\d+\])+(?= \(query )")


def in_options(message: str) -> str:
    """Return a message of the library with its advice in terms of the command line."""
    for library, command_line in WORDING.items():
        message = message.replace(library, command_line)
    message = _COLUMN.sub(r"--\1-column", message)
    return _PAIR.sub("a pair", _QUERY.sub("the query", message))


def error_text(error: Exception, width: int) -> str:
    """Return what a person reads: one line, or three where a caret shows the place of a fault.

    Args:
        error: what went wrong.
        width: of the terminal; a caret that would not fit is left out.
    """
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    message = in_options(str(error))
    if isinstance(error, CheckpointNotFoundError) and next(iter(BUILT_IN)) not in message:
        message += f"; a model is one of {', '.join(BUILT_IN)}, a folder, or a name on the hub"
    lines = message.splitlines()
    if len(lines) >= 3 and lines[-1].strip() == "^":
        if max(map(len, lines)) <= width and len(lines) == 3:
            return message
        lines = lines[:1]
    return " ".join(" ".join(lines).split())
