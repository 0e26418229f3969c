"""Answers: whatever a model writes, no document is lost or invented, and what was wrong is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossrank.models.llm.answers import Repairs, read_choice, read_permutation
from crossrank.models.llm.model import Answer

NASTY = st.lists(
    st.one_of(
        st.text(max_size=8),
        st.integers(-5, 40).map(lambda number: f"[{number}]"),
        st.integers(0, 40).map(str),
        st.sampled_from(
            [
                " > ",
                ">",
                ", ",
                "\n",
                "[",
                "]",
                "Passage ",
                "A",
                "B",
                "T",
                "<think>",
                "</think>",
                "٣",
                "²",
                "1" * 5000,
            ]
        ),
    ),
    max_size=30,
).map("".join)
NOT_WRONG = ("answers", "examples", "repaired")
ENDINGS = st.sampled_from(["stop", "length", "refused"])


def order(text: str, count: int, ended="stop") -> list[int]:
    """1-based, as the answers are."""
    return [index + 1 for index in read_permutation(Answer(text, ended), count).order]


def wrong(text: str, count: int, ended="stop") -> dict[str, object]:
    repairs = read_permutation(Answer(text, ended), count).repairs
    assert repairs.answers == 1
    return {name: value for name, value in vars(repairs).items() if value and name not in NOT_WRONG}


@given(st.one_of(st.text(), NASTY), st.integers(0, 25), ENDINGS)
def test_any_answer_gives_a_permutation(text, count, ended):
    read = read_permutation(Answer(text, ended), count)
    assert sorted(read.order) == list(range(count))
    assert 0 <= read.num_listed <= count
    rest = read.order[read.num_listed :]
    assert list(rest) == sorted(rest)  # what was left out keeps its order
    if not read.num_listed:
        assert read.repairs.useless == 1
    elif read.repairs.missing == 0:
        assert read.num_listed == count


@given(st.one_of(st.text(), NASTY), st.integers(1, 20), ENDINGS)
def test_any_answer_gives_a_passage_shown_or_none(text, count, ended):
    choice = read_choice(Answer(text, ended), count)
    assert choice.index is None or 0 <= choice.index < count
    assert (choice.index is None) == (choice.repairs.useless == 1)


@given(st.permutations(range(1, 21)), st.sampled_from([" > ", ">", " >\n"]))
def test_a_right_answer_is_read_as_it_is(numbers, between):
    text = between.join(f"[{number}]" for number in numbers)
    assert order(text, 20) == numbers
    assert wrong(text, 20) == {}


@pytest.mark.parametrize(
    ("text", "count", "expected", "repairs"),
    [
        ("[2] > [1] > [3]", 3, [2, 1, 3], {}),
        (" [2]>[1]>[3]. \n", 3, [2, 1, 3], {}),
        ("[2] > [2] > [1] > [3] > [1]", 3, [2, 1, 3], {"duplicate": 2}),
        ("[3] > [7] > [0] > [1]", 3, [3, 1, 2], {"unknown": 2, "missing": 1}),
        ("Sure! Here is the ranking: [2] > [3] > [1]. Hope it helps", 3, [2, 3, 1], {"prose": 1}),
        ("[1] is about cats, so: [2] > [3] > [1]", 3, [2, 3, 1], {"prose": 1}),
        ("First [3] > [1]? No: [2] > [3] > [1]", 3, [2, 3, 1], {"prose": 1}),
        ("The best is [2], then comes [1].", 3, [2, 1, 3], {"prose": 1, "missing": 1}),
        ("2 > 3 > 1", 3, [2, 3, 1], {"prose": 1}),
        ("[2, 3, 1]", 3, [2, 3, 1], {"prose": 1}),
        ("2\n3\n1", 3, [2, 3, 1], {"prose": 1}),
        ("I rank the 3 passages of 2024: none", 3, [1, 2, 3], {"unreadable": 1}),
        ("", 3, [1, 2, 3], {"empty": 1}),
        (" \n", 3, [1, 2, 3], {"empty": 1}),
        ("[9] > [8]", 3, [1, 2, 3], {"unreadable": 1}),
        ("[٣] > [١]", 3, [1, 2, 3], {"unreadable": 1}),
        ("<think>[1] > [2] > [3]? no</think>[3] > [2] > [1]", 3, [3, 2, 1], {"prose": 1}),
        ("<think>[3] > [2] maybe", 3, [1, 2, 3], {"empty": 1}),
        ("[" + "9" * 5000 + "] > [2]", 3, [2, 1, 3], {"unknown": 1, "missing": 2}),
    ],
)
def test_orders(text, count, expected, repairs):
    assert order(text, count) == expected
    assert wrong(text, count) == repairs


def test_a_cut_answer_keeps_what_it_has():
    assert order("[3] > [1] > [", 4, "length") == [3, 1, 2, 4]
    assert wrong("[3] > [1] > [", 4, "length") == {"missing": 2, "prose": 1, "cut": 1}
    assert wrong("I will", 4, "length") == {"unreadable": 1, "cut": 1}


def test_a_refusal_keeps_the_order_and_is_quoted():
    read = read_permutation(Answer("I cannot do that", "refused"), 3)
    assert read.order == (0, 1, 2)
    assert read.repairs.notes() == (
        "1 of 1 answer of the model decided nothing, the order before stands there (1 refused, such as "
        "'I cannot do that')",
    )


@pytest.mark.parametrize(
    ("text", "expected", "repairs"),
    [
        ("Passage B", 1, {}),
        ("B", 1, {}),
        ("passage b.", 1, {}),
        ('"C"', 2, {}),
        ("[A]", 0, {}),
        ("Passage: B", None, {"unreadable": 1}),
        ("The most relevant is Passage C.", 2, {"prose": 1}),
        ("B, because it names the river", 1, {"prose": 1}),
        ("**B**", 1, {"prose": 1}),
        ("B\n\nPassage B is best", 1, {"prose": 1}),
        ("Passage A or Passage B", None, {"unreadable": 1}),
        ("A good passage is hard to find", None, {"unreadable": 1}),
        ("Passage Z", None, {"unreadable": 1}),
        ("I think Passage B, not Passage Z", 1, {"prose": 1, "unknown": 1}),
        ("", None, {"empty": 1}),
        ("<think>Passage A?</think>Passage C", 2, {"prose": 1}),
    ],
)
def test_choices(text, expected, repairs):
    choice = read_choice(Answer(text), 3)
    assert choice.index == expected
    named = {name: value for name, value in vars(choice.repairs).items() if value and name not in NOT_WRONG}
    assert named == repairs


def test_notes_say_what_was_repaired_in_how_many_answers():
    answers = ["[1] > [2]", "so: [2] > [2] > [5]", "no", ""]
    repairs = sum((read_permutation(Answer(text), 2).repairs for text in answers), Repairs())
    assert repairs.notes() == (
        "1 of 4 answers of the model repaired: 1 passage left out (put last), 1 repeated identifier, 1 "
        "identifier of no passage, 1 answer with other text",
        "2 of 4 answers of the model decided nothing, the order before stands there (1 "
        "empty, 1 unreadable, such as "
        "'no')",
    )
    assert Repairs(answers=7).notes() == ()


def test_an_answer_cut_off_that_decides_nothing_is_not_called_repaired():
    used, useless = (
        read_permutation(Answer(text, "length"), 4).repairs for text in ("[3] > [1] > [", "I will")
    )
    assert (used.repaired, useless.repaired) == (1, 0)
    assert useless.notes() == (
        "1 of 1 answer of the model cut off at the limit of tokens (max_answer_tokens)",
        "1 of 1 answer of the model decided nothing, the order before stands there (1 unreadable, such as "
        "'I will')",
    )
    assert (used + useless + used).notes()[:2] == (
        "2 of 3 answers of the model repaired: 4 passages left out (put last), 2 answers with other text",
        "3 of 3 answers of the model cut off at the limit of tokens (max_answer_tokens)",
    )
