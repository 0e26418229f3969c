"""The `crossrank` command: parse, call the library, print. Nothing here decides anything."""

__all__ = ["main"]


def main() -> None:
    """Run the command line of this process."""
    from crossrank.cli.app import run

    run()
