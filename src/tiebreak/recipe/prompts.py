"""`prompts`: where prompts come from."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from tiebreak.recipe.parts import Sampler, Section, regex


class Write(Section):
    """Prompts written by a model."""

    topics: tuple[str, ...] = Field(min_length=1)
    """What the prompts are about."""
    n: int = Field(ge=1)
    """Prompts in all, spread evenly over the topics."""
    instruction: str = "Write {n} different questions that a person could ask about {topic}. One per line, numbered."
    """What the model is told; {n} and {topic} are filled in."""
    sampler: Sampler
    """Who writes."""

    @field_validator("instruction")
    @classmethod
    def _has_topic(cls, value: str) -> str:
        if "{topic}" not in value or "{n}" not in value:
            raise ValueError("needs both {n} and {topic}")
        return value


class PairColumns(Section):
    """Where ready-made pairs keep the two completions: text or chat lists."""

    chosen: str = "chosen"
    """Column of the better completion."""
    rejected: str = "rejected"
    """Column of the worse completion."""
    flip_probability: str | None = None
    """Column of the probability that the two are the wrong way round, from 0 to 0.5; without it the labels are certain."""


class LabelColumns(Section):
    """Where labelled answers keep the answer and its label."""

    completion: str = "completion"
    """Column of the answer: text or chat list."""
    label: str = "label"
    """Column that says whether it is good: true or false, 1 or 0, up or down."""


class Filters(Section):
    """Which rows are kept; every dropped row is counted under the filter that dropped it. Equal rows are kept once."""

    on: tuple[Literal["prompt", "chosen", "rejected"], ...] = ("prompt",)
    """The texts that lengths and patterns are checked on; chosen and rejected with ready-made pairs."""
    min_characters: int | None = Field(None, ge=0)
    max_characters: int | None = Field(None, ge=1)
    min_words: int | None = Field(None, ge=0)
    max_words: int | None = Field(None, ge=1)
    match: str | None = None
    """Regular expression that must be found."""
    not_match: str | None = None
    """Regular expression that must not be found."""
    first: int | None = Field(None, ge=1)
    """Keep the first n rows that pass the filters above."""
    random: int | None = Field(None, ge=1)
    """Keep n rows at random, the same ones whatever their order."""

    @field_validator("match", "not_match")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        return regex(value)


class Prompts(Section):
    """Where prompts come from: exactly one of source, items, write."""

    source: str | None = None
    """A .csv, .json, .jsonl, .parquet or .txt file (relative to the recipe), or a Hub dataset id."""
    subset: str | None = None
    """Configuration of a Hub dataset."""
    hub_split: str = "train"
    """Split of a Hub dataset."""
    items: tuple[str, ...] | None = None
    """The prompts themselves."""
    write: Write | None = None
    """Prompts written by a model."""
    column: str | None = None
    """Column that holds the prompt; default: prompt, instruction (+ input), question, conversations or messages."""
    template: str | None = None
    """Text with {column} fields that makes the prompt."""
    system: str | None = None
    """System message put before every prompt."""
    pairs: PairColumns | None = None
    """Given for ready-made pairs, which need no generate and no judges."""
    labels: LabelColumns | None = None
    """Given for answers that are each good or bad, such as thumbs; they need no generate and no judges. With train.loss_type
    kto all of them are learned from; any other loss needs prompts with a good and a bad answer, which become pairs."""
    filters: Filters = Filters()
    test_fraction: float | None = Field(None, gt=0, le=1)
    """Share of the prompts held out of training, by prompt, the same ones whatever their order. Default: 0.1, or all where
    the recipe makes nothing to train on."""
    split: str | None = None
    """Column that says `train` or `test`, in place of test_fraction."""
    held_out: Literal["test", "validation"] = "test"
    """What the model is compared on; validation: a part of the training prompts, and nobody sees the test prompts. For
    choosing between settings, as `tiebreak search` does."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if sum(origin is not None for origin in (self.source, self.items, self.write)) != 1:
            raise ValueError("needs exactly one of source, items, write")
        if self.column is not None and self.template is not None:
            raise ValueError("column and template exclude each other")
        if self.pairs is None and set(self.filters.on) != {"prompt"}:
            raise ValueError("filters.on may name chosen and rejected only with ready-made pairs (prompts.pairs)")
        if self.given and self.source is None:
            raise ValueError("ready-made pairs and labels need a source")
        if self.pairs is not None and self.labels is not None:
            raise ValueError("pairs and labels exclude each other")
        if self.source is None and (self.column or self.template or self.split):
            raise ValueError("column, template and split need a source")
        if self.split is not None and self.test_fraction is not None:
            raise ValueError("split and test_fraction exclude each other")
        return self

    @property
    def given(self) -> bool:
        """Whether completions and verdicts come with the source."""
        return self.pairs is not None or self.labels is not None
