"""What people say in the app: every verdict is appended at once to the records of a human judge, and none is rewritten."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from filelock import FileLock, Timeout

from tiebreak.files import appending
from tiebreak.judges.human import OTHER, Vote, comparison_of
from tiebreak.recipe import HumanJudge
from tiebreak.records import Comparison, Completion, InputError, Prompt
from tiebreak.run import Run

Said = Literal["first", "second", "tie", "both bad"]
About = Literal["training", "models"]
"""What is judged: the completions that pairs are made of, or what models answered to held-out prompts in the evaluation."""
Both = frozenset[str]
"""The ids of two completions, in whichever order."""
PEOPLE = "people"
PLAYGROUND = "playground"
"""The name under which votes on completions are kept that the run does not have."""
BOTH_BAD = "both bad"
EDIT = "edit"
"""What `via` says of a vote that was given with the other judges' verdicts in sight."""
WAIT = 30.0
"""Seconds that an append waits for others'."""
LONGEST_NAME = 64


class Shown(NamedTuple):
    """Two completions of a prompt, by their ids, in the order in which somebody saw them."""

    prompt_id: str
    first: str
    second: str

    @property
    def both(self) -> Both:
        """The same in whichever order."""
        return frozenset((self.first, self.second))


def judge_of(run: Run) -> str:
    """Return the name under which people's verdicts are kept: the recipe's first human judge without a file, or `people`.

    Where the recipe has none, no stage reads `judgments/people.jsonl` until a human judge of that name stands in it.
    """
    for judge in run.recipe.judges:
        if isinstance(judge, HumanJudge) and judge.file is None:
            return judge.name
    taken = {judge.name.lower() for judge in run.recipe.judges}
    return PEOPLE if PEOPLE not in taken else f"{PEOPLE}-of-the-app"


def place(run: Run, about: About = "training") -> Path:
    """Return the file of people's verdicts; those on models lie where the evaluation looks for them."""
    return (run.judgments if about == "training" else run.eval_judgments)(judge_of(run))


def named(name: str | None, known: Iterable[str] = ()) -> str:
    """Return a labeller's name with single spaces, in the spelling of a `known` one. Raises InputError."""
    name = " ".join((name or "").split())
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise InputError(f"your name: give one of at most {LONGEST_NAME} characters; it is kept with each verdict")
    return next((each for each in known if each.casefold() == name.casefold()), name)


def vote(
    run: Run, shown: Shown, said: Said, labeller: str, about: About = "training", /, *, reason: str = "",
    judge: str | None = None, **more: str,
) -> Comparison:  # fmt: skip
    """Append what somebody said of two completions, and return the verdict of all people on them.

    A person has one vote on two completions, the last. The record has the two as the first person saw them; each vote, with
    the order in which it was given, its time and `more`, is a line of JSON in `raw`. `both bad` is a tie for that reason.
    `judge`: default `judge_of`, and then `about` says where. Raises InputError.
    """
    if shown.first == shown.second:
        raise InputError("a verdict is about two different completions")
    bad = said == "both bad"
    why = ": ".join(part for part in (BOTH_BAD if bad else "", reason) if part)
    line: dict[str, Any] = {"winner": "tie" if bad else said, "first": shown.first, "labeller": named(labeller)}
    line |= {"reason": why} if why else {}
    line |= {"time": datetime.now(UTC).isoformat(timespec="seconds"), **more}
    return _append(run, run.judgments(judge) if judge else place(run, about), shown, line)


def vote_on(
    run: Run, prompt: Prompt, first: Completion, second: Completion, said: Said, *, labeller: str, **more: str
) -> Comparison:
    """Append a vote on any two answers: as `vote` does where the run has them, else under `playground` with their texts."""
    shown = Shown(prompt.id, first.id, second.id)
    if shown.both <= {draw.id for draw in run.draws()}:
        return vote(run, shown, said, labeller, **more)
    texts = {"prompt": json.dumps([each.model_dump() for each in prompt.messages], ensure_ascii=False)}
    texts |= {"first_text": first.text, "second_text": second.text}
    return vote(run, shown, said, labeller, judge=PLAYGROUND, **texts, **more)


def withdraw(run: Run, shown: Shown, labeller: str, about: About = "training") -> Comparison:
    """Append that somebody takes a vote back; a record without any vote left is an error, and so is asked about again."""
    line = {"withdrawn": datetime.now(UTC).isoformat(timespec="seconds"), "labeller": named(labeller)}
    return _append(run, place(run, about), shown, line)


def standing(run: Run, about: About = "training") -> dict[Both, list[Vote]]:
    """Return the votes that count, by the two that they are about; all votes on the same two are turned the same way."""
    return {frozenset((record.first, record.second)): list(_votes(record)) for record in _records(run, place(run, about))}


def as_comparisons(votes: Iterable[Vote], labeller: str) -> list[Comparison]:
    """Return one person's votes as the verdicts of a judge, without those that were given in sight of other judges'."""
    return [
        Comparison(prompt_id=each.prompt_id, first=each.first, second=each.second, judge=labeller, winner=each.winner)
        for each in votes
        if each.labeller == labeller and _line(each.raw).get("via") != EDIT
    ]


def reach(run: Run, about: About = "training") -> str:
    """Say what it takes for people's verdicts to become pairs, or part of the report."""
    name, label = judge_of(run), run.recipe.labelling_judge
    there = any(judge.name == name for judge in run.recipe.judges)
    add = "" if there else f"add {{type: human, name: {name}}} to its judges, and "
    if about == "models":
        how = f"In the recipe, {add}run" if add else "Run"
        return f"{how} `tiebreak evaluate {run.path}` for the report to say how far the evaluating judge agrees with {name}."
    if name == label:
        return f"The pairs follow {name}: `tiebreak pair {run.path} --redo` makes them anew, and all that came of them."
    if name in run.recipe.members(label):
        return (
            f"The pairs follow {label}, which asks {name}: `tiebreak judge {run.path}` takes verdicts in, "
            f"then `tiebreak pair {run.path} --redo` makes the pairs anew, and all that came of them."
        )
    return (
        f"The pairs follow {label}, which does not ask {name}, so these verdicts change none yet. In the recipe, {add}"
        f"set pair.judge to {name}, or to a panel or cascade that has {name} as a member."
    )


# --- records -------------------------------------------------------------------------------------------------------


def _append(run: Run, path: Path, shown: Shown, line: dict[str, Any]) -> Comparison:
    judge, raw = path.stem, json.dumps(line, ensure_ascii=False)
    with _alone(path):
        earlier = next((each for each in _records(run, path) if {each.first, each.second} == shown.both), None)
        # Of one question only the last line counts, and who is first belongs to the question.
        if earlier is not None:
            shown = Shown(*turned(Vote(*shown, "tie", ""), earlier.first)[:3])
        votes = {each.labeller: each for each in (_votes(earlier) if earlier else ())}
        votes.pop(line["labeller"], None)
        if "winner" in line:
            votes[line["labeller"]] = _vote(shown, line, raw)
        record = (
            comparison_of(judge, list(votes.values()))
            if votes
            else Comparison(**shown._asdict(), judge=judge, error="withdrawn", raw=raw)
        )
        with appending(path) as append:
            append(record)
    return record


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a file of records against others who append: which votes there are is read first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire(timeout=WAIT)
    except Timeout:
        raise InputError(f"{path}: others have been writing for {WAIT:.0f} s; try again") from None
    try:
        yield
    finally:
        lock.release()


def _records(run: Run, path: Path) -> list[Comparison]:
    return [each for each in run.verdicts(path) if isinstance(each, Comparison)]


def _votes(record: Comparison) -> Iterator[Vote]:
    """Yield the votes that a record is made of; one that another program wrote is a vote by itself."""
    if record.winner is None:
        return
    shown = Shown(record.prompt_id, record.first, record.second)
    lines = [line for raw in record.raw.split("\n") if (line := _line(raw)).get("winner") in tuple(OTHER)]
    foreign = {"winner": record.winner, "first": record.first, "labeller": record.judge, "reason": record.reason}
    for line in lines or [foreign]:
        yield _vote(shown, line, json.dumps(line, ensure_ascii=False))


def _vote(shown: Shown, line: dict[str, Any], raw: str) -> Vote:
    """Return the vote that a line of JSON tells of, turned as `shown` is."""
    first, second = shown.first, shown.second
    if line.get("first") == second:
        first, second = second, first
    vote = Vote(shown.prompt_id, first, second, line["winner"], str(line.get("labeller", "")), str(line.get("reason", "")), raw)
    return turned(vote, shown.first)


def turned(vote: Vote, first: str) -> Vote:
    """Return a vote on the same two as if `first` had been the first of them."""
    if vote.first == first:
        return vote
    return vote._replace(first=vote.second, second=vote.first, winner=OTHER[vote.winner])


def _line(raw: str) -> dict[str, Any]:
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return line if isinstance(line, dict) else {}
