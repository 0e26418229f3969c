"""Listwise reranking: the model is shown many passages and writes their order."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from hashlib import blake2b

from crossrank.checks import check_count
from crossrank.errors import InputError
from crossrank.models.llm.answers import Permutation, Repairs, read_permutation
from crossrank.models.llm.consistency import central_order
from crossrank.models.llm.model import Answer, LanguageModel, Prompt
from crossrank.models.llm.prompts import ListwisePrompt, listwise_prompt
from crossrank.models.llm.reranker import DEFAULT_DOCUMENT_WORDS, Ordered, RoundsReranker

__all__ = ["ListwiseLLM"]


class ListwiseLLM(RoundsReranker):
    """Orders a window of passages by one answer, and slides the window from the last to the first.

    A window's best passages go along with it to the next one, so those that come out on top have been
    compared with all. Of what the model writes, identifiers of the window alone count; see
    `answers.read_permutation`.

    **Permutation self-consistency** (`permutations` above 1): each window is asked about so many times, its
    passages shuffled by the seed each time, and the order closest to all answers is taken: from the Borda
    order by single moves, until none brings it closer in Kendall's distance (a local optimum of Kemeny's
    rule). It takes out most of a model's liking for a place in the prompt, for as many times the calls.

    Args:
        model: an `Endpoint` or a `CausalLM`.
        window: passages shown at a time, 2 to 100.
        step: by how many the window moves; at most `window`, and less for passages to meet.
        passes: how often to go through the list.
        prompt: "rank-gpt" (Sun et al. 2023), or "rank-zephyr", as RankZephyr and its kin were trained.
        permutations: answers to each window.
        seed: of the shuffles.
        max_document_words: words of a document that are shown.
        max_answer_tokens: default: what all identifiers take, and some more. A model that thinks first needs
            more.
        max_calls: refuses a ranking that can take more calls.
        name: stage of the hits; default: "listwise:" and the model's.
        progress: a progress bar for long calls; None shows one on a terminal.

    Raises:
        InputError: an option that cannot be used.

    Source: RankGPT, Sun et al. 2023, arXiv:2304.09542; permutation self-consistency, Tang et al. 2024,
    arXiv:2310.07712.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        window: int = 20,
        step: int = 10,
        passes: int = 1,
        prompt: ListwisePrompt = "rank-gpt",
        permutations: int = 1,
        seed: int = 0,
        max_document_words: int = DEFAULT_DOCUMENT_WORDS,
        max_answer_tokens: int | None = None,
        max_calls: int | None = None,
        name: str | None = None,
        progress: bool | None = None,
    ) -> None:
        super().__init__(
            model,
            name=name or f"listwise:{model.name}",
            max_document_words=max_document_words,
            max_calls=max_calls,
            progress=progress,
        )
        for value, option in ((window, "window"), (step, "step"), (passes, "passes")):
            check_count(value, option)
        check_count(permutations, "permutations")
        if not 2 <= window <= 100:
            raise InputError(f"window is {window}; a model can order 2 to 100 passages")
        if step > window:
            raise InputError(
                f"step is {step}, larger than window={window}: passages between would be left out"
            )
        if max_answer_tokens is not None:
            check_count(max_answer_tokens, "max_answer_tokens")
        self.window, self.step, self.passes = window, step, passes
        self.permutations, self.seed = permutations, seed
        self._prompt = listwise_prompt(prompt)
        self._max_tokens = max_answer_tokens or 8 * window + 16

    def calls(self, count: int) -> int:
        """How many model calls a ranking of `count` documents takes: windows × passes × permutations."""
        return len(self._windows(count)) * self.passes * self.permutations

    def _windows(self, count: int) -> list[slice]:
        """Windows from the last to the first; none where there is nothing to order."""
        if count < 2:
            return []
        windows = [slice(max(0, count - self.window), count)]
        while windows[-1].start > 0:
            end = windows[-1].stop - self.step
            windows.append(slice(max(0, end - self.window), end))
        return windows

    def _rounds(self, query: str, texts: list[str]) -> Generator[list[Prompt], list[Answer], Ordered]:
        order = list(range(len(texts)))
        repairs = Repairs()
        for number in range(self.passes):
            for window in self._windows(len(texts)):
                inside = order[window]
                shown = self._shuffles(len(inside), f"{number} {window.start}")
                answers = yield [
                    self._prompt(query, [texts[inside[place]] for place in places]) for places in shown
                ]
                read = [read_permutation(answer, len(inside)) for answer in answers]
                repairs = sum((each.repairs for each in read), repairs)
                order[window] = [inside[place] for place in _central(read, shown)]
        return Ordered.by_rank(order, repairs)

    def _shuffles(self, count: int, place: str) -> list[list[int]]:
        """The orders in which a window is shown: as it is, or shuffled so many times."""
        if self.permutations == 1:
            return [list(range(count))]
        return [
            sorted(range(count), key=lambda i: blake2b(f"{self.seed} {place} {number} {i}".encode()).digest())
            for number in range(self.permutations)
        ]

    def _ask(self, prompts: list[Prompt], on_answer: Callable[[], None]) -> list[Answer]:
        return self.model.generate(prompts, max_tokens=self._max_tokens, on_answer=on_answer)


def _central(read: Sequence[Permutation], shown: Sequence[Sequence[int]]) -> Sequence[int]:
    """The order of a window from the answers to its shuffles."""
    if len(read) == 1:
        return read[0].order
    listed = [
        [places[at] for at in each.order[: each.num_listed]] for each, places in zip(read, shown, strict=True)
    ]
    return central_order(listed, len(shown[0]))
