"""evaluate: models against each other on held-out prompts, fresh completions from each, every failure counted."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

from tiebreak.exchange.answered import Answered
from tiebreak.files import appending, read_jsonl, write_json, write_text
from tiebreak.metrics.agreement import Verdicts
from tiebreak.metrics.versus import Draws, Meeting, plain, ratings_of, versus, word
from tiebreak.metrics.winrate import mean, rate
from tiebreak.progress import progress, say
from tiebreak.recipe import ApiModel, ApiSampler, Evaluate, LocalModel, Model, Outputs, RulesJudge
from tiebreak.recipe.evaluation import OtherModel
from tiebreak.records import Completion, InputError, Prompt
from tiebreak.run import Counts, Run
from tiebreak.samplers import Sampler
from tiebreak.samplers.api import Api
from tiebreak.samplers.ledger import spent
from tiebreak.samplers.local import Local
from tiebreak.stages.concord import concord
from tiebreak.stages.judge import Builder, ask, send_canaries
from tiebreak.stages.measures import of_models, of_texts
from tiebreak.stages.train import HeldOut
from tiebreak.stages.twos import drawn_by, meeting_twos, turned


def evaluate(run: Run) -> Counts:
    """Write `eval/summary.json`, `eval/results.csv` and `eval/head_to_head.csv`."""
    settings, section, held_out = run.recipe.evaluate, run.recipe.evaluating_judge, _held_out_pairs(run)
    untrained = run.recipe.train is not None and not run.tuned.is_dir()
    if settings is None or section is None or untrained:
        why = "the recipe names no judge to compare completions with"
        if settings is None:
            why = "the recipe has no evaluate section"
        if untrained:
            why = f"nothing was trained: {run.counts('train').get('skipped', 'no tuned model')}"
        headline = settings.headline if settings else ("tuned", "base")
        verdict = {"word": "not compared", "sentence": _not_compared(headline, why, held_out)}
        return _write(run, {"verdict": verdict, "headline": list(headline), "held_out_pairs": held_out}, {})
    every = run.prompts()
    prompts = [prompt for prompt in every if prompt.split == "test"]
    drawn, failed = _draw(run, settings, prompts)
    twos, build = meeting_twos(settings, prompts, drawn), Builder(run)
    asked = [turned(run.recipe.seed, *two) for some in twos.values() for two in some]
    if "judge" not in run.stages:  # where canaries were flown
        members = run.recipe.members(section.name)
        send_canaries(run, [judge for judge in run.recipe.judges if judge.name in members], asked, build)
    ask(run, section, run.eval_judgments, asked, build)
    verdicts = Verdicts(run.verdicts(run.eval_judgments(section.name)))
    meetings = {both: [_meet(verdicts, *two) for two in some] for both, some in twos.items()}
    asked_on = "held-out prompts" if len(prompts) < len(every) else "prompts"
    summary = _summary(settings, meetings, drawn, verdicts, checks=isinstance(section, RulesJudge))
    summary["verdict"] = _verdict(settings.headline, summary["win_rate"], meetings[settings.headline], asked_on)
    summary["answers"] = {name: _counted(by_prompt, failed[name]) for name, by_prompt in drawn.items()}
    summary |= {"completions_per_prompt": settings.n, "judge": section.name, "held_out_pairs": held_out}
    summary["judge_labelled"] = run.recipe.makes_pairs and section.name == run.recipe.labelling_judge
    summary["agreement"] = concord(run, section, asked)
    costs = [part.cost for part in spent(run.calls_sqlite).values()]
    summary["cost"] = None if None in costs else sum(each for each in costs if each is not None)
    summary["texts"] = of_texts(drawn, prompts, settings.reference)
    if "tuned" in settings.own:
        summary["models_apart"] = apart = of_models(run, _own(run, "tuned"), drawn["tuned"], prompts)
        if ratio := (apart.get("perplexity") or {}).get("ratio"):
            less_one = {name: ratio[name] - 1 if ratio[name] is not None else None for name in ("mean", "low", "high")}
            summary["differences"]["perplexity"] = ratio | less_one
    return _write(run, summary, meetings, verdicts)


def _draw(run: Run, settings: Evaluate, prompts: list[Prompt]) -> tuple[dict[str, dict[str, Draws]], dict[str, int]]:
    """Draw what is owed from every model, and return its draws by prompt and number, and how many failed."""
    failed: dict[str, int] = {}
    have = list(read_jsonl(run.eval_completions_jsonl, Completion))
    with appending(run.eval_completions_jsonl) as append:
        for name, model in settings.named.items():
            done = frozenset((draw.prompt_id, draw.draw) for draw in have if draw.sampler == name)
            sampler = _sampler(run, settings, model, prompts)
            with progress(f"evaluate {name}", len(prompts) * sampler.n - len(done), "completions") as advance:
                for completion in sampler.sample(prompts, done):
                    append(completion.model_copy(update={"sampler": name}))
                    advance(1)
            failed[name] = len(sampler.failures)
            if sampler.failures:
                say(f"evaluate {name}: {len(sampler.failures)} calls failed, the first with: {sampler.failures[0]}")
    return drawn_by(run), failed


def _counted(by_prompt: dict[str, Draws], failed: int) -> dict[str, int]:
    """Count a model's answers, and those that were cut or could not be had."""
    draws = [draw for draws in by_prompt.values() for draw in draws.values()]
    return {"given": len(draws), "failed": failed, "cut": sum(draw.finish_reason == "length" for draw in draws)}


def _sampler(run: Run, settings: Evaluate, model: str | OtherModel, prompts: list[Prompt]) -> Sampler:
    """Return who answers for a model; all that run here draw with the same seeds, which a label would set apart."""
    match model:
        case ApiModel() if model.provider != "local":
            kept = settings.model_dump(include={"n", "temperature", "top_p", "max_new_tokens"})
            return Api(ApiSampler.model_validate({**model.model_dump(), **kept}), run.recipe.seed, run.calls_sqlite)
        case Outputs():
            return Answered(model.name, run.resolve(model.file), prompts)
        case ApiModel():
            here = Model(name_or_path=model.model)
        case LocalModel():
            here = model.model
        case _:
            here = _own(run, model)
    return Local("held-out", here, settings, run.recipe.seed)


def _own(run: Run, name: str) -> Model:
    """Return a model of the run by its name."""
    if name == "base":
        return run.recipe.model
    folder = run.train / name if name.startswith("checkpoint-") else run.training("train" if name == "tuned" else name).model
    if not folder.is_dir():
        there = ", ".join(sorted(each.name for each in run.train.glob("checkpoint-*"))) or "none"
        raise InputError(f"evaluate.models: {name} was not made by this run; of its checkpoints there is {there}")
    return run.recipe.model.model_copy(update={"name_or_path": str(folder), "revision": None})


def _meet(verdicts: Verdicts, prompt: Prompt, against: Completion, model: Completion) -> Meeting:
    if against.id == model.id:
        return Meeting(prompt, model, against, "tie", "the same text")
    if not against.text.strip() or not model.text.strip():
        empty = [not against.text.strip(), not model.text.strip()]
        return Meeting(prompt, model, against, "tie" if all(empty) else "win" if empty[0] else "loss", "an empty answer loses")
    outcome = verdicts.outcome(against.id, model.id)
    verdict = {"win": "win" if outcome.winner == model.id else "loss", "unreadable": "error"}.get(outcome.kind, outcome.kind)
    return Meeting(prompt, model, against, verdict, outcome.reason)


def _summary(
    settings: Evaluate,
    meetings: dict[tuple[str, str], list[Meeting]],
    drawn: dict[str, dict[str, Draws]],
    verdicts: Verdicts,
    *,
    checks: bool,
) -> dict[str, Any]:
    rows, headline = {both: versus(some) for both, some in meetings.items()}, settings.headline
    shown = {prompt for both in meetings.values() for prompt in {meeting.prompt.id for meeting in both}}

    def each(name: str, value: Callable[[Completion], float | None]) -> dict[str, Any]:
        """Estimate a value of the completions of every model."""
        estimate, estimates = mean if name == "mean" else rate, {}
        for model, by_prompt in drawn.items():
            groups = [[value(draw) for draw in draws.values()] for prompt, draws in by_prompt.items() if prompt in shown]
            own = estimate([[one for one in group if one is not None] for group in groups])
            estimates[model] = plain(own, name) if own else None
        return estimates

    def change(value: Callable[[Completion], float | None]) -> dict[str, Any] | None:
        """Estimate how much more of a value the headline's model has than the other, prompt by prompt."""
        sides = [[value(draw) for draw in drawn[name].get(prompt, {}).values()] for name in headline for prompt in sorted(shown)]
        known = [[one for one in side if one is not None] for side in sides]
        pairs = zip(known[: len(shown)], known[len(shown) :], strict=True)
        found = mean([[statistics.fmean(tuned) - statistics.fmean(base)] for tuned, base in pairs if tuned and base])
        return plain(found, "mean") if found else None

    def score(completion: Completion) -> float | None:
        return _score(verdicts, completion)

    def length(completion: Completion) -> float:
        return float(len(completion.text))

    def perfect(completion: Completion) -> float | None:
        return None if (own := score(completion)) is None else float(own == 1.0)

    def passes(check: str, completion: Completion) -> float | None:
        return None if score(completion) is None else float(json.loads(verdicts.ratings[completion.id].raw)[check])

    rated = [rating for rating in verdicts.ratings.values() if rating.error is None]
    named = list(json.loads(rated[0].raw)) if rated and checks else []
    measures: dict[str, Callable[[Completion], float | None]] = {"length": length}
    measures |= {"score": score} if rated else {}
    measures |= {"passing": perfect} if named else {}
    measures |= {check: partial(passes, check) for check in named}
    return {
        "headline": list(headline),
        "prompts": len(shown),
        "models": list(drawn),
        "win_rate": rows[headline],
        "head_to_head": [{"model": model, "against": against, **row} for (model, against), row in rows.items() if row],
        "ratings": ratings_of(meetings, settings.baseline) if len(drawn) > 2 else None,
        "scores": each("mean", score) if rated else None,
        "passing": each("rate", perfect) if named else None,
        "checks": [{"name": check, **each("rate", partial(passes, check))} for check in named],
        "lengths": each("mean", length),
        "differences": {name: found for name, value in measures.items() if (found := change(value))},
    }


def _score(verdicts: Verdicts | None, completion: Completion) -> float | None:
    rating = verdicts.ratings.get(completion.id) if verdicts else None
    return rating.score if rating else None


def _verdict(headline: tuple[str, str], wins: dict[str, Any] | None, meetings: list[Meeting], asked_on: str) -> dict[str, str]:
    """Say what the interval, not the mean, allows; `asked_on` is what the prompts are called."""
    model, against = ({"tuned": "the tuned model", "base": "the base"}.get(name, name) for name in headline)
    prompts = len({meeting.prompt.id for meeting in meetings})
    if wins is None:
        sentence = f"Not compared: none of {len(meetings)} verdicts on {prompts} {asked_on} could be read."
        if not meetings:
            sentence = f"Not compared: there is no prompt that both {model} and {against} have answered."
        return {"word": "not compared", "sentence": sentence}
    percent = [f"{wins[name] * 100:.0f}" for name in ("rate", "low", "high")]
    share = f"wins {percent[0]} % of {wins['n']} comparisons with {against}, ties counting half"
    share += f" (95 % interval {percent[1]} to {percent[2]} %)"
    said = word(wins["low"], wins["high"])
    sentence = f"{model} is {said}: it {share} on {prompts} {asked_on}."
    if said == "no difference":
        sentence = f"No difference that {prompts} prompts can show: {model} {share}."
    return {"word": said, "sentence": sentence[0].upper() + sentence[1:] if model == "the tuned model" else sentence}


def _not_compared(headline: tuple[str, str], why: str, held_out: dict[str, Any] | None) -> str:
    model, against = headline
    if held_out is None:
        return f"{'Base' if against == 'base' else against} and {model} were not compared: {why}."
    percent = [f"{held_out['accuracy'][name] * 100:.0f}" for name in ("rate", "low", "high")]
    return (
        f"Completions were not compared ({why}); of {held_out['n']} held-out pairs the tuned model ranks "
        f"{percent[0]} % the right way round (95 % interval {percent[1]} to {percent[2]} %)."
    )


def _held_out_pairs(run: Run) -> dict[str, Any] | None:
    groups: dict[int, list[HeldOut]] = {}
    for pair in read_jsonl(run.held_out_jsonl, HeldOut):
        groups.setdefault(pair.prompt, []).append(pair)
    accuracy = rate(
        [[0.5 if p.chosen == p.rejected else float(p.chosen > p.rejected) for p in group] for group in groups.values()]
    )
    margin = mean([[p.chosen - p.rejected for p in group] for group in groups.values()])
    if accuracy is None or margin is None:
        return None
    return {"n": accuracy.n, "accuracy": plain(accuracy), "margin": plain(margin, "mean")}


def _write(
    run: Run, summary: dict[str, Any], meetings: dict[tuple[str, str], list[Meeting]], verdicts: Verdicts | None = None
) -> Counts:
    rows, every = io.StringIO(), io.StringIO()
    table, tables = csv.writer(rows), csv.writer(every)
    own, other = summary["headline"]
    table.writerow(["prompt_id", "prompt", other, own, "verdict", "reason", f"{other}_score", f"{own}_score"])
    tables.writerow(
        ["model", "against", "prompt_id", "prompt", "text", "against_text", "verdict", "reason", "score", "against_score"]
    )
    for both, some in meetings.items():
        for prompt, model, against, verdict, reason in some:
            scores = _score(verdicts, model), _score(verdicts, against)
            tables.writerow([*both, prompt.id, prompt.text, model.text, against.text, verdict, reason, *scores])
            if both == (own, other):
                who = {"win": own, "loss": other}.get(verdict, verdict)
                table.writerow([prompt.id, prompt.text, against.text, model.text, who, reason, *reversed(scores)])
    write_text(run.results_csv, rows.getvalue())
    write_text(run.head_to_head_csv, every.getvalue())
    write_json(run.summary_json, summary)
    wins = summary.get("win_rate") or {}
    return {"verdict": summary["verdict"]["sentence"]} | {
        key: wins[key] for key in ("win", "tie", "loss", "inconsistent", "failed") if key in wins
    }
