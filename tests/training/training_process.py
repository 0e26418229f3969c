"""Trains in a process of its own that dies, as a power failure would end it, at a stated point.

python training_process.py RECIPE STEP      dies when it reports STEP
python training_process.py RECIPE write:N   dies while it writes its Nth checkpoint
"""

from __future__ import annotations

import os
import signal
import sys

from crossrank.training import checkpointing, train
from crossrank.training.recipes import read_recipe


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(recipe: str, when: str) -> None:
    if when.startswith("write:"):
        left = int(when.removeprefix("write:"))
        save = checkpointing.save_weights

        def save_and_die(model, path):
            nonlocal left
            save(model, path)
            if path.name == checkpointing.WEIGHTS:
                left -= 1
                if left == 0:
                    _die()

        checkpointing.save_weights = save_and_die
        train.train(read_recipe(recipe))
    else:
        train.train(read_recipe(recipe), report=lambda told: _die() if told.step >= int(when) else None)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
