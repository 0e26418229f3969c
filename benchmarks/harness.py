"""Measuring: interleaved rounds of several contestants, the facts of the machine, tables, JSON files.

Contestants take turns, in another order each round, so that what else happens on the machine meets all of
them; each is paused before, since the threads of the one before may spin for a while. The median says what to
expect, the minimum what the machine can do undisturbed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PAUSE_S = 0.3  # OpenMP threads spin for 0.2 s by default


@dataclass
class Timing:
    """What one contestant took, a value each round."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    @property
    def median_s(self) -> float:
        return statistics.median(self.wall_s)

    def summary(self) -> dict[str, Any]:
        return {
            "median_s": round(self.median_s, 4),
            "min_s": round(min(self.wall_s), 4),
            "cpu_median_s": round(statistics.median(self.cpu_s), 4),
            "rounds_s": [round(value, 4) for value in self.wall_s],
        }


def interleave(contestants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Time contestants in turns; the caller has warmed them up."""
    timings = {name: Timing() for name in contestants}
    order = list(contestants)
    shuffle = random.Random(0).shuffle
    for number in range(rounds):
        shuffle(order)
        for name in order:
            say(f"round {number + 1} of {rounds}: {name}")
            time.sleep(PAUSE_S)
            wall, cpu = time.perf_counter(), time.process_time()
            contestants[name]()
            timings[name].wall_s.append(time.perf_counter() - wall)
            timings[name].cpu_s.append(time.process_time() - cpu)
    return timings


@dataclass
class Comparison:
    """What `compare` found: a record of each contestant, its timing, its output, and the load before."""

    records: dict[str, dict[str, Any]]
    timings: dict[str, Timing]
    outputs: dict[str, Any]
    load_average_before: float | None

    def ratios(self, ours: Sequence[str], peers: Mapping[str, str]) -> dict[str, float]:
        """How many times ours a peer's median is; a peer is the best contestant whose name starts so."""
        seconds = {
            peer: min(timing.median_s for name, timing in self.timings.items() if name.startswith(prefix))
            for peer, prefix in peers.items()
        }
        return {
            f"{name} against {peer}": round(taken / self.timings[name].median_s, 2)
            for name in ours
            for peer, taken in seconds.items()
        }


def compare(
    contestants: Mapping[str, Callable[[list[Any]], Any]],
    inputs: list[Any],
    sizes: Sequence[int],
    rounds: int,
) -> Comparison:
    """Time functions of a list and compare what they return with what the first of them does.

    Each is also given eight of the inputs, short and long ones, by themselves.
    """
    import numpy as np

    few = sorted(range(len(inputs)), key=sizes.__getitem__)[:: max(1, len(inputs) // 8)][:8]
    records: dict[str, dict[str, Any]] = {}
    outputs: dict[str, Any] = {}
    for name, contestant in contestants.items():
        say(f"warming up: {name}")
        outputs[name] = output = np.asarray(contestant(inputs), np.float32)
        reference = next(iter(outputs.values()))
        alone = np.asarray(contestant([inputs[row] for row in few]), np.float32)
        records[name] = {
            "max_delta_to_sentence_transformers": float(np.abs(output - reference).max()),
            "max_delta_alone": float(np.abs(alone - output[few]).max()),
        }
    load = load_average()
    timings = interleave(
        {
            name: (lambda contestant=contestant: contestant(inputs))
            for name, contestant in contestants.items()
        },
        rounds,
    )
    for name, timing in timings.items():
        records[name] |= timing.summary()
    return Comparison(records, timings, outputs, load)


def limit_threads(threads: int) -> None:
    """Give every library the same threads; to be called before torch or tokenizers are imported."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ["CROSSRANK_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    os.environ["HF_HUB_OFFLINE"] = "1"  # every model here is a folder
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["TQDM_DISABLE"] = "1"  # bars of loading weights


def machine(*packages: str) -> dict[str, Any]:
    """The machine, and the versions of the packages that are installed."""
    model, flags = platform.processor(), ""
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        model, flags = facts.get("model name", model), facts.get("flags", facts.get("Features", ""))
    wanted = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm")
    return {
        "cpu": model,
        "cpus": os.cpu_count(),
        "flags": [flag for flag in wanted if flag in flags.split()],
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: found for name in packages if (found := _version(name))},
    }


def load_average() -> float | None:
    """Processes that wanted to run in the last minute, this one's threads among them."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def write(name: str, result: Mapping[str, Any], output: Path | None) -> None:
    path = output or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"written to {path}")


def table(title: str, rows: Sequence[Mapping[str, str]]) -> None:
    """Print rows, whose keys are the columns, with numbers to the right."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=title, title_justify="left")
    for number, column in enumerate(rows[0]):
        shown.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        shown.add_row(*row.values())
    # A pipe has no width; columns must not be cut there.
    Console(width=None if sys.stdout.isatty() else 200).print(shown)


def print_machine(result: Mapping[str, Any]) -> None:
    facts = result["machine"]
    print(f"{facts['cpu']}, {facts['cpus']} CPUs, {' '.join(facts['flags'])}")
    versions = ", ".join(f"{name} {value}" for name, value in facts["versions"].items())
    print(f"Python {facts['python']}, {versions}")


def print_verdict(result: Mapping[str, Any]) -> None:
    """What stands below the table of times: ratios, machine, load."""
    for name, ratio in result["ratios"].items():
        print(f"{ratio:6.2f} × {name}")
    print_machine(result)
    print(f"load average before: {result['load_average_before']}")


def histogram(lengths: Sequence[int], width: int) -> dict[str, int]:
    """How many lengths fall into each step of `width`."""
    counts: dict[str, int] = {}
    for start in range(min(lengths) // width * width, max(lengths) + 1, width):
        counts[f"{start}-{start + width - 1}"] = sum(start <= length < start + width for length in lengths)
    return counts


def print_histogram(title: str, counts: Mapping[str, int]) -> None:
    print(title)
    longest = max(counts.values())
    for label, count in counts.items():
        print(f"  {label:>9} {count:6,} {'#' * round(40 * count / longest)}")


def say(text: str) -> None:
    """Say on a terminal what is going on."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def at_least_one(text: str) -> int:
    """An argument that counts something."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return value


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options that all scripts share."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--threads", type=at_least_one, default=2, help="for every contestant (default: 2)")
    made.add_argument("--weights", type=Path, help="model folder; default: the built-in model")
    made.add_argument("--output", type=Path, help="JSON file; default: a file in benchmarks/results")
    return made


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
