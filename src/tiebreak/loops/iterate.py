"""iterate: round after round, each from the model that the one before it made, until one shows no gain or drifts off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from tiebreak.files import read_jsonl, write_json, write_jsonl
from tiebreak.loops.children import Contender, child, claim, cost, lend, meet, perform_all, tuned
from tiebreak.recipe import Iterate, LocalSampler, Recipe
from tiebreak.records import Completion, InputError, PreferencePair
from tiebreak.reporting.repeated import Loop, Row, read_loop
from tiebreak.run import Run
from tiebreak.stages import perform

FALLS = ("displacement", "both fall", "drift")
"""What the monitor warns of where completions become less likely."""
Raw = Mapping[str, Any]
"""An estimate or a meeting, as summary.json has it."""


def iterate(parent: Run, rounds: int | None = None) -> Loop:
    """Go through at most `rounds` rounds, or the recipe's, in a run that the caller holds, and write its report.

    Stopped anywhere, it goes on there. Raises InputError.
    """
    recipe, settings = parent.recipe, parent.recipe.iterate
    check(recipe)
    claim(parent, "rounds")
    common = {"reference": settings.reference, "mix": settings.mix}
    known = _known(parent, common)
    most, why = rounds or settings.rounds, ""
    done: dict[str, Run] = {}
    rows: list[Row] = []
    for number in range(1, most + 1):
        before, name = list(done.values()), f"round-{number}"
        run = child(parent, f"rounds/{number}", recipe, _keys(recipe, before))
        if before:
            lend(parent, run, {f"round-{number - 1}": "base"})
        perform_all(run, f"round {number} of {most}", then={"pair": partial(_mix, before)} if settings.mix else {})
        if not run.tuned.is_dir():
            why = f"Stopped after round {number}, as nothing was trained: {run.counts('train').get('skipped')}."
            break
        done[name] = run
        if number < most and f"round-{number + 1}" in known and known[name].trained == _trained(run):
            continue  # an earlier start went past it
        rows = _measure(parent, recipe, done, name, known)
        why = _why_stop(settings, rows)
        _write(parent, Loop(kind="rounds", sentence=why, settings=common, rows=tuple(rows)))
        if why:
            break
    if not done:
        _write(parent, nothing := Loop(kind="rounds", sentence=why, settings=common))
        perform(parent, "report", again=True)
        return nothing
    last = list(done)[-1]
    rows = rows or _measure(parent, recipe, done, last, known)
    best, words = _best(parent, list(done))
    if best not in (None, last):
        _meet(parent, recipe, done, best)
    loop = Loop(
        kind="rounds", sentence=f"{why or f'All {most} rounds are done.'} {words}", best=best, settings=common, rows=tuple(rows)
    )
    _write(parent, loop)
    perform(parent, "report", again=True)
    return loop


def _known(parent: Run, common: Raw) -> dict[str, Row]:
    """Return what earlier starts measured, by name. Raises InputError where they went another way."""
    earlier = read_loop(parent)
    if earlier and earlier.settings != common:
        was = ", ".join(f"iterate.{key} {value}" for key, value in earlier.settings.items())
        raise InputError(f"{parent.path}: its rounds were made with {was.lower()}; start others with --run DIR")
    return {row.name: row for row in earlier.rows} if earlier else {}


def check(recipe: Recipe) -> None:
    """Refuse a recipe whose rounds would not differ, or could not be compared. Raises InputError."""
    if recipe.prompts.given:
        raise InputError(
            "iterate: ready-made pairs (prompts.pairs, prompts.labels) cannot be drawn anew; give generate and judges instead"
        )
    for key in ("train", "evaluate"):
        if getattr(recipe, key) is None:
            raise InputError(f"iterate: {key} is null, and every round needs it")
    if not any(isinstance(sampler, LocalSampler) and sampler.model is None for sampler in recipe.generate):
        raise InputError("iterate: no sampler under generate draws from the model itself; add {type: local} without a model")


# --- one round -----------------------------------------------------------------------------------------------------


def _keys(recipe: Recipe, before: Sequence[Run]) -> dict[str, Any]:
    """Return the keys in which a round differs from the recipe; the first one is as it stands."""
    keys: dict[str, Any] = {"evaluate.models": ["base", "tuned"]}
    if not before:
        return keys
    keys |= {"model": tuned(before[-1]).model_dump(mode="json"), "pretrain": None, "sft": None, "train.reference": None}
    if recipe.iterate.reference == "first":
        first = (recipe.train and recipe.train.reference) or before[0].policy("train")
        keys["train.reference"] = first.model_dump(mode="json")
    return keys


def _mix(before: Sequence[Run], run: Run) -> None:
    """Add the training pairs of earlier rounds to a round's own, each once; their provenance says whose they are."""
    pairs = run.pairs(run.pairs_jsonl)
    have = {_two(pair) for pair in pairs}
    added = []
    for number, earlier in enumerate(before, start=1):
        for pair in earlier.pairs(earlier.pairs_jsonl):
            if _two(pair) not in have:
                have.add(_two(pair))
                added.append(pair.model_copy(update={"provenance": {**pair.provenance, "round": number}}))
    if added:
        write_jsonl(run.pairs_jsonl, [*pairs, *added])


def _two(pair: PreferencePair) -> frozenset[str]:
    return frozenset((pair.provenance["chosen_id"], pair.provenance["rejected_id"]))


def _trained(run: Run) -> float:
    return float(run.manifest["stages"]["train"]["finished"])


# --- all rounds ----------------------------------------------------------------------------------------------------


def _meet(parent: Run, recipe: Recipe, done: dict[str, Run], about: str) -> None:
    """Have base, all rounds and the recipe's other models meet, all against all; the verdict is `about` one of them."""
    models: dict[str, Contender] = {"base": None, about: done[about], **dict(reversed(done.items()))}
    for other in recipe.evaluate.models if recipe.evaluate else ():
        if not isinstance(other, str):
            models[other.name] = other.model_dump(mode="json", exclude={"name"})
    meet(parent, recipe, models, against="all")


def _measure(parent: Run, recipe: Recipe, done: dict[str, Run], about: str, known: dict[str, Row]) -> list[Row]:
    """Have all meet, and return base and every round with what was measured of them, which is then known."""
    _meet(parent, recipe, done, about)
    rows = _rows(parent, done, known)
    known |= {row.name: row for row in rows}
    return rows


def _rows(parent: Run, done: Mapping[str, Run], known: Mapping[str, Row]) -> list[Row]:
    """Return base and every round with what was measured of them."""
    summary, names = parent.summary, ["base", *done]
    rows = []
    for name, last in zip(names, [None, *names], strict=False):
        numbers = {
            "win_rate": last and _met(summary, name, "base"),
            "controlled": last and (_met(summary, name, "base") or {}).get("length_controlled"),
            "over_last": last and _met(summary, name, last),
            "rating": next((row for row in summary["ratings"] or () if row["model"] == name), None),
            **{key: (summary[table] or {}).get(name) for key, table in TABLES.items()},
        }
        run, row = done.get(name), Row(name=name)
        if run is not None:
            own = run.summary
            apart = own.get("models_apart") or {}
            before = known.get(name)
            if before and before.trained == _trained(run):
                numbers["kl"] = before.numbers.get("kl")
            else:
                numbers["kl"] = apart.get("kl") if last == "base" else _divergence(parent, run, name)
            numbers |= {"chosen_change": apart.get("chosen_change"), "accuracy": (own["held_out_pairs"] or {}).get("accuracy")}
            counts = run.counts("train")
            row = Row(
                name=name, path=str(run.path.relative_to(parent.path)), pairs=counts.get("pairs"), cost=cost(run),
                notes=tuple(counts.get("warnings", ())), trained=_trained(run),
            )  # fmt: skip
        rows.append(row.model_copy(update={"numbers": {key: _plain(raw) for key, raw in numbers.items() if raw}}))
    return rows


TABLES = {"passing": "passing", "score": "scores", "length": "lengths"}
"""Numbers of every model, by their table in summary.json."""


def _met(summary: Raw, model: str, against: str) -> dict[str, Any] | None:
    """Return a model's win rate over another, whichever of the two the meeting is listed under."""
    for row in summary["head_to_head"]:
        if (row["model"], row["against"]) == (model, against):
            return dict(row)
        if (row["model"], row["against"]) == (against, model):
            return _turned(row) | {"length_controlled": row["length_controlled"] and _turned(row["length_controlled"])}
    return None


def _turned(raw: Raw) -> dict[str, Any]:
    ends = {"low": raw["high"], "high": raw["low"]}
    return dict(raw) | {"rate": 1 - raw["rate"], **{end: None if value is None else 1 - value for end, value in ends.items()}}


def _plain(raw: Raw) -> dict[str, Any]:
    return {key: raw[key] for key in ("rate", "mean", "elo", "low", "high", "n") if key in raw}


def _divergence(parent: Run, run: Run, name: str) -> Any:
    """Estimate how far a round's model is from base, on its held-out completions; loads both models."""
    from tiebreak.stages.measures import of_models

    drawn: dict[str, dict[int, Completion]] = {}
    for draw in read_jsonl(parent.eval_completions_jsonl, Completion):
        if draw.sampler == name:
            drawn.setdefault(draw.prompt_id, {})[draw.draw] = draw
    return of_models(parent, tuned(run), drawn, [prompt for prompt in parent.prompts() if prompt.split == "test"]).get("kl")


# --- what it comes to ----------------------------------------------------------------------------------------------


def _why_stop(settings: Iterate, rows: Sequence[Row]) -> str:
    """Say which rule ends the rounds with the last of these rows, and why; empty where none does."""
    last, before, number = rows[-1], rows[-2], len(rows) - 1
    over = last.numbers.get("over_last")
    if "no_gain" in settings.stop and (over is None or not _gains(over)):
        why = "no comparison of the two could be read" if over is None else f"it {_wins(over)}"
        return f"Stopped after round {number}, as no gain over {_called(before.name)} is shown: {why}."
    warned = [kind for kind in last.notes if kind in FALLS]
    if "displacement" in settings.stop and warned and number > 1:
        fall, earlier = (row.numbers.get("chosen_change", {}).get("mean") for row in (last, before))
        grows, by = not set(warned) <= set(before.notes), ""
        if fall is not None and earlier is not None:
            grows = fall < min(earlier, 0)
            by = f", and held-out chosen completions lost {-fall:.1f} nats (in round {number - 1}: {-earlier:.1f})"
        if grows:
            return f"Stopped after round {number}, as displacement grows: training warned of {' and '.join(warned)}{by}."
    return ""


def _best(parent: Run, names: Sequence[str]) -> tuple[str | None, str]:
    """Return the last round that is shown to beat the best one before it, and say so; None where none beats base."""
    summary, best = parent.summary, "base"
    for name in names:
        if (met := _met(summary, name, best)) and _gains(met):
            best = name
    if best == "base":
        return None, "No round is shown to be better than base."
    met = _met(summary, best, "base") or {}
    return best, f"{_called(best).capitalize()} is the one to take: it {_wins(met, ' with base')}."


def _gains(raw: Raw) -> bool:
    return raw["low"] is not None and raw["low"] > 0.5


def _wins(raw: Raw, whom: str = "") -> str:
    rate, low, high = (f"{raw[key] * 100:.0f}" for key in ("rate", "low", "high"))
    return f"wins {rate} % of {raw['n']} comparisons{whom}, ties counting half (95 % interval {low} to {high} %)"


def _called(name: str) -> str:
    return name.replace("-", " ")


def _write(parent: Run, loop: Loop) -> None:
    write_json(parent.loop_json, loop.model_dump(mode="json"))
