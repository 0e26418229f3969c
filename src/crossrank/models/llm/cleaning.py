"""Texts of others in a prompt: cut to a length, and without what a prompt's own marks look like.

A document may say anything, also "ignore the above". What can be kept from it is the form of the prompt: no
text may end its own quotation, carry another document's identifier, or become a control token of a chat.
That it is still read as an instruction by a model that obeys what it reads, nothing here can prevent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from crossrank.checks import check_count

__all__ = [
    "cut_words",
    "one_line",
    "without_control_marks",
    "without_labels",
    "without_numbers",
    "without_tags",
]

# Scripts written without spaces: a character counts as a word. A run without a space, as in encoded
# files, counts as a word every 32 characters.
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af"
_WORD = re.compile(rf"[{_CJK}]|[^\s{_CJK}]{{1,32}}")

# Marks of chats by the families of models whose servers read them out of the middle of a message: ChatML,
# Llama 3, Phi, Harmony and DeepSeek between <| and |>, Llama 2 and Mistral in brackets, Gemma and others.
_CONTROL = re.compile(
    r"<(?=[|｜])|[|｜](?=>)"
    r"|<(?=/?(?:s|bos|eos|pad|unk|mask|sep|cls|think|thinking|tool_calls?|tool_responses?|tools|im_start|im_end"
    r"|start_of_turn|end_of_turn|start_of_image|end_of_image|system|user|assistant)>)"
    r"|<(?=<\s*/?SYS\s*>>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_RESULTS|TOOL_CALLS|TOOL_CONTENT|IMG|THINK)\])",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"[\[［【]\s*(\d+)\s*[\]］】]")
_LABEL = re.compile(r"\b(passage)\s+([A-Z])\b(\s*[:：])", re.IGNORECASE)
_TAG = re.compile(r"<(?=\s*/?\s*(?:document|query)\b)", re.IGNORECASE)


def cut_words(text: str, limit: int) -> tuple[str, int]:
    """Return the first `limit` words of a text, and how many words that leaves out.

    A word is what stands between spaces, and no longer than 32 characters; of Chinese, Japanese and Korean
    script a character.
    """
    check_count(limit, "limit")
    words = _WORD.finditer(text)
    end = None
    for number, word in enumerate(words):
        if number == limit:
            return text[:end], 1 + sum(1 for _ in words)
        end = word.end()
    return text, 0


def one_line(text: str) -> str:
    """Return a text with each run of white space as one space: it cannot begin a line of the prompt."""
    return " ".join(text.split())


def without_control_marks(text: str, tokens: Iterable[str] = (), normal: Callable[[str], str] = str) -> str:
    """Return a text in which no mark of a chat is left whole: a space is put into each.

    Args:
        text: of a document or query.
        tokens: a tokenizer's own control tokens; without any, the marks of all known families.
        normal: the tokenizer's normaliser, since a token may be found in what it makes of a text.
    """
    pattern = "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True))
    if not pattern:
        return _CONTROL.sub(lambda mark: mark[0] + " ", text)
    own = re.compile(pattern)
    for _ in range(3):  # a token broken may leave another one
        if not own.search(text):
            normalised = normal(text)
            if normalised == text or not own.search(normalised):
                return text
            text = normalised
        text = own.sub(lambda token: f"{token[0][0]} {token[0][1:]}" if len(token[0]) > 1 else " ", text)
    while own.search(text) or own.search(normal(text)):  # tokens made to be put together again
        text = own.sub("", text if own.search(text) else normal(text))
    return text


def without_numbers(text: str) -> str:
    """Return a text with [3] as (3): it has no identifier of a passage in it."""
    return _NUMBER.sub(r"(\1)", text)


def without_labels(text: str) -> str:
    """Return a text that cannot end its quotation or begin another passage.

    Double quotes become single ones, and "Passage B:" becomes "Passage B,".
    """
    text = text.replace('"', "'").replace("“", "'").replace("”", "'")
    return _LABEL.sub(r"\1 \2,", text)


def without_tags(text: str) -> str:
    """Return a text that cannot close the <document> or <query> it stands in, or open another."""
    return _TAG.sub("&lt;", text)
