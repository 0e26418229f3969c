"""Pointwise reranking: one question about one document, and the model's certainty of the answer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from crossrank.checks import check_count
from crossrank.errors import InputError
from crossrank.models.calibration import sigmoid
from crossrank.models.llm.cleaning import one_line
from crossrank.models.llm.local import CausalLM, Tail
from crossrank.models.llm.model import LanguageModel
from crossrank.models.llm.pointwise_templates import PairTemplate, pair_template
from crossrank.models.llm.prompts import yes_no_prompt
from crossrank.models.llm.rankings import ranking_of, shown
from crossrank.models.llm.reranker import DEFAULT_DOCUMENT_WORDS
from crossrank.models.pairwise import check_calls
from crossrank.models.requests import RankVerbs, Requests, check_pairs
from crossrank.progress import track
from crossrank.types import Pair, Ranking

__all__ = ["NO_ANSWER", "PointwiseLLM", "PointwiseReranker", "Scores"]

NO_ANSWER = -100.0
"""Score of a pair about which the model says neither yes nor no: below all others."""

_logger = logging.getLogger(__name__)


class Scores(NamedTuple):
    """Scores of one query's documents, with what a ranking says about them."""

    values: npt.NDArray[np.float32]
    truncated: list[int]
    notes: tuple[str, ...] = ()

    @classmethod
    def cut(cls, values: npt.NDArray[np.float32], truncated: list[int]) -> Scores:
        """Scores of documents of which so many tokens were not read, with a note on it."""
        if not any(truncated):
            return cls(values, truncated)
        note = (
            f"{np.count_nonzero(truncated)} of {len(truncated)} documents were cut ({sum(truncated):,} "
            "tokens not read)"
        )
        return cls(values, truncated, (note,))


class PointwiseReranker(RankVerbs):
    """The verbs of a pointwise reranker; subclasses score documents (`_score_queries`).

    A hit has the score, how many tokens of the document were not read, and the document's position as
    `index`; equal scores keep the order that documents came in. `notes` say how many documents were cut, and
    how many got no answer; `status` is "degraded" where none got one.

    `rank` and `rank_many` raise InputError for more documents than `max_calls`, and what `score` raises.
    """

    asked_once = True

    def __init__(
        self, model: LanguageModel, *, name: str, max_calls: int | None, progress: bool | None
    ) -> None:
        if max_calls is not None:
            check_count(max_calls, "max_calls")
        self.model = model
        self.name = name
        self.max_calls = max_calls
        self._progress = progress

    def calls(self, count: int) -> int:
        """How many model calls a ranking of `count` documents takes: one each."""
        return count

    def score(self, pairs: Sequence[Pair | tuple[str, str]]) -> npt.NDArray[np.float32]:
        """Score pairs.

        Args:
            pairs: (query, document) each; the document may be empty.

        Returns:
            float32 (n,), higher is more relevant; see the class for what it is. A call with pairs that got no
            answer logs one WARNING (logger "crossrank.models.llm.pointwise") that says how many.

        Raises:
            InputError: something that is no pair of texts; more pairs than `max_calls`.
            QueryTooLongError: a query that leaves its document nothing.
            EndpointError: a server that fails for good, or gives no log-probabilities.
            BudgetError: the next call could go over the budget.
        """
        pairs = check_pairs(pairs)
        check_calls(self.calls, len(pairs), self.max_calls)
        of_query: dict[str, list[int]] = {}
        for position, (query, _) in enumerate(pairs):
            of_query.setdefault(query, []).append(position)
        scores = np.empty(len(pairs), dtype=np.float32)
        with track(len(pairs), "Scoring", progress=self._progress) as tracked:
            found = self._score_queries(
                list(of_query),
                [[pairs[position][1] for position in positions] for positions in of_query.values()],
                [f"the query of pairs[{positions[0]}]" for positions in of_query.values()],
                tracked.advance,
            )
        for positions, each in zip(of_query.values(), found, strict=True):
            scores[positions] = each.values
        if unanswered := int((scores == NO_ANSWER).sum()):
            _logger.warning("%d of %d pairs got neither a yes nor a no", unanswered, len(pairs))
        return scores

    def _rank(self, requests: Requests, top_k: int | None) -> list[Ranking]:
        for texts in requests.texts:
            check_calls(self.calls, len(texts), self.max_calls)
        names = [requests.name_query(number) for number in range(len(requests.queries))]
        with track(sum(map(len, requests.texts)), "Scoring", progress=self._progress) as tracked:
            found = self._score_queries(requests.queries, requests.texts, names, tracked.advance)
        rankings = []
        for query, documents, scores in zip(requests.queries, requests.documents, found, strict=True):
            notes = scores.notes
            unanswered = int((scores.values == NO_ANSWER).sum())
            if unanswered:
                notes += (
                    f"{unanswered} of {len(documents)} documents got neither a yes nor a no; they stand "
                    "last, in the order they came in",
                )
            rankings.append(
                ranking_of(
                    query,
                    documents,
                    np.argsort(-scores.values, kind="stable").tolist(),
                    scores.values.tolist(),
                    stage=self.name,
                    top_k=top_k,
                    truncated=scores.truncated,
                    status="degraded" if unanswered and unanswered == len(documents) else "ok",
                    notes=notes,
                )
            )
        return rankings

    def _score_queries(
        self,
        queries: Sequence[str],
        texts: Sequence[Sequence[str]],
        names: Sequence[str],
        on_score: Callable[[], None],
    ) -> list[Scores]:
        raise NotImplementedError


class PointwiseLLM(PointwiseReranker):
    """Scores a pair by how much likelier the model finds "yes" than "no" to the question of its relevance.

    The score is the difference of their log-probabilities (log-odds), so a document's score depends on query
    and document alone. `activate` makes it the probability of "yes" among the two.

    A local model with a template of its own gets that, exact to the token: "qwen3-reranker" and
    "bge-reranker-v2-gemma", whose score is the logit of "Yes" alone. Any chat model takes "yes-no", which
    shows the document between tags. With an `Endpoint`, log-probabilities of the first token are needed, and
    where it shows only one of the two words, the other one's is bounded by the least likely word shown: the
    score is then nearer to 0 than the truth. Where it shows neither, the score is `NO_ANSWER`.

    Args:
        model: a `CausalLM` or an `Endpoint`.
        template: "yes-no", "qwen3-reranker", "bge-reranker-v2-gemma", or a template with settings of its own,
            such as `Qwen3Reranker(instruction=...)`.
        max_document_words: words of a document that "yes-no" shows; the other templates have a `max_length`.
        max_calls: refuses a call for more pairs, or a ranking of more documents.
        name: stage of the hits; default: "pointwise:" and the model's.
        progress: a progress bar for long calls; None shows one on a terminal.

    Raises:
        InputError: an option that cannot be used, such as a local model's template with an `Endpoint`.

    Source: Liang et al. 2022, arXiv:2211.09110 (yes/no log-probabilities).
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        template: str | PairTemplate = "yes-no",
        max_document_words: int = DEFAULT_DOCUMENT_WORDS,
        max_calls: int | None = None,
        name: str | None = None,
        progress: bool | None = None,
    ) -> None:
        super().__init__(
            model, name=name or f"pointwise:{model.name}", max_calls=max_calls, progress=progress
        )
        check_count(max_document_words, "max_document_words")
        self.max_document_words = max_document_words
        self._template = pair_template(template)
        self._tokens: tuple[int, int | None] = (0, None)
        if self._template is not None:
            if not isinstance(model, CausalLM):
                raise InputError(
                    f"template {template!r} is written in tokens, which {type(model).__name__} does not "
                    "take; use 'yes-no', or a CausalLM"
                )
            self._tokens = self._template.tokens(model)

    def activate(self, scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """The sigmoid of scores, float64: of log-odds the probability of "yes" among yes and no."""
        return sigmoid(scores)

    def _score_queries(
        self,
        queries: Sequence[str],
        texts: Sequence[Sequence[str]],
        names: Sequence[str],
        on_score: Callable[[], None],
    ) -> list[Scores]:
        if self._template is None:
            return self._ask(queries, texts, on_score)
        return [
            self._read(self._template, query, documents, name, on_score)
            for query, documents, name in zip(queries, texts, names, strict=True)
        ]

    def _read(
        self,
        template: PairTemplate,
        query: str,
        texts: Sequence[str],
        name: str,
        on_score: Callable[[], None],
    ) -> Scores:
        """Scores by a template in tokens; the rows of one query begin alike, which is computed once."""
        model = self.model
        assert isinstance(model, CausalLM)  # checked when this was made
        rows = [template.row(model, query, text, name) for text in texts or [""]][: len(texts)]
        values = np.empty(len(rows), dtype=np.float32)
        yes, no = self._tokens
        for number, logits in model.tails([Tail(row.ids) for row in rows], on_row=on_score):
            values[number] = float(logits[0, yes] - (0.0 if no is None else logits[0, no]))
        return Scores.cut(values, [row.truncated for row in rows])

    def _ask(
        self, queries: Sequence[str], texts: Sequence[Sequence[str]], on_score: Callable[[], None]
    ) -> list[Scores]:
        """Scores by a chat's answers; those of all queries are asked for together."""
        prompts, notes = [], []
        for query, documents in zip(queries, texts, strict=True):
            passages, note = shown(documents, self.model.clean, self.max_document_words)
            question = self.model.clean(one_line(query))
            prompts += [yes_no_prompt(question, passage) for passage in passages]
            notes.append(note)
        found = self.model.choose(prompts, ("yes", "no"), on_answer=on_score)
        values = np.where(np.isnan(found[:, 0]), NO_ANSWER, found[:, 0] - found[:, 1]).astype(np.float32)
        starts = np.cumsum([0, *map(len, texts)]).tolist()
        parts = [values[start:stop] for start, stop in pairwise(starts)]
        return [Scores(part, [0] * len(part), note) for part, note in zip(parts, notes, strict=True)]
