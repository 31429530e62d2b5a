"""What a run must show before it is released, and how runs are put side by side."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from scripted import RULES, prompt, put, start
from tiebreak.cli import app
from tiebreak.files import read_json, write_json
from tiebreak.metrics.length_control import length_controlled
from tiebreak.metrics.versus import plain
from tiebreak.metrics.winrate import mean, rate
from tiebreak.records import InputError
from tiebreak.run import Run
from tiebreak.stages.compare import compare
from tiebreak.stages.gate import gate


def evaluated(folder: Path, wins: int, losses: int, scores: list[float], **changes: Any) -> Run:
    """Return a run whose tuned model won and lost so many held-out prompts."""
    run = start(folder, **{"judges": [RULES], **changes})
    put(run, *((prompt(f"p{at}", "test"), ["x"]) for at in range(3)))
    (run.path / "eval").mkdir(exist_ok=True)
    rows = [*["win"] * wins, *["loss"] * losses]
    with run.head_to_head_csv.open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["model", "against", "prompt_id", "verdict"])
        table.writerows(["tuned", "base", at, verdict] for at, verdict in enumerate(rows))
        table.writerows(["sft", "base", at, "win"] for at in range(90))  # another model's luck is not the tuned one's
        table.writerow(["tuned", "base", "error", "error"])
    wins_of = rate([[1.0]] * wins + [[0.0]] * losses)
    change = mean([[each] for each in scores])
    assert wins_of is not None
    assert change is not None
    summary = {
        "verdict": {"word": "better", "sentence": "The tuned model is better."},
        "win_rate": plain(wins_of),
        "judge": "rules",
        "differences": {"score": plain(change, "mean"), "perplexity": plain(change, "mean")},
    }
    write_json(run.summary_json, summary)
    return run


@pytest.mark.parametrize(
    ("wins", "losses", "asked", "confidence", "shown"),
    [
        (45, 15, 0.5, 0.95, True),
        (45, 15, 0.75, 0.95, False),  # the mean is not enough
        (33, 27, 0.5, 0.95, False),
        (37, 23, 0.5, 0.90, True),  # 0.617: certain to 90 %
        (37, 23, 0.5, 0.99, False),
        (60, 0, 0.9, 0.95, True),
        (0, 60, 0.0, 0.95, False),
    ],
)
def test_a_win_rate_is_shown_where_the_whole_interval_is_above_it(
    wins: int, losses: int, asked: float, confidence: float, shown: bool, tmp_path: Path
) -> None:
    run = evaluated(tmp_path, wins, losses, [0.0, 0.1])
    passed, why = gate(run, asked, confidence, ())
    expected = rate([[1.0]] * wins + [[0.0]] * losses, confidence)
    assert expected is not None
    assert passed is shown is (expected.low > asked)
    assert why.startswith("shown: " if shown else "not shown: ")
    assert f"n = {wins + losses} on {wins + losses} prompts" in why
    assert f"({expected.low:.3f} to {expected.high:.3f} at {confidence:.0%}".replace("%", " %") in why
    assert "\n" not in why


@pytest.mark.parametrize(
    ("change", "score", "perplexity"),
    [([-0.3, -0.2, -0.25], False, True), ([0.3, 0.2, 0.25], True, False), ([-0.5, 0.4, 0.2], True, True)],
    ids=["it fell", "it rose", "it cannot be told"],
)
def test_a_measure_has_regressed_where_its_change_is_surely_for_the_worse(
    change: list[float], score: bool, perplexity: bool, tmp_path: Path
) -> None:
    run = evaluated(tmp_path, 30, 10, change)
    assert gate(run, None, 0.95, ["score"])[0] is score
    assert gate(run, None, 0.95, ["perplexity"])[0] is perplexity
    assert gate(run, 0.5, 0.95, ["score", "perplexity"])[0] is (score and perplexity)
    assert "n = 3" in gate(run, None, 0.95, ["score"])[1]


def test_one_prompt_shows_nothing(tmp_path: Path) -> None:
    passed, why = gate(evaluated(tmp_path, 1, 0, [0.5]), None, 0.95, ["score"])
    assert not passed
    assert "cannot be told from one prompt" in why


def test_what_cannot_be_asked(tmp_path: Path) -> None:
    run = evaluated(tmp_path, 5, 5, [0.1, 0.2])
    with pytest.raises(InputError, match="nothing is asked"):
        gate(run, None, 0.95, ())
    with pytest.raises(InputError, match="--no-regression chrf: was not measured; there is score, perplexity"):
        gate(run, None, 0.95, ["chrf"])
    run.summary_json.unlink()
    with pytest.raises(InputError, match="not evaluated yet"):
        gate(run, 0.5, 0.95, ())


def test_exit_codes(tmp_path: Path) -> None:
    run = evaluated(tmp_path, 45, 15, [0.1, 0.2])
    cli = CliRunner()
    for arguments, code in ((["--win-rate", "0.5"], 0), (["--win-rate", "0.75"], 1), (["--no-regression", "score"], 0)):
        result = cli.invoke(app, ["gate", str(run.path), *arguments])
        assert result.exit_code == code, result.output
        assert result.output.count("\n") == 1
    assert isinstance(cli.invoke(app, ["gate", str(run.path)]).exception, InputError)  # which main() ends with 2


def test_runs_side_by_side(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one = evaluated(tmp_path / "one", 45, 15, [0.1])
    two = evaluated(
        tmp_path / "two", 15, 45, [0.1], train={"beta": 0.3}, judges=[RULES, {**RULES, "name": "other"}], pair={"judge": "rules"}
    )
    lines = dict(compare([one, two]))
    expected = [rate([[1.0]] * wins + [[0.0]] * (60 - wins)) for wins in (45, 15)]
    words = [f"{each.value:.3g} ({each.low:.3g}–{each.high:.3g}), n = 60" for each in expected if each]
    assert lines["win rate of tuned over base"] == words
    assert lines["train.beta"] == ["0.1", "0.3"]
    assert lines["judges.1.name"] == ["–", '"other"']
    assert "train.learning_rate" not in lines
    assert not any(key.startswith(("model.", "prompts.")) for key in lines)
    result = CliRunner().invoke(app, ["compare", str(one.path), str(two.path)])
    assert result.exit_code == 0, result.output
    assert "train.beta" in result.output
    assert isinstance(CliRunner().invoke(app, ["compare", str(one.path)]).exception, InputError)


# --- AlpacaEval's annotations beside runs --------------------------------------------------------------------------


def annotated(
    folder: Path, preferences: list[float | None], generators: tuple[str, str] = ("gpt", "mine"), name: str = "a"
) -> Path:
    """Write annotations of as many instructions, output_2 longer by some characters in every other one."""
    entries = [
        {
            "instruction": f"Q{at}", "output_1": "x" * 20, "output_2": "y" * (20 + (at % 4) - at % 2), "preference": preference,
            "generator_1": generators[0], "generator_2": generators[1], "annotator": "weighted", "price_per_example": 0.01,
        }
        for at, preference in enumerate(preferences)
    ]  # fmt: skip
    path = folder / f"{name}.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


def test_annotations_stand_beside_runs_as_alpaca_eval_counts_them(tmp_path: Path) -> None:
    preferences = [1.9, 2, 1.25, 1.5, None, 1, 0, 1.75, 2, 2, 1.6, 1.8, 1.1, 2]
    run, path = evaluated(tmp_path, 45, 15, [0.1]), annotated(tmp_path, preferences)
    lines = dict(compare([run, path]))
    shares = [0.5 if each == 0 else each - 1 for each in preferences if each is not None]
    expected = rate([[share] for share in shares])
    assert expected is not None
    assert lines["win rate of mine over gpt"] == ["–", f"{expected.value:.3g} ({expected.low:.3g}–{expected.high:.3g}), n = 13"]
    known = [(at, each) for at, each in enumerate(preferences) if each is not None]
    rows = [[(0.5 if each == 0 else each - 1, 20 + (at % 4) - at % 2, 20)] for at, each in known]
    even = length_controlled(rows).estimate
    assert even is not None
    assert lines["length-controlled"] == ["–", f"{even.value:.3g} ({even.low:.3g}–{even.high:.3g}), n = 13"]
    assert (lines["ties"][1], lines["without a verdict"][1]) == ("2", "1")
    assert lines["verdict"] == ["better", "no difference" if expected.low <= 0.5 else "better"]
    assert (lines["judged by"], lines["cost"]) == (["rules", "weighted"], ["$0.00", "$0.14"])
    assert not any(key.startswith(("train", "judges", "model", "seed")) for key in lines)  # it has no settings to differ in
    result = CliRunner().invoke(app, ["compare", str(run.path), str(path)])
    assert result.exit_code == 0, result.output
    assert "win rate of mine over gpt" in result.output


def test_settings_in_which_runs_differ_leave_a_files_cell_empty(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one, two = evaluated(tmp_path / "one", 45, 15, [0.1]), evaluated(tmp_path / "two", 45, 15, [0.1], train={"beta": 0.3})
    assert dict(compare([one, annotated(tmp_path, [1, 2]), two]))["train.beta"] == ["0.1", "–", "0.3"]


def test_annotations_of_several_models_and_of_nobody_named(tmp_path: Path) -> None:
    entries = [json.loads(annotated(tmp_path, [2, 2, 1], ("gpt", name)).read_text()) for name in ("mine", "theirs")]
    (tmp_path / "both.json").write_text(json.dumps([*entries[0], *entries[1]]), encoding="utf-8")
    lines = dict(compare([tmp_path / "both.json"]))
    assert lines.keys() >= {"win rate of mine over gpt", "win rate of theirs over gpt", "ties, theirs over gpt"}
    assert "verdict" not in lines
    bare = [{"instruction": "Q", "output_1": "a", "output_2": "b", "preference": None}]
    (tmp_path / "bare.json").write_text(json.dumps(bare), encoding="utf-8")
    lines = dict(compare([tmp_path / "bare.json"]))
    assert (lines["verdict"], lines["without a verdict"], lines["judged by"]) == (["not compared"], ["1"], ["bare"])
    assert "win rate of output_2 over output_1" not in lines
    (tmp_path / "no.json").write_text('[{"instruction": "Q", "output": "a"}]', encoding="utf-8")
    with pytest.raises(InputError, match=r"no\.json, entry 1: output_1 is missing"):
        compare([tmp_path / "no.json"])


def test_the_gate_is_about_the_models_of_the_verdict(tmp_path: Path) -> None:
    """The sft model won 90 of 90 against base."""
    run = evaluated(tmp_path, 15, 45, [0.1, 0.2])
    assert not gate(run, 0.5, 0.95, ())[0]
    summary = read_json(run.summary_json) | {"headline": ["sft", "base"]}
    write_json(run.summary_json, summary)
    passed, why = gate(run, 0.5, 0.95, ())
    assert passed
    assert "n = 90" in why
