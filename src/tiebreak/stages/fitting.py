"""What the stages that train share: settings by Hugging Face's names, checkpoints that a crash cannot half-write, metrics."""

from __future__ import annotations

import dataclasses
import difflib
import re
import shutil
import warnings
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel
from transformers import TrainerCallback, TrainerState, TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from tiebreak import models
from tiebreak.exchange.sources import find_source
from tiebreak.files import appending, read_jsonl, write_jsonl
from tiebreak.progress import first_process, progress, say
from tiebreak.recipe import Optimisation
from tiebreak.records import InputError, Logged
from tiebreak.run import Counts, Run, Training
from tiebreak.training.base import TreeConfig, TreeTrainer
from tiebreak.training.sft import SftConfig, SftTrainer

COMPLETE = "complete"
"""A file that a checkpoint folder holds once everything in it is written."""

C = TypeVar("C", bound=TreeConfig)
T = TypeVar("T", bound=TreeTrainer)
Watch = Callable[[Callable[[BaseModel], None], list[Logged], int], Sequence[TrainerCallback]]
"""Makes callbacks from a function that logs, what an earlier start logged, and the step that training goes on from."""


def fit_supervised(
    run: Run, stage: str, settings: Optimisation, rows: list[dict[str, Any]], held_out: Sequence[dict[str, Any]] = ()
) -> Counts:
    """Train the model that `stage` starts from on rows as `SftTrainer` takes them, and save it. Raises InputError."""
    config = configured(SftConfig, run, stage, settings, held_out=bool(held_out))
    trainer = assembled(SftTrainer, config, run, stage, settings, rows, held_out)
    counts = fit(trainer, stage, run.training(stage))
    finish(run, stage, settings)
    return {"examples": len(trainer.train_dataset), **counts}


def assembled(  # noqa: PLR0917
    kind: Callable[..., T], config: TreeConfig, run: Run, stage: str, settings: Optimisation,
    rows: Sequence[dict[str, Any]], held_out: Sequence[dict[str, Any]],
) -> T:  # fmt: skip
    """Return a trainer of the model that `stage` starts from. Raises InputError."""
    base, lora = run.policy(stage), settings.lora
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of libraries about one another's names
        warnings.filterwarnings("ignore", "fan_in_fan_out is set")  # PEFT finds out by itself
        model = models.load_model(base, torch.float32, in_4bit=bool(lora and lora.load_in_4bit))
        return kind(
            model,
            args=config,
            train_dataset=rows,
            eval_dataset=held_out or None,
            processing_class=models.load_tokenizer(base),
            peft_config=models.adapter(lora, encoder_decoder=bool(model.config.is_encoder_decoder)) if lora else None,
        )


def fit(trainer: TreeTrainer, stage: str, place: Training, watch: Watch = lambda *_: ()) -> Counts:
    """Train and save the model; go on from the last whole checkpoint. Checkpoints stay, until `finish`."""
    trainer.remove_callback(PrinterCallback)
    for split, dropped in trainer.row_counts.items():
        if dropped:
            say(f"{stage}: of the {split} rows, {', '.join(f'{count} {reason}' for reason, count in dropped.items())}")
    with trainer.accelerator.main_process_first():  # it clears away what others must not take for a checkpoint
        checkpoint = last_whole(place.folder)
    begun = int(checkpoint.name.split("-")[1]) if checkpoint else 0
    before = list(read_jsonl(place.metrics_jsonl, Logged))
    write_jsonl(place.metrics_jsonl, [line for line in before if line.step <= begun])
    if checkpoint and (epochs := _ended(checkpoint)) is not None:
        # What is left is to save the model; from the middle of an epoch, the Trainer would take a step more.
        trainer.args.max_steps, trainer.args.num_train_epochs = -1, epochs
    with models.quiet():
        with appending(place.metrics_jsonl) as append, ExitStack() as shown:
            for callback in (_Follow(stage, append, shown), *watch(append, before, begun)):
                trainer.add_callback(callback)
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        trainer.save_model(str(place.model))
        trainer.accelerator.wait_for_everyone()
        for needless in ("training_args.bin", "README.md"):  # a pickle, which nobody should have to load; PEFT's blank form
            (place.model / needless).unlink(missing_ok=True)
    logged = [line.loss for line in read_jsonl(place.metrics_jsonl, Logged) if line.loss is not None]
    return {
        "rows": trainer.row_counts["train"],
        "steps": trainer.state.global_step,
        "loss": sum(logged) / len(logged) if logged else None,
        "resumed_at": begun,
    }


def finish(run: Run, stage: str, settings: Optimisation) -> None:
    """Finish the adapter of a training that is done, and delete its checkpoints."""
    place = run.training(stage)
    if settings.lora:
        models.finish_adapter(place.model, run.policy(stage), settings.lora)
    if not settings.keep_checkpoints and first_process():
        for folder in place.folder.glob("checkpoint-*"):
            discard(folder)


# --- settings ------------------------------------------------------------------------------------------------------


def configured(kind: type[C], run: Run, stage: str, settings: Optimisation, *, held_out: bool, **ours: Any) -> C:
    """Return the trainer's arguments from a section of the recipe and `ours`; raises InputError for what transformers refuses."""
    fields = [field.name for field in dataclasses.fields(kind)]
    defaults: dict[str, Any] = {
        "output_dir": str(run.training(stage).folder),
        "seed": run.recipe.seed,
        "run_name": run.recipe.name,
        "eval_strategy": "steps" if held_out else "no",
        "eval_steps": 0.1,  # a share of all steps
        "save_strategy": "steps",
        "save_steps": 0.1,
        "save_total_limit": 2,
        "disable_tqdm": True,
        "per_device_eval_batch_size": settings.per_device_train_batch_size,
    }
    _known(f"{stage}.optim", settings.optim, [name.value for name in OptimizerNames])
    _known(f"{stage}.lr_scheduler_type", settings.lr_scheduler_type, [name.value for name in SchedulerType])
    for tracker in settings.report_to:
        _known(f"{stage}.report_to", tracker, INTEGRATION_TO_CALLBACK)
    for name in settings.trainer_args:
        _known(f"{stage}.trainer_args", name, fields)
    given: dict[str, Any] = {name: getattr(settings, name) for name in type(settings).model_fields if name in fields}
    given = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items() if value is not None}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of its names in its next version
            return kind(**(defaults | given | ours | settings.trainer_args))
    except (TypeError, ValueError) as error:
        raise InputError(f"{stage}: {str(error).splitlines()[0]}") from None


def check_supervised(run: Run, stage: str) -> None:
    """Refuse what a stage that calls `fit_supervised` could not honour, and a source that is not there. Raises InputError."""
    settings = getattr(run.recipe, stage)
    if settings is None:
        return  # the stage itself says so
    if settings.source is not None:
        find_source(run, stage)
    check(configured(SftConfig, run, stage, settings, held_out=True), stage, settings)


def check(config: TreeConfig, stage: str, settings: Optimisation) -> None:
    """Refuse what training could not honour, before any model loads. Raises InputError."""
    if settings.lora is not None and settings.lora.load_in_4bit:
        models.check_bitsandbytes(f"{stage}.lora.load_in_4bit")
    optim = settings.optim
    if "bnb" in optim or optim.endswith("8bit"):
        models.check_bitsandbytes(f"{stage}.optim {optim}")
    for name in set(config.report_to or ()) - set(get_available_reporting_integrations()):
        raise InputError(f"{stage}.report_to {name}: its package is missing; install it: pip install {name.replace('_', '-')}")
    some = torch.nn.Linear(1, 1)
    try:
        if not config.optim_target_modules:  # else it looks for them in the model
            TreeTrainer.get_optimizer_cls_and_kwargs(config, some)  # type: ignore[arg-type]
        get_scheduler(
            config.lr_scheduler_type, torch.optim.SGD(some.parameters(), 1.0), config.get_warmup_steps(100), 100,
            scheduler_specific_kwargs=config.lr_scheduler_kwargs,  # type: ignore[arg-type]
        )  # fmt: skip
    except (ValueError, TypeError, ImportError) as error:
        raise InputError(f"{stage}: optim {optim}, lr_scheduler_type {settings.lr_scheduler_type}: {error}") from None


def _known(key: str, name: str, known: Collection[str]) -> None:
    """Raise InputError for a name that transformers does not have, with the nearest one that it has."""
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; there is {', '.join(sorted(known))}" if len(known) < 60 else ""
        raise InputError(f"{key}: transformers has no {name!r}{hint}")


# --- checkpoints ---------------------------------------------------------------------------------------------------


def last_whole(folder: Path) -> Path | None:
    """Return the newest checkpoint that was written to its end; delete those that were not."""
    whole = []
    for path in folder.glob("checkpoint-*"):
        if re.fullmatch(r"checkpoint-\d+", path.name) and (path / COMPLETE).exists():
            whole.append(path)
        elif first_process():
            discard(path)
    return max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)


def discard(checkpoint: Path) -> None:
    """Delete a checkpoint so that, half deleted, it does not pass for a whole one."""
    (checkpoint / COMPLETE).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


def _ended(checkpoint: Path) -> int | None:
    """Return the epochs that were whole where training was to stop at a checkpoint, or None."""
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    stopped = state.stateful_callbacks["TrainerControl"]["args"]["should_training_stop"]
    return int(state.epoch or 0) if stopped else None


class _Follow(TrainerCallback):
    """Appends what is logged to metrics.jsonl, marks whole checkpoints, and shows how far training is."""

    def __init__(self, stage: str, append: Callable[[BaseModel], None], shown: ExitStack) -> None:
        self.stage, self.append, self.shown = stage, append, shown
        self.advance: Callable[[int], None] = lambda _: None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        best = Path(str(args.output_dir)) / f"checkpoint-{state.best_global_step}"
        if (best / COMPLETE).exists():  # the run may have been moved, or be called from another folder, since it was best
            state.best_model_checkpoint = str(best)
        self.advance = self.shown.enter_context(progress(self.stage, state.max_steps - state.global_step, "steps"))

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self.advance(1)

    def on_log(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        values = {name: value for name, value in kwargs["logs"].items() if isinstance(value, int | float)}
        if "train_runtime" not in values:  # the last line sums up this start, not the whole training
            self.append(Logged(step=state.global_step, **values))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if first_process():
            (Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / COMPLETE).touch()
