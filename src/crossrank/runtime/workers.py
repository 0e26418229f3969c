"""Threads that make calls, and their results in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

__all__ = ["Workers", "in_order"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Workers:
    """Threads that start when first needed, and anew in a forked process: threads do not cross a fork.

    Args:
        count: of threads.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._of_process = self._start()

    def in_order(self, call: Callable[..., _Result], batches: Iterable[tuple[Any, ...]]) -> Iterator[_Result]:
        """Call a function with each batch's arguments, several at a time, and yield what it gives in order.

        A few batches are taken ahead, so memory does not grow with their number.
        """
        return in_order(lambda each: self.submit(call, *each), batches, ahead=2 * self._count)

    def submit(self, call: Callable[..., _Result], *arguments: Any) -> Future[_Result]:
        """Make a call in one of the threads."""
        process, pool = self._of_process  # read at once: another thread may be starting anew
        if process != os.getpid():
            self._of_process = _, pool = self._start()
        try:
            return pool.submit(call, *arguments)
        except RuntimeError:  # the interpreter is ending: other threads and exit handlers may still ask
            return _done(call, *arguments)

    def _start(self) -> tuple[int, ThreadPoolExecutor]:
        return os.getpid(), ThreadPoolExecutor(self._count, thread_name_prefix="crossrank")


def in_order(
    submit: Callable[[_Item], Future[_Result]], items: Iterable[_Item], *, ahead: int
) -> Iterator[_Result]:
    """Start a call for each item, a few before their turn, and yield what they give in order.

    Args:
        submit: starts the call for an item.
        items: taken as they are needed, so memory does not grow with their number.
        ahead: calls that have been started beyond the one whose result is waited for.
    """
    waiting: deque[Future[_Result]] = deque()
    try:
        for item in items:
            waiting.append(submit(item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _done(call: Callable[..., _Result], *arguments: Any) -> Future[_Result]:
    """Make the call in this thread."""
    future: Future[_Result] = Future()
    try:
        future.set_result(call(*arguments))
    except Exception as error:
        future.set_exception(error)
    return future
