"""A corpus and nothing else to a reranker and a bi-encoder that know it: `adapt`.

    OUTPUT/                 at the end: report.md, adaptation.json, and the models that are better:
                            bi_encoder/, reranker/
    OUTPUT/training/        run.json (what the run is made with, and the result of each stage that is done),
                            collection/ (the pseudo-queries in BEIR form), negatives.jsonl, and of a
                            generator generated.json

Stages follow one another, and each is done once: a run that was killed goes on with the stage it was in, and
mining and training within it. Importing this module needs the extra `train`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from crossrank.errors import InputError, TrainingStoppedError
from crossrank.evaluation.collections import Collection
from crossrank.models.bi_encoder import BiEncoder
from crossrank.models.cross_encoder import CrossEncoder
from crossrank.models.quantize import Candidates, quantize
from crossrank.retrieval.retriever import as_documents
from crossrank.training.adapt.collection import (
    SPLITS,
    documents_without,
    sources_of,
    split_of,
    write_collection,
)
from crossrank.training.adapt.filtering import round_trip, without_near_duplicates
from crossrank.training.adapt.generated import Generator, generate
from crossrank.training.adapt.measuring import Judged, Models, Search, measure_adaptation
from crossrank.training.adapt.pseudo_queries import draw_pseudo_queries
from crossrank.training.adapt.recipes import PARTS, Part, recipe_for, sized
from crossrank.training.adapt.report import write_report
from crossrank.training.adapt.settings import AdaptationSettings
from crossrank.training.calibration import calibrate, judged_pairs, save_calibration
from crossrank.training.corpus import as_corpus
from crossrank.training.examples import draw
from crossrank.training.guards import Progress
from crossrank.training.negatives import Filters, Source, mine
from crossrank.training.recipes import Recipe
from crossrank.training.run_folder import RunFolder, write_whole
from crossrank.training.train import train
from crossrank.types import Document

__all__ = ["STAGES", "AdaptationReport", "adapt"]

STAGES = {
    "queries": "making pseudo-queries",
    "negatives": "mining negatives",
    "steps": "sizing the trainings",
    "bi_encoder": "training the bi-encoder",
    "reranker": "training the reranker",
    "quantized": "making int8 forms",
    "measured": "measuring before and after",
    "calibrated": "calibrating",
}
"""What is done, in this order."""

_CALIBRATED_DEPTH = 20

OnTraining: TypeAlias = Callable[[], AbstractContextManager[Callable[[Progress], None]]]

_DEFAULTS = AdaptationSettings()


@contextmanager
def _nobody() -> Iterator[Callable[[Progress], None]]:
    """Tell nobody of a training."""
    yield lambda told: None


@dataclass(frozen=True)
class AdaptationReport:
    """What an adaptation ended with.

    Attributes:
        output: its folder.
        bi_encoder: what to search with: the folder of the new one, or the name of the old one.
        reranker: likewise.
        kept: "bi_encoder" and "reranker" -> whether it is the new one.
        settings: that it was made with.
        stages: name of each of `STAGES` -> its result in plain values; also in adaptation.json.
        report: the Markdown file with all figures.
    """

    output: Path
    bi_encoder: str
    reranker: str
    kept: Mapping[str, bool]
    settings: AdaptationSettings
    stages: Mapping[str, Any]
    report: Path

    def as_dict(self) -> dict[str, Any]:
        """Return what adaptation.json has: "use", "kept", "settings", "stages"."""
        use = {"bi_encoder": self.bi_encoder, "reranker": self.reranker}
        return {
            "use": use,
            "kept": dict(self.kept),
            "settings": asdict(self.settings),
            "stages": dict(self.stages),
        }


def adapt(
    documents: Sequence[str | Document],
    output: str | Path,
    settings: AdaptationSettings = _DEFAULTS,
    *,
    generator: Generator | None = None,
    generated: Mapping[str, Sequence[str]] | None = None,
    judged: tuple[str | Path, str] | None = None,
    overwrite: bool = False,
    threads: int | None = None,
    on_stage: Callable[[str], None] | None = None,
    on_training: OnTraining = _nobody,
    progress: bool | None = None,
) -> AdaptationReport:
    """Fit a bi-encoder and a reranker to documents, without judgements, and say whether it was worth it.

    Pseudo-queries are made of the documents, negatives are mined for them, both models are trained, brought
    to int8 where they pass the parity gate, and measured before and after on queries of documents that were
    left out. A model that is not significantly better there is not kept: the old one stays. A reranker that
    is kept is calibrated. Everything is held in memory.

    A run that was interrupted goes on where it stopped when it is called again with the same arguments.

    Args:
        documents: the corpus.
        output: folder of the models and the report.
        settings: see `AdaptationSettings`.
        generator: makes queries of texts, for the source "generated"; called for as many documents as
            `max_queries`, once a run.
        generated: or queries that are there: document id -> queries.
        judged: a folder in BEIR form and a split of it, for measuring alone: it decides nothing.
        overwrite: replace what is in the folder, and forget an interrupted run.
        threads: of models that are not being trained; None takes the cores this process may use.
        on_stage: is told what is being done, in words.
        on_training: gives, for as long as a model is trained, what is told of its progress.
        progress: True shows bars, False none, None those of long calls on a terminal.

    Raises:
        InputError: documents that give too few queries, settings that do not fit, an output that is there, or
            an unfinished run with other arguments in it.
        FileFormatError: a judged collection that cannot be read.
        CheckpointError: a model that cannot be opened or trained.
        MissingExtraError: a part of the extra `train` is not there.
    """
    run = _Adaptation(
        as_documents(documents),
        Path(output),
        settings,
        generator=generator,
        generated=generated,
        judged=None if judged is None else (Path(judged[0]), judged[1]),
        threads=threads,
        on_training=on_training,
        progress=progress,
    )
    run.begin(overwrite=overwrite)
    for name, words in STAGES.items():
        run.do(name, words, on_stage or (lambda words: None))
    return run.finish()


class _Adaptation:
    """One run: its arguments, its folder, and what its stages do."""

    def __init__(
        self,
        documents: Sequence[Document],
        output: Path,
        settings: AdaptationSettings,
        *,
        generator: Generator | None,
        generated: Mapping[str, Sequence[str]] | None,
        judged: tuple[Path, str] | None,
        threads: int | None,
        on_training: OnTraining,
        progress: bool | None,
    ) -> None:
        if not documents:
            raise InputError("there are no documents to adapt to")
        if generator is not None and generated is not None:
            raise InputError("give a generator or generated queries, not both")
        self._documents, self._settings = documents, settings
        self._generator, self._generated = generator, generated
        self._judged = judged
        self._threads, self._on_training, self._progress = threads, on_training, progress
        self._run = RunFolder(output)
        self._collection = self._run.folder / "collection"
        self._negatives = self._run.folder / "negatives.jsonl"
        self._old_bi_encoder = BiEncoder(settings.bi_encoder, threads=threads, progress=progress)
        self._old_reranker = self._open_reranker(settings.reranker)
        if self._old_reranker.label is None:
            raise InputError(f"{settings.reranker} gives several scores a pair; give a reranker with one")

    def begin(self, *, overwrite: bool) -> None:
        """Start, or go on with what is there."""
        judged = None
        if self._judged is not None:
            Collection.open(self._judged[0]).qrels(self._judged[1])  # what cannot be read is said now
            judged = [str(self._judged[0]), self._judged[1]]
        generator = self._generator
        made_with = {
            "documents": as_corpus(self._documents).fingerprint,
            "settings": asdict(self._settings),
            "models": [self._old_bi_encoder.fingerprint, self._old_reranker.fingerprint],
            "generator": getattr(generator, "__qualname__", type(generator).__name__) if generator else None,
            "generated": _digest(self._generated) if self._generated is not None else None,
            "judged": judged,
        }
        self._run.begin(made_with, overwrite=overwrite)

    def do(self, name: str, words: str, tell: Callable[[str], None]) -> None:
        """Do a stage, unless it is done."""
        stages = self._stages
        if name in stages:
            tell(f"{words}: done before")
            return
        tell(words)
        stages[name] = json.loads(json.dumps(self._stage(name), default=float))
        self._run.note(stages=stages)

    def _stage(self, name: str) -> Any:
        stages: dict[str, Callable[[], Any]] = {
            "queries": self._queries,
            "negatives": self._mine_negatives,
            "steps": self._steps,
            "bi_encoder": lambda: self._train("bi_encoder"),
            "reranker": lambda: self._train("reranker"),
            "quantized": self._quantized,
            "measured": self._measured,
            "calibrated": self._calibrated,
        }
        return stages[name]()

    @property
    def _stages(self) -> dict[str, Any]:
        return dict(self._run.record().get("stages", {}))

    def finish(self) -> AdaptationReport:
        """Write the report, move what is kept to its place, and remove what was only needed on the way."""
        stages, settings = self._stages, self._settings
        kept = stages["measured"][0]["kept"]
        exported = self._run.folder / "export"
        shutil.rmtree(exported, ignore_errors=True)
        exported.mkdir()
        used = {"bi_encoder": settings.bi_encoder, "reranker": settings.reranker}
        for part in PARTS:
            if kept[part]:
                # a trained folder has its run in it, which is no part of the model
                shutil.copytree(
                    self._new_folder(part), exported / part, ignore=shutil.ignore_patterns("training")
                )
                used[part] = str(self._run.output / part)
        result = AdaptationReport(
            output=self._run.output,
            bi_encoder=used["bi_encoder"],
            reranker=used["reranker"],
            kept=kept,
            settings=settings,
            stages=stages,
            report=self._run.output / "report.md",
        )
        text = json.dumps(result.as_dict(), indent=2, ensure_ascii=False) + "\n"
        write_whole(exported / "adaptation.json", lambda path: path.write_text(text, encoding="utf-8"))
        metrics: dict[str, list[dict[str, Any]]] = {
            part: RunFolder(self._model_folder(part)).metrics() for part in PARTS
        }
        write_report(exported, result.as_dict(), metrics, num_documents=len(self._documents))
        self._run.finish(exported)
        for part in PARTS:
            shutil.rmtree(self._model_folder(part), ignore_errors=True)
            shutil.rmtree(self._int8_folder(part), ignore_errors=True)
        return result

    # The stages. Each gives plain values, and nothing but files and earlier stages' results is read.

    def _queries(self) -> dict[str, Any]:
        settings = self._settings
        generated = self._generated
        if self._generator is not None:
            drawn_first = sorted(self._documents, key=lambda each: draw(settings.seed, each.id))
            asked = drawn_first[: settings.max_queries]
            generated = self._asked(asked, self._generator)
        drawn = draw_pseudo_queries(
            self._documents,
            sources=settings.sources,
            generated=generated,
            per_document=settings.per_document,
            limit=settings.max_queries,
            language=settings.language,
            seed=settings.seed,
            progress=self._progress,
        )
        unique = without_near_duplicates(
            drawn, threshold=settings.near_duplicates, language=settings.language
        )
        search = Search(documents_without(self._documents, unique.queries), settings.language)
        found = round_trip(
            unique.queries,
            search.hybrid(self._old_bi_encoder),
            top_k=settings.round_trip_top,
        )
        splits = {
            query.document_id: split_of(
                query.document_id,
                dev_share=settings.dev_share,
                test_share=settings.test_share,
                seed=settings.seed,
            )
            for query in found.queries
        }
        counts = write_collection(
            self._collection, documents_without(self._documents, found.queries), found.queries, splits
        )
        short = [split for split in SPLITS if counts[split] < 2]
        if short:
            raise InputError(
                f"{len(self._documents)} documents gave {len(drawn)} pseudo-queries, of which "
                f"{len(found.queries)} are left after filters: too few for {short[0]}; give more documents, "
                "more queries a document, a larger round_trip_top, or queries of a generator"
            )
        by_source = {
            "drawn": Counter(query.source for query in drawn),
            "near_duplicates": unique.dropped,
            "not_found": found.dropped,
            "kept": Counter(query.source for query in found.queries),
        }
        examples: dict[str, list[str]] = {}
        for query in found.queries:
            examples.setdefault(query.source, []).append(query.text)
        return {
            **by_source,
            "splits": counts,
            "examples": {name: each[:3] for name, each in examples.items()},
        }

    def _asked(self, documents: Sequence[Document], generator: Generator) -> dict[str, list[str]]:
        """Return a generator's queries; they are written down, since they may have cost money."""
        path = self._run.folder / "generated.json"
        if not path.is_file():
            text = json.dumps(generate(documents, generator, progress=self._progress), ensure_ascii=False)
            write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))
        found: dict[str, list[str]] = json.loads(path.read_text(encoding="utf-8"))
        return found

    @cached_property
    def _search(self) -> Search:
        """Over the documents of the collection; needed once it is there."""
        return Search([*Collection.open(self._collection).documents()], self._settings.language)

    def _sources(self) -> list[Source]:
        settings, search = self._settings, self._search
        window = {"depth": settings.depth, "sampling": "top"}
        sources: list[Source] = []
        if settings.dense_negatives:
            dense = search.dense(self._old_bi_encoder)
            sources.append(Source(dense, settings.dense_negatives, **window))  # type: ignore[arg-type]
        if settings.bm25_negatives:
            sources.append(Source(search.bm25, settings.bm25_negatives, **window))  # type: ignore[arg-type]
        if settings.random_negatives:
            sources.append(Source("random", settings.random_negatives, depth=settings.depth))
        return sources

    def _mine_negatives(self) -> dict[str, Any]:
        collection = Collection.open(self._collection)
        journal = self._negatives.with_name(f"{self._negatives.name}.mining")
        if not journal.exists():
            self._negatives.unlink(missing_ok=True)  # whole, but not noted: the run died between the two
        report = mine(
            collection.queries("train"),
            collection.qrels("train"),
            self._search.documents,
            self._sources(),
            self._negatives,
            filters=Filters(),
            teacher=self._old_reranker,
            seed=self._settings.seed,
            progress=self._progress,
        )
        return {
            "queries": report.num_queries,
            "rows": report.num_rows,
            "negatives": report.negatives,
            "refused": report.refused,
            "suspected": report.suspected,
        }

    def _recipe(self, part: Part, output: Path, steps: int) -> Recipe:
        return recipe_for(
            part,
            self._settings,
            collection=self._collection,
            negatives=self._negatives,
            output=output,
            steps=steps,
            most_tokens=(
                self._old_bi_encoder.max_length
                if part == "bi_encoder"
                else self._old_reranker.settings.max_length
            ),
        )

    def _steps(self) -> dict[str, int]:
        return sized(self._settings, self._recipe, self._stages["negatives"]["rows"])

    def _train(self, part: Part) -> dict[str, Any]:
        folder = self._model_folder(part)
        recipe = self._recipe(part, folder, self._stages["steps"][part])
        earlier = RunFolder(folder)
        is_whole = (earlier.folder / "run.json").is_file() and bool(earlier.record().get("finished"))
        try:
            with self._on_training() as report:
                # one that is whole but not noted died between the two
                found = train(recipe, overwrite=is_whole, report=report)
        except TrainingStoppedError as error:
            return {"status": "stopped", "why": str(error), "steps": recipe.schedule.steps}
        return {
            "status": "trained" if found.best_step else "nothing better",
            "steps": found.num_steps,
            "precision": found.precision,
            "seconds": round(found.training_s, 1),
            "dev_before": found.baseline,
            "dev_best": found.best,
            "best_step": found.best_step,
        }

    def _is_trained(self, part: Part) -> bool:
        return bool(self._stages[part]["status"] == "trained")

    def _quantized(self) -> dict[str, Any]:
        candidates = self._candidates("train")
        found: dict[str, Any] = {}
        for part in PARTS:
            if not self._is_trained(part):
                continue
            try:
                report = quantize(
                    self._model_folder(part),
                    self._int8_folder(part),
                    candidates,
                    name="pseudo-queries",
                    seed=self._settings.seed,
                    overwrite=True,
                    threads=self._threads,
                    progress=self._progress,
                )
            except InputError as error:
                found[part] = {"passed": False, "why": str(error)}
                continue
            found[part] = {
                "passed": report.passed,
                "exceeded": report.exceeded,
                "figures": report.figures,
                "float32_bytes": report.float32_bytes,
                "int8_bytes": report.int8_bytes,
            }
        return found

    def _measured(self) -> list[dict[str, Any]]:
        settings = self._settings
        new = {part: self._new_folder(part) if self._is_trained(part) else None for part in PARTS}
        models = Models(
            self._old_bi_encoder,
            self._old_reranker,
            BiEncoder(new["bi_encoder"], threads=self._threads) if new["bi_encoder"] else None,
            self._open_reranker(new["reranker"]) if new["reranker"] else None,
        )
        options: dict[str, Any] = {
            "measure": settings.measure,
            "depth": settings.depth,
            "significance": settings.significance,
            "progress": self._progress,
        }
        collection = Collection.open(self._collection)
        held_out = Judged(
            "pseudo-queries of documents left out",
            self._search,
            collection.queries("test"),
            collection.qrels("test"),
            sources_of(self._collection),
        )
        measured = [measure_adaptation(held_out, models, **options)]
        if self._judged is not None:
            folder, split = self._judged
            collection = Collection.open(folder)
            judged = Judged(
                f"judgements of {collection.name} ({split})",
                Search([*collection.documents()], settings.language),
                collection.queries(split),
                collection.qrels(split),
                {},
            )
            measured.append(measure_adaptation(judged, models, **options, kept=measured[0]["kept"]))
        return measured

    def _calibrated(self) -> dict[str, Any]:
        if not self._stages["measured"][0]["kept"]["reranker"]:
            return {"done": False, "why": "the old reranker stays"}
        folder = self._new_folder("reranker")
        qrels = Collection.open(self._collection).qrels("dev")
        try:
            report = calibrate(
                self._open_reranker(folder),
                judged_pairs(self._candidates("dev", _CALIBRATED_DEPTH), qrels),
                holds_for=f"pseudo-queries, the first {_CALIBRATED_DEPTH} documents of BM25 and bi-encoder",
                seed=self._settings.seed,
            )
        except InputError as error:
            return {"done": False, "why": str(error)}
        save_calibration(report.calibration, folder, overwrite=True)
        before, after = (report.calibration.figures[name]["ece"] for name in ("before", "after"))
        return {
            "done": True,
            "method": report.calibration.map.method,
            "pairs": report.calibration.num_pairs,
            "ece_before": before,
            "ece_after": after,
        }

    def _candidates(self, split: str, depth: int | None = None) -> Candidates:
        """The candidates of a split's queries, of BM25 and the old bi-encoder."""
        collection = Collection.open(self._collection)
        queries = collection.queries(split)
        first = self._search.hybrid(self._old_bi_encoder)
        rankings = first.retrieve([*queries.values()], depth or self._settings.depth)
        return {
            query_id: (text, [hit.document for hit in ranking if hit.document is not None])
            for (query_id, text), ranking in zip(queries.items(), rankings, strict=True)
        }

    def _open_reranker(self, name: str | Path) -> CrossEncoder:
        return CrossEncoder(name, long_query="truncate", threads=self._threads, progress=self._progress)

    def _model_folder(self, part: Part) -> Path:
        return self._run.folder / part

    def _int8_folder(self, part: Part) -> Path:
        return self._run.folder / f"{part}_int8"

    def _new_folder(self, part: Part) -> Path:
        """The folder with an int8 form, or where that failed the gate, the one that was trained."""
        passed = self._stages["quantized"].get(part, {}).get("passed")
        return self._int8_folder(part) if passed else self._model_folder(part)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=list).encode()).hexdigest()
