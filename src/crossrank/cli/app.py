"""The command line's entry: its commands, its exit codes, how errors look."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from crossrank.cli import (
    adapt,
    bench,
    calibrate,
    encode,
    evaluate,
    evaluate_pairs,
    explain,
    export,
    index,
    info,
    mine,
    models,
    quantize,
    rerank,
    search,
    similar,
    train,
    tune,
)
from crossrank.cli.output import emit_text, show_error
from crossrank.errors import CrossrankError

__all__ = ["app", "run"]

FAILED = 1
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
PIPE_CLOSED = 141  # 128 + SIGPIPE


@contextmanager
def _closed_pipes() -> Iterator[None]:
    """Give a pipe whose reader went away its exit code, whoever was writing: a command, or --help."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # a closed pipe must show here, not while the interpreter shuts down
    except (BrokenPipeError, SystemExit) as error:
        # rich, which prints help, answers a closed pipe with an exit code of 1.
        if not isinstance(error, BrokenPipeError) and not isinstance(error.__context__, BrokenPipeError):
            raise
        # Whoever read our output has what they wanted. Python flushes once more at exit: give it
        # somewhere to write to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(PIPE_CLOSED) from None


class _Commands(TyperGroup):
    """Turns what a command raises into one clear line and an exit code."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        with _closed_pipes():  # --help and --version print here
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        try:
            with _closed_pipes():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except (CrossrankError, OSError) as error:
            show_error(error)
            raise typer.Exit(FAILED) from None


app = typer.Typer(
    name="crossrank",
    cls=_Commands,
    help="Two-stage search: a fast first stage finds candidates, a reranker puts the best ones on top.",
    epilog="Exit codes: 0 done, 1 an error (said on standard error), 2 wrong usage, 130 interrupted, "
    "141 the reader of a pipe went away.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        emit_text(f"crossrank {version('crossrank')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    del version  # its callback has done the work


def _add(command: Callable[..., None]) -> None:
    app.command(name=command.__name__.replace("_", "-"))(command)


for _command in (
    index.index,
    search.search,
    rerank.rerank,
    rerank.score,
    explain.explain,
    encode.encode,
    evaluate.evaluate,
    evaluate_pairs.evaluate_pairs,
    mine.mine,
    train.train,
    adapt.adapt,
    quantize.quantize,
    export.export,
    calibrate.calibrate,
    bench.bench,
    tune.tune,
    similar.paraphrases,
    similar.cluster,
    info.info,
    models.models,
):
    _add(_command)


def run() -> None:
    """Run the command line of this process."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # Results are UTF-8 whatever the locale; a character that cannot be written is escaped in
            # the form JSON uses, too.
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    # LanceDB's own messages about its files are not for the people who type commands.
    os.environ.setdefault("LANCEDB_LOG", "error")
    app(prog_name="crossrank")
