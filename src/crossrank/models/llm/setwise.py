"""Setwise reranking: the model picks the best of a few passages, and a sort is made of such choices."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Literal, get_args

from crossrank.checks import check_count
from crossrank.errors import InputError
from crossrank.models.llm.answers import Choice, Repairs, read_choice
from crossrank.models.llm.model import LanguageModel, Prompt
from crossrank.models.llm.prompts import LABELS, setwise_prompt
from crossrank.models.llm.reranker import (
    DEFAULT_DOCUMENT_WORDS,
    Ordered,
    RoundsReranker,
    Scoring,
    reads_labels,
)

__all__ = ["SetwiseLLM", "Sort"]

Sort = Literal["heap", "bubble"]

_LABEL_TOKENS = 8  # "Passage A." and what a model puts around it


class SetwiseLLM(RoundsReranker):
    """Sorts by choices of the best of a few passages: a heap with more than two children, or bubbles.

    The first `top` places are settled; the other documents follow in the order they came in. A set of
    passages in the same order is asked about once. Where an answer names none of them, the one that came in
    first wins, so a model that never answers changes nothing.

    Args:
        model: an `Endpoint` or a `CausalLM`.
        sort: "heap" takes the fewest calls; "bubble" brings the best up in each of `top` passes, and gains
            from a good first stage.
        set_size: passages shown at a time, 2 to 20.
        top: places to settle.
        scoring: "generation" reads what the model writes, "log-probabilities" takes the likeliest label;
            "auto" is the latter where the model gives them (a `CausalLM`).
        max_document_words: words of a document that are shown.
        max_answer_tokens: of a generated answer. A model that thinks first needs more.
        max_calls: refuses a ranking that can take more calls.
        name: stage of the hits; default: "setwise:" and the model's.
        progress: a progress bar for long calls; None shows one on a terminal.

    Raises:
        InputError: an option that cannot be used.

    Source: Zhuang et al. 2024, arXiv:2310.09497.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        sort: Sort = "heap",
        set_size: int = 4,
        top: int = 10,
        scoring: Scoring = "auto",
        max_document_words: int = DEFAULT_DOCUMENT_WORDS,
        max_answer_tokens: int = _LABEL_TOKENS,
        max_calls: int | None = None,
        name: str | None = None,
        progress: bool | None = None,
    ) -> None:
        super().__init__(
            model,
            name=name or f"setwise:{model.name}",
            max_document_words=max_document_words,
            max_calls=max_calls,
            progress=progress,
        )
        check_count(set_size, "set_size")
        check_count(top, "top")
        check_count(max_answer_tokens, "max_answer_tokens")
        if not 2 <= set_size <= len(LABELS):
            raise InputError(f"set_size is {set_size}; it must be from 2 to {len(LABELS)}, one label each")
        if sort not in get_args(Sort):
            raise InputError(f"sort is {sort!r}; choose one of {', '.join(get_args(Sort))}")
        self.sort, self.set_size, self.top = sort, set_size, top
        self._max_tokens = max_answer_tokens
        self._reads_labels = reads_labels(scoring, model)

    def calls(self, count: int) -> int:
        """The most model calls a ranking of `count` documents can take; often fewer."""
        if count < 2:
            return 0
        if self.sort == "bubble":
            passes = min(self.top, count - 1)
            return sum(-(-(count - 1 - done) // (self.set_size - 1)) for done in range(passes))
        building = sum(self._levels_below(place, count) for place in range(count))
        taking = sum(self._levels_below(0, count - taken) for taken in range(1, min(self.top, count)))
        return building + taking

    def _levels_below(self, place: int, size: int) -> int:
        levels = 0
        while (place := (self.set_size - 1) * place + 1) < size:
            levels += 1
        return levels

    def _rounds(self, query: str, texts: list[str]) -> Generator[list[Prompt], list[Any], Ordered]:
        judge = _Judge(query, texts, self._read)
        sort = self._bubbles if self.sort == "bubble" else self._heap
        top = yield from sort(len(texts), judge)
        chosen = set(top)
        rest = [index for index in range(len(texts)) if index not in chosen]
        return Ordered.by_rank([*top, *rest], judge.repairs)

    def _heap(self, count: int, judge: _Judge) -> Generator[list[Prompt], list[Any], list[int]]:
        heap = list(range(count))
        for place in range(count - 1, -1, -1):
            yield from self._sift_down(heap, place, judge)
        top: list[int] = []
        while heap and len(top) < self.top:
            top.append(heap[0])
            last = heap.pop()
            if heap and len(top) < self.top:
                heap[0] = last
                yield from self._sift_down(heap, 0, judge)
        return top

    def _sift_down(
        self, heap: list[int], place: int, judge: _Judge
    ) -> Generator[list[Prompt], list[Any], None]:
        children = self.set_size - 1
        while (first := children * place + 1) < len(heap):
            places = [place, *range(first, min(first + children, len(heap)))]
            best = places[(yield from judge.best([heap[each] for each in places]))]
            if best == place:
                return
            heap[place], heap[best] = heap[best], heap[place]
            place = best

    def _bubbles(self, count: int, judge: _Judge) -> Generator[list[Prompt], list[Any], list[int]]:
        order = list(range(count))
        passes = min(self.top, count)
        for done in range(passes):
            end = count
            while end - done > 1:
                start = max(done, end - self.set_size)
                best = yield from judge.best(order[start:end])
                order.insert(start, order.pop(start + best))  # the others keep their order
                end = start + 1
        return order[:passes]

    def _ask(self, prompts: list[Prompt], on_answer: Callable[[], None]) -> list[Any]:
        if self._reads_labels:
            return list(self.model.choose(prompts, LABELS[: self.set_size], on_answer=on_answer))
        return list(self.model.generate(prompts, max_tokens=self._max_tokens, on_answer=on_answer))

    def _read(self, answer: Any, count: int) -> Choice:
        if self._reads_labels:
            return Choice(int(answer[:count].argmax()), Repairs(answers=1))
        return read_choice(answer, count)


class _Judge:
    """Says which of some documents is the best, and asks about no set twice."""

    def __init__(self, query: str, texts: list[str], read: Callable[[Any, int], Choice]) -> None:
        self._query, self._texts, self._read = query, texts, read
        self._known: dict[tuple[int, ...], int] = {}
        self.repairs = Repairs()

    def best(self, indexes: list[int]) -> Generator[list[Prompt], list[Any], int]:
        """Return the place of the best among the documents of these indexes."""
        key = tuple(indexes)
        if key not in self._known:
            (answer,) = yield [setwise_prompt(self._query, [self._texts[index] for index in indexes])]
            choice = self._read(answer, len(indexes))
            self.repairs += choice.repairs
            first = indexes.index(min(indexes))
            self._known[key] = first if choice.index is None else choice.index
        return self._known[key]
