"""Streams: what is shown while it is written is what samplers would draw, and a stop, a fault or a slow one harms no other."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import make_causal
from servers import Behaviour, body, error, reply, reset, slow, stub
from tiebreak import models
from tiebreak.app import served, streams
from tiebreak.app.answers import Answer, Stop, Writer, side_by_side
from tiebreak.app.shelf import Shelf
from tiebreak.app.streams import Turns, local
from tiebreak.recipe import Endpoint, LocalSampling, Model
from tiebreak.records import InputError, Message
from tiebreak.samplers import CallError, Question
from tiebreak.samplers import calls as wire
from tiebreak.samplers.ledger import spent
from tiebreak.samplers.local import _draw
from tiebreak.samplers.prices import most_prompt_tokens

ASKED = (Message(role="user", content="tell me now"),)
DRAWS = LocalSampling(temperature=0.8, top_p=0.9, top_k=40, max_new_tokens=24)


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "device", lambda: torch.device("cpu"))
    monkeypatch.setattr(models, "has_bf16", lambda device: False)  # whose last bits differ from one way to compute to another


@pytest.fixture(scope="module")
def lively(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A llama whose answers differ: the head is its own, the weights are large."""
    folder = tmp_path_factory.mktemp("lively")
    return Model(name_or_path=str(make_causal(folder, seed=3, tie_word_embeddings=False, initializer_range=0.3)))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("other")
    return Model(name_or_path=str(make_causal(folder, seed=4, tie_word_embeddings=False, initializer_range=0.3)))


@pytest.fixture(scope="module")
def shelf() -> Shelf:
    return Shelf()


def write(*writers: Writer, stop: Stop | None = None) -> list[Answer]:
    *_, last = side_by_side(writers, stop or Stop())
    return last


# --- what is drawn -------------------------------------------------------------------------------------------------


def drawn(shelf: Shelf, model: Model, sampling: LocalSampling, seed: int) -> tuple[str, int, str]:
    """Return what the sampler of the stages draws for the same prompt alone: text, tokens, and how it ended."""
    with shelf.borrow(model) as held:
        loaded, tokenizer, stops = held
    ids = models.prompt_ids(tokenizer, ASKED, encoder_decoder=loaded.config.is_encoder_decoder)
    (answer,) = _draw(loaded, [ids], sampling, stops, tokenizer.pad_token_id, seed=seed)
    end = next((at for at, token in enumerate(answer) if token in stops), None)
    text = tokenizer.decode(answer[:end], skip_special_tokens=True)
    return text, len(answer) if end is None else end + 1, "length" if end is None else "stop"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.0},
        {"temperature": 1.0, "top_p": 1.0, "top_k": 0},
        {"top_k": 3},
        {"top_p": 0.3},
        {"temperature": 2.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["causal", "encoder-decoder"])
def test_the_same_settings_and_seed_draw_what_the_sampler_draws(
    kind: str, changes: dict[str, Any], lively: Model, tiny_t5: Path, shelf: Shelf
) -> None:
    model = lively if kind == "causal" else Model(name_or_path=str(tiny_t5))
    sampling = DRAWS.model_copy(update=changes)
    for seed in range(3):
        (answer,) = write(local(shelf, model, ASKED, sampling, seed))
        assert (answer.text, answer.tokens, answer.finish) == drawn(shelf, model, sampling, seed)
        assert answer.problem is None


def test_seeds_differ_and_the_process_keeps_its_own(lively: Model, shelf: Shelf) -> None:
    texts = {write(local(shelf, lively, ASKED, DRAWS, seed))[0].text for seed in range(4)}
    assert len(texts) == 4


def test_a_chat_is_put_as_the_template_says(lively: Model, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    ids = models.prompt_ids
    monkeypatch.setattr(models, "prompt_ids", lambda *given, **more: seen.append((given[1], more)) or ids(*given, **more))
    chat = (Message(role="system", content="Be short."), *ASKED, Message(role="assistant", content="No."), *ASKED)
    write(local(shelf, lively, chat, DRAWS, 1))
    assert seen == [(chat, {"encoder_decoder": False})]


def test_an_answer_that_ends_leaves_its_end_out(lively: Model, shelf: Shelf) -> None:
    text, *_ = drawn(shelf, lively, DRAWS, 1)
    with shelf.borrow(lively) as loaded:
        third = loaded.tokenizer(text, add_special_tokens=False)["input_ids"][2]
        loaded.stops.append(third)
    try:
        (answer,) = write(local(shelf, lively, ASKED, DRAWS, 1))
    finally:
        loaded.stops.remove(third)
    assert answer.finish == "stop"
    assert text.startswith(answer.text)
    assert 1 <= answer.tokens <= 3
    assert len(answer.text.encode()) < answer.tokens


def test_a_prompt_that_is_too_long_is_cut_and_that_is_said(tmp_path: Path) -> None:
    model = Model(name_or_path=str(make_causal(tmp_path, max_position_embeddings=64)))
    long = (Message(role="user", content="x" * 500),)
    (answer,) = write(local(Shelf(), model, long, DRAWS, 1))
    assert answer.finish is not None
    assert answer.notes[0] == "just loaded, which slows it"
    assert answer.notes[1].startswith("the prompt of 5")
    assert answer.notes[1].endswith("tokens was cut from the left to 40")
    (answer,) = write(local(Shelf(), model, ASKED, DRAWS.model_copy(update={"max_new_tokens": 64}), 1))
    assert answer.problem is not None
    assert "leaves no room for a prompt" in answer.problem


# --- while it is written -------------------------------------------------------------------------------------------


def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """Return where every text is noted that an answer shows, with the thread that wrote it."""
    seen: list[tuple[int, str]] = []
    put = streams._Pen.put

    def note(pen: streams._Pen, value: torch.Tensor) -> None:
        begun = pen._begun
        put(pen, value)
        if begun:
            seen.append((threading.get_ident(), pen._answer.text))

    monkeypatch.setattr(streams._Pen, "put", note)
    return seen


def test_it_grows_token_by_token_and_never_shows_half_a_character(
    lively: Model, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = told(monkeypatch)
    (answer,) = write(local(shelf, lively, ASKED, LocalSampling(max_new_tokens=60), 2))
    texts = [text for _, text in seen]
    assert len(texts) == answer.tokens == 60
    assert len(set(texts)) > 20
    assert not any(text.endswith("\ufffd") for text in texts)
    assert answer.text.startswith(texts[-1])


def test_what_is_shown_are_copies_that_stay(lively: Model, shelf: Shelf) -> None:
    shown = [answers[0] for answers in side_by_side([local(shelf, lively, ASKED, DRAWS, 1)], Stop())]
    assert shown[-1].ended
    assert len({id(each) for each in shown}) == len(shown)


def test_two_side_by_side_each_write_what_they_write_alone(lively: Model, other: Model, shelf: Shelf) -> None:
    alone = [write(local(shelf, model, ASKED, DRAWS, 5))[0].text for model in (lively, other)]
    both = write(*(local(shelf, model, ASKED, DRAWS, 5) for model in (lively, other)))
    assert [answer.text for answer in both] == alone
    assert alone[0] != alone[1]


def test_they_take_turns_and_seconds_are_of_ones_own_turns(
    lively: Model, other: Model, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    for model in (lively, other):
        write(local(shelf, model, ASKED, DRAWS, 5))
    seen = told(monkeypatch)
    ticks = itertools.count()
    monkeypatch.setattr(streams.time, "perf_counter", lambda: next(ticks))
    sampling = LocalSampling(max_new_tokens=30, temperature=1.0)
    both = write(*(local(shelf, model, ASKED, sampling, 5) for model in (lively, other)))
    for answer in both:  # a token is a tick, whoever else had ticks in between
        assert answer.seconds == answer.tokens
        assert answer.first == 1
    order = [who for who, _ in seen]
    turns = [len(list(group)) for _, group in itertools.groupby(order)]
    begun = order.index(next(who for who in order if who != order[0]))
    assert set(turns[1:-1]) <= {1}, "once both have begun, neither has two in a row"
    assert begun < len(order)


def test_turns_are_had_in_the_order_of_asking() -> None:
    turns, order, waiting = Turns(), list[int](), list[threading.Thread]()

    def take(number: int) -> None:
        with turns:
            order.append(number)

    with turns:
        for number in range(5):
            waiting.append(threading.Thread(target=take, args=(number,)))
            waiting[-1].start()
            while len(turns._queue) < number + 2:
                time.sleep(0.001)
        assert order == []
    for thread in waiting:
        thread.join(10)
    assert order == list(range(5))


# --- stop, faults --------------------------------------------------------------------------------------------------


def test_a_stop_ends_all_and_keeps_what_is_written(lively: Model, other: Model, shelf: Shelf) -> None:
    long, stop = LocalSampling(max_new_tokens=400), Stop()
    writing = side_by_side([local(shelf, model, ASKED, long, 5) for model in (lively, other)], stop)
    for answers in writing:
        if all(answer.tokens > 3 for answer in answers):
            stop.set()
        last = answers
    assert [answer.finish for answer in last] == ["stopped", "stopped"]
    assert all(3 < answer.tokens < 400 and answer.problem is None for answer in last)
    assert all(answer.text for answer in last)


def test_a_stop_before_the_first_token(lively: Model, shelf: Shelf) -> None:
    stop = Stop()
    stop.set()
    (answer,) = write(local(shelf, lively, ASKED, DRAWS, 5), stop=stop)
    assert (answer.text, answer.tokens, answer.finish) == ("", 0, "stopped")


def test_who_stops_listening_stops_them(lively: Model, shelf: Shelf) -> None:
    stop = Stop()
    writing = side_by_side([local(shelf, lively, ASKED, LocalSampling(max_new_tokens=400), 5)], stop)
    next(writing)
    writing.close()
    assert stop.is_set()
    for thread in threading.enumerate():
        if thread.name == "stream":
            thread.join(30)
    with streams.TURNS:  # nobody holds it any more
        pass


def test_what_is_to_be_done_at_a_stop_is_done_even_where_it_comes_first() -> None:
    done: list[str] = []
    stop = Stop()
    stop.also(lambda: done.append("before"))
    assert done == []
    stop.set()
    stop.also(lambda: done.append("after"))
    assert done == ["before", "after"]


def test_a_missing_model_is_a_message_and_the_other_goes_on(lively: Model, shelf: Shelf) -> None:
    missing, there = write(local(shelf, Model(name_or_path="./absent"), ASKED, DRAWS, 1), local(shelf, lively, ASKED, DRAWS, 1))
    assert missing.problem == "model ./absent: no such folder"
    assert (missing.ended, missing.finish) == (True, None)
    assert there.finish is not None


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (ValueError("no such\nshape"), "ValueError: no such"),
        (RuntimeError(), "RuntimeError: "),
        (InputError("do this"), "do this"),
        (CallError("call that"), "call that"),
    ],
)
def test_a_model_that_fails_says_so_and_lets_the_others_have_their_turn(
    raised: Exception, said: str, lively: Model, other: Model, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = streams._generate

    def fail(pen: streams._Pen, *more: Any) -> None:
        with shelf.borrow(lively) as loaded:
            broken = pen.loaded is loaded
        if broken:
            raise raised
        generate(pen, *more)

    monkeypatch.setattr(streams, "_generate", fail)
    failed, whole = write(*(local(shelf, model, ASKED, DRAWS, 1) for model in (lively, other)))
    assert failed.problem == said
    assert whole.finish is not None


# --- a server ------------------------------------------------------------------------------------------------------


def chunk(text: str | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}],
        **more,
    }


USAGE = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}}
PIECES = [chunk(""), chunk("Hel"), chunk("lo\u2028 wörld"), chunk(None, "stop"), USAGE]


def events(*pieces: Any, done: bool = True, newline: str = "\n") -> bytes:
    lines = [f"data: {json.dumps(piece)}{newline}{newline}" for piece in pieces]
    return "".join([*lines, f"data: [DONE]{newline}{newline}" * done]).encode()


def sent(content: bytes) -> Behaviour:
    return body(200, content, "text/event-stream; charset=utf-8")


def in_pieces(*steps: bytes | Callable[[], object]) -> Behaviour:
    """Send bytes one after the other as they are, and call what stands between them."""

    def behave(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.end_headers()
        for step in steps:
            if callable(step):
                step()
            else:
                handler.wfile.write(step)
                handler.wfile.flush()

    return behave


def server(url: str, **changes: Any) -> Endpoint:
    return Endpoint.model_validate({"provider": "custom", "base_url": url, "model": "m", **changes})


def ask(url: str, stop: Stop | None = None, sampling: LocalSampling = DRAWS, **changes: Any) -> Answer:
    (answer,) = write(served.api(server(url, **changes), ASKED, sampling, 11), stop=stop)
    return answer


@pytest.mark.parametrize("keep_alive", [True, False])
def test_a_reply_in_pieces(keep_alive: bool) -> None:
    with stub([sent(events(*PIECES))], keep_alive=keep_alive) as seen:
        answer = ask(seen.url, price={"input": 1.0, "output": 10.0})
    assert (answer.text, answer.finish, answer.tokens, answer.problem) == ("Hello\u2028 wörld", "stop", 3, None)
    assert answer.cost == pytest.approx((7 * 1 + 3 * 10) / 1e6)
    assert answer.first is not None
    assert answer.seconds >= answer.first


def test_what_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", "s3cret")
    with stub([sent(events(*PIECES))]) as seen:
        answer = ask(seen.url, api_key_env="MINE")
    assert seen.requests == [
        {
            "model": "m", "messages": [{"role": "user", "content": "tell me now"}], "temperature": 0.8, "top_p": 0.9,
            "max_tokens": 24, "seed": 11, "stream": True, "stream_options": {"include_usage": True},
        }
    ]  # fmt: skip
    assert seen.headers[0]["authorization"] == "Bearer s3cret"
    assert answer.notes == ("servers are not told of top_k",)
    with stub([sent(events(*PIECES))]) as seen:
        assert ask(seen.url, sampling=LocalSampling()).notes == ()


def test_it_is_shown_before_it_is_whole() -> None:
    seen_first = threading.Event()
    with stub([in_pieces(events(chunk("Hel"), done=False), lambda: seen_first.wait(30), events(chunk("lo", "stop")))]) as seen:
        texts = []
        for (answer,) in side_by_side([served.api(server(seen.url), ASKED, DRAWS, 1)], Stop()):
            texts.append(answer.text)
            if answer.text == "Hel":
                seen_first.set()
    assert "Hel" in texts
    assert texts[-1] == "Hello"


@pytest.mark.parametrize(
    ("content", "text", "finish", "tokens"),
    [
        (events(*PIECES, newline="\r\n"), "Hello\u2028 wörld", "stop", 3),
        (b": ping\n\nevent: x\nid: 3\n" + events(chunk("Hi", "length")), "Hi", "length", 1),
        (b'data: {"choices":\ndata: [{"delta": {"content": "two lines"}, "finish_reason": "stop"}]}\n\n', "two lines", "stop", 1),
        (b"data:" + json.dumps(chunk("no space", "content_filter")).encode(), "no space", "content_filter", 1),
        (events(chunk("Hi")), "Hi", "stop", 1),
        (events(chunk("Hi", "stop"), done=False), "Hi", "stop", 1),
        (events({"choices": [{"delta": {}}]}, chunk("Hi", "eos")), "Hi", "stop", 1),
        (events(chunk(None, "length")), "", "length", 0),
    ],
)
def test_forms_that_servers_send(content: bytes, text: str, finish: str, tokens: int) -> None:
    with stub([sent(content)]) as seen:
        answer = ask(seen.url)
    assert (answer.text, answer.finish, answer.tokens, answer.problem) == (text, finish, tokens, None)


def test_a_server_that_does_not_stream() -> None:
    with stub([reply("All at once", "length")]) as seen:
        answer = ask(seen.url)
    assert (answer.text, answer.finish, answer.tokens) == ("All at once", "length", 3)
    assert "the server does not stream" in answer.notes


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        (error(401), "provider custom refused the key: check api_key_env (HTTP 401)"),
        (error(404, "what?"), "has no model 'm'"),
        (error(429, "slow down"), "HTTP 429: slow down"),
        (error(500, "broken"), "HTTP 500: broken"),
        (error(302, "", Location="http://elsewhere/"), "a key is not sent on"),
        (sent(events(chunk("Hi"), {"error": {"message": "out of luck"}}, done=False)), "out of luck"),
        (sent(events(chunk("Hi"), done=False)), "the reply broke off"),
        (sent(b"data: nonsense\n\n"), "not a piece of a completion: nonsense"),
        (body(200, b"<html>hello</html>", "text/html"), "not a completion: <html>hello</html>"),
        (body(200, events(chunk("Hi"), done=False), "text/event-stream", claimed=4000), "the reply broke off"),
        (reset, "reset"),
    ],
)
def test_faults_are_one_line(behaviour: Behaviour, said: str) -> None:
    with stub([behaviour]) as seen:
        answer = ask(seen.url)
    assert answer.problem is not None
    assert said in answer.problem
    assert "\n" not in answer.problem
    assert answer.ended
    assert seen.calls == 1


def test_what_came_before_a_fault_stays() -> None:
    with stub([sent(events(chunk("Hi"), done=False))]) as seen:
        assert ask(seen.url).text == "Hi"


def test_nobody_is_there() -> None:
    with stub([reply("x")]) as seen:
        url = seen.url
    answer = ask(url)
    assert answer.problem is not None
    assert "is the server running, and base_url right?" in answer.problem


def test_a_missing_key_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    (answer,) = write(served.api(Endpoint(provider="openai", model="m"), ASKED, DRAWS, 1))
    assert answer.problem == "provider openai needs a key: set OPENAI_API_KEY in the environment or in .env"


def test_the_key_is_in_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", "s3cret")
    for behaviour in (error(500, "your key s3cret"), sent(events({"error": {"message": "s3cret"}})), sent(b"data: s3cret\n\n")):
        with stub([behaviour]) as seen:
            answer = ask(seen.url, api_key_env="MINE")
        assert answer.problem is not None
        assert "s3cret" not in repr(answer)
        assert "[key]" in answer.problem


@pytest.mark.parametrize(
    ("key", "words"),
    [("stream_options", "unknown field: stream_options"), ("seed", "seed is not supported"), ("temperature", "temperature: no")],
)
def test_what_a_server_refuses_is_left_out(key: str, words: str) -> None:
    with stub(lambda _, asked: error(400, words) if key in asked else sent(events(*PIECES))) as seen:
        answer = ask(seen.url)
    assert answer.finish == "stop"
    assert [key in asked for asked in seen.requests] == [True, False]


def test_silence_ends_it() -> None:
    held = threading.Event()
    with stub([in_pieces(events(chunk("Hi"), done=False), lambda: held.wait(30))]) as seen:
        answer = ask(seen.url, timeout=0.2)
        held.set()
    assert (answer.text, answer.problem) == ("Hi", "nothing came for 0.2 s")


@pytest.mark.parametrize("when", ["in the middle", "before the head"])
def test_a_stop_breaks_the_call_off(when: str) -> None:
    held, stop, released = threading.Event(), Stop(), list[bool]()

    def hold(*_: Any) -> None:
        released.append(held.wait(10))

    behaviour = in_pieces(events(chunk("Hi"), done=False), hold) if when == "in the middle" else hold
    with stub([behaviour]) as seen:
        for (answer,) in side_by_side([served.api(server(seen.url), ASKED, DRAWS, 1)], stop):
            if answer.text == "Hi" or (when != "in the middle" and seen.calls):
                stop.set()
        held.set()
        while not released:
            time.sleep(0.001)
    assert released == [True], "it ended before the server did"
    assert (answer.finish, answer.problem) == ("stopped", None)
    assert answer.text == ("Hi" if when == "in the middle" else "")


def test_a_reply_without_end_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MOST_BYTES", 1 << 20)
    one = events(*[chunk("x" * 1000)] * 50, done=False)
    with stub([in_pieces(*[one] * 60)]) as seen:
        answer = ask(seen.url)
    assert answer.problem == "a reply of more than 1 MB"


def test_nothing_is_kept_and_nothing_is_answered_from_what_was_kept() -> None:
    with stub([sent(events(chunk("one", "stop"))), sent(events(chunk("two", "stop")))]) as seen:
        assert [ask(seen.url).text for _ in range(2)] == ["one", "two"]


PRICE = {"input": 1.0, "output": 10.0}


def paid(path: Path, url: str, stop: Stop | None = None, **changes: Any) -> Answer:
    section = server(url, **{"price": PRICE, **changes})
    (answer,) = write(served.api(section, ASKED, DRAWS, 11, path / "calls.sqlite"), stop=stop)
    return answer


def test_each_try_stands_in_the_account(tmp_path: Path) -> None:
    refused, broken = error(400, "unknown field: stream_options"), sent(events(chunk("Hi"), done=False))
    with stub([refused, sent(events(*PIECES)), error(500), broken]) as seen:
        answers = [paid(tmp_path, seen.url) for _ in range(3)]
    assert [answer.cost is None for answer in answers] == [False, True, True]
    (part, used), *others = spent(tmp_path / "calls.sqlite").items()
    assert (part, others) == ("playground.m", [])
    assert (used.calls, used.failed, used.estimated) == (4, 3, 1)  # of the broken one nobody knows what it used
    most = most_prompt_tokens(Question(ASKED, DRAWS.temperature, DRAWS.max_new_tokens, DRAWS.top_p, 11))
    assert (used.prompt_tokens, used.tokens) == (7 + most, 3 + DRAWS.max_new_tokens)
    assert used.cost == pytest.approx((used.prompt_tokens * 1 + used.tokens * 10) / 1e6)


def test_what_was_stopped_counts_at_its_most(tmp_path: Path) -> None:
    held, stop = threading.Event(), Stop()
    with stub([in_pieces(events(chunk("Hi"), done=False), lambda: held.wait(10))]) as seen:
        writer = served.api(server(seen.url, price=PRICE), ASKED, DRAWS, 11, tmp_path / "calls.sqlite")
        for (answer,) in side_by_side([writer], stop):
            if answer.text:
                stop.set()
        held.set()
    used = spent(tmp_path / "calls.sqlite")["playground.m"]
    assert (answer.finish, answer.cost) == ("stopped", None)
    assert (used.calls, used.failed, used.estimated, used.tokens) == (1, 0, 1, DRAWS.max_new_tokens)


def test_a_budget_holds_over_several_answers(tmp_path: Path) -> None:
    with stub([sent(events(*PIECES))]) as seen:
        said = [paid(tmp_path, seen.url, max_calls=2).problem for _ in range(3)]
        assert said == [None, None, "max_calls of 2 reached"]
        assert paid(tmp_path, seen.url, budget_usd=1e-5).problem == "budget of $1e-05 reached"
        assert seen.calls == 2
    assert paid(tmp_path, "http://127.0.0.1:9/v1", max_calls=3).problem is not None  # nobody was reached, nobody is paid
    assert spent(tmp_path / "calls.sqlite")["playground.m"].cost == pytest.approx(2 * (7 * 1 + 3 * 10) / 1e6)


def test_a_server_and_a_model_here_side_by_side(lively: Model, shelf: Shelf) -> None:
    with stub([slow(0.05, sent(events(*PIECES)))]) as seen:
        both = write(local(shelf, lively, ASKED, DRAWS, 1), served.api(server(seen.url), ASKED, DRAWS, 1))
    assert all(answer.finish for answer in both)
    assert both[1].text.startswith("Hello")


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    for thread in threading.enumerate():
        if thread.name == "stream":
            thread.join(30)
            assert not thread.is_alive()
