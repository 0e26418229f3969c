"""Run files and qrels: exact round trips, and faults reported with file and line."""

import gzip
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossrank.errors import FileFormatError, InputError
from crossrank.evaluation.measures import evaluate
from crossrank.evaluation.trec import (
    descending_scores,
    read_qrels,
    read_run,
    run_lines,
    write_qrels,
    write_run,
)
from crossrank.types import Hit, Ranking, Run

ids = st.text(st.characters(codec="utf-8", exclude_characters="\0 \t\v\f\r\n\ufeff"), min_size=1, max_size=6)
float32s = st.floats(width=32, allow_nan=False, allow_infinity=False).map(float)


@st.composite
def runs(draw: st.DrawFn, scores: st.SearchStrategy[float] = float32s) -> Run:
    found = draw(st.dictionaries(ids, st.dictionaries(ids, scores, min_size=1, max_size=6), max_size=4))
    tag = draw(ids)
    return Run(
        {
            query_id: Ranking.from_hits(
                "", [Hit(each, score, 1, tag) for each, score in hits.items()], query_id=query_id
            )
            for query_id, hits in found.items()
        },
        tag,
    )


@settings(max_examples=60, deadline=None)
@given(run=runs(), name=st.sampled_from(["a.trec", "a.trec.gz"]))
def test_a_written_run_reads_back_equal_to_the_last_bit(run: Run, name: str, tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("run") / name
    write_run(run, path)
    back = read_run(path)
    assert dict(back) == dict(run)
    assert list(back) == list(run)
    assert not run or back.tag == run.tag
    for query_id, ranking in run.items():
        before = np.array(ranking.scores, dtype=np.float32)
        after = np.array(back[query_id].scores, dtype=np.float32)
        assert before.tobytes() == after.tobytes()


@settings(max_examples=60, deadline=None)
@given(
    qrels=st.dictionaries(
        ids, st.dictionaries(ids, st.integers(-2, 4), min_size=1, max_size=4), min_size=1, max_size=4
    ),
    name=st.sampled_from(["q.tsv", "q.tsv.gz", "q.txt", "q.qrels.gz"]),
)
def test_written_qrels_read_back_equal(qrels: dict, name: str, tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("qrels") / name
    write_qrels(qrels, path)
    assert read_qrels(path) == qrels


def test_a_run_is_written_as_six_columns(tmp_path: Path) -> None:
    hits = [Hit("d2", 15.7806, 9, "bm25"), Hit("d1", np.float32(0.1), 9, "bm25")]
    run = Run({"q1": Ranking("text", tuple(hits), query_id="q1")}, tag="mine")
    write_run(run, tmp_path / "run.trec")
    assert (tmp_path / "run.trec").read_text() == (
        "q1 Q0 d2 1 15.7806 mine\nq1 Q0 d1 2 0.10000000149011612 mine\n"
    )
    assert next(run_lines(dict(run), tag="other")) == "q1 Q0 d2 1 15.7806 other"


def test_equal_runs_give_equal_gzip_bytes_that_others_can_read(tmp_path: Path) -> None:
    run = Run({"q": Ranking("", (Hit("d", 1.0, 1, "t"),))})
    write_run(run, tmp_path / "a.gz")
    write_run(run, tmp_path / "b.gz")
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()
    with gzip.open(tmp_path / "a.gz", "rt") as file:
        assert file.read() == "q Q0 d 1 1.0 crossrank\n"


def test_a_file_is_read_by_score_then_rank_then_place(tmp_path: Path) -> None:
    path = tmp_path / "run.txt"
    path.write_bytes(
        b"\xef\xbb\xbfq2 Q0 low 1 -1e-3 t\r\n"
        b"q2\tQ0\thigh\t7\t+2\tt\r\n\r\n"
        b"q2 Q0 tie_b 4 1.50 t\r\n"
        b"q2 Q0 tie_a 3 1.5 t\r\n"
        b"  q1 Q0 d\xc2\xa0x 0 .5 u  \r\n"
    )
    run = read_run(path, {"q1": "the text"})
    assert list(run) == ["q2", "q1"]
    assert run.tag == "t"
    assert run["q2"].document_ids == ("high", "tie_a", "tie_b", "low")
    assert [hit.rank for hit in run["q2"]] == [1, 2, 3, 4]
    assert run["q1"].query == "the text"
    assert run["q1"].query_id == "q1"
    assert run["q1"][0] == Hit("d\u00a0x", 0.5, 1, "t")  # a no-break space is no blank


def test_tags_that_differ_within_a_query_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.write_text("q Q0 a 1 1.0 t1\nq Q0 b 2 1.0 t2\n")
    run = read_run(path)
    assert descending_scores(run["q"]) == [1.0, 1.0]
    assert evaluate(run, {"q": {"a": 1}}, ["MRR@10"])["MRR@10"] == 0.5  # trec_eval puts b first


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("q1 Q0 d1 1 1.0", "6 columns"),
        ("q1 Q0 d1 1 1.0 tag more", "6 columns"),
        ("q1 Q0 d1 first 1.0 tag", "rank"),
        ("q1 Q0 d1 1 high tag", "score"),
        ("q1 Q0 d1 1 nan tag", "score"),
        ("q1 Q0 d1 1 inf tag", "score"),
        ("q1 Q0 d1 1 1e999 tag", "score"),
        ("q1 Q0 d1 1 1e39 tag", "float32"),
        (f"q1 Q0 d1 {'9' * 5000} 1 tag", "rank"),
        ("q1 Q0 d1 1 1_0 tag", "score"),
        ("q1 Q0 d1 1 ١ tag", "score"),
        ("q0 Q0 d0 2 0.5 tag", "second time"),
    ],
)
def test_a_bad_run_row_is_located(row: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.trec"
    path.write_text(f"q0 Q0 d0 1 1.0 tag\n\n{row}\n", encoding="utf-8")
    with pytest.raises(FileFormatError, match=message) as caught:
        read_run(path)
    assert (caught.value.path, caught.value.line) == (path, 3)
    assert str(caught.value).startswith(f"{path}:3: ")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="no such file"):
        read_run(tmp_path / "none")
    with pytest.raises(FileFormatError, match="cannot be read"):
        read_run(tmp_path)
    latin = tmp_path / "latin"
    latin.write_bytes("q Q0 d 1 1 t\nq Q0 é 1 1 t\n".encode("latin-1"))
    with pytest.raises(FileFormatError, match="UTF-8") as caught:
        read_run(latin)
    assert caught.value.line == 2
    whole = io.BytesIO()
    with gzip.open(whole, "wb") as file:
        file.write(b"".join(b"q Q0 d%d 1 1 t\n" % n for n in range(5000)))
    (tmp_path / "cut.gz").write_bytes(whole.getvalue()[:-20])
    (tmp_path / "plain.gz").write_bytes(b"q Q0 d 1 1 t\n")
    for name in ("cut.gz", "plain.gz"):
        with pytest.raises(FileFormatError, match="damaged gzip"):
            read_run(tmp_path / name)


@pytest.mark.parametrize("bad", ["a b", "", "a\tb", "a\nb", "\ufeffa", "a\0b", "\ud800"])
def test_ids_a_run_file_cannot_hold_are_refused_and_leave_no_file(bad: str, tmp_path: Path) -> None:
    hit = Hit("d", 1.0, 1, "t")
    for run in (
        Run({"ok": Ranking("", (hit,)), bad: Ranking("", (hit,))}),
        Run({"q": Ranking("", (hit,))}, tag=bad),
        Run({"q": Ranking("", (hit, Hit(bad or " ", 0.5, 2, "t")))}),
    ):
        with pytest.raises(InputError, match="cannot be written"):
            write_run(run, tmp_path / "run.trec")
    with pytest.raises(InputError, match="cannot be written"):
        write_qrels({"q": {bad: 1}}, tmp_path / "qrels.txt")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "run.trec"
    path.write_text("old")
    for score in (float("nan"), float("inf"), 1e39):
        with pytest.raises(InputError, match="float32"):
            write_run({"q": Ranking("", (Hit("d", score, 1, "t"),))}, path)
    twice = Ranking("", (Hit("d", 1.0, 1, "t"), Hit("d", 0.5, 2, "t")))
    with pytest.raises(InputError, match="twice"):
        write_run({"q": twice}, path)
    assert path.read_text() == "old"
    with pytest.raises(InputError, match="cannot be written"):
        write_run({}, tmp_path / "no folder" / "run.trec")


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_run({"q": Ranking("", (Hit("d", 1.0, 1, "t"),))}, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert list(read_run(tmp_path / "real")) == ["q"]


def test_qrels_forms_are_told_apart_by_content(tmp_path: Path) -> None:
    expected = {"q1": {"d1": 2, "d2": 0}, "q2": {"d1": -1}}
    texts = {
        "trec": "q1 0 d1 2\nq1\tQ0\td2\t0\n\nq2 0 d1 -1\n",
        "beir": "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\nq2\td1\t-1\n",
        "headless": "q1\td1\t2\nq1\td2\t0\nq2\td1\t-1\r\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        assert read_qrels(tmp_path / name) == expected
    (tmp_path / "spaces").write_text("query-id\tcorpus-id\tscore\nq 1\ta b\t1\n")
    assert read_qrels(tmp_path / "spaces") == {"q 1": {"a b": 1}}
    write_qrels({"q 1": {"a b": 1}}, tmp_path / "out", form="beir")
    assert (tmp_path / "out").read_bytes() == (tmp_path / "spaces").read_bytes()


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("q 0 d 1\nq 0 d2\n", 2, "4 columns"),
        ("query-id\tcorpus-id\tscore\nq d 1\n", 2, "3 columns"),
        ("q\td\tx\n", 1, "grade"),
        ("q 0 d 1.0\n", 1, "grade"),
        (f"q 0 d {'9' * 5000}\n", 1, "grade"),
        ("q 0 d 99999999\n", 1, "at most 1,000,000"),
        ("q 0 d 1\nq 0 e 1_0\n", 2, "grade"),
        ("query-id\tcorpus-id\tscore\n\td\t1\n", 2, "empty id"),
        ("q 0 d 1\nq 0 e 1\nq 0 d 0\n", 3, "second time"),
    ],
)
def test_a_bad_judgement_is_located(text: str, line: int, message: str, tmp_path: Path) -> None:
    path = tmp_path / "qrels"
    path.write_text(text)
    with pytest.raises(FileFormatError, match=message) as caught:
        read_qrels(path)
    assert caught.value.line == line


def test_bad_arguments_of_write_qrels(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="form"):
        write_qrels({}, tmp_path / "a", form="csv")  # type: ignore[arg-type]
    for grade in (1.5, True, "1"):
        with pytest.raises(InputError, match="whole number"):
            write_qrels({"q": {"d": grade}}, tmp_path / "a")  # type: ignore[dict-item]


def test_scores_of_several_stages_are_made_to_fall() -> None:
    ranking = Ranking(
        "q",
        (
            Hit("a", 3.0, 1, "rerank"),
            Hit("b", -2.0, 2, "rerank"),
            Hit("c", -2.0, 3, "rerank"),  # a tie within a stage stays one
            Hit("d", 15.0, 4, "bm25"),
            Hit("e", 14.0, 5, "bm25"),
            Hit("f", -9.0, 6, "bm25"),
        ),
    )
    below = np.nextafter(np.float32(-2), np.float32(-np.inf))
    below_that = np.nextafter(below, np.float32(-np.inf))
    assert descending_scores(ranking) == [3.0, -2.0, -2.0, float(below), float(below_that), -9.0]
    level = Ranking("q", (Hit("a", 1.0, 1, "rerank"), Hit("b", 1.0, 2, "bm25")))
    assert descending_scores(level) == [1.0, float(np.nextafter(np.float32(1), np.float32(0)))]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(float32s.filter(lambda x: abs(x) < 1e30), st.sampled_from("ab")), max_size=8))
def test_falling_scores_keep_the_order_for_trec_eval(found: list[tuple[float, str]]) -> None:
    ranking = Ranking("q", tuple(Hit(str(i), s, i + 1, stage) for i, (s, stage) in enumerate(found)))
    scores = np.array(descending_scores(ranking), dtype=np.float32)
    assert (np.diff(scores) <= 0).all()
    for i, fell in enumerate(np.diff(scores) < 0):
        same = found[i][1] == found[i + 1][1] and found[i + 1][0] == scores[i]
        assert fell or same
