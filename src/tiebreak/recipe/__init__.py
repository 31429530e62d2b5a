"""The recipe: one frozen tree for the YAML. Every key is in this package, with its help text; `tiebreak keys` prints them."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from tiebreak.recipe.checks import AnyCheck, Edge, Length, Match, NoMarkdown, OneLine, PromptWords, Repetition
from tiebreak.recipe.evaluation import ApiModel, Evaluate, LocalModel, Outputs
from tiebreak.recipe.judges import (
    CascadeJudge,
    HumanJudge,
    Judge,
    LlmJudge,
    ModelJudge,
    PairRmJudge,
    PanelJudge,
    RewardJudge,
    RulesJudge,
)
from tiebreak.recipe.loops import Iterate, Search
from tiebreak.recipe.parts import (
    ApiSampler,
    Endpoint,
    LocalSampler,
    LocalSampling,
    Model,
    Name,
    Price,
    Provider,
    Sampler,
    Section,
)
from tiebreak.recipe.prompts import Filters, Prompts, Write
from tiebreak.recipe.training import Lora, LossType, Optimisation, Pretrain, Sft, Train

__all__ = [
    "GIVEN",
    "OPERATIONAL",
    "AnyCheck",
    "ApiModel",
    "ApiSampler",
    "CascadeJudge",
    "Edge",
    "Endpoint",
    "Evaluate",
    "Filters",
    "HumanJudge",
    "Iterate",
    "Judge",
    "Length",
    "LlmJudge",
    "LocalModel",
    "LocalSampler",
    "LocalSampling",
    "Lora",
    "LossType",
    "Match",
    "Model",
    "ModelJudge",
    "Name",
    "NoMarkdown",
    "OneLine",
    "Optimisation",
    "Outputs",
    "Pair",
    "PairRmJudge",
    "PanelJudge",
    "Pretrain",
    "Price",
    "PromptWords",
    "Prompts",
    "Provider",
    "Recipe",
    "Repetition",
    "RewardJudge",
    "RulesJudge",
    "Sampler",
    "Search",
    "Section",
    "Sft",
    "Train",
    "Write",
]

OPERATIONAL = {
    "batch_size",
    "budget_usd",
    "canaries",
    "concurrency",
    "keep_checkpoints",
    "max_calls",
    "max_retries",
    "price",
    "report_to",
    "requests_per_minute",
    "timeout",
    "tokens_per_minute",
}
"""Keys that change how fast the work goes and not what comes out: a run may go on with others."""


NO_MODEL = "none"


class Pair(Section):
    """How verdicts become preference pairs."""

    strategy: Literal["all", "best_worst", "best_vs_rest"] = "all"
    """Every two completions of a prompt, its best against its worst, or its best against each other one."""
    judge: str | None = None
    """Whose verdicts; default: the only judge."""
    min_margin: float = Field(0.0, ge=0, le=1)
    """Smallest margin a pair needs."""


class Recipe(Section):
    """Everything a run is made from."""

    name: Name
    """The run's folder under runs/."""
    seed: int = Field(42, ge=0)
    model: Model = Model(name_or_path=NO_MODEL)
    """What is trained; to be left out where only other models meet."""
    prompts: Prompts
    generate: tuple[Sampler, ...] = ()
    """Who completes the prompts; each sampler completes every one."""
    judges: tuple[Judge, ...] = ()
    """Who decides which completion is better."""
    pair: Pair = Pair()
    pretrain: Pretrain | None = None
    """Given, the model goes on with raw text first."""
    sft: Sft | None = None
    """Given, the model learns completions before preferences."""
    train: Train | None = Train()
    """null: nothing is trained; other models may be evaluated, or only pairs made."""
    evaluate: Evaluate | None = Evaluate()
    iterate: Iterate = Iterate()
    search: Search | None = None
    variants: dict[str, dict[str, Any]] = {}  # noqa: RUF012  pydantic copies it
    """Named sets of dotted keys, each a run of its own beside the others: `tiebreak run` makes all, and compares them."""
    profiles: dict[str, dict[str, Any]] = {}  # noqa: RUF012  pydantic copies it
    """Named sets of dotted keys that replace values: `tiebreak run RECIPE --profile NAME`."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for key, names in (
            ("generate", [sampler.label for sampler in self.generate]),
            ("judges", [judge.name.lower() for judge in self.judges]),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{key}: two are called {twice[0]!r}; give each a name of its own")
        writes = (
            self.prompts.write is not None and isinstance(own := self.prompts.write.sampler, LocalSampler) and own.model is None
        )
        needs_model = self.train is not None or self.makes_pairs or writes or (self.evaluate is not None and self.evaluate.own)
        if self.model.name_or_path == NO_MODEL and needs_model:
            raise ValueError("model: missing; only a recipe in which other models meet, and nothing else, needs none")
        if self.train is None and not self.makes_pairs and self.evaluate is None:
            raise ValueError("train: without it the recipe does nothing; give it evaluate, or generate and judges")
        if not self.prompts.given:
            if self.train is not None and not self.generate:
                raise ValueError(
                    "generate: missing; without ready-made pairs (prompts.pairs, prompts.labels) completions are drawn"
                )
            if not self.judges:
                raise ValueError("judges: missing; without ready-made pairs (prompts.pairs, prompts.labels) somebody judges")
        elif self.generate:
            raise ValueError("generate: ready-made pairs (prompts.pairs, prompts.labels) bring their completions; leave it out")
        if any(judge.name.lower() == GIVEN for judge in self.judges):
            raise ValueError(f"judges: the name {GIVEN!r} is kept for ready-made pairs")
        known = [judge.name for judge in self.judges] + ([GIVEN] if self.prompts.given else [])
        for key, name in (("pair.judge", self.pair.judge), ("evaluate.judge", self.evaluate and self.evaluate.judge)):
            if name is not None and name not in known:
                raise ValueError(f"{key}: no judge {name!r}; there is {', '.join(known) or 'none'}")
        named = self.pair.judge if self.makes_pairs else self.pair.judge or (self.evaluate and self.evaluate.judge)
        if named is None and len(known) > 1:
            raise ValueError(f"{'pair' if self.makes_pairs else 'evaluate'}.judge: say which of {', '.join(known)}")
        return self

    @model_validator(mode="after")
    def _members_stand_earlier(self) -> Self:
        for at, judge in enumerate(self.judges):
            earlier = [other.name for other in self.judges[:at]]
            for name in judge.judges if isinstance(judge, PanelJudge | CascadeJudge) else ():
                if name not in earlier:
                    there = f"there is {', '.join(earlier)}" if earlier else "it stands first"
                    raise ValueError(f"judges.{judge.name}: no judge {name!r} stands before it; {there}")
        return self

    @model_validator(mode="after")
    def _evaluated_models_are_made(self) -> Self:
        for name in self.evaluate.own if self.evaluate else ():
            section = {"tuned": "train"}.get(name, name.partition("-")[0]).replace("checkpoint", "train")
            if section != "base" and getattr(self, section) is None:
                raise ValueError(f"evaluate.models: {name} is none without a section {section}")
            if name.startswith("checkpoint-") and not (self.train and self.train.keep_checkpoints):
                raise ValueError(f"evaluate.models: {name} is deleted when training ends; set train.keep_checkpoints: true")
        if self.evaluate and self.train is not None and not {"base", "tuned"} <= set(self.evaluate.own):
            raise ValueError("evaluate.models: base and tuned are always among them")
        if self.train is None and (left := [name for name in ("pretrain", "sft") if getattr(self, name) is not None]):
            raise ValueError(f"{left[0]}: comes before train, which is null")
        return self

    @property
    def makes_pairs(self) -> bool:
        """Whether completions are judged and become pairs, or came as pairs."""
        return bool(self.generate) or self.prompts.given

    @property
    def test_fraction(self) -> float:
        """Share of the prompts that are held out: all of them where nothing is made to train on."""
        return self.prompts.test_fraction or (0.1 if self.makes_pairs else 1.0)

    @property
    def max_length(self) -> int:
        """Tokens that training takes of a prompt and its completion."""
        return (self.train or Train()).max_length

    @property
    def labelling_judge(self) -> str:
        """Name of the judge whose verdicts make the pairs."""
        return self.pair.judge or (GIVEN if self.prompts.given else self.judges[0].name)

    def judge(self, name: str) -> Judge:
        """Return the judge of this name."""
        return next(judge for judge in self.judges if judge.name == name)

    def members(self, *names: str | None) -> set[str]:
        """Return the names of these judges, of the ones that they ask, and so on."""
        found = {name for name in names if name is not None and name != GIVEN}
        asked = {
            each for name in found if isinstance(judge := self.judge(name), PanelJudge | CascadeJudge) for each in judge.judges
        }
        return found | (self.members(*asked) if asked else set())

    @property
    def evaluating_judge(self) -> Judge | None:
        """The judge of the head-to-head; None where ready-made pairs come without one."""
        name = (self.evaluate and self.evaluate.judge) or self.labelling_judge
        return next((judge for judge in self.judges if judge.name == name), None)


GIVEN = "given"
"""Name of the sampler and of the judge of ready-made pairs."""
