"""What a server's answer says; servers leave out much of what the interface has."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from crossrank.errors import EndpointError
from crossrank.models.llm.model import Answer

__all__ = ["answer_of", "choice_logprobs", "tokens_used"]

_LEAST_LOGPROB = -50.0  # servers write -9999 and the like for what is out of sight


def answer_of(completion: Any) -> Answer:
    """Return what was answered, and how the answer ended."""
    choice = completion.choices[0]
    message = getattr(choice, "message", None)
    text = getattr(message, "content", None)
    refusal = getattr(message, "refusal", None)
    finish = getattr(choice, "finish_reason", None)
    written = text if isinstance(text, str) else ""
    if finish == "content_filter" or (refusal and not written):
        return Answer(written, "refused")
    return Answer(written, "length" if finish == "length" else "stop")


def tokens_used(
    completion: Any, estimate: int, count_tokens: Callable[[str], int]
) -> tuple[tuple[int, int], bool]:
    """Return the tokens read and written, and whether that is an estimate.

    Args:
        completion: of the server, which may not count.
        estimate: of the tokens read.
        count_tokens: of the answer.
    """
    usage = getattr(completion, "usage", None)
    read, written = getattr(usage, "prompt_tokens", None), getattr(usage, "completion_tokens", None)
    if isinstance(read, int) and isinstance(written, int) and read >= 0 and written >= 0:
        return (read, written), False
    return (estimate, count_tokens(answer_of(completion).text)), True


def choice_logprobs(completion: Any, choices: Sequence[str], name: str) -> list[float]:
    """Return the log-probability of each choice as the answer's first token.

    A choice that is not among the tokens shown, where another one is, gets that of the least likely of them;
    where none is, or there is no answer, all are NaN.

    Args:
        completion: of the server.
        choices: words, in any case and with or without a space before.
        name: of the model, for messages.

    Raises:
        EndpointError: there is an answer without log-probabilities.
    """
    logprobs = getattr(completion.choices[0], "logprobs", None)
    content = getattr(logprobs, "content", None)
    if logprobs is None or (not content and answer_of(completion).text):
        raise EndpointError(
            f"{name} gives no log-probabilities of its tokens (logprobs), and a pointwise score is read from "
            "them; use a server that does, or rank listwise, setwise or pairwise"
        )
    if not content:
        return [math.nan] * len(choices)  # no answer, no token
    try:
        first = content[0]
        shown = {str(each.token): _logprob(each) for each in [first, *(first.top_logprobs or [])]}
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise EndpointError(f"{name} gives log-probabilities that cannot be read: {error}") from error
    row = []
    for choice in choices:
        forms = [value for token, value in shown.items() if _same_word(token, choice)]
        row.append(float(np.logaddexp.reduce(forms)) if forms else math.nan)
    if all(map(math.isnan, row)):
        return row
    least = min(shown.values())
    return [least if math.isnan(value) else value for value in row]


def _logprob(token: Any) -> float:
    value = float(token.logprob)
    if math.isnan(value):
        raise ValueError(f"token {token.token!r} has NaN")
    return max(value, _LEAST_LOGPROB)


def _same_word(token: str, choice: str) -> bool:
    """Whether a token is a choice, in any case and with the marks of a space before it."""
    return token.strip().lstrip("▁Ġ").casefold() == choice.casefold()
