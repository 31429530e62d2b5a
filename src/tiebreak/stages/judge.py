"""judge: every judge of the recipe on every completion, or on every two of a prompt; panels and cascades ask their members."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import cast

from tiebreak.files import appending, write_jsonl
from tiebreak.judges import Answer, Comparer, Match, Rater, human
from tiebreak.judges.build import build_judge, part_of
from tiebreak.judges.canaries import CanaryResult, answers, assess, canaries
from tiebreak.judges.llm import Llm
from tiebreak.judges.panel import combine, decide, passes_on
from tiebreak.metrics.agreement import Two, Verdicts
from tiebreak.progress import progress, say
from tiebreak.recipe import CascadeJudge, Endpoint, HumanJudge, Judge, LlmJudge, PairRmJudge, PanelJudge, RewardJudge
from tiebreak.records import Comparison, InputError, Rating, content_hash
from tiebreak.run import Counts, Run
from tiebreak.samplers.ledger import dollars, spent
from tiebreak.samplers.prices import estimate
from tiebreak.stages.twos import twos

COUNTED = 200
"""Questions that an estimate of the cost is made from."""
Place = Callable[[str], Path]
"""Where a judge's verdicts go, by its name: `run.judgments`, or `run.eval_judgments`."""


class Builder:
    """Builds judges, and keeps the last one: a model that flies canaries and then answers is loaded once."""

    def __init__(self, run: Run) -> None:
        self.run, self._last = run, dict[str, Comparer | Rater]()

    def __call__(self, section: Judge) -> Comparer | Rater:
        """Return the judge of a section."""
        if section.name not in self._last:
            self._last.clear()  # before another one needs the memory
            self._last[section.name] = build_judge(section, self.run)
        return self._last[section.name]


def judge(run: Run) -> Counts:
    """Append the verdicts that are owed, and ask again where the last answer was an error.

    Canaries come first, so that a judge that cannot be trusted is not paid for more: InputError where one fails that the
    run rests on, unless that is accepted.
    """
    asked, judges, build = twos(run), run.recipe.judges, Builder(run)
    send_canaries(run, judges, asked, build)
    members = {name for section in judges if isinstance(section, PanelJudge | CascadeJudge) for name in section.judges}
    for section in judges:
        if section.name not in members or section.name == run.recipe.labelling_judge:
            ask(run, section, run.judgments, asked, build)
    return {section.name: count(run, section, run.judgments(section.name)) for section in judges}


def ask(run: Run, section: Judge, place: Place, asked: list[Two], build: Builder | None = None) -> None:
    """Have one judge decide between two and two completions, and write its verdicts to its `place`."""
    build = build or Builder(run)
    members = [run.recipe.judge(name) for name in section.judges] if isinstance(section, PanelJudge | CascadeJudge) else []
    match section:
        case PanelJudge():
            for member in members:
                ask(run, member, place, asked, build)
            voices = {member.name: Verdicts(run.verdicts(place(member.name))) for member in members}
            write_jsonl(place(section.name), combine(section, voices, _askable(asked)))
        case CascadeJudge():
            owed, told = asked, list[tuple[Judge, Verdicts]]()
            for member in members:
                # What people said costs nothing, and a row of theirs that is not needed is no mistake.
                ask(run, member, place, asked if isinstance(member, HumanJudge) else owed, build)
                verdicts = Verdicts(run.verdicts(place(member.name)))
                told.append((member, verdicts))
                owed = [two for two in owed if passes_on(section, member, verdicts.outcome(two[1].id, two[2].id))]
            write_jsonl(place(section.name), decide(section, told, _askable(asked)))
        case HumanJudge():
            _append_people(run, section, place(section.name), asked)
        case _:
            questions = _answers(asked) if section.rates else _matches(asked, section, run.recipe.seed)
            _put(build, section, questions, place(section.name), f"judge {section.name}")


def _put(build: Builder, section: Judge, questions: list[Match] | list[Answer], path: Path, label: str) -> None:
    """Put to a judge what it has not answered yet, and append each verdict as it lands."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()  # who was asked nothing has a file too
    have = [verdict for verdict in build.run.verdicts(path) if verdict.error is None]
    compared = {(verdict.first, verdict.second) for verdict in have if isinstance(verdict, Comparison)}
    rated = {verdict.completion_id for verdict in have if isinstance(verdict, Rating)}
    matches = [each for each in questions if isinstance(each, Match) and (each.first.id, each.second.id) not in compared]
    if _ranks(section):  # a ranking is one question about all of a prompt's
        owed_prompts = {match.prompt.id for match in matches}
        matches = [each for each in questions if isinstance(each, Match) and each.prompt.id in owed_prompts]
    alone = [each for each in questions if isinstance(each, Answer) and each.completion.id not in rated]
    if owed := len(matches) + len(alone):
        judge = build(section)
        if isinstance(section, Endpoint) and isinstance(judge, Llm):
            _say_cost(section, judge, matches or alone, label)
        records: Iterator[Comparison] | Iterator[Rating] = (
            cast(Rater, judge).rate(alone) if section.rates else cast(Comparer, judge).compare(matches)
        )
        with appending(path) as append, progress(label, owed, "verdicts") as advance:
            for record in records:
                append(record)
                advance(1)


def _say_cost(section: Endpoint, judge: Llm, owed: Sequence[Match] | Sequence[Answer], label: str) -> None:
    """Say before the first call what all of them will come to, from some of them."""
    some = owed[:COUNTED]  # neighbours, since a ranking takes several
    each = estimate(section, judge.questions(some))
    if each.cost_at_most:
        share = len(owed) / len(some)
        say(
            f"{label}: {each.calls * share:,.0f} calls, about {each.prompt_tokens * share:,.0f} tokens in and at most "
            f"{each.tokens_at_most * share:,.0f} out: at most {dollars(each.cost_at_most * share)}"
            + (f", of which the budget allows {dollars(section.budget_usd)}" if section.budget_usd else "")
        )


def _append_people(run: Run, section: HumanJudge, path: Path, asked: list[Two]) -> None:
    """Append the verdicts of people that a file holds and that are not there yet; the app appends others by itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    if section.file is None:
        return
    prompts = {prompt.id: prompt for prompt, _, _ in asked}
    completions = {each.id: each for _, *both in asked for each in both}
    verdicts, unmatched = human.verdicts(run.resolve(section.file), section.name, prompts.values(), completions.values())
    have = {frozenset((verdict.first, verdict.second)) for verdict in run.verdicts(path) if isinstance(verdict, Comparison)}
    with appending(path) as append:
        for verdict in verdicts:
            if frozenset((verdict.first, verdict.second)) not in have:
                append(verdict)
    if unmatched:
        reasons = ", ".join(f"{number} {reason}" for reason, number in unmatched.items())
        say(f"{section.name}: {unmatched.total()} rows of {section.file} fit nothing here: {reasons}")


# --- canaries ------------------------------------------------------------------------------------------------------


def send_canaries(run: Run, sections: Iterable[Judge], asked: list[Two], build: Builder) -> None:
    """Put questions with a known answer to every judge that is a model.

    Raises InputError where one fails that the run rests on, unless that is accepted.
    """
    rests_on = run.recipe.members(
        run.recipe.labelling_judge, evaluating.name if (evaluating := run.recipe.evaluating_judge) else None
    )
    for section in sections:
        if not isinstance(section, LlmJudge | PairRmJudge | RewardJudge) or not section.canaries:
            continue
        result = canary_result(run, section, asked, build)
        if result.failed:
            say(f"judge {section.name} fails its canaries: {result.sentence}")
            if section.name in rests_on and not run.accepts_canary_failures:
                raise InputError(
                    f"judge {section.name} fails its canaries ({result.sentence}), so it decides nothing; read "
                    f"{run.canaries(section.name)}, change the judge, or go on with --accept-canary-failures"
                )


def canary_result(
    run: Run, section: LlmJudge | PairRmJudge | RewardJudge, asked: list[Two], build: Builder | None = None
) -> CanaryResult:
    """Return how a judge did on its canaries, which are put to it where `build` is given."""
    prompts = {prompt.id: prompt for prompt, _, _ in asked}
    completions = {each.id: each for _, *both in asked for each in both}
    flown = canaries(prompts.values(), completions.values(), section.canaries, run.recipe.seed)
    if section.rates:  # one score for both of two equal texts says nothing
        flown = [canary for canary in flown if canary.kind == "garbage"]
    path = run.canaries(section.name)
    if build is not None:
        for kind in ("identical", "garbage"):  # apart, so that a judge that ranks is shown two at a time
            own = [canary for canary in flown if canary.kind == kind]
            questions = answers(own) if section.rates else [canary.match for canary in own]
            _put(build, section, questions, path, f"canaries {section.name}")
    return assess(flown, run.verdicts(path))


# --- counting ------------------------------------------------------------------------------------------------------


def count(run: Run, section: Judge, path: Path) -> Counts:
    """Count a judge's records, errors, ties, the contradictions after a swap, its calls and what they cost."""
    records = run.verdicts(path)
    counts: Counts = {
        "kind": section.type,
        "records": len(records),
        "errors": sum(record.error is not None for record in records),
    }
    if not section.rates:
        kinds: list[str] = [outcome.kind for outcome in Verdicts(records).outcomes()]
        counts |= {
            "ties": kinds.count("tie"),
            "inconsistent": kinds.count("inconsistent"),
            "unreadable": kinds.count("unreadable"),
        }
        counts["questions"] = len(kinds)
    if used := spent(run.calls_sqlite).get(part_of(section)):
        counts |= {"calls": used.calls, "cost": used.cost}
    return counts


# --- what there is to ask ------------------------------------------------------------------------------------------


def _askable(asked: Iterable[Two]) -> Iterator[Two]:
    """Yield twos that anybody can be asked about, each once: not an empty answer, and not two equal ones."""
    seen = set[frozenset[str]]()
    for prompt, one, other in asked:
        both = frozenset((one.id, other.id))
        if len(both) == 2 and both not in seen and one.text.strip() and other.text.strip():
            seen.add(both)
            yield prompt, one, other


def _matches(asked: Iterable[Two], section: Judge, seed: int) -> list[Match]:
    """Return what a judge that compares is shown."""
    orders = section.orders if isinstance(section, LlmJudge) else "first"
    shown: dict[tuple[str, str], Match] = {}
    for prompt, one, other in _askable(asked):
        both = [Match(prompt, one, other), Match(prompt, other, one)]
        if orders == "random" and _ranks(section):  # all of a prompt the same way round: they are one question
            both = both[:: 1 if int(content_hash(seed, prompt.id), 16) % 2 else -1]
        elif orders == "random":  # the two alone decide, not the order in which they were drawn
            both.sort(key=lambda match: content_hash(seed, match.first.id, match.second.id))
        shown |= {(match.first.id, match.second.id): match for match in (both if orders == "both" else both[:1])}
    return list(shown.values())


def _ranks(section: Judge) -> bool:
    return isinstance(section, LlmJudge) and section.ask == "listwise"


def _answers(asked: Iterable[Two]) -> list[Answer]:
    """Return what a judge that scores is shown: the completions, each once."""
    return list({each.id: Answer(prompt, each) for prompt, *both in asked for each in both}.values())
