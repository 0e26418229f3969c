"""`crossrank export`: a model to a folder with an ONNX file that other programs run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from crossrank.cli.loading import JsonOption, Precision, PrecisionOption, RevisionOption, ThreadsOption
from crossrank.cli.output import console, emit_json, messages, table
from crossrank.cli.usage import ReplaceModelOption

if TYPE_CHECKING:
    from crossrank.models.export import ExportReport

__all__ = ["export"]


def export(
    model: Annotated[str, typer.Argument(help="Any model: a built-in one, a folder, or a hub name.")],
    to: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write; new or empty.")],
    *,
    precision: PrecisionOption = Precision.auto,
    replace: ReplaceModelOption = False,
    revision: RevisionOption = None,
    threads: ThreadsOption = None,
    json: JsonOption = False,
) -> None:
    """Write a model as an ONNX file with its tokenizer, for programs that have ONNX Runtime alone.

    The folder opens again like the model, with the same scores. OUT/onnx/inputs.json says how texts become
    the inputs of OUT/onnx/model.onnx.

    Example: `crossrank export crossrank-mini mini-onnx`

    Example: `crossrank export my-monot5 my-monot5-onnx --precision float32`
    """
    from crossrank.models.export import export as export_model

    report = export_model(
        model, to, precision=precision.value, revision=revision, overwrite=replace, threads=threads
    )
    if json:
        emit_json(report)
        return
    _print(report)
    messages().print(f"wrote {to}; it gives what {model} gives", markup=False)
    if report.exits_left_out:
        layers = ", ".join(map(str, report.exits_left_out))
        messages().print(
            f"left out: heads after layers {layers}, since an ONNX file is run whole",
            style="yellow",
            markup=False,
        )


def _print(report: ExportReport) -> None:
    shown = table("", "")
    shown.show_header = False
    shown.add_row("kind", report.kind)
    shown.add_row("precision", report.precision)
    files = ", ".join(map(str, report.files))
    shown.add_row("file", Text(f"{files} ({report.size_bytes / 1e6:,.1f} MB)"))
    shown.add_row("inputs", ", ".join(report.inputs))
    for name, meaning in report.outputs.items():
        shown.add_row("output", Text(f"{name}: {meaning}"))
    console().print(shown)
