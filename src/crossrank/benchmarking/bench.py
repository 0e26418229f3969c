"""How long a model takes to rerank here, beside other libraries with the same weights."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from crossrank.benchmarking.contestants import Contestant, ContestantError, installed, padding_waste
from crossrank.benchmarking.fidelity import DEPTHS, EXACT, TOLERANCE, Judged, judge, within_tolerance
from crossrank.benchmarking.forms import Forms, set_max_length, write_forms
from crossrank.benchmarking.rounds import Measured, Timing, histogram, interleave, load_average, machine
from crossrank.benchmarking.texts import PROFILES, cut, english, lengths
from crossrank.benchmarking.worker import CONTESTANTS, UNSORTED
from crossrank.checks import as_strings, check_count
from crossrank.errors import InputError
from crossrank.models.quantize import calibration_inputs
from crossrank.progress import track
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.limits import num_threads
from crossrank.runtime.tokenization import ModelInputs, Tokenizer

__all__ = ["BenchReport", "bench"]

_TOLERANCE = f"95 % interval of ΔnDCG@10 inside ±{TOLERANCE}; the int8 parity gate without judged queries"

_Result = TypeVar("_Result")
Differences = Mapping[str, Mapping[str, Mapping[str, Any]]]

_REFERENCE = "crossrank float32"
_OURS = (_REFERENCE, "crossrank int8")
_OWN_PACKAGES = ("crossrank", "onnxruntime", "tokenizers", "numpy")
_OWN = "texts"
_QUERY_TOKENS = 12
_QUERY_WORDS = 12  # of own texts
_CALIBRATION_PAIRS = 256
_ALONE = 8  # pairs that are scored by themselves, too
_EXACT_AFTER = 3  # judged queries
_SCOUTING_ROUNDS = 2  # of all batch sizes; then a contestant's default and its best go on


@dataclass(frozen=True)
class BenchReport:
    """What `bench` measured.

    Attributes:
        settings: of the run: threads, documents, rounds, weights.
        machine: CPU, its flags, load average before.
        contestants: contestant -> versions of its libraries, its Python, seconds and memory of the loaded
            model.
        profiles: profile -> "tokens" (histogram), "load_average_before", "latency" and "throughput": label of
            a contestant's variant -> figures (peak memory of defaults and bests, each in a process that runs
            nothing else), "curves" of nDCG@10 against milliseconds of those that `judged`
            has, "control" and "ratios" of the latencies.
        judged: contestant -> collection -> what `Judged.difference` gives; none for exact scores.
        left_out: what is missing -> why: a contestant, its variant, what that was to run, its memory, or the
            contestant's difference on a collection.
    """

    settings: dict[str, Any]
    machine: dict[str, Any]
    contestants: dict[str, dict[str, Any]]
    profiles: dict[str, dict[str, Any]]
    judged: dict[str, dict[str, Any]]
    left_out: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON holds it."""
        return {
            "benchmark": "bench",
            "settings": self.settings,
            "machine": self.machine,
            "contestants": self.contestants,
            "profiles": self.profiles,
            "judged": self.judged,
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
    judged: Sequence[Judged] = (),
    known: Mapping[str, Any] | None = None,
    progress: bool | None = None,
) -> BenchReport:
    """Measure reranking: one query with its candidates, and several in one call.

    Every contestant runs the same weights on the same texts, tokenisation included, in a process of its own,
    and takes turns with the others; each of its batch sizes is a contestant of its own.

    Args:
        model: a cross-encoder: a built-in model, a folder, or a hub name; None takes the built-in model.
        profiles: lengths of the documents, of `texts.PROFILES`; none measures only `judged`.
        texts: documents in place of those of `texts.english`, `num_documents` different ones at least; they
            are then the one profile, "texts", and the first words of each are a query.
        sources: long texts to cut documents from, in place of `texts.english`.
        num_documents: candidates of a query.
        num_queries: of the call that throughput is measured by.
        rounds: runs of each contestant; of its batch sizes, all run twice, and its default and its fastest as
            often as this.
        threads: of each contestant; None takes the cores this process may use.
        max_length: tokens of a pair.
        contestants: names, of `worker.CONTESTANTS`; None takes crossrank and those installed here. What
            all are compared with, crossrank's float32, takes part in any case.
        interpreters: contestant -> Python of the environment that has it.
        prepare: called with the folder of the float32 model, to add the files that a contestant needs.
        judged: collections that the class "tolerance" is proven on; see `fidelity.judge`.
        known: an earlier report (`BenchReport.as_dict`), whose `judged` counts if it is of the same model.
        progress: whether a progress bar is shown; None shows it on a terminal.

    Raises:
        InputError: an unknown profile or contestant, a number below 1, or too few texts.
        CheckpointError: the model cannot be opened.
        ContestantError: crossrank itself cannot run.
    """
    for name, value in (("num_documents", num_documents), ("num_queries", num_queries), ("rounds", rounds)):
        check_count(value, name)
    names = list(contestants) if contestants is not None else installed()
    for name in names:
        if name not in CONTESTANTS:
            raise InputError(f"there is no contestant {name!r}; choose from {', '.join(CONTESTANTS)}")
    names = list(dict.fromkeys([_REFERENCE, *names]))
    threads = num_threads(threads)
    own = None if texts is None else _own_pairs(as_strings(texts, "texts"), num_queries, num_documents)
    with tempfile.TemporaryDirectory(prefix="crossrank-bench-", ignore_cleanup_errors=True) as scratch:
        forms = write_forms(model, "cross-encoder", Path(scratch), _calibration_inputs)
        if prepare is not None:
            prepare(forms.float32)
        checkpoint = Checkpoint.open(forms.float32)
        tokenizer = Tokenizer(checkpoint)
        limit = min(max_length, checkpoint.max_length or max_length)
        set_max_length(forms.float32, limit)
        if own is not None:
            material = {_OWN: own}
        else:
            cut_from = list(sources or english())
            material = {
                profile: _pairs(tokenizer, profile, cut_from, num_queries, num_documents)
                for profile in profiles
            }
        fingerprints = {
            "fingerprint": checkpoint.fingerprint,
            "int8_fingerprint": Checkpoint.open(forms.int8).fingerprint,
        }
        environment = {**machine(*_OWN_PACKAGES), "load_average_before": load_average()}
        with _loaded(names, forms, threads, limit, interpreters or {}) as (running, left_out):
            with track(len(judged) * len(running), "Judged queries", progress=progress) as tracked:
                differences, unproven = _differences(running, judged, left_out, tracked.advance)
            if known and all(known["settings"].get(key) == value for key, value in fingerprints.items()):
                for name, found in known["judged"].items():
                    differences[name] = {**found, **differences.get(name, {})}
            with track(len(material), "Profiles", progress=progress) as tracked:
                measured = {}
                for profile, pairs in material.items():
                    measured[profile] = _profile(
                        running,
                        pairs,
                        num_documents,
                        rounds,
                        tokenizer=tokenizer,
                        differences=differences,
                        unproven=unproven,
                        left_out=left_out,
                    )
                    tracked.advance()
        settings = {
            "model": str(model) if model is not None else "built-in",
            "threads": threads,
            "rounds": rounds,
            "num_documents": num_documents,
            "num_queries": num_queries,
            "max_length": limit,
            "exact": f"largest difference of a logit below {EXACT}",
            "tolerance": _TOLERANCE,
            **forms.origin,
            **fingerprints,
        }
    loaded = {contestant.name: contestant.environment for contestant in running}
    return BenchReport(settings, environment, loaded, measured, differences, left_out)


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


def _differences(
    running: Sequence[Contestant],
    judged: Sequence[Judged],
    left_out: dict[str, str],
    advance: Callable[[], None],
) -> tuple[dict[str, dict[str, Any]], set[str]]:
    """Contestant -> collection -> its difference, each at its default batch size, a query a call.

    Second are those that failed on a collection: what the others say of them proves nothing.
    """
    found: dict[str, dict[str, Any]] = {}
    failed: set[str] = set()
    for collection in judged:
        queries = collection.pairs()
        reference: list[npt.NDArray[np.float32]] = []
        for contestant in _ours_first(running):
            scores: list[npt.NDArray[np.float32]] = []
            try:
                for number, pairs in enumerate(queries):
                    scores.append(contestant.give(contestant.variants[0], pairs))
                    # What is exact in the first queries need not be asked for the others.
                    if reference and number + 1 == _EXACT_AFTER and _is_exact(reference, scores):
                        break
            except ContestantError as error:
                if contestant.name == _REFERENCE:
                    raise
                left_out[f"{contestant.name} on {collection.name}"] = str(error)
                failed.add(contestant.name)
                continue
            finally:
                advance()
            if contestant.name == _REFERENCE:
                reference = scores
            elif len(scores) == len(reference) and not _is_exact(reference, scores):
                of_contestant = found.setdefault(contestant.name, {})
                of_contestant[collection.name] = collection.difference(reference, scores)
    return found, failed


def _is_exact(
    reference: Sequence[npt.NDArray[np.float32]], scores: Sequence[npt.NDArray[np.float32]]
) -> bool:
    pairs = zip(reference, scores, strict=False)
    return all(float(np.abs(wanted - got).max()) < EXACT for wanted, got in pairs)


def _profile(
    running: Sequence[Contestant],
    pairs: list[tuple[str, str]],
    num_documents: int,
    rounds: int,
    *,
    tokenizer: Tokenizer,
    differences: Differences,
    unproven: Collection[str],
    left_out: dict[str, str],
) -> dict[str, Any]:
    one_query = pairs[:num_documents]
    texts = dict.fromkeys(text for pair in pairs for text in pair)
    encoded = tokenizer.encode(list(texts))
    num_tokens = {text: len(tokens.ids) for text, tokens in zip(texts, encoded, strict=True)}
    sizes = [tokenizer.pair_length(num_tokens[query], num_tokens[text]) for query, text in one_query]
    characters = [len(query) + len(text) for query, text in one_query]
    few = sorted(range(len(one_query)), key=sizes.__getitem__)[:: max(1, len(one_query) // _ALONE)][:_ALONE]
    reference: npt.NDArray[np.float32] | None = None
    latency: dict[str, dict[str, Any]] = {}
    variants: dict[str, tuple[Contestant, str]] = {}
    for contestant in _ours_first(running):
        proven = within_tolerance(differences.get(contestant.name, {}))
        if contestant.name in unproven:
            proven = False
        for variant in contestant.variants:
            label = f"{contestant.name} {variant}".rstrip()
            try:
                alone = contestant.give(variant, [one_query[row] for row in few])
                scores = contestant.give(variant, one_query)
            except ContestantError as error:
                if contestant.name == _REFERENCE:
                    raise
                left_out[label] = str(error)
                continue
            reference = scores if reference is None else reference
            variants[label] = contestant, variant
            latency[label] = {
                "contestant": contestant.name,
                "is_default": variant == contestant.variants[0],
                **judge(reference, scores, alone, few, proven=proven),
                "padding": round(padding_waste(contestant.name, variant, sizes, characters), 3),
            }
    load = load_average()
    timings = _timed(variants, one_query, min(rounds, _SCOUTING_ROUNDS), left_out)
    variants = {label: each for label, each in variants.items() if label in timings}
    latency = {label: each for label, each in latency.items() if label in timings}
    fastest = _fastest(variants, timings)
    going_on = {
        label: each
        for label, each in variants.items()
        if latency[label]["is_default"] or label in fastest or each[1].startswith(UNSORTED)
    }
    later = _timed(going_on, one_query, rounds - _SCOUTING_ROUNDS, left_out)
    for label in list(going_on):
        if label in later:
            timings[label].extend(later[label])
        else:  # it failed: fewer rounds than the others have are no figure
            del going_on[label], timings[label], latency[label]
    fastest = _fastest(going_on, timings)
    for label, timing in timings.items():
        latency[label] |= {"is_best": label in fastest, **timing.summary()}
    best = {label: variants[label] for label, each in latency.items() if _is_shown(each)}
    for label, (contestant, variant) in best.items():
        try:  # in a process that has run nothing else: what was run before stays in arenas
            peak = contestant.peak_mb(variant, one_query)
        except ContestantError as error:
            left_out[f"{label}: its memory"] = str(error)
            continue
        if peak is not None:
            latency[label]["peak_mb"] = peak
    throughput: dict[str, dict[str, Any]] = {}
    fewer_rounds = min(rounds, max(3, rounds // 2))
    for label, timing in _timed(best, pairs, fewer_rounds, left_out).items():
        throughput[label] = {**timing.summary(), "pairs_per_s": round(len(pairs) / timing.median_s, 1)}
    curved = {
        label: each
        for label, each in best.items()
        if latency[label]["is_default"] and each[0].name in differences
    }
    seconds: dict[str, dict[str, float]] = {
        label: {str(num_documents): latency[label]["median_s"]} for label in curved
    }
    for depth in (depth for depth in DEPTHS if depth < num_documents):
        for label, timing in _timed(curved, one_query[:depth], fewer_rounds, left_out).items():
            seconds[label][str(depth)] = round(timing.median_s, 4)
    return {
        "mean_tokens": round(float(np.mean(sizes)), 1),
        "tokens": histogram(sizes, 50 if max(sizes) > 300 else 15),
        "score_std": float(np.std(reference)) if reference is not None else 0.0,
        "load_average_before": load,
        "latency": latency,
        "throughput": throughput,
        "curves": {
            label: _curve(seconds[label], differences[contestant.name])
            for label, (contestant, _) in curved.items()
        },
        "control": _control(latency),
        "ratios": _ratios(latency),
    }


def _fastest(variants: Mapping[str, tuple[Contestant, str]], timings: Mapping[str, Timing]) -> set[str]:
    """The label of each contestant's fastest variant."""
    by_contestant: dict[str, list[str]] = {}
    for label, (contestant, _) in variants.items():
        by_contestant.setdefault(contestant.name, []).append(label)
    return {min(labels, key=lambda label: timings[label].median_s) for labels in by_contestant.values()}


def _curve(
    seconds: Mapping[str, float], found: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[dict[str, float]]]:
    """Collection -> nDCG@10 against milliseconds, a point for each number of reranked candidates."""
    return {
        collection: [
            {"depth": int(depth), "ms": round(1000 * seconds[depth], 1), "ndcg@10": quality}
            for depth, quality in each["by_depth"].items()
            if depth in seconds
        ]
        for collection, each in found.items()
    }


def _control(latency: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What sorting is worth to one engine: where all texts are of one length 1.0, and no padding anywhere."""
    gain = {}
    for label, each in latency.items():
        before, unsorted, variant = label.partition(UNSORTED)
        if unsorted and before + variant in latency:
            gain[before + variant] = round(each["median_s"] / latency[before + variant]["median_s"], 3)
    most_padding = max(each["padding"] for each in latency.values())
    return {"most_padding": most_padding, "unsorted_against_sorted": gain}


def _is_shown(figures: Mapping[str, Any]) -> bool:
    return bool(figures["is_default"] or figures["is_best"])


def _ratios(latency: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """How many times our median a peer's is, by "ours against peer default" (or best)."""
    ours = {name: latency[name]["median_s"] for name in _OURS if name in latency}
    return {
        f"{name} against {each['contestant']} {kind}": round(each["median_s"] / taken, 2)
        for name, taken in ours.items()
        for each in latency.values()
        for kind in ("default", "best")
        if each[f"is_{kind}"] and each["contestant"] not in _OURS
    }


def _timed(
    variants: Mapping[str, tuple[Contestant, str]],
    pairs: list[tuple[str, str]],
    rounds: int,
    left_out: dict[str, str],
) -> dict[str, Timing]:
    """Time all in turns. Those that fail, as for want of memory, are left out, and the others go on.

    Raises:
        ContestantError: what all are compared with fails.
    """
    failed: set[str] = set()

    def tried(label: str, call: Callable[[], _Result]) -> _Result | None:
        if label in failed:
            return None
        try:
            return call()
        except ContestantError as error:
            if variants[label][0].name == _REFERENCE:
                raise
            left_out[f"{label}, {len(pairs)} pairs"] = str(error)
            failed.add(label)
            return None

    def run(label: str, contestant: Contestant, variant: str) -> Measured:
        return tried(label, partial(contestant.run, variant)) or Measured(0.0, 0.0)

    for label, (contestant, variant) in variants.items():
        # No batch size meets these shapes for the first time when it counts.
        tried(label, partial(contestant.give, variant, pairs))
    calls = {label: partial(run, label, *each) for label, each in variants.items() if label not in failed}
    return {label: timing for label, timing in interleave(calls, rounds).items() if label not in failed}


def _ours_first(running: Sequence[Contestant]) -> list[Contestant]:
    """The contestants with ours before the others, and first of all what scores are compared with."""
    return sorted(running, key=lambda each: (each.name != _REFERENCE, each.name not in _OURS))


def _pairs(
    tokenizer: Tokenizer, profile: str, sources: list[str], num_queries: int, num_documents: int
) -> list[tuple[str, str]]:
    documents = cut(sources, lengths(profile, num_documents * num_queries).tolist(), tokenizer)
    queries = cut(sources, [_QUERY_TOKENS] * num_queries, tokenizer, seed=1)
    return [(queries[row // num_documents], document) for row, document in enumerate(documents)]


def _own_pairs(texts: Sequence[str], num_queries: int, num_documents: int) -> list[tuple[str, str]]:
    """Pairs that all differ: equal ones crossrank computes once, and other libraries each time."""
    documents = list(dict.fromkeys(texts))
    if len(documents) < num_documents:
        raise InputError(
            f"texts has {len(documents)} different documents, and a query num_documents={num_documents} "
            "candidates; give more texts, or ask for fewer candidates"
        )
    first_words = (" ".join(text.split()[:_QUERY_WORDS]) or "text" for text in documents)
    queries = list(dict.fromkeys(first_words))[:num_queries]
    if len(queries) < num_queries:
        raise InputError(
            f"the first {_QUERY_WORDS} words of texts, which are the queries, are {len(queries)} different "
            f"ones, and num_queries={num_queries}; give more texts, or ask for fewer queries"
        )
    turns = itertools.cycle(documents)
    return [(query, next(turns)) for query in queries for _ in range(num_documents)]


def _calibration_inputs(checkpoint: Checkpoint) -> list[ModelInputs]:
    pairs = _pairs(Tokenizer(checkpoint), "marco", english(), _CALIBRATION_PAIRS, 1)
    return calibration_inputs(checkpoint, "cross-encoder", pairs)
