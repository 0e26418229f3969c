"""One progress bar for long calls.

It goes to standard error, only when that is a terminal, only after a second, and disappears when done: short
calls and scripts never see it.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["Track", "track"]

_DELAY_S = 1.0
_screen = threading.Lock()  # a terminal has room for one live display


class Track:
    """How far a call is; made with `track`.

    Args:
        total: how many items there are; None where nobody knows: the bar then only counts.
        description: what is being done: "Scoring".
        shown: whether a bar may appear at all.
        delay_s: seconds before it does.
    """

    def __init__(self, total: int | None, description: str, *, shown: bool, delay_s: float) -> None:
        self.done = 0
        self.total = total
        self._description = description
        self._shown = shown
        self._start = time.monotonic() + delay_s
        self._bar: Progress | None = None
        self._lock = threading.Lock()

    def advance(self, count: int = 1) -> None:
        """Say that `count` more items are done; from any thread."""
        with self._lock:
            self.done += count
            if not self._shown:
                return
            unfinished = self.total is None or self.done < self.total
            if self._bar is None and time.monotonic() >= self._start and unfinished:
                self._open()
            if self._bar is not None:
                self._bar.update(self._bar.task_ids[0], completed=self.done)

    def _open(self) -> None:
        if not _screen.acquire(blocking=False):
            self._shown = False  # another thread's bar is up
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._bar.add_task(self._description, total=self.total, completed=self.done)
        self._bar.start()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
            _screen.release()


@contextmanager
def track(total: int | None, description: str, *, progress: bool | None = None) -> Iterator[Track]:
    """Follow a call of `total` items.

    Args:
        total: how many items there are; None where nobody knows: the bar then only counts.
        description: what is being done.
        progress: True shows a bar at once wherever standard error goes, False never, None (automatic) on a
            terminal after a second.
    """
    shown = sys.stderr.isatty() if progress is None else progress
    tracked = Track(total, description, shown=shown, delay_s=0.0 if progress else _DELAY_S)
    try:
        yield tracked
    finally:
        tracked.close()
