"""Passages for a prompt: within the limit, whole, numbered, and nothing left out silently."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossrank.context import Context, Source, as_context, estimate_tokens
from crossrank.errors import InputError
from crossrank.types import Document, Hit, Ranking


def ranking(*documents: Document, spans: dict[int, tuple[int, int]] | None = None) -> Ranking:
    return Ranking(
        "q",
        tuple(
            Hit(d.id, 1.0 / rank, rank, "bm25", document=d, span=(spans or {}).get(rank))
            for rank, d in enumerate(documents, start=1)
        ),
    )


def words(text: str) -> int:
    return len(text.split())


FOX = Document("fox", "Foxes are red.", "Foxes")
WHALE = Document("whale", "Whales are blue. They swim.")


def test_the_best_passages_with_citations() -> None:
    context = ranking(FOX, WHALE).as_context()
    assert context.text == "[1] Foxes\nFoxes are red.\n\n[2] Whales are blue. They swim."
    assert str(context) == context.text
    assert context.sources == (Source(1, "fox", "Foxes"), Source(2, "whale"))
    assert context.left_out == ()
    assert context.num_tokens == estimate_tokens(context.text)


def test_an_empty_ranking_is_an_empty_context() -> None:
    assert as_context(Ranking("q")) == Context("", (), (), 0)


def test_a_passage_that_does_not_fit_is_left_out_whole_and_listed() -> None:
    long = Document("long", "word " * 50)
    context = as_context(ranking(FOX, long, WHALE), max_tokens=12, count_tokens=words)
    assert context.text == "[1] Foxes\nFoxes are red.\n\n[2] Whales are blue. They swim."
    assert context.left_out == ("long",)
    assert [source.number for source in context.sources] == [1, 2]
    assert context.num_tokens == 11
    none = as_context(ranking(long, WHALE), max_tokens=3, count_tokens=words)
    assert none == Context("", (), ("long", "whale"), 0)


def test_the_first_passage_may_be_cut_at_a_sentence_end() -> None:
    text = 'One two three. "Four five six!" Seven eight (nine?) Ten eleven 3.5 twelve.'
    document = Document("d", text, "Title")
    whole = ranking(document, WHALE)
    for max_tokens, shown in (
        (8, 'One two three. "Four five six!"'),
        (7, "One two three."),
        (5, "One two three."),
    ):
        context = as_context(whole, max_tokens=max_tokens, count_tokens=words, allow_cut=True)
        assert context.text == f"[1] Title\n{shown}"
        start = document.full_text.index("One")
        assert context.sources[0] == Source(1, "d", "Title", (start, start + len(shown)), is_cut=True)
        assert document.full_text[slice(*context.sources[0].span)] == shown
        assert context.left_out == ("whale",)
    assert as_context(whole, max_tokens=4, count_tokens=words, allow_cut=True).left_out == ("d", "whale")
    assert as_context(whole, max_tokens=8, count_tokens=words).left_out[0] == "d"
    # only the first: the second is left out whole
    context = as_context(ranking(WHALE, document), max_tokens=12, count_tokens=words, allow_cut=True)
    assert context.left_out == ("d",)
    fitting = as_context(ranking(WHALE), max_tokens=6, count_tokens=words, allow_cut=True)
    assert fitting.sources == (Source(1, "whale"),)  # it fits: not cut


def test_sentences_without_blanks_between_them() -> None:
    document = Document("d", "狐狸是红色的。鲸鱼是蓝色的！猫?")
    context = as_context(ranking(document), max_tokens=11, count_tokens=len, allow_cut=True)
    assert context.text == "[1] 狐狸是红色的。"


def test_the_winning_window_is_the_passage() -> None:
    document = Document("d", "Start. The answer is here. End.", "Title")
    start = document.full_text.index("The answer")
    span = (start, start + len("The answer is here."))
    context = as_context(ranking(document, spans={1: span}))
    assert context.text == "[1] Title\nThe answer is here."
    assert context.sources == (Source(1, "d", "Title", span),)
    # cut within a window: the span is still one of the full text
    cut = as_context(
        ranking(document, spans={1: (6, len(document.full_text))}),
        max_tokens=4,
        count_tokens=words,
        allow_cut=True,
    )
    assert cut.text == "[1] Title\nStart."
    assert document.full_text[slice(*cut.sources[0].span)] == "Start."


@pytest.mark.parametrize(
    ("span", "text"),
    [
        ((0, 12), "[1] Title\nStart."),  # begins with the title: shown once
        ((2, 12), "[1] tle Start."),  # begins within it: the text as it is
        ((0, 3), "[1] Tit"),
        ((0, 6), "[1] Title "),
        ((6, 12), "[1] Title\nStart."),
    ],
)
def test_windows_that_touch_the_title(span, text: str) -> None:
    document = Document("d", "Start. End.", "Title")
    assert as_context(ranking(document, spans={1: span})).text == text


@pytest.mark.parametrize("span", [(-1, 3), (5, 2), (0, 999)])
def test_a_span_outside_the_document_is_an_error(span) -> None:
    with pytest.raises(InputError, match="span"):
        as_context(ranking(FOX, spans={1: span}))


def test_templates() -> None:
    template = '<doc n="{number}" id="{document_id}" title="{title}">{{{text}}}</doc>'
    assert as_context(ranking(FOX), template=template).text == (
        '<doc n="1" id="fox" title="Foxes">{Foxes are red.}</doc>'
    )
    braces = Document("{x}", "{number} {0.__class__}")
    assert ranking(braces).as_context(template="{document_id}: {text}").text == "{x}: {number} {0.__class__}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{text} {score}", "fields are"),
        ("{text.__class__}", "fields are"),
        ("{}", "fields are"),
        ("{number}", "shows no text"),
        ("plain", "shows no text"),
        ("{text", "cannot be read"),
        ("{text:>10}", "no format"),
        ("{text!r}", "no format"),
    ],
)
def test_bad_templates(template: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_context(Ranking("q"), template=template)


@pytest.mark.parametrize("max_tokens", [0, -5, 1.5, True, None])
def test_bad_limits(max_tokens) -> None:
    with pytest.raises(InputError, match="max_tokens"):
        as_context(ranking(FOX), max_tokens=max_tokens)


def test_hits_without_text() -> None:
    with pytest.raises(InputError, match="'x' has no document"):
        as_context(Ranking("q", (Hit("x", 1.0, 1, "bm25"),)))
    empty = as_context(ranking(Document("e", " \n", "Title"), FOX))
    assert empty.left_out == ("e",)
    assert empty.sources == (Source(1, "fox", "Foxes"),)


def test_the_estimate_counts_words_or_bytes() -> None:
    assert estimate_tokens("") == 0
    assert estimate_tokens("a b c d") == 6  # 4 words × 1.3 = 5.2
    assert estimate_tokens("x" * 400) == 100
    assert estimate_tokens("狐" * 40) == 30
    assert estimate_tokens("\ud800") == 2  # half a surrogate pair: odd, but countable


texts = st.text(st.sampled_from("ab .!?\n。é"), max_size=60)


@settings(max_examples=150, deadline=None)
@given(
    found=st.lists(st.tuples(texts, texts), max_size=6),
    max_tokens=st.integers(1, 60),
    allow_cut=st.booleans(),
    count=st.sampled_from([estimate_tokens, len, words]),
)
def test_what_always_holds(found, max_tokens: int, allow_cut: bool, count) -> None:
    documents = [Document(f"d{i}", text, title) for i, (title, text) in enumerate(found)]
    context = as_context(ranking(*documents), max_tokens=max_tokens, count_tokens=count, allow_cut=allow_cut)
    assert count(context.text) == context.num_tokens <= max_tokens
    shown = [source.document_id for source in context.sources]
    assert sorted([*shown, *context.left_out]) == [d.id for d in documents]
    assert shown == sorted(shown)
    assert list(context.left_out) == sorted(context.left_out)
    assert [source.number for source in context.sources] == list(range(1, len(shown) + 1))
    blocks = []
    for source in context.sources:
        document = documents[int(source.document_id[1:])]
        text = document.full_text[slice(*source.span)] if source.is_cut and source.span else document.text
        assert document.text.startswith(text)
        assert not source.is_cut or (allow_cut and source.number == 1 and document.id == "d0")
        blocks.append(f"[{source.number}] " + (f"{document.title}\n" if document.title else "") + text)
    assert context.text == "\n\n".join(blocks)
