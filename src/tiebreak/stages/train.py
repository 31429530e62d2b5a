"""train: preference optimisation on the pairs, from the model that is there, which is its reference where no other is named."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from pydantic import BaseModel
from transformers import EarlyStoppingCallback, PreTrainedModel, TrainerCallback

from tiebreak import models
from tiebreak.files import read_jsonl, write_jsonl
from tiebreak.recipe import Train
from tiebreak.records import InputError, Logged, Message, PreferencePair, Rating, Split
from tiebreak.run import Counts, Run
from tiebreak.stages import fitting
from tiebreak.training import losses
from tiebreak.training.monitor import Monitor, kind_of
from tiebreak.training.trainer import PreferenceConfig, PreferenceTrainer


class HeldOut(BaseModel):
    """The rewards of one held-out pair after training; pairs of one prompt share its number."""

    prompt: int
    chosen: float
    rejected: float


def train(run: Run) -> Counts:
    """Train the policy on `pairs.jsonl` and save it; go on from the last whole checkpoint. Raises InputError."""
    settings = _settings(run)
    labelled = bool(run.recipe.prompts.labels) and settings.loss_type == ("kto",)
    if labelled:
        rows, held_out = (list(_labelled(run, split)) for split in ("train", "test"))
    else:
        both = (run.pairs(path) for path in (run.pairs_jsonl, run.held_out_pairs_jsonl))
        rows, held_out = (_rows(pairs, flips=settings.use_flip_probability) for pairs in both)
    if not rows:
        return {"skipped": f"no usable {'labelled answer' if labelled else 'pair'} to train on"}
    config = _config(run, held_out=bool(held_out))
    beside = partial(PreferenceTrainer, ref_model=_reference(run, settings))
    trainer = fitting.assembled(beside, config, run, "train", settings, rows, held_out)

    def watch(append: Callable[[BaseModel], None], earlier: list[Logged], begun: int) -> Sequence[TrainerCallback]:
        still = trainer.needs_reference and not config.sync_ref_model
        number = len(trainer.eval_dataset or ())
        monitor = Monitor(append, beta=config.beta, reference=still, held_out=number, earlier=earlier, begun=begun)
        patience = settings.early_stopping_patience
        return [monitor] if patience is None else [monitor, EarlyStoppingCallback(patience)]

    place = run.training("train")
    counts = {
        "pairs": len(rows) if config.unpaired and not labelled else len(trainer.train_dataset),
        "prompts": len(trainer.train_dataset.groups),
        **({"labelled": True} if labelled else {}),
        **fitting.fit(trainer, "train", place, watch),
    }
    if held_out:
        write_jsonl(run.held_out_jsonl, _held_out(trainer, labelled=labelled))
    if config.load_best_model_at_end:
        counts["best_step"] = trainer.state.best_global_step
    if warned := {kind: line.step for line in read_jsonl(place.metrics_jsonl, Logged) if (kind := kind_of(line))}:
        counts["warnings"] = warned
    fitting.finish(run, "train", settings)
    return counts


def check(run: Run) -> None:
    """Refuse what training could not honour, before any model loads. Raises InputError."""
    settings, config = _settings(run), _config(run, held_out=True)
    fitting.check(config, "train", settings)
    if settings.reference is not None:
        if not (config.unpaired or losses.needs_reference(config)):
            raise InputError(f"train.reference: does nothing for loss_type {', '.join(config.loss_type)}; leave it out")
        models.check(settings.reference)


def _settings(run: Run) -> Train:
    if run.recipe.train is None:
        raise InputError("train: the recipe says null, which trains nothing")
    return run.recipe.train


def _config(run: Run, *, held_out: bool) -> PreferenceConfig:
    settings = _settings(run)
    ours: dict[str, Any] = {}
    if best := settings.metric_for_best_model or ("loss" if settings.early_stopping_patience else None):
        if not held_out:
            raise InputError(f"train: no held-out pair to measure {best} on; raise prompts.test_fraction, or keep the last state")
        # What was best can be kept only where it was saved; one more is kept beside it, as a place to go on from.
        every = settings.eval_steps or settings.save_steps or 0.1
        ours = {"eval_steps": every, "save_steps": every, "save_total_limit": 3}
        ours |= {"load_best_model_at_end": True, "metric_for_best_model": best}
    if settings.reference not in (None, run.policy("train")):
        ours["check_reference"] = False  # the policy has left it before the first step
    return fitting.configured(PreferenceConfig, run, "train", settings, held_out=held_out, **ours)


def _reference(run: Run, settings: Train) -> PreTrainedModel | None:
    """Return the reference that the recipe names, if any. Raises InputError where it knows other tokens."""
    if settings.reference is None:
        return None
    own, its = (models.load_tokenizer(model) for model in (run.policy("train"), settings.reference))
    if own.get_vocab() != its.get_vocab():
        raise InputError(
            f"train.reference {settings.reference.name_or_path}: its tokens are not those of the model that is trained"
        )
    return models.load_model(settings.reference, torch.float32, in_4bit=bool(settings.lora and settings.lora.load_in_4bit))


def _rows(pairs: Iterable[PreferencePair], *, flips: bool) -> list[dict[str, Any]]:
    columns = ("prompt", "chosen", "rejected", *(("flip_probability",) if flips else ()))
    return [{name: getattr(pair, name) for name in columns} for pair in pairs]


def _labelled(run: Run, split: Split) -> Iterator[dict[str, Any]]:
    """Yield labelled answers as rows; one that is called good as often as bad says nothing."""
    texts = {draw.id: draw.text for draw in run.draws()}
    prompts = {prompt.id: prompt for prompt in run.prompts() if prompt.split == split}
    for rating in run.verdicts(run.given_jsonl):
        if isinstance(rating, Rating) and rating.prompt_id in prompts and rating.score not in (None, 0.5):
            answer = (Message(role="assistant", content=texts[rating.completion_id]),)
            yield {"prompt": prompts[rating.prompt_id].messages, "completion": answer, "label": rating.score > 0.5}


def _held_out(trainer: PreferenceTrainer, *, labelled: bool) -> list[HeldOut]:
    """Return the rewards of the held-out pairs; kto took them apart into two rows each, which find together here.

    Of labelled answers each good one meets each bad one of its prompt.
    """
    groups, found = trainer.eval_dataset.groups if trainer.eval_dataset else [], []
    for at, (group, twos) in enumerate(zip(groups, trainer.held_out_rewards(), strict=True)):
        pairs = twos
        if labelled:
            rewards = [(example.desirable, reward) for example, (reward, _) in zip(group, twos, strict=True)]
            good, bad = ([reward for desirable, reward in rewards if desirable == side] for side in (True, False))
            pairs = list(product(good, bad))
        elif trainer.args.unpaired:
            own = {example.row: reward for example, (reward, _) in zip(group, twos, strict=True)}
            pairs = [(own[row], own[row + 1]) for row in own if row % 2 == 0 and row + 1 in own]
        found += [HeldOut(prompt=at, chosen=won, rejected=lost) for won, lost in pairs]
    return found
