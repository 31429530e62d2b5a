"""Children of a run: made from its recipe, never twice, and what one has drawn or been told is lent to the others."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripted import LLM, RULES, Draws, Says, completion, put_in, shorter
from tiebreak.files import read_jsonl, write_json, write_jsonl
from tiebreak.loops.children import NOTHING, changed, child, claim, cost, lend, meet, perform_all, tuned
from tiebreak.recipe import Model, Price
from tiebreak.records import Completion, InputError
from tiebreak.run import Counts, Run
from tiebreak.samplers.ledger import Call, Ledger

RECIPE: dict[str, Any] = {
    "name": "whole",
    "model": {"name_or_path": "base"},
    "prompts": {"source": "ideas.csv"},
    "generate": [{"type": "local", "name": "warm", "n": 3}],
    "judges": [RULES],
    "evaluate": {"n": 2},
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ideas.csv").write_text("idea\n" + "".join(f"{at}\n" for at in range(20)), encoding="utf-8")
    model(tmp_path / "base")


def model(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        (folder / name).touch()
    return folder


def opened(folder: Path, **changes: Any) -> Run:
    (folder / "r.yaml").write_text(yaml.safe_dump({**RECIPE, **changes}), encoding="utf-8")
    return Run.start(folder / "r.yaml", folder / "run")


def made(parent: Run, where: str = "rounds/1", **keys: Any) -> Run:
    return child(parent, where, parent.recipe, {key.replace("__", "."): value for key, value in keys.items()})


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Put models where some would be sampled and trained; return a list of the models that held-out draws came from."""
    asked: list[str] = []

    class Held(Draws):
        def __init__(self, label: str, model: Model, sampling: Any, seed: int) -> None:
            self.model = str(Path(model.name_or_path).resolve())
            mark = str(len(self.model))
            super().__init__(lambda text, at: f"{mark} {at} {text[-1:]}"[: 3 + at], label, sampling.n)

        def sample(self, prompts: Any, have: frozenset[tuple[str, int]] = frozenset()) -> Iterator[Completion]:
            for each in super().sample(prompts, have):
                asked.append(self.model)
                yield each

    def train(run: Run) -> Counts:
        model(run.tuned)
        return {"pairs": 1, "prompts": 1, "steps": 1, "loss": 0.5}

    monkeypatch.setattr("tiebreak.stages.generate.build_sampler", lambda section, *_: Draws(lambda text, at: "x" * (at + 4)))
    monkeypatch.setattr("tiebreak.stages.evaluate.Local", Held)
    monkeypatch.setattr("tiebreak.stages.evaluate.of_models", lambda *_: {})
    monkeypatch.setattr("tiebreak.stages.train.train", train)
    monkeypatch.setattr("tiebreak.stages.audit.audit", lambda run: dict.fromkeys(("errors", "warnings", "notes", "pairs"), 0))
    counts = dict.fromkeys(("charts", "tables", "examples", "bytes"), 0)
    monkeypatch.setattr("tiebreak.stages.report.report", lambda run: counts)
    return asked


# --- the recipe ----------------------------------------------------------------------------------------------------


def test_keys_are_changed_in_a_copy(tmp_path: Path) -> None:
    recipe = opened(tmp_path).recipe
    new = changed(recipe, {"train.beta": 0.3, "train.lora.r": 4, "generate.0.n": 7, "pretrain": None, "train.loss_type": ["ipo"]})
    assert new.train is not None
    assert new.train.lora is not None
    assert (new.train.beta, new.train.lora.r, new.generate[0].n, new.train.loss_type) == (0.3, 4, 7, ("ipo",))
    assert recipe.train is not None
    assert (recipe.train.beta, recipe.train.lora, recipe.generate[0].n) == (0.1, None, 3)
    assert changed(recipe, {}) == recipe


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"train.bta": 0.3}, r"^trial 3: train\.bta: unknown key; did you mean 'beta'\?$"),
        ({"train.beta": "much"}, r"^trial 3: train\.beta: "),
        ({"train.beta": -1}, r"^trial 3: train\.beta: "),
        ({"generate.3.n": 2}, r"^generate\.3\.n: generate is a list of 1; there is no '3' in it$"),
        ({"train.beta": float("nan")}, "^trial 3: "),
        ({"train": None}, r"^trial 3: evaluate\.models: tuned is none without a section train$"),
    ],
)
def test_a_mistake_in_a_key_is_one_line(keys: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words) as error:
        changed(opened(tmp_path).recipe, keys, "trial 3")
    assert "\n" not in str(error.value)


# --- one child -----------------------------------------------------------------------------------------------------


def test_a_child_is_a_run_of_its_own(tmp_path: Path) -> None:
    parent = opened(tmp_path, variants={"a": {"train.beta": 1.0}})
    run = made(parent, "trials/7", train__beta=0.3)
    again = Run(tmp_path / "run/trials/7")
    assert again.recipe == run.recipe
    assert run.recipe.train is not None
    assert (run.recipe.name, run.recipe.train.beta, run.recipe.variants) == ("whole-trials-7", 0.3, {})
    assert again.manifest["overrides"] == ["train.beta=0.3"], "the report's command makes it again"
    assert run.resolve("ideas.csv") == tmp_path / "ideas.csv"
    assert again.resolve("ideas.csv") == tmp_path / "ideas.csv"
    assert run.stages == parent.stages


def test_parent_and_child_hold_the_same_prompts_out(tmp_path: Path, drawn: list[str]) -> None:
    parent = opened(tmp_path)
    run = made(parent)
    perform_all(run, "round 1")
    meet(parent, parent.recipe, {"base": None, "one": run})
    assert parent.prompts() == run.prompts()
    assert {prompt.split for prompt in parent.prompts()} == {"train", "test"}
    assert parent.recipe.test_fraction == run.recipe.test_fraction == 0.1, "a run that only evaluates would hold out all of them"
    assert parent.manifest["stages"]["prepare"]["taken_from"] == "rounds/1"
    assert made(parent, "rounds/2").manifest["stages"]["prepare"]["taken_from"] == "../.."


def test_a_child_that_is_there_is_opened(tmp_path: Path, drawn: list[str]) -> None:
    parent = opened(tmp_path)
    perform_all(made(parent), "round 1")
    run = made(parent)
    assert run.state("train") == "done"
    changed_child = made(parent, train__beta=0.7)
    with pytest.raises(InputError, match=r"rounds/1: train was made with other settings.*train\.beta \(was 0\.1, is 0\.7\)"):
        perform_all(changed_child, "round 1")


def test_accepted_canary_failures_are_the_childrens_too(tmp_path: Path) -> None:
    parent = opened(tmp_path)
    assert not made(parent).accepts_canary_failures
    parent.accept_canary_failures()
    assert made(parent, "rounds/2").accepts_canary_failures
    assert Run(tmp_path / "run/rounds/2").accepts_canary_failures


def test_a_start_that_was_killed_begins_again(tmp_path: Path) -> None:
    parent = opened(tmp_path)
    write_json(parent.path / "rounds/1/manifest.json", {"torn": True})
    assert made(parent).state("prepare") == "owed"


def test_all_stages_are_performed_once(tmp_path: Path, drawn: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    parent, then = opened(tmp_path), list[str]()
    hooks: dict[str, Callable[[Run], None]] = {"pair": lambda run: then.append(run.state("audit"))}
    perform_all(made(parent), "round 1", "pair", hooks)
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == ["round 1", "prepare", "generate", "judge", "pair"]
    assert said[0] == f"round 1: {tmp_path / 'run/rounds/1'}"
    perform_all(run := made(parent), "round 1", then=hooks)
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == ["round 1", "audit", "train", "evaluate", "report"]
    assert then == ["owed", "owed"], "after its stage, and before the next"
    perform_all(run, "round 1", then=hooks)
    assert capsys.readouterr().out == f"round 1: {tmp_path / 'run/rounds/1'} (done before)\n"
    assert then[2:] == ["done"]


def test_a_child_that_another_process_works_on_is_left_alone(tmp_path: Path) -> None:
    run = made(opened(tmp_path))
    with run.lock(), pytest.raises(InputError, match="another tiebreak process"):
        perform_all(Run(run.path), "round 1")


def test_what_a_child_needs_is_checked_first(tmp_path: Path, drawn: list[str]) -> None:
    run = made(opened(tmp_path), model={"name_or_path": "/nowhere"})
    with pytest.raises(InputError, match="model /nowhere: no such folder"):
        perform_all(run, "round 1")
    assert run.state("prepare") == "owed"


@pytest.mark.parametrize(
    ("left", "kind", "words"), [("trials", "rounds", "holds trials"), ("rounds", "variants", "holds rounds")]
)
def test_one_folder_is_for_one_kind_of_loop(left: str, kind: str, words: str, tmp_path: Path) -> None:
    parent = opened(tmp_path)
    made(parent, f"{left}/1")
    claim(parent, left)
    with pytest.raises(InputError, match=words):
        claim(parent, kind)


# --- money ---------------------------------------------------------------------------------------------------------


def spend(run: Run, part: str, cents: int) -> None:
    ledger = Ledger(run.calls_sqlite, part, Price(input=10_000, output=0))
    ledger.reserve(Call(cents, 0))
    ledger.settle(Call(cents, 0), cents, 0)
    ledger.close()


def test_a_budget_holds_for_all_children_together(tmp_path: Path) -> None:
    server = {"type": "api", "name": "out", "provider": "vllm", "model": "m", "budget_usd": 3.0}
    judges = [{**LLM, "budget_usd": 2.0}, {**LLM, "name": "free"}]
    parent = opened(tmp_path, generate=[*RECIPE["generate"], server], judges=judges, pair={"judge": "llm"})
    first, second = made(parent), made(parent, "rounds/2")
    spend(first, "judges.llm", 50)
    spend(first, "generate.out", 100)
    spend(second, "judges.llm", 25)
    spend(parent, "judges.llm", 10)

    def budgets(run: Run) -> list[float | None]:
        return [getattr(part, "budget_usd", None) for part in (*run.recipe.generate, *run.recipe.judges)]

    assert budgets(made(parent, "rounds/3")) == pytest.approx([None, 2.0, 1.15, None])
    assert budgets(made(parent)) == pytest.approx([None, 3.0, 1.65, None]), "what it has spent itself is in its own account"
    spend(second, "judges.llm", 500)
    assert budgets(made(parent, "rounds/3"))[2] == NOTHING
    assert cost(first, second) == pytest.approx(6.75)
    unknown = Ledger(second.calls_sqlite, "judges.free")
    unknown.reserve(Call(1, 1))
    unknown.close()
    assert cost(first, second) is None


# --- the meeting ---------------------------------------------------------------------------------------------------


def rounds(parent: Run, number: int = 2, **keys: Any) -> list[Run]:
    recipe = parent.recipe
    found = [
        child(parent, f"rounds/{at + 1}", recipe, {key.replace("__", "."): value for key, value in keys.items()})
        for at in range(number)
    ]
    for at, run in enumerate(found):
        perform_all(run, f"round {at + 1}")
    return found


def summary(run: Run) -> dict[str, Any]:
    return json.loads(run.summary_json.read_text(encoding="utf-8"))


def test_children_meet_in_the_parent(tmp_path: Path, drawn: list[str]) -> None:
    parent = opened(tmp_path)
    recipe, (one, two) = parent.recipe, rounds(parent)
    before = list(drawn)
    meet(parent, recipe, {"base": None, "two": two, "one": one}, against="all")
    assert drawn == before, "all was drawn in the children"
    assert (parent.stages, parent.recipe.train) == (("prepare", "evaluate", "report"), None)
    found = summary(parent)
    assert found["headline"] == ["two", "base"]
    assert {(row["model"], row["against"]) for row in found["head_to_head"]} == {("two", "base"), ("one", "base"), ("one", "two")}
    assert Run(parent.path).recipe == parent.recipe
    assert tuned(one).name_or_path == str((one.path / "train/model").resolve())


def test_what_is_lent_is_what_would_have_been_drawn(tmp_path: Path, drawn: list[str]) -> None:
    parent = opened(tmp_path)
    recipe, (one,) = parent.recipe, rounds(parent, 1)
    meet(parent, recipe, {"base": None, "one": one})
    lent = {
        (draw.sampler, draw.prompt_id, draw.draw): draw.text for draw in read_jsonl(parent.eval_completions_jsonl, Completion)
    }
    own = {
        ({"tuned": "one"}.get(draw.sampler, draw.sampler), draw.prompt_id, draw.draw): draw.text
        for draw in read_jsonl(one.eval_completions_jsonl, Completion)
    }
    assert lent == own
    assert len(lent) == 2 * 2 * 2, "two held-out prompts of twenty, two draws, two models"


def test_verdicts_are_lent_too(tmp_path: Path, drawn: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    says = Says(shorter)
    put_in(monkeypatch, says)
    monkeypatch.setattr("tiebreak.judges.build.check", lambda *_: None)
    monkeypatch.setattr("tiebreak.stages.check_keys", lambda _: None)
    parent = opened(tmp_path, judges=[LLM])
    recipe, (one,) = parent.recipe, rounds(parent, 1)
    asked = len(says.asked)
    assert asked
    meet(parent, recipe, {"base": None, "one": one})
    assert len(says.asked) == asked
    meet(parent, recipe, {"base": None, "one": one})
    assert len(parent.eval_judgments("llm").read_text(encoding="utf-8").splitlines()) == len(
        one.eval_judgments("llm").read_text(encoding="utf-8").splitlines()
    )


@pytest.mark.parametrize("keys", [{"evaluate__temperature": 0.5}, {"seed": 7}, {"evaluate__n": 1}])
def test_nothing_is_lent_by_who_draws_in_another_way(keys: dict[str, Any], tmp_path: Path, drawn: list[str]) -> None:
    parent = opened(tmp_path)
    (one,) = rounds(parent, 1, **keys)
    other = opened(tmp_path)
    perform_all(target := made(other, "rounds/9"), "round 9", "train")
    lend(one, target, {"tuned": "tuned", "base": "base"})
    assert not list(read_jsonl(target.eval_completions_jsonl, Completion))


def test_the_verdicts_of_a_judge_that_is_another_are_not_lent(tmp_path: Path, drawn: list[str]) -> None:
    parent = opened(tmp_path)
    (one,) = rounds(parent, 1, judges__0__checks=[{"check": "length", "max": 4}])
    perform_all(target := made(parent, "rounds/9"), "round 9", "train")
    lend(one, target, {"tuned": "tuned"})
    assert list(read_jsonl(target.eval_completions_jsonl, Completion))
    assert not target.eval_judgments("rules").exists()


def test_only_held_out_prompts_are_lent_for(tmp_path: Path, drawn: list[str]) -> None:
    parent = opened(tmp_path)
    (one,) = rounds(parent, 1, prompts__held_out="validation")
    perform_all(target := made(parent, "rounds/9"), "round 9", "train")
    lend(one, target, {"tuned": "tuned", "base": "base"})
    held_out = {prompt.id for prompt in target.prompts() if prompt.split == "test"}
    validated = {prompt.id for prompt in one.prompts() if prompt.split == "test"}
    assert validated
    assert not held_out & validated
    assert not list(read_jsonl(target.eval_completions_jsonl, Completion))


def test_a_model_that_is_added_leaves_the_others_alone(tmp_path: Path, drawn: list[str]) -> None:
    parent = opened(tmp_path)
    recipe, (one, two) = parent.recipe, rounds(parent)
    meet(parent, recipe, {"base": None, "one": one})
    kept = parent.eval_completions_jsonl.read_bytes()
    meet(parent, recipe, {"base": None, "two": two, "one": one})
    assert parent.eval_completions_jsonl.read_bytes().startswith(kept)
    assert summary(parent)["headline"] == ["two", "base"]
    other = {"type": "local", "model": {"name_or_path": str(model(tmp_path / "other"))}}
    before = len(drawn)
    meet(parent, recipe, {"base": None, "other": other, "two": two, "one": one})
    assert set(drawn[before:]) == {str(tmp_path / "other")}


def test_who_was_trained_anew_meets_anew(tmp_path: Path, drawn: list[str]) -> None:
    parent = opened(tmp_path)
    recipe, (one,) = parent.recipe, rounds(parent, 1)
    meet(parent, recipe, {"base": None, "one": one})
    parent = Run.start(tmp_path / "r.yaml", tmp_path / "run")  # as another process would
    with one.lock():
        one.redo("train")
    perform_all(one, "round 1")
    stale = [completion(prompt, "old", 0, "one") for prompt in parent.prompts()]
    write_jsonl(parent.eval_completions_jsonl, stale)
    meet(parent, recipe, {"base": None, "one": one})
    assert "old" not in {draw.text for draw in read_jsonl(parent.eval_completions_jsonl, Completion)}


def test_ready_made_pairs_are_prepared_by_each(tmp_path: Path, drawn: list[str]) -> None:
    """Their completions come with their prompts, also where a child is of another model."""
    (tmp_path / "p.csv").write_text("prompt,chosen,rejected\n" + "".join(f"p{at},a{at},bbbbbb{at}\n" for at in range(20)))
    model(tmp_path / "other")
    parent = opened(
        tmp_path, prompts={"source": "p.csv", "pairs": {}}, generate=[], pair={"judge": "given"}, evaluate={"judge": "rules"}
    )
    recipe = parent.recipe
    for at, name in enumerate(("base", "other"), start=1):
        run = child(parent, f"rounds/{at}", recipe, {"model": {"name_or_path": name}})
        perform_all(run, "round")
        assert run.counts("pair")["train"]["usable"] == 18
        meet(parent, recipe, {"base": None, "one": run, **({"two": run} if at == 2 else {})})
    assert len(summary(parent)["head_to_head"]) == 2
