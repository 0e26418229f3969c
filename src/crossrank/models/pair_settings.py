"""How a query and a document become one input of a cross-encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from crossrank.errors import InputError
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.windows import LongDocuments, check_policy

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
        window_tokens: tokens of a window; None takes all that the query leaves.
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
        num_special_tokens: int,
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
            num_special_tokens: of a pair.
            max_length: None takes what the model's configs allow.
            max_query_length: None takes half of `max_length`.
            long_query: see `PairSettings`, as the rest.
            long_documents: one of `LongDocuments`.
            window_tokens: at least 1, or None.
            window_overlap: at least 0 and below 1.
            top_windows: at least 1.
            prompt: None takes the model's own default prompt; "" is none.

        Raises:
            InputError: names the setting that does not fit.
        """
        check_policy(long_documents)
        if long_query not in ("error", "truncate"):
            raise InputError(f"long_query is {long_query!r}; choose 'error' or 'truncate'")
        limit = checkpoint.max_positions
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
        for name, value in (("window_tokens", window_tokens), ("top_windows", top_windows)):
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1")
        if not 0 <= window_overlap < 1:
            raise InputError(f"window_overlap is {window_overlap}; it must be at least 0 and below 1")
        if prompt is None:
            prompt = checkpoint.prompts.get(checkpoint.default_prompt_name or "", "")
        return cls(
            max_length=max_length,
            max_query_length=max_query_length,
            long_query=long_query,
            long_documents=long_documents,
            window_tokens=window_tokens,
            window_overlap=window_overlap,
            top_windows=top_windows,
            prompt=prompt,
        )
