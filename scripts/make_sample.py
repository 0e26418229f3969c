"""Make the sample collection in data/sample from a BEIR-form folder of SQuAD v1.1.

Takes every dev paragraph and a random sample of the dev questions. The questions are drawn with a
fixed seed before anything is known about how well they are answered. Run again, it writes the same
bytes.

    python scripts/make_sample.py --source ../shared/data/squad11
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

SEED = 2024
NUM_QUESTIONS = 400


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    buffer = io.StringIO()
    count = 0
    for row in rows:
        buffer.write(json.dumps(row, ensure_ascii=False) + "\n")
        count += 1
    # No file name and no time in the gzip header: the same rows give the same bytes.
    with path.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as packed:
        packed.write(buffer.getvalue().encode())
    return count


def read_dev_qrels(path: Path) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    with path.open(encoding="utf-8") as lines:
        next(lines)  # header
        for line in lines:
            query_id, document_id, grade = line.rstrip("\n").split("\t")
            qrels.setdefault(query_id, {})[document_id] = int(grade)
    return qrels


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--source", type=Path, required=True, help="folder with corpus, queries and qrels/dev.tsv"
    )
    parser.add_argument("--to", type=Path, default=Path(__file__).parents[1] / "data" / "sample")
    arguments = parser.parse_args()

    qrels = read_dev_qrels(arguments.source / "qrels" / "dev.tsv")
    # Random order as well as a random choice: the first n questions are a random sample, too.
    chosen = random.Random(SEED).sample(sorted(qrels), NUM_QUESTIONS)
    questions = {
        row["_id"]: row for row in read_jsonl(arguments.source / "queries.jsonl.gz") if row["_id"] in qrels
    }
    corpus = [
        row for row in read_jsonl(arguments.source / "corpus.jsonl.gz") if row["_id"].startswith("dev-")
    ]

    (arguments.to / "qrels").mkdir(parents=True, exist_ok=True)
    num_documents = write_jsonl(arguments.to / "corpus.jsonl.gz", corpus)
    num_questions = write_jsonl(
        arguments.to / "queries.jsonl.gz", (questions[query_id] for query_id in chosen)
    )
    judgements = ["query-id\tcorpus-id\tscore"]
    judgements += [
        f"{query_id}\t{document_id}\t{grade}"
        for query_id in chosen
        for document_id, grade in qrels[query_id].items()
    ]
    (arguments.to / "qrels" / "test.tsv").write_text("\n".join(judgements) + "\n", encoding="utf-8")
    print(f"{num_documents} documents, {num_questions} questions, {len(judgements) - 1} judgements")


if __name__ == "__main__":
    main()
