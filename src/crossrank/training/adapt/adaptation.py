"""A corpus and nothing else to a reranker and a bi-encoder that know it: `adapt`.

    OUTPUT/                 at the end: report.md, adaptation.json, and the models that are better:
                            bi_encoder/, reranker/
    OUTPUT/training/        run.json (what the run is made with, and the result of each stage that is done),
                            collection/ (the pseudo-queries in BEIR form), negatives.jsonl (with the old
                            reranker's scores), taught.jsonl (with the new one's, if it learnt anything), and
                            of a generator generated.json; until the end also vectors of texts, scores,
                            measurements, and the models in training

Stages follow one another, and each is done once: a run that was killed goes on with the stage it was in, and
encoding, mining, training and measuring within it. Importing this module needs the extra `train`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crossrank.errors import InputError
from crossrank.evaluation.collections import Collection
from crossrank.retrieval.retriever import as_documents
from crossrank.training.adapt.generated import Generator
from crossrank.training.adapt.lessons import draw_queries, mine_negatives, score_lists
from crossrank.training.adapt.outcomes import calibrate_reranker, make_int8, measure
from crossrank.training.adapt.recipes import PARTS
from crossrank.training.adapt.report import negatives_found, write_report
from crossrank.training.adapt.settings import AdaptationSettings
from crossrank.training.adapt.trainings import OnTraining, size_trainings, train_part
from crossrank.training.adapt.workspace import Workspace
from crossrank.training.corpus import as_corpus
from crossrank.training.guards import Progress
from crossrank.training.run_folder import RunFolder
from crossrank.types import Document
from crossrank.whole_files import write_whole

__all__ = ["STAGES", "AdaptationReport", "adapt"]

STAGES = {
    "queries": "making pseudo-queries",
    "negatives": "mining negatives",
    "steps": "sizing the trainings",
    "reranker": "training the reranker",
    "taught": "scoring the lists by the new reranker",
    "bi_encoder": "training the bi-encoder",
    "quantized": "making int8 forms",
    "measured": "measuring before and after",
    "calibrated": "calibrating",
}
"""What is done, in this order."""

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
    if generator is not None and generated is not None:
        raise InputError("give a generator or generated queries, not both")
    if "generated" not in settings.sources and (generator is not None or generated is not None):
        raise InputError("sources are without 'generated', so a generator's queries would not be used")
    run = _Adaptation(
        Workspace(as_documents(documents), Path(output), settings, threads=threads, progress=progress),
        generator=generator,
        generated=generated,
        judged=None if judged is None else (Path(judged[0]), judged[1]),
        on_training=on_training,
    )
    run.begin(overwrite=overwrite)
    try:
        for name, words in STAGES.items():
            run.do(name, words, on_stage or (lambda words: None))
        return run.finish()
    finally:
        run.close()


class _Adaptation:
    """One run: its arguments, and its stages one after another."""

    def __init__(
        self,
        work: Workspace,
        *,
        generator: Generator | None,
        generated: Mapping[str, Sequence[str]] | None,
        judged: tuple[Path, str] | None,
        on_training: OnTraining,
    ) -> None:
        self._work = work
        self._generator, self._generated = generator, generated
        self._judged, self._on_training = judged, on_training

    def begin(self, *, overwrite: bool) -> None:
        """Start, or go on with what is there."""
        judged = None
        if self._judged is not None:
            Collection.open(self._judged[0]).qrels(self._judged[1])  # what cannot be read is said now
            judged = [str(self._judged[0]), self._judged[1]]
        generator = self._generator
        made_with = {
            "documents": as_corpus(self._work.documents).fingerprint,
            "settings": asdict(self._work.settings),
            "models": [self._work.old_bi_encoder.fingerprint, self._work.old_reranker.fingerprint],
            "generator": getattr(generator, "__qualname__", type(generator).__name__) if generator else None,
            "generated": _digest(self._generated) if self._generated is not None else None,
            "judged": judged,
        }
        self._work.run.begin(made_with, overwrite=overwrite)

    def do(self, name: str, words: str, tell: Callable[[str], None]) -> None:
        """Do a stage, unless it is done."""
        stages = self._work.stages
        if name in stages:
            tell(f"{words}: done before")
            return
        tell(words)
        begun = time.monotonic()
        stages[name] = json.loads(json.dumps(self._stage(name), default=float))
        seconds = {**self._work.seconds, name: time.monotonic() - begun}
        self._work.run.note(stages=stages, seconds=seconds)
        found = f"; {negatives_found(stages[name])}" if name == "negatives" else ""
        tell(f"{words}: done in {seconds[name]:,.0f} s{found}")

    def _stage(self, name: str) -> Any:
        work = self._work
        # Each gives plain values, and nothing but files and earlier stages' results is read.
        stages: dict[str, Callable[[], Any]] = {
            "queries": lambda: draw_queries(work, self._generator, self._generated),
            "negatives": lambda: mine_negatives(work),
            "steps": lambda: size_trainings(work, self._judged),
            "reranker": lambda: train_part(work, "reranker", self._on_training),
            "taught": lambda: score_lists(work),
            "bi_encoder": lambda: train_part(work, "bi_encoder", self._on_training),
            "quantized": lambda: make_int8(work),
            "measured": lambda: measure(work, self._judged),
            "calibrated": lambda: calibrate_reranker(work),
        }
        return stages[name]()

    def close(self) -> None:
        """Close what is open in the workspace."""
        self._work.close()

    def finish(self) -> AdaptationReport:
        """Write the report, move what is kept to its place, and remove what was only needed on the way."""
        work = self._work
        stages, settings = work.stages, work.settings
        kept = stages["measured"][0]["kept"]
        exported = work.folder / "export"
        shutil.rmtree(exported, ignore_errors=True)
        exported.mkdir()
        used = {"bi_encoder": settings.bi_encoder, "reranker": settings.reranker}
        for part in PARTS:
            if kept[part]:
                # a trained folder has its run in it, which is no part of the model
                shutil.copytree(
                    work.new_folder(part), exported / part, ignore=shutil.ignore_patterns("training")
                )
                used[part] = str(work.run.output / part)
        result = AdaptationReport(
            output=work.run.output,
            bi_encoder=used["bi_encoder"],
            reranker=used["reranker"],
            kept=kept,
            seconds=work.seconds,
            settings=settings,
            stages=stages,
            report=work.run.output / "report.md",
        )
        text = json.dumps(result.as_dict(), indent=2, ensure_ascii=False) + "\n"
        write_whole(exported / "adaptation.json", lambda path: path.write_text(text, encoding="utf-8"))
        metrics: dict[str, list[dict[str, Any]]] = {
            part: RunFolder(work.model_folder(part)).metrics() for part in PARTS
        }
        write_report(exported, result.as_dict(), metrics, num_documents=len(work.documents))
        work.run.finish(exported)
        work.clear()
        return result


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=list).encode()).hexdigest()
