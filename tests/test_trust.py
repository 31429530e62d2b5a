"""Whether a run's judges can be trusted: canaries before any question, and what their records show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

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
    rated,
    shorter,
    start,
)
from test_llm_judge import Scripted
from test_report import words_of
from tiebreak.files import write_jsonl
from tiebreak.metrics.winrate import Estimate
from tiebreak.recipe import Price
from tiebreak.records import InputError
from tiebreak.run import Run
from tiebreak.samplers.ledger import Call, Ledger
from tiebreak.stages.judge import judge
from tiebreak.stages.pair import pair
from tiebreak.stages.report import report
from tiebreak.stages.trust import Trust, judge_table, own_samplers, trust

P, Q = prompt("p"), prompt("q", "test")

# --- canaries ------------------------------------------------------------------------------------------------------

WORDS = [f"{word} about {thing} at length" for word in ("Tales", "Notes") for thing in ("bees", "bread", "boats")]
"""Texts that can be garbled: there are letters enough."""


def knows(first: str, second: str) -> str:
    """Tie what is equal, tell garbage, and prefer the shorter of two real texts."""
    if first == second:
        return "tie"
    if (first in WORDS) == (second in WORDS):
        return shorter(first, second)
    return "first" if first in WORDS else "second"


def always_first(first: str, second: str) -> str:
    return "first"


def birds(run: Run) -> Run:
    """Put three prompts with two texts each in the run."""
    put(run, *((prompt(str(at), "test" if at == 2 else "train"), WORDS[2 * at : 2 * at + 2]) for at in range(3)))
    return run


def is_canary(two: Sequence[str]) -> bool:
    return two[0] == two[1] or not set(two) <= set(WORDS)


def test_canaries_come_before_any_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = birds(start(tmp_path, judges=[llm("a", canaries=2), llm("b", canaries=5)], pair={"judge": "a"}))
    log: list[tuple[str, tuple[str, str]]] = []

    def noting(name: str) -> Says:
        def decide(first: str, second: str) -> str:
            log.append((name, (first, second)))
            return knows(first, second)

        return Says(decide, name)

    put_in(monkeypatch, noting("a"), noting("b"))
    counts = judge(run)
    asked = [is_canary(two) for _, two in log]
    assert asked == sorted(asked, reverse=True)
    of = Counter((name, is_canary(two)) for name, two in log)
    # Two of each kind, garbage both ways round; of three prompts no more than three of each kind.
    assert of == {("a", True): 2 + 4, ("b", True): 3 + 6, ("a", False): 6, ("b", False): 6}
    assert [counts[name]["records"] for name in "ab"] == [6, 6]  # canaries are no verdicts
    assert [each.canaries and each.canaries[:5] for each in trust(run).judges] == [(2, 2, 2, 2, False), (3, 3, 3, 3, False)]

    log.clear()
    assert judge(run) == counts
    assert log == []


def test_no_canaries_are_asked_where_none_are_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, says = birds(start(tmp_path, judges=[llm("llm", canaries=0)])), Says(always_first)
    put_in(monkeypatch, says)
    judge(run)
    assert not any(map(is_canary, says.asked))
    assert not run.canaries("llm").parent.exists()


def test_a_judge_that_always_says_first_is_asked_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, says = birds(start(tmp_path, judges=[llm("llm", canaries=5)])), Says(always_first)
    put_in(monkeypatch, says)
    with pytest.raises(InputError) as caught:
        judge(run)
    assert str(caught.value) == (
        "judge llm fails its canaries (3 of 3 completions beside themselves did not tie: it prefers what comes first; "
        "3 of 3 completions did not beat their own letters shuffled: it prefers what comes first), so it decides nothing; "
        f"read {run.canaries('llm')}, change the judge, or go on with --accept-canary-failures"
    )
    assert len(says.asked) == 9
    assert all(map(is_canary, says.asked))
    assert not run.judgments("llm").exists()
    asked = says.asked.copy()
    with pytest.raises(InputError):
        judge(run)
    assert says.asked == asked  # it is known to fail
    performed(run, "prepare", "generate")
    with pytest.raises(InputError):
        run.perform("judge", judge)
    with pytest.raises(InputError, match="pair comes after judge, which is not done"):
        run.perform("pair", pair)
    assert not run.pairs_jsonl.exists()

    run.accept_canary_failures()
    assert judge(Run(run.path))["llm"]["inconsistent"] == 3
    own = trust(run).judges[0]
    assert own.bias.first is not None
    assert own.bias.flips is not None
    assert (own.bias.first.value, own.bias.flips.value) == (1.0, 1.0)
    cells = dict(judge_table(trust(run)))
    assert cells["canaries passed"] == ["0 of 3 beside itself, 0 of 3 garbage (failed)"]
    counts = pair(run)
    assert (counts["train"]["usable"], counts["train"]["dropped"]) == (0, {"inconsistent": 2})
    assert run.pairs(run.pairs_jsonl) == []


def test_a_judge_that_nothing_rests_on_may_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = birds(start(tmp_path, judges=[llm("bad", canaries=5), llm("good", canaries=5)], pair={"judge": "good"}))
    put_in(monkeypatch, Says(always_first, "bad"), Says(knows, "good"))
    judge(run)
    (said,) = capsys.readouterr().out.splitlines()
    assert said.startswith("judge bad fails its canaries: 3 of 3 completions beside themselves did not tie")
    assert pair(run)["train"]["usable"] == 2


@pytest.mark.parametrize(
    ("more", "changes", "told"),
    [
        ([], {"pair": {"judge": "bad"}}, True),
        ([{"type": "panel", "judges": ["good", "bad"]}], {"pair": {"judge": "panel"}}, True),
        ([{"type": "cascade", "judges": ["good", "bad"]}], {"pair": {"judge": "cascade"}}, True),
        ([{"type": "panel", "judges": ["good", "bad"]}], {"pair": {"judge": "good"}}, False),
        ([], {"pair": {"judge": "good"}, "evaluate": {"judge": "bad"}}, True),
        ([], {"pair": {"judge": "good"}, "evaluate": None}, False),
    ],
    ids=["labels", "member", "of a cascade", "another's member", "evaluates", "nothing"],
)
def test_whom_the_run_rests_on(
    more: list[Any], changes: dict[str, Any], told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = birds(start(tmp_path, judges=[llm("good", canaries=1), llm("bad", canaries=1), *more], **changes))
    put_in(monkeypatch, Says(knows, "good"), Says(always_first, "bad"))
    if told:
        with pytest.raises(InputError, match=r"^judge bad fails its canaries \(1 of 1 completions beside themselves"):
            judge(run)
    else:
        judge(run)


@pytest.mark.parametrize("prompts", [1, 2])
def test_a_judge_that_ranks_is_shown_canaries_two_at_a_time(
    prompts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(tmp_path, judges=[llm("llm", ask="listwise", canaries=3, structured=False)])
    put(run, *((prompt(str(at)), WORDS[3 * at : 3 * at + 3]) for at in range(prompts)))

    def rank(parts: dict[str, str]) -> str:
        shown = {name[-1]: text for name, text in parts.items() if name.startswith("answer")}
        places = {label: (text not in WORDS, len(text)) for label, text in shown.items()}
        ordered = sorted(shown, key=lambda label: places[label])
        return (
            "Ranking: "
            + ordered[0]
            + "".join(f" {'=' if places[one] == places[other] else '>'} {other}" for one, other in pairwise(ordered))
        )

    chat = Scripted(rank)
    monkeypatch.setattr("tiebreak.samplers.build.build_chat", lambda section, name, ledger: chat)
    counts = judge(run)["llm"]
    sizes = [question.messages[0].content.count("</answer ") for question in chat.asked]
    # Each prompt once beside itself, its garbage both ways round, then all three answers both ways round.
    assert sizes == [2] * 3 * prompts + [3] * 2 * prompts
    assert (counts["records"], counts["errors"], counts["inconsistent"]) == (6 * prompts, 0, 0)
    found = trust(run).judges[0].canaries
    assert found is not None
    assert found[:5] == (prompts, prompts, prompts, prompts, False)
    judge(run)
    assert len(chat.asked) == len(sizes)


def test_a_judge_that_scores_is_asked_about_garbage_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = birds(start(tmp_path, judges=[{**REWARD, "canaries": 2}]))
    scores = Scores(lambda text: float(text in WORDS), "cheap")
    put_in(monkeypatch, scores)
    judge(run)
    assert [text in WORDS for text in scores.asked] == [True, False] * 2 + [True] * 6
    found = trust(run).judges[0].canaries
    assert found is not None
    assert found[:5] == (0, 0, 2, 2, False)
    fooled = Scores(lambda text: float(text not in WORDS), "cheap")
    put_in(monkeypatch, fooled)
    run.canaries("cheap").unlink()
    with pytest.raises(InputError, match=r"2 of 2 completions did not beat .*: it prefers the garbage"):
        judge(run)
    assert len(fooled.asked) == 4


def test_a_judge_that_scores_does_not_fail_where_no_text_can_be_garbled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start(tmp_path, judges=[{**REWARD, "canaries": 5}])
    put(run, (P, ["yes", "no"]))
    put_in(monkeypatch, Scores(lambda text: float(len(text)), "cheap"))
    assert judge(run)["cheap"]["records"] == 2


# --- what the records show -----------------------------------------------------------------------------------------

GEMINI = {"type": "api", "name": "gemini", "provider": "gemini", "model": "g"}
OURS = {"type": "local", "name": "ours"}
LABELS = {**RULES, "name": "labels"}


def value(estimate: Estimate | None) -> float:
    assert estimate is not None
    return estimate.value


def records(folder: Path, **changes: Any) -> Run:
    """Two prompts, each with a text of gemini's and one of ours, and three judges whose records are counted by hand below."""
    settings = {
        "generate": [GEMINI, OURS],
        "judges": [llm("vain", provider="gemini", model="g"), llm("other"), LABELS],
        "pair": {"judge": "labels"},
        **changes,
    }
    run = start(folder, **settings)
    write_jsonl(run.prompts_jsonl, [P, Q])
    drawn = [(P, "x", "gemini"), (P, "yy", "ours"), (Q, "u", "gemini"), (Q, "vv", "ours")]
    write_jsonl(run.completions_jsonl, [completion(of, text, sampler=sampler) for of, text, sampler in drawn])
    vain = [(P, "x", "yy", "first"), (P, "yy", "x", "second"), (Q, "u", "vv", "first"), (Q, "vv", "u", "first")]
    other = [(P, "x", "yy", "tie"), (P, "yy", "x", "tie"), (Q, "u", "vv", "second"), (Q, "vv", "u", "first")]
    for name, rows in (("vain", vain), ("other", other)):
        write_jsonl(run.judgments(name), [compared(*row, name) for row in rows])
    scores = [(P, "x", 1.0), (P, "yy", 0.5), (Q, "u", 0.2), (Q, "vv", 0.9)]
    write_jsonl(run.judgments("labels"), [rated(*row, "labels") for row in scores])
    return run


def test_numbers_by_hand(tmp_path: Path) -> None:
    run = records(tmp_path)
    ledger = Ledger(run.calls_sqlite, "judges.vain", Price(input=1.0, output=2.0))
    ledger.reserve(Call(10_000, 100))
    ledger.settle(Call(10_000, 100), 9_000, 50)
    ledger.close()
    found = trust(run)
    vain, other, labels = found.judges
    assert [(each.name, each.kind, each.records) for each in found.judges] == [
        ("vain", "llm", 4), ("other", "llm", 4), ("labels", "rules", 4),
    ]  # fmt: skip

    # Named what came first in three of four, contradicted itself on q; never tied, never failed.
    assert vain.bias.first is not None
    assert (vain.bias.first.value, vain.bias.first.n, vain.bias.first.prompts) == (0.75, 4, 2)
    assert [value(each) for each in (vain.bias.flips, vain.bias.ties, vain.bias.errors)] == [0.5, 0.0, 0.0]
    assert [value(each) for each in (other.bias.first, other.bias.flips, other.bias.ties)] == [0.5, 0.0, 0.5]
    assert vain.bias.length is labels.bias.flips is labels.bias.first is None

    # It gives gemini's texts a win on p and half of one on q; the others give them 0.5 and 1 on p, 0 and 0 on q.
    assert vain.bias.own is not None
    assert (value(vain.bias.own.share), value(vain.bias.own.others)) == (0.75, 0.375)
    assert value(vain.bias.own.excess) == pytest.approx(0.375)
    assert (other.bias.own, labels.bias.own) == (None, None)

    # The smaller id counts as the first: x of p and vv of q stand on the same side, so two verdicts are all that is said.
    assert (completion(P, "x").id < completion(P, "yy").id) == (completion(Q, "vv").id < completion(Q, "u").id)
    assert labels.with_label is None
    for each in (vain, other):
        assert each.with_label is not None
        # One of two alike; by chance a half too, as the labels always name that side and the judge does half of the time.
        assert (each.with_label.share.value, value(each.with_label.kappa)) == (0.5, 0.0)
    assert found.together is not None
    # Each prompt has one of three twos alike. Of six verdicts four name that side and two are ties: chance 20 of 36.
    assert found.together.share.value == pytest.approx(1 / 3)
    assert value(found.together.kappa) == pytest.approx((1 / 3 - 20 / 36) / (16 / 36))

    assert vain.spent is not None
    assert (vain.spent.calls, vain.spent.cost) == (1, pytest.approx(0.0091))
    assert (other.spent, labels.spent) == (None, None)


def test_the_table_is_in_the_report(tmp_path: Path) -> None:
    run = records(tmp_path)
    rows = judge_table(trust(run))
    table = dict(rows)
    assert rows[0] == ("", ["vain (llm)", "other (llm)", "labels (rules)"])
    assert table["verdicts"] == ["4", "4", "4"]
    assert table["names what came first (0.5 is fair)"][0].startswith("0.75 (0.")
    assert table["names what came first (0.5 is fair)"][0].endswith("), n = 4")
    assert table["names what came first (0.5 is fair)"][2] == "–"
    assert table["agreement with the labelling judge"][2] == "–"
    assert table["prefers its own model's text by"][0].startswith("0.38 (")
    assert not {"names the text of twice the length", "canaries passed", "cost"} & table.keys()  # nobody has any
    report(run)
    words = words_of(run.report_html.read_text(encoding="utf-8"))
    assert "All judges together: κ (Fleiss) -0.50" in words
    for measure, cells in rows:
        assert " ".join(filter(None, [measure, *cells])) in words
    assert "--accept-canary-failures" not in words


def test_a_panel_agrees_with_others_and_is_no_voice_of_its_own(tmp_path: Path) -> None:
    """The kappa of all counts those that decide for themselves, and who has decided nothing yet does not hide it."""
    panel = {"type": "panel", "judges": ["vain", "other", "labels"]}
    alone = value(trust(records(tmp_path)).together and trust(records(tmp_path)).together.kappa)  # type: ignore[union-attr]
    people = {"type": "human", "name": "people"}
    run = records(
        tmp_path,
        judges=[llm("vain", provider="gemini", model="g"), llm("other"), LABELS, people, panel],
        pair={"judge": "panel"},
    )
    run.judgments("people").touch()
    write_jsonl(run.judgments("panel"), [compared(P, "x", "yy", "first", "panel"), compared(Q, "u", "vv", "second", "panel")])
    found = trust(run)
    assert value(found.together and found.together.kappa) == alone
    shares = {each.name: each.with_label and each.with_label.share.value for each in found.judges}
    assert shares == {"vain": 0.5, "other": 0.5, "labels": 1.0, "people": None, "panel": None}
    assert value(found.judges[0].bias.own and found.judges[0].bias.own.others) == 0.375  # a panel would count members twice


@pytest.mark.parametrize(
    ("judge", "own"),
    [
        (llm("j", provider="gemini", model="g"), {"gemini"}),
        (llm("j", provider="gemini", model="other"), set()),
        (llm("j", provider="together", model="g"), set()),
        (llm("j", provider="local", model="absent"), {"ours", "absent@1/1"}),
        (llm("j", provider="local", model="another"), {"another"}),
        (llm("j", provider="local", model="g"), set()),
        (REWARD, set()),
        (RULES, set()),
    ],
)
def test_which_sampler_is_the_judges_own_model(judge: dict[str, Any], own: set[str], tmp_path: Path) -> None:
    another = {"type": "local", "name": "another", "model": {"name_or_path": "another"}}
    same = {"type": "local", "model": {"name_or_path": "absent"}}
    run = start(tmp_path, generate=[GEMINI, OURS, another, same], judges=[judge])
    assert own_samplers(run, run.recipe.judges[0]) == own


# --- where there is little or nothing ------------------------------------------------------------------------------


def only(run: Run) -> Trust:
    (judge,) = trust(run).judges
    return judge


def test_no_judge_has_no_table(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("", encoding="utf-8")
    run = start(tmp_path, prompts={"source": "pairs.jsonl", "pairs": {}}, generate=None, judges=None)
    put(run, (P, ["x", "yy"]))
    write_jsonl(run.given_jsonl, [compared(P, "x", "yy", "first", "given")])
    assert (trust(run).judges, trust(run).together) == ([], None)
    assert judge_table(trust(run)) == [("", [])]
    report(run)
    assert "Judges" not in words_of(run.report_html.read_text(encoding="utf-8"))


def test_a_judge_of_ready_made_pairs_is_held_against_them(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("", encoding="utf-8")
    run = start(tmp_path, prompts={"source": "pairs.jsonl", "pairs": {}}, generate=None, judges=[LLM], pair={"judge": "given"})
    put(run, (P, ["x", "yy"]), (Q, ["u", "vv"]))
    write_jsonl(run.given_jsonl, [compared(P, "x", "yy", "first", "given"), compared(Q, "vv", "u", "first", "given")])
    write_jsonl(run.judgments("llm"), [compared(P, "yy", "x", "second"), compared(Q, "u", "vv", "first")])
    assert only(run).with_label is not None
    assert only(run).with_label.share.value == 0.5  # type: ignore[union-attr]


def test_one_judge_has_nobody_to_agree_with(tmp_path: Path) -> None:
    run = start(tmp_path)
    put(run, (P, ["x", "yy"]))
    write_jsonl(run.judgments("llm"), [compared(P, "x", "yy", "first"), compared(P, "yy", "x", "second")])
    assert (only(run).with_label, trust(run).together, only(run).bias.own, only(run).canaries) == (None, None, None, None)
    assert "agreement with the labelling judge" not in dict(judge_table(trust(run)))
    report(run)


@pytest.mark.parametrize("kind", ["absent", "empty", "errors", "ratings that are errors"])
def test_a_judge_without_a_verdict(kind: str, tmp_path: Path) -> None:
    run = records(tmp_path)
    path = run.judgments("other")
    path.unlink()
    if kind == "empty":
        path.touch()
    elif kind == "errors":
        write_jsonl(path, [compared(P, "x", "yy", "no reply", "other"), compared(P, "yy", "x", "no reply", "other")])
    elif kind == "ratings that are errors":
        write_jsonl(path, [rated(P, "x", None, "other")])
    found = {each.name: each for each in trust(run).judges}
    assert found.keys() == ({"vain", "labels"} if kind == "absent" else {"vain", "other", "labels"})
    if kind != "absent":
        other = found["other"].bias
        assert (other.first, other.flips, other.ties, other.length, other.own) == (None, None, None, None, None)
        assert other.errors is None if kind == "empty" else value(other.errors) == 1.0
        assert found["other"].with_label is None
    assert value(found["vain"].with_label and found["vain"].with_label.kappa) == 0.0
    own = found["vain"].bias.own
    assert value(own and own.others) == 0.5  # the labels' alone: 1 on p, 0 on q
    report(run)
    assert "contradicts itself after a swap 0.50" in words_of(run.report_html.read_text(encoding="utf-8"))


def test_a_run_without_verdicts_has_a_report(tmp_path: Path) -> None:
    run = start(tmp_path)
    report(run)
    assert "Judges" not in words_of(run.report_html.read_text(encoding="utf-8"))
