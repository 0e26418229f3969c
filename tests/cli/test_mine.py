"""`crossrank mine`: a judged collection to a file of negatives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crossrank import BM25, Collection, read_run, write_run
from crossrank.training.negatives import Filters, Source, mine
from crossrank.types import Run

GOLDEN = Path(__file__).parents[1] / "golden"
TEXTS = {
    "fox": "A red fox runs through the wood.",
    "fox2": "A red fox runs through the wood!",
    "wolf": "The wolf runs through the wood in winter.",
    "whale": "The blue whale is the largest animal.",
    "dog": "A dog runs after the fox.",
    "oak": "An oak of the wood may live for a thousand years.",
}


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    folder = tmp_path / "collection"
    (folder / "qrels").mkdir(parents=True)
    rows = [{"_id": name, "text": text} for name, text in TEXTS.items()]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "queries.jsonl").write_text(
        '{"_id": "q1", "text": "fox in the wood"}\n{"_id": "q2", "text": "largest animal"}\n'
    )
    (folder / "qrels" / "train.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq1\tfox\t1\nq2\twhale\t1\nq2\tgone\t1\n"
    )
    return folder


def rows_in(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_it_writes_is_what_the_library_writes(run, collection: Path, tmp_path: Path) -> None:
    result = run(
        *("mine", collection, "--to", tmp_path / "cli.jsonl", "--source", "bm25:2", "--source", "random:1"),
        *("--seed", 4, "--depth", 50, "--form", "triplets"),
    )
    assert result.exit_code == 0, result.stderr
    documents = list(Collection.open(collection).documents())
    mine(
        Collection.open(collection).queries(),
        Collection.open(collection).qrels("train"),
        documents,
        [Source(BM25(documents), 2, depth=50), Source("random", 1, depth=50)],
        tmp_path / "library.jsonl",
        seed=4,
        form="triplets",
    )
    assert (tmp_path / "cli.jsonl").read_bytes() == (tmp_path / "library.jsonl").read_bytes()


def test_the_table_has_counts_and_a_suspect_with_its_text(run, collection: Path, tmp_path: Path) -> None:
    result = run("mine", collection, "--to", tmp_path / "n.jsonl", "--source", "bm25:2")
    lines = {
        line.rsplit(maxsplit=1)[0].strip(): line.split()[-1] for line in result.stdout.splitlines() if line
    }
    assert lines["queries"] == "2"
    assert lines["with too few negatives"] == lines["with none"] == "1"  # q2's words are in one document
    assert lines["lost: not in corpus"] == "1"
    assert lines["from bm25"] == "2"
    assert lines["near duplicate of positive"] == "1"
    words = " ".join(result.stdout.split())
    assert "fox2 (near duplicate of" in words
    assert result.stderr.strip() == f"1 list in {tmp_path / 'n.jsonl'}"


def test_json(run, collection: Path, tmp_path: Path) -> None:
    path = tmp_path / "n.jsonl"
    report = json.loads(run("mine", collection, "--to", path, "--ids-only", "--json").stdout)
    [example] = report.pop("examples")
    assert report == {
        "path": str(path),
        "form": "lists",
        "num_rows": 1,
        "num_queries": 2,
        "num_positives": 2,
        "num_negatives": 3,
        "negatives": {"bm25": 3},
        "positives_lost": {"not_in_corpus": 1},
        "without_positives": [],
        "short": ["q1", "q2"],
        "without_negatives": ["q2"],
        "refused": {"near_duplicate_of_positive": 1},
        "suspected": {"near_duplicate_of_positive": 1},
    }
    assert (example["query_id"], example["positive_id"], example["document_id"]) == ("q1", "fox", "fox2")
    assert rows_in(path)[0]["document_ids"][0] == "fox"
    assert "query" not in rows_in(path)[0]


def test_models_in_memory_and_a_teacher(run, collection: Path, tmp_path: Path) -> None:
    result = run(
        *("mine", collection, "--to", tmp_path / "n.jsonl", "--form", "pairs", "--source", "hybrid:1"),
        *("--source", "dense:2", "--model", GOLDEN / "sbert_bi_encoder", "--teacher", GOLDEN / "bert"),
        *("--keep-suspects", "--near-duplicates", 0, "--threads", 1),
    )
    assert result.exit_code == 0, result.stderr
    rows = rows_in(tmp_path / "n.jsonl")
    assert sorted(row["source"] for row in rows) == ["dense"] * 4 + ["hybrid"] * 2 + ["qrels"] * 2
    assert all(row["teacher_score"] is not None for row in rows)


def test_what_a_teacher_scores_low_is_not_suspected(run, collection: Path, tmp_path: Path) -> None:
    def suspects(*options: object) -> int:
        result = run(
            *("mine", collection, "--to", tmp_path / "n.jsonl", "--replace", "--json", "--threads", 1),
            *("--source", "random:5", "--near-duplicates", 0, "--teacher", GOLDEN / "bert", *options),
        )
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)["refused"].get("false_negative", 0)

    assert suspects() == suspects("--suspect-from", -1000) > suspects("--suspect-from", 1000) == 0


def test_an_index_and_a_run_file(run, collection: Path, tmp_path: Path) -> None:
    assert run("index", collection, "--to", tmp_path / "index", "--no-vectors").exit_code == 0
    documents = list(Collection.open(collection).documents())
    rankings = BM25(documents).retrieve(["runs"])
    write_run(Run({"q2": rankings[0]}), tmp_path / "first.run")
    assert len(read_run(tmp_path / "first.run")["q2"]) == 4
    result = run(
        *("mine", collection, "--to", tmp_path / "n.parquet", "--index", tmp_path / "index", "--json"),
        *("--source", f"{tmp_path / 'first.run'}:3", "--source", "bm25:2"),
    )
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["negatives"] == {"first": 3, "bm25": 2}


def test_a_source_may_state_its_own_window(run, collection: Path, tmp_path: Path) -> None:
    command = ["mine", collection, "--near-duplicates", 0, "--depth", 50, "--skip-top", 1]
    sources = ["--source", "bm25:1:1-2", "--source", "bm25:1", "--source", "bm25:1:3-5:random"]
    result = run(*command, "--to", tmp_path / "cli.jsonl", *sources)
    assert result.exit_code == 0, result.stderr
    judged = Collection.open(collection)
    documents = list(judged.documents())
    first_stage = BM25(documents)
    mine(
        judged.queries(),
        judged.qrels("train"),
        documents,
        [
            Source(first_stage, 1, name="bm25 1-2", depth=2),
            Source(first_stage, 1, skip_top=1, depth=50),
            Source(first_stage, 1, name="bm25 3-5", skip_top=2, depth=5, sampling="random"),
        ],
        tmp_path / "library.jsonl",
        filters=Filters(near_duplicates=None),
    )
    assert (tmp_path / "cli.jsonl").read_bytes() == (tmp_path / "library.jsonl").read_bytes()


def test_an_interrupted_command_goes_on(run, collection: Path, tmp_path: Path, monkeypatch) -> None:
    command = ["mine", collection, "--to", tmp_path / "n.jsonl"]

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("crossrank.training.miner.Miner.mine", interrupted)
        result = run(*command, "--replace")
    assert result.exit_code == 130
    assert result.stderr.strip() == "interrupted; the same command without --replace goes on from here"
    other = run(*command, "--seed", 1)
    assert other.exit_code == 1
    assert "with other seed; give the same to finish it, or start anew with --replace" in other.stderr
    assert run(*command).exit_code == 0
    again = run(*command)
    assert again.exit_code == 1
    assert "or replace it with --replace" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--source", "bm25"], "FROM:COUNT"),
        (["--source", "bm25:0"], "FROM:COUNT"),
        (["--source", "bm25:4:5-2"], "ranks 5 to 2 are no window"),
        (["--source", "bm25:4:0-2"], "ranks 0 to 2 are no window"),
        (["--source", "bm25:4:1-2:worst"], "FROM:COUNT:FIRST-LAST:ORDER"),
        (["--source", "random:4:1-2"], "random documents have no rank"),
        (["--source", "bm25:4:1-2", "--skip-top", "1"], "every --source states its ranks"),
        (["--source", "bm25:4:1-2", "--depth", "10"], "--depth would do nothing: every --source"),
        (["--source", "bm25:4:1-2:spread", "--sampling", "top"], "every --source states its order"),
        (["--source", "splade:4"], "no such run file"),
        (["--keep-suspects"], "there is no teacher"),
        (["--suspect-from", "0"], "there is no teacher"),
        (["--label", "yes"], "there is no teacher"),
        (["--positive-score", "max"], "neither a margin nor a teacher"),
        (["--model", "m"], "no source is dense or hybrid"),
        (["--source", "random:1", "--skip-top", "2"], "random documents have no rank"),
    ],
)
def test_wrong_usage(run, collection: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    result = run("mine", collection, "--to", tmp_path / "n.jsonl", *arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.replace("│", " ").split())
    assert not (tmp_path / "n.jsonl").exists()


def test_standard_output_is_no_file_for_it(run, collection: Path) -> None:
    assert run("mine", collection, "--to", "-").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--split", "dev"], "no split 'dev'; it has train"),
        (["--min-score", "3", "--max-score", "1"], "min_score 3 is above max_score 1"),
        (["--relevance-level", "2"], "judged 2 or more"),
    ],
)
def test_errors_are_one_line(run, collection: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    result = run("mine", collection, "--to", tmp_path / "n.jsonl", *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_an_unusable_ending_is_found_before_anything_is_read(run, tmp_path: Path) -> None:
    result = run("mine", tmp_path / "nothing", "--to", tmp_path / "n.csv")
    assert result.exit_code == 1
    assert ".jsonl or .parquet" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--source", "bm25:1", "--source", "dense:1", "--max-score", "0.1"], "give a --teacher"),
        (["--source", "random:1", "--absolute-margin", "0.1"], "random documents have no score"),
        (["--skip-top", "10", "--depth", "5"], "leaves nothing of --depth 5"),
    ],
)
def test_settings_that_cannot_be_met_are_refused_at_once(run, tmp_path, options, message) -> None:
    result = run("mine", tmp_path / "no collection", "--to", tmp_path / "n.jsonl", *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())
