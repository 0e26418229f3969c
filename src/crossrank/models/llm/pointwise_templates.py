"""How a local pointwise model's input is written, to the token, and which tokens its score is read from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from crossrank.checks import check_count, check_text
from crossrank.errors import CheckpointError, InputError, QueryTooLongError
from crossrank.models.llm.local import CausalLM

__all__ = ["BGEGemma", "PairTemplate", "Qwen3Reranker", "Row", "pair_template"]


class Row(NamedTuple):
    """The input of one pair.

    Attributes:
        ids: token ids.
        truncated: how many tokens of the document it leaves out.
    """

    ids: list[int]
    truncated: int


class PairTemplate(Protocol):
    """Writes a pair as a row of token ids, and says how its score is read."""

    def row(self, model: CausalLM, query: str, document: str, name: str) -> Row:
        """Write a pair.

        Args:
            model: whose tokenizer is used. Control tokens in the texts are taken apart.
            query: a text.
            document: cut at its end where the row would be too long.
            name: of the query, for messages.

        Raises:
            QueryTooLongError: the query leaves the document nothing.
        """
        ...

    def tokens(self, model: CausalLM) -> tuple[int, int | None]:
        """The token whose logit is the score, and one whose logit is taken off it, if there is one."""
        ...


@dataclass(frozen=True)
class Qwen3Reranker:
    """The input of Qwen3-Reranker (0.6B, 4B and 8B): score is the logit of "yes" less that of "no".

    The published score is the probability of "yes" among the two: `activate` gives it.

    Args:
        instruction: what makes a document relevant.
        max_length: tokens of a row.

    Source: model card of Qwen/Qwen3-Reranker-0.6B; Zhang et al. 2025, arXiv:2506.05176.
    """

    instruction: str = "Given a web search query, retrieve relevant passages that answer the query"
    max_length: int = 8192

    def __post_init__(self) -> None:
        check_text(self.instruction, "instruction")
        check_count(self.max_length, "max_length")

    def row(self, model: CausalLM, query: str, document: str, name: str) -> Row:
        """Write a pair; see `PairTemplate.row`."""
        prefix = model.encode(
            "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
            'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
            "<|im_start|>user\n"
        )
        suffix = model.encode("<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")
        before = f"<Instruct>: {self.instruction}\n<Query>: {model.defuse(query)}\n<Document>:"
        content = model.encode(f"{before} {model.defuse(document)}")
        room = _limit(self.max_length, model) - len(prefix) - len(suffix)
        if len(content) > room and (least := len(model.encode(before))) >= room:
            raise _too_long(name, least, room)
        return Row(prefix + content[:room] + suffix, max(0, len(content) - room))

    def tokens(self, model: CausalLM) -> tuple[int, int | None]:
        """See `PairTemplate.tokens`."""
        return _token(model, "yes"), _token(model, "no")


@dataclass(frozen=True)
class BGEGemma:
    """The input of bge-reranker-v2-gemma: score is the logit of "Yes".

    Args:
        prompt: what stands after the pair.
        max_length: tokens of query and document; what stands around them is not counted. A query may take
            three quarters of it.

    Source: model card of BAAI/bge-reranker-v2-gemma; Chen et al. 2024, arXiv:2402.03216.
    """

    prompt: str = (
        "Given a query A and a passage B, determine whether the passage contains an answer to the query by "
        "providing a prediction of either 'Yes' or 'No'."
    )
    max_length: int = 1024

    def __post_init__(self) -> None:
        check_text(self.prompt, "prompt")
        check_count(self.max_length, "max_length")

    def row(self, model: CausalLM, query: str, document: str, name: str) -> Row:
        """Write a pair; see `PairTemplate.row`."""
        separator, prompt = model.encode("\n"), model.encode(self.prompt)
        asked = model.encode(f"A: {model.defuse(query)}")
        passage = model.encode(f"B: {model.defuse(document)}")
        limit = _limit(self.max_length + len(separator) + len(prompt), model) - len(separator) - len(prompt)
        if len(asked) > limit * 3 // 4:
            raise _too_long(name, len(asked), limit * 3 // 4)
        first = model.tokenizer.bos_token_id
        start = ([] if first is None else [first]) + asked + separator
        room = limit - len(start)
        return Row(start + passage[:room] + separator + prompt, max(0, len(passage) - room))

    def tokens(self, model: CausalLM) -> tuple[int, int | None]:
        """See `PairTemplate.tokens`."""
        return model.encode("Yes")[0], None


_TEMPLATES: dict[str, Callable[[], PairTemplate]] = {
    "qwen3-reranker": Qwen3Reranker,
    "bge-reranker-v2-gemma": BGEGemma,
}


def pair_template(template: Any) -> PairTemplate | None:
    """Return the template of a name, or one given as such; None is that of chats, "yes-no".

    Raises:
        InputError: there is no such template.
    """
    if template == "yes-no":
        return None
    if isinstance(template, str):
        if template not in _TEMPLATES:
            raise InputError(f"template is {template!r}; choose one of yes-no, {', '.join(_TEMPLATES)}")
        return _TEMPLATES[template]()
    if not callable(getattr(template, "row", None)) or not callable(getattr(template, "tokens", None)):
        raise InputError(f"template must be a name or a PairTemplate, not {type(template).__name__}")
    made: PairTemplate = template
    return made


def _limit(wanted: int, model: CausalLM) -> int:
    return wanted if model.context_tokens is None else min(wanted, model.context_tokens)


def _token(model: CausalLM, word: str) -> int:
    ids = model.encode(word)
    if len(ids) != 1:
        raise CheckpointError(f"the tokenizer of {model.name} has no token {word!r}; it is no Qwen3-Reranker")
    return ids[0]


def _too_long(name: str, count: int, room: int) -> QueryTooLongError:
    return QueryTooLongError(
        f"{name} takes {count} tokens with its instruction, more than the {room} there are; shorten it, or "
        "raise max_length of the template"
    )
