"""What trainings came to: int8 forms, figures before and after, a calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from crossrank.errors import InputError
from crossrank.evaluation.collections import Collection
from crossrank.models.bi_encoder import BiEncoder
from crossrank.models.quantize import quantize
from crossrank.training.adapt.collection import sources_of
from crossrank.training.adapt.measuring import Judged, Models, measure_adaptation
from crossrank.training.adapt.recipes import PARTS
from crossrank.training.adapt.workspace import CALIBRATED_DEPTH, Workspace
from crossrank.training.calibration import calibrate, judged_pairs, save_calibration

__all__ = ["calibrate_reranker", "make_int8", "measure"]

_INT8_QUERIES = 1000
"""Whose candidates an int8 form is calibrated and checked with."""


def make_int8(work: Workspace) -> dict[str, Any]:
    """Make int8 forms of the models that were trained."""
    candidates = work.candidates("train", limit=_INT8_QUERIES)
    found: dict[str, Any] = {}
    for part in PARTS:
        if not work.is_trained(part):
            continue
        try:
            report = quantize(
                work.model_folder(part),
                work.int8_folder(part),
                candidates,
                name="pseudo-queries",
                seed=work.settings.seed,
                overwrite=True,
                threads=work.threads,
                progress=work.progress,
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


def measure(work: Workspace, judged: tuple[Path, str] | None) -> list[dict[str, Any]]:
    """Measure before and after; see `measuring`."""
    settings = work.settings
    new = {part: work.new_folder(part) if work.is_trained(part) else None for part in PARTS}
    models = Models(
        work.old_bi_encoder,
        work.old_reranker,
        BiEncoder(new["bi_encoder"], threads=work.threads) if new["bi_encoder"] else None,
        work.open_reranker(new["reranker"]) if new["reranker"] else None,
    )
    options: dict[str, Any] = {
        "measure": settings.measure,
        "depth": settings.depth,
        "significance": settings.significance,
        "done": work.measurements,
        "progress": work.progress,
    }
    collection = Collection.open(work.collection)
    held_out = Judged(
        "pseudo-queries of documents left out",
        work.search,
        collection.queries("test"),
        collection.qrels("test"),
        sources_of(work.collection),
    )
    measured = [measure_adaptation(held_out, models, **options)]
    if judged is not None:
        folder, split = judged
        collection = Collection.open(folder)
        asked = Judged(
            f"judgements of {collection.name} ({split})",
            work.searching([*collection.documents()]),
            collection.queries(split),
            collection.qrels(split),
            {},
        )
        measured.append(measure_adaptation(asked, models, **options, kept=measured[0]["kept"]))
    return measured


def calibrate_reranker(work: Workspace) -> dict[str, Any]:
    """Calibrate the reranker, if the new one is kept."""
    if not work.stages["measured"][0]["kept"]["reranker"]:
        return {"done": False, "why": "the old reranker stays"}
    folder = work.new_folder("reranker")
    qrels = Collection.open(work.collection).qrels("dev")
    try:
        report = calibrate(
            work.open_reranker(folder),
            judged_pairs(work.candidates("dev", depth=CALIBRATED_DEPTH), qrels),
            holds_for=f"pseudo-queries, the first {CALIBRATED_DEPTH} documents of BM25 and bi-encoder",
            seed=work.settings.seed,
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
