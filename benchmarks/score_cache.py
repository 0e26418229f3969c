"""What a cache of scores costs and saves: microseconds of a hit, and a query log in which queries come again.

A hit is timed by itself (the key made, the row looked up) and as part of a whole call of the model, with rows
in memory and in an SQLite file of which memory keeps a single row, so that each is read from the file. The
log draws queries of a judged collection by Zipf's law: how often the query at rank r comes is as 1 / r^s. It
is played without a cache and with new ones, in turns; scores must be the same to the last bit. Hit rates by
the length of the log and by the rows kept come from the cache itself, over the same pairs without the model,
since they do not need its time.

    python benchmarks/score_cache.py ../shared/data/msmarco_dl19 --run bm25.top100 \
        --qrels ../shared/data/msmarco_dl19/qrels_full_official.txt --page docs/guide.md
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import harness
import late_interaction
import numpy as np
from harness import at_least_one

from crossrank.benchmarking.rounds import Measured
from crossrank.cache import ScoreCache, score_key
from crossrank.evaluation.collections import Collection
from crossrank.models.cross_encoder import CrossEncoder

SEED = 0
EXPONENTS = (0.6, 0.8, 1.0, 1.2)
SHARES = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)  # of the pairs, that a cache has room for
WITHOUT, MEMORY, FILE, KEPT = "no cache", "new cache in memory", "new cache on disk", "cache on disk, kept"

Log = Sequence[tuple[str, list[str]]]
"""A query's text and its candidates' texts, once for each time that it is asked."""


def drawn(count: int, length: int, exponent: float) -> list[int]:
    """Numbers of queries as a log has them: by Zipf's law, in an order that says nothing of the ranks."""
    random = np.random.default_rng(SEED)
    weights = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    return random.permutation(count)[random.choice(count, length, p=weights / weights.sum())].tolist()


def look_up(cache: ScoreCache, fingerprint: str, pairs: Sequence[tuple[str, str]]) -> None:
    """What a call does with a cache, less the model: keys, then rows."""
    keys = [score_key(fingerprint, query, document) for query, document in pairs]
    cache.get_or_compute(keys, lambda missing: [np.zeros(4, np.float32)] * len(missing))


def hits(pairs: list[tuple[str, str]], args: Any, scratch: Path) -> dict[str, dict[str, Any]]:
    """Microseconds a pair whose score is there."""
    options = {"threads": args.threads, "long_query": "truncate", "progress": False}
    caches = {
        "memory": ScoreCache(max_items=len(pairs)),
        "disk": ScoreCache(scratch / "alone.cache", max_items=1),
    }
    models = {
        "memory": CrossEncoder(args.weights, cache=ScoreCache(max_items=len(pairs)), **options),
        "disk": CrossEncoder(args.weights, cache=ScoreCache(scratch / "model.cache", max_items=1), **options),
    }
    runs: dict[str, Callable[[], object]] = {"the key alone": partial(_keys, pairs)}
    for place, cache in caches.items():
        runs[f"looked up, {place}"] = partial(look_up, cache, "model", pairs)
    for place, model in models.items():
        runs[f"score(), {place}"] = partial(model.score, pairs)
    for name, warm_up in runs.items():
        harness.say(f"warming up: {name}")
        warm_up()
    timings = harness.interleave(runs, args.rounds)
    return {
        name: timing.summary() | {"microseconds_a_pair": round(1e6 * timing.median_s / len(pairs), 2)}
        for name, timing in timings.items()
    }


def played(log: Log, args: Any, scratch: Path) -> dict[str, dict[str, Any]]:
    """What the log takes, without a cache and with each kind."""
    kept = scratch / "kept.cache"
    wanted: list[np.ndarray] = []
    found: dict[str, dict[str, Any]] = {name: {} for name in (WITHOUT, MEMORY, FILE, KEPT)}

    def play(name: str) -> Measured:
        path = kept if name == KEPT else Path(tempfile.mkdtemp(dir=scratch), "log.cache")
        cache = None if name == WITHOUT else ScoreCache(None if name == MEMORY else path)
        model = CrossEncoder(
            args.weights, cache=cache, threads=args.threads, long_query="truncate", progress=False
        )
        model.score([("a question", "a text that is in no log")])
        misses = 0 if cache is None else cache.misses
        scores, taken, seen = [], {"first": [], "again": []}, set()
        wall, cpu = time.perf_counter(), time.process_time()
        for query, texts in log:
            start = time.perf_counter()
            scores.append(model.score([(query, text) for text in texts]))
            taken["again" if query in seen else "first"].append(1000 * (time.perf_counter() - start))
            seen.add(query)
        measured = Measured(time.perf_counter() - wall, time.process_time() - cpu)
        if not wanted:
            wanted.extend(scores)
        if any((ours != theirs).any() for ours, theirs in zip(scores, wanted, strict=True)):
            raise SystemExit(f"{name}: scores are not those of the first run")
        found[name] = {
            "pairs_through_the_model": (
                sum(len(set(texts)) for _, texts in log) if cache is None else cache.misses - misses
            ),
            **{f"{when}_median_ms": _median(values) for when, values in taken.items()},
        }
        if cache is not None:
            cache.close()
        return measured

    harness.say(f"filling: {KEPT}")
    play(KEPT)
    timings = harness.interleave({name: partial(play, name) for name in found}, args.rounds)
    without = timings[WITHOUT].median_s
    return {
        name: timing.summary() | found[name] | {"times_faster": round(without / timing.median_s, 2)}
        for name, timing in timings.items()
    }


def hit_rates(rows: Log, length: int, exponents: Sequence[float]) -> dict[str, dict[str, Any]]:
    """Zipf's exponent -> share of pairs that were there, by length of the log and by rows kept."""
    keys = [[score_key("model", query, text) for text in dict.fromkeys(texts)] for query, texts in rows]
    num_pairs = sum(map(len, keys))
    checkpoints = sorted({max(1, round(length * share)) for share in np.linspace(0.02, 1, 50)})
    found: dict[str, dict[str, Any]] = {}
    for exponent in exponents:
        order = drawn(len(rows), length, exponent)
        whole = _rates(keys, order, num_pairs, checkpoints)
        bounded = [_rates(keys, order, max(1, round(share * num_pairs)), [length])[0] for share in SHARES]
        found[f"{exponent:g}"] = {
            "queries": checkpoints,
            "hit_rate": whole,
            "share_of_pairs_kept": list(SHARES),
            "hit_rate_by_share_kept": bounded,
        }
    return found


def _rates(
    keys: Sequence[list[bytes]], order: Sequence[int], max_items: int, checkpoints: Sequence[int]
) -> list[float]:
    cache = ScoreCache(max_items=max_items)
    row = np.zeros(4, np.float32)
    rates = []
    for number, query in enumerate(order, start=1):
        cache.get_or_compute(keys[query], lambda missing: [row] * len(missing))
        if number in checkpoints:
            rates.append(round(cache.hits / (cache.hits + cache.misses), 4))
    return rates


def _keys(pairs: Sequence[tuple[str, str]]) -> list[bytes]:
    return [score_key("model", query, document) for query, document in pairs]


def _median(values: Sequence[float]) -> float | None:
    return round(statistics.median(values), 3) if values else None


def run(args: Any, scratch: Path) -> dict[str, Any]:
    found, _ = late_interaction.candidates_of(Collection.open(args.collection), args)
    rows: Log = [(query, [each.full_text for each in documents]) for query, documents in found.values()]
    log = [rows[number] for number in drawn(len(rows), args.log, args.zipf)]
    pairs = list(dict.fromkeys((query, text) for query, texts in rows for text in texts))[: args.pairs]
    load = harness.load_average()
    return {
        "benchmark": "score_cache",
        "machine": harness.machine("crossrank", "numpy", "onnxruntime", "tokenizers"),
        "load_average_before": load,
        "settings": {
            "collection": args.collection.name,
            "candidates": args.run or "BM25",
            "depth": args.depth,
            "threads": args.threads,
            "rounds": args.rounds,
            "pairs_of_hits": len(pairs),
            "log_queries": len(log),
            "distinct_queries": len({query for query, _ in log}),
            "queries_drawn_from": len(rows),
            "zipf_exponent": args.zipf,
        },
        "log": played(log, args, scratch),
        "hits": hits(pairs, args, scratch),
        "hit_rates": hit_rates(rows, args.curve, args.exponents),
    }


def tables(result: Mapping[str, Any]) -> str:
    """The page's tables, as Markdown."""
    settings = result["settings"]
    lines = [
        f"{harness.machine_line(result)}; {settings['threads']} threads; {settings['collection']} "
        f"({settings['candidates']}), {settings['depth']} candidates a query; a log of "
        f"{settings['log_queries']:,} queries, {settings['distinct_queries']} different ones, by Zipf's law "
        f"with exponent {settings['zipf_exponent']:g}; median of {settings['rounds']} rounds in turns; load "
        f"average before: {result['load_average_before']}.",
        "",
    ]
    rows = []
    for name, row in result["log"].items():
        times = [
            "" if row[key] is None else f"{row[key]:,.1f}" for key in ("first_median_ms", "again_median_ms")
        ]
        cells = [name, f"{row['median_s']:.2f}", f"{row['pairs_through_the_model']:,}", *times]
        rows.append([*cells, f"{row['times_faster']:.2f}"])
    columns = ["the log with", "s", "pairs through the model", "ms, first time", "ms, again", "times as fast"]
    lines += [*harness.markdown_table(columns, rows), ""]
    lines += harness.markdown_table(
        [f"a hit, of {settings['pairs_of_hits']:,}", "µs a pair"],
        ([name, f"{row['microseconds_a_pair']:.1f}"] for name, row in result["hits"].items()),
    )
    return "\n".join(lines)


def plot(result: Mapping[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    from crossrank.evaluation.plots import save_plot

    figure = Figure(figsize=(10, 4), layout="constrained")
    by_length, by_share = figure.subplots(1, 2, sharey=True)
    for exponent, found in result["hit_rates"].items():
        by_length.plot(found["queries"], found["hit_rate"], label=f"exponent {exponent}")
        by_share.plot(found["share_of_pairs_kept"], found["hit_rate_by_share_kept"], marker="o")
    by_length.set(xlabel="queries of the log", ylabel="hit rate", ylim=(0, 1))
    by_share.set(xlabel="rows kept, as a share of all pairs there are")
    by_length.legend()
    drawn_from = result["settings"]["queries_drawn_from"]
    figure.suptitle(f"{drawn_from} queries of {result['settings']['collection']}, asked by Zipf's law")
    save_plot(figure, path)


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("collection", type=Path, help="folder in BEIR form")
    late_interaction.candidate_options(parser)
    parser.add_argument("--log", type=at_least_one, default=200, help="queries of the log that is played")
    parser.add_argument("--zipf", type=float, default=1.0, help="exponent of that log")
    parser.add_argument("--curve", type=at_least_one, default=1000, help="queries of the logs of the curves")
    parser.add_argument("--exponents", type=float, nargs="+", default=EXPONENTS, help="of the curves")
    parser.add_argument("--pairs", type=at_least_one, default=4000, help="whose hits are timed")
    parser.add_argument("--rounds", type=at_least_one, default=5)
    harness.page_option(parser)
    args = parser.parse_args()
    result = harness.carry_out(run, args)
    harness.publish("score_cache", result, tables(result), args, plot=plot)


if __name__ == "__main__":
    main()
