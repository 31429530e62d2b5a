"""What is asked in the playground, of which models, how it went, and what people said of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

from pydantic import ValidationError

from tiebreak.app import served, votes
from tiebreak.app.answers import Answer, Stop, Writer
from tiebreak.app.home import Home
from tiebreak.app.shelf import Choice, Shelf, models_of, named
from tiebreak.models import BUILTIN
from tiebreak.recipe import LocalSampling, Model
from tiebreak.records import Completion, InputError, Message, Prompt
from tiebreak.run import Run
from tiebreak.samplers.ledger import dollars
from tiebreak.stages.prepare import FIELD

SLOTS = "ABC"
ENDED = {"stop": "ended by itself", "content_filter": "held back by the provider", "stopped": "stopped"}
SAMPLING = ("temperature", "top_p", "top_k", "max_new_tokens")

SHELF = Shelf()
"""One for all pages of this process: a model is loaded once."""


class Round(NamedTuple):
    """What was asked, and who answered, in the order in which it is shown."""

    run: str
    prompt: Prompt
    names: tuple[str, ...]
    answers: tuple[Answer, ...]
    sampling: LocalSampling
    seed: int
    blind: bool

    @property
    def sound(self) -> bool:
        """Whether every answer came to its own end."""
        return all(answer.problem is None and answer.finish != "stopped" for answer in self.answers)


# --- what is asked of whom -----------------------------------------------------------------------------------------


def choices(home: Home, first: str | None) -> list[str]:
    """Return the names of all runs' models, those of the run `first` at the top."""
    found = []
    for name in sorted(home.names(), key=lambda name: name != first):
        try:
            found += [f"{name}: {model}" for model in models_of(home.open(name))]
        except InputError:  # a run that cannot be read, as the page of runs says
            continue
    return [*found, *BUILTIN]


def find(home: Home, name: str) -> Choice:
    """Return the model of a name that `choices` gives, or that somebody typed in. Raises InputError."""
    choice: Choice | None = None
    for run in home.names():
        if name.startswith(f"{run}: "):
            choice = models_of(home.open(run)).get(name.removeprefix(f"{run}: "))
            break
    own = name in BUILTIN or isinstance(choice, Model)
    if not own and not home.may_start:
        raise InputError(f"model {name}: choose a model of a run that is on this machine; here no others are loaded or called")
    return choice or named(name)


def settings_of(*values: float | None) -> LocalSampling:
    """Return the settings that the page's numbers make. Raises InputError."""
    given = {name: value for name, value in zip(SAMPLING, values, strict=True) if value is not None}
    whole = {name: int(value) if name in ("top_k", "max_new_tokens") else float(value) for name, value in given.items()}
    try:
        return LocalSampling(**whole)  # type: ignore[arg-type]
    except ValidationError as error:
        problem = error.errors()[0]
        raise InputError(f"{problem['loc'][0]}: {problem['msg']}") from None


def chat_of(system: str, earlier: Sequence[Message], text: str) -> tuple[Message, ...]:
    """Return the turns that models are to answer. Raises InputError."""
    if not text.strip():
        raise InputError("the prompt is empty; write one, or choose an example")
    first = (Message(role="system", content=system),) if system.strip() else ()
    return (*first, *earlier, Message(role="user", content=text))


def field_of(run: Run) -> str | None:
    """Return the one field that a run's template has, None where there is no template, or more to fill in."""
    fields = {match[1] for match in FIELD.finditer(run.recipe.prompts.template or "") if match[1] is not None}
    return next(iter(fields)) if len(fields) == 1 else None


def writer_of(
    home: Home, run: str | None, name: str, messages: Sequence[Message], sampling: LocalSampling, *, seed: int
) -> Writer:
    """Return who writes for a model of this name; what is wrong with the model is told in its answer.

    What a server's model costs is entered in the account of `run`, to which the votes go, and without one in the directory's.
    """

    def write(answer: Answer, stop: Stop) -> None:
        choice = find(home, name)
        if isinstance(choice, Model):
            from tiebreak.app import streams

            streams.local(SHELF, choice, messages, sampling, seed)(answer, stop)
        else:
            served.api(choice, messages, sampling, seed, home.calls(run))(answer, stop)

    return write


def caption(answer: Answer) -> str:
    """Say how an answer went."""
    if not answer.ended and not answer.tokens:
        return "loading the model" if answer.state == "loading" else "reading the prompt"
    said = []
    if answer.tokens:
        said.append(f"{answer.tokens} token{'s' * (answer.tokens > 1)} in {answer.seconds:.1f} s")
        if answer.first is not None:
            said[0] += f", the first after {answer.first:.2f} s"
            if answer.tokens > 1 and answer.seconds > answer.first:  # of a server, the first may be the whole
                said[0] += f", then {(answer.tokens - 1) / (answer.seconds - answer.first):.3g} tokens/s"
    if answer.finish:
        said.append(ENDED.get(answer.finish) or f"cut at {answer.tokens} tokens")
    said += [dollars(answer.cost)] if answer.cost else []
    said += [answer.problem] if answer.problem else []
    return "; ".join([*said, *answer.notes])


# --- votes ---------------------------------------------------------------------------------------------------------


def verdicts(winner: str, count: int) -> Iterator[tuple[int, int, votes.Said]]:
    """Yield what a vote says of every two of `count` answers; `winner` is a slot, `tie` or `both bad`."""
    for one, other in combinations(range(count), 2):
        if winner in ("tie", "both bad"):
            yield one, other, winner  # type: ignore[misc]
        elif SLOTS.index(winner) in (one, other):
            yield one, other, "first" if SLOTS.index(winner) == one else "second"


def keep(home: Home, asked: Round, winner: str, labeller: str) -> str:
    """Append a vote to the run, as a comparison of every two answers that it tells apart, and say where. Raises InputError."""
    if not asked.run:
        raise InputError("a vote is kept in a run; choose one")
    run, sampling = home.open(asked.run), asked.sampling.model_dump(include=set(SAMPLING), mode="json")
    answers = [
        Completion.of(
            asked.prompt.id, answer.text, sampler=name, sampling=sampling, tokens=answer.tokens, finish_reason=answer.finish
        )
        for name, answer in zip(asked.names, asked.answers, strict=True)
    ]
    more = {"via": "playground", "sampling": json.dumps(sampling), "seed": str(asked.seed)}
    kept = [
        votes.vote_on(
            run, asked.prompt, answers[one], answers[other], said, labeller=labeller,
            first_model=asked.names[one], second_model=asked.names[other], **more,
        )
        for one, other, said in verdicts(winner, len(answers))
        if answers[one].id != answers[other].id
    ]  # fmt: skip
    if not kept:
        return "The answers are the same, so there is nothing to keep."
    return f"Kept in {run.judgments(kept[0].judge).relative_to(run.path)} of {asked.run}, as {labeller} said it."
