"""What preference and supervised training share: prompts kept together, rows of trees, one normaliser for a whole step."""

from __future__ import annotations

import ctypes
import math
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import DistributedType, gather_object  # type: ignore[import-untyped]
from torch import nn
from torch.utils.data import Sampler, SequentialSampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments, set_seed

from tiebreak import models
from tiebreak.progress import say
from tiebreak.recipe import Model
from tiebreak.records import InputError
from tiebreak.training import seq2seq, trees
from tiebreak.training.examples import FILL, ByPrompt, Examples, Filled, InOrder
from tiebreak.training.head import InPlace
from tiebreak.training.logps import Engine
from tiebreak.training.trees import Example

if TYPE_CHECKING:
    from collections import Counter

    from peft import PeftConfig

ROW_TOKENS = {"cpu": 1024}
"""Tokens that are run, and remembered for the backward pass, at once: enough to keep a processor busy."""
OTHER_ROW_TOKENS = 16384


@dataclass
class TreeConfig(TrainingArguments):
    """Training arguments of a trainer over trees."""

    logging_steps: float = 10
    restore_callback_states_from_checkpoint: bool = True
    bf16: bool | None = None  # type: ignore[assignment]  # None: autocast where the device has bf16
    max_length: int | None = 1024
    """Longest prompt with completion, in tokens, or for an encoder-decoder the longest of each; None for no limit."""
    disable_dropout: bool = True
    """Switch the model's dropout off, so that policy and reference agree; a new adapter keeps its own."""

    def __post_init__(self) -> None:
        """Refuse what would do nothing."""
        if self.label_smoothing_factor:
            raise ValueError("label_smoothing_factor smooths tokens, not preferences; use label_smoothing")
        if self.train_sampling_strategy not in ("random", "sequential"):
            raise ValueError(f"train_sampling_strategy {self.train_sampling_strategy}: only random and sequential are available")
        self.use_cpu = self.use_cpu or models.device().type == "cpu"  # without it, bf16 is taken for a GPU's
        if self.bf16 is None:
            self.bf16 = not self.fp16 and models.has_bf16(torch.device("cpu") if self.use_cpu else models.device())
        super().__post_init__()  # type: ignore[no-untyped-call]


class TreeTrainer(Trainer):
    """A Trainer whose batches are rows of trees.

    A batch counts examples. Its trees are run row by row, each row's backward pass right after its forward pass, so
    that memory follows the row and not the batch; the loss is divided by the examples of the whole step.
    """

    # The loss is divided by the examples of the whole step, not of the micro-batch.
    loss_is_scaled_for_ga = True

    args: Any
    model: PreTrainedModel
    train_dataset: Examples
    eval_dataset: Examples | None
    unit = "examples"

    def __init__(  # noqa: PLR0917
        self,
        model: str | PreTrainedModel,
        args: TreeConfig,
        train_dataset: Any,
        eval_dataset: Any,
        processing_class: PreTrainedTokenizerBase | None,
        peft_config: PeftConfig | None,
        **keywords: Any,
    ) -> None:
        self.args = args
        name = model if isinstance(model, str) else model.config._name_or_path
        policy: Any = models.load_model(Model(name_or_path=name), torch.float32) if isinstance(model, str) else model
        models.fast_products()
        tokenizer = processing_class or models.load_tokenizer(Model(name_or_path=name))
        if args.disable_dropout:
            disable_dropout(policy)
        if peft_config is not None:
            from peft import get_peft_model

            set_seed(args.seed)  # an adapter's first weights are drawn
            try:
                policy = get_peft_model(policy, peft_config)
            except ValueError as error:  # layers that are not there, settings that do not go together
                raise InputError(f"lora: {error}") from None
        if args.n_gpu > 1:
            args._n_gpu = 1  # DataParallel would cut a row's tensors apart; more GPUs take `accelerate launch`
        use_cache = getattr(policy.config, "use_cache", True)
        self.row_counts: dict[str, dict[str, int]] = {}
        self._sums: dict[str, dict[str, float]] = {"train": defaultdict(float), "eval": defaultdict(float)}
        self._in_place = InPlace()
        self._tokenizer, self._encoder_decoder = tokenizer, bool(policy.config.is_encoder_decoder)
        if args.fp16:
            seq2seq.refuse_half(policy, autocast=True)
        self.engine = Engine(policy, tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0)
        if self.engine.why:
            say(f"{name} runs each completion behind its own copy of the prompt, exact but slower: {self.engine.why}")
        if train_dataset is None:
            raise InputError("train_dataset is missing")
        super().__init__(
            model=policy,
            args=args,
            data_collator=self._collate,
            train_dataset=self._prepare_split(train_dataset, "train"),
            eval_dataset=None if eval_dataset is None else self._prepare_split(eval_dataset, "eval"),
            processing_class=tokenizer,
            **keywords,
        )
        # The Trainer switches the cache off and would save the model so; no forward pass here asks for one.
        policy.config.use_cache = use_cache

    def create_accelerator_and_postprocess(self) -> None:
        """Refuse ways of sharing a model between processes that would go wrong, and keep sums in fp32 under FSDP."""
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        if self.is_fsdp_enabled:
            from torch.distributed.fsdp import MixedPrecisionPolicy

            plugin = state.fsdp_plugin
            whole = plugin.state_dict_type.name == "FULL_STATE_DICT" and not plugin.cpu_ram_efficient_loading
            if plugin.fsdp_version != 2 or not whole:
                raise InputError(
                    "FSDP: set fsdp_version: 2, fsdp_state_dict_type: FULL_STATE_DICT and fsdp_cpu_ram_efficient_loading: false, "
                    "as the shipped fsdp2.yaml does, which says why"
                )
            if self._encoder_decoder:
                raise InputError("FSDP: accelerate cannot cut up encoder-decoders' shared embeddings; take the shipped ddp.yaml")
            if (policy := plugin.mixed_precision_policy) is not None:
                plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=policy.param_dtype, reduce_dtype=torch.float32)
        elif self.is_deepspeed_enabled and state.deepspeed_plugin.zero3_init_flag:
            raise InputError("DeepSpeed: set zero3_init_flag: false, as the shipped zero3.yaml does, which says why")

    # --- data ------------------------------------------------------------------------------------------------------

    def _tokenize(self, dataset: Any) -> tuple[list[Example], Counter[str]]:
        raise NotImplementedError

    def _prepare_split(self, dataset: Any, split: str) -> Examples:
        if (
            split == "train"
            and self._tokenizer.chat_template is None
            and any(isinstance(row, Mapping) and _is_chat(row) for row in dataset)
        ):
            end = self._tokenizer.eos_token
            say(f"the tokenizer has no chat template; turns become plain text, and {end} ends an answer")
        examples, counts = self._tokenize(dataset)
        self.row_counts[split] = dict(counts)
        if not examples:
            dropped = ", ".join(f"{count} {reason}" for reason, count in counts.items())
            raise InputError(f"{split} dataset: no {self.unit[:-1]} is left to use ({dropped or 'it is empty'})")
        return Examples(examples)

    @property
    def _row_tokens(self) -> float:
        """Return how long a row may be; where processes wait for one another in every layer, all run one row a batch."""
        if self.accelerator.distributed_type in {DistributedType.FSDP, DistributedType.DEEPSPEED}:
            return math.inf
        most = ROW_TOKENS.get(self.args.device.type, OTHER_ROW_TOKENS)
        return min(most, 2048) if self._encoder_decoder else most  # their masks are dense

    def _collate(self, examples: list[Example]) -> dict[str, Any]:
        """Make a batch: `size` (examples,) of ones, and `parts`, one for each row, which `_part` makes."""
        grown = self._grow(examples)
        rows = self.engine.rows(grown, self._row_tokens)
        row_of = {
            (grown[tree].prompt, completion): number
            for number, row in enumerate(rows)
            for tree in row
            for completion in grown[tree].completions
        }
        parts: list[list[Example]] = [[] for _ in rows]
        for example in examples:
            parts[row_of[example.prompt, example.completions[0]]].append(example)
        return {"size": torch.ones(len(examples)), "parts": [self._part(part, *trees.grow(part)) for part in parts]}

    def _grow(self, examples: Sequence[Example]) -> list[trees.Tree]:
        """Return a batch's trees, none of which is cut in two."""
        return trees.grow(examples)[0]

    def _part(self, examples: list[Example], grown: list[trees.Tree], places: list[list[int]]) -> dict[str, Any]:
        """Make a part of a batch: `row` as the engine lays it, `places` (examples, completions each), `rows`."""
        return {
            "row": self.engine.lay(grown),
            "places": torch.tensor(places),
            "rows": torch.tensor([example.row for example in examples]),
        }

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        dataset = train_dataset or self.train_dataset
        if self.args.train_sampling_strategy == "sequential":
            return self._filled(InOrder(dataset.examples), self._train_batch_size)
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        step = self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return self._filled(ByPrompt(dataset.groups, seed, step), self._train_batch_size)

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[int]:
        return self._filled(SequentialSampler(eval_dataset), self.args.eval_batch_size)

    def _filled(self, sampler: Sampler[int], batch: int) -> Sampler[int]:
        """Let several processes end an epoch with batches of one size; left alone, they would count some examples twice."""
        if self.args.world_size == 1 or self.args.dataloader_drop_last:
            return sampler
        return Filled(sampler, batch * self.args.world_size, lambda: int(self.state.epoch or 0))

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """Return what a step's loss is divided by: [examples, tokens of their first completions]."""
        counts = torch.stack([_count(part) for batch in batch_samples for part in batch["parts"]]).sum(0).to(device)
        return self.accelerator.reduce(counts, "sum") if self.args.world_size > 1 else counts

    # --- steps -----------------------------------------------------------------------------------------------------

    def _part_loss(
        self, model: nn.Module, part: dict[str, Any], whole: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the losses of a part's examples, (examples,), and values to report, each (examples,).

        `whole` is what `_get_num_items_in_batch` counted in the step.
        """
        raise NotImplementedError

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the loss summed over a batch's examples and divided by those of the whole step."""
        whole = _alone(inputs) if num_items_in_batch is None else num_items_in_batch
        # DDP averages gradients over processes; the sum over all of them is wanted.
        scale = self.accelerator.num_processes if num_items_in_batch is not None else 1
        losses, rewards = [], []
        sums = self._sums["train" if model.training else "eval"]
        for part in inputs["parts"]:
            each, values = self._part_loss(model, part, whole)
            self._stop_at_nan(each, part)
            own = part["rows"] != FILL
            values["examples"] = torch.ones_like(each)
            names = [name for name in values if name != "rewards"]
            for name, total in zip(
                names, (torch.stack([values[name].float() for name in names]).detach() * own).sum(-1).tolist(), strict=True
            ):
                sums[name] += total
            losses.append((each * own).sum())
            rewards.append(values.get("rewards"))
        loss = torch.stack(losses).sum() / whole[0] * scale
        if not return_outputs:
            return loss
        return loss, None if rewards[0] is None else torch.cat([one for one in rewards if one is not None])

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Run a batch row by row, each row forward and backward."""
        with self._in_place if self.accelerator.distributed_type == DistributedType.NO else nullcontext():
            return self._rows_step(model, inputs, num_items_in_batch)

    def _rows_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any) -> torch.Tensor:
        parts = inputs["parts"]
        if len(parts) == 1:
            return super().training_step(model, inputs, num_items_in_batch)
        whole = _alone(inputs) if num_items_in_batch is None else num_items_in_batch
        model.train()
        if callable(start := getattr(self.optimizer, "train", None)):
            start()
        losses = []
        # Autocast keeps the weights it has cast until the outermost context ends: once a batch, not once a row.
        with self.compute_loss_context_manager():
            for at, part in enumerate(self._prepare_inputs(inputs)["parts"]):
                with nullcontext() if at == len(parts) - 1 else self.accelerator.no_sync(model):
                    with self.compute_loss_context_manager():
                        loss = self.compute_loss(model, inputs | {"parts": [part]}, num_items_in_batch=whole)
                    with torch.autocast(self.args.device.type, enabled=False):
                        self.accelerator.backward(loss)
                losses.append(loss.detach())
        return torch.stack(losses).sum()

    def _stop_at_nan(self, each: torch.Tensor, part: dict[str, Any]) -> None:
        bad = ~each.detach().isfinite()
        if bad.any():
            rows = ", ".join(map(str, sorted(part["rows"][bad].tolist())[:8]))
            raise InputError(
                f"step {self.state.global_step + 1}: the loss of dataset row {rows} is not a number; look at that row, and if "
                "there are many, lower learning_rate or leave half precision (bf16: false, fp16: false)"
            )

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,  # noqa: ARG002  the Trainer's
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Return the mean loss of a batch of held-out examples, and what `compute_metrics` takes."""
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, rewards = self.compute_loss(model, self._prepare_inputs(inputs), return_outputs=True)
        if prediction_loss_only or rewards is None:
            return loss, None, None
        return loss, rewards, torch.zeros(len(rewards), dtype=torch.long, device=rewards.device)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Run the Trainer's loop and add the field's metrics, each the mean over all examples."""
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
        """Return the means over all examples since the last call, on all processes."""
        everywhere = gather_object([dict(self._sums[mode])])
        self._sums[mode].clear()
        total = {name: sum(sums.get(name, 0.0) for sums in everywhere) for name in {n: 0 for sums in everywhere for n in sums}}
        return {name: value / total["examples"] for name, value in total.items() if name != "examples"}

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(*args, **kwargs)
        self.accelerator.wait_for_everyone()  # whoever goes on from here finds everyone's part written

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as `Trainer.train` does; too little memory is told in one line."""
        if self.args.device.type == "cpu":
            keep_memory()
        try:
            return super().train(*args, **kwargs)
        except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
            text = str(error)
            if isinstance(error, RuntimeError) and "out of memory" not in text and "allocate memory" not in text:
                raise
            raise InputError(
                f"step {self.state.global_step + 1}: out of memory; lower max_length (now {self.args.max_length}) or "
                f"per_device_train_batch_size (now {self.args.per_device_train_batch_size}, with more "
                "gradient_accumulation_steps), set gradient_checkpointing: true, or train an adapter (lora)"
            ) from error


def _is_chat(row: Mapping[str, Any]) -> bool:
    return any(isinstance(row.get(name), list | tuple) for name in ("prompt", "chosen", "completion", "messages"))


def _count(part: dict[str, Any]) -> torch.Tensor:
    """Return [examples, tokens of their first completions] of a part, fillings left out."""
    own = part["rows"] != FILL
    lengths = part["row"]["owner"].bincount()[part["places"][:, 0]]
    return torch.stack([own.sum(), (lengths * own).sum()]).float()


def _alone(inputs: dict[str, Any]) -> torch.Tensor:
    """Count what is in one process's batch, which may hold nothing but fillings."""
    return torch.stack([_count(part) for part in inputs["parts"]]).sum(0).clamp(min=1)


def keep_memory() -> None:
    """Let glibc keep the memory of freed tensors.

    By default it gives large blocks back to the kernel at once and has them zeroed, page by page, when it takes them
    again, in every step. The heap gets holes instead, as rows differ in length; giving back now and then what lies free
    in them (`malloc_trim`) costs time and leaves the peak where it is, as the next step takes it all again.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3
        mallopt(mmap_threshold, 1 << 30)
        mallopt(trim_threshold, (1 << 31) - 1)


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout of a model to 0, also those that attention applies as a function."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        else:
            for name in ("attention_dropout", "dropout", "activation_dropout", "layerdrop"):
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, 0.0)
