"""Resemblance: worked out by hand, and what it must be for any texts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from crossrank.training.near_duplicates import resemblance, shingles

TEXT = st.text(alphabet="ab .,", max_size=30)


def test_one_changed_word_of_six() -> None:
    one, other = shingles("the red fox ran far away"), shingles("the red fox ran so away")
    assert (len(one), len(other), len(one & other)) == (4, 4, 2)
    assert resemblance(one, other) == 2 / 6


def test_case_and_punctuation_do_not_count() -> None:
    assert resemblance(shingles("A red fox, far away."), shingles("a RED fox far away")) == 1


def test_short_texts_are_compared_whole() -> None:
    assert resemblance(shingles("two words"), shingles("Two words!")) == 1
    assert resemblance(shingles("two words"), shingles("words two")) == 0


def test_texts_without_words_resemble_nothing() -> None:
    assert resemblance(shingles("..."), shingles("...")) == 0


def test_scripts_without_spaces_have_shingles_too() -> None:
    one = shingles("東京都は日本の首都である")
    assert 0 < resemblance(one, shingles("東京都は日本の都市である")) < resemblance(one, one) == 1


@given(TEXT, TEXT)
def test_it_is_symmetric_and_between_0_and_1(one: str, other: str) -> None:
    first, second = shingles(one), shingles(other)
    assert 0 <= resemblance(first, second) == resemblance(second, first) <= 1
