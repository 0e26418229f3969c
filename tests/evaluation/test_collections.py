"""Collections in BEIR form: the sample that ships, folders made here, and others where they are at hand."""

import gzip
import json
from pathlib import Path

import pytest

from crossrank.errors import FileFormatError, InputError
from crossrank.evaluation.collections import Collection
from crossrank.evaluation.measures import evaluate
from crossrank.evaluation.trec import read_qrels
from crossrank.types import Document

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"


def lines(*rows: object) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "qrels").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "corpus.jsonl").write_text(
        lines(
            {
                "_id": "d1",
                "title": "A title",
                "text": "One.",
                "year": 1999,
                "metadata": {"url": "u", "year": 1},
            },
            "",
            {"_id": 2, "text": "", "title": None, "metadata": ["x"]},
        )
    )
    with gzip.open(tmp_path / "queries.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(lines({"_id": "q1", "text": "première"}, {"_id": "q2", "text": "second"}))
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq2\td1\t1\n")
    (tmp_path / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq1\t2\t2\nq1\td1\t0\n")
    (tmp_path / "qrels" / "README.md").write_text("not judgements")
    (tmp_path / "runs" / "mine.trec").write_text("q1 Q0 2 1 1.0 mine\n")
    return tmp_path


def test_everything_in_a_folder_is_read(folder: Path) -> None:
    collection = Collection.open(str(folder))
    assert collection.name == folder.name
    assert list(collection.documents()) == [
        Document("d1", "One.", "A title", {"url": "u", "year": 1999}),
        Document("2", "", "", {"metadata": ["x"]}),
    ]
    assert collection.queries() == {"q1": "première", "q2": "second"}
    assert collection.queries("test") == {"q2": "second"}
    assert collection.splits == ("dev", "test")
    assert collection.qrels("dev") == {"q1": {"2": 2, "d1": 0}}
    assert collection.runs == ("mine",)
    run = collection.run("mine")
    assert run["q1"].query == "première"
    assert run["q1"].document_ids == ("2",)


def test_a_folder_that_is_no_collection_is_refused(folder: Path) -> None:
    with pytest.raises(FileFormatError, match="no such folder"):
        Collection.open(folder / "nowhere")
    collection = Collection.open(folder)
    with pytest.raises(InputError, match="no split 'train'; it has dev, test"):
        collection.qrels("train")
    with pytest.raises(InputError, match="no split 'train'"):
        collection.queries("train")
    with pytest.raises(InputError, match="no run 'yours'; it has mine"):
        collection.run("yours")
    (folder / "queries.jsonl").write_text("")
    with pytest.raises(FileFormatError, match="remove one"):
        Collection.open(folder)
    (folder / "queries.jsonl").unlink()
    (folder / "qrels" / "test.tsv.gz").write_bytes(b"")
    with pytest.raises(FileFormatError, match="remove one"):
        Collection.open(folder)
    (folder / "corpus.jsonl").unlink()
    with pytest.raises(FileFormatError, match=r"no corpus\.jsonl"):
        Collection.open(folder)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "JSON object"),
        ('{"text": "x"}', "_id"),
        ('{"_id": "", "text": "x"}', "_id"),
        ('{"_id": true, "text": "x"}', "_id"),
        ('{"_id": "a\\ud800", "text": "x"}', "_id"),
        ('{"_id": "new"}', '"text" is missing'),
        ('{"_id": "new", "text": 5}', '"text" must be a string, not int'),
        ('{"_id": "new", "text": "\\udc00"}', "surrogate"),
        ('{"_id": "d1", "text": "again"}', "second time"),
    ],
)
def test_a_bad_row_is_located(row: str, message: str, folder: Path) -> None:
    for name, read in (("corpus", lambda c: list(c.documents())), ("queries", lambda c: c.queries())):
        path = folder / f"{name}.jsonl"
        (folder / f"{name}.jsonl.gz").unlink(missing_ok=True)
        path.write_text(lines({"_id": "d1", "text": "one"}, "", row))
        with pytest.raises(FileFormatError, match=message) as caught:
            read(Collection.open(folder))
        assert (caught.value.path, caught.value.line) == (path, 3)
    if "text" not in message:
        return
    (folder / "corpus.jsonl").write_text(lines({"_id": "a", "text": "x", "title": 5}))
    with pytest.raises(FileFormatError, match='"title" must be a string'):
        list(Collection.open(folder).documents())


def test_a_judged_query_without_text_is_an_error(folder: Path) -> None:
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq2\td1\t1\nq3\td1\t1\n")
    with pytest.raises(FileFormatError, match=r"'q3' is judged but not in queries\.jsonl\.gz") as caught:
        Collection.open(folder).queries("test")
    assert caught.value.path == folder / "qrels" / "test.tsv"


def test_the_sample_that_ships() -> None:
    collection = Collection.open(ROOT / "data" / "sample")
    documents = {document.id: document for document in collection.documents()}
    queries = collection.queries("test")
    assert len(documents) == 2067
    assert len(queries) == 400
    qrels = collection.qrels("test")
    assert qrels.keys() == queries.keys()
    assert all(document_id in documents for grades in qrels.values() for document_id in grades)


def shared(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"the collection {name} is not at {folder}")
    return folder


def test_scifact_as_beir_counts_it() -> None:
    collection = Collection.open(shared("scifact"))
    assert sum(1 for _ in collection.documents()) == 5183
    assert {split: len(collection.queries(split)) for split in collection.splits} == {
        "test": 300,
        "train": 809,
    }


def test_published_figures_of_trec_deep_learning_2019() -> None:
    # BM25 and SPLADE runs of castorini/rank_llm, scored against the full official judgements
    pytest.importorskip("pytrec_eval", reason="pytrec_eval is not installed (extra: eval)")
    folder = shared("msmarco_dl19")
    collection = Collection.open(folder)
    qrels = read_qrels(folder / "qrels_full_official.txt")
    for run, ndcg in (("bm25.top100", 0.5058), ("splade.top100", 0.7308), ("tasb.top100", 0.7210)):
        result = evaluate(collection.run(run), qrels, ["nDCG@10"], relevance_level=2)
        assert result["nDCG@10"] == pytest.approx(ndcg, abs=5e-5)
        assert (result.num_queries, result.missing_queries, result.unjudged_queries) == (43, (), ())
