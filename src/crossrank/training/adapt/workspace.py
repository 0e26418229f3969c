"""What the stages of an adaptation work with: its folder, the old models, searches, results so far."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from crossrank.cache import ScoreCache
from crossrank.errors import InputError
from crossrank.evaluation.collections import Collection
from crossrank.models.bi_encoder import BiEncoder
from crossrank.models.cross_encoder import CrossEncoder
from crossrank.models.quantize import Candidates
from crossrank.training.adapt.measuring import Search
from crossrank.training.adapt.recipes import PARTS, Part
from crossrank.training.adapt.settings import AdaptationSettings
from crossrank.training.examples import draw
from crossrank.training.run_folder import RunFolder
from crossrank.types import Document

__all__ = ["CALIBRATED_DEPTH", "Workspace"]

CALIBRATED_DEPTH = 20
"""Candidates a query that a reranker is calibrated on."""

_VECTORS = "vectors.sqlite3"
_SCORES = "scores.sqlite3"
_MOST_BYTES = 16 * 2**30  # no limit but the disk's: what is in them is in memory, too


class Workspace:
    """Of one run.

    Args:
        documents: the corpus.
        output: folder of the models and the report.
        settings: of the adaptation.
        threads: of models that are not being trained.
        progress: of long calls.

    Attributes:
        run: the folder, and what is noted in it.
        folder: what is made on the way.
        collection: the folder of the pseudo-queries in BEIR form.
        negatives: the file of mined negatives, with the old reranker's scores.
        taught: the same with the new one's.
        measurements: the file of systems that are measured already.
        old_bi_encoder: to begin with.
        old_reranker: to begin with.

    Raises:
        InputError: no documents, or a reranker with several scores a pair.
    """

    def __init__(
        self,
        documents: Sequence[Document],
        output: Path,
        settings: AdaptationSettings,
        *,
        threads: int | None,
        progress: bool | None,
    ) -> None:
        if not documents:
            raise InputError("there are no documents to adapt to")
        self.documents, self.settings = documents, settings
        self.threads, self.progress = threads, progress
        self.run = RunFolder(output)
        self.folder = self.run.folder
        self.collection = self.folder / "collection"
        self.negatives = self.folder / "negatives.jsonl"
        self.taught = self.folder / "taught.jsonl"
        self.measurements = self.folder / "measurements.jsonl"
        self.old_bi_encoder = BiEncoder(settings.bi_encoder, threads=threads, progress=progress)
        self.old_reranker = self.open_reranker(settings.reranker)
        if self.old_reranker.label is None:
            raise InputError(f"{settings.reranker} gives several scores a pair; give a reranker with one")

    @property
    def stages(self) -> dict[str, Any]:
        """Name of each stage that is done -> its result."""
        return dict(self.run.record().get("stages", {}))

    @property
    def seconds(self) -> dict[str, float]:
        """The same -> what it took."""
        return dict(self.run.record().get("seconds", {}))

    @cached_property
    def search(self) -> Search:
        """Over the documents of the collection; needed once it is there."""
        return self.searching([*Collection.open(self.collection).documents()])

    @cached_property
    def vectors(self) -> ScoreCache:
        """Where vectors of texts are kept."""
        return ScoreCache(self.folder / _VECTORS, max_items=1, max_bytes=_MOST_BYTES)

    @cached_property
    def scores(self) -> ScoreCache:
        """Where the new reranker's scores of the mined lists are kept."""
        return ScoreCache(self.folder / _SCORES, max_items=1, max_bytes=_MOST_BYTES)

    def searching(self, documents: Sequence[Document]) -> Search:
        """Return first stages over other documents."""
        return Search(documents, self.settings.language, self.vectors)

    def candidates(self, split: str, *, depth: int | None = None, limit: int | None = None) -> Candidates:
        """The candidates of a split's queries, of BM25 and the old bi-encoder; `limit` of them are drawn."""
        queries = Collection.open(self.collection).queries(split)
        drawn = sorted(queries, key=lambda query_id: draw(self.settings.seed, "int8", query_id))[:limit]
        queries = {query_id: text for query_id, text in queries.items() if query_id in {*drawn}}
        first = self.search.hybrid(self.old_bi_encoder)
        rankings = first.retrieve([*queries.values()], depth or self.settings.depth)
        return {
            query_id: (text, [hit.document for hit in ranking if hit.document is not None])
            for (query_id, text), ranking in zip(queries.items(), rankings, strict=True)
        }

    def is_trained(self, part: Part) -> bool:
        """Whether training gave a model that is not its base."""
        return bool(self.stages[part]["status"] == "trained")

    def open_reranker(self, name: str | Path, *, cache: ScoreCache | None = None) -> CrossEncoder:
        """Open a reranker as all stages do: too long queries are cut."""
        return CrossEncoder(
            name, long_query="truncate", cache=cache, threads=self.threads, progress=self.progress
        )

    def model_folder(self, part: Part) -> Path:
        """Where a model is trained."""
        return self.folder / part

    def int8_folder(self, part: Part) -> Path:
        """Where its int8 form is made."""
        return self.folder / f"{part}_int8"

    def new_folder(self, part: Part) -> Path:
        """The folder with an int8 form, or where that failed the gate, the one that was trained."""
        passed = self.stages["quantized"].get(part, {}).get("passed")
        return self.int8_folder(part) if passed else self.model_folder(part)

    def clear(self) -> None:
        """Remove what was only needed on the way."""
        self.close()
        kept = (self.folder.glob(f"{name}*") for name in (_VECTORS, _SCORES))
        for path in (self.measurements, *itertools.chain(*kept)):
            path.unlink(missing_ok=True)
        for part in PARTS:
            shutil.rmtree(self.model_folder(part), ignore_errors=True)
            shutil.rmtree(self.int8_folder(part), ignore_errors=True)

    def close(self) -> None:
        """Close the files of vectors and of scores."""
        for name in ("vectors", "scores"):
            if name in self.__dict__:
                getattr(self, name).close()
