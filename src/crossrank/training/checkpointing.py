"""What is added to sentence-transformers' trainers: whole checkpoints, counting, one GPU a process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from crossrank.errors import TrainingStoppedError
from crossrank.training.run_folder import RunFolder
from crossrank.whole_files import write_whole

__all__ = ["WEIGHTS", "arguments_class", "load_weights", "save_weights", "trainer_class"]

WEIGHTS = "weights.pt"


def save_weights(model: torch.nn.Module, path: Path) -> None:
    """Write all weights of a model to a file, whole or not at all."""
    write_whole(path, lambda temporary: torch.save(model.state_dict(), temporary))


def load_weights(model: torch.nn.Module, path: Path) -> None:
    """Read what `save_weights` wrote."""
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))


def arguments_class(base: type[Any]) -> type[Any]:
    """Return arguments of a trainer that uses one GPU of a process, whatever their number.

    transformers would spread a single process over all of them by `DataParallel`: steps of as many times the
    rows, of a wrapper that losses cannot score with.

    Args:
        base: the arguments of one of sentence-transformers' trainers.
    """

    class OneGPUArguments(base):  # type: ignore[misc]
        @property
        def n_gpu(self) -> int:
            return min(1, int(super().n_gpu))

    return OneGPUArguments


def trainer_class(base: type[Any], run: RunFolder) -> type[Any]:
    """Return a trainer of sentence-transformers whose checkpoints appear whole or not at all.

    A checkpoint is written in a folder of its own and renamed when it is whole. It has the weights as they
    are in memory (frozen ones and adapters too), not a model folder: that is written at the end.

    Args:
        base: one of sentence-transformers' trainers.
        run: where checkpoints go.
    """

    class RecipeTrainer(base):  # type: ignore[misc]
        pairs_done = 0
        """Pairs of query and document in the steps so far."""
        _staging: Path | None = None

        def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
            """Leave it out: the card is crossrank's own."""

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            self.pairs_done += num_pairs(inputs)
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            value = (loss[0] if isinstance(loss, tuple) else loss).detach()
            if not bool(torch.isfinite(value)):
                raise TrainingStoppedError(
                    f"the loss is {float(value)} in step {self.state.global_step + 1}; a lower "
                    "schedule.learning_rate, a longer warmup, or precision: float32 may help"
                )
            return loss

        def _get_output_dir(self, trial: Any) -> str:
            return str(self._staging or super()._get_output_dir(trial))

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            self._staging = run.staging
            try:
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    run.commit_checkpoint(run.staging / f"checkpoint-{self.state.global_step}")
            finally:
                self._staging = None

        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
            if not self.args.should_save:  # every process comes here, and one writes
                return
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            save_weights(self.model, folder / WEIGHTS)

        def _load_from_checkpoint(self, checkpoint: str, model: Any = None) -> None:
            load_weights(self.model, Path(checkpoint, WEIGHTS))

    return RecipeTrainer


def num_pairs(inputs: Any) -> int:
    """Return the pairs of query and document in a step's inputs, texts or tokens."""
    texts = [value for name, value in inputs.items() if isinstance(value, list) and name != "label"]
    if texts:
        return sum(len(each) if isinstance(each, list) else 1 for column in texts[1:] for each in column)
    columns = [value for name, value in inputs.items() if name.endswith("_input_ids")]
    return sum(len(column) for column in columns[1:])
