"""Several retrievers as one."""

from __future__ import annotations

from collections.abc import Sequence

from crossrank.checks import as_list, as_strings, check_count
from crossrank.errors import InputError
from crossrank.retrieval.fusion import RRF, Fusion
from crossrank.retrieval.retriever import Filter, Retriever, as_condition
from crossrank.store.filters import FilterLike
from crossrank.types import Ranking

__all__ = ["Hybrid"]


class Hybrid:
    """Asks several retrievers and fuses their rankings.

    Each retriever is asked for `depth` hits, or `top_k` where that is more; so up to `depth` the
    first hits do not depend on `top_k`.

    Args:
        retrievers: at least one, with different names, over the same documents.
        fusion: a formula of `crossrank.retrieval.fusion`; "rrf" is `RRF()`.
        depth: how many hits of each retriever are fused, at least 1.
        name: of this stage in hits.

    Raises:
        InputError: no retriever, two of the same name, an unknown fusion, or depth below 1.

    Example:
        >>> from crossrank.retrieval.bm25 import BM25
        >>> texts = ["a red fox", "the foxes of Rome"]
        >>> hybrid = Hybrid([BM25(texts), BM25(texts, language=None, name="exact")])
        >>> hybrid.retrieve(["foxes"])[0][0].stage_scores.keys()
        dict_keys(['bm25', 'exact', 'hybrid'])
    """

    def __init__(
        self,
        retrievers: Sequence[Retriever],
        fusion: Fusion | str = RRF(),  # noqa: B008 (immutable)
        depth: int = 100,
        *,
        name: str = "hybrid",
    ) -> None:
        self.retrievers = tuple(as_list(retrievers, "retrievers"))
        for each in self.retrievers:
            if not isinstance(each, Retriever):
                raise InputError(f"a retriever has a name and a method retrieve, {each!r} has not")
        names = [retriever.name for retriever in self.retrievers]
        if not names or len({*names, name}) != len(names) + 1:
            raise InputError(
                "a hybrid needs one retriever or more, all with different names and none "
                f"{name!r}, not {names}"
            )
        if fusion == "rrf":
            fusion = RRF()
        if not callable(fusion):
            raise InputError(
                f'fusion must be "rrf" or a formula such as WeightedSum(...), not {fusion!r}; for tuned '
                "weights, give what crossrank.retrieval.fusion.tune returns"
            )
        check_count(depth, "depth")
        self.name = name
        self.fusion = fusion
        self.depth = depth

    def retrieve(
        self, queries: Sequence[str], top_k: int = 100, filter: Filter | FilterLike | None = None
    ) -> list[Ranking]:
        """Return one fused ranking per query, in the order of the queries.

        Args:
            queries: the texts to search for.
            top_k: the most hits a ranking may have, at least 1.
            filter: only documents that it matches are found; a dict or a string (see
                `crossrank.store.filters`), or an object with `matches`. It is
                passed on to each retriever.

        Raises:
            InputError: queries that are not a list of strings, top_k below 1, or a filter that cannot be
                read.
        """
        texts = as_strings(queries, "queries")
        check_count(top_k)
        condition = None if filter is None else as_condition(filter)
        names = [retriever.name for retriever in self.retrievers]
        found = [
            retriever.retrieve(texts, top_k=max(self.depth, top_k), filter=condition)
            for retriever in self.retrievers
        ]
        return [
            self.fusion(rankings, top_k=top_k, names=names, stage=self.name)
            for rankings in zip(*found, strict=True)
        ]
