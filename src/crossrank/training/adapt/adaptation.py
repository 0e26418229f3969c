"""A corpus and nothing else to a reranker and a bi-encoder that know it: `adapt`.

    OUTPUT/                 at the end: report.md, adaptation.json, and the models that are better:
                            bi_encoder/, reranker/
    OUTPUT/training/        run.json (what the run is made with, and the result of each stage that is done),
                            collection/ (the pseudo-queries in BEIR form), negatives.jsonl, and of a
                            generator generated.json; until the end also vectors of texts, measurements, and
                            the models in training

Stages follow one another, and each is done once: a run that was killed goes on with the stage it was in, and
encoding, mining, training and measuring within it. Importing this module needs the extra `train`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from crossrank.cache import ScoreCache
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
from crossrank.training.adapt.recipes import DEV_QUERIES, PARTS, Part, recipe_for
from crossrank.training.adapt.report import negatives_found, write_report
from crossrank.training.adapt.settings import AdaptationSettings
from crossrank.training.adapt.sizing import Size, longest, sized, tried
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

_INT8_QUERIES = 1000
"""Whose candidates an int8 form is calibrated and checked with."""

_INT8_PAIRS = 7000
"""Pairs that take as long to score as int8 forms to make and check."""

_TIMED_QUERIES = 4
_TYPICAL_QUERIES = 256

_VECTORS = "vectors.sqlite3"
_VECTORS_BYTES = 16 * 2**30  # no limit but the disk's: they are in memory, too

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
        seconds: name of each of `STAGES` -> what it took, without what a kill made it do again.
        settings: that it was made with.
        stages: name of each of `STAGES` -> its result in plain values; also in adaptation.json.
        report: the Markdown file with all figures.
    """

    output: Path
    bi_encoder: str
    reranker: str
    kept: Mapping[str, bool]
    seconds: Mapping[str, float]
    settings: AdaptationSettings
    stages: Mapping[str, Any]
    report: Path

    def as_dict(self) -> dict[str, Any]:
        """Return what adaptation.json has: "use", "kept", "seconds", "settings", "stages"."""
        use = {"bi_encoder": self.bi_encoder, "reranker": self.reranker}
        return {
            "use": use,
            "kept": dict(self.kept),
            "seconds": dict(self.seconds),
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
    try:
        for name, words in STAGES.items():
            run.do(name, words, on_stage or (lambda words: None))
        return run.finish()
    finally:
        run.close()


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
        self._measurements = self._run.folder / "measurements.jsonl"
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
        begun = time.monotonic()
        stages[name] = json.loads(json.dumps(self._stage(name), default=float))
        seconds = {**self._seconds, name: time.monotonic() - begun}
        self._run.note(stages=stages, seconds=seconds)
        found = f"; {negatives_found(stages[name])}" if name == "negatives" else ""
        tell(f"{words}: done in {seconds[name]:,.0f} s{found}")

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

    @property
    def _seconds(self) -> dict[str, float]:
        return dict(self._run.record().get("seconds", {}))

    def close(self) -> None:
        """Close the file of vectors."""
        if "_vectors" in self.__dict__:
            self._vectors.close()

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
            seconds=self._seconds,
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
        self.close()
        for path in (self._measurements, *self._run.folder.glob(f"{_VECTORS}*")):
            path.unlink(missing_ok=True)
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
        search = self._searching(documents_without(self._documents, unique.queries))
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
        return self._searching([*Collection.open(self._collection).documents()])

    @cached_property
    def _vectors(self) -> ScoreCache:
        return ScoreCache(self._run.folder / _VECTORS, max_items=1, max_bytes=_VECTORS_BYTES)

    def _searching(self, documents: Sequence[Document]) -> Search:
        return Search(documents, self._settings.language, self._vectors)

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

    def _typical_score(self) -> float:
        """Return the median of the old reranker's scores of queries with their own documents, a sample.

        A document is suspected to answer a query, too, where the reranker scores it no lower than the
        query's own and no lower than this. The first alone would refuse what the reranker gets wrong, which
        is what there is to learn: many a query's own document has a low score, and so have those above it.
        """
        collection = Collection.open(self._collection)
        qrels, queries = collection.qrels("train"), collection.queries("train")
        drawn = sorted(queries, key=lambda query_id: draw(self._settings.seed, "typical", query_id))
        texts = {each.id: each.full_text for each in self._search.documents}
        pairs = [
            (queries[query_id], texts[name])
            for query_id in drawn[:_TYPICAL_QUERIES]
            for name in qrels[query_id]
        ]
        # rounded: part of what a resumed run is compared by
        return round(float(np.median(self._old_reranker.score(pairs))), 3)

    def _mine_negatives(self) -> dict[str, Any]:
        collection = Collection.open(self._collection)
        journal = self._negatives.with_name(f"{self._negatives.name}.mining")
        if not journal.exists():
            self._negatives.unlink(missing_ok=True)  # whole, but not noted: the run died between the two
        typical = self._typical_score()
        report = mine(
            collection.queries("train"),
            collection.qrels("train"),
            self._search.documents,
            self._sources(),
            self._negatives,
            filters=Filters(suspect_from=typical),
            teacher=self._old_reranker,
            seed=self._settings.seed,
            progress=self._progress,
        )
        return {
            "queries": report.num_queries,
            "rows": report.num_rows,
            "negatives": report.negatives,
            "short": len(report.short),
            "suspect_from": typical,
            "refused": report.refused,
            "suspected": report.suspected,
        }

    def _recipe(self, part: Part, output: Path, size: Size) -> Recipe:
        return recipe_for(
            part,
            self._settings,
            collection=self._collection,
            negatives=self._negatives,
            output=output,
            steps=size.steps,
            dev_queries=size.dev_queries,
            exits=self._old_reranker.exit_layers if part == "reranker" else (),
            most_tokens=(
                self._old_bi_encoder.max_length
                if part == "bi_encoder"
                else self._old_reranker.settings.max_length
            ),
        )

    def _steps(self) -> dict[str, Any]:
        settings, num_queries = self._settings, int(self._stages["negatives"]["rows"])
        if settings.steps is not None:
            steps: dict[str, Any] = {
                part: min(settings.steps, longest(settings, part, num_queries)) for part in PARTS
            }
            return steps | {"dev_queries": dict.fromkeys(PARTS, DEV_QUERIES)}
        assert settings.budget_minutes is not None  # one of the two is there
        begun = time.monotonic()
        costs, later = tried(self._recipe), self._later_s()
        spent = sum(self._seconds.values()) + time.monotonic() - begun
        left = max(0.0, 60 * settings.budget_minutes - spent - later)
        sizes = {part: sized(settings, part, num_queries, seconds=left, cost=costs[part]) for part in PARTS}
        return {
            **{part: size.steps for part, size in sizes.items()},
            "dev_queries": {part: size.dev_queries for part, size in sizes.items()},
            "costs": {part: asdict(cost) for part, cost in costs.items()},
            "for_trainings_s": left,
            "for_later_s": later,
        }

    def _later_s(self) -> float:
        """Reckon what comes after the trainings: int8 forms, measuring, calibrating.

        The corpus is encoded again by the new bi-encoder; each of three searches reranks all candidates.
        """
        collection = Collection.open(self._collection)
        asked = collection.queries("test")
        sample = dict([*asked.items()][:_TIMED_QUERIES])
        first = self._search.hybrid(self._old_bi_encoder)
        rankings = first.retrieve([*sample.values()], self._settings.depth)
        pairs = [
            (query, hit.document.full_text)
            for query, ranking in zip(sample.values(), rankings, strict=True)
            for hit in ranking
            if hit.document is not None
        ]
        begun = time.monotonic()
        self._old_reranker.score(pairs)
        pair_s = (time.monotonic() - begun) / max(1, len(pairs))
        queries, encoded = len(asked), 1.0
        if self._judged is not None:
            judged = Collection.open(self._judged[0])
            queries += len(judged.queries(self._judged[1]))
            encoded += 2 * sum(1 for _ in judged.documents()) / len(self._documents)
        num_pairs = 3 * self._settings.depth * queries + _INT8_PAIRS
        num_pairs += _CALIBRATED_DEPTH * len(collection.queries("dev"))
        return encoded * self._seconds.get("queries", 0.0) + num_pairs * pair_s

    def _train(self, part: Part) -> dict[str, Any]:
        folder = self._model_folder(part)
        sizes = self._stages["steps"]
        recipe = self._recipe(part, folder, Size(sizes[part], sizes["dev_queries"][part]))
        found = self._whole(folder)
        if found is None:
            try:
                with self._on_training() as report:
                    train(recipe, report=report)
            except TrainingStoppedError as error:
                return {"status": "stopped", "why": str(error), "steps": recipe.schedule.steps}
            found = self._whole(folder)
        assert found is not None  # train leaves it
        return {
            "status": "trained" if found["best_step"] else "nothing better",
            "steps": found["num_steps"],
            "precision": found["precision"],
            "seconds": round(found["training_s"], 1),
            "dev_before": found["baseline"],
            "dev_best": found["best"],
            "best_step": found["best_step"],
        }

    @staticmethod
    def _whole(folder: Path) -> dict[str, Any] | None:
        """Return what a training ended with; None where it has not ended."""
        run = RunFolder(folder)
        record = run.record() if run.has_begun else {}
        return record["result"] if record.get("finished") else None

    def _is_trained(self, part: Part) -> bool:
        return bool(self._stages[part]["status"] == "trained")

    def _quantized(self) -> dict[str, Any]:
        candidates = self._candidates("train", limit=_INT8_QUERIES)
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
            "done": self._measurements,
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
                self._searching([*collection.documents()]),
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
                judged_pairs(self._candidates("dev", depth=_CALIBRATED_DEPTH), qrels),
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

    def _candidates(self, split: str, *, depth: int | None = None, limit: int | None = None) -> Candidates:
        """The candidates of a split's queries, of BM25 and the old bi-encoder; `limit` of them are drawn."""
        queries = Collection.open(self._collection).queries(split)
        drawn = sorted(queries, key=lambda query_id: draw(self._settings.seed, "int8", query_id))[:limit]
        queries = {query_id: text for query_id, text in queries.items() if query_id in {*drawn}}
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
