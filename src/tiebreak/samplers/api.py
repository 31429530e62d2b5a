"""Completions from any OpenAI-compatible server, and the calls that a judge makes to one.

Importing this module leaves openai aside, so that the door may call `check_keys`.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, NamedTuple, TypeVar

import dotenv
from pydantic import BaseModel, Field, ValidationError

from tiebreak.recipe import ApiSampler, Endpoint
from tiebreak.records import Completion, InputError, Message, Prompt, content_hash

T = TypeVar("T")
U = TypeVar("U")
Finish = Literal["stop", "length", "content_filter"]


class Preset(NamedTuple):
    """What is known of a provider."""

    base_url: str
    key: str | None
    """Environment variable of the key; None where the server wants none."""
    max_tokens: str = "max_tokens"
    """What the provider calls the longest reply."""
    seed: bool = True
    """Whether it takes a seed; Gemini's endpoint answers 400 to one."""
    top_p_is_1: bool = False
    """Whether top_p is 1 where none is sent: some models of such a provider refuse the key itself."""


PRESETS: dict[str, Preset] = {
    "gemini": Preset("https://generativelanguage.googleapis.com/v1beta/openai/", "GEMINI_API_KEY", seed=False),
    "together": Preset("https://api.together.xyz/v1", "TOGETHER_API_KEY"),
    "openai": Preset("https://api.openai.com/v1", "OPENAI_API_KEY", "max_completion_tokens", top_p_is_1=True),
    "openrouter": Preset("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY", top_p_is_1=True),
    "groq": Preset("https://api.groq.com/openai/v1", "GROQ_API_KEY", "max_completion_tokens", top_p_is_1=True),
    "vllm": Preset("http://127.0.0.1:8000/v1", None),
    "ollama": Preset("http://127.0.0.1:11434/v1", None),
    "llamacpp": Preset("http://127.0.0.1:8080/v1", None),
    "custom": Preset("", None),
}

CLIENT_WAITS, LONGEST_WAIT = 120.0, 600.0
"""Seconds of Retry-After: the openai client waits up to the first by itself, we up to the second; more is an error."""


class CallError(Exception):
    """A call that failed for good, in one line without a secret; the next call may succeed."""


class Reply(NamedTuple):
    """What a server answered; token counts are None where it gave none."""

    text: str
    finish_reason: Finish
    tokens: int | None
    prompt_tokens: int | None


class _Said(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Said
    finish_reason: str | None = None


class _Usage(BaseModel):
    completion_tokens: int | None = None
    prompt_tokens: int | None = None


class _Body(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


def read_key(section: Endpoint) -> str | None:
    """Return the key of an endpoint from the environment or ./.env, None where it needs none; raise InputError."""
    name = section.api_key_env or PRESETS[section.provider].key
    if name is None:
        return None
    try:
        key = os.environ.get(name) or dotenv.dotenv_values(".env", encoding="utf-8-sig").get(name) or ""
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{Path('.env').resolve()}: cannot be read as text; save it as UTF-8") from None
    key = key.strip()
    if not key:
        raise InputError(f"provider {section.provider} needs a key: set {name} in the environment or in .env")
    if not (key.isascii() and key.isprintable() and " " not in key):
        # HTTP refuses such a header in an exception that quotes it.
        raise InputError(f"{name}: holds spaces or signs that no key has; copy the key again")
    return key


def check_keys(sections: Iterable[object]) -> None:
    """Raise InputError for the first endpoint among a recipe's sections whose key is missing."""
    for section in sections:
        if isinstance(section, Endpoint):
            read_key(section)


class Chat:
    """Connections to one endpoint; made for one event loop and closed in it."""

    def __init__(self, section: Endpoint) -> None:
        """Read the key and open the client; raises InputError before any call."""
        import openai

        self._section, self._preset, self._key = section, PRESETS[section.provider], read_key(section)
        self._seed, self._heard = self._preset.seed, False
        self._url = section.base_url or self._preset.base_url
        self._client = openai.AsyncOpenAI(
            api_key=self._key or "none", base_url=self._url, timeout=section.timeout, max_retries=section.max_retries
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def ask(
        self,
        messages: Iterable[Message],
        temperature: float,
        max_tokens: int,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> Reply:
        """Ask once, with the client's retries, and return the reply.

        Raises CallError where this call failed, InputError where every call would.
        """
        import openai

        settings: dict[str, Any] = {"temperature": temperature, self._preset.max_tokens: max_tokens}
        if top_p is not None and not (top_p == 1 and self._preset.top_p_is_1):
            settings["top_p"] = top_p
        if seed is not None and self._seed:
            settings["seed"] = seed
        tries = self._section.max_retries
        while True:
            try:
                answer = await self._client.chat.completions.with_raw_response.create(
                    model=self._section.model,
                    messages=[{"role": message.role, "content": message.content} for message in messages],  # type: ignore[misc]
                    **settings,
                )
                self._heard = True
                return self._read(answer.http_response.content, max_tokens)
            except openai.APIStatusError as error:
                self._heard = True
                problem, wait = self._refusal(error), _long_wait(error.response.headers.get("retry-after"))
                if "seed" in settings and error.status_code in (400, 422) and "seed" in str(problem):
                    self._seed = False  # a server that does not know the key
                    del settings["seed"]
                    continue
            except openai.APITimeoutError:
                problem, wait = CallError(f"no reply within {self._section.timeout:g} s"), None
            except openai.APIConnectionError as error:
                problem, wait = self._no_connection(error.__cause__ or error), None
            # Raised here and not above, the error does not carry the request, which holds the key, as its context.
            if wait is None or not tries:
                raise problem
            tries -= 1
            await asyncio.sleep(wait)

    def _read(self, body: bytes, max_tokens: int) -> Reply:
        try:
            answer = _Body.model_validate_json(body)
        except ValidationError:
            answer = None
        if answer is None:
            raise CallError(self._clean(f"not a completion: {_message(body)}" if body.strip() else "an empty body"))
        choice, usage = answer.choices[0], answer.usage or _Usage()
        text, finish = choice.message.content, _FINISH.get(choice.finish_reason or "", "stop")
        if not text and finish == "length":  # models that think first may use up the tokens before they say a word
            raise CallError(f"no text within {max_tokens} tokens; raise max_new_tokens")
        if text is None and finish != "content_filter":
            raise CallError(f"no text (finish_reason {self._clean(str(choice.finish_reason))})")
        return Reply(text or "", finish, usage.completion_tokens, usage.prompt_tokens)

    def _refusal(self, error: Any) -> Exception:
        """Say what an openai.APIStatusError means: this call failed, or every call will."""
        status, said = error.status_code, self._clean(_message(error.response.content))
        who = f"provider {self._section.provider}"
        key = self._section.api_key_env or self._preset.key or "api_key_env"
        if status == 401 or (status == 400 and "api key" in said.lower()):
            return InputError(f"{who} refused the key: check {key} (HTTP {status})")
        if status in (402, 403):
            return InputError(f"{who} refused the call: check {key} and the account (HTTP {status}: {said})")
        if status == 404:
            return InputError(f"{who} has no model {self._section.model!r} at {self._url} (HTTP 404: {said})")
        if error.code == "insufficient_quota":
            return InputError(f"{who}: the account has nothing left (HTTP {status}: {said})")
        return CallError(f"HTTP {status}: {said}")

    def _no_connection(self, cause: BaseException) -> Exception:
        said = self._clean(f"no connection to {self._url}: {str(cause) or type(cause).__name__}")
        if type(cause).__name__ == "ConnectError" and not self._heard:  # httpx's, or that of its successor
            return InputError(f"{said}; is the server running, and base_url right?")
        return CallError(said)

    def _clean(self, text: str) -> str:
        """Make one line of at most 200 characters, without the key."""
        if self._key:
            text = text.replace(self._key, "[key]")
        text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
        return text if len(text) <= 200 else f"{text[:199]}…"


_FINISH: dict[str, Finish] = {"length": "length", "max_tokens": "length", "content_filter": "content_filter"}


def _message(body: bytes) -> str:
    """Return the message inside an error body, which providers nest in their own ways, or the body as it is."""
    text = body.decode(errors="replace")
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return text
    while isinstance(said, dict | list) and said:
        if isinstance(said, list):
            said = said[0]
        elif key := next((key for key in ("error", "message", "detail") if said.get(key)), None):
            said = said[key]
        else:
            break
    return said if isinstance(said, str) else json.dumps(said)


def _long_wait(retry_after: str | None) -> float | None:
    """Return the seconds of a Retry-After that the client does not wait for and we do."""
    try:
        seconds = float(retry_after or 0)
    except ValueError:
        return None
    return seconds if CLIENT_WAITS < seconds <= LONGEST_WAIT else None


def stream(
    call: Callable[[T], Awaitable[U]],
    items: Iterable[T],
    concurrency: int,
    close: Callable[[], Awaitable[None]] | None = None,
) -> Iterator[U]:
    """Yield `call(item)` for every item, as results come, with at most `concurrency` calls in flight.

    The calls run in an event loop of their own, in a thread, so that a running loop (Jupyter's) does not matter.
    Items are taken as calls end. An exception of a call or closing the iterator cancels the calls in flight; `close`
    is awaited at the end, in the loop of the calls.
    """
    from anyio.from_thread import start_blocking_portal

    done: SimpleQueue[Future[U]] = SimpleQueue()
    in_flight = 0
    with start_blocking_portal() as portal:
        try:
            for item in items:
                portal.start_task_soon(call, item).add_done_callback(done.put)
                in_flight += 1
                if in_flight == concurrency:
                    in_flight -= 1
                    yield done.get().result()
            for _ in range(in_flight):
                yield done.get().result()
        finally:
            if close is not None:
                portal.call(close)


class Api:
    """Draws completions from a server, each with a request of its own: the API's `n` is not in every server."""

    def __init__(self, section: ApiSampler, seed: int) -> None:
        """Raise InputError where the key is missing."""
        read_key(section)
        self.label, self.n = section.label, section.n
        self.failures: list[str] = []
        """Why draws failed, one line each."""
        self._section, self._seed = section, seed

    def sample(self, prompts: Iterable[Prompt], have: frozenset[tuple[str, int]] = frozenset()) -> Iterator[Completion]:
        """Yield draws as they come; one that failed is left out and told in `failures`.

        Raises InputError where every further call would fail the same way.
        """
        section, chat = self._section, Chat(self._section)

        async def draw(owed: tuple[Prompt, int]) -> Completion | CallError:
            prompt, number = owed
            try:
                reply = await chat.ask(
                    prompt.messages,
                    section.temperature,
                    section.max_new_tokens,
                    section.top_p,
                    seed=int(content_hash(self._seed, prompt.id, number), 16) % 2**31,
                )
            except CallError as error:
                return error
            return Completion.of(
                prompt.id,
                reply.text,
                sampler=self.label,
                sampling=section.model_dump(include={"temperature", "top_p", "max_new_tokens"}, mode="json"),
                draw=number,
                finish_reason=reply.finish_reason,
                tokens=reply.tokens,
            )

        owed = ((prompt, number) for prompt in prompts for number in range(self.n) if (prompt.id, number) not in have)
        for outcome in stream(draw, owed, section.concurrency, chat.close):
            if isinstance(outcome, CallError):
                self.failures.append(str(outcome))
            else:
                yield outcome
