"""A float32 model to an int8 one, calibrated without labels and written only if it passes the parity gate.

runtime/quantization.py has the arithmetic and the gate's limits. scripts/default_models/build.py makes the
built-in models with what is here, on other texts. Calibration and gate see different queries.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crossrank.errors import CheckpointError, InputError
from crossrank.models.bi_encoder import BiEncoder
from crossrank.models.cross_encoder import CrossEncoder
from crossrank.models.duo_t5 import DuoT5
from crossrank.models.hub import Kind
from crossrank.models.late_interaction import LateInteraction
from crossrank.models.model_folder import WEIGHT_INDEX, Draft, copy_model, open_source
from crossrank.models.t5_opening import declare_t5
from crossrank.models.t5_quantization import (
    T5Kind,
    comparison_inputs,
    comparison_scores,
    open_t5,
    t5_kind,
    t5_output,
    t5_tokenizer,
)
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.engine import Output, Precision
from crossrank.runtime.exits import EXITS_FILE, Exits
from crossrank.runtime.int8 import INT8_FILE, write_parity
from crossrank.runtime.prompts import PromptTokenizer
from crossrank.runtime.quantization import LIMITS, calibrate, compare, exceeded, write_int8
from crossrank.runtime.tokenization import ModelInputs, Tokenizer
from crossrank.types import Document, Pair, Qrels

__all__ = [
    "Candidates",
    "Figures",
    "QuantizationReport",
    "as_candidates",
    "calibration_inputs",
    "in_hash_order",
    "open_model",
    "parity_figures",
    "quantize",
    "score_candidates",
]

Candidates = Mapping[str, tuple[str, Sequence[Document]]]
"""Query id -> the query and the documents to order for it."""

Figures = dict[str, Any]
"""What the gate measured: the names of `quantization.Parity`, and of nDCG@10 where there are judgements."""

Scores = Sequence[npt.NDArray[np.float32]]

_MOST_CALIBRATION_PAIRS = 256
_MOST_CHECKED_PAIRS = 1000
_MOST_JUDGED_PAIRS = 3000  # nDCG@10 of fewer queries moves by more than its limit by chance
_LEAST_CALIBRATION_PAIRS = 32
_LEAST_CHECKED_PAIRS = 96
_ENOUGH = 300  # pairs, for a split by hash to give both

_ROWS_PER_INPUT = 6  # token positions that layers are fitted to
_ONE_IN = 4  # queries go to the calibration
_SHORTEST = 5  # documents that Kendall's tau is taken of: below, one exchange decides it
_MOST_TOKENS = 320  # of a calibration input: longer ones take time, and their activations are much the same


@dataclass(frozen=True)
class QuantizationReport:
    """What `quantize` measured, and whether it wrote a folder.

    Attributes:
        model: as it was named.
        kind: "cross-encoder", "bi-encoder", "late-interaction", "mono_t5", "rank_t5" or "duo_t5".
        path: the folder; written only if `passed`.
        passed: whether int8 passed the parity gate.
        exceeded: names of the `limits` that it broke, with "after layer N" for a head at an earlier layer.
        limits: of the gate, `quantization.LIMITS`.
        num_calibration_pairs: pairs it was calibrated on, or of which it was one side for a bi-encoder.
        num_calibration_queries: queries of these.
        num_checked_queries: queries the gate compared; none of them is one of those.
        figures: of the comparison.
        float32_bytes: size of the weights it was made of, as they lie on the disk.
        int8_bytes: size of the int8 weights.
        exits: layer -> the same figures of the scores after that layer, for models with heads there; they
            must pass like the last layer's.
    """

    model: str
    kind: Kind | T5Kind
    path: Path
    passed: bool
    exceeded: tuple[str, ...]
    limits: Mapping[str, float]
    num_calibration_pairs: int
    num_calibration_queries: int
    num_checked_queries: int
    figures: Figures
    float32_bytes: int
    int8_bytes: int
    exits: Mapping[int, Figures] = field(default_factory=dict)


def quantize(
    model: str | Path,
    to: str | Path,
    candidates: Candidates,
    *,
    qrels: Qrels | None = None,
    name: str = "candidates",
    revision: str | None = None,
    seed: int = 0,
    keep_float32: bool = True,
    overwrite: bool = False,
    threads: int | None = None,
    progress: bool | None = None,
) -> QuantizationReport:
    """Make an int8 form of a model that scores pairs or texts, and write it if it passes the parity gate.

    Cross-encoders, MonoT5, RankT5, DuoT5, bi-encoders and late-interaction models have one. The gate compares
    scores of documents; a DuoT5's are made of each document's comparisons with its neighbours in the list.

    A quarter of the queries is for the calibration, by a hash of query and seed: at most 256 pairs, of as
    many queries as there are. Of the others at most 1,000 pairs, or 3,000 where there are judgements, are
    scored in both forms. Same arguments, same bytes.

    Args:
        model: a folder or a hub name, with safetensors weights of an architecture crossrank has a graph for.
        to: the folder to write: it is not there or empty, or a model that `overwrite` allows to replace.
        candidates: what the model is used for: queries, and documents to order for each. No labels needed.
        qrels: judgements of these queries: nDCG@10 must stay, too. For models with one label only.
        name: what the record calls the candidates.
        revision: commit, tag or branch of a hub model.
        seed: of the choice of queries, documents and token positions.
        keep_float32: whether the folder gets the float32 weights, too.
        overwrite: replace a model folder at `to`.
        threads: batches that run at a time; None takes the cores this process may use.
        progress: whether progress bars are shown; None shows them on a terminal.

    Returns:
        The figures. Where `passed` is False, nothing was written.

    Raises:
        CheckpointError: the model cannot be opened, or has no float32 weights.
        InputError: too few candidates, judgements of none of the queries, a seed below 0, a `to` that
            cannot be written, or a kind of model that has no int8 form.
        MissingExtraError: there are judgements, and pytrec_eval is not installed (extra "eval").
    """
    if not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed must be a whole number of at least 0, not {seed!r}")
    folder = Path(to)
    checkpoint = open_source(model, folder, revision=revision, overwrite=overwrite)
    source = checkpoint.folder
    if not checkpoint.weight_files:
        raise CheckpointError(
            f"{checkpoint.transformer_folder} has no model.safetensors to quantise; give a model with its "
            "float32 weights"
        )
    kind: Kind = "cross-encoder"
    t5: T5Kind | None = None
    if checkpoint.is_multi_vector:
        kind = "late-interaction"
    elif checkpoint.pooling is not None and not checkpoint.is_modular_cross_encoder:
        kind = "bi-encoder"
    elif checkpoint.architecture == "t5":
        t5 = t5_kind(source, str(model))
    pairs, checked = _split(
        candidates, seed, most_checked=_MOST_CHECKED_PAIRS if qrels is None else _MOST_JUDGED_PAIRS
    )
    if qrels is not None:
        if t5 is None and kind == "cross-encoder" and checkpoint.num_labels > 1:
            raise InputError(
                f"{model} gives {checkpoint.num_labels} scores a pair, and judgements are about one; "
                "give candidates without judgements, such as pairs"
            )
        qrels = {query_id: qrels[query_id] for query_id in checked if query_id in qrels}
        if not qrels:
            raise InputError(
                "none of the queries to check has judgements; give more queries, or no judgements"
            )
    # First, so that what is wrong with the model or the texts is found before the long part.
    tokenizer: Tokenizer | None = None
    output: Output = "logits" if kind == "cross-encoder" else "tokens"
    exact: Any
    if t5 is not None:
        exact = open_t5(t5, model, "float32", revision=revision, threads=threads, progress=progress)
        tokenizer, output = t5_tokenizer(exact, checkpoint), t5_output(exact)
    else:
        exact = open_model(source, kind, "float32", threads=threads, progress=progress)
    reference = score_candidates(exact, checked)
    exit_layers = Exits(checkpoint).layers if t5 is None and kind == "cross-encoder" else ()
    at_exits = {
        layer: score_candidates(
            open_model(source, kind, "float32", exit_layer=layer, threads=threads, progress=progress), checked
        )
        for layer in exit_layers
    }
    if isinstance(exact, BiEncoder):
        prompts = exact.query_prompt, exact.document_prompt
    elif isinstance(exact, LateInteraction):
        prompts = exact.settings.query.prompt, exact.settings.document.prompt
    else:
        prompts = exact.settings.prompt, ""
    if isinstance(tokenizer, PromptTokenizer) and isinstance(exact, DuoT5):
        inputs = comparison_inputs(tokenizer, pairs, min(checkpoint.max_length, _MOST_TOKENS))
    else:
        inputs = calibration_inputs(checkpoint, kind, pairs, prompts=prompts, tokenizer=tokenizer)
    layers = calibrate(
        checkpoint,
        output,
        inputs,
        rows_per_input=_ROWS_PER_INPUT,
        seed=seed,
        threads=threads,
        progress=progress,
    )
    with Draft.of(folder) as draft:
        work = draft.folder
        copy_model(source, work)
        place = work / checkpoint.transformer_folder.relative_to(source)
        if checkpoint.exits_file is not None:
            shutil.copyfile(checkpoint.exits_file, place / EXITS_FILE)
        write_int8(place / INT8_FILE, checkpoint.tensors(), layers)
        write_parity(place, {"passed": True})  # to be measured now
        quantised: Any
        if t5 is not None:
            declare_t5(work, t5, exact.prompt, exact.token_score)
            quantised = open_t5(t5, work, "int8", threads=threads, progress=progress)
        else:
            quantised = open_model(work, kind, "int8", threads=threads, progress=progress)
        scores = score_candidates(quantised, checked)
        figures, broken = parity_figures(reference, scores, checked, qrels, shortest=_SHORTEST)
        exit_figures: dict[int, Figures] = {}
        for layer, wanted in at_exits.items():
            cut = open_model(work, kind, "int8", exit_layer=layer, threads=threads, progress=progress)
            got = score_candidates(cut, checked)
            exit_figures[layer], exceeded_here = parity_figures(
                wanted, got, checked, qrels, shortest=_SHORTEST
            )
            broken += [f"{limit} after layer {layer}" for limit in exceeded_here]
        report = QuantizationReport(
            model=str(model),
            kind=t5 or kind,
            path=folder,
            passed=not broken,
            exceeded=tuple(broken),
            limits=dict(LIMITS),
            num_calibration_pairs=len(pairs),
            num_calibration_queries=len({pair.query for pair in pairs}),
            num_checked_queries=len(checked),
            figures=figures,
            float32_bytes=sum(file.stat().st_size for file in checkpoint.weight_files),
            int8_bytes=(place / INT8_FILE).stat().st_size,
            exits=exit_figures,
        )
        if not report.passed:
            return report
        write_parity(place, _record(report, name, seed, checkpoint.fingerprint, revision))
        if keep_float32:
            for file in (*checkpoint.weight_files, *checkpoint.transformer_folder.glob(WEIGHT_INDEX)):
                shutil.copyfile(file, place / file.name)
        draft.keep()
    return report


def as_candidates(pairs: Iterable[Pair | tuple[str, str]]) -> Candidates:
    """Return pairs of query and document's text as one list of documents a query, in their order."""
    found: dict[str, tuple[str, list[Document]]] = {}
    for query, text in pairs:
        documents = found.setdefault(query, (query, []))[1]
        documents.append(Document(str(len(documents)), text))
    return found


def in_hash_order(queries: Mapping[str, str], seed: int = 0) -> list[str]:
    """Return query ids in an order that depends on the seed and on each query's text alone.

    Args:
        queries: query id -> text.
        seed: gives other orders.
    """
    return sorted(queries, key=lambda query_id: (_draw(queries[query_id], seed), query_id))


def calibration_inputs(
    checkpoint: Checkpoint,
    kind: Kind,
    pairs: Sequence[Pair | tuple[str, str]],
    *,
    prompts: tuple[str, str] = ("", ""),
    tokenizer: Tokenizer | None = None,
) -> list[ModelInputs]:
    """Turn pairs into what `quantization.calibrate` reads: one input a pair, of at most 320 tokens.

    Args:
        checkpoint: the model.
        kind: a cross-encoder gets the pairs; other kinds every third pair's query, and the others' document.
        pairs: unlabelled.
        prompts: put before queries and documents.
        tokenizer: of the model; None takes the checkpoint's own template of pairs.
    """
    tokenizer = tokenizer or Tokenizer(checkpoint)
    limit = min(checkpoint.max_length, _MOST_TOKENS)
    inputs: list[ModelInputs] = []
    for i, (query, text) in enumerate(pairs):
        first, second = (tokens.ids for tokens in tokenizer.encode([prompts[0] + query, prompts[1] + text]))
        if kind == "cross-encoder":
            room = limit - tokenizer.num_special_tokens
            first = first[: min(limit // 2, room - 1)]
            second = second[: room - len(first)]
            length = len(first) + len(second) + tokenizer.num_special_tokens
            arrays = tokenizer.pair_inputs([(first, second)], length)
        else:
            ids = (first if i % 3 == 0 else second)[: limit - tokenizer.num_single_special_tokens]
            arrays = tokenizer.single_inputs([ids], len(ids) + tokenizer.num_single_special_tokens)
        if not checkpoint.uses_token_types:
            arrays = arrays._replace(token_type_ids=np.zeros_like(arrays.token_type_ids))
        inputs.append(arrays)
    return inputs


def open_model(
    folder: Path,
    kind: Kind,
    precision: Precision,
    *,
    exit_layer: int | None = None,
    threads: int | None = None,
    progress: bool | None = None,
) -> CrossEncoder | BiEncoder | LateInteraction:
    """Open a folder's weights as the gate compares them: too long queries are cut.

    Args:
        folder: of the model.
        kind: which class it is opened with.
        precision: see `CrossEncoder`, as the rest.
        exit_layer: of a cross-encoder.
        threads: see `CrossEncoder`.
        progress: see `CrossEncoder`.
    """
    if kind == "bi-encoder":
        return BiEncoder(folder, precision=precision, source="weights", threads=threads, progress=progress)
    options: dict[str, Any] = {"precision": precision, "threads": threads, "progress": progress}
    if kind == "late-interaction":
        return LateInteraction(folder, source="weights", long_query="truncate", **options)
    return CrossEncoder(folder, source="weights", long_query="truncate", exit_layer=exit_layer, **options)


def score_candidates(
    model: CrossEncoder | BiEncoder | LateInteraction | DuoT5, candidates: Candidates
) -> list[npt.NDArray[np.float32]]:
    """Score each query's documents: (documents,) a query, or (documents, labels) where there are several.

    A bi-encoder's scores are inner products of vectors of length 1; for a DuoT5's see `comparison_scores`.
    """
    if isinstance(model, DuoT5):
        return comparison_scores(
            model,
            [(query, [each.full_text for each in documents]) for query, documents in candidates.values()],
        )
    if isinstance(model, BiEncoder):
        queries = model.encode_queries([query for query, _ in candidates.values()])
        texts = [document.full_text for _, documents in candidates.values() for document in documents]
        distinct = list(dict.fromkeys(texts))
        vectors = dict(zip(distinct, model.encode_documents(distinct), strict=True))
        return [
            np.array([query @ vectors[document.full_text] for document in documents])
            for query, (_, documents) in zip(queries, candidates.values(), strict=True)
        ]
    pairs = [(query, each.full_text) for query, documents in candidates.values() for each in documents]
    ends = np.cumsum([len(documents) for _, documents in candidates.values()])
    return np.split(model.score(pairs), ends[:-1])


def parity_figures(
    reference: Scores,
    scores: Scores,
    candidates: Candidates,
    qrels: Qrels | None = None,
    *,
    shortest: int = 1,
) -> tuple[Figures, list[str]]:
    """Compare two forms' scores.

    Args:
        reference: float32 scores as `score_candidates` gives them. Each of several labels is a ranking.
        scores: the same of the other form.
        candidates: what was scored.
        qrels: judgements, to compare nDCG@10 by; for one label only.
        shortest: documents of the shortest ranking that Kendall's tau is taken of.

    Returns:
        The figures, and the names of the limits that they break: none where the gate is passed.
    """
    parity = compare(*_rankings(reference, scores), shortest=shortest)
    figures: Figures = parity._asdict()
    if qrels is not None:
        exact, got = (_ndcg(candidates, each, qrels) for each in (reference, scores))
        figures |= {"ndcg@10_float32": exact, "ndcg@10_int8": got, "delta_ndcg@10": got - exact}
    return figures, exceeded(parity, figures.get("delta_ndcg@10"))


def _rankings(reference: Scores, scores: Scores) -> tuple[Scores, Scores]:
    """Both as (documents,) arrays, one for each query and label."""
    if reference[0].ndim == 1:
        return reference, scores
    # Labels differ in level, and that is no spread to measure differences by.
    level = np.concatenate(reference).mean(axis=0)
    first, second = ([column for rows in each for column in (rows - level).T] for each in (reference, scores))
    return first, second


def _ndcg(candidates: Candidates, scores: Scores, qrels: Qrels) -> float:
    # One look down the layers, where judgements are given.
    from crossrank.evaluation.measures import evaluate

    run = {
        query_id: {document.id: float(s) for document, s in zip(documents, row, strict=True)}
        for (query_id, (_, documents)), row in zip(candidates.items(), scores, strict=True)
    }
    return evaluate(run, qrels, ["nDCG@10"])["nDCG@10"]


def _draw(query: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} {query}".encode()).digest()


def _split(candidates: Candidates, seed: int, *, most_checked: int) -> tuple[list[Pair], Candidates]:
    """The pairs to calibrate on, and the candidates to check: different queries, by a hash of the query."""
    order = in_hash_order({query_id: query for query_id, (query, _) in candidates.items()}, seed)
    rows: list[list[Pair]] = []  # of the queries to calibrate on
    checked: dict[str, tuple[str, Sequence[Document]]] = {}
    room = most_checked
    for query_id in order:
        query, documents = candidates[query_id]
        if not documents:
            continue
        drawn = int.from_bytes(_draw(query, seed)[-4:], "big")
        if drawn % _ONE_IN == 0:
            # Not every query's best candidate first, where they are a first stage's.
            start = drawn // _ONE_IN % len(documents)
            turned = [*documents[start:], *documents[:start]][:_MOST_CALIBRATION_PAIRS]
            rows.append([Pair(query, document.full_text) for document in turned])
        elif room:
            checked[query_id] = query, documents[:room]
            room -= len(checked[query_id][1])
    deepest = max(map(len, rows), default=0)
    pairs = [row[rank] for rank in range(deepest) for row in rows if rank < len(row)][
        :_MOST_CALIBRATION_PAIRS
    ]
    num_checked = most_checked - room
    if len(pairs) < _LEAST_CALIBRATION_PAIRS or num_checked < _LEAST_CHECKED_PAIRS:
        total = sum(len(documents) for _, documents in candidates.values())
        raise InputError(
            f"{total} pairs of {len(candidates)} queries are too few: by query they give {len(pairs)} to "
            f"calibrate on and {num_checked} to check, and {_LEAST_CALIBRATION_PAIRS} and "
            f"{_LEAST_CHECKED_PAIRS} are needed; give some {_ENOUGH} pairs of 20 queries or more, best over "
            f"{_MOST_CALIBRATION_PAIRS + most_checked:,}"
        )
    return pairs, checked


def _record(
    report: QuantizationReport, name: str, seed: int, fingerprint: str, revision: str | None
) -> dict[str, Any]:
    """What parity.json says, in the form of the built-in models' records."""
    checked: dict[str, Any] = {"queries": report.num_checked_queries, **report.figures}
    if report.exits:
        checked["exits"] = {str(layer): figures for layer, figures in report.exits.items()}
    return {
        "reference": "float32",
        "limits": report.limits,
        "collections": {name: checked},
        "passed": report.passed,
        "source": {"model": report.model, "revision": revision, "fingerprint": fingerprint},
        "calibration": {
            "pairs": report.num_calibration_pairs,
            "queries": report.num_calibration_queries,
            "seed": seed,
        },
        "crossrank": version("crossrank"),
        "onnxruntime": version("onnxruntime"),
    }
