"""Fine-tune a small late-interaction model from the bi-encoder's weights on lists made by prepare_lists.py.

The bi-encoder's token vectors order passages well by MaxSim as they are, so the projection starts as their
principal axes, measured on passages of the lists, and not at random. The loss of a list is the KL divergence
between the softmax of the mean MaxSim and a target: half the softmax of the teacher's cosines, half the
judged passage. It is sentence-transformers' own (MultiVectorDistillKLDivLoss), since a mixture of
distributions is a distribution: its logarithm is passed as the teacher's scores. Embeddings and the lower
layers stay as they are.

    python train_late_interaction.py --lists work/lists/lists.jsonl:0:3000 --base MINILM --out work/colbert
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import MultiVectorEncoder, MultiVectorEncoderTrainer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.losses import MultiVectorDistillKLDivLoss
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.multi_vector_encoder.scoring import mean_colbert_kd_scores
from sentence_transformers.multi_vector_encoder.training_args import MultiVectorEncoderTrainingArguments
from train_cross_encoder import read_lists

TEMPERATURE = 0.05  # of cosines; the mean MaxSim is on their scale
JUDGED_SHARE = 0.5


def principal_axes(transformer: Transformer, texts: list[str], dimensions: int) -> torch.Tensor:
    """Return (dimensions, hidden): the axes along which normalised token vectors of the texts spread most."""
    total = torch.zeros(())
    with torch.inference_mode():
        for start in range(0, len(texts), 16):
            features = transformer.preprocess(texts[start : start + 16])
            output = transformer(features)
            tokens = output["token_embeddings"][output["attention_mask"].bool()]
            tokens = torch.nn.functional.normalize(tokens, dim=-1).double()
            total = total + tokens.T @ tokens
    _, axes = torch.linalg.eigh(total)  # eigenvalues rise
    return axes[:, -dimensions:].flip(1).T.float().contiguous()


def targets(teacher: list[float]) -> list[float]:
    """Return scores whose softmax at TEMPERATURE is the mixture of teacher and judgement."""
    scaled = np.asarray(teacher) / TEMPERATURE
    mixture = np.exp(scaled - scaled.max())
    mixture *= (1 - JUDGED_SHARE) / mixture.sum()
    mixture[0] += JUDGED_SHARE
    return (np.log(np.maximum(mixture, 1e-6)) * TEMPERATURE).tolist()


def examples(lists: list[dict], size: int, rng: random.Random) -> Dataset:
    """Make one row a list: the judged passage and size - 1 of the others, with their targets."""
    columns: dict[str, list] = {"query": [], **{f"document_{i}": [] for i in range(size)}, "label": []}
    for row in lists:
        chosen = [0, *rng.sample(range(1, len(row["passages"])), size - 1)]
        labels = targets([row["teacher"][index] for index in chosen])
        # Sorted by length, so that what is padded together (a column) is of like length.
        order = sorted(range(size), key=lambda place: len(row["passages"][chosen[place]]))
        columns["query"].append(row["query"])
        for column, place in enumerate(order):
            columns[f"document_{column}"].append(row["passages"][chosen[place]])
        columns["label"].append([labels[place] for place in order])
    return Dataset.from_dict(columns)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lists", nargs="+", required=True, help="FILE or FILE:START:STOP")
    parser.add_argument("--base", type=Path, required=True, help="folder of weights to start from")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dimensions", type=int, default=64, help="of a token's vector")
    parser.add_argument("--list-size", type=int, default=8, help="passages of a list that are used")
    parser.add_argument("--lists-per-step", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=3e-5)
    parser.add_argument("--max-length", type=int, default=160, help="tokens of a text while training")
    parser.add_argument("--frozen-layers", type=int, default=3, help="lower layers that stay as they are")
    parser.add_argument("--checkpoint-every", type=int, default=100, help="steps")
    parser.add_argument("--seed", type=int, default=13)
    args = parser.parse_args()
    rng = random.Random(args.seed)

    lists = [row for spec in args.lists for row in read_lists(spec)]
    transformer = Transformer(str(args.base), max_seq_length=args.max_length)
    width = transformer.get_embedding_dimension()
    sample = [row["passages"][0] for row in lists[:400]] + [row["query"] for row in lists[:400]]
    axes = principal_axes(transformer.eval(), sample, args.dimensions)
    projection = Dense(
        width,
        args.dimensions,
        bias=False,
        activation_function=torch.nn.Identity(),
        init_weight=axes,
        module_input_name="token_embeddings",
    )
    model = MultiVectorEncoder(
        modules=[transformer, projection, MultiVectorMask(), Normalize(module_input_name="token_embeddings")],
        device="cpu",
    )
    layers = transformer.auto_model.encoder.layer
    for frozen in (transformer.auto_model.embeddings, *layers[: args.frozen_layers]):
        frozen.requires_grad_(False)
    model.save_pretrained(str(args.out / "start"))
    trainer = MultiVectorEncoderTrainer(
        model=model,
        args=MultiVectorEncoderTrainingArguments(
            output_dir=str(args.out / "checkpoints"),
            per_device_train_batch_size=args.lists_per_step,
            num_train_epochs=1,
            learning_rate=args.learning_rate,
            warmup_steps=0.05,
            weight_decay=0.01,
            bf16=True,
            use_cpu=True,
            logging_steps=20,
            save_steps=args.checkpoint_every,
            save_total_limit=2,
            report_to="none",
            seed=args.seed,
        ),
        train_dataset=examples(lists, args.list_size, rng),
        loss=MultiVectorDistillKLDivLoss(
            model,
            similarity_fct=mean_colbert_kd_scores,
            temperature=TEMPERATURE,
            mini_batch_size=args.lists_per_step,
        ),
    )
    checkpoints = args.out / "checkpoints"
    trainer.train(resume_from_checkpoint=any(checkpoints.glob("checkpoint-*")) or None)
    transformer.max_seq_length = transformer.auto_model.config.max_position_embeddings
    model.save_pretrained(str(args.out))


if __name__ == "__main__":
    main()
