"""Sparse vectors of a SPLADE model, with torch (training side only), and the teacher that they are half of.

Source: Formal et al. 2021, "SPLADE v2: Sparse Lexical and Expansion Model for Information Retrieval",
arXiv:2109.10086.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.sparse
import torch
from encoder import batches
from transformers import AutoModelForMaskedLM, AutoTokenizer

TEACHER_SCALE = 20.0
"""What training multiplies a list's teacher scores by before their softmax."""

SPREAD = 2.6
"""Standard deviation of the teacher's logits within a list, over all lists."""


class Splade:
    """Turns texts into vectors over the vocabulary: log(1 + ReLU), the largest over the tokens.

    Args:
        folder: a BERT with its masked-language-model head.
    """

    def __init__(self, folder: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModelForMaskedLM.from_pretrained(folder).eval()

    @torch.inference_mode()
    def encode(
        self, texts: Sequence[str], max_length: int, token_budget: int = 1600
    ) -> scipy.sparse.csr_matrix:
        """Return float32 (len(texts), vocabulary); texts are cut at `max_length` tokens."""
        ids = self._tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
        rows: list[scipy.sparse.csr_matrix | None] = [None] * len(ids)
        head = self._model.cls.predictions
        for chosen in batches([len(row) for row in ids], token_budget):
            batch = self._tokenizer.pad({"input_ids": [ids[i] for i in chosen]}, return_tensors="pt")
            with torch.autocast("cpu", dtype=torch.bfloat16):
                hidden = head.transform(self._model.bert(**batch).last_hidden_state)
                for i, states in zip(chosen, hidden, strict=True):
                    # One text at a time: its logits stay in the processor's cache, and none are of padding.
                    largest = (states[: len(ids[i])] @ head.decoder.weight.T).amax(0).float()
                    weights = torch.log1p(torch.relu(largest + head.decoder.bias)).numpy()
                    rows[i] = scipy.sparse.csr_matrix(weights)
        return scipy.sparse.vstack(rows, format="csr")


def mixed(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> list[list[float]]:
    """Mix two teachers' scores of lists: each counts in units of its own spread within a list.

    Args:
        first: one teacher's, one array a list.
        second: the other's, likewise.

    Returns:
        Teacher scores as training reads them; those of a list add up to nothing.
    """
    spreads = [float(np.sqrt(np.mean([np.var(row) for row in rows]))) for rows in (first, second)]
    scores = []
    for pair in zip(first, second, strict=True):
        parts = [(row - row.mean()) / spread for row, spread in zip(pair, spreads, strict=True)]
        scores.append((SPREAD / TEACHER_SCALE * np.mean(parts, axis=0)).round(5).tolist())
    return scores
