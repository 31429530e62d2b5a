"""pull: a recipe that starts from pairs on the Hub, or in a folder of that form."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from tiebreak import hub
from tiebreak.files import read_json, write_text
from tiebreak.publish.cards import known_as
from tiebreak.publish.push import MADE_WITH
from tiebreak.recipe import Train
from tiebreak.recipe_yaml import validate_recipe
from tiebreak.records import InputError

MODEL = "builtin:smollm2-135m-instruct"
"""Who is trained where the pairs do not say for whom they were made."""


def pull(source: str, recipe: Path) -> list[str]:
    """Write a recipe that trains on pushed pairs, and say in lines what comes along and what does not.

    `source` is a dataset on the Hub or a local folder of that form; its columns are checked. Raises InputError.
    """
    if recipe.exists():
        raise InputError(f"{recipe}: is there already; name another file")
    if recipe.suffix not in (".yaml", ".yml") or not recipe.parent.is_dir():
        raise InputError(f"{recipe}: name a .yaml file in a folder that is there")
    folder = Path(source).expanduser()
    about: Path | None = folder / MADE_WITH
    if folder.is_dir():
        source = str(folder.resolve())
    else:
        hub.check_id("pull", source)
        about = hub.fetch(source, MADE_WITH)
    splits = _splits(source)
    columns = splits["train"]
    for name in ("chosen", "rejected"):
        if name not in columns:
            raise InputError(f"{source}: has no column {name}, so these are no pairs; there is {', '.join(columns)}")
    made = _made(about)
    kept = "test" in splits and "split" in columns
    doubts = {"flip_probability": "flip_probability"} if "flip_probability" in columns else {}
    prompts: dict[str, Any] = {"source": source, "pairs": doubts}
    prompts |= {"hub_split": "train+test", "split": "split"} if kept else {}
    data: dict[str, Any] = {"model": {"name_or_path": made.get("model") or MODEL}, "prompts": prompts}
    data |= {name: made[name] for name in ("seed", "train") if made.get(name) is not None}
    validate_recipe({"name": recipe.stem, **data}, str(about or recipe))
    head = (
        f"# Trains on the pairs of {source}: tiebreak run {recipe.name}\n# To compare answers too, give it judges and evaluate.\n"
    )
    write_text(recipe, head + yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
    return [f"{recipe}: edit it, then run: tiebreak run {recipe}", *_told(columns, splits, kept=kept, made=made)]


def _made(about: Path | None) -> dict[str, Any]:
    """Return what pushed pairs say of their run; of what somebody else wrote, only what does nothing but train."""
    if about is None or not about.is_file():
        return {}
    said = read_json(about)
    made: dict[str, Any] = said if isinstance(said, dict) else {}
    if not isinstance(made.get("model"), str) or known_as(made["model"])[0] is None:
        made["model"] = None
    train = made.get("train")
    names = Train.model_fields.keys() - {"trainer_args", "report_to"}
    return made | {"train": {name: train[name] for name in train if name in names} if isinstance(train, dict) else None}


def _splits(source: str) -> dict[str, list[str]]:
    """Return the columns of every split. Raises InputError."""
    import datasets
    from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    shown = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        found = datasets.load_dataset(source)
    except Exception as error:
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"{source}: {line}; check the name and the network") from None
    finally:
        if shown:
            enable_progress_bar()
    splits = {name: list(table.column_names) for name, table in found.items()}
    if "train" not in splits:
        raise InputError(f"{source}: has no split train; there is {', '.join(splits)}; name one in prompts.hub_split of a recipe")
    return splits


def _told(columns: Iterable[str], splits: dict[str, list[str]], *, kept: bool, made: dict[str, Any]) -> list[str]:
    lines = []
    if kept:
        lines.append("the split comes along: what was held out is held out")
    elif "test" in splits:
        lines.append("split test is left alone, since no column says which rows are in it; a tenth of train is held out")
    if "flip_probability" in columns:
        lines.append("flip_probability comes along; a pair's margin is what follows from it, 1 - 2 flip_probability")
    if not made:
        lines.append(f"nothing says for which model they were made; {MODEL} stands in the recipe")
    elif made.get("model") is None:
        lines.append(f"they were made for a model that is not on the Hub; {MODEL} stands in the recipe")
    return lines
