"""A server that answers by script, for the faults that no real server can be asked for."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behaviour = Callable[[BaseHTTPRequestHandler], None]
Script = Sequence[Behaviour] | Callable[[int, dict[str, Any]], Behaviour]


def body(code: int, content: bytes, kind: str = "application/json", claimed: int | None = None, **headers: str) -> Behaviour:
    """Answer with these bytes; `claimed` is the length that the header tells."""

    def behave(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(content) if claimed is None else claimed))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content)

    return behave


def completion(text: str | None, finish_reason: str | None = "stop") -> bytes:
    """Return the body of a chat completion."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return json.dumps({"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage}).encode()


def reply(text: str | None, finish_reason: str | None = "stop") -> Behaviour:
    return body(200, completion(text, finish_reason))


def error(code: int, message: str = "no", **headers: str) -> Behaviour:
    return body(code, json.dumps({"error": {"message": message}}).encode(), **headers)


def slow(seconds: float, then: Behaviour) -> Behaviour:
    def behave(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(seconds)
        then(handler)

    return behave


def reset(handler: BaseHTTPRequestHandler) -> None:
    """Break the connection off with a TCP reset."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


class Stub:
    """What the server was asked: `requests` holds the JSON bodies in order, `times` when they came."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.headers: list[dict[str, str]] = []

    @property
    def calls(self) -> int:
        return len(self.requests)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that went away is what some tests are about."""


@contextmanager
def stub(script: Script) -> Iterator[Stub]:
    """Serve a script: behaviours in turn, the last one for ever, or a function of the call's number and body."""
    seen, lock = Stub(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = seen.calls
                seen.requests.append(asked)
                seen.times.append(time.monotonic())
                seen.headers.append({name.lower(): value for name, value in self.headers.items()})
            behave = script(number, asked) if callable(script) else script[min(number, len(script) - 1)]
            behave(self)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = _Server(("127.0.0.1", 0), Handler)
    seen.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
