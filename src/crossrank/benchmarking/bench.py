"""How long a model takes to rerank here, beside other libraries with the same weights."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crossrank.benchmarking.contestants import Contestant, ContestantError, installed, padding_waste
from crossrank.benchmarking.forms import Forms, write_forms
from crossrank.benchmarking.rounds import Timing, histogram, interleave, load_average, machine
from crossrank.benchmarking.texts import PROFILES, cut, english, lengths
from crossrank.benchmarking.worker import CONTESTANTS
from crossrank.checks import as_strings, check_count
from crossrank.errors import InputError
from crossrank.progress import track
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.limits import num_threads
from crossrank.runtime.quantization import compare, exceeded
from crossrank.runtime.tokenization import ModelInputs, Tokenizer

__all__ = ["EXACT", "BenchReport", "bench", "judge"]

EXACT = 1e-4
"""Most that a logit may differ from float32's in the class "exact"."""

_OURS = ("crossrank float32", "crossrank int8")
_OWN = "texts"
_QUERY_TOKENS = 12
_CALIBRATION_PAIRS = 256
_ALONE = 8  # pairs that are scored by themselves, too


@dataclass(frozen=True)
class BenchReport:
    """What `bench` measured.

    Attributes:
        settings: of the run: threads, documents, rounds, weights.
        machine: CPU, its flags, versions of the libraries, load average before.
        profiles: profile -> "tokens" (histogram), "latency" and "throughput": contestant -> figures.
        left_out: contestant -> why it could not run.
    """

    settings: dict[str, Any]
    machine: dict[str, Any]
    profiles: dict[str, dict[str, Any]]
    left_out: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON holds it."""
        return {
            "benchmark": "bench",
            "settings": self.settings,
            "machine": self.machine,
            "profiles": self.profiles,
            "left_out": self.left_out,
        }


def bench(
    model: str | Path | None = None,
    *,
    profiles: Sequence[str] = tuple(PROFILES),
    texts: Sequence[str] | None = None,
    sources: Sequence[str] | None = None,
    num_documents: int = 100,
    num_queries: int = 4,
    rounds: int = 7,
    threads: int | None = None,
    max_length: int = 512,
    contestants: Sequence[str] | None = None,
    interpreters: Mapping[str, str | Path] | None = None,
    prepare: Callable[[Path], None] | None = None,
    progress: bool | None = None,
) -> BenchReport:
    """Measure reranking: one query with its candidates, and several in one call.

    Every contestant runs the same weights on the same texts, tokenisation included, in a process of its own,
    and takes turns with the others; each of its batch sizes is a contestant of its own.

    Args:
        model: a cross-encoder: a built-in model, a folder, or a hub name; None takes the built-in model.
        profiles: lengths of the documents, of `texts.PROFILES`.
        texts: documents in place of those of `texts.english`; they are then the one profile, "texts".
        sources: long texts to cut documents from, in place of `texts.english`.
        num_documents: candidates of a query.
        num_queries: of the call that throughput is measured by.
        rounds: runs of each contestant.
        threads: of each contestant; None takes the cores this process may use.
        max_length: tokens of a pair.
        contestants: names, of `worker.CONTESTANTS`; None takes crossrank and those installed here.
        interpreters: contestant -> Python of the environment that has it.
        prepare: called with the folder of the float32 model, to add the files that a contestant needs.
        progress: whether a progress bar is shown; None shows it on a terminal.

    Raises:
        InputError: an unknown profile or contestant, or a number below 1.
        CheckpointError: the model cannot be opened.
        ContestantError: crossrank itself cannot run.
    """
    for name, value in (("num_documents", num_documents), ("num_queries", num_queries), ("rounds", rounds)):
        check_count(value, name)
    names = list(contestants) if contestants is not None else installed()
    for name in names:
        if name not in CONTESTANTS:
            raise InputError(f"there is no contestant {name!r}; choose from {', '.join(CONTESTANTS)}")
    threads = num_threads(threads)
    own_texts = None if texts is None else as_strings(texts, "texts")
    if own_texts is not None and not own_texts:
        raise InputError("texts has no documents")
    wanted = list(profiles) if own_texts is None else [_OWN]
    cut_from = own_texts or list(sources or english())
    with tempfile.TemporaryDirectory(prefix="crossrank-bench-", ignore_cleanup_errors=True) as scratch:
        forms = write_forms(model, "cross-encoder", Path(scratch), _calibration_inputs)
        if prepare is not None:
            prepare(forms.float32)
        checkpoint = Checkpoint.open(forms.float32)
        tokenizer = Tokenizer(checkpoint)
        limit = min(max_length, checkpoint.max_length or max_length)
        material = {
            profile: _pairs(tokenizer, profile, cut_from, num_queries, num_documents) for profile in wanted
        }
        environment: dict[str, Any] = {**machine(), "load_average_before": load_average()}
        with _loaded(names, forms, threads, limit, interpreters or {}) as (running, left_out):
            for contestant in running:
                environment["versions"] |= contestant.versions
            with track(len(material), "Profiles", progress=progress) as tracked:
                measured = {}
                for profile, pairs in material.items():
                    measured[profile] = _profile(
                        running, pairs, num_documents, rounds, tokenizer=tokenizer, left_out=left_out
                    )
                    tracked.advance()
        settings = {
            "model": str(model) if model is not None else "built-in",
            "threads": threads,
            "rounds": rounds,
            "num_documents": num_documents,
            "num_queries": num_queries,
            "max_length": limit,
            **forms.origin,
        }
    return BenchReport(settings, environment, measured, left_out)


def judge(
    reference: npt.NDArray[np.float32],
    scores: npt.NDArray[np.float32],
    alone: npt.NDArray[np.float32],
    few: Sequence[int],
) -> dict[str, Any]:
    """Say how near scores are to the reference, and whether a pair's score is its own.

    "exact" is a largest difference below `EXACT`; "tolerance" is what the parity gate lets pass; anything
    else is "approximate", and so is a score that moves by more than `EXACT` when its pair is scored alone.

    Args:
        reference: float32 logits (n,).
        scores: those of the contestant (n,).
        alone: scores of some pairs, in a call of their own.
        few: which those are.
    """
    parity = compare([reference], [scores])
    delta_alone = float(np.abs(alone - scores[list(few)]).max())
    top = min(10, len(reference))
    best = [set(np.argsort(-values, kind="stable")[:top].tolist()) for values in (reference, scores)]
    if parity.max_delta < EXACT and delta_alone < EXACT:
        kind = "exact"
    elif not exceeded(parity) and delta_alone < EXACT:
        kind = "tolerance"
    else:
        kind = "approximate"
    return {
        "class": kind,
        "max_delta": parity.max_delta,
        "mean_delta_in_std": parity.mean_delta / parity.reference_std if parity.reference_std else 0.0,
        "kendall_tau": parity.kendall_tau,
        "top10_overlap": len(best[0] & best[1]) / top,
        "max_delta_alone": delta_alone,
    }


@contextmanager
def _loaded(
    names: Sequence[str],
    forms: Forms,
    threads: int,
    max_length: int,
    interpreters: Mapping[str, str | Path],
) -> Iterator[tuple[list[Contestant], dict[str, str]]]:
    """The contestants that can be loaded, and why others cannot."""
    left_out: dict[str, str] = {}
    with ExitStack() as stack:
        running = []
        for name in names:
            options: dict[str, Any] = {"threads": threads, "max_length": max_length}
            if name in interpreters:
                options["interpreter"] = interpreters[name]
            try:
                running.append(stack.enter_context(Contestant(name, forms.float32, **options)))
            except ContestantError as error:
                if name in _OURS:
                    raise
                left_out[name] = str(error)
        yield running, left_out


def _profile(
    running: Sequence[Contestant],
    pairs: list[tuple[str, str]],
    num_documents: int,
    rounds: int,
    *,
    tokenizer: Tokenizer,
    left_out: dict[str, str],
) -> dict[str, Any]:
    one_query = pairs[:num_documents]
    texts = dict.fromkeys(text for pair in pairs for text in pair)
    encoded = tokenizer.encode(list(texts))
    num_tokens = {text: len(tokens.ids) for text, tokens in zip(texts, encoded, strict=True)}
    sizes = [tokenizer.pair_length(num_tokens[query], num_tokens[text]) for query, text in one_query]
    few = sorted(range(len(one_query)), key=sizes.__getitem__)[:: max(1, len(one_query) // _ALONE)][:_ALONE]
    reference: npt.NDArray[np.float32] | None = None
    latency: dict[str, dict[str, Any]] = {}
    variants: dict[str, tuple[Contestant, str]] = {}
    for contestant in sorted(running, key=lambda each: each.name not in _OURS):  # float32 of ours comes first
        for variant in contestant.variants:
            label = f"{contestant.name} {variant}".rstrip()
            try:
                alone = contestant.give(variant, [one_query[row] for row in few])
                scores = contestant.give(variant, one_query)
            except ContestantError as error:
                left_out[label] = str(error)
                continue
            reference = scores if reference is None else reference
            variants[label] = contestant, variant
            characters = [len(query) + len(text) for query, text in one_query]
            latency[label] = {
                **judge(reference, scores, alone, few),
                "padding": round(padding_waste(contestant.name, variant, sizes, characters), 3),
            }
    for label, timing in _timed(variants, one_query, rounds).items():
        latency[label] |= timing.summary()
    throughput: dict[str, dict[str, Any]] = {}
    best = _best_of_each(latency, variants)
    for label, timing in _timed(best, pairs, max(1, rounds // 2)).items():
        throughput[label] = {**timing.summary(), "pairs_per_s": round(len(pairs) / timing.median_s, 1)}
    return {
        "mean_tokens": round(float(np.mean(sizes)), 1),
        "tokens": histogram(sizes, 50 if max(sizes) > 300 else 15),
        "score_std": float(np.std(reference)) if reference is not None else 0.0,
        "latency": latency,
        "throughput": throughput,
    }


def _timed(
    variants: Mapping[str, tuple[Contestant, str]], pairs: list[tuple[str, str]], rounds: int
) -> dict[str, Timing]:
    given: dict[str, None] = {}
    for contestant, variant in variants.values():
        if contestant.name not in given:
            contestant.give(variant, pairs)
            given[contestant.name] = None
    return interleave(
        {label: partial(contestant.run, variant) for label, (contestant, variant) in variants.items()}, rounds
    )


def _best_of_each(
    latency: Mapping[str, Mapping[str, Any]], variants: Mapping[str, tuple[Contestant, str]]
) -> dict[str, tuple[Contestant, str]]:
    """Of each peer its default and its fastest variant; all of ours."""
    chosen: dict[str, tuple[Contestant, str]] = {}
    for label, (contestant, variant) in variants.items():
        siblings = [name for name, (other, _) in variants.items() if other is contestant]
        fastest = min(siblings, key=lambda name: latency[name]["median_s"])
        if contestant.name in _OURS or variant == contestant.variants[0] or label == fastest:
            chosen[label] = contestant, variant
    return chosen


def _pairs(
    tokenizer: Tokenizer, profile: str, sources: list[str], num_queries: int, num_documents: int
) -> list[tuple[str, str]]:
    count = num_documents * num_queries
    if profile == _OWN:
        documents = [sources[row % len(sources)] for row in range(count)]
        queries = [" ".join(text.split()[:_QUERY_TOKENS]) or "text" for text in documents[:num_queries]]
    else:
        documents = cut(sources, lengths(profile, count).tolist(), tokenizer)
        queries = cut(sources, [_QUERY_TOKENS] * num_queries, tokenizer, seed=1)
    return [(queries[row // num_documents], document) for row, document in enumerate(documents)]


def _calibration_inputs(checkpoint: Checkpoint) -> list[ModelInputs]:
    tokenizer = Tokenizer(checkpoint)
    pairs = _pairs(tokenizer, "marco", english(), _CALIBRATION_PAIRS, 1)
    queries, documents = (tokenizer.encode(texts) for texts in zip(*pairs, strict=True))
    joined = [tokenizer.join(query, document) for query, document in zip(queries, documents, strict=True)]
    return [ModelInputs(ids[None], np.ones((1, len(ids)), np.int64), types[None]) for ids, types in joined]
