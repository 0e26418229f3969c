"""Interleaved rounds of several contestants, and the facts of the machine.

Contestants take turns, in another order each round, so that what else happens on the machine meets all of
them; each is paused before, since the threads of the one before may spin for a while. The median says what to
expect, the minimum what the machine can do undisturbed.
"""

from __future__ import annotations

import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

from crossrank.runtime.native import library
from crossrank.runtime.processor import processor

__all__ = ["Measured", "Timing", "histogram", "interleave", "load_average", "machine"]

PAUSE_S = 0.3  # OpenMP threads spin for 0.2 s by default


class Measured(NamedTuple):
    """What one run took, as the process that ran it says."""

    wall_s: float
    cpu_s: float
    peak_mb: float | None = None


@dataclass
class Timing:
    """What one contestant took, a value each round."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    @property
    def median_s(self) -> float:
        """The middle round."""
        return statistics.median(self.wall_s)

    def extend(self, other: Timing) -> None:
        """Add the rounds of another timing."""
        self.wall_s += other.wall_s
        self.cpu_s += other.cpu_s

    def summary(self) -> dict[str, Any]:
        """Median, minimum, CPU seconds, and every round."""
        return {
            "median_s": round(self.median_s, 4),
            "min_s": round(min(self.wall_s), 4),
            "cpu_median_s": round(statistics.median(self.cpu_s), 4),
            "rounds_s": [round(value, 4) for value in self.wall_s],
        }


def interleave(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int,
    say: Callable[[str], None] = lambda _: None,
    pause_s: float = PAUSE_S,
) -> dict[str, Timing]:
    """Time contestants in turns; the caller has warmed them up.

    Args:
        contestants: name -> runs it once. One that runs in another process gives a `Measured`; the others are
            timed here.
        rounds: runs of each.
        say: told what is going on.
        pause_s: before each run.
    """
    timings = {name: Timing() for name in contestants}
    order = list(contestants)
    shuffle = random.Random(0).shuffle
    for number in range(rounds):
        shuffle(order)
        for name in order:
            say(f"round {number + 1} of {rounds}: {name}")
            time.sleep(pause_s)
            wall, cpu = time.perf_counter(), time.process_time()
            found = contestants[name]()
            if not isinstance(found, Measured):
                found = Measured(time.perf_counter() - wall, time.process_time() - cpu)
            timings[name].wall_s.append(found.wall_s)
            timings[name].cpu_s.append(found.cpu_s)
    return timings


def machine(*packages: str) -> dict[str, Any]:
    """The machine, whether int8 layers are the native library's, and the versions of installed packages."""
    return {
        "cpu": processor().name,
        "cpus": os.cpu_count(),
        "flags": list(processor().features or ()),
        "native_library": library() is not None,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: found for name in packages if (found := _version(name))},
    }


def load_average() -> float | None:
    """Processes that wanted to run in the last minute, this one's threads among them."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def histogram(lengths: Sequence[int], width: int) -> dict[str, int]:
    """How many lengths fall into each step of `width`."""
    counts: dict[str, int] = {}
    for start in range(min(lengths) // width * width, max(lengths) + 1, width):
        counts[f"{start}-{start + width - 1}"] = sum(start <= length < start + width for length in lengths)
    return counts


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
