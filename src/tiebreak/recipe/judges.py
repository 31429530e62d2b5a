"""`judges`: who decides which completion is better."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from tiebreak.recipe.parts import Endpoint, Name, Section, regex


class Check(Section):
    """One rule; it passes or fails."""

    weight: float = Field(1.0, gt=0)
    """Share of the score relative to the other checks."""
    name: str | None = None
    """What reports call it; default: a name made from its settings."""


class Length(Check):
    """Length between min and max, both included."""

    check: Literal["length"]
    min: int = Field(0, ge=0)
    max: int | None = Field(None, ge=1)
    unit: Literal["characters", "words"] = "characters"

    @model_validator(mode="after")
    def _some_length_passes(self) -> Self:
        if self.max is not None and self.min > self.max:
            raise ValueError(f"no text is at least {self.min} and at most {self.max} {self.unit} long")
        return self


class OneLine(Check):
    """A single line, spaces around it aside."""

    check: Literal["one_line"]


class Match(Check):
    """A regular expression that must be found (match) or must not (not_match)."""

    check: Literal["match", "not_match"]
    pattern: str

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        regex(value)
        return value


class Edge(Check):
    """The text starts (starts_with) or ends (ends_with) with one of these."""

    check: Literal["starts_with", "ends_with"]
    texts: tuple[str, ...] = Field(min_length=1)


class NoMarkdown(Check):
    """No headings, emphasis, lists, links, tables or code marks of Markdown."""

    check: Literal["no_markdown"]


class PromptWords(Check):
    """Shares at least `min` content words with the prompt."""

    check: Literal["prompt_words"]
    min: int = Field(1, ge=1)
    of: str | None = None
    """Field of the source row to take the words from; default: the whole prompt."""


class Repetition(Check):
    """At most this share of the text's three-word sequences repeat an earlier one."""

    check: Literal["repetition"]
    max: float = Field(0.2, ge=0, le=1)


AnyCheck = Annotated[Length | OneLine | Match | Edge | NoMarkdown | PromptWords | Repetition, Field(discriminator="check")]


class RulesJudge(Section):
    """Scores a completion by the weighted share of checks that it passes."""

    type: Literal["rules"]
    name: Name = "rules"
    checks: tuple[AnyCheck, ...] = Field(min_length=1)


class LlmJudge(Endpoint):
    """A language model that compares two completions."""

    type: Literal["llm"]
    name: Name = "llm"
    criteria: str
    """What makes a completion better: a text file (relative to the recipe, or shipped), or the text itself."""
    orders: Literal["both", "random", "first"] = "both"
    """Show each two completions both ways, in one random order, or in the order of drawing."""
    temperature: float = Field(0.0, ge=0)
    max_new_tokens: int = Field(512, ge=1)


Judge = Annotated[RulesJudge | LlmJudge, Field(discriminator="type")]
