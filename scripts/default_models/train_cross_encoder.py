"""Fine-tune the built-in cross-encoder from the bi-encoder's weights on lists of passages.

The loss of a list is one KL divergence to the teacher's scores x 20 and, where its first passage is judged to
answer the query, half the listwise cross-entropy on it. Heads after earlier layers (--exits) are trained with
the last, each with 0.3 of its weight. Word embeddings stay frozen unless --trained-embeddings. Checkpoints
hold the optimiser and the position, so a stopped run goes on where it was. Lists may be of several files and
sizes; the base may be a cross-encoder already, which is then trained further.

    python train_cross_encoder.py --lists work/lists/lists.jsonl:0:7600 --base MINILM --out work/short
    python train_cross_encoder.py --lists work/lists/web.jsonl work/lists/long.jsonl --base work/short \
        --exits 2 4 --learning-rate 1e-4 --decay 0.5 --out work/ce
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from encoder import batches, hidden_states
from safetensors.torch import load_file, save_file
from splade import TEACHER_SCALE
from training_loop import STATE, Step, options, shuffled_lists, train
from transformers import AutoTokenizer, BertForSequenceClassification

LABEL_WEIGHT = 0.5
EXIT_WEIGHT = 0.3
EXITS = "exits.safetensors"


def lengthen(passages: list[str], pool: list[str], rng: random.Random) -> list[str]:
    """Put other text before or after every passage: relevance is that of the best part."""
    longer = []
    for passage in passages:
        others = rng.sample(pool, rng.choice((1, 2)))
        cut = rng.randrange(len(others) + 1)
        longer.append(" ".join([*others[:cut], passage, *others[cut:]]))
    return longer


def logits_of(model, exits, tokenizer, pairs, token_budget: int, max_length: int) -> torch.Tensor:
    """Return the logits of every exit and of the model, (pairs, exits + 1), in the pairs' order."""
    encoded = tokenizer(
        [q for q, _ in pairs],
        [p for _, p in pairs],
        truncation="only_second",
        max_length=max_length,
    )
    found: list[torch.Tensor | None] = [None] * len(pairs)
    for rows in batches([len(ids) for ids in encoded["input_ids"]], token_budget):
        batch = tokenizer.pad({k: [v[r] for r in rows] for k, v in encoded.items()}, return_tensors="pt")
        logits = []
        with torch.autocast("cpu", dtype=torch.bfloat16):
            states = hidden_states(model.bert, **batch, last_for_first_token=True)
            for number, hidden in enumerate(states, start=1):
                if str(number) in exits:
                    dense, classifier = exits[str(number)]
                    logits.append(classifier(torch.tanh(dense(hidden[:, 0]))))
            logits.append(model.classifier(torch.tanh(model.bert.pooler.dense(hidden[:, 0]))))
        for row, values in zip(rows, torch.cat(logits, -1).float(), strict=True):
            found[row] = values
    return torch.stack(found)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument(
        "--long-share", type=float, default=0.05, help="of lists, made longer with other text"
    )
    parser.add_argument("--exits", type=int, nargs="*", default=[], help="layers after which there is a head")
    parser.add_argument("--trained-embeddings", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)

    lists = shuffled_lists(args)
    pool = [p for row in lists[:2000] for p in row["passages"] if len(p.split()) < 80]
    tokenizer = AutoTokenizer.from_pretrained(args.base)
    source = args.out if (args.out / STATE).exists() else args.base
    model = BertForSequenceClassification.from_pretrained(
        source, num_labels=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    ).train()
    model.bert.embeddings.word_embeddings.weight.requires_grad_(args.trained_embeddings)
    exits = torch.nn.ModuleDict(
        {
            str(n): torch.nn.ModuleList(
                [copy.deepcopy(model.bert.pooler.dense), copy.deepcopy(model.classifier)]
            )
            for n in args.exits
        }
    )
    if exits and (source / EXITS).exists():
        exits.load_state_dict(load_file(source / EXITS))
    exit_weights = torch.tensor([EXIT_WEIGHT] * len(exits) + [1.0])

    def step_of(rows: Sequence[dict[str, Any]], rng: random.Random) -> Step:
        pairs = []
        for row in rows:
            texts = row["passages"]
            if rng.random() < args.long_share and max(len(text.split()) for text in texts) < 150:
                texts = lengthen(texts, pool, rng)
            pairs += [(row["query"], text) for text in texts]
        logits = logits_of(model, exits, tokenizer, pairs, args.token_budget, args.max_length)
        losses, hits = [], 0
        for row, scores in zip(rows, logits.split([len(row["passages"]) for row in rows]), strict=True):
            log_probabilities = F.log_softmax(scores, dim=0)
            teacher = F.log_softmax(torch.tensor(row["teacher"]) * TEACHER_SCALE, dim=0)
            wanted = teacher[:, None].expand_as(scores)
            each = F.kl_div(log_probabilities, wanted, log_target=True, reduction="none").sum(0)
            if row.get("judged", True):
                each = each - LABEL_WEIGHT * log_probabilities[0]
            losses.append((each * exit_weights).sum())
            hits += int(scores[:, -1].argmax() == 0)
        return Step(torch.stack(losses).mean(), hits, len(pairs))

    def save() -> None:
        model.save_pretrained(args.out)
        tokenizer.save_pretrained(args.out)
        if exits:
            save_file(exits.state_dict(), args.out / EXITS)

    trained = [p for p in [*model.parameters(), *exits.parameters()] if p.requires_grad]
    train(args, lists, trained, step_of, save)


if __name__ == "__main__":
    main()
