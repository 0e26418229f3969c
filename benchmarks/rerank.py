"""Rerank the candidates of one query, and of several: crossrank against other libraries, same weights.

Each library has an environment of its own, which this script makes under --environments the first time; a
library that does not install, or does not load the model, is named with its message. What is measured, and
how, is `crossrank.benchmarking`, the same as in `crossrank bench`; texts are cut from the sample collection.
A ratio is of medians: how many times ours another takes, at its default and at its best batch size.

The class "tolerance" is proven on judged queries. That takes long and needs no quiet machine, so it is a run
of its own, whose file the others read:

    python benchmarks/rerank.py --profiles --judged data/sample
    python benchmarks/rerank.py --profiles marco nq
    python benchmarks/rerank.py --profiles fixed --contestants flashrank "onnxruntime dynamic int8"
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import harness
import material

from crossrank.benchmarking.bench import bench
from crossrank.benchmarking.contestants import NEED_ONNX_FILES, ContestantError, add_onnx_files
from crossrank.benchmarking.fidelity import read_judged
from crossrank.benchmarking.plots import plot_bench
from crossrank.benchmarking.texts import PROFILES

OURS = ("crossrank float32", "crossrank int8")
JUDGED = harness.RESULTS / "rerank_judged.json"

_TORCH = "torch==2.13.0"
_ORT = ("onnxruntime", "tokenizers", "numpy")
ST, ORT, INFINITY = "sentence-transformers", "onnxruntime", "infinity"
REQUIREMENTS: dict[str, tuple[str, ...]] = {
    ST: (_TORCH, "sentence-transformers", "onnx", "onnxruntime", "onnxscript"),  # exports for the others, too
    f"{ST}-onnx": (_TORCH, "sentence-transformers[onnx]"),
    f"{ST}-openvino": (_TORCH, "sentence-transformers[openvino]"),
    ORT: _ORT,
    "flashrank": ("flashrank", *_ORT),
    "fastembed": ("fastembed",),
    "rerankers": (_TORCH, "rerankers[transformers]", "protobuf"),
    # What works with the older optimum that it needs, and with NumPy 1.
    INFINITY: (
        _TORCH,
        "infinity-emb[torch,optimum]",
        "optimum<2",
        "transformers<4.49",
        "datasets<4",
        "pyarrow<21",
    ),
}
"""Environment -> what is installed in it."""
SUPERFLUOUS = {f"{ST}-openvino": "torchvision"}
"""Environment -> what is removed again: it is for images, and the build that comes may not fit torch's."""
ENVIRONMENTS = {
    ST: ST,
    f"{ST} onnx": f"{ST}-onnx",
    f"{ST} openvino": f"{ST}-openvino",
    "onnxruntime dynamic int8": ORT,
    "onnxruntime fused dynamic int8": ORT,
    "flashrank": "flashrank",
    "fastembed": "fastembed",
    "rerankers": "rerankers",
    "infinity": INFINITY,
    "infinity optimum": INFINITY,
}
"""Contestant -> its environment."""


class InstallError(Exception):
    """What an environment needs does not install."""


def environment(folder: Path, name: str) -> Path:
    """Python of an environment, made if it is not there with what it needs now.

    Raises:
        InstallError: with pip's message.
    """
    place, requirements = folder / name, REQUIREMENTS[name]
    python = place / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    done = place / "installed.txt"
    wanted = "\n".join(requirements) + "\n"
    if not done.exists() or done.read_text(encoding="utf-8") != wanted:
        print(f"installing {', '.join(requirements)} in {place}", flush=True)
        venv.create(place, with_pip=True, clear=True)
        if _TORCH in requirements:  # first and pinned, so that it is the same build for all who use it
            _pip(python, "install", _TORCH)
        _pip(python, "install", *requirements)
        if name in SUPERFLUOUS:
            _pip(python, "uninstall", "--yes", SUPERFLUOUS[name])
        done.write_text(wanted, encoding="utf-8")
    return python


def _pip(python: Path, command: str, *arguments: str) -> None:
    ran = subprocess.run(
        [str(python), "-m", "pip", command, "--quiet", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        lines = ran.stderr.strip().splitlines()
        errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:]
        raise InstallError(f"it does not install: {' '.join(errors)[:600]}")


def reason(message: str, folder: Path) -> str:
    """The first line of a message, without this machine's folders."""
    return message.partition("\n")[0].replace(str(folder), "ENVIRONMENTS")


def environments(names: list[str], folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Contestant -> its Python, and why others have none."""
    found: dict[str, Path] = {}
    failed: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for name in names:
        place = ENVIRONMENTS[name]
        try:
            if place not in reasons:
                found[name] = environment(folder, place)
        except InstallError as error:
            reasons[place] = str(error)
        if place in reasons:
            failed[name] = reasons[place]
    return found, failed


def show(result: dict[str, Any]) -> None:
    for profile, measured in result["profiles"].items():
        harness.print_histogram(
            f"\n{profile}: tokens of a pair, mean {measured['mean_tokens']}", measured["tokens"]
        )
        rows = [
            {
                "": label + _which(each),
                "class": each["class"],
                "median ms": f"{1000 * each['median_s']:,.0f}",
                "minimum ms": f"{1000 * each['min_s']:,.0f}",
                "CPU ms": f"{1000 * each['cpu_median_s']:,.0f}",
                "peak MB": f"{each['peak_mb']:,.0f}" if "peak_mb" in each else "",
                "padding": f"{each['padding']:.2f}",
                "max |Δ|": f"{each['max_delta']:.1e}",
                "alone |Δ|": f"{each['max_delta_alone']:.1e}",
                "tau": f"{each['kendall_tau']:.3f}",
                "pairs/s": f"{measured['throughput'].get(label, {}).get('pairs_per_s', 0):,.0f}",
            }
            for label, each in measured["latency"].items()
        ]
        settings = result["settings"]
        harness.table(
            f"{settings['num_documents']} candidates, {settings['threads']} threads, "
            f"{settings['rounds']} rounds",
            rows,
        )
        for name, ratio in measured["ratios"].items():
            print(f"{ratio:6.2f} × {name}")
        control = measured["control"]
        print(f"most padding: {control['most_padding']}")
        for name, gain in control["unsorted_against_sorted"].items():
            print(f"{gain:6.2f} × {name}: unsorted against sorted")
        print(f"load average before: {measured['load_average_before']}")
    _show_judged(result["judged"])
    harness.print_machine(result)
    for name, facts in result["contestants"].items():
        versions = ", ".join(f"{package} {version}" for package, version in facts["versions"].items())
        print(f"{name}: Python {facts['python']}, {versions}")
    for name, why in result["left_out"].items():
        print(f"left out: {name}: {why}")


def _which(figures: dict[str, Any]) -> str:
    found = [name for name in ("default", "best") if figures[f"is_{name}"]]
    return f" ({', '.join(found)})" if found and figures["contestant"] not in OURS else ""


def _show_judged(judged: dict[str, Any]) -> None:
    rows = [
        {
            "": f"{name} on {collection}",
            "queries": str(found["queries"]),
            "float32": f"{found['float32']:.4f}",
            "its own": f"{found['other']:.4f}",
            "difference": f"{found['difference']:+.4f}",
            "95 %": "{:+.4f} to {:+.4f}".format(*found["interval"]),
            "tau": f"{found['kendall_tau']:.3f}",
            "top 10": f"{found['top10_overlap']:.3f}",
        }
        for name, collections in judged.items()
        for collection, found in collections.items()
    ]
    if rows:
        harness.table("nDCG@10 against float32's", rows)


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument(
        "--profiles", nargs="*", choices=PROFILES, default=list(PROFILES), help="none: only --judged"
    )
    parser.add_argument("--documents", type=harness.at_least_one, default=100)
    parser.add_argument("--queries", type=harness.at_least_one, default=4, help="in one call")
    parser.add_argument("--rounds", type=harness.at_least_one, default=7)
    parser.add_argument("--max-length", type=harness.at_least_one, default=512, help="tokens of a pair")
    parser.add_argument("--contestants", nargs="+", choices=ENVIRONMENTS, default=list(ENVIRONMENTS))
    parser.add_argument("--judged", type=Path, nargs="+", default=[], help="collections in BEIR form")
    parser.add_argument("--judged-queries", type=harness.at_least_one, help="of each; default: all")
    parser.add_argument("--depth", type=harness.at_least_one, default=20, help="of a judged query")
    parser.add_argument(
        "--environments", type=Path, default=Path.home() / ".cache" / "crossrank" / "peers", help="folder"
    )
    parser.add_argument(
        "--here",
        action="store_true",
        help="run the contestants in this environment, which has their libraries",
    )
    args = parser.parse_args()
    if not (args.profiles or args.judged):
        parser.error("nothing to do: name a profile, or a collection with --judged")
    result = run(args)
    harness.say("")
    show(result)
    name = "_".join(["rerank", *args.profiles]) if args.profiles else JUDGED.stem
    harness.write(name, result, args.output)


def run(args: argparse.Namespace) -> dict[str, Any]:
    failed: dict[str, str] = {}
    interpreters = dict.fromkeys(args.contestants, Path(sys.executable))
    if not args.here:
        interpreters, failed = environments(args.contestants, args.environments)
    reading_files = [name for name in interpreters if name in NEED_ONNX_FILES]

    def add_files(folder: Path) -> None:
        try:
            exporter = sys.executable if args.here else environment(args.environments, ST)
            add_onnx_files(folder, exporter)
        except (InstallError, ContestantError) as error:
            failed.update(dict.fromkeys(reading_files, f"its file cannot be exported: {error}"))

    judged = [
        read_judged(folder, depth=args.depth, num_queries=args.judged_queries) for folder in args.judged
    ]
    report = bench(
        args.weights,
        profiles=args.profiles,
        sources=material.articles(),
        num_documents=args.documents,
        num_queries=args.queries,
        rounds=args.rounds,
        threads=args.threads,
        max_length=args.max_length,
        contestants=[*OURS, *interpreters],
        interpreters=interpreters,
        prepare=add_files if reading_files else None,
        judged=judged,
        known=json.loads(JUDGED.read_text(encoding="utf-8")) if JUDGED.exists() and not judged else None,
    )
    if args.profiles:
        name = "_".join(["rerank", *args.profiles])
        plot_bench(report, (args.output or harness.RESULTS / f"{name}.json").with_suffix(".svg"))
    found = report.as_dict()
    found["left_out"] = {
        name: reason(why, args.environments) for name, why in (found["left_out"] | failed).items()
    }
    return {**json.loads(json.dumps(found)), "benchmark": "rerank"}


if __name__ == "__main__":
    main()
