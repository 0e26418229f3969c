"""A chat server on a real socket, whose model reads the prompts of every method and may misbehave.

Its model knows a document's worth from a number in it ("worth 7"), so the right answer to any prompt is
known. What it does with a request is a list of behaviours, one taken for each; the last one stays.
"""

from __future__ import annotations

import json
import math
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[["Call"], "Sent"]


@dataclass
class Sent:
    """What goes back: a status and a body, after a while; or nothing, and the connection is dropped."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    drop: bool = False


@dataclass
class Call:
    """A request as it came."""

    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def text(self) -> str:
        return "\n".join(message["content"] for message in self.body["messages"])

    @property
    def last(self) -> str:
        return self.body["messages"][-1]["content"]


# --- the prompts, read back ---------------------------------------------------------------------------


def passages(call: Call) -> dict[str, str]:
    """What a prompt shows, by identifier: numbers, letters, or "document"."""
    if call.last.startswith("<query>"):
        return {"document": re.search(r"<document>(.*)</document>", call.last, re.DOTALL)[1]}
    if call.last.startswith('Given a query "'):
        return dict(re.findall(r'^Passage ([A-T]): "(.*)"$', call.last, re.MULTILINE))
    lines = [line for message in call.body["messages"] for line in message["content"].splitlines()]
    return dict(re.findall(r"^\[(\d+)\] (.*)$", "\n".join(lines), re.MULTILINE))


def worth(text: str) -> float:
    found = re.search(r"worth (-?\d+)", text)
    return float(found[1]) if found else 0.0


# --- answers ------------------------------------------------------------------------------------------


def completion(
    text: str | None, *, call: Call, finish: str = "stop", logprobs: Any = None, **message: Any
) -> Any:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, **message},
        "finish_reason": finish,
        "logprobs": logprobs,
    }
    usage = {"prompt_tokens": len(call.text.split()), "completion_tokens": 3, "total_tokens": 0}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [choice],
        "usage": usage,
    }


def token_logprobs(shown: dict[str, float]) -> Any:
    tops = [{"token": token, "logprob": value, "bytes": None} for token, value in shown.items()]
    best = max(tops, key=lambda top: top["logprob"])
    return {"content": [{**best, "top_logprobs": tops}], "refusal": None}


def right(call: Call, value: Callable[[str], float] = worth) -> Sent:
    """The true answer, by the worth of what is shown."""
    shown = passages(call)
    if "document" in shown:
        odds = value(shown["document"])
        yes = -math.log1p(math.exp(-odds))
        probabilities = {"Yes": yes, "No": yes - odds, " maybe": -12.0}
        word = "Yes" if odds > 0 else "No"
        return Sent(completion(word, call=call, logprobs=token_logprobs(probabilities)))
    order = sorted(shown, key=lambda name: -value(shown[name]))
    if order[0].isdigit():
        return Sent(completion(" > ".join(f"[{name}]" for name in order), call=call))
    return Sent(completion(f"Passage {order[0]}", call=call))


def says(text: str | None, *, finish: str = "stop", **message: Any) -> Reply:
    return lambda call: Sent(completion(text, call=call, finish=finish, **message))


def fails(status: int, *, code: str | None = None, **headers: str) -> Reply:
    body = {"error": {"message": f"failure {status}", "type": "error", "code": code}}
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda call: Sent(body, status, given)


def stalls(seconds: float) -> Reply:
    def reply(call: Call) -> Sent:
        sent = right(call)
        sent.delay_s = seconds
        return sent

    return reply


def drops(call: Call) -> Sent:
    return Sent(drop=True)


def garbage(call: Call) -> Sent:
    return Sent("this is no JSON at all")


class ChatServer:
    """Listens on a port of its own; a context manager."""

    def __init__(self) -> None:
        self.behaviours: list[Reply] = [right]
        self.calls: list[Call] = []
        self.hung_up = 0
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                call = Call(body, {name.lower(): value for name, value in self.headers.items()})
                with owner._lock:
                    owner.calls.append(call)
                    reply = owner.behaviours[0]
                    if len(owner.behaviours) > 1:
                        owner.behaviours.pop(0)
                    owner._at_once += 1
                    owner.most_at_once = max(owner.most_at_once, owner._at_once)
                try:
                    self._send(reply(call))
                finally:
                    with owner._lock:
                        owner._at_once -= 1

            def _send(self, sent: Sent) -> None:
                if sent.drop:
                    linger = struct.pack("ii", 1, 0)  # a reset, not an orderly end
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    self.close_connection = True
                    self.connection.close()
                    return
                end = time.monotonic() + sent.delay_s
                while time.monotonic() < end and not owner._closing.is_set():
                    if self._peer_is_gone():
                        owner.hung_up += 1
                        self.close_connection = True
                        return
                    time.sleep(0.01)
                content = sent.body if isinstance(sent.body, str) else json.dumps(sent.body)
                data = content.encode()
                self.send_response(sent.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                for name, value in sent.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def _peer_is_gone(self) -> bool:
                try:
                    return self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
                except BlockingIOError:
                    return False
                except OSError:
                    return True

            def log_message(self, *arguments: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *arguments: Any) -> None:
                pass  # a client that hung up is part of the tests

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def does(self, *behaviours: Reply) -> None:
        self.behaviours = list(behaviours)

    def __enter__(self) -> ChatServer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
