"""What models are to learn from: pseudo-queries of the documents, negatives for them, and their scores."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from crossrank.errors import InputError
from crossrank.evaluation.collections import Collection
from crossrank.evaluation.trec import numbered_lines
from crossrank.training.adapt.collection import (
    SPLITS,
    documents_without,
    split_of,
    write_collection,
    write_rows,
)
from crossrank.training.adapt.filtering import round_trip, without_near_duplicates
from crossrank.training.adapt.generated import Generator, generate
from crossrank.training.adapt.pseudo_queries import draw_pseudo_queries
from crossrank.training.adapt.workspace import Workspace
from crossrank.training.examples import draw
from crossrank.training.losses.table import LOSSES
from crossrank.training.negatives import Filters, Source, mine
from crossrank.types import Document
from crossrank.whole_files import write_whole

__all__ = ["draw_queries", "is_distilled", "mine_negatives", "score_lists"]

_TYPICAL_QUERIES = 256


def draw_queries(
    work: Workspace, generator: Generator | None, generated: Mapping[str, Sequence[str]] | None
) -> dict[str, Any]:
    """Draw queries, drop those that do not find their document, and write the collection; see `adapt`."""
    settings = work.settings
    if generator is not None:
        drawn_first = sorted(work.documents, key=lambda each: draw(settings.seed, each.id))
        asked = drawn_first[: settings.max_queries]
        generated = _asked(work, asked, generator)
    drawn = draw_pseudo_queries(
        work.documents,
        sources=settings.sources,
        generated=generated,
        per_document=settings.per_document,
        limit=settings.max_queries,
        language=settings.language,
        seed=settings.seed,
        progress=work.progress,
    )
    unique = without_near_duplicates(drawn, threshold=settings.near_duplicates, language=settings.language)
    search = work.searching(documents_without(work.documents, unique.queries))
    found = round_trip(
        unique.queries,
        search.hybrid(work.old_bi_encoder),
        top_k=settings.round_trip_top,
    )
    splits = {
        query.document_id: split_of(
            query.document_id,
            dev_share=settings.dev_share,
            test_share=settings.test_share,
            seed=settings.seed,
        )
        for query in found.queries
    }
    counts = write_collection(
        work.collection, documents_without(work.documents, found.queries), found.queries, splits
    )
    short = [split for split in SPLITS if counts[split] < 2]
    if short:
        raise InputError(
            f"{len(work.documents)} documents gave {len(drawn)} pseudo-queries, of which "
            f"{len(found.queries)} are left after filters: too few for {short[0]}; give more documents, "
            "more queries a document, a larger round_trip_top, or queries of a generator"
        )
    by_source = {
        "drawn": Counter(query.source for query in drawn),
        "near_duplicates": unique.dropped,
        "not_found": found.dropped,
        "kept": Counter(query.source for query in found.queries),
    }
    examples: dict[str, list[str]] = {}
    for query in found.queries:
        examples.setdefault(query.source, []).append(query.text)
    return {
        **by_source,
        "splits": counts,
        "examples": {name: each[:3] for name, each in examples.items()},
    }


def _asked(work: Workspace, documents: Sequence[Document], generator: Generator) -> dict[str, list[str]]:
    """Return a generator's queries; they are written down, since they may have cost money."""
    path = work.folder / "generated.json"
    if not path.is_file():
        text = json.dumps(generate(documents, generator, progress=work.progress), ensure_ascii=False)
        write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))
    found: dict[str, list[str]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def mine_negatives(work: Workspace) -> dict[str, Any]:
    """Mine negatives for the queries to train with."""
    collection = Collection.open(work.collection)
    journal = work.negatives.with_name(f"{work.negatives.name}.mining")
    if not journal.exists():
        work.negatives.unlink(missing_ok=True)  # whole, but not noted: the run died between the two
    typical = _typical_score(work)
    report = mine(
        collection.queries("train"),
        collection.qrels("train"),
        work.search.documents,
        _sources(work),
        work.negatives,
        filters=Filters(suspect_from=typical),
        teacher=work.old_reranker,
        seed=work.settings.seed,
        progress=work.progress,
    )
    return {
        "queries": report.num_queries,
        "rows": report.num_rows,
        "negatives": report.negatives,
        "short": len(report.short),
        "suspect_from": typical,
        "refused": report.refused,
        "suspected": report.suspected,
    }


def _sources(work: Workspace) -> list[Source]:
    settings, search = work.settings, work.search
    window = {"depth": settings.depth, "sampling": "top"}
    sources: list[Source] = []
    if settings.dense_negatives:
        dense = search.dense(work.old_bi_encoder)
        sources.append(Source(dense, settings.dense_negatives, **window))  # type: ignore[arg-type]
    if settings.bm25_negatives:
        sources.append(Source(search.bm25, settings.bm25_negatives, **window))  # type: ignore[arg-type]
    if settings.random_negatives:
        sources.append(Source("random", settings.random_negatives, depth=settings.depth))
    return sources


def _typical_score(work: Workspace) -> float:
    """Return the median of the old reranker's scores of queries with their own documents, a sample.

    A document is suspected to answer a query, too, where the reranker scores it no lower than the
    query's own and no lower than this. The first alone would refuse what the reranker gets wrong, which
    is what there is to learn: many a query's own document has a low score, and so have those above it.
    """
    collection = Collection.open(work.collection)
    qrels, queries = collection.qrels("train"), collection.queries("train")
    drawn = sorted(queries, key=lambda query_id: draw(work.settings.seed, "typical", query_id))
    texts = {each.id: each.full_text for each in work.search.documents}
    pairs = [
        (queries[query_id], texts[name]) for query_id in drawn[:_TYPICAL_QUERIES] for name in qrels[query_id]
    ]
    # rounded: part of what a resumed run is compared by
    return round(float(np.median(work.old_reranker.score(pairs))), 3)


def is_distilled(work: Workspace) -> bool:
    """Whether the bi-encoder learns from a reranker's scores, rather than from labels alone."""
    return LOSSES["encoder", work.settings.bi_encoder_training.loss].form == "scored_tuples"


def score_lists(work: Workspace) -> dict[str, Any]:
    """Give the mined lists the scores of the new reranker: what the bi-encoder learns from.

    Where training gave none, the lists stay with the old one's, which mining has left there; a loss of labels
    alone needs none.
    """
    if not is_distilled(work):
        return {"by": "labels", "pairs": 0}
    if not work.is_trained("reranker"):
        return {"by": "scores of the old reranker", "pairs": 0}
    rows = [json.loads(line) for _, line in numbered_lines(work.negatives)]
    teacher = work.open_reranker(work.model_folder("reranker"), cache=work.scores)
    pairs = [(row["query"], text) for row in rows for text in row["documents"]]
    scores = iter(teacher.score(pairs).tolist())
    for row in rows:
        row["teacher_scores"] = [next(scores) for _ in row["documents"]]
    write_whole(work.taught, lambda part: write_rows(part, rows))
    return {"by": "scores of the new reranker", "pairs": len(pairs)}
