"""Token ids that documents bring along from an index, in place of tokenising their texts again.

Documents are tokenised by themselves and joined to a query's ids afterwards, so ids made when a document was
added to an index are those that would be made now. That is not taken on trust: ids count only for the very
text and tokenizer they were made of, and of each block some are made again and compared.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from crossrank.runtime.tokenization import Tokenizer
from crossrank.types import Document

__all__ = ["StoredIds", "document_ids", "stored_ids"]

Ids: TypeAlias = npt.NDArray[np.int32]
StoredIds: TypeAlias = npt.NDArray[np.integer[Any]]

_logger = logging.getLogger(__name__)

_MADE_AGAIN = 4  # documents of a block


def stored_ids(documents: Iterable[str | Document], tokenizer: Tokenizer) -> dict[str, StoredIds]:
    """Return the ids that documents have of this very tokenizer, by the text they are of."""
    kept = [each.token_ids for each in documents if isinstance(each, Document) and each.token_ids is not None]
    return {each.text: each.ids for each in kept if each.tokenizer == tokenizer.fingerprint}


def document_ids(
    texts: Sequence[str], tokenizer: Tokenizer, stored: Mapping[str, StoredIds]
) -> dict[str, Ids]:
    """Return the ids of a block's texts, each by its text.

    Args:
        texts: each once.
        tokenizer: gives the ids of texts that have none.
        stored: ids by text. Where one of those made again differs none is used, and a WARNING says so.
    """
    known = {text: stored[text].astype(np.int32) for text in texts if text in stored}
    checked = list(known)[:: -(-len(known) // _MADE_AGAIN) or 1]
    needed = [*checked, *(text for text in texts if text not in known)]
    made = {text: tokens.ids for text, tokens in zip(needed, tokenizer.encode(needed), strict=True)}
    for text in checked:
        if not np.array_equal(made[text], known[text]):
            _logger.warning(
                "the token ids that an index keeps are not used: those of the text %.60r are not what the "
                "tokenizer gives it now; make the index anew",
                text,
            )
            return document_ids(texts, tokenizer, {})
    return known | made
