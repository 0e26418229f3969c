"""Analysis rules, one by one, and what must hold for any text."""

from __future__ import annotations

import threading
import unicodedata

import pytest
import snowballstemmer
from hypothesis import given
from hypothesis import strategies as st

from crossrank.errors import InputError
from crossrank.retrieval.stopwords import STOP_WORDS
from crossrank.retrieval.text import Analyzer

PLAIN = Analyzer(None)
ENGLISH = Analyzer("english")


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("Fox-trot, foo_bar; 3.14", ["fox", "trot", "foo", "bar", "3", "14"]),
        ("don't don’t rock'n'roll 'quoted'", ["don't", "don't", "rock'n'roll", "quoted"]),
        ("ﬁsh Ⅷ ＡＢＣ STRASSE Straße", ["fish", "viii", "abc", "strasse", "strasse"]),
        ("co\u00adoperate \ufeffword", ["cooperate", "word"]),
        ("Cafe\u0301 CAFÉ", ["café", "café"]),
        ("a\0b\ud800c\U0001f600d", ["a", "b", "c", "d"]),
        ("हिन्दी में", ["हिन्दी", "में"]),  # vowel signs are marks: part of the word
        ("", []),
        (" …—! ", []),
    ],
)
def test_words(text: str, terms: list[str]) -> None:
    assert PLAIN.analyze(text) == terms


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("東京都", ["東京", "京都"]),
        ("語", ["語"]),
        ("iPhone用ケース", ["iphone", "用ケ", "ケー", "ース"]),
        ("ｶﾀｶﾅ", ["カタ", "タカ", "カナ"]),  # half-width
        ("한국어 책", ["한국", "국어", "책"]),
        ("ที่นี่", ["ที่นี่"]),  # two Thai letters, each with a vowel and a tone mark
    ],
)
def test_scripts_without_spaces_give_bigrams(text: str, terms: list[str]) -> None:
    assert PLAIN.analyze(text) == terms


def test_language_gives_stop_words_and_stems() -> None:
    assert ENGLISH.analyze("The cells' structures are running") == ["cell", "structur", "run"]
    assert Analyzer("german").analyze("Die Häuser und daß") == ["haus"]
    assert Analyzer("english", stem=False).analyze("The cells") == ["cells"]
    assert Analyzer("english", stop_words=False).analyze("The cells") == ["the", "cell"]
    assert Analyzer("english", stop_words=["CELLS"]).analyze("The cells") == ["the"]


def test_articles_are_parted_from_their_words_in_languages_that_elide() -> None:
    assert Analyzer("french").analyze("L’eau d'Évian") == ["eau", "évian"]
    assert Analyzer("italian", stem=False).analyze("dell'arte dell'età") == ["arte", "età"]


def test_turkish_capitals() -> None:
    assert Analyzer("turkish", stem=False).analyze("ILIK İZMİR") == ["ılık", "izmir"]


def test_stems_are_those_of_snowball() -> None:
    words = ["generously", "organisation", "relational", "bacteria", "caresses"]
    stem = snowballstemmer.stemmer("english").stemWord
    assert ENGLISH.analyze(" ".join(words)) == [stem(word) for word in words]


def test_a_very_long_token_is_kept_as_it_is() -> None:
    assert ENGLISH.analyze("running" * 20 + " running") == ["running" * 20, "run"]


@pytest.mark.parametrize("language", sorted(STOP_WORDS))
def test_stop_words_are_in_the_form_they_are_compared_in(language: str) -> None:
    analyzer = Analyzer(language, stem=False, stop_words=False)
    for word in STOP_WORDS[language]:
        assert analyzer.analyze(word) == [word]
    assert Analyzer(language).analyze(" ".join(STOP_WORDS[language])) == []


def test_unknown_language_and_stop_words_as_text_are_errors() -> None:
    with pytest.raises(InputError, match=r"'klingon'.*english"):
        Analyzer("klingon")
    with pytest.raises(InputError, match="the string 'the'"):
        Analyzer("english", stop_words="the")


@given(st.text(st.characters(codec="ascii")))
def test_the_ascii_path_follows_the_same_rules(text: str) -> None:
    # An em dash separates and says nothing, but sends the text down the other path.
    for analyzer in (ENGLISH, PLAIN, Analyzer("french")):
        assert analyzer.analyze(text + " —") == analyzer.analyze(text)


@given(st.text(), st.text())
def test_texts_are_analysed_independently_across_a_space(left: str, right: str) -> None:
    assert PLAIN.analyze(f"{left} {right}") == PLAIN.analyze(left) + PLAIN.analyze(right)


@given(st.text(st.characters(codec="latin-1")))
def test_case_and_normal_form_do_not_matter(text: str) -> None:
    assert PLAIN.analyze(unicodedata.normalize("NFD", text)) == PLAIN.analyze(text)
    assert PLAIN.analyze(text.upper()) == PLAIN.analyze(text)


def test_many_threads_get_the_same_stems() -> None:
    words = [f"{a}{b}{c}ing" for a in "bcdfgl" for b in "aeiou" for c in "ndtkr"]
    expected = Analyzer("english").analyze(" ".join(words))
    shared = Analyzer("english")
    found: list[list[str]] = []
    threads = [
        threading.Thread(target=lambda: found.append([shared.analyze(word)[0] for word in words]))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4
