"""tiebreak search: what is tried, on which prompts, by whom, what is shared, and what a kill costs."""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import yaml
from transformers import TrainerState, trainer

from processes import Started
from tiebreak import models
from tiebreak.cli import main
from tiebreak.files import read_json, read_jsonl, write_json
from tiebreak.loops import search as searching
from tiebreak.loops import study as studies
from tiebreak.loops.search import FailedError, reading, start
from tiebreak.metrics.length_control import FEWEST_PROMPTS
from tiebreak.recipe import Search
from tiebreak.recipe.loops import Range
from tiebreak.recipe_yaml import load_recipe, parse_yaml
from tiebreak.records import Completion, InputError, PreferencePair
from tiebreak.reporting.charts import Estimate
from tiebreak.reporting.repeated import Loop
from tiebreak.reporting.trials import of_trials
from tiebreak.run import Run
from tiebreak.samplers.local import Local
from tiebreak.training.trainer import PreferenceTrainer

pytestmark = pytest.mark.usefixtures("modules_are_no_garbage")

TRAIN = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "save_steps": 1, "logging_steps": 1, "bf16": False}
MARGIN = "held_out_pairs.margin.mean"
SPACE = {
    "train.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "train.beta": [0.1, 0.5],
    "train.per_device_train_batch_size": {"low": 4, "high": 8, "step": 4, "int": True},
}
LISTS = {"train.beta": [0.1, 0.2], "train.learning_rate": [1e-3, 2e-3]}
EIGHT = {"space": SPACE, "objective": MARGIN, "n_trials": 8}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "device", lambda: torch.device("cpu"))
    monkeypatch.setattr(searching, "POLL_SECONDS", 0.05)
    sizes = dict.fromkeys(("charts", "tables", "examples", "bytes"), 0)
    monkeypatch.setattr("tiebreak.stages.report.report", lambda run: sizes)  # it takes longer than all trials


def write(folder: Path, tiny: Path, search: Any, **changes: Any) -> Path:
    """Write a recipe of 24 ready-made pairs, which need no judge, and return its path."""
    rows = [
        {"prompt": f"What of {at}?", "chosen": f"Yes {at}{'a' * (at % 5)}", "rejected": f"No {'b' * (at % 7)}"}
        for at in range(24)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = {
        "model": {"name_or_path": str(tiny)},
        "prompts": {"source": "pairs.jsonl", "pairs": {}, "test_fraction": 0.25},
        "train": TRAIN,
        "evaluate": None,
        "search": search,
        **changes,
    }
    recipe = folder / "r.yaml"
    recipe.write_text(yaml.safe_dump(data), encoding="utf-8")
    return recipe


ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")


def search(recipe: Path, run: Path, trials: int | None = None) -> Loop:
    return searching.search(start(recipe, run), trials)


def trials_of(run: Path) -> list[Run]:
    return [Run(path) for path in sorted((run / "trials").iterdir(), key=lambda path: int(path.name))]


def ids(run: Run, *splits: str) -> set[str]:
    return {prompt.id for prompt in run.prompts() if prompt.split in splits}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[tuple[Path, Path, Loop]]:
    """A search of eight trials that nothing interrupted: its recipe, its folder, what came of it."""
    folder = tmp_path_factory.mktemp("search")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "device", lambda: torch.device("cpu"))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        recipe = write(folder, tiny, EIGHT)
        yield recipe, folder / "run", search(recipe, folder / "run")


# --- what a search is ----------------------------------------------------------------------------------------------


def test_the_best_trial_is_trained_on_all_training_prompts_and_tested_once(whole: tuple[Path, Path, Loop]) -> None:
    _, folder, loop = whole
    trials, winner = trials_of(folder), Run(folder / "winner")
    values = [reading(trial, MARGIN)[0] for trial in trials]
    assert len(set(values)) == 8
    assert loop.best == f"trial {1 + values.index(max(values))}"
    best = trials[values.index(max(values))]
    assert winner.recipe.train == best.recipe.train
    assert winner.recipe.prompts.held_out == "test"
    row = loop.rows[-1]
    assert (row.name, row.path, len(loop.rows)) == ("winner", "winner", 9)
    assert row.numbers[MARGIN]["mean"] == reading(winner, MARGIN)[0] != max(values)
    for trial in trials:
        assert not ids(trial, "train", "test") & ids(winner, "test")
        assert ids(trial, "train", "test") == ids(winner, "train")
        assert ids(trial, "test")


def test_what_is_tried_lies_in_the_space(whole: tuple[Path, Path, Loop]) -> None:
    _, folder, loop = whole
    tried = [Run(folder / row.path).recipe.train for row in loop.rows[:8]]
    assert all(each is not None for each in tried)
    assert all(1e-4 <= each.learning_rate <= 1e-2 for each in tried if each)
    assert {each.beta for each in tried if each} == {0.1, 0.5}
    assert {each.per_device_train_batch_size for each in tried if each} == {4, 8}
    assert loop.rows[0].settings["train.learning_rate"] == tried[0].learning_rate  # type: ignore[union-attr]


def test_the_sentence_says_which_number_is_honest(whole: tuple[Path, Path, Loop]) -> None:
    _, folder, loop = whole
    prompts = Run(folder / "trials/1").counts("prepare"), Run(folder / "winner").counts("prepare")
    assert f"is the best of 8, by {MARGIN} on {prompts[0]['test']} prompts set aside from training" in loop.sentence
    assert f"on {prompts[1]['test']} test prompts, which no trial saw: this is the number to quote." in loop.sentence
    assert loop.sentence.count("95\u00a0% interval") == 2
    assert loop.sentence in (folder / "report.html").read_text(encoding="utf-8").replace("&nbsp;", "\u00a0")


def test_the_report_has_a_table_and_charts_also_as_files(whole: tuple[Path, Path, Loop]) -> None:
    _, folder, loop = whole
    names = {path.name for path in (folder / "figures").iterdir()}
    keys = ("importance", "train_beta", "train_learning_rate", "train_per_device_train_batch_size")
    assert {f"trials_{key}.{kind}" for key in keys for kind in ("svg", "png")} | {"trials.csv"} <= names
    assert len((folder / "figures/trials.csv").read_text(encoding="utf-8").splitlines()) == 10
    assert sum(loop.settings["importance"].values()) == pytest.approx(1)
    assert max(loop.settings["importance"], key=loop.settings["importance"].get) == "train.learning_rate"


def test_models_of_trials_are_not_kept(whole: tuple[Path, Path, Loop]) -> None:
    _, folder, _ = whole
    assert not any(trial.tuned.exists() for trial in trials_of(folder))
    assert Run(folder / "winner").tuned.is_dir()


def test_again_it_does_nothing_twice(whole: tuple[Path, Path, Loop], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, folder, loop = whole
    before = {run.path: run.manifest["stages"] for run in (*trials_of(folder), Run(folder / "winner"))}
    assert search(recipe, folder) == loop
    assert {run.path: run.manifest["stages"] for run in (*trials_of(folder), Run(folder / "winner"))} == before


def test_other_settings_are_refused(whole: tuple[Path, Path, Loop]) -> None:
    recipe, folder, _ = whole
    changed = partial(start, recipe, folder, None)
    with pytest.raises(
        InputError, match=r"begun with other settings: search.objective \(was .*; start another one with --run DIR"
    ):
        searching.search(changed(("search.objective=held_out_pairs.accuracy.rate",)))
    with pytest.raises(InputError, match=r"begun with other settings: train.num_train_epochs \(was 2.*, is 3"):
        searching.search(changed(("train.num_train_epochs=3",)))
    assert len(searching.search(changed(("search.n_trials=4",))).rows) == 9


def test_lists_may_hold_lists_and_sections(tmp_path: Path, tiny: Path) -> None:
    space = {"train.loss_type": [["sigmoid"], ["sigmoid", "sft"]], "train.lora": [None, {"r": 2}], "train.beta": [0.1]}
    recipe = load_recipe(write(tmp_path, tiny, {"space": space, "objective": MARGIN}))
    assert recipe.search
    points = studies.grid(recipe) or []
    assert len(points) == 4
    given = [studies.given(recipe.search, point) for point in points]
    assert {len(each["train.loss_type"]) for each in given} == {1, 2}
    assert {None if each["train.lora"] is None else each["train.lora"]["r"] for each in given} == {None, 2}


def test_the_order_of_a_grid_does_not_depend_on_how_many_are_tried(tmp_path: Path, tiny: Path) -> None:
    orders = [
        studies.grid(load_recipe(write(tmp_path, tiny, {"space": LISTS, "objective": MARGIN, "n_trials": n, "seed": seed})))
        for n, seed in ((2, 0), (4, 0), (4, 1))
    ]
    assert orders[0] == orders[1] != orders[2]
    assert all(sorted(map(str, order or [])) == sorted(map(str, orders[0] or [])) for order in orders)


# --- mistakes ------------------------------------------------------------------------------------------------------

ACCURACY = {"objective": "held_out_pairs.accuracy.rate"}
MISTAKES = [
    ({"space": {"train.betta": [1]}, **ACCURACY}, {}, "search.space: train.betta: unknown key; did you mean 'beta'?"),
    ({"space": {"train.beta": [0.1, -1]}, **ACCURACY}, {}, "search.space: train.beta: input should be greater than 0"),
    ({"space": {"train.beta": {"low": 0, "high": 1}}, **ACCURACY}, {}, "search.space: train.beta: input should be greater"),
    (
        {"space": {"train.per_device_train_batch_size": {"low": 1, "high": 8}}, **ACCURACY}, {},
        "search.space: train.per_device_train_batch_size: input should be a valid integer",
    ),
    ({"space": {"generate.0.n": [1]}, **ACCURACY}, {}, "generate.0.n: generate is a list of 0"),
    ({"space": {"train.optim": ["adamw_torch", "adamw_tarch"]}, **ACCURACY}, {}, "train.optim: transformers has no 'adamw_tarch"),
    (
        {"space": {"train.loss_type": ["sigmoid", "kto"], "train.metric_for_best_model": ["rewards/accuracies"]}, **ACCURACY}, {},
        "search.space: train: metric_for_best_model rewards/accuracies needs pairs",
    ),
    ({"space": {"search.n_trials": [1]}, **ACCURACY}, {}, "search.space: search.n_trials is not for trials to change"),
    ({"space": {"prompts.held_out": ["test"]}, **ACCURACY}, {}, "search.space: prompts.held_out is not for trials to change"),
    ({"space": {"train.beta": [1]}, "objective": "held_out.x"}, {}, "no numbers under 'held_out'; did you mean 'held_out_p"),
    ({"space": {"train.beta": [1]}}, {}, "search.objective: no judge compares completions; take held_out_pairs.accuracy.rate"),
    ({"space": {"train.beta": [1]}, **ACCURACY}, {"train": None}, "search: the recipe trains nothing (train: null)"),
    (None, {}, "search: the recipe has no section search"),
    ({"space": {}}, {}, "search.space: dictionary should have at least 1 item"),
    ({"space": {"train.beta": []}}, {}, "search.space.train.beta.list: tuple should have at least 1 item"),
    ({"space": {"train.beta": 0.1}}, {}, "search.space.train.beta.list: input should be a valid array"),
    ({"space": {"train.beta": {"low": 1}}}, {}, "search.space.train.beta.range.high: missing"),
    ({"space": {"train.beta": {"low": 1, "high": 2, "lag": True}}}, {}, "search.space.train.beta.range.lag: unknown key"),
    ({"space": {"train.beta": {"low": 1, "high": 1}}}, {}, "search.space.train.beta.range: low 1 is not below high 1"),
    ({"space": {"train.beta": {"low": 0, "high": 1, "log": True}}}, {}, "log needs low above 0 and no step"),
    ({"space": {"train.beta": {"low": 1, "high": 2.5, "int": True}}}, {}, "int needs low, high and step without a fraction"),
    ({"space": {"train.beta": {"low": 0.1, "high": 0.4, "step": 0.2}}}, {}, "step does not lead from low to high"),
    ({"space": {"train.beta": [0.1, 0.1]}}, {}, "search: space: train.beta has a value twice"),
    ({"space": {"train.beta": {"low": 1, "high": 2}}, "sampler": "grid"}, {}, "train.beta is a range, of which there is no grid"),
    ({"space": {f"a{at}": list(range(10)) for at in range(5)}}, {}, "a grid of more than 10,000 combinations; take sampler: tpe"),
]  # fmt: skip


@pytest.mark.parametrize(("section", "changes", "line"), MISTAKES, ids=[line[:50] for *_, line in MISTAKES])
def test_a_mistake_is_one_line_before_anything_is_trained(
    section: Any, changes: dict[str, Any], line: str, tmp_path: Path, tiny: Path
) -> None:
    recipe = write(tmp_path, tiny, section, **changes)
    with pytest.raises(InputError) as caught:
        search(recipe, tmp_path / "run")
    assert line in str(caught.value)
    assert not (tmp_path / "run/trials").exists()
    assert not (tmp_path / "run/study.sqlite").exists()


def test_steps_may_lead_to_the_end_exactly(tmp_path: Path, tiny: Path) -> None:
    space = {"train.beta": {"low": 0.1, "high": 0.7, "step": 0.2}}
    assert load_recipe(write(tmp_path, tiny, {"space": space, **ACCURACY})).search


def test_the_door(tmp_path: Path, whole: tuple[Path, Path, Loop], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    recipe, folder, loop = whole
    monkeypatch.setattr(sys, "argv", ["tiebreak", "search", str(recipe), "--run", str(folder), "--trials", "8"])
    main_exits(0)
    assert capsys.readouterr().out.splitlines()[-2:] == [loop.sentence, str(folder / "report.html")]
    monkeypatch.setattr(sys, "argv", ["tiebreak", "search", str(folder)])
    main_exits(2)
    assert "is a run directory; name the recipe, and where its trials are" in capsys.readouterr().err


def main_exits(code: int) -> None:
    with pytest.raises(SystemExit) as left:
        main()
    assert (left.value.code or 0) == code


# --- numbers to search by ------------------------------------------------------------------------------------------


def evaluated(run: Run, summary: dict[str, Any], word: str = "better") -> Run:
    write_json(run.summary_json, {"verdict": {"word": word, "sentence": "So it is."}, **summary})
    return run


def test_a_number_is_read_by_its_path(tmp_path: Path, tiny: Path) -> None:
    run = start(write(tmp_path, tiny, None), tmp_path / "run")
    wins = {"rate": 0.6, "low": 0.5, "high": 0.7, "n": 9, "length_controlled": None}
    evaluated(run, {"win_rate": wins, "checks": [{"name": "a", "rate": 1.0}], "prompts": 3, "odd": float("nan"), "on": True})
    assert reading(run, "win_rate.rate") == (0.6, wins)
    assert reading(run, "win_rate.low") == (0.5, {"mean": 0.5})
    assert reading(run, "checks.0.rate")[0] == 1.0
    assert reading(run, "prompts") == (3.0, {"mean": 3})
    for path in ("win_rate.length_controlled.rate", "odd", "on", "win_rate"):
        with pytest.raises(FailedError, match=f"^{path} was not measured$"):
            reading(run, path)
    for path, near in (("win_rate.rat", "; did you mean 'win_rate.rate'?"), ("checks.1.rate", "; did you mean 'checks.0.rate'?")):
        with pytest.raises(InputError, match=f"has no {path}{near}".replace("?", r"\?")):
            reading(run, path)
    evaluated(run, {}, "not compared")
    with pytest.raises(FailedError, match=r"win_rate\.rate was not measured: So it is\."):
        reading(run, "win_rate.rate")


def test_a_wrong_path_stops_the_search_and_may_be_mended(tmp_path: Path, tiny: Path) -> None:
    recipe = write(tmp_path, tiny, {"space": {"train.beta": [0.1]}, "objective": "held_out_pairs.accuracy.rat"})
    with pytest.raises(
        InputError, match=r"has no held_out_pairs\.accuracy\.rat; did you mean 'held_out_pairs\.accuracy\.rate'\?"
    ):
        search(recipe, tmp_path / "run")
    trained = Run(tmp_path / "run/trials/1").manifest["stages"]["train"]
    loop = search(write(tmp_path, tiny, {"space": {"train.beta": [0.1]}, **ACCURACY}), tmp_path / "run")
    assert loop.best == "trial 1"
    assert Run(tmp_path / "run/trials/1").manifest["stages"]["train"] == trained


def test_every_part_of_a_summary_that_has_numbers_is_known(whole: tuple[Path, Path, Loop]) -> None:
    summary = read_json(Run(whole[1] / "winner").summary_json)
    assert {path.partition(".")[0] for path in searching._paths(summary)} <= set(studies.MEASURED)


# --- trials that come to nothing -----------------------------------------------------------------------------------


def test_pruned_and_failed_trials_are_counted(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optuna.pruners.MedianPruner", partial(optuna.pruners.MedianPruner, n_startup_trials=1))
    rates = [1e-2, 1e-12, 1e38]
    section = {"space": {"train.learning_rate": rates}, "objective": MARGIN, "pruning": "median", "prune_on": "loss"}

    def order(seed: int) -> list[float]:
        recipe = load_recipe(write(tmp_path, tiny, section | {"seed": seed}))
        return [point["train.learning_rate"] for point in studies.grid(recipe) or []]

    seed = next(seed for seed in range(99) if order(seed) == rates)
    train = {**TRAIN, "max_grad_norm": 1e30, "optim": "sgd"}
    loop = search(write(tmp_path, tiny, section | {"seed": seed}, train=train), tmp_path / "run")
    first, pruned, failed, winner = loop.rows
    assert (first.notes, pruned.numbers, failed.numbers) == ((), {}, {})
    assert pruned.notes[0].startswith("pruned at ")
    assert 20 <= int(pruned.notes[0].split()[2].rstrip("%")) < 100
    assert failed.notes[0].startswith("failed: step ")
    assert "is not a number" in failed.notes[0]
    assert "Trial 1 is the best of 3, 1 of them pruned, 1 of them failed, by" in loop.sentence
    assert winner.settings == {"train.learning_rate": 1e-2}
    runs = trials_of(tmp_path / "run")
    assert [run.state("train") for run in runs] == ["done", "stopped", "failed"]
    assert not list(runs[1].train.glob("checkpoint-*"))
    # It is not asked to say it again.
    assert search(write(tmp_path, tiny, section | {"seed": seed}, train=train), tmp_path / "run") == loop


def test_where_every_trial_fails_it_says_why(tmp_path: Path, tiny: Path) -> None:
    recipe = write(
        tmp_path, tiny, {"space": {"train.learning_rate": [1e38]}, "objective": MARGIN},
        train={**TRAIN, "max_grad_norm": 1e30, "optim": "sgd"},
    )  # fmt: skip
    with pytest.raises(InputError, match=r"none of 1 trials came to a number; trial 1 failed: step .* is not a number"):
        search(recipe, tmp_path / "run")


def test_the_lowest_may_be_the_best(tmp_path: Path, tiny: Path) -> None:
    section = {"space": {"train.learning_rate": [1e-3, 1e-2]}, "objective": MARGIN, "direction": "minimise"}
    loop = search(write(tmp_path, tiny, section), tmp_path / "run")
    assert loop.rows[-1].settings == {"train.learning_rate": 1e-3}


def test_of_equals_the_first_is_taken_and_the_others_are_counted(tmp_path: Path, tiny: Path) -> None:
    loop = search(write(tmp_path, tiny, {"space": {"train.logging_steps": [1, 2]}, "objective": MARGIN}), tmp_path / "run")
    assert loop.best == "trial 1"
    assert "Trial 1 is the best of 2, 1 of them as good, by" in loop.sentence
    assert loop.settings["importance"] == {}


@pytest.mark.parametrize(("direction", "on", "told"), [
    ("maximise", "rewards/accuracies", 0.75), ("minimise", "rewards/accuracies", -0.75),
    ("maximise", "loss", -0.5), ("minimise", "loss", 0.5),
])  # fmt: skip
def test_what_is_pruned_on_is_better_as_the_objective_is(
    direction: Any, on: Any, told: float, tmp_path: Path, tiny: Path
) -> None:
    section = {"space": {"train.beta": [1]}, "objective": MARGIN, "direction": direction, "pruning": "hyperband", "prune_on": on}
    recipe = load_recipe(write(tmp_path, tiny, section))
    assert recipe.search
    study = optuna.create_study(direction="maximize" if direction == "maximise" else "minimize")
    trial, before = study.ask(), list(trainer.DEFAULT_CALLBACKS)
    with studies.watched(trial, recipe.search):
        (watch,) = [each for each in trainer.DEFAULT_CALLBACKS if each not in before]
        state = TrainerState(global_step=7, max_steps=20)
        watch.on_evaluate(None, state, None, metrics={"eval_loss": 0.5, "eval_rewards/accuracies": 0.75})
    assert study.trials[0].intermediate_values == {3: told}
    assert before == trainer.DEFAULT_CALLBACKS


@pytest.mark.parametrize("pruning", ["none", "median", "hyperband"])
def test_trials_that_do_worse_are_left(pruning: str, tmp_path: Path, tiny: Path) -> None:
    section = {"space": {"train.beta": {"low": 0.1, "high": 1}}, "objective": MARGIN, "pruning": pruning}
    run = start(write(tmp_path, tiny, section), tmp_path / "run")
    study, left = studies.opened(run), []
    for number in range(12):
        studies.propose(study, run.recipe, number)
        trial = optuna.trial.Trial(study, study.get_trials()[number]._trial_id)
        try:
            with studies.watched(trial, studies.section(run.recipe)):
                for step in range(1, 11) if pruning != "none" else ():
                    metrics = {"eval_rewards/accuracies": (12 - number) / 12}
                    trainer.DEFAULT_CALLBACKS[-1].on_evaluate(
                        None, TrainerState(global_step=step, max_steps=10), None, metrics=metrics
                    )
            study.tell(trial, 1.0)
        except studies.Pruned as pruned:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            left.append((number, str(pruned)))
    if pruning == "none":
        assert left == []
    elif pruning == "median":  # from the sixth on, and after a fifth of the training
        assert left == [(number, "20%") for number in range(5, 12)]
    else:
        assert 4 <= len(left) < 11
        assert 0 not in dict(left)


def test_a_longer_search_may_find_another_winner_which_is_said(tmp_path: Path, tiny: Path) -> None:
    section = {"space": {"train.learning_rate": [1e-2, 1e-4]}, "objective": MARGIN}
    seed = next(
        seed for seed in range(99)
        if (studies.grid(load_recipe(write(tmp_path, tiny, section | {"seed": seed}))) or [{}])[0]["train.learning_rate"] == 1e-4
    )  # fmt: skip
    recipe = write(tmp_path, tiny, section | {"seed": seed})
    assert search(recipe, tmp_path / "run", 1).best == "trial 1"
    loop = search(recipe, tmp_path / "run")
    assert (loop.best, loop.rows[-1].path) == ("trial 2", "winner-2")
    assert "the test prompts have been looked at 2 times, once for each winner so far." in loop.sentence
    assert search(recipe, tmp_path / "run") == loop


def test_prompts_that_changed_in_between_are_refused(tmp_path: Path, tiny: Path) -> None:
    recipe = write(tmp_path, tiny, {"space": {"train.beta": [0.1, 0.2]}, "objective": MARGIN})
    search(recipe, tmp_path / "run", 1)
    lines = (tmp_path / "pairs.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "pairs.jsonl").write_text("".join(lines[:-6]), encoding="utf-8")
    with pytest.raises(InputError, match=r"trials/2: has other prompts than .*trials/1, as their source has changed since"):
        search(recipe, tmp_path / "run")


# --- what trials share ---------------------------------------------------------------------------------------------


def completions(pairs: list[PreferencePair]) -> set[Any]:
    return {(pair.prompt, side) for pair in pairs for side in (pair.chosen, pair.rejected)}


def test_a_search_over_beta_runs_the_reference_once(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[Any]] = []
    own = PreferenceTrainer._token_logps

    def counted(self: Any, wanted: Any, model: Any, label: str, **how: Any) -> Any:
        if label == "reference":
            asked.append(list(wanted))
        return own(self, wanted, model, label, **how)

    monkeypatch.setattr(PreferenceTrainer, "_token_logps", counted)
    search(write(tmp_path, tiny, {"space": {"train.beta": [0.05, 0.1, 0.5]}, "objective": MARGIN}), tmp_path / "run")
    runs = trials_of(tmp_path / "run")
    assert len({reading(run, MARGIN)[0] for run in runs}) == 3
    # Once for all trials; then the winner, with completions of the test prompts that no trial has seen.
    winner = Run(tmp_path / "run/winner")
    in_trials = completions(runs[0].pairs(runs[0].pairs_jsonl) + runs[0].pairs(runs[0].held_out_pairs_jsonl))
    of_test = completions(winner.pairs(winner.held_out_pairs_jsonl))
    assert [len(each) for each in asked] == [len(in_trials), len(of_test)]
    assert len({each for some in asked for each in some}) == len(in_trials | of_test)


DRAWN = {
    "prompts": {"items": [f"say {at}" for at in range(16)], "test_fraction": 0.25},
    "generate": {"type": "local", "n": 3, "max_new_tokens": 6},
    "judges": {"type": "rules", "checks": [{"check": "match", "pattern": "[a-m]"}, {"check": "match", "pattern": "[A-Z]"}]},
    "evaluate": {"n": 2, "max_new_tokens": 6},
}


def test_completions_verdicts_and_the_bases_answers_are_made_once(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: Counter[tuple[str, str]] = Counter()
    own = Local.sample

    def counted(self: Any, prompts: Any, have: Any = frozenset()) -> Iterator[Completion]:
        for completion in own(self, prompts, have):
            drawn[self.label, Path(self.section.name_or_path if hasattr(self, "section") else "").name] += 1
            yield completion

    monkeypatch.setattr(Local, "sample", counted)
    section = {"space": {"train.learning_rate": [1e-3, 1e-2]}, "objective": "win_rate.rate"}
    loop = search(write(tmp_path, tiny, section, **DRAWN), tmp_path / "run")
    runs, winner = trials_of(tmp_path / "run"), Run(tmp_path / "run/winner")
    entries = runs[1].manifest["stages"]
    assert {stage: entry.get("taken_from") for stage, entry in entries.items()} == {
        **dict.fromkeys(("prepare", "generate", "judge", "pair", "audit"), "../1"), "train": None, "evaluate": None,
    }  # fmt: skip
    generated = sum(count for (label, _), count in drawn.items() if label != "held-out")
    assert generated == 16 * 3  # the winner drew for the test prompts only
    held_out, tested = (run.counts("prepare")["test"] * 2 for run in (runs[0], winner))
    # Of two trials, the base answers in one; the winner's own meeting is the parent's too.
    assert sum(drawn.values()) - generated == 3 * held_out + 2 * tested
    answers = [
        {
            (each.prompt_id, each.draw, each.text)
            for each in read_jsonl(run.eval_completions_jsonl, Completion)
            if each.sampler == "base"
        }
        for run in runs
    ]
    assert answers[0] == answers[1]
    summary = read_json(Run(tmp_path / "run").summary_json)
    assert (summary["models"], summary["prompts"]) == (["base", "winner"], winner.counts("prepare")["test"])
    assert loop.rows[-1].numbers["win_rate"]["rate"] == summary["win_rate"]["rate"]
    assert {path.partition(".")[0] for path in searching._paths(read_json(winner.summary_json))} - {
        "prompts", "answers", "completions_per_prompt", "judge_labelled",  # counts
    } <= set(studies.MEASURED)  # fmt: skip


# --- kills, and several at once ------------------------------------------------------------------------------------


def begin(recipe: Path, run: Path) -> Started:
    return Started(run.with_name("said"), "search", str(recipe), "--run", str(run))


def test_killed_twice_it_finds_the_same_winner(whole: tuple[Path, Path, Loop], tmp_path: Path) -> None:
    recipe, _, loop = whole
    run = tmp_path / "run"
    for number, moment in ((3, "train/checkpoint-2/complete"), (6, "eval/pairs.jsonl")):
        process = begin(recipe, run)
        process.wait((run / f"trials/{number}" / moment).exists)
        assert process.kill(), process.said
    assert not (run / "trials/7").exists()
    again = search(recipe, run)
    assert again.best == loop.best
    assert [row.settings for row in again.rows] == [row.settings for row in loop.rows]
    for own, whole_row in zip(again.rows, loop.rows, strict=True):
        assert own.numbers[MARGIN]["mean"] == pytest.approx(whole_row.numbers[MARGIN]["mean"], rel=1e-3), own.name
    assert Run(run / "trials/3").counts("train")["resumed_at"] >= 2


def test_a_trial_whose_process_was_killed_before_it_had_a_folder(tmp_path: Path, tiny: Path) -> None:
    recipe = write(tmp_path, tiny, {"space": {"train.beta": [0.1]}, "objective": MARGIN})
    run = start(recipe, tmp_path / "run")
    studies.propose(studies.opened(run), run.recipe, 0)
    assert len(searching.search(run).rows) == 2


def test_two_processes_do_each_trial_once(tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write(tmp_path, tiny, {"space": LISTS, "objective": MARGIN})
    run = tmp_path / "run"
    process = begin(recipe, run)
    process.wait((run / "trials/1/train/metrics.jsonl").exists)
    loop = search(recipe, run)
    said = process.finish()
    done = [[line for line in text.splitlines() if " of 4: " in line] for text in (said, capsys.readouterr().out)]
    assert all(done), done
    assert sorted(line.split()[1] for lines in done for line in lines) == ["1", "2", "3", "4"]
    assert all(row.numbers for row in loop.rows)
    assert loop.sentence in said


def test_a_trial_that_another_process_holds_is_waited_for(tmp_path: Path, tiny: Path, capsys: Any, monkeypatch: Any) -> None:
    recipe = write(tmp_path, tiny, {"space": {"train.beta": [0.1]}, "objective": MARGIN})
    run = start(recipe, tmp_path / "run")
    studies.propose(studies.opened(run), run.recipe, 0)
    held = start(recipe, tmp_path / "run/trials/1").lock()
    held.__enter__()
    monkeypatch.setattr(searching.time, "sleep", lambda _: held.__exit__(None, None, None))
    searching.search(run)
    assert "no trial is left to begin; waits for trial 1 of other processes" in capsys.readouterr().out


# --- charts --------------------------------------------------------------------------------------------------------


def test_a_chart_for_every_key_and_one_of_what_mattered() -> None:
    found = [Estimate(0.5 + at / 40, (0.3, 0.9), 30, rate=True) for at in range(8)]
    settings = [{"a.b": 10.0**-at, "c": at % 2 == 0, "d": at, "e": f"<{'x' * at}>"} for at in range(8)]
    charts = list(of_trials("Win rate", list(zip(settings, found, strict=True)), {"a.b": 0.7, "c": 0.3}, half=True))
    assert [chart.drawing.name for chart in charts] == ["trials_importance", "trials_a_b", "trials_c", "trials_d", "trials_e"]
    assert all("n\u00a0=\u00a08 trials" in chart.caption for chart in charts)
    scales = [chart.drawing.figure.axes[0].get_xscale() for chart in charts]
    assert scales == ["linear", "log", "linear", "linear", "linear"]
    ticks = [[label.get_text() for label in chart.drawing.figure.axes[0].get_xticklabels()] for chart in charts]
    assert ticks[2] == ["True", "False"]
    assert all(float(label.replace("−", "-")).is_integer() for label in ticks[3])
    assert all(chart.drawing.svg(chart.caption).count("<svg") == 1 for chart in charts)


def test_trials_of_one_value_stand_beside_each_other() -> None:
    points = [({"k": 0.1}, Estimate(0.5, None, 9)), ({"k": 0.1}, Estimate(0.5, None, 9)), ({"k": 0.2}, Estimate(0.4, None, 9))]
    (chart,) = of_trials("Margin", points, {}, half=False)
    axes = chart.drawing.figure.axes[0]
    dots = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"]
    assert len(set(dots)) == 3
    assert [round(float(dot)) for dot in dots] == [0, 0, 1]


# --- the page ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", PAGE, re.S))
def test_the_pages_recipes_can_be_searched(block: str, tmp_path: Path, tiny: Path) -> None:
    section = parse_yaml(block, "docs")["search"]
    studies.check(start(write(tmp_path, tiny, section, **DRAWN), tmp_path / "run"))


def test_the_page_names_paths_that_summaries_have(tmp_path: Path, tiny: Path) -> None:
    paths = re.findall(r"^\| `([a-z_.]+)` \|", PAGE, re.M)
    assert len(paths) == 6
    assert {path.partition(".")[0] for path in paths} <= set(studies.MEASURED)
    assert f"Takes {FEWEST_PROMPTS} held-out prompts" in PAGE


def test_the_page_names_every_key(tmp_path: Path, tiny: Path) -> None:
    for name in {*Search.model_fields, *Range.model_fields} - {"seed"}:
        assert re.search(rf"\b{name}\b", PAGE), name
