"""Token ids in an index: what a reranker's tokenizer makes of a document, kept when the document is added."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from crossrank.errors import CrossrankError
from crossrank.models.hub import resolve
from crossrank.store.schema import Row, TokenIdColumn

__all__ = ["TokenIdWriter", "reopened"]

_logger = logging.getLogger(__name__)


class TokenIdWriter:
    """Gives rows the ids of their texts. Opens a model's tokenizer, not its weights.

    Args:
        model: a built-in model, a local folder, or a hub name.

    Attributes:
        column: what an index stores of it.

    Raises:
        CheckpointNotFoundError: there is no such model.
        CheckpointError: its tokenizer cannot be opened.
        InputError: something that is no name.
    """

    def __init__(self, model: str | Path) -> None:
        # Most indexes have no token ids, and need no library of tokenizers.
        from crossrank.runtime.checkpoint import Checkpoint
        from crossrank.runtime.tokenization import Tokenizer

        folder = resolve(model, kind="cross-encoder")
        checkpoint = Checkpoint.open(folder)  # whose tokenizer has no ids beyond the vocabulary
        self._tokenizer = Tokenizer(checkpoint)
        fits = checkpoint.config["vocab_size"] <= 1 << 16
        is_local = folder == Path(model).expanduser()
        self.column = TokenIdColumn(
            name=str(folder.resolve() if is_local else model),
            fingerprint=self._tokenizer.fingerprint,
            dtype="<u2" if fits else "<i4",
        )

    def encode(self, rows: Sequence[Row]) -> list[bytes]:
        """Return the ids of each row's title and text."""
        encoded = self._tokenizer.encode([row.content for row in rows])
        return [tokens.ids.astype(self.column.dtype).tobytes() for tokens in encoded]


def reopened(column: TokenIdColumn) -> TokenIdWriter | None:
    """Open the tokenizer an index was made with; None where that fails, which a WARNING tells."""
    try:
        writer = TokenIdWriter(column.name)
        if writer.column.fingerprint == column.fingerprint:
            return writer
        reason = f"the tokenizer of {column.name!r}, or the library behind it, has changed"
    except CrossrankError as error:
        reason = str(error)
    _logger.warning("documents are added without token ids, and tokenised when reranked: %s", reason)
    return None
