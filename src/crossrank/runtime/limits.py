"""How many cores this process may use.

`os.cpu_count()` counts the machine. A container or a job scheduler usually grants less: through the CPU
affinity mask, or through a quota of its control group. Starting one thread for each core of the machine
inside a quota of two makes every thread wait for the others, so sessions ask here instead.
"""

from __future__ import annotations

import os
from pathlib import Path

from crossrank.checks import check_count
from crossrank.errors import InputError

__all__ = ["MAX_THREADS", "THREADS_VARIABLE", "available_cores", "num_threads"]

THREADS_VARIABLE = "CROSSRANK_THREADS"
"""Environment variable that overrides what the machine says: a whole number from 1 to `MAX_THREADS`."""

MAX_THREADS = 1024
"""Threads that may be asked for: the largest machines have fewer cores, and each thread takes memory."""

_V1_CPU_MOUNTS = ("cpu", "cpu,cpuacct", "cpuacct,cpu")


def available_cores(root: str | Path = "/") -> int:
    """Count the cores this process may keep busy.

    The smaller of the CPU affinity and the tightest control-group quota on the way from this process's
    group up to the root (version 1 and version 2), rounded down, at least 1. `CROSSRANK_THREADS` overrides
    it.

    Args:
        root: where `proc` and `sys` are mounted; only tests change it.

    Raises:
        InputError: `CROSSRANK_THREADS` is set to something other than a whole number from 1 to 1024.
    """
    override = os.environ.get(THREADS_VARIABLE, "").strip()
    if override:
        digits = override.isascii() and override.isdigit() and len(override) < 10
        if not digits or not 1 <= int(override) <= MAX_THREADS:
            raise InputError(
                f"the environment variable {THREADS_VARIABLE} is {override!r}; "
                f"set it to a whole number of at least 1 and at most {MAX_THREADS}, or unset it"
            )
        return int(override)
    cores = float(_affinity())
    for quota in _quotas(Path(root)):
        cores = min(cores, quota)
    return max(1, int(cores))


def num_threads(threads: int | None) -> int:
    """Threads of a session: those asked for, or the cores this process may use.

    Raises:
        InputError: `threads` is neither None nor a whole number from 1 to 1024.
    """
    if threads is None:
        return available_cores()
    check_count(threads, "threads")
    if threads > MAX_THREADS:
        raise InputError(f"threads is {threads}; it must be at most {MAX_THREADS}")
    return int(threads)


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas(root: Path) -> list[float]:
    """Cores granted by every control group this process is in, from its own group up to the mount."""
    mounts = root / "sys" / "fs" / "cgroup"
    try:
        lines = (root / "proc" / "self" / "cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return []
    quotas = []
    for line in lines:
        # "0::/path" in version 2, "4:cpu,cpuacct:/path" in version 1
        _, controllers, group = line.split(":", 2)
        if not controllers:
            # The second place is where systems that mount both versions keep version 2.
            folders = [folder for mount in (mounts, mounts / "unified") for folder in _upwards(mount, group)]
            quotas += [quota for folder in folders if (quota := _v2_quota(folder)) is not None]
        elif "cpu" in controllers.split(","):
            folders = [folder for name in _V1_CPU_MOUNTS for folder in _upwards(mounts / name, group)]
            quotas += [quota for folder in folders if (quota := _v1_quota(folder)) is not None]
    return quotas


def _upwards(mount: Path, group: str) -> list[Path]:
    """The group's folder and those above it, down to the mount itself.

    In a container the path can be the host's, of which only the mount itself exists here: folders that are
    missing are skipped by the readers.
    """
    parts = [part for part in group.split("/") if part not in ("", "..")]
    return [mount.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]


def _v2_quota(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()  # "max 100000" or "150000 100000"
        return None if quota == "max" else _ratio(int(quota), int(period))
    except (OSError, ValueError):  # no such file, or a form this kernel alone knows
        return None


def _v1_quota(folder: Path) -> float | None:
    try:
        return _ratio(
            int((folder / "cpu.cfs_quota_us").read_text()), int((folder / "cpu.cfs_period_us").read_text())
        )
    except (OSError, ValueError):
        return None


def _ratio(quota: int, period: int) -> float | None:
    return quota / period if quota > 0 and period > 0 else None  # -1 is "no quota" in version 1
