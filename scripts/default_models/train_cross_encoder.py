"""Fine-tune the built-in cross-encoder from the bi-encoder's weights on lists made by prepare_lists.py.

The loss of a list is half listwise cross-entropy on the judged passage and one KL divergence to the
bi-encoder's cosines x 20, so the model starts from what the bi-encoder knows and learns from the
judgements what it does not. Word embeddings stay frozen. Checkpoints hold the optimiser and the
position, so a stopped run goes on where it was. Lists may be of several files and sizes; the base
may be a cross-encoder already, which is then trained further.

    python train_cross_encoder.py --lists work/lists/lists.jsonl:0:7600 --base MINILM --out work/short
    python train_cross_encoder.py --lists work/lists/long_lists.jsonl work/lists/lists.jsonl:7600:12000 \
        --base work/short --learning-rate 5e-5 --out work/ce
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, BertForSequenceClassification

TEACHER_SCALE = 20.0
LABEL_WEIGHT = 0.5


def lengthen(passages: list[str], pool: list[str], rng: random.Random) -> list[str]:
    """Put other text before or after every passage: relevance is that of the best part."""
    longer = []
    for passage in passages:
        others = rng.sample(pool, rng.choice((1, 2)))
        cut = rng.randrange(len(others) + 1)
        longer.append(" ".join([*others[:cut], passage, *others[cut:]]))
    return longer


def read_lists(spec: str) -> list[dict]:
    """Read FILE or FILE:START:STOP, lists START to STOP of the file."""
    path, start, stop = spec.split(":") if ":" in spec else (spec, None, None)
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines][int(start or 0) : int(stop) if stop else None]


def forward(model, input_ids, token_type_ids, attention_mask) -> torch.Tensor:
    """The logits of BertForSequenceClassification; the last layer is computed for [CLS] alone."""
    hidden = model.bert.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)
    num_pairs, _, width = hidden.shape
    heads = model.config.num_attention_heads
    bias = None
    if not bool(attention_mask.all()):
        padding = ~attention_mask[:, None, None, :].bool()
        bias = torch.zeros(padding.shape, dtype=torch.bfloat16).masked_fill(padding, -1e4)
    layers = model.bert.encoder.layer
    for layer in layers:
        attention = layer.attention.self
        source = hidden[:, :1] if layer is layers[-1] else hidden
        query, key, value = (
            linear(x).view(num_pairs, -1, heads, width // heads).transpose(1, 2)
            for linear, x in (
                (attention.query, source),
                (attention.key, hidden),
                (attention.value, hidden),
            )
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        mixed = mixed.transpose(1, 2).reshape(num_pairs, -1, width)
        attended = layer.attention.output(mixed, source)
        hidden = layer.output(layer.intermediate(attended), attended)
    return model.classifier(torch.tanh(model.bert.pooler.dense(hidden[:, 0]))).squeeze(-1)


def logits_of(model, tokenizer, pairs, token_budget: int, max_length: int) -> torch.Tensor:
    """Return one logit a pair, in order; pairs of like length share a forward pass."""
    encoded = tokenizer(
        [q for q, _ in pairs],
        [p for _, p in pairs],
        truncation="only_second",
        max_length=max_length,
    )
    lengths = [len(ids) for ids in encoded["input_ids"]]
    order = sorted(range(len(pairs)), key=lambda i: lengths[i])
    logits = []
    start = 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        while start < len(order):
            stop = start + 1
            while stop < len(order) and (stop + 1 - start) * lengths[order[stop]] <= token_budget:
                stop += 1
            rows = order[start:stop]
            batch = tokenizer.pad({k: [v[r] for r in rows] for k, v in encoded.items()}, return_tensors="pt")
            logits.append(forward(model, **batch).float())
            start = stop
    inverse = torch.empty(len(order), dtype=torch.long)
    inverse[torch.tensor(order)] = torch.arange(len(order))
    return torch.cat(logits)[inverse]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lists", nargs="+", required=True, help="FILE or FILE:START:STOP")
    parser.add_argument("--base", type=Path, required=True, help="folder of weights to start from")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lists-per-step", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=8e-5)
    parser.add_argument("--long-share", type=float, default=0.05)
    parser.add_argument("--token-budget", type=int, default=1200, help="tokens a forward pass")
    parser.add_argument("--max-length", type=int, default=384)
    parser.add_argument("--checkpoint-every", type=int, default=100, help="steps")
    parser.add_argument("--seed", type=int, default=13)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)

    lists = [row for spec in args.lists for row in read_lists(spec)]
    if len(args.lists) > 1:
        random.Random(args.seed).shuffle(lists)
    pool = [p for row in lists[:2000] for p in row["passages"] if len(p.split()) < 80]
    num_steps = len(lists) // args.lists_per_step

    state_path = args.out / "training_state.pt"
    source = args.out if state_path.exists() else args.base
    tokenizer = AutoTokenizer.from_pretrained(args.base)
    model = BertForSequenceClassification.from_pretrained(
        source, num_labels=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    model.bert.embeddings.word_embeddings.weight.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.learning_rate, weight_decay=0.01, fused=True)
    warmup = max(1, num_steps // 20)
    first_step = 0
    if state_path.exists():
        state = torch.load(state_path)
        optimizer.load_state_dict(state["optimizer"])
        first_step = state["step"]
    model.train()

    started, pairs_done, shown = time.monotonic(), 0, {"loss": 0.0, "hit": 0.0, "n": 0}
    for step in range(first_step, num_steps):
        rate = min((step + 1) / warmup, (num_steps - step) / (num_steps - warmup))
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * max(rate, 0.0)
        rng = random.Random(args.seed * 1_000_003 + step)
        rows = lists[step * args.lists_per_step : (step + 1) * args.lists_per_step]
        pairs = []
        for row in rows:
            texts = row["passages"]
            if rng.random() < args.long_share and max(len(text.split()) for text in texts) < 150:
                texts = lengthen(texts, pool, rng)
            pairs += [(row["query"], text) for text in texts]
        logits = logits_of(model, tokenizer, pairs, args.token_budget, args.max_length)
        losses, hits = [], 0
        for row, scores in zip(rows, logits.split([len(row["passages"]) for row in rows]), strict=True):
            log_probabilities = F.log_softmax(scores, dim=-1)
            teacher = F.log_softmax(torch.tensor(row["teacher"]) * TEACHER_SCALE, dim=-1)
            distillation = F.kl_div(log_probabilities, teacher, log_target=True, reduction="sum")
            losses.append(distillation - LABEL_WEIGHT * log_probabilities[0])
            hits += int(scores.argmax() == 0)
        loss = torch.stack(losses).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if not torch.isfinite(loss):
            raise SystemExit(f"step {step}: the loss is {loss.item()}; nothing was saved after it")

        pairs_done += len(pairs)
        shown["loss"] += loss.item()
        shown["hit"] += hits / len(rows)
        shown["n"] += 1
        if (step + 1) % 20 == 0:
            speed = pairs_done / (time.monotonic() - started)
            left = (num_steps - step - 1) * len(pairs) / speed
            print(
                f"step {step + 1}/{num_steps}  loss {shown['loss'] / shown['n']:.4f}  "
                f"judged passage first {shown['hit'] / shown['n']:.3f}  "
                f"{speed:.1f} pairs/s  {left / 60:.0f} min left",
                flush=True,
            )
            shown = {"loss": 0.0, "hit": 0.0, "n": 0}
        if (step + 1) % args.checkpoint_every == 0 or step + 1 == num_steps:
            model.save_pretrained(args.out)
            tokenizer.save_pretrained(args.out)
            temporary = state_path.with_suffix(".tmp")
            torch.save({"optimizer": optimizer.state_dict(), "step": step + 1}, temporary)
            temporary.replace(state_path)


if __name__ == "__main__":
    main()
