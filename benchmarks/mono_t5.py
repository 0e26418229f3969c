"""MonoT5 over the passages of one query: crossrank against `rerankers`, pyterrier_t5 and plain transformers.

Every contestant has the same weights (a T5 of a given size with random weights), texts and number of threads,
and tokenises within the time measured. Those peers that are installed take part:

- transformers: the prompts of a batch padded on the right, one step of `generate`'s forward pass;
- `rerankers`: its T5Ranker, in its default batches and in others;
- pyterrier_t5: its MonoT5ReRanker over a frame of query and texts, likewise (it needs Java to be imported).

Scores are compared as log-probabilities of "true" (those of `rerankers` are probabilities, and are taken the
logarithm of). Beside the times are the largest difference from transformers, one prompt at a time, and how
far the scores of eight of the passages move when they are scored by themselves. Of passages longer than the
longest input, it is counted for how many the score is not that of the prompt with "Relevant:" at its end.

    python benchmarks/mono_t5.py --size small --profile marco
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness

Scorer = Callable[[list[tuple[str, str]]], Any]  # pairs of one query -> float32 (n,) log-probabilities

PROMPT = "Query: {} Document: {} Relevant:"
TRANSFORMERS, RERANKERS, TERRIER, CROSSRANK = "transformers", "rerankers", "pyterrier_t5", "crossrank"
PACKAGES = (CROSSRANK, "onnxruntime", RERANKERS, TERRIER, "tokenizers", "torch", TRANSFORMERS)
SIZES = {
    "tiny": {"d_model": 64, "d_kv": 16, "d_ff": 256, "num_layers": 2, "num_heads": 4},
    "small": {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8},
    "base": {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
}
VOCABULARY = 8000


def write_model(folder: Path, size: str, kind: str = "mono_t5") -> None:
    """A T5 reranker with random weights, and a tokenizer of its kind made from the sample texts."""
    import material
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    special = ["<pad>", "</s>", "<unk>", "<extra_id_10>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCABULARY, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(
        [*material.corpus(), *["Query: Document: Relevant: true false"] * 500], trainer
    )
    content = json.loads(tokenizer.to_str())
    known = {piece for piece, _ in content["model"]["vocab"]}
    content["model"]["vocab"] += [[piece, -9.0] for piece in ("▁true", "▁false") if piece not in known]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    config = transformers.T5Config(
        vocab_size=tokenizer.get_vocab_size(),
        decoder_start_token_id=0,
        dropout_rate=0.0,
        n_positions=512,  # which pyterrier_t5 reads, and published configs have
        **SIZES[size],
    )
    torch.manual_seed(0)
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    ).save_pretrained(folder)
    (folder / "crossrank.json").write_text(json.dumps({"kind": kind}), encoding="utf-8")


def reference(folder: Path) -> Scorer:
    """One prompt at a time, the document cut so that "Relevant:" stays."""
    import torch
    import transformers

    model = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    answers = tokenizer.convert_tokens_to_ids(["▁false", "▁true"])

    def score(pairs: list[tuple[str, str]]) -> list[float]:
        found = []
        for query, document in pairs:
            before, text, after = (
                tokenizer(part, add_special_tokens=False)["input_ids"]
                for part in (f"Query: {query} Document:", document, "Relevant:")
            )
            ids = [*before, *text[: 511 - len(before) - len(after)], *after, 1]
            with torch.no_grad():
                start = torch.zeros((1, 1), dtype=torch.long)
                logits = model(input_ids=torch.tensor([ids]), decoder_input_ids=start).logits[0, 0, answers]
            found.append(float(torch.log_softmax(logits, 0)[1]))
        return found

    return score


def plain_transformers(folder: Path, args: argparse.Namespace) -> dict[str, Scorer]:
    import torch
    import transformers

    torch.set_num_threads(args.threads)
    model = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    answers = tokenizer.convert_tokens_to_ids(["▁false", "▁true"])

    def scorer(size: int) -> Scorer:
        def score(pairs: list[tuple[str, str]]) -> Any:
            found = []
            for start in range(0, len(pairs), size):
                prompts = [PROMPT.format(*pair) for pair in pairs[start : start + size]]
                inputs = tokenizer(
                    prompts, padding=True, truncation=True, max_length=512, return_tensors="pt"
                )
                with torch.no_grad():
                    begin = torch.zeros((len(prompts), 1), dtype=torch.long)
                    logits = model(
                        input_ids=inputs["input_ids"],
                        attention_mask=inputs["attention_mask"],
                        decoder_input_ids=begin,
                    ).logits[:, 0, answers]
                found.append(torch.log_softmax(logits, 1)[:, 1])
            return torch.cat(found).numpy()

        return score

    return {f"{TRANSFORMERS}, batches of {size}": scorer(size) for size in args.batch_sizes}


def rerankers(folder: Path, args: argparse.Namespace) -> dict[str, Scorer]:
    import numpy as np
    from rerankers import Reranker

    def scorer(size: int) -> Scorer:
        options = {"token_false": "▁false", "token_true": "▁true", "dtype": "fp32"}
        model = Reranker(str(folder), model_type="t5", device="cpu", batch_size=size, verbose=0, **options)

        def score(pairs: list[tuple[str, str]]) -> Any:
            ranked = model.rank(pairs[0][0], [document for _, document in pairs], doc_ids=range(len(pairs)))
            scores = np.empty(len(pairs))
            for result in ranked.results:
                scores[result.doc_id] = result.score
            return np.log(scores)

        return score

    return {f"{RERANKERS}, batches of {size}": scorer(size) for size in args.batch_sizes}


def terrier(folder: Path, args: argparse.Namespace) -> dict[str, Scorer]:
    import pandas as pd
    from pyterrier_t5 import MonoT5ReRanker

    def scorer(size: int) -> Scorer:
        model = MonoT5ReRanker(tok_model=str(folder), model=str(folder), batch_size=size, verbose=False)

        def score(pairs: list[tuple[str, str]]) -> Any:
            frame = pd.DataFrame(
                {
                    "qid": "1",
                    "query": [query for query, _ in pairs],
                    "docno": [str(number) for number in range(len(pairs))],
                    "text": [document for _, document in pairs],
                }
            )
            ranked = model.transform(frame)
            found = dict(zip(ranked["docno"], ranked["score"], strict=True))
            return [found[str(number)] for number in range(len(pairs))]

        return score

    return {f"{TERRIER}, batches of {size}": scorer(size) for size in args.batch_sizes}


def crossrank(folder: Path, args: argparse.Namespace) -> dict[str, Scorer]:
    from crossrank import load

    model = load(folder, backend="onnx", threads=args.threads, progress=False)
    return {f"{CROSSRANK} float32": model.score}


def run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    import material
    import numpy as np

    from crossrank.runtime.checkpoint import Checkpoint
    from crossrank.runtime.tokenization import Tokenizer

    harness.say("writing the weights")
    if args.weights is None:
        write_model(folder, args.size)
    else:
        shutil.copytree(args.weights, folder, dirs_exist_ok=True)
        (folder / "crossrank.json").write_text('{"kind": "mono_t5"}', encoding="utf-8")
    tokenizer = Tokenizer(Checkpoint.open(folder))
    passages = material.texts(material.lengths(args.profile, args.passages).tolist(), tokenizer)
    query = material.queries(1)[0]
    pairs = [(query, passage) for passage in passages]
    sizes = [len(tokens.ids) for tokens in tokenizer.encode(passages)]
    peers = {RERANKERS: rerankers, TERRIER: terrier}
    installed = {name: make for name, make in peers.items() if importlib.util.find_spec(name)}
    exact = reference(folder)
    scorers = plain_transformers(folder, args)
    for make in installed.values():
        scorers |= make(folder, args)
    scorers |= crossrank(folder, args)

    wanted = np.array(exact(pairs))
    found = harness.compare(scorers, pairs, sizes, args.rounds)
    long = [(query, " ".join([passage] * 8)) for passage in passages[:16]]
    long_wanted = np.array(exact(long))
    spread = float(wanted.std())
    for name, record in found.records.items():
        del record["max_delta_to_sentence_transformers"]
        record["max_delta_to_reference"] = float(np.abs(found.outputs[name] - wanted).max())
        difference = np.abs(np.asarray(scorers[name](long)) - long_wanted)
        record["long_passages_with_another_score"] = int((difference > 0.01 * spread).sum())
    return {
        "benchmark": "mono_t5",
        "machine": harness.machine(*PACKAGES),
        "settings": {
            "size": args.size if args.weights is None else args.weights.name,
            "weights": "random" if args.weights is None else str(args.weights),
            "profile": args.profile,
            "passages": args.passages,
            "threads": args.threads,
            "rounds": args.rounds,
            "mean_passage_tokens": round(float(np.mean(sizes)), 1),
            "score_std": spread,
            "long_passages": len(long),
        },
        "load_average_before": found.load_average_before,
        "contestants": found.records,
        "ratios": found.ratios(
            [f"{CROSSRANK} float32"], {f"{name} best": name for name in (TRANSFORMERS, *installed)}
        ),
    }


def show(result: dict[str, Any]) -> None:
    settings = result["settings"]
    rows = [
        {
            "": name,
            "median ms": f"{1000 * values['median_s']:,.0f}",
            "minimum ms": f"{1000 * values['min_s']:,.0f}",
            "CPU ms": f"{1000 * values['cpu_median_s']:,.0f}",
            "max |Δ|": f"{values['max_delta_to_reference']:.1e}",
            "max |Δ| alone": f"{values['max_delta_alone']:.1e}",
            f"other score, of {settings['long_passages']} long": str(
                values["long_passages_with_another_score"]
            ),
        }
        for name, values in result["contestants"].items()
    ]
    harness.table(
        f"MonoT5 ({settings['size']}), {settings['passages']:,} passages ({settings['profile']}), "
        f"{settings['threads']} threads, {settings['rounds']} rounds",
        rows,
    )
    print(f"standard deviation of the scores: {settings['score_std']:.4f}")
    harness.print_verdict(result)


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--size", choices=tuple(SIZES), default="small", help="of the T5")
    parser.add_argument("--profile", choices=("marco", "nq", "fixed"), default="marco", help="of lengths")
    parser.add_argument("--passages", type=harness.at_least_one, default=100)
    parser.add_argument("--rounds", type=harness.at_least_one, default=7)
    parser.add_argument("--batch-sizes", type=harness.at_least_one, nargs="+", default=[4, 8, 32])
    args = parser.parse_args()
    result = harness.carry_out(run, args)
    show(result)
    harness.write(f"mono_t5_{result['settings']['size']}", result, args.output)


if __name__ == "__main__":
    main()
