"""Doing less work: what filters, exits at earlier layers and cascades cost in nDCG@10, and what they save.

Each method reranks the same candidates (the collection's own BM25 run where it has one, else BM25's), and is
compared with the whole model over all of them: the difference in nDCG@10 with its 95 % bootstrap interval,
the model's operations, and milliseconds a query. The scores of every layer are computed once; methods are
then played through with them by the very classes that users have, and --timed runs them in earnest, in turns.
Quality needs no quiet machine, milliseconds do: --timed 0 leaves them out.

    first stage    the whole model over the first m candidates alone: what any method must beat
    words          word embeddings compared before the first layer (SEE), the best m go on
    exit L         the head after layer L, the best m go on (EarlyExit)
    exit L margin  who is within a margin of the 10th goes on
    exit L conf.   the margin calibrated on the other half of the queries, to keep the whole top 10
    exits          several heads one after another
    tiny           another, smaller model first (--tiny FOLDER; a Cascade)
    time budget    as many as there is time for after the first exit (timed runs only)

Prints all of them, and for the page of each method the cheapest setting that costs no more than --loss on any
collection, at half the operations or less.

    python benchmarks/less_work.py ../shared/data/msmarco_dl19 ../shared/data/scifact \
        ../shared/data/cranfield --tiny crossrank-tiny --page docs/less-work.md
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import numpy as np

from crossrank import BM25, Cascade, Collection, CrossEncoder, EarlyExit, Margin, Run, TimeBudget, evaluate
from crossrank.depths import Depth
from crossrank.evaluation.significance import compare
from crossrank.evaluation.trec import read_qrels
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.settings import read_setting
from crossrank.runtime.tokenization import Tokenizer
from crossrank.types import Document, Hit, Ranking

PACKAGES = ("crossrank", "numpy", "onnxruntime", "tokenizers")
MEASURE = "nDCG@10"
COUNTS = (10, 15, 20, 30, 40, 50, 70)
MARGINS = (0.25, 0.5, 1.0, 2.0, 3.0)
CONFIDENCES = (0.7, 0.8, 0.9, 0.95)
FIRST, TINY = "first stage", "tiny"
RUN, OFFICIAL = "bm25.top100", "qrels_full_official.txt"
Rows = Mapping[str, tuple[str, list[Document]]]
"""Query id -> its text and its candidates, best first."""


@dataclass(frozen=True)
class Method:
    """Stages one after another: a layer's number, FIRST or TINY; the last is the whole model."""

    family: str
    setting: str
    stages: tuple[tuple[int | str, Depth], ...]  # how many documents reach each; the first's is not read
    confidence: float | None = None  # the margin before the last stage is calibrated to it

    @property
    def name(self) -> str:
        return f"{self.family} {self.setting}"


def methods(model: CrossEncoder, depth: int, *, tiny: bool) -> list[Method]:
    last, counts = model.num_layers, [m for m in COUNTS if m < depth]
    found = [Method("first stage", f"{m}", ((FIRST, 0), (last, m))) for m in counts]
    found += [Method("words", f"{m}", ((0, 0), (last, m))) for m in counts]
    for layer in model.exit_layers:
        found += [Method(f"exit {layer}", f"{m}", ((layer, 0), (last, m))) for m in counts]
        found += [
            Method(f"exit {layer} margin", f"{below:g}", ((layer, 0), (last, Margin(below))))
            for below in MARGINS
        ]
        found += [
            Method(f"exit {layer} conf.", f"{each:g}", ((layer, 0), (last, 0)), each) for each in CONFIDENCES
        ]
    if len(model.exit_layers) > 1:
        first, second = model.exit_layers[:2]
        for m, n in ((depth // 2, depth // 5), (depth * 3 // 5, depth * 3 // 10)):
            found.append(Method("exits", f"{m} {n}", ((first, 0), (second, m), (last, n))))
            found.append(Method("words, exit", f"{m} {n}", ((0, 0), (first, m), (last, n))))
    if tiny:
        found += [Method("tiny", f"{m}", ((TINY, 0), (last, m))) for m in counts]
    return found


class Known:
    """A reranker whose scores were computed before."""

    def __init__(self, name: str, scores: Mapping[tuple[str, str], float]) -> None:
        self.name = name
        self.scores = scores

    def rank(self, query: str, documents: Sequence[Document], top_k: int | None = None) -> Ranking:
        return self.rank_many([query], [documents], top_k)[0]

    def rank_many(
        self, queries: Sequence[str], documents: Sequence[Sequence[Document]], top_k: int | None = None
    ) -> list[Ranking]:
        return [
            Ranking.from_hits(
                query,
                [
                    Hit(each.id, self.scores[query, each.full_text], 1, self.name, place, each)
                    for place, each in enumerate(asked)
                ],
                top_k=top_k,
            )
            for query, asked in zip(queries, documents, strict=True)
        ]


class Operations:
    """Multiplications and additions of a model of the BERT family."""

    def __init__(self, model: CrossEncoder) -> None:
        checkpoint = Checkpoint.open(model.folder)
        config = checkpoint.config
        self._tokenizer, self._limit = Tokenizer(checkpoint), model.settings.max_length
        self._hidden = read_setting(config, "hidden_size", int)
        self._inner = read_setting(config, "intermediate_size", int)
        self.num_layers = model.num_layers

    def length(self, query: str, text: str) -> int:
        """Tokens of a pair."""
        sizes = [len(tokens.ids) for tokens in self._tokenizer.encode([query, text])]
        return min(self._tokenizer.pair_length(*sizes), self._limit)

    def between(self, length: int, start: int, stop: int) -> float:
        """Of the layers after `start` up to `stop`, where only the first token is computed."""
        hidden, inner = self._hidden, self._inner
        whole = 2 * length * (4 * hidden**2 + 2 * hidden * inner) + 4 * length**2 * hidden
        last = 2 * length * 2 * hidden**2 + 2 * (2 * hidden**2 + 2 * hidden * inner) + 4 * length * hidden
        return (stop - start - 1) * whole + last


@dataclass
class Played:
    """One collection with all scores."""

    name: str
    rows: Rows
    qrels: Mapping[str, Mapping[str, int]]
    scores: dict[int | str, dict[tuple[str, str], float]]
    lengths: dict[tuple[str, str], int]


def candidates(folder: Path, depth: int, num_queries: int | None) -> tuple[Rows, Any]:
    collection = Collection.open(folder)
    qrels: Mapping[str, Mapping[str, int]] = collection.qrels("test")
    if (folder / OFFICIAL).is_file():
        qrels = read_qrels(folder / OFFICIAL)
    documents = {document.id: document for document in collection.documents()}
    if RUN in collection.runs:
        queries, run = collection.queries(), collection.run(RUN)
        found = {q: [hit.document_id for hit in run[q]][:depth] for q in run if q in qrels}
    else:
        queries = {q: text for q, text in collection.queries("test").items() if q in qrels}
        rankings = BM25(list(documents.values())).retrieve(list(queries.values()), depth)
        found = {q: list(ranking.document_ids) for q, ranking in zip(queries, rankings, strict=True)}
    kept = list(found)[:num_queries]
    return (
        {q: (queries[q], [documents[i] for i in found[q]]) for q in kept if found[q]},
        {q: qrels[q] for q in kept if found[q]},
    )


def played(name: str, folder: Path, model: CrossEncoder, tiny: CrossEncoder | None, args: Any) -> Played:
    rows, qrels = candidates(folder, args.depth, args.queries)
    queries, documents = [query for query, _ in rows.values()], [each for _, each in rows.values()]
    # All documents go through all layers: one pass has the scores of each.
    steps = [(layer, args.depth) for layer in (*model.exit_layers, model.num_layers)]
    rankings = EarlyExit(model, 0, steps).rank_many(queries, documents)
    names = {layer: f"{model.name}@{layer}" for layer in (0, *model.exit_layers)}
    names[model.num_layers] = model.name
    pairs = [(query, each.full_text) for query, texts in rows.values() for each in texts]
    scores: dict[int | str, dict[tuple[str, str], float]] = {layer: {} for layer in names}
    scores[FIRST] = {}
    for (query, texts), ranking in zip(rows.values(), rankings, strict=True):
        for place, each in enumerate(texts):
            scores[FIRST].setdefault((query, each.full_text), -float(place))
        for hit in ranking:
            for layer, stage in names.items():
                scores[layer][query, texts[hit.index].full_text] = hit.stage_scores[stage]
    if tiny is not None:
        scores[TINY] = dict(zip(pairs, map(float, tiny.score(pairs)), strict=True))
    operations = Operations(model)
    lengths = {pair: operations.length(*pair) for pair in dict.fromkeys(pairs)}
    return Played(name, rows, qrels, scores, lengths)


def ranked(method: Method, on: Played) -> dict[str, Ranking]:
    """The rankings of a method, from the scores that are known."""

    def cascade(depths: Sequence[Depth], rows: Rows) -> dict[str, Ranking]:
        stages = [Known(str(stage), on.scores[stage]) for stage, _ in method.stages]
        made = Cascade(stages[0], list(zip(stages[1:], depths, strict=True)))
        texts, documents = zip(*rows.values(), strict=True)
        return dict(zip(rows, made.rank_many(texts, documents), strict=True))

    if method.confidence is None:
        return cascade([depth for _, depth in method.stages[1:]], on.rows)
    found: dict[str, Ranking] = {}
    for own, rule in calibrated(method, on):
        found |= cascade([rule], own)
    return {query_id: found[query_id] for query_id in on.rows}


def calibrated(method: Method, on: Played) -> list[tuple[Rows, Margin]]:
    """Both halves of the queries, each with the margin that the other one gives."""
    (early, _), (last, _) = method.stages
    assert method.confidence is not None  # checked by the caller
    halves: list[dict[str, tuple[str, list[Document]]]] = [{}, {}]
    for query_id, row in on.rows.items():
        halves[hashlib.sha256(query_id.encode()).digest()[0] % 2][query_id] = row
    most = max(len(texts) for _, texts in on.rows.values())
    found: list[tuple[Rows, Margin]] = []
    for own, other in (halves, halves[::-1]):
        values = [
            [[on.scores[stage][query, each.full_text] for each in texts] for query, texts in other.values()]
            for stage in (early, last)
        ]
        found.append((own, Margin.calibrated(values[0], values[1], confidence=method.confidence, most=most)))
    return found


def operations_of(
    method: Method, rankings: Mapping[str, Ranking], on: Played, main: Operations, small: Operations | None
) -> float:
    total = 0.0
    for query_id, ranking in rankings.items():
        query, texts = on.rows[query_id]
        for hit in ranking:
            length, before = on.lengths[query, texts[hit.index].full_text], 0
            for stage, _ in method.stages:
                if str(stage) not in hit.stage_scores:
                    break
                if isinstance(stage, int):
                    total += main.between(length, before, stage) if stage else 0.0
                    before = max(stage - 1, 0)  # who goes on begins with the layer of the head
                elif stage == TINY and small is not None:
                    total += small.between(length, 0, small.num_layers)
    return total


def quality(rankings: Mapping[str, Ranking], on: Played) -> Any:
    return evaluate(Run(dict(rankings)), on.qrels, [MEASURE])


def whole_model(model: CrossEncoder) -> Method:
    return Method("whole model", "", ((model.num_layers, 0),))


def compared(
    all_played: Sequence[Played],
    references: Mapping[str, Any],
    model: CrossEncoder,
    tiny: CrossEncoder | None,
    depth: int,
) -> dict[str, Any]:
    main, small = Operations(model), None if tiny is None else Operations(tiny)
    whole = whole_model(model)
    result: dict[str, Any] = {}
    for on in all_played:
        reference = references[on.name]
        all_work = operations_of(whole, ranked(whole, on), on, main, small)
        rows = {}
        for method in methods(model, depth, tiny=tiny is not None):
            harness.say(f"{on.name}: {method.name}")
            try:
                rankings = ranked(method, on)
            except ValueError as error:  # too few queries for a confidence
                harness.say(f"{on.name}: {method.name} left out: {error}")
                continue
            found = quality(rankings, on)
            difference = compare(found, reference, measure=MEASURE).difference
            last = str(model.num_layers)
            finished = [sum(last in hit.stage_scores for hit in each) for each in rankings.values()]
            rows[method.name] = {
                "family": method.family,
                "ndcg@10": round(found[MEASURE], 4),
                "difference": round(difference.value, 4),
                "interval": [round(difference.low, 4), round(difference.high, 4)],
                "share_of_operations": round(operations_of(method, rankings, on, main, small) / all_work, 4),
                "finished_a_query": round(float(np.mean(finished)), 1),
            }
        result[on.name] = {
            "queries": len(on.rows),
            "whole_model": round(reference[MEASURE], 4),
            "giga_operations_a_query": round(all_work / len(on.rows) / 1e9, 2),
            "methods": rows,
        }
    return result


def runnable(method: Method, model: CrossEncoder, tiny: CrossEncoder | None, on: Played) -> dict[str, Any]:
    """What a user would make for this method, for each query."""
    (first, _), *then = method.stages
    if method.confidence is not None:
        halves = [
            (own, EarlyExit(model, int(first), [(model.num_layers, rule)]))
            for own, rule in calibrated(method, on)
        ]
        return {query_id: made for own, made in halves for query_id in own}
    made: Any
    if first == TINY:
        assert tiny is not None  # there are no such methods without
        made = Cascade(tiny, [(model, depth) for _, depth in then])
    elif first == FIRST:
        made = FirstOnly(model, int(then[0][1]))  # type: ignore[arg-type]
    else:
        made = EarlyExit(model, int(first), [(int(layer), depth) for layer, depth in then])
    return dict.fromkeys(on.rows, made)


class FirstOnly:
    """Reranks the first m candidates and leaves the others below."""

    def __init__(self, model: CrossEncoder, depth: int) -> None:
        self.model, self.depth = model, depth

    def rank(self, query: str, documents: Sequence[Document]) -> Ranking:
        return self.model.rank(query, documents[: self.depth])


def timed(
    result: dict[str, Any],
    all_played: Sequence[Played],
    references: Mapping[str, Any],
    model: CrossEncoder,
    tiny: CrossEncoder | None,
    args: Any,
) -> None:
    """Add milliseconds a query, and the time budgets, whose quality depends on them."""
    for on in all_played:
        rows = list(on.rows.items())[: args.timed]
        known = result[on.name]["methods"]
        contestants: dict[str, Callable[[], object]] = {
            "whole model": lambda rows=rows: [model.rank(*row) for _, row in rows]
        }
        for method in methods(model, args.depth, tiny=tiny is not None):
            if method.name in known:
                made = runnable(method, model, tiny, on)
                contestants[method.name] = lambda made=made, rows=rows: [
                    made[q].rank(*row) for q, row in rows
                ]
        for call in contestants.values():
            call()  # warm
        timings = harness.interleave(contestants, args.rounds)
        milliseconds = {name: 1000 * each.median_s / len(rows) for name, each in timings.items()}
        result[on.name]["whole_model_ms"] = round(milliseconds["whole model"], 2)
        for name, value in milliseconds.items():
            if name in known:
                known[name]["ms"] = round(value, 2)
        if not model.exit_layers:
            continue
        budgets = {
            f"time budget {share:g}": EarlyExit(
                model,
                model.exit_layers[0],
                [(model.num_layers, TimeBudget(share * milliseconds["whole model"], most=args.depth))],
            )
            for share in (0.125, 0.25, 0.5)
        }
        timings = harness.interleave(
            {
                name: lambda early=early, rows=rows: [early.rank(*row) for _, row in rows]
                for name, early in budgets.items()
            },
            args.rounds,
        )
        for name, early in budgets.items():
            found = quality({q: early.rank(*row) for q, row in on.rows.items()}, on)
            difference = compare(found, references[on.name], measure=MEASURE).difference
            known[name] = {
                "family": "time budget",
                "ndcg@10": round(found[MEASURE], 4),
                "difference": round(difference.value, 4),
                "interval": [round(difference.low, 4), round(difference.high, 4)],
                "ms": round(1000 * timings[name].median_s / len(rows), 2),
            }


def defaults(result: Mapping[str, Any], loss: float) -> dict[str, Any]:
    """Of each family, the setting of the fewest operations within the loss on every collection."""
    collections = list(result.values())
    names = set.intersection(*(set(each["methods"]) for each in collections))
    best: dict[str, Any] = {}
    for name in sorted(names):
        rows = [each["methods"][name] for each in collections]
        if any("share_of_operations" not in row for row in rows):
            continue
        share = max(row["share_of_operations"] for row in rows)
        worst = min(row["difference"] for row in rows)
        if share > 0.5 or worst < -loss:
            continue
        family = rows[0]["family"]
        if family not in best or share < best[family]["largest_share_of_operations"]:
            best[family] = {
                "setting": name,
                "largest_share_of_operations": share,
                "worst_difference": worst,
            }
    return best


def show(result: Mapping[str, Any]) -> None:
    """Print every setting of every method."""
    for name, found in result.items():
        harness.table(
            f"{name}: {found['queries']} queries, whole model {found['whole_model']:.4f}",
            [
                {
                    "method": method,
                    "nDCG@10": f"{row['ndcg@10']:.4f}",
                    "difference": f"{row['difference']:+.4f}",
                    "95 %": f"{row['interval'][0]:+.4f} to {row['interval'][1]:+.4f}",
                    "operations": f"{row['share_of_operations']:.0%}" if "share_of_operations" in row else "",
                    "ms": f"{row['ms']:.1f}" if "ms" in row else "",
                }
                for method, row in found["methods"].items()
            ],
        )


def text(record: Mapping[str, Any]) -> str:
    """The page's table, as Markdown: of each method the cheapest setting within the loss."""
    result, settings = record["collections"], record["settings"]
    asked = ", ".join(
        f"{name} ({each['queries']} queries, {each['whole_model']:.4f})" for name, each in result.items()
    )
    measured = (
        f"; milliseconds a query: median of {settings['rounds']} rounds "
        f"of {settings['timed_queries']} queries"
        if settings["timed_queries"]
        else ""
    )
    lines = [
        f"{harness.machine_line(record)}; load average before: {record['load_average_before']}. "
        f"{settings['depth']} candidates a query, {settings['threads']} threads, {settings['precision']}"
        f"{measured}. nDCG@10 of the whole model: {asked}.",
        "",
    ]
    columns = [f"within {settings['loss']:g} everywhere", "operations"]
    whole = ["whole model", "100%"]
    for name, found in result.items():
        columns += [f"{name}: difference (95 %)", "ms"]
        whole += ["", _milliseconds(found.get("whole_model_ms"))]
    rows = [whole]
    for best in record["defaults"].values():
        cells = [best["setting"], f"{best['largest_share_of_operations']:.0%}"]
        for row in (found["methods"][best["setting"]] for found in result.values()):
            low, high = row["interval"]
            cells += [f"{row['difference']:+.4f} ({low:+.4f} to {high:+.4f})", _milliseconds(row.get("ms"))]
        rows.append(cells)
    if not record["defaults"]:
        rows.append(["no other setting at half the operations or less", *[""] * (len(columns) - 1)])
    return "\n".join([*lines, *harness.markdown_table(columns, rows)])


def _milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def plot(record: Mapping[str, Any], path: Path) -> None:
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    from crossrank.evaluation.plots import save_plot

    result = record["collections"]
    drawn = [method["family"] for each in result.values() for method in each["methods"].values()]
    colours = dict(zip(dict.fromkeys(drawn), colormaps["tab20"].colors, strict=False))
    columns = ["share_of_operations"]
    if any("ms" in row for each in result.values() for row in each["methods"].values()):
        columns.append("ms")
    figure = Figure(figsize=(5.5 * len(columns), 4 * len(result)), layout="constrained")
    axes = figure.subplots(len(result), len(columns), squeeze=False)
    for (name, found), row in zip(result.items(), axes, strict=True):
        for axis, column in zip(row, columns, strict=True):
            families: dict[str, list[tuple[float, float]]] = {}
            for method in found["methods"].values():
                if column in method:
                    families.setdefault(method["family"], []).append((method[column], method["ndcg@10"]))
            for family, points in families.items():
                x, y = zip(*sorted(points), strict=True)
                axis.plot(x, y, marker="o", markersize=3, label=family, color=colours.get(family, "black"))
            axis.axhline(found["whole_model"], color="0.5", linestyle="--", linewidth=1, label="whole model")
            axis.set_title(f"{name} ({found['queries']} queries)")
            axis.set_ylabel(MEASURE)
            axis.set_xlabel("milliseconds a query" if column == "ms" else "share of the model's operations")
    axes[0][-1].legend(fontsize="x-small")  # which has the time budgets, too
    save_plot(figure, path)


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("collections", type=Path, nargs="+", help="folders in BEIR form")
    parser.add_argument("--tiny", help="a smaller model, for the cascade")
    parser.add_argument("--depth", type=harness.at_least_one, default=100, help="candidates a query")
    parser.add_argument("--queries", type=harness.at_least_one, help="the first queries alone")
    parser.add_argument("--precision", default="auto", choices=["auto", "int8", "float32"])
    parser.add_argument("--timed", type=int, default=10, help="queries a collection that are timed; 0: none")
    parser.add_argument("--rounds", type=harness.at_least_one, default=7)
    parser.add_argument("--loss", type=float, default=0.003, help="of nDCG@10, that a default may cost")
    harness.page_option(parser)
    args = parser.parse_args()
    harness.limit_threads(args.threads)
    options = {"precision": args.precision, "long_query": "truncate", "threads": args.threads}
    model = CrossEncoder(args.weights, **options)
    tiny = CrossEncoder(args.tiny, **options) if args.tiny else None
    load = harness.load_average()
    all_played = [
        played(name, folder, model, tiny, args) for name, folder in harness.named(args.collections).items()
    ]
    references = {on.name: quality(ranked(whole_model(model), on), on) for on in all_played}
    result = compared(all_played, references, model, tiny, args.depth)
    if args.timed > 0:
        timed(result, all_played, references, model, tiny, args)
    record = {
        "benchmark": "less_work",
        "machine": harness.machine(*PACKAGES),
        "settings": {
            "model": model.name,
            "precision": model.precision,
            "exit_layers": list(model.exit_layers),
            "tiny": args.tiny,
            "depth": args.depth,
            "threads": args.threads,
            "timed_queries": args.timed,
            "rounds": args.rounds,
            "loss": args.loss,
        },
        "load_average_before": load,
        "collections": result,
        "defaults": defaults(result, args.loss),
    }
    show(result)
    harness.publish("less_work", record, text(record), args, plot=plot)


if __name__ == "__main__":
    main()
