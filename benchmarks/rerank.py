"""Rerank the candidates of one query, and of several: crossrank against other libraries, same weights.

Each library has an environment of its own, which this script makes under --environments the first time
(CPU builds; a library that does not install, or does not load the model, is left out with its message). What
is measured, and how, is `crossrank.benchmarking`, the same as in `crossrank bench`; texts are cut from the
sample collection. A ratio is of medians: how many times ours another takes, at its default and at its best
batch size.

    python benchmarks/rerank.py
    python benchmarks/rerank.py --profiles marco nq --contestants sentence-transformers "flashrank way"
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import venv
from functools import partial
from pathlib import Path
from typing import Any

import harness
import material

from crossrank.benchmarking.bench import BenchReport, bench
from crossrank.benchmarking.plots import plot_bench
from crossrank.benchmarking.texts import PROFILES

ST = "sentence-transformers"
OURS = ("crossrank float32", "crossrank int8")
EXPORTER = Path(__file__).parent / "export_onnx.py"
_TORCH = "torch==2.13.0"  # a build for CPUs, where the index has one
_ONNX = ("onnxruntime", "tokenizers", "numpy")
REQUIREMENTS: dict[str, tuple[str, ...]] = {
    ST: (_TORCH, "sentence-transformers", "onnx", "onnxruntime", "onnxscript"),
    f"{ST} onnx": (_TORCH, "sentence-transformers[onnx]"),
    f"{ST} openvino": (_TORCH, "sentence-transformers[openvino]"),
    "onnxruntime dynamic int8": _ONNX,
    "onnxruntime fused dynamic int8": _ONNX,
    "flashrank way": _ONNX,
    "fastembed": ("fastembed",),
    "rerankers": (_TORCH, "rerankers[transformers]", "protobuf"),
    "infinity": (_TORCH, "infinity-emb[torch]", "optimum<2", "transformers<5"),
}


def environment(folder: Path, requirements: tuple[str, ...]) -> Path:
    """Python of an environment with these requirements, made if it is not there."""
    name = "-".join(each.partition("=")[0].partition("[")[0].partition("<")[0] for each in requirements)
    extras = "".join(each[each.index("[") : each.index("]")] for each in requirements if "[" in each)
    place = folder / f"{name}{extras.replace('[', '-').replace(',', '-')}"
    python = place / "bin" / "python"
    done = place / "installed"
    if not done.exists():
        print(f"installing {', '.join(requirements)}", flush=True)
        venv.create(place, with_pip=True, clear=True)
        install = [str(python), "-m", "pip", "install", "--quiet"]
        if _TORCH in requirements:  # first, so that nothing else brings a build for GPUs
            subprocess.run([*install, _TORCH], check=True)
        subprocess.run([*install, *requirements], check=True)
        done.touch()
    return python


def environments(names: list[str], folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Contestant -> its Python, and why others have none."""
    found: dict[str, Path] = {}
    failed: dict[str, str] = {}
    for name in names:
        try:
            found[name] = environment(folder, REQUIREMENTS[name])
        except subprocess.CalledProcessError as error:  # noqa: PERF203 - an hour of installing each
            failed[name] = f"it does not install: {error}"
    return found, failed


def export(float32: Path, python: Path) -> None:
    """Add the ONNX files that contestants read."""
    subprocess.run([str(python), str(EXPORTER), str(float32)], check=True)


def ratios(report: BenchReport) -> dict[str, dict[str, float]]:
    """Profile -> "ours against theirs" -> how many times our median theirs is."""
    found: dict[str, dict[str, float]] = {}
    for profile, measured in report.profiles.items():
        latency = measured["latency"]
        peers: dict[str, float] = {}
        for name in REQUIREMENTS:
            # In the order of the report, a library's first variant is its default.
            variants = [each["median_s"] for label, each in latency.items() if _is_of(label, name)]
            if variants:
                peers[f"{name} default"], peers[f"{name} best"] = variants[0], min(variants)
        found[profile] = {
            f"{ours} against {peer}": round(taken / latency[ours]["median_s"], 2)
            for ours in OURS
            for peer, taken in peers.items()
        }
    return found


def _is_of(label: str, name: str) -> bool:
    return label.startswith((f"{name} batches", f"{name} one batch"))


def show(result: dict[str, Any]) -> None:
    for profile, measured in result["profiles"].items():
        harness.print_histogram(
            f"\n{profile}: tokens of a pair, mean {measured['mean_tokens']}", measured["tokens"]
        )
        rows = [
            {
                "": label,
                "class": each["class"],
                "median ms": f"{1000 * each['median_s']:,.0f}",
                "minimum ms": f"{1000 * each['min_s']:,.0f}",
                "CPU ms": f"{1000 * each['cpu_median_s']:,.0f}",
                "peak MB": f"{each.get('peak_mb') or 0:,.0f}",
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
        for name, ratio in result["ratios"][profile].items():
            print(f"{ratio:6.2f} × {name}")
    harness.print_machine(result)
    print(f"load average before: {result['machine']['load_average_before']}")
    for name, why in result["left_out"].items():
        print(f"left out: {name}: {why}")


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--profiles", nargs="+", choices=PROFILES, default=list(PROFILES))
    parser.add_argument("--documents", type=harness.at_least_one, default=100)
    parser.add_argument("--queries", type=harness.at_least_one, default=4, help="in one call")
    parser.add_argument("--rounds", type=harness.at_least_one, default=7)
    parser.add_argument("--max-length", type=harness.at_least_one, default=512, help="tokens of a pair")
    parser.add_argument("--contestants", nargs="+", choices=REQUIREMENTS, default=list(REQUIREMENTS))
    parser.add_argument(
        "--environments", type=Path, default=Path.home() / ".cache" / "crossrank" / "peers", help="folder"
    )
    parser.add_argument(
        "--here",
        action="store_true",
        help="run the contestants in this environment, which has their libraries",
    )
    args = parser.parse_args()
    result = run(args)
    show(result)
    harness.write("rerank", result, args.output)


def run(args: argparse.Namespace) -> dict[str, Any]:
    failed: dict[str, str] = {}
    interpreters = dict.fromkeys(args.contestants, Path(sys.executable))
    exporter = Path(sys.executable)
    if not args.here:
        interpreters, failed = environments(args.contestants, args.environments)
        exporter = environment(args.environments, REQUIREMENTS[ST])
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
        prepare=partial(export, python=exporter),
    )
    plot_bench(report, (args.output or harness.RESULTS / "rerank.json").with_suffix(".svg"))
    found = report.as_dict()
    found["left_out"] |= failed
    return json.loads(json.dumps(found | {"benchmark": "rerank", "ratios": ratios(report)}))


if __name__ == "__main__":
    main()
