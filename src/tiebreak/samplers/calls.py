"""One call to a server: the threads that make calls, the connection a call goes over, and what comes back."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
import time
import urllib.request
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from queue import SimpleQueue
from typing import Any, Generic, NamedTuple, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit

from pydantic import BaseModel, Field, ValidationError

import tiebreak
from tiebreak.records import InputError

T = TypeVar("T")
U = TypeVar("U")

CONNECT_SECONDS = 10.0
MOST_BYTES = 32 << 20
"""A longer reply is a fault of the server's; the longest real ones, with log-probs, stay under a quarter of it."""
LOCAL = ("127.0.0.1", "::1", "localhost", "0.0.0.0")  # noqa: S104  compared with, not bound to


class LostError(Exception):
    """A call without a reply."""

    def __init__(self, said: str, *, sent: bool) -> None:
        """`sent` is whether somebody was reached, who may have worked for it and charged it."""
        super().__init__(said)
        self.sent = sent


class Answer(NamedTuple):
    """What a server answered, whatever it means."""

    status: int
    body: bytes
    retry_after: str | None = None
    location: str | None = None


# --- threads -------------------------------------------------------------------------------------------------------


class Crew(Generic[T, U]):
    """Threads that do pieces of work, each with a connection of its own; it starts as many as there is work for.

    Threads, not an event loop: a loop that is running already (Jupyter's) does not matter, and calls do not queue up
    behind each other's steps.
    """

    def __init__(self, work: Callable[[Line, T], U], line: Callable[[], Line], size: int, stopped: threading.Event) -> None:
        """`stopped` is set when what is under way is to end."""
        self._work, self._line, self._size, self._stopped = work, line, size, stopped
        self._todo: SimpleQueue[T | None] = SimpleQueue()
        self._done: SimpleQueue[U | Exception] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lines: list[Line] = []

    def give(self, item: T) -> None:
        """Hand out a piece of work."""
        self._todo.put(item)
        if len(self._threads) < self._size:
            self._lines.append(self._line())
            # A daemon: a program that ends in the middle does not wait for replies.
            self._threads.append(threading.Thread(target=self._run, args=(self._lines[-1],), name="call", daemon=True))
            self._threads[-1].start()

    @property
    def ready(self) -> bool:
        """Whether `take` would not wait."""
        return not self._done.empty()

    def take(self) -> U:
        """Return what came of one piece, in any order, or raise what it raised."""
        outcome = self._done.get()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def close(self) -> None:
        """Break off what is under way."""
        self._stopped.set()
        for line in self._lines:
            line.cut()
        for _ in self._threads:
            self._todo.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self, line: Line) -> None:
        while (item := self._todo.get()) is not None and not self._stopped.is_set():
            try:
                self._done.put(self._work(line, item))
            except Exception as error:
                self._done.put(error)
        line.close()


class Pace:
    """Lets through so much a minute, evenly, in the order of asking; without a limit, everything."""

    def __init__(self, per_minute: int | None) -> None:
        self._seconds = 60 / per_minute if per_minute else 0.0
        self._turn, self._lock = threading.Lock(), threading.Lock()
        self._free = 0.0
        """When the next may go, on the monotonic clock."""

    def wait(self, amount: float, stop: threading.Event) -> None:
        """Wait until `amount` may go, or until `stop`."""
        with self._turn:
            while (left := self._free - time.monotonic()) > 0 and not stop.wait(left):
                pass  # it may have been put off in the meantime
            with self._lock:
                self._free = max(self._free, time.monotonic()) + amount * self._seconds

    def correct(self, amount: float) -> None:
        """Take back an estimate, or add to it."""
        with self._lock:
            self._free += amount * self._seconds

    def put_off(self, seconds: float) -> None:
        """Let nothing through for so long."""
        with self._lock:
            self._free = max(self._free, time.monotonic() + seconds)


# --- connection ----------------------------------------------------------------------------------------------------


class Line:
    """A connection to one address, kept open between calls, and opened again where the server hung up."""

    def __init__(self, url: str, key: str | None, seconds: float) -> None:
        """`seconds` is for one call. Raises InputError where the environment names a proxy that cannot be used."""
        self._seconds, self._cut = seconds, False
        self._sock: socket.socket | None = None
        self._headers = {
            "Authorization": f"Bearer {key or 'none'}",
            "Content-Type": "application/json",
            "User-Agent": f"tiebreak/{tiebreak.__version__}",
        }
        parts = urlsplit(url)
        self._target = f"{parts.path.rstrip('/')}/chat/completions"
        self._connection = self._connect(parts, _proxy(parts))

    def _connect(self, parts: SplitResult, proxy: SplitResult | None) -> http.client.HTTPConnection:
        host, seconds = (proxy or parts).hostname or "", min(self._seconds, CONNECT_SECONDS)
        secret = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}" if proxy and proxy.username else ""
        allowed = {"Proxy-Authorization": f"Basic {b64encode(secret.encode()).decode()}"} if secret else {}
        if parts.scheme == "https":
            secure = http.client.HTTPSConnection(
                host, proxy.port or 80 if proxy else parts.port, timeout=seconds, context=_trusting()
            )
            if proxy:
                secure.set_tunnel(parts.hostname or "", parts.port, allowed)
            return secure
        if proxy:
            self._target = f"{parts.scheme}://{parts.netloc}{self._target}"
            self._headers |= allowed
        return http.client.HTTPConnection(host, (proxy or parts).port, timeout=seconds)

    def post(self, body: bytes) -> Answer:
        """Send a body and return the answer; redirects are not followed. Raises LostError."""
        end, sent = time.monotonic() + self._seconds, False
        try:
            self._open()
            sent = True
            return self._exchange(body, end)
        except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: a host that cannot be one
            problem = error
        self._connection.close()
        if isinstance(problem, TimeoutError):
            said = f"no reply within {self._seconds:g} s" if sent else f"none within {self._connection.timeout:g} s"
        elif isinstance(problem, http.client.IncompleteRead):
            said = "the reply broke off"
        else:
            said = str(problem) or type(problem).__name__
        raise LostError(said, sent=sent)

    def _open(self) -> None:
        if self._connection.sock is not None and _hung_up(self._connection.sock):
            self._connection.close()
        if self._connection.sock is None:
            self._connection.connect()
        self._sock = self._connection.sock
        if self._cut:
            raise ConnectionAbortedError

    def _exchange(self, body: bytes, end: float) -> Answer:
        assert self._sock is not None  # noqa: S101  _open
        self._sock.settimeout(_left(end))
        self._connection.request("POST", self._target, body, self._headers)
        self._sock.settimeout(_left(end))
        with self._connection.getresponse() as response:
            pieces, size = [], 0
            while piece := response.read1(1 << 16):
                self._sock.settimeout(_left(end))
                size += len(piece)
                if size > MOST_BYTES:
                    raise http.client.HTTPException(f"a reply of more than {MOST_BYTES >> 20} MB")
                pieces.append(piece)
            response.read()  # ends it, so that the connection can be used again
            if response.length:  # less came than was promised
                raise http.client.IncompleteRead(b"")
            return Answer(response.status, b"".join(pieces), response.getheader("Retry-After"), response.getheader("Location"))

    def cut(self) -> None:
        """Break off the call under way, from another thread; a cut line makes no further call."""
        self._cut = True
        if self._sock is not None:
            with suppress(OSError):  # not the TLS layer's shutdown, which is not for a second thread
                socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


def is_local(url: str) -> bool:
    """Tell whether an address is on this machine."""
    return (urlsplit(url).hostname or "") in LOCAL


def _proxy(parts: SplitResult) -> SplitResult | None:
    """Return the proxy that the environment names for an address on another machine."""
    proxies = urllib.request.getproxies()
    named = proxies.get(parts.scheme) or proxies.get("all")
    if not named or parts.hostname in LOCAL or urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    proxy = urlsplit(named if "://" in named else f"http://{named}")
    if proxy.scheme not in ("http", "https"):
        raise InputError(f"{parts.scheme}_proxy: {proxy.scheme} proxies cannot be used; name an http one, or unset it")
    return proxy


def _trusting() -> ssl.SSLContext:
    """Return settings that trust what the operating system trusts, a company's own authorities included."""
    import truststore

    return truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _hung_up(sock: socket.socket) -> bool:
    """Tell whether the other side closed an idle connection: a call sent down it would be lost, and perhaps charged."""
    sock.settimeout(0)
    try:
        socket.socket.recv(sock, 1, socket.MSG_PEEK)  # below TLS, which cannot peek
    except (BlockingIOError, InterruptedError):
        return False
    except OSError:
        return True
    return True


# --- what comes back -----------------------------------------------------------------------------------------------


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None
    logprobs: Any = None


class _Body(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: Any = None


class Said(NamedTuple):
    """A completion as it came; token counts are None where they were not told, or not credibly."""

    text: str | None
    finish_reason: str | None
    prompt_tokens: int | None
    tokens: int | None
    logprobs: tuple[tuple[str, dict[str, float]], ...]


def read(body: bytes) -> Said | None:
    """Return the completion in a body, None where there is none."""
    try:
        answer = _Body.model_validate_json(body)
    except ValidationError:
        return None
    choice = answer.choices[0]
    return Said(choice.message.content, choice.finish_reason, *usage_of(answer.usage), _logprobs(choice.logprobs))


def usage_of(told: Any) -> tuple[int | None, int | None]:
    """Return tokens in and out. What a model thought is paid for as output, though some count it in the total alone."""
    counts = told if isinstance(told, dict) else {}
    asked, answered, total = (
        count if type(count := counts.get(f"{name}_tokens")) is int and 0 <= count < 2**40 else None
        for name in ("prompt", "completion", "total")
    )
    if answered is not None and asked is not None and total is not None:
        answered = max(answered, total - asked)
    return asked or None, answered


def _logprobs(told: Any) -> tuple[tuple[str, dict[str, float]], ...]:
    try:
        return tuple(
            (at["token"], {each["token"]: float(each["logprob"]) for each in (*reversed(at.get("top_logprobs") or ()), at)})
            for at in told["content"]
        )
    except (TypeError, KeyError, ValueError, AttributeError):
        return ()  # they are a help, not the answer


def message(body: bytes) -> str:
    """Return the message inside an error body, which providers nest in their own ways, or the body as it is."""
    text = body.decode(errors="replace")
    said = _parsed(text)
    if said is None:
        return text
    while isinstance(said, dict | list) and said:
        if isinstance(said, list):
            said = said[0]
        elif key := next((key for key in ("error", "message", "detail") if said.get(key)), None):
            said = said[key]
        else:
            break
    return said if isinstance(said, str) else json.dumps(said)


def error_code(body: bytes) -> str | None:
    """Return the code that an error body in OpenAI's form carries."""
    said = _parsed(body.decode(errors="replace"))
    error = said.get("error") if isinstance(said, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, str) else None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def seconds_of(retry_after: str | None) -> float:
    """Return how long a Retry-After asks to wait, given in seconds or as a date; 0 where it says nothing readable."""
    if not retry_after:
        return 0.0
    with suppress(ValueError):
        seconds = float(retry_after)
        return seconds if seconds > 0 else 0.0  # NaN is not
    with suppress(ValueError):
        until = parsedate_to_datetime(retry_after)
        return max(0.0, (until - datetime.now(UTC)).total_seconds()) if until.tzinfo else 0.0
    return 0.0
