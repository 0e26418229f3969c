"""Which failures of a server may pass, and how long to wait for that."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

__all__ = ["Failure", "failure_of", "wait_before"]

_PASSING_STATUS = {408, 409, 425, 429}
_NOT_CONNECTED = (
    "ConnectError",
    "ConnectTimeout",
)  # of httpx, or of httpx2: that depends on openai's version


@dataclass(frozen=True)
class Failure:
    """An attempt without an answer.

    Attributes:
        reason: for the message.
        passing: whether another attempt may do better.
        unsent: whether the server has surely not read the prompt.
        retry_after_s: what the server asks for; None where it does not.
        error: what was raised.
    """

    reason: str
    passing: bool
    retry_after_s: float | None = None
    error: BaseException | None = None
    unsent: bool = False


def failure_of(error: BaseException) -> Failure:
    """Say what an error of the client means."""
    import openai

    cause = error.__cause__
    detail = f": {cause}" if cause is not None and str(cause) else ""
    # Without a connection nothing was sent; one that broke may have carried the prompt.
    if type(cause).__name__ in _NOT_CONNECTED:
        return Failure(f"the server cannot be reached{detail}", passing=True, error=error, unsent=True)
    if isinstance(error, (openai.APITimeoutError, asyncio.TimeoutError)):
        return Failure("no answer within the timeout", passing=True, error=error)
    if isinstance(error, openai.APIConnectionError):
        return Failure(f"the server hung up{detail}", passing=True, error=error)
    if isinstance(error, openai.APIStatusError):
        status = error.status_code
        said = " ".join(str(error.message).split())[:500]
        passing = status in _PASSING_STATUS or status >= 500
        if error.code == "insufficient_quota":  # 429 as well, but no waiting helps
            passing = False
        return Failure(
            f"the server answered with status {status}: {said}",
            passing,
            _retry_after_s(error.response.headers),
            error,
        )
    said = " ".join(str(error).split())[:200]
    return Failure(f"the answer of the server cannot be read: {said}", passing=True, error=error)


def wait_before(failure: Failure, attempt: int, backoff_s: float) -> float:
    """Seconds to wait after an attempt, counted from 0: what the server asks for, or longer each time."""
    if failure.retry_after_s is not None:
        return failure.retry_after_s
    # Calls that failed together should not come back together; no result depends on this.
    return backoff_s * float(2**attempt) * (1 + random.random() / 4)


def _retry_after_s(headers: Any) -> float | None:
    for name, unit_s in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        text = headers.get(name)
        if text is None:
            continue
        try:
            return max(0.0, float(text) * unit_s)
        except ValueError:
            pass
        try:
            return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
        except (TypeError, ValueError):
            pass
    return None
