"""Hard-negative mining: documents that a first stage takes for relevant and that are not.

Works on ids and judgements. Two documents with the same text are two documents, and what keeps a copy of a
positive from becoming a negative is the near-duplicate filter, which reads texts for that purpose alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossrank.checks import as_list, check_count, check_text
from crossrank.errors import InputError, QueryTooLongError
from crossrank.progress import track
from crossrank.training.corpus import Corpus, as_corpus
from crossrank.training.journal import Journal
from crossrank.training.miner import Miner
from crossrank.training.negative_files import Form, check_output, rows_of, write_rows
from crossrank.training.report import MiningReport, Tally
from crossrank.training.selection import Filters
from crossrank.training.sources import Source
from crossrank.types import Document, Qrels

if TYPE_CHECKING:
    from crossrank.models.reranker import Reranker
    from crossrank.store.lance import Index

__all__ = ["Filters", "MiningReport", "Source", "check_scored", "mine"]

_NO_FILTERS = Filters()


def mine(
    queries: Mapping[str, str],
    qrels: Qrels,
    documents: Sequence[str | Document] | Index,
    sources: Sequence[Source],
    path: str | Path,
    *,
    filters: Filters = _NO_FILTERS,
    teacher: Reranker | None = None,
    seed: int = 0,
    relevance_level: int = 1,
    form: Form = "lists",
    texts: bool = True,
    overwrite: bool = False,
    block_size: int = 128,
    progress: bool | None = None,
) -> MiningReport:
    """Find negatives for judged queries and write them to a file to train from.

    A query's positives are the documents judged `relevance_level` or more. They are never its negatives,
    and neither are documents judged above 0 and below that level; documents judged 0 may be, and so may
    all that nobody judged. Each source in turn is asked for its count: its candidates are tried in the
    order its sampling says until so many have passed the filters. A document comes once a query, from the
    first source that had it. A query that finds fewer gets a shorter list, and the report names it.

    A run that was interrupted goes on where it stopped when it is called again with the same arguments,
    and ends with the same bytes. What it has so far is in a file beside the output (".mining" added to
    the name), which is deleted at the end.

    Memory: what the sources and documents take themselves, and one block of queries.

    Args:
        queries: query id -> text; those without a judged positive are left out.
        qrels: judgements.
        documents: the corpus of the sources, or an index of it.
        sources: what is mined, in this order; with different names.
        path: the file to write, JSON lines (.jsonl) or Parquet (.parquet); for its columns see
            `crossrank.training.negative_files`.
        filters: what candidates must pass.
        teacher: a reranker with a `score` method, such as `CrossEncoder()`: scores the candidates that are
            tried, and the positives, some thousand pairs at a time, for the filters and for the file.
        seed: of all draws. A query's negatives do not depend on the order of the queries or `block_size`.
        relevance_level: the lowest grade that is positive, at least 1.
        form: "lists" (a row a query), "pairs" (a row a document) or "triplets" (a row a positive and
            negative).
        texts: False leaves texts out of the file; ids stay.
        overwrite: replace a file that is there, and forget an interrupted run.
        block_size: queries that are mined together.
        progress: True shows a bar, False none, None one for a long call on a terminal.

    Raises:
        InputError: arguments that cannot be used, a file that is there, or an interrupted run with other
            arguments there.
        QueryTooLongError: a query the teacher refuses; names its id.
        FileFormatError: the file of an interrupted run is damaged.
        MissingExtraError: Parquet without pyarrow.
        ModelOutputError: a teacher that does not score every candidate.

    Example:
        >>> from crossrank import BM25, Document
        >>> foxes = [Document("a", "a red fox"), Document("b", "a fox hole"), Document("c", "a blue whale")]
        >>> bm25 = Source(BM25(foxes), 1)
        >>> mine({"q": "red fox"}, {"q": {"a": 1}}, foxes, [bm25], "foxes.jsonl")  # doctest: +SKIP
    """
    path = Path(path)
    check_output(path, form)
    for value, name in ((relevance_level, "relevance_level"), (block_size, "block_size")):
        check_count(value, name)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise InputError(f"seed must be a whole number, not {seed!r}")
    sources = as_list(sources, "sources")
    _check_sources(sources, filters, teacher)
    corpus = as_corpus(documents)
    judged = _judged(queries, qrels, relevance_level)
    if teacher is not None:
        for query_id, query in judged.items():
            _check_length(teacher, query_id, query)
    made_with = {
        "queries": _digest(list(judged.items())),
        "judgements": _digest(
            [(query_id, name, int(grade)) for query_id in judged for name, grade in qrels[query_id].items()]
        ),
        "documents": corpus.fingerprint,
        "sources": [source.description for source in sources],
        "filters": asdict(filters),
        "teacher": None if teacher is None else getattr(teacher, "fingerprint", teacher.name),
        "seed": seed,
        "relevance_level": relevance_level,
        "block_size": block_size,
    }
    journal = Journal(path, made_with, overwrite=overwrite)
    miner = Miner(
        corpus,
        qrels,
        sources,
        filters=filters,
        teacher=teacher,
        seed=seed,
        relevance_level=relevance_level,
    )
    ids = list(judged)
    with track(len(ids), "Mining", progress=progress) as tracked:
        tracked.advance(journal.num_queries)
        for start in range(journal.num_queries, len(ids), block_size):
            block = {query_id: judged[query_id] for query_id in ids[start : start + block_size]}
            journal.append(miner.mine(block))
            tracked.advance(len(block))
    tally = Tally({source.name: source.count for source in sources})
    rows = _rows(journal, tally, judged, corpus if texts else None, form)
    num_rows = write_rows(rows, path, form, texts=texts)
    journal.remove()
    return tally.report(path, form, num_rows)


def _rows(
    journal: Journal, tally: Tally, queries: Mapping[str, str], corpus: Corpus | None, form: Form
) -> Iterator[dict[str, Any]]:
    """Yield the rows of the file, block by block, and count the queries they come from."""
    expected = iter(queries)
    for block in journal.blocks():
        texts: dict[str, str] | None = None
        if corpus is not None:
            ids = {name: None for outcome in block for name in outcome.positives}
            ids |= {each.document_id: None for outcome in block for each in outcome.negatives}
            texts = {each.id: each.full_text for each in corpus.get(list(ids)) if each is not None}
        for outcome in block:
            if outcome.query_id != next(expected, None):
                raise InputError(
                    f"{journal.path} has query {outcome.query_id!r} out of turn: two runs wrote to it; start "
                    "anew with overwrite=True"
                )
            tally.add(outcome)
            yield from rows_of(outcome, queries[outcome.query_id], texts, form)


def _check_sources(sources: Sequence[Any], filters: Filters, teacher: Reranker | None) -> None:
    if not isinstance(filters, Filters):
        raise InputError(f"filters must be Filters(...), not {filters!r:.100}")
    for source in sources:
        if not isinstance(source, Source):
            raise InputError(f"a source must be a Source(retriever, count), not {source!r:.100}")
    names = [source.name for source in sources]
    if not names or len({*names}) != len(names):
        raise InputError(
            f"mining needs one source or more, all with different names, not {names}; give a Source a name="
        )
    if teacher is not None:
        if not callable(getattr(teacher, "score", None)) or not callable(getattr(teacher, "rank_many", None)):
            raise InputError(
                f"the teacher must score each pair by itself, as CrossEncoder() does, not {teacher!r:.100}"
            )
        return
    check_scored(filters, [source.name for source in sources if not source.is_random])
    if filters.suspect_from is not None:
        raise InputError("suspect_from is a teacher's score, and there is no teacher")
    if not filters.has_margin and filters.positive_score != "min":
        raise InputError("positive_score does nothing without a margin or a teacher")


def check_scored(filters: Filters, scored: Sequence[str]) -> None:
    """Refuse filters that sources without a teacher cannot answer: no corpus need be read to find out.

    Args:
        filters: what candidates must pass.
        scored: names of the sources that give scores: all but random ones.

    Raises:
        InputError: there is no score to filter by, or several of different scales.
    """
    if not scored and (filters.has_limit or filters.has_margin):
        raise InputError("random documents have no score to filter by without a teacher")
    if filters.has_limit and len(scored) > 1:
        raise InputError(
            f"min_score and max_score are of one scale, and {', '.join(scored)} each have their own; "
            "give a teacher, or mine one source at a time"
        )


def _judged(queries: Mapping[str, str], qrels: Qrels, level: int) -> dict[str, str]:
    """Return the queries that have a judged positive, in their order."""
    for given, name in ((queries, "queries"), (qrels, "qrels")):
        if not isinstance(given, Mapping):
            raise InputError(f"{name} must be a mapping by query id, not {type(given).__name__}")
    judged = {}
    for query_id, query in queries.items():
        if any(grade >= level for grade in qrels.get(query_id, {}).values()):
            check_text(query_id, f"the id of query {query_id!r}")
            check_text(query, f"query {query_id!r}")
            if not query.strip():
                raise InputError(f"query {query_id!r} is empty; there is nothing to be relevant to")
            judged[query_id] = query
    if not judged:
        raise InputError(
            f"none of the {len(queries)} queries has a document judged {level} or more; are queries and "
            "judgements of the same collection?"
        )
    return judged


def _check_length(teacher: Reranker, query_id: str, query: str) -> None:
    """Find a query that is too long for the teacher now, not after hours."""
    try:
        teacher.rank(query, [])
    except QueryTooLongError as error:
        raise QueryTooLongError(f"query {query_id!r}: {error}") from None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
