"""Options that would do nothing are wrong usage: silence would let people believe in them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crossrank.errors import InputError

__all__ = ["ReplaceFileOption", "ReplaceModelOption", "check_new", "refuse"]

ReplaceFileOption = Annotated[bool, typer.Option("--replace", help="Replace a file that is there.")]
ReplaceModelOption = Annotated[bool, typer.Option("--replace", help="Replace a model that is in the folder.")]


def refuse(ctx: typer.Context, *names: str, because: str) -> None:
    """End the command with a usage error if one of these options was given.

    Args:
        ctx: of the command.
        names: parameters of the command's function.
        because: why they would do nothing.
    """
    for parameter in ctx.command.params:
        if parameter.name is None or parameter.name not in names:
            continue
        source = ctx.get_parameter_source(parameter.name)
        if source is not None and source.name == "COMMANDLINE":
            option = max(parameter.opts, key=len)
            raise typer.BadParameter(f"{option} would do nothing: {because}")


def check_new(file: Path | None, *, replace: bool) -> None:
    """Find out, before models are loaded, that a file cannot be written or must not be replaced.

    Args:
        file: where a result goes; None or "-" is no file.
        replace: whether it may be replaced.

    Raises:
        InputError: it is there, or its folder is not.
    """
    if file is None or str(file) == "-":
        return
    if file.exists() and not replace:
        raise InputError(f"{file} exists; name another file, or replace it with --replace")
    if not file.parent.is_dir():
        raise InputError(f"{file}: there is no folder {file.parent}; make it first")
