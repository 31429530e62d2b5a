"""The monitor: tells each kind of trouble once, where there is trouble, and names what helps."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import BaseModel

from test_train_stage import pair, start, stop_at
from tiebreak import models
from tiebreak.records import Logged
from tiebreak.run import Run
from tiebreak.stages.train import train
from tiebreak.training.monitor import Monitor, Warned, kind_of

pytestmark = pytest.mark.filterwarnings("ignore:.(is_)?gradient_checkpointing. is deprecated:FutureWarning")


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "device", lambda: torch.device("cpu"))


def values(
    chosen: float = 0.0, rejected: float = 0.0, *, tokens: float = 10.0, start: float = -20.0, beta: float = 0.1, **more: float
) -> dict[str, float]:
    """Return what is logged where chosen and rejected completions have gained so many nats."""
    return {
        "rewards/chosen": beta * chosen, "rewards/rejected": beta * rejected, "rewards/margins": beta * (chosen - rejected),
        "rewards/accuracies": 0.8, "logps/chosen": start + chosen, "logps/rejected": start + rejected,
        "tokens/chosen": tokens, "tokens/rejected": tokens, "pairs/chosen_shorter": 0.5, "pairs/chosen_shorter_right": 0.4,
    } | more  # fmt: skip


def kinds(*logs: dict[str, float], held_out: int = 0, reference: bool = True, prefix: str = "") -> list[str]:
    """Return the kinds that are told over these logs, one after another."""
    told: list[BaseModel] = []
    monitor = Monitor(told.append, beta=0.1, reference=reference, held_out=held_out)
    for step, one in enumerate(logs):
        logged = {prefix + name: value for name, value in one.items()}
        monitor.on_log(None, SimpleNamespace(global_step=step, is_world_process_zero=True), None, logs=logged)  # type: ignore[arg-type]
    return [line.warning for line in told if isinstance(line, Warned)]


# --- what is trouble -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("logs", "found"),
    [
        (values(), []),
        (values(chosen=1, rejected=-8), []),  # the chosen rise: as it should be
        (values(chosen=-1.5, rejected=-8), []),  # a little lower, for a larger margin
        (values(chosen=-3.9, rejected=-8), ["drift"]),
        (values(chosen=-4.1, rejected=-8.3), ["displacement", "drift"]),  # a fifth of 2 nats per token
        (values(chosen=-0.9, rejected=-1, start=-1), []),  # a tenth of a nat at least
        (values(chosen=-1.1, rejected=-2.5, start=-1), ["displacement"]),
        (values(chosen=-2.1, rejected=-4), ["both fall"]),  # more than they are apart
        (values(chosen=-2.1, rejected=-4.3), []),
        (values(chosen=-2.1, rejected=-1), []),  # no margin: not learned yet
        (values(chosen=0, rejected=-9.9), []),
        (values(chosen=0, rejected=-10.1), ["drift"]),
        (values(chosen=12, rejected=9), []),  # both have risen, as with an SFT term
    ],
)
def test_kinds(logs: dict[str, float], found: list[str]) -> None:
    assert kinds(logs) == found
    assert kinds(logs, held_out=5, prefix="eval_") == found
    assert kinds(logs, held_out=5) == [], "held-out pairs alone are looked at where there are any"


@pytest.mark.parametrize(
    ("pairs", "shorter", "right", "found"),
    [
        (40, 0.5, 0.2, ["length"]),  # 40 % of the shorter, all of the others
        (38, 0.5, 0.2, []),  # 19 are too few to tell
        (40, 0.5, 0.3, []),  # more than half of them
        (400, 0.5, 0.24, ["length"]),
        (400, 1.0, 0.3, []),
        (400, 0.9, 0.6, []),  # 67 % and 100 %
        (400, 0.9, 0.44, ["length"]),
    ],
)
def test_length(pairs: int, shorter: float, right: float, found: list[str]) -> None:
    others = 1 - shorter
    logs = values(**{"pairs/chosen_shorter": shorter, "pairs/chosen_shorter_right": right, "rewards/accuracies": right + others})
    assert kinds(logs, held_out=pairs, prefix="eval_") == found


def test_without_a_reference_that_stands_still_the_first_line_is_the_start() -> None:
    """Rewards are then no distance from it: SimPO's are negative from the beginning."""
    logs = [values(start=-20 - fall) | {"rewards/chosen": -2 - fall / 10, "rewards/rejected": -3.0} for fall in (0, 3.9, 4.1, 6)]
    assert kinds(*logs[:2], reference=False) == []
    assert kinds(*logs, reference=False) == ["displacement"]


def test_lines_of_other_things_are_left_alone() -> None:
    assert kinds({"train_runtime": 3.0}, {"rewards/completions": -9.0, "logps/completions": -99.0, "kl": 3.0}) == []
    assert kinds(values(chosen=-9), held_out=3, prefix="other_") == []


# --- once ----------------------------------------------------------------------------------------------------------


def test_once_per_kind_in_one_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs = values(), values(chosen=-6, rejected=-6), values(chosen=-9, rejected=-15)
    assert kinds(*logs) == ["displacement", "drift", "both fall"]
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[1] for line in said] == [" step 1", " step 1", " step 2"]
    assert "less likely than before training (-2.60 nats per token, -2.00 then)" in said[0]
    assert all(remedy in said[0] for remedy in ("[sigmoid, sft]", "ipo", "learning_rate", "beta"))


def test_an_interrupted_training_is_told_of_once() -> None:
    """Told before the step gone on from: over. Told after it: told again in the file, and not to the user."""
    earlier = [
        Logged(step=1, **values(start=-20.0)), Warned(step=2, warning="displacement", sentence="…"),
        Warned(step=4, warning="drift", sentence="…"),
    ]  # fmt: skip
    appended: list[Any] = []
    monitor = Monitor(appended.append, beta=0.1, reference=False, held_out=0, earlier=earlier, begun=3)
    assert (monitor.start, monitor.seen, monitor.told) == (-2.0, {"displacement"}, {"displacement", "drift"})
    assert kind_of(earlier[0]) is None


# --- in training ---------------------------------------------------------------------------------------------------

NEAR = [pair(f"Idea {at}", f"The title of number {at} is good", f"The title of number {at} is bad") for at in range(18)]
"""Completions that share most of their tokens: what makes one unlikely makes the other so."""
DISPLACED = {"learning_rate": 3e-2, "beta": 0.01, "num_train_epochs": 4, "eval_steps": 2}


def tune(model: Path, path: Path, **changes: Any) -> Run:
    return start(model, path, NEAR[:12], changes.pop("held_out", NEAR[12:]), **changes)


def warned(run: Run) -> dict[str, int]:
    lines = [json.loads(line) for line in run.metrics_jsonl.read_text(encoding="utf-8").splitlines()]
    return {line["warning"]: line["step"] for line in lines if "warning" in line}


def test_what_it_reads_is_logged(tiny: Path, tmp_path: Path) -> None:
    texts = [("Title", "Other"), ("Ti", "Longer"), ("Longest of all", "No"), ("Some", "No")]
    held_out = [pair(f"Idea {at}", *two) for at, two in enumerate(texts)]
    train(run := tune(tiny, tmp_path / "run", held_out=held_out, num_train_epochs=1))
    line = json.loads(run.metrics_jsonl.read_text(encoding="utf-8").splitlines()[-1])
    lengths = [[len(text) + 1 for text in two] for two in texts]  # bytes, and an end
    assert line["eval_tokens/chosen"] == sum(chosen for chosen, _ in lengths) / 4
    assert line["eval_tokens/rejected"] == sum(rejected for _, rejected in lengths) / 4
    assert line["eval_pairs/chosen_shorter"] == 0.25
    assert line["eval_pairs/chosen_shorter_right"] in (0.0, 0.25)


def test_a_training_that_displaces(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = train(run := tune(tiny, tmp_path / "run", **DISPLACED))
    assert {"displacement", "both fall"} <= warned(run).keys()
    assert counts["warnings"] == warned(run)
    assert capsys.readouterr().out.count("the chosen completions are less likely than before training") == 1
    train(blind := tune(tiny, tmp_path / "blind", **DISPLACED | {"held_out": []}))
    assert "displacement" in warned(blind), "of the steps' own pairs, where none are held out"


def test_a_training_that_does_not(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, changes in {"gentle": {"num_train_epochs": 2}, "remedied": DISPLACED | {"loss_type": ["sigmoid", "sft"]}}.items():
        counts = train(run := tune(tiny, tmp_path / name, **changes))
        assert warned(run) == {}, name
        assert "warnings" not in counts
    assert capsys.readouterr().out == ""


def test_an_interrupted_training_warns_as_an_uninterrupted_one(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = DISPLACED | {"save_steps": 5, "num_train_epochs": 6}
    train(whole := tune(tiny, tmp_path / "whole", **settings))
    said = capsys.readouterr().out
    run = tune(tiny, tmp_path / "run", **settings)
    assert 5 < warned(whole)["displacement"] < 10, "between two checkpoints: it is seen again"
    for at in (warned(whole)["displacement"] + 1, 11):
        with monkeypatch.context() as patch:
            stop_at(at, patch)
            with pytest.raises(KeyboardInterrupt):
                train(run)
    train(run)
    assert warned(run) == warned(whole)
    assert capsys.readouterr().out == said
