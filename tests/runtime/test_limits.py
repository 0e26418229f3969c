"""Cores from affinity, control groups (both versions) and the override."""

import os
from pathlib import Path

import pytest

from crossrank.errors import InputError
from crossrank.runtime import limits
from crossrank.runtime.limits import available_cores, num_threads


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine of 16 cores with no override."""
    monkeypatch.delenv("CROSSRANK_THREADS", raising=False)
    monkeypatch.setattr(limits, "_affinity", lambda: 16)


def tree(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_affinity_alone(tmp_path):
    assert available_cores(tmp_path) == 16


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 16), ("400000 100000", 4), ("250000 100000", 2), ("50000 100000", 1)]
)
def test_v2_own_group(tmp_path, quota, cores):
    tree(tmp_path, "0::/pod/app\n", {"pod/app/cpu.max": quota + "\n"})
    assert available_cores(tmp_path) == cores


def test_v2_tightest_group_on_the_way_up_counts(tmp_path):
    files = {"pod/app/cpu.max": "800000 100000", "pod/cpu.max": "300000 100000", "cpu.max": "max 100000"}
    tree(tmp_path, "0::/pod/app\n", files)
    assert available_cores(tmp_path) == 3


def test_v2_host_path_inside_a_container(tmp_path):
    tree(tmp_path, "0::/../../kubepods/burstable/pod1\n", {"cpu.max": "200000 100000"})
    assert available_cores(tmp_path) == 2


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
def test_v1_quota(tmp_path, mount):
    cgroup = "9:name=systemd:/\n4:cpu,cpuacct:/docker/1\n0::/\n"
    files = {f"{mount}/docker/1/cpu.cfs_quota_us": "500000", f"{mount}/docker/1/cpu.cfs_period_us": "100000"}
    tree(tmp_path, cgroup, files)
    assert available_cores(tmp_path) == 5


def test_v1_without_quota_and_other_controllers(tmp_path):
    cgroup = "4:cpu:/\n3:cpuset:/x\n"
    files = {
        "cpu/cpu.cfs_quota_us": "-1",
        "cpu/cpu.cfs_period_us": "100000",
        "cpuset/x/cpu.cfs_quota_us": "100000",
    }
    tree(tmp_path, cgroup, files)
    assert available_cores(tmp_path) == 16


def test_unreadable_quota_is_no_quota(tmp_path):
    tree(tmp_path, "0::/\n", {"cpu.max": "a new form\n"})
    assert available_cores(tmp_path) == 16


def test_override(tmp_path, monkeypatch):
    tree(tmp_path, "0::/\n", {"cpu.max": "100000 100000\n"})
    monkeypatch.setenv("CROSSRANK_THREADS", " 6 ")
    assert available_cores(tmp_path) == 6


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "²", "1025", "9" * 5000])
def test_bad_override(monkeypatch, value):
    monkeypatch.setenv("CROSSRANK_THREADS", value)
    with pytest.raises(InputError, match="CROSSRANK_THREADS"):
        available_cores()


def test_this_machine():
    assert 1 <= available_cores() <= max(16, os.cpu_count() or 1)


def test_threads_that_are_asked_for(monkeypatch):
    assert num_threads(3) == 3
    monkeypatch.setenv("CROSSRANK_THREADS", "2")
    assert (num_threads(None), num_threads(5)) == (2, 5)


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True, 10**6])
def test_threads_that_cannot_be(threads):
    with pytest.raises(InputError, match="threads"):
        num_threads(threads)
