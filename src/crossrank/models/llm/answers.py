"""Answers read strictly, and repaired where that shows: no answer can lose or invent a document.

What comes of any text whatsoever is an order of all passages that were shown, or no answer at all, and with
it what was wrong with the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from crossrank.models.llm.model import Answer

__all__ = ["Choice", "Permutation", "Repairs", "read_choice", "read_permutation"]

_ONE = r"\[\s*(?:[0-9]+)\s*\]"
_STRICT = re.compile(rf"\s*{_ONE}(?:\s*>\s*{_ONE})*\s*\.?\s*", re.ASCII)
_CHAIN = re.compile(rf"{_ONE}(?:\s*[>,;\n]\s*{_ONE})+", re.ASCII)
_BARE = re.compile(r"\s*\[?\s*[0-9]+(?:\s*[>,\n]\s*[0-9]+)*\s*\]?\s*\.?\s*", re.ASCII)
_DIGITS = re.compile(r"[0-9]+", re.ASCII)
_BRACKETED = re.compile(_ONE, re.ASCII)

_STRICT_LABEL = re.compile(r"\s*(?:passage\s+)?[\"'(\[]?([A-Z])[\"')\]]?\s*[.:]?\s*", re.IGNORECASE)
_NAMED_LABEL = re.compile(r"\bpassage\s+[\"'(\[]?([A-Z])\b", re.IGNORECASE)
_FIRST_LABEL = re.compile(r"[\W_]*([A-Z])(?=\s*(?:$|[.,:;)\]\"'*\n-]))")


@dataclass(frozen=True)
class Repairs:
    """What was wrong with one answer, or with many.

    Attributes:
        answers: how many there are.
        missing: passages that an answer leaves out; they stand last, in the order they were shown.
        duplicate: identifiers given again; the first time counts.
        unknown: identifiers of no passage shown; left out.
        prose: answers with other text around what was asked for.
        cut: answers cut off at their limit of tokens.
        refused: answers that a filter or the model refused; the order shown stands.
        empty: answers without text; likewise.
        unreadable: answers with text but no identifier that can be used; likewise.
        examples: the beginnings of unreadable and refused answers, at most three.
        repaired: answers that were used in spite of what was wrong.
    """

    answers: int = 0
    missing: int = 0
    duplicate: int = 0
    unknown: int = 0
    prose: int = 0
    cut: int = 0
    refused: int = 0
    empty: int = 0
    unreadable: int = 0
    examples: tuple[str, ...] = ()
    repaired: int = -1  # of one answer, it follows from the rest

    def __post_init__(self) -> None:
        if self.repaired < 0:
            mended = not self.useless and any(getattr(self, name) for name in _WORDS)
            object.__setattr__(self, "repaired", int(mended))

    def __add__(self, other: Repairs) -> Repairs:
        totals: dict[str, int] = {
            each.name: getattr(self, each.name) + getattr(other, each.name)
            for each in fields(Repairs)
            if each.name != "examples"
        }
        return Repairs(**totals, examples=(self.examples + other.examples)[:3])

    @property
    def useless(self) -> int:
        """Answers that decided nothing."""
        return self.refused + self.empty + self.unreadable

    def notes(self) -> tuple[str, ...]:
        """Say what was wrong, for a ranking's notes; nothing where nothing was."""
        notes = []
        if parts := [
            f"{count:,} {one if count == 1 else many}"
            for name, (one, many) in _WORDS.items()
            if (count := getattr(self, name))
        ]:
            notes.append(
                f"{self.repaired:,} of {_answers(self.answers)} of the model repaired: {', '.join(parts)}"
            )
        if self.cut:
            notes.append(
                f"{self.cut:,} of {_answers(self.answers)} of the model cut off at the limit of tokens "
                "(max_answer_tokens)"
            )
        if self.useless:
            kinds = [
                f"{count:,} {kind}"
                for kind in ("refused", "empty", "unreadable")
                if (count := getattr(self, kind))
            ]
            said = f", such as {self.examples[0]!r}" if self.examples else ""
            notes.append(
                f"{self.useless:,} of {_answers(self.answers)} of the model decided nothing, the order "
                f"before stands there ({', '.join(kinds)}{said})"
            )
        return tuple(notes)


_WORDS = {
    "missing": ("passage left out (put last)", "passages left out (put last)"),
    "duplicate": ("repeated identifier", "repeated identifiers"),
    "unknown": ("identifier of no passage", "identifiers of no passage"),
    "prose": ("answer with other text", "answers with other text"),
}


@dataclass(frozen=True)
class Permutation:
    """An order of the passages shown.

    Attributes:
        order: every number from 0 to count - 1 once, best first.
        num_listed: how many of the first the answer itself has put there.
        repairs: what was wrong.
    """

    order: tuple[int, ...]
    num_listed: int
    repairs: Repairs


@dataclass(frozen=True)
class Choice:
    """One of the passages shown.

    Attributes:
        index: which, from 0; None where the answer names none, or several.
        repairs: what was wrong.
    """

    index: int | None
    repairs: Repairs


def read_permutation(answer: Answer, count: int) -> Permutation:
    """Read an answer such as "[2] > [3] > [1]".

    Of an answer with other text in it, the longest chain of identifiers counts (of equals the last), else
    all identifiers in brackets. Numbers without brackets count only where there is nothing else.

    Args:
        answer: of the model.
        count: how many passages were shown, as [1] to [count].
    """
    text, thought = _after_thinking(answer.text)
    given, prose = _identifiers(text)
    listed: list[int] = []
    duplicate = unknown = 0
    for number in given:
        index = number - 1
        if not 0 <= index < count:
            unknown += 1
        elif index in listed:
            duplicate += 1
        else:
            listed.append(index)
    if not listed:
        return Permutation(tuple(range(count)), 0, _useless(answer, text))
    rest = [index for index in range(count) if index not in listed]
    repairs = Repairs(
        answers=1,
        missing=len(rest),
        duplicate=duplicate,
        unknown=unknown,
        prose=int(prose or thought),
        cut=int(answer.ended == "length"),
    )
    return Permutation((*listed, *rest), len(listed), repairs)


def read_choice(answer: Answer, count: int) -> Choice:
    """Read an answer such as "Passage B" or "B".

    Of an answer with other text in it, the one label that it names as a passage counts, or the letter it
    begins with. One that names several decides nothing.

    Args:
        answer: of the model.
        count: how many passages were shown, as A, B and so on.
    """
    text, thought = _after_thinking(answer.text)
    strict = _STRICT_LABEL.fullmatch(text)
    if strict:
        labels = {strict[1].upper()}
    else:
        labels = {label.upper() for label in _NAMED_LABEL.findall(text)}
        if not labels and (first := _FIRST_LABEL.match(text)):
            labels = {first[1]}
    indexes = {ord(label) - ord("A") for label in labels}
    known = {index for index in indexes if index < count}
    if len(known) != 1:
        return Choice(None, _useless(answer, text))
    repairs = Repairs(
        answers=1,
        unknown=len(indexes) - 1,
        prose=int(strict is None or thought),
        cut=int(answer.ended == "length" and strict is None),
    )
    return Choice(known.pop(), repairs)


def _identifiers(text: str) -> tuple[list[int], bool]:
    """The identifiers of an answer in its order, and whether there is other text."""
    if _STRICT.fullmatch(text):
        return _numbers(text), False
    if _BARE.fullmatch(text):
        return _numbers(text), True
    chains = _CHAIN.findall(text)
    if chains:
        return _numbers(max(reversed(chains), key=lambda chain: len(_numbers(chain)))), True
    return _numbers(" ".join(_BRACKETED.findall(text))), True


def _numbers(text: str) -> list[int]:
    # A number of many digits is no passage's, and Python refuses to read one of thousands.
    return [int(digits[:9]) if len(digits.lstrip("0")) < 10 else 10**9 for digits in _DIGITS.findall(text)]


def _after_thinking(text: str) -> tuple[str, bool]:
    """What follows a model's thinking aloud, which may name any passage; nothing where it never ended."""
    _, end, after = text.rpartition("</think>")
    if end:
        return after, True
    return ("", True) if text.lstrip().startswith("<think>") else (text, False)


def _useless(answer: Answer, text: str) -> Repairs:
    said = " ".join((text or answer.text).split())[:60]
    examples = (said,) if said else ()
    cut = int(answer.ended == "length")
    if answer.ended == "refused":
        return Repairs(answers=1, refused=1, examples=examples)
    if not text.strip():
        return Repairs(answers=1, empty=1, cut=cut, examples=examples)
    return Repairs(answers=1, unreadable=1, cut=cut, examples=examples)


def _answers(count: int) -> str:
    return "1 answer" if count == 1 else f"{count:,} answers"
