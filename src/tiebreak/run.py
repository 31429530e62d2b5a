"""The run directory: with `flow` the only module that knows file names, and the contract every stage keeps.

A stage is `def stage(run: Run) -> Counts`: wanted - have = todo; do it; append each line as it lands.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

import tiebreak
from tiebreak.files import digest, grew, read_json, read_jsonl, write_json, write_text
from tiebreak.flow import FLOW, OPTIONAL, STAGES, TRAINING, WHOLE, as_known, differences, versions, without_operational
from tiebreak.progress import first_process
from tiebreak.recipe import GIVEN, HumanJudge, Model, Outputs, Recipe
from tiebreak.recipe_yaml import SHIPPED, load_recipe, validate_recipe
from tiebreak.records import Comparison, Completion, InputError, PreferencePair, Prompt, Rating

__all__ = ["FLOW", "OPTIONAL", "STAGES", "TRAINING", "Counts", "Run", "Training"]

Counts = dict[str, Any]
OF_PEOPLE = ("people", "people-of-the-app", "playground")
"""Where the app keeps what people say that no judge of the recipe stands for."""


class Training(NamedTuple):
    """Where a stage that trains keeps its checkpoints, what it logs, and the model."""

    folder: Path
    metrics_jsonl: Path
    model: Path


class Run:
    """One run: its recipe, its files, its manifest.

    Files of records are JSON lines, appended and never rewritten; a last line without its newline was torn by a
    crash and is owed again; a line that cannot be read in the middle is an InputError with file and number.
    """

    def __init__(self, path: str | Path) -> None:
        """Open an existing run directory."""
        self.path = path = Path(path)
        self.recipe_json = path / "recipe.json"
        self.manifest_json = path / "manifest.json"
        self.prompts_jsonl = path / "prompts.jsonl"
        self.written_jsonl = path / "written.jsonl"
        self.completions_jsonl = path / "completions.jsonl"
        self.pairs_jsonl = path / "pairs.jsonl"
        self.held_out_pairs_jsonl = path / "eval" / "pairs.jsonl"
        self.audit_json = path / "audit.json"
        self.train, self.metrics_jsonl, self.tuned = self.training("train")
        self.held_out_jsonl = path / "train" / "held_out.jsonl"
        self.eval_completions_jsonl = path / "eval" / "completions.jsonl"
        self.summary_json = path / "eval" / "summary.json"
        self.results_csv = path / "eval" / "results.csv"
        self.head_to_head_csv = path / "eval" / "head_to_head.csv"
        self.loop_json = path / "loop.json"
        """What a loop that repeats the stages made: its rounds, trials or variants, each a run of its own in here."""
        self.report_html = path / "report.html"
        self.figures = path / "figures"
        self.calls_sqlite = path / "calls.sqlite"
        """Every call that was made, and what it cost; it stays on a redo, as the money does not come back."""
        if not self.recipe_json.is_file():
            raise InputError(f"{path}: not a run directory (no recipe.json)")
        self.recipe: Recipe = validate_recipe(read_json(self.recipe_json), str(self.recipe_json))
        self.manifest: dict[str, Any] = read_json(self.manifest_json)
        self.recipe_text: str | None = None

    # --- opening ---------------------------------------------------------------------------------------------------

    @classmethod
    def start(
        cls, recipe_path: Path, path: Path | None = None, profile: str | None = None, overrides: tuple[str, ...] = ()
    ) -> Run:
        """Create the run directory of a recipe, or open the one that is there.

        A recipe that differs from the one a stage was made with is refused when that stage is performed.
        """
        recipe = load_recipe(recipe_path, profile, overrides)
        path = path or Path("runs") / recipe.name
        if path.exists() and not path.is_dir():
            raise InputError(f"{path}: is a file, not a run directory")
        new = not (path / "recipe.json").exists()
        begun = {".lock", "manifest.json", "manifest.json.partial", "recipe.json.partial"}  # by a start that was killed
        if new and path.is_dir() and any(entry.name not in begun for entry in path.iterdir()):
            raise InputError(f"{path}: holds other files; name an empty or new folder with --run")
        recipe_path = recipe_path.resolve()
        how: dict[str, Any] = {"recipe_folder": str(recipe_path.parent), "recipe_file": recipe_path.name}
        how |= {"profile": profile, "overrides": list(overrides)}
        if new:
            write_json(path / "manifest.json", {"tiebreak": tiebreak.__version__, **how, "stages": {}})
            write_json(path / "recipe.json", recipe.model_dump(mode="json"))
        run = cls(path)
        run.recipe, run.recipe_text = recipe, recipe_path.read_text(encoding="utf-8")
        run.manifest.update(how)
        return run

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run against other processes; raise InputError at once where one holds it.

        Processes at one training hold it together.
        """
        if not first_process():
            self.manifest["stages"] = read_json(self.manifest_json)["stages"]
            yield
            return
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(f"{self.path}: another tiebreak process is working on this run; wait for it or stop it") from None
        try:
            self.manifest["stages"] = read_json(self.manifest_json)["stages"]
            yield
        finally:
            lock.release()

    def held(self) -> bool:
        """Tell whether a process is working on the run."""
        try:
            with self.lock():
                return False
        except InputError:
            return True

    def resolve(self, name: str) -> Path:
        """Return the path of a file that the recipe names: beside the recipe, or in this folder, or shipped."""
        given = Path(os.path.expanduser(name))  # noqa: PTH111  Path's own raises where ~ is only a character
        folder = Path(self.manifest["recipe_folder"])
        places = (folder / given, given, SHIPPED / given, SHIPPED / f"{name}.txt")
        # os.path takes a long text for no path, where Path raises.
        return next((path for path in places if os.path.exists(path)), folder / given)  # noqa: PTH110

    # --- stages ----------------------------------------------------------------------------------------------------

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of this run: those that its recipe does not leave out."""
        absent = {name for name in (*OPTIONAL, "train") if getattr(self.recipe, name) is None}
        if not self.recipe.makes_pairs:
            absent |= {"generate", "judge", "pair", "audit"}
        if self.recipe.evaluate is None and self.recipe.train is None:
            absent.add("evaluate")
        return tuple(stage for stage in STAGES if stage not in absent)

    def training(self, stage: str) -> Training:
        """Return the places of a stage that trains."""
        folder = self.path / stage
        return Training(folder, folder / "metrics.jsonl", folder / "model")

    def policy(self, stage: str) -> Model:
        """Return the model that a stage of training starts from: what an earlier one made, or the recipe's."""
        for earlier in reversed(TRAINING[: TRAINING.index(stage)]):
            made = self.training(earlier).model
            if earlier in self.stages and made.is_dir():
                return self.recipe.model.model_copy(update={"name_or_path": str(made.resolve()), "revision": None})
        return self.recipe.model

    def perform(self, stage: str, work: Callable[[Run], Counts], *, again: bool = False) -> Counts:
        """Perform a stage: check what it rests on, do what is still owed, record what came of it.

        A stage that is done is left alone, unless `again` asks it to look for work once more.
        """
        entry = self.manifest["stages"].get(stage)
        self._need_section(stage)
        for other in self.stages[: self.stages.index(stage)]:
            if stage != "report" and self.state(other) != "done":
                raise InputError(f"{self.path}: {stage} comes after {other}, which is not done; run `tiebreak {other}` first")
        settings, inputs = self._settings(stage, entry), self._inputs(stage)
        grown = entry is not None and stage == "judge" and grew(self.completions_jsonl, entry["inputs"]["completions.jsonl"])
        if entry is not None and stage in WHOLE:
            grown = (settings, inputs) != (entry["settings"], entry["inputs"])
        elif entry is not None and any((self.path / name).exists() for name in FLOW[stage].writes):
            self._refuse_changes(stage, entry, settings, inputs, grown=grown)
        owed = entry is None or entry["state"] != "done" or grown or not settings.keys() <= entry["settings"].keys()
        if entry is not None and not owed and not again:
            return dict(entry["counts"])
        begun = time.time()
        spent = entry["seconds"] if entry else 0.0
        entry = {
            "state": "running",
            "settings": settings,
            "inputs": inputs,
            "counts": {},
            "seconds": spent,
            "versions": versions(),
        }
        self._record(stage, entry)
        try:
            counts = work(self)
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt | SystemExit)
            self._record(stage, {**entry, "state": "stopped" if stopped else "failed", "seconds": spent + time.time() - begun})
            raise
        entry |= {"state": "done", "counts": counts, "seconds": spent + time.time() - begun, "finished": time.time()}
        self._record(stage, entry)
        return counts

    def take_over(self, other: Run) -> list[str]:
        """Take what another run made from the same settings and inputs for the stages that are owed; return their names.

        Files are linked where the disk allows it, as no file of a run is ever changed in place but by its own stage,
        which would first find itself changed; files that are appended to are copied.
        """
        taken = []
        for stage in self.stages[:-1]:
            entry = other.manifest["stages"].get(stage)
            if self.state(stage) != "owed" or entry is None or entry["state"] != "done":
                continue
            if (self._settings(stage, entry), self._inputs(stage)) != (entry["settings"], entry["inputs"]):
                continue
            # Ready-made pairs bring their completions and verdicts as prompts do, whatever the model is.
            given = ("completions.jsonl", "judgments") if stage == "prepare" and self.ready_made else ()
            for name in (*FLOW[stage].writes, *given):
                source, target = other.path / name, self.path / name
                if source.is_dir():
                    shutil.copytree(source, target, dirs_exist_ok=True, copy_function=_linked)
                elif source.is_file():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    _linked(source, target)
            self._record(stage, {**entry, "taken_from": os.path.relpath(other.path, self.path)})
            taken.append(stage)
        return taken

    def state(self, stage: str) -> str:
        """Return `owed`, `running`, `stopped`, `failed` or `done`."""
        return str(self.manifest["stages"].get(stage, {}).get("state", "owed"))

    def counts(self, stage: str) -> Counts:
        """Return what a stage counted, or nothing where it has not run."""
        return dict(self.manifest["stages"].get(stage, {}).get("counts", {}))

    @property
    def accepts_canary_failures(self) -> bool:
        """Whether somebody said to go on with judges that fail their canaries."""
        return bool(self.manifest.get("accepts_canary_failures"))

    def accept_canary_failures(self) -> None:
        """Note for good that this run goes on with judges that fail their canaries."""
        self.manifest["accepts_canary_failures"] = True
        write_json(self.manifest_json, self.manifest)

    def redo(self, stage: str) -> None:
        """Delete what `stage` made, and everything made from it."""
        self._need_section(stage)
        if self.ready_made and stage in ("generate", "judge"):  # both came with the source
            stage = "prepare"
        gone: list[str] = []
        for later in STAGES[STAGES.index(stage) :]:
            made = tuple(name for one in gone for name in (f"after:{one}", *FLOW[one].writes))
            if later not in (stage, "report") and not any(read.startswith(made) for read in self._reads(later)):
                continue  # such as pretrain, which rests on no pair
            gone.append(later)
            for name in FLOW[later].writes:
                target = self.path / name
                if not first_process():
                    continue
                if name in ("judgments", "eval/judgments"):
                    self._forget_judgments(target)
                elif target.is_dir():
                    shutil.rmtree(target)
                else:
                    target.unlink(missing_ok=True)
            self.manifest["stages"].pop(later, None)
        write_json(self.manifest_json, self.manifest)

    def _forget_judgments(self, folder: Path) -> None:
        """Delete verdicts, save those that people gave in the app: nobody can be asked for them again."""
        people = [judge.name for judge in self.recipe.judges if isinstance(judge, HumanJudge) and not judge.file]
        kept = {folder / f"{name}.jsonl" for name in (*people, *OF_PEOPLE)}
        for path in folder.glob("*"):
            if path.is_dir():  # canaries, held-out-pairs
                shutil.rmtree(path)
            elif path.suffix == ".jsonl" and path not in kept:
                path.unlink()
        with suppress(OSError):  # not empty, or not there
            folder.rmdir()

    def _need_section(self, stage: str) -> None:
        if stage not in self.stages:
            raise InputError(f"{stage}: the recipe has no section {stage}, which would say how; tiebreak keys {stage} lists it")

    def _record(self, stage: str, entry: dict[str, Any]) -> None:
        self.manifest["stages"][stage] = entry
        if self.recipe_text is not None:
            write_text(self.path / "recipe.yaml", self.recipe_text)
        write_json(self.recipe_json, self.recipe.model_dump(mode="json"))
        write_json(self.manifest_json, self.manifest)

    def _settings(self, stage: str, entry: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the parts of the recipe that a stage rests on, as far as its `entry` of the manifest could know them."""
        parts = self._parts(stage)
        settings = {key: without_operational(part) for key, part in parts.items()}
        said = {key: without_operational(part, defaults=False) for key, part in parts.items()}
        for some in (settings, said):
            if isinstance(evaluate := some.get("evaluate"), dict):
                evaluate.pop("models", None)  # each has its own name
        if entry is None:
            return settings
        known = entry["settings"]
        return {key: as_known(value, said[key], known[key]) if key in known else value for key, value in settings.items()}

    def _parts(self, stage: str) -> dict[str, Any]:
        """Return the parts of the recipe that a stage rests on; a list's entries under their own names."""
        whole = self.recipe
        trees: dict[str, dict[str, Any]] = {
            "prepare": {"prompts": whole.prompts, "seed": whole.seed},
            "generate": {
                **{f"generate.{sampler.label}": sampler for sampler in whole.generate},
                "seed": whole.seed,
                "model": whole.model,
            },
            "judge": {f"judges.{judge.name}": judge for judge in whole.judges},
            "pair": {"pair": whole.pair},
            "audit": {"model": whole.model},
            **{name: {"model": whole.model, name: getattr(whole, name), "seed": whole.seed} for name in TRAINING},
            "evaluate": {
                "evaluate": whole.evaluate,
                **{f"evaluate.models.{name}": model for name, model in (whole.evaluate.named if whole.evaluate else {}).items()},
                "judge": whole.evaluating_judge,
                "seed": whole.seed,
            },
            "report": {},
        }
        return trees[stage]

    def _reads(self, stage: str) -> list[str]:
        """Return what a stage reads in this run."""
        names = FLOW[stage].reads
        if stage == "sft" and self.recipe.sft is not None and self.recipe.sft.source is not None:
            names = tuple(name for name in names if not name.endswith("pairs.jsonl"))
        return [
            name.replace("*", f"{self.recipe.labelling_judge}.jsonl")
            for name in names
            if not name.startswith("after:") or name[6:] in self.stages
        ]

    def _inputs(self, stage: str) -> dict[str, str]:
        """Return a digest for every file a stage reads."""
        names = self._reads(stage)
        paths = {name: self.path / name for name in names if not name.startswith("after:")}
        section = {"prepare": "prompts", "pretrain": "pretrain", "sft": "sft"}.get(stage)
        if section and (source := getattr(getattr(self.recipe, section), "source", None)):
            paths[f"{section}.source"] = self.resolve(source)
        evaluating = self.recipe.evaluating_judge
        names_of = {
            "judge": {judge.name for judge in self.recipe.judges},
            "evaluate": self.recipe.members(evaluating.name) if evaluating else set[str](),
        }
        for judge in self.recipe.judges:
            if judge.name in names_of.get(stage, ()):
                paths |= {f"judges.{judge.name}.{key}": self.resolve(file) for key, file in judge.files.items()}
        if stage == "evaluate" and self.recipe.evaluate:
            files = {name: model.file for name, model in self.recipe.evaluate.named.items() if isinstance(model, Outputs)}
            paths |= {f"evaluate.models.{name}.file": self.resolve(file) for name, file in files.items()}
        digests = {name: digest(path) for name, path in paths.items() if os.path.isfile(path)}  # noqa: PTH113  of any length
        for name in names:
            if name.startswith("after:"):
                digests[name] = str(self.manifest["stages"].get(name[6:], {}).get("finished"))
        return digests

    def _refuse_changes(
        self, stage: str, entry: dict[str, Any], settings: dict[str, Any], inputs: dict[str, str], *, grown: bool
    ) -> None:
        changed = []
        for key in settings.keys() & entry["settings"].keys():  # a sampler or judge that is new is simply owed
            changed += differences(key, entry["settings"][key], settings[key])
        if stage == "generate":  # what a sampler drew that is gone would still be judged
            changed += [f"{key} (is gone)" for key in entry["settings"].keys() - settings.keys()]
        for name in inputs.keys() | entry["inputs"].keys():
            if name.startswith(("judges.", "evaluate.models.")) and not (name in inputs and name in entry["inputs"]):
                continue  # its judge or its model is new, or gone
            if name == "completions.jsonl" and grown:
                continue  # the new ones are owed a verdict, the others keep theirs
            if inputs.get(name) != entry["inputs"].get(name):
                changed.append(f"the content of {name}" if not name.startswith("after:") else f"the output of {name[6:]}")
        if changed:
            what = ", ".join(sorted(changed))
            raise InputError(
                f"{self.path}: {stage} was made with other settings or inputs: {what}; "
                f"repeat it with --redo {stage}, or start another run with --run DIR"
            )

    # --- records ---------------------------------------------------------------------------------------------------

    def prompts(self) -> list[Prompt]:
        """Read every prompt, in the order of the source."""
        return list(read_jsonl(self.prompts_jsonl, Prompt))

    def draws(self) -> list[Completion]:
        """Read every draw, equal texts included."""
        return list(read_jsonl(self.completions_jsonl, Completion))

    def judgments(self, judge: str) -> Path:
        """Return the file of a judge's verdicts."""
        return self.path / "judgments" / f"{judge}.jsonl"

    def canaries(self, judge: str) -> Path:
        """Return the file of a judge's verdicts on questions whose answer is known."""
        return self.path / "judgments" / "canaries" / f"{judge}.jsonl"

    def eval_judgments(self, judge: str) -> Path:
        """Return the file of a judge's verdicts on the held-out prompts."""
        return self.path / "eval" / "judgments" / f"{judge}.jsonl"

    def verdicts(self, path: Path) -> list[Comparison] | list[Rating]:
        """Read a judge's comparisons or ratings, the last one where a question was asked again after an error."""
        lines = list(read_jsonl(path, _verdict_kind(path)))
        latest: dict[tuple[str, ...], Any] = {}
        for line in lines:
            key = (line.first, line.second) if isinstance(line, Comparison) else (line.completion_id,)
            latest[key] = line
        return list(latest.values())

    def pairs(self, path: Path) -> list[PreferencePair]:
        """Read `pairs_jsonl` or `held_out_pairs_jsonl`."""
        return list(read_jsonl(path, PreferencePair)) if path.exists() else []

    @property
    def summary(self) -> dict[str, Any]:
        """What the evaluation found (docs/evaluation.md lists the keys); empty where there was none."""
        return dict(read_json(self.summary_json)) if self.summary_json.exists() else {}

    @property
    def loop(self) -> dict[str, Any]:
        """What rounds, trials or variants found, and a `sentence` that says it; empty where none were made."""
        return dict(read_json(self.loop_json)) if self.loop_json.exists() else {}

    @property
    def ready_made(self) -> bool:
        """Whether completions and verdicts came with the source."""
        return self.recipe.prompts.given

    @property
    def given_jsonl(self) -> Path:
        """The verdicts that ready-made pairs came with, or the labels of answers as ratings: 1 is good, 0 is bad."""
        return self.judgments(GIVEN)


def _verdict_kind(path: Path) -> type[Comparison] | type[Rating]:
    if not path.exists():
        return Comparison
    with path.open("rb") as lines:
        first = lines.readline()
    return Rating if b'"completion_id"' in first.split(b'"judge"', 1)[0] else Comparison


def _linked(source: str | Path, target: str | Path) -> None:
    """Link a file that is written once, and copy one that is appended to."""
    if Path(source).suffix == ".jsonl":
        shutil.copy2(source, target)
        return
    Path(target).unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
