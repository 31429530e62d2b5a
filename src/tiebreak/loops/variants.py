"""variants: one recipe with other values under some keys, each a run of its own; then base and all of them meet."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from tiebreak.files import read_json, write_json
from tiebreak.loops.children import Contender, changed, child, claim, cost, meet, perform_all
from tiebreak.recipe import Recipe
from tiebreak.recipe.evaluation import OWN_MODELS
from tiebreak.records import InputError
from tiebreak.reporting.repeated import Loop, Row
from tiebreak.run import STAGES, Run
from tiebreak.stages import check, perform

HALF = 0.5
Raw = Mapping[str, Any]
"""A part of summary.json."""
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,23}"
SHARED = ("name", "profiles", "variants", "iterate", "search", "prompts", "seed")
"""Keys that are the same in all: they say what the run is, and which prompts are held out."""
TABLES = {"passing": "passing", "score": "scores", "length": "lengths"}
"""Numbers of every model, by their table in summary.json."""


def variants(parent: Run, redo: str | None = None) -> Loop:
    """Make every variant of a recipe in the run that the caller holds, have them meet, and write the report of that.

    A stage that two variants do the same way is done once. With `redo`, that stage is repeated in all. Stopped anywhere,
    the same call goes on there. Raises InputError, for a mistake in any variant before the first one is begun.
    """
    recipe = parent.recipe
    _check(recipe)
    claim(parent, "variants")
    runs = {name: child(parent, f"variants/{name}", recipe, keys) for name, keys in recipe.variants.items()}
    redone = STAGES[STAGES.index(redo) :] if redo else ()
    for run in runs.values():
        check(run, [stage for stage in run.stages if stage in redone or run.state(stage) != "done"])
    if redo:
        for run in runs.values():
            with run.lock():
                run.redo(redo)
        parent.redo(redo)
    for at, (name, keys) in enumerate(recipe.variants.items()):
        run = runs[name] = child(parent, f"variants/{name}", recipe, keys)  # again: what is left of a budget has changed
        with run.lock():
            for sibling in list(runs.values())[:at]:
                run.take_over(sibling)
        perform_all(run, f"variant {name}")
    made = {name: run for name, run in runs.items() if run.tuned.is_dir()}
    bases = _bases(recipe, made)
    if len(made) + len(bases) > 1:
        meet(parent, recipe, {**bases, **made} if "base" in bases else {**made, **bases}, against="all")
    loop = _loop(parent, recipe, runs, bases)
    write_json(parent.loop_json, loop.model_dump(mode="json"))
    perform(parent, "report", again=True)
    return loop


def _check(recipe: Recipe) -> None:
    """Refuse variants that could not be made, or not be compared. Raises InputError."""
    for name, keys in recipe.variants.items():
        if not re.fullmatch(NAME, name) or re.fullmatch(OWN_MODELS, name):
            raise InputError(
                f"variants: {name!r} is to name a folder and a model: up to 24 letters, digits, '-', '_', '.'; not base or tuned"
            )
        for key in keys:
            if key.split(".")[0] in SHARED:
                raise InputError(f"variants.{name}: {key} is the same in all, so that they meet on the same held-out prompts")
        own = changed(recipe, keys, f"variants.{name}")
        for key in ("train", "evaluate"):
            if getattr(own, key) is None:
                raise InputError(f"variants.{name}: {key} is null, and variants are trained and compared")


def _bases(recipe: Recipe, made: Mapping[str, Run]) -> dict[str, Contender]:
    """Return the untuned models to meet: `base` where all started from the recipe's model, else each under a name of its own."""
    if all(run.recipe.model == recipe.model for run in made.values()):
        return {"base": None}
    first: dict[str, Contender] = {}
    for name, run in made.items():
        entry = {"type": "local", "model": run.recipe.model.model_dump(mode="json")}
        if entry not in first.values():
            first[f"{name}-base"] = entry
    return first


# --- what came of them ---------------------------------------------------------------------------------------------


def _loop(parent: Run, recipe: Recipe, runs: Mapping[str, Run], bases: Iterable[str]) -> Loop:
    summary = read_json(parent.summary_json) if parent.summary_json.exists() else {}
    rows = [Row(name=name, numbers=_measured(summary, name)) for name in bases]
    for name, run in runs.items():
        own, trained = read_json(run.summary_json), run.counts("train")
        wins, apart, pairs = (own.get(key) or {} for key in ("win_rate", "models_apart", "held_out_pairs"))
        numbers = {"win_rate": wins, "controlled": wins.get("length_controlled"), "accuracy": pairs.get("accuracy")}
        numbers |= {key: apart.get(key) for key in ("kl", "chosen_change")}
        rows.append(
            Row(
                name=name,
                path=str(run.path.relative_to(parent.path)),
                settings={key: _said(value) for key, value in recipe.variants[name].items()},
                numbers={key: _plain(raw) for key, raw in numbers.items() if raw} | _measured(summary, name),
                pairs=trained.get("pairs"),
                cost=cost(run),
                notes=(trained["skipped"],) if "skipped" in trained else tuple(trained.get("warnings", ())),
                trained=run.manifest["stages"]["train"]["finished"],
            )
        )
    best = _best(summary, list(runs))
    return Loop(kind="variants", sentence=_sentence(summary, best), best=best, rows=tuple(rows))


def _measured(summary: Raw, name: str) -> dict[str, dict[str, Any]]:
    """Return what the meeting measured of one model."""
    found = {key: (summary.get(table) or {}).get(name) for key, table in TABLES.items()}
    found["rating"] = next((row for row in summary.get("ratings") or () if row["model"] == name), None)
    return {key: _plain(raw) for key, raw in found.items() if raw}


def _best(summary: Raw, names: Iterable[str]) -> str | None:
    """Return the variant that is shown to beat every model that it met, None where none is."""
    beaten: dict[str, list[bool]] = {}
    for row in summary.get("head_to_head") or ():
        known = row["low"] is not None
        beaten.setdefault(row["model"], []).append(known and row["low"] > HALF)
        beaten.setdefault(row["against"], []).append(known and row["high"] < HALF)
    return next((name for name in names if all(beaten.get(name) or [False])), None)


def _sentence(summary: Raw, best: str | None) -> str:
    if not summary.get("head_to_head"):
        return "The variants were not compared with each other."
    return f"{best} is shown to beat all others." if best else "No variant is shown to beat all others."


def _plain(raw: Raw) -> dict[str, Any]:
    return {key: raw[key] for key in ("rate", "mean", "elo", "low", "high", "n") if key in raw}


def _said(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
