"""Integrated gradients: a score shared out among the tokens by the model's own derivatives, with torch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from crossrank.checks import check_count
from crossrank.errors import ModelOutputError
from crossrank.explanation.result import Explanation, Term, wordless
from crossrank.explanation.spans import units
from crossrank.explanation.torch_scorers import open_scorer
from crossrank.models.cross_encoder import CrossEncoder
from crossrank.models.requests import check_pairs
from crossrank.progress import track
from crossrank.runtime.tokenization import Tokens

__all__ = ["IntegratedGradients"]

_AT_A_TIME = 8  # points of the path in one forward
_SAME_SCORE = 1e-3  # what torch and the reranker may differ by, relative to scores above 1


class _Pair(NamedTuple):
    """One pair as the model reads it: token ids, types, and where each token is from."""

    ids: npt.NDArray[np.int64]  # (tokens,)
    types: npt.NDArray[np.int64]  # (tokens,)
    of_query: npt.NDArray[np.int64]  # positions of the query's tokens
    of_document: npt.NDArray[np.int64]  # positions of the document's tokens
    query_spans: npt.NDArray[np.int32]  # (query tokens, 2), characters in the query
    document_spans: npt.NDArray[np.int32]  # (document tokens, 2), characters in the document
    unread: int  # document tokens that were cut


class IntegratedGradients:
    """Shares the score of a pointwise model out among query and document words.

    Embeddings go in a straight line from a baseline to those of the pair; a token's weight is its embedding's
    change times the mean gradient on the way. The baseline is the pair with padding tokens for all words, the
    special tokens and the words of a prompt in their places. All weights add up to score - baseline score
    (completeness); what the sum misses is in the notes if it is over 1 % of that.

    The model is opened once, in float32, by transformers from the reranker's own folder, and its score is
    compared with the reranker's. Attention weights play no part. Needs the extra `torch`. Safe to use from
    many threads.

    Args:
        reranker: a `CrossEncoder` that is a plain classifier, a `MonoT5`, or a `RankT5` with a decoder.
        steps: points on the way, placed by Gauss-Legendre quadrature.

    Raises:
        InputError: another kind of reranker, or one with several labels and none chosen.
        CheckpointError: weights that transformers does not take for this architecture.
        MissingExtraError: torch or transformers is not installed.

    Source: Sundararajan, Taly and Yan 2017, "Axiomatic Attribution for Deep Networks", arXiv:1703.01365.
    """

    def __init__(self, reranker: CrossEncoder, *, steps: int = 64) -> None:
        check_count(steps, "steps")
        self._steps = steps
        self._model = open_scorer(reranker)
        self._reranker = reranker

    def explain(self, query: str, document: str, progress: bool | None = None) -> Explanation:
        """Explain the score of a pair.

        Args:
            query: not empty.
            document: text; where it is longer than the model reads, its beginning is explained.
            progress: see `crossrank.progress.track`.

        Raises:
            InputError: a query or document that cannot be used.
            ModelOutputError: torch gives the pair another score than the reranker (float32 alone; an int8
                form's difference is noted).
        """
        import torch

        check_pairs([(query, document)])
        pair = self._pair(query, document)
        notes = []
        if pair.unread:
            notes.append(f"the model did not read the last {pair.unread} tokens of the document")
        ids = torch.from_numpy(pair.ids)
        words = torch.from_numpy(np.concatenate([pair.of_query, pair.of_document]))
        padded = ids.clone()
        padded[words] = self._model.tokenizer.pad_id
        with torch.no_grad():
            high, low = self._model.embed(ids), self._model.embed(padded)  # (tokens, hidden)
            score, baseline = self._model.scores(torch.stack([high, low]), pair.types).tolist()
        notes += self._compared(score, query, document, pair)
        nodes, weights = np.polynomial.legendre.leggauss(self._steps)
        alphas, shares = (nodes + 1) / 2, weights / 2
        gradient = torch.zeros_like(high, dtype=torch.float64)
        with track(self._steps, "Explaining", progress=progress) as tracked:
            for start in range(0, self._steps, _AT_A_TIME):
                alpha = torch.tensor(alphas[start : start + _AT_A_TIME], dtype=high.dtype)
                points = (low + alpha[:, None, None] * (high - low)).requires_grad_()
                (slopes,) = torch.autograd.grad(self._model.scores(points, pair.types).sum(), points)
                share = torch.tensor(shares[start : start + _AT_A_TIME])
                gradient += (share[:, None, None] * slopes.double()).sum(dim=0)
                tracked.advance(len(alpha))
        tokens = ((high - low).double() * gradient).sum(dim=1).numpy()  # (tokens,)
        missed = score - baseline - float(tokens.sum())
        if abs(missed) > 0.01 * max(abs(score - baseline), 1e-6):
            notes.append(f"the weights miss {missed:.3g} of score - baseline; more steps bring them nearer")
        query_terms, query_rest = _by_unit(query, pair.query_spans, tokens[pair.of_query])
        document_terms, document_rest = _by_unit(document, pair.document_spans, tokens[pair.of_document])
        notes += wordless(query_terms, document, document_terms)
        if query_rest or document_rest:
            notes.append(
                f"{query_rest + document_rest:.3g} is of tokens without characters, such as a prompt"
            )
        return Explanation(
            query=query,
            document=document,
            model=self._reranker.name,
            method="integrated-gradients",
            score=score,
            query_terms=query_terms,
            document_terms=document_terms,
            baseline=baseline,
            calls=self._steps,
            notes=tuple(notes),
        )

    def _pair(self, query: str, document: str) -> _Pair:
        settings = self._reranker.settings
        prompt = settings.prompt
        query_tokens, document_tokens = self._model.tokenizer.encode([prompt + query, document], offsets=True)
        query_tokens = _first(query_tokens, settings.max_query_length)
        room = settings.max_length - self._model.tokenizer.pair_length(len(query_tokens.ids), 0)
        read = _first(document_tokens, room)
        ids, types = self._model.tokenizer.join(query_tokens, read)
        # ids that no token has show where the template puts each text's tokens
        places, _ = self._model.tokenizer.join(
            Tokens(np.full_like(query_tokens.ids, -1), None), Tokens(np.full_like(read.ids, -2), None)
        )
        assert query_tokens.offsets is not None  # asked for above
        assert read.offsets is not None
        return _Pair(
            ids,
            types,
            np.flatnonzero(places == -1),
            np.flatnonzero(places == -2),
            np.maximum(query_tokens.offsets - np.int32(len(prompt)), 0),
            read.offsets,
            len(document_tokens.ids) - len(read.ids),
        )

    def _compared(self, score: float, query: str, document: str, pair: _Pair) -> list[str]:
        """Compare with the reranker's own score, which also refuses what it cannot read."""
        own = float(self._reranker.rank(query, [document])[0].score)
        if abs(own - score) <= _SAME_SCORE * max(1.0, abs(own)):
            return []
        if pair.unread and self._reranker.settings.long_documents != "truncate":
            return [f"the reranker reads the document in windows and gives {own:.4g}; this is its beginning"]
        if self._reranker.precision != "float32":
            return [f"the {self._reranker.precision} form gives {own:.4g}; this is float32"]
        raise ModelOutputError(
            f"transformers gives this pair {score:.6g} and {self._reranker.name} {own:.6g}; gradients of "
            "another computation would explain nothing"
        )


def _first(tokens: Tokens, count: int) -> Tokens:
    return Tokens(tokens.ids[:count], None if tokens.offsets is None else tokens.offsets[:count])


def _by_unit(
    text: str, spans: npt.NDArray[np.int32], weights: npt.NDArray[np.float64]
) -> tuple[tuple[Term, ...], float]:
    """The weights of words and marks; what is left has no characters."""
    found, owners = units(text, spans.tolist())
    totals, rest = [0.0] * len(found), 0.0
    for owner, weight in zip(owners, weights.tolist(), strict=True):
        if owner < 0:
            rest += weight
        else:
            totals[owner] += weight
    terms = tuple(
        Term(text[start:end], start, end, total) for (start, end), total in zip(found, totals, strict=True)
    )
    return terms, rest
