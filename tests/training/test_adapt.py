"""`adapt`: stages, resuming, what is kept, and what the report says; with tiny models of random weights."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sentence_transformers")

from training_inputs import BI_ENCODER, CROSS_ENCODER, GOLDEN, WORDS

from crossrank import BiEncoder, Collection, CrossEncoder, Document, evaluate
from crossrank.errors import InputError, TrainingStoppedError
from crossrank.evaluation.trec import numbered_lines
from crossrank.training.adapt import lessons, outcomes, trainings
from crossrank.training.adapt.adaptation import STAGES, AdaptationReport, adapt
from crossrank.training.adapt.recipes import DEV_QUERIES, MEASUREMENTS, recipe_for
from crossrank.training.adapt.report import verdict
from crossrank.training.adapt.settings import AdaptationSettings, TrainingSize
from crossrank.training.adapt.sizing import Cost, Size, sized
from crossrank.training.train import train

SETTINGS = AdaptationSettings(
    reranker=str(CROSS_ENCODER),
    bi_encoder=str(BI_ENCODER),
    sources=("title", "sentence", "keywords"),
    round_trip_top=40,
    near_duplicates=1.0,
    dev_share=0.2,
    test_share=0.2,
    depth=16,
    steps=4,
    max_length=48,
    precision="float32",
    bi_encoder_training=TrainingSize(1e-3, 4, 3, "kl", {"teacher_temperature": 2.0}),
    reranker_training=TrainingSize(1e-3, 4, 4, "lce"),
)

BETTER = dataclasses.replace(
    SETTINGS,
    significance=1.0,  # the most there is: any gain at all is kept
    steps=60,
    max_epochs=20.0,
    seed=2,
    bi_encoder_training=TrainingSize(3e-3, 8, 2, "mnr"),
    reranker_training=TrainingSize(3e-3, 8, 4, "lce"),
)


def corpus(count: int = 60) -> list[Document]:
    """Documents about two or three things each, which their titles name."""
    rng = random.Random(5)
    topics = [*itertools.combinations(WORDS, 2), *itertools.combinations(WORDS, 3)][:count]

    def sentence(about: tuple[str, ...]) -> str:
        return " ".join(rng.choices([*about * 4, *WORDS], k=rng.randint(6, 9))) + "."

    return [
        Document(f"d{i}", " ".join(sentence(about) for _ in range(4)), " ".join(about))
        for i, about in enumerate(topics)
    ]


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> AdaptationReport:
    return adapt(corpus(100), tmp_path_factory.mktemp("adapted") / "out", BETTER)


def test_the_pseudo_queries_are_a_collection_that_is_split_by_document(adapted) -> None:
    collection = Collection.open(adapted.output / "training" / "collection")
    assert collection.splits == ("dev", "test", "train")
    documents: dict[str, set[str]] = {}
    for split in collection.splits:
        qrels = collection.qrels(split)
        assert len(collection.queries(split)) == adapted.stages["queries"]["splits"][split]
        documents[split] = {name for grades in qrels.values() for name in grades}
    assert not documents["train"] & documents["test"]
    assert not documents["train"] & documents["dev"]
    assert not documents["dev"] & documents["test"]
    searched = {each.id: each.full_text for each in collection.documents()}
    original = {each.id: each.full_text for each in corpus(100)}
    queries = collection.queries()
    rows = (collection.folder / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    sources = {row["_id"]: row["source"] for row in map(json.loads, rows)}
    assert {*sources.values()} <= {*SETTINGS.sources}
    for split in collection.splits:
        for query_id, grades in collection.qrels(split).items():
            (name,) = grades
            if sources[query_id] == "sentence":
                assert queries[query_id] in original[name]
                assert queries[query_id] not in searched[name]


def test_nothing_held_out_is_trained_with(adapted) -> None:
    collection = Collection.open(adapted.output / "training" / "collection")
    rows = (adapted.output / "training" / "negatives.jsonl").read_text(encoding="utf-8").splitlines()
    trained = {json.loads(row)["query_id"] for row in rows}
    assert trained
    assert trained <= {*collection.queries("train")}


def test_what_is_better_is_kept_and_opens_and_gives_the_measured_figures(adapted) -> None:
    (measured,) = adapted.stages["measured"]
    assert any(adapted.kept.values()), "these settings and seeds are to keep something"
    if "bi_encoder" in measured["comparisons"]:  # for what the search does with it, not for itself
        first = measured["comparisons"]["bi_encoder"]
        systems = measured["systems"]
        assert first["mean"]["value"] == pytest.approx(systems["BM25 + bi-encoder after"])
        assert first["other_mean"]["value"] == pytest.approx(systems["BM25 + bi-encoder before"])
        alone = measured["comparisons"]["bi_encoder_alone"]
        assert alone["mean"]["value"] == pytest.approx(systems["bi-encoder after"])
    for part, kept in adapted.kept.items():
        assert (adapted.output / part).is_dir() == kept
        if part in measured["comparisons"]:
            assert kept == (measured["comparisons"][part]["difference"]["value"] > 0)
    collection = Collection.open(adapted.output / "training" / "collection")
    queries = collection.queries("test")
    from crossrank import BM25, Dense, Hybrid, Searcher

    documents = [*collection.documents()]
    reranker = CrossEncoder(adapted.reranker, long_query="truncate")
    dense = Dense(documents, BiEncoder(adapted.bi_encoder))
    run = Searcher(Hybrid([BM25(documents), dense]), reranker, depth=SETTINGS.depth).search_many(queries, 100)
    value = evaluate(run, collection.qrels("test"), ["nDCG@10"])["nDCG@10"]
    assert measured["systems"]["search with what is kept"] == pytest.approx(value, abs=1e-6)
    if adapted.kept["reranker"] and adapted.stages["calibrated"]["done"]:
        assert CrossEncoder(adapted.reranker).calibration is not None


def test_the_report_says_what_came_of_it(adapted) -> None:
    text = adapted.report.read_text(encoding="utf-8")
    for part, kept in adapted.kept.items():
        name = part.replace("_", "-")
        assert (f"**The new {name} is kept**" in text) == kept
        assert (f"**The old {name} (" in text) == (not kept)
    assert "Queries that lost most" in text
    for line in text.splitlines():
        if line.startswith("!["):
            picture = adapted.output / line.partition("](")[2].rstrip(")")
            assert picture.read_bytes().startswith(b"\x89PNG")
    whole = json.loads((adapted.output / "adaptation.json").read_text(encoding="utf-8"))
    assert whole["use"] == {"bi_encoder": adapted.bi_encoder, "reranker": adapted.reranker}
    assert {*whole["stages"]} == {*STAGES}
    (measured,) = whole["stages"]["measured"]
    first = "BM25 + bi-encoder after" if adapted.kept["bi_encoder"] else "BM25 + bi-encoder before"
    is_enough = measured["systems"][first] >= measured["systems"]["search with what is kept"]
    assert ("the first stage alone is no worse**" in text) == is_enough


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize(("search", "is_said"), [(0.49, True), (0.5, True), (0.51, False)])
def test_a_first_stage_that_is_enough_is_named(kept: bool, search: float, is_said: bool) -> None:
    systems = {"BM25 + bi-encoder before": 0.4 if kept else 0.5, "BM25 + bi-encoder after": 0.5}
    systems["search with what is kept" if kept else "search before"] = search
    training = {"status": "nothing better"}
    whole = {
        "stages": {
            "measured": [
                {"name": "questions", "systems": {"search before": 0.0, **systems}, "comparisons": {}}
            ],
            "bi_encoder": training,
            "reranker": training,
        },
        "settings": {"measure": "nDCG@10", "bi_encoder": "old", "reranker": "old", "significance": 0.05},
        "kept": {"bi_encoder": False, "reranker": False},
    }
    if kept:
        whole["kept"]["bi_encoder"] = True
        change = {"value": 0.1, "low": 0.05, "high": 0.15}
        compared = {
            "mean": {"value": 0.5},
            "other_mean": {"value": 0.4},
            "difference": change,
            "p_value": 0.01,
        }
        whole["stages"]["measured"][0]["comparisons"] = {"bi_encoder": compared, "bi_encoder_alone": compared}
    line = f"nDCG@10 0.5000 for BM25 and the bi-encoder, {search:.4f} with the reranker"
    assert any(line in each for each in verdict(whole)) == is_said


def test_a_model_whose_int8_form_fails_the_gate_stays_float32_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crossrank.runtime import quantization

    monkeypatch.setattr(quantization, "LIMITS", {**quantization.LIMITS, "mean_delta_in_std": 0.0})
    result = adapt(corpus(100), tmp_path / "out", BETTER)
    forms = result.stages["quantized"]
    assert forms
    assert not any(found["passed"] for found in forms.values())
    text = result.report.read_text(encoding="utf-8")
    for part in forms:
        assert f"{part.replace('_', '-').capitalize()}: stays float32; limits broken: " in text
    assert any(result.kept.values()), "these settings and seeds are to keep something"
    if result.kept["reranker"]:
        assert CrossEncoder(result.reranker).precision == "float32"
    if result.kept["bi_encoder"]:
        assert BiEncoder(result.bi_encoder).precision == "float32"


def test_a_model_that_is_not_better_is_not_kept_and_that_is_said(tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, significance=0.0)  # no p-value is below it
    report = adapt(corpus(), tmp_path / "out", settings)
    assert report.kept == {"bi_encoder": False, "reranker": False}
    assert (report.bi_encoder, report.reranker) == (str(BI_ENCODER), str(CROSS_ENCODER))
    assert not (tmp_path / "out" / "reranker").exists()
    text = report.report.read_text(encoding="utf-8")
    assert text.count(" stays**") == 2
    assert "No calibration: the old reranker stays." in text
    with pytest.raises(InputError, match="exists; name another output"):
        adapt(corpus(), tmp_path / "out", settings)


class _Killed(Exception):
    pass


def test_a_run_that_is_killed_goes_on_and_ends_with_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = adapt(corpus(), tmp_path / "whole", SETTINGS)
    output = tmp_path / "killed"
    done: list[str] = []

    def die(*arguments: Any, **options: Any) -> None:
        raise _Killed

    # in mining, in the first training, before the lists are scored again, and while it is measured
    points = (
        (lessons, "mine"),
        (trainings, "train"),
        (lessons, "write_whole"),
        (outcomes, "measure_adaptation"),
    )
    for module, name in points:
        with monkeypatch.context() as patched:
            patched.setattr(module, name, die)
            with pytest.raises(_Killed):
                adapt(corpus(), output, SETTINGS)
    told: list[str] = []
    resumed = adapt(corpus(), output, SETTINGS, on_stage=told.append)
    done = [words for words in told if words.endswith(": done before")]
    assert len(done) == len(STAGES) - 2
    assert [words.partition(": done in ")[1] for words in told[len(done) :]] == ["", ": done in "] * 2
    for stage, found in whole.stages.items():
        again = resumed.stages[stage]
        if stage in ("bi_encoder", "reranker"):
            assert again.pop("seconds") > 0
            found.pop("seconds")
        assert again == found, stage
    assert (output / "training" / "negatives.jsonl").read_bytes() == (
        tmp_path / "whole" / "training" / "negatives.jsonl"
    ).read_bytes()


def test_an_unfinished_run_with_other_settings_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*arguments: Any, **options: Any) -> None:
        raise _Killed

    with monkeypatch.context() as patched:
        patched.setattr(lessons, "mine", die)
        with pytest.raises(_Killed):
            adapt(corpus(), tmp_path / "out", SETTINGS)
    with pytest.raises(InputError, match=r"unfinished run with other settings\.seed"):
        adapt(corpus(), tmp_path / "out", dataclasses.replace(SETTINGS, seed=14))
    with pytest.raises(InputError, match="unfinished run with other documents"):
        adapt(corpus(59), tmp_path / "out", SETTINGS)


def test_judgements_are_measured_and_decide_nothing(tmp_path: Path) -> None:
    report = adapt(
        corpus(),
        tmp_path / "out",
        dataclasses.replace(SETTINGS, sources=(*SETTINGS.sources, "generated")),
        judged=(Path(__file__).parents[2] / "data" / "sample", "test"),
        generator=lambda texts: [[" ".join(text.split()[3:7])] for text in texts],
    )
    pseudo, judged = report.stages["measured"]
    assert judged["name"] == "judgements of sample (test)"
    assert judged["kept"] == pseudo["kept"]
    assert "judgements of sample" in report.report.read_text(encoding="utf-8").lower()


def test_queries_of_a_generator_are_used_and_asked_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def die(*arguments: Any, **options: Any) -> None:
        raise _Killed

    def generator(texts):
        asked.extend(texts)
        return [[" ".join(text.split()[3:8])] for text in texts]

    settings = dataclasses.replace(SETTINGS, sources=("generated",), per_document=1)
    with monkeypatch.context() as patched:
        patched.setattr(lessons, "round_trip", die)
        with pytest.raises(_Killed):
            adapt(corpus(), tmp_path / "out", settings, generator=generator)
    report = adapt(corpus(), tmp_path / "out", settings, generator=generator)
    assert len(asked) == 60
    assert {*report.stages["queries"]["kept"]} == {"generated"}


def test_too_few_documents_are_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"2 documents gave .* pseudo-queries.*give more documents"):
        adapt(corpus(2), tmp_path / "out", SETTINGS)
    with pytest.raises(InputError, match="no documents"):
        adapt([], tmp_path / "out", SETTINGS)
    with pytest.raises(InputError, match="one of steps and budget_minutes"):
        dataclasses.replace(SETTINGS, budget_minutes=5.0)


def test_a_budget_gives_steps_up_to_the_epochs(tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, steps=None, budget_minutes=3.0, max_epochs=2.0)
    cost = Cost(step_s=2.0, query_s=0.01)  # 200 dev queries, seven times: 14 s

    def of(part: Any, num_queries: int, seconds: float, cost: Cost = cost) -> Size:
        return sized(settings, part, num_queries, seconds=seconds, cost=cost)

    # a third of 180 s, and two thirds
    assert of("bi_encoder", 10_000, 180.0) == Size((60 - 14) // 2, DEV_QUERIES)
    assert of("reranker", 10_000, 180.0) == Size((120 - 14) // 2, DEV_QUERIES)
    assert of("reranker", 40, 180.0).steps == 20  # 40 queries, 4 a step, twice
    slow = of("reranker", 10_000, 180.0, Cost(step_s=2.0, query_s=0.1))
    assert slow.dev_queries == int(30 / 0.7)  # a quarter of 120 s, seven times
    assert slow.steps == int((120 - slow.dev_queries * 0.7) / 2)
    assert of("reranker", 10_000, 0.0) == Size(10, 20)  # the fewest of both
    recipe = recipe_for(
        "reranker",
        settings,
        collection=tmp_path,
        negatives=tmp_path / "n.jsonl",
        output=tmp_path / "m",
        steps=20,
        most_tokens=96,
        exits=(1,),
    )
    assert (recipe.schedule.steps, recipe.held_out and recipe.held_out.every) == (20, 4)
    assert recipe.student.exits == (1,)


@pytest.mark.parametrize("steps", [1, 6, 14, 19, 20, 21])
def test_there_are_no_more_measurements_than_were_reckoned_with(tmp_path: Path, steps: int) -> None:
    recipe = recipe_for(
        "bi_encoder",
        SETTINGS,
        collection=tmp_path,
        negatives=tmp_path / "n.jsonl",
        output=tmp_path / "m",
        steps=steps,
        most_tokens=96,
    )
    assert recipe.held_out is not None
    measured = {*range(recipe.held_out.every, steps, recipe.held_out.every), steps}
    assert len(measured) <= MEASUREMENTS


def test_heads_of_the_old_reranker_are_trained_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = []

    def stop(recipe: Any, **options: Any) -> None:
        recipes.append(recipe)
        raise TrainingStoppedError("enough")

    monkeypatch.setattr(trainings, "train", stop)
    old = GOLDEN / "bert_exits"
    report = adapt(corpus(), tmp_path / "out", dataclasses.replace(SETTINGS, reranker=str(old)))
    assert [each.student.exits for each in recipes] == [CrossEncoder(old).exit_layers, None]
    assert report.reranker == str(old)


@pytest.mark.parametrize(
    ("loss", "steps", "by"),
    [
        ("kl", 40, "scores of the new reranker"),
        ("kl", 0, "scores of the old reranker"),
        ("mnr", 40, "labels"),
    ],
)
def test_the_bi_encoder_learns_from_the_new_reranker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str, steps: int, by: str
) -> None:
    settings = dataclasses.replace(
        SETTINGS,
        steps=max(steps, 1),
        significance=1.0,
        bi_encoder_training=TrainingSize(1e-3, 4, 3, loss),
        reranker_training=TrainingSize(3e-3 if steps else 0.0, 8, 4, "lce"),
    )
    files = {}
    folder = tmp_path / "out" / "training"
    new = []

    def note(recipe: Any, **options: Any) -> Any:
        files[recipe.student.kind] = Path(recipe.data[0].file).name
        if recipe.student.kind == "bi_encoder" and steps:
            new.append(CrossEncoder(folder / "reranker", long_query="truncate"))
        return train(recipe, **options)

    monkeypatch.setattr(trainings, "train", note)
    # what Python takes for the end of a line, and JSON lines do not
    documents = [dataclasses.replace(each, text=each.text.replace(". ", ".\u2028")) for each in corpus()]
    report = adapt(documents, tmp_path / "out", settings)
    assert report.stages["taught"]["by"] == by
    is_new = by == "scores of the new reranker"
    learned_from = "taught.jsonl" if is_new else "negatives.jsonl"
    assert files == {"cross_encoder": "negatives.jsonl", "bi_encoder": learned_from}
    assert f"It learned from the {by}." in report.report.read_text(encoding="utf-8")
    assert (folder / "taught.jsonl").is_file() == is_new
    if not is_new:
        return
    mined, taught = (
        [json.loads(line) for _, line in numbered_lines(folder / name)]
        for name in ("negatives.jsonl", "taught.jsonl")
    )
    assert "\u2028" in (folder / "taught.jsonl").read_text(encoding="utf-8")
    assert report.stages["taught"]["pairs"] == sum(len(row["documents"]) for row in mined)
    for before, after in zip(mined, taught, strict=True):
        expected = new[0].score([(after["query"], text) for text in after["documents"]])
        assert after["teacher_scores"] == pytest.approx(expected.tolist(), abs=1e-4)
        assert {**after, "teacher_scores": before["teacher_scores"]} == before


def test_a_budget_is_measured_and_kept_to(tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, steps=None, budget_minutes=0.02, max_epochs=1.0)
    report = adapt(corpus(), tmp_path / "out", settings)
    sizes = report.stages["steps"]
    for part in ("bi_encoder", "reranker"):
        assert 1 <= sizes[part] <= -(-report.stages["negatives"]["rows"] // 4)
        assert sizes["costs"][part]["step_s"] > 0
    assert sizes["for_later_s"] > 0
    assert {*report.seconds} == {*STAGES}
    text = report.report.read_text(encoding="utf-8")
    assert "minutes in all, of 0.0 that were given" in text
    assert not [*(report.output / "training").glob("vectors*")]
