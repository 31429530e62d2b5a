"""The recipe: one frozen tree for the YAML. Every key is here, with its help text; `tiebreak keys` prints them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
Provider = Literal["gemini", "together", "openai", "openrouter", "groq", "vllm", "ollama", "llamacpp", "custom"]

OPERATIONAL = {"batch_size", "concurrency", "max_retries", "timeout", "keep_checkpoints", "report_to"}
"""Keys that change how fast the work goes and not what comes out: a run may go on with others."""


class Section(BaseModel):
    """A part of the recipe: frozen, strict, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


def _regex(value: str | None) -> str | None:
    if value is not None:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
    return value


class Model(Section):
    """A model: a Hub id, a local folder, or `builtin:smollm2-135m-instruct`."""

    name_or_path: str
    """Hub id, local folder, or builtin:smollm2-135m-instruct."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    trust_remote_code: bool = False
    """Run Python code that the model's repository carries."""


class Sampling(Section):
    """How completions are drawn."""

    n: int = Field(1, ge=1)
    """Completions per prompt."""
    temperature: float = Field(1.0, ge=0)
    """0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Smallest set of tokens whose probabilities reach this; 1 is off."""
    max_new_tokens: int = Field(256, ge=1)
    """Longest completion, in tokens."""

    @model_validator(mode="after")
    def _greedy_once(self) -> Self:
        if self.temperature == 0 and self.n > 1:
            raise ValueError(f"temperature 0 draws the same completion {self.n} times; use n: 1 or a temperature above 0")
        return self


class LocalSampling(Sampling):
    """Sampling with a model in this process."""

    top_k: int = Field(0, ge=0)
    """Draw from the k likeliest tokens only; 0 is off."""
    batch_size: int = Field(160, ge=1)
    """Completions in flight at once; lower it when memory runs out."""


class Endpoint(Section):
    """An OpenAI-compatible server."""

    provider: Provider
    """Preset of base URL and key variable; `custom` needs base_url."""
    model: str
    """The model's name at the provider."""
    base_url: str | None = None
    """Overrides the preset, e.g. http://127.0.0.1:8000/v1."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key; never the key itself."""
    concurrency: int = Field(8, ge=1)
    """Calls in flight at once."""
    max_retries: int = Field(5, ge=0)
    """Tries after the first, with back-off, for 408, 409, 429, 5xx and broken connections."""
    timeout: float = Field(120.0, gt=0)
    """Seconds for one call."""

    @field_validator("api_key_env")
    @classmethod
    def _names_a_variable(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", value):  # keys hold small letters or dashes
            raise ValueError("is the name of an environment variable, in capitals, e.g. GEMINI_API_KEY; never the key itself")
        return value

    @field_validator("base_url")
    @classmethod
    def _no_credentials(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not re.match(r"https?://", value):
            raise ValueError("starts with http:// or https://")
        if "?" in value or "@" in value.split("//", 1)[1].split("/", 1)[0]:
            raise ValueError("holds a user, a password or a query; put the key into a variable and name it in api_key_env")
        return value

    @model_validator(mode="after")
    def _custom_has_url(self) -> Self:
        if self.provider == "custom" and self.base_url is None:
            raise ValueError("provider custom needs base_url")
        return self


class LocalSampler(LocalSampling):
    """Completions from a model in this process."""

    type: Literal["local"]
    name: Name | None = None
    """Default: model@temperature/top_p."""
    model: Model | None = None
    """Default: the recipe's model."""

    @property
    def label(self) -> str:
        """The sampler's name in records."""
        model = Path(self.model.name_or_path).name if self.model else "base"
        return self.name or f"{model}@{self.temperature:g}/{self.top_p:g}"


class ApiSampler(Sampling, Endpoint):
    """Completions from an OpenAI-compatible server."""

    type: Literal["api"]
    name: Name | None = None
    """Default: model@temperature/top_p."""

    @property
    def label(self) -> str:
        """The sampler's name in records."""
        return self.name or f"{self.model.rsplit('/', 1)[-1]}@{self.temperature:g}/{self.top_p:g}"


Sampler = Annotated[LocalSampler | ApiSampler, Field(discriminator="type")]


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
        return _regex(value)


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
    filters: Filters = Filters()
    test_fraction: float = Field(0.1, gt=0, lt=1)
    """Share of the prompts held out of training, by prompt, the same ones whatever their order."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if sum(origin is not None for origin in (self.source, self.items, self.write)) != 1:
            raise ValueError("needs exactly one of source, items, write")
        if self.column is not None and self.template is not None:
            raise ValueError("column and template exclude each other")
        if self.pairs is None and set(self.filters.on) != {"prompt"}:
            raise ValueError("filters.on may name chosen and rejected only with ready-made pairs (prompts.pairs)")
        if self.pairs is not None and self.source is None:
            raise ValueError("ready-made pairs need a source")
        if self.source is None and (self.column or self.template):
            raise ValueError("column and template need a source")
        return self


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
        _regex(value)
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


class Pair(Section):
    """How verdicts become preference pairs."""

    strategy: Literal["all", "best_worst", "best_vs_rest"] = "all"
    """Every two completions of a prompt, its best against its worst, or its best against each other one."""
    judge: str | None = None
    """Whose verdicts; default: the only judge."""
    min_margin: float = Field(0.0, ge=0, le=1)
    """Smallest margin a pair needs."""


class Lora(Section):
    """Low-rank adapter (arXiv 2106.09685), in PEFT's words."""

    r: int = Field(16, ge=1)
    lora_alpha: int = Field(32, ge=1)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: str | tuple[str, ...] = "all-linear"
    use_dora: bool = False
    """Train the length of each weight's columns apart from their direction (arXiv 2402.09353)."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r), for large r (arXiv 2312.03732)."""
    load_in_4bit: bool = False
    """QLoRA (arXiv 2305.14314): the model under the adapter is in 4 bits while training; needs `tiebreak[quant]`."""
    merge: bool = False
    """Save the whole model, adapter merged in, instead of the adapter."""


LossType = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "apo_zero",
    "apo_down", "discopop", "sft", "sigmoid_norm", "simpo", "orpo", "cpo", "kto",
]  # fmt: skip


class Optimisation(Section):
    """How a model is trained, in Hugging Face's words."""

    learning_rate: float = Field(2e-5, gt=0)
    num_train_epochs: float = Field(1.0, gt=0)
    per_device_train_batch_size: int = Field(8, ge=1)
    """Examples per step and device."""
    gradient_accumulation_steps: int = Field(1, ge=1)
    optim: str = "adamw_torch_fused"
    """Optimiser, by Hugging Face's name; adamw_bnb_8bit and its like need `tiebreak[quant]`."""
    lr_scheduler_type: str = "linear"
    """Learning rate's course, by Hugging Face's name."""
    warmup_steps: float = Field(0.1, ge=0)
    """Steps of warm-up; below 1 a share of all steps."""
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    max_length: int = Field(1024, ge=2)
    """Longest prompt with completion, in tokens: the prompt is cut from the left, the completion stays."""
    bf16: bool | None = None
    """bf16 autocast over fp32 weights; default: where the device has it."""
    gradient_checkpointing: bool = False
    lora: Lora | None = None
    """Train an adapter instead of all weights."""
    logging_steps: int = Field(5, ge=1)
    eval_steps: int | None = Field(None, ge=1)
    """Steps between evaluations on what is held out; default: about ten in all."""
    save_steps: int | None = Field(None, ge=1)
    """Steps between checkpoints; default: about ten in all."""
    keep_checkpoints: bool = False
    """Keep checkpoint folders after the model is saved."""
    report_to: tuple[str, ...] = ()
    """Trackers, by Hugging Face's names, e.g. tensorboard, wandb, mlflow; what they need is installed by you."""
    trainer_args: dict[str, Any] = {}
    """Any other field of transformers.TrainingArguments."""

    @field_validator("trainer_args")
    @classmethod
    def _not_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        if "hub_token" in value:
            raise ValueError("hub_token is a secret and stays out of recipes; set HF_TOKEN in the environment")
        taken = sorted(set(value) & (set(cls.model_fields) | {"output_dir", "seed"}))
        if taken:
            raise ValueError(f"{taken[0]} is set by the recipe itself, not under trainer_args")
        return value


class Pretrain(Optimisation):
    """Continued pre-training on raw text; an encoder-decoder fills in spans that were taken out (arXiv 1910.10683)."""

    source: str
    """A .txt file, which is one document, or a .csv, .json, .jsonl, .parquet file or Hub dataset with one in each row."""
    subset: str | None = None
    """Configuration of a Hub dataset."""
    hub_split: str = "train"
    """Split of a Hub dataset."""
    column: str = "text"
    """Column that holds the text."""
    max_length: int = Field(1024, ge=2)
    """Longest piece that a document is cut into, in tokens."""


class Sft(Optimisation):
    """Supervised fine-tuning on completions; what comes of it is what train starts from, and its reference."""

    source: str | None = None
    """A file or Hub dataset of prompts with completions; default: the completions that the pairs chose."""
    subset: str | None = None
    """Configuration of a Hub dataset."""
    hub_split: str = "train"
    """Split of a Hub dataset."""
    prompt: str = "prompt"
    """Column of the prompt: text or a chat list."""
    completion: str = "completion"
    """Column of the completion."""
    messages: str | None = None
    """Column of whole chats, in place of prompt and completion."""
    completion_only_loss: bool | None = None
    """Learn the completion and not its prompt; default: yes."""
    assistant_only_loss: bool = False
    """Learn the assistant's turns of whole chats and not the others'."""

    @model_validator(mode="after")
    def _options_fit(self) -> Self:
        if self.assistant_only_loss and self.messages is None:
            raise ValueError("assistant_only_loss is for whole chats (messages); of others, the completions are learned")
        if self.completion_only_loss is not None and self.messages is not None:
            raise ValueError("completion_only_loss is for prompts and completions; for whole chats there is assistant_only_loss")
        if self.source is None and (self.messages, self.prompt, self.completion) != (None, "prompt", "completion"):
            raise ValueError("prompt, completion and messages name columns of a source; give one")
        return self


class Train(Optimisation):
    """Direct preference optimisation (arXiv 2305.18290), in Hugging Face's words."""

    method: Literal["dpo"] = "dpo"
    loss_type: tuple[LossType, ...] = Field(("sigmoid",), min_length=1)
    """Losses, summed; kto stands alone and takes each pair apart."""
    loss_weights: tuple[float, ...] | None = None
    """Weight of each loss; default: 1 each."""
    beta: float = Field(0.1, gt=0)
    """Strength of the pull to the reference."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of labels taken to be the wrong way round (arXiv 2403.00409)."""
    use_flip_probability: bool = False
    """Give each pair a share of its own, from the judge's disagreement with itself; label_smoothing is the least."""
    f_divergence_type: Literal["reverse_kl", "forward_kl", "alpha_divergence", "js_divergence"] = "reverse_kl"
    """How the distance to the reference is measured (arXiv 2309.16240)."""
    f_alpha_divergence_coef: float = 0.5
    """The alpha of alpha_divergence."""
    discopop_tau: float = Field(0.05, gt=0)
    """Temperature of discopop's blend (arXiv 2406.08414)."""
    ld_alpha: float | None = Field(None, ge=0, le=1)
    """Weight of the tokens that the longer completion has more; below 1 against growing lengths (arXiv 2409.06411)."""
    use_weighting: bool = False
    """Weigh each pair by how likely the policy is to write it (arXiv 2406.11827)."""
    simpo_gamma: float = Field(0.5, ge=0)
    """The margin that simpo asks for (arXiv 2405.14734)."""
    cpo_alpha: float = Field(1.0, ge=0)
    """Weight of cpo's SFT term (arXiv 2401.08417)."""
    desirable_weight: float = Field(1.0, gt=0)
    """Weight of kto's chosen completions (arXiv 2402.01306)."""
    undesirable_weight: float = Field(1.0, gt=0)
    """Weight of kto's rejected completions."""
    sync_ref_model: bool = False
    """Let the reference follow the policy (arXiv 2404.09656)."""
    ref_model_mixup_alpha: float = Field(0.6, gt=0, le=1)
    """How far the reference goes towards the policy each time."""
    ref_model_sync_steps: int = Field(512, ge=1)
    """Steps between two such moves."""
    learning_rate: float = Field(1e-6, gt=0)
    per_device_train_batch_size: int = Field(8, ge=1)
    """Pairs per step and device; pairs of one prompt go together."""
    save_steps: int | None = Field(None, ge=1)
    """Steps between checkpoints; default: about ten in all. With metric_for_best_model, every evaluation saves one."""
    metric_for_best_model: Literal["loss", "rewards/accuracies"] | None = None
    """Keep the state that is best by this on held-out pairs, not the last one; default: loss with early_stopping_patience."""
    early_stopping_patience: int | None = Field(None, ge=1)
    """Stop after so many evaluations in a row without a better one."""

    @field_validator("loss_type", mode="before")
    @classmethod
    def _one_needs_no_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _kto_has_no_pairs(self) -> Self:
        if "kto" in self.loss_type and self.metric_for_best_model == "rewards/accuracies":
            raise ValueError("metric_for_best_model rewards/accuracies needs pairs, which kto takes apart; take loss")
        return self


class Evaluate(LocalSampling):
    """Base against tuned on held-out prompts."""

    judge: str | None = None
    """Whose verdicts; default: the judge of the pairs."""
    models: tuple[Literal["base", "tuned"], ...] = ("base", "tuned")

    @field_validator("models")
    @classmethod
    def _both(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value != ("base", "tuned"):
            raise ValueError("base and tuned, in this order")
        return value


class Recipe(Section):
    """Everything a run is made from."""

    name: Name
    """The run's folder under runs/."""
    seed: int = Field(42, ge=0)
    model: Model
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
    train: Train = Train()
    evaluate: Evaluate | None = Evaluate()
    profiles: dict[str, dict[str, Any]] = {}
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
        if self.prompts.pairs is None:
            if not self.generate:
                raise ValueError("generate: missing; without ready-made pairs (prompts.pairs) completions are drawn")
            if not self.judges:
                raise ValueError("judges: missing; without ready-made pairs (prompts.pairs) somebody judges")
        elif self.generate:
            raise ValueError("generate: ready-made pairs (prompts.pairs) bring their own completions; leave it out")
        if any(judge.name.lower() == GIVEN for judge in self.judges):
            raise ValueError(f"judges: the name {GIVEN!r} is kept for ready-made pairs")
        known = [judge.name for judge in self.judges] + ([GIVEN] if self.prompts.pairs else [])
        for key, name in (("pair.judge", self.pair.judge), ("evaluate.judge", self.evaluate and self.evaluate.judge)):
            if name is not None and name not in known:
                raise ValueError(f"{key}: no judge {name!r}; there is {', '.join(known) or 'none'}")
        if self.pair.judge is None and len(known) > 1:
            raise ValueError(f"pair.judge: say which of {', '.join(known)}")
        return self

    @property
    def endpoints(self) -> list[Endpoint]:
        """Every server that the recipe asks."""
        writer = [self.prompts.write.sampler] if self.prompts.write else []
        return [part for part in (*writer, *self.generate, *self.judges) if isinstance(part, Endpoint)]

    @property
    def labelling_judge(self) -> str:
        """Name of the judge whose verdicts make the pairs."""
        return self.pair.judge or (GIVEN if self.prompts.pairs else self.judges[0].name)

    @property
    def evaluating_judge(self) -> RulesJudge | LlmJudge | None:
        """The judge of the head-to-head; None where ready-made pairs come without one."""
        name = (self.evaluate and self.evaluate.judge) or self.labelling_judge
        return next((judge for judge in self.judges if judge.name == name), None)


GIVEN = "given"
"""Name of the sampler and of the judge of ready-made pairs."""
