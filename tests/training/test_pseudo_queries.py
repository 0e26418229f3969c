"""Pseudo-queries: what rules make of documents, what is withheld, what the filters drop."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossrank import BM25, Document
from crossrank.errors import FileFormatError, InputError
from crossrank.training.adapt.filtering import round_trip, without_near_duplicates
from crossrank.training.adapt.generated import generate, read_generated
from crossrank.training.adapt.pseudo_queries import (
    SOURCES,
    PseudoQuery,
    draw_pseudo_queries,
    withhold,
)
from crossrank.training.adapt.questions import question_of

WING = Document(
    "wing",
    "# Flow over swept wings\n"
    "A boundary layer is a thin region of fluid near a wall. The pressure on the upper surface falls as the "
    "sweep angle of the wing grows. Measurements in the tunnel were made at nine angles of attack with a "
    "model of the whole aircraft.\n"
    "## Heat transfer at the nose\n"
    "It is a small effect. The temperature of the wall rises with the square of the speed of the stream.",
    "Boundary layers of swept wings",
)
PLATE = Document(
    "plate",
    "The temperature of a flat plate in a free stream was computed with the equations of motion. Pressure "
    "and speed were measured in the tunnel at many angles of attack and sweep. The surface is smooth.",
    "Heat of flat plates",
)


@pytest.mark.parametrize(
    ("sentence", "question"),
    [
        ("A boundary layer is a thin region of fluid.", "what is a boundary layer"),
        ("Enzymes are one of the classes of proteins.", "what are Enzymes"),
        ("The Mach number is the ratio of two speeds.", "what is the Mach number"),
        ("Hysteresis refers to a lag of an effect.", "what does Hysteresis mean"),
        ("Stall is defined as a loss of lift.", "what is Stall"),
        ("This is a thin region of fluid.", None),
        ("The aim of this paper is a proof.", None),
        ("The results are a surprise to us.", None),
        ("Underlying the method is an assumption.", None),
        ("Modification by dietary means is rare.", None),
        ("The wing was tested.", None),
        ("(1984) is a novel.", None),
        ("", None),
    ],
)
def test_a_question_is_made_of_definitions_alone(sentence: str, question: str | None) -> None:
    assert question_of(sentence) == question


def test_every_source_makes_what_it_says() -> None:
    found = draw_pseudo_queries([WING, PLATE], per_document=50)
    texts = {source: {query.text for query in found if query.source == source} for source in SOURCES}
    assert texts["title"] == {WING.title, PLATE.title}
    assert texts["heading"] == {"Flow over swept wings", "Heat transfer at the nose"}
    assert texts["question"] <= {"what is a boundary layer"}
    assert texts["sentence"]
    for query in found:
        document = WING if query.document_id == "wing" else PLATE
        left = withhold(document, [query]).full_text
        assert (query.text in left) is False or not query.withheld
        if query.source == "keywords":
            assert query.span is not None
            sentence = document.text[slice(*query.span)]
            places = [sentence.index(word) for word in query.text.split()]
            assert places == sorted(places)
            assert 3 <= len(places) <= 5
            assert sentence not in left


def test_a_title_that_the_text_repeats_is_withheld_there_too() -> None:
    document = Document("d", f"{PLATE.title.upper().replace(' ', chr(10))} . {PLATE.text}", PLATE.title)
    (query,) = draw_pseudo_queries([document], sources=["title"])
    assert withhold(document, [query]) == Document("d", f". {PLATE.text}")
    sentences = draw_pseudo_queries([document], sources=["sentence"], per_document=9)
    assert not any("flat plates" in query.text.lower() for query in sentences)


def test_a_text_without_marks_gives_parts_of_it() -> None:
    document = Document("d", " ".join(f"word{i}" for i in range(100)))
    found = draw_pseudo_queries([document], sources=["sentence"], per_document=2)
    assert [len(query.text.split()) for query in found] == [24, 24]


def test_keywords_are_words_that_another_document_has_the_rarest_first() -> None:
    text = "Alpha beta gamma delta epsilon zeta eta theta."
    rest = " Some more words follow here so that enough of it is left over."
    documents = [
        Document("a", text + rest),
        Document("b", "alpha beta gamma delta epsilon zeta"),
        Document("c", "alpha beta gamma"),
        Document("d", "alpha"),
    ]
    (query,) = [
        each
        for each in draw_pseudo_queries(documents, sources=["keywords"], per_document=9)
        if each.span == (0, len(text))
    ]
    # eta and theta are in no other document; alpha is in most
    assert query.text == "beta gamma delta epsilon zeta"


def test_one_of_each_source_comes_before_a_second_and_places_are_used_once() -> None:
    found = draw_pseudo_queries([WING], per_document=3)
    assert len({query.source for query in found}) == 3
    everything = draw_pseudo_queries([WING], per_document=50)
    spans = sorted(query.span for query in everything if query.span is not None)
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(spans))


def test_the_same_seed_draws_the_same_whatever_else_there_is() -> None:
    alone = draw_pseudo_queries([WING], sources=["sentence"], per_document=1, seed=3)
    together = draw_pseudo_queries([PLATE, WING], sources=["sentence"], per_document=1, seed=3)
    assert alone[0].text in {query.text for query in together}
    others = {
        draw_pseudo_queries([WING], sources=["sentence"], per_document=1, seed=seed)[0].text
        for seed in range(20)
    }
    assert len(others) > 1


def test_a_limit_takes_whole_documents() -> None:
    documents = [Document(f"d{i}", PLATE.text, f"{PLATE.title} {i}") for i in range(30)]
    found = draw_pseudo_queries(documents, per_document=2, limit=20)
    assert len(found) == 20
    assert len({query.document_id for query in found}) == 10
    assert len({query.id for query in found}) == 20


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(alphabet="ab .#\n", max_size=200), max_size=4), st.integers(0, 3))
def test_what_is_withheld_is_gone_and_nothing_else(texts: list[str], seed: int) -> None:
    documents = [Document(str(i), f"word {text}", "a title here") for i, text in enumerate(texts)]
    for document in documents:
        found = draw_pseudo_queries([document], per_document=3, language=None, seed=seed)
        left = withhold(document, found)
        gone = "".join(document.text[slice(*q.span)] for q in found if q.withheld and q.span is not None)
        assert sorted("".join((left.text + gone).split())) == sorted("".join(document.text.split()))
        assert left.title == ("" if any(query.source == "title" for query in found) else document.title)
        for query in found:
            if query.span is not None:
                assert " ".join(query.text.split()) == query.text


def test_generated_queries_are_taken_and_checked() -> None:
    def generator(texts):  # what a language model would do
        return [[f"about {text.split()[0]}"] if "wing" in text else [] for text in texts]

    generated = generate([WING, PLATE], generator)
    assert generated == {"wing": ["about Boundary"]}
    found = draw_pseudo_queries([WING, PLATE], sources=["generated"], generated=generated)
    assert [(q.text, q.source, q.withheld) for q in found] == [("about Boundary", "generated", False)]
    with pytest.raises(InputError, match="answered for 1"):
        generate([WING, PLATE], lambda texts: [["one"]])
    with pytest.raises(InputError, match="'plate'"):
        generate([PLATE], lambda texts: ["not a list"])
    with pytest.raises(InputError, match="'gone'"):
        draw_pseudo_queries([WING], generated={"gone": ["query"]})
    with pytest.raises(InputError, match="titles"):
        draw_pseudo_queries([WING], sources=["titles"])


def test_a_seq2seq_model_is_a_generator() -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    folder = Path(__file__).parents[1] / "golden_t5" / "t5"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()

    def generator(texts):
        inputs = tokenizer(list(texts), padding=True, return_tensors="pt")
        options = {"max_new_tokens": 6, "num_beams": 2, "num_return_sequences": 2, "do_sample": False}
        written = tokenizer.batch_decode(model.generate(**inputs, **options), skip_special_tokens=True)
        return [written[2 * i : 2 * i + 2] for i in range(len(texts))]

    generated = generate([WING, PLATE], generator)
    own = generator([WING.full_text, PLATE.full_text])
    assert generated == {"wing": own[0], "plate": own[1]}
    found = draw_pseudo_queries([WING, PLATE], sources=["generated"], generated=generated, per_document=2)
    assert {query.text for query in found} == {" ".join(text.split()) for text in itertools.chain(*own)} - {
        ""
    }


def test_a_file_of_generated_queries_is_read(tmp_path: Path) -> None:
    path = tmp_path / "queries.jsonl"
    rows = [{"document_id": "a", "query": "one"}, {"document_id": "b", "query": "two"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]), encoding="utf-8")
    assert read_generated(path) == {"a": ["one", "one"], "b": ["two"]}
    path.write_text('{"document_id": "a"}\n', encoding="utf-8")
    with pytest.raises(FileFormatError, match=r"queries.jsonl.*'query' must be"):
        read_generated(path)


def _query(number: int, text: str, document_id: str = "d") -> PseudoQuery:
    return PseudoQuery(f"p{number}", text, document_id, "sentence")


def test_near_duplicates_are_dropped_whatever_their_order_of_words() -> None:
    texts = [
        "heat of flat plates",
        "flat plates and their heat",  # the same terms
        "heat of flat round plates",  # three of four
        "the of and",  # no term
        "sweep of wings",
    ]
    queries = [_query(i, text) for i, text in enumerate(texts)]
    found = without_near_duplicates(queries, threshold=0.8)
    assert [query.id for query in found.queries] == ["p0", "p2", "p4"]
    assert found.dropped == {"sentence": 2}
    found = without_near_duplicates(queries, threshold=0.75)
    assert [query.id for query in found.queries] == ["p0", "p4"]


@given(
    st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=6), max_size=20),
    st.sampled_from([0.2, 0.5, 2 / 3, 0.8, 1.0]),
)
def test_near_duplicates_are_those_of_all_pairs(words: list[list[str]], threshold: float) -> None:
    queries = [_query(i, " ".join(each)) for i, each in enumerate(words)]
    kept: list[int] = []
    for i, each in enumerate(words):
        similar = (len({*each} & {*words[j]}) / len({*each} | {*words[j]}) for j in kept)
        if not any(value >= threshold for value in similar):
            kept.append(i)
    found = without_near_duplicates(queries, threshold=threshold, language=None)
    assert [query.id for query in found.queries] == [f"p{i}" for i in kept]


def test_a_round_trip_keeps_what_leads_back() -> None:
    documents = [Document(f"d{i}", f"text number{i} of many") for i in range(40)]
    queries = [_query(0, "number3", "d3"), _query(1, "number4", "d5"), _query(2, "unknown", "d6")]
    found = round_trip(queries, BM25(documents), top_k=5)
    assert [query.id for query in found.queries] == ["p0"]
    assert found.dropped == {"sentence": 2}
    # all match "many"; the first of equals are found
    assert len(round_trip([_query(0, "many", "d0"), _query(1, "many", "d39")], BM25(documents)).queries) == 1
