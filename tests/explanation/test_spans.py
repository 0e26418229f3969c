"""Words, passages and what is left without them: nothing is lost, and offsets are those of the text."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossrank.explanation.spans import groups, sentences, units, without, words_in
from crossrank.retrieval.text import word_spans

TEXT = st.text(st.sampled_from("ab c.d!? \n。é\u0301水ー' -"), max_size=80)


def cut(text, spans):
    return [text[start:end] for start, end in spans]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't stop, 3.5 km!", ["Don't", "stop", "3", "5", "km"]),
        ("L’été à Zoe\u0308", ["L’été", "à", "Zoe\u0308"]),
        ("水は青い, ok", ["水", "は", "青", "い", "ok"]),
        ("नीला पानी", ["नीला", "पानी"]),
        ("<b>x_y</b>", ["b", "x", "y", "b"]),
        ("  \n", []),
    ],
)
def test_words(text, words):
    assert cut(text, word_spans(text)) == words


@given(st.text(st.characters(max_codepoint=127), max_size=60))
def test_words_of_ascii_are_those_of_any_text(text):
    # a letter of another script at a distance changes no word, but the way words are found
    assert word_spans(f"{text} é")[:-1] == word_spans(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("One is here. Two? Yes!", ["One is here.", "Two?", "Yes!"]),
        ("He said “no.” Then left", ["He said “no.”", "Then left"]),
        ("first line\nsecond line\n\nthird", ["first line", "second line", "third"]),
        ("水は青い。空も青い。", ["水は青い。", "空も青い。"]),
        ("3.5 km far", ["3.5 km far"]),
        ("a b c d e", ["a b c d", "e"]),
        ("", []),
        ("... !?", []),
    ],
)
def test_sentences(text, found):
    assert cut(text, sentences(text, max_words=4)) == found


@given(TEXT, st.integers(1, 5))
def test_sentences_hold_every_word_once(text, max_words):
    spans = sentences(text, max_words)
    assert spans == sorted(spans)
    assert all(one[1] <= other[0] for one, other in pairwise(spans))
    words = word_spans(text)
    inside = [words_in(words, *span) for span in spans]
    assert [word for each in inside for word in each] == words
    assert all(1 <= len(each) <= max_words for each in inside)
    assert all(end <= span[1] for span, each in zip(spans, inside, strict=True) for _, end in each)


@given(st.integers(0, 50), st.integers(1, 12))
def test_groups_are_few_and_cover_all(count, limit):
    spans = [(3 * place, 3 * place + 2) for place in range(count)]
    joined = groups(spans, limit)
    assert len(joined) <= limit
    assert [span for group in joined for span in words_in(spans, group[0], group[1])] == spans


@pytest.mark.parametrize(
    ("text", "word", "left"),
    [
        ("a red fox", "red", "a fox"),
        ("a red fox", "a", "red fox"),
        ("a red fox", "fox", "a red"),
        ("(red)", "red", "()"),
        ("a red, fox", "red", "a , fox"),
        ("red", "red", ""),
    ],
)
def test_without_a_word(text, word, left):
    start = text.index(word)
    assert without(text, (start, start + len(word))) == left


@given(TEXT)
def test_leaving_a_word_out_leaves_the_other_words(text):
    words = word_spans(text)
    for place, span in enumerate(words):
        left = without(text, span)
        others = cut(text, words[:place] + words[place + 1 :])
        # what stood on both sides of the word may now touch; no letter is lost
        assert "".join(cut(left, word_spans(left))).replace("'", "") == "".join(others).replace("'", "")


def test_units_are_words_and_marks_that_have_tokens():
    text = "Naïve foxes, run"
    tokens = [(0, 2), (2, 5), (5, 9), (9, 11), (11, 12), (0, 0)]  # " fox" begins with its blank
    found, owners = units(text, tokens)
    assert cut(text, found) == ["Naïve", "foxes", ","]
    assert owners == [0, 0, 1, 1, 2, -1]
