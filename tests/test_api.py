import asyncio
import itertools
import json
import logging
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, get_args

import pytest

from servers import body, completion, error, reply, reset, slow, stub
from tiebreak.recipe import ApiSampler, LlmJudge, Provider, RulesJudge
from tiebreak.records import InputError, Message, Prompt
from tiebreak.samplers import api
from tiebreak.samplers.api import PRESETS, Api, check_keys, stream

KEY = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def _no_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No .env, key or proxy of the machine that runs the tests."""
    monkeypatch.chdir(tmp_path)
    for preset in PRESETS.values():
        monkeypatch.delenv(preset.key or "UNUSED", raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def section(url: str, **settings: Any) -> ApiSampler:
    return ApiSampler.model_validate(
        {"type": "api", "provider": "custom", "model": "m", "base_url": url, "max_retries": 2, "timeout": 5.0, **settings}
    )


def prompt(text: str) -> Prompt:
    return Prompt.of((Message(role="user", content=text),), "train")


def draw(url: str, **settings: Any) -> tuple[list[str], list[str]]:
    """Return the texts of one prompt's draws, and the failures."""
    sampler = Api(section(url, **settings), seed=1)
    texts = [completion.text for completion in sampler.sample([prompt("hello")])]
    return texts, sampler.failures


# --- keys ----------------------------------------------------------------------------------------------------------


def test_every_provider_has_a_preset() -> None:
    assert set(PRESETS) == set(get_args(Provider))


def test_missing_key_is_said_before_any_call() -> None:
    settings = {"provider": "gemini", "model": "m"}
    judge = LlmJudge.model_validate({"type": "llm", "criteria": "short", **settings})
    rules = RulesJudge.model_validate_json('{"type": "rules", "checks": [{"check": "one_line"}]}')
    said = "provider gemini needs a key: set GEMINI_API_KEY in the environment or in .env"
    for make in (lambda: check_keys([rules, judge]), lambda: Api(ApiSampler.model_validate({"type": "api", **settings}), 1)):
        with pytest.raises(InputError) as caught:
            make()
        assert str(caught.value) == said
    check_keys([rules, section("http://127.0.0.1:1/v1")])  # custom, without api_key_env, needs none


def test_key_comes_from_the_environment_or_env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_bytes(b"\xef\xbb\xbfMY_KEY=from-file\n")  # as Windows' Notepad writes it
    with stub([reply("hi")]) as server:
        draw(server.url, api_key_env="MY_KEY")
        monkeypatch.setenv("MY_KEY", "from-environment\n")
        draw(server.url, api_key_env="MY_KEY")
        draw(server.url)
    assert [headers["authorization"] for headers in server.headers] == [
        "Bearer from-file",
        "Bearer from-environment",
        "Bearer none",
    ]


@pytest.mark.parametrize("key", ["sk-véry", "two words", "bell\x07"])
def test_key_that_http_cannot_carry(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(InputError, match="MY_KEY: holds spaces or signs") as caught:
        check_keys([section("http://127.0.0.1:1/v1", api_key_env="MY_KEY")])
    assert key not in str(caught.value)


def test_env_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"MY_KEY=\xff\xfe\n")
    with pytest.raises(InputError, match=r"\.env: cannot be read as text"):
        check_keys([section("http://127.0.0.1:1/v1", api_key_env="MY_KEY")])


def test_door_checks_keys_without_openai() -> None:
    code = "import sys; from tiebreak.samplers.api import check_keys; check_keys([]); print('openai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


# --- draws ---------------------------------------------------------------------------------------------------------


def test_every_draw_is_a_request_with_a_seed_of_its_own() -> None:
    prompts = [prompt("one"), prompt("two")]
    asked = []
    for _ in range(2):
        with stub(lambda number, asked: reply(asked["messages"][0]["content"].upper())) as server:
            sampler = Api(section(server.url, n=3, temperature=0.7, top_p=0.9, max_new_tokens=9), seed=5)
            completions = list(sampler.sample(prompts, have=frozenset({(prompts[0].id, 1)})))
        asked.append(sorted(server.requests, key=lambda request: int(request["seed"])))
    assert sorted((c.text, c.draw) for c in completions) == [("ONE", 0), ("ONE", 2), ("TWO", 0), ("TWO", 1), ("TWO", 2)]
    assert len({request["seed"] for request in asked[0]}) == 5
    assert asked[0] == asked[1]
    first = completions[0]
    assert (first.sampler, first.finish_reason, first.tokens) == (sampler.label, "stop", 3)
    assert first.sampling == {"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 9}
    assert {**asked[0][0], "seed": 0, "messages": []} == {
        "model": "m",
        "messages": [],
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 9,
        "seed": 0,
    }


@pytest.mark.parametrize(
    ("provider", "keys"),
    [
        ("openai", {"max_completion_tokens", "seed"}),
        ("gemini", {"max_tokens", "top_p"}),
        ("vllm", {"max_tokens", "top_p", "seed"}),
    ],
)
def test_each_provider_is_asked_in_its_own_words(provider: str, keys: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PRESETS[provider].key or "UNUSED", KEY)
    with stub([reply("hi")]) as server:
        assert draw(server.url, provider=provider) == (["hi"], [])
    assert set(server.requests[0]) == {"model", "messages", "temperature"} | keys


def test_a_server_that_knows_no_seed_is_asked_without() -> None:
    refusal = body(422, b'{"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}')
    with stub(lambda _, asked: refusal if "seed" in asked else reply("hi")) as server:
        assert draw(server.url, n=5, concurrency=1) == (["hi"] * 5, [])
    assert server.calls == 6


@pytest.mark.parametrize(
    ("finish_reason", "ours"),
    [("stop", "stop"), ("length", "length"), ("content_filter", "content_filter"), ("eos", "stop"), (None, "stop")],
)
def test_finish_reason(finish_reason: str | None, ours: str) -> None:
    with stub([reply("hi", finish_reason)]) as server:
        assert [c.finish_reason for c in Api(section(server.url), 1).sample([prompt("x")])] == [ours]


def test_a_sampler_works_twice_and_lets_go_when_closed() -> None:
    with stub([slow(0.05, reply("hi"))]) as server:
        sampler = Api(section(server.url, n=500, concurrency=4), 1)
        for _ in range(2):
            draws = sampler.sample([prompt("x")])
            next(draws)
            draws.close()
        calls = server.calls
        assert calls <= 16
        assert len(list(sampler.sample([prompt("x")], have=frozenset((prompt("x").id, d) for d in range(495))))) == 5
        assert server.calls == calls + 5


# --- faults --------------------------------------------------------------------------------------------------------


def test_retry_after_is_waited_for() -> None:
    with stub([error(429, Retry_After="2"), reply("hi")]) as server:
        assert draw(server.url) == (["hi"], [])
    assert 1.9 < server.times[1] - server.times[0] < 4


@pytest.mark.parametrize(("seconds", "waits"), [("300", [300.0]), ("3600", [])])
def test_retry_after_beyond_what_the_client_waits(seconds: str, waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(delay: float) -> None:
        slept.append(delay)

    monkeypatch.setattr(api.asyncio, "sleep", sleep)
    with stub([error(429, "slow down", Retry_After=seconds), reply("hi")]) as server:
        assert draw(server.url) == ((["hi"], []) if waits else ([], ["HTTP 429: slow down"]))
    assert slept == waits


@pytest.mark.parametrize("fault", [error(500), error(503), error(408), reset, body(200, completion("hi"), claimed=5000)])
def test_a_passing_fault_is_tried_again(fault: Any) -> None:
    with stub([fault, reply("hi")]) as server:
        assert draw(server.url) == (["hi"], [])
    assert server.calls == 2


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (error(500, "oh\nno"), "HTTP 500: oh no"),
        (error(400, "too long"), "HTTP 400: too long"),
        (body(400, b'[{"error": {"message": "a list"}}]'), "HTTP 400: a list"),
        (body(422, b'{"detail": "unheard of"}'), "HTTP 422: unheard of"),
        (body(502, b"<html>\x1b[31mBad gateway</html>", "text/html"), "HTTP 502: <html> [31mBad gateway</html>"),
        (body(503, b"[" * 100_000), f"HTTP 503: {'[' * 199}…"),
        (body(200, b"<html>Log in</html>", "text/html"), "not a completion: <html>Log in</html>"),
        (body(200, completion("hi")[:-20]), "not a completion: "),
        (body(200, b'{"choices": []}'), 'not a completion: {"choices": []}'),
        (body(200, b'{"choices": {"0": 1}}'), "not a completion: "),
        (body(200, b'{"choices": [{"message": {"content": ["hi"]}}]}'), "not a completion: "),
        (body(200, b'{"choices": [{"message": {"content": "\\ud800"}}]}'), "not a completion: "),
        (body(200, b'{"error": {"message": "overloaded"}}'), "not a completion: overloaded"),
        (body(200, b"null"), "not a completion: null"),
        (body(200, b""), "an empty body"),
        (body(200, b"\xff\xfe"), "not a completion: "),
        (reply(None), "no text (finish_reason stop)"),
        (reply(None, "error"), "no text (finish_reason error)"),
        (reply(None, "length"), "no text within 256 tokens; raise max_new_tokens"),
        (reply("", "length"), "no text within 256 tokens; raise max_new_tokens"),
        (reset, "no connection to http://127.0.0.1"),
        (slow(1.0, reply("late")), "no reply within 0.2 s"),
    ],
)
def test_a_lasting_fault_is_one_line_and_the_draw_stays_owed(fault: Any, said: str) -> None:
    timeout = 0.2 if said.startswith("no reply") else 5.0
    with stub([fault]) as server:
        texts, failures = draw(server.url, max_retries=0, timeout=timeout)
    assert (texts, len(failures)) == ([], 1)
    assert failures[0].startswith(said)
    assert "\n" not in failures[0]


def test_what_a_filter_withheld_is_an_empty_draw() -> None:
    with stub([reply(None, "content_filter")]) as server:
        assert draw(server.url) == ([""], [])


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (error(401, f"wrong key {KEY}"), "provider custom refused the key: check MY_KEY (HTTP 401)"),
        (error(400, f"API key not valid: {KEY}"), "provider custom refused the key: check MY_KEY (HTTP 400)"),
        (
            error(403, f"not for {KEY}"),
            "provider custom refused the call: check MY_KEY and the account (HTTP 403: not for [key])",
        ),
        (error(402, "pay"), "provider custom refused the call: check MY_KEY and the account (HTTP 402: pay)"),
        (error(404, "gone"), "provider custom has no model 'm' at http://"),
        (
            body(429, b'{"error": {"code": "insufficient_quota", "message": "empty"}}'),
            "provider custom: the account has nothing left (HTTP 429: empty)",
        ),
    ],
)
def test_what_every_call_would_meet_stops_at_once(fault: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with stub([fault]) as server, pytest.raises(InputError) as caught:
        draw(server.url, api_key_env="MY_KEY", n=100, concurrency=2, max_retries=0)
    assert str(caught.value).startswith(said)
    assert server.calls <= 4


def test_a_server_that_is_not_there_stops_at_once() -> None:
    with stub([reply("hi")]) as server:
        url = server.url
    with pytest.raises(InputError, match=r"no connection to http://127\.0\.0\.1:\d+/v1: .*is the server running"):
        draw(url, n=100, max_retries=0)


@pytest.mark.parametrize(
    "fault",
    [
        error(401, f"wrong key {KEY}"),
        error(403, f"wrong key {KEY}"),
        error(404, f"wrong key {KEY}"),
        error(400, f"you sent Bearer {KEY}"),
        error(500, f"you sent Bearer {KEY}"),
        body(200, f"<html>{KEY}</html>".encode()),
        body(200, json.dumps({"choices": [], "key": KEY}).encode()),
        reply(None, KEY),
        reset,
    ],
)
def test_the_key_is_never_said(fault: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    with stub([fault]) as server:
        ask = section(server.url, api_key_env="MY_KEY", max_retries=0)

        async def call(_: int) -> api.Reply:
            chat = api.Chat(ask)
            assert KEY not in repr(chat)
            try:
                return await chat.ask([Message(role="user", content="x")], 1.0, 9)
            finally:
                await chat.close()

        with pytest.raises((InputError, api.CallError)) as caught:
            list(stream(call, [1], 1))
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    said = [caplog.text]
    link: BaseException | None = caught.value
    while link is not None:
        said += [str(link), repr(link), repr(vars(link)), *traceback.format_exception(link)]
        link = link.__cause__ or link.__context__
    assert KEY not in "\n".join(said)


# --- stream --------------------------------------------------------------------------------------------------------


def test_stream_keeps_within_its_bounds_and_takes_items_as_they_are_needed() -> None:
    in_flight = most = pulled = 0

    def items() -> Any:
        nonlocal pulled
        for number in itertools.count(1):  # endless
            pulled = number
            yield number

    async def call(item: int) -> int:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        await asyncio.sleep(0.001 * (item % 3))
        in_flight -= 1
        return item

    results = stream(call, items(), 5)
    seen = []
    for result in itertools.islice(results, 200):
        seen.append(result)
        assert pulled - len(seen) < 5
    results.close()
    assert most == 5
    assert len(set(seen)) == 200
    assert max(seen) <= 204


def test_stream_gives_results_as_they_come() -> None:
    async def call(delay: float) -> float:
        await asyncio.sleep(delay)
        return delay

    assert list(stream(call, [0.3, 0.2, 0.1], 3)) == [0.1, 0.2, 0.3]
    assert list(stream(call, [], 3)) == []


def test_stream_works_inside_a_running_loop() -> None:
    async def call(item: int) -> int:
        await asyncio.sleep(0)
        return item * 2

    async def notebook() -> list[int]:
        return list(stream(call, range(10), 3))

    assert sorted(asyncio.run(notebook())) == list(range(0, 20, 2))


@pytest.mark.parametrize("ending", ["error", "close", "end"])
def test_stream_cancels_what_is_in_flight_and_closes_in_its_own_loop(ending: str) -> None:
    cancelled: list[int] = []
    closed: list[bool] = []
    loops: set[Any] = set()

    async def call(item: int) -> int:
        loops.add(asyncio.get_running_loop())
        if item == 2 and ending == "error":
            raise InputError("stop")
        try:
            await asyncio.sleep(30 if item > 1 and ending != "end" else 0.01)
        except asyncio.CancelledError:
            cancelled.append(item)
            raise
        return item

    async def close() -> None:
        loops.add(asyncio.get_running_loop())
        closed.append(True)

    threads = threading.active_count()
    results = stream(call, range(1, 5), 4, close)
    if ending == "error":
        with pytest.raises(InputError, match="stop"):
            list(results)
        assert sorted(cancelled) == [1, 3, 4]
    elif ending == "close":
        assert next(results) == 1
        results.close()
        assert sorted(cancelled) == [2, 3, 4]
    else:
        assert sorted(results) == [1, 2, 3, 4]
    assert closed == [True]
    assert len(loops) == 1
    assert threading.active_count() == threads
