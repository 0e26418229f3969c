"""Pairs of texts to rows of scores: pooling, blocks, truncation, windows, batches, cache.

All pairs of a call are pooled and worked off in blocks, so memory does not grow with their number. Equal
pairs are computed once. Within a block the rows are batched by length (see runtime/batching.py), so a
pair's score is the same whatever it is scored with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from crossrank.cache import ScoreCache, score_key
from crossrank.errors import InputError, ModelOutputError, QueryTooLongError
from crossrank.models.pair_settings import PairSettings
from crossrank.models.stored_ids import StoredIds, document_ids
from crossrank.progress import Track, track
from crossrank.runtime.batching import plan
from crossrank.runtime.engine import Engine
from crossrank.runtime.overlap import in_turn
from crossrank.runtime.tokenization import Tokenizer
from crossrank.runtime.windows import aggregate, windows

__all__ = ["PairScorer", "PairScores", "encode_queries"]

Ids = npt.NDArray[np.int32]
Scores = npt.NDArray[np.float32]

_BLOCK_PAIRS = 4096
_BLOCK_CHARACTERS = 4_000_000


class PairScores(NamedTuple):
    """What scoring n pairs gives, in the order of the pairs.

    Attributes:
        logits: float32 (n, labels).
        truncated: int32 (n,), document tokens the model did not read.
        spans: int32 (n, labels, 2), characters [start, end) of the window that won for a label; -1 where the
            document was read whole or truncated.
    """

    logits: Scores
    truncated: npt.NDArray[np.int32]
    spans: npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class _Call:
    """What the blocks of one call share."""

    query_ids: dict[str, Ids]
    stored_ids: Mapping[str, StoredIds]
    tracked: Track
    name: Callable[[tuple[str, str]], str]


class PairScorer:
    """Scores pairs with one model and one way of making pairs; safe to use from many threads at once.

    Args:
        tokenizer: the model's.
        engine: the model, giving logits.
        settings: how pairs are made.
        num_labels: scores of a pair.
        max_positions: the longest row the model can take; None for no limit.
        token_budget: tokens of one forward, padding included.
        fingerprint: of model and settings, for the cache; asked for only with one.
        cache: scores computed before; None computes every pair.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        engine: Engine,
        settings: PairSettings,
        *,
        num_labels: int,
        max_positions: int | None,
        token_budget: int,
        fingerprint: Callable[[], str],
        cache: ScoreCache | None,
    ) -> None:
        self._tokenizer = tokenizer
        self._engine = engine
        self._settings = settings
        self._num_labels = num_labels
        self._max_positions = max_positions
        self._token_budget = token_budget
        self._fingerprint = fingerprint
        self._cache = cache

    def score(
        self,
        queries: Sequence[str],
        pairs: Sequence[tuple[int, str]],
        *,
        name: Callable[[int], str],
        query_name: Callable[[int], str],
        stored_ids: Mapping[str, StoredIds],
        progress: bool | None,
    ) -> PairScores:
        """Score pairs.

        Args:
            queries: valid texts.
            pairs: (position in `queries`, document's text) each.
            name: what the caller calls the pair at a position, for messages.
            query_name: what the caller calls the query at a position.
            stored_ids: of documents, by text; see `crossrank.models.stored_ids`.
            progress: see `crossrank.progress.track`.

        Raises:
            InputError: a query has no tokens.
            QueryTooLongError: a query is longer than its share and may not be cut.
            ModelOutputError: the model gave NaN or infinity.
        """
        query_ids = encode_queries(queries, self._tokenizer, self._settings, name=query_name)
        unique: dict[tuple[str, str], int] = {}
        positions = np.array(
            [unique.setdefault((queries[query], document), len(unique)) for query, document in pairs],
            dtype=np.int64,
        )

        def name_pair(pair: tuple[str, str]) -> str:
            return name(int(np.flatnonzero(positions == unique[pair])[0]))

        rows = np.empty((len(unique), 3 * self._num_labels + 1), dtype=np.int32)
        with track(len(unique), "Scoring pairs", progress=progress) as tracked:
            call = _Call(query_ids, stored_ids, tracked, name_pair)
            start = 0
            for scored in in_turn(self._engine, partial(self._score_block, call), _blocks(list(unique))):
                rows[start : start + len(scored)] = scored
                start += len(scored)
        spread = rows[positions]
        return PairScores(
            np.ascontiguousarray(spread[:, : self._num_labels]).view(np.float32),
            spread[:, self._num_labels],
            spread[:, self._num_labels + 1 :].reshape(-1, self._num_labels, 2),
        )

    def _score_block(self, call: _Call, block: list[tuple[str, str]]) -> npt.NDArray[np.int32]:
        if self._cache is None:
            return self._compute(block, call)
        fingerprint = self._fingerprint()
        keys = [score_key(fingerprint, query, document) for query, document in block]
        known = len(block)

        def compute(missing: list[int]) -> Sequence[Scores]:
            nonlocal known
            known -= len(missing)
            return list(self._compute([block[i] for i in missing], call).view(np.float32))  # same bits

        rows = np.stack(self._cache.get_or_compute(keys, compute)).view(np.int32)
        call.tracked.advance(known)
        return rows

    def _compute(self, block: list[tuple[str, str]], call: _Call) -> npt.NDArray[np.int32]:
        """Rows of a block, int32 (pairs, 3 labels + 1): bits of the logits, truncated tokens, spans."""
        documents = list(dict.fromkeys(document for _, document in block))
        ids_of = document_ids(documents, self._tokenizer, call.stored_ids)
        inputs: list[tuple[Ids, Ids]] = []
        covers: list[list[tuple[int, int]]] = []  # of each pair: its windows, [start, end) in tokens
        for query, document in block:
            ids = ids_of[document]
            covers.append(self._cover(len(call.query_ids[query]), len(ids)))
            inputs += [(call.query_ids[query], ids[start:end]) for start, end in covers[-1]]
        logits = self._run(inputs, len(block), call.tracked)
        if not np.isfinite(logits).all():
            owners = np.repeat(np.arange(len(block)), list(map(len, covers)))
            pair = block[int(owners[~np.isfinite(logits).all(axis=1)][0])]
            raise ModelOutputError(_not_finite(pair, call.name(pair)))
        rows = np.full((len(block), 3 * self._num_labels + 1), -1, dtype=np.int32)
        scores = rows[:, : self._num_labels].view(np.float32)
        firsts = np.cumsum([0, *map(len, covers)])[:-1]
        scores[:] = logits[firsts]
        winning: dict[int, list[tuple[int, int]]] = {}
        for row, (cover, (_, document)) in enumerate(zip(covers, block, strict=True)):
            num_tokens = len(ids_of[document])
            rows[row, self._num_labels] = num_tokens - cover[-1][1]
            if cover[0][1] == num_tokens or self._settings.long_documents == "truncate":
                continue
            of_windows = logits[firsts[row] : firsts[row] + len(cover)]
            scores[row], winners = aggregate(
                of_windows, self._settings.long_documents, self._settings.top_windows
            )
            winning[row] = [cover[winner] for winner in winners.tolist()]
        self._fill_spans(rows, winning, block)
        return rows

    def _cover(self, num_query_tokens: int, num_tokens: int) -> list[tuple[int, int]]:
        """The parts of a document that are read with a query: [start, end) of each window."""
        settings = self._settings
        size = settings.max_length - self._tokenizer.pair_length(num_query_tokens, 0)
        if settings.long_documents != "truncate":
            size = min(size, settings.window_tokens or size)
        if num_tokens <= size or settings.long_documents in ("truncate", "first"):
            return [(0, min(size, num_tokens))]
        return [(start, end) for start, end in windows(num_tokens, size, settings.window_overlap).tolist()]

    def _run(self, inputs: list[tuple[Ids, Ids]], num_pairs: int, tracked: Track) -> Scores:
        lengths = [self._tokenizer.pair_length(len(query), len(document)) for query, document in inputs]
        logits = np.empty((len(inputs), self._num_labels), dtype=np.float32)
        done = 0
        engine = self._engine
        batches = plan(
            lengths, self._token_budget, self._max_positions, engine.threads, grouping=engine.grouping
        )
        outputs = self._engine.run_all(
            self._tokenizer.pair_inputs([inputs[row] for row in batch.rows.tolist()], batch.length)
            for batch in batches
        )
        for batch, output in zip(batches, outputs, strict=True):
            logits[batch.rows] = output
            before, done = done, done + len(batch.rows)
            tracked.advance(num_pairs * done // len(inputs) - num_pairs * before // len(inputs))
        return logits

    def _fill_spans(
        self,
        rows: npt.NDArray[np.int32],
        winning: dict[int, list[tuple[int, int]]],
        block: list[tuple[str, str]],
    ) -> None:
        """Write the characters of the winning windows: tokenises long documents again, with offsets."""
        texts = list(dict.fromkeys(block[row][1] for row in winning))
        offsets = {
            text: tokens.offsets
            for text, tokens in zip(texts, self._tokenizer.encode(texts, offsets=True), strict=True)
        }
        for row, spans in winning.items():
            text = block[row][1]
            places = offsets[text]
            assert places is not None  # asked for above
            characters = [_trim(text, int(places[start, 0]), int(places[end - 1, 1])) for start, end in spans]
            rows[row, self._num_labels + 1 :] = np.array(characters, dtype=np.int32).ravel()


def encode_queries(
    queries: Sequence[str], tokenizer: Tokenizer, settings: PairSettings, *, name: Callable[[int], str]
) -> dict[str, Ids]:
    """Tokenise queries, each once, with their prompt and within their share of an input.

    Args:
        queries: valid texts.
        tokenizer: the model's.
        settings: how pairs are made.
        name: what the caller calls the query at a position, for messages.

    Returns:
        Each text's ids.

    Raises:
        InputError: a query has no tokens.
        QueryTooLongError: a query is longer than its share and may not be cut.
    """
    texts = list(dict.fromkeys(queries))
    alone = whole = tokenizer.encode(texts)
    if settings.prompt:
        whole = tokenizer.encode([settings.prompt + text for text in texts])
    encoded = {text: tokens.ids for text, tokens in zip(texts, whole, strict=True)}
    unread = {text for text, tokens in zip(texts, alone, strict=True) if not len(tokens.ids)}
    for position, text in enumerate(queries):
        num_tokens = len(encoded[text])
        if text in unread:
            raise InputError(
                f"{name(position)} has no tokens: the model's tokenizer drops all its characters; "
                "there is nothing to be relevant to"
            )
        if num_tokens <= settings.max_query_length:
            continue
        if settings.long_query == "error":
            raise QueryTooLongError(
                f"{name(position)} has {num_tokens} tokens"
                + (" with its prompt" if settings.prompt else "")
                + f"; of the {settings.max_length} tokens of a pair a query may take "
                f"{settings.max_query_length}. Shorten it, open the model with a larger max_query_length "
                "(documents then get less) or max_length, or allow cutting with long_query='truncate'"
            )
        encoded[text] = encoded[text][: settings.max_query_length]
    return encoded


def _blocks(pairs: list[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    """Cut pairs into blocks of bounded number and text."""
    start = characters = 0
    for position, (_, document) in enumerate(pairs):
        full = position - start >= _BLOCK_PAIRS or characters + len(document) > _BLOCK_CHARACTERS
        if full and position > start:
            yield pairs[start:position]
            start, characters = position, 0
        characters += len(document)
    if start < len(pairs):
        yield pairs[start:]


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    """A span without white space at its ends: some tokenizers count the space before a word to it."""
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


def _not_finite(pair: tuple[str, str], name: str) -> str:
    query, document = pair
    return (
        f"the model gave NaN or infinity for {name} (query {_short(query)}, document {_short(document)}). "
        "Its weights may be damaged, or overflow in this precision: fetch the model again, or try "
        "precision='float32'"
    )


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
