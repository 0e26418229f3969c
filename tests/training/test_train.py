"""Runs of a tiny model: results that load everywhere, resuming to the same bits, guards."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sentence_transformers")

import torch
import yaml
from safetensors.numpy import load_file, save_file
from training_inputs import BI_ENCODER, CROSS_ENCODER, lists, recipe_values, write_jsonl, write_recipe

from crossrank import BiEncoder, CrossEncoder
from crossrank.errors import InputError, TrainingStoppedError
from crossrank.training.adapting import add_lora
from crossrank.training.cross_encoder_student import CrossEncoderStudent
from crossrank.training.guards import Progress, StepLog
from crossrank.training.held_out import HeldOutSet, Measured
from crossrank.training.recipes import HeldOut, LoRA, Recipe, read_recipe, recipe_of
from crossrank.training.run_folder import RunFolder
from crossrank.training.train import TrainingReport, plan, train

PROCESS = Path(__file__).with_name("training_process.py")
GOLDEN_BI = Path(__file__).parents[1] / "models" / "golden_bi"
PAIRS = [("cat 3", "the old cat is in the city"), ("dog", "where is the river"), ("bird", "new light")]


def _weights(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model.safetensors")


def _same_bits(one: Path, other: Path) -> bool:
    a, b = _weights(one), _weights(other)
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


class KilledError(Exception):
    """Ends a run."""


def _kill(recipe: Recipe, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Train until the checkpoint of a step is to get its place; what was to follow never happens."""
    commit = RunFolder.commit_checkpoint

    def die(run: RunFolder, written: Path) -> None:
        if written.name == f"checkpoint-{step}":
            raise KilledError
        commit(run, written)

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "commit_checkpoint", die)
        with pytest.raises(KilledError):
            train(recipe)


def _give_measurements(monkeypatch: pytest.MonkeyPatch, *values: float) -> None:
    """Have the next measurements give these values, whatever the model says."""
    left = iter(values)
    monkeypatch.setattr(HeldOutSet, "measured", lambda held_out, scores: Measured(next(left), {}, 1.0))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("trained")
    train(recipe_of(recipe_values(folder)))
    return folder


def test_the_result_gives_the_same_scores_in_crossrank_sentence_transformers_and_transformers(
    trained: Path,
) -> None:
    import sentence_transformers
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = trained / "model"
    ours = CrossEncoder(model, precision="float32").score(PAIRS)
    theirs = sentence_transformers.CrossEncoder(str(model), device="cpu").predict(
        PAIRS, activation_fn=torch.nn.Identity(), show_progress_bar=False
    )
    tokenizer = AutoTokenizer.from_pretrained(model)
    plain = AutoModelForSequenceClassification.from_pretrained(model).eval()
    with torch.no_grad():
        inputs = tokenizer(*map(list, zip(*PAIRS, strict=True)), padding=True, return_tensors="pt")
        logits = plain(**inputs).logits[:, 0].numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_allclose(ours, logits, atol=1e-5)


def test_the_recipe_beside_a_model_states_what_the_machine_chose(tmp_path: Path) -> None:
    values = recipe_values(tmp_path, precision="auto")
    del values["schedule"]["token_budget"]
    result = train(recipe_of(values))
    written = read_recipe(tmp_path / "model" / "recipe.yaml")
    assert written.precision == result.precision
    assert written.precision in ("float32", "bf16")
    assert written.schedule.token_budget == recipe_of(values).schedule.padded_tokens(on_cpu=True)


def test_queries_that_give_no_row_are_counted(tmp_path: Path) -> None:
    values = recipe_values(tmp_path, student={"kind": "bi_encoder", "base": str(BI_ENCODER)})
    short = lists(3, seed=7, negatives=1)  # rows are as wide as most have negatives: three
    write_jsonl(tmp_path / "train.jsonl", lists(32) + short)
    values["loss"] = {"name": "mnr"}
    prepared = plan(recipe_of(values)).prepared
    assert (prepared.num_lists, prepared.unused, prepared.num_rows) == (35, 3, 32)


def test_a_run_leaves_its_card_recipe_metrics_and_plot_and_no_checkpoints(trained: Path) -> None:
    model = trained / "model"
    card = (model / "README.md").read_text(encoding="utf-8")
    assert "| base |" in card
    assert "nDCG@10" in card
    assert "train.jsonl" in card
    assert read_recipe(model / "recipe.yaml") == recipe_of(recipe_values(trained))
    lines = [json.loads(line) for line in (model / "training" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "held_out" in line] == [0, 2, 4, 6]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert (model / "metrics.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (model / "training").iterdir()) == ["metrics.jsonl", "run.json"]


def test_the_folder_has_the_weights_that_were_measured_best(trained: Path) -> None:
    model = trained / "model"
    lines = [json.loads(line) for line in (model / "training" / "metrics.jsonl").read_text().splitlines()]
    best = max(line["held_out"] for line in lines if "held_out" in line)
    recipe = recipe_of(recipe_values(trained))
    dev = [json.loads(line) for line in Path(recipe.held_out.file).read_text().splitlines()]
    from crossrank.evaluation.measures import evaluate

    opened = CrossEncoder(model, precision="float32", max_length=64)
    run, qrels = {}, {}
    for i, row in enumerate(dev):
        scores = opened.score([(row["query"], text) for text in row["documents"]])
        run[str(i)] = {str(j): float(score) for j, score in enumerate(scores)}
        qrels[str(i)] = {str(j): label for j, label in enumerate(row["labels"])}
    assert evaluate(run, qrels, ["nDCG@10"])["nDCG@10"] == pytest.approx(best, abs=1e-9)


def test_a_card_names_as_base_what_is_on_the_hub(tmp_path: Path) -> None:
    student = {"base": "crossrank-tiny"}
    train(recipe_of(recipe_values(tmp_path, student=student, schedule={"steps": 1}, held_out=None)))
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    _, front_matter, text = card.split("---\n", 2)
    assert yaml.safe_load(front_matter) == {
        "pipeline_tag": "text-ranking",
        "library_name": "sentence-transformers",
        "tags": ["crossrank"],
    }
    assert "trained from `crossrank-tiny`" in text


def test_same_seed_same_weights(trained: Path, tmp_path: Path) -> None:
    values = recipe_values(trained, output=str(tmp_path / "again"))
    train(recipe_of(values))
    assert _same_bits(trained / "model", tmp_path / "again")
    train(recipe_of({**values, "seed": 14, "output": str(tmp_path / "other")}))
    # another seed shuffles otherwise: the losses differ, whatever weights were best
    logs = [
        (folder / "training" / "metrics.jsonl").read_text().splitlines()[1]
        for folder in (tmp_path / "again", tmp_path / "other")
    ]
    assert json.loads(logs[0])["loss"] != json.loads(logs[1])["loss"]


@pytest.mark.parametrize("when", ["3", "write:2"])
def test_a_killed_run_goes_on_and_ends_with_the_same_bits(tmp_path: Path, when: str) -> None:
    # dropout is on, so the generators' state is part of what is resumed; guards off: any weights will do
    changes = {"held_out": None, "schedule": {"steps": 6, "checkpoint_every": 2}}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    data = str(write_jsonl(tmp_path / "data.jsonl", lists(32)))
    train(recipe_of(recipe_values(whole, data=[{"file": data}], **changes)))
    recipe = write_recipe(killed, data=[{"file": data}], **changes)
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.run(
        [sys.executable, str(PROCESS), str(recipe), when],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert not (killed / "model" / "model.safetensors").exists()
    told = []
    train(read_recipe(recipe), report=told.append)
    assert told[0].step == 3  # it did not begin again
    assert _same_bits(whole / "model", killed / "model")


def test_a_killed_run_with_measurements_ends_with_the_same_bits_and_the_same_best(tmp_path: Path) -> None:
    data = [{"file": str(write_jsonl(tmp_path / "data.jsonl", lists(32)))}]
    dev = str(write_jsonl(tmp_path / "held_out.jsonl", lists(10, seed=1)))
    changes = {"data": data, "held_out": {"file": dev}, "schedule": {"learning_rate": 0.01}}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    wanted = train(recipe_of(recipe_values(whole, **changes)))
    assert wanted.best_step  # training made it better than the base
    recipe = write_recipe(killed, **changes)
    process = subprocess.run(  # which dies between the measurement of step 4 and its checkpoint
        [sys.executable, str(PROCESS), str(recipe), "write:2"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    told = []
    found = train(read_recipe(recipe), report=told.append)
    assert told[0].step == 3

    def measured(report: TrainingReport) -> tuple[Any, ...]:
        return report.baseline, report.best, report.best_step, report.comparison, report.num_steps

    assert measured(found) == measured(wanted)
    assert _same_bits(whole / "model", killed / "model")


def test_weights_that_were_best_without_a_checkpoint_are_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = (
        recipe_of(recipe_values(tmp_path, schedule={"steps": 4}, output=str(tmp_path / name)))
        for name in ("whole", "killed")
    )
    _give_measurements(monkeypatch, 0.1, 0.5, 0.3)
    assert train(whole).best_step == 2
    _give_measurements(monkeypatch, 0.1, 0.5, 0.9)
    _kill(killed, monkeypatch, step=4)
    _give_measurements(monkeypatch, 0.3)  # step 4 again, as where arithmetic is not the same twice
    report = train(killed)
    assert (report.best_step, report.best) == (2, 0.5)
    assert _same_bits(tmp_path / "whole", tmp_path / "killed")


def test_a_run_of_another_recipe_or_data_is_refused_by_name(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    process = subprocess.run(
        [sys.executable, str(PROCESS), str(recipe), "3"], capture_output=True, text=True, check=False
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    with pytest.raises(InputError, match=r"unfinished run with other recipe\.schedule\.learning_rate;"):
        train(read_recipe(recipe, ["schedule.learning_rate=0.5"]))
    write_jsonl(tmp_path / "train.jsonl", lists(33))
    with pytest.raises(InputError, match=r"with other data\."):
        train(read_recipe(recipe))
    train(read_recipe(recipe), overwrite=True)


def test_a_run_with_other_held_out_data_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(recipe_values(tmp_path))
    _kill(recipe, monkeypatch, step=2)
    rows = lists(10, seed=1)
    write_jsonl(tmp_path / "dev.jsonl", [{**rows[0], "labels": rows[0]["labels"][::-1]}, *rows[1:]])
    with pytest.raises(InputError, match=r"unfinished run with other held_out\.dev\.jsonl;"):
        train(recipe)


def test_a_base_is_known_by_the_weights_of_all_its_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base"
    shutil.copytree(BI_ENCODER, base)
    student = {"kind": "bi_encoder", "base": str(base)}
    recipe = recipe_of(recipe_values(tmp_path, student=student, loss={"name": "mnr"}))
    _kill(recipe, monkeypatch, step=2)
    made_with = RunFolder(tmp_path / "model").record()["made_with"]
    assert [*made_with["base"]] == ["2_Dense/model.safetensors", "model.safetensors"]
    dense = base / "2_Dense" / "model.safetensors"
    save_file({name: -array for name, array in load_file(dense).items()}, dense, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"unfinished run with other base\.2_Dense/model\.safetensors;"):
        train(recipe)


def test_a_finished_model_is_not_replaced_unless_asked(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exists; name another output"):
        train(recipe_of(recipe_values(trained)))
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(InputError, match="no training run in it"):
        train(recipe_of(recipe_values(trained, output=str(tmp_path))))
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_training_that_learns_is_measured_to_be_better(tmp_path: Path) -> None:
    values = recipe_values(
        tmp_path,
        schedule={"steps": 40, "learning_rate": 0.01, "lists_per_step": 8},
        held_out={"every": 20},
    )
    report = train(recipe_of(values))
    assert report.best is not None
    assert report.baseline is not None
    assert report.best > report.baseline + 0.1
    assert report.comparison is not None
    assert report.comparison.difference.value == pytest.approx(report.best - report.baseline, abs=1e-6)


def test_training_stops_early_and_keeps_the_best(tmp_path: Path) -> None:
    values = recipe_values(
        tmp_path,
        # nothing is learnt: every measurement is that of the base
        schedule={"steps": 40, "learning_rate": 0.0},
        held_out={"every": 2, "patience": 3},
    )
    report = train(recipe_of(values))
    assert (report.stopped_early, report.num_steps, report.best_step) == (True, 6, 0)
    assert "No measurement was better" in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")


def test_a_fall_below_the_base_stops_and_names_what_is_left(tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.mkdir()
    train(recipe_of(recipe_values(good, schedule={"steps": 40, "learning_rate": 0.01, "lists_per_step": 8})))
    # labels turned round: what was learnt is unlearnt
    wrong = [{**row, "labels": [1 - label for label in row["labels"]]} for row in lists(32)]
    values = recipe_values(
        tmp_path,
        student={"base": str(good / "model")},
        data=[{"file": str(write_jsonl(tmp_path / "wrong.jsonl", wrong))}],
        schedule={"steps": 20, "learning_rate": 0.002, "lists_per_step": 8},
        held_out={"every": 1},
        guards={"below_baseline": 0.05},
    )
    with pytest.raises(
        TrainingStoppedError, match=r"below_baseline.*the weights of step (\d+) are in .*best-\1\.pt"
    ):
        train(recipe_of(values))
    run = tmp_path / "model" / "training"
    assert len([*run.glob("best-*.pt")]) == 1
    assert list(run.glob("checkpoint-*"))
    assert not (tmp_path / "model" / "model.safetensors").exists()


def test_a_collapse_to_one_score_stops(tmp_path: Path) -> None:
    with pytest.raises(TrainingStoppedError, match="same score"):
        train(recipe_of(recipe_values(tmp_path, guards={"constant_scores": 100.0})))


def test_a_loss_that_is_no_number_stops_before_weights_change(tmp_path: Path) -> None:
    base = tmp_path / "base"
    import sentence_transformers

    model = sentence_transformers.CrossEncoder(str(CROSS_ENCODER), device="cpu")
    with torch.no_grad():
        model.transformers_model.classifier.bias.fill_(float("nan"))
    model.save_pretrained(str(base))
    with pytest.raises(TrainingStoppedError, match="the loss is nan in step 1"):
        train(recipe_of(recipe_values(tmp_path, student={"base": str(base)}, held_out=None)))


def test_a_gradient_that_is_no_number_stops_before_weights_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = []
    open_base = CrossEncoderStudent.open

    def open_with_a_fault(*args: Any) -> Any:
        models.append(open_base(*args))
        bias = models[0].transformers_model.classifier.bias
        bias.register_hook(lambda gradient: torch.full_like(gradient, float("nan")))
        return models[0]

    monkeypatch.setattr(CrossEncoderStudent, "open", open_with_a_fault)
    with pytest.raises(TrainingStoppedError, match="the gradient of step 1 has NaN or infinity"):
        train(recipe_of(recipe_values(tmp_path, held_out=None)))
    weights = models[0].transformers_model.state_dict()
    for name, array in _weights(CROSS_ENCODER).items():
        np.testing.assert_array_equal(weights[name].numpy(), array)


def test_held_out_scores_that_are_no_numbers_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score_lists = CrossEncoderStudent.score_lists
    calls = []

    def fail_after_the_base(*args: Any) -> Any:
        calls.append(args)
        scores = score_lists(*args)
        if len(calls) > 1:
            scores[-1][0] = np.nan
        return scores

    monkeypatch.setattr(CrossEncoderStudent, "score_lists", fail_after_the_base)
    left = r"; the weights of step 0 are in .*best-0\.pt$"
    with pytest.raises(TrainingStoppedError, match=f"at step 2 held-out scores are NaN or infinite{left}"):
        train(recipe_of(recipe_values(tmp_path)))
    assert (tmp_path / "model" / "training" / "best-0.pt").is_file()


def test_positives_that_are_cut_stop_before_training(tmp_path: Path) -> None:
    values = recipe_values(tmp_path, lengths={"max_length": 12}, guards={"truncated_positives": 0.1})
    with pytest.raises(TrainingStoppedError, match=r"of 32 positives .* are cut"):
        train(recipe_of(values))
    assert not (tmp_path / "model").exists()


def test_the_plan_counts_what_would_be_done_and_writes_nothing(tmp_path: Path) -> None:
    found = plan(recipe_of(recipe_values(tmp_path, lengths={"max_length": 12})))
    assert (found.prepared.num_lists, found.prepared.num_pairs) == (32, 128)
    assert found.num_steps == 6
    assert found.prepared.cut_positives > 3
    assert found.prepared.longest == 12
    assert found.saved_bytes > 0
    assert not (tmp_path / "model").exists()


def test_several_processes_share_the_rows_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = recipe_values(tmp_path, held_out=None)
    schedule = {"epochs": 1, "lists_per_step": 10, "token_budget": 128}
    assert plan(recipe_of({**values, "schedule": schedule})).num_steps == 4  # of 32 rows
    monkeypatch.setattr("crossrank.training.train.processes", lambda: SimpleNamespace(num_processes=2))
    assert plan(recipe_of({**values, "schedule": schedule})).num_steps == 1  # 12 rows fill no step of 20
    with pytest.raises(InputError, match="2 processes take 40 rows a step, and the data has 32"):
        plan(recipe_of({**values, "schedule": {**schedule, "lists_per_step": 20}}))


def test_one_process_trains_on_one_of_several_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # transformers takes the number of GPUs from torch; without any, it trains on the CPU in their place
    monkeypatch.setattr("crossrank.training.train.uses_cpu", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    report = train(recipe_of(recipe_values(tmp_path, held_out=None, schedule={"steps": 2})))
    assert report.num_pairs == 2 * 4 * 4  # steps, lists a step, documents


def test_without_a_held_out_set_some_training_queries_are_one(tmp_path: Path) -> None:
    values = recipe_values(tmp_path)
    del values["held_out"]
    found = plan(recipe_of(values))
    assert (found.held_out, found.held_out_pairs) == ("the training data", 6 * 4)  # a fifth of 32 queries
    assert (found.prepared.num_lists, found.prepared.left_out) == (26, 6)
    result = train(recipe_of(values))
    assert result.baseline is not None
    assert result.comparison is not None
    assert read_recipe(tmp_path / "model" / "recipe.yaml").held_out == HeldOut()


def test_pairs_of_the_training_data_are_held_out_for_the_measure_that_is_asked_for(tmp_path: Path) -> None:
    rows = [{"text1": f"a {i}", "text2": f"b {i}", "label": i % 5 / 4} for i in range(30)]
    values = recipe_values(tmp_path, loss={"name": "bce"})
    values["held_out"] = {"measure": "spearman"}
    write_jsonl(tmp_path / "train.jsonl", rows)
    found = plan(recipe_of(values))
    assert (found.held_out, found.held_out_pairs, found.prepared.num_lists) == ("the training data", 6, 24)
    del values["held_out"]
    with pytest.raises(InputError, match="say held_out: null to measure nothing"):
        plan(recipe_of(values))
    write_jsonl(tmp_path / "train.jsonl", rows[:1])
    with pytest.raises(InputError, match="one query cannot be trained on and held out"):
        plan(recipe_of(values))


def test_the_time_left_counts_the_measurements_to_come(tmp_path: Path) -> None:
    clock = iter(range(0, 10_000, 10))
    told: list[Progress] = []
    run = RunFolder(tmp_path / "run")
    run.folder.mkdir(parents=True)
    steps = StepLog(run, told.append, lambda: 0, every=2)
    state = SimpleNamespace(global_step=0, max_steps=5, is_world_process_zero=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("crossrank.training.guards.time.monotonic", lambda: next(clock))
        steps.pause(7.0)  # the base's
        steps.on_train_begin(None, state, None)
        state.global_step = 1
        steps.on_log(None, state, None, {"loss": 1.0})
    # 10 s a step, 4 of them, and measurements after steps 2, 4 and 5
    assert told[0].eta_s == 4 * 10 + 3 * 7


def test_held_out_queries_are_not_trained_on(tmp_path: Path) -> None:
    rows = lists(32)
    values = recipe_values(tmp_path)
    write_jsonl(tmp_path / "train.jsonl", rows + lists(10, seed=1))
    found = plan(recipe_of(values))
    assert (found.prepared.num_lists, found.prepared.left_out) == (32, 10)


@pytest.mark.parametrize(
    "loss",
    [
        {"name": "mnr"},
        {"name": "cached_mnr", "matryoshka": [16, 8]},
        {"name": "margin_mse"},
        {"name": "kl", "matryoshka": [16, 8]},
    ],
    ids=lambda loss: loss["name"],
)
def test_a_bi_encoder_is_trained_and_loads_to_the_same_vectors(tmp_path: Path, loss: dict[str, Any]) -> None:
    import sentence_transformers

    values = recipe_values(tmp_path, student={"kind": "bi_encoder", "base": str(BI_ENCODER)}, loss=loss)
    train(recipe_of(values))
    model = tmp_path / "model"
    texts = [document for _, document in PAIRS]
    ours = BiEncoder(model, precision="float32").encode_documents(texts)
    theirs = sentence_transformers.SentenceTransformer(str(model), device="cpu").encode_document(
        texts, normalize_embeddings=True
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_bi_encoder_without_more_layers_is_one_of_plain_transformers(tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    student = {"kind": "bi_encoder", "base": str(GOLDEN_BI / "mean")}
    train(
        recipe_of(recipe_values(tmp_path, student=student, loss={"name": "mnr"}, lengths={"max_length": 32}))
    )
    model = tmp_path / "model"
    texts = [document for _, document in PAIRS]
    prompted = [f"d : {text}" for text in texts]  # as the model's folder says
    inputs = AutoTokenizer.from_pretrained(model)(prompted, padding=True, return_tensors="pt")
    with torch.no_grad():
        vectors = AutoModel.from_pretrained(model).eval()(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1)
    means = torch.nn.functional.normalize((vectors * mask).sum(1) / mask.sum(1), dim=1).numpy()
    ours = BiEncoder(model, precision="float32").encode_documents(texts)
    np.testing.assert_allclose(ours, means, atol=1e-5)


@pytest.mark.parametrize(("name", "max_length"), [("mean", 32), ("mean", 8), ("last_norm", 8)])
def test_tokens_of_prompts_are_counted(tmp_path: Path, name: str, max_length: int) -> None:
    import sentence_transformers

    base = GOLDEN_BI / name
    student = {"kind": "bi_encoder", "base": str(base)}
    values = recipe_values(
        tmp_path, student=student, lengths={"max_length": max_length}, loss={"name": "mnr"}, held_out=None
    )
    found = plan(recipe_of(values)).prepared
    model = sentence_transformers.SentenceTransformer(str(base), device="cpu")
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]

    def read(what: str, texts: list[str], limit: int) -> list[int]:
        model.max_seq_length = limit
        return model.preprocess(texts, prompt=model.prompts[what])["attention_mask"].sum(1).tolist()

    queries = [row["query"] for row in rows]
    documents = [text for row in rows for text in row["documents"]]
    assert found.num_tokens == sum(
        read("query", queries, max_length) + read("document", documents, max_length)
    )
    cut = [count > max_length for count in read("document", documents, 32)]
    assert found.cut_documents == sum(cut)
    assert found.cut_queries == sum(count > max_length for count in read("query", queries, 32))
    assert (found.cut_queries > 0) == (max_length < 32)


def test_lora_trains_few_weights_and_ends_as_a_plain_model(tmp_path: Path) -> None:
    values = recipe_values(tmp_path, lora={"rank": 2}, held_out=None)
    found = plan(recipe_of(values))
    assert found.num_trained < found.num_parameters / 5
    train(recipe_of(values))
    import sentence_transformers

    model = tmp_path / "model"
    ours = CrossEncoder(model, precision="float32").score(PAIRS)
    theirs = sentence_transformers.CrossEncoder(str(model), device="cpu").predict(
        PAIRS, activation_fn=torch.nn.Identity(), show_progress_bar=False
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    before, after = _weights(CROSS_ENCODER), _weights(model)
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert not np.array_equal(before[name], after[name])
    frozen = "bert.embeddings.word_embeddings.weight"
    np.testing.assert_array_equal(before[frozen], after[frozen])


@pytest.mark.parametrize("targets", [None, ["query", "value"]])
def test_lora_leaves_frozen_layers_alone(tmp_path: Path, targets: list[str] | None) -> None:
    lora = {"rank": 2, "targets": targets}
    train(recipe_of(recipe_values(tmp_path, lora=lora, freeze={"layers": 1}, held_out=None)))
    before, after = _weights(CROSS_ENCODER), _weights(tmp_path / "model")
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert not any(name.startswith("bert.encoder.layer.0.") for name in changed)
    assert "bert.encoder.layer.1.attention.self.query.weight" in changed


def test_lora_of_frozen_layers_alone_is_refused() -> None:
    import sentence_transformers

    model = sentence_transformers.CrossEncoder(str(CROSS_ENCODER), device="cpu")
    model.requires_grad_(False)
    with pytest.raises(InputError, match=r"lora\.targets: every linear layer query or value is frozen"):
        add_lora(model, LoRA(targets=("value", "query")))


def test_frozen_weights_stay(tmp_path: Path) -> None:
    values = recipe_values(tmp_path, freeze={"embeddings": True, "layers": 1}, held_out=None)
    train(recipe_of(values))
    before, after = _weights(CROSS_ENCODER), _weights(tmp_path / "model")
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed
    assert not any(name.startswith(("bert.embeddings", "bert.encoder.layer.0")) for name in changed)


def test_weights_go_back_to_the_base_by_its_share(tmp_path: Path) -> None:
    train(recipe_of(recipe_values(tmp_path, held_out=None)))
    values = recipe_values(tmp_path, held_out=None, base_share=0.25, output=str(tmp_path / "mixed"))
    train(recipe_of(values))
    base, trained, mixed = map(_weights, (CROSS_ENCODER, tmp_path / "model", tmp_path / "mixed"))
    for name, weight in mixed.items():
        np.testing.assert_allclose(weight, 0.75 * trained[name] + 0.25 * base[name], rtol=1e-5, atol=1e-6)


def test_weights_on_the_way_back_are_measured_and_change_no_training(tmp_path: Path) -> None:
    schedule = {"steps": 40, "learning_rate": 0.01, "lists_per_step": 8}
    changes = {"schedule": schedule, "base_share": 0.25}
    found = train(recipe_of(recipe_values(tmp_path, held_out={"every": 20}, **changes)))
    assert found.best_step == found.num_steps
    unmeasured = recipe_values(tmp_path, held_out=None, output=str(tmp_path / "unmeasured"), **changes)
    train(recipe_of(unmeasured))
    assert _same_bits(tmp_path / "model", tmp_path / "unmeasured")


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"base_share": 1.0}, "keeps nothing"), ({"base_share": 0.5, "lora": {"rank": 2}}, "lora")],
)
def test_a_share_of_the_base_that_makes_no_sense_is_refused(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        recipe_of(recipe_values(tmp_path, **changes))


def test_bf16_trains_float32_weights(tmp_path: Path) -> None:
    report = train(recipe_of(recipe_values(tmp_path, precision="bf16", held_out=None)))
    assert report.precision == "bf16"
    assert {array.dtype for array in _weights(tmp_path / "model").values()} == {np.dtype("float32")}


def test_auto_measures_and_notes_what_it_chose(tmp_path: Path) -> None:
    report = train(recipe_of(recipe_values(tmp_path, precision="auto", held_out=None)))
    noted = json.loads((tmp_path / "model" / "training" / "run.json").read_text())["precision"]
    assert report.precision == noted["precision"]
    faster = "bf16" if noted["bf16_s"] * 1.05 < noted["float32_s"] else "float32"
    assert noted["precision"] == faster


def test_classes_are_trained_and_named(tmp_path: Path) -> None:
    rows = [
        {"text1": f"the {a}", "text2": f"a {b}", "label": "same" if a == b else "other"}
        for a in ("cat", "dog", "bird")
        for b in ("cat", "dog", "bird", "river")
    ]
    data = write_jsonl(tmp_path / "pairs.jsonl", rows)
    values = recipe_values(
        tmp_path,
        student={"classes": ["other", "same"]},
        data=[{"file": str(data)}],
        loss={"name": "ce"},
        held_out=None,
    )
    train(recipe_of(values))
    model = CrossEncoder(tmp_path / "model", precision="float32")
    assert model.labels == ("other", "same")
    assert model.score(PAIRS).shape == (3, 2)
