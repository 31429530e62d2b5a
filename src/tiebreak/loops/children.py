"""Children: whole runs inside a run, made from its recipe with some values changed, and the run in which they meet.

What iterate, search and variants share. A loop's folder is a run that only evaluates; rounds/1, trials/7, variants/t5
in it are runs like any other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import tiebreak
from tiebreak.files import appending, read_jsonl, write_json
from tiebreak.flow import without_operational
from tiebreak.judges.build import part_of
from tiebreak.progress import say
from tiebreak.recipe import Endpoint, Model, Recipe
from tiebreak.recipe.judges import Judging
from tiebreak.recipe_yaml import _put as put
from tiebreak.recipe_yaml import validate_recipe
from tiebreak.records import Comparison, Completion, InputError, Rating
from tiebreak.run import Run
from tiebreak.samplers.ledger import spent
from tiebreak.stages import check, perform

NOTHING = 1e-9
"""Dollars of a budget that is used up: replies that are known are still taken, and no call is made."""
COMMON = ("recipe_folder", "recipe_file", "profile", "overrides", "accepts_canary_failures")
"""What a child's manifest has from its parent's."""
NO_MORE: Mapping[str, Callable[[Run], None]] = MappingProxyType({})
Contender = Run | Mapping[str, Any] | None
"""Who meets: a child by its tuned model, an entry of evaluate.models less its name, or a model of the run itself."""


# --- one child -----------------------------------------------------------------------------------------------------


def changed(recipe: Recipe, keys: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Return a recipe with other values under dotted keys; `where` stands before what is wrong with one. Raises InputError."""
    data = recipe.model_dump(mode="json")
    for key, value in keys.items():
        put(data, key, value)
    return validate_recipe(data, where)


def child(parent: Run, where: str, recipe: Recipe, keys: Mapping[str, Any]) -> Run:
    """Open the run at `where` inside a run, such as `rounds/1`; the first time, make it.

    It is `recipe`, the one that the loop was given, with `keys`. What the parent has made from the same settings is taken
    from there; a budget is what the parent and its other children have left of it. Raises InputError.
    """
    path = parent.path / where
    name = f"{recipe.name[:40]}-{where.replace('/', '-')}"
    own = changed(_settled(recipe), {"name": name, "variants": {}, **keys}, str(path))
    written = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in keys.items()]
    how = {key: parent.manifest[key] for key in COMMON if key in parent.manifest}
    how["overrides"] = [*how["overrides"], *written]
    if not (path / parent.recipe_json.name).exists():
        write_json(path / parent.manifest_json.name, {"tiebreak": tiebreak.__version__, **how, "stages": {}})
        write_json(path / parent.recipe_json.name, own.model_dump(mode="json"))
    run = Run(path)
    run.manifest.update(how)
    run.recipe, run.recipe_text = _within_budget(own, parent, run), parent.recipe_text
    with run.lock():
        run.take_over(parent)
    return run


def claim(parent: Run, kind: str) -> None:
    """Refuse a folder that holds something else than this kind of loop. Raises InputError."""
    others = [name for name in ("rounds", "trials", "variants") if name != kind and (parent.path / name).is_dir()]
    own = "a run of its own" if "train" in parent.manifest["stages"] else f"{others[0]}" if others else None
    if own:
        raise InputError(f"{parent.path}: holds {own} already; name another folder for the {kind} with --run DIR")


def perform_all(run: Run, label: str, upto: str = "report", then: Mapping[str, Callable[[Run], None]] = NO_MORE) -> None:
    """Perform what is owed of a child's stages up to `upto`, under its lock; `label` says first which child it is.

    `then` has what is to be done after a stage, by its name, every time: it finds out itself what is owed.
    """
    stages = run.stages[: run.stages.index(upto) + 1]
    with run.lock():
        owed = [stage for stage in stages if run.state(stage) != "done"]
        say(f"{label}: {run.path}{'' if owed else ' (done before)'}")
        check(run, owed)
        for stage in stages:
            _perform(run, stage)
            if stage in then:
                then[stage](run)


def _perform(run: Run, stage: str) -> None:
    """Perform a stage; where it is done, say nothing of it, but refuse what was made with other settings."""
    if run.state(stage) == "done":
        run.perform(stage, partial(perform, stage=stage, again=True))
    else:
        perform(run, stage)


def tuned(run: Run) -> Model:
    """Return the model that a run made."""
    return run.recipe.model.model_copy(update={"name_or_path": str(run.tuned.resolve()), "revision": None})


def cost(*runs: Run) -> float | None:
    """Return what runs have spent together, in US dollars; None where a price is not known."""
    costs = [part.cost for run in runs for part in spent(run.calls_sqlite).values()]
    return None if None in costs else sum(each for each in costs if each is not None)


# --- the meeting ---------------------------------------------------------------------------------------------------


def meet(parent: Run, recipe: Recipe, models: Mapping[str, Contender], **evaluate: Any) -> None:
    """Have models meet on the parent's held-out prompts; the parent, which its caller holds, becomes a run that only evaluates.

    The verdict is about the first model beside `base`, or beside the first where there is no `base`. `evaluate` are other
    keys of that section. A model that is new is owed its draws, of which a child's own are taken; one that was trained
    anew since it met the others has everything done again. Raises InputError.
    """
    runs = {name: run for name, run in models.items() if isinstance(run, Run)}
    listed = [_entry(name, model) for name, model in models.items()]
    keys: dict[str, Any] = {"train": None, "pretrain": None, "sft": None, "generate": [], "variants": {}}
    keys |= {"evaluate.models": listed, **{f"evaluate.{key}": value for key, value in evaluate.items()}}
    if recipe.prompts.given:
        del keys["generate"]
    parent.recipe = _within_budget(changed(_settled(recipe), keys, str(parent.path)), parent, parent)
    trained = {name: run.manifest["stages"]["train"]["finished"] for name, run in runs.items()}
    before = parent.manifest.get("met", {})
    if any(before.get(name, when) != when for name, when in trained.items()):
        parent.redo("evaluate")
    parent.manifest["met"] = before | trained
    for run in runs.values():
        parent.take_over(run)
    check(parent, [stage for stage in parent.stages if parent.state(stage) != "done"])
    for stage in parent.stages[: parent.stages.index("evaluate")]:
        _perform(parent, stage)
    for name, run in runs.items():
        same = {"base": "base"} if run.recipe.model == recipe.model else {}
        lend(run, parent, {"tuned": name} | same)
    perform(parent, "evaluate", again=True)


def lend(source: Run, target: Run, names: Mapping[str, str]) -> None:
    """Give a run the held-out draws and verdicts that another has of the same models; `names` are theirs there and here.

    Nothing is lent between runs that draw, split or judge in another way.
    """
    if _drawing(source.recipe) != _drawing(target.recipe):
        return
    prompts = {prompt.id for prompt in target.prompts() if prompt.split == "test"}
    have = {(draw.sampler, draw.prompt_id, draw.draw) for draw in read_jsonl(target.eval_completions_jsonl, Completion)}
    with appending(target.eval_completions_jsonl) as append:
        for draw in read_jsonl(source.eval_completions_jsonl, Completion):
            own = names.get(draw.sampler)
            if own and draw.prompt_id in prompts and (own, draw.prompt_id, draw.draw) not in have:
                append(draw.model_copy(update={"sampler": own}))
    judge = target.recipe.evaluating_judge
    for name in sorted(target.recipe.members(judge.name)) if judge else ():
        if name not in {each.name for each in source.recipe.judges} or source.recipe.judge(name) != target.recipe.judge(name):
            continue
        known = {_question(verdict) for verdict in target.verdicts(target.eval_judgments(name))}
        with appending(target.eval_judgments(name)) as append:
            for verdict in source.verdicts(source.eval_judgments(name)):
                if verdict.error is None and verdict.prompt_id in prompts and _question(verdict) not in known:
                    append(verdict)


def _question(verdict: Comparison | Rating) -> tuple[str, ...]:
    return (verdict.first, verdict.second) if isinstance(verdict, Comparison) else (verdict.completion_id,)


def _drawing(recipe: Recipe) -> Any:
    """Return what held-out draws depend on beside the model."""
    return recipe.seed, recipe.evaluate and without_operational(
        recipe.evaluate.model_dump(mode="json", exclude={"models", "judge", "against", "reference"})
    )


def _entry(name: str, model: Contender) -> str | dict[str, Any]:
    """Return a contender as evaluate.models has it."""
    if model is None:
        return name
    if isinstance(model, Run):
        model = {"type": "local", "model": tuned(model).model_dump(mode="json")}
    return {**model, "name": name}


def _settled(recipe: Recipe) -> Recipe:
    """Return a recipe whose split does not depend on what is made of it: that of the parent is that of its children."""
    return recipe if recipe.prompts.split else changed(recipe, {"prompts.test_fraction": recipe.test_fraction})


def _within_budget(recipe: Recipe, parent: Run, own: Run) -> Recipe:
    """Return a recipe whose budgets are what the loop's other runs have left of them."""
    name = parent.calls_sqlite.name
    accounts = [parent.calls_sqlite, *parent.path.glob(f"*/{name}"), *parent.path.glob(f"*/*/{name}")]
    used = [spent(path) for path in accounts if path != own.calls_sqlite]
    left = {}
    for key, sections in (("generate", recipe.generate), ("judges", recipe.judges)):
        for at, section in enumerate(sections):
            if isinstance(section, Endpoint) and section.budget_usd is not None:
                part = part_of(section) if isinstance(section, Judging) else f"generate.{section.label}"
                others = sum(account[part].cost or 0.0 for account in used if part in account)
                left[f"{key}.{at}.budget_usd"] = max(section.budget_usd - others, NOTHING)
    return changed(recipe, left) if left else recipe
