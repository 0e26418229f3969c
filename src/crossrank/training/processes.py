"""Several processes that train one model: what the first one does alone, and what all learn of it.

A launcher (`accelerate launch`, `torch.distributed.run`) starts the same command several times. Files are
read and written by the first process; the others are told what came of it, or that it stopped.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from crossrank.errors import CrossrankError, TrainingStoppedError

__all__ = ["by_first", "processes", "uses_cpu"]

_T = TypeVar("_T")

_TIMEOUT = timedelta(days=1)
"""The others wait while the first process measures; a process that died is found by the launcher."""


def uses_cpu() -> bool:
    """Return whether training runs on the CPU: without an accelerator, or where the launcher says so."""
    wanted = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on")
    return wanted or not torch.accelerator.is_available()


def processes() -> Any:
    """Return accelerate's state of the processes: how many there are, and which this is.

    Without `cpu`, processes on CPUs would not find one another: each would take itself for the only one.
    """
    return PartialState(cpu=uses_cpu(), timeout=_TIMEOUT)


def by_first(work: Callable[[], _T]) -> _T:
    """Run something in the first process alone, and return in all of them what it gives.

    Args:
        work: gives something that can be pickled.

    Raises:
        TrainingStoppedError: in the other processes, where the first one failed with an error of crossrank.
    """
    state = processes()
    if state.num_processes == 1:
        return work()
    found: list[Any] = [None, None]
    if state.is_main_process:
        try:
            found[0] = work()
        except CrossrankError as error:
            broadcast_object_list([None, str(error)])
            raise
    result, stopped = broadcast_object_list(found)
    if stopped is not None:
        raise TrainingStoppedError(f"the first process stopped: {stopped}")
    return result  # type: ignore[no-any-return]
