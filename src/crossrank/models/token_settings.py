"""How a text becomes the token vectors that a late-interaction model compares.

Three layouts of folders say it in three places: ColBERT's own code in artifact.metadata, PyLate in
config_sentence_transformers.json, sentence-transformers' MultiVectorEncoder in the configs of its modules.

Source: Khattab and Zaharia 2020, "ColBERT", arXiv:2004.12832, sec. 3.2; stanford-futuredata/ColBERT
(colbert/infra/config, colbert/modeling/tokenization), PyLate 1.6 (models/colbert.py), sentence-transformers
6.2 (multi_vector_encoder/model.py, base/modules/transformer.py); tested against the numbers of the last two.
"""

from __future__ import annotations

import logging
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from crossrank.checks import check_count
from crossrank.errors import CheckpointError, InputError, UnsupportedArchitectureError
from crossrank.models.prompts import stated_prompts
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.modules import Dense, Module, Normalize, TokenMask
from crossrank.runtime.settings import read_setting
from crossrank.runtime.tokenization import Tokenizer

__all__ = ["Expansion", "TextForm", "TokenSettings", "token_modules"]

_QUERY_LENGTH = 32  # what ColBERT's code and PyLate take where nothing is stated
_STANFORD_DOCUMENT_LENGTH = 220
_PYLATE_DOCUMENT_LENGTH = 180
_MASK_TOKENS = ("[MASK]", "<mask>")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Expansion:
    """Query expansion: a short query is filled up with mask tokens, whose vectors count like its own.

    Attributes:
        length: tokens of a query that has been filled up, special tokens included.
        token_id: what fills it up.
        attended: whether the query's own tokens attend to it. (It attends to them in any case.)
    """

    length: int
    token_id: int
    attended: bool


@dataclass(frozen=True, slots=True)
class TextForm:
    """How the texts of one side are read: queries, or documents.

    Attributes:
        name: for messages: "queries".
        prompt: text put before each text.
        marker: token ids put before it, after the first special token.
        max_length: most tokens, special tokens, marker and prompt included.
        skipped: ids of tokens that are read, but whose vectors do not count.
        expansion: None for none.
    """

    name: str
    prompt: str
    marker: tuple[int, ...]
    max_length: int
    skipped: tuple[int, ...]
    expansion: Expansion | None = None


@dataclass(frozen=True, slots=True)
class TokenSettings:
    """Everything besides the model that decides token vectors and scores; made with `for_model`.

    Attributes:
        query: how queries are read.
        document: how documents are read.
        is_mean: whether a score is the mean over the query's vectors in place of the sum.
    """

    query: TextForm
    document: TextForm
    is_mean: bool

    @property
    def has_unattended_expansion(self) -> bool:
        """Whether queries are filled up with tokens that no other attends to, but whose vectors count."""
        return self.query.expansion is not None and not self.query.expansion.attended

    @classmethod
    def for_model(
        cls,
        checkpoint: Checkpoint,
        tokenizer: Tokenizer,
        *,
        query_length: int | None = None,
        document_length: int | None = None,
    ) -> TokenSettings:
        """Read a folder's settings, and check that they fit its model.

        Args:
            checkpoint: a late-interaction model's folder.
            tokenizer: the model's.
            query_length: in place of the folder's.
            document_length: in place of the folder's.

        Raises:
            CheckpointError: the folder states something that cannot be.
            InputError: a length that the model cannot have.
        """
        stated = _stated(checkpoint, tokenizer)
        query, document = stated.query, stated.document
        if query_length is not None:
            length = _checked_length(query_length, "query_length", checkpoint, tokenizer, query)
            expansion = query.expansion
            if expansion is not None:
                expansion = Expansion(length, expansion.token_id, expansion.attended)
            query = TextForm(query.name, query.prompt, query.marker, length, query.skipped, expansion)
        if document_length is not None:
            length = _checked_length(document_length, "document_length", checkpoint, tokenizer, document)
            document = TextForm(document.name, document.prompt, document.marker, length, document.skipped)
        return cls(query, document, stated.is_mean)


def token_modules(checkpoint: Checkpoint) -> list[Module]:
    """Return what is done to each token vector after the transformer.

    Raises:
        CheckpointError: it is no late-interaction model, or its projection is missing.
        UnsupportedArchitectureError: a module that such a model cannot have.
    """
    if not checkpoint.is_multi_vector:
        raise CheckpointError(
            f"{checkpoint.folder} is no late-interaction model: neither PyLate, nor ColBERT's own code, nor "
            "sentence-transformers' MultiVectorEncoder saved it; open a bi-encoder with BiEncoder, or train "
            "a late-interaction model from it"
        )
    modules: list[Module] = []
    for module in checkpoint.modules:
        if isinstance(module, TokenMask):
            continue
        if not isinstance(module, (Dense, Normalize)) or (isinstance(module, Dense) and module.gives_scores):
            raise UnsupportedArchitectureError(
                f"{checkpoint.folder} has a {type(module).__name__} module, which a late-interaction model "
                "cannot have"
            )
        modules.append(module)
    # ColBERT's own code has it among the transformer's weights; an export, which has none, in a module.
    if checkpoint.is_stanford_colbert and not any(isinstance(module, Dense) for module in modules):
        projection = checkpoint.tensors().get("linear.weight")
        if projection is None:
            raise CheckpointError(
                f"{checkpoint.transformer_folder}: the weights have no projection (linear.weight), which "
                "ColBERT's own code writes; fetch the model again"
            )
        modules.append(Dense(projection, None, "identity"))
    if not any(isinstance(module, TokenMask) for module in checkpoint.modules):
        modules.append(Normalize())  # ColBERT's code and PyLate do it without saying so
    return modules


def _stated(checkpoint: Checkpoint, tokenizer: Tokenizer) -> TokenSettings:
    similarity = str(checkpoint.similarity or "maxsim").lower()
    masks = [module for module in checkpoint.modules if isinstance(module, TokenMask)]
    prompts = stated_prompts(checkpoint)
    positions = checkpoint.max_positions
    skipped_in: Sequence[str] = ("document",)
    markers: tuple[str, str] = ("", "")
    if checkpoint.is_stanford_colbert:
        markers = (
            checkpoint.colbert_setting("query_token_id", str) or "[unused0]",
            checkpoint.colbert_setting("doc_token_id", str) or "[unused1]",
        )
        query_length = checkpoint.colbert_setting("query_maxlen", int, least=4) or _QUERY_LENGTH
        document_length = checkpoint.colbert_setting("doc_maxlen", int, least=4) or _STANFORD_DOCUMENT_LENGTH
        expansion = _expansion(
            checkpoint, tokenizer, query_length, checkpoint.colbert_setting("attend_to_mask_tokens", bool)
        )
        skips_punctuation = checkpoint.colbert_setting("mask_punctuation", bool)
        words: Sequence[str] = string.punctuation if skips_punctuation in (None, True) else ()
    elif not masks:  # PyLate: its modules are the transformer and the projections alone
        markers = tuple(
            checkpoint.model_setting(key, str, default)
            for key, default in (("query_prefix", "[Q] "), ("document_prefix", "[D] "))
        )
        query_length = checkpoint.model_setting("query_length", int, least=4) or _QUERY_LENGTH
        document_length = checkpoint.model_setting("document_length", int, least=4) or _PYLATE_DOCUMENT_LENGTH
        expansion = None
        if checkpoint.model_setting("do_query_expansion", bool, True):
            attended = checkpoint.model_setting("attend_to_expansion_tokens", bool)
            expansion = _expansion(checkpoint, tokenizer, query_length, attended)
        listed = checkpoint.model_setting("skiplist_words", list)
        words = string.punctuation if listed is None else [str(word) for word in listed]
    else:
        stated = checkpoint.transformer_setting("query_expansion", dict)
        query_length = checkpoint.transformer_setting("query_length", int, least=1) or checkpoint.max_length
        document_length = (
            checkpoint.transformer_setting("document_length", int, least=1) or checkpoint.max_length
        )
        expansion = None
        if stated is not None:
            expansion, query_length = _module_expansion(checkpoint, tokenizer, stated, query_length)
        words = [word for mask in masks for word in mask.skipped_words]
        skipped_in = [task for mask in masks for task in mask.skipped_in]
    if similarity not in ("maxsim", "meanmaxsim"):
        raise UnsupportedArchitectureError(
            f"{checkpoint.folder} compares by {similarity!r}; late interaction is maxsim or meanmaxsim"
        )
    if positions is not None:
        query_length, document_length = min(query_length, positions), min(document_length, positions)
    skipped = _ids_of(words, tokenizer)
    return TokenSettings(
        TextForm(
            "queries",
            prompts[0],
            _marker(markers[0], checkpoint, tokenizer),
            query_length,
            skipped if "query" in skipped_in else (),
            expansion,
        ),
        TextForm(
            "documents",
            prompts[1],
            _marker(markers[1], checkpoint, tokenizer),
            document_length,
            skipped if "document" in skipped_in else (),
        ),
        similarity == "meanmaxsim",
    )


def _module_expansion(
    checkpoint: Checkpoint, tokenizer: Tokenizer, stated: dict[str, Any], query_length: int
) -> tuple[Expansion, int]:
    """Read sentence-transformers' own form; returns the expansion and the most tokens of a query."""
    source = "sentence_bert_config.json, query_expansion"
    strategy = read_setting(stated, "strategy", str, source=source)
    if strategy not in ("fixed", "min"):
        raise UnsupportedArchitectureError(f"{source}: the strategy {strategy!r} is not supported")
    length = read_setting(stated, "length", int, source=source, least=1)
    attended = read_setting(stated, "attend", bool, None, source=source)
    token = read_setting(stated, "token", str, None, source=source)
    expansion = _expansion(checkpoint, tokenizer, length, attended, token)
    # "fixed" cuts longer queries, "min" only fills up shorter ones.
    return expansion, length if strategy == "fixed" else max(query_length, length)


def _expansion(
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    length: int,
    attended: bool | None,
    token: str | None = None,
) -> Expansion:
    if not attended and not _sees_from_outside(checkpoint, length):
        raise UnsupportedArchitectureError(
            f"{checkpoint.folder} expands queries to {length} tokens by ones that are not attended to; its "
            "architecture defines their vectors only where their own attention reaches the query"
        )
    positions = checkpoint.max_positions
    if positions is not None and length > positions:
        raise CheckpointError(
            f"{checkpoint.folder} expands queries to {length} tokens, but its model takes at most "
            f"{positions}; save it again with a smaller query length"
        )
    configured = checkpoint.tokenizer_config.get("mask_token")
    if isinstance(configured, dict):
        configured = configured.get("content")
    for name in (token,) if token is not None else (configured, *_MASK_TOKENS):
        found = tokenizer.token_id(name) if isinstance(name, str) else None
        if found is not None:
            return Expansion(length, found, bool(attended))
    raise CheckpointError(
        f"{checkpoint.folder} expands queries by {token or 'mask tokens'}, but its tokenizer has none"
    )


def _sees_from_outside(checkpoint: Checkpoint, length: int) -> bool:
    """Whether tokens that nobody attends to have vectors: DeBERTa masks their own attention, too."""
    if checkpoint.architecture == "modernbert":  # attends within a window in most layers
        window = read_setting(checkpoint.config, "local_attention", int, 128, least=1)
        return length <= window // 2
    return checkpoint.architecture != "deberta-v2"


def _marker(token: str, checkpoint: Checkpoint, tokenizer: Tokenizer) -> tuple[int, ...]:
    if not token:
        return ()
    found = tokenizer.token_id(token)
    if found is None:
        raise CheckpointError(
            f"{checkpoint.tokenizer_file} has no token {token!r}, which the folder puts before texts; save "
            "the model again with the library it was trained with"
        )
    if tokenizer.num_leading_special_tokens != 1:
        raise UnsupportedArchitectureError(
            f"{checkpoint.folder} puts {token!r} after the first special token, but its tokenizer puts "
            f"{tokenizer.num_leading_special_tokens} before a text"
        )
    return (found,)


def _ids_of(words: Sequence[str], tokenizer: Tokenizer) -> tuple[int, ...]:
    known = {word: tokenizer.token_id(word) for word in words}
    unknown = [word for word, found in known.items() if found is None]
    if unknown:
        # As sentence-transformers does; PyLate leaves out every unknown token of a document instead.
        _logger.info("words to skip that the vocabulary does not have: %s", " ".join(unknown))
    return tuple(sorted({found for found in known.values() if found is not None}))


def _checked_length(
    length: Any, name: str, checkpoint: Checkpoint, tokenizer: Tokenizer, form: TextForm
) -> int:
    check_count(length, name)
    least = tokenizer.num_single_special_tokens + len(form.marker) + 1
    positions = checkpoint.max_positions
    if length < least or (positions is not None and length > positions):
        raise InputError(
            f"{name} is {length}; {checkpoint.folder.name} takes at least {least}"
            + (f" and at most {positions} tokens" if positions is not None else " tokens")
        )
    return int(length)
