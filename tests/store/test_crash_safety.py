"""Kill -9 at random moments, writers beside each other, readers beside a writer: real processes.

CROSSRANK_KILL_TRIALS=20 pytest tests/store/test_crash_safety.py kills more often.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from crossrank.errors import IndexStoreError
from crossrank.store.lance import Index

sys.path.insert(0, str(Path(__file__).parent))
from writer_process import Encoder, document

SCRIPT = Path(__file__).parent / "writer_process.py"
TRIALS = int(os.environ.get("CROSSRANK_KILL_TRIALS", "3"))  # 20 take some minutes


def start_writer(
    path: Path, writer: str, batches: int, batch_size: int, mode: str, revision: int = 0
) -> subprocess.Popen[str]:
    arguments = [str(path), writer, str(batches), str(batch_size), mode, str(revision)]
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def acknowledgements(lines: list[str]) -> dict[str, int]:
    """Document id -> revision. A line cut in the middle was not printed to its end and does not count."""
    pairs = (item.split(":") for line in lines if line.endswith("\n") for item in line.split())
    return {name: int(revision) for name, revision in pairs}


def check(path: Path, acknowledged: dict[str, int]) -> None:
    """The index opens, has all that was acknowledged, each once and whole, and every search works."""
    index = Index.open(path, Encoder())
    stored = list(index.documents())
    ids = [found.id for found in stored]
    assert len(ids) == len(set(ids)) == index.count()
    assert acknowledged.keys() <= set(ids)
    for found in stored:
        writer, number = found.id.split("-")
        assert found == document(int(number), writer, found.metadata["revision"])
        assert found.metadata["revision"] >= acknowledged.get(found.id, 0)
    assert {hit.document_id for hit in index.search_text(["shared"], max(1, len(ids)))[0]} == set(ids)
    for wanted in stored[:: max(1, len(stored) // 3)]:
        assert index.search_vector([wanted.text], 1)[0].document_ids == (wanted.id,)
        assert wanted.id in index.search_text([f"number{wanted.metadata['number']}"])[0].document_ids


def kill_once(path: Path, mode: str, seed: int, acknowledged: dict[str, int]) -> None:
    """Kill a writer at a random moment after its first acknowledgement, and check the index."""
    revision = 2 * seed if mode == "upsert" else 0  # other modes resume: what is stored is left alone
    process = start_writer(path, "w", 10_000, 20, mode, revision)
    assert process.stdout is not None
    first = process.stdout.readline()
    assert first, process.stderr.read() if process.stderr else ""
    time.sleep(random.Random(seed).uniform(0, 0.6))
    process.send_signal(signal.SIGKILL)
    rest, _ = process.communicate()
    acknowledged.update(acknowledgements([first, *rest.splitlines(keepends=True)]))
    check(path, acknowledged)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL on Windows")
@pytest.mark.parametrize("mode", ["add", "upsert", "clean"])
def test_nothing_acknowledged_is_lost_by_a_kill(tmp_path: Path, mode: str) -> None:
    Index.create(tmp_path / "index", Encoder(), fields={"number": int})
    acknowledged: dict[str, int] = {}
    for seed in range(TRIALS):  # on the same index: what one kill left behind, the next writer meets
        kill_once(tmp_path / "index", mode, seed, acknowledged)
    index = Index.open(tmp_path / "index", Encoder())
    index.add([document(1, "after")])
    index.optimize(grace_s=0)
    check(tmp_path / "index", acknowledged | {"after-1": 0})


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL on Windows")
def test_a_kill_while_creating_leaves_an_index_or_none(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]);"
        "from writer_process import Encoder; from crossrank.store.lance import Index; import lancedb;"
        "print('ready', flush=True);"
        "[Index.create(sys.argv[1], Encoder(), fields={'number': int}, overwrite=True) for _ in range(10000)]"
    )
    for seed in range(2):
        command = [sys.executable, "-c", code, str(tmp_path / "index"), str(Path(__file__).parent)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(random.Random(seed).uniform(0, 0.1))
        process.kill()
        process.communicate()
        try:
            index = Index.open(tmp_path / "index", Encoder())
        except IndexStoreError:  # killed before the first one was there: then one can be created
            index = Index.create(tmp_path / "index", Encoder(), fields={"number": int})
        index.add([document(1, "a")])
        check(tmp_path / "index", {"a-1": 0})


def test_readers_beside_a_writer(tmp_path: Path) -> None:
    path = tmp_path / "index"
    Index.create(path, Encoder(), fields={"number": int})
    reader = Index.open(path, Encoder())
    writer = start_writer(path, "w", 12, 40, "optimize")
    acknowledged: dict[str, int] = {}
    done = threading.Event()

    def listen() -> None:
        assert writer.stdout is not None
        for line in writer.stdout:
            acknowledged.update(acknowledgements([line]))
        done.set()

    listener = threading.Thread(target=listen)
    listener.start()
    rounds = 0
    while not done.is_set() or rounds < 3:
        before = set(acknowledged)
        found = {hit.document_id for hit in reader.search_text(["shared"], 2000)[0]}
        assert before <= found
        assert reader.count() >= len(found)
        assert before <= {hit.document_id for hit in reader.search_vector(["shared"], 2000)[0]}
        if before:
            name = sorted(before)[rounds % len(before)]
            assert reader.get([name]) == [document(int(name.split("-")[1]), "w")]
        rounds += 1
    listener.join()
    writer.communicate()
    assert writer.returncode == 0
    check(path, acknowledged)
    assert reader.count() == 480


def test_two_writers_take_turns(tmp_path: Path) -> None:
    """Same ids from both: the lock makes 'is it stored?' and the write one step, so none is doubled."""
    path = tmp_path / "index"
    Index.create(path, Encoder(), fields={"number": int})
    writers = [start_writer(path, "same", 5, 40, mode) for mode in ("add", "optimize")]
    writers.append(start_writer(path, "other", 5, 40, "add"))
    outputs = [writer.communicate() for writer in writers]
    for writer, (_, errors) in zip(writers, outputs, strict=True):
        assert writer.returncode == 0, errors
    check(
        path, acknowledgements([line for output, _ in outputs for line in output.splitlines(keepends=True)])
    )
    assert Index.open(path).count() == 400


def test_a_writer_does_not_wait_for_ever(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "index", lock_timeout_s=0.1)
    other = Index.open(tmp_path / "index")
    with other._table.writing(), pytest.raises(IndexStoreError, match=r"has been writing .* for 0\.1 s"):
        index.add([document(1, "a")])
    index.add([document(1, "a")])
    with other._table.writing():  # readers need no lock
        assert index.count() == 1


def test_threads_may_add_to_one_index(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "index", Encoder(), fields={"number": int})
    failures = []

    def add(writer: str) -> None:
        try:
            index.add([document(number, writer) for number in range(50)], batch_size=10)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=add, args=(name,)) for name in ("a", "b", "a")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    check(tmp_path / "index", {f"{name}-{number}": 0 for name in "ab" for number in range(50)})
