"""A recipe to a trained model: `train`, and `plan`, which says what it would do.

Beneath are sentence-transformers' trainers, and so transformers' `Trainer` and accelerate: several GPUs by
`accelerate launch`. Importing this module needs the extra `train`.
"""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from datasets import Dataset

from crossrank.errors import InputError, TrainingStoppedError
from crossrank.evaluation.significance import Comparison, compare
from crossrank.runtime.weights import file_digest
from crossrank.training.adapting import add_lora, count_trained, freeze, merge_lora
from crossrank.training.attention import faster_attention
from crossrank.training.bases import base_folder
from crossrank.training.card import write_card
from crossrank.training.checkpointing import arguments_class, load_weights, trainer_class
from crossrank.training.examples import TrainingData, read_examples
from crossrank.training.exits import ExitLoss, measured_exits
from crossrank.training.forms import FORMS
from crossrank.training.guards import GradientGuard, Measurements, Progress, StepLog
from crossrank.training.held_out import HeldOutSet, open_held_out
from crossrank.training.interpolation import Interpolation
from crossrank.training.losses.gradient_cache import PackedLoss
from crossrank.training.losses.saved_bytes import SavedBytes
from crossrank.training.losses.table import Loss, loss_named, options_of
from crossrank.training.plots import plot_metrics
from crossrank.training.precision import faster_precision
from crossrank.training.preparation import Prepared, check_positives, prepare
from crossrank.training.processes import by_first, processes, uses_cpu
from crossrank.training.recipes import Recipe
from crossrank.training.run_folder import RunFolder
from crossrank.training.students import Student, student_of

__all__ = ["TrainingPlan", "TrainingReport", "plan", "train"]

logger = logging.getLogger(__name__)

_LOG_LINES = 400
"""Lines of a run's metrics, about."""


@dataclass(frozen=True)
class TrainingPlan:
    """What a run would do.

    Attributes:
        prepared: the rows, with counts of what is read and cut.
        files: file -> lists that are taken from it.
        row: what a row is, in words.
        num_steps: updates of the weights.
        num_trained: parameters that are trained, of `num_parameters`.
        num_parameters: see `num_trained`.
        held_out: name of the held-out set; "" without one.
        held_out_pairs: pairs that are scored at each measurement.
        weights_bytes: parameters, gradients and the optimiser's two moments.
        saved_bytes: what autograd held at once in a step of the longest rows, measured.
        obstacles: what would stop the run before its first step, in words.
    """

    prepared: Prepared
    files: Mapping[str, int]
    row: str
    num_steps: int
    num_trained: int
    num_parameters: int
    held_out: str
    held_out_pairs: int
    weights_bytes: int
    saved_bytes: int
    obstacles: tuple[str, ...]


@dataclass(frozen=True)
class TrainingReport:
    """What a run ended with.

    Attributes:
        output: the folder of the model.
        num_steps: updates that were made.
        stopped_early: there were no better measurements for as long as the recipe bears.
        precision: that of the passes.
        measure: what was measured; "" without a held-out set.
        baseline: of the base, None without a held-out set.
        best: of the weights in the folder.
        best_step: when they were measured; 0 is the base: nothing was better.
        comparison: base and result query by query; None for measures over all pairs together.
        exits: layer -> the measure of the head there, for models with heads before the last.
        training_s: seconds of this call.
        num_pairs: pairs that were trained on in this call.
    """

    output: Path
    num_steps: int
    stopped_early: bool
    precision: Literal["float32", "bf16"]
    measure: str
    baseline: float | None
    best: float | None
    best_step: int | None
    comparison: Comparison | None
    exits: Mapping[int, float]
    training_s: float
    num_pairs: int


def plan(recipe: Recipe, *, overwrite: bool = False) -> TrainingPlan:
    """Return what a run would do: reads the data, opens the base, and runs one step without an update.

    Args:
        recipe: of the run.
        overwrite: whether the run would replace what is in the output folder.

    Raises:
        See `train`; nothing is written, and what would stop the run is named in the plan.
    """
    with ExitStack() as opened:
        made = _Ingredients(recipe, opened)
        trained, all_parameters = count_trained(made.model)
        nowhere = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        trainer = made.trainer(RunFolder(nowhere), bf16=recipe.precision == "bf16")
        loss_of = made.first_step(trainer, longest=True)
        with made.attention(), SavedBytes(made.model) as saved:
            loss_of().backward()  # type: ignore[no-untyped-call]
        return TrainingPlan(
            prepared=made.prepared,
            files=made.data.counts,
            row=FORMS[made.loss.form].row,
            num_steps=made.num_steps,
            num_trained=trained,
            num_parameters=all_parameters,
            held_out=made.held_out.name if made.held_out else "",
            held_out_pairs=made.held_out.num_pairs if made.held_out else 0,
            weights_bytes=4 * all_parameters + 12 * trained,
            saved_bytes=saved.peak,
            obstacles=tuple(made.obstacles(overwrite=overwrite)),
        )


def train(
    recipe: Recipe, *, overwrite: bool = False, report: Callable[[Progress], None] | None = None
) -> TrainingReport:
    """Train a model as a recipe says.

    A run that was interrupted goes on from its last checkpoint when it is called again with the same
    recipe and data, and ends with the same bits on the same machine.

    Args:
        recipe: what to do.
        overwrite: replace a model that is in the output folder, and forget an interrupted run.
        report: is told of progress: losses, rates, measurements.

    Raises:
        InputError: a recipe that cannot be followed, an output that is there, or an unfinished run of
            another recipe in it.
        FileFormatError: data that cannot be read.
        CheckpointError: a base that cannot be trained.
        TrainingStoppedError: training went wrong; the message says how, and what is left.
        MissingExtraError: a part of the extra `train` is not there.
    """
    report = report or (lambda progress: None)
    run = RunFolder(Path(recipe.output))
    with ExitStack() as opened:
        made = _Ingredients(recipe, opened)
        check_positives(made.prepared, recipe.guards.truncated_positives)
        by_first(lambda: run.begin(made.made_with, overwrite=overwrite))
        with made.attention():
            bf16 = by_first(lambda: made.precision(run)) == "bf16"
            trainer = made.trainer(run, bf16=bf16)
            begun = time.monotonic()
            measurements, num_steps = _run(made, trainer, run, report)
        comparison = None
        if trainer.is_world_process_zero():
            comparison = _take_best(made, run, measurements)
        found = _report(
            made, run, trainer, measurements, num_steps=num_steps, comparison=comparison, begun=begun
        )
        if trainer.is_world_process_zero():
            _export(made, run, found)
        return found


def _run(
    made: _Ingredients, trainer: Any, run: RunFolder, report: Callable[[Progress], None]
) -> tuple[Measurements | None, int]:
    """Train, and return the measurements and the steps that were made in all."""
    checkpoint = by_first(run.last_checkpoint)
    first_step = int(checkpoint.name.rpartition("-")[2]) if checkpoint else -1
    by_first(lambda: run.take_back(first_step))
    every = made.recipe.held_out.every if made.recipe.held_out is not None else None
    steps = StepLog(run, report, lambda: trainer.pairs_done * trainer.args.world_size, every)
    trainer.remove_callback(transformers.PrinterCallback)  # reports are told to `report`
    trainer.add_callback(steps)
    trainer.add_callback(GradientGuard())
    measurements = None
    if made.held_out is not None:
        measurements = Measurements(
            made.recipe,
            run,
            made.student,
            made.held_out,
            interpolation=made.interpolation,
            token_budget=made.token_budget,
            report=report,
            pause=steps.pause,
        )
        if checkpoint is None:
            measurements.measure_base(made.model, made.num_steps)
        trainer.add_callback(measurements)
    if measurements is None or not measurements.patience_is_over:
        with warnings.catch_warnings():
            # of torch's and accelerate's own doing; nothing a reader of them could act on
            for category in (UserWarning, FutureWarning):
                warnings.filterwarnings("ignore", category=category, module=r"(torch|accelerate)\.")
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return measurements, max(trainer.state.global_step, first_step)


def _take_best(made: _Ingredients, run: RunFolder, measurements: Measurements | None) -> Comparison | None:
    """Give the model the weights that were measured best, and compare it with the base."""
    if measurements is not None:
        load_weights(made.model, run.best_path(measurements.best_step))
    else:
        made.interpolation.apply(made.model)
    if made.recipe.lora is not None:
        merge_lora(made.model)
    return None if measurements is None else _comparison(made, run)


def _export(made: _Ingredients, run: RunFolder, found: TrainingReport) -> None:
    """Write the folder of the model."""
    exported = run.folder / "export"
    shutil.rmtree(exported, ignore_errors=True)
    made.model.to("cpu")
    made.student.export(made.model, exported)
    plot_metrics(run.metrics(), exported / "metrics.png", found.measure)
    # what depends on the machine is written as it was here
    schedule = replace(made.recipe.schedule, token_budget=made.token_budget)
    recipe = replace(made.recipe, precision=found.precision, schedule=schedule)
    write_card(exported, recipe, made.data, made.prepared, report=found, held_out=made.held_out)
    run.note(result={**asdict(found), "output": str(found.output)})
    run.finish(exported)


def _comparison(made: _Ingredients, run: RunFolder) -> Comparison | None:
    """Compare base and result query by query."""
    assert made.held_out is not None  # checked by the caller
    earlier = run.record().get("baseline_per_query") or {}
    if not earlier:
        return None
    scores = made.student.score_lists(
        made.model,
        [*made.held_out.queries.values()],
        made.held_out.documents,
        made.token_budget,
    )
    return compare(made.held_out.measured(scores).per_query, earlier)


def _report(
    made: _Ingredients,
    run: RunFolder,
    trainer: Any,
    measurements: Measurements | None,
    *,
    num_steps: int,
    comparison: Comparison | None,
    begun: float,
) -> TrainingReport:
    measured = measurements.measured if measurements else {}
    best_step = measurements.best_step if measurements else None
    return TrainingReport(
        output=run.output,
        num_steps=num_steps,
        stopped_early=num_steps < made.num_steps,
        precision="bf16" if trainer.args.bf16 else "float32",
        measure=made.held_out.measure if made.held_out else "",
        baseline=measured.get(0),
        best=measured[best_step] if best_step is not None else None,
        best_step=best_step,
        comparison=comparison,
        exits=_measured_exits(made) if trainer.is_world_process_zero() else {},
        training_s=time.monotonic() - begun,
        num_pairs=trainer.pairs_done * trainer.args.world_size,
    )


def _measured_exits(made: _Ingredients) -> Mapping[int, float]:
    if made.held_out is None:
        return {}
    options = made.student.preprocess_options()
    return measured_exits(made.model, made.held_out, made.token_budget, options)


class _Ingredients:
    """A recipe's model, data, loss and held-out set, opened.

    Args:
        recipe: of the run.
        opened: what must be closed at the end goes here.
    """

    def __init__(self, recipe: Recipe, opened: ExitStack) -> None:
        self.recipe = recipe
        self.student: Student = student_of(recipe.student)
        self.token_budget = recipe.schedule.padded_tokens(on_cpu=uses_cpu())
        self.loss: Loss = loss_named(recipe.loss, self.student.family)
        self._options = options_of(recipe.loss, self.loss)
        if recipe.loss.matryoshka is not None and self.student.family != "encoder":
            raise InputError("loss.matryoshka is for students that give vectors")
        self.data: TrainingData = read_examples(recipe.data, recipe.seed)
        self.held_out: HeldOutSet | None = None
        if recipe.held_out is not None:
            self.held_out = open_held_out(
                recipe.held_out, recipe.seed, recipe.student.classes, self.data.lists
            )
        choice = recipe.student
        folder = opened.enter_context(base_folder(choice.base, self.student.hub_kind, choice.revision))
        # modules of sentence-transformers are in subfolders
        weights = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.safetensors")}
        self._base_digests = {name: file_digest(weights[name]) for name in sorted(weights)}
        transformers.set_seed(recipe.seed)
        self.model = self.student.open(choice, folder, recipe.lengths)
        if self.loss.activation:
            self.model.activation_fn = getattr(torch.nn, self.loss.activation)()
        freeze(self.model, recipe.freeze)
        if recipe.lora is not None:
            add_lora(self.model, recipe.lora)
        self.interpolation = Interpolation(self.model, recipe.base_share)
        self.prepared: Prepared = prepare(
            recipe,
            self.data,
            self.loss.form,
            self.student.text_lengths(self.model),
            joins_texts=self.student.joins_texts,
            held_out=[*self.held_out.queries.values()] if self.held_out else [],
        )

    @property
    def made_with(self) -> dict[str, Any]:
        """What decides the result, for the record of the run."""
        recipe = {key: value for key, value in self.recipe.as_dict().items() if key != "output"}
        decides = {"recipe": recipe, "data": dict(self.data.digests), "base": self._base_digests}
        if self.held_out is not None:
            decides["held_out"] = {self.held_out.name: self.held_out.digest}
        several = int(processes().num_processes)
        return decides if several == 1 else {**decides, "processes": several}

    def obstacles(self, *, overwrite: bool) -> Iterator[str]:
        """Yield what would stop a run before its first step."""
        try:
            RunFolder(Path(self.recipe.output)).check(self.made_with, overwrite=overwrite)
        except InputError as error:
            yield str(error)
        try:
            check_positives(self.prepared, self.recipe.guards.truncated_positives)
        except TrainingStoppedError as error:
            yield str(error)

    @property
    def num_steps(self) -> int:
        """Updates of the weights."""
        schedule = self.recipe.schedule
        several = int(processes().num_processes)
        rows = schedule.lists_per_step * several
        batches = math.ceil(self.prepared.num_rows / rows)
        if several > 1:
            batches = self.prepared.num_rows // rows  # all have as many rows: what is left over is not taken
            if not batches:
                raise InputError(
                    f"{several} processes take {rows:,} rows a step, and the data has "
                    f"{self.prepared.num_rows:,}; take a smaller schedule.lists_per_step, or fewer processes"
                )
        if schedule.steps is not None:
            return schedule.steps
        assert schedule.epochs is not None  # one of the two is there
        return max(1, math.ceil(schedule.epochs * max(1, math.ceil(batches / schedule.accumulate))))

    def attention(self) -> AbstractContextManager[None]:
        """Give the form of attention that the recipe asks for, for as long as the context lasts."""
        return faster_attention(self.model) if self.recipe.attention == "auto" else nullcontext()

    def loss_module(self) -> Any:
        """Return the loss, in packed mini-batches, and cached where the recipe says so."""
        schedule = self.recipe.schedule
        module = self.loss.build(self.model, self._options, self.token_budget)
        if self.recipe.loss.matryoshka is not None:
            from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss

            module = MatryoshkaLoss(self.model, module, [*self.recipe.loss.matryoshka])
        if self.recipe.student.exits:
            module = ExitLoss(module, self.recipe.student.exit_weight)
        if self.loss.has_mini_batches:
            return module
        cache = schedule.gradient_cache
        return PackedLoss(
            module,
            token_budget=self.token_budget,
            cache=FORMS[self.loss.form].lists if cache == "auto" else cache,
            preprocess_options=self.student.preprocess_options(),
        )

    def trainer(self, run: RunFolder, *, bf16: bool) -> Any:
        """Return the trainer; making it again resets nothing of the model."""
        trainer_base, arguments = self.student.trainer()
        schedule, num_steps = self.recipe.schedule, self.num_steps
        decay = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}[schedule.decay]
        every = self.recipe.held_out.every if self.recipe.held_out else schedule.checkpoint_every
        options: dict[str, Any] = {}
        if self.loss.no_duplicates:
            options["batch_sampler"] = "no_duplicates"
        if self.student.family in ("encoder", "multi_vector"):
            prompts = {
                name: self.model.prompts.get("query" if name == "anchor" else "document")
                for name in self.prepared.columns
                if name != "label"
            }
            options["prompts"] = {name: prompt for name, prompt in prompts.items() if prompt}
        return trainer_class(trainer_base, run)(
            model=self.model,
            args=arguments_class(arguments)(
                output_dir=str(run.folder),
                per_device_train_batch_size=schedule.lists_per_step,
                gradient_accumulation_steps=schedule.accumulate,
                max_steps=num_steps,
                learning_rate=schedule.learning_rate,
                warmup_steps=math.ceil(schedule.warmup * num_steps),
                lr_scheduler_type=decay,
                weight_decay=schedule.weight_decay,
                max_grad_norm=schedule.max_gradient_norm,
                bf16=bf16,
                use_cpu=uses_cpu(),
                seed=self.recipe.seed,
                data_seed=self.recipe.seed,
                logging_steps=max(1, num_steps // _LOG_LINES),
                logging_nan_inf_filter=False,
                save_strategy="steps",
                save_steps=min(every, num_steps),
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=torch.cuda.is_available(),
                **options,
            ),
            train_dataset=Dataset.from_dict(self.prepared.columns),
            loss=self.loss_module(),
        )

    def first_step(self, trainer: Any, *, longest: bool = False) -> Callable[[], torch.Tensor]:
        """Return what runs a step's loss: of the first rows, or of those with the most text."""
        rows: list[int] = [*range(len(trainer.train_dataset))]
        if longest:
            sizes = [_size(row) for row in trainer.train_dataset]
            rows.sort(key=lambda i: -sizes[i])
        rows = rows[: self.recipe.schedule.lists_per_step]
        inputs = trainer.data_collator([trainer.train_dataset[i] for i in rows])
        self.model.to(trainer.args.device)
        self.model.train()

        def loss_of() -> torch.Tensor:
            prepared = trainer._prepare_inputs(dict(inputs))
            loss: torch.Tensor = trainer.compute_loss(self.model, prepared)
            return loss

        return loss_of

    def precision(self, run: RunFolder) -> str:
        """Return the arithmetic of the passes; what was measured at first holds for the whole run."""
        wanted = self.recipe.precision
        if wanted != "auto":
            return wanted
        if "precision" not in run.record():
            trainer = self.trainer(run, bf16=False)
            choice = faster_precision(self.model, self.first_step(trainer), trainer.args.device)
            run.note(precision=vars(choice))
            logger.info(
                "a step takes %.2f s in float32 and %.2f s in bf16: %s",
                *(choice.float32_s, choice.bf16_s, choice.precision),
            )
        return str(run.record()["precision"]["precision"])


def _size(row: Mapping[str, Any]) -> int:
    return sum(
        sum(map(len, value)) if isinstance(value, list) else len(value)
        for name, value in row.items()
        if name != "label"
    )
