"""A server's answer while it is written: server-sent events over the samplers' own connection."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from tiebreak.app.answers import Answer, Stop, Writer
from tiebreak.recipe import Endpoint, LocalSampling
from tiebreak.records import Message
from tiebreak.samplers import CallError, Question
from tiebreak.samplers import calls as wire
from tiebreak.samplers.api import FINISH, ApiChat, Fault
from tiebreak.samplers.ledger import Call, Ledger
from tiebreak.samplers.prices import most_prompt_tokens, price_of


def api(section: Endpoint, messages: Sequence[Message], sampling: LocalSampling, seed: int, ledger: Path | None = None) -> Writer:
    """Return who writes with a server's model; its calls are entered in the account `ledger`, and no reply is kept."""

    def write(answer: Answer, stop: Stop) -> None:
        question = Question(tuple(messages), sampling.temperature, sampling.max_new_tokens, sampling.top_p, seed)
        if sampling.top_k:
            answer.notes = ("servers are not told of top_k",)
        _Streamed(section, ledger).write(question, answer, stop)

    return write


class _Delta(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    delta: _Delta = _Delta()
    finish_reason: str | None = None


class _Chunk(BaseModel):
    choices: list[_Choice] = []
    usage: Any = None
    error: Any = None


class _Streamed(ApiChat):
    """A server that is asked for its reply in pieces, as server-sent events."""

    def __init__(self, section: Endpoint, ledger: Path | None) -> None:
        super().__init__(section, f"playground.{section.model}", ledger)
        self._telling = True
        """Whether it is asked to count its tokens; some refuse the key."""
        self._used: tuple[int | None, int | None] = None, None
        """Tokens in and out of the try under way, as far as they are known."""

    def write(self, question: Question, answer: Answer, stop: Stop) -> None:
        """Write the reply to a question. Raises InputError, CallError."""
        section = self._section
        with closing(Ledger(self._ledger, self._name, price_of(section), section.budget_usd, section.max_calls)) as ledger:
            while (fault := self._try_once(ledger, question, answer, stop)) is not None:
                if not fault.free:
                    raise fault.problem

    def _try_once(self, ledger: Ledger, question: Question, answer: Answer, stop: Stop) -> Fault | None:
        """Make one call; what it may cost is reserved before, and what it did cost is entered after."""
        most, failed = Call(most_prompt_tokens(question), question.max_tokens), True
        ledger.reserve(most)
        self._used = None, None
        try:
            fault = self._ask(question, answer, stop)
            failed = fault is not None
            return fault
        finally:
            cost = ledger.settle(most, *self._used, failed=failed)
            answer.cost = None if failed or None in self._used else cost

    def _ask(self, question: Question, answer: Answer, stop: Stop) -> Fault | None:
        asked = self._body(question) | {"stream": True}
        if self._telling:
            asked["stream_options"] = {"include_usage": True}
        line = _Line(self._url, self._key, self._section.timeout)
        stop.also(line.cut)
        begun, lost = time.perf_counter(), None
        try:
            response = line.open(json.dumps(asked).encode())
            answer.state = "writing"
            if not 200 <= response.status < 300:
                return self._refused_stream(line.whole(response), asked)
            if "event-stream" not in response.getheader("Content-Type", ""):
                self._take_whole(line.whole(response), answer)
            else:
                self._take(_events(line.lines(response)), answer, begun)
        except wire.LostError as error:
            lost = error
            self._used = self._used if error.sent else (0, 0)
        finally:
            line.close()
            answer.seconds = time.perf_counter() - begun
        if stop.is_set() and answer.finish is None:
            answer.finish = "stopped"
        elif lost is not None:
            return self._no_answer(lost)
        elif answer.finish is None:
            raise CallError("the reply broke off")
        return None

    def _refused_stream(self, refusal: wire.Answer, asked: dict[str, Any]) -> Fault:
        self._used = 0, 0
        if refusal.status in (400, 422) and self._telling and b"stream_options" in refusal.body:
            self._telling = False
            return Fault(CallError("stream_options"), free=True)
        return self._refusal(refusal, asked)

    def _take(self, events: Iterable[bytes], answer: Answer, begun: float) -> None:
        for event in events:
            if event == b"[DONE]":
                answer.finish = answer.finish or "stop"
                return
            try:
                chunk = _Chunk.model_validate_json(event)
            except ValidationError:
                raise CallError(self._clean(f"not a piece of a completion: {event.decode(errors='replace')}")) from None
            if chunk.error:
                raise CallError(self._clean(wire.message(event)))
            for choice in chunk.choices[:1]:
                if choice.delta.content:
                    answer.text += choice.delta.content
                    answer.tokens += 1
                if choice.finish_reason:
                    answer.finish = FINISH.get(choice.finish_reason, "stop")
            answer.seconds = time.perf_counter() - begun
            if answer.first is None and answer.text:
                answer.first = answer.seconds
            self._count(answer, *wire.usage_of(chunk.usage))

    def _take_whole(self, whole: wire.Answer, answer: Answer) -> None:
        """Take the reply of a server that does not stream."""
        said = wire.read(whole.body)
        if said is None:
            raise CallError(self._clean(f"not a completion: {wire.message(whole.body)}"))
        answer.text, answer.finish = said.text or "", FINISH.get(said.finish_reason or "", "stop")
        answer.notes += ("the server does not stream",)
        self._count(answer, said.prompt_tokens, said.tokens)

    def _count(self, answer: Answer, asked: int | None, answered: int | None) -> None:
        if answered is not None:
            answer.tokens, self._used = answered, (asked, answered)


class _Line(wire.Line):
    """A connection over which a reply comes in pieces. What it raises is a LostError that does not hold the key."""

    _response: http.client.HTTPResponse | None = None

    def open(self, body: bytes) -> http.client.HTTPResponse:
        """Send a body, and return the reply as far as its head."""
        sent, problem = False, ""
        try:
            self._open()
            sent = True
            assert self._sock is not None  # noqa: S101  _open
            self._sock.settimeout(self._seconds)
            self._connection.request("POST", self._target, body, self._headers)
            self._response = self._connection.getresponse()
            return self._response
        except (OSError, ValueError, http.client.HTTPException) as error:
            problem = self._why(error)
        raise wire.LostError(problem, sent=sent)

    def lines(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        """Yield a reply's lines as they come; `timeout` seconds of silence end it."""
        size, problem = 0, ""
        try:
            while line := response.readline(wire.MOST_BYTES):
                size += len(line)
                if size > wire.MOST_BYTES:
                    raise http.client.HTTPException(f"a reply of more than {wire.MOST_BYTES >> 20} MB")
                yield line
        except (OSError, ValueError, http.client.HTTPException) as error:
            problem = self._why(error)
        if problem:
            raise wire.LostError(problem, sent=True)

    def whole(self, response: http.client.HTTPResponse) -> wire.Answer:
        """Return a reply that does not come in pieces."""
        head = response.getheader("Retry-After"), response.getheader("Location")
        return wire.Answer(response.status, b"".join(self.lines(response)), *head)

    def close(self) -> None:
        """Hang up, whatever may still come."""
        if self._response is not None:  # which holds the socket where it is the last on it
            self._response.close()
        super().close()

    def _why(self, error: Exception) -> str:
        if isinstance(error, TimeoutError):
            return f"nothing came for {self._seconds:g} s"
        if isinstance(error, http.client.IncompleteRead):
            return "the reply broke off"
        return str(error) or type(error).__name__


def _events(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the data of server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""
    data: list[bytes] = []
    for line in lines:
        field, _, value = line.rstrip(b"\r\n").partition(b":")
        if field == b"data":
            data.append(value.removeprefix(b" "))
        elif not field and not value and data:
            yield b"\n".join(data)
            data = []
    if data:  # the last one may lack its empty line
        yield b"\n".join(data)
