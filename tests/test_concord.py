"""What the evaluating judge's verdict is worth: how far it agrees with who made the labels, and with people."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from scripted import RULES, Says, compared, completion, llm, prompt, put, put_in, shorter, start
from test_report import words_of
from tiebreak.files import write_json, write_jsonl
from tiebreak.metrics.agreement import Two, Verdicts, agreement
from tiebreak.run import Run
from tiebreak.stages import concord as stage
from tiebreak.stages.concord import concord
from tiebreak.stages.evaluate import evaluate
from tiebreak.stages.pair import pair
from tiebreak.stages.report import report
from tiebreak.stages.twos import twos

TEXTS = ("a", "bbb", "ccccc")
PROMPTS = [prompt(f"p{at}", "test") for at in range(8)]
PEOPLE = {"type": "human", "name": "people"}


def longer(first: str, second: str) -> str:
    return {"first": "second", "second": "first", "tie": "tie"}[shorter(first, second)]


def write_verdicts(run: Run, path: Path, name: str, decide: Any) -> None:
    write_jsonl(path, [compared(of, one.text, other.text, decide(one.text, other.text), name) for of, one, other in twos(run)])


def labelled(folder: Path, **changes: Any) -> Run:
    """Return a run whose judge `label`, which likes short answers, has made three pairs of each held-out prompt."""
    judged = {"judges": [llm("label"), llm("other")], "pair": {"judge": "label"}, "evaluate": {"judge": "other"}} | changes
    run = start(folder, **judged)
    put(run, (prompt("t"), TEXTS), *((each, TEXTS) for each in PROMPTS))
    write_verdicts(run, run.judgments("label"), "label", shorter)
    pair(run)
    return run


def measured(run: Run, met: tuple[Two, ...] = ()) -> dict[str, Any]:
    section = run.recipe.evaluating_judge
    assert section is not None
    return concord(run, section, list(met))


# --- with the labels -----------------------------------------------------------------------------------------------


def test_a_judge_that_said_nothing_yet_is_asked_about_held_out_pairs_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    says = Says(
        lambda first, second: longer(first, second) if {first, second} == {"a", "bbb"} else shorter(first, second), "other"
    )
    put_in(monkeypatch, says)
    run = labelled(tmp_path)
    found = measured(run)["with_labels"]
    assert len(says.asked) == 2 * 3 * len(PROMPTS)  # both orders; none of the prompt that is trained on
    assert (found["judge"], found["asked"], found["n"], found["prompts"]) == ("label", 24, 24, 8)
    assert found["rate"] == pytest.approx(2 / 3)
    held_out = [two for two in twos(run) if two[0].split == "test"]
    label = Verdicts([compared(of, one.text, other.text, shorter(one.text, other.text)) for of, one, other in held_out])
    expected = agreement([label, Verdicts(run.verdicts(run.eval_judgments("held-out-pairs/other")))], held_out)
    assert expected is not None
    assert expected.kappa is not None
    assert [found[key] for key in ("rate", "low", "high")] == list(expected.share[:3])
    assert [found["kappa"][key] for key in ("kappa", "low", "high", "n")] == list(expected.kappa[:4])
    says.asked.clear()
    assert measured(run)["with_labels"] == found
    assert says.asked == []
    assert not run.judgments("other").exists()
    assert not run.eval_judgments("other").exists()


def test_what_it_said_when_labels_were_made_is_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says = Says(shorter, "other")
    put_in(monkeypatch, says)
    run = labelled(tmp_path)
    write_verdicts(run, run.judgments("other"), "other", lambda one, two: "timed out" if "a" in (one, two) else longer(one, two))
    found = measured(run)["with_labels"]
    assert {frozenset(two) for two in says.asked} == {frozenset(("a", "bbb")), frozenset(("a", "ccccc"))}
    assert len(says.asked) == 2 * 2 * len(PROMPTS)
    assert (found["rate"], found["n"]) == (pytest.approx(2 / 3), 24)


def test_as_many_are_asked_as_it_takes_and_the_same_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "MOST", 5)
    asked = []
    for name, seed, order in (("one", 1, 1), ("two", 1, -1), ("three", 2, 1)):
        says = Says(shorter, "other")
        put_in(monkeypatch, says)
        (tmp_path / name).mkdir()
        run = labelled(tmp_path / name, seed=seed)
        write_jsonl(run.held_out_pairs_jsonl, run.pairs(run.held_out_pairs_jsonl)[::order])
        assert measured(run)["with_labels"]["n"] == 5
        chosen = run.verdicts(run.eval_judgments("held-out-pairs/other"))
        asked.append({(verdict.prompt_id, frozenset((verdict.first, verdict.second))) for verdict in chosen})
    assert asked[0] == asked[1] != asked[2]
    assert {len(each) for each in asked} == {5}


def test_a_failure_is_counted_and_none_at_all_is_no_agreement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = ["ccccc", "bbb", "a"]
    put_in(monkeypatch, Says(lambda one, two: "HTTP 500" if {one, two} & set(broken) else shorter(one, two), "other"))
    run = labelled(tmp_path)
    found = measured(run)["with_labels"]
    assert (found["asked"], found["n"], found["rate"], found["kappa"]) == (24, 0, None, None)
    broken[:] = ["ccccc"]
    found = measured(run)["with_labels"]
    assert (found["asked"], found["n"], found["rate"]) == (24, 8, 1.0)


def test_the_judge_of_the_labels_is_not_held_against_itself(tmp_path: Path) -> None:
    run = labelled(tmp_path, evaluate={})
    assert run.recipe.evaluating_judge is not None
    assert run.recipe.evaluating_judge.name == run.recipe.labelling_judge
    assert measured(run) == {"with_labels": None, "with_people": []}


def test_labels_that_came_with_the_pairs_count_as_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_in(monkeypatch, Says(longer, "other"))
    (tmp_path / "pairs.jsonl").write_text("", encoding="utf-8")
    given = {
        "prompts": {"source": "pairs.jsonl", "pairs": {}},
        "generate": None,
        "judges": [llm("other")],
        "pair": {"judge": "given"},
    }
    run = start(tmp_path, **given, evaluate={"judge": "other"})
    put(run, *((each, TEXTS[:2]) for each in PROMPTS))
    write_jsonl(run.given_jsonl, [compared(each, *TEXTS[:2], "first", "given") for each in PROMPTS])
    pair(run)
    found = measured(run)["with_labels"]
    assert (found["judge"], found["rate"], found["n"]) == ("given", 0.0, 8)


# --- with people ---------------------------------------------------------------------------------------------------


def evaluated_twos() -> tuple[Two, ...]:
    return tuple((each, completion(each, "base says"), completion(each, "tuned says so")) for each in PROMPTS)


def test_people_who_voted_on_the_same_twos_are_held_against_it(tmp_path: Path) -> None:
    """On what pairs are made of, on the evaluation's answers as the app keeps them, and in a file."""
    run = labelled(tmp_path, judges=[llm("label"), PEOPLE], pair={"judge": "label"}, evaluate={"judge": "label"})
    assert measured(run)["with_people"] == []
    write_jsonl(run.judgments("people"), [compared(each, "a", "bbb", "second", "people") for each in PROMPTS[:3]])
    (one,) = measured(run)["with_people"]
    assert (one["judge"], one["rate"], one["n"], one["prompts"]) == ("people", 0.0, 3, 3)
    met = evaluated_twos()
    write_jsonl(run.eval_judgments("label"), [compared(of, a.text, b.text, "first", "label") for of, a, b in met])
    write_jsonl(run.eval_judgments("people"), [compared(of, b.text, a.text, "second", "people") for of, a, b in met[:5]])
    (both,) = measured(run, met)["with_people"]
    assert (both["rate"], both["n"]) == (pytest.approx(5 / 8), 8)


def test_a_file_of_peoples_verdicts_on_the_evaluations_answers(tmp_path: Path) -> None:
    run = labelled(tmp_path, judges=[llm("label"), PEOPLE | {"file": "people.jsonl"}], pair={"judge": "label"}, evaluate={})
    met = evaluated_twos()
    write_jsonl(run.eval_judgments("label"), [compared(of, a.text, b.text, "first", "label") for of, a, b in met])
    assert measured(run, met)["with_people"] == []  # the file is not there, and nothing is claimed
    rows = [
        {"prompt": of.text, "first": a.text, "second": b.text, "winner": "AB"[at % 2]} for at, (of, a, b) in enumerate(met[:4])
    ]
    rows.append({"prompt": "another", "first": "x", "second": "y", "winner": "A"})
    (tmp_path / "people.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (one,) = measured(run, met)["with_people"]
    assert (one["rate"], one["n"]) == (0.5, 4)


# --- where it is told ----------------------------------------------------------------------------------------------


def test_it_stands_in_the_summary_and_in_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_in(monkeypatch, Says(lambda one, two: "gone" if {one, two} == {"a", "bbb"} else shorter(one, two), "other"))
    monkeypatch.setattr("tiebreak.stages.evaluate.of_models", lambda *_: {})
    judges = [llm("label"), llm("other"), PEOPLE]
    run = labelled(tmp_path, judges=judges, evaluate={"judge": "other", "models": ["base", "tuned"]})
    run.tuned.mkdir(parents=True)
    drawn = [completion(each, text, 0, name) for each in PROMPTS for name, text in (("base", "base"), ("tuned", "ok"))]
    run.eval_completions_jsonl.parent.mkdir(exist_ok=True)
    write_jsonl(run.eval_completions_jsonl, drawn)
    write_jsonl(run.eval_judgments("people"), [compared(each, "ok", "base", "first", "people") for each in PROMPTS[:4]])
    evaluate(run)
    summary = json.loads(run.summary_json.read_text(encoding="utf-8"))
    assert summary["judge_labelled"] is False
    assert (summary["agreement"]["with_labels"]["n"], summary["agreement"]["with_people"][0]["n"]) == (16, 4)
    write_json(run.manifest_json, run.manifest)
    report(run)
    words = words_of(run.report_html.read_text(encoding="utf-8"))
    for part in (
        "The judge agrees with label, who labelled, on 100 % (59–100 %, beyond chance κ 1.0 (0.1–1.0)) of 16 held-out pairs.",
        "It agrees with people (people) on 100 % (28–100 %, beyond chance κ 1.0 (−0.9 to 1.0)) of 4 comparisons.",
        "What the verdict of other is worth other agrees with share κ n label, who labelled, on held-out pairs 100 %",
        "16 8 without a verdict people, people 100 %",
    ):
        assert part in words
    rows = (run.figures / "agreeing.csv").read_text(encoding="utf-8").splitlines()
    assert rows[0].startswith("other agrees with,share,share low,share high,share n,κ,")


def test_rules_may_be_the_judge(tmp_path: Path) -> None:
    run = labelled(tmp_path, judges=[llm("label"), RULES], pair={"judge": "label"}, evaluate={"judge": "rules"})
    found = measured(run)["with_labels"]
    assert (found["asked"], found["n"]) == (24, 24)  # every text is short enough: ties, which are no labels
    assert found["rate"] == 0.0
    assert len({tuple(sorted(two)) for two in combinations(TEXTS, 2)}) == 3
