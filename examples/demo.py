"""Search a judged collection four ways, measure each, and show what the reranker does to the order.

    python -m crossrank index data/sample --to demo-index
    python examples/demo.py data/sample demo-index

Everything here is the public Python API: read it as an example.
"""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from crossrank import (
    BiEncoder,
    Collection,
    CrossEncoder,
    Index,
    Ranking,
    Run,
    Searcher,
    evaluate,
    index_retriever,
)

MEASURES = ["nDCG@10", "MRR@10"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("collection", type=Path, help="a folder in BEIR form")
    parser.add_argument("index", type=Path, help="an index over it")
    parser.add_argument("--questions", type=int, default=100, help="how many judged questions to ask")
    parser.add_argument("--depth", type=int, default=20, help="how many candidates to rerank")
    parser.add_argument("--show", type=int, default=3, help="how many questions to show the hits of")
    arguments = parser.parse_args()

    collection = Collection.open(arguments.collection)
    questions = dict(list(collection.queries("test").items())[: arguments.questions])
    qrels = {query_id: collection.qrels("test")[query_id] for query_id in questions}

    index = Index.open(arguments.index, BiEncoder())
    reranker = CrossEncoder()
    systems = {
        "BM25": Searcher(index_retriever(index, "bm25")),
        "bi-encoder": Searcher(index_retriever(index, "dense")),
        "hybrid": Searcher(index_retriever(index, "hybrid")),
        "hybrid + rerank": Searcher(index_retriever(index, "hybrid"), reranker, depth=arguments.depth),
    }

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 110
    console.print(f"\n{len(questions)} questions over {index.count():,} paragraphs of Wikipedia\n")
    measured = Table("", box=None)
    for heading in (*MEASURES, "ms a question"):
        measured.add_column(heading, justify="right")
    runs: dict[str, Run] = {}
    for name, searcher in systems.items():
        start = time.perf_counter()
        runs[name] = searcher.search_many(questions, top_k=arguments.depth)
        milliseconds = (time.perf_counter() - start) * 1000 / len(questions)
        values = evaluate(runs[name], qrels, MEASURES)
        measured.add_row(name, *(f"{values[measure]:.3f}" for measure in MEASURES), f"{milliseconds:.0f}")
    console.print(measured)

    reranked = runs["hybrid + rerank"]
    changed = [query_id for query_id in questions if reranked[query_id][0].first_stage_rank != 1]
    console.print(
        f"\nFor {len(changed)} of them the reranker put another paragraph on top than the hybrid did. "
        f"The first {arguments.show} of those; ● is the paragraph that was judged to answer.\n"
    )
    for query_id in changed[: arguments.show]:
        console.print(hits_table(reranked[query_id], set(qrels[query_id]), reranker))
        console.print()
    index.close()


def hits_table(ranking: Ranking, relevant: set[str], reranker: CrossEncoder) -> Table:
    table = Table(title=Text(ranking.query, style="bold"), title_justify="left", box=None)
    for heading in ("before", "after", "score"):
        table.add_column(heading, justify="right")
    table.add_column("")
    table.add_column("text, by the sentence that answers best")
    for hit in ranking[:3]:
        assert hit.document is not None  # an index gives its documents with the hits
        # A paragraph is long: show the sentence that the reranker finds closest to the question.
        sentences = re.split(r"(?<=[.!?])\s+", hit.document.text)
        best = sentences[int(reranker.rank(ranking.query, sentences, top_k=1)[0].document_id)]
        text = Text(f"{hit.document.title}: {' '.join(best.split())}")
        mark = "●" if hit.document_id in relevant else ""
        table.add_row(str(hit.first_stage_rank), str(hit.rank), f"{hit.score:.2f}", mark, text)
    return table


if __name__ == "__main__":
    main()
