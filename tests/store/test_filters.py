"""Filters: their two written forms, their meaning in Python, their errors."""

from __future__ import annotations

import pytest

from crossrank.errors import InputError
from crossrank.store.filters import And, Comparison, Filter, In, Missing, Not, Or, as_filter
from crossrank.types import Document

FIELDS = {"year": int, "price": float, "lang": str, "draft": bool}
OLD = Document("old", "x", metadata={"year": 1950, "price": 2.5, "lang": "de", "draft": False})
NEW = Document("new", "x", metadata={"year": 2020, "price": 10.0, "lang": "en", "draft": True})
BARE = Document("bare", "x")


def found(condition: object) -> list[str]:
    condition = as_filter(condition)  # type: ignore[arg-type]
    return [document.id for document in (OLD, NEW, BARE) if condition.matches(document)]


@pytest.mark.parametrize(
    ("as_dict", "as_text", "expected"),
    [
        ({"year": 1950}, "year = 1950", ["old"]),
        ({"year": {"<": 2000}}, "year < 2000", ["old"]),
        ({"year": {">=": 1950, "<": 2020}}, "year >= 1950 and year < 2020", ["old"]),
        ({"year": {"!=": 1950}}, "year != 1950", ["new", "bare"]),
        ({"year": None}, "year is null", ["bare"]),
        ({"year": {"!=": None}}, "year is not null", ["old", "new"]),
        ({"lang": ["en", "fr"]}, "lang in ('en', \"fr\")", ["new"]),
        ({"lang": {"not in": ["en", "fr"]}}, "lang NOT IN ('en', 'fr')", ["old", "bare"]),
        ({"draft": True}, "draft = true", ["new"]),
        ({"not": {"draft": True}}, "not draft = true", ["old", "bare"]),
        (
            {"or": [{"lang": "de"}, {"price": {">": 9}}], "draft": False},
            "(lang = 'de' or price > 9) and draft = false",
            ["old"],
        ),
        (
            {"or": [{"lang": "de"}, {"and": [{"price": {">": 9}}, {"draft": False}]}]},
            "lang = 'de' or price > 9 and draft = false",
            ["old"],
        ),
        ({"id": ["new", "bare"]}, "id in ('new','bare')", ["new", "bare"]),
        ({"price": {"<=": 2.5}}, "price <= 25e-1", ["old"]),
        ({"year": {">": -1}}, "year > -1", ["old", "new"]),
    ],
)
def test_both_forms_mean_the_same(as_dict: dict, as_text: str, expected: list[str]) -> None:
    assert found(as_dict) == expected
    assert found(as_text) == expected


def test_empty_filters() -> None:
    assert found({}) == ["old", "new", "bare"]
    assert found({"and": []}) == ["old", "new", "bare"]
    assert found({"or": []}) == []
    assert found({"lang": []}) == []
    assert And(()).to_sql({}) == "true"
    assert Or(()).to_sql({}) == "false"
    assert In("lang", ()).to_sql(FIELDS) == "false"


def test_combining_with_operators() -> None:
    year = Comparison("year", "<", 2000)
    lang = Comparison("lang", "=", "en")
    assert found(year | lang) == ["old", "new"]
    assert found(year & lang) == []
    assert found(~year) == ["new", "bare"]
    assert ~Missing("year") == Not(Missing("year"))


def test_values_of_other_kinds_never_match() -> None:
    wrong = Document("w", "x", metadata={"year": "1950", "lang": 3, "draft": 1})
    assert not as_filter("year = 1950 or lang = 'de' or draft = true").matches(wrong)


def test_quotes_in_values() -> None:
    tricky = "it's \"x\" -- '; drop"
    document = Document("d", "x", metadata={"lang": tricky})
    assert as_filter({"lang": tricky}).matches(document)
    assert as_filter("lang = 'it''s \"x\" -- ''; drop'").matches(document)
    assert as_filter('lang = "it\'s ""x"" -- \'; drop"').matches(document)
    assert as_filter({"lang": tricky}).to_sql(FIELDS).count("'") % 2 == 0


@pytest.mark.parametrize(
    ("text", "position", "message"),
    [
        ("year <", 7, "expected a value, found the end"),
        ("year < 2000 and", 16, "expected a field name, found the end"),
        ("year < 2000 lang = 'en'", 13, "expected 'and', 'or' or the end, found 'lang'"),
        ("lang = en", 8, "put a text in quotes"),
        ("lang = 'en", 8, "a text that is not closed"),
        ("(year < 3", 10, "expected ')'"),
        ("year ~ 3", 6, "'~' is not understood here"),
        ("year in 3", 9, "expected '('"),
        ("year in (3 4)", 12, "expected ',' or ')'"),
        ("year not 3", 10, "expected 'in'"),
        ("year = null", 8, "write 'is null'"),
        ("draft < true", 9, "have no order"),
        ("year = 99999999999999999999", 8, "does not fit into 64 bits"),
        ("price < 1e999", 9, "use a finite number"),
        ("year = 12abc", 8, "'1' is not understood here"),
        ("", 1, "expected a field name"),
        ("'year' = 3", 1, "expected a field name"),
    ],
)
def test_syntax_errors_say_where(text: str, position: int, message: str) -> None:
    with pytest.raises(InputError) as caught:
        as_filter(text)
    assert f"character {position}:" in str(caught.value)
    assert message in str(caught.value)
    assert str(caught.value).splitlines()[-1] == "  " + " " * (position - 1) + "^"


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"year": {"~": 3}}, "unknown operator '~'"),
        ({"year": {}}, "no operator given"),
        ({"year": {"in": 3}}, "takes a list"),
        ({"or": {"year": 3}}, "takes a list of filters"),
        ({"not": [1]}, "takes filters in dict form"),
        ({"and": [3]}, "takes filters in dict form"),
        ({"year": float("nan")}, "finite"),
        ({"year": b"x"}, "bytes"),
        ({"lang": "\ud800"}, "not valid Unicode"),
        ({"draft": {"<": True}}, "no order"),
        ({3: 4}, "field names"),
        (3, "a dict, a string or a Filter"),
    ],
)
def test_dict_errors(condition: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_filter(condition)  # type: ignore[arg-type]


def test_nesting_is_bounded() -> None:
    with pytest.raises(InputError, match="nested"):
        as_filter("not " * 1000 + "year = 1")
    with pytest.raises(InputError, match="nested"):
        as_filter("(" * 1000 + "year = 1" + ")" * 1000)
    built: Filter = Comparison("year", "=", 1)
    for _ in range(1000):
        built = ~built
    with pytest.raises(InputError, match="nested"):
        as_filter(built)
    nested: dict = {"year": 1}
    for _ in range(1000):
        nested = {"not": nested}
    with pytest.raises(InputError, match="nested"):
        as_filter(nested)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("colour = 'red'", r"no field 'colour'; it has id \(str\), year \(int\), price \(float\)"),
        ("year = '1950'", "holds int values and cannot be compared with '1950'"),
        ("year = 1950.5", "holds int values"),
        ("lang = 3", "holds str values"),
        ("draft = 1", "holds bool values"),
        ("price = true", "holds float values"),
        ("id = 3", "holds str values"),
        ({"colour": []}, "no field 'colour'"),
        ({"colour": None}, "no field 'colour'"),
    ],
)
def test_conditions_are_checked_against_the_fields(condition: Filter, message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_filter(condition).to_sql(FIELDS)
