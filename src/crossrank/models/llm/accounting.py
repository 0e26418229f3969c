"""Tokens and money: what was spent, what a call may cost, and the line that no call may cross."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

from crossrank.checks import as_number, check_count
from crossrank.errors import BudgetError, InputError
from crossrank.models.llm.model import Usage

__all__ = ["Ledger", "Prices"]


@dataclass(frozen=True)
class Prices:
    """What a provider asks for a million tokens, in any one currency.

    Args:
        prompt: for tokens read.
        completion: for tokens written.
    """

    prompt: float
    completion: float

    def __post_init__(self) -> None:
        as_number(self.prompt, "the price of prompt tokens", 0)
        as_number(self.completion, "the price of completion tokens", 0)

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """What so many tokens cost."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


class Ledger:
    """Counts what calls use, and refuses one that could go over the budget. Safe to use from many threads.

    A call is put down at its largest before it is sent (`reserve`), and at what it took afterwards
    (`settle`), so calls that are under way together cannot go over the budget together.

    Args:
        prices: None counts tokens alone.
        max_tokens: budget of tokens, read and written; None has no limit.
        max_cost: budget in the currency of the prices; None has no limit.

    Raises:
        InputError: a budget below 1 token or 0, or one of money without prices.
    """

    def __init__(self, prices: Prices | None, max_tokens: int | None, max_cost: float | None) -> None:
        if max_tokens is not None:
            check_count(max_tokens, "max_total_tokens")
        if max_cost is not None:
            as_number(max_cost, "max_cost", 0)
            if prices is None:
                raise InputError("max_cost needs prices to count with: prices=Prices(prompt, completion)")
        self._prices = prices
        self._max_tokens = max_tokens
        self._max_cost = max_cost
        self._lock = threading.Lock()
        self._spent = Usage(cost=None if prices is None else 0.0)
        self._reserved = [0, 0]  # tokens to be read and written by calls that are under way

    @property
    def usage(self) -> Usage:
        """What has been used so far."""
        return self._spent

    @property
    def under_way(self) -> bool:
        """Whether there are reservations: they may turn out smaller."""
        return any(self._reserved)

    def reserve(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Put a call down at its largest.

        Raises:
            BudgetError: it could go over the budget; nothing is put down.
        """
        with self._lock:
            read = self._spent.prompt_tokens + self._reserved[0] + prompt_tokens
            written = self._spent.completion_tokens + self._reserved[1] + completion_tokens
            if self._max_tokens is not None and read + written > self._max_tokens:
                raise self._refusal(
                    f"{self._max_tokens:,} tokens", f"{prompt_tokens + completion_tokens:,} tokens"
                )
            if self._max_cost is not None and self._prices is not None:
                cost = self._prices.cost(prompt_tokens, completion_tokens)
                if self._prices.cost(read, written) > self._max_cost:
                    raise self._refusal(f"{self._max_cost:g}", f"{cost:.4g}")
            self._reserved[0] += prompt_tokens
            self._reserved[1] += completion_tokens

    def release(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Take back a reservation whose call used nothing."""
        with self._lock:
            self._reserved[0] -= prompt_tokens
            self._reserved[1] -= completion_tokens

    def settle(
        self, reserved: tuple[int, int], used: tuple[int, int], *, answered: bool = True, estimated: bool
    ) -> None:
        """Put down what a call took in place of its reservation."""
        self.release(*reserved)
        with self._lock:
            spent = self._spent
            read, written = spent.prompt_tokens + used[0], spent.completion_tokens + used[1]
            self._spent = replace(
                spent,
                calls=spent.calls + answered,
                prompt_tokens=read,
                completion_tokens=written,
                cost=None if self._prices is None else self._prices.cost(read, written),
                estimated=spent.estimated + estimated,
            )

    def count_retry(self) -> None:
        """Put down one more attempt."""
        with self._lock:
            self._spent = replace(self._spent, retries=self._spent.retries + 1)

    def _refusal(self, budget: str, next_call: str) -> BudgetError:
        return BudgetError(
            f"the budget of {budget} is used up: the next call could take {next_call}; done so far: "
            f"{self._spent}. Raise the budget, or rank fewer documents",
            self._spent,
        )
