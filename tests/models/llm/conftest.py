"""A chat server with a model of known answers, and tiny local models with random weights."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from chat_server import ChatServer

from crossrank.models.llm import Endpoint


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with ChatServer() as running:
        yield running


@pytest.fixture
def endpoint(server: ChatServer) -> Iterator[Endpoint]:
    pytest.importorskip("openai")
    with Endpoint("oracle", base_url=server.url, backoff_s=0.01, timeout_s=10) as model:
        yield model


@functools.cache
def _tiny(kind: str) -> Any:
    from tiny_models import MAKERS

    from crossrank.models.llm import CausalLM

    model, tokenizer = MAKERS[kind]()
    return CausalLM(model, tokenizer=tokenizer)


@pytest.fixture(params=["qwen", "gemma", "llama"])
def local(request: pytest.FixtureRequest) -> Any:
    """A tiny model of each architecture."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    return _tiny(request.param)


@pytest.fixture
def tiny() -> Any:
    """Gives the tiny model of an architecture."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    return _tiny
