"""Runs that train nothing and hold models against each other, whole, through the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from conftest import make_causal
from scripted import Says, Typed, llm, put_in, shorter, typed
from servers import reply, stub
from test_report import words_of
from tiebreak.cli import app
from tiebreak.files import read_json, read_jsonl
from tiebreak.records import Completion
from tiebreak.run import Run
from tiebreak.stages.trust import trust

RULES = {"type": "rules", "checks": [{"check": "length", "max": 20}, {"check": "one_line"}]}
INSTRUCTIONS = [f"Question {at}" for at in range(24)]
QUESTIONS = [
    {"question_id": 80 + at, "category": ("writing", "maths")[at % 2], "turns": [f"First {at}", f"Then {at}"]}
    | ({"reference": [f"right {at}", "so"]} if at % 2 else {})
    for at in range(6)
]


def answers(folder: Path, name: str, texts: dict[str, str]) -> dict[str, str]:
    """Write AlpacaEval's file of a model, and return its entry in a recipe."""
    rows = [{"instruction": asked, "output": text, "generator": f"{name}-v1", "dataset": "own"} for asked, text in texts.items()]
    (folder / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    return {"type": "outputs", "name": name, "file": f"{name}.json"}


def turned(folder: Path, name: str, said: list[list[str]]) -> dict[str, str]:
    """Write MT-bench's file of a model, with another question's answer too, and return its entry in a recipe."""
    rows = [
        {"question_id": number, "answer_id": "x", "model_id": name, "choices": [{"index": 0, "turns": turns}], "tstamp": 1.0}
        for number, turns in [*((80 + at, turns) for at, turns in enumerate(said)), (7, ["of", "another"])]
    ]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"type": "outputs", "name": name, "file": f"{name}.jsonl"}


def recipe(folder: Path, models: list[Any], **changes: Any) -> str:
    """Write a recipe that evaluates, and return its path."""
    data = {
        "name": "r",
        "prompts": {"source": "asked.json"},
        "judges": [RULES],
        "train": None,
        "evaluate": {"models": models, **changes.pop("evaluate", {})},
        **changes,
    }
    path = folder / "r.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return str(path)


def put_prompts(folder: Path) -> None:
    (folder / "asked.json").write_text(json.dumps([{"instruction": text, "dataset": "own"} for text in INSTRUCTIONS]))
    (folder / "question.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))


@pytest.fixture
def tiebreak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Any:
    """Run a command in a folder with AlpacaEval's prompts and MT-bench's questions."""
    monkeypatch.chdir(tmp_path)
    put_prompts(tmp_path)

    def command(*arguments: str) -> Typed:
        return typed(monkeypatch, capsys, *arguments)

    return command


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def filed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run of gpt-4, mine and other: mine wins 20, loses 2 and ties 1 of the 23 that it has answered."""
    folder = tmp_path_factory.mktemp("filed")
    put_prompts(folder)
    loses = {0: "far too long an answer", 1: "two\nlines"}
    fine = {text: "fine" if at < 3 else "also\nfar too long" for at, text in enumerate(INSTRUCTIONS)}
    models = [
        answers(folder, "gpt-4", fine),
        answers(folder, "mine", {text: loses.get(at, "good") for at, text in enumerate(INSTRUCTIONS[:23])}),
        answers(folder, "other", dict.fromkeys(INSTRUCTIONS, "an answer that is long\nand has two lines")),
    ]
    done = CliRunner().invoke(app, ["run", recipe(folder, models), "--run", str(folder / "runs" / "r")])
    assert done.exit_code == 0, done
    assert "evaluate mine: 1 calls failed, the first with: no answer to prompt" in done.output
    assert "prepare: 24 prompts of 24 rows (0 train, 24 test)" in done.output
    return Run(folder / "runs" / "r")


def test_two_files_meet_and_the_verdict_names_them(filed: Run) -> None:
    summary = read_json(filed.summary_json)
    assert (summary["headline"], summary["models"]) == (["mine", "gpt-4"], ["gpt-4", "mine", "other"])
    wins = summary["win_rate"]
    assert (wins["win"], wins["tie"], wins["loss"], wins["n"]) == (20, 1, 2, 23)
    assert summary["verdict"]["sentence"].startswith(
        "mine is better: it wins 89 % of 23 comparisons with gpt-4, ties counting half"
    )
    assert summary["verdict"]["sentence"].endswith("on 23 prompts.")
    assert summary["answers"] == {
        "gpt-4": {"given": 24, "failed": 0, "cut": 0},
        "mine": {"given": 23, "failed": 1, "cut": 0},
        "other": {"given": 24, "failed": 0, "cut": 0},
    }
    assert [(row["model"], row["against"]) for row in summary["head_to_head"]] == [("mine", "gpt-4"), ("other", "gpt-4")]
    assert {row["model"]: row["elo"] == 0 for row in summary["ratings"]} == {"gpt-4": True, "mine": False, "other": False}
    assert summary["judge_labelled"] is False
    assert summary["agreement"] == {"with_labels": None, "with_people": []}
    with filed.results_csv.open(encoding="utf-8", newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert list(lines[0]) == ["prompt_id", "prompt", "gpt-4", "mine", "verdict", "reason", "gpt-4_score", "mine_score"]
    assert {line["verdict"] for line in lines} == {"mine", "gpt-4", "tie"}


def test_its_report_speaks_of_no_tuning(filed: Run) -> None:
    page = filed.report_html.read_text(encoding="utf-8")
    words = words_of(page)
    parts = [
        "mine is better: it wins 89 % of 23 comparisons with gpt-4",
        "gpt-4, mine and other, on 24 prompts, 1 completion of each model per prompt, judged by rules.",
        "1 answer of mine could not be had.",
        "win rate of mine over gpt-4 89 % 95 % interval",
        "comparisons with a verdict 23 of 23 1 tie, 0 that turned with the order",
        "cost free",
        "From prompts to a verdict",
        "Answers: gpt-4 24 of 24",
        "Answers: mine 23 of 24 1 not to be had",
        "Comparisons 22 of 23 1 ties",
        "What was measured",
        "measure gpt-4 mine other mine less gpt-4 n",
        "Win rate over gpt-4 –",
        "Every model",
        "model against win rate equal length p n prompts won tied lost turned unread prompts needed mine gpt-4 89 %",
        "Examples to read mine against gpt-4.",
        "mine wins",
        "prepare done",
    ]
    assert [part for part in parts if part not in words] == []
    before = words[: words.index("The recipe, every key resolved")].replace("pairs them by prompt", "")
    assert [word for word in ("tuned", "tuning", "base", "held-out", " pairs ", "train") if word in before] == []
    names = {path.stem for path in filed.figures.iterdir()}
    assert names >= {"outcome", "passing", "checks", "head_to_head", "ratings", "before_after", "funnel", "stages"}
    assert "held_out" not in names
    rows = list(csv.reader((filed.figures / "before_after.csv").read_text(encoding="utf-8").splitlines()))
    assert {"gpt-4", "mine", "other", "mine less gpt-4"} <= set(rows[0])


def test_show_gate_compare_and_status_speak_its_names(filed: Run, tiebreak: Any) -> None:
    path = str(filed.path)
    first = next(prompt for prompt in filed.prompts() if prompt.text == "Question 0")
    shown = tiebreak("show", path, first.id).out
    assert "gpt-4 against mine: 1 comparisons\n  gpt-4 1.00: fine\n  mine 0.50: far too long an answer\n  gpt-4 wins: " in shown
    assert "Completions" not in shown
    assert "Pairs" not in shown
    assert tiebreak("gate", path, "--win-rate", "0.5", "--no-regression", "score").code == 0
    refused = tiebreak("gate", path, "--win-rate", "0.8")
    assert refused.code == 1
    assert refused.out.startswith("not shown: win rate 0.891 (")
    side = tiebreak("compare", path, path).out
    assert "win rate of mine over gpt-4" in side
    assert "tuned" not in side
    assert "evaluate  done     mine is better" in tiebreak("status", path).out
    again = tiebreak("run", str(filed.path.parent.parent / "r.yaml"), "--run", path)
    assert (again.code, "evaluate: mine is better" in again.out, "(done before)" in again.out) == (0, True, True)


def test_files_of_no_common_prompt_are_not_compared(tiebreak: Any, tmp_path: Path) -> None:
    models = [answers(tmp_path, "a", {INSTRUCTIONS[0]: "x"}), answers(tmp_path, "b", {INSTRUCTIONS[1]: "y"})]
    done = tiebreak("run", recipe(tmp_path, models))
    assert "evaluate: Not compared: there is no prompt that both b and a have answered." in done.out
    assert "not measured" in words_of((tmp_path / "runs/r/report.html").read_text(encoding="utf-8"))


def test_a_file_with_several_answers_to_a_prompt_gives_all(tiebreak: Any, tmp_path: Path) -> None:
    mine = answers(tmp_path, "mine", dict.fromkeys(INSTRUCTIONS, "good"))
    rows = json.loads((tmp_path / "mine.json").read_text())
    (tmp_path / "mine.json").write_text(json.dumps([*rows, {**rows[0], "output": "too long for any rule"}]))
    done = tiebreak("run", recipe(tmp_path, [answers(tmp_path, "gpt", dict.fromkeys(INSTRUCTIONS, "two\nlines")), mine]))
    assert done.code == 0, done
    wins = read_json(tmp_path / "runs/r/eval/summary.json")["win_rate"]
    assert (wins["win"], wins["tie"], wins["n"], wins["prompts"]) == (24, 1, 25, 24)


@pytest.mark.parametrize("name", ["tie", "inconsistent", "error", "name"])
def test_no_model_takes_a_word_of_the_results(name: str, tiebreak: Any, tmp_path: Path) -> None:
    models = [answers(tmp_path, "a", {"Q": "x"}), answers(tmp_path, name, {"Q": "y"})]
    assert f"no model may be called '{name}', which is a word of the results" in tiebreak("run", recipe(tmp_path, models)).mistake


def test_a_file_that_cannot_be_read_is_said_before_anything_is_done(tiebreak: Any, tmp_path: Path) -> None:
    models = [answers(tmp_path, "a", {"Q": "x"}), {"type": "outputs", "name": "b", "file": "asked.json"}]
    assert tiebreak("run", recipe(tmp_path, models)).mistake.endswith("asked.json, entry 1: output is missing")
    assert not (tmp_path / "runs/r/prompts.jsonl").exists()


# --- MT-bench ------------------------------------------------------------------------------------------------------


def test_two_turns_of_files_and_of_a_model_here(tiebreak: Any, tmp_path: Path, tiny: Path) -> None:
    models = [
        turned(tmp_path, "gpt-4", [[f"right {at}", "so"] for at in range(6)]),
        turned(tmp_path, "mine", [["x" * 30, "y"]] * 4),
        {"type": "local", "name": "here", "model": {"name_or_path": str(tiny)}},
    ]
    settings = {"n": 2, "temperature": 1.0, "max_new_tokens": 4, "reference": "reference", "against": "all"}
    prompts = {"source": "question.jsonl"}
    done = tiebreak("run", recipe(tmp_path, models, prompts=prompts, evaluate=settings))
    assert done.code == 0, done
    run = Run(tmp_path / "runs" / "r")
    assert [prompt.text for prompt in run.prompts()] == [question["turns"][0] for question in QUESTIONS]
    drawn = list(read_jsonl(run.eval_completions_jsonl, Completion))
    assert {name: sum(draw.sampler == name for draw in drawn) for name in ("gpt-4", "mine", "here")} == {
        "gpt-4": 6, "mine": 4, "here": 12,
    }  # fmt: skip
    assert {len(draw.sampling["turns"]) for draw in drawn} == {2}
    assert next(draw.text for draw in drawn if draw.sampler == "mine") == f"{'x' * 30}\n\nUser: Then 0\n\nAssistant: y"
    summary = read_json(run.summary_json)
    assert [(row["model"], row["against"]) for row in summary["head_to_head"]] == [
        ("mine", "gpt-4"), ("here", "gpt-4"), ("here", "mine"),
    ]  # fmt: skip
    assert [each["name"] for each in summary["win_rate"]["categories"]] == ["maths", "writing"]
    exact = next(row for row in summary["texts"] if row["name"] == "exact_match")
    assert (exact["gpt-4"]["rate"], exact["gpt-4"]["n"]) == (1.0, 3)  # both turns of those that have a reference
    before = run.eval_completions_jsonl.read_bytes()
    lines = before.splitlines(keepends=True)
    run.eval_completions_jsonl.write_bytes(b"".join(lines[:15]) + lines[15][:40])  # killed in the middle of a line
    done = tiebreak("evaluate", str(run.path))
    assert done.code == 0, done
    assert sorted(run.eval_completions_jsonl.read_bytes().splitlines()) == sorted(before.splitlines())


def test_a_server_against_a_file_in_two_turns(tiebreak: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def script(_: int, request: dict[str, Any]) -> Any:
        return reply(f"{len(request['messages'])} messages")

    with stub(script) as server:
        models = [
            turned(tmp_path, "gpt-4", [["far too long an answer", "and more"]] * 6),
            {"type": "api", "name": "flash", "provider": "custom", "base_url": server.url, "model": "m"},
        ]
        done = tiebreak("run", recipe(tmp_path, models, prompts={"source": "question.jsonl"}))
        assert done.code == 0, done
        assert server.calls == 12
    drawn = list(read_jsonl(tmp_path / "runs/r/eval/completions.jsonl", Completion))
    assert {tuple(draw.sampling["turns"]) for draw in drawn if draw.sampler == "flash"} == {("1 messages", "3 messages")}


def test_a_run_that_trains_asks_first_turns_alone(tiebreak: Any, tmp_path: Path) -> None:
    sampler = {"type": "local", "model": {"name_or_path": "absent"}}
    path = recipe(
        tmp_path, ["base", "tuned"], prompts={"source": "question.jsonl"}, generate=[sampler], train={}, model=sampler["model"]
    )
    assert tiebreak("prepare", path).code == 0
    assert {tuple(prompt.meta) for prompt in Run(tmp_path / "runs/r").prompts()} == {("question_id", "category")}


# --- models in this process ----------------------------------------------------------------------------------------


def test_two_models_here_meet_on_a_part_of_the_prompts(tiebreak: Any, tmp_path: Path, tiny: Path) -> None:
    other = make_causal(tmp_path / "other", seed=5)
    models = ["base", {"type": "local", "name": "other", "model": {"name_or_path": str(other)}}]
    prompts = {"source": "asked.json", "test_fraction": 0.5}
    whole = {"model": {"name_or_path": str(tiny)}, "prompts": prompts, "evaluate": {"n": 2, "max_new_tokens": 6}}
    done = tiebreak("run", recipe(tmp_path, models, **whole))
    assert done.code == 0, done
    summary = read_json(tmp_path / "runs/r/eval/summary.json")
    assert (summary["headline"], summary["prompts"], summary["win_rate"]["n"]) == (["other", "base"], 12, 24)
    assert (
        "on 12 held-out prompts" in summary["verdict"]["sentence"] or "that 12 prompts can show" in summary["verdict"]["sentence"]
    )
    words = words_of((tmp_path / "runs/r/report.html").read_text(encoding="utf-8"))
    assert "base and other, on 12 prompts, 2 completions of each model per prompt" in words
    assert "Prompts 24 of 24" in words
    assert "for training 12 held out 12" in words


# --- the judge is asked what it knows, first -----------------------------------------------------------------------


def knows(first: str, second: str) -> str:
    """Tell an answer from shuffled letters, and prefer the shorter of two answers."""
    garbage = ["answer to that" not in text for text in (first, second)]
    return shorter(first, second) if garbage[0] == garbage[1] else "second" if garbage[0] else "first"


@pytest.mark.parametrize("fair", [True, False])
def test_a_judge_flies_its_canaries_before_it_decides(
    fair: bool, tiebreak: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    says = Says(knows if fair else lambda *_: "first", "llm")
    put_in(monkeypatch, says)
    texts = {"theirs": "a longer and rather worse answer to that", "mine": "a good answer to that"}
    models = [answers(tmp_path, name, {asked: f"{text}, {asked}" for asked in INSTRUCTIONS}) for name, text in texts.items()]
    path = recipe(tmp_path, models, judges=[llm("llm", canaries=3)])
    done = tiebreak("run", path, "--run", "run")
    assert done.code == (0 if fair else 2), done
    run = Run(tmp_path / "run")
    if fair:
        assert run.summary["win_rate"]["rate"] == 1.0
    else:
        assert "so it decides nothing" in done.mistake
        assert not run.eval_judgments("llm").exists()
        assert tiebreak("run", path, "--run", "run", "--accept-canary-failures").code == 0
        assert run.summary["win_rate"]["inconsistent"] == len(INSTRUCTIONS)
    (own,) = trust(run).judges
    assert own.canaries is not None
    assert (own.canaries.identical_asked, own.canaries.failed) == (3, not fair)
    assert own.bias.first is not None
    assert own.bias.first.value == (0.5 if fair else 1.0)
    words = words_of(run.report_html.read_text(encoding="utf-8"))
    assert ("3 of 3 beside itself" if fair else "0 of 3 beside itself") in words
