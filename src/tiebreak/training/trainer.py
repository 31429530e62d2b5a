"""`PreferenceTrainer`: DPO over preference trees on `transformers.Trainer`, called as TRL's `DPOTrainer` is."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object  # type: ignore[import-untyped]
from torch import nn
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments, set_seed

from tiebreak import models
from tiebreak.progress import progress
from tiebreak.recipe import Model
from tiebreak.records import InputError
from tiebreak.training import losses, trees
from tiebreak.training.logps import completion_logps, layout, takes_trees
from tiebreak.training.rows import tokenize
from tiebreak.training.trees import PairIds

if TYPE_CHECKING:
    from peft import PeftConfig


@dataclass
class PreferenceConfig(TrainingArguments):
    """Training arguments with those of preference optimisation; names are TRL's `DPOConfig`'s."""

    learning_rate: float = 1e-6
    logging_steps: float = 10
    bf16: bool | None = None  # type: ignore[assignment]  # None: autocast where the device has bf16
    beta: float = 0.1
    """Strength of the pull to the reference."""
    loss_type: list[str] = field(default_factory=lambda: ["sigmoid"])
    label_smoothing: float = 0.0
    """Share of labels taken to be the wrong way round, in [0, 0.5); TRL's sigmoid loss ignores it, this one does not."""
    max_length: int | None = 1024
    """Longest prompt with completion, in tokens; None for no limit."""
    disable_dropout: bool = True
    """Switch the model's dropout off, so that policy and reference agree; a new adapter keeps its own."""
    check_reference: bool = True
    """Stop unless policy and reference agree before the first step (loss ln 2, margins 0)."""

    def __post_init__(self) -> None:
        """Check the values that the losses rely on, and refuse those that would do nothing."""
        if self.loss_type not in ("sigmoid", ["sigmoid"]):
            raise ValueError(f"loss_type {self.loss_type}: only ['sigmoid'] is available")
        self.loss_type = ["sigmoid"]
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing {self.label_smoothing}: must be in [0, 0.5)")
        if self.label_smoothing_factor:
            raise ValueError("label_smoothing_factor smooths tokens, not preferences; use label_smoothing")
        if self.beta <= 0:
            raise ValueError(f"beta {self.beta}: must be above 0")
        if self.train_sampling_strategy not in ("random", "sequential"):
            raise ValueError(f"train_sampling_strategy {self.train_sampling_strategy}: only random and sequential are available")
        if self.bf16 is None:
            self.bf16 = not self.fp16 and models.has_bf16(torch.device("cpu") if self.use_cpu else models.device())
        super().__post_init__()  # type: ignore[no-untyped-call]


class _Pairs(Dataset[PairIds]):
    """Tokenized pairs, those of one prompt next to each other."""

    def __init__(self, pairs: list[PairIds]) -> None:
        groups: dict[tuple[int, ...], list[PairIds]] = {}
        for pair in pairs:
            groups.setdefault(tuple(pair["prompt_ids"]), []).append(pair)
        self.groups = list(groups.values())
        self.pairs = [pair for group in self.groups for pair in group]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> PairIds:
        return self.pairs[index]


class _ByPrompt(Sampler[int]):
    """Draws prompts in a random order, anew each epoch, and each prompt's pairs together."""

    def __init__(self, groups: Sequence[Sequence[Any]], seed: int) -> None:
        self.starts = list(accumulate(map(len, groups), initial=0))
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.starts[-1]

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        for group in torch.randperm(len(self.starts) - 1, generator=generator).tolist():
            yield from range(self.starts[group], self.starts[group + 1])


class PreferenceTrainer(Trainer):
    """Trains a causal policy on preference pairs with a correct, once-computed reference.

    Takes what TRL's `DPOTrainer` takes: datasets with `prompt`, `chosen`, `rejected` as text or messages (or `chosen`
    and `rejected` that start with the prompt). The reference is `ref_model`, or else the policy as it stands before
    its first step: the base model under a fresh adapter, the earlier adapter where one is trained on. Its log-probs
    are computed once, before training; no second model stays in memory. `compute_metrics` is given the rewards
    (pairs, 2) of chosen and rejected as predictions, and as labels 0, the column that ought to be higher.

    Raises InputError for rows of another shape, for a dataset with nothing left to train on, and where policy and
    reference disagree before the first step.
    """

    # The loss is divided by the pairs of the whole step, not of the micro-batch.
    loss_is_scaled_for_ga = True

    args: PreferenceConfig
    model: PreTrainedModel
    train_dataset: _Pairs
    eval_dataset: _Pairs | None

    def __init__(  # noqa: PLR0917  TRL's order
        self,
        model: str | PreTrainedModel,
        ref_model: PreTrainedModel | None = None,
        args: PreferenceConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: Callable[..., Any] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: PeftConfig | None = None,
    ) -> None:
        args = args or PreferenceConfig()
        name = model if isinstance(model, str) else model.config._name_or_path
        policy: Any = models.load_model(Model(name_or_path=name), torch.float32) if isinstance(model, str) else model
        if policy.config.is_encoder_decoder:
            raise InputError(f"model {name}: preference training of encoder-decoder models is not available yet")
        if ref_model is policy:
            raise InputError("ref_model is the policy itself; leave it out: the policy's first state is the reference")
        tokenizer = processing_class or models.load_tokenizer(Model(name_or_path=name))
        if args.disable_dropout:
            _disable_dropout(policy)
        if peft_config is not None:
            from peft import get_peft_model

            set_seed(args.seed)  # an adapter's first weights are drawn
            policy = get_peft_model(policy, peft_config)
        if args.n_gpu > 1:
            args._n_gpu = 1  # DataParallel would cut a row's tensors apart; more GPUs take `accelerate launch`
        use_cache = getattr(policy.config, "use_cache", True)
        self.ref_model: nn.Module | None = ref_model
        self.tree = all(takes_trees(one.config) for one in (policy, ref_model) if one is not None)
        self.row_counts: dict[str, dict[str, int]] = {}
        self._pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self._sums: dict[str, dict[str, float]] = {"train": defaultdict(float), "eval": defaultdict(float)}

        def prepare(dataset: Any, split: str) -> _Pairs:
            pairs, counts = tokenize(dataset, tokenizer, args.max_length)
            self.row_counts[split] = dict(counts)
            if not pairs:
                dropped = ", ".join(f"{count} {reason}" for reason, count in counts.items())
                raise InputError(f"{split} dataset: no pair is left to use ({dropped or 'it is empty'})")
            return _Pairs(pairs)

        if train_dataset is None:
            raise InputError("train_dataset is missing")
        super().__init__(
            model=policy,
            args=args,
            data_collator=self._collate,
            train_dataset=prepare(train_dataset, "train"),
            eval_dataset=None if eval_dataset is None else prepare(eval_dataset, "eval"),
            processing_class=tokenizer,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        # The Trainer switches the cache off and would save the model so; no forward pass here asks for one.
        policy.config.use_cache = use_cache

    # --- data ------------------------------------------------------------------------------------------------------

    def _collate(self, pairs: list[PairIds]) -> dict[str, Any]:
        """Make a batch: `chosen` and `rejected` index the completions of `rows`; all are (pairs,) but the rows."""
        grown, chosen, rejected = trees.grow(pairs)
        return {
            "chosen": torch.tensor(chosen),
            "rejected": torch.tensor(rejected),
            "ref_chosen_logps": torch.tensor([pair["ref_chosen_logps"] for pair in pairs]),
            "ref_rejected_logps": torch.tensor([pair["ref_rejected_logps"] for pair in pairs]),
            "rows": layout(grown, tree=self.tree, pad_id=self._pad_id),
        }

    def _set_signature_columns_if_needed(self) -> None:
        """Name the columns that the Trainer may not remove."""
        self._signature_columns = list(PairIds.__annotations__)  # type: ignore[assignment]

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        dataset = train_dataset or self.train_dataset
        if self.args.train_sampling_strategy == "sequential":
            return SequentialSampler(dataset)
        return _ByPrompt(dataset.groups, self.args.data_seed if self.args.data_seed is not None else self.args.seed)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor | int | None:
        pairs = torch.tensor(sum(len(batch["chosen"]) for batch in batch_samples), device=device)
        return self.accelerator.gather(pairs).sum() if self.args.world_size > 1 else pairs

    # --- reference -------------------------------------------------------------------------------------------------

    def _refer(self, dataset: _Pairs | None) -> None:
        """Add the reference's log-probs to a dataset that has none yet, one forward pass per distinct completion."""
        if dataset is None or "ref_chosen_logps" in dataset.pairs[0]:
            return
        if self.state.global_step > 0 and self.ref_model is None:
            raise InputError("the policy has been trained already: pass this dataset as eval_dataset, or give a ref_model")
        model = self.model if self.ref_model is None else self.ref_model.to(self.args.device)
        for pair, logps in zip(dataset.pairs, self._logps_of(dataset, model, "reference"), strict=True):
            pair["ref_chosen_logps"], pair["ref_rejected_logps"] = logps

    def _logps_of(self, dataset: _Pairs, model: nn.Module, label: str) -> list[tuple[float, float]]:
        """Return the log-probs (chosen, rejected) of every pair of a dataset under a model at rest."""
        training = model.training
        model.eval()
        logps: list[tuple[float, float]] = []
        with progress(label, len(dataset), "pairs") as advance:
            for pairs in _by_tokens(dataset.groups, trees.ROW_TOKENS):
                logps += self._logps_without_grad(model, pairs)
                advance(len(pairs))
        model.train(training)
        return logps

    def _logps_without_grad(self, model: nn.Module, pairs: list[PairIds]) -> list[tuple[float, float]]:
        grown, chosen, rejected = trees.grow(pairs)
        rows = layout(grown, tree=self.tree, pad_id=self._pad_id)
        rows = [{name: ids.to(self.args.device) for name, ids in row.items()} for row in rows]
        with torch.no_grad(), self.accelerator.autocast():
            logps = completion_logps(model, rows).tolist()
        return [(logps[won], logps[lost]) for won, lost in zip(chosen, rejected, strict=True)]

    def _check_reference(self) -> None:
        """Refuse to train where the policy's first pairs do not give loss ln 2 and margins 0.

        bf16 products differ in their last bits with the rows they stand in, so the bound is per token.
        """
        pairs = [pair for group in self.train_dataset.groups[:8] for pair in group][:16]
        self.model.train(self.args.disable_dropout)  # as in the first step, unless dropout is wanted there
        policy = torch.tensor(self._logps_without_grad(self.model, pairs))
        gap = policy - torch.tensor([[pair["ref_chosen_logps"], pair["ref_rejected_logps"]] for pair in pairs])
        tokens = torch.tensor([[len(pair["chosen_ids"]), len(pair["rejected_ids"])] for pair in pairs])
        per_token = (gap.abs() / tokens).mean().item()
        loss = losses.sigmoid(gap[:, 0], gap[:, 1], beta=self.args.beta).mean().item()
        low_precision = self.args.bf16 or self.args.fp16 or self.model.dtype != torch.float32
        if not (per_token <= (2e-2 if low_precision else 1e-4) and abs(loss - math.log(2)) <= (2e-2 if low_precision else 1e-3)):
            raise InputError(
                f"before the first step, policy and reference differ by {per_token:.2g} per token and the loss is {loss:.4f}, "
                "not ln 2 = 0.6931: the reference is not the model that training starts from; "
                "leave ref_model out, or set check_reference=False if this is meant"
            )

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as `Trainer.train` does, after the reference's log-probs are known and checked."""
        self._refer(self.train_dataset)
        self._refer(self.eval_dataset)
        if self.args.check_reference and self.state.global_step == 0:
            self._check_reference()
        return super().train(*args, **kwargs)

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as `Trainer.evaluate` does, on the held-out pairs that the constructor took."""
        if eval_dataset is not None and not isinstance(eval_dataset, _Pairs):
            raise InputError("pass held-out pairs to the constructor: their reference is the policy before training")
        self._refer(eval_dataset or self.eval_dataset)
        return super().evaluate(eval_dataset, *args, **kwargs)

    def held_out_rewards(self) -> list[list[tuple[float, float]]]:
        """Return the rewards (chosen, rejected) of every held-out pair as the policy stands, one list per prompt."""
        dataset = self.eval_dataset
        if dataset is None:
            return []
        self._refer(dataset)
        rewards = (
            (self.args.beta * (won - pair["ref_chosen_logps"]), self.args.beta * (lost - pair["ref_rejected_logps"]))
            for pair, (won, lost) in zip(dataset.pairs, self._logps_of(dataset, self.model, "held-out rewards"), strict=True)
        )
        return [[next(rewards) for _ in group] for group in dataset.groups]

    # --- loss and metrics ------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the loss summed over the batch's pairs and divided by the pairs of the whole step."""
        logps = completion_logps(model, inputs["rows"])
        chosen, rejected = logps[inputs["chosen"]], logps[inputs["rejected"]]
        chosen_logratios, rejected_logratios = chosen - inputs["ref_chosen_logps"], rejected - inputs["ref_rejected_logps"]
        each = losses.sigmoid(
            chosen_logratios, rejected_logratios, beta=self.args.beta, label_smoothing=self.args.label_smoothing
        )
        rewards = self.args.beta * torch.stack([chosen_logratios, rejected_logratios]).detach()
        values = {
            "pairs": torch.ones_like(each),
            "rewards/chosen": rewards[0],
            "rewards/rejected": rewards[1],
            "rewards/accuracies": (rewards[0] > rewards[1]).float(),
            "rewards/margins": rewards[0] - rewards[1],
            "logps/chosen": chosen,
            "logps/rejected": rejected,
        }
        sums = self._sums["train" if model.training else "eval"]
        for name, total in zip(values, torch.stack([*values.values()]).detach().sum(-1).tolist(), strict=True):
            sums[name] += total
        pairs = len(each) if num_items_in_batch is None else num_items_in_batch
        # DDP averages gradients over processes; the sum over all of them is wanted.
        scale = self.accelerator.num_processes if num_items_in_batch is not None else 1
        loss = each.sum() / pairs * scale
        return (loss, {"rewards": rewards.T}) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,  # noqa: ARG002  the Trainer's
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Return the mean loss of a batch of held-out pairs, and what `compute_metrics` takes."""
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, self._prepare_inputs(inputs), return_outputs=True)
        if prediction_loss_only:
            return loss, None, None
        rewards = outputs["rewards"]
        return loss, rewards, torch.zeros(len(rewards), dtype=torch.long, device=rewards.device)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Run the Trainer's loop and add the field's metrics, each the mean over all pairs."""
        self._sums["eval"].clear()
        output: Any = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        output.metrics.update({f"{prefix}_{name}": mean for name, mean in self._means("eval").items()})
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as the Trainer does, with the field's metrics beside every training loss."""
        if "loss" in logs:
            logs |= self._means("train")
        super().log(logs, start_time)

    def _means(self, mode: str) -> dict[str, float]:
        """Return the means over all pairs since the last call, on all processes."""
        everywhere = gather_object([dict(self._sums[mode])])
        self._sums[mode].clear()
        total = {name: sum(sums[name] for sums in everywhere) for name in everywhere[0]}
        return {name: value / total["pairs"] for name, value in total.items() if name != "pairs"}


def _disable_dropout(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):  # attention applies this one as a function
            module.attention_dropout = 0.0  # type: ignore[assignment]


def _by_tokens(groups: Sequence[list[PairIds]], budget: int) -> Iterator[list[PairIds]]:
    """Gather whole groups, each one tree, until their trees fill about `budget` tokens."""
    batch: list[PairIds] = []
    tokens = 0
    for group in groups:
        size = trees.grow(group)[0][0].tokens
        if batch and tokens + size > budget:
            yield batch
            batch, tokens = [], 0
        batch += group
        tokens += size
    if batch:
        yield batch
