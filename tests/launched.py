"""What `accelerate launch` starts in test_distributed.py, and what one process does to be compared with."""

from __future__ import annotations

import gc
import math
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

from test_trainer import TREES, adapter, load, logged, make, unpaired
from tiebreak import models
from tiebreak.cli import main
from tiebreak.progress import say
from tiebreak.recipe import Model
from tiebreak.records import InputError
from tiebreak.training import base
from tiebreak.training.reference import Cache
from tiebreak.training.trainer import PreferenceTrainer

BATCH = 4
"""Pairs a step: 14 make three steps of four and one of two, in which a second process has none of its own."""
SCENARIOS: dict[str, dict[str, Any]] = {
    "model": {},
    "resumed": {},
    "accumulated": {"gradient_accumulation_steps": 2},
    "adapter": {"peft_config": adapter()},
    "completions": {"loss_type": ["kto"], "train_dataset": [one for row in TREES for one in unpaired(row)]},
    "t5": {},
    "following": {"sync_ref_model": True, "ref_model_sync_steps": 3, "ref_model_mixup_alpha": 0.5},
    "bf16": {"bf16": True},
}
FSDP2 = ["model", "resumed", "accumulated", "adapter", "following", "bf16"]
DDP = ["model", "resumed", "accumulated", "adapter", "completions", "t5"]
SPOKEN = "one of us speaks"


def perform(name: str, folder: Path, out: Path) -> None:
    """Train, evaluate and save in `out`, with the models in `folder`; keep what every process knows of it."""
    out.mkdir(exist_ok=True)
    os.environ["XDG_CACHE_HOME"] = str(out / "cache")
    changes, world = dict(SCENARIOS[name]), int(os.environ.get("WORLD_SIZE", "1"))
    model = models.load_model(Model(name_or_path=str(folder / "t5")), torch.float32) if name == "t5" else load(folder / "causal")
    trainer = make(
        folder / ("t5" if name == "t5" else "causal"), out / ("model" if name == "resumed" else name),
        changes.pop("train_dataset", TREES), model, **changes,
        eval_dataset=TREES[:5] if name != "completions" else [one for row in TREES[:5] for one in unpaired(row)],
        per_device_train_batch_size=BATCH // world, per_device_eval_batch_size=BATCH // world, num_train_epochs=2,
        eval_strategy="epoch", save_strategy="steps", save_steps=3, compute_metrics=lambda given: {"rows": len(given.label_ids)},
    )  # fmt: skip
    rows: list[int] = []
    asked: list[int] = []
    step, compute = trainer.training_step, PreferenceTrainer._token_logps

    def stepping(model: Any, inputs: Any, *args: Any) -> torch.Tensor:
        rows.append(len(inputs["parts"]))
        return step(model, inputs, *args)

    def computing(wanted: Any, model: Any, label: str, **how: Any) -> Any:
        if label == "reference":
            asked.append(len(wanted))
        return compute(trainer, wanted, model, label, **how)

    trainer.training_step, trainer._token_logps = stepping, computing  # type: ignore[method-assign, assignment]
    trainer.train(resume_from_checkpoint=str(out / "model" / "checkpoint-6") if name == "resumed" else None)
    rewards = trainer.held_out_rewards()
    trainer.save_model(str(out / name / "saved"))
    whole = [weight.full_tensor() if isinstance(weight, DTensor) else weight for weight in trainer.model.parameters()]
    known = {
        "weights": torch.cat([weight.detach().flatten() for weight in whole]),
        "logged": logged(trainer, ("loss", "grad_norm")), "rows": rows, "asked": asked, "rewards": rewards,
        "evaluations": [line for line in trainer.state.log_history if "eval_loss" in line],
        "reference": list(trainer._references.items()), "kind": str(trainer.accelerator.distributed_type),
    }  # fmt: skip
    torch.save(known, out / f"{name}-{trainer.args.process_index}.pt")


def fail(folder: Path, out: Path) -> None:
    """Train on a reference that the second process alone finds to be no number."""
    trainer = make(folder / "causal", out / "failed", check_reference=False)
    trainer._refer(trainer.train_dataset)
    if trainer.args.process_index == 1:
        trainer._references = {asked: tokens * math.nan for asked, tokens in trainer._references.items()}
    try:
        trainer.train()
    except InputError as error:
        sys.exit(f"tiebreak: {error}")


def shard_on_the_cpu() -> None:
    """Let accelerate shard where there is no accelerator: torch does, and accelerate only does not ask it to."""
    begin = PartialState.__init__

    def begun(self: PartialState, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        if "ACCELERATE_USE_FSDP" in os.environ and self.distributed_type is DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = begun


def one_is_late() -> None:
    """Let the second process look into the cache when the first has begun to write there."""
    read = Cache.read

    def late(self: Cache, *args: Any) -> Any:
        time.sleep(0.2 * (os.environ["RANK"] != "0"))
        return read(self, *args)

    Cache.read = late  # type: ignore[method-assign]


if __name__ == "__main__":
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    gc.collect()
    gc.freeze()  # every training collects garbage, and going through what torch imported takes longer than the training
    shard_on_the_cpu()
    one_is_late()
    for name in FSDP2:
        perform(name, folder, out / "fsdp2")
    del os.environ["ACCELERATE_USE_FSDP"]
    base.ROW_TOKENS["cpu"] = 1  # processes then have different numbers of rows
    for name in DDP:
        perform(name, folder, out / "ddp")
    say(SPOKEN)
    sys.argv = ["tiebreak", "train", str(out / "run")]
    with suppress(SystemExit):
        main()
    fail(folder, out)
