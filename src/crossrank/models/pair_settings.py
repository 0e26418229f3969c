"""How a query and a document become one input of a cross-encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from crossrank.checks import as_number, check_count, check_text
from crossrank.errors import InputError
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.tokenization import Tokenizer
from crossrank.runtime.windows import DEFAULT_OVERLAP, MEAN_TOP_K, LongDocuments, check_policy

__all__ = ["LongQuery", "PairSettings"]

LongQuery = Literal["error", "truncate"]


@dataclass(frozen=True, slots=True)
class PairSettings:
    """Everything besides the model that decides a pair's score; made with `for_model`.

    Attributes:
        max_length: tokens of a pair, special tokens included.
        max_query_length: tokens of a query, its prompt included.
        long_query: what happens to a longer one: an error, or its end is cut.
        long_documents: what happens to a document longer than what the query leaves of `max_length`.
        window_tokens: most tokens of a window; None takes all that the query leaves.
        window_overlap: part of a window that the next one repeats.
        top_windows: how many windows "mean_top_k" takes.
        prompt: put before every query.
    """

    max_length: int
    max_query_length: int
    long_query: LongQuery
    long_documents: LongDocuments
    window_tokens: int | None
    window_overlap: float
    top_windows: int
    prompt: str

    @classmethod
    def for_model(
        cls,
        checkpoint: Checkpoint,
        tokenizer: Tokenizer,
        *,
        max_length: int | None,
        max_query_length: int | None,
        long_query: LongQuery,
        long_documents: LongDocuments,
        window_tokens: int | None,
        window_overlap: float,
        top_windows: int,
        prompt: str | None,
    ) -> PairSettings:
        """Fill in a model's defaults, and check that pairs fit it.

        Args:
            checkpoint: the model.
            tokenizer: the model's.
            max_length: None takes what the model's configs allow.
            max_query_length: None takes half of `max_length`.
            long_query: see `PairSettings`, as the rest.
            long_documents: one of `LongDocuments`.
            window_tokens: at least 1, or None; only where `long_documents` makes windows, and no more than a
                document can have.
            window_overlap: at least 0 and below 1; another than the default only for "max" and "mean_top_k".
            top_windows: at least 1; another than the default only for "mean_top_k".
            prompt: None takes the model's own default prompt; "" is none.

        Raises:
            InputError: names the setting that does not fit, or would have no effect.
        """
        check_policy(long_documents)
        if long_query not in ("error", "truncate"):
            raise InputError(f"long_query is {long_query!r}; choose 'error' or 'truncate'")
        for name, value in (
            ("max_length", max_length),
            ("max_query_length", max_query_length),
            ("window_tokens", window_tokens),
        ):
            if value is not None:
                check_count(value, name)
        check_count(top_windows, "top_windows")
        limit, num_special_tokens = checkpoint.max_positions, tokenizer.num_special_tokens
        if max_length is None:
            max_length = checkpoint.max_length
        if limit is not None and max_length > limit:
            raise InputError(
                f"max_length is {max_length}, but the model has positions for {limit} tokens only"
            )
        room = max_length - num_special_tokens
        if room < 2:
            raise InputError(
                f"max_length is {max_length}; {num_special_tokens} special tokens, a query and a document "
                f"need at least {num_special_tokens + 2}"
            )
        if max_query_length is None:
            max_query_length = min(max_length // 2, room - 1)
        if not 1 <= max_query_length < room:
            raise InputError(
                f"max_query_length is {max_query_length}; with max_length {max_length} it must be from 1 to "
                f"{room - 1}, so that a document has at least one token"
            )
        window_overlap = as_number(window_overlap, "window_overlap", 0)
        if window_overlap >= 1:
            raise InputError(f"window_overlap is {window_overlap}; it must be at least 0 and below 1")
        for name, unused in (
            ("window_tokens", window_tokens is not None and long_documents == "truncate"),
            ("window_overlap", window_overlap != DEFAULT_OVERLAP and long_documents in ("truncate", "first")),
            ("top_windows", top_windows != MEAN_TOP_K and long_documents != "mean_top_k"),
        ):
            if unused:
                raise InputError(
                    f"{name} has no effect with long_documents={long_documents!r}; leave it out, or choose "
                    "another way to read long documents"
                )
        if window_tokens is not None and window_tokens >= room:
            raise InputError(
                f"window_tokens is {window_tokens}; with max_length {max_length} a document has at most "
                f"{room - 1} tokens of a pair"
            )
        if prompt is None:
            prompt = checkpoint.prompts.get(checkpoint.default_prompt_name or "", "")
        check_text(prompt, "prompt")
        num_prompt_tokens = len(tokenizer.encode([prompt])[0].ids)
        if num_prompt_tokens >= max_query_length:
            raise InputError(
                f"the prompt has {num_prompt_tokens} tokens, which leaves no room for a query within "
                f"max_query_length={max_query_length}; raise max_query_length or pass a shorter prompt"
            )
        return cls(
            max_length=int(max_length),  # NumPy's numbers have no form in JSON, which the fingerprint needs
            max_query_length=int(max_query_length),
            long_query=long_query,
            long_documents=long_documents,
            window_tokens=None if window_tokens is None else int(window_tokens),
            window_overlap=window_overlap,
            top_windows=int(top_windows),
            prompt=prompt,
        )
