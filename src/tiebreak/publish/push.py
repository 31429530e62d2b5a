"""push: a run's pairs and its model as folders in the Hub's form, with cards; sent, or left in a folder to look at."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from tiebreak import hub, models
from tiebreak.files import read_json, write_json, write_text
from tiebreak.publish.cards import HUB_NAMES, Pushed, dataset_card, known_as, model_card
from tiebreak.recipe import Model
from tiebreak.records import InputError
from tiebreak.run import Run
from tiebreak.stages.audit import read_findings
from tiebreak.stages.trust import Panel, trust

Form = Literal["adapter", "merged"]

MADE_WITH = "tiebreak.json"
"""What `tiebreak pull` reads beside the pairs: the seed that splits them, the model and how it was trained."""
WEIGHTS = (".safetensors", ".json", ".jinja", ".model", ".txt")
"""What of a model's folder is pushed: never a pickle, and no code."""
FIGURES = ("outcome", "loss", "rewards", "accuracy", "margins")
NAMES = ("_name_or_path", "_model_name_or_path", "name_or_path", "base_model_name_or_path")
"""Keys of configuration files that may hold a path of this machine."""
STALE: dict[hub.Kind, tuple[str, ...]] = {
    "dataset": ("data/train.parquet", "data/test.parquet"),
    "model": (
        *("model.safetensors", "model-*.safetensors", "model.safetensors.index.json", models.ADAPTER, models.ADAPTER_WEIGHTS),
        *(f"figures/{name}.png" for name in FIGURES),
    ),
}
"""What an earlier push may have left that would be read with what is there now."""


def push(
    run: Run, dataset: str | None, model: str | None, form: Form | None = None, *, private: bool = False,
    folder: Path | None = None, license: str | None = None,
) -> list[str]:  # fmt: skip
    """Push the pairs to `dataset` and the model to `model`, or write both into `folder`; return where they are.

    `form` is what of a model that was trained as an adapter is pushed; default: the adapter. Raises InputError.
    """
    named: tuple[tuple[hub.Kind, str | None], ...] = (("dataset", dataset), ("model", model))
    wanted = {kind: name for kind, name in named if name}
    if not wanted:
        raise InputError("push: name where to: --dataset OWNER/NAME, --model OWNER/NAME, or both")
    for kind, name in wanted.items():
        hub.check_id(f"--{kind}", name)
    if form and not model:
        raise InputError(f"--{form} is about the model; name where to with --model OWNER/NAME")
    panel = trust(run)
    _check(run, panel, wanted, form, private=private)
    if folder is None:
        hub.token()  # before a model is merged for nothing
    pushed = _pushed(run, wanted, form, license)
    done = []
    with _place(run, folder) as place:
        for kind, name in wanted.items():
            if kind == "dataset":
                _write_dataset(run, place / kind, pushed, panel)
            else:
                _write_model(run, place / kind, pushed, panel, form, keep=folder is not None)
            done.append(str(place / kind) if folder else hub.send(place / kind, kind, name, private=private, stale=STALE[kind]))
    return done


def _check(run: Run, panel: Panel, wanted: Iterable[str], form: Form | None, *, private: bool) -> None:
    """Refuse what nobody should be given, before anything is written. Raises InputError."""
    failed = [own.name for own in panel.judges if own.canaries and own.canaries.failed]
    if failed and not run.accepts_canary_failures:
        raise InputError(
            f"{run.path}: {', '.join(failed)} failed canaries, so nothing of this run is pushed; change the judge, or say to go "
            f"on with `tiebreak judge {run.path} --accept-canary-failures`, and the cards will tell"
        )
    if "dataset" in wanted:
        if not run.pairs(run.pairs_jsonl):
            raise InputError(f"{run.path}: has no pairs to push; run `tiebreak pair` first")
        findings = read_findings(run) if run.audit_json.exists() else ()
        secrets = sum(found.count for found in findings if found.code == "secret")
        if secrets and not private:
            raise InputError(
                f"{run.path}: the audit found what looks like a key or a password in {secrets} pairs; delete them, "
                "or push with --private"
            )
    if "model" in wanted:
        _check_model(run, form)


def _check_model(run: Run, form: Form | None) -> None:
    if run.state("train") != "done" or not any(run.tuned.glob("*.safetensors")):
        why = run.counts("train").get("skipped") or f"train is {run.state('train')}"
        raise InputError(f"{run.path}: no model was trained ({why}), so there is none to push; leave --model out")
    if not (run.tuned / models.ADAPTER).is_file():
        if form == "adapter":
            raise InputError(f"--adapter: {run.path} trained all weights, so there is no adapter; leave --adapter out")
    elif form != "merged":
        base = read_json(run.tuned / models.ADAPTER).get("base_model_name_or_path") or ""
        if known_as(base)[0] is None:
            raise InputError(
                f"--adapter: it is for {base or 'a model without a name'}, which is on this machine alone; push it with --merged"
            )


def _pushed(run: Run, wanted: dict[hub.Kind, str], form: Form | None, license: str | None) -> Pushed:
    config = run.tuned / "config.json"
    adapter = (run.tuned / models.ADAPTER).is_file()
    task = read_json(run.tuned / models.ADAPTER).get("task_type") if adapter else None
    encoder_decoder = task == "SEQ_2_SEQ_LM" or (config.is_file() and bool(read_json(config).get("is_encoder_decoder")))
    return Pushed(
        wanted.get("dataset"), wanted.get("model"), license, adapter=adapter and form != "merged", encoder_decoder=encoder_decoder
    )


@contextmanager
def _place(run: Run, folder: Path | None) -> Iterator[Path]:
    """Yield where to write: an empty folder of the user's, or one in the run, where there is room, that is gone afterwards."""
    if folder is None:
        for left in run.path.glob(".push-*"):  # by a push that was killed
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(prefix=".push-", dir=run.path) as place:
            yield Path(place)
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"--dry-run {folder}: is there already; name an empty or new folder")
    folder.mkdir(parents=True, exist_ok=True)
    yield folder


# --- the pairs -----------------------------------------------------------------------------------------------------


def _write_dataset(run: Run, folder: Path, pushed: Pushed, panel: Panel) -> None:
    splits = {"train": run.pairs(run.pairs_jsonl), "test": run.pairs(run.held_out_pairs_jsonl)}
    splits = {split: pairs for split, pairs in splits.items() if pairs}
    for split, pairs in splits.items():
        write_parquet(folder / "data" / f"{split}.parquet", [pair.model_dump(mode="json") | {"split": split} for pair in pairs])
    sizes = {split: len(pairs) for split, pairs in splits.items()}
    write_text(folder / "README.md", dataset_card(run, pushed, sizes, panel))
    recipe, (base, _) = run.recipe, known_as(run.recipe.model.name_or_path)
    made: dict[str, Any] = {"tiebreak": run.manifest["tiebreak"], "seed": recipe.seed}
    made["model"] = recipe.model.name_or_path if recipe.model.name_or_path in HUB_NAMES else base
    if recipe.train is not None:
        made["train"] = recipe.train.model_dump(mode="json", exclude_defaults=True, exclude={"trainer_args", "report_to"})
    write_json(folder / MADE_WITH, made)


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows of pairs, whose prompt, chosen and rejected are turns; equal rows make equal files."""
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    turns = pyarrow.list_(pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())]))
    table = pyarrow.Table.from_pylist(rows)
    for name in ("prompt", "chosen", "rejected"):
        table = table.set_column(table.schema.get_field_index(name), name, table[name].cast(turns))
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path)


# --- the model -----------------------------------------------------------------------------------------------------


def _write_model(run: Run, folder: Path, pushed: Pushed, panel: Panel, form: Form | None, *, keep: bool) -> None:
    folder.mkdir(parents=True)
    if form == "merged" and (run.tuned / models.ADAPTER).is_file():
        _merge(run, folder)
    else:
        for file in sorted(run.tuned.iterdir()):
            if file.suffix in WEIGHTS and file.is_file():
                _take(file, folder / file.name, keep=keep)
    for file in folder.glob("*.json"):
        _without_paths(file)
    for name in FIGURES:
        if (figure := run.figures / f"{name}.png").is_file():
            (folder / "figures").mkdir(exist_ok=True)
            shutil.copyfile(figure, folder / "figures" / figure.name)
    figures = [f"figures/{name}.png" for name in FIGURES if (folder / "figures" / f"{name}.png").exists()]
    write_text(folder / "README.md", model_card(run, pushed, panel, figures))


def _merge(run: Run, folder: Path) -> None:
    import torch

    whole = Model(name_or_path=str(run.tuned), trust_remote_code=run.recipe.model.trust_remote_code)
    merged, tokenizer = models.load_model(whole, torch.float32), models.load_tokenizer(whole)
    with models.quiet():
        merged.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _take(file: Path, target: Path, *, keep: bool) -> None:
    """Copy a file; weights that are only sent are linked, since they may be large."""
    if keep or file.suffix != ".safetensors":
        shutil.copyfile(file, target)
    else:
        try:
            target.symlink_to(file.resolve())
        except OSError:  # a system where not everybody may
            shutil.copyfile(file, target)


def _without_paths(file: Path) -> None:
    """Take out of a configuration file where on this machine a model lay, and name a builtin one as the Hub does."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return
    if not isinstance(config, dict):
        return
    named = {name: config[name] for name in NAMES if isinstance(config.get(name), str)}
    for name, value in named.items():
        if value in HUB_NAMES:
            config[name] = HUB_NAMES[value][0]
        elif os.path.isabs(value):  # noqa: PTH117
            del config[name]
    if any(config.get(name) != value for name, value in named.items()):
        write_json(file, config)
