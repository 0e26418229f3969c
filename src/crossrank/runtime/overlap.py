"""Blocks of a long call, one prepared while another runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from typing import TypeVar

from crossrank.runtime.engine import Engine
from crossrank.runtime.workers import in_order

__all__ = ["in_turn"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_turn(engine: Engine, call: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """Make a call with each item, and yield what they give in order.

    An engine that waits for a device says by `callers` how many callers keep it busy: with two, one block is
    tokenised while the other runs. An engine that needs the cores itself says nothing, and gets one.

    Args:
        engine: what the calls run on.
        call: safe to be made from several threads.
        items: taken as they are needed.
    """
    callers = int(getattr(engine, "callers", 1))
    items = iter(items)
    first = list(islice(items, 2))
    items = chain(first, items)
    if callers == 1 or len(first) < 2:  # a short call is not worth a thread
        yield from map(call, items)
        return
    with ThreadPoolExecutor(callers, thread_name_prefix="crossrank-overlap") as pool:
        yield from in_order(lambda item: pool.submit(call, item), items, ahead=callers - 1)
