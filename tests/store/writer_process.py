"""A process that writes to an index until it is killed; run by the tests of crash safety.

Prints the id and revision of every document once it is acknowledged. In the mode "upsert" it replaces
documents; with "optimize" and "clean" it optimizes between batches, with "clean" deleting all old
versions, so that a kill can come in the middle of that too.
"""

from __future__ import annotations

import sys
import zlib

import numpy as np

from crossrank.store import upkeep
from crossrank.store.lance import Index
from crossrank.types import Document


class Encoder:
    name = "process"
    fingerprint = "process"
    dimensions = 8

    def encode_documents(self, texts: list[str]) -> np.ndarray:
        seeds = [zlib.crc32(text.encode()) for text in texts]
        rows = [np.random.default_rng(seed).normal(size=8) for seed in seeds]
        return np.array([row / np.linalg.norm(row) for row in rows], dtype=np.float32)

    encode_queries = encode_documents


def document(number: int, writer: str, revision: int = 0) -> Document:
    text = f"shared {writer} number{number} revision{revision} " + "filler " * (number % 40)
    return Document(f"{writer}-{number}", text, metadata={"number": number, "revision": revision})


def main(path: str, writer: str, batches: int, batch_size: int, mode: str, revision: int) -> None:
    upkeep.ANN_THRESHOLD = 200  # so that vector indices are trained while the process is killed
    index = Index.open(path, Encoder())
    for batch in range(batches):
        start = batch * batch_size
        documents = [document(number, writer, revision) for number in range(start, start + batch_size)]
        if mode == "upsert":  # half of the batch before, in a newer revision
            older = range(max(0, start - batch_size // 2), start)
            documents += [document(number, writer, revision + 1) for number in older]
        revisions = {d.id: d.metadata["revision"] for d in documents}

        def acknowledge(ids: tuple[str, ...], revisions: dict[str, int] = revisions) -> None:
            sys.stdout.write(" ".join(f"{name}:{revisions[name]}" for name in ids) + "\n")
            sys.stdout.flush()

        index.upsert(documents, batch_size=batch_size // 2, on_batch=acknowledge)
        if mode in ("optimize", "clean"):
            index.optimize(grace_s=0 if mode == "clean" else 60)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5], int(sys.argv[6]))
