"""Text analysis: a text to the terms that BM25 counts."""

from __future__ import annotations

import functools
import itertools
import re
import threading
import unicodedata
from collections.abc import Collection

import snowballstemmer

from crossrank.errors import InputError
from crossrank.retrieval.stopwords import STOP_WORDS

__all__ = ["Analyzer", "word_spans"]

# Letters of scripts written without spaces between words. Marks are left to the pattern below.
_UNSPACED = (
    "\u0e01-\u0e30\u0e32\u0e33\u0e40-\u0e46"  # Thai
    "\u0e81-\u0eb0\u0eb2\u0eb3\u0ebd-\u0ec6\u0edc-\u0edf"  # Lao
    "\u1000-\u102a\u103f\u1050-\u1055"  # Myanmar
    "\u1780-\u17b3\u17d7\u17dc"  # Khmer
    "\u1100-\u11ff\uac00-\ud7a3"  # Hangul: has spaces, but words carry their particles
    "\u3005-\u3007\u3021-\u3029\u3031-\u303c"  # ideographic iteration marks and numerals
    "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"  # Hiragana, Katakana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)
_INVISIBLE = re.compile("[\u00ad\u200c\u200d\u2060\ufeff]")  # soft hyphen, joiners, byte order mark
_APOSTROPHES = str.maketrans({"\u2019": "'", "\u02bc": "'"})
_TURKISH_CAPITALS = str.maketrans({"İ": "i", "I": "ı"})
_ELIDING = frozenset({"catalan", "french", "italian"})  # l'eau, dell'arte: two words
_ASCII_WORD = re.compile("[a-z0-9]+(?:'[a-z0-9]+)*")
_ASCII_WORD_AS_IT_STANDS = re.compile("[A-Za-z0-9]+(?:'[A-Za-z0-9]+)*")
_ASCII_ELIDED_WORD = re.compile("[a-z0-9]+")

_LONGEST_STEMMED = 64  # characters; longer ones are no words, and a stemmer could be slow on them
_CACHED_STEMS = 1_000_000


@functools.cache
def _patterns(eliding: bool) -> tuple[re.Pattern[str], re.Pattern[str]]:
    r"""The pattern of a word or a run of unspaced script, and of one character of such a run.

    Python's `\w` has no combining marks, without which Hindi or Thai words fall apart, and `re` has
    no property classes: so the marks are collected here, once.
    """
    marks = "".join(chr(code) for code in range(0x0300, 0x1F000) if unicodedata.category(chr(code))[0] == "M")
    letter = f"[^\\W_{_UNSPACED}][{marks}]*"
    unspaced = f"[{_UNSPACED}][{marks}]*"
    word = f"(?:{letter})+" if eliding else f"(?:{letter})+(?:'(?:{letter})+)*"
    return re.compile(f"((?:{unspaced})+)|{word}"), re.compile(unspaced)


def word_spans(text: str) -> list[tuple[int, int]]:
    """Return [start, end) of each word of a text, as it stands there.

    The rules are those of `Analyzer`, without its changes to the text; in scripts written without spaces
    each letter (with its marks) is a word.
    """
    if text.isascii():  # most text; the same rules, without Unicode's tables
        return [match.span() for match in _ASCII_WORD_AS_IT_STANDS.finditer(text)]
    word, unspaced = _patterns(False)
    spans: list[tuple[int, int]] = []
    for match in word.finditer(text.translate(_APOSTROPHES)):
        if match[1] is None:
            spans.append(match.span())
        else:
            start = match.start()
            spans += [(start + each.start(), start + each.end()) for each in unspaced.finditer(match[1])]
    return spans


class Analyzer:
    r"""Turns a text into terms, by rules fixed for a language.

    1. Unicode NFKC, case folding, NFKC again. Soft hyphens, zero-width joiners and byte order marks
       are dropped; typographic apostrophes become "'". In Turkish, I and İ fold to ı and i.
    2. A token is a maximal run of letters and digits (Python's `[^\W_]`) with their combining marks.
       An apostrophe between two of them belongs to the token ("don't"), except in Catalan, French
       and Italian, where it parts an article from its word ("l'eau" is "l", "eau"). Everything else
       separates: an underscore, a hyphen, a point, a lone surrogate.
    3. A run of Han, Hiragana, Katakana, Hangul, Thai, Lao, Khmer or Myanmar letters gives its
       overlapping bigrams of letters (with their marks), or the letter itself if it stands alone. It
       is its own token even where other letters touch it.
    4. Tokens on the language's stop list are dropped.
    5. The rest are stemmed by the language's Snowball algorithm, except bigrams and tokens of more
       than 64 characters.

    With `language=None` steps 1 to 3 are all there is. Safe to use from many threads.

    Args:
        language: a Snowball algorithm name ("english", "german", ...), or None.
        stem: whether step 5 is done.
        stop_words: True for the language's own list (`stopwords.STOP_WORDS`; languages that have none
            there drop nothing), False for none, or a collection of words to use instead.

    Raises:
        InputError: the language is not known.

    Source:
        Snowball stemmers, https://snowballstem.org; bigrams as in Lucene's CJKBigramFilter.

    Example:
        >>> Analyzer("english").analyze("The cells' 3D structures")
        ['cell', '3d', 'structur']
    """

    def __init__(
        self,
        language: str | None = "english",
        *,
        stem: bool = True,
        stop_words: bool | Collection[str] = True,
    ) -> None:
        language = language.lower() if isinstance(language, str) else language
        if language is not None and language not in snowballstemmer.algorithms():
            raise InputError(
                f"there is no stemmer for language {language!r}; use None (no stemming, no stop words) or "
                f"one of: {', '.join(snowballstemmer.algorithms())}"
            )
        if isinstance(stop_words, str):
            raise InputError(
                f"stop_words must be True, False or a list of words, not the string {stop_words!r}"
            )
        self.language = language
        self._turkish = language == "turkish"
        self._eliding = language in _ELIDING
        self._ascii_word = _ASCII_ELIDED_WORD if self._eliding else _ASCII_WORD
        if isinstance(stop_words, bool):
            self.stop_words = STOP_WORDS.get(language or "", frozenset()) if stop_words else frozenset()
        else:
            self.stop_words = frozenset(self._fold(word) for word in stop_words)
        self._stemmer = snowballstemmer.stemmer(language) if stem and language else None
        self._stemmer_lock = threading.Lock()  # stemmers keep the word they work on as state
        self._stems: dict[str, str] = {}

    def analyze(self, text: str) -> list[str]:
        """Return the terms of a text in their order, repeated as often as they occur."""
        if text.isascii() and not self._turkish:  # most text; the same rules, without Unicode's tables
            tokens = self._ascii_word.findall(text.lower())
            return self._stemmed(tokens) if tokens else tokens
        word, unspaced = _patterns(self._eliding)
        terms: list[str] = []
        words: list[str] = []
        for match in word.finditer(self._fold(text)):
            run = match[1]
            if run is None:
                words.append(match[0])
                continue
            terms += self._stemmed(words)
            words.clear()
            letters = unspaced.findall(run)
            bigrams = [a + b for a, b in itertools.pairwise(letters)] or letters
            terms += [bigram for bigram in bigrams if bigram not in self.stop_words]
        return terms + self._stemmed(words)

    def _fold(self, text: str) -> str:
        text = unicodedata.normalize("NFKC", text)
        if self._turkish:
            text = text.translate(_TURKISH_CAPITALS)
        text = unicodedata.normalize("NFKC", text.casefold())
        return _INVISIBLE.sub("", text).translate(_APOSTROPHES)

    def _stemmed(self, tokens: list[str]) -> list[str]:
        stop_words = self.stop_words
        kept = [token for token in tokens if token not in stop_words]
        if self._stemmer is None:
            return kept
        stems = self._stems
        try:
            return [stems[token] for token in kept]
        except KeyError:
            return [self._stem(token) for token in kept]

    def _stem(self, token: str) -> str:
        known = self._stems.get(token)
        if known is not None:
            return known
        stem = token
        if self._stemmer is not None and len(token) <= _LONGEST_STEMMED:
            with self._stemmer_lock:
                stem = str(self._stemmer.stemWord(token))
        if len(self._stems) >= _CACHED_STEMS:
            self._stems.clear()
        self._stems[token] = stem
        return stem
