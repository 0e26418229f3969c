"""Blocks of a long call, several at a time where an engine says so."""

from __future__ import annotations

import itertools
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from crossrank.runtime.overlap import in_turn

ALONE: Any = SimpleNamespace()
TWO: Any = SimpleNamespace(callers=2)


@pytest.mark.parametrize("engine", [ALONE, TWO])
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_results_come_in_the_order_of_the_items(engine: Any, count: int) -> None:
    assert list(in_turn(engine, lambda item: item * item, range(count))) == [i * i for i in range(count)]


def test_two_callers_run_at_a_time_and_no_more() -> None:
    meeting = threading.Barrier(2, timeout=20)
    running, most = 0, 0
    lock = threading.Lock()

    def call(item: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        meeting.wait()  # passed only where another call runs, too
        with lock:
            running -= 1
        return item

    assert list(in_turn(TWO, call, range(6))) == list(range(6))
    assert most == 2


@pytest.mark.parametrize("items", [range(1), range(9)])
def test_a_short_call_and_an_engine_that_says_nothing_start_no_thread(items: range) -> None:
    engine = TWO if len(items) == 1 else ALONE
    assert set(in_turn(engine, lambda _: threading.get_ident(), items)) == {threading.get_ident()}


@pytest.mark.parametrize("engine", [ALONE, TWO])
def test_items_are_taken_as_they_are_needed_and_errors_come_in_turn(engine: Any) -> None:
    taken = itertools.count()

    def call(item: int) -> int:
        if item == 3:
            raise ValueError("of the fourth")
        return item

    found = in_turn(engine, call, (next(taken) for _ in itertools.repeat(None)))
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="of the fourth"):
        next(found)
    assert next(taken) <= 6
