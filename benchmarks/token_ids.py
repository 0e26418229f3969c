"""What tokenising takes, and what token ids in an index save of it.

Milliseconds that the tokenizers library takes for the documents of a query, and crossrank, which looks up
words that came before; likewise for many passages, block after block, of which no word was known.

Two indexes have the same passages, one of them their token ids, too. Milliseconds a query: tokenising the
documents that it finds, and taking their stored ids instead (some are made again, to be compared); the first
stage with and without ids to read; and the search with its reranker, whose scores must have the same bits.
Needs crossrank alone.

    python benchmarks/token_ids.py
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import harness

PACKAGES = ("crossrank", "onnxruntime", "tokenizers", "numpy", "lancedb", "torch")
PAIRS = {  # what is compared: the library and crossrank, or without token ids and with them
    "the library against known words": ("documents, tokenizers library", "documents tokenised"),
    "the library against new words": ("all passages, tokenizers library", "all passages, no word known"),
    "tokenising without ids against with": ("documents tokenised", "ids taken from documents"),
    "first stage without ids against with": ("first stage", "first stage, with ids"),
    "search without ids against with": ("search", "search, with ids"),
}


def frequent_words(texts: list[str], count: int) -> str:
    """A query that finds almost every text."""
    counts = Counter(word for text in texts for word in {*text.lower().split()} if word.isalpha())
    return " ".join([word for word, _ in counts.most_common() if len(word) > 5][:count])


def run(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    import material
    import tokenizers

    from crossrank.models.cross_encoder import CrossEncoder
    from crossrank.models.stored_ids import document_ids, stored_ids
    from crossrank.pipeline import Searcher
    from crossrank.runtime.checkpoint import Checkpoint
    from crossrank.runtime.tokenization import Tokenizer
    from crossrank.store.lance import Index
    from crossrank.types import Document

    harness.say("making the indexes")
    model = CrossEncoder(args.weights, threads=args.threads, backend=args.backend, progress=False)
    checkpoint = Checkpoint.open(model.folder)
    tokenizer = Tokenizer(checkpoint)
    passages = material.texts(material.lengths(args.profile, args.passages).tolist(), tokenizer)
    documents = [Document(str(number), text) for number, text in enumerate(passages)]
    without = Index.create(scratch / "without")
    kept = Index.create(scratch / "with", token_ids_for=args.weights or model.name)
    for index in (without, kept):
        index.add(documents, progress=False)
        index.optimize(grace_s=0)
    query = frequent_words(passages, 10)
    found = [hit.document for hit in kept.search_text([query], args.depth)[0] if hit.document is not None]
    texts = [document.full_text for document in found]
    library = tokenizers.Tokenizer.from_file(str(checkpoint.tokenizer_file))
    library.no_truncation()
    library.no_padding()
    blocks = [passages[start : start + args.depth] for start in range(0, len(passages), args.depth)]
    new = iter([Tokenizer(checkpoint) for _ in range(args.rounds + 1)])

    def by_library(texts: list[str]) -> list[list[int]]:
        return [each.ids for each in library.encode_batch_fast(texts, add_special_tokens=False)]

    assert by_library(texts) == [tokens.ids.tolist() for tokens in tokenizer.encode(texts)]

    def by_words() -> None:
        opened = next(new)
        for block in blocks:
            opened.encode(block)

    def take_ids() -> None:
        document_ids(texts, tokenizer, stored_ids(found, tokenizer))

    searchers = {index: Searcher(index, model, depth=args.depth) for index in (without, kept)}
    quick: dict[str, Callable[[], object]] = {
        "documents, tokenizers library": partial(by_library, texts),
        "documents tokenised": partial(tokenizer.encode, texts),
        "ids taken from documents": take_ids,
        "first stage": partial(without.search_text, [query], args.depth),
        "first stage, with ids": partial(kept.search_text, [query], args.depth),
    }
    slow: dict[str, Callable[[], object]] = {
        "all passages, tokenizers library": lambda: [by_library(block) for block in blocks],
        "all passages, no word known": by_words,
        "search": partial(searchers[without].search, query, args.depth),
        "search, with ids": partial(searchers[kept].search, query, args.depth),
    }
    scores = [searcher.search(query, args.depth).scores for searcher in searchers.values()]
    assert scores[0] == scores[1], "token ids of the index change a score"

    def repeated(call: Callable[[], object]) -> None:
        for _ in range(args.repeats):
            call()

    contestants = {name: partial(repeated, call) for name, call in quick.items()} | slow
    for call in contestants.values():
        call()
    load = harness.load_average()
    timings = harness.interleave(contestants, args.rounds)
    repeats = dict.fromkeys(quick, args.repeats)
    median_ms = {name: each.median_s * 1000 / repeats.get(name, 1) for name, each in timings.items()}
    cpu_ms = {
        name: statistics.median(each.cpu_s) * 1000 / repeats.get(name, 1) for name, each in timings.items()
    }
    least_ms = {name: min(each.wall_s) * 1000 / repeats.get(name, 1) for name, each in timings.items()}
    return {
        "benchmark": "token_ids",
        "machine": harness.machine(*PACKAGES),
        "settings": {
            "model": model.name,
            "precision": model.precision,
            "backend": args.backend,
            "passages": args.passages,
            "profile": args.profile,
            "documents": len(found),
            "threads": args.threads,
            "rounds": args.rounds,
            "repeats": args.repeats,
        },
        "load_average_before": load,
        "median_ms": {name: round(value, 3) for name, value in median_ms.items()},
        "cpu_ms": {name: round(value, 3) for name, value in cpu_ms.items()},
        "min_ms": {name: round(value, 3) for name, value in least_ms.items()},
        "bytes_per_document": {
            "without": round(without.info().size_bytes / args.passages),
            "with": round(kept.info().size_bytes / args.passages),
        },
        "ratios": {what: round(median_ms[one] / median_ms[other], 3) for what, (one, other) in PAIRS.items()},
    }


def show(result: dict[str, Any]) -> None:
    settings = result["settings"]
    rows = [
        {
            "": name,
            "median ms": f"{result['median_ms'][name]:,.2f}",
            "CPU ms": f"{result['cpu_ms'][name]:,.2f}",
            "minimum ms": f"{result['min_ms'][name]:,.2f}",
        }
        for name in result["median_ms"]
    ]
    harness.table(
        f"{settings['documents']} documents of a query, {settings['model']} in {settings['precision']}, "
        f"{settings['threads']} threads, {settings['rounds']} rounds",
        rows,
    )
    size = result["bytes_per_document"]
    print(f"bytes a document on disk: {size['without']:,} without token ids, {size['with']:,} with them")
    harness.print_verdict(result)


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--passages", type=harness.at_least_one, default=2000, help="in each index")
    parser.add_argument("--depth", type=harness.at_least_one, default=100)
    parser.add_argument("--profile", default="marco", help="lengths: short, marco, nq or fixed")
    parser.add_argument("--backend", default="onnx", help="of the reranker: onnx or torch")
    parser.add_argument("--rounds", type=harness.at_least_one, default=15)
    parser.add_argument("--repeats", type=harness.at_least_one, default=20, help="of the short calls")
    args = parser.parse_args()
    harness.limit_threads(args.threads)
    with tempfile.TemporaryDirectory(prefix="crossrank-token-ids-", ignore_cleanup_errors=True) as scratch:
        result = run(args, Path(scratch))
    harness.say("")
    show(result)
    harness.write("token_ids", result, args.output)


if __name__ == "__main__":
    main()
