"""A process that mines and kills itself at a given block of queries; run by test_resuming.py."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from mining_inputs import DOCUMENTS, QRELS, QUERIES, OverlapTeacher

from crossrank import BM25
from crossrank.training.negatives import MiningReport, Source, mine
from crossrank.types import Ranking

BLOCK_SIZE = 2


class Interrupted(BM25):
    """BM25 that calls `at` before it searches for the block of that number."""

    def __init__(self, block: int | None, at: object) -> None:
        super().__init__(DOCUMENTS)
        self.left = block
        self.at = at

    def retrieve(self, queries: Sequence[str], top_k: int = 100, filter: object = None) -> list[Ranking]:
        if self.left == 0:
            self.at()
        self.left = None if self.left is None else self.left - 1
        return super().retrieve(queries, top_k, filter)


def mine_all(path: Path, block: int | None = None, at: object = None, **changed: object) -> MiningReport:
    arguments = {
        "queries": QUERIES,
        "qrels": QRELS,
        "documents": DOCUMENTS,
        "sources": [Source(Interrupted(block, at), 3, sampling="random"), Source("random", 2)],
        "teacher": OverlapTeacher(),
        "block_size": BLOCK_SIZE,
    }
    return mine(**{**arguments, **changed}, path=path)


if __name__ == "__main__":
    mine_all(Path(sys.argv[1]), int(sys.argv[2]), lambda: os.kill(os.getpid(), signal.SIGKILL))
