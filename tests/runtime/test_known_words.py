"""Tokens by words are the library's own, whatever was tokenised before."""

import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers

import crossrank
from crossrank import Collection
from crossrank.runtime import known_words
from crossrank.runtime.known_words import KnownWords

BUILT_IN = Path(crossrank.__file__).parent / "models" / "builtin" / "crossrank-mini" / "tokenizer.json"
SAMPLE = Path(__file__).parents[2] / "data" / "sample"
TEXTS = [
    "The quick brown fox, it's 3.5 km from naïve Zoe\u0301 to 東京 x and\n\ttabs don't A1 B2 end . ab",
    "  two  spaces, [SEP] and [MASK]x [sep] ##ing un##known _under_ a\u00a0b \u0301c \x00d\x7fe \ufffd",
    "http://example.org/" + "a" * 300 + " " + "b" * 101 + " " + "c" * 100,
    "ΣΑΣ ΟΔΟΣ İstanbul ﬁne Ⅻ ¨x ½ “quoted” – dashed… e-mail@x.org C++ $5 `code` ~a^b",
    "",
    " ",
]
WORD = st.one_of(
    st.sampled_from([word for text in TEXTS for word in text.split()]),
    st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("aB9,. \t\n[]#'"))),
)
TEXT = st.lists(WORD, max_size=12).map(" ".join)


def built_in(normalizer: normalizers.Normalizer | None = None) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(BUILT_IN))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return tokenizer


def with_tokens(*added: AddedToken | str) -> Tokenizer:
    tokenizer = built_in()
    tokenizer.add_tokens(list(added))
    return tokenizer


def of_short_words() -> Tokenizer:
    vocabulary = built_in().get_vocab()
    return of_model(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=4))


def of_byte_pairs() -> Tokenizer:
    tokenizer = of_model(models.BPE(unk_token="[UNK]"))
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["[UNK]"], show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return tokenizer


def of_model(model: models.Model) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


TOKENIZERS = {
    "built-in": built_in(),
    "cased": built_in(normalizers.BertNormalizer(lowercase=False)),
    "accents kept": built_in(normalizers.BertNormalizer(strip_accents=False)),
    "nothing cleaned": built_in(normalizers.BertNormalizer(clean_text=False, handle_chinese_chars=False)),
    "tokens added": with_tokens(
        "fox", AddedToken("Km", single_word=True), "Zoé", AddedToken("<x>", lstrip=True, rstrip=True)
    ),
    "short words": of_short_words(),
    "byte pairs": of_byte_pairs(),
}
WORDS = {name: KnownWords.of(tokenizer) for name, tokenizer in TOKENIZERS.items()}


def expected(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [each.ids for each in tokenizer.encode_batch(texts, add_special_tokens=False)]


def given_ids(words: KnownWords, texts: list[str]) -> list[list[int]]:
    found = words.ids(texts)
    assert all(each.dtype == np.int32 and each.flags.writeable for each in found)
    return [each.tolist() for each in found]


@pytest.mark.parametrize("name", TOKENIZERS)
@given(texts=st.lists(TEXT, max_size=4))
@settings(max_examples=100, deadline=None)
def test_ids_are_the_librarys(name: str, texts: list[str]) -> None:
    words = WORDS[name]  # of all examples: what is known differs from one to the next
    assert words is not None
    for asked in (texts, TEXTS):
        assert given_ids(words, asked) == expected(TOKENIZERS[name], asked)


def test_the_sample_collection_has_the_librarys_ids_also_where_it_starts_anew(monkeypatch) -> None:
    tokenizer = built_in()
    texts = [document.full_text for document in Collection.open(SAMPLE).documents()][:300]
    correct = expected(tokenizer, texts)
    for most in (known_words._MOST_BYTES, 100_000):
        monkeypatch.setattr(known_words, "_MOST_BYTES", most)
        words = KnownWords(tokenizer)
        for start in range(0, len(texts), 20):
            assert given_ids(words, texts[start : start + 20]) == correct[start : start + 20]
        assert (words._num_bytes > 1_000_000) == (most > 1_000_000)


def test_a_word_is_tokenised_once(monkeypatch) -> None:
    words = KnownWords(built_in())
    asked: list[str] = []
    encoded = words._encoded
    monkeypatch.setattr(words, "_encoded", lambda new: (asked.extend(new), encoded(new))[1])
    words.ids(["Foxes, foxes and naïve foxes", "and more"])
    assert sorted(asked) == [",", "and", "foxes", "more", "naïve"]
    asked.clear()
    words.ids(["more naïve (Foxes)", "foxes, and foxes,"])
    assert sorted(asked) == ["(", ")"]


def test_words_that_hardly_come_again_are_not_kept() -> None:
    words = KnownWords(built_in())
    line = "漢字" * 60
    for texts in ([f"a fox {line} {number} b" for number in range(5)], ["x" * 65 + "-fox", line + " fox"]):
        assert given_ids(words, texts) == expected(built_in(), texts)
    assert sorted(words._known) == sorted(["a", "b", "fox", "0", "1", "2", "3", "4", "-"])


def test_threads_that_start_anew_beside_one_another_agree(monkeypatch) -> None:
    monkeypatch.setattr(known_words, "_MOST_BYTES", 20_000)
    tokenizer = built_in()
    words = KnownWords(tokenizer)
    asked = [[f"{a} word{a}{b}, Fox{b} naïve{a}" for b in range(40)] for a in range(8)]
    correct = [expected(tokenizer, texts) for texts in asked]
    found: dict[int, list[list[list[int]]]] = {}

    def work(number: int) -> None:
        found[number] = [given_ids(words, asked[number]) for _ in range(30)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[number] == [correct[number]] * 30 for number in range(8))


@pytest.mark.parametrize(
    "tokenizer",
    [
        built_in(normalizers.Lowercase()),
        built_in(normalizers.Sequence([normalizers.BertNormalizer(), normalizers.Replace("o w", "ow")])),
        with_tokens("brown fox"),
        with_tokens("東京"),  # gets spaces around as it is normalised
    ],
)
def test_tokenizers_that_may_reach_over_spaces_are_left_to_the_library(tokenizer: Tokenizer) -> None:
    assert KnownWords.of(tokenizer) is None


@pytest.mark.parametrize(
    "pre_tokenizer",
    [pre_tokenizers.Metaspace(), pre_tokenizers.ByteLevel(), pre_tokenizers.Whitespace(), None],
)
def test_so_are_other_pre_tokenizers(pre_tokenizer) -> None:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    assert KnownWords.of(tokenizer) is None
