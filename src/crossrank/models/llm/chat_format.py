"""How a local model's chat is written as one text, and which tokens its form is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from crossrank.models.llm.model import Message

__all__ = ["ChatFormat"]


class ChatFormat:
    """The chat template of a tokenizer of transformers.

    Args:
        tokenizer: with or without a chat template.

    Attributes:
        control_tokens: texts that become a token of their own wherever they stand and that a template is
            made of: special tokens, and those added tokens that the chat template writes.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        template = tokenizer.chat_template
        self._has_template = bool(template)
        written = template if isinstance(template, str) else str(template or "")
        self.control_tokens = tuple(
            token.content
            for token in tokenizer.added_tokens_decoder.values()
            if token.content.strip() and (token.special or token.content in written)
        )
        self._normalizer = getattr(tokenizer.backend_tokenizer, "normalizer", None)

    def normal(self, text: str) -> str:
        """Return what the tokenizer's normaliser makes of a text."""
        return text if self._normalizer is None else str(self._normalizer.normalize_str(text))

    def render(self, messages: Sequence[Message]) -> str | None:
        """Write a chat down to where the answer begins; None without a template.

        A template that takes no system turn gets it at the head of the first user's turn. Models that can
        think first are told not to.
        """
        if not self._has_template:
            return None
        from jinja2 import TemplateError

        try:
            return self._written(messages)
        except TemplateError:
            if len(messages) < 2 or messages[0].role != "system":
                raise
            system, user, *rest = messages
            return self._written([Message(user.role, f"{system.content}\n\n{user.content}"), *rest])

    def _written(self, messages: Sequence[Message]) -> str:
        chat = [{"role": message.role, "content": message.content} for message in messages]
        return str(
            self._tokenizer.apply_chat_template(
                chat, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
        )
