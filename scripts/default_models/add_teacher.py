"""Let another teacher score lists, too: theirs become the mean of what they have and what it says.

Both count in units of their own spread within a list. SPLADE and the bi-encoder, whose cosines lists of
prepare_lists.py and prepare_long_lists.py have, order better together than either does (on msmarco_dl19,
BM25's top 100: nDCG@10 0.642 and 0.675 alone, 0.704 together). Six of ten queries lose the "?" at their end,
which people leave out.

    python add_teacher.py --lists work/lists/lists.jsonl --splade SPLADE --out work/lists/short.jsonl
    python add_teacher.py --lists work/lists/long_lists.jsonl:0:4000 --splade SPLADE --max-length 384 \
        --out work/lists/long.jsonl
    python add_teacher.py --lists work/lists/web.jsonl --cross-encoder crossrank-mini \
        --out work/lists/embed.jsonl
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lists import read_lists
from splade import Splade, mixed

from crossrank import CrossEncoder

QUESTION_MARKS_LOST = 0.6


def products(rows: Sequence[Mapping[str, Any]], folder: Path, max_length: int) -> list[np.ndarray]:
    """A SPLADE model's scores of each list's passages."""
    places: dict[str, int] = {}
    for row in rows:
        for text in (row["query"], *row["passages"]):
            places.setdefault(text, len(places))
    print(f"{len(rows)} lists, {len(places)} texts", flush=True)
    vectors = Splade(folder).encode(list(places), max_length)
    return [
        (vectors[[places[text] for text in row["passages"]]] @ vectors[places[row["query"]]].T).toarray()[
            :, 0
        ]
        for row in rows
    ]


def logits(rows: Sequence[Mapping[str, Any]], name: str, max_length: int) -> list[np.ndarray]:
    """A cross-encoder's scores of each list's passages."""
    pairs = [(row["query"], text) for row in rows for text in row["passages"]]
    print(f"{len(rows)} lists, {len(pairs)} pairs", flush=True)
    scores = CrossEncoder(name, max_length=max_length).score(pairs)
    return np.split(scores, np.cumsum([len(row["passages"]) for row in rows])[:-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lists", required=True, help="FILE or FILE:START:STOP")
    teacher = parser.add_mutually_exclusive_group(required=True)
    teacher.add_argument("--splade", type=Path, help="folder of the SPLADE model")
    teacher.add_argument("--cross-encoder", help="name or folder")
    parser.add_argument("--max-length", type=int, default=200, help="tokens that the teacher reads")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--seed", type=int, default=5)
    args = parser.parse_args()
    rng = random.Random(args.seed)

    rows = read_lists(args.lists)
    if args.splade:
        found = products(rows, args.splade, args.max_length)
    else:
        found = logits(rows, args.cross_encoder, args.max_length)
    scores = mixed([np.array(row["teacher"]) for row in rows], found)
    with args.out.open("w", encoding="utf-8") as out:
        for row, teacher_scores in zip(rows, scores, strict=True):
            query = row["query"].strip()
            if rng.random() < QUESTION_MARKS_LOST:
                query = query.rstrip(" ?.") or query
            made = {**row, "query": query, "teacher": teacher_scores}
            out.write(json.dumps(made, ensure_ascii=False) + "\n")
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
