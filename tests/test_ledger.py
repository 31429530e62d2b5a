"""The account of calls never exceeds its limits, and the cache of replies gives back what was put in."""

import multiprocessing
import os
import random
import sqlite3
import stat
import threading
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servers import body, completion, error, reply, slow, stub
from tiebreak.recipe import ApiSampler, Price
from tiebreak.records import InputError, Message
from tiebreak.samplers import Question, Reply
from tiebreak.samplers.api import ApiChat
from tiebreak.samplers.ledger import BudgetError, Call, Ledger, Spent, dollars, spent
from tiebreak.samplers.replies import Replies, key_of

PRICE = Price(input=1.0, output=2.0)


def question(text: str = "hello", **changes: Any) -> Question:
    return Question((Message(role="user", content=text),), **{"temperature": 0.0, "max_tokens": 9, **changes})


# --- account -------------------------------------------------------------------------------------------------------


def test_a_try_counts_at_its_bound_until_it_is_settled(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    assert spent(path) == {}
    ledger = Ledger(path, "judges.one", PRICE, budget_usd=1.0)
    most = Call(100, 50)
    ledger.reserve(most)
    assert spent(path) == {"judges.one": Spent(1, 0, 0, 100, 50, 200e-6, 1)}
    assert ledger.settle(most, 30, 10) == 50e-6
    assert spent(path) == {"judges.one": Spent(1, 0, 0, 30, 10, 50e-6, 0)}
    ledger.reserve(most)
    assert ledger.settle(most, 0, 0, failed=True) == 0
    ledger.reserve(most)
    assert ledger.settle(most, None, None, failed=True) == 200e-6
    ledger.reserve(most)
    assert ledger.settle(most, 30, None) == 130e-6
    ledger.count_cached()
    assert spent(path) == {"judges.one": Spent(4, 2, 1, 160, 110, 380e-6, 2)}
    ledger.close()


def test_what_was_under_way_at_the_end_of_a_process_keeps_its_bound(tmp_path: Path) -> None:
    first = Ledger(tmp_path / "calls.sqlite", "part", PRICE, budget_usd=300e-6)
    first.reserve(Call(100, 50))
    first.close()
    second = Ledger(tmp_path / "calls.sqlite", "part", PRICE, budget_usd=300e-6)
    second.reserve(Call(100, 0))
    second.settle(Call(100, 0), 100, 0)
    with pytest.raises(BudgetError, match=r"^budget of \$0\.0003 reached$"):
        second.reserve(Call(1, 0))
    second.close()


def test_parts_have_accounts_of_their_own(tmp_path: Path) -> None:
    one, other = (Ledger(tmp_path / "calls.sqlite", name, PRICE, max_calls=1) for name in ("one", "other"))
    one.reserve(Call(1, 1))
    other.reserve(Call(2, 2))
    with pytest.raises(BudgetError, match=r"^max_calls of 1 reached$"):
        one.reserve(Call(1, 1))
    assert {name: each.prompt_tokens for name, each in spent(tmp_path / "calls.sqlite").items()} == {"one": 1, "other": 2}
    one.close()
    other.close()


def test_without_a_price_the_cost_is_unknown_until_there_is_one(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    ledger = Ledger(path, "part")
    assert spent(path)["part"].cost == 0
    ledger.reserve(Call(1000, 100))
    assert ledger.settle(Call(1000, 100), 500, 50) is None
    assert spent(path)["part"] == Spent(1, 0, 0, 500, 50, None, 0)
    ledger.close()
    Ledger(path, "part", PRICE).close()
    assert spent(path)["part"].cost == 600e-6


def test_it_waits_for_others_under_way_and_no_longer(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "calls.sqlite", "part", PRICE, budget_usd=200e-6)
    most, order = Call(150, 0), list[str]()
    ledger.reserve(most)

    def second() -> None:
        ledger.reserve(most)
        order.append("reserved")

    thread = threading.Thread(target=second)
    thread.start()
    time.sleep(0.1)
    order.append("settled")
    ledger.settle(most, 20, 0)
    thread.join(5)
    assert order == ["settled", "reserved"]
    ledger.settle(most, 150, 0)
    start = time.monotonic()
    for _ in range(1000):
        with pytest.raises(BudgetError):
            ledger.reserve(most)
    assert time.monotonic() - start < 5
    ledger.close()


prices = st.floats(0, 1000, allow_nan=False)
tokens = st.integers(0, 10**6)
uses = st.tuples(tokens, tokens, st.none() | st.floats(0, 1), st.none() | st.floats(0, 1), st.booleans())


@settings(deadline=None)
@given(
    price=st.builds(Price, input=prices, output=prices),
    budget=st.floats(1e-6, 100),
    most=st.integers(1, 30),
    calls=st.lists(uses, max_size=40),
    data=st.data(),
)
def test_no_order_of_calls_and_restarts_exceeds_a_limit(
    price: Price, budget: float, most: int, calls: list[tuple[int, int, float | None, float | None, bool]], data: st.DataObject
) -> None:
    """An account of exact fractions beside ours: what was surely used, and what is under way at its bound."""
    ledger = Ledger(None, "part", price, budget, most)
    under_way: list[tuple[Call, int | None, int | None, bool]] = []
    used, made = Fraction(0), 0
    each = Fraction(round(price.input * 10**6)), Fraction(round(price.output * 10**6))

    def cost(asked: int, answered: int) -> Fraction:
        return (asked * each[0] + answered * each[1]) / 10**12

    def held() -> Fraction:
        return sum((cost(*bound) for bound, *_ in under_way), start=Fraction(0))

    for asked, answered, share, other, failed in calls:
        while under_way and data.draw(st.booleans()):
            bound, prompt_tokens, replied, broke = under_way.pop(data.draw(st.integers(0, len(under_way) - 1)))
            ledger.settle(bound, prompt_tokens, replied, failed=broke)
            used += cost(bound[0] if prompt_tokens is None else prompt_tokens, bound[1] if replied is None else replied)
        bound = Call(asked, answered)
        fits = made < most and used + held() + cost(*bound) <= Fraction(round(budget * 10**12), 10**12)
        if not fits and under_way and made < most:
            continue  # it would wait for the others
        if fits:
            ledger.reserve(bound)
            made += 1
            told = (None if part is None else round(part * whole) for part, whole in ((share, asked), (other, answered)))
            under_way.append((bound, *told, failed))
        else:
            with pytest.raises(BudgetError):
                ledger.reserve(bound)
        assert used + held() <= Fraction(round(budget * 10**12), 10**12)
        assert made <= most
    (row,) = ledger._file.execute("SELECT calls, cost FROM parts").fetchall()
    assert row == (made, (used + held()) * 10**12)
    ledger.close()


def _spend(path: Path, seed: int) -> None:
    chance = random.Random(seed)
    ledger = Ledger(path, "part", PRICE, budget_usd=0.01, max_calls=700)

    def work() -> None:
        while True:
            most = Call(chance.randint(1, 100), chance.randint(1, 50))
            try:
                ledger.reserve(most)
            except BudgetError:
                return
            row = spent(path)["part"]
            assert row.cost is not None
            assert row.cost <= 0.01
            assert row.calls <= 700
            ledger.settle(most, chance.randint(0, most.prompt_tokens), chance.choice([None, 0, most.tokens]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger.close()


def test_threads_of_two_processes_keep_to_one_budget(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    others = [multiprocessing.get_context("spawn").Process(target=_spend, args=(path, seed)) for seed in (1, 2)]
    for process in others:
        process.start()
    for process in others:
        process.join()
        assert process.exitcode == 0
    row = spent(path)["part"]
    assert row.cost is not None
    assert 0.0095 < row.cost <= 0.01 or row.calls == 700


def test_several_may_begin_an_account_at_once(tmp_path: Path) -> None:
    """SQLite does not wait by itself where two put a new file into the mode in which others may read while one writes."""
    gate, failed = threading.Barrier(4), list[Exception]()

    def begin() -> None:
        for number in range(60):
            gate.wait()
            try:
                Ledger(tmp_path / f"{number}.sqlite", "part").close()
            except InputError as error:
                failed.append(error)

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_an_account_that_cannot_be_kept_stops_the_calls(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    path.write_bytes(b"no database, " * 1000)
    with pytest.raises(InputError, match=r"calls\.sqlite: the account of calls cannot be kept \(file is not a database\)"):
        Ledger(path, "part")
    with pytest.raises(InputError, match=r"calls\.sqlite: the account of calls cannot be read: file is not a database"):
        spent(path)
    with pytest.raises(InputError, match="cannot be kept"):
        Ledger(tmp_path / "absent" / "calls.sqlite", "part")


def test_a_run_that_may_only_be_read_is_read(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    path = tmp_path / "run" / "calls.sqlite"
    path.parent.mkdir()
    Ledger(path, "part").close()
    path.parent.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert set(spent(path)) == {"part"}


def test_dollars() -> None:
    written = {
        2: "$2.00",
        0.5: "$0.50",
        1234.567: "$1234.57",
        0.000505: "$0.000505",
        0.125: "$0.125",
        0.0123456: "$0.0123",
        0: "$0.00",
    }
    assert {amount: dollars(amount) for amount in written} == written


# --- calls under limits --------------------------------------------------------------------------------------------


def chat(url: str, path: Path, **changes: Any) -> ApiChat:
    fields = {"type": "api", "provider": "custom", "model": "m", "base_url": url, "price": {"input": 1.0, "output": 2.0}}
    return ApiChat(ApiSampler.model_validate({**fields, "max_retries": 0, **changes}), "part", path / "calls.sqlite")


def test_a_budget_ends_the_questions_and_every_start_goes_on_from_it(tmp_path: Path) -> None:
    # Each may take 5 + 144 tokens in and 100 out, and takes 7 and 3: $13e-6 of at most $349e-6.
    with stub([slow(0.01, reply("hi"))]) as server:
        for start, calls in ((0, 13), (100, 13)):
            questions = ((number, question(f"{start + number:05}", max_tokens=100)) for number in range(40))
            outcomes = [outcome for _, outcome in chat(server.url, tmp_path, budget_usd=505e-6).ask(questions)]
            assert server.calls == calls
            failed = [str(outcome) for outcome in outcomes if not isinstance(outcome, Reply)]
            assert set(failed) == {"budget of $0.000505 reached"}
            assert len(outcomes) == 40
    assert spent(tmp_path / "calls.sqlite")["part"] == Spent(13, 0, 0, 91, 39, 169e-6, 0)


@pytest.mark.parametrize("concurrency", [1, 8])
def test_max_calls_counts_every_try(tmp_path: Path, concurrency: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tiebreak.samplers.api.BACK_OFF", 0.01)
    with stub(lambda number, _: error(500) if number % 2 else reply("hi")) as server:
        judge = chat(server.url, tmp_path, max_calls=10, max_retries=5, concurrency=concurrency)
        outcomes = [outcome for _, outcome in judge.ask((number, question(str(number))) for number in range(30))]
    assert server.calls == 10
    assert sum(isinstance(outcome, Reply) for outcome in outcomes) == 5
    assert {str(outcome) for outcome in outcomes if not isinstance(outcome, Reply)} == {"max_calls of 10 reached"}
    assert spent(tmp_path / "calls.sqlite")["part"][:2] == (10, 5)


@pytest.mark.parametrize(
    ("fault", "charged"),
    [
        (error(500), False),
        (error(400), False),
        (body(200, completion("hi"), claimed=5000), True),
        (body(200, b"<html>"), True),
        (body(200, b'{"choices": [{"message": {"content": "hi"}}]}'), True),
        (slow(1.0, reply("late")), True),
    ],
)
def test_a_try_without_a_reply_costs_its_bound_where_it_may_have_been_charged(tmp_path: Path, fault: Any, charged: bool) -> None:
    with stub([fault]) as server:
        ((_, outcome),) = chat(server.url, tmp_path, timeout=0.3, budget_usd=1.0).ask([(1, question())])
    row = spent(tmp_path / "calls.sqlite")["part"]
    assert (row.calls, row.failed, row.estimated) == (1, not isinstance(outcome, Reply), charged)
    assert row.cost == (pytest.approx((5 + 144 + 18) * 1e-6) if charged else 0)


def test_a_known_reply_costs_nothing_in_any_run(tmp_path: Path) -> None:
    runs = [tmp_path / name for name in ("one", "two")]
    costs = []
    with stub([reply("hi")]) as server:
        for run in runs:
            run.mkdir()
            ((_, outcome),) = chat(server.url, run, budget_usd=0.001, max_calls=1).ask([(1, question())])
            assert isinstance(outcome, Reply)
            costs.append((outcome.text, outcome.tokens, outcome.cost))
    assert server.calls == 1
    assert costs == [("hi", 3, 13e-6), ("hi", 3, 0.0)]
    assert spent(runs[1] / "calls.sqlite")["part"] == Spent(0, 0, 1, 0, 0, 0.0, 0)


# --- cache ---------------------------------------------------------------------------------------------------------


anything = st.text(st.characters(exclude_categories=()))
replies = st.builds(
    Reply,
    anything,
    st.sampled_from(["stop", "length", "content_filter"]),
    st.none() | st.integers(0, 10**9),
    st.none() | st.integers(0, 10**9),
    st.none(),
    st.lists(st.tuples(anything, st.dictionaries(anything, st.floats(-100, 0)))).map(tuple),
)


@settings(deadline=None)
@given(text=anything, first=replies, other=replies)
def test_any_reply_to_any_question_comes_back(
    tmp_path_factory: pytest.TempPathFactory, text: str, first: Reply, other: Reply
) -> None:
    path = tmp_path_factory.getbasetemp() / "any" / "replies.sqlite"
    kept, asked = Replies(path), question(text + "\u2028\ud800")
    keys = [key_of("http://x/v1", "m", asked._replace(draw=draw)) for draw in (0, 1)]
    for key, said in zip(keys, (first, other), strict=True):
        kept.put(key, said)
    kept.close()
    again = Replies(path)
    assert [again.get(key) for key in keys] == [first._replace(cost=0.0), other._replace(cost=0.0)]
    again.close()


def test_all_that_is_asked_decides_the_key() -> None:
    same = {"url": "http://x/v1", "model": "m", "question": question()}
    changes: list[dict[str, Any]] = [
        {"url": "http://y/v1"},
        {"model": "n"},
        {"question": question("other")},
        {"question": question()._replace(messages=(Message(role="system", content="hello"),))},
        {"question": question()._replace(messages=question().messages * 2)},
        *(
            {"question": question(**{name: value})}
            for name, value in (
                ("temperature", 0.5),
                ("max_tokens", 10),
                ("top_p", 0.9),
                ("seed", 1),
                ("draw", 1),
                ("schema", {}),
                ("logprobs", True),
            )
        ),
    ]
    assert len({key_of(**{**same, **change}) for change in [{}, *changes]}) == len(changes) + 1  # type: ignore[arg-type]
    assert set(Question._fields) == {"messages", "temperature", "max_tokens", "top_p", "seed", "draw", "schema", "logprobs"}
    one, other = ({"a": 1, "b": [2]}, {"b": [2], "a": 1})
    assert key_of("u", "m", question(schema=one)) == key_of("u", "m", question(schema=other))


def test_only_readable_replies_are_kept(tmp_path: Path) -> None:
    faults = [body(200, b"<html>"), reply(None), reply("", "length"), error(400), reply("hi")]
    with stub(faults) as server:
        for _ in range(7):
            list(chat(server.url, tmp_path).ask([(1, question())]))
    assert server.calls == 5


@pytest.mark.parametrize("harm", ["corrupt", "folder", "file in the way", "table"])
def test_a_cache_that_cannot_be_used_is_said_once(tmp_path: Path, harm: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(os.environ["XDG_CACHE_HOME"]) / "tiebreak" / "replies.sqlite"
    if harm == "file in the way":
        path.parent.write_text("")
    else:
        path.parent.mkdir(parents=True)
    if harm == "corrupt":
        path.write_bytes(b"no database, " * 1000)
    elif harm == "folder":
        path.mkdir()
    elif harm == "table":
        file = sqlite3.connect(path)
        file.execute("CREATE TABLE replies (other INTEGER)")
        file.close()
    with stub([reply("hi")]) as server:
        outcomes = list(chat(server.url, tmp_path).ask((number, question(str(number))) for number in range(5)))
    assert all(isinstance(outcome, Reply) for _, outcome in outcomes)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{path}: the cache of replies cannot be used (")
    assert line.endswith("); replies are not kept")


def test_a_row_that_cannot_be_read_is_asked_for_again(tmp_path: Path) -> None:
    path = tmp_path / "replies.sqlite"
    kept = Replies(path)
    for at, row in enumerate(("", "null", "[1]", "{}", '["hi", "stop", 1, 2, [3]]')):
        kept._execute("INSERT INTO replies VALUES (?, ?)", bytes([at]), row)
        assert kept.get(bytes([at])) is None
    kept.close()


def _keep(path: Path, base: int) -> None:
    kept = Replies(path)
    for number in range(200):
        kept.put(key_of("u", "m", question(str(base + number))), Reply(str(base + number), "stop"))
    kept.close()


def test_two_processes_share_it(tmp_path: Path) -> None:
    path = tmp_path / "replies.sqlite"
    others = [multiprocessing.get_context("spawn").Process(target=_keep, args=(path, base)) for base in (0, 100)]
    for process in others:
        process.start()
    for process in others:
        process.join()
        assert process.exitcode == 0
    kept = Replies(path)
    for number in range(300):
        known = kept.get(key_of("u", "m", question(str(number))))
        assert known is not None
        assert known.text == str(number)
    kept.close()
