"""train: DPO on the pairs, with checkpoints that a crash cannot half-write into the next start."""

from __future__ import annotations

import json
import math
import re
import shutil
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback

from tiebreak import models
from tiebreak.progress import progress, say
from tiebreak.records import InputError
from tiebreak.run import Counts, Run, appending, read_jsonl, write_jsonl
from tiebreak.training.trainer import PreferenceConfig, PreferenceTrainer

if TYPE_CHECKING:
    from peft import LoraConfig

COMPLETE = "complete"
"""A file that a checkpoint folder holds once everything in it is written."""


class Logged(BaseModel):
    """One line of metrics.jsonl: a step and what was measured there."""

    model_config = ConfigDict(extra="allow")
    step: int
    loss: float | None = None


class HeldOut(BaseModel):
    """The rewards of one held-out pair after training; pairs of one prompt share its number."""

    prompt: int
    chosen: float
    rejected: float


def train(run: Run) -> Counts:
    """Train the policy on `pairs.jsonl` and save it; go on from the last whole checkpoint. Raises InputError."""
    import torch

    settings = run.recipe.train
    pairs, held_out = run.pairs(run.pairs_jsonl), run.pairs(run.held_out_pairs_jsonl)
    if not pairs:
        return {"skipped": "no usable pair to train on"}
    tokenizer = models.load_tokenizer(run.recipe.model)
    policy = models.load_model(run.recipe.model, torch.float32)
    columns = ("prompt", "chosen", "rejected")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            config = _config(run, len(pairs), bool(held_out))
    except (TypeError, ValueError) as error:
        raise InputError(f"train: {str(error).splitlines()[0]}") from None
    trainer = PreferenceTrainer(
        policy,
        args=config,
        train_dataset=[{name: getattr(pair, name) for name in columns} for pair in pairs],
        eval_dataset=[{name: getattr(pair, name) for name in columns} for pair in held_out] or None,
        processing_class=tokenizer,
        peft_config=_lora(run),
    )
    trainer.remove_callback(PrinterCallback)
    for split, counts in trainer.row_counts.items():
        if counts:
            say(f"train: of the {split} pairs, {', '.join(f'{count} {reason}' for reason, count in counts.items())}")
    checkpoint = _last_whole(run.train)
    begun = int(checkpoint.name.split("-")[1]) if checkpoint else 0
    write_jsonl(run.metrics_jsonl, [line for line in read_jsonl(run.metrics_jsonl, Logged) if line.step <= begun])
    with appending(run.metrics_jsonl) as append:
        trainer.add_callback(_Follow(append, begun))
        with models.quiet():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    with models.quiet():
        trainer.save_model(str(run.tuned))
    if held_out:
        rewards = trainer.held_out_rewards()
        write_jsonl(
            run.held_out_jsonl,
            [HeldOut(prompt=at, chosen=won, rejected=lost) for at, group in enumerate(rewards) for won, lost in group],
        )
    logged = [line.loss for line in read_jsonl(run.metrics_jsonl, Logged) if line.loss is not None]
    if not settings.keep_checkpoints:
        for folder in run.train.glob("checkpoint-*"):
            shutil.rmtree(folder)
    return {
        "pairs": len(trainer.train_dataset),
        "prompts": len(trainer.train_dataset.groups),
        "rows": trainer.row_counts["train"],
        "steps": trainer.state.global_step,
        "loss": sum(logged) / len(logged) if logged else None,
        "resumed_at": begun,
    }


def _config(run: Run, pairs: int, held_out: bool) -> PreferenceConfig:
    settings = run.recipe.train
    per_step = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
    per_epoch = max(1, math.ceil(pairs / per_step))
    steps = max(1, math.ceil(per_epoch * settings.num_train_epochs))
    ours: dict[str, Any] = {
        "output_dir": str(run.train),
        "seed": run.recipe.seed,
        "loss_type": list(settings.loss_type),
        "eval_strategy": "steps" if held_out else "no",
        "eval_steps": settings.eval_steps or max(1, steps // 10),
        "save_strategy": "steps",
        "save_steps": settings.save_steps or per_epoch,
        "save_total_limit": 2,
        "disable_tqdm": True,
        "report_to": [],
        "use_cpu": models.device().type == "cpu",
        "per_device_eval_batch_size": settings.per_device_train_batch_size,
        "optim": "adamw_torch_fused",
    }
    taken = {"method", "lora", "loss_type", "eval_steps", "save_steps", "keep_checkpoints", "trainer_args"}
    shared = {name: getattr(settings, name) for name in type(settings).model_fields if name not in taken}
    return PreferenceConfig(**(ours | shared | settings.trainer_args))


def _lora(run: Run) -> LoraConfig | None:
    lora = run.recipe.train.lora
    if lora is None:
        return None
    from peft import LoraConfig

    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    return LoraConfig(
        r=lora.r, lora_alpha=lora.lora_alpha, lora_dropout=lora.lora_dropout, target_modules=targets, task_type="CAUSAL_LM"
    )


def _last_whole(folder: Path) -> Path | None:
    """Return the newest checkpoint that was written to its end; delete those that were not."""
    whole = []
    for path in folder.glob("checkpoint-*"):
        if re.fullmatch(r"checkpoint-\d+", path.name) and (path / COMPLETE).exists():
            whole.append(path)
        else:
            shutil.rmtree(path)
    return max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)


class _Follow(TrainerCallback):
    """Appends what is logged to metrics.jsonl, marks whole checkpoints, and shows how far training is."""

    def __init__(self, append: Any, begun: int) -> None:
        self.append, self.begun = append, begun
        self.bar: AbstractContextManager[Any] | None = None
        self.advance: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar = progress("train", state.max_steps - self.begun, "steps")
        self.advance = self.bar.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.advance(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        values = {name: value for name, value in (logs or {}).items() if isinstance(value, int | float)}
        self.append(Logged.model_validate_json(json.dumps({"step": state.global_step, **values})))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.__exit__(None, None, None)
