"""A run that dies at any moment goes on where it stopped, and ends with the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mining_inputs import DOCUMENTS, QRELS, QUERIES
from mining_process import mine_all

from crossrank.errors import FileFormatError, InputError
from crossrank.training.negatives import Filters, Source

SCRIPT = Path(__file__).parent / "mining_process.py"
JOURNAL = "n.jsonl.mining"


class StopError(Exception):
    """Ends a run."""


def stop() -> None:
    raise StopError


def interrupted(path: Path, block: int) -> Path:
    with pytest.raises(StopError):
        mine_all(path, block, stop)
    assert not path.exists()
    return path.with_name(path.name + ".mining")


@pytest.mark.parametrize("name", ["n.jsonl", "n.parquet"])
def test_it_goes_on_after_an_exception(tmp_path: Path, name: str) -> None:
    (tmp_path / "whole").mkdir()
    whole = mine_all(tmp_path / "whole" / name)
    path = tmp_path / name
    for block in (0, 1, 2):  # stopped three times, one block further each time but the first
        journal = interrupted(path, min(block, 1))
        assert len(journal.read_bytes().splitlines()) == 1 + block
    report = mine_all(path)
    assert path.read_bytes() == whole.path.read_bytes()
    assert (report.refused, report.suspected, report.examples) == (
        whole.refused,
        whole.suspected,
        whole.examples,
    )
    assert set(tmp_path.iterdir()) == {path, tmp_path / "whole"}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_it_goes_on_after_sigkill(tmp_path: Path) -> None:
    path = tmp_path / "n.jsonl"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(path), "2"], capture_output=True, text=True, check=False
    )
    assert done.returncode == -9, done.stderr
    assert sorted(each.name for each in tmp_path.iterdir()) == [JOURNAL]
    calls = []
    mine_all(path, 2, lambda: calls.append(1))  # two blocks are left, so a third search never comes
    mine_all(tmp_path / "whole.jsonl")
    assert calls == []
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_journal_cut_anywhere_is_a_run_that_stopped_earlier(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    path = folder / "n.jsonl"
    journal = interrupted(path, 3)
    written = journal.read_bytes()
    journal.write_bytes(written[: data.draw(st.integers(0, len(written)))])
    mine_all(path)
    mine_all(folder / "whole.jsonl")
    assert path.read_bytes() == (folder / "whole.jsonl").read_bytes()


def test_another_form_may_be_asked_for_at_the_end(tmp_path: Path) -> None:
    interrupted(tmp_path / "n.jsonl", 2)
    assert mine_all(tmp_path / "n.jsonl", form="triplets").form == "triplets"


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seed": 5}, "seed"),
        ({"block_size": 3}, "block_size"),
        ({"teacher": None, "filters": Filters(near_duplicates=0.5)}, "filters, teacher"),
        ({"queries": {**QUERIES, "q0": "another"}}, "queries"),
        ({"qrels": {**QRELS, "q0": {"d1": 1}}}, "judgements"),
        ({"documents": DOCUMENTS[:-1]}, "documents"),
        ({"sources": [Source("random", 2)]}, "sources"),
    ],
)
def test_other_arguments_are_an_error(tmp_path: Path, changed: dict, named: str) -> None:
    path = tmp_path / "n.jsonl"
    journal = interrupted(path, 2)
    before = journal.read_bytes()
    with pytest.raises(InputError, match=f"unfinished run with other {named}; .*overwrite=True"):
        mine_all(path, **changed)
    assert journal.read_bytes() == before
    mine_all(path, **changed, overwrite=True)
    assert not journal.exists()


def test_a_damaged_journal_is_named(tmp_path: Path) -> None:
    path = tmp_path / "n.jsonl"
    journal = interrupted(path, 3)
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:2], b"[{]\n", *lines[3:]]))
    with pytest.raises(FileFormatError, match=r"n\.jsonl\.mining:3: not JSON") as raised:
        mine_all(path)
    assert raised.value.line == 3
    journal.write_bytes(b"".join([*lines[:2], b'[{"query_id": "q2"}]\n']))
    with pytest.raises(FileFormatError, match=r"n\.jsonl\.mining:3: not a block of queries"):
        mine_all(path)
    journal.write_text("{}\nnotes of mine")
    with pytest.raises(FileFormatError, match="no journal of a mining run"):
        mine_all(path)
    assert journal.read_text() == "{}\nnotes of mine"
    assert not path.exists()


def test_two_runs_in_one_journal_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "n.jsonl"
    journal = interrupted(path, 2)
    header, *blocks = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([header, *blocks, *blocks]))
    with pytest.raises(InputError, match="has query 'q0' out of turn: two runs wrote to it"):
        mine_all(path)


def test_a_finished_file_is_not_replaced_unasked(tmp_path: Path) -> None:
    path = tmp_path / "n.jsonl"
    mine_all(path)
    before = path.read_bytes()
    with pytest.raises(InputError, match="exists; name another file, or replace it with overwrite=True"):
        mine_all(path, seed=1)
    mine_all(path, seed=1, overwrite=True)
    assert path.read_bytes() != before
