"""iterate: each round from the last one's model, everything measured once, and a reason to stop that the numbers carry."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from conftest import make_causal, make_tokenizer
from scripted import Draws, performed, prompt, put, typed
from tiebreak import models
from tiebreak.files import read_jsonl, write_jsonl
from tiebreak.loops.iterate import iterate
from tiebreak.recipe import LocalSampling, Model
from tiebreak.records import Completion, InputError, Logged, Message, PreferencePair, Prompt
from tiebreak.reporting.repeated import Loop, read_loop
from tiebreak.run import Counts, Run
from tiebreak.stages import check
from tiebreak.stages import report as stage
from tiebreak.stages.train import HeldOut, train
from tiebreak.training.scoring import score

RECIPE: dict[str, Any] = {
    "model": {"name_or_path": "base"},
    "prompts": {"items": [f"p{at}" for at in range(24)], "test_fraction": 0.5},
    "generate": [{"type": "local", "n": 3}],
    "judges": [{"type": "rules", "checks": [{"check": "length", "max": most} for most in (4, 8, 12, 16, 20)]}],
    "evaluate": {"n": 2},
}


class Script:
    """Models that are folders with a number in them, the higher the better; training adds the next of `gains` to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gains: list[float] = [6, 6, 6]
        self.warnings: list[dict[str, int]] = [{}, {}, {}]
        self.lost: list[float | None] = [1, 1, 1]
        self.trained: list[tuple[str, list[dict[str, Any]]]] = []
        self.held_out: list[str] = []
        self.samples: list[str] = []
        self.divergences: list[str] = []
        self.save(folder / "base", 0)

    def save(self, model: Path, quality: float) -> None:
        model.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "model.safetensors"):
            (model / name).touch()
        (model / "quality").write_text(str(quality), encoding="utf-8")

    def write(self, model: Model) -> Callable[[str, int], str]:
        quality = float((Path(model.name_or_path) / "quality").read_text(encoding="utf-8"))
        return lambda text, at: "x" * max(1, round(22 - quality - 5 * (at % 2)))

    def sampler(self, section: Any, recipe: Any, ledger: Any) -> Draws:
        self.samples.append(recipe.model.name_or_path)
        return Draws(self.write(recipe.model), section.label, section.n)

    def held(self, label: str, model: Model, sampling: LocalSampling, seed: int) -> Draws:
        script = self

        class Counting(Draws):
            def sample(self, prompts: Any, have: frozenset[tuple[str, int]] = frozenset()) -> Iterator[Completion]:
                for each in super().sample(prompts, have):
                    script.held_out.append(model.name_or_path)
                    yield each

        return Counting(self.write(model), label, sampling.n)

    def train(self, run: Run) -> Counts:
        number = int(run.path.name) - 1
        pairs = run.pairs(run.pairs_jsonl)
        self.trained.append((run.recipe.model.name_or_path, [pair.provenance for pair in pairs]))
        before = float((Path(run.recipe.model.name_or_path) / "quality").read_text(encoding="utf-8"))
        self.save(run.tuned, before + self.gains[number])
        return {
            "pairs": len(pairs),
            "prompts": 12,
            "steps": 3,
            "loss": 0.5,
            **({"warnings": warned} if (warned := self.warnings[number]) else {}),
        }

    def apart(self, run: Run, tuned: Model, drawn: Any, prompts: Any) -> dict[str, Any]:
        self.divergences.append(tuned.name_or_path)
        number = int(Path(tuned.name_or_path).parts[-3]) - 1
        some = {"low": 0.0, "high": 1.0, "n": len(drawn)}
        lost = self.lost[number]
        return {"kl": {"mean": float(number + 1), **some}} | (
            {} if lost is None else {"chosen_change": {"mean": -lost, "low": -lost - 1, "high": -lost + 1, "n": 9}}
        )


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Put scripted models where a run would load, sample from and train some."""
    monkeypatch.chdir(tmp_path)
    made = Script(tmp_path)
    monkeypatch.setattr("tiebreak.stages.generate.build_sampler", made.sampler)
    monkeypatch.setattr("tiebreak.stages.evaluate.Local", made.held)
    monkeypatch.setattr("tiebreak.stages.train.train", made.train)
    monkeypatch.setattr("tiebreak.stages.audit.audit", lambda run: dict.fromkeys(("errors", "warnings", "notes", "pairs"), 0))
    for place in ("evaluate", "measures"):
        monkeypatch.setattr(f"tiebreak.stages.{place}.of_models", made.apart)
    counts = dict.fromkeys(("charts", "tables", "examples", "bytes"), 0)
    monkeypatch.setattr("tiebreak.stages.report.report", lambda run: run.report_html.touch() or counts)
    return made


def opened(folder: Path, **changes: Any) -> Run:
    (folder / "r.yaml").write_text(yaml.safe_dump({**RECIPE, **changes}), encoding="utf-8")
    return Run.start(folder / "r.yaml", folder / "run")


def went(folder: Path, rounds: int | None = None, **changes: Any) -> Loop:
    run = opened(folder, **changes)
    with run.lock():
        return iterate(run, rounds)


def model_of(folder: Path, number: int) -> str:
    return str((folder / "run" / "rounds" / str(number) / "train" / "model").resolve())


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run" / "eval" / "summary.json").read_text(encoding="utf-8"))


# --- the rounds ----------------------------------------------------------------------------------------------------


def test_every_round_starts_from_the_last_ones_model(script: Script, tmp_path: Path) -> None:
    loop = went(tmp_path)
    models = ["base", model_of(tmp_path, 1), model_of(tmp_path, 2)]
    assert script.samples == models
    assert [model for model, _ in script.trained] == models
    assert [Run(tmp_path / f"run/rounds/{number}").recipe.name for number in (1, 2, 3)] == [
        "r-rounds-1",
        "r-rounds-2",
        "r-rounds-3",
    ]
    assert (loop.best, [row.name for row in loop.rows]) == ("round-3", ["base", "round-1", "round-2", "round-3"])
    assert loop.sentence.startswith(
        "All 3 rounds are done. Round 3 is the one to take: it wins 100 % of 24 comparisons with base"
    )
    parent = Run(tmp_path / "run")
    assert read_loop(parent) == loop
    assert parent.stages == ("prepare", "evaluate", "report")
    assert [parent.state(stage) for stage in parent.stages] == ["done"] * 3


def test_what_was_drawn_and_judged_in_one_run_is_not_again_in_another(script: Script, tmp_path: Path) -> None:
    went(tmp_path)
    models = ["base", *(model_of(tmp_path, number) for number in (1, 2, 3))]
    draws = Counter(str(Path(name)) for name in script.held_out)
    assert draws == dict.fromkeys(models, 24), "12 prompts, two draws of each model, in whichever run"
    for number in (1, 2, 3):
        child = Run(tmp_path / f"run/rounds/{number}")
        drawn = Counter(draw.sampler for draw in read_jsonl(child.eval_completions_jsonl, Completion))
        assert drawn == {"base": 24, "tuned": 24}
    parent = Run(tmp_path / "run")
    ratings = [line.completion_id for line in parent.verdicts(parent.eval_judgments("rules"))]
    assert len(ratings) == len(set(ratings))
    assert len(parent.eval_judgments("rules").read_text(encoding="utf-8").splitlines()) == len(ratings)
    assert script.divergences.count(model_of(tmp_path, 1)) == 1, "beside base it is known from the round itself"


def test_all_meet_all_and_the_numbers_are_those_of_the_summary(script: Script, tmp_path: Path) -> None:
    loop, found = went(tmp_path), summary(tmp_path)
    assert len(found["head_to_head"]) == 6
    assert found["headline"] == ["round-3", "base"]
    met = {frozenset((row["model"], row["against"])): row for row in found["head_to_head"]}
    last = loop.rows[3].numbers
    assert last["win_rate"]["rate"] == met[frozenset(("round-3", "base"))]["rate"] == 1
    assert last["over_last"]["n"] == 24
    assert last["rating"]["elo"] == next(row["elo"] for row in found["ratings"] if row["model"] == "round-3")
    assert last["length"]["mean"] == found["lengths"]["round-3"]["mean"]
    assert last["passing"]["rate"] == found["passing"]["round-3"]["rate"]
    assert [row.numbers.get("kl", {}).get("mean") for row in loop.rows] == [None, 1, 2, 3]
    assert "win_rate" not in loop.rows[0].numbers
    assert loop.rows[1].pairs == len(script.trained[0][1])


@pytest.mark.parametrize("gains", [[6, 0, 6], [6, -4, 6]])
def test_it_stops_where_no_gain_is_shown(gains: list[float], script: Script, tmp_path: Path) -> None:
    script.gains = gains
    loop = went(tmp_path)
    assert loop.sentence.startswith("Stopped after round 2, as no gain over round 1 is shown: it wins ")
    assert "of 24 comparisons, ties counting half (95 % interval " in loop.sentence
    assert "Round 1 is the one to take: it wins 100 % of 24 comparisons with base" in loop.sentence
    assert loop.best == "round-1"
    assert summary(tmp_path)["headline"] == ["round-1", "base"], "the verdict is about the one to take"
    assert not (tmp_path / "run/rounds/3").exists()


def test_a_meeting_is_read_from_either_side(script: Script, tmp_path: Path) -> None:
    """Which of two rounds a meeting is listed under depends on the one that the verdict is about."""
    script.gains = [6, 5, 6]
    loop, found = went(tmp_path), summary(tmp_path)["head_to_head"]
    by_two = {(row["model"], row["against"]): row for row in found}
    assert by_two.keys() >= {("round-1", "round-2"), ("round-3", "base")}
    turned, straight = by_two["round-1", "round-2"], loop.rows[2].numbers["over_last"]
    assert straight["rate"] == pytest.approx(1 - turned["rate"]) == 1
    assert (straight["low"], straight["high"]) == pytest.approx((1 - turned["high"], 1 - turned["low"]))
    assert loop.rows[3].numbers["win_rate"]["low"] == by_two["round-3", "base"]["low"]


def test_it_stops_at_once_and_says_that_base_stays(script: Script, tmp_path: Path) -> None:
    script.gains = [-4, 0, 0]
    loop = went(tmp_path)
    assert loop.sentence.startswith("Stopped after round 1, as no gain over base is shown: it wins ")
    assert loop.sentence.endswith("No round is shown to be better than base.")
    assert loop.best is None


def test_no_rule_no_stop(script: Script, tmp_path: Path) -> None:
    script.gains, script.warnings, script.lost = [6, -4, 9], [{"drift": 1}] * 3, [1, 2, 3]
    loop = went(tmp_path, iterate={"stop": []})
    assert len(loop.rows) == 4
    assert loop.sentence.startswith("All 3 rounds are done. Round 3 is the one to take")


@pytest.mark.parametrize(
    ("warnings", "lost", "stops"),
    [
        ([{"drift": 3}, {"drift": 3}], [1.0, 2.5], True),
        ([{"drift": 3}, {"drift": 3}], [2.5, 1.0], False),
        ([{}, {}], [1.0, 2.5], False),
        ([{}, {"length": 3}], [1.0, 2.5], False),
        ([{}, {"displacement": 3, "both fall": 4}], [-1.0, 0.5], True),
        ([{}, {"displacement": 3}], [-2.0, -1.0], False),  # they gained, less than before
        ([{"drift": 3}, {"drift": 3}], [None, None], False),
        ([{"drift": 3}, {"drift": 3, "displacement": 3}], [None, None], True),
    ],
)
def test_it_stops_where_displacement_grows(
    warnings: list[dict[str, int]], lost: list[float | None], stops: bool, script: Script, tmp_path: Path
) -> None:
    script.warnings, script.lost = [*warnings, {}], [*lost, lost[-1]]
    loop = went(tmp_path)
    assert loop.sentence.startswith("Stopped after round 2, as displacement grows" if stops else "All 3 rounds are done.")
    if stops:
        assert f"training warned of {' and '.join(warnings[1])}" in loop.sentence
        assert ("lost 2.5 nats (in round 1: 1.0)" in loop.sentence) == (lost == [1.0, 2.5])
        assert loop.best == "round-2"
    assert loop.rows[2].notes == tuple(warnings[1])


def test_the_first_round_has_nothing_that_its_displacement_could_grow_over(script: Script, tmp_path: Path) -> None:
    script.warnings, script.lost = [{"drift": 1}] * 3, [9, 5, 5]
    assert len(went(tmp_path).rows) == 4


def test_a_round_without_a_pair_ends_it(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(run: Run) -> Counts:
        return {"skipped": "no usable pair to train on"} if run.path.name == "2" else script.train(run)

    monkeypatch.setattr("tiebreak.stages.train.train", train)
    loop = went(tmp_path)
    assert loop.sentence.startswith(
        "Stopped after round 2, as nothing was trained: no usable pair to train on. Round 1 is the one"
    )
    assert [row.name for row in loop.rows] == ["base", "round-1"]
    monkeypatch.setattr("tiebreak.stages.train.train", lambda run: {"skipped": "no usable pair to train on"})
    (other := tmp_path / "other").mkdir()
    run = opened(other)
    with run.lock():
        loop = iterate(run)
    assert (loop.rows, loop.best) == ((), None)
    assert loop.sentence.startswith("Stopped after round 1, as nothing was trained")
    assert run.loop["sentence"] == loop.sentence
    assert run.state("report") == "done"


# --- settings ------------------------------------------------------------------------------------------------------


def test_pairs_of_earlier_rounds_are_mixed_in(script: Script, tmp_path: Path) -> None:
    script.gains = [5, 5, 5]
    went(tmp_path, iterate={"mix": True})
    first, second, third = (provenance for _, provenance in script.trained)
    assert first
    assert not any("round" in each for each in first)
    assert {each.get("round") for each in second} == {None, 1}
    assert {each.get("round") for each in third} == {None, 1, 2}
    assert len(second) == len([each for each in second if "round" not in each]) + len(first)
    twos = [frozenset((each["chosen_id"], each["rejected_id"])) for each in third]
    assert len(twos) == len(set(twos))
    before = (tmp_path / "run/rounds/3/pairs.jsonl").read_bytes()
    went(tmp_path, iterate={"mix": True})
    assert (tmp_path / "run/rounds/3/pairs.jsonl").read_bytes() == before
    assert len(script.trained) == 3


def test_a_pair_that_both_rounds_made_is_there_once(script: Script, tmp_path: Path) -> None:
    script.gains = [0, 0, 0]
    went(tmp_path, 2, iterate={"mix": True, "stop": []})
    assert script.trained[1][1] == script.trained[0][1]


def test_unmixed_rounds_have_their_own_pairs(script: Script, tmp_path: Path) -> None:
    went(tmp_path)
    assert not any("round" in each for _, provenance in script.trained for each in provenance)


def references(folder: Path, **changes: Any) -> list[str | None]:
    went(folder, 2, **changes)
    trains = [Run(folder / f"run/rounds/{number}").recipe.train for number in (1, 2)]
    return [train and train.reference and train.reference.name_or_path for train in trains]


def test_the_reference_is_the_last_or_the_first(script: Script, tmp_path: Path) -> None:
    assert references(tmp_path) == [None, None], "the model that each starts from"


def test_the_first_reference(script: Script, tmp_path: Path) -> None:
    assert references(tmp_path, iterate={"reference": "first"}) == [None, "base"]


def test_the_recipes_own_reference_is_the_first(script: Script, tmp_path: Path) -> None:
    script.save(tmp_path / "other", 0)
    own = {"train": {"reference": {"name_or_path": "other"}}}
    assert references(tmp_path, iterate={"reference": "first"}, **own) == ["other", "other"]
    (again := tmp_path / "again").mkdir()
    assert references(again, **own) == ["other", None]


def test_where_sft_came_first_its_model_is_the_first_reference(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sft(run: Run) -> Counts:
        script.save(run.training("sft").model, 1)
        return {"steps": 1, "examples": 1, "loss": 1.0}

    monkeypatch.setattr("tiebreak.stages.sft.sft", sft)
    found = references(tmp_path, iterate={"reference": "first"}, sft={})
    assert found == [None, str((tmp_path / "run/rounds/1/sft/model").resolve())]
    assert "sft" not in Run(tmp_path / "run/rounds/2").stages


def test_others_that_the_recipe_names_meet_the_rounds(script: Script, tmp_path: Path) -> None:
    script.save(tmp_path / "other", 3)
    other = {"type": "local", "name": "other", "model": {"name_or_path": "other"}}
    went(tmp_path, 1, evaluate={"n": 2, "models": ["base", "tuned", other]})
    assert {row["model"] for row in summary(tmp_path)["ratings"]} == {"base", "round-1", "other"}


# --- going on ------------------------------------------------------------------------------------------------------


def test_more_rounds_go_on_from_those_that_are_there(script: Script, tmp_path: Path) -> None:
    went(tmp_path, 1)
    loop = went(tmp_path, 3)
    assert len(script.trained) == 3
    assert len(loop.rows) == 4
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    script.save(fresh / "base", 0)
    assert [row.numbers for row in went(fresh).rows] == [row.numbers for row in loop.rows]


def test_a_second_time_nothing_is_done(script: Script, tmp_path: Path) -> None:
    loop = went(tmp_path)
    trained, held_out, divergences = len(script.trained), len(script.held_out), len(script.divergences)
    assert went(tmp_path) == loop
    assert (len(script.trained), len(script.held_out), len(script.divergences)) == (trained, held_out, divergences)


@pytest.mark.parametrize("stage", [2, 4, 6, 7, 8, 9, 12, 17, 23, 25, 26])
def test_stopped_in_any_stage_it_goes_on_there(
    stage: int, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage is left after its work, before it is noted as done: what it wrote is there, and is not made again."""
    perform, seen = Run.perform, list[str]()

    def performing(run: Run, name: str, work: Callable[[Run], Counts], **how: Any) -> Counts:
        def killed(run: Run) -> Counts:
            counts = work(run)
            seen.append(f"{run.path.name} {name}")
            if len(seen) == stage:
                raise KeyboardInterrupt
            return counts

        return perform(run, name, killed, **how)

    monkeypatch.setattr(Run, "perform", performing)
    with pytest.raises(KeyboardInterrupt):
        went(tmp_path, iterate={"mix": True})
    loop = went(tmp_path, iterate={"mix": True})
    assert len(script.held_out) == 4 * 24
    assert [row.name for row in loop.rows] == ["base", "round-1", "round-2", "round-3"]
    assert loop.best == "round-3"
    assert Counter(each.get("round") for each in script.trained[-1][1]).keys() == {None, 1, 2}


def test_a_round_that_is_trained_anew_is_measured_anew(script: Script, tmp_path: Path) -> None:
    went(tmp_path, 2)
    before = script.divergences.count(model_of(tmp_path, 2))
    second = Run(tmp_path / "run/rounds/2")
    with second.lock():
        second.redo("train")
    script.gains = [6, -4, 0]
    loop = went(tmp_path, 2)
    assert loop.sentence.startswith("Stopped after round 2, as no gain")
    assert loop.rows[2].numbers["length"]["mean"] > loop.rows[1].numbers["length"]["mean"]
    assert script.divergences.count(model_of(tmp_path, 2)) == 2 * before


# --- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"evaluate": None}, "iterate: evaluate is null"),
        ({"train": None, "evaluate": None}, "iterate: train is null"),
        ({"generate": [{"type": "local", "model": {"name_or_path": "base"}}]}, "no sampler under generate draws from the model"),
        ({"generate": [{"type": "api", "provider": "vllm", "model": "m"}]}, "no sampler under generate draws from the model"),
        ({"iterate": {"rounds": 0}}, "iterate.rounds"),
        ({"iterate": {"reference": "base"}}, "iterate.reference"),
        ({"iterate": {"mixed": True}}, "did you mean 'mix'"),
    ],
)
def test_refused_recipes(
    changes: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**RECIPE, **changes}), encoding="utf-8")
    assert words in typed(monkeypatch, capsys, "iterate", str(tmp_path / "r.yaml"), "--run", str(tmp_path / "run")).mistake


def test_ready_made_pairs_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.csv").write_text("prompt,chosen,rejected\na,b,c\n", encoding="utf-8")
    recipe = {"model": {"name_or_path": "base"}, "prompts": {"source": "p.csv", "pairs": {}}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    said = typed(monkeypatch, capsys, "iterate", str(tmp_path / "r.yaml"), "--run", str(tmp_path / "run")).mistake
    assert "ready-made pairs (prompts.pairs, prompts.labels) cannot be drawn anew" in said


def test_rounds_that_were_made_in_another_way_are_not_gone_on_with(script: Script, tmp_path: Path) -> None:
    went(tmp_path, 1)
    for changes in ({"mix": True}, {"reference": "first"}):
        with pytest.raises(InputError, match=r"its rounds were made with iterate\.reference last, iterate\.mix false") as error:
            went(tmp_path, 2, iterate=changes)
        assert "\n" not in str(error.value)
    went(tmp_path, 2, iterate={"stop": [], "rounds": 7})


def test_a_changed_recipe_is_refused(script: Script, tmp_path: Path) -> None:
    went(tmp_path, 1)
    with pytest.raises(InputError, match=r"rounds/1: train was made with other settings.*train.beta \(was 0.1, is 0.2\)"):
        went(tmp_path, 1, train={"beta": 0.2})


def test_a_folder_with_a_run_of_its_own_is_left_alone(script: Script, tmp_path: Path) -> None:
    run = opened(tmp_path)
    put(run, (prompt("a"), ["a"]))
    performed(run, "prepare", "generate", "judge", "pair", "audit", "train")
    with run.lock(), pytest.raises(InputError, match="holds a run of its own already; name another folder"):
        iterate(run)


def test_from_the_shell(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened(tmp_path, variants={"strict": {"train.beta": 0.5}})  # the recipe itself is what goes round
    done = typed(monkeypatch, capsys, "iterate", "r.yaml", "--rounds", "2", "--run", "run")
    lines = done.out.splitlines()
    assert done.code == 0, done
    assert lines[-2].startswith("All 2 rounds are done. Round 2 is the one to take")
    assert lines[-1] == "run/report.html"
    assert [line for line in lines if line.startswith("round ")] == [f"round {at} of 2: run/rounds/{at}" for at in (1, 2)]
    again = typed(monkeypatch, capsys, "iterate", "r.yaml", "--rounds", "2", "--run", "run").out.splitlines()
    assert "round 1 of 2: run/rounds/1 (done before)" in again
    assert "name the recipe" in typed(monkeypatch, capsys, "iterate", "run").mistake
    assert typed(monkeypatch, capsys, "iterate", "r.yaml", "--rounds", "0").code == 2


# --- with models ---------------------------------------------------------------------------------------------------

REAL: dict[str, Any] = {
    "prompts": {"items": [f"Say {at}." for at in range(8)], "test_fraction": 0.3},
    "generate": {"type": "local", "n": 3, "max_new_tokens": 8},
    "judges": {"type": "rules", "checks": [{"check": "match", "pattern": "[a-m]"}, {"check": "length", "max": 7}]},
    "train": {"learning_rate": 1e-2, "logging_steps": 1, "bf16": False, "lora": {"r": 2}, "num_train_epochs": 4},
    "evaluate": {"n": 2, "max_new_tokens": 8},
    "iterate": {"rounds": 2, "reference": "first", "stop": [], "mix": True},
}


@pytest.fixture
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "device", lambda: torch.device("cpu"))


@pytest.mark.usefixtures("on_the_cpu")
def test_adapters_go_on_from_adapters(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second round trains an adapter on the first one's, pulled to the model below both, and all is told in one report."""
    quick = dict.fromkeys(("charts", "tables", "examples", "bytes"), 0)
    monkeypatch.setattr(
        stage, "report", lambda run, whole=stage.report: quick if run.path.parent.name == "rounds" else whole(run)
    )
    loop = went(tmp_path, model={"name_or_path": str(tiny)}, **REAL)
    first, second = (Run(tmp_path / f"run/rounds/{at}") for at in (1, 2))
    names = [
        json.loads((run.tuned / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
        for run in (first, second)
    ]
    assert names == [str(tiny), str(first.tuned.resolve())]
    margins = [next(read_jsonl(run.metrics_jsonl, Logged)).model_dump()["rewards/margins"] for run in (first, second)]
    assert margins[0] == pytest.approx(0, abs=1e-6), "the reference is where training starts"
    assert abs(margins[1]) > 1e-4, "the policy has left the reference before"
    assert [row.numbers["kl"]["mean"] > 0 for row in loop.rows[1:]] == [True, True]
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert loop.sentence in page
    for name in ("rounds_passing", "rounds_length", "rounds_kl", "rounds_over_last"):
        assert (tmp_path / f"run/figures/{name}.svg").is_file()
        assert f'id="{name}-' in page
    assert "round-2 against" in page or "round-1 against" in page


def pair(prompt: str, chosen: str, rejected: str) -> PreferencePair:
    said = [(Message(role="assistant", content=text),) for text in (chosen, rejected)]
    asked = (Message(role="user", content=prompt),)
    return PreferencePair(prompt=asked, chosen=said[0], rejected=said[1], margin=1.0, flip_probability=0.0, provenance={})


PAIRS = [pair(f"Idea {at}", f"Title {at}", "No") for at in range(6)]
TRAIN = {"learning_rate": 1e-3, "logging_steps": 1, "per_device_train_batch_size": 6, "bf16": False, "num_train_epochs": 1.0}


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_causal(tmp_path_factory.mktemp("models") / "other", seed=1, initializer_range=0.2)


def trained(folder: Path, tiny: Path, **changes: Any) -> Run:
    folder.mkdir(exist_ok=True)
    recipe = {"model": {"name_or_path": str(tiny)}, "prompts": {"items": ["a"]}, "generate": {"type": "local"}}
    recipe |= {"judges": {"type": "rules", "checks": [{"check": "length", "max": 9}]}, "train": {**TRAIN, **changes}}
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    run = Run.start(folder / "r.yaml", folder / "run")
    check(run, ["train"])
    for path in (run.pairs_jsonl, run.held_out_pairs_jsonl):
        write_jsonl(path, PAIRS)
    train(run)
    return run


def logged(run: Run, name: str) -> list[float]:
    return [value for line in read_jsonl(run.metrics_jsonl, Logged) if (value := line.model_dump().get(name)) is not None]


@pytest.mark.usefixtures("on_the_cpu")
def test_another_reference_is_the_one_that_is_pulled_to(tiny: Path, other: Path, tmp_path: Path) -> None:
    """The margins before the first step, and those of held-out pairs after the last, are beside that model."""
    run = trained(tmp_path, tiny, reference={"name_or_path": str(other)})
    tokenizer = models.load_tokenizer(Model(name_or_path=str(tiny)))
    asked = []
    for each in PAIRS:
        of = Prompt.of(each.prompt, "train")
        asked += [(of, Completion.of(of.id, side[0].content, sampler="s")) for side in (each.chosen, each.rejected)]

    def logps(folder: Path) -> list[float]:
        found = score(models.load_model(Model(name_or_path=str(folder)), torch.float32), tokenizer, asked, "logps", 512).logps
        return [float(tokens.sum()) for tokens in found if tokens is not None]

    before, after, beside = logps(tiny), logps(run.tuned), logps(other)
    gained = [0.1 * (one - two) for one, two in zip(before, beside, strict=True)]
    margin = sum(gained[::2]) / 6 - sum(gained[1::2]) / 6
    assert logged(run, "rewards/margins")[0] == pytest.approx(margin, abs=1e-4)
    assert abs(margin) > 1e-2
    held_out = [reward for line in read_jsonl(run.held_out_jsonl, HeldOut) for reward in (line.chosen, line.rejected)]
    assert held_out == pytest.approx([0.1 * (one - two) for one, two in zip(after, beside, strict=True)], abs=1e-4)


@pytest.mark.usefixtures("on_the_cpu")
def test_the_model_itself_as_its_reference_changes_nothing(tiny: Path, tmp_path: Path) -> None:
    own, plain = trained(tmp_path / "own", tiny, reference={"name_or_path": str(tiny)}), trained(tmp_path / "plain", tiny)
    assert logged(own, "loss") == logged(plain, "loss")
    assert logged(own, "rewards/margins")[0] == pytest.approx(0, abs=1e-6)


@pytest.mark.usefixtures("on_the_cpu")
def test_references_that_cannot_be(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train\.reference: does nothing for loss_type simpo; leave it out"):
        trained(tmp_path / "a", tiny, reference={"name_or_path": str(tiny)}, loss_type="simpo")
    with pytest.raises(InputError, match="model /nowhere: no such folder"):
        trained(tmp_path / "b", tiny, reference={"name_or_path": "/nowhere"})
    strange = make_causal(tmp_path / "strange")
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["wort"])
    tokenizer.save_pretrained(strange)
    with pytest.raises(InputError, match="its tokens are not those of the model that is trained"):
        trained(tmp_path / "c", tiny, reference={"name_or_path": str(strange)})
