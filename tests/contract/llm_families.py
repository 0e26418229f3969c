"""Large language models to rerank with: one behind a server of these tests, and tiny local ones."""

from __future__ import annotations

import atexit
import functools
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "models" / "llm"))

from crossrank.cache import ScoreCache
from crossrank.models.llm import Endpoint
from crossrank.models.reranker import Reranker


def checksum(text: str) -> float:
    """What the server's model finds a text worth: anything, as long as it is always the same."""
    return zlib.crc32(text.encode()) % 2001 / 100 - 10


@functools.cache
def endpoint() -> Endpoint:
    """A model that always answers right; its server lives as long as the tests."""
    from chat_server import ChatServer, right

    server = ChatServer()
    server.does(functools.partial(right, value=checksum))
    server.__enter__()
    model = Endpoint("oracle", base_url=server.url, api_key="none", backoff_s=0.01, timeout_s=30)
    atexit.register(server.__exit__)
    atexit.register(model.close)
    return model


@functools.cache
def causal(kind: str) -> Any:
    """A tiny local model with random weights."""
    from tiny_models import MAKERS

    from crossrank.models.llm import CausalLM

    model, tokenizer = MAKERS[kind]()
    return CausalLM(model, tokenizer=tokenizer)


def asking(make: Callable[..., Reranker], **options: Any) -> Callable[..., Reranker]:
    """A factory of rerankers that ask the server."""

    def build(*, progress: bool | None = None, cache: ScoreCache | None = None) -> Reranker:
        return make(endpoint(), progress=progress, **options)

    return build


def local(make: Callable[..., Reranker], kind: str, **options: Any) -> Callable[..., Reranker]:
    """A factory of rerankers that run a local model."""

    def build(*, progress: bool | None = None, cache: ScoreCache | None = None) -> Reranker:
        return make(causal(kind), progress=progress, **options)

    return build
