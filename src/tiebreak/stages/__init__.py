"""The stages: one verb, one file, one function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import Any

from tiebreak import models
from tiebreak.progress import say
from tiebreak.recipe import (
    ApiModel,
    LlmJudge,
    LocalModel,
    LocalSampler,
    Model,
    Outputs,
    PairRmJudge,
    Recipe,
    RewardJudge,
    Section,
)
from tiebreak.recipe.judges import Judging
from tiebreak.run import OPTIONAL, TRAINING, Counts, Run
from tiebreak.samplers.api import check_keys
from tiebreak.samplers.ledger import dollars

__all__ = ["check", "describe", "perform"]


def perform(run: Run, stage: str, *, again: bool = False) -> Counts:
    """Perform one stage of a run and say in one line what it made, what it dropped and why."""
    before = "" if again or run.state(stage) != "done" else " (done before)"

    def work(run: Run) -> Counts:  # what is done before imports no torch
        return getattr(import_module(f"tiebreak.stages.{stage}"), stage)(run)  # type: ignore[no-any-return]

    counts = run.perform(stage, work, again=again)
    say(f"{stage}: {describe(stage, counts)}{before}")
    return counts


def check(run: Run, stages: Iterable[str]) -> None:
    """Check what these stages will need, before any model loads and any call is paid. Raises InputError."""
    recipe, stages = run.recipe, list(stages)
    evaluating = [recipe.judge(name) for name in sorted(recipe.members(judge.name))] if (judge := recipe.evaluating_judge) else []
    others = [model for model in recipe.evaluate.models if not isinstance(model, str)] if recipe.evaluate else []
    needs: dict[str, Sequence[Section]] = {
        "prepare": [recipe.prompts.write.sampler] if recipe.prompts.write else [],
        "generate": recipe.generate,
        "judge": recipe.judges,
        "audit": [recipe.model],
        **{stage: [recipe.model] for stage in TRAINING},
        "evaluate": [*([recipe.model] if recipe.evaluate.own else []), *evaluating, *others] if recipe.evaluate else [],
    }
    check_parts(run, [part for stage in stages for part in needs.get(stage, ())])
    for stage in OPTIONAL:
        if stage in stages:
            from tiebreak.stages import fitting

            fitting.check_supervised(run, stage)
    if "train" in stages:
        from tiebreak.stages import train

        train.check(run)


def check_parts(run: Run, parts: Sequence[Section]) -> None:
    """Check keys, prices, models and files of parts of the recipe. Raises InputError."""
    check_keys(parts)
    for part in dict.fromkeys(parts):
        if (model := _model_of(part, run.recipe)) is not None:
            models.check(model)
        if isinstance(part, Judging):
            from tiebreak.judges import build

            build.check(part, run)
        if isinstance(part, Outputs):
            from tiebreak.exchange import answered

            answered.check(run.resolve(part.file))


def _model_of(part: Section, recipe: Recipe) -> Model | None:
    """Return the model that a part loads in this process."""
    match part:
        case Model():
            return part
        case LocalSampler():
            return part.model or recipe.model
        case PairRmJudge() | RewardJudge() | LocalModel():
            return part.model
        case LlmJudge(provider="local") | ApiModel(provider="local"):
            return Model(name_or_path=part.model)
    return None


def describe(stage: str, counts: Counts) -> str:
    """Say a stage's counts in one line."""
    return SENTENCES[stage](counts)


def _prepare(counts: Counts) -> str:
    pairs = f", {counts['pairs']} ready-made pairs" if "pairs" in counts else ""
    if "labels" in counts:
        pairs = f", {sum(counts['labels'].values())} labelled answers ({_listed(counts['labels'])})"
    dropped = f"; dropped {_listed(counts['dropped'])}" if counts["dropped"] else ""
    return (
        f"{counts['prompts']} prompts of {counts['rows']} rows ({counts['train']} train, {counts['test']} test){pairs}{dropped}"
    )


def _generate(counts: Counts) -> str:
    if not counts["drawn"]:
        return "the pairs came with their completions"
    cut = f", {counts['cut']} cut at the token limit" if counts["cut"] else ""
    failed = f", {counts['failed']} failed (tiebreak generate asks for them again)" if counts.get("failed") else ""
    return f"{counts['distinct']} distinct completions of {counts['drawn']} drawn ({counts['identical']} identical{cut}){failed}"


def _judge(counts: Counts) -> str:
    parts = []
    for name, own in counts.items():
        errors = f", {own['errors']} errors (tiebreak judge asks again)" if own["errors"] else ""
        if "questions" in own:
            kinds = _listed({kind: own[kind] for kind in ("ties", "inconsistent", "unreadable")})
            parts.append(f"{name} made {own['records']} comparisons of {own['questions']} twos ({kinds}){errors}{_cost(own)}")
        else:
            parts.append(f"{name} rated {own['records']} completions{errors}{_cost(own)}")
    return "; ".join(parts) or "the pairs came with their verdicts"


def _cost(counts: Counts) -> str:
    if "calls" not in counts:
        return ""
    cost = (
        "at a price that is not known"
        if counts["cost"] is None
        else f"for {dollars(counts['cost'])}"
        if counts["cost"]
        else "for nothing"
    )
    return f" in {counts['calls']:,} calls {cost}"


def _pair(counts: Counts) -> str:
    parts = []
    for name, label in (("train", "to train on"), ("held_out", "held out")):
        own = counts[name]
        why = f" (dropped {_listed(own['dropped'])})" if own["dropped"] else ""
        parts.append(f"{own['usable']} of {own['attempted']} pairs usable {label}{why}")
    return "; ".join(parts)


def _audit(counts: Counts) -> str:
    found = _listed(
        {
            f"{kind}{'s' * (counts[kind + 's'] != 1)}": counts[f"{kind}s"]
            for kind in ("error", "warning", "note")
            if counts[f"{kind}s"]
        }
    )
    return f"{found or 'nothing found'} in {counts['pairs']} pairs"


def _supervised(counts: Counts) -> str:
    if "skipped" in counts:
        return f"skipped: {counts['skipped']}"
    loss = "" if counts["loss"] is None else f", mean loss {counts['loss']:.3f}"
    held_out = f" ({counts['held_out']} held out)" if counts.get("held_out") else ""
    blank = f"; dropped {counts['blank']} blank" if counts.get("blank") else ""
    return f"{counts['steps']} steps on {counts['examples']} examples{held_out}{loss}{blank}"


def _train(counts: Counts) -> str:
    if "skipped" in counts:
        return f"skipped: {counts['skipped']}"
    loss = "" if counts["loss"] is None else f", mean loss {counts['loss']:.3f}"  # fewer steps than are between two logs
    best = f", best at step {counts['best_step']}" if "best_step" in counts else ""
    warned = f"; warned of {' and '.join(counts['warnings'])}" if "warnings" in counts else ""
    what = "labelled answers" if counts.get("labelled") else "pairs"
    return f"{counts['steps']} steps on {counts['pairs']} {what} of {counts['prompts']} prompts{loss}{best}{warned}"


def _evaluate(counts: Counts) -> str:
    return str(counts["verdict"])


def _report(counts: Counts) -> str:
    return f"{counts['charts']} charts, {counts['tables']} tables, {counts['examples']} examples, {counts['bytes'] / 1000:.0f} kB"


def _listed(counts: dict[str, Any]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items())


SENTENCES: dict[str, Callable[[Counts], str]] = {
    "prepare": _prepare,
    "generate": _generate,
    "judge": _judge,
    "pair": _pair,
    "audit": _audit,
    "pretrain": _supervised,
    "sft": _supervised,
    "train": _train,
    "evaluate": _evaluate,
    "report": _report,
}
