"""What a recipe will cost at most, as far as that is known before the first call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from math import comb
from pathlib import Path
from typing import NamedTuple

from tiebreak.exchange.sources import READERS
from tiebreak.judges.questions import question
from tiebreak.recipe import ApiModel, ApiSampler, Endpoint, LlmJudge, Recipe, Sampler
from tiebreak.recipe_yaml import SHIPPED
from tiebreak.records import InputError, Message, Prompt
from tiebreak.samplers.ledger import dollars
from tiebreak.samplers.prices import CHARACTERS_PER_TOKEN, price_of

LARGEST_SOURCE = 20_000_000
"""Bytes of a file whose rows are counted for an estimate."""
UNKNOWN_PROMPT = 200
"""Tokens of a prompt that nobody has seen yet."""


class Part(NamedTuple):
    """One part of a recipe that calls a server."""

    name: str
    calls: int
    tokens_in: int
    tokens_out: int
    cost: float | None
    """US dollars at most; None where no price is known."""
    budget: float | None


class Estimate(NamedTuple):
    """What is known before the first call."""

    prompts: int | None
    """At most so many; None where only the source knows."""
    parts: tuple[Part, ...]

    @property
    def sentence(self) -> str:
        """What it comes to, in words."""
        if not self.parts:
            return "Nothing is paid: every model of this recipe runs in this machine's own process."
        if self.prompts is None:
            return "How many prompts there are is known once they are read, and with it the cost; each paid part says it first."
        known = [
            part.cost if part.budget is None else min(part.cost, part.budget) for part in self.parts if part.cost is not None
        ]
        calls = f"{sum(part.calls for part in self.parts):,} calls"
        if len(known) < len(self.parts):
            unknown = ", ".join(part.name for part in self.parts if part.cost is None)
            return f"At most {calls}; no price is known for {unknown}, so neither is the cost: set its price, or a max_calls."
        return f"At most {dollars(sum(known))} for {calls}, were every reply as long as it may be; tries that fail come on top."


def estimate(recipe: Recipe, folder: Path) -> Estimate:
    """Return what the recipe in `folder` comes to at most. A token is taken for four characters."""
    prompts, tokens = _prompts(recipe, folder)
    many = prompts or 0
    draws = sum(sampler.n for sampler in recipe.generate)
    longest = max((sampler.max_new_tokens for sampler in recipe.generate), default=0)
    held_out = round(many * recipe.test_fraction) or min(many, 1)
    found: list[Part | None] = []
    if recipe.prompts.write is not None:
        found.append(_drawn("prompts.write", recipe.prompts.write.sampler, recipe.prompts.write.n, UNKNOWN_PROMPT))
    found += [_drawn(f"generate.{at}", sampler, many, tokens) for at, sampler in enumerate(recipe.generate)]
    for at, judge in enumerate(recipe.judges):
        if isinstance(judge, LlmJudge) and recipe.makes_pairs:
            calls = many * _questions(judge, draws)
            found.append(
                _judged(f"judges.{at} {judge.name}", judge, calls, tokens=tokens, draws=draws, longest=longest, folder=folder)
            )
    found += _evaluated(recipe, held_out, tokens, folder)
    return Estimate(prompts, tuple(part for part in found if part is not None and (part.calls or prompts is None)))


def _evaluated(recipe: Recipe, prompts: int, tokens: int, folder: Path) -> Iterator[Part | None]:
    evaluate, judge = recipe.evaluate, recipe.evaluating_judge
    if evaluate is None:
        return
    draws, longest = prompts * evaluate.n, evaluate.max_new_tokens
    for model in evaluate.models:
        if isinstance(model, ApiModel):
            yield _part(f"evaluate {model.name}", model, draws, tokens, longest)
    for name in sorted(recipe.members(judge.name) if judge else ()):
        one = recipe.judge(name)
        if isinstance(one, LlmJudge):
            met = len(evaluate.names) if one.rates else len(evaluate.pairs) * (2 if one.orders == "both" else 1)
            yield _judged(f"evaluate {name}", one, draws * met, tokens=tokens, draws=2, longest=longest, folder=folder)


def _drawn(name: str, sampler: Sampler, prompts: int, tokens: int) -> Part | None:
    return _part(name, sampler, prompts * sampler.n, tokens, sampler.max_new_tokens) if isinstance(sampler, ApiSampler) else None


def _questions(judge: LlmJudge, draws: int) -> int:
    """Return how many questions a prompt's completions make."""
    each = {"pairwise": comb(draws, 2), "pointwise": draws, "listwise": 1}[judge.ask]
    return each * (2 if judge.orders == "both" and judge.ask != "pointwise" else 1)


def _judged(
    name: str, judge: LlmJudge, calls: int, *, tokens: int, draws: int, longest: int, folder: Path
) -> Part | None:  # fmt: skip
    answers = {"pairwise": 2, "pointwise": 1, "listwise": draws}[judge.ask]
    blank = Prompt.of((Message(role="user", content="?"),), "train")
    frame = len(question(judge.ask, _criteria(judge, folder), blank, ["?"] * answers)) // CHARACTERS_PER_TOKEN
    canaries = 2 * judge.canaries * (2 if judge.orders == "both" else 1) if calls else 0
    return _part(name, judge, calls + canaries, frame + tokens + answers * longest, judge.max_new_tokens)


def _criteria(judge: LlmJudge, folder: Path) -> str:
    for path in (folder / judge.criteria, SHIPPED / f"{judge.criteria}.txt"):
        with suppress(OSError, ValueError):  # the text itself is no file's name
            if path.is_file():
                return path.read_text(encoding="utf-8")
    return judge.criteria


def _part(name: str, section: Endpoint, calls: int, tokens_in: int, tokens_out: int) -> Part | None:
    if section.provider == "local":
        return None
    calls = min(calls, section.max_calls or calls)
    price = price_of(section)
    cost = calls * (tokens_in * price.input + tokens_out * price.output) / 1e6 if price else None
    if cost == 0:
        return None
    return Part(name, calls, calls * tokens_in, calls * tokens_out, cost, section.budget_usd)


def _prompts(recipe: Recipe, folder: Path) -> tuple[int | None, int]:
    """Return how many prompts there are at most, and the tokens of one."""
    section = recipe.prompts
    if section.write is not None:
        return section.write.n, UNKNOWN_PROMPT
    if section.items is not None:
        texts: list[str] | None = list(section.items)
    else:
        texts = _rows(section.source or "", folder)
    filters = [most for most in (section.filters.first, section.filters.random) if most is not None]
    if texts is None:
        return min(filters, default=None), UNKNOWN_PROMPT
    frame = len(section.template or "") + len(section.system or "")
    longest = (sum(map(len, texts)) // max(1, len(texts)) + frame) // CHARACTERS_PER_TOKEN
    return min([len(texts), *filters]), longest


def _rows(source: str, folder: Path) -> list[str] | None:
    """Return the text of each row of a file; None where it is no file, or too large to read for this."""
    for path in (folder / source, Path(source).expanduser(), SHIPPED / source):
        if path.is_file() and path.suffix.lower() in READERS and path.stat().st_size <= LARGEST_SOURCE:
            try:
                return [" ".join(map(str, row.cells.values())) for row in READERS[path.suffix.lower()](path)]
            except (InputError, OSError):
                return None
    return None
