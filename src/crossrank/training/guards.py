"""Callbacks of a training run: measuring, keeping the best, stopping early, and stopping what goes wrong."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from crossrank.errors import TrainingStoppedError
from crossrank.training.checkpointing import save_weights
from crossrank.training.held_out import HeldOutSet, Measured
from crossrank.training.interpolation import Interpolation
from crossrank.training.processes import by_first
from crossrank.training.recipes import Recipe
from crossrank.training.run_folder import RunFolder
from crossrank.training.students import Student

__all__ = ["GradientGuard", "Measurements", "Progress", "StepLog"]


@dataclass(frozen=True)
class Progress:
    """How far a training is; given to whoever shows it.

    Attributes:
        step: updates so far.
        num_steps: of all.
        loss: mean since the last report; None with a measurement.
        learning_rate: now.
        pairs_per_s: since the last report.
        eta_s: seconds to the end at the rate so far, with measurements that take as long as the last one.
        measured: value of the held-out measure, where this is a measurement.
        best: the best value so far, and `best_step` where it was.
        best_step: see `best`; 0 is the base.
    """

    step: int
    num_steps: int
    loss: float | None = None
    learning_rate: float | None = None
    pairs_per_s: float | None = None
    eta_s: float | None = None
    measured: float | None = None
    best: float | None = None
    best_step: int | None = None


Report = Callable[[Progress], None]


class GradientGuard(TrainerCallback):  # type: ignore[misc]
    """Stops before weights are changed by a gradient that is no number."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at every gradient."""
        gradients = [each.grad for each in kwargs["model"].parameters() if each.grad is not None]
        norms = torch._foreach_norm(gradients)
        if gradients and not bool(torch.isfinite(torch.stack([*norms])).all()):
            raise TrainingStoppedError(
                f"the gradient of step {state.global_step + 1} has NaN or infinity; a lower "
                "schedule.learning_rate, a longer warmup, or precision: float32 may help"
            )


class StepLog(TrainerCallback):  # type: ignore[misc]
    """Writes loss and rate down, and reports them.

    Args:
        run: has the metrics.
        report: is told.
        pairs_done: gives the pairs that were trained on so far.
        every: steps between two measurements; None where nothing is measured.
    """

    def __init__(
        self, run: RunFolder, report: Report, pairs_done: Callable[[], int], every: int | None = None
    ) -> None:
        self._run, self._report, self._pairs_done, self._every = run, report, pairs_done, every
        self._measurement_s = 0.0
        self._pairs = 0
        self._since = self._begun = time.monotonic()
        self._first_step = 0
        self.paused_s = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._since = self._begun = time.monotonic()
        self._first_step = state.global_step
        self._pairs = self._pairs_done()
        self.paused_s = 0.0

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Write a line; what is logged at the very end has no loss of a step."""
        if not logs or "loss" not in logs or not state.is_world_process_zero:
            return
        now, pairs = time.monotonic(), self._pairs_done()
        rate = (pairs - self._pairs) / max(now - self._since, 1e-9)
        done = max(1, state.global_step - self._first_step)
        per_step = (now - self._begun - self.paused_s) / done
        self._since, self._pairs = now, pairs
        self._run.log(
            step=state.global_step,
            loss=float(logs["loss"]),
            learning_rate=float(logs.get("learning_rate", 0.0)),
            gradient_norm=float(logs.get("grad_norm", math.nan)),
            pairs_per_s=round(rate, 2),
        )
        self._report(
            Progress(
                state.global_step,
                state.max_steps,
                loss=float(logs["loss"]),
                learning_rate=float(logs.get("learning_rate", 0.0)),
                pairs_per_s=rate,
                eta_s=per_step * (state.max_steps - state.global_step)
                + self._measurement_s * self._measurements_left(state),
            )
        )

    def pause(self, seconds: float) -> None:
        """Leave seconds that were no training out of rates."""
        self.paused_s += seconds
        self._since += seconds
        self._measurement_s = seconds

    def _measurements_left(self, state: Any) -> int:
        if self._every is None:
            return 0
        return int(math.ceil(state.max_steps / self._every) - state.global_step // self._every)


class Measurements(TrainerCallback):  # type: ignore[misc]
    """Measures the model, keeps the best weights, and decides whether training goes on.

    What it knows of earlier measurements is in the metrics of the run, so that a resumed run decides as one
    that was never interrupted.

    Args:
        recipe: of the run.
        run: its folder.
        student: scores the held-out documents.
        held_out: what is measured.
        interpolation: gives the weights that are measured and kept.
        token_budget: padded tokens of one forward pass.
        report: is told of each measurement.
        pause: is told how long each took.
    """

    def __init__(
        self,
        recipe: Recipe,
        run: RunFolder,
        student: Student,
        held_out: HeldOutSet,
        *,
        interpolation: Interpolation,
        token_budget: int,
        report: Report,
        pause: Callable[[float], None],
    ) -> None:
        assert recipe.held_out is not None  # there is a set
        self._recipe, self._choice, self._run = recipe, recipe.held_out, run
        self._student, self._held_out = student, held_out
        self._interpolation, self._token_budget = interpolation, token_budget
        self._report, self._pause = report, pause
        # as the first process reads it: by now it may have written more
        self.measured: dict[int, float] = by_first(
            lambda: {line["step"]: line["held_out"] for line in run.metrics() if "held_out" in line}
        )

    @property
    def best_step(self) -> int:
        """The first step with the highest value."""
        return max(self.measured, key=lambda step: (self.measured[step], -step))

    def measure_base(self, model: Any, num_steps: int) -> None:
        """Measure the model before its first step, query by query."""

        def work() -> float:
            base = self.measure(model, 0, num_steps)
            self._run.note(baseline_per_query=base.per_query)
            return base.value

        self.measured[0] = by_first(work)

    def measure(self, model: Any, step: int, num_steps: int) -> Measured:
        """Measure a model, write it down, and keep its weights if it is the best.

        Of several processes, in the first one.

        Raises:
            TrainingStoppedError: scores that are NaN or infinite, or all the same; or, after the first
                measurement, a fall below it.
        """
        begun = time.monotonic()
        with self._interpolation.applied(model):
            found = self._measured(model, step)
        self._run.log(step=step, held_out=found.value, deviation=found.deviation)
        self._report(
            Progress(
                step,
                num_steps,
                measured=found.value,
                best=self.measured[self.best_step],
                best_step=self.best_step,
            )
        )
        self._pause(time.monotonic() - begun)
        return found

    def _measured(self, model: Any, step: int) -> Measured:
        scores = self._student.score_lists(
            model,
            [*self._held_out.queries.values()],
            self._held_out.documents,
            self._token_budget,
        )
        if not all(np.isfinite(each).all() for each in scores):
            raise TrainingStoppedError(f"at step {step} held-out scores are NaN or infinite{self._left()}")
        found = self._held_out.measured(scores)
        self._check(found, step)
        self.measured[step] = found.value
        if self.best_step == step:
            save_weights(model, self._run.best_path(step))
        return found

    def _check(self, found: Measured, step: int) -> None:
        guards = self._recipe.guards
        if step == 0:
            return  # a new head may say the same of everything
        if found.deviation < guards.constant_scores:
            raise TrainingStoppedError(
                f"at step {step} the model gives all documents the same score (standard deviation "
                f"{found.deviation:.2g}, guards.constant_scores is {guards.constant_scores:g}): it has "
                f"collapsed; a lower schedule.learning_rate or a longer warmup may help{self._left()}"
            )
        floor = self.measured[0] - guards.below_baseline
        if step > guards.after and found.value < floor:
            raise TrainingStoppedError(
                f"at step {step} {self._held_out.measure} is {found.value:.4f}, and the base had "
                f"{self.measured[0]:.4f} (guards.below_baseline allows {guards.below_baseline:g} less): "
                f"training makes the model worse; look at the labels and the learning rate{self._left()}"
            )

    def _left(self) -> str:
        checkpoint = self._run.last_checkpoint()
        kept = []
        if self.measured:
            best_path = self._run.best_path(self.best_step)
            kept.append(f"the weights of step {self.best_step} are in {best_path}")
        if checkpoint is not None:
            kept.append(f"the last good checkpoint is {checkpoint}")
        return f"; {', '.join(kept)}" if kept else ""

    @property
    def patience_is_over(self) -> bool:
        """Whether there were as many measurements without a new best as the recipe bears."""
        patience = self._choice.patience
        later = [step for step in self.measured if step > self.best_step]
        return patience is not None and len(later) >= patience

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure where the recipe says so, and at the end."""
        step = state.global_step
        if step % self._choice.every and step < state.max_steps:
            return
        if step not in self.measured:  # which all processes know alike
            self.measured[step] = by_first(lambda: self.measure(kwargs["model"], step, state.max_steps).value)
        if self.patience_is_over:
            control.should_training_stop = True
