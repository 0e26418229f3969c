"""Rankings that ask a model in rounds, each after the answers to the one before: many of them together.

A ranking is a generator: it yields the prompts of a round, is sent their answers in order, and returns what
it has found. The rounds of many rankings are put together, so a server gets many calls at a time and a
local model full batches, even from rankings that ask for one answer at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

__all__ = ["run_together"]

AnswerT = TypeVar("AnswerT")
PromptT = TypeVar("PromptT")
ResultT = TypeVar("ResultT")


def run_together(
    rankings: Sequence[Generator[list[PromptT], list[AnswerT], ResultT]],
    ask: Callable[[list[PromptT]], list[AnswerT]],
) -> list[ResultT]:
    """Run rankings to their end.

    Args:
        rankings: yield a round's prompts, none of them empty.
        ask: gives one answer for each prompt. What it raises ends all rankings.

    Returns:
        What each returned, in their order.
    """
    results: dict[int, ResultT] = {}
    waiting: dict[int, list[PromptT]] = {}

    def step(number: int, answers: list[AnswerT] | None) -> None:
        ranking: Generator[list[PromptT], Any, ResultT] = rankings[number]
        try:
            waiting[number] = next(ranking) if answers is None else ranking.send(answers)
        except StopIteration as end:
            results[number] = end.value

    try:
        for number in range(len(rankings)):
            step(number, None)
        while waiting:
            asked, waiting = waiting, {}
            answers = ask([prompt for prompts in asked.values() for prompt in prompts])
            start = 0
            for number, prompts in asked.items():
                step(number, answers[start : start + len(prompts)])
                start += len(prompts)
    finally:
        for ranking in rankings:
            ranking.close()
    return [results[number] for number in range(len(rankings))]
