"""The texts that a folder says are to be put before queries and documents."""

from __future__ import annotations

from crossrank.runtime.checkpoint import Checkpoint

__all__ = ["stated_prompts"]

_QUERY_PROMPTS = ("query",)
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")  # in sentence-transformers' order


def stated_prompts(checkpoint: Checkpoint) -> tuple[str, str]:
    """Return the folder's prompts for queries and documents, "" for none.

    A folder's "query" prompt is for queries, the first of its "document", "passage" and "corpus" prompts for
    documents. Where it states none of them, not even an empty one, its default prompt is meant, unless that
    is one of those named.
    """
    stated = checkpoint.prompts
    default = checkpoint.default_prompt_name
    if default in (*_QUERY_PROMPTS, *_DOCUMENT_PROMPTS):
        default = None  # it is for one of the two only

    def first(*names: str | None) -> str:
        # An empty prompt is a statement too: no other one is looked for.
        return next((stated[name] for name in names if name in stated), "")

    return first(*_QUERY_PROMPTS, default), first(*_DOCUMENT_PROMPTS, default)
