"""Fill an index with passages and search it: documents a second, size on disk, latency.

The passages are Wikipedia paragraphs (SQuAD 1.1) cut at about 75 words, repeated with a running suffix
until there are as many as asked for; the queries are SQuAD questions. With `--vectors words` the vectors
are random projections of the words, which costs next to nothing: the figures are those of the store.
With `--vectors builtin` the built-in bi-encoder makes them, and encoding is part of adding.

    python benchmarks/index_100k.py --passages 100000 --vectors words
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import harness
import numpy as np
import numpy.typing as npt

from crossrank.retrieval.from_index import index_retriever
from crossrank.store import upkeep
from crossrank.store.lance import Index
from crossrank.types import Document

WORDS_PER_PASSAGE = 75


class WordVectors:
    """A stand-in for a bi-encoder that costs nothing: the sum of a random direction for each word."""

    name = "random word vectors"
    fingerprint = "random-word-vectors-1"

    def __init__(self, dimensions: int = 384) -> None:
        self.dimensions = dimensions
        self._directions = np.random.default_rng(0).normal(size=(1 << 14, dimensions)).astype(np.float32)

    def encode_documents(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return (len(texts), dimensions) float32, L2-normalised."""
        vectors = np.stack([self._encode(text) for text in texts])
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    encode_queries = encode_documents

    def _encode(self, text: str) -> npt.NDArray[np.float32]:
        rows = [zlib.crc32(word.encode()) % len(self._directions) for word in text.lower().split()]
        return self._directions[rows or [0]].sum(axis=0)


def passages(folder: Path, count: int) -> Iterator[Document]:
    made = 0
    suffix = 0
    while made < count:
        with gzip.open(folder / "corpus.jsonl.gz", "rt", encoding="utf-8") as lines:
            for line in lines:
                paragraph = json.loads(line)
                words = paragraph["text"].split()
                for start in range(0, len(words), WORDS_PER_PASSAGE):
                    text = " ".join(words[start : start + WORDS_PER_PASSAGE])
                    if suffix:
                        text += f" copy{suffix}"
                    yield Document(
                        f"{paragraph['_id']}-{start}-{suffix}", text, paragraph["title"], {"copy": suffix}
                    )
                    made += 1
                    if made == count:
                        return
        suffix += 1


def questions(folder: Path, count: int) -> list[str]:
    with gzip.open(folder / "queries.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    step = max(1, len(texts) // count)
    return texts[::step][:count]


def latency_ms(search: Any, queries: Sequence[str]) -> dict[str, float]:
    for query in queries[:5]:
        search(query)
    times = []
    for query in queries:
        start = time.perf_counter()
        search(query)
        times.append(1000 * (time.perf_counter() - start))
    return {
        "p50": round(float(np.percentile(times, 50)), 2),
        "p95": round(float(np.percentile(times, 95)), 2),
    }


def run(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    if arguments.vectors == "builtin":
        from crossrank.models.bi_encoder import BiEncoder

        encoder: Any = BiEncoder()
    else:
        encoder = WordVectors()
    index = Index.create(folder, encoder, fields={"copy": int}, overwrite=True)
    documents = list(passages(arguments.data, arguments.passages))
    queries = questions(arguments.data, arguments.queries)
    figures: dict[str, Any] = {"text_mb": round(sum(len(d.full_text.encode()) for d in documents) / 1e6, 1)}

    start = time.perf_counter()
    index.add(documents, batch_size=arguments.batch_size)
    seconds = time.perf_counter() - start
    figures["add_s"] = round(seconds, 2)
    figures["documents_per_s"] = round(len(documents) / seconds)
    start = time.perf_counter()
    index.add(documents, batch_size=arguments.batch_size)
    figures["add_again_s"] = round(time.perf_counter() - start, 2)
    figures["disk_mb_after_add"] = round(index.info().size_bytes / 1e6, 1)
    start = time.perf_counter()
    index.optimize(grace_s=0)
    figures["optimize_s"] = round(time.perf_counter() - start, 2)
    info = index.info()
    figures["disk_mb"] = round(info.size_bytes / 1e6, 1)
    figures["vector_index_rows"] = info.vector_index_rows

    def timed(kind: str, **options: Any) -> dict[str, float]:
        retriever = index_retriever(index, kind)  # type: ignore[arg-type]
        return latency_ms(lambda query: retriever.retrieve([query], arguments.top_k, **options), queries)

    figures["search_ms"] = {kind: timed(kind) for kind in ("bm25", "dense", "hybrid")}
    figures["filtered_search_ms"] = {
        kind: timed(kind, filter={"copy": 0}) for kind in ("bm25", "dense", "hybrid")
    }
    if info.vector_index_rows is not None:
        figures["recall_of_the_vector_index"] = recall(index, encoder, documents, queries, arguments.top_k)
    return figures


def recall(index: Index, encoder: Any, documents: list[Document], queries: list[str], top_k: int) -> float:
    """Share of the true nearest documents that vector search finds."""
    vectors = np.concatenate(
        [
            encoder.encode_documents([d.full_text for d in documents[start : start + 1024]])
            for start in range(0, len(documents), 1024)
        ]
    )
    query_vectors = encoder.encode_queries(queries)
    found = 0
    for ranking, query in zip(index.search_vector(query_vectors, top_k), query_vectors, strict=True):
        last = np.partition(vectors @ query, -top_k)[-top_k]
        found += sum(score >= last - 1e-5 for score in ranking.scores)
    return round(found / (top_k * len(queries)), 4)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--top-k", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--vectors", choices=("words", "builtin"), default="words")
    parser.add_argument(
        "--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data" / "squad11"
    )
    parser.add_argument("--output", type=Path, help="JSON file; default: a file in benchmarks/results")
    arguments = parser.parse_args()
    if not (arguments.data / "corpus.jsonl.gz").exists():
        sys.exit(f"{arguments.data}: no corpus.jsonl.gz here; give SQuAD 1.1 in BEIR form with --data")
    folder = Path(tempfile.mkdtemp(prefix="crossrank-index-"))
    load = harness.load_average()
    try:
        figures = run(arguments, folder / "index")
    finally:
        shutil.rmtree(folder)
    settings = {
        **{
            name: getattr(arguments, name)
            for name in ("passages", "queries", "top_k", "batch_size", "vectors")
        },
        "ann_threshold": upkeep.ANN_THRESHOLD,
    }
    result = {
        "benchmark": "index_100k",
        "machine": harness.machine("crossrank", "lancedb", "pyarrow", "numpy"),
        "load_average_before": load,
        "settings": settings,
        "figures": figures,
    }
    print(json.dumps(result, indent=2))
    harness.write("index_100k", result, arguments.output)


if __name__ == "__main__":
    main()
