"""Language models behind any server that speaks OpenAI's chat completions."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from crossrank.checks import as_number, check_count
from crossrank.errors import BudgetError, CrossrankError, EndpointError, InputError, require
from crossrank.models.llm.accounting import Ledger, Prices
from crossrank.models.llm.background import Background
from crossrank.models.llm.cleaning import without_control_marks
from crossrank.models.llm.completions import answer_of, choice_logprobs, tokens_used
from crossrank.models.llm.model import Answer, Prompt, Usage, nothing
from crossrank.models.llm.retries import Failure, failure_of, wait_before

__all__ = ["Endpoint"]

KEY_VARIABLE = "OPENAI_API_KEY"
URL_VARIABLE = "OPENAI_BASE_URL"

_TOP_LOGPROBS = 20  # as many as the interface allows
_TOKENS_A_MESSAGE = 8  # marks of a chat around each
_CONNECTING = 0.5  # of an attempt's time

_T = TypeVar("_T")


class Endpoint:
    """A chat model behind an OpenAI-compatible server: a hosted one, vLLM, llama.cpp, Ollama and others.

    Calls run concurrently, on a thread of their own that `close` (or leaving a `with` block) ends. Ctrl-C
    cancels those under way. Failures that may pass (429, 408, 409, 5xx, a dropped connection, a timeout, an
    answer that is none) are tried again, after the time the server asks for or a growing one; the others are
    raised at once. Safe to use from many threads at once; the limit
    of concurrent calls and the budget hold for all of them together.

    Args:
        model: the name the server has for it.
        base_url: such as "http://localhost:8000/v1"; None takes OPENAI_BASE_URL, or OpenAI's own.
        api_key: None takes the variable named by `key_variable`. A server that is not OpenAI's may need none.
        key_variable: environment variable with the key.
        timeout_s: for each attempt, from sending to the last byte; half of it for reaching the server.
        max_retries: attempts after the first.
        backoff_s: wait before the first retry; doubles each time, with up to a quarter more by chance.
        max_wait_s: longest wait before a retry; a server that asks for more is an error.
        concurrency: calls under way at a time.
        context_tokens: the model's context; longer prompts are refused before they are sent. None leaves
            that to the server.
        count_tokens: of a text, for the budget and the context. None estimates a token for every three
            bytes of UTF-8, which is above the count of most English text.
        prices: to count cost with.
        max_total_tokens: budget of tokens read and written, of this object's whole life. A call that could
            go over it is not made.
        max_cost: budget of money, likewise.
        temperature: 0 asks for the likeliest answer; None leaves it out, for models that refuse any.
        token_limit: what the server calls the limit of an answer; OpenAI's reasoning models know
            "max_completion_tokens" alone.
        extra_body: fields added to each request, such as
            {"chat_template_kwargs": {"enable_thinking": False}}.
        name: what people read; default: the model.

    Raises:
        MissingExtraError: the package openai is not installed.
        InputError: an option that cannot be used, or no key for OpenAI's own server.

    Example:
        >>> model = Endpoint("qwen3-8b", base_url="http://localhost:8000/v1", max_total_tokens=1_000_000)
        >>> model.usage.calls
        0
    """

    reads_choices = False  # the likeliest twenty tokens alone

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        key_variable: str = KEY_VARIABLE,
        timeout_s: float = 60.0,
        max_retries: int = 4,
        backoff_s: float = 0.5,
        max_wait_s: float = 60.0,
        concurrency: int = 8,
        context_tokens: int | None = None,
        count_tokens: Callable[[str], int] | None = None,
        prices: Prices | None = None,
        max_total_tokens: int | None = None,
        max_cost: float | None = None,
        temperature: float | None = 0.0,
        token_limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
        extra_body: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> None:
        require("openai", "llm")
        if not isinstance(model, str) or not model:
            raise InputError(f"model must be the name the server has for it, not {model!r}")
        check_count(concurrency, "concurrency")
        if max_retries != 0:
            check_count(max_retries, "max_retries")
        if context_tokens is not None:
            check_count(context_tokens, "context_tokens")
        if token_limit not in ("max_tokens", "max_completion_tokens"):
            raise InputError(f"token_limit is {token_limit!r}; choose max_tokens or max_completion_tokens")
        self.name = name or model
        self._model = model
        self._url = base_url or os.environ.get(URL_VARIABLE) or None
        self._key = api_key or os.environ.get(key_variable) or None
        if self._key is None and self._url is None:
            raise InputError(
                f"OpenAI's server needs a key: set {key_variable}, or give api_key; for another server give "
                f"base_url, or set {URL_VARIABLE}"
            )
        if self._url is not None and not self._url.startswith(("http://", "https://")):
            raise InputError(f"base_url must begin with http:// or https://, not {self._url!r}")
        self._timeout_s = as_number(timeout_s, "timeout_s", 0.001)
        self._max_retries = max_retries
        self._backoff_s = as_number(backoff_s, "backoff_s", 0)
        self._max_wait_s = as_number(max_wait_s, "max_wait_s", 0)
        self._concurrency = concurrency
        self._context_tokens = context_tokens
        self._count_tokens = count_tokens or _estimated_tokens
        self._temperature = None if temperature is None else as_number(temperature, "temperature", 0)
        self._token_limit = token_limit
        self._extra_body = dict(extra_body or {})
        self._ledger = Ledger(prices, max_total_tokens, max_cost)
        self._connections = _Connections(self._key, self._url, concurrency, timeout_s)
        self._background = Background(on_close=self._connections.close)

    @property
    def usage(self) -> Usage:
        """What has been asked for so far."""
        return self._ledger.usage

    def clean(self, text: str) -> str:
        """Return a text in which no mark of a known family of chat models is left whole."""
        return without_control_marks(text)

    def generate(
        self, prompts: Sequence[Prompt], *, max_tokens: int, on_answer: Callable[[], None] = nothing
    ) -> list[Answer]:
        """Answer each prompt; see `LanguageModel.generate`.

        Raises:
            InputError: a prompt too long for `context_tokens`.
            BudgetError: the next call could go over the budget. Those under way are waited for.
            EndpointError: a call that failed for good.
        """
        completions = self._complete(prompts, max_tokens, {}, on_answer)
        return [answer_of(completion) for completion in completions]

    def choose(
        self, prompts: Sequence[Prompt], choices: Sequence[str], *, on_answer: Callable[[], None] = nothing
    ) -> npt.NDArray[np.float64]:
        """Log-probabilities of choices at the first token of the answer; see `LanguageModel.choose`.

        A server shows the likeliest tokens alone, twenty at most. A choice that is not among them, where
        another one is, gets the log-probability of the least likely token shown: it can be no higher.

        Raises:
            InputError: a prompt too long for `context_tokens`.
            BudgetError: as `generate`.
            EndpointError: as `generate`, and a server that gives no log-probabilities.
        """
        asked = {"logprobs": True, "top_logprobs": _TOP_LOGPROBS}
        completions = self._complete(prompts, 1, asked, on_answer)
        rows = [choice_logprobs(completion, choices, self.name) for completion in completions]
        return np.array(rows, dtype=np.float64).reshape(len(prompts), len(choices))

    def close(self) -> None:
        """Close connections and end the thread; the next call opens them again."""
        self._background.close()

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Endpoint({self._model!r}, base_url={self._url!r})"  # never the key

    def _complete(
        self,
        prompts: Sequence[Prompt],
        max_tokens: int,
        options: Mapping[str, Any],
        on_answer: Callable[[], None],
    ) -> list[Any]:
        sizes = [self._tokens(prompt) for prompt in prompts]
        for size in sizes:
            if self._context_tokens is not None and size + max_tokens > self._context_tokens:
                raise InputError(
                    f"a prompt of {size:,} tokens and an answer of {max_tokens:,} do not fit into the "
                    f"{self._context_tokens:,} of {self.name}; show it fewer documents at a time, or fewer "
                    "words of each (max_document_words)"
                )
        if not prompts:
            return []

        answered: deque[None] = deque()  # told to the caller in the caller's thread

        def tell() -> None:
            while answered:
                answered.pop()
                on_answer()

        async def one(prompt: Prompt, size: int) -> Any:
            async with self._connections.turn:
                completion = await self._attempts(prompt, size, max_tokens, options)
            answered.append(None)
            return completion

        async def every() -> list[Any]:
            self._connections.open()
            return await _all_or_none(
                [one(prompt, size) for prompt, size in zip(prompts, sizes, strict=True)]
            )

        return self._background.run(every(), tell)

    async def _attempts(self, prompt: Prompt, size: int, max_tokens: int, options: Mapping[str, Any]) -> Any:
        """Send one prompt until it is answered, or can be no more."""
        attempt = 0
        while True:
            await self._reserve(size, max_tokens)
            outcome = await self._attempt(prompt, (size, max_tokens), options)
            if not isinstance(outcome, Failure):
                return outcome
            wait_s = wait_before(outcome, attempt, self._backoff_s)
            said = self._without_key(outcome.reason)
            if not outcome.passing:
                raise EndpointError(f"{self.name}: {said}") from outcome.error
            if attempt == self._max_retries:
                raise EndpointError(f"{self.name}: {said}, after {attempt + 1} attempts") from outcome.error
            if wait_s > self._max_wait_s:
                raise EndpointError(
                    f"{self.name}: {said}; it asks to wait {wait_s:.0f} s, longer than max_wait_s="
                    f"{self._max_wait_s:g}"
                ) from outcome.error
            await asyncio.sleep(wait_s)
            attempt += 1
            self._ledger.count_retry()

    async def _reserve(self, size: int, max_tokens: int) -> None:
        """Put a call down; wait for those under way if that is too much, since they may take less."""
        while True:
            ended = self._connections.ended
            try:
                return self._ledger.reserve(size, max_tokens)
            except BudgetError:
                if not self._ledger.under_way:
                    raise
            await ended.wait()

    async def _attempt(
        self, prompt: Prompt, reserved: tuple[int, int], options: Mapping[str, Any]
    ) -> Any | Failure:
        """Send one prompt once; its reservation ends here, whatever happens."""
        try:
            return await self._send(prompt, reserved, options)
        finally:
            ended, self._connections.ended = self._connections.ended, asyncio.Event()
            ended.set()

    async def _send(
        self, prompt: Prompt, reserved: tuple[int, int], options: Mapping[str, Any]
    ) -> Any | Failure:
        import openai

        try:
            completion = await asyncio.wait_for(
                self._connections.client.chat.completions.create(
                    model=self._model,
                    messages=[
                        {"role": message.role, "content": message.content} for message in prompt.messages
                    ],
                    extra_body={self._token_limit: reserved[1], **self._extra_body},
                    **({} if self._temperature is None else {"temperature": self._temperature}),
                    **options,
                ),
                self._timeout_s,
            )
        except openai.APIStatusError as error:
            self._ledger.release(*reserved)
            return failure_of(error)
        except (openai.OpenAIError, asyncio.TimeoutError, ValueError, TypeError) as error:
            failure = failure_of(error)
            if failure.unsent:
                self._ledger.release(*reserved)
            else:  # it was sent, perhaps read: nobody says what it took
                self._ledger.settle(reserved, (reserved[0], 0), answered=False, estimated=True)
            return failure
        except BaseException:  # cancelled
            self._ledger.settle(reserved, (reserved[0], 0), answered=False, estimated=True)
            raise
        if not getattr(completion, "choices", None):
            self._ledger.settle(reserved, (reserved[0], 0), answered=False, estimated=True)
            return Failure(f"the answer of the server has no choices: {completion!r:.200}", passing=True)
        used, estimated = tokens_used(completion, reserved[0], self._count_tokens)
        self._ledger.settle(reserved, used, estimated=estimated)
        return completion

    def _tokens(self, prompt: Prompt) -> int:
        return sum(self._count_tokens(message.content) + _TOKENS_A_MESSAGE for message in prompt.messages)

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


class _Connections:
    """The client of one event loop, and the turns of its calls."""

    def __init__(self, key: str | None, url: str | None, concurrency: int, timeout_s: float) -> None:
        self._key, self._url, self._concurrency, self._timeout_s = key, url, concurrency, timeout_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self.client: Any = None
        self.turn: asyncio.Semaphore
        self.ended: asyncio.Event  # set, and another one put here, when a call ends

    def open(self) -> None:
        """Make a client for the running loop, if it has none."""
        import openai

        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self.client = openai.AsyncOpenAI(
                api_key=self._key or "none",  # servers that need none take any
                base_url=self._url,
                max_retries=0,
                # Before the attempt's own time is over, so that a server never reached can be told.
                timeout=openai.Timeout(None, connect=_CONNECTING * self._timeout_s),
            )
            self.turn = asyncio.Semaphore(self._concurrency)
            self.ended = asyncio.Event()
            self._loop = loop

    async def close(self) -> None:
        """Close what is open."""
        client, self.client, self._loop = self.client, None, None
        if client is not None:
            await client.close()


async def _all_or_none(coroutines: Sequence[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Await all; the first failure, or being cancelled, cancels the others and waits for their end."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        failures = [error for task in done if (error := task.exception()) is not None]
        if failures:  # what the project has words for tells more than a bug that came of it
            raise next((error for error in failures if isinstance(error, CrossrankError)), failures[0])
        return [task.result() for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _estimated_tokens(text: str) -> int:
    return -(-len(text.encode("utf-8")) // 3)
