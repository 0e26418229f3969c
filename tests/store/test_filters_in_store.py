"""The store and Python agree on what a filter matches."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from crossrank.store.filters import MAX_DEPTH, Comparison, Filter, In, Missing, Not, as_filter
from crossrank.store.filters import And as AllOf
from crossrank.store.filters import Or as AnyOf
from crossrank.store.lance import Index
from crossrank.types import Document

FIELDS = {"Year": int, "price": float, "lang": str, "draft": bool}

# Few values, so that comparisons hit; and the ones that break stores.
VALUES: dict[str, list[Any]] = {
    "Year": [-(2**63), -(2**53) - 1, -1, 0, 1, 1999, 2000, 2**53, 2**53 + 1, 2**63 - 1],
    "price": [-1e308, -1.5, -0.0, 0.0, 5e-324, 0.1, 1.0, 2.0**53, 1e22, 1.7976931348623157e308],
    "lang": [
        *("", "a", "A", "en", "it's", "''", "' OR 1=1 --", '"', "\\", "\\'", "%"),
        *("é", "e\u0301", "漢", "🦊", "\uffff", "\0"),
    ],
    "draft": [True, False],
}
INTS, FLOATS, TEXTS, BOOLS = (st.sampled_from(VALUES[name]) for name in FIELDS)
IDS = st.sampled_from([f"d{n}" for n in range(0, 60, 7)])


def comparisons() -> st.SearchStrategy[Filter]:
    ordered = st.sampled_from(["=", "<", "<=", ">", ">="])
    return st.one_of(
        st.builds(Comparison, st.just("Year"), ordered, INTS),
        st.builds(Comparison, st.just("price"), ordered, FLOATS | INTS),
        st.builds(Comparison, st.just("lang"), ordered, TEXTS),
        st.builds(Comparison, st.just("id"), ordered, IDS),
        st.builds(Comparison, st.just("draft"), st.just("="), BOOLS),
        st.builds(Missing, st.sampled_from([*FIELDS, "id"])),
        st.builds(In, st.just("Year"), st.lists(INTS, max_size=3).map(tuple)),
        st.builds(In, st.just("price"), st.lists(FLOATS | INTS, max_size=3).map(tuple)),
        st.builds(In, st.just("lang"), st.lists(TEXTS, max_size=3).map(tuple)),
        st.builds(In, st.just("draft"), st.lists(BOOLS, max_size=2).map(tuple)),
    )


def combined(inner: st.SearchStrategy[Filter]) -> st.SearchStrategy[Filter]:
    several = st.lists(inner, max_size=3).map(tuple)
    return st.builds(AllOf, several) | st.builds(AnyOf, several) | st.builds(Not, inner)


FILTERS = st.recursive(comparisons(), combined, max_leaves=8)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Index, list[Document]]:
    index = Index.create(tmp_path_factory.mktemp("filters") / "index", fields=FIELDS)
    stored = [  # every value, and every combination of present and absent fields
        Document(
            f"d{number}",
            "text",
            metadata={
                name: choices[(number * 7 + number // 16) % len(choices)]
                for bit, (name, choices) in enumerate(VALUES.items())
                if number >> bit & 1
            },
        )
        for number in range(160)
    ]
    index.add(stored)
    return index, stored


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(condition=FILTERS)
@example(condition=AllOf(()))
@example(condition=AnyOf(()))
@example(condition=Not(In("lang", ())))
@example(condition=Comparison("price", "=", -0.0))
def test_store_and_python_agree(store: tuple[Index, list[Document]], condition: Filter) -> None:
    index, stored = store
    expected = {document.id for document in stored if condition.matches(document)}
    assert {document.id for document in index.documents(condition)} == expected
    assert index.count(condition) == len(expected)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_no_value_escapes_its_quotes(store: tuple[Index, list[Document]], text: str) -> None:
    index, stored = store
    expected = [document for document in stored if document.metadata.get("lang") == text]
    assert list(index.documents({"lang": text})) == expected
    assert index.count({"lang": {"!=": text}}) == len(stored) - len(expected)
    quoted = "lang = '" + text.replace("'", "''") + "'"
    assert as_filter(quoted) == Comparison("lang", "=", text)


def test_deep_and_wide_filters(store: tuple[Index, list[Document]]) -> None:
    index, stored = store
    deep: dict[str, Any] = {"Year": 1999}
    for _ in range(MAX_DEPTH // 2):
        deep = {"not": {"or": [deep, {"Year": 2000}]}}
    assert index.count(deep) == sum(as_filter(deep).matches(document) for document in stored)
    nots: dict[str, Any] = {"Year": 1999}
    for _ in range(MAX_DEPTH):
        nots = {"not": nots}
    assert index.count(nots) == index.count({"Year": 1999}) > 0
    assert index.count({"Year": {"in": list(range(10_000))}}) == sum(
        0 <= document.metadata.get("Year", -1) < 10_000 for document in stored
    )
    assert index.count({"or": [{"Year": n} for n in range(1500)]}) == sum(
        0 <= document.metadata.get("Year", -1) < 1500 for document in stored
    )
