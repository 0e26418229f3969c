"""Mean-pooled, normalised sentence vectors from a BERT folder, with torch (training side only)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from encoder import batches
from transformers import AutoModel, AutoTokenizer


@torch.inference_mode()
def encode(folder: Path, texts: list[str], max_length: int, token_budget: int = 4096) -> np.ndarray:
    """Return float32 (len(texts), dim) in the order given."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    ids = [x[:max_length] for x in tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]]
    vectors = np.empty((len(ids), model.config.hidden_size), dtype=np.float32)
    for rows in batches([len(row) for row in ids], token_budget):
        width = max(len(ids[r]) for r in rows)
        batch = torch.zeros((len(rows), width), dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for k, r in enumerate(rows):
            batch[k, : len(ids[r])] = torch.tensor(ids[r])
            mask[k, : len(ids[r])] = 1
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = model(input_ids=batch, attention_mask=mask).last_hidden_state.float()
        weights = mask.unsqueeze(-1).float()
        pooled = (hidden * weights).sum(1) / weights.sum(1)
        vectors[rows] = torch.nn.functional.normalize(pooled, dim=-1).numpy()
    return vectors
