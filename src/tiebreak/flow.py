"""The flow: the stages in their order, what each reads and writes, and what makes one differ from another time."""

from __future__ import annotations

import json
import platform
from functools import cache
from importlib import metadata
from typing import Any, NamedTuple

from pydantic import BaseModel

import tiebreak
from tiebreak.recipe import OPERATIONAL

STAGES = ("prepare", "generate", "judge", "pair", "audit", "pretrain", "sft", "train", "evaluate", "report")
OPTIONAL = ("pretrain", "sft")
"""Stages that are performed where the recipe has a section for them."""
TRAINING = (*OPTIONAL, "train")
"""Stages that train; each starts from what the one before it made."""
WHOLE = ("audit",)
"""Stages that write one file from what is there, and write it anew when that changes."""
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "datasets")


class Made(NamedTuple):
    """What a stage reads and writes, as paths inside the run."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]


# `after:STAGE` stands for what a stage wrote where hashing it would take long: the time it finished.
# `judgments/*` is the labelling judge's file.
FLOW: dict[str, Made] = {
    # written.jsonl stays on a redo: its replies are keyed by what was asked, and they were paid for.
    "prepare": Made((), ("prompts.jsonl",)),
    "generate": Made(("prompts.jsonl",), ("completions.jsonl",)),
    "judge": Made(("prompts.jsonl", "completions.jsonl"), ("judgments",)),
    "pair": Made(("prompts.jsonl", "completions.jsonl", "judgments/*"), ("pairs.jsonl", "eval/pairs.jsonl")),
    "audit": Made(("pairs.jsonl", "eval/pairs.jsonl"), ("audit.json",)),
    "pretrain": Made((), ("pretrain",)),
    # The pairs, where their chosen completions are what is learned.
    "sft": Made(("prompts.jsonl", "pairs.jsonl", "eval/pairs.jsonl", "after:pretrain"), ("sft",)),
    "train": Made(("pairs.jsonl", "eval/pairs.jsonl", "after:pretrain", "after:sft"), ("train",)),
    "evaluate": Made(
        ("prompts.jsonl", "after:train"),
        ("eval/completions.jsonl", "eval/judgments", "eval/summary.json", "eval/results.csv", "eval/head_to_head.csv"),
    ),
    "report": Made((), ("report.html", "figures")),
}


def without_operational(value: Any, *, defaults: bool = True) -> Any:
    """Return a part of the recipe as JSON has it, less what changes only how fast the work goes.

    Without `defaults`, also less the keys that say no more than their default.
    """
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_defaults=not defaults)
    if isinstance(value, dict):
        return {key: without_operational(inner, defaults=defaults) for key, inner in value.items() if key not in OPERATIONAL}
    if isinstance(value, list | tuple):
        return [without_operational(inner, defaults=defaults) for inner in value]
    return value


def as_known(new: Any, said: Any, old: Any) -> Any:
    """Return settings less the keys that `old` does not know and that `said`, the settings without defaults, does not name.

    A key that came with a later version means its default to a run that was made before.
    """
    if isinstance(new, dict) and isinstance(old, dict):
        named = said if isinstance(said, dict) else {}
        return {key: as_known(value, named.get(key), old.get(key)) for key, value in new.items() if key in old or key in named}
    if isinstance(new, list) and isinstance(old, list) and len(new) == len(old):
        each = said if isinstance(said, list) and len(said) == len(new) else [None] * len(new)
        return [as_known(*three) for three in zip(new, each, old, strict=True)]
    return new


def differences(key: str, old: Any, new: Any) -> list[str]:
    """Return in words where two settings differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for name in sorted(old.keys() | new.keys())
            for line in differences(f"{key}.{name}", old.get(name), new.get(name))
        ]
    return [] if old == new else [f"{key} (was {json.dumps(old)}, is {json.dumps(new)})"]


@cache
def versions() -> dict[str, str]:
    """Return the versions of what a stage's outcome may depend on."""
    found = {"tiebreak": tiebreak.__version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
