"""variants: what is the same is done once, the rest beside one another, and all of them meet, wherever it was killed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from scripted import typed
from tiebreak.files import read_json, read_jsonl, write_jsonl, write_text
from tiebreak.loops import variants as module
from tiebreak.loops.variants import variants
from tiebreak.recipe import Model
from tiebreak.recipe_yaml import validate_recipe
from tiebreak.records import Completion, InputError
from tiebreak.reporting.repeated import read_loop
from tiebreak.run import Run
from tiebreak.samplers import local
from tiebreak.stages import report

pytestmark = pytest.mark.usefixtures("modules_are_no_garbage")


def rules(name: str, *checks: dict[str, Any]) -> dict[str, Any]:
    return {"type": "rules", "name": name, "checks": list(checks)}


SHORT, LONG = ({"check": "length", end: 12} for end in ("max", "min"))
EVEN = {"check": "match", "pattern": "^(..)*$"}
NOTHING = {"examples": 0, "bytes": 0}
BY_JUDGE = {"a": {"pair.judge": "short"}, "b": {"pair.judge": "long"}}


def data(tiny: Path, **changes: Any) -> dict[str, Any]:
    return {
        "model": {"name_or_path": str(tiny)},
        "prompts": {"items": [f"prompt {at}" for at in range(12)], "test_fraction": 0.25},
        "generate": [{"type": "local", "n": 4, "temperature": 1.0, "max_new_tokens": 16}],
        "judges": [rules("short", SHORT, EVEN), rules("long", LONG, EVEN)],
        "pair": {"judge": "short"},
        "train": {"learning_rate": 1e-3, "per_device_train_batch_size": 16, "bf16": False},
        "evaluate": {"judge": "short", "n": 2, "max_new_tokens": 16},
        "variants": BY_JUDGE,
        **changes,
    }


def start(folder: Path, tiny: Path, **changes: Any) -> Run:
    folder.mkdir(exist_ok=True)
    path = folder / "r.yaml"
    path.write_text(yaml.safe_dump(data(tiny, **changes)), encoding="utf-8")
    return Run.start(path, folder / "run")


def made(folder: Path, tiny: Path, **changes: Any) -> Run:
    run = start(folder, tiny, **changes)
    with run.lock():
        variants(run)
    return Run(run.path)


def of(run: Run, name: str) -> Run:
    return Run(run.path / "variants" / name)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the charts out: three reports take longer than all the rest."""
    monkeypatch.setattr(report, "report", lambda run: write_text(run.report_html, "") or {"charts": 0, "tables": 0} | NOTHING)


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return made(tmp_path_factory.mktemp("whole"), tiny)


# --- what it makes -------------------------------------------------------------------------------------------------


def test_what_variants_share_is_made_once(whole: Run) -> None:
    a, b = of(whole, "a"), of(whole, "b")
    taken = {stage: entry.get("taken_from") for stage, entry in b.manifest["stages"].items()}
    assert {stage for stage, place in taken.items() if place} == {"prepare", "generate", "judge"}
    assert set(filter(None, taken.values())) == {"../a"}
    assert not any(entry.get("taken_from") for entry in a.manifest["stages"].values())
    assert a.completions_jsonl.read_bytes() == b.completions_jsonl.read_bytes()
    assert a.pairs_jsonl.read_bytes() != b.pairs_jsonl.read_bytes()
    assert (a.recipe.labelling_judge, b.recipe.labelling_judge) == ("short", "long")
    for run in (a, b):
        assert run.report_html.exists()
        assert read_json(run.summary_json)["models"] == ["base", "tuned"]


def test_base_and_all_variants_meet(whole: Run) -> None:
    summary = read_json(whole.summary_json)
    assert summary["models"] == ["base", "a", "b"]
    met = [{row["model"], row["against"]} for row in summary["head_to_head"]]
    assert met == [{"a", "base"}, {"b", "base"}, {"a", "b"}]
    assert {row["model"] for row in summary["ratings"]} == {"base", "a", "b"}
    assert summary["headline"] == ["a", "base"]
    assert whole.report_html.exists()
    assert whole.stages == ("prepare", "evaluate", "report")


def test_the_meeting_takes_the_draws_and_verdicts_that_are_there(whole: Run) -> None:
    draws = {
        (draw.sampler, draw.prompt_id, draw.draw): draw.text for draw in read_jsonl(whole.eval_completions_jsonl, Completion)
    }
    assert len(draws) == 3 * 3 * 2
    for name in ("a", "b"):
        for draw in read_jsonl(of(whole, name).eval_completions_jsonl, Completion):
            assert draws[{"tuned": name}.get(draw.sampler, draw.sampler), draw.prompt_id, draw.draw] == draw.text


def test_loop_json_says_what_came_of_each(whole: Run) -> None:
    loop = read_loop(whole)
    assert loop is not None
    assert (loop.kind, [row.name for row in loop.rows]) == ("variants", ["base", "a", "b"])
    base, a, b = loop.rows
    assert (base.path, a.path, b.settings) == ("", "variants/a", {"pair.judge": "long"})
    assert a.pairs == of(whole, "a").counts("train")["pairs"]
    own = read_json(of(whole, "a").summary_json)
    assert a.numbers["win_rate"]["rate"] == own["win_rate"]["rate"]
    assert a.numbers["accuracy"]["n"] == own["held_out_pairs"]["n"]
    assert {"rating", "passing", "score", "length"} <= base.numbers.keys() & a.numbers.keys()
    page = whole.report_html.read_text(encoding="utf-8")
    assert loop.sentence in page


@pytest.mark.usefixtures("quick")
def test_a_second_time_does_nothing_but_the_report(whole: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "load", lambda model: pytest.fail(f"loads {model}"))
    before = {path: path.read_bytes() for path in whole.path.rglob("*.jsonl")}
    made(whole.path.parent, tiny)
    assert before == {path: path.read_bytes() for path in whole.path.rglob("*.jsonl")}


# --- models of several kinds ---------------------------------------------------------------------------------------


def pairs(folder: Path, n: int = 12) -> Path:
    path = folder / "pairs.jsonl"
    rows = ({"prompt": f"question {at}?", "chosen": f"yes, {at}", "rejected": f"no, not {at}"} for at in range(n))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


KINDS: dict[str, Any] = {"generate": None, "judges": None, "pair": {}, "evaluate": {"n": 1, "max_new_tokens": 8}}


def of_two_kinds(folder: Path, tiny: Path, tiny_t5: Path, **changes: Any) -> dict[str, Any]:
    prompts = {"source": str(pairs(folder)), "pairs": {}, "test_fraction": 0.25}
    models = {"llama": {"model.name_or_path": str(tiny)}, "t5": {"model.name_or_path": str(tiny_t5), "train.num_train_epochs": 2}}
    filled = {**KINDS, "prompts": prompts, "variants": models, **changes}
    return {key: value if value is not None else [] for key, value in filled.items()}


@pytest.mark.usefixtures("quick")
def test_models_of_two_kinds_meet_each_with_its_own_base(tmp_path: Path, tiny: Path, tiny_t5: Path) -> None:
    judge = {
        "judges": [rules("short", SHORT, EVEN)],
        "pair": {"judge": "given"},
        "evaluate": {**KINDS["evaluate"], "judge": "short"},
    }
    run = made(tmp_path, tiny, **of_two_kinds(tmp_path, tiny, tiny_t5, **judge))
    summary = read_json(run.summary_json)
    assert summary["models"] == ["llama", "t5", "llama-base", "t5-base"]
    assert summary["headline"] == ["t5", "llama"]
    assert len(summary["head_to_head"]) == 6
    for name, own in (("llama", "llama-base"), ("t5", "t5-base")):  # what a variant found of itself, the meeting finds too
        both = next(row for row in summary["head_to_head"] if {row["model"], row["against"]} == {name, own})
        alone = read_json(of(run, name).summary_json)["win_rate"]
        assert (both["rate"], both["n"]) == (alone["rate"], alone["n"])


def test_variants_of_one_model_share_its_base(tiny: Path) -> None:
    def of_model(name: str) -> Any:
        return SimpleNamespace(recipe=SimpleNamespace(model=Model(name_or_path=name)))

    recipe = of_model("m").recipe
    runs = {"a": of_model("m"), "b": of_model("n"), "c": of_model("m"), "d": of_model("n")}
    assert list(module._bases(recipe, runs)) == ["a-base", "b-base"]
    assert module._bases(recipe, {"a": of_model("m"), "c": of_model("m")}) == {"base": None}
    assert list(module._bases(recipe, {"b": of_model("n"), "d": of_model("n")})) == ["b-base"]


@pytest.mark.usefixtures("quick")
def test_without_a_judge_the_pairs_alone_are_measured(tmp_path: Path, tiny: Path, tiny_t5: Path) -> None:
    run = made(tmp_path, tiny, **of_two_kinds(tmp_path, tiny, tiny_t5))
    loop = read_loop(run)
    assert loop is not None
    assert loop.sentence == "The variants were not compared with each other."
    assert [row.numbers.keys() for row in loop.rows if row.path] == [{"accuracy"}, {"accuracy"}]
    assert run.report_html.exists()


# --- stopped, repeated, changed ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("variant", "stage"), [("a", "judge"), ("b", "train"), (None, "evaluate"), (None, "report")])
def test_stopped_anywhere_it_goes_on_there(
    whole: Run, variant: str | None, stage: str, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    perform = Run.perform

    def stops(self: Run, name: str, *arguments: Any, **keywords: Any) -> Any:
        if name == stage and self.path.name == (variant or "run"):
            raise KeyboardInterrupt
        return perform(self, name, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "perform", stops)
        with pytest.raises(KeyboardInterrupt):
            made(tmp_path, tiny)
    run = made(tmp_path, tiny)
    assert read_json(run.summary_json) == read_json(whole.summary_json)
    mine, its = read_loop(run), read_loop(whole)
    assert mine is not None
    assert its is not None
    assert [row.numbers for row in mine.rows] == [row.numbers for row in its.rows]


@pytest.mark.usefixtures("quick")
def test_a_stage_that_is_repeated_is_repeated_in_all(tmp_path: Path, tiny: Path) -> None:
    run = made(tmp_path, tiny)
    before = {name: of(run, name).manifest["stages"] for name in BY_JUDGE}
    again = start(tmp_path, tiny)
    with again.lock():
        variants(again, "train")
    for name, stages in before.items():
        now = of(run, name).manifest["stages"]
        changed = {stage for stage in stages if now[stage]["finished"] != stages[stage]["finished"]}
        assert changed == {"train", "evaluate", "report"}
    met = Run(run.path).manifest["met"]
    assert met == {name: of(run, name).manifest["stages"]["train"]["finished"] for name in BY_JUDGE}


@pytest.mark.usefixtures("quick")
def test_a_repeated_evaluation_draws_anew_in_the_meeting_too(tmp_path: Path, tiny: Path) -> None:
    run = made(tmp_path, tiny)
    drawn = list(read_jsonl(run.eval_completions_jsonl, Completion))
    write_jsonl(run.eval_completions_jsonl, [draw.model_copy(update={"text": "stale"}) for draw in drawn])
    again = start(tmp_path, tiny)
    with again.lock():
        variants(again, "evaluate")
    assert sorted(draw.text for draw in read_jsonl(run.eval_completions_jsonl, Completion)) == sorted(draw.text for draw in drawn)


@pytest.mark.usefixtures("quick")
def test_another_variant_joins_those_that_are_there(tmp_path: Path, tiny: Path) -> None:
    first = made(tmp_path, tiny, variants={"a": BY_JUDGE["a"]})
    trained = of(first, "a").manifest["stages"]["train"]["finished"]
    run = made(tmp_path, tiny)
    assert read_json(run.summary_json)["models"] == ["base", "a", "b"]
    assert of(run, "a").manifest["stages"]["train"]["finished"] == trained


@pytest.mark.usefixtures("quick")
def test_a_variant_without_a_pair_is_told_and_the_others_meet(tmp_path: Path, tiny: Path) -> None:
    judges = [rules("short", SHORT, EVEN), rules("long", {"check": "length", "min": 9999})]
    run = made(tmp_path, tiny, judges=judges)
    loop = read_loop(run)
    assert loop is not None
    assert loop.rows[-1].notes == ("no usable pair to train on",)
    assert read_json(run.summary_json)["models"] == ["base", "a"]


# --- mistakes ------------------------------------------------------------------------------------------------------

MISTAKES = [
    ({"tuned": {}}, "variants: 'tuned' is to name a folder and a model: up to 24 letters"),
    ({"a/b": {}}, "variants: 'a/b' is to name a folder"),
    ({"a": {"train.bta": 1}}, "variants.a: train.bta: unknown key; did you mean 'beta'?"),
    ({"a": {}, "b": {"train.beta": "much"}}, "variants.b: train.beta: input should be a valid number"),
    ({"a": {"prompts.filters.first": 3}}, "variants.a: prompts.filters.first is the same in all, so that they meet on the same"),
    ({"a": {"seed": 3}}, "variants.a: seed is the same in all"),
    ({"a": {"train": None, "evaluate": None}}, "variants.a: train is null, and variants are trained and compared"),
    ({"a": {"evaluate": None}}, "variants.a: evaluate is null"),
    ({"a": {}, "b": {"model.name_or_path": "./absent"}}, "model ./absent: no such folder"),
]


@pytest.mark.parametrize(("given", "line"), MISTAKES, ids=[line[:40] for _, line in MISTAKES])
def test_a_mistake_in_any_is_one_line_before_the_first(given: Any, line: str, tmp_path: Path, tiny: Path) -> None:
    run = start(tmp_path, tiny, variants=given)
    with pytest.raises(InputError) as caught, run.lock():
        variants(run)
    assert str(caught.value).startswith(line)
    assert not list(run.path.rglob("*.jsonl"))


def test_the_best_is_shown_to_beat_all_others() -> None:
    def met(model: str, against: str, low: float | None, high: float | None) -> dict[str, Any]:
        return {"model": model, "against": against, "low": low, "high": high}

    base = [met("a", "base", 0.6, 0.8), met("b", "base", 0.6, 0.8)]
    assert module._best({"head_to_head": [*base, met("a", "b", 0.2, 0.4)]}, ["a", "b"]) == "b"
    assert module._best({"head_to_head": [*base, met("a", "b", 0.51, 0.7)]}, ["a", "b"]) == "a"
    assert module._best({"head_to_head": [*base, met("a", "b", 0.4, 0.6)]}, ["a", "b"]) is None
    assert module._best({"head_to_head": [*base, met("a", "b", None, None)]}, ["a", "b"]) is None
    assert module._best({"head_to_head": [met("a", "base", 0.1, 0.2)]}, ["a"]) is None  # base is, and is no variant
    assert module._best({}, ["a", "b"]) is None


# --- the command ---------------------------------------------------------------------------------------------------


def test_run_makes_the_variants(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    start(tmp_path, tiny)
    monkeypatch.chdir(tmp_path)
    called = []
    monkeypatch.setattr(module, "variants", lambda run, redo: called.append((run.path, redo)))
    ended = typed(monkeypatch, capsys, "run", "r.yaml", "--redo", "train")
    assert (ended.code, ended.out) == (0, "runs/r/report.html\n")
    assert called == [(Path("runs/r"), "train")]


@pytest.mark.parametrize("command", ["prepare", "train", "report", "audit"])
def test_a_stage_alone_says_what_to_do(
    command: str, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    start(tmp_path, tiny)
    ended = typed(monkeypatch, capsys, command, str(tmp_path / "r.yaml"), "--run", str(tmp_path / "run"))
    assert ended.mistake == (
        f"{command}: this recipe has the variants a, b, each a run of its own: tiebreak run makes them, and "
        f"tiebreak {command} {tmp_path / 'run' / 'variants' / 'a'} then repeats a stage of one"
    )


@pytest.mark.usefixtures("quick")
def test_a_made_folder_is_a_run_like_any_other(whole: Run, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    ended = typed(monkeypatch, capsys, "run", str(whole.path))
    assert ended.code == 0
    assert "evaluate: " in ended.out
    assert typed(monkeypatch, capsys, "report", str(whole.path / "variants" / "b")).code == 0


def test_variants_are_keys_of_the_recipe(tiny: Path) -> None:
    assert validate_recipe({"name": "r", **data(tiny)}, "r").variants == BY_JUDGE
