"""DuoT5: a T5 that reads a query and two documents and says which is the more relevant one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crossrank.cache import ScoreCache, score_key
from crossrank.checks import as_list, check_count, check_text
from crossrank.errors import InputError, ModelOutputError
from crossrank.models.calibration import sigmoid
from crossrank.models.declaration import read_declaration
from crossrank.models.hub import resolve
from crossrank.models.pair_scorer import encode_queries
from crossrank.models.pair_settings import LongQuery, PairSettings
from crossrank.models.pairwise import AllPairs, ComparisonPlan
from crossrank.models.requests import RankVerbs, Requests, check_query
from crossrank.models.reranker import Reranker
from crossrank.models.t5_families import DUO_PROMPT
from crossrank.models.t5_opening import (
    answer_ids,
    check_kind,
    find_family,
    model_name,
    open_step,
    stated_prompt,
)
from crossrank.runtime import batching
from crossrank.runtime.backends import Backend, Precision
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.encoders.t5 import TokenScore
from crossrank.runtime.prompts import PromptTokenizer
from crossrank.runtime.settings import settings_digest
from crossrank.runtime.windows import DEFAULT_OVERLAP, MEAN_TOP_K
from crossrank.types import Ranking

__all__ = ["DuoT5"]

_FIELDS = ("query", "document0", "document1")
_MOST_COMPARISONS = 4096  # whose tokens are held at a time


class DuoT5(RankVerbs):
    """Compares the best few documents with one another, and orders them by what the comparisons add up to.

    The preference for (i, j) is the probability of "true", if the model says that or "false", with document i
    shown first. Which pairs are compared, and how they add up, is the plan's. Each document may take half of
    what the query leaves of an input, whatever it is compared with, so it is read the same in all
    comparisons, and the words of the prompt are always read.

    A hit's score is what the comparisons add up to (see `crossrank.models.pairwise`), with how many of a
    compared document's tokens were not read (`truncated_tokens`). A document beyond `depth` scores 1 below
    the one before it. Scores of the pointwise reranker are in `stage_scores`. The comparisons of many queries
    share batches.

    `rank` and `rank_many` raise InputError for more model calls than `max_calls`, QueryTooLongError for a
    query longer than `max_query_length`, and ModelOutputError for NaN or infinity from the model.

    Safe to use from many threads at once, if the pointwise reranker is.

    Args:
        model: a local folder, or a hub name.
        pointwise: a reranker that orders all documents before, such as a MonoT5; None takes them in the order
            they come in, as from a search.
        depth: how many of the best are compared. The others follow as they were.
        plan: see `crossrank.models.pairwise`. Default: all pairs in both orders, added up as "sym-sum", which
            are depth × (depth - 1) model calls.
        max_calls: the most model calls one ranking may take; None sets no limit. A plan that could take more
            is an error, before the first call.
        revision: commit, tag or branch; for hub models only.
        tokens: see `MonoT5`.
        family: see `MonoT5`.
        prompt: words around "{query}", "{document0}" and "{document1}". Default: what the folder states, or
            "Query: {query} Document0: {document0} Document1: {document1} Relevant:".
        precision: see `MonoT5`.
        backend: see `MonoT5`.
        device: see `MonoT5`.
        max_length: tokens of an input, prompt included. Default: what the configs allow, 512 for T5.
        max_query_length: tokens a query may take of them. Default: half of max_length.
        long_query: what to do with a longer query: "error", or "truncate" to cut its end.
        token_budget: tokens of one forward, padding included; None takes what `crossrank tune` found to be
            the fastest here, else 1024.
        threads: batches that run at a time, 1 to 1024. Default: the cores this process may use.
        cache: comparisons made before; share one among models and processes.
        progress: a progress bar for long calls, whose total is the number of model calls; None shows one on a
            terminal.

    Attributes:
        name: of the model; the stage of its hits.
        settings: how inputs are made, defaults filled in.
        prompt: words around the texts.
        token_ids: of (false, true).

    Raises:
        CheckpointNotFoundError: there is no such model.
        CheckpointError: it is no T5 with a decoder, or says it is another kind of reranker.
        InputError: an option that cannot be used with this model.
        MissingExtraError: torch is asked for and not installed.

    Source: Pradeep et al. 2021, "The Expando-Mono-Duo Design Pattern for Text Ranking with Pretrained
    Sequence-to-Sequence Models", arXiv:2101.05667; parity with transformers' forward pass, |Δ| < 1e-5.
    """

    def __init__(
        self,
        model: str | Path,
        pointwise: Reranker | None = None,
        *,
        depth: int = 50,
        plan: ComparisonPlan = AllPairs(),  # noqa: B008 (immutable)
        max_calls: int | None = None,
        revision: str | None = None,
        tokens: Sequence[str | int] | None = None,
        family: str | None = None,
        prompt: str | None = None,
        precision: Precision = "auto",
        backend: Backend = "auto",
        device: str | None = None,
        max_length: int | None = None,
        max_query_length: int | None = None,
        long_query: LongQuery = "error",
        token_budget: int | None = None,
        threads: int | None = None,
        cache: ScoreCache | None = None,
        progress: bool | None = None,
    ) -> None:
        from crossrank.composition.tournament import Tournament  # a look down the layers

        if token_budget is not None:
            check_count(token_budget, "token_budget")
        if cache is not None and not isinstance(cache, ScoreCache):
            raise InputError(f"cache must be a ScoreCache, not {type(cache).__name__}: ScoreCache(path)")
        folder = resolve(model, kind="cross-encoder", revision=revision)
        checkpoint = Checkpoint.open(folder)
        declared = read_declaration(folder)
        check_kind(checkpoint, declared, "duo_t5")
        self.name = model_name(model, folder)
        chosen = find_family(self.name, checkpoint, family)
        self.prompt = prompt or stated_prompt(declared) or DUO_PROMPT
        self._tokenizer = PromptTokenizer(checkpoint, self.prompt, _FIELDS)
        self.token_ids = answer_ids(self._tokenizer, checkpoint, tokens, declared, chosen)
        self.settings = PairSettings.for_model(
            checkpoint,
            self._tokenizer,
            max_length=max_length,
            max_query_length=max_query_length,
            long_query=long_query,
            long_documents="truncate",
            window_tokens=None,
            window_overlap=DEFAULT_OVERLAP,
            top_windows=MEAN_TOP_K,
            prompt="",
        )
        if self._share(self.settings.max_query_length) < 1:
            raise InputError(
                f"max_query_length is {self.settings.max_query_length}; with max_length "
                f"{self.settings.max_length} that leaves no room for two documents"
            )
        self._engine = open_step(
            checkpoint,
            self.token_score,
            precision=precision,
            backend=backend,
            device=device,
            threads=threads,
            identity=self.prompt,
            may_change_precision=True,
        )
        self._token_budget = self._engine.batch_tokens if token_budget is None else token_budget
        self._cache = cache
        self._tournament = Tournament(
            self, pointwise, depth=depth, plan=plan, max_calls=max_calls, progress=progress
        )

    @property
    def token_score(self) -> TokenScore:
        """What a preference is read off: the logit of "true" less that of "false"."""
        false, true = self.token_ids
        return TokenScore(true, against=false)

    @property
    def precision(self) -> str:
        """What the linear layers compute in: "float32", "int8" or "bf16"."""
        return self._engine.precision

    @property
    def depth(self) -> int:
        """How many of the best documents are compared."""
        return self._tournament.depth

    @property
    def plan(self) -> ComparisonPlan:
        """Which pairs are compared."""
        return self._tournament.plan

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that decides a preference: model, tokenizer, precision, settings."""
        return settings_digest({"engine": self._engine.fingerprint, **asdict(self.settings)})

    def calls(self, count: int) -> int:
        """Return the most model calls that ranking `count` documents can take."""
        return self._tournament.calls(count)

    def prefer(self, comparisons: Sequence[tuple[str, str, str]]) -> npt.NDArray[np.float64]:
        """Compare documents.

        Args:
            comparisons: (query, first document's text, second document's text) each.

        Returns:
            float64 (n,): the probability that the first document is the more relevant one.

        Raises:
            InputError: something that is no comparison of texts; names its position.
            QueryTooLongError: a query longer than `max_query_length`.
            ModelOutputError: NaN or infinity from the model.
        """
        return sigmoid(self.margins(comparisons))

    def margins(self, comparisons: Sequence[tuple[str, str, str]]) -> npt.NDArray[np.float32]:
        """Compare documents, without making probabilities of it, which saturate.

        Args:
            comparisons: as in `prefer`.

        Returns:
            float32 (n,): the logit of "true" less that of "false", the log-odds of what `prefer` returns.

        Raises:
            InputError: as `prefer`.
            QueryTooLongError: as `prefer`.
            ModelOutputError: as `prefer`.
        """
        checked = _comparisons(comparisons)
        queries = encode_queries(
            [query for query, _, _ in checked],
            self._tokenizer,
            self.settings,
            name="the query of comparisons[{}]".format,
        )
        unique = list(dict.fromkeys(checked))
        margins: dict[tuple[str, str, str], float] = {}
        for start in range(0, len(unique), _MOST_COMPARISONS):
            block = unique[start : start + _MOST_COMPARISONS]
            margins.update(zip(block, self._margins(block, queries).tolist(), strict=True))
        return np.array([margins[each] for each in checked], dtype=np.float32)

    def _rank(self, requests: Requests, top_k: int | None) -> list[Ranking]:
        # First, so that an error names the query before anything is computed.
        queries = encode_queries(requests.queries, self._tokenizer, self.settings, name=requests.name_query)
        rankings = self._tournament.rank_many(requests.queries, requests.documents, top_k)
        return [
            replace(ranking, hits=self._with_cuts(ranking, texts, len(queries[ranking.query])))
            for ranking, texts in zip(rankings, requests.texts, strict=True)
        ]

    def _with_cuts(self, ranking: Ranking, texts: Sequence[str], num_query_tokens: int) -> Any:
        """The hits, those that were compared with how much of them was not read."""
        compared = ranking.hits[: self.depth]
        lengths = [
            len(each.ids) for each in self._tokenizer.encode([texts[hit.index or 0] for hit in compared])
        ]
        share = self._share(num_query_tokens)
        return (
            tuple(
                replace(hit, truncated_tokens=max(0, length - share))
                for hit, length in zip(compared, lengths, strict=True)
            )
            + ranking.hits[self.depth :]
        )

    def _share(self, num_query_tokens: int) -> int:
        """Tokens that each document may take."""
        return (self.settings.max_length - self._tokenizer.num_special_tokens - num_query_tokens) // 2

    def _margins(
        self, block: list[tuple[str, str, str]], queries: dict[str, npt.NDArray[np.int32]]
    ) -> npt.NDArray[np.float32]:
        """Logits of "true" less those of "false", float32 (comparisons,)."""
        if self._cache is None:
            return self._compute(block, queries)
        keys = [score_key(self.fingerprint, query, json.dumps(documents)) for query, *documents in block]
        rows = self._cache.get_or_compute(
            keys, lambda missing: list(self._compute([block[i] for i in missing], queries)[:, None])
        )
        return np.concatenate(rows) if rows else np.empty(0, np.float32)

    def _compute(
        self, block: list[tuple[str, str, str]], queries: dict[str, npt.NDArray[np.int32]]
    ) -> npt.NDArray[np.float32]:
        documents = list(dict.fromkeys(text for _, *texts in block for text in texts))
        encoded = dict(zip(documents, self._tokenizer.encode(documents), strict=True))
        rows = []
        for query, first, second in block:
            share = self._share(len(queries[query]))
            rows.append((queries[query], encoded[first].ids[:share], encoded[second].ids[:share]))
        lengths = [sum(map(len, row)) + self._tokenizer.num_special_tokens for row in rows]
        margins = np.empty(len(rows), dtype=np.float32)
        engine = self._engine
        batches = batching.plan(lengths, self._token_budget, None, engine.threads, grouping=engine.grouping)
        outputs = self._engine.run_all(
            self._tokenizer.inputs([rows[i] for i in batch.rows.tolist()], batch.length) for batch in batches
        )
        for batch, output in zip(batches, outputs, strict=True):
            margins[batch.rows] = output[:, 0]
        if not np.isfinite(margins).all():
            query, first, second = block[int(np.flatnonzero(~np.isfinite(margins))[0])]
            raise ModelOutputError(
                f"the model gave NaN or infinity for {first[:60]!r} against {second[:60]!r} (query "
                f"{query[:60]!r}). Its weights may be damaged, or overflow in this precision: fetch the "
                "model again, or try precision='float32'"
            )
        return margins

    def __repr__(self) -> str:
        return f"DuoT5({self.name!r}, precision={self.precision!r}, depth={self.depth}, plan={self.plan!r})"


def _comparisons(comparisons: Any) -> list[tuple[str, str, str]]:
    checked = []
    for position, each in enumerate(as_list(comparisons, "comparisons")):
        if not isinstance(each, (tuple, list)) or len(each) != 3:
            raise InputError(
                f"comparisons[{position}] must be (query, first document, second document), not {each!r:.60}"
            )
        check_query(each[0], f"the query of comparisons[{position}]")
        for text in each[1:]:
            check_text(text, f"a document of comparisons[{position}]")
        checked.append((each[0], each[1], each[2]))
    return checked
