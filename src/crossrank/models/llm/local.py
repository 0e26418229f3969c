"""Causal language models on this machine, by transformers."""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from crossrank.checks import check_count
from crossrank.errors import CheckpointError, CheckpointNotFoundError, InputError, ModelOutputError, require
from crossrank.models.hub import is_offline
from crossrank.models.llm.chat_format import ChatFormat
from crossrank.models.llm.cleaning import without_control_marks
from crossrank.models.llm.model import Answer, Prompt, Usage, nothing
from crossrank.runtime.batching import plan

__all__ = ["CausalLM", "Tail"]

_LEAST_SHARED = 16  # tokens at the beginning of all rows that are worth a forward of their own

Precision = Literal["auto", "float32", "bfloat16", "float16"]


class Tail(NamedTuple):
    """A row of token ids, and what is wanted of its end.

    Attributes:
        ids: the row.
        num_read: at how many of its last positions the next token is looked at.
    """

    ids: list[int]
    num_read: int = 1


class CausalLM:
    """A causal language model of a folder or the hub; safe to use from many threads at once.

    A prompt's numbers depend on the prompt alone (float32: within 1e-5): rows are padded at the end, where a
    causal model's earlier positions cannot see it, and answers are written for prompts of equal length
    together. What all rows of a call begin with, such as instruction and query, is computed once.

    No code of a model's folder is run, and weights are read from safetensors alone.

    Args:
        model: a local folder, a hub name, or a loaded model of transformers, which is used as it is.
        tokenizer: of a loaded model; needed then, and only then.
        revision: commit, tag or branch; for hub models only.
        precision: "auto" is float32 on a CPU and the checkpoint's own on a GPU.
        device: such as "cuda:1"; default: the GPU if there is one.
        token_budget: tokens of one forward, padding included.
        max_context: tokens of a prompt and its answer; default: what the model's config allows.
        share_prefix: whether what all rows begin with is computed once.

    Raises:
        MissingExtraError: torch or transformers is not installed.
        CheckpointNotFoundError: there is no such model.
        CheckpointError: it is no causal language model, or lacks weights.
        InputError: an option that cannot be used.
    """

    reads_choices = True

    def __init__(
        self,
        model: str | Path | Any,
        *,
        tokenizer: Any = None,
        revision: str | None = None,
        precision: Precision = "auto",
        device: str | None = None,
        token_budget: int = 4096,
        max_context: int | None = None,
        share_prefix: bool = True,
    ) -> None:
        torch = require("torch", "torch")
        require("transformers", "torch")
        check_count(token_budget, "token_budget")
        if isinstance(model, (str, Path)):
            if tokenizer is not None:
                raise InputError("tokenizer is for a loaded model; one that is named brings its own")
            device = device or ("cuda" if torch.cuda.is_available() else "cpu")
            self._model, self.tokenizer = _load(model, revision, precision, device)
            self.name = Path(model).resolve().name if Path(model).is_dir() else str(model)
        else:
            if tokenizer is None:
                raise InputError("a loaded model needs its tokenizer: CausalLM(model, tokenizer=tokenizer)")
            self._model, self.tokenizer = model.eval(), tokenizer
            self.name = str(getattr(model.config, "name_or_path", "")) or type(model).__name__
        if not getattr(self.tokenizer, "is_fast", False):
            raise CheckpointError(f"{self.name} has no fast tokenizer (tokenizer.json)")
        text_config = self._model.config.get_text_config()
        allowed = getattr(text_config, "max_position_embeddings", None)
        if max_context is not None:
            check_count(max_context, "max_context")
            if allowed is not None and max_context > allowed:
                raise InputError(f"max_context is {max_context}; {self.name} takes at most {allowed} tokens")
        self.context_tokens: int | None = max_context or allowed
        self._token_budget = token_budget
        self._share_prefix = share_prefix and not getattr(self._model, "_is_stateful", False)
        self._picks_positions = "logits_to_keep" in inspect.signature(self._model.forward).parameters
        self._chat = ChatFormat(self.tokenizer)
        self._lock = threading.RLock()  # one forward at a time; the tokenizer keeps state, too
        self._usage = Usage()

    @property
    def usage(self) -> Usage:
        """What has been asked for so far."""
        return self._usage

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Return a text's token ids.

        Args:
            text: may hold control tokens, as a template does; a text of others goes through `defuse` first.
            special: whether the tokenizer's own first and last tokens are put around it.
        """
        with self._lock:
            ids: list[int] = self.tokenizer(text, add_special_tokens=special)["input_ids"]
        return ids

    def defuse(self, text: str) -> str:
        """Return a text without control tokens of this model's tokenizer and chat template."""
        with self._lock:
            return without_control_marks(text, self._chat.control_tokens, self._chat.normal)

    def clean(self, text: str) -> str:
        """Return a text without control tokens of this model, or marks of any known family of chats."""
        return self.defuse(without_control_marks(text))

    def generate(
        self, prompts: Sequence[Prompt], *, max_tokens: int, on_answer: Callable[[], None] = nothing
    ) -> list[Answer]:
        """Answer each prompt; see `LanguageModel.generate`. Prompts of equal length share a batch."""
        rows = [self.prompt_ids(prompt) for prompt in prompts]
        self._check_context(rows, max_tokens)
        of_length: dict[int, list[int]] = {}
        for number, row in enumerate(rows):
            of_length.setdefault(len(row), []).append(number)
        answers: dict[int, Answer] = {}
        for length, numbers in of_length.items():
            size = max(1, self._token_budget // (length + max_tokens))
            for start in range(0, len(numbers), size):
                some = numbers[start : start + size]
                written = self._generate([rows[number] for number in some], max_tokens)
                for number, answer in zip(some, written, strict=True):
                    answers[number] = answer
                    on_answer()
        return [answers[number] for number in range(len(rows))]

    def choose(
        self, prompts: Sequence[Prompt], choices: Sequence[str], *, on_answer: Callable[[], None] = nothing
    ) -> npt.NDArray[np.float64]:
        """Exact log-probabilities of choices as the answer's first token; see `LanguageModel.choose`.

        A choice's probability is that of all its forms together: in small letters and capitals, with and
        without a space before.
        """
        rows = [self.prompt_ids(prompt) for prompt in prompts]
        self._check_context(rows, 1)
        forms = [self._first_tokens(choice) for choice in choices]
        if len(set().union(*forms)) < sum(map(len, forms)):
            raise InputError(
                f"{self.name} cannot tell {', '.join(choices)} apart by their first token; use generation"
            )
        found = np.empty((len(rows), len(choices)))
        for number, logits in self.tails([Tail(row) for row in rows], on_row=on_answer):
            known = logits[0].log_softmax(-1)
            for column, tokens in enumerate(forms):
                found[number, column] = float(known[sorted(tokens)].logsumexp(0))
        return found

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Return a prompt's token ids, as the model's chat template writes it."""
        text = self._chat.render(prompt.messages)
        if text is None:  # a model without a chat template gets the texts alone
            text = "\n\n".join(message.content for message in prompt.messages)
            return self.encode(f"{text}\n{prompt.answer_start}", special=True)
        return self.encode(text + prompt.answer_start)

    def tails(
        self, rows: Sequence[Tail], *, on_row: Callable[[], None] = nothing
    ) -> Iterator[tuple[int, Any]]:
        """Compute what comes after the last positions of rows of token ids.

        Args:
            rows: not empty each. Those that begin alike are fast together.
            on_row: called after each row.

        Yields:
            A row's number, and its logits as a float32 tensor (num_read, vocabulary); in any order.

        Raises:
            ModelOutputError: NaN or infinity from the model.
        """
        alike: dict[tuple[tuple[int, ...], int], list[int]] = {}
        for number, row in enumerate(rows):
            alike.setdefault((tuple(row.ids), row.num_read), []).append(number)
        copies = list(alike.values())
        different = [rows[numbers[0]] for numbers in copies]
        for at, logits in self._tails(different):
            for number in copies[at]:  # equal rows are computed once, so equal texts get equal scores
                yield number, logits
                on_row()

    def _tails(self, rows: Sequence[Tail]) -> Iterator[tuple[int, Any]]:
        if not rows:
            return
        shared = self._shared_length(rows)
        cache = self._prefix_cache(rows[0].ids[:shared]) if shared else None
        lengths = [len(row.ids) - shared for row in rows]
        limit = None if self.context_tokens is None else self.context_tokens - shared
        num_tokens = 0
        for batch in plan(lengths, token_budget=max(1, self._token_budget - shared), limit=limit):
            numbers = batch.rows.tolist()
            some = [Tail(rows[number].ids[shared:], rows[number].num_read) for number in numbers]
            for number, logits in zip(numbers, self._forward(some, batch.length, cache), strict=True):
                num_tokens += lengths[number]
                yield number, logits
        self._count(len(rows), num_tokens + shared, 0)

    def _forward(self, rows: Sequence[Tail], length: int, cache: Any) -> list[Any]:
        """Logits (num_read, vocabulary) of rows, padded to a length, that follow what is in the cache."""
        import torch

        padded = [row.ids + [0] * (length - len(row.ids)) for row in rows]  # never seen by what is read
        first = min(len(row.ids) - row.num_read for row in rows)
        options: dict[str, Any] = {"use_cache": False}
        if self._picks_positions:
            options["logits_to_keep"] = length - first
        with self._lock, torch.inference_mode():
            if cache is not None:
                cache = copy.deepcopy(cache)
                cache.batch_repeat_interleave(len(rows))
                options |= {"past_key_values": cache, "use_cache": True}
            ids = torch.tensor(padded, dtype=torch.int64, device=self._model.device)
            logits = self._model(input_ids=ids, **options).logits.float()
        if not self._picks_positions:
            logits = logits[:, first:]
        if not bool(torch.isfinite(logits).all()):
            raise ModelOutputError(f"{self.name} gave NaN or infinity; try precision='float32'")
        ends = [len(row.ids) - first for row in rows]
        return [
            logits[at, end - row.num_read : end] for at, (row, end) in enumerate(zip(rows, ends, strict=True))
        ]

    def _shared_length(self, rows: Sequence[Tail]) -> int:
        """How many tokens all rows begin with, leaving of each what is looked at."""
        if not self._share_prefix or len(rows) < 2:
            return 0
        first, last = min(row.ids for row in rows), max(row.ids for row in rows)  # differ the earliest
        shared = next(
            (at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b),
            min(len(first), len(last)),
        )
        shared = min([shared, *(len(row.ids) - row.num_read for row in rows)])
        return shared if shared >= _LEAST_SHARED else 0

    def _prefix_cache(self, ids: list[int]) -> Any:
        import torch
        from transformers import DynamicCache

        with self._lock, torch.inference_mode():
            cache = DynamicCache(config=self._model.config)
            options = {"logits_to_keep": 1} if self._picks_positions else {}
            tokens = torch.tensor([ids], dtype=torch.int64, device=self._model.device)
            self._model(input_ids=tokens, past_key_values=cache, use_cache=True, **options)
        return cache

    def _generate(self, rows: Sequence[list[int]], max_tokens: int) -> list[Answer]:
        """Answers to rows of one length."""
        import torch
        from transformers import GenerationConfig

        ends = self._model.generation_config.eos_token_id
        if ends is None:
            ends = self.tokenizer.eos_token_id
        stops = set(ends if isinstance(ends, (list, tuple)) else [] if ends is None else [ends])
        settings = GenerationConfig(
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=sorted(stops) or None,
            pad_token_id=min(stops) if stops else 0,
        )
        with self._lock, torch.inference_mode():
            ids = torch.tensor(rows, dtype=torch.int64, device=self._model.device)
            written = self._model.generate(
                ids, attention_mask=torch.ones_like(ids), generation_config=settings
            )[:, ids.shape[1] :].tolist()
            answers = []
            for new in written:
                end = next((at for at, token in enumerate(new) if token in stops), None)
                text = self.tokenizer.decode(new[:end], skip_special_tokens=True)
                answers.append(Answer(text, "length" if end is None else "stop"))
                self._count(1, len(rows[0]), len(new) if end is None else end + 1)
        return answers

    def _first_tokens(self, choice: str) -> set[int]:
        """The first token of each form of a choice that is one token."""
        spellings = {choice, choice.lower(), choice.capitalize(), choice.upper()}
        forms = [self.encode(space + spelling) for spelling in sorted(spellings) for space in ("", " ")]
        tokens = {ids[0] for ids in forms if len(ids) == 1}
        if not tokens:
            raise InputError(f"{self.name} has no token for {choice!r}; use generation")
        return tokens

    def _check_context(self, rows: Sequence[list[int]], max_tokens: int) -> None:
        for row in rows:
            if self.context_tokens is not None and len(row) + max_tokens > self.context_tokens:
                raise InputError(
                    f"a prompt of {len(row):,} tokens and an answer of {max_tokens:,} do not fit into the "
                    f"{self.context_tokens:,} of {self.name}; show it fewer documents at a time, or fewer "
                    "words of each (max_document_words)"
                )

    def _count(self, calls: int, read: int, written: int) -> None:
        with self._lock:
            done = self._usage
            self._usage = replace(
                done,
                calls=done.calls + calls,
                prompt_tokens=done.prompt_tokens + read,
                completion_tokens=done.completion_tokens + written,
            )

    def __repr__(self) -> str:
        return f"CausalLM({self.name!r}, device={str(self._model.device)!r})"


def _load(model: str | Path, revision: str | None, precision: Precision, device: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    types: dict[str, Any] = {
        "auto": torch.float32 if device == "cpu" else "auto",
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
    }
    if precision not in types:
        raise InputError(f"precision is {precision!r}; choose one of {', '.join(types)}")
    name = str(Path(model).expanduser()) if Path(model).expanduser().is_dir() else str(model)
    if isinstance(model, Path) and not model.expanduser().is_dir():
        raise CheckpointNotFoundError(f"there is no folder {model}")
    options: dict[str, Any] = {
        "revision": revision or "main",
        "local_files_only": is_offline(),
        "trust_remote_code": False,
    }
    try:
        config = AutoConfig.from_pretrained(name, **options)
        architectures = list(config.architectures or [])
        known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
        if config.is_encoder_decoder or not known.intersection(architectures):
            raise CheckpointError(
                f"{name} is no causal language model: its config says "
                f"{', '.join(architectures) or config.model_type}"
            )
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        loaded, report = AutoModelForCausalLM.from_pretrained(
            name, dtype=types[precision], use_safetensors=True, output_loading_info=True, **options
        )
    except OSError as error:
        said = " ".join(str(error).split())[:300]
        raise CheckpointNotFoundError(f"{name} cannot be opened as a folder or hub model: {said}") from error
    except (ValueError, KeyError, ImportError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{name} cannot be opened: {' '.join(str(error).split())[:300]}") from error
    if report["missing_keys"] or report.get("mismatched_keys"):
        lacking = sorted([*report["missing_keys"], *(str(key) for key in report.get("mismatched_keys", ()))])
        raise CheckpointError(
            f"{name} lacks weights of its architecture ({', '.join(lacking[:3])}, {len(lacking)} in all); "
            "they would be random"
        )
    return loaded.to(device).eval(), tokenizer
