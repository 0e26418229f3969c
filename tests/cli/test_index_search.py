"""`index` and `search`: from files to hits, runs and figures, with a tiny model."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from crossrank import Collection, CrossEncoder, Index, read_run

GOLDEN = Path(__file__).parents[1] / "golden"
MODEL = GOLDEN / "sbert_bi_encoder"
RERANKER = GOLDEN / "bert"
ROWS = [
    {"id": "fox", "title": "Foxes", "text": "A red fox runs through the wood.", "year": 1999},
    {"id": "whale", "text": "The blue whale is the largest animal.", "year": 2005},
    {"id": "oak", "text": "An oak may live for a thousand years.", "year": 2010},
]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def text_index(run, rows: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "text index"
    assert run("index", rows, "--to", folder, "--no-vectors", "--field", "year:int").exit_code == 0
    return folder


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("collection")
    (folder / "qrels").mkdir()
    (folder / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": row["id"], "text": row["text"]}) + "\n" for row in ROWS)
    )
    (folder / "queries.jsonl").write_text(
        '{"_id": "q1", "text": "largest whale"}\n{"_id": "q2", "text": "red wood"}\n'
    )
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\twhale\t1\nq2\tfox\t1\n")
    return folder


@pytest.fixture(scope="module")
def vector_index(collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from typer.testing import CliRunner

    from crossrank.cli.app import app

    folder = tmp_path_factory.mktemp("vectors") / "index"
    done = CliRunner().invoke(app, ["index", str(collection), "--to", str(folder), "--model", str(MODEL)])
    assert done.exit_code == 0, done.output
    return folder


def test_index_reports_what_it_did(run, rows: Path, tmp_path: Path) -> None:
    command = ["index", rows, "--to", tmp_path / "i", "--no-vectors", "--json"]
    first = json.loads(run(*command).stdout)
    assert (first["num_documents"], first["added"], first["rejected"]) == (3, 3, [])


def test_indexing_again_changes_nothing_and_new_rows_are_added(run, rows: Path, text_index: Path) -> None:
    again = json.loads(run("index", rows, "--to", text_index, "--json").stdout)
    assert (again["added"], again["unchanged"]) == (0, 3)
    changed = [{**ROWS[0], "text": "A grey fox."}, {"id": "elm", "text": "An elm."}]
    rows.write_text("".join(json.dumps(row) + "\n" for row in changed))
    report = json.loads(run("index", rows, "--to", text_index, "--json").stdout)
    assert (report["num_documents"], report["added"], report["replaced"]) == (4, 1, 1)


def test_a_first_build_keeps_no_old_versions(run, rows: Path, text_index: Path) -> None:
    with Index.open(text_index) as index:
        before = index.info().size_bytes
        index.optimize(grace_s=0)
        assert index.info().size_bytes == pytest.approx(before, rel=0.2)
        assert len(index._table.lance.list_versions()) < 5
    # with searches under way, those that are there stay for them
    for _ in range(3):
        assert run("index", rows, "--to", text_index, "--no-vectors", "--replace").exit_code == 0
    with Index.open(text_index) as index:
        assert len(index._table.lance.list_versions()) > 5


def test_replace_starts_anew(run, rows: Path, text_index: Path) -> None:
    rows.write_text(json.dumps(ROWS[1]) + "\n")
    report = json.loads(run("index", rows, "--to", text_index, "--replace", "--no-vectors", "--json").stdout)
    assert report["num_documents"] == 1


def test_bad_rows_are_listed_and_the_rest_is_indexed(run, rows: Path, tmp_path: Path) -> None:
    with rows.open("a") as file:
        file.write('{"id": "bad"}\nnot json\n')
    command = ["index", rows, "--to", tmp_path / "i", "--no-vectors"]
    result = run(*command, "--json")
    report = json.loads(result.stdout)
    assert (result.exit_code, report["num_documents"]) == (1, 3)
    assert [(row["path"], row["line"]) for row in report["rejected"]] == [(str(rows), 4), (str(rows), 5)]
    shown = run(*command, "--replace", "--skip-bad-rows")
    assert shown.exit_code == 0
    assert f"{rows}:4" in shown.stderr


def test_a_command_that_was_killed_at_its_start_can_be_given_again(run, rows: Path, tmp_path: Path) -> None:
    folder = tmp_path / "i"
    folder.mkdir()
    (folder / "writer.lock").touch()
    (folder / "documents.lance" / "_transactions").mkdir(parents=True)
    command = ["index", rows, "--to", folder, "--no-vectors", "--field", "year:int", "--json"]
    assert json.loads(run(*command).stdout)["added"] == 3
    assert json.loads(run(*command).stdout)["unchanged"] == 3


@pytest.mark.parametrize("extra", [[], ["--replace"]])
def test_a_folder_with_other_files_is_left_alone(run, rows: Path, tmp_path: Path, extra: list[str]) -> None:
    result = run("index", rows, "--to", tmp_path, "--no-vectors", *extra)
    assert result.exit_code == 1
    assert "rows.jsonl" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_an_interrupt_says_how_to_go_on(run, rows: Path, tmp_path: Path, monkeypatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("crossrank.store.lance.Index.add", interrupted)
    result = run("index", rows, "--to", tmp_path / "i", "--no-vectors")
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == "interrupted; the same command goes on from here\n"


def test_documents_from_standard_input(run, rows: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["index", "-", "--to", tmp_path / "i", "--no-vectors", "--json"]
    result = run(*command, input=rows.read_text() + "not json\n")
    report = json.loads(result.stdout)
    assert (result.exit_code, report["added"]) == (1, 3)
    assert [(row["path"], row["line"]) for row in report["rejected"]] == [("<stdin>", 4)]
    assert run("index", rows, "--to", "-", "--no-vectors").exit_code == 2
    assert not (tmp_path / "-").exists()


def test_the_report_names_ids_made_from_lines_and_fields_without_values(run, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,year\none,1\ntwo,2\n")
    command = ["index", tmp_path / "rows.csv", "--no-vectors", "--field", "yaer:int"]
    result = run(*command, "--to", tmp_path / "i")
    assert result.exit_code == 0
    assert "rows without an id column: 2" in result.stderr
    assert "no document has the field 'yaer'" in result.stderr
    report = json.loads(run(*command, "--to", tmp_path / "j", "--json").stdout)
    assert (report["ids_from_lines"], report["empty_fields"]) == (2, ["yaer"])


def test_a_missing_column_is_advised_on_in_options(run, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("id,content\na,b\n")
    result = run("index", tmp_path / "rows.csv", "--to", tmp_path / "i", "--no-vectors")
    assert result.exit_code == 1
    assert "--text-column" in result.stderr


def test_a_missing_source_costs_no_index(run, text_index: Path, tmp_path: Path) -> None:
    result = run("index", tmp_path / "nothing.jsonl", "--to", text_index, "--replace", "--no-vectors")
    assert result.exit_code == 1
    assert json.loads(run("info", text_index, "--json").stdout)["documents"] == 3


def test_settings_of_an_index_that_is_there_cannot_be_changed(run, rows: Path, text_index: Path) -> None:
    result = run("index", rows, "--to", text_index, "--field", "lang:str")
    assert result.exit_code == 2
    assert "--replace" in result.stderr


@pytest.mark.parametrize("fields", [["year"], ["year:date"], [":int:"], ["year:int", "year:int"]])
def test_a_field_needs_one_known_type(run, rows: Path, tmp_path: Path, fields: list[str]) -> None:
    stated = [word for field in fields for word in ("--field", field)]
    assert run("index", rows, "--to", tmp_path / "i", *stated).exit_code == 2


def test_an_index_without_vectors_takes_no_model(run, rows: Path, text_index: Path) -> None:
    assert run("index", rows, "--to", text_index, "--model", MODEL).exit_code == 2


def test_an_index_keeps_its_precision(run, rows: Path, tmp_path: Path) -> None:
    command = ["index", rows, "--to", tmp_path / "i"]
    assert run(*command, "--precision", "float32").exit_code == 0
    found = run("search", tmp_path / "i", "red fox", "--retriever", "dense", "-r", "none", "--json")
    assert json.loads(found.stdout)["hits"][0]["document_id"] == "fox"
    assert run(*command, "--json").exit_code == 0
    assert json.loads(run("info", tmp_path / "i", "--json").stdout)["precision"] == "float32"
    changed = run(*command, "--precision", "int8")
    assert changed.exit_code == 2
    assert "--precision" in changed.stderr


def test_an_index_keeps_token_ids_for_a_reranker(run, rows: Path, text_index: Path, tmp_path: Path) -> None:
    made = ("index", rows, "--to", tmp_path / "ids", "--no-vectors", "--token-ids-for", RERANKER)
    assert run(*made).exit_code == 0
    assert json.loads(run("info", tmp_path / "ids", "--json").stdout)["token_ids_for"] == str(RERANKER)
    again = json.loads(run(*made, "--json").stdout)
    assert (again["unchanged"], again["added"]) == (3, 0)

    more = tmp_path / "more.jsonl"
    more.write_text(json.dumps({"id": "new", "text": "red whale"}) + "\n")
    hits = []
    for folder in (tmp_path / "ids", text_index):
        assert run("index", more, "--to", folder).exit_code == 0
        found = run("search", folder, "red whale", "--reranker", RERANKER, "--json")
        hits.append(json.loads(found.stdout)["hits"])
    assert hits[0] == hits[1]
    assert len(hits[0]) == 3
    with Index.open(tmp_path / "ids") as opened:
        assert all(hit.document.token_ids is not None for hit in opened.search_text(["red whale"])[0])


@pytest.mark.parametrize("reranker", ["crossrank-mini", RERANKER])
def test_token_ids_are_of_the_tokenizer_an_index_was_made_with(
    reranker: str | Path, run, rows: Path, text_index: Path, tmp_path: Path
) -> None:
    folder = text_index
    if reranker == "crossrank-mini":
        folder = tmp_path / "ids"
        made = run("index", rows, "--to", folder, "--no-vectors", "--token-ids-for", RERANKER)
        assert made.exit_code == 0
    changed = run("index", rows, "--to", folder, "--token-ids-for", reranker)
    assert changed.exit_code == 2
    assert "--token-ids-for" in changed.stderr


def test_search_finds_filters_and_says_so_in_json(run, text_index: Path) -> None:
    command = ["search", text_index, "fox or whale or oak", "--reranker", "none", "--json"]
    everything = json.loads(run(*command).stdout)
    assert {hit["document_id"] for hit in everything["hits"]} == {"fox", "whale", "oak"}
    late = json.loads(run(*command, "--filter", "year >= 2005 and not year = 2010").stdout)
    assert [hit["document_id"] for hit in late["hits"]] == ["whale"]
    assert late["hits"][0]["metadata"] == {"year": 2005}


def test_search_shows_both_ranks(run, text_index: Path) -> None:
    result = run("search", text_index, "red fox", "-r", RERANKER)
    heading, hit = result.stdout.splitlines()
    assert heading.split() == ["rank", "first", "score", "id", "text"]
    assert hit.split()[:2] == ["1", "1"]
    assert "Foxes: A red fox" in hit
    assert "ms" in result.stderr


def test_scores_of_several_stages_name_them(run, text_index: Path) -> None:
    command = ["search", text_index, "fox or whale or oak", "-r", RERANKER]
    heading, first, *rest = run(*command, "--depth", "1").stdout.splitlines()
    assert heading.split() == ["rank", "first", "score", "stage", "id", "text"]
    assert [first.split()[3], *(row.split()[3] for row in rest)] == ["bert", "bm25", "bm25"]


def test_an_id_is_never_cut(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "a-very-long-id-" * 6
    (tmp_path / "rows.jsonl").write_text(json.dumps({"id": name, "text": "a red fox " * 20}) + "\n")
    assert run("index", tmp_path / "rows.jsonl", "--to", tmp_path / "i", "--no-vectors").exit_code == 0
    monkeypatch.setenv("COLUMNS", "60")
    rows = run("search", tmp_path / "i", "fox", "-r", "none").stdout.splitlines()
    assert max(map(len, rows)) <= 60
    start = rows[0].index("id")
    column = "".join(row[start : rows[0].index("text")].strip() for row in rows[1:])
    assert column == name


def test_fusion_mixes_both_stages(run, vector_index: Path) -> None:
    command = ["search", vector_index, "red wood", "-r", RERANKER, "--json", "--fuse"]
    for formula in ("rrf", "z-score"):
        hits = json.loads(run(*command, formula).stdout)["hits"]
        assert {hit["stage"] for hit in hits} == {"fusion"}
    hits = json.loads(run(*command, "rrf").stdout)["hits"]
    reranked = sorted(hits, key=lambda hit: -hit["stage_scores"]["bert"])
    for hit in hits:
        ranks = (hit["first_stage_rank"], reranked.index(hit) + 1)
        assert hit["score"] == pytest.approx(sum(1 / (60 + rank) for rank in ranks))


@pytest.mark.parametrize(
    "idle",
    [
        ["fox", "--tag", "mine"],
        ["fox", "--run", "my.run"],
        ["fox", "-r", "none", "--fuse", "rrf"],
        ["fox", "-r", "none", "--precision", "float32"],
        ["fox", "--retriever", "bm25", "--model", "model"],
        ["--queries", "queries", "--json", "--tag", "mine"],
        ["--queries", "queries", "--tag", "my tag"],
        ["--queries", "queries", "--json", "--run", "-"],
    ],
    ids=" ".join,
)
def test_an_option_that_would_do_nothing_is_wrong_usage(run, tmp_path: Path, idle: list[str]) -> None:
    assert run("search", tmp_path / "no index", *idle).exit_code == 2


def test_nothing_found_is_no_error(run, text_index: Path) -> None:
    result = run("search", text_index, "zebra", "-r", "none")
    assert (result.exit_code, result.stdout) == (0, "nothing found\n")


def test_an_unknown_field_is_an_error_that_names_it(run, text_index: Path) -> None:
    # Before a model is opened: this one does not exist.
    result = run("search", text_index, "fox", "-r", "no/model", "--filter", "size > 3")
    assert result.exit_code == 1
    assert "size" in result.stderr


def test_the_place_of_a_fault_in_a_filter_is_pointed_at(run, text_index: Path, monkeypatch) -> None:
    command = ["search", text_index, "fox", "--filter", "year = = 3"]
    assert run(*command).stderr.splitlines()[1:] == ["  year = = 3", "         ^"]
    assert run(*command[:-1], "year = = 3 or " + "year = 3 or " * 20).stderr.count("\n") == 1


@pytest.mark.parametrize("retriever", ["bm25", "dense", "hybrid", "auto"])
def test_a_file_of_queries_gives_a_run(run, vector_index: Path, tmp_path: Path, retriever: str) -> None:
    (tmp_path / "queries.tsv").write_text("q1\tlargest whale\nq2\tred wood\n")
    result = run(
        *("search", vector_index, "--queries", tmp_path / "queries.tsv", "--run", tmp_path / "out.run"),
        *("--retriever", retriever, "--reranker", "none", "--tag", "mine"),
    )
    assert (result.exit_code, result.stdout) == (0, "")
    written = read_run(tmp_path / "out.run")
    assert (list(written), written.tag) == (["q1", "q2"], "mine")
    if retriever == "bm25":
        assert [ranking.document_ids for ranking in written.values()] == [("whale",), ("fox",)]


def test_queries_go_to_standard_output_without_a_run_file(run, vector_index: Path) -> None:
    command = ["search", vector_index, "--queries", "-", "--retriever", "bm25", "--reranker", "none"]
    result = run(*command, input="red wood\n")
    assert result.stdout.split()[:4] == ["1", "Q0", "fox", "1"]
    rows = [json.loads(line) for line in run(*command, "--json", input="red wood\n").stdout.splitlines()]
    assert [(row["query_id"], row["query"]) for row in rows] == [("1", "red wood")]


def test_a_run_goes_to_standard_output(run, vector_index: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["search", vector_index, "--queries", "-", "--retriever", "bm25", "--reranker", "none"]
    result = run(*command, "--run", "-", input="red wood\n")
    assert result.stdout.split()[:4] == ["1", "Q0", "fox", "1"]
    assert list(tmp_path.iterdir()) == []


def test_a_query_that_is_too_long_is_named_by_its_line(run, vector_index: Path) -> None:
    command = ["search", vector_index, "--queries", "-", "-r", RERANKER]
    result = run(*command, input="red wood\n" + "word " * 600 + "\n")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: <stdin>:2: query has ")


def test_the_depth_of_reranking_does_not_cut_what_is_measured(
    run, vector_index: Path, collection: Path, tmp_path: Path
) -> None:
    result = run(
        *("evaluate", "--index", vector_index, "--collection", collection, "--retriever", "dense", "--json"),
        *("--reranker", RERANKER, "--depth", "1", "--measures", "Recall@3", "--run", tmp_path / "kept.run"),
    )
    assert json.loads(result.stdout)["measures"] == {"Recall@3": 1.0}
    assert [len(ranking) for ranking in read_run(tmp_path / "kept.run").values()] == [3, 3]


def test_evaluate_keeps_as_many_hits_as_asked_for(
    run, vector_index: Path, collection: Path, tmp_path
) -> None:
    command = ["evaluate", "--index", vector_index, "--collection", collection, "--retriever", "dense"]
    run(*command, "--measures", "MAP", "--top-k", 2, "--run", tmp_path / "kept.run")
    assert [len(ranking) for ranking in read_run(tmp_path / "kept.run").values()] == [2, 2]


def test_evaluate_filters(run, text_index: Path, collection: Path) -> None:
    command = [
        "evaluate",
        "--index",
        text_index,
        "--collection",
        collection,
        "--measures",
        "MRR@10",
        "--json",
    ]
    found = json.loads(run(*command, "--filter", "year < 2000").stdout)
    assert found["measures"] == {"MRR@10": 0.5}


def test_evaluate_an_index_equals_evaluate_its_run(
    run, vector_index: Path, collection: Path, tmp_path: Path
) -> None:
    search = ["--retriever", "hybrid", "--reranker", str(RERANKER), "--depth", "2"]
    saved = tmp_path / "kept.run"
    direct = run(
        *("evaluate", "--index", vector_index, "--collection", collection, *search, "--run", saved, "--json")
    )
    of_run = run("evaluate", saved, collection / "qrels" / "test.tsv", "--json")
    assert json.loads(direct.stdout) == json.loads(of_run.stdout)
    assert Collection.open(collection).qrels("test").keys() == read_run(saved).keys()


def test_bm25_finds_both_judged_documents_first(run, vector_index: Path, collection: Path) -> None:
    result = run(
        *("evaluate", "--index", vector_index, "--collection", collection, "--retriever", "bm25", "--json"),
        *("--measures", "MRR@10"),
    )
    assert json.loads(result.stdout)["measures"] == {"MRR@10": 1.0}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo-terminals")
def test_without_a_query_it_asks_for_queries_until_the_end_of_input(text_index: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "crossrank", "search", str(text_index), "--reranker", "none"]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE) as process:
        os.close(theirs)
        # A byte that is no UTF-8 costs its query alone; the last one is Ctrl-D.
        os.write(ours, b"red fox\n\nred \xff\nblue whale\n\x04")
        shown = b""
        with contextlib.suppress(OSError):  # Linux says EIO when the other side has closed
            while block := os.read(ours, 4096):
                shown += block
        assert process.stderr is not None
        errors = process.stderr.read()
    os.close(ours)
    assert process.returncode == 0
    assert b"A red fox runs" in shown
    assert b"The blue whale" in shown
    assert errors.count(b"error: ") == 1


def test_a_folder_that_is_no_index_is_an_error(run, tmp_path: Path) -> None:
    result = run("search", tmp_path / "nothing", "fox")
    assert result.exit_code == 1
    assert str(tmp_path / "nothing") in result.stderr


def test_a_query_that_cannot_be_used_does_not_end_the_prompt(run, text_index: Path, monkeypatch) -> None:
    typed = iter(["word " * 600, "blue whale"])

    def ask(_: str) -> str:
        line = next(typed, None)
        if line is None:
            raise EOFError
        return line

    monkeypatch.setattr("builtins.input", ask)
    monkeypatch.setattr("crossrank.cli.search.is_interactive", lambda: True)
    result = run("search", text_index, "-r", RERANKER)
    assert result.exit_code == 0
    assert "query" in result.stderr
    assert "The blue whale" in result.stdout


def test_a_second_reranker_reads_the_best_of_the_first(run, text_index: Path, tmp_path: Path) -> None:
    other = shutil.copytree(RERANKER, tmp_path / "other")
    command = ["search", text_index, "fox or whale or oak", "-r", RERANKER, "--json"]
    first = json.loads(run(*command).stdout)["hits"]
    hits = json.loads(run(*command, "--then", f"{other}:2").stdout)["hits"]
    assert [hit["stage"] for hit in hits] == ["other", "other", *("bert" for _ in first[2:])]
    assert {hit["document_id"] for hit in hits[:2]} == {hit["document_id"] for hit in first[:2]}
    few = json.loads(run(*command, "--depth", 2, "--then", other).stdout)["hits"]  # 15, where there are 15
    assert [hit["stage"] for hit in few[:3]] == ["other", "other", "bm25"]


def test_rerankers_one_after_another_read_texts(run, tmp_path: Path) -> None:
    other = shutil.copytree(RERANKER, tmp_path / "other")
    texts = ["a cat", "the old city", "a river"]
    ranked = run("rerank", "where is the city", *texts, "-r", RERANKER, "--then", f"{other}:1", "--json")
    assert [hit["stage"] for hit in json.loads(ranked.stdout)["hits"]] == ["other", "bert", "bert"]
    many = [f"city {i}" for i in range(18)]
    ranked = run("rerank", "where is the city", *many, "-r", RERANKER, "--then", other, "--json")
    stages = [hit["stage"] for hit in json.loads(ranked.stdout)["hits"]]
    assert stages == ["other"] * 15 + ["bert"] * 3
    many = ["the old city" + " a cat" * i for i in range(18)]
    first = [hit.score for hit in CrossEncoder(RERANKER).rank("where is the city", many)]
    margin = (first[9] - first[11] + first[9] - first[12]) / 2  # between the 12th and the 13th
    ranked = run(
        *("rerank", "where is the city", *many, "-r", RERANKER, "--then", other, "--margin", margin, "--json")
    )
    stages = [hit["stage"] for hit in json.loads(ranked.stdout)["hits"]]
    assert stages == ["other"] * 12 + ["bert"] * 6


@pytest.mark.parametrize("then", ["name:", ":3", "name:0", "name:two", "name:-1"])
def test_then_takes_a_name_and_a_depth(run, then: str) -> None:
    failed = run("rerank", "cat", "a cat", "-r", "no-such-model", "--then", then)  # said before one is opened
    assert failed.exit_code == 2
    assert "NAME:DEPTH" in failed.stderr


def test_a_second_reranker_without_a_first_is_wrong_usage(run, text_index: Path) -> None:
    assert run("search", text_index, "fox", "-r", "none", "--then", "crossrank-mini:2").exit_code == 2


def test_a_margin_decides_how_many_a_search_lets_go_on(run, text_index: Path, tmp_path: Path) -> None:
    other = shutil.copytree(RERANKER, tmp_path / "other")
    command = ["search", text_index, "fox or whale or oak", "-r", RERANKER, "--json"]
    found = len(json.loads(run(*command).stdout)["hits"])
    assert found > 2
    most = min(found, 10)  # the margin is measured from the 10th, so up to there all go on
    for then, on in ((f"{other}:2", 2), (other, most)):
        hits = json.loads(run(*command, "--then", then, "--margin", 0).stdout)["hits"]
        assert [hit["stage"] for hit in hits] == ["other"] * on + ["bert"] * (found - on)
    failed = run(*command, "--margin", 1)
    assert failed.exit_code == 2
    assert "--margin would do nothing: nothing goes on" in " ".join(failed.stderr.split())
