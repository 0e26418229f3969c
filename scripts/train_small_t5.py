"""Train the three T5 rerankers from random weights on a task that words alone do not solve, and measure them.

    python scripts/train_small_t5.py OUTPUT [--kinds mono_t5 rank_t5 duo_t5] [--steps 1500] [--data-only]

Needs the extra `train`. There are two languages, in which every concept has a word of its own, and names that
both share. A query has a name and a concept in the one language. The relevant one of its eight documents has
that name, and the concept in the other language; the others have one of the two at most. BM25 sees the names
alone. What is learnt is the dictionary, and to ask for both at once.

No pair of name and concept that is held out is trained on.
Everything is drawn from a seed. The table at the end is of the trained folders, opened with `crossrank.load`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from crossrank import BM25, Ranking, evaluate, load
from crossrank.training.recipes import recipe_of
from crossrank.training.train import train

NUM_CONCEPTS, NUM_NAMES = 24, 24
NUM_DOCUMENTS = 8
LOSSES = {"mono_t5": "bce", "rank_t5": "rankt5_softmax", "duo_t5": "duo"}
LEARNING_RATES = {"mono_t5": 3e-3, "rank_t5": 3e-3, "duo_t5": 1e-3}
ROWS_PER_LIST = {
    "mono_t5": NUM_DOCUMENTS,
    "rank_t5": 1,
    "duo_t5": NUM_DOCUMENTS - 1,
}  # pairs, lists, triplets
PROMPT_WORDS = ("Query:", "Document:", "Document0:", "Document1:", "Relevant:", "true", "false")
MEASURES = ("MRR@10", "nDCG@10")


def new_words(rng: random.Random, count: int) -> list[str]:
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    return ["".join(parts) for parts in rng.sample(list(itertools.product(syllables, repeat=3)), count)]


class Task:
    """Draws lists of a query and its documents.

    Args:
        seed: of words and draws.
    """

    def __init__(self, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        words = new_words(self.rng, 2 * NUM_CONCEPTS + NUM_NAMES)
        self.asked, self.written = words[:NUM_CONCEPTS], words[NUM_CONCEPTS : 2 * NUM_CONCEPTS]
        self.names = [word.capitalize() for word in words[2 * NUM_CONCEPTS :]]
        pairs = list(itertools.product(range(NUM_NAMES), range(NUM_CONCEPTS)))
        self.rng.shuffle(pairs)
        self.held_out, self.trained = pairs[: len(pairs) // 5], pairs[len(pairs) // 5 :]

    @property
    def words(self) -> list[str]:
        return [*self.asked, *self.written, *self.names, *PROMPT_WORDS]

    def lists(self, pairs: list[tuple[int, int]], count: int, prefix: str) -> list[dict[str, Any]]:
        return [self.one(self.rng.choice(pairs), f"{prefix}{i}") for i in range(count)]

    def one(self, pair: tuple[int, int], query_id: str) -> dict[str, Any]:
        name, concept = pair
        documents = [self.document(name, concept)]
        documents += [self.document(name, self.other(NUM_CONCEPTS, concept)) for _ in range(3)]
        documents += [self.document(self.other(NUM_NAMES, name), concept) for _ in range(3)]
        documents += [self.document(self.other(NUM_NAMES, name), self.other(NUM_CONCEPTS, concept))]
        order = list(range(NUM_DOCUMENTS))
        self.rng.shuffle(order)
        words = [self.names[name], self.asked[concept]]
        self.rng.shuffle(words)
        return {
            "query_id": query_id,
            "query": " ".join(words),
            "documents": [documents[i] for i in order],
            "labels": [int(i == 0) for i in order],
        }

    def other(self, count: int, but: int) -> int:
        return (but + self.rng.randrange(1, count)) % count

    def document(self, name: int, concept: int) -> str:
        words = [self.names[name], self.written[concept]]
        self.rng.shuffle(words)
        return " ".join(words)


def write_base(folder: Path, task: Task, seed: int) -> None:
    """A small T5 with random weights, and a tokenizer that has the task's words."""
    letters = sorted({letter for word in task.words for letter in word})
    pieces = ["▁", *(f"▁{word}" for word in task.words), *letters]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((piece, -1.0) for piece in pieces)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.add_special_tokens([f"<extra_id_{i}>" for i in range(10, -1, -1)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    config = transformers.T5Config(
        vocab_size=tokenizer.get_vocab_size(),
        d_model=64,
        d_kv=32,
        d_ff=128,
        num_layers=3,
        num_decoder_layers=1,
        num_heads=4,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        tie_word_embeddings=False,
        feed_forward_proj="gated-gelu",
    )
    torch.manual_seed(seed)
    model = transformers.T5ForConditionalGeneration(config)
    # Rows of length 1 give first logits near 1. T5 draws them of length 8, and starts at twice the loss.
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * config.d_model**-0.5)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def write_lists(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def measure(rankings: list[Ranking], rows: list[dict[str, Any]]) -> dict[str, float]:
    run = {
        row["query_id"]: {hit.document_id: -float(hit.rank) for hit in ranking}
        for row, ranking in zip(rows, rankings, strict=True)
    }
    qrels = {row["query_id"]: {str(row["labels"].index(1)): 1} for row in rows}
    found = evaluate(run, qrels, MEASURES)
    return {name: found[name] for name in MEASURES}


def by_bm25(rows: list[dict[str, Any]]) -> list[Ranking]:
    """BM25 over all held-out documents; of each query's eight, the order."""
    texts = [text for row in rows for text in row["documents"]]
    index = BM25(texts, language=None)
    rankings = []
    for number, row in enumerate(rows):
        scores = index.scores(row["query"])[number * NUM_DOCUMENTS : (number + 1) * NUM_DOCUMENTS]
        order = sorted(range(NUM_DOCUMENTS), key=lambda i: -scores[i])
        rankings.append(_ranking(row["query"], order))
    return rankings


def _ranking(query: str, order: list[int]) -> Ranking:
    from crossrank import Hit

    return Ranking(query, tuple(Hit(str(i), -float(rank), rank, "") for rank, i in enumerate(order, start=1)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--kinds", nargs="+", default=list(LOSSES), choices=list(LOSSES))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--lists-per-step", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, help="default 3e-3, of duo_t5 1e-3")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-only", action="store_true", help="write base and data, and train nothing")
    arguments = parser.parse_args()
    task = Task(arguments.seed)
    base = arguments.output / "base"
    base.mkdir(parents=True, exist_ok=True)
    write_base(base, task, arguments.seed)
    held_out = task.lists(task.held_out, 300, "h")
    watched = task.lists(task.trained, 60, "w")
    write_lists(arguments.output / "watched.jsonl", watched)
    write_lists(
        arguments.output / "train.jsonl",
        task.lists(task.trained, arguments.steps * arguments.lists_per_step, "t"),
    )
    if arguments.data_only:
        return
    rng = random.Random(arguments.seed)
    chance = [_ranking(row["query"], rng.sample(range(NUM_DOCUMENTS), NUM_DOCUMENTS)) for row in held_out]
    print("chance", measure(chance, held_out), flush=True)
    print("BM25", measure(by_bm25(held_out), held_out), flush=True)
    for kind in arguments.kinds:
        values = {
            "student": {"kind": kind, "base": str(base)},
            "data": [{"file": str(arguments.output / "train.jsonl")}],
            "loss": {"name": LOSSES[kind]},
            "schedule": {
                "steps": arguments.steps,
                "lists_per_step": arguments.lists_per_step * ROWS_PER_LIST[kind],
                "learning_rate": arguments.learning_rate or LEARNING_RATES[kind],
                "warmup": 0.05,
                "weight_decay": 0.0,
                "gradient_cache": False,
                "token_budget": 16384,
            },
            "held_out": {"file": str(arguments.output / "watched.jsonl"), "every": 100, "measure": "MRR@10"},
            "guards": {"below_baseline": 1.0, "constant_scores": 0.0},
            "precision": "float32",
            "output": str(arguments.output / kind),
        }
        report = train(
            recipe_of(values),
            overwrite=True,
            report=lambda progress: print(progress, flush=True) if progress.step % 50 == 0 else None,
        )
        reranker = load(arguments.output / kind)
        rankings = reranker.rank_many(
            [row["query"] for row in held_out], [row["documents"] for row in held_out]
        )
        print(f"{kind} ({report.training_s:.0f} s)", measure(rankings, held_out), flush=True)


if __name__ == "__main__":
    main()
