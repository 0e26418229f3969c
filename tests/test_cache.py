"""The cache never gives a wrong row: not by damage, not by other processes, not by changed settings."""

import logging
import multiprocessing
import sqlite3
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crossrank.cache import ScoreCache, score_key
from crossrank.errors import InputError


def true_row(number):
    return np.array([number, number / 7], dtype=np.float32)


def key(number):
    return score_key("model", "query", f"document {number}")


def look_up(cache, numbers):
    """Rows of the numbers, and which of them were computed."""
    numbers = list(numbers)
    computed = []

    def compute(missing):
        computed.extend(numbers[position] for position in missing)
        return [true_row(numbers[position]) for position in missing]

    rows = cache.get_or_compute([key(number) for number in numbers], compute)
    for number, row in zip(numbers, rows, strict=True):
        assert row.dtype == np.float32
        assert (row == true_row(number)).all()
    return computed


def test_rows_are_computed_once():
    cache = ScoreCache()
    assert look_up(cache, [3, 1, 3, 2]) == [3, 1, 2]
    assert look_up(cache, [2, 4, 1]) == [4]
    assert (cache.misses, cache.hits) == (4, 2)
    assert look_up(cache, []) == []


def test_rows_are_read_only():
    cache = ScoreCache()
    row = cache.get_or_compute([b"k"], lambda missing: [np.ones(2, dtype=np.float32)])[0]
    with pytest.raises(ValueError, match="read-only"):
        row[0] = 5


def test_least_recently_used_rows_leave_memory():
    cache = ScoreCache(max_items=3)
    look_up(cache, [1, 2, 3])
    look_up(cache, [1])
    look_up(cache, [4])
    assert len(cache) == 3
    assert look_up(cache, [1, 3, 4]) == []
    assert look_up(cache, [2]) == [2]


def test_a_file_outlives_the_process(tmp_path):
    path = tmp_path / "deep" / "scores.sqlite"
    with ScoreCache(path) as cache:
        look_up(cache, range(1000))
    with ScoreCache(path, max_items=10) as cache:
        assert look_up(cache, range(999, -1, -1)) == []
        assert len(cache) == 10


@pytest.mark.parametrize("changed", range(3))
def test_every_part_of_the_key_counts(changed):
    parts = ["model", "query", "document"]
    before = score_key(*parts)
    parts[changed] += "x"
    assert score_key(*parts) != before
    assert score_key("model", "queryd", "ocument") != score_key("model", "query", "document")


def test_the_file_stays_within_its_size(tmp_path):
    path = tmp_path / "scores.sqlite"
    with ScoreCache(path, max_items=1, max_bytes=100_000) as cache:
        for start in range(0, 5000, 250):
            look_up(cache, range(start, start + 250))
        assert path.stat().st_size < 150_000  # freed pages are used again
        assert look_up(cache, range(4900, 5000)) == []  # the newest stay
        assert look_up(cache, range(100)) == list(range(100))  # the oldest went


@given(
    damage=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=200)),
        min_size=1,
        max_size=8,
    ),
    cut=st.one_of(st.none(), st.floats(0, 1)),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_never_gives_a_wrong_row(tmp_path_factory, damage, cut):
    path = tmp_path_factory.mktemp("cache") / "scores.sqlite"
    with ScoreCache(path) as cache:
        look_up(cache, range(300))
    content = bytearray(path.read_bytes())
    for place, junk in damage:
        start = int(place * len(content))
        content[start : start + len(junk)] = junk
    path.write_bytes(content if cut is None else content[: int(cut * len(content))])
    with ScoreCache(path, max_items=1, max_bytes=70_000) as cache:
        look_up(cache, range(0, 400, 2))  # asserts every row
        look_up(cache, range(400))
    with ScoreCache(path) as cache:
        look_up(cache, range(400))


def test_a_damaged_file_is_set_aside_and_made_anew(tmp_path, caplog):
    path = tmp_path / "scores.sqlite"
    path.write_bytes(b"not a database at all " * 500)
    with caplog.at_level(logging.WARNING), ScoreCache(path) as cache:
        assert look_up(cache, [1]) == [1]
    assert "is damaged" in caplog.text
    assert [aside.read_bytes()[:14] for aside in tmp_path.glob("*.damaged-*")] == [b"not a database"]
    with ScoreCache(path) as cache:
        assert look_up(cache, [1]) == []


def test_a_message_that_cannot_be_decoded_is_damage(tmp_path, caplog):
    path = tmp_path / "scores.sqlite"
    with ScoreCache(path) as cache:
        look_up(cache, range(20))
    content = bytearray(path.read_bytes())
    content[content.find(b"CREATE TABLE scores") - 13] = 0xFF  # the schema's name of the table
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING), ScoreCache(path) as cache:
        assert look_up(cache, range(20)) == list(range(20))
    assert "is damaged" in caplog.text
    with ScoreCache(path) as cache:
        assert look_up(cache, range(20)) == []


def test_a_large_file_without_rows_is_damage(tmp_path, caplog):
    path = tmp_path / "scores.sqlite"
    with ScoreCache(path):
        pass
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("CREATE TABLE other (content BLOB)")
        connection.execute("INSERT INTO other VALUES (?)", (bytes(200_000),))
    connection.close()
    with caplog.at_level(logging.WARNING), ScoreCache(path, max_items=1, max_bytes=70_000) as cache:
        for start in range(0, 100, 20):
            look_up(cache, range(start, start + 20))
    assert "no rows" in caplog.text


@pytest.mark.parametrize("name", ["notes.txt", "scores", "scores.sqlite.bak", "a\0b.db", "\0"])
def test_a_file_without_a_caches_name_is_never_touched(tmp_path, name):
    path = tmp_path / name
    if "\0" not in name:
        path.write_text("my own words")
    with pytest.raises(InputError, match=r"its name must end in one of \.cache"):
        ScoreCache(path)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["my own words"] * ("\0" not in name)


@pytest.mark.parametrize("table", ["scores (player TEXT, points INTEGER)", "users (name TEXT)"])
def test_another_programs_database_is_refused(tmp_path, table):
    path = tmp_path / "app.db"
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(f"CREATE TABLE {table}")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"app\.db is another program's database"):
        ScoreCache(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["app.db"]


def test_another_programs_database_in_its_place_costs_time_only(tmp_path, caplog):
    path, other = tmp_path / "scores.db", tmp_path / "app.db"
    connection = sqlite3.connect(other)
    with connection:
        connection.execute("CREATE TABLE users (name TEXT)")
    connection.close()
    cache = ScoreCache(path)
    cache.close()
    other.replace(path)
    before = path.read_bytes()
    with caplog.at_level(logging.WARNING):
        assert look_up(cache, [1]) == [1]
    assert "cannot be used now" in caplog.text
    assert path.read_bytes() == before


@pytest.mark.parametrize("damaged", [range(16), range(68, 72), range(4096)])
def test_a_cache_with_a_damaged_header_costs_time_only(tmp_path, damaged):
    path = tmp_path / "scores.cache"
    with ScoreCache(path) as cache:
        look_up(cache, range(20))
    content = bytearray(path.read_bytes())
    for position in damaged:
        content[position] = 0xA5
    path.write_bytes(content)
    with ScoreCache(path) as cache:
        look_up(cache, range(20))
    with ScoreCache(path) as cache:
        assert look_up(cache, range(20)) == []


def test_a_row_whose_checksum_does_not_fit_is_computed_again(tmp_path):
    path = tmp_path / "scores.sqlite"
    with ScoreCache(path) as cache:
        look_up(cache, [1, 2])
    connection = sqlite3.connect(path)
    with connection:
        row = np.array([9, 9], dtype="<f4").tobytes()
        connection.execute("UPDATE scores SET row = ? WHERE key = ?", (row, key(1)))
    connection.close()
    with ScoreCache(path) as cache:
        assert look_up(cache, [1, 2]) == [1]
    with ScoreCache(path) as cache:
        assert look_up(cache, [1, 2]) == []


def test_a_path_that_cannot_be_a_file_costs_time_only(tmp_path, caplog):
    path = tmp_path / "scores.cache"
    path.mkdir()
    with caplog.at_level(logging.WARNING), ScoreCache(path) as cache:
        assert look_up(cache, [1]) == [1]
        assert look_up(cache, [1]) == []  # from memory
    assert caplog.text.count("cannot be used now") == 1
    assert path.is_dir()


def fill(path, start):
    with ScoreCache(path, max_items=5) as cache:
        for first in range(start, start + 400, 20):
            look_up(cache, range(first, first + 20))


def test_two_processes_share_a_file(tmp_path, caplog):
    path = tmp_path / "scores.sqlite"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=fill, args=(path, start)) for start in (0, 200)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert not list(tmp_path.glob("*.damaged-*"))
    with ScoreCache(path) as cache:
        assert len(look_up(cache, range(600))) < 100  # what a lock kept out is computed again


def test_a_killed_writer_leaves_a_usable_file(tmp_path):
    path = tmp_path / "scores.sqlite"
    code = (
        "import os, sys, numpy as np\n"
        "from crossrank.cache import ScoreCache\n"
        "cache = ScoreCache(sys.argv[1])\n"
        "for number in range(50):\n"
        "    cache.get_or_compute([b'%d' % number], lambda missing: [np.ones(1, dtype=np.float32)])\n"
        "os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 9
    with ScoreCache(path) as cache:
        keys = [b"%d" % number for number in range(50)]
        cache.get_or_compute(keys, lambda missing: pytest.fail(f"{len(missing)} rows were lost"))


def test_one_computation_in_flight():
    cache = ScoreCache()
    started, release = threading.Event(), threading.Event()
    calls = []

    def slow(missing):
        calls.append(len(missing))
        started.set()
        assert release.wait(30)
        return [true_row(position) for position in missing]

    results = []
    owner = threading.Thread(
        target=lambda: results.append(cache.get_or_compute([key(n) for n in range(5)], slow))
    )
    owner.start()
    assert started.wait(30)
    waiting = [
        threading.Thread(target=lambda: results.append(cache.get_or_compute([key(3), key(4)], slow)))
        for _ in range(4)
    ]
    for thread in waiting:
        thread.start()
    release.set()
    for thread in [owner, *waiting]:
        thread.join(30)
    assert calls == [5]
    assert sorted(len(result) for result in results) == [2, 2, 2, 2, 5]
    assert all((result[-1] == true_row(4)).all() for result in results)


def test_crossing_calls_of_two_threads_do_not_lock():
    for _ in range(20):
        cache = ScoreCache()
        threads = [
            threading.Thread(target=look_up, args=(cache, numbers))
            for numbers in (range(50), range(49, -1, -1), range(25, 75))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in threads)
        assert cache.misses == 75


def test_a_failed_computation_is_nobody_elses_failure():
    cache = ScoreCache()
    started, release = threading.Event(), threading.Event()
    errors = []

    def fails(missing):
        started.set()
        assert release.wait(30)
        raise RuntimeError("no memory")

    def owner():
        try:
            cache.get_or_compute([key(1)], fails)
        except RuntimeError as error:
            errors.append(str(error))

    results = []
    threads = [
        threading.Thread(target=owner),
        threading.Thread(target=lambda: results.append(look_up(cache, [1]))),
    ]
    threads[0].start()
    assert started.wait(30)
    threads[1].start()
    release.set()
    for thread in threads:
        thread.join(30)
    assert (errors, results) == (["no memory"], [[1]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_items": 0}, "max_items must be a whole number of at least 1"),
        ({"max_items": "x"}, "max_items must be a whole number"),
        ({"max_bytes": 100}, "max_bytes is 100"),
        ({"max_bytes": None}, "max_bytes must be a whole number"),
        ({"path": 5}, "path must be a file's name, not int"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        ScoreCache(**arguments)
