"""train: DPO on the pairs, with checkpoints that a crash cannot half-write into the next start."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import shutil
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from tiebreak import models
from tiebreak.files import appending, read_jsonl, write_jsonl
from tiebreak.progress import progress, say
from tiebreak.records import InputError, Logged
from tiebreak.run import Counts, Run
from tiebreak.training.trainer import PreferenceConfig, PreferenceTrainer

if TYPE_CHECKING:
    from peft import LoraConfig

COMPLETE = "complete"
"""A file that a checkpoint folder holds once everything in it is written."""


class HeldOut(BaseModel):
    """The rewards of one held-out pair after training; pairs of one prompt share its number."""

    prompt: int
    chosen: float
    rejected: float


def train(run: Run) -> Counts:
    """Train the policy on `pairs.jsonl` and save it; go on from the last whole checkpoint. Raises InputError."""
    import torch

    pairs, held_out = run.pairs(run.pairs_jsonl), run.pairs(run.held_out_pairs_jsonl)
    if not pairs:
        return {"skipped": "no usable pair to train on"}
    columns = ("prompt", "chosen", "rejected")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of libraries about one another's names
        trainer = PreferenceTrainer(
            models.load_model(run.recipe.model, torch.float32),
            args=_config(run, len(pairs), bool(held_out)),
            train_dataset=[{name: getattr(pair, name) for name in columns} for pair in pairs],
            eval_dataset=[{name: getattr(pair, name) for name in columns} for pair in held_out] or None,
            processing_class=models.load_tokenizer(run.recipe.model),
            peft_config=_lora(run),
        )
    trainer.remove_callback(PrinterCallback)
    for split, counts in trainer.row_counts.items():
        if counts:
            say(f"train: of the {split} pairs, {', '.join(f'{count} {reason}' for reason, count in counts.items())}")
    checkpoint = _last_whole(run.train)
    begun = int(checkpoint.name.split("-")[1]) if checkpoint else 0
    write_jsonl(run.metrics_jsonl, [line for line in read_jsonl(run.metrics_jsonl, Logged) if line.step <= begun])
    with models.quiet():
        with appending(run.metrics_jsonl) as append, ExitStack() as shown:
            trainer.add_callback(_Follow(append, shown))
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        trainer.save_model(str(run.tuned))
        (run.tuned / "training_args.bin").unlink(missing_ok=True)  # a pickle, which nobody should have to load
    if held_out:
        rewards = trainer.held_out_rewards()
        write_jsonl(
            run.held_out_jsonl,
            [HeldOut(prompt=at, chosen=won, rejected=lost) for at, group in enumerate(rewards) for won, lost in group],
        )
    logged = [line.loss for line in read_jsonl(run.metrics_jsonl, Logged) if line.loss is not None]
    if not run.recipe.train.keep_checkpoints:
        for folder in run.train.glob("checkpoint-*"):
            _discard(folder)
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
    known = [field.name for field in dataclasses.fields(PreferenceConfig)]
    for name in settings.trainer_args:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"train.trainer_args.{name}: transformers.TrainingArguments has no such field{hint}")
    try:
        return PreferenceConfig(**(ours | shared | settings.trainer_args))
    except (TypeError, ValueError) as error:
        raise InputError(f"train: {str(error).splitlines()[0]}") from None


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
            _discard(path)
    return max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)


def _discard(checkpoint: Path) -> None:
    """Delete a checkpoint so that, half deleted, it does not pass for a whole one."""
    (checkpoint / COMPLETE).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


class _Follow(TrainerCallback):
    """Appends what is logged to metrics.jsonl, marks whole checkpoints, and shows how far training is."""

    def __init__(self, append: Callable[[BaseModel], None], shown: ExitStack) -> None:
        self.append, self.shown = append, shown
        self.advance: Callable[[int], None] = lambda _: None

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self.advance = self.shown.enter_context(progress("train", state.max_steps - state.global_step, "steps"))

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self.advance(1)

    def on_log(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        values = {name: value for name, value in kwargs["logs"].items() if isinstance(value, int | float)}
        if "train_runtime" not in values:  # the last line sums up this start, not the whole training
            self.append(Logged(step=state.global_step, **values))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        (Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / COMPLETE).touch()
