"""pair: every attempt is a pair or counted under one reason, and no trainer meets a held-out prompt."""

from __future__ import annotations

from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from scripted import LLM, RULES, compared, completion, prompt, put, rated, shorter, start
from tiebreak.files import write_jsonl
from tiebreak.records import InputError, PreferencePair, Prompt, Rating
from tiebreak.run import Run
from tiebreak.stages import describe
from tiebreak.stages.pair import REASONS, attempts, pair

P, HELD_OUT = prompt("p"), prompt("q", "test")


@pytest.fixture(autouse=True)
def _no_wait_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tiebreak.run.os.fsync", lambda _: None)


def both(one: str, other: str, there: str, back: str, of: Prompt = P) -> list[Any]:
    return [compared(of, one, other, there), compared(of, other, one, back)]


def paired(run: Run, texts: list[str], verdicts: list[Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Return what was counted of the training prompt P, and its pairs as (chosen, rejected)."""
    put(run, (P, texts))
    write_jsonl(run.judgments("llm"), verdicts)
    counts = pair(run)
    assert counts["held_out"] == {"attempted": 0, "usable": 0, "dropped": {}}
    return counts["train"], [(each.chosen[0].content, each.rejected[0].content) for each in run.pairs(run.pairs_jsonl)]


# --- why not -------------------------------------------------------------------------------------------------------

WHY_NOT = [
    (["x", "x"], [], {"identical": 1}),
    (["x", "y", "x"], both("x", "y", "first", "second"), {"identical": 1, "repeated": 1}),
    (["x", "x", "x"], [], {"identical": 3}),
    (["x", ""], [], {"empty": 1}),
    (["x", " \n\t"], [], {"empty": 1}),
    (["", ""], [], {"identical": 1}),
    (["x", "y"], [], {"unreadable": 1}),
    (["x", "y"], both("x", "y", "first", "no verdict line"), {"unreadable": 1}),
    (["x", "y"], both("x", "y", "first", "first"), {"inconsistent": 1}),
    (["x", "y"], both("x", "y", "tie", "tie"), {"tie": 1}),
    (["x", "y"], both("x", "y", "first", "tie"), {"too close": 1}),
    (["x"], [], {}),
]


@pytest.mark.parametrize(("texts", "verdicts", "dropped"), WHY_NOT)
def test_why_two_completions_make_no_pair(texts: list[str], verdicts: list[Any], dropped: dict[str, int], tmp_path: Path) -> None:
    counts, pairs = paired(start(tmp_path, pair={"min_margin": 0.6}), texts, verdicts)
    attempted = len(list(combinations(texts, 2)))
    assert counts == {"attempted": attempted, "usable": attempted - sum(dropped.values()), "dropped": dropped}
    assert len(pairs) == counts["usable"]
    assert set(dropped) <= set(REASONS)


def test_a_pair_says_where_it_comes_from(tmp_path: Path) -> None:
    run = start(tmp_path)
    _, pairs = paired(run, ["x", "y"], both("x", "y", "second", "tie"))
    assert pairs == [("y", "x")]
    (record,) = run.pairs(run.pairs_jsonl)
    assert (record.margin, record.flip_probability) == (0.5, 0.25)
    assert record.prompt == P.messages
    assert record.chosen[0].role == record.rejected[0].role == "assistant"
    assert record.provenance == {
        "prompt_id": P.id,
        "chosen_id": completion(P, "y").id,
        "rejected_id": completion(P, "x").id,
        "judge": "llm",
        "strategy": "all",
    }


@pytest.mark.parametrize(("min_margin", "usable"), [(0.0, 3), (0.1, 3), (0.11, 2), (0.3, 2), (0.31, 1), (0.4, 1), (0.41, 0)])
def test_the_margin_that_is_asked_for_is_enough(min_margin: float, usable: int, tmp_path: Path) -> None:
    run = start(tmp_path, judges=[RULES], pair={"min_margin": min_margin})
    put(run, (P, ["x", "y", "z"]))
    write_jsonl(run.judgments("rules"), [rated(P, "x", 0.7), rated(P, "y", 0.8), rated(P, "z", 0.4)])
    assert 0.7 - 0.4 < 0.3  # in floats; on paper it is enough
    counts = pair(run)["train"]
    assert (counts["usable"], counts["dropped"]) == (usable, {"too close": 3 - usable} if usable < 3 else {})


# --- strategies ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "pairs"),
    [
        ("all", [("1", "22"), ("1", "333"), ("1", "4444"), ("22", "333"), ("22", "4444"), ("333", "4444")]),
        ("best_worst", [("1", "4444")]),
        ("best_vs_rest", [("1", "22"), ("1", "333"), ("1", "4444")]),
    ],
)
@pytest.mark.parametrize("judge", ["llm", "rules"])
def test_strategies(strategy: str, pairs: list[tuple[str, str]], judge: str, tmp_path: Path) -> None:
    run = start(tmp_path, judges=[LLM, RULES], pair={"strategy": strategy, "judge": judge})
    texts = ["333", "1", "4444", "22"]
    put(run, (P, texts))
    compare = [compared(P, one, other, shorter(one, other)) for one, other in permutations(texts, 2)]
    rate = [rated(P, text, 1 - len(text) / 10) for text in texts]
    write_jsonl(run.judgments(judge), compare if judge == "llm" else rate)
    counts = pair(run)["train"]
    got = [(each.chosen[0].content, each.rejected[0].content) for each in run.pairs(run.pairs_jsonl)]
    assert sorted(got) == pairs
    assert counts == {"attempted": len(pairs), "usable": len(pairs), "dropped": {}}
    assert {each.provenance["strategy"] for each in run.pairs(run.pairs_jsonl)} == {strategy}


@pytest.mark.parametrize(
    ("strategy", "texts", "verdicts", "attempted", "dropped", "pairs"),
    [
        # Draws that came out equal are attempts of `all` only; where all are equal, the prompt's one attempt is.
        ("best_worst", ["x", "x", "y"], both("x", "y", "first", "second"), 1, {}, [("x", "y")]),
        ("best_worst", ["x", "x", "x"], [], 1, {"identical": 1}, []),
        ("best_vs_rest", ["x", "x", "x"], [], 1, {"identical": 1}, []),
        ("best_worst", ["x"], [], 0, {}, []),
        # An empty answer and one that nobody could judge are not the worst: they are no answer.
        ("best_worst", ["", "x", "y"], both("x", "y", "first", "second"), 1, {}, [("x", "y")]),
        ("best_worst", ["x", "y", "?"], both("x", "y", "first", "second") + both("x", "?", "no", "no"), 1, {}, [("x", "y")]),
        ("best_vs_rest", ["", "x", "y"], both("x", "y", "first", "second"), 2, {"empty": 1}, [("x", "y")]),
        ("best_worst", ["x", "y"], both("x", "y", "no", "no"), 1, {"unreadable": 1}, []),
        ("best_worst", ["", "x"], [], 1, {"empty": 1}, []),
        ("best_worst", ["x", "y"], both("x", "y", "first", "first"), 1, {"inconsistent": 1}, []),
        # The best by its share of wins may lose to one of the rest: the verdict on the two decides.
        (
            "best_vs_rest",
            ["x", "y", "z", "w"],
            [
                *(compared(P, "x", other, said) for other, said in (("y", "second"), ("z", "first"), ("w", "first"))),
                *(compared(P, "y", other, "second") for other in "zw"),
                compared(P, "z", "w", "tie"),
            ],
            3,
            {},
            [("x", "w"), ("x", "z"), ("y", "x")],
        ),
    ],
)
def test_what_a_strategy_takes_up(
    strategy: str, texts: list[str], verdicts: list[Any], attempted: int, dropped: Any, pairs: Any, tmp_path: Path
) -> None:
    counts, got = paired(start(tmp_path, pair={"strategy": strategy}), texts, verdicts)
    assert counts == {"attempted": attempted, "usable": len(pairs), "dropped": dropped}
    assert sorted(got) == pairs


def test_an_empty_answer_that_rules_rate_is_not_the_worst(tmp_path: Path) -> None:
    run = start(tmp_path, judges=[RULES], pair={"strategy": "best_worst"})
    put(run, (P, ["", "good", "bad"]))
    write_jsonl(run.judgments("rules"), [rated(P, "", 0.0), rated(P, "good", 1.0), rated(P, "bad", 0.5)])
    assert pair(run)["train"] == {"attempted": 1, "usable": 1, "dropped": {}}
    write_jsonl(run.judgments("rules"), [rated(P, "good", 1.0)])
    assert pair(run)["train"] == {"attempted": 1, "usable": 0, "dropped": {"empty": 1}}
    write_jsonl(run.judgments("rules"), [rated(P, "bad", 1.0)])
    put(run, (P, ["good", "bad"]))
    assert pair(run)["train"] == {"attempted": 1, "usable": 0, "dropped": {"unreadable": 1}}


# --- whole runs ----------------------------------------------------------------------------------------------------

texts = st.sampled_from(["", " ", "x", "y", "zz", "zz "])
said = st.sampled_from(["first", "second", "tie", "broken"])


@given(
    drawn=st.lists(st.lists(texts, max_size=5), min_size=1, max_size=4),
    answers=st.lists(said | st.none(), min_size=40, max_size=40),
    strategy=st.sampled_from(["all", "best_worst", "best_vs_rest"]),
    min_margin=st.sampled_from([0.0, 0.5, 1.0]),
    kind=st.sampled_from(["llm", "rules"]),
)
@example(drawn=[["x", "y"], ["x", "y"]], answers=["first", "second"] * 20, strategy="all", min_margin=0.0, kind="llm")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_every_attempt_is_a_pair_or_counted_once(
    drawn: list[list[str]], answers: list[str | None], strategy: str, min_margin: float, kind: str, tmp_path: Path
) -> None:
    run = start(tmp_path, judges=[LLM, RULES], pair={"strategy": strategy, "min_margin": min_margin, "judge": kind})
    asked = [(prompt(str(at), "test" if at % 2 else "train"), own) for at, own in enumerate(drawn)]
    put(run, *asked)
    scores = {"first": 1.0, "second": 0.5, "tie": 0.0, "broken": None}
    answer = iter(answers)
    verdicts = []
    for of, own in asked:
        distinct = dict.fromkeys(own)
        for one, other in permutations((text for text in distinct if text.strip()), 2) if kind == "llm" else ():
            if (word := next(answer, None)) is not None:
                verdicts.append(compared(of, one, other, word))
        for text in distinct if kind == "rules" else ():
            if (word := next(answer, None)) is not None:
                verdicts.append(rated(of, text, scores[word]))
    write_jsonl(run.judgments(kind), verdicts)

    counts = pair(run)
    kept = {"train": run.pairs(run.pairs_jsonl), "held_out": run.pairs(run.held_out_pairs_jsonl)}
    for name, pairs in kept.items():
        assert counts[name]["attempted"] == counts[name]["usable"] + sum(counts[name]["dropped"].values())
        assert counts[name]["usable"] == len(pairs)
        assert all(counts[name]["dropped"].values())
    taken = list(attempts(run))
    assert len(taken) == sum(counts[name]["attempted"] for name in kept)
    if strategy == "all":
        assert len(taken) == sum(len(own) * (len(own) - 1) // 2 for own in drawn)
    train = {of.messages for of, _ in asked if of.split == "train"}
    for name, pairs in kept.items():
        assert len({(each.prompt, frozenset((each.chosen, each.rejected))) for each in pairs}) == len(pairs)
        for each in pairs:
            assert each.chosen != each.rejected
            assert each.chosen[0].content.strip()
            assert each.rejected[0].content.strip()
            assert (each.prompt in train) == (name == "train")
            assert max(min_margin, 1e-9) <= each.margin <= 1
            assert 0 <= each.flip_probability <= 0.5


def test_the_legal_systems_yield(tmp_path: Path) -> None:
    """45 questions, two completions each, five criteria and TIE: only 11 of 45 were usable."""
    run = start(tmp_path, generate=[{"type": "local", "name": "cold"}, {"type": "local", "name": "warm"}])
    questions = [prompt(f"question {at}") for at in range(45)]
    fates = ["win"] * 11 + ["same"] * 14 + ["tie"] * 12 + ["turns"] * 5 + ["broken"] * 2 + ["empty"]
    drawn, verdicts = [], []
    for of, fate in zip(questions, fates, strict=True):
        cold, warm = "cold answer", {"same": "cold answer", "empty": ""}.get(fate, "warm answer")
        drawn.append((of, [cold, warm]))
        words = {"win": ("second", "first"), "tie": ("tie", "tie"), "turns": ("first", "first"), "broken": ("first", "no reply")}
        if fate in words:
            verdicts += both(cold, warm, *words[fate], of)
    put(run, *drawn, (HELD_OUT, ["x", "y"]))
    write_jsonl(run.judgments("llm"), [*verdicts, *both("x", "y", "first", "second", HELD_OUT)])
    counts = pair(run)
    assert counts["train"] == {
        "attempted": 45,
        "usable": 11,
        "dropped": {"identical": 14, "empty": 1, "unreadable": 2, "inconsistent": 5, "tie": 12},
    }
    assert describe("pair", counts) == (
        "11 of 45 pairs usable to train on (dropped 14 identical, 1 empty, 2 unreadable, 5 inconsistent, 12 tie); "
        "1 of 1 pairs usable held out"
    )
    assert {each.chosen[0].content for each in run.pairs(run.pairs_jsonl)} == {"warm answer"}


# --- ready-made pairs ----------------------------------------------------------------------------------------------


def ready_made(folder: Path, **changes: Any) -> Run:
    (folder / "pairs.jsonl").write_text("", encoding="utf-8")
    run = start(folder, **{"prompts": {"source": "pairs.jsonl", "pairs": {}}, "generate": None, "judges": None, **changes})
    put(run, (P, ["good", "bad", "worse"]), (HELD_OUT, ["yes", "no"]))
    rows = [(P, "good", "bad"), (P, "good", "worse"), (P, "bad", "good"), (HELD_OUT, "yes", "no"), (HELD_OUT, "yes", "yes")]
    write_jsonl(run.given_jsonl, [compared(of, chosen, rejected, "first", "given") for of, chosen, rejected in rows])
    return run


def test_ready_made_pairs_are_the_only_attempts(tmp_path: Path) -> None:
    """bad and worse were never a pair; two rows that contradict each other are one contradiction."""
    run = ready_made(tmp_path)
    assert pair(run) == {
        "train": {"attempted": 3, "usable": 1, "dropped": {"repeated": 1, "inconsistent": 1}},
        "held_out": {"attempted": 2, "usable": 1, "dropped": {"identical": 1}},
    }
    (record,) = run.pairs(run.pairs_jsonl)
    assert (record.chosen[0].content, record.rejected[0].content) == ("good", "worse")
    assert record.provenance["judge"] == record.provenance["strategy"] == "given"


def test_a_judge_may_label_ready_made_pairs_anew(tmp_path: Path) -> None:
    run = ready_made(tmp_path, judges=[RULES], pair={"judge": "rules"})
    scores: dict[str, float] = {"good": 0.0, "bad": 0.5, "worse": 1.0}
    ratings: list[Rating] = [rated(P, text, score) for text, score in scores.items()]
    write_jsonl(run.judgments("rules"), ratings)
    counts = pair(run)
    assert counts["train"] == {"attempted": 3, "usable": 2, "dropped": {"repeated": 1}}
    assert counts["held_out"]["dropped"] == {"identical": 1, "unreadable": 1}
    assert [each.chosen[0].content for each in run.pairs(run.pairs_jsonl)] == ["bad", "worse"]
    assert {each.provenance["strategy"] for each in run.pairs(run.pairs_jsonl)} == {"given"}


# --- files ---------------------------------------------------------------------------------------------------------


def test_pairs_load_as_conversational_columns(tmp_path: Path) -> None:
    run = start(tmp_path)
    paired(run, ["x", "y"], both("x", "y", "first", "second"))
    columns = PreferencePair.model_validate_json(run.pairs_jsonl.read_text(encoding="utf-8")).model_dump(mode="json")
    assert columns["prompt"] == [{"role": "user", "content": "p"}]
    assert columns["chosen"] == [{"role": "assistant", "content": "x"}]
    assert columns["rejected"] == [{"role": "assistant", "content": "y"}]


def test_without_verdicts_there_is_one_line(tmp_path: Path) -> None:
    run = start(tmp_path)
    put(run, (P, ["x", "y"]))
    with pytest.raises(InputError, match=r"judgments/llm\.jsonl: no verdicts of 'llm'; run `tiebreak judge` first$"):
        pair(run)
