"""Make the built-in cross-encoder's second-stage lists: long documents, and queries that are not questions.

A document here is a run of neighbouring passages of one article, 80 to 320 words long, cut from
squad11 (train split), medquad and covid_qa_passages. A query is a question of those collections or
a sentence of a document with some of its words left out, as a claim or a keyword query would have
it. The teacher's score of a document is the bi-encoder's best cosine over its passages, since that
is what relevance of a long document means; a list has eight documents.

    python prepare_long_lists.py --data ../../../shared/data --bi-encoder MINILM --out work/lists
"""

from __future__ import annotations

import argparse
import random
from itertools import groupby
from pathlib import Path

import numpy as np
from prepare_lists import SENTENCE_END, as_line, passages_of, read_jsonl, sample, sample_parts

from crossrank import BM25, BiEncoder

LIST_SIZE = 8
PART_WORDS = 60
DOCUMENT_WORDS = (80, 120, 160, 220, 280, 320)
SHARE = {"squad11": 0.35, "medquad": 0.4, "covid_qa_passages": 1.0}  # of the articles


class Corpus:
    """Documents made of parts: `parts_of[d]` are rows of `parts`, `sources[d]` the ids they were cut from."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.titles: list[str] = []
        self.parts_of: list[range] = []
        self.sources: list[set[str]] = []
        self.holding: dict[str, list[int]] = {}

    def add_article(self, title: str, parts: list[tuple[str, str]], rng: random.Random) -> None:
        """Chop the (source id, text) parts of an article into documents."""
        start = 0
        while start < len(parts):
            words, stop, wanted = 0, start, rng.choice(DOCUMENT_WORDS)
            while stop < len(parts) and words < wanted:
                words += len(parts[stop][1].split())
                stop += 1
            first = len(self.parts)
            self.parts += [text for _, text in parts[start:stop]]
            self.parts_of.append(range(first, len(self.parts)))
            self.sources.append({source for source, _ in parts[start:stop]})
            self.titles.append(title if rng.random() < 0.5 else "")
            for source in self.sources[-1]:
                self.holding.setdefault(source, []).append(len(self.titles) - 1)
            start = stop

    def text(self, document: int) -> str:
        return " ".join(
            filter(None, [self.titles[document], *(self.parts[p] for p in self.parts_of[document])])
        )


def load(data: Path, rng: random.Random, num_squad: int, num_medquad: int, num_sentences: int):
    """Return the corpus and (query, source id or document, answers) triples."""
    corpus = Corpus()
    questions: list[tuple[str, str | int, list[str]]] = []
    limits = {"squad11": num_squad, "medquad": num_medquad, "covid_qa_passages": None}
    for name, limit in limits.items():
        rows = [d for d in read_jsonl(data / name / "corpus.jsonl.gz") if not d["_id"].startswith("dev-")]
        for title, article in groupby(rows, key=lambda d: d.get("title", "")):
            documents = list(article)
            if rng.random() > SHARE[name]:
                continue
            cut = [(f"{name}/{d['_id']}", p) for d in documents for p in passages_of(d["text"], PART_WORDS)]
            corpus.add_article(title, cut, rng)
        queries = {q["_id"]: q for q in read_jsonl(data / name / "queries.jsonl.gz")}
        lines = (data / name / "qrels" / "train.tsv").read_text().splitlines()[1:]
        judged = [(q, f"{name}/{d}") for q, d, _ in (line.split("\t") for line in lines)]
        judged = [(q, d) for q, d in judged if d in corpus.holding]
        rng.shuffle(judged)
        questions += [
            (queries[q]["text"].strip(), d, queries[q].get("answers", [])) for q, d in judged[:limit]
        ]
    while num_sentences:
        document = rng.randrange(len(corpus.parts_of))
        part = corpus.parts[rng.choice(corpus.parts_of[document])]
        words = rng.choice(SENTENCE_END.split(part)).split()
        if 6 <= len(words) <= 40:
            dropped = rng.choice((0.0, 0.2, 0.4, 0.6))
            kept = [word for word in words if rng.random() >= dropped]
            if len(kept) >= 3:
                questions.append((" ".join(kept[:24]), document, []))
                num_sentences -= 1
    rng.shuffle(questions)
    return corpus, questions


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bi-encoder", required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--squad", type=int, default=1500, help="questions of squad11")
    parser.add_argument("--medquad", type=int, default=900, help="questions of medquad")
    parser.add_argument("--sentences", type=int, default=1400, help="queries made of sentences")
    parser.add_argument("--seed", type=int, default=17)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(args.seed)

    corpus, questions = load(args.data, rng, args.squad, args.medquad, args.sentences)
    texts = [corpus.text(d) for d in range(len(corpus.parts_of))]
    print(f"{len(corpus.parts)} passages in {len(texts)} documents, {len(questions)} queries", flush=True)
    bi_encoder = BiEncoder(args.bi_encoder, max_length=160)
    part_vectors = bi_encoder.encode_documents(corpus.parts)
    query_vectors = bi_encoder.encode_queries([q for q, _, _ in questions])
    starts = np.array([parts.start for parts in corpus.parts_of])

    index = BM25(texts)

    written = 0
    path = args.out / "long_lists.jsonl"
    with path.open("w", encoding="utf-8") as out:
        for start in range(0, len(questions), 256):
            block = questions[start : start + 256]
            by_words = index.retrieve([q for q, _, _ in block], 100)
            by_part = query_vectors[start : start + 256] @ part_vectors.T
            cosines = np.maximum.reduceat(by_part, starts, axis=1)
            for i, (query, source, answers) in enumerate(block):
                bm25_rows = [hit.index for hit in by_words[i]]
                own = [source] if isinstance(source, int) else corpus.holding[source]
                holding = [d for d in own if not answers or any(a in texts[d] for a in answers)]
                if not holding:
                    continue
                positive = max(holding, key=lambda d: cosines[i, d])
                barred = set(own)
                if answers:  # another document that holds the answer may be right too
                    barred |= {int(d) for d in bm25_rows if any(a in texts[d] for a in answers)}
                dense_rows = np.argsort(-cosines[i])[:100]
                parts = (
                    (bm25_rows[:12], 2),
                    (bm25_rows[12:], 1),
                    (dense_rows[:12], 2),
                    (dense_rows[12:], 1),
                )
                picked = sample_parts(rng, barred, parts, [positive])
                while len(picked) < LIST_SIZE:
                    picked += sample(rng, barred, [rng.randrange(len(texts))], 1, picked)
                out.write(as_line(query, texts, cosines[i], picked))
                written += 1
    print(f"{written} lists of {LIST_SIZE} in {path}")


if __name__ == "__main__":
    main()
