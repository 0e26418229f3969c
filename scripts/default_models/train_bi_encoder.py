"""Fine-tune a built-in model of vectors from the bi-encoder's weights on lists of passages.

One vector a text, or, with --token-vectors, one a token for late interaction. The loss of a list is the KL
divergence between the softmax of its scores x a scale, which is learnt, too, and that of the teacher's scores
x 20; where its first passage is judged to answer the query, half the listwise cross-entropy on it is added.
A score is the cosine, or the mean MaxSim of token vectors. Word embeddings and the lowest layers stay as they
are. The bi-encoder's token vectors order passages well by MaxSim as they are, so their projection starts as
their principal axes, measured on passages of the lists, and not at random. Checkpoints are as those of
train_cross_encoder.py; at the end the folder is in sentence-transformers' layout.

    python train_bi_encoder.py --lists work/lists/web.jsonl --base MINILM --out work/embed
    python train_bi_encoder.py --token-vectors --lists work/lists/web.jsonl work/lists/long.jsonl \
        --base MINILM --out work/colbert
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from encoder import batches, hidden_states
from safetensors.torch import load_file, save_file
from sentence_transformers import MultiVectorEncoder, SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sentence_transformer.modules import Pooling
from splade import TEACHER_SCALE
from training_loop import STATE, Step, options, shuffled_lists, train
from transformers import AutoModel, AutoTokenizer

LABEL_WEIGHT = 0.5
HEAD = "head.safetensors"
QUERY_LENGTH = 64  # tokens of a query while training
MODEL_LENGTH = {True: 512, False: 256}  # tokens of a document that the folder says are read


def encode(
    model, project, tokenizer, texts: list[str], token_budget: int, max_length: int
) -> list[torch.Tensor]:
    """Return each text's token vectors, (tokens, dimensions) of length 1, in the texts' order.

    Without a projection the mean of a text's is its only one, (1, dimensions).
    """
    ids = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
    found: list[torch.Tensor | None] = [None] * len(texts)
    for rows in batches([len(row) for row in ids], token_budget):
        batch = tokenizer.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="pt")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            *_, hidden = hidden_states(model, batch["input_ids"], batch["attention_mask"])
            projected = hidden if project is None else project(hidden)
        for row, vectors in zip(rows, projected.float(), strict=True):
            own = vectors[: len(ids[row])]
            found[row] = F.normalize(own.mean(0, keepdim=True) if project is None else own, dim=-1)
    return found


def mean_maxsims(query: torch.Tensor, documents: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the mean over a query's vectors of the largest inner product with a vector of each document."""
    products = query @ torch.cat(list(documents)).T
    parts = products.split([len(document) for document in documents], dim=1)
    return torch.stack([part.max(1).values.mean() for part in parts])


def principal_axes(model, tokenizer, texts: list[str], dimensions: int) -> torch.Tensor:
    """Return (dimensions, hidden): the axes along which normalised token vectors of the texts spread most."""
    with torch.inference_mode():
        vectors = torch.cat(encode(model, torch.nn.Identity(), tokenizer, texts, 4000, 160)).double()
    _, axes = torch.linalg.eigh(vectors.T @ vectors)  # eigenvalues rise
    return axes[:, -dimensions:].flip(1).T.float().contiguous()


def export(folder: Path, weight: torch.Tensor | None) -> None:
    """Add to the encoder's folder what makes it a model of sentence-transformers.

    Args:
        folder: of the encoder and its tokenizer.
        weight: the projection of token vectors; None for one vector a text.
    """
    transformer = Transformer(str(folder), max_seq_length=MODEL_LENGTH[weight is not None])
    if weight is None:
        modules = [transformer, Pooling(transformer.get_embedding_dimension(), "mean"), Normalize()]
        SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder))
        return
    dense = Dense(
        weight.shape[1],
        weight.shape[0],
        bias=False,
        activation_function=torch.nn.Identity(),
        init_weight=weight,
        module_input_name="token_embeddings",
    )
    normalize = Normalize(module_input_name="token_embeddings")
    MultiVectorEncoder(
        modules=[transformer, dense, MultiVectorMask(), normalize], device="cpu"
    ).save_pretrained(str(folder))


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--token-vectors", action="store_true", help="late interaction")
    parser.add_argument("--dimensions", type=int, default=96, help="of a token's vector")
    parser.add_argument("--frozen-layers", type=int, default=2, help="lower layers that stay as they are")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)

    lists = shuffled_lists(args)
    resumed = (args.out / STATE).exists()
    tokenizer = AutoTokenizer.from_pretrained(args.base)
    model = AutoModel.from_pretrained(
        args.out if resumed else args.base, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    ).train()
    project = None
    if args.token_vectors:
        project = torch.nn.Linear(model.config.hidden_size, args.dimensions, bias=False)
    log_scale = torch.nn.Parameter(torch.tensor(TEACHER_SCALE).log())
    if resumed:
        head = load_file(args.out / HEAD)
        log_scale.data = head.pop("log_scale")
        if project is not None:
            project.load_state_dict(head)
    elif project is not None:
        sample = [row["passages"][0] for row in lists[:300]] + [row["query"] for row in lists[:300]]
        project.weight.data = principal_axes(model, tokenizer, sample, args.dimensions)
    for frozen in (model.embeddings, *model.encoder.layer[: args.frozen_layers]):
        frozen.requires_grad_(False)

    def step_of(rows: Sequence[dict[str, Any]], rng: random.Random) -> Step:
        texts = [text for row in rows for text in row["passages"]]
        documents = encode(model, project, tokenizer, texts, args.token_budget, args.max_length)
        queries = encode(
            model, project, tokenizer, [row["query"] for row in rows], args.token_budget, QUERY_LENGTH
        )
        losses, hits, start = [], 0, 0
        for row, query in zip(rows, queries, strict=True):
            stop = start + len(row["passages"])
            log_probabilities = F.log_softmax(
                mean_maxsims(query, documents[start:stop]) * log_scale.exp(), dim=0
            )
            teacher = torch.tensor(row["teacher"]) * TEACHER_SCALE
            wanted = F.log_softmax(teacher, dim=0)
            loss = F.kl_div(log_probabilities, wanted, log_target=True, reduction="sum")
            if row.get("judged", True):
                loss = loss - LABEL_WEIGHT * log_probabilities[0]
            losses.append(loss)
            hits += int(log_probabilities.argmax() == teacher.argmax())
            start = stop
        return Step(torch.stack(losses).mean(), hits, len(texts))

    def save() -> None:
        model.save_pretrained(args.out)
        tokenizer.save_pretrained(args.out)
        projected = {} if project is None else project.state_dict()
        save_file({**projected, "log_scale": log_scale.data}, args.out / HEAD)

    ends = [log_scale] if project is None else [log_scale, *project.parameters()]
    trained = [p for p in [*model.parameters(), *ends] if p.requires_grad]
    train(args, lists, trained, step_of, save)
    export(args.out, None if project is None else project.weight.data)


if __name__ == "__main__":
    main()
