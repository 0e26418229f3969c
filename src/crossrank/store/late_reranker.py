"""A reranker whose document vectors come from an index: what is left at query time is the query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from crossrank.models.late_interaction import DocumentVectors, LateInteraction, Wanted
from crossrank.models.maxsim import Aligned, TokenVectors
from crossrank.models.requests import RankVerbs, Requests
from crossrank.models.reranker import Reranker
from crossrank.store.tokens import check_same_tokens
from crossrank.types import Pair, Ranking

if TYPE_CHECKING:
    from crossrank.progress import Track
    from crossrank.store.lance import Index

__all__ = ["StoredLateInteraction", "from_index"]

AnyReranker = TypeVar("AnyReranker", bound=Reranker)


def from_index(index: Index, reranker: AnyReranker) -> AnyReranker | StoredLateInteraction:
    """Return a reranker that takes document vectors from an index, where the index has those of its model.

    Args:
        index: opened with any models, or none.
        reranker: one that is no late-interaction model is returned as it is.
    """
    stored = index.tokens
    if not isinstance(reranker, LateInteraction) or stored is None:
        return reranker
    if stored.model.fingerprint != reranker.fingerprint:
        return reranker
    return StoredLateInteraction(index, reranker)


class StoredLateInteraction(RankVerbs):
    """Late interaction over the token vectors that an index keeps.

    A document counts as stored if the index has its id and the very text; such documents are not encoded
    again. Others are, and then go through the index's codec, so that a document's score does not depend on
    whether it is stored. Hits and errors are those of `LateInteraction`. Safe to use from many threads at
    once.

    Args:
        index: its documents' vectors are used.
        model: the late-interaction model it was made with; None takes the one it was opened with.

    Raises:
        IndexMismatchError: the index has no token vectors or those of another model, or was opened without
            the model.

    Example:
        >>> index = Index.open("my-index", late_interaction=model)  # doctest: +SKIP
        >>> searcher = Searcher(index, StoredLateInteraction(index))  # doctest: +SKIP
    """

    def __init__(self, index: Index, model: LateInteraction | None = None) -> None:
        self._stored = index.stored_tokens()
        if model is None:
            model = index.needed_late_interaction("there is nothing to encode queries with")
        check_same_tokens(index.path, self._stored.column, model)
        self._model = model

    @property
    def name(self) -> str:
        """What hits carry as their stage: the model's name."""
        return self._model.name

    def score(self, pairs: Sequence[Pair | tuple[str, str]]) -> npt.NDArray[np.float32]:
        """Score pairs; see `LateInteraction.score`.

        A text alone has no id to be looked up by: it is encoded, and goes through the index's codec, which
        gives it the score that the stored document has.

        Args:
            pairs: (query, document) each.
        """
        return self._model.score_with(pairs, self._vectors)

    def alignments(self, query: str, document: str) -> Aligned:
        """Return the similarities of a pair's tokens; see `LateInteraction.alignments`.

        Args:
            query: as in `rank`.
            document: text, encoded as in `score`.
        """
        return self._model.alignments_with(query, document, self._vectors)

    def _rank(self, requests: Requests, top_k: int | None) -> list[Ranking]:
        return self._model.rank_with(requests, top_k, self._vectors)

    def _vectors(self, wanted: Sequence[Wanted], tracked: Track) -> DocumentVectors:
        ids = [each.document_id for each in wanted if each.document_id is not None]
        stored = self._stored.of(ids) if ids else {}
        vectors: dict[int, npt.NDArray[np.float32]] = {}
        cut = np.zeros(len(wanted), dtype=np.int32)
        codec = self._stored.codec
        missing = []
        for place, each in enumerate(wanted):
            found = None if each.document_id is None else stored.get(each.document_id)
            if found is None or found[0] != each.text:
                missing.append(place)
                continue
            _, codes, cut[place] = found
            vectors[place] = codec.decode(codes)
            tracked.advance()
        if missing:
            made = self._model.encode_wanted([wanted[place] for place in missing], tracked)
            for place, each_made, num_cut in zip(missing, made.tokens.split(), made.cut, strict=True):
                vectors[place] = codec.decode(codec.encode(each_made))
                cut[place] = num_cut
        in_order = [vectors[place] for place in range(len(wanted))]
        return DocumentVectors(TokenVectors.of(in_order, self._model.dimensions), cut)
