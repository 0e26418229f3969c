"""Files are there whole, or as they were before."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from crossrank.whole_files import write_whole


def test_a_failed_write_leaves_what_was_there_and_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "notes.txt"
    target.write_text("before")

    def half_written(path: Path) -> None:
        path.write_text("aft")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        write_whole(target, half_written)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    assert target.read_text() == "before"


def test_writers_beside_each_other_both_write_whole(tmp_path: Path) -> None:
    target, both_wrote = tmp_path / "notes.txt", threading.Barrier(2, timeout=60)

    def write(text: str) -> None:
        def half_by_half(path: Path) -> None:
            path.write_text(text[: len(text) // 2])
            both_wrote.wait()
            path.write_text(text)

        write_whole(target, half_by_half)

    texts = ["a" * 1000, "b" * 1000]
    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert target.read_text() in texts
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
