"""Where the error of static int8 comes from: one part of the model rounded alone, and all parts but one.

A part is a kind of linear layer, everywhere, or a whole encoder layer. What is not rounded runs in float32
over the same weights, so the error is that of rounding the activations (the weights' own rounding is in
both). Beside each: what a query's candidates take, as contestants in turns, with ONNX Runtime's operators;
whole layers in the native library are faster, and a part in float32 leaves it for that layer.

    python benchmarks/int8_error.py ../shared/data/msmarco_dl19 --run bm25.top100 \
        --qrels ../shared/data/msmarco_dl19/qrels_full_official.txt --page docs/performance.md
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import harness
import numpy as np
import safetensors.numpy

from crossrank import CrossEncoder
from crossrank.benchmarking.fidelity import read_judged
from crossrank.models.hub import resolve
from crossrank.runtime.int8 import INT8_FILE, Dequantized, write_parity
from crossrank.runtime.native import left_out

KINDS = {
    "queries, keys and values": r"\.attention\.self\.",
    "attention's output": r"\.attention\.output\.",
    "feed-forward, first": r"\.intermediate\.",
    "feed-forward, second": r"\.\d+\.output\.",
}
"""Kind of linear layer -> a pattern of their names in a BERT."""

SCALE = ".input_scale"


def parts_of(names: Collection[str]) -> dict[str, set[str]]:
    """Name of a part -> its linear layers."""
    found = {kind: {name for name in names if re.search(each, name)} for kind, each in KINDS.items()}
    for name in sorted(names):
        if number := re.search(r"\.layer\.(\d+)\.", name):
            found.setdefault(f"layer {int(number[1]) + 1}", set()).add(name)
    return {part: layers for part, layers in found.items() if layers}


def linear_layers(stored: Iterable[str]) -> set[str]:
    """The linear layers that an int8 file rounds the inputs of."""
    return {name.removesuffix(SCALE) for name in stored if name.endswith(SCALE)}


def write_form(source: Path, rounded: Iterable[str], folder: Path) -> Path:
    """Write a copy of an int8 model in which these linear layers alone are rounded."""
    stored = safetensors.numpy.load_file(source / INT8_FILE)
    plain = Dequantized(stored)
    others = linear_layers(stored) - {*rounded}
    # what int8 adds to a layer is not among the plain model's tensors
    tensors = {
        name: each for name, each in stored.items() if name in plain or name.rpartition(".")[0] not in others
    }
    for name in others:
        tensors[f"{name}.weight"] = np.ascontiguousarray(plain[f"{name}.weight"])
    shutil.copytree(
        source, folder, ignore=shutil.ignore_patterns("*.safetensors", "parity.json", "calibration.json")
    )
    safetensors.numpy.save_file(tensors, folder / INT8_FILE)
    write_parity(folder, {"passed": True})  # here it is the deltas that count
    return folder


def run(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    source = resolve(args.weights, kind="cross-encoder")
    stored = safetensors.numpy.load_file(source / INT8_FILE)
    names = linear_layers(stored)
    parts = parts_of(names)
    forms = {"all": names}
    forms |= {f"{part} alone": layers for part, layers in parts.items()}
    forms |= {f"all but {part}": names - layers for part, layers in parts.items()}
    judged = read_judged(args.judged, depth=args.depth, run=args.run, qrels=args.qrels)
    options: dict[str, Any] = {"long_query": "truncate", "threads": args.threads, "progress": False}
    reference = judged.scored(CrossEncoder(source, precision="float32", **options).score)
    found: dict[str, dict[str, Any]] = {}
    models = {}
    with left_out():
        for place, (form, rounded) in enumerate(forms.items()):
            harness.say(f"rounded: {form}")
            folder = write_form(source, rounded, scratch / str(place))
            models[form] = CrossEncoder(folder, precision="int8", **options)
            found[form] = judged.difference(reference, judged.scored(models[form].score))
    timed = {form: model for form, model in models.items() if not form.endswith(" alone")}
    pairs = judged.pairs()[0]
    load = harness.load_average()
    timings = harness.interleave(
        {name: partial(each.score, pairs) for name, each in timed.items()}, args.rounds
    )
    for name, timing in timings.items():
        found[name]["median_s"] = round(timing.median_s, 4)
    return {
        "benchmark": "int8_error",
        "machine": harness.machine("crossrank", "onnxruntime", "tokenizers"),
        "load_average_before": load,
        "settings": {
            "reranker": source.name,
            "judged": judged.name,
            "depth": args.depth,
            "queries": len(judged.queries),
            "threads": args.threads,
            "rounds": args.rounds,
        },
        "parts": list(parts),
        "forms": found,
    }


def table(result: Mapping[str, Any]) -> str:
    """The page's table, as Markdown."""
    settings, forms = result["settings"], result["forms"]
    lines = [
        f"{harness.machine_line(result)}. {settings['reranker']}, {settings['judged']}, "
        f"{settings['queries']} queries with {settings['depth']} candidates; mean difference of scores from "
        f"float32, in standard deviations; milliseconds of one query's candidates, {settings['threads']} "
        f"threads, median of {settings['rounds']} rounds, ONNX Runtime's operators; load average before: "
        f"{result['load_average_before']}.",
        "",
    ]
    columns = ["part", "it alone in int8", "all but it in int8", "ms"]
    whole = forms["all"]
    rows = [["none is left out", "", _mean(whole), f"{1000 * whole['median_s']:,.0f}"]]
    for part in result["parts"]:
        rest = forms[f"all but {part}"]
        rows.append([part, _mean(forms[f"{part} alone"]), _mean(rest), f"{1000 * rest['median_s']:,.0f}"])
    return "\n".join([*lines, *harness.markdown_table(columns, rows)])


def _mean(found: Mapping[str, Any]) -> str:
    return f"{found['mean_delta_in_std']:.4f}"


def main() -> None:
    parser = harness.parser(__doc__ or "")
    parser.add_argument("judged", type=Path, help="collection in BEIR form")
    parser.add_argument("--run", help="rerank this run of the collection in place of BM25's candidates")
    parser.add_argument("--qrels", type=Path, help="judgements to use in place of the test split's")
    parser.add_argument("--depth", type=harness.at_least_one, default=20, help="candidates a query")
    parser.add_argument("--rounds", type=harness.at_least_one, default=5)
    harness.page_option(parser)
    args = parser.parse_args()
    result = harness.carry_out(run, args)
    harness.publish("int8_error", result, table(result), args)


if __name__ == "__main__":
    main()
