"""One prompt's whole life as plain text: what was asked, answered, judged and paired, and what both models answer now."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

from tiebreak.metrics.agreement import Outcome, Verdicts
from tiebreak.recipe import GIVEN
from tiebreak.records import InputError, Prompt
from tiebreak.reporting.meetings import read_meetings
from tiebreak.run import Run
from tiebreak.stages.pair import attempts
from tiebreak.stages.twos import twos

TIMES = {1: "once", 2: "twice"}


def life(run: Run, prompt_id: str) -> str:
    """Return the life of the prompt whose id begins with `prompt_id`; InputError where there is none, or several."""
    found = [prompt for prompt in run.prompts() if prompt.id.startswith(prompt_id)]
    if not found:
        raise InputError(f"{run.path}: no prompt {prompt_id!r}; {run.prompts_jsonl} lists the ids")
    if len(found) > 1:
        few = ", ".join(prompt.id for prompt in found[:3])
        raise InputError(f"{run.path}: {len(found)} prompts begin with {prompt_id!r}, such as {few}; give more of the id")
    prompt = found[0]
    names = [judge.name for judge in run.recipe.judges] + [GIVEN] * run.ready_made
    judges = {name: Verdicts(run.verdicts(run.judgments(name))) for name in names if run.judgments(name).exists()}
    marks: dict[str, str] = {}
    sections = [_asked(prompt)]
    if run.recipe.makes_pairs:
        sections += [_answered(run, prompt, judges, marks), _judged(run, prompt, judges, marks), _paired(run, prompt, marks)]
    sections.append(_compared(run, prompt))
    return "\n\n".join("\n".join(lines) for section in sections if (lines := list(section)))


def _asked(prompt: Prompt) -> Iterator[str]:
    yield f"Prompt {prompt.id} ({prompt.split})"
    for message in prompt.messages:
        yield from _text(message.content, f"{message.role}: ")
    for field, value in prompt.meta.items():
        yield from _text(str(value), f"{field} = ")


def _answered(run: Run, prompt: Prompt, judges: dict[str, Verdicts], marks: dict[str, str]) -> Iterator[str]:
    """Yield each distinct completion under a mark, which `marks` keeps by its id."""
    draws = [draw for draw in run.draws() if draw.prompt_id == prompt.id]
    for draw in draws:
        marks.setdefault(draw.id, f"[{len(marks) + 1}]")
    yield f"Completions: {len(marks)} distinct of {len(draws)} drawn"
    for completion, mark in marks.items():
        same = [draw for draw in draws if draw.id == completion]
        samplers = ", ".join(dict.fromkeys(draw.sampler for draw in same))
        cut = ", cut at the token limit" if same[0].finish_reason == "length" else ""
        yield f"{mark} {samplers}, drawn {TIMES.get(len(same), f'{len(same)} times')}{cut}"
        yield from _text(same[0].text or "(empty)")
        for name, verdicts in judges.items():
            if rating := verdicts.ratings.get(completion):
                score = "error" if rating.score is None else f"{rating.score:.2f}"
                yield from _text(rating.error or rating.reason, f"{name} {score}: ")


def _judged(run: Run, prompt: Prompt, judges: dict[str, Verdicts], marks: dict[str, str]) -> Iterator[str]:
    asked = [(one.id, other.id) for asked, one, other in twos(run) if asked.id == prompt.id]
    for name, verdicts in judges.items():
        yield f"Verdicts of {name}: {len(asked)} twos"
        for one, other in asked:
            outcome = verdicts.outcome(one, other)
            yield from _text(outcome.reason, f"{_settled(outcome, one, other, marks)}: ")


def _settled(outcome: Outcome, one: str, other: str, marks: dict[str, str]) -> str:
    if outcome.kind != "win":
        return f"{marks[one]} and {marks[other]}, {outcome.kind}"
    won, lost = (one, other) if outcome.winner == one else (other, one)
    return f"{marks[won]} beats {marks[lost]} by {outcome.margin:.2f}"


def _paired(run: Run, prompt: Prompt, marks: dict[str, str]) -> Iterator[str]:
    if run.state("pair") != "done":
        yield f"Pairs: none yet, pair is {run.state('pair')}"
        return
    own = [attempt for attempt in attempts(run) if attempt.prompt.id == prompt.id]
    usable = sum(attempt.why_not is None for attempt in own)
    yield f"Pairs by {run.recipe.labelling_judge}: {usable} of {len(own)} usable"
    for attempt in own:
        chosen, rejected = (marks[completion.id] for completion in attempt.ranked)
        if attempt.why_not is None:
            yield f"  {chosen} chosen, {rejected} rejected, margin {attempt.outcome.margin:.2f}"
        else:
            yield f"  {chosen} and {rejected}: {attempt.why_not}"


def _compared(run: Run, prompt: Prompt) -> Iterator[str]:
    if prompt.split != "test" or run.recipe.evaluate is None:
        return
    model, against = run.recipe.evaluate.headline
    if run.state("evaluate") != "done":
        yield f"{_first(against)} against {model}: not yet, evaluate is {run.state('evaluate')}"
        return
    met = read_meetings(run)
    rows = [row for row in met.rows if row.prompt_id == prompt.id]
    yield f"{_first(met.against)} against {met.model}: {len(rows)} comparisons"
    for row in rows:
        for name, text, score in ((met.against, row.against, row.against_score), (met.model, row.model, row.model_score)):
            yield from _text(text or "(empty)", f"{name}{f' {float(score):.2f}' if score else ''}: ")
        yield from _text(row.reason, f"{met.words(row.verdict)}: ")


def _first(name: str) -> str:
    return "Base" if name == "base" else name


def _text(text: str, name: str = "") -> Iterator[str]:
    """Yield indented lines; signs that a terminal would obey are spelled out."""
    plain = "".join(
        repr(sign)[1:-1] if sign != "\n" and unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") else sign for sign in text
    )
    lines = plain.split("\n")
    yield f"  {name}{lines[0]}" if text else f"  {name.removesuffix(': ')}"
    yield from (f"  {' ' * len(name)}{line}" for line in lines[1:])
