"""An event loop in a thread of its own: calls that wait for a network, made from any thread.

The caller's thread only waits, so Ctrl-C reaches it at once, and what it waited for is cancelled in the
middle of its call.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import wait
from typing import Any, TypeVar

__all__ = ["Background"]

_T = TypeVar("_T")

_POLL_S = 0.2  # a wait without an end cannot be interrupted on Windows
_GOODBYE_S = 5.0  # for calls to end that were cancelled


class Background:
    """Runs coroutines for threads that wait for them.

    The thread starts with the first call and ends with `close`, or when this object is forgotten. A forked
    process gets a thread of its own.

    Args:
        on_close: a coroutine function that is run last; None for nothing.
    """

    def __init__(self, on_close: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
        self._on_close = on_close
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = 0
        self._finalizer: weakref.finalize[..., Background] | None = None

    def run(self, coroutine: Coroutine[Any, Any, _T], meanwhile: Callable[[], None]) -> _T:
        """Run a coroutine and return its result.

        Args:
            coroutine: what to run. What interrupts the wait cancels it, and its end is waited for.
            meanwhile: called in this thread now and then, and at the end.
        """
        ended = threading.Event()

        async def watched() -> _T:
            try:
                return await coroutine
            finally:
                ended.set()

        future = asyncio.run_coroutine_threadsafe(watched(), self._running_loop())
        try:
            while not wait([future], timeout=_POLL_S).done:
                meanwhile()
            meanwhile()
        except BaseException:
            future.cancel()
            ended.wait(_GOODBYE_S)
            raise
        return future.result()

    def close(self) -> None:
        """End the thread; the next call starts another."""
        with self._lock:
            if self._finalizer is not None:
                self._finalizer()
            self._loop = self._finalizer = None

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None or self._process != os.getpid():
                loop = asyncio.new_event_loop()
                thread = threading.Thread(
                    target=_run_forever, args=(loop, self._on_close), name="crossrank-llm", daemon=True
                )
                thread.start()
                self._loop, self._process = loop, os.getpid()
                self._finalizer = weakref.finalize(self, _end, loop, thread, os.getpid())
            return self._loop


def _run_forever(
    loop: asyncio.AbstractEventLoop, on_close: Callable[[], Coroutine[Any, Any, None]] | None
) -> None:
    try:
        loop.run_forever()
        loop.run_until_complete(_wind_up(on_close))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()


async def _wind_up(on_close: Callable[[], Coroutine[Any, Any, None]] | None) -> None:
    pending = asyncio.all_tasks() - {asyncio.current_task()}
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    if on_close is not None:
        with contextlib.suppress(Exception):  # what cannot be closed is dropped
            await on_close()


def _end(loop: asyncio.AbstractEventLoop, thread: threading.Thread, process: int) -> None:
    if process == os.getpid() and not loop.is_closed():
        loop.call_soon_threadsafe(loop.stop)
        if thread is not threading.current_thread():
            thread.join(_GOODBYE_S)
