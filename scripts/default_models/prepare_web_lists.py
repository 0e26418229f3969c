"""Make training lists for queries as people type them, without judgements: teachers alone say what is good.

Passages are cut from squad11 (train split), medquad, nq_open_oracle and covid_qa_passages. Queries
(web_queries.py) are made from them, and from questions of squad11 that are in none of the lists given, of
medquad and nq_open_oracle. A list has 12 of the passages that BM25, the bi-encoder and SPLADE find, near and
far ranks of each, and the mixed scores of the latter two; the best comes first. The question that a query was
made of is kept ("of"), so that calibration can leave it out. Of several files each has queries of its own,
over the same passages; a file that is there already is left as it is.

    python prepare_web_lists.py --data ../../../shared/data --bi-encoder MINILM --splade SPLADE \
        --lists work/lists/lists.jsonl --out work/lists/web.jsonl
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from lists import read_lists
from prepare_lists import passages_of, read_jsonl, sample_parts
from splade import Splade, mixed
from web_queries import Vocabulary, WebQuery, make_queries

from crossrank import BM25, BiEncoder
from crossrank.retrieval.retriever import best_rows
from crossrank.whole_files import write_whole

LIST_SIZE = 12
BLOCK = 256  # queries at a time
SOURCES = ("squad11", "medquad", "nq_open_oracle", "covid_qa_passages")
QUESTIONS = {"squad11": 9_000, "medquad": 4_000, "nq_open_oracle": 1_300}  # of each file
Taught = tuple[int, list[int], np.ndarray, np.ndarray]  # query, passages, cosines, SPLADE's products


def load_passages(data: Path, rng: random.Random, most: int) -> tuple[list[str], set[str]]:
    """Return different passages of 8 to 220 words, in a random order, and the titles they stand under."""
    passages: dict[str, str] = {}
    for name in SOURCES:
        for document in read_jsonl(data / name / "corpus.jsonl.gz"):
            if name == "squad11" and not document["_id"].startswith("train-"):
                continue
            words = rng.choice((30, 45, 60, 90)) if name != "medquad" else rng.choice((40, 55, 70))
            cut = passages_of(document["text"], words)
            title = document.get("title", "")
            for passage in cut[:2] if name == "medquad" else cut:
                if 8 <= len(passage.split()) <= 220:
                    titled = title and rng.random() < 0.15
                    passages.setdefault(f"{title} {passage}" if titled else passage, title)
    chosen = rng.sample(list(passages), min(most, len(passages)))
    return chosen, {passages[text] for text in chosen} - {""}


def load_questions(data: Path, rng: random.Random, used: set[str]) -> dict[str, list[str]]:
    """Return questions by collection; of squad11 those of train that no list has."""
    found = {}
    for name in QUESTIONS:
        rows = read_jsonl(data / name / "queries.jsonl.gz")
        if name == "squad11":
            rows = [
                row for row in rows if row["_id"].startswith("train-") and row["text"].strip() not in used
            ]
        questions = [row["text"].strip() for row in rows]
        rng.shuffle(questions)
        found[name] = questions
    return found


class Teachers:
    """What BM25, the bi-encoder and SPLADE know of the passages.

    Args:
        passages: their texts.
        bi_encoder: a folder.
        splade: a folder.
    """

    def __init__(self, passages: Sequence[str], bi_encoder: str, splade: Path) -> None:
        self._splade = Splade(splade)
        self._bi_encoder = BiEncoder(bi_encoder, max_length=200)
        self._vectors = self._bi_encoder.encode_documents(passages)
        self._sparse = self._splade.encode(passages, 200).T.tocsr()
        self._index = BM25(passages)

    def taught(self, queries: Sequence[str], rng: random.Random) -> Iterator[Taught]:
        """Choose each query's passages, and let both models score them."""
        query_vectors = self._bi_encoder.encode_queries(queries)
        sparse_queries = self._splade.encode(queries, 64)
        for start in range(0, len(queries), BLOCK):
            block = slice(start, start + BLOCK)
            found = self._index.retrieve(queries[block], 100)
            cosines = query_vectors[block] @ self._vectors.T
            products = (sparse_queries[block] @ self._sparse).toarray()
            for i, ranking in enumerate(found):
                by_words = [hit.index for hit in ranking]
                if len(by_words) < LIST_SIZE:
                    continue
                by_meaning, by_expansion = (first_rows(each[i], 40) for each in (cosines, products))
                parts = (
                    (by_words[:10], 3),
                    (by_words[10:], 4),
                    (by_expansion[:5], 1),
                    (by_expansion[5:], 1),
                    (by_meaning[:5], 1),
                    (by_meaning[5:], 1),
                    (by_words, 1),
                )
                picked = sample_parts(rng, set(), parts, [])
                if len(picked) == LIST_SIZE:
                    yield start + i, picked, cosines[i, picked], products[i, picked]
            print(f"{min(start + BLOCK, len(queries))} of {len(queries)} queries", flush=True)


def part_of(questions: Sequence[str], number: int, most: int) -> Sequence[str]:
    """The questions of a file: others than those of the files before, as long as there are any."""
    start = number * most % len(questions)
    return questions[start : start + most]


def first_rows(scores: np.ndarray, count: int) -> np.ndarray:
    """The rows of the highest scores that are not 0, the highest first."""
    rows = np.flatnonzero(scores)
    return rows[best_rows(scores[rows], count)]


def write_lists(
    path: Path, queries: Sequence[WebQuery], passages: Sequence[str], rows: Sequence[Taught]
) -> None:
    """Write the lists, each with the passage that both teachers together find the best first."""
    scores = mixed([row[2] for row in rows], [row[3] for row in rows])
    with path.open("w", encoding="utf-8") as out:
        for (number, picked, _, _), teacher in zip(rows, scores, strict=True):
            best_first = np.argsort(-np.array(teacher), kind="stable")
            row = {
                "query": queries[number].text,
                "passages": [passages[picked[place]] for place in best_first],
                "teacher": [teacher[place] for place in best_first],
                "judged": False,
            }
            if queries[number].question is not None:
                row["of"] = queries[number].question
            out.write(json.dumps(row, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bi-encoder", required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--splade", type=Path, required=True, help="folder of the SPLADE model")
    parser.add_argument("--lists", nargs="*", default=[], help="whose questions are not used again")
    parser.add_argument("--passages", type=int, default=52_000)
    parser.add_argument("--queries", type=int, help="only so many a file")
    parser.add_argument("--out", type=Path, nargs="+", required=True, help="files to write")
    parser.add_argument("--seed", type=int, default=21)
    args = parser.parse_args()
    rng = random.Random(args.seed)

    passages, titles = load_passages(args.data, rng, args.passages)
    used = {row["query"] for spec in args.lists for row in read_lists(spec)}
    questions = load_questions(args.data, rng, used)
    vocabulary = Vocabulary(passages, titles)
    teachers = Teachers(passages, args.bi_encoder, args.splade)
    print(f"{len(passages)} passages", flush=True)
    for number, path in enumerate(args.out):
        asked = {name: part_of(questions[name], number, most) for name, most in QUESTIONS.items()}
        queries = make_queries(vocabulary, passages, asked, rng)[: args.queries]
        if path.is_file():
            continue
        rows = list(teachers.taught([query.text for query in queries], random.Random(args.seed + number)))
        write_whole(path, partial(write_lists, queries=queries, passages=passages, rows=rows))
        print(f"{len(rows)} lists of {LIST_SIZE} in {path}", flush=True)


if __name__ == "__main__":
    main()
