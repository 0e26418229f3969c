"""Make the training lists of the built-in cross-encoder: questions, passages, teacher scores.

Reads squad11 (train split), medquad and nq_open_oracle in BEIR form, cuts their documents into
passages of about the length people search over, finds negatives for each question with BM25 and
with the bi-encoder, and stores the bi-encoder's cosine for every (question, passage) of a list.
The collections kept for measuring are never read.

    python prepare_lists.py --data ../../../shared/data --bi-encoder MINILM --out work/lists
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from crossrank import BM25, BiEncoder

LIST_SIZE = 12
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"'(])")


def read_jsonl(path: Path) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def passages_of(text: str, words: int) -> list[str]:
    """Cut a text at sentence ends into passages of about `words` words."""
    passages: list[str] = []
    current: list[str] = []
    for sentence in SENTENCE_END.split(text.strip()):
        current.append(sentence)
        if sum(len(s.split()) for s in current) >= words:
            passages.append(" ".join(current))
            current = []
    if current:
        tail = " ".join(current)
        if passages and len(tail.split()) < 15:
            passages[-1] += " " + tail
        else:
            passages.append(tail)
    return passages


def load(data: Path, rng: random.Random, num_squad: int, num_medquad: int):
    """Return passages, their document ids, and (question, document id, answers) triples."""
    passages: list[str] = []
    document_of: list[str] = []
    questions: list[tuple[str, str, list[str]]] = []
    for name, split, keep in (
        ("squad11", "train", num_squad),
        ("medquad", "train", num_medquad),
        ("nq_open_oracle", "test", None),
    ):
        folder = data / name
        documents = {d["_id"]: d for d in read_jsonl(folder / "corpus.jsonl.gz")}
        queries = {q["_id"]: q for q in read_jsonl(folder / "queries.jsonl.gz")}
        rows = [line.split("\t") for line in (folder / "qrels" / f"{split}.tsv").read_text().splitlines()[1:]]
        if name == "squad11":
            documents = {k: d for k, d in documents.items() if k.startswith("train-")}
        for doc_id, document in documents.items():
            words = rng.choice((30, 45, 60, 90)) if name != "medquad" else rng.choice((45, 70))
            cut = passages_of(document["text"], words)
            if name == "medquad":
                cut = cut[:2]  # the start of an answer names what it is about
            for passage in cut:
                title = document.get("title", "")
                titled = title and rng.random() < 0.15
                passages.append(f"{title} {passage}" if titled else passage)
                document_of.append(f"{name}/{doc_id}")
        rng.shuffle(rows)
        for query_id, doc_id, _ in rows[:keep]:
            query = queries[query_id]
            questions.append((query["text"].strip(), f"{name}/{doc_id}", query.get("answers", [])))
    return passages, document_of, questions


def sample(
    rng: random.Random, barred: set[int], rows: Iterable[int], count: int, taken: list[int]
) -> list[int]:
    """Draw rows that are neither barred nor taken."""
    free = [int(r) for r in rows if int(r) not in barred and int(r) not in taken]
    return rng.sample(free, min(count, len(free)))


def sample_parts(
    rng: random.Random, barred: set[int], parts: Iterable[tuple[Iterable[int], int]], taken: list[int]
) -> list[int]:
    """Draw so many of each part's rows, none twice, and return them after those that are taken."""
    picked = [*taken]
    for rows, count in parts:
        picked += sample(rng, barred, rows, count, picked)
    return picked


def as_line(query: str, texts: Sequence[str], cosines: np.ndarray, picked: Sequence[int]) -> str:
    """A list as its file has it."""
    row = {
        "query": query,
        "passages": [texts[each] for each in picked],
        "teacher": [round(float(cosines[each]), 5) for each in picked],
    }
    return json.dumps(row, ensure_ascii=False) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bi-encoder", required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--squad", type=int, default=17000)
    parser.add_argument("--medquad", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=13)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(args.seed)

    passages, document_of, questions = load(args.data, rng, args.squad, args.medquad)
    rng.shuffle(questions)
    print(f"{len(passages)} passages, {len(questions)} questions", flush=True)

    by_document: dict[str, list[int]] = {}
    for row, doc_id in enumerate(document_of):
        by_document.setdefault(doc_id, []).append(row)

    bi_encoder = BiEncoder(args.bi_encoder, max_length=160)
    document_vectors = bi_encoder.encode_documents(passages)
    query_vectors = bi_encoder.encode_queries([q for q, _, _ in questions])

    index = BM25(passages)

    written = 0
    with (args.out / "lists.jsonl").open("w", encoding="utf-8") as out:
        for start in range(0, len(questions), 256):
            block = questions[start : start + 256]
            by_words = index.retrieve([q for q, _, _ in block], 100)
            cosines = query_vectors[start : start + 256] @ document_vectors.T
            for i, (question, doc_id, answers) in enumerate(block):
                bm25_rows = [hit.index for hit in by_words[i]]
                own = by_document[doc_id]
                holding = [r for r in own if any(a in passages[r] for a in answers)]
                if answers and not holding:
                    continue
                positive = max(holding or own[:1], key=lambda r: cosines[i, r])
                barred = set(own)
                if answers:  # another passage that holds the answer may be right too
                    barred |= {int(r) for r in bm25_rows if any(a in passages[r] for a in answers)}
                dense_rows = np.argpartition(-cosines[i], 200)[:200]
                dense_rows = dense_rows[np.argsort(-cosines[i, dense_rows])]

                parts = (
                    (bm25_rows[:15], 2),
                    (bm25_rows[15:], 3),
                    (dense_rows[:10], 2),
                    (dense_rows[10:], 3),
                )
                picked = sample_parts(rng, barred, parts, [positive])
                while len(picked) < LIST_SIZE:
                    picked += sample(rng, barred, [rng.randrange(len(passages))], 1, picked)
                out.write(as_line(question, passages, cosines[i], picked))
                written += 1
    print(f"{written} lists of {LIST_SIZE} in {args.out / 'lists.jsonl'}")


if __name__ == "__main__":
    main()
