"""Pseudo-queries as a collection in BEIR form, split by document into train, dev and test.

What reads collections reads this one: `crossrank mine`, `crossrank train`, `crossrank evaluate`. A query's
line says its source, too.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from crossrank.evaluation.trec import numbered_lines, write_qrels
from crossrank.training.adapt.pseudo_queries import PseudoQuery, withhold
from crossrank.training.examples import draw
from crossrank.types import Document

__all__ = ["SPLITS", "documents_without", "sources_of", "split_of", "write_collection", "write_rows"]

SPLITS = ("train", "dev", "test")


def documents_without(documents: Iterable[Document], queries: Sequence[PseudoQuery]) -> list[Document]:
    """Return documents without what queries made from them withhold."""
    by_document: dict[str, list[PseudoQuery]] = {}
    for query in queries:
        by_document.setdefault(query.document_id, []).append(query)
    return [withhold(document, by_document.get(document.id, [])) for document in documents]


def split_of(document_id: str, *, dev_share: float, test_share: float, seed: int) -> str:
    """Return the split of all queries of a document, by a hash of seed and id."""
    place = int.from_bytes(draw(seed, "split", document_id), "big") / 2**64
    if place < test_share:
        return "test"
    return "dev" if place < test_share + dev_share else "train"


def write_collection(
    folder: Path, documents: Iterable[Document], queries: Sequence[PseudoQuery], splits: Mapping[str, str]
) -> dict[str, int]:
    """Write a folder in BEIR form; it appears whole, and replaces one that is there.

    Args:
        folder: to write.
        documents: as they are to be searched.
        queries: each with its document as the one positive.
        splits: document id -> one of `SPLITS`.

    Returns:
        Split -> its queries.
    """
    staging = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(staging, ignore_errors=True)
    (staging / "qrels").mkdir(parents=True)
    write_rows(
        staging / "corpus.jsonl",
        ({"_id": each.id, "title": each.title, "text": each.text} for each in documents),
    )
    write_rows(
        staging / "queries.jsonl",
        ({"_id": each.id, "text": each.text, "source": each.source} for each in queries),
    )
    for split in SPLITS:
        qrels = {q.id: {q.document_id: 1} for q in queries if splits[q.document_id] == split}
        write_qrels(qrels, staging / "qrels" / f"{split}.tsv")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(staging, folder)
    counts = Counter(splits[query.document_id] for query in queries)
    return {split: counts[split] for split in SPLITS}


def sources_of(folder: Path) -> dict[str, str]:
    """Return query id -> source, of a folder that `write_collection` wrote."""
    rows = [json.loads(line) for _, line in numbered_lines(folder / "queries.jsonl")]
    return {row["_id"]: row["source"] for row in rows}


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a file of JSON lines."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
