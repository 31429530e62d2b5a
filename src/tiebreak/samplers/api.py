"""OpenAI-compatible servers: presets, keys, and the questions and draws that are asked of one."""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import dotenv

from tiebreak.models import cache
from tiebreak.progress import say
from tiebreak.recipe import ApiSampler, Endpoint
from tiebreak.records import Completion, InputError, Prompt, content_hash
from tiebreak.samplers import CallError, Finish, K, Question, Reply
from tiebreak.samplers.calls import Answer, Crew, Line, LostError, Pace, Said, error_code, message, read, seconds_of
from tiebreak.samplers.ledger import BudgetError, Call, Ledger
from tiebreak.samplers.prices import likely_prompt_tokens, most_prompt_tokens, price_of
from tiebreak.samplers.replies import Replies, key_of
from tiebreak.samplers.turns import completion, following


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
    schema: bool = False
    """Whether its models are known to keep to a JSON schema, whichever is asked."""
    logprobs: bool = False
    """Whether it is known to give log-probs in OpenAI's form."""


PRESETS: dict[str, Preset] = {
    "gemini": Preset("https://generativelanguage.googleapis.com/v1beta/openai/", "GEMINI_API_KEY", seed=False, schema=True),
    "together": Preset("https://api.together.xyz/v1", "TOGETHER_API_KEY"),
    "openai": Preset(
        "https://api.openai.com/v1",
        "OPENAI_API_KEY",
        "max_completion_tokens",
        top_p_is_1=True,
        schema=True,
        logprobs=True,
    ),
    "openrouter": Preset("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY", top_p_is_1=True),
    "groq": Preset("https://api.groq.com/openai/v1", "GROQ_API_KEY", "max_completion_tokens", top_p_is_1=True),
    "vllm": Preset("http://127.0.0.1:8000/v1", None, schema=True, logprobs=True),
    "ollama": Preset("http://127.0.0.1:11434/v1", None, schema=True, logprobs=True),
    "llamacpp": Preset("http://127.0.0.1:8080/v1", None, schema=True, logprobs=True),
    "custom": Preset("", None),
}

LONGEST_WAIT = 600.0
"""Seconds of Retry-After that are waited for; more is an error."""
BACK_OFF, LONGEST_BACK_OFF = 1.0, 30.0
"""Seconds before the first try again, at most, and before any."""
AGAIN = (408, 409, 425, 429)
"""Statuses that may pass, besides those of the server's own faults."""


class Optional(NamedTuple):
    """What is asked for and can be done without."""

    keys: tuple[str, ...]
    words: tuple[str, ...]
    """One of which a server uses when it refuses the keys."""


OPTIONAL = {
    "seed": Optional(("seed",), ("seed",)),
    "schema": Optional(("response_format",), ("response_format", "schema")),
    "logprobs": Optional(("logprobs", "top_logprobs"), ("logprobs",)),
    "temperature": Optional(("temperature",), ("temperature",)),
}
TOP_LOGPROBS = 10


def read_key(section: Endpoint) -> str | None:
    """Return the key of an endpoint from the environment or ./.env, None where it needs none; raise InputError."""
    name = _key_name(section)
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


def _key_name(section: Endpoint) -> str | None:
    return section.api_key_env or (PRESETS[section.provider].key if section.provider in PRESETS else None)


def check_keys(sections: Iterable[object]) -> None:
    """Raise InputError for the first server among a recipe's sections whose key, or price under a budget, is missing."""
    for section in sections:
        if isinstance(section, Endpoint) and section.provider != "local":
            read_key(section)
            check_price(section)


def check_price(section: Endpoint) -> None:
    """Raise InputError where a budget is set and no price is known."""
    if section.budget_usd is not None and price_of(section) is None:
        raise InputError(
            f"budget_usd: no price is known of {section.model!r} at {section.provider}; "
            "give it as price: {input: …, output: …}, in dollars for a million tokens"
        )


class _Desk(NamedTuple):
    """What one `ask` works with."""

    ledger: Ledger
    replies: Replies
    stopped: threading.Event


class Fault(NamedTuple):
    """Why a try has no reply."""

    problem: CallError | InputError
    again: bool = False
    """Whether another try may fare better."""
    free: bool = False
    """Whether that one does not count as one of the retries: what the server refused is left out of it."""


class ApiChat:
    """A server that is asked: known replies, the budget, the limits, retries, and calls side by side."""

    def __init__(self, section: Endpoint, name: str, ledger: Path | None) -> None:
        """`ledger` is the run's account of calls, `name` the part of the run; InputError where key or price is missing."""
        self._section, self._preset, self._key = section, PRESETS[section.provider], read_key(section)
        check_price(section)
        self.schema, self.logprobs = self._preset.schema, self._preset.logprobs
        self._url = (section.base_url or self._preset.base_url).rstrip("/")
        self._name, self._ledger = name, ledger
        self._refused = frozenset[str]() if self._preset.seed else frozenset({"seed"})
        self._heard = False
        self._requests, self._tokens = Pace(section.requests_per_minute), Pace(section.tokens_per_minute)

    def ask(self, items: Iterable[tuple[K, Question]]) -> Iterator[tuple[K, Reply | CallError]]:
        """Yield what came of every question, in any order; InputError where every further call would fail.

        Items are taken in the caller's thread, and at most twice `concurrency` of them are on their way.
        """
        section = self._section
        ledger = Ledger(self._ledger, self._name, price_of(section), section.budget_usd, section.max_calls)
        with closing(ledger), closing(Replies(cache() / "replies.sqlite")) as replies:
            desk = _Desk(ledger, replies, threading.Event())

            def work(line: Line, item: tuple[K, Question]) -> tuple[K, Reply | CallError]:
                return item[0], self._answer(desk, line, item[1])

            crew = Crew(work, lambda: Line(self._url, self._key, section.timeout), section.concurrency, desk.stopped)
            waiting = 0
            with closing(crew):
                for item in items:
                    crew.give(item)
                    waiting += 1
                    while waiting and (crew.ready or waiting >= 2 * section.concurrency):
                        waiting -= 1
                        yield crew.take()
                for _ in range(waiting):
                    yield crew.take()

    # --- one question, in a thread of the crew ---------------------------------------------------------------------

    def _answer(self, desk: _Desk, line: Line, question: Question) -> Reply | CallError:
        """Return the known reply to a question, or ask until there is one or no hope of one."""
        key = key_of(self._url, self._section.model, question)
        with desk.replies.alone(key):
            known = desk.replies.get(key)
            if known is not None:
                desk.ledger.count_cached()
                return known
            retries = 0
            while True:
                try:
                    outcome = self._try(desk, line, question, key)
                except BudgetError as error:
                    return error
                if isinstance(outcome, Reply):
                    return outcome
                if outcome.free:
                    continue
                if not outcome.again or retries == self._section.max_retries or desk.stopped.is_set():
                    break
                most = min(BACK_OFF * 2**retries, LONGEST_BACK_OFF)
                desk.stopped.wait(random.uniform(0, most))  # noqa: S311  so that calls that failed together part
                retries += 1
        if isinstance(outcome.problem, InputError):
            raise outcome.problem
        return outcome.problem

    def _try(self, desk: _Desk, line: Line, question: Question, key: bytes) -> Reply | Fault:
        """Make one call; what it may cost is reserved before, and what it did cost is entered after."""
        asked = self._body(question)
        body = json.dumps(asked).encode()
        most = Call(most_prompt_tokens(question), question.max_tokens)
        likely = likely_prompt_tokens(question) + question.max_tokens
        desk.ledger.reserve(most)
        self._requests.wait(1, desk.stopped)
        self._tokens.wait(likely, desk.stopped)
        answer = lost = None
        try:
            answer = line.post(body)
        except LostError as error:
            lost = error
        except BaseException:  # others may be waiting for what this one holds
            desk.ledger.settle(most, None, None, failed=True)
            raise
        # What is raised is made here and not above, where it would carry the connection, which holds the key.
        if answer is None:
            assert lost is not None  # noqa: S101  one of the two
            used = None if lost.sent else 0
            desk.ledger.settle(most, used, used, failed=True)
            self._tokens.correct(0 if lost.sent else -likely)
            return self._no_answer(lost)
        self._heard = True
        if not 200 <= answer.status < 300:
            desk.ledger.settle(most, 0, 0, failed=True)
            self._tokens.correct(-likely)
            return self._refusal(answer, asked)
        said = read(answer.body)
        if said is None:
            desk.ledger.settle(most, None, None, failed=True)
            text = message(answer.body)
            return Fault(CallError(self._clean(f"not a completion: {text}" if text.strip() else "an empty body")), again=True)
        reply = self._reply(said, question)
        if isinstance(reply, Reply):
            desk.replies.put(key, reply)
        cost = desk.ledger.settle(most, said.prompt_tokens, said.tokens, failed=not isinstance(reply, Reply))
        if said.prompt_tokens is not None and said.tokens is not None:
            self._tokens.correct(said.prompt_tokens + said.tokens - likely)
        return reply._replace(cost=cost) if isinstance(reply, Reply) else reply

    def _body(self, question: Question) -> dict[str, Any]:
        """Return what is sent, without what the server has refused."""
        settings: dict[str, Any] = {"temperature": question.temperature, self._preset.max_tokens: question.max_tokens}
        if not (question.top_p == 1 and self._preset.top_p_is_1):
            settings["top_p"] = question.top_p
        if question.seed is not None:
            settings["seed"] = question.seed
        if question.schema is not None:
            schema = {"name": "reply", "strict": True, "schema": question.schema}
            settings["response_format"] = {"type": "json_schema", "json_schema": schema}
        if question.logprobs:
            settings |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        for name in self._refused:
            for key in OPTIONAL[name].keys:
                settings.pop(key, None)
        messages = [{"role": turn.role, "content": turn.content} for turn in question.messages]
        return {"model": self._section.model, "messages": messages, **settings}

    # --- what came of it -------------------------------------------------------------------------------------------

    def _reply(self, said: Said, question: Question) -> Reply | Fault:
        text, finish = said.text, FINISH.get(said.finish_reason or "", "stop")
        if not text and finish == "length":  # models that think first may use up the tokens before they say a word
            return Fault(CallError(f"no text within {question.max_tokens} tokens; raise max_new_tokens"))
        if text is None and finish != "content_filter":
            return Fault(CallError(f"no text (finish_reason {self._clean(str(said.finish_reason))})"))
        return Reply(text or "", finish, said.tokens, said.prompt_tokens, logprobs=said.logprobs)

    def _no_answer(self, lost: LostError) -> Fault:
        if lost.sent:
            return Fault(CallError(self._clean(str(lost))), again=True)
        said = self._clean(f"no connection to {self._url}: {lost}")
        if self._heard:
            return Fault(CallError(said), again=True)
        return Fault(InputError(f"{said}; is the server running, and base_url right?"), again=True)

    def _refusal(self, answer: Answer, asked: dict[str, Any]) -> Fault:  # noqa: PLR0911  one return a meaning
        """Say what a status means: this call failed, perhaps for now, or every call will."""
        status, text = answer.status, message(answer.body)
        said, who = self._clean(text), f"provider {self._section.provider}"
        key = _key_name(self._section) or "api_key_env"
        if status in (400, 422):
            for name, optional in OPTIONAL.items():
                if optional.keys[0] in asked and any(word in text.lower() for word in optional.words):
                    if name == "temperature" and name not in self._refused:  # the only one that changes what is drawn
                        say(f"{who} takes no temperature {asked[name]:g} for {self._section.model}; the model's own is used")
                    self._refused |= {name}
                    return Fault(CallError(f"HTTP {status}: {said}"), free=True)
        if status == 401 or (status == 400 and "api key" in said.lower()):
            return Fault(InputError(f"{who} refused the key: check {key} (HTTP {status})"))
        if status in (402, 403):
            return Fault(InputError(f"{who} refused the call: check {key} and the account (HTTP {status}: {said})"))
        if status == 404:
            return Fault(InputError(f"{who} has no model {self._section.model!r} at {self._url} (HTTP 404: {said})"))
        if status < 400:
            where = self._clean(answer.location or "nowhere")
            return Fault(InputError(f"{who}: {self._url} leads on to {where}; a key is not sent on, so correct base_url"))
        if error_code(answer.body) == "insufficient_quota":
            return Fault(InputError(f"{who}: the account has nothing left (HTTP {status}: {said})"))
        wait = seconds_of(answer.retry_after)
        again = (status in AGAIN or status >= 500) and wait <= LONGEST_WAIT
        if again:
            self._requests.put_off(wait)
        return Fault(CallError(f"HTTP {status}: {said}"), again=again)

    def _clean(self, text: str) -> str:
        """Make one line of at most 200 characters, without the key."""
        if self._key:
            text = text.replace(self._key, "[key]")
        text = " ".join("".join(char if char.isprintable() else " " for char in text[:20_000]).split())
        return text if len(text) <= 200 else f"{text[:199]}…"


_Said = tuple[Prompt, int, tuple[Reply, ...]]
"""A draw by its prompt and number, and the replies to its turns so far."""
FINISH: dict[str, Finish] = {"length": "length", "max_tokens": "length", "content_filter": "content_filter"}
"""What servers say of a reply's end; all else is `stop`."""


class Api:
    """Draws completions from a server, each with a request of its own: the API's `n` is not in every server."""

    def __init__(self, section: ApiSampler, seed: int, ledger: Path | None = None) -> None:
        """`ledger` is the run's account of calls; InputError where the key, or the price under a budget, is missing."""
        self.label, self.n = section.label, section.n
        self.failures: list[str] = []
        """Why draws failed, one line each."""
        self._section, self._seed = section, seed
        self._chat = ApiChat(section, f"generate.{section.label}", ledger)

    def sample(self, prompts: Iterable[Prompt], have: frozenset[tuple[str, int]] = frozenset()) -> Iterator[Completion]:
        """Yield draws as they come; one that failed is left out and told in `failures`.

        Where a prompt has more turns, they are asked when all first ones are answered; what a crash cuts off in between is
        among the known replies. Raises InputError where every further call would fail.
        """
        sampling = self._section.model_dump(include={"temperature", "top_p", "max_new_tokens"}, mode="json")
        asked: Iterable[_Said] = (
            (prompt, number, ()) for prompt in prompts for number in range(self.n) if (prompt.id, number) not in have
        )
        while asked:
            later = list[_Said]()
            for (prompt, number, before), reply in self._chat.ask((said, self._question(*said)) for said in asked):
                if isinstance(reply, CallError):
                    self.failures.append(str(reply))
                    continue
                replies = (*before, reply)
                if following(prompt, [each.text for each in replies]):
                    later.append((prompt, number, replies))
                else:
                    yield completion(prompt, replies, sampler=self.label, sampling=sampling, draw=number)
            asked = later

    def _question(self, prompt: Prompt, number: int, before: tuple[Reply, ...]) -> Question:
        section = self._section
        seed = int(content_hash(self._seed, self.label, prompt.id, number), 16) % 2**31
        chat = following(prompt, [reply.text for reply in before]) if before else prompt.messages
        return Question(chat, section.temperature, section.max_new_tokens, section.top_p, seed, number)
