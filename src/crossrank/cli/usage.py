"""Options that would do nothing are wrong usage: silence would let people believe in them."""

from __future__ import annotations

import typer

__all__ = ["refuse"]


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
