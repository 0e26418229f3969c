"""The command line in a process that dies, as a power failure would end it, after the Nth call of something.

python adapt_process.py MODULE:NAME:N adapt CORPUS ...
python adapt_process.py - adapt CORPUS ...        does not die
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import Any


def die_after(point: str) -> None:
    module, name, count = point.split(":")
    owner: Any = importlib.import_module(module)
    *parents, last = name.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    theirs, left = getattr(owner, last), int(count)

    def call(*arguments: Any, **options: Any) -> Any:
        nonlocal left
        found = theirs(*arguments, **options)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(owner, last, call)


def main() -> None:
    from crossrank.cli.app import app
    from crossrank.training import train
    from crossrank.training.precision import PrecisionChoice

    # which arithmetic is the faster one may be found to be another the next time
    train.faster_precision = lambda *arguments: PrecisionChoice("float32", 1.0, 1.0)
    point, *arguments = sys.argv[1:]
    if point != "-":
        die_after(point)
    app(arguments)


if __name__ == "__main__":
    main()
