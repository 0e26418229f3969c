"""Every family of rerankers: parameters, model calls for 100 candidates, milliseconds, quality.

The built-in models have trained weights, so what they make of a collection's candidates is measured too. The
others have random weights in the shapes of well-known checkpoints: time does not depend on the weights, and
quality cannot be had. Of the methods that ask a language model the pointwise one is run here, with the shape
of Qwen3-0.6B; of the others the number of calls is told, since the time is the endpoint's.

Contestants take turns; one that takes longer than --slow seconds runs once, which the table says.

    python benchmarks/families.py --page docs/guide.md --collection ../shared/data/msmarco_dl19 \
        --run bm25.top100 --qrels ../shared/data/msmarco_dl19/qrels_full_official.txt
    python benchmarks/families.py --t5 tiny --without-language-model
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import harness
import late_interaction
import material
import mono_t5

PACKAGES = ("crossrank", "numpy", "onnxruntime", "tokenizers", "torch", "transformers")
QWEN = {  # Qwen3-0.6B
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151_936,
    "tie_word_embeddings": True,
}
TOP = 10  # places that methods which sort settle
KEPT, IN_INDEX = "bi-encoder, vectors kept", "late interaction, vectors in the index (int8)"


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        family: what it is.
        weights: whose, or of which shape.
        parameters: of the model; None where the endpoint decides.
        calls: texts, pairs or prompts that go through a model for the candidates of one query; of methods
            that sort, the most.
        run: reranks the candidates; None where the time is an endpoint's.
    """

    family: str
    weights: str
    parameters: int | None
    calls: int
    run: Callable[[], object] | None = None


def built_in(query: str, documents: Sequence[Any], threads: int, scratch: Path) -> list[Row]:
    """The models that ship with the package."""
    from crossrank import BiEncoder
    from crossrank.models.cross_encoder import CrossEncoder
    from crossrank.models.hub import DEFAULT_MODELS, resolve
    from crossrank.models.late_interaction import LateInteraction
    from crossrank.runtime.checkpoint import Checkpoint
    from crossrank.store.lance import Index
    from crossrank.store.late_reranker import StoredLateInteraction

    sizes = {
        kind: sum(tensor.size for tensor in Checkpoint.open(resolve(None, kind=kind)).tensors().values())
        for kind in DEFAULT_MODELS
    }
    kept = late_interaction.KeptVectors(documents, threads)
    embed = BiEncoder(threads=threads, progress=False)
    late = LateInteraction(threads=threads, progress=False)
    index = Index.create(scratch / "index", late_interaction=late, token_codec="int8")
    index.add(documents)
    stored = StoredLateInteraction(index)
    cross = CrossEncoder(threads=threads, progress=False)

    def encode_all() -> object:
        return embed.encode_documents(documents) @ embed.encode_queries([query])[0]

    count = len(documents)
    runs: dict[str, tuple[Any, int, Callable[[], object]]] = {
        KEPT: ("bi-encoder", 1, partial(kept.rank, query, documents)),
        "bi-encoder": ("bi-encoder", count + 1, encode_all),
        IN_INDEX: ("late-interaction", 1, partial(stored.rank, query, documents)),
        "late interaction": ("late-interaction", count + 1, partial(late.rank, query, documents)),
        "cross-encoder": ("cross-encoder", count, partial(cross.rank, query, documents)),
    }
    return [
        Row(family, DEFAULT_MODELS[kind], sizes[kind], calls, run)
        for family, (kind, calls, run) in runs.items()
    ]


def t5_rows(query: str, documents: Sequence[Any], size: str, threads: int, scratch: Path) -> list[Row]:
    """MonoT5, RankT5 and duoT5 of one shape."""
    from safetensors import safe_open

    from crossrank.models.duo_t5 import DuoT5
    from crossrank.models.mono_t5 import MonoT5
    from crossrank.models.pairwise import AllPairs, Heap, Knockout
    from crossrank.models.rank_t5 import RankT5

    folders = {kind: scratch / kind for kind in ("mono_t5", "rank_t5", "duo_t5")}
    for kind, folder in folders.items():
        mono_t5.write_model(folder, size, kind)
    with safe_open(folders["mono_t5"] / "model.safetensors", "numpy") as file:
        parameters = sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118
    shape = f"shape of t5-{size}, float32"
    options: dict[str, Any] = {"threads": threads, "progress": False}
    mono = MonoT5(folders["mono_t5"], **options)
    rank = RankT5(folders["rank_t5"], **options)
    rows = [
        Row("MonoT5", shape, parameters, len(documents), partial(mono.rank, query, documents)),
        Row("RankT5", shape, parameters, len(documents), partial(rank.rank, query, documents)),
    ]
    plans = {f"knock-out, top {TOP}": Knockout(TOP), f"heap, top {TOP}": Heap(TOP), "all pairs": AllPairs()}
    for name, plan in plans.items():
        duo = DuoT5(folders["duo_t5"], plan=plan, **options)
        rows.append(
            Row(
                f"duoT5 over the best {duo.depth}, {name}",
                shape,
                parameters,
                duo.calls(len(documents)),
                partial(duo.rank, query, documents),
            )
        )
    return rows


def language_model(threads: int) -> tuple[Any, int]:
    """A causal model with random weights in the shape of Qwen3-0.6B, and how many."""
    import torch
    import transformers
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    from crossrank.models.llm import CausalLM

    torch.set_num_threads(threads)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8000,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([*material.corpus(), *["yes no"] * 500], trainer)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ("<think>", "</think>")])
    torch.manual_seed(0)
    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**QWEN))
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    return CausalLM(model, tokenizer=fast), model.num_parameters()


def language_model_rows(query: str, documents: Sequence[Any], threads: int) -> list[Row]:
    """The methods that ask a language model."""
    from crossrank.models.llm import ListwiseLLM, PairwiseLLM, PointwiseLLM, Qwen3Reranker, SetwiseLLM
    from crossrank.models.pairwise import AllPairs, Heap, SlidingWindow

    model, parameters = language_model(threads)
    count = len(documents)
    pointwise = PointwiseLLM(model, template=Qwen3Reranker(), progress=False)
    others = {
        "listwise LLM, windows of 20, step 10": ListwiseLLM(model),
        f"setwise LLM, heap, sets of 4, top {TOP}": SetwiseLLM(model, top=TOP),
        f"pairwise LLM, heap, top {TOP}": PairwiseLLM(model, plan=Heap(TOP)),
        f"pairwise LLM, sliding, {TOP} passes": PairwiseLLM(model, plan=SlidingWindow(TOP)),
        "pairwise LLM, all pairs": PairwiseLLM(model, plan=AllPairs()),
    }
    first = Row(
        "pointwise LLM",
        "shape of Qwen3-0.6B, float32",
        parameters,
        pointwise.calls(count),
        partial(pointwise.rank, query, documents),
    )
    return [first, *(Row(name, "any", None, each.calls(count)) for name, each in others.items())]


def timed(rows: Sequence[Row], args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Family -> what its rounds took."""
    quick, summaries = {}, {}
    for row in rows:
        if row.run is None:
            continue
        harness.say(f"warming up: {row.family}")
        first = harness.interleave({row.family: row.run}, 1)[row.family]
        if first.median_s > args.slow:
            summaries[row.family] = first.summary()
        else:
            quick[row.family] = row.run
    timings = harness.interleave(quick, args.rounds)
    return summaries | {name: timing.summary() for name, timing in timings.items()}


def quality(folder: Path, args: argparse.Namespace, scratch: Path) -> dict[str, float]:
    """Family -> nDCG@10 over a collection's candidates, of those that have trained weights."""
    from crossrank.evaluation.collections import Collection
    from crossrank.evaluation.measures import evaluate
    from crossrank.models.cross_encoder import CrossEncoder
    from crossrank.models.late_interaction import LateInteraction
    from crossrank.store.lance import Index
    from crossrank.store.late_reranker import StoredLateInteraction
    from crossrank.types import Run

    rows, qrels = late_interaction.candidates_of(Collection.open(folder), args)
    unique = list({d.id: d for _, each in rows.values() for d in each if d.full_text.strip()}.values())
    options: dict[str, Any] = {"threads": args.threads, "long_query": "truncate"}
    late = LateInteraction(**options)
    late_interaction.remembering(late, when_ranking=True)
    index = Index.create(scratch / "quality", late_interaction=late, token_codec="int8")
    index.add(unique)
    kept = late_interaction.KeptVectors(unique, args.threads)
    systems: dict[str, Any] = {
        KEPT: kept,
        "bi-encoder": kept,
        IN_INDEX: StoredLateInteraction(index),
        "late interaction": late,
        "cross-encoder": CrossEncoder(**options),
    }
    return {
        family: evaluate(
            Run({q: system.rank(query, documents) for q, (query, documents) in rows.items()}),
            qrels,
            ["nDCG@10"],
        ).means["nDCG@10"]
        for family, system in systems.items()
    }


def run(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    from crossrank.models.hub import resolve
    from crossrank.runtime.checkpoint import Checkpoint
    from crossrank.runtime.tokenization import Tokenizer
    from crossrank.types import Document

    tokenizer = Tokenizer(Checkpoint.open(resolve(None, kind="cross-encoder")))
    texts = material.texts(material.lengths(args.profile, args.documents).tolist(), tokenizer)
    documents = [Document(str(number), text) for number, text in enumerate(texts)]
    query = material.queries(1)[0]
    harness.say("writing the weights")
    rows = built_in(query, documents, args.threads, scratch)
    rows += t5_rows(query, documents, args.t5, args.threads, scratch)
    if not args.without_language_model:
        rows += language_model_rows(query, documents, args.threads)
    load = harness.load_average()
    timings = timed(rows, args)
    result: dict[str, Any] = {
        "benchmark": "families",
        "machine": harness.machine(*PACKAGES),
        "load_average_before": load,
        "settings": {
            "profile": args.profile,
            "documents": args.documents,
            "threads": args.threads,
            "rounds": args.rounds,
        },
        "families": {
            row.family: {"weights": row.weights, "parameters": row.parameters, "calls": row.calls}
            | timings.get(row.family, {})
            for row in rows
        },
    }
    if args.collection is not None:
        harness.say(f"quality on {args.collection.name}")
        result["collection"] = f"{args.collection.name}, {args.run or 'BM25'}, {args.depth} candidates"
        for family, value in quality(args.collection, args, scratch).items():
            result["families"][family]["ndcg@10"] = round(value, 4)
    return result


def table(result: Mapping[str, Any]) -> str:
    """The page's table, as Markdown."""
    settings, machine = result["settings"], result["machine"]
    measured = f"; nDCG@10: {result['collection']}" if "collection" in result else ""
    lines = [
        f"{machine['cpu']}, {settings['threads']} threads, {settings['documents']} candidates "
        f"({settings['profile']}), median of {settings['rounds']} rounds (¹: one round); load average "
        f"before: {result['load_average_before']}{measured}. Calls: texts, pairs or prompts through "
        "the model; of methods that sort, the most.",
        "",
    ]
    rows = []
    for family, row in result["families"].items():
        size = f"{row['parameters'] / 1e6:,.1f} M" if row["parameters"] else ""
        milliseconds = ""
        if "median_s" in row:
            milliseconds = f"{1000 * row['median_s']:,.0f}{'' if len(row['rounds_s']) > 1 else '¹'}"
        found = f"{row['ndcg@10']:.3f}" if "ndcg@10" in row else ""
        rows.append([family, row["weights"], size, f"{row['calls']:,}", milliseconds, found])
    columns = ["family", "weights", "parameters", "calls", "ms", "nDCG@10"]
    return "\n".join([*lines, *harness.markdown_table(columns, rows, words=2)])


def main() -> None:
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--profile", choices=("short", "marco", "nq", "fixed"), default="marco")
    parser.add_argument("--documents", type=harness.at_least_one, default=100)
    parser.add_argument("--rounds", type=harness.at_least_one, default=5)
    parser.add_argument("--slow", type=float, default=10.0, help="seconds from which there is one round only")
    parser.add_argument("--t5", choices=tuple(mono_t5.SIZES), default="small", help="size of the T5s")
    parser.add_argument("--without-language-model", action="store_true")
    parser.add_argument("--collection", type=Path, help="measure quality on this folder in BEIR form")
    late_interaction.candidate_options(parser)
    harness.page_option(parser)
    args = parser.parse_args()
    result = harness.carry_out(run, args)
    harness.publish("families", result, table(result), args)


if __name__ == "__main__":
    main()
