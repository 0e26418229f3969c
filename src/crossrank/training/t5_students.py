"""T5 rerankers in training: MonoT5 and RankT5, which score pairs, and DuoT5, which compares documents."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crossrank.errors import CheckpointError, InputError, require
from crossrank.models.declaration import Declaration, read_declaration, write_declaration
from crossrank.models.hub import Kind
from crossrank.models.pairwise import AllPairs, ComparisonPlan, SampledPairs, compare_many
from crossrank.models.rank_t5 import sentinel_id
from crossrank.models.t5_families import DUO_PROMPT, MONO_PROMPT, RANK_PROMPT
from crossrank.models.t5_opening import answer_ids, find_family, stated_prompt
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.encoders.t5 import TokenScore
from crossrank.runtime.prompts import PromptTokenizer
from crossrank.training.losses.table import Family
from crossrank.training.recipes import Lengths, StudentChoice

__all__ = ["DuoT5Student", "MonoT5Student", "RankT5Student"]

_BLOCK = 2048
"""Inputs that are tokenised at a time."""

_ALL_PAIRS = 8
"""Documents of a list up to which all are compared with all; of longer ones each with so many, both ways."""

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "spiece.model")


class MonoT5Student:
    """See `crossrank.training.students.Student`.

    The score in training is the logit of "true" less that of "false", so that binary cross-entropy of it is
    cross-entropy over the two tokens.
    """

    kind = "mono_t5"
    family: Family = "scorer"
    joins_texts = True
    hub_kind: Kind = "cross-encoder"
    hub_library = "transformers"
    options: tuple[str, ...] = ()
    _prompt = MONO_PROMPT
    _fields: tuple[str, ...] = ("query", "document")

    def open(self, choice: StudentChoice, folder: Path, lengths: Lengths) -> Any:
        """Return a `CrossEncoder` over a whole T5."""
        cross_encoder = require("sentence_transformers", "train").CrossEncoder
        transformers: Any = require("transformers", "train")
        checkpoint = Checkpoint.open(folder)
        if checkpoint.architecture != "t5":
            raise CheckpointError(f"{choice.base} is no T5 but {checkpoint.architecture}")
        declared = read_declaration(folder)
        if declared.kind not in (None, self.kind):
            declared = Declaration()  # another kind's prompt and tokens
        prompt = stated_prompt(declared) or self._prompt
        tokenizer = PromptTokenizer(checkpoint, prompt, self._fields)
        score = self._score(choice.base, tokenizer, checkpoint, declared)
        max_length = lengths.max_length or checkpoint.max_length
        if max_length < tokenizer.num_special_tokens + 1 + len(self._fields):
            raise InputError(
                f"lengths.max_length is {max_length}, and the prompt alone has "
                f"{tokenizer.num_special_tokens} tokens"
            )
        whole = {"t5": "T5ForConditionalGeneration", "mt5": "MT5ForConditionalGeneration"}
        model_class = getattr(transformers, whole[str(checkpoint.config["model_type"])])
        if not checkpoint.has_weights or "decoder.final_layer_norm.weight" not in checkpoint.tensors():
            raise CheckpointError(f"{choice.base} has no decoder; the kind {self.kind} needs a whole T5")
        model = model_class.from_pretrained(
            folder, dtype="float32", local_files_only=True, use_safetensors=True
        )
        from crossrank.training.t5_module import T5Scores

        files = {each: folder / each for each in _TOKENIZER_FILES if (folder / each).is_file()}
        module = T5Scores(
            model,
            tokenizer,
            score,
            max_length,
            tokenizer_files={each: path.read_bytes() for each, path in files.items()},
        )
        return cross_encoder(modules=[module], device="cpu")

    def trainer(self) -> tuple[type[Any], type[Any]]:
        """Return sentence-transformers' classes."""
        module = require("sentence_transformers.cross_encoder", "train")
        return module.CrossEncoderTrainer, module.CrossEncoderTrainingArguments

    def text_lengths(self, model: Any) -> PromptLengths:
        """Return what counts tokens of inputs."""
        module = model[0]
        return PromptLengths(module.prompt_tokenizer, module.max_seq_length)

    def preprocess_options(self) -> Mapping[str, Any]:
        """Return nothing: the module cuts documents alone."""
        return {}

    def score_lists(
        self, model: Any, queries: Sequence[str], documents: Sequence[Sequence[str]], token_budget: int
    ) -> list[npt.NDArray[np.float32]]:
        """Return what the reranker gives; pairs of all lists share forward passes."""
        pairs = [(query, text) for query, texts in zip(queries, documents, strict=True) for text in texts]
        scores = self._final(_margins(model, pairs, token_budget))
        bounds = np.cumsum([len(texts) for texts in documents])[:-1]
        return [np.asarray(part, dtype=np.float32) for part in np.split(scores, bounds)]

    def export(self, model: Any, folder: Path) -> None:
        """Write what transformers and crossrank open; sentence-transformers has no class for it."""
        module = model[0]
        folder.mkdir(parents=True, exist_ok=True)
        module.model.save_pretrained(folder)
        for name, content in module.tokenizer_files.items():
            (folder / name).write_bytes(content)
        path = folder / "tokenizer_config.json"
        settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        settings["model_max_length"] = module.max_seq_length
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        write_declaration(
            folder, self.kind, {"prompt": module.prompt_tokenizer.prompt, **self._stated(module.score)}
        )

    def _score(
        self, name: str, tokenizer: PromptTokenizer, checkpoint: Checkpoint, declared: Declaration
    ) -> TokenScore:
        family = find_family(name, checkpoint, None)
        false, true = answer_ids(tokenizer, checkpoint, None, declared, family)
        return TokenScore(true, against=false)

    def _stated(self, score: TokenScore) -> dict[str, Any]:
        return {"tokens": [score.against, score.token]}

    def _final(self, margins: npt.NDArray[np.float32]) -> npt.NDArray[np.floating[Any]]:
        """The reranker's scores: log-probabilities."""
        return -np.logaddexp(0, -margins.astype(np.float64))


class RankT5Student(MonoT5Student):
    """See `crossrank.training.students.Student`; a score is the logit of one token."""

    kind = "rank_t5"
    _prompt = RANK_PROMPT

    def _score(
        self, name: str, tokenizer: PromptTokenizer, checkpoint: Checkpoint, declared: Declaration
    ) -> TokenScore:
        return TokenScore(sentinel_id(tokenizer, checkpoint, None, declared))

    def _stated(self, score: TokenScore) -> dict[str, Any]:
        return {"token": score.token}

    def _final(self, margins: npt.NDArray[np.float32]) -> npt.NDArray[np.floating[Any]]:
        return margins


class DuoT5Student(MonoT5Student):
    """See `crossrank.training.students.Student`; inputs have a query and two documents."""

    kind = "duo_t5"
    family: Family = "comparer"
    _prompt = DUO_PROMPT
    _fields = ("query", "document0", "document1")

    def text_lengths(self, model: Any) -> PromptLengths:
        """Return what counts tokens of a query with one document, which may take half of the room."""
        module = model[0]
        taken = (module.max_seq_length - module.prompt_tokenizer.num_special_tokens + 1) // 2
        return PromptLengths(module.prompt_tokenizer, module.max_seq_length, taken)

    def score_lists(
        self, model: Any, queries: Sequence[str], documents: Sequence[Sequence[str]], token_budget: int
    ) -> list[npt.NDArray[np.float32]]:
        """Return what comparisons add up to: of all pairs of a short list, of sampled ones of a long one."""
        scores: dict[int, npt.NDArray[np.float32]] = {}
        plans: tuple[ComparisonPlan, ...] = (AllPairs(), SampledPairs(_ALL_PAIRS))
        for plan, is_short in zip(plans, (True, False), strict=True):
            numbers = [i for i, texts in enumerate(documents) if (len(texts) <= _ALL_PAIRS) is is_short]
            chosen = [(queries[number], documents[number]) for number in numbers]
            prefer = partial(_preferences, model, chosen, token_budget)
            outcomes = compare_many(plan, [len(texts) for _, texts in chosen], prefer)
            for number, outcome in zip(numbers, outcomes, strict=True):
                scores[number] = outcome.scores.astype(np.float32)
        return [scores[number] for number in range(len(documents))]


class PromptLengths:
    """Counts and cuts with the tokenizer of prompts; see `crossrank.training.students.TextLengths`.

    Args:
        tokenizer: of the model.
        max_length: tokens of an input, prompt included.
        taken: of them by what is neither query nor document, besides the prompt.
    """

    def __init__(self, tokenizer: PromptTokenizer, max_length: int, taken: int = 0) -> None:
        self.max_length = max_length
        self.num_special = self.num_query_special = tokenizer.num_special_tokens + taken
        self._tokenizer = tokenizer

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return the tokens of each text, uncut."""
        return [len(each.ids) for each in self._tokenizer.encode(texts)]

    def cut(self, text: str, num_tokens: int) -> str:
        """Return the beginning of a text that has this many tokens at most."""
        offsets = self._tokenizer.encode([text], offsets=True)[0].offsets
        assert offsets is not None  # asked for
        if len(offsets) <= num_tokens:
            return text
        kept = num_tokens
        cut = text[: int(offsets[kept - 1][1])]
        while kept > 1 and self.count([cut])[0] > num_tokens:  # a cut word may have more tokens
            kept -= 1
            cut = text[: int(offsets[kept - 1][1])]
        return cut


def _preferences(
    model: Any,
    lists: Sequence[tuple[str, Sequence[str]]],
    token_budget: int,
    asked: list[tuple[int, int, int]],
) -> npt.NDArray[np.float64]:
    inputs = [(lists[number][0], lists[number][1][i], lists[number][1][j]) for number, i, j in asked]
    margins = _margins(model, inputs, token_budget).astype(np.float64)
    preferences: npt.NDArray[np.float64] = np.exp(-np.logaddexp(0, -margins))
    return preferences


def _margins(model: Any, inputs: Sequence[tuple[str, ...]], token_budget: int) -> npt.NDArray[np.float32]:
    from crossrank.training.cross_encoder_student import score_pairs

    return score_pairs(model, inputs, token_budget, {})[:, 0]
