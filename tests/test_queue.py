"""What people are asked next, in which order, and what comes of what they say."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from scripted import LLM, RULES, compared, completion, llm, prompt, put, rated, start
from tiebreak.app import queue, votes
from tiebreak.app.queue import agreements, answer, begin, blind, desk, dispute, left, ordered, standing
from tiebreak.app.votes import Shown
from tiebreak.files import read_jsonl, write_jsonl
from tiebreak.records import Comparison, Completion, InputError
from tiebreak.run import Run
from tiebreak.stages import evaluate
from tiebreak.stages.concord import concord

PEOPLE = {"type": "human", "name": "people"}
A, B, C = prompt("a"), prompt("b", "test"), prompt("c")
TEXTS = {A.id: ["1", "22", "333", "22", " "], B.id: ["x", "yy"], C.id: ["one", "two", "three", "four", "five"]}


@pytest.fixture(autouse=True)
def _nobody_sits() -> None:
    queue._claims.clear()


def both(of: Any, one: str, other: str) -> frozenset[str]:
    return frozenset((completion(of, one).id, completion(of, other).id))


def a_run(folder: Path, *judges: dict[str, Any], **said: list[Any]) -> Run:
    judges = judges or (LLM,)
    run = start(folder, judges=[*judges], pair={"judge": judges[0].get("name", judges[0]["type"])})
    put(run, *((of, TEXTS[of.id]) for of in (A, B, C)))
    for name, records in said.items():
        write_jsonl(run.judgments(name), records)
    return run


def order_of(run: Run, order: Any, labeller: str = "Eva") -> list[frozenset[str]]:
    return ordered(desk(run), order, standing(run), labeller)


def swapped(of: Any, one: str, other: str, said: str, again: str, judge: str = "llm") -> list[Comparison]:
    return [compared(of, one, other, said, judge), compared(of, other, one, again, judge)]


def test_there_is_every_two_once_and_no_empty_one(tmp_path: Path) -> None:
    there = desk(a_run(tmp_path))
    assert set(there.twos) == {both(A, "1", "22"), both(A, "1", "333"), both(A, "22", "333"), both(B, "x", "yy")} | {
        both(C, one, other) for one in TEXTS[C.id] for other in TEXTS[C.id] if one != other
    }
    assert there.judges == {}


def test_judges_are_those_that_decide_for_themselves(tmp_path: Path) -> None:
    both_kinds = ({"type": kind, "judges": ["llm", "other"]} for kind in ("panel", "cascade"))
    more = [{"type": "human", "name": "people"}, *both_kinds]
    run = a_run(tmp_path, LLM, llm("other"), *more)
    for name in ("llm", "other", "people", "panel", "cascade"):
        write_jsonl(run.judgments(name), [compared(A, "1", "22", "first", name)])
    assert list(desk(run).judges) == ["llm", "other"]


def test_what_judges_dispute_comes_first(tmp_path: Path) -> None:
    said = [
        *swapped(A, "1", "22", "first", "second"),  # sure of 1
        *swapped(A, "1", "333", "first", "first"),  # contradicts itself
        *swapped(A, "22", "333", "first", "tie"),  # unsure
        *swapped(B, "x", "yy", "tie", "tie"),
        *swapped(C, "one", "two", "first", "second"),
        *swapped(C, "one", "three", "first", "second"),
    ]
    other = [*swapped(C, "one", "three", "second", "first", "other"), *swapped(C, "one", "two", "first", "second", "other")]
    run = a_run(tmp_path, LLM, llm("other"), llm=said, other=other)
    asked = order_of(run, "disputed")
    unjudged = len(asked) - 6
    assert asked[unjudged : unjudged + 2] in (
        [both(A, "1", "333"), both(C, "one", "three")],
        [both(C, "one", "three"), both(A, "1", "333")],
    )
    assert asked[unjudged + 2 : unjudged + 4] == [both(A, "22", "333"), both(B, "x", "yy")]  # unsure, then a tie
    assert set(asked[unjudged + 4 :]) == {both(A, "1", "22"), both(C, "one", "two")}


def test_dispute_is_the_entropy_of_what_judges_say(tmp_path: Path) -> None:
    said = [*swapped(A, "1", "22", "first", "second"), *swapped(A, "1", "333", "first", "first")]
    run = a_run(tmp_path, LLM, llm("other"), llm=said, other=[*swapped(A, "1", "22", "tie", "tie", "other")])
    there = desk(run)
    assert dispute(there, both(A, "22", "333")) == (-1.0, 0.0)  # nobody
    assert dispute(there, both(A, "1", "22")) == (-0.6, 0.5)  # ln 2 / ln 3, and margins 1 and 0
    assert dispute(there, both(A, "1", "333")) == (-0.6, 0.0)


def test_scores_that_lie_close_come_first(tmp_path: Path) -> None:
    scores = dict(zip(TEXTS[C.id], (0.1, 0.9, 0.5, 0.55, 0.5), strict=True))
    run = a_run(tmp_path, RULES, rules=[rated(C, text, score) for text, score in scores.items()])
    asked = [
        two for two in order_of(run, "disputed") if two in {both(C, a, b) for a in TEXTS[C.id] for b in TEXTS[C.id] if a != b}
    ]
    assert asked[:3][0] in (both(C, "three", "five"), both(C, "four", "five"), both(C, "three", "four"))
    assert both(C, "three", "five") in asked[:3]
    assert asked[-1] == both(C, "one", "two")


def test_not_all_of_a_prompt_in_a_row(tmp_path: Path) -> None:
    there = desk(a_run(tmp_path))
    first = [there.twos[two][0].id for two in order_of(a_run_again(tmp_path), "disputed")[:3]]
    assert set(first) == {A.id, B.id, C.id}


def a_run_again(folder: Path) -> Run:
    return Run(folder / "run")


def test_a_random_order_has_nothing_to_do_with_judges(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    before = order_of(run, "random")
    write_jsonl(run.judgments("llm"), swapped(*before_texts(run, before[-1]), "first", "first"))
    assert order_of(run, "random") == before == order_of(run, "random", "Tom")
    assert before != order_of(run, "disputed")


def before_texts(run: Run, two: frozenset[str]) -> tuple[Any, str, str]:
    asked, one, other = desk(run).twos[two]
    return asked, one.text, other.text


def test_who_is_shown_first_is_random_and_stays(tmp_path: Path) -> None:
    texts = [f"text {at}" for at in range(16)]
    run = start(tmp_path)
    put(run, (A, texts))
    there = desk(run)
    numbers = {completion(A, text).id: at for at, text in enumerate(texts)}
    shown = {two: blind(there, two, "Eva") for two in there.twos}
    assert shown == {two: blind(there, two, "Eva") for two in there.twos}
    turned = sum(numbers[each.first] > numbers[each.second] for each in shown.values())
    assert 40 <= turned <= 80  # of 120
    assert {each.both for each in shown.values()} == set(there.twos)
    other = sum(blind(there, two, "Tom") != each for two, each in shown.items())
    assert 40 <= other <= 80


def say(run: Run, who: str, of: Any, one: str, other: str, said: Any, **more: str) -> None:
    votes.vote(run, Shown(of.id, completion(of, one).id, completion(of, other).id), said, who, **more)


def test_a_second_opinion_is_asked_where_people_or_a_judge_disagree(tmp_path: Path) -> None:
    against = [("three", "four"), ("three", "five"), ("four", "five"), ("two", "three"), ("two", "four"), ("two", "five")]
    of_c = [each for two in against for each in swapped(C, *two, "first", "second")]
    run = a_run(tmp_path, llm=[*swapped(A, "1", "22", "first", "second"), *swapped(A, "1", "333", "first", "second"), *of_c])
    say(run, "Eva", A, "22", "1", "second")  # as the judge
    say(run, "Eva", A, "1", "333", "second")  # against it
    say(run, "Eva", B, "x", "yy", "first")
    say(run, "Tom", B, "yy", "x", "first")  # against Eva
    say(run, "Eva", C, "one", "two", "first")  # no judge
    for two in against:
        say(run, "Eva", C, *two, "tie")
    asked = order_of(run, "second opinion", "Ann")
    assert asked[0] == both(B, "x", "yy")
    assert set(asked[1:]) == {both(A, "1", "333"), *(both(C, *two) for two in against)}
    assert order_of(run, "second opinion", "Tom") == asked[1:]
    assert order_of(run, "second opinion", "Eva") == []


# --- one person at work --------------------------------------------------------------------------------------------


def test_a_verdict_is_kept_and_the_next_question_comes(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    sitting = begin(run, "run", " Eva ", "random")
    assert len(left(run, sitting)) == 14
    for word, winner in (("first", "first"), ("second", "second"), ("tie", "tie"), ("both bad", "tie")):
        shown = sitting.shown
        assert shown is not None
        sitting = answer(run, sitting, sitting.question, word)
        last = list(read_jsonl(run.judgments("people"), Comparison))[-1]
        assert (last.first, last.second, last.winner) == (shown.first, shown.second, winner)
    assert len(left(run, sitting)) == 10
    assert [word for _, word in sitting.trail] == ["first", "second", "tie", "both bad"]


def test_all_is_judged_once(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    sitting, met = begin(run, "run", "Eva", "disputed"), Counter[frozenset[str]]()
    while sitting.shown:
        met[sitting.shown.both] += 1
        sitting = answer(run, sitting, sitting.question, "tie")
    assert met == Counter(list(desk(run).twos))
    assert begin(run, "run", "Tom", "disputed").shown is None


def test_what_was_said_to_another_question_does_nothing(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    sitting = begin(run, "run", "Eva", "random")
    later = answer(run, sitting, sitting.question, "first")
    assert answer(run, later, sitting.question, "second") == later
    assert answer(run, later, later.question, "rm -rf") == later
    assert len(list(read_jsonl(run.judgments("people"), Comparison))) == 1


def test_undo_goes_back_through_verdicts_and_skips(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    start = begin(run, "run", "Eva", "random")
    assert answer(run, start, start.question, "undo") == start
    one = answer(run, start, start.question, "first")
    two = answer(run, one, one.question, "skip")
    assert two.shown != one.shown
    back = answer(run, two, two.question, "undo")
    assert (back.shown, back.skipped, standing(run)[start.shown.both][0].winner) == (one.shown, frozenset(), "first")
    lines = run.judgments("people").read_bytes()
    back = answer(run, back, back.question, "undo")
    assert back.shown == start.shown
    assert standing(run)[start.shown.both] == []
    assert run.judgments("people").read_bytes().startswith(lines)
    again = answer(run, back, back.question, "second")
    assert standing(run)[start.shown.both][0].winner == "second"
    assert again.shown != start.shown


def test_what_is_skipped_does_not_come_back_in_this_sitting(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    sitting = begin(run, "run", "Eva", "random")
    skipped = set()
    while sitting.shown:
        assert sitting.shown.both not in skipped
        skipped.add(sitting.shown.both)
        sitting = answer(run, sitting, sitting.question, "skip")
    assert len(skipped) == 14
    assert not run.judgments("people").exists()
    assert begin(run, "run", "Eva", "random").shown is not None
    assert answer(run, sitting, sitting.question, "undo").shown is not None


def test_two_people_are_asked_different_things(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    eva, tom = begin(run, "run", "Eva", "disputed"), begin(run, "run", "Tom", "disputed")
    assert eva.shown.both != tom.shown.both
    while tom.shown and tom.shown.both != eva.shown.both:
        tom = answer(run, tom, tom.question, "tie")
    assert tom.shown is not None  # what Eva leaves lying is not lost
    assert len(left(run, tom)) == 1


def test_who_comes_back_has_the_same_name_and_question(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    sitting = begin(run, "run", "Eva", "disputed")
    sitting = answer(run, sitting, sitting.question, "first")
    again = begin(run, "run", "EVA", "disputed")
    assert (again.labeller, again.shown) == ("Eva", sitting.shown)
    with pytest.raises(InputError, match="your name"):
        begin(run, "run", "", "disputed")


def test_agreement_with_each_judge_and_each_person(tmp_path: Path) -> None:
    said = [each for other in TEXTS[C.id][1:] for each in swapped(C, "one", other, "first", "second")]
    run = a_run(tmp_path, LLM, llm("silent"), llm=[*said, *swapped(C, "two", "three", "first", "first")])
    for other, mine in zip(TEXTS[C.id][1:], ("first", "first", "second", "tie"), strict=True):
        say(run, "Eva", C, "one", other, mine)
    say(run, "Eva", A, "1", "22", "first")  # no judge
    say(run, "Eva", C, "two", "three", "tie")  # as the judge, whose contradiction is a tie
    say(run, "Eva", C, "two", "four", "first", via=votes.EDIT)
    say(run, "Tom", C, "two", "one", "second")
    found = agreements(desk(run), standing(run), "Eva")
    assert list(found) == ["llm", "Tom (person)"]
    assert (found["llm"].share.n, found["llm"].share.value) == (5, pytest.approx(3 / 5))
    assert found["llm"].kappa.low < found["llm"].kappa.value < 3 / 5  # less chance
    assert (found["Tom (person)"].share.n, found["Tom (person)"].kappa) == (1, None)
    assert agreements(desk(run), standing(run), "nobody") == {}


# --- models against each other -------------------------------------------------------------------------------------

HELD_OUT = [prompt(f"held out {at}", "test") for at in range(3)]


def evaluated(folder: Path, judge: str = "other") -> Run:
    """Return a run whose models have answered: base twice to each prompt, tuned once."""
    run = start(folder, judges=[llm("label"), llm("other"), PEOPLE], pair={"judge": "label"}, evaluate={"judge": judge})
    put(run, (A, TEXTS[A.id]), *((each, ("x", "yy")) for each in HELD_OUT))
    says = {"base": ("short", "longer one"), "tuned": ("of the tuned one",)}
    drawn = [completion(each, text, at, name) for each in HELD_OUT for name in says for at, text in enumerate(says[name])]
    write_jsonl(run.eval_completions_jsonl, [*drawn, completion(A, "trained on", 0, "base"), completion(A, "so", 0, "tuned")])
    return run


def test_people_are_asked_what_the_evaluating_judge_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = evaluated(tmp_path)
    write_jsonl(run.eval_judgments("other"), swapped(HELD_OUT[0], "short", "of the tuned one", "first", "second", "other"))
    write_jsonl(run.judgments("label"), swapped(A, "1", "22", "first", "second", "label"))
    there = desk(run, "models")
    asked: list[Any] = []
    monkeypatch.setattr(evaluate, "_draw", lambda *_: (by_model(run), dict.fromkeys(("base", "tuned"), 0)))
    monkeypatch.setattr(evaluate, "of_models", lambda *_: {})
    monkeypatch.setattr(evaluate, "ask", lambda run, section, place, twos, *_: asked.extend(twos))
    run.tuned.mkdir(parents=True)
    evaluate.evaluate(run)
    assert set(there.twos) == {frozenset((one.id, other.id)) for _, one, other in asked}
    assert len(there.twos) == 6
    assert list(there.judges) == ["other"]


def test_where_a_person_is_the_evaluating_judge_the_win_rate_is_what_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = evaluated(tmp_path, judge="people")
    monkeypatch.setattr(evaluate, "_draw", lambda *_: (by_model(run), dict.fromkeys(("base", "tuned"), 0)))
    monkeypatch.setattr(evaluate, "of_models", lambda *_: {})
    run.tuned.mkdir(parents=True)
    evaluate.evaluate(run)
    assert run.summary["win_rate"] is None
    there = desk(run, "models")
    for of, base, tuned in list(there.twos.values())[:4]:
        votes.vote(run, Shown(of.id, tuned.id, base.id), "first", "Eva", "models")
    evaluate.evaluate(run)
    assert [run.summary["win_rate"][key] for key in ("rate", "n", "failed")] == [1.0, 4, 2]


def by_model(run: Run) -> dict[str, Any]:
    drawn: dict[str, Any] = {"base": {}, "tuned": {}}
    for draw in read_jsonl(run.eval_completions_jsonl, Completion):
        drawn[draw.sampler].setdefault(draw.prompt_id, {})[draw.draw] = draw
    return drawn


def test_what_people_say_of_models_lies_where_the_evaluation_reads_it(tmp_path: Path) -> None:
    run = evaluated(tmp_path)
    twos = desk(run, "models").twos
    write_jsonl(
        run.eval_judgments("other"),
        [each for of in HELD_OUT for each in swapped(of, "short", "of the tuned one", "first", "second", "other")],
    )
    sitting = begin(run, "run", "Eva", "disputed", "models")
    while sitting.shown:
        better = twos[sitting.shown.both][1].id  # base's
        sitting = answer(run, sitting, sitting.question, "first" if sitting.shown.first == better else "second")
    sitting = answer(run, sitting, sitting.question, "undo")
    assert sitting.shown is not None
    answer(run, sitting, sitting.question, "tie")
    assert not run.judgments("people").exists()
    assert standing(run) == {}
    assert (len(standing(run, "models")), begin(run, "run", "Eva", "random").shown is not None) == (6, True)
    found = concord(run, run.recipe.judge("other"), list(twos.values()))["with_people"]
    assert [(each["judge"], each["n"]) for each in found] == [("people", 3)]
    assert found[0]["rate"] >= 2 / 3


def test_a_run_without_an_evaluation_has_no_models_to_judge(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    sitting = begin(run, "run", "Eva", "disputed", "models")
    assert (sitting.shown, left(run, sitting)) == (None, [])
