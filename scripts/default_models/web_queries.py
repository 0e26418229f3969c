"""Queries as people type them into a search engine, made from passages and questions, without judgements."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

_STOP_WORDS = """
a an the of in on at to for from by with and or is are was were be been being do does did has have had what
which who whom whose when where why how that this these those it its as than then there their they them he she
his her him you your i we our not no can could would should may might will shall into about over under between
after before during
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
ABOUT_A_THING = (
    *("what is {x}", "define {x}", "{x} definition", "definition of {x}", "what are {x}", "what causes {x}"),
    *("what is {x} used for", "causes of {x}", "types of {x}", "{x} facts", "meaning of {x}", "{x} symptoms"),
    *("what does {x} mean", "how does {x} work", "how long does {x} last", "what is the purpose of {x}"),
    *("where is {x}", "how to treat {x}", "history of {x}", "is {x} dangerous", "benefits of {x}", "{x}"),
    *("effects of {x}", "example of {x}", "examples of {x}", "who invented {x}", "who discovered {x}"),
    *("when was {x} founded", "why is {x} important", "what is a {x}", "what is an {x}", "{x} meaning"),
    *("how many {x} are there", "what type of {x} are there", "can {x} be treated", "does {x} cause pain"),
    *("what does {x} do", "how is {x} made", "where does {x} come from", "what kind of {x}", "cost of {x}"),
    "average {x}",
)
ABOUT_A_NAME = (
    *("who is {x}", "who was {x}", "{x} biography", "when was {x} born", "how did {x} die", "what is {x}"),
    *("what is {x} known for", "what did {x} do", "where is {x} located", "{x} history", "{x}"),
    *("when was {x} built", "population of {x}", "where was {x} born", "when did {x} start"),
)
ABOUT_TWO = (
    *("difference between {x} and {y}", "{x} vs {y}", "{x} and {y}", "how does {x} affect {y}"),
    *("what is the relationship between {x} and {y}", "{x} in {y}"),
)
NAME = re.compile(r"(?<![.!?]\s)(?<!^)\b([A-Z][a-z]+(?:\s+(?:of\s+|the\s+)?[A-Z][a-z]+){1,3})")


class WebQuery(NamedTuple):
    """A query, and the question it was made of, if it was."""

    text: str
    question: str | None = None


def words_of(text: str) -> list[str]:
    return re.findall(r"[A-Za-z0-9][A-Za-z0-9'\-]*", text)


class Vocabulary:
    """What passages say: words, phrases of two words, names, titles.

    Args:
        passages: their texts.
        titles: of the articles they are from.
    """

    def __init__(self, passages: Sequence[str], titles: Iterable[str]) -> None:
        self._passages = passages
        self._counts: Counter[str] = Counter()
        self._phrases: Counter[str] = Counter()
        names: Counter[str] = Counter()
        for passage in passages:
            lowered = [word.lower() for word in words_of(passage)]
            self._counts.update(set(lowered))
            self._phrases.update(f"{a} {b}" for a, b in pairwise(lowered) if _joins(a, b))
            names.update(match.group(1) for match in NAME.finditer(passage))
        self.names = [name.lower() for name, count in names.items() if count >= 2]
        cleaned = {re.sub(r"_|\(.*?\)", " ", title).strip().lower() for title in titles}
        self.titles = sorted(title for title in cleaned if 0 < len(title.split()) <= 5)

    @cached_property
    def words(self) -> list[str]:
        """Single words, neither everywhere nor nearly nowhere."""
        return [w for w, count in self._counts.items() if 5 <= count <= 300 and len(w) >= 5 and w.isalpha()]

    def rarity(self, word: str) -> float:
        """The inverse document frequency."""
        return math.log(len(self._passages) / (1 + self._counts[word.lower()]))

    def about(self, passage: str, rng: random.Random) -> str:
        """A query with a phrase of the passage in it."""
        lowered = [word.lower() for word in words_of(passage)]
        phrases = [
            f"{a} {b}"
            for a, b in pairwise(lowered)
            if 3 <= self._phrases[f"{a} {b}"] <= 80 and min(self.rarity(a), self.rarity(b)) > 3
        ]
        phrase = rng.choice(phrases or self.words)
        others = sorted(
            {w for w in lowered if w not in STOP_WORDS and self.rarity(w) > 3.5 and w not in phrase}
        )
        if others and rng.random() < 0.35:
            return rng.choice(ABOUT_TWO).format(x=phrase, y=rng.choice(others))
        return rng.choice(ABOUT_A_THING).format(x=phrase)

    def keywords(self, passage: str, rng: random.Random) -> str:
        """A few of the passage's rarest words, in its order."""
        words = words_of(passage)
        places = {word.lower(): place for place, word in reversed(list(enumerate(words)))}
        candidates = sorted(word for word in places if word not in STOP_WORDS and len(word) > 2)
        candidates.sort(key=lambda word: -self.rarity(word) * rng.uniform(0.5, 1.2))
        return " ".join(sorted(candidates[: rng.randint(2, 4)], key=places.__getitem__))


def shortened(question: str, rng: random.Random) -> str:
    """Some of a question's words that are no stop words, most often in their order."""
    words = [word for word in words_of(question) if word.lower() not in STOP_WORDS]
    if len(words) < 2:
        return question
    kept = rng.sample(range(len(words)), rng.randint(2, min(6, len(words))))
    kept.sort(key=lambda place: place if rng.random() < 0.85 else rng.random() * len(words))
    return " ".join(words[place] for place in kept).lower()


def make_queries(
    vocabulary: Vocabulary, passages: Sequence[str], questions: dict[str, list[str]], rng: random.Random
) -> list[WebQuery]:
    """Make about 35,000 queries, each once, in a random order.

    Args:
        vocabulary: of the passages.
        passages: texts.
        questions: of each collection; they are asked as they are, or shortened.
        rng: decides.
    """
    made: list[WebQuery] = []

    def add(text: str, question: str | None = None) -> None:
        text = text.strip()
        if rng.random() < 0.7:
            text = text.rstrip(" ?.").lower()
        if text:
            made.append(WebQuery(text, question))

    for asked in questions.values():
        for question in asked:
            add(question if rng.random() < 0.5 else shortened(question, rng), question)
    for passage in rng.sample(passages, min(3_500, len(passages))):
        add(vocabulary.keywords(passage, rng))
    for passage in rng.sample(passages, min(9_000, len(passages))):
        add(vocabulary.about(passage, rng))
    for kind, templates, count in (
        (vocabulary.names, ABOUT_A_NAME, 2_500),
        (vocabulary.titles, ABOUT_A_THING, 2_500),
        (vocabulary.words, ABOUT_A_THING, 2_000),
    ):
        for text in rng.sample(kind, min(count, len(kind))):
            add(rng.choice(templates).format(x=text))
    unique = list({query.text: query for query in reversed(made)}.values())
    rng.shuffle(unique)
    return unique


def _joins(first: str, second: str) -> bool:
    """Whether two words may be a phrase."""
    return not (
        {first, second} & STOP_WORDS
        or len(first) < 3
        or len(second) < 4
        or first.isdigit()
        or second.isdigit()
    )
