"""Let SPLADE teach, too: lists of prepare_lists.py and prepare_long_lists.py get the mean of both teachers.

A list's cosines become the mean of cosines and SPLADE's inner products, each in units of its own spread
within a list. The order is better than either teacher's (on msmarco_dl19, BM25's top 100: nDCG@10 0.642 and
0.675 alone, 0.704 together). Six of ten queries lose the "?" at their end, which people leave out.

    python add_teacher.py --lists work/lists/lists.jsonl --splade SPLADE --out work/lists/short.jsonl
    python add_teacher.py --lists work/lists/long_lists.jsonl:0:4000 --splade SPLADE --max-length 384 \
        --out work/lists/long.jsonl
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import numpy as np
from lists import read_lists
from splade import Splade, mixed

QUESTION_MARKS_LOST = 0.6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lists", required=True, help="FILE or FILE:START:STOP")
    parser.add_argument("--splade", type=Path, required=True, help="folder of the SPLADE model")
    parser.add_argument("--max-length", type=int, default=200, help="tokens of a passage that SPLADE reads")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--seed", type=int, default=5)
    args = parser.parse_args()
    rng = random.Random(args.seed)

    rows = read_lists(args.lists)
    places: dict[str, int] = {}
    for row in rows:
        for text in (row["query"], *row["passages"]):
            places.setdefault(text, len(places))
    print(f"{len(rows)} lists, {len(places)} texts", flush=True)
    vectors = Splade(args.splade).encode(list(places), args.max_length)
    products = [
        (vectors[[places[text] for text in row["passages"]]] @ vectors[places[row["query"]]].T).toarray()[
            :, 0
        ]
        for row in rows
    ]
    scores = mixed([np.array(row["teacher"]) for row in rows], products)
    with args.out.open("w", encoding="utf-8") as out:
        for row, teacher in zip(rows, scores, strict=True):
            query = row["query"].strip()
            if rng.random() < QUESTION_MARKS_LOST:
                query = query.rstrip(" ?.") or query
            made = {"query": query, "passages": row["passages"], "teacher": teacher}
            out.write(json.dumps(made, ensure_ascii=False) + "\n")
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
