"""judge: who is asked what, in which order, and how often."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scripted import (
    LLM,
    REWARD,
    RULES,
    Says,
    Scores,
    compared,
    completion,
    llm,
    performed,
    prompt,
    put,
    put_in,
    shorter,
    start,
)
from test_llm_judge import Scripted
from test_questions import blocks
from tiebreak.files import read_jsonl, write_jsonl
from tiebreak.judges.build import build_judge
from tiebreak.records import Comparison, InputError, Rating
from tiebreak.run import Run
from tiebreak.stages.judge import ask, judge
from tiebreak.stages.pair import REASONS, attempts, pair
from tiebreak.stages.twos import twos

A, B = prompt("a"), prompt("b", "test")


def both(*texts: str) -> set[tuple[str, str]]:
    return {(one, other) for one in texts for other in texts if one != other}


@pytest.fixture
def asking(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str, str], str]], Says]:
    """Put a scripted judge where the recipe's would be."""

    def install(decide: Callable[[str, str], str] = shorter) -> Says:
        says = Says(decide)
        monkeypatch.setattr("tiebreak.stages.judge.build_judge", lambda section, run: says)
        return says

    return install


def with_orders(folder: Path, orders: str) -> Run:
    run = start(folder, judges=[{**LLM, "orders": orders}])
    put(run, (A, ["1", "22", "333"]), (B, ["x", "yy", "x"]))
    return run


def test_both_orders(tmp_path: Path, asking: Any) -> None:
    run, says = with_orders(tmp_path, "both"), asking()
    counts = judge(run)
    assert Counter(says.asked) == Counter(both("1", "22", "333") | both("x", "yy"))
    assert counts == {
        "llm": {"kind": "llm", "records": 8, "errors": 0, "ties": 0, "inconsistent": 0, "unreadable": 0, "questions": 4}
    }
    verdicts = list(read_jsonl(run.judgments("llm"), Comparison))
    assert len(verdicts) == 8
    assert {verdict.prompt_id for verdict in verdicts} == {A.id, B.id}


def test_the_order_of_drawing(tmp_path: Path, asking: Any) -> None:
    run, says = with_orders(tmp_path, "first"), asking()
    judge(run)
    assert says.asked == [("1", "22"), ("1", "333"), ("22", "333"), ("x", "yy")]


def test_one_random_order(tmp_path: Path, asking: Any) -> None:
    """Half of the twos turn round, the same ones however the draws were ordered."""
    run, says = start(tmp_path, judges=[{**LLM, "orders": "random"}]), asking()
    texts = [f"text {at}" for at in range(16)]
    put(run, (A, texts))
    judge(run)
    assert len(says.asked) == len({frozenset(two) for two in says.asked}) == 16 * 15 / 2
    turned = sum(texts.index(first) > texts.index(second) for first, second in says.asked)
    assert 40 <= turned <= 80

    run.judgments("llm").unlink()
    again = asking()
    put(run, (A, texts[::-1]))
    judge(run)
    assert set(again.asked) == set(says.asked)


def ranks(parts: dict[str, str]) -> str:
    """Rank by length, whatever the order."""
    answers = {name[-1]: len(text) for name, text in parts.items() if name.startswith("answer")}
    shown = sorted(answers, key=lambda label: answers[label])
    return "Ranking: " + shown[0] + "".join(f" {'>' if answers[a] < answers[b] else '='} {b}" for a, b in pairwise(shown))


@pytest.mark.parametrize(("orders", "questions"), [("both", 32), ("random", 16), ("first", 16)])
def test_a_ranking_is_one_question_about_all(
    orders: str, questions: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of drawing, in its reverse, or the one or the other by chance."""
    run = start(tmp_path, judges=[llm("llm", ask="listwise", orders=orders, structured=False)])
    put(run, *((prompt(str(at)), [f"{at}", f"{at} longer", f"{at} longest of all"]) for at in range(16)))
    chat = Scripted(ranks)
    monkeypatch.setattr("tiebreak.samplers.build.build_chat", lambda section, name, ledger: chat)
    counts = judge(run)["llm"]
    shown = [blocks(question.messages[0].content) for question in chat.asked]
    first = [parts["answer A"] == parts["prompt"] for parts in shown]
    assert all("answer C" in parts for parts in shown)
    assert (len(shown), counts["records"], counts["errors"]) == (questions, 3 * questions, 0)
    assert sum(first) == 16 if orders != "random" else 3 <= sum(first) <= 13
    assert {each.winner for (one, other), each in verdicts(run, "llm").items() if len(one) < len(other)} == {"first"}
    judge(run)
    assert len(chat.asked) == questions


def test_nobody_is_asked_about_nothing_or_the_same(tmp_path: Path, asking: Any) -> None:
    run, says = start(tmp_path), asking()
    put(run, (A, ["1", "", "1", " \n", "22"]), (B, ["", "x"]))
    counts = judge(run)
    assert set(says.asked) == both("1", "22")
    assert counts["llm"]["records"] == 2


def test_what_is_answered_is_not_asked_again_and_errors_are(tmp_path: Path, asking: Any) -> None:
    run = start(tmp_path)
    put(run, (A, ["1", "22", "333"]))
    asking(lambda first, second: "timed out" if "333" in (first, second) and first != "1" else shorter(first, second))
    counts = judge(run)["llm"]
    assert (counts["records"], counts["errors"], counts["unreadable"], counts["questions"]) == (6, 3, 2, 3)

    says = asking()
    counts = judge(run)["llm"]
    assert set(says.asked) == {("333", "1"), ("22", "333"), ("333", "22")}
    assert (counts["records"], counts["errors"], counts["unreadable"], counts["questions"]) == (6, 0, 0, 3)
    assert sum(1 for _ in read_jsonl(run.judgments("llm"), Comparison)) == 9  # what was said stays on record

    says = asking()
    judge(run)
    assert says.asked == []


def test_new_completions_are_owed_and_old_ones_are_not(tmp_path: Path, asking: Any) -> None:
    run = start(tmp_path)
    put(run, (A, ["1", "22"]))
    asking()
    judge(run)
    put(run, (A, ["1", "22", "333"]))
    says = asking()
    judge(run)
    assert set(says.asked) == both("1", "22", "333") - both("1", "22")


def test_what_is_counted(tmp_path: Path, asking: Any) -> None:
    run = start(tmp_path)
    put(run, (A, ["tie 1", "tie 2"]), (prompt("c"), ["A", "B"]), (prompt("d"), ["no", "idea"]), (prompt("e"), ["s", "long"]))

    def decide(first: str, second: str) -> str:
        two = {first, second}
        return "first" if two == {"A", "B"} else "no verdict line" if "no" in two else "tie" if "tie 1" in two else "second"

    def consistent(first: str, second: str) -> str:
        return shorter(first, second) if "s" in (first, second) else decide(first, second)

    asking(consistent)
    counts = judge(run)["llm"]
    assert {key: counts[key] for key in ("questions", "ties", "inconsistent", "unreadable", "errors", "records")} == {
        "questions": 4,
        "ties": 1,
        "inconsistent": 1,
        "unreadable": 1,
        "errors": 2,
        "records": 8,
    }


def test_ready_made_pairs_are_asked_about_as_they_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three completions, two rows: the third two was never a pair; one that stands twice is asked about once."""
    (tmp_path / "pairs.jsonl").write_text("", encoding="utf-8")
    run = start(
        tmp_path, prompts={"source": "pairs.jsonl", "pairs": {}}, generate=None, judges=[LLM, RULES], pair={"judge": "llm"}
    )
    put(run, (A, ["1", "22", "333"]))
    write_jsonl(run.given_jsonl, [compared(A, "1", "22", "first", "given"), compared(A, "333", "1", "first", "given")] * 2)
    says = Says(shorter)
    monkeypatch.setattr(
        "tiebreak.stages.judge.build_judge", lambda section, run: says if section.name == "llm" else build_judge(section, run)
    )
    counts = judge(run)
    assert Counter(says.asked) == Counter([("1", "22"), ("22", "1"), ("333", "1"), ("1", "333")])
    assert [(one.text, other.text) for _, one, other in twos(run)] == [("1", "22"), ("333", "1")]
    assert counts["rules"] == {"kind": "rules", "records": 3, "errors": 0}


def test_rules_rate_every_distinct_completion_once(tmp_path: Path) -> None:
    run = start(tmp_path, judges=[RULES])
    put(run, (A, ["1", "22", "1"]), (B, ["far too long", ""]))
    assert judge(run) == {"rules": {"kind": "rules", "records": 4, "errors": 0}}
    ratings = {rating.completion_id: rating.score for rating in read_jsonl(run.judgments("rules"), Rating)}
    assert len(ratings) == 4
    assert ratings[completion(B, "far too long").id] == 0.0
    before = run.judgments("rules").read_bytes()
    judge(run)
    assert run.judgments("rules").read_bytes() == before


def test_a_judge_is_built_once_for_its_canaries_and_its_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be a model, which takes long to load; the one before it is let go of."""
    run = start(tmp_path, judges=[{**LLM, "canaries": 2}, RULES], pair={"judge": "llm"})
    put(run, (A, ["a long enough answer", "another answer", "yes"]), (B, ["one more answer to it", "and the last one"]))
    built, says = [], Says(lambda first, second: "tie" if first == second else shorter(first, second))

    def build(section: Any, run: Run) -> Any:
        built.append(section.name)
        return says if section.name == "llm" else build_judge(section, run)

    monkeypatch.setattr("tiebreak.stages.judge.build_judge", build)
    run.accept_canary_failures()
    judge(run)
    assert any(first == second for first, second in says.asked)  # canaries flew
    assert built == ["llm", "rules"]


def test_a_verdict_is_in_the_file_before_the_next_question(tmp_path: Path, asking: Any) -> None:
    run = start(tmp_path)
    put(run, (A, ["1", "22", "333"]))

    def breaks_off(first: str, second: str) -> str:
        if len(list(read_jsonl(run.judgments("llm"), Comparison))) == 4:
            raise KeyboardInterrupt
        return shorter(first, second)

    asking(breaks_off)
    with pytest.raises(KeyboardInterrupt):
        judge(run)
    says = asking()
    judge(run)
    assert len(says.asked) == 2


def test_the_same_question_is_asked_once(tmp_path: Path, asking: Any) -> None:
    """Base and tuned may answer the same in several draws, each other's words even."""
    run, says = start(tmp_path), asking()
    one, other = completion(A, "1"), completion(A, "22")
    ask(run, run.recipe.judges[0], run.eval_judgments, [(A, one, other), (A, one, other), (A, other, one), (A, one, one)])
    assert Counter(says.asked) == Counter(both("1", "22"))


# --- panels --------------------------------------------------------------------------------------------------------


THREE = [llm("a"), llm("b"), llm("c"), {"type": "panel", "judges": ["a", "b", "c"]}]


def verdicts(run: Run, name: str) -> dict[tuple[str, str], Comparison]:
    """Return a judge's verdicts by the two texts, in the order in which they were shown."""
    texts = {draw.id: draw.text for draw in run.draws()}
    found = run.verdicts(run.judgments(name))
    return {(texts[each.first], texts[each.second]): each for each in found if isinstance(each, Comparison)}


def reversed_(decide: Callable[[str, str], str]) -> Callable[[str, str], str]:
    return lambda first, second: {"first": "second", "second": "first"}.get(word := decide(first, second), word)


@pytest.mark.parametrize("labels", ["panel", "b"])
def test_a_panels_members_are_asked_once_each(labels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though they stand among the judges too, and though one of them makes the pairs."""
    run = start(tmp_path, judges=THREE, pair={"judge": labels})
    put(run, (A, ["1", "22", "333"]), (B, ["x", "yy", "x"]))
    members = [Says(shorter, "a"), Says(shorter, "b"), Says(reversed_(shorter), "c")]
    put_in(monkeypatch, *members)
    counts = judge(run)
    for member in members:
        assert Counter(member.asked) == Counter(both("1", "22", "333") | both("x", "yy"))
    assert list(counts) == ["a", "b", "c", "panel"]
    assert [counts[name]["records"] for name in counts] == [8, 8, 8, 4]
    assert counts["panel"]["questions"] == 4
    said = verdicts(run, "panel")
    assert set(said) == {("1", "22"), ("1", "333"), ("22", "333"), ("x", "yy")}
    assert {(each.winner, each.reason) for each in said.values()} == {("first", "2 of 3 for first; a: says first")}
    assert json.loads(said["1", "22"].raw) == {"a": "first", "b": "first", "c": "second"}


def test_a_panel_is_counted_anew_when_a_members_error_is_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start(tmp_path, judges=THREE, pair={"judge": "panel"})
    put(run, (A, ["1", "22", "333"]))
    against = Says(reversed_(shorter), "c")
    put_in(
        monkeypatch, Says(shorter, "a"), Says(lambda one, other: "timed out" if one == "1" else shorter(one, other), "b"), against
    )
    counts = judge(run)
    assert (counts["b"]["errors"], counts["panel"]["errors"], counts["panel"]["ties"]) == (2, 0, 2)
    before = verdicts(run, "panel")
    assert before["1", "22"].reason == "no majority: 1 first, 1 second (1 without a verdict)"
    assert before["22", "333"].reason == "2 of 3 for first; a: says first"

    mended = Says(shorter, "b")
    put_in(monkeypatch, Says(shorter, "a"), mended, against)
    counts = judge(run)
    assert set(mended.asked) == {("1", "22"), ("1", "333")}
    assert (counts["b"]["errors"], counts["panel"]["records"], counts["panel"]["ties"]) == (0, 3, 0)
    assert {each.reason for each in verdicts(run, "panel").values()} == {"2 of 3 for first; a: says first"}
    assert sum(1 for _ in read_jsonl(run.judgments("panel"), Comparison)) == 3  # written anew, not added to


def test_a_panels_disagreement_is_in_its_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of three, two of three, and one vote with a tie: margin |2 p - 1|, and 1 - p that the label is wrong."""
    run = start(tmp_path, judges=THREE, pair={"judge": "panel"})
    put(run, (A, ["1", "22"]), (prompt("c"), ["333", "4444"]), (prompt("d"), ["55555", "666666"]), (B, ["x", "yy"]))

    def unless(*others: str, says: Callable[[str, str], str]) -> Callable[[str, str], str]:
        return lambda one, other: says(one, other) if one[0] in others else shorter(one, other)

    ties = unless("5", "6", says=lambda one, other: "tie")
    put_in(
        monkeypatch,
        Says(shorter, "a"),
        Says(ties, "b"),
        Says(unless("3", "4", "x", "y", says=reversed_(shorter)), "c"),
    )
    judge(run)
    assert pair(run)["train"] == {"attempted": 3, "usable": 3, "dropped": {}}
    found = {each.chosen[0].content: each for each in [*run.pairs(run.pairs_jsonl), *run.pairs(run.held_out_pairs_jsonl)]}
    expected = {"1": 1.0, "333": 2 / 3, "55555": 5 / 6, "x": 2 / 3}
    assert found.keys() == expected.keys()
    for text, probability in expected.items():
        assert found[text].margin == pytest.approx(2 * probability - 1)
        assert found[text].flip_probability == pytest.approx(1 - probability)
        assert found[text].provenance["judge"] == "panel"


# --- cascades ------------------------------------------------------------------------------------------------------

CASCADE = [REWARD, llm("mid"), llm("strong"), {"type": "cascade", "judges": ["cheap", "mid", "strong"]}]
SCORES = {"1": 0.0, "22": 0.1, "333": 0.2, "4444": 5.0}
"""The first three are too close to call; the last one beats them."""


def turns(first: str, second: str) -> str:
    """Contradict oneself where 333 is one of the two."""
    return "first" if "333" in (first, second) else shorter(first, second)


def test_a_cascade_asks_the_next_only_where_the_one_before_was_not_sure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start(tmp_path, judges=CASCADE, pair={"judge": "cascade"})
    put(run, (A, list(SCORES)), (B, ["x", "x"]))
    cheap, mid, strong = Scores(lambda text: SCORES.get(text, 0.0), "cheap"), Says(turns, "mid"), Says(shorter, "strong")
    put_in(monkeypatch, cheap, mid, strong)
    counts = judge(run)
    assert sorted(cheap.asked) == [*SCORES, "x"][:4]  # a prompt with one text makes no two
    assert Counter(mid.asked) == Counter(both("1", "22", "333"))
    assert Counter(strong.asked) == Counter(both("1", "333") | both("22", "333"))
    assert [counts[name]["records"] for name in counts] == [4, 6, 4, 6]

    told = {two: (each.winner, each.reason.split(":")[0]) for two, each in verdicts(run, "cascade").items()}
    assert told == {
        ("1", "22"): ("first", "mid"),
        ("1", "333"): ("first", "strong"),
        ("22", "333"): ("first", "strong"),
        **{(text, "4444"): ("second", "cheap") for text in ("1", "22", "333")},
    }
    before = {name: run.judgments(name).read_bytes() for name in counts}
    for each in (cheap, mid, strong):
        each.asked.clear()
    judge(run)
    assert (cheap.asked, mid.asked, strong.asked) == ([], [], [])
    assert {name: run.judgments(name).read_bytes() for name in counts} == before

    pair(run)
    pairs = {(each.chosen[0].content, each.rejected[0].content): each for each in run.pairs(run.pairs_jsonl)}
    assert pairs["1", "22"].flip_probability == 0.0
    for text in ("1", "22", "333"):
        wrong = 1 / (1 + math.exp(SCORES["4444"] - SCORES[text]))
        assert pairs["4444", text].flip_probability == pytest.approx(wrong)
        assert pairs["4444", text].margin == pytest.approx(1 - 2 * wrong)


def test_a_member_of_a_cascade_that_makes_the_pairs_is_asked_about_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start(tmp_path, judges=CASCADE, pair={"judge": "mid"})
    put(run, (A, list(SCORES)))
    mid, strong = Says(turns, "mid"), Says(shorter, "strong")
    put_in(monkeypatch, Scores(lambda text: SCORES.get(text, 0.0), "cheap"), mid, strong)
    judge(run)
    assert Counter(mid.asked) == Counter(both(*SCORES))
    assert Counter(strong.asked) == Counter(both("1", "333") | both("22", "333"))


def test_a_cascade_that_is_sure_asks_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start(tmp_path, judges=CASCADE, pair={"judge": "cascade"})
    put(run, (A, ["1", "4444"]))
    mid, strong = Says(turns, "mid"), Says(shorter, "strong")
    put_in(monkeypatch, Scores(lambda text: SCORES[text], "cheap"), mid, strong)
    counts = judge(run)
    assert (mid.asked, strong.asked) == ([], [])
    assert [counts[name]["records"] for name in counts] == [2, 0, 0, 1]
    assert run.judgments("strong").read_bytes() == b""


def test_a_cascade_that_ends_in_a_person_waits_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    people = [llm("mid"), {"type": "human", "name": "people"}, {"type": "cascade", "judges": ["mid", "people"]}]
    run = start(tmp_path, judges=people, pair={"judge": "cascade"})
    put(run, (A, ["1", "22", "333"]))
    mid = Says(turns, "mid")
    put_in(monkeypatch, mid)
    counts = judge(run)
    assert (counts["people"]["records"], counts["cascade"]["records"], counts["cascade"]["errors"]) == (0, 3, 2)
    assert verdicts(run, "cascade")["1", "333"].error == "waiting for people"
    assert verdicts(run, "cascade")["22", "333"].error == "waiting for people"
    assert pair(run)["train"] == {"attempted": 3, "usable": 1, "dropped": {"unreadable": 2}}

    write_jsonl(run.judgments("people"), [compared(A, "333", "1", "first", "people")])  # as the app does
    mid.asked.clear()
    counts = judge(run)
    assert mid.asked == []
    assert (counts["people"]["records"], counts["cascade"]["errors"]) == (1, 1)
    assert (verdicts(run, "cascade")["1", "333"].winner, verdicts(run, "cascade")["22", "333"].error) == (
        "second",
        "waiting for people",
    )
    assert pair(run)["train"]["usable"] == 2
    assert ("333", "1") in {(each.chosen[0].content, each.rejected[0].content) for each in run.pairs(run.pairs_jsonl)}


# --- people --------------------------------------------------------------------------------------------------------

HEADER = "prompt,first,second,winner\n"


def labelled(folder: Path, rows: str, *others: dict[str, Any], **changes: Any) -> Run:
    """Return a run whose people's verdicts stand in a file beside the recipe."""
    (folder / "labels.csv").write_text(HEADER + rows, encoding="utf-8")
    people = {"type": "human", "name": "people", "file": "labels.csv"}
    run = start(folder, judges=[*others, people], **{"pair": {"judge": "people"}, **changes})
    put(run, (A, ["1", "22", "333"]), (B, ["x", "yy"]))
    return run


def test_peoples_verdicts_come_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = labelled(tmp_path, "a,22,1,second\nb,x,yy,tie\na,1,4444,first\nz,1,22,first\n")
    counts = judge(run)["people"]
    assert {two: each.winner for two, each in verdicts(run, "people").items()} == {("22", "1"): "second", ("x", "yy"): "tie"}
    assert {key: counts[key] for key in ("records", "errors", "ties", "questions")} == {
        "records": 2, "errors": 0, "ties": 1, "questions": 2,
    }  # fmt: skip
    said = capsys.readouterr().out
    assert said == "people: 2 rows of labels.csv fit nothing here: 1 unknown completion, 1 unknown prompt\n"
    assert pair(run)["train"] == {"attempted": 3, "usable": 1, "dropped": {"unreadable": 2}}
    before = run.judgments("people").read_bytes()
    judge(run)
    assert run.judgments("people").read_bytes() == before


def test_a_verdict_that_is_there_already_stays(tmp_path: Path) -> None:
    """Whichever way round the file has the two: half of a contradiction must not come from a file."""
    run = labelled(tmp_path, "a,1,22,first\na,333,1,first\n")
    write_jsonl(run.judgments("people"), [compared(A, "1", "22", "second", "people"), compared(A, "1", "333", "first", "people")])
    judge(run)
    assert {two: each.winner for two, each in verdicts(run, "people").items()} == {("1", "22"): "second", ("1", "333"): "first"}
    assert judge(run)["people"]["inconsistent"] == 0


def test_a_cascade_takes_no_offence_at_verdicts_that_it_does_not_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cascade = {"type": "cascade", "judges": ["mid", "people"]}
    (tmp_path / "labels.csv").write_text(HEADER + "a,1,22,second\nb,x,yy,second\na,22,333,second\n", encoding="utf-8")
    people = {"type": "human", "name": "people", "file": "labels.csv"}
    run = start(tmp_path, judges=[llm("mid"), people, cascade], pair={"judge": "cascade"})
    put(run, (A, ["1", "22", "333"]), (B, ["x", "yy"]))
    put_in(monkeypatch, Says(turns, "mid"))
    judge(run)
    assert capsys.readouterr().out == ""
    told = {two: each.winner or each.error for two, each in verdicts(run, "cascade").items()}
    assert told == {("1", "22"): "first", ("1", "333"): "waiting for people", ("22", "333"): "second", ("x", "yy"): "first"}


OWN_CHECK = {"type": "rules", "checks": [{"check": "python", "file": "own.py", "function": "good"}]}


@pytest.mark.parametrize(
    ("section", "file", "before", "after", "told"),
    [
        ({"type": "human", "file": "labels.csv"}, "labels.csv", HEADER + "a,1,22,first\n", "a,1,333,tie\n", "judges.human.file"),
        (OWN_CHECK, "own.py", "def good(text, prompt):\n    return len(text) < 3\n", "\n", "judges.rules.checks.0.file"),
        (llm("llm", criteria="legal"), "legal", "Be brief.\n", "Be kind.\n", "judges.llm.criteria"),
    ],
    ids=["people", "python", "criteria"],
)
def test_a_file_that_a_judge_reads_belongs_to_the_run(
    section: dict[str, Any], file: str, before: str, after: str, told: str, tmp_path: Path, asking: Any
) -> None:
    (tmp_path / file).write_text(before, encoding="utf-8")
    if section["type"] == "llm":
        asking()
    run = start(tmp_path, judges=[section])
    put(run, (A, ["1", "22", "333"]))
    counts = performed(run, "prepare", "generate").perform("judge", judge)
    assert run.perform("judge", judge, again=True) == counts
    kept = {path: path.read_bytes() for path in run.path.rglob("*.jsonl")}
    (tmp_path / file).write_text(before + after, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        run.perform("judge", judge, again=True)
    assert str(caught.value) == (
        f"{run.path}: judge was made with other settings or inputs: the content of {told}; "
        "repeat it with --redo judge, or start another run with --run DIR"
    )
    assert {path: path.read_bytes() for path in kept} == kept
    run.redo("judge")
    again = run.perform("judge", judge)
    assert again[section.get("name", section["type"])]["records"] == 2 if section["type"] == "human" else again == counts


# --- whatever they say ---------------------------------------------------------------------------------------------

KINDS: list[dict[str, Any]] = [
    llm("pairs", canaries=1),
    llm("random", orders="random"),
    llm("scores", ask="pointwise"),
    llm("ranks", ask="listwise", structured=False),
    {**REWARD, "name": "reward"},
    RULES,
    {"type": "human", "file": "labels.csv"},
    {"type": "panel", "name": "majority", "judges": ["pairs", "scores", "human"]},
    {"type": "panel", "name": "mean", "judges": ["pairs", "reward", "ranks"], "combine": "mean"},
    {"type": "panel", "name": "rated", "judges": ["pairs", "reward", "majority"], "combine": "bradley_terry"},
    {"type": "cascade", "judges": ["rules", "reward", "random", "human"]},
]


class Stopped(BaseException):
    """A kill."""


def put_in_any(
    patch: pytest.MonkeyPatch, said: Sequence[str], scores: Sequence[float | None], ends: Callable[[], None] = lambda: None
) -> None:
    """Put judges in whose verdicts, errors among them, follow from the texts alone; `ends` may end them at any question."""

    def decide(first: str, second: str) -> str:
        ends()
        return "tie" if first == second else said[(7 * sum(map(ord, first)) + sum(map(ord, second))) % len(said)]

    def score(text: str) -> float | None:
        ends()
        return scores[sum(map(ord, text)) % len(scores)]

    def rank(parts: dict[str, str]) -> str:
        ends()
        return ranks(parts) if scores[0] is not None else "None of them is the best."

    put_in(patch, Says(decide, "pairs"), Says(decide, "random"), Scores(score, "scores"), Scores(score, "reward"))
    patch.setattr("tiebreak.samplers.build.build_chat", lambda section, name, ledger: Scripted(rank))


@given(
    drawn=st.lists(
        st.lists(st.sampled_from(["", " ", "x", "yy", "zzz", "a longer text", "a still longer one"]), max_size=4),
        min_size=1,
        max_size=3,
    ),
    said=st.lists(st.sampled_from(["first", "second", "tie", "broke"]), min_size=5, max_size=5),
    scores=st.lists(st.sampled_from([None, 0.0, 0.4, 3.0]), min_size=3, max_size=3),
    people=st.lists(st.sampled_from(["x,yy,first", "zzz,x,tie", "yy,a longer text,second", "?,x,first"]), max_size=3),
    strategy=st.sampled_from(["all", "best_worst", "best_vs_rest"]),
    kills=st.lists(st.integers(0, 30), max_size=4),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
def test_every_kind_of_judge_whatever_it_says_and_wherever_it_is_killed(
    drawn: list[list[str]],
    said: list[str],
    scores: list[float | None],
    people: list[str],
    strategy: str,
    kills: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As many attempts whoever judges, each a pair or counted once; and the same lines however often it was killed."""
    monkeypatch.setattr("tiebreak.run.os.fsync", lambda _: None)
    asked = [(prompt(str(at), "test" if at % 2 else "train"), own) for at, own in enumerate(drawn)]
    rows = [f"{at},{row}\n" for at, _ in enumerate(drawn) for row in people]
    (tmp_path / "labels.csv").write_text(HEADER + "".join(rows or ["none,x,y,tie\n"]), encoding="utf-8")

    run = start(tmp_path, judges=KINDS, pair={"judge": "pairs", "strategy": strategy})
    run.accept_canary_failures()
    put(run, *asked)

    def lines(run: Run) -> dict[str, set[bytes]]:
        return {
            str(path.relative_to(run.path)): set(path.read_bytes().splitlines(True))
            for path in run.path.rglob("judgments/**/*.jsonl")
        }

    with monkeypatch.context() as patch:
        shutil.rmtree(run.path / "judgments", ignore_errors=True)
        put_in_any(patch, said, scores)
        judge(run)
        whole = lines(run)
        assert whole.keys() >= {f"judgments/{section.get('name', section['type'])}.jsonl" for section in KINDS}

        shutil.rmtree(run.path / "judgments")
        for questions in kills:
            left = iter(range(questions))

            def ends(left: Any = left) -> None:
                if next(left, None) is None:
                    raise Stopped

            put_in_any(patch, said, scores, ends)
            try:
                judge(run)
            except Stopped:
                continue
        put_in_any(patch, said, scores)
        judge(run)
        assert lines(run) == whole

    attempted = set()
    for section in KINDS:
        name = section.get("name", section["type"])
        run.recipe = run.recipe.model_copy(update={"pair": run.recipe.pair.model_copy(update={"judge": name})})
        counts = pair(run)
        taken = list(attempts(run))
        for split, part, path in (("train", "train", run.pairs_jsonl), ("test", "held_out", run.held_out_pairs_jsonl)):
            own = [each for each in taken if each.prompt.split == split]
            assert counts[part]["attempted"] == len(own)
            assert counts[part]["usable"] == len(run.pairs(path)) == sum(each.why_not is None for each in own)
            assert counts[part]["dropped"] == {
                reason: number for reason in REASONS if (number := sum(each.why_not == reason for each in own))
            }
        attempted.add((counts["train"]["attempted"], counts["held_out"]["attempted"]))
    assert len(attempted) == 1
    if strategy == "all":
        splits = [sum(len(list(combinations(own, 2))) for at, own in enumerate(drawn) if at % 2 == odd) for odd in (0, 1)]
        assert attempted == {tuple(splits)}
