"""What a language model is to the rerankers: prompts in, answers or log-probabilities out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Answer", "LanguageModel", "Message", "Prompt", "Usage", "nothing"]

Ended = Literal["stop", "length", "refused"]


class Message(NamedTuple):
    """One turn of a chat; `role` is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is asked.

    Attributes:
        messages: the chat so far, the user's turn last.
        answer_start: what the answer begins with, for models that let it be said for them; others ignore it.
    """

    messages: tuple[Message, ...]
    answer_start: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model wrote.

    Attributes:
        text: may be empty.
        ended: "stop" by itself, "length" cut off at the limit of tokens, "refused" by a filter or the model.
    """

    text: str
    ended: Ended = "stop"


@dataclass(frozen=True, slots=True)
class Usage:
    """What a model has been asked for since it was opened.

    Attributes:
        calls: prompts that were sent and answered.
        retries: attempts beyond the first.
        prompt_tokens: tokens read.
        completion_tokens: tokens written.
        cost: in the currency of the prices, None where no prices were given.
        estimated: calls whose tokens are an estimate, since the endpoint did not count them, or the call was
            cut off after it was sent.
    """

    calls: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None
    estimated: int = 0

    @property
    def tokens(self) -> int:
        """Tokens read and written."""
        return self.prompt_tokens + self.completion_tokens

    def __str__(self) -> str:
        text = f"{self.calls:,} calls, {self.prompt_tokens:,} tokens read, {self.completion_tokens:,} written"
        if self.estimated:
            text += f" ({self.estimated:,} calls estimated)"
        if self.retries:
            text += f", {self.retries:,} retries"
        return text if self.cost is None else f"{text}, cost {self.cost:.4g}"


def nothing() -> None:
    """Do nothing; what to call after each answer where nobody counts."""


class LanguageModel(Protocol):
    """A model that answers prompts: `Endpoint`, `CausalLM`, or one of your own.

    Safe to use from many threads at once. No answer depends on the prompts beside it.
    """

    @property
    def name(self) -> str:
        """What people read."""
        ...

    @property
    def reads_choices(self) -> bool:
        """Whether `choose` gives every choice its exact log-probability."""
        ...

    @property
    def usage(self) -> Usage:
        """What has been asked for so far."""
        ...

    def clean(self, text: str) -> str:
        """Return a query or document with nothing in it that the model takes for a control token."""
        ...

    def generate(
        self, prompts: Sequence[Prompt], *, max_tokens: int, on_answer: Callable[[], None] = nothing
    ) -> list[Answer]:
        """Answer each prompt, by the likeliest token each time.

        Args:
            prompts: any number.
            max_tokens: most tokens of an answer.
            on_answer: called after each answer.

        Raises:
            InputError: a prompt that, with its answer, is longer than the model's context; before any call.
        """
        ...

    def choose(
        self, prompts: Sequence[Prompt], choices: Sequence[str], *, on_answer: Callable[[], None] = nothing
    ) -> npt.NDArray[np.float64]:
        """Log-probabilities of a few short answers, read at the answer's first token.

        Args:
            prompts: any number.
            choices: words such as "yes" and "no"; in any case, and with or without a space before.
            on_answer: called after each answer.

        Returns:
            float64 (prompts, choices); a row of NaN where the model gave none of them.

        Raises:
            InputError: as `generate`; choices that the model cannot tell apart by their first token.
        """
        ...
