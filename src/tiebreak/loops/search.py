"""search: trials of other settings, compared on a part of the training prompts; the best is trained on all, and tested once."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from tiebreak.files import digest, read_json, write_json
from tiebreak.flow import TRAINING, without_operational
from tiebreak.loops import study as studies
from tiebreak.loops.children import child, claim, cost, lend, meet, perform_all
from tiebreak.models import cache
from tiebreak.progress import say
from tiebreak.recipe_yaml import load_recipe
from tiebreak.records import InputError, content_hash
from tiebreak.reporting.charts import Estimate
from tiebreak.reporting.repeated import Loop, Row
from tiebreak.run import Run
from tiebreak.stages import check, perform

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

TRIALS = 20
"""Trials of a search that no grid limits."""
POLL_SECONDS = 1.0
PATIENCE = 10.0
"""Seconds after which one says what one waits for."""
COLUMNS = {
    "win_rate": "win_rate.rate",
    "controlled": "win_rate.length_controlled.rate",
    "accuracy": "held_out_pairs.accuracy.rate",
    "length": "lengths.tuned.mean",
}
"""Numbers of every trial in the report, beside the objective."""

ESTIMATE = ("rate", "mean", "elo", "low", "high", "n", "prompts")


class FailedError(Exception):
    """A trial comes to no number; says why."""


def start(recipe: Path, path: Path | None = None, profile: str | None = None, overrides: tuple[str, ...] = ()) -> Run:
    """Create or open the folder of a search, which several processes may do at once. Raises InputError."""
    path = path or Path("runs") / load_recipe(recipe, profile, overrides).name
    lock = cache() / f"{content_hash(str(path.resolve()))}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        return Run.start(recipe, path, profile, overrides)


def search(run: Run, trials: int | None = None) -> Loop:
    """Perform the trials that are owed, then train the best on all training prompts, test it, and write the report.

    Several processes may work on one search: each trial is one's own, and one that was killed is taken up by another.
    Raises InputError.
    """
    claim(run, "trials")
    work = _Search(run, trials)
    while True:
        with ExitStack() as held:
            claimed = work.claim(held)
            if claimed is None:
                break
            work.perform(*claimed)
    return work.finish()


class _Search:
    """The trials of one search, in a study that Optuna keeps; what a process does to the study, it does alone."""

    def __init__(self, run: Run, trials: int | None) -> None:
        self.run, self.recipe = run, run.recipe  # the run's own will be that of a meeting
        self._lock = FileLock(run.path / "study.lock")
        with self.alone():
            self.study = studies.opened(run)
        self.settings, points = studies.section(self.recipe), studies.grid(self.recipe)
        self.n = trials or self.settings.n_trials or (TRIALS if points is None else len(points))
        if points is not None:
            self.n = min(self.n, len(points))

    def alone(self) -> AbstractContextManager[None]:
        """Keep other processes from the study."""
        return _alone(self._lock, f"search: waits for another process that is at work on {self.run.path}")

    # --- one trial -------------------------------------------------------------------------------------------------

    def claim(self, held: ExitStack) -> tuple[Trial, Run] | None:
        """Take a trial that nobody works on, or a new one, and hold its run; None when every trial is done.

        Waits for trials of other processes, as one may be killed.
        """
        from optuna.trial import Trial, TrialState

        waits = False
        while True:
            with self.alone():
                begun = self.study.get_trials(deepcopy=False)
                running = [trial for trial in begun if trial.state == TrialState.RUNNING]
                for trial in running:
                    folder = self.run.path / _place(trial)
                    if (folder / self.run.recipe_json.name).exists() and Run(folder).held():
                        continue
                    keys = studies.given(self.settings, trial.params)
                    own = child(self.run, _place(trial), self.recipe, {"prompts.held_out": "validation", **keys})
                    held.enter_context(own.lock())
                    return Trial(self.study, trial._trial_id), own
                if len(begun) < self.n:
                    studies.propose(self.study, self.recipe, len(begun))
                    continue
            if not running:
                return None
            if not waits:
                say(f"search: no trial is left to begin; waits for {', '.join(map(_name, running))} of other processes")
                waits = True
            time.sleep(POLL_SECONDS)

    def perform(self, trial: Trial, own: Run) -> None:
        """Perform a trial whose run is held, and tell the study what came of it."""
        from optuna.trial import TrialState

        settings = [
            f"{key}={value:.6g}" if isinstance(value, float) else f"{key}={value}" for key, value in self._tried(trial).items()
        ]
        say(f"{_name(trial)} of {self.n}: {', '.join(settings)}")
        value, state, why = None, TrialState.FAIL, ""
        try:
            self._stages(trial, own)
            value, state = reading(own, self.settings.objective)[0], TrialState.COMPLETE
        except studies.Pruned as pruned:
            state, why = TrialState.PRUNED, f"pruned at {pruned} of its training"
        except FailedError as failed:
            why = f"failed: {failed}"
        with self.alone():
            trial.set_user_attr("why", why)
            self.study.tell(trial, value, state)
            self._write()
        say(f"{_name(trial)}: {why or f'{self.settings.objective} {value:.4g}'}")
        if not self.settings.keep_models:  # only now: what is told is not measured again
            shutil.rmtree(own.tuned, ignore_errors=True)
            for checkpoint in own.train.glob("checkpoint-*") if why else ():
                shutil.rmtree(checkpoint)

    def _stages(self, trial: Trial, own: Run) -> None:
        """Perform a trial's stages, but for what other trials have made in the same way.

        Raises FailedError where its settings cannot be trained with; whatever else is wrong stops the search.
        """
        check(own, [stage for stage in own.stages if own.state(stage) != "done"])
        made_of = own.recipe.model_dump(mode="json", include={"seed", "model", "prompts", "generate", "judges", "pair"})
        lock = FileLock(self.run.path / f"study-{content_hash(without_operational(made_of))}.lock")
        # Who needs the same completions and verdicts waits for them, and does not pay for them too.
        with _alone(lock, f"{_name(trial)}: waits for what another trial makes for both"):
            for other in _others(own):
                if taken := own.take_over(other):
                    say(f"{_name(trial)}: takes {', '.join(taken)} from {other.path}")
            owed = [stage for stage in own.stages if own.state(stage) != "done"]
            for stage in owed:
                if stage not in (*TRAINING, "evaluate", "report"):
                    perform(own, stage)
        _refuse_other_prompts(own)
        try:
            for stage in owed:
                if stage in TRAINING:
                    with studies.watched(trial, self.settings) if stage == "train" else nullcontext():
                        perform(own, stage)
        except InputError as error:
            raise FailedError(str(error)) from None
        for other in _others(own):
            if other.state("evaluate") == "done" and other.recipe.model == own.recipe.model:
                lend(other, own, {"base": "base"})
                break
        if "evaluate" in owed:
            perform(own, "evaluate")

    # --- the best --------------------------------------------------------------------------------------------------

    def best(self) -> FrozenTrial:
        """Return the best trial, of equals the first. Raises InputError where none came to a number."""
        from optuna.trial import TrialState

        trials = self.study.get_trials(deepcopy=False)
        done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        if not done:
            raise InputError(f"search: none of {len(trials)} trials came to a number; {_name(trials[0])} {_why(trials[0])}")
        sign = 1 if self.settings.direction == "maximise" else -1
        return max(done, key=lambda trial: (sign * (trial.value or 0.0), -trial.number))

    def finish(self) -> Loop:
        """Train the best settings on all training prompts, compare the model with the base on the test prompts, and report."""
        with self.alone(), self.run.lock():
            best = self.best()
            # A longer search may find another winner; each that is tested is a look at the test prompts.
            looks = self.study.user_attrs.get("tested", [])
            if best.number not in looks:
                self.study.set_user_attr("tested", looks := [*looks, best.number])
            at = looks.index(best.number) + 1
            keys = studies.given(self.settings, best.params)
            winner = child(self.run, "winner" if at == 1 else f"winner-{at}", self.recipe, keys)
            carry = partial(_carry, Run(self.run.path / _place(best)))
            perform_all(winner, f"the winner, {_name(best)}, on all training prompts", then={"prepare": carry})
            if self.recipe.evaluate and self.recipe.evaluating_judge:
                meet(self.run, self.recipe, {"base": None, "winner": winner})
            loop = self._write(winner)
            perform(self.run, "report", again=True)
        return loop

    def _write(self, winner: Run | None = None) -> Loop:
        """Write loop.json: every trial with its numbers, and the winner with those on the test prompts."""
        trials = self.study.get_trials(deepcopy=False)
        rows = [self._row(trial) for trial in trials]
        best, sentence, importance = None, "", {}
        if winner is not None:
            found = self.best()
            best, sentence, importance = _name(found), self._sentence(trials, found, winner), studies.importance(self.study)
            tested = Row(
                name=winner.path.name, path=winner.path.name, settings=self._tried(found), numbers=self._numbers(winner),
                pairs=winner.counts("train").get("pairs"), cost=cost(winner),
                notes=("trained on all training prompts, measured on the test prompts",),
            )  # fmt: skip
            rows.append(tested)
        settings = {"objective": _key(self.settings.objective), "importance": importance}
        loop = Loop(kind="trials", sentence=sentence, best=best, settings=settings, rows=tuple(rows))
        write_json(self.run.loop_json, loop.model_dump(mode="json"))
        return loop

    def _row(self, trial: FrozenTrial) -> Row:
        row = Row(name=_name(trial), path=_place(trial), settings=self._tried(trial))
        if not trial.state.is_finished():
            return row.model_copy(update={"notes": ("is not done",)})
        own, why = Run(self.run.path / _place(trial)), _why(trial)
        told = {"notes": (why,) if why else (), "numbers": self._numbers(own)}
        return row.model_copy(update=told | {"pairs": own.counts("train").get("pairs"), "cost": cost(own)})

    def _tried(self, trial: FrozenTrial | Trial) -> dict[str, Any]:
        """Return what a trial changes, lists and sections in words."""
        return {
            key: ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
            for key, value in studies.given(self.settings, trial.params).items()
        }

    def _numbers(self, own: Run) -> dict[str, dict[str, Any]]:
        """Return the objective of a run that was evaluated, and what else the report shows of it."""
        paths = {_key(self.settings.objective): self.settings.objective} | COLUMNS
        numbers = {}
        for key, path in paths.items():
            with suppress(FailedError, InputError):
                numbers[key] = {name: value for name, value in reading(own, path)[1].items() if name in ESTIMATE}
        return numbers

    def _sentence(self, trials: Sequence[FrozenTrial], best: FrozenTrial, winner: Run) -> str:
        """Say how many were looked at, and which number is the honest one."""
        from optuna.trial import TrialState

        own, key = Run(self.run.path / _place(best)), _key(self.settings.objective)
        chosen, tested = (Estimate.of(self._numbers(run).get(key)) for run in (own, winner))
        states = Counter(trial.state for trial in trials)
        left = {"pruned": states[TrialState.PRUNED], "failed": states[TrialState.FAIL]}
        left["as good"] = sum(trial.value == best.value for trial in trials if trial.state == TrialState.COMPLETE) - 1
        aside = "".join(f", {count} of them {word}" for word, count in left.items() if count)
        looks = len(self.study.user_attrs["tested"])
        again = f", though the test prompts have been looked at {looks} times, once for each winner so far" if looks > 1 else ""
        return (
            f"{_name(best).capitalize()} is the best of {len(trials)}{aside}, by {self.settings.objective} on "
            f"{own.counts('prepare')['test']} prompts set aside from training: {_said(chosen)}. As the best of several it owes "
            f"some of that to chance. Trained on all training prompts, the winner has {_said(tested)} on "
            f"{winner.counts('prepare')['test']} test prompts, which no trial saw: this is the number to quote{again}."
        )


def reading(run: Run, path: str) -> tuple[float, dict[str, Any]]:
    """Return a number of a run's summary.json, and the estimate that it is of.

    Raises FailedError where it was not measured, and InputError where nothing is called so.
    """
    summary = read_json(run.summary_json)
    found, held, part = summary, None, ""
    for part in path.split("."):
        held = found
        if isinstance(found, dict) and part in found:
            found = found[part]
        elif isinstance(found, list) and part.isdigit() and int(part) < len(found):
            found = found[int(part)]
        elif found is None or (found is summary and summary["verdict"]["word"] == "not compared"):
            found = None
        else:
            hint = studies.near(path, list(_paths(summary)))
            raise InputError(f"search.objective: {run.summary_json} has no {path}{hint}")
    if isinstance(found, bool) or not isinstance(found, int | float) or not isfinite(found):
        told = f": {summary['verdict']['sentence']}" if summary["verdict"]["word"] == "not compared" else ""
        raise FailedError(f"{path} was not measured{told}")
    return float(found), held if isinstance(held, dict) and part in ("rate", "mean", "elo") else {"mean": found}


def _paths(tree: Any, path: str = "") -> Iterator[str]:
    """Yield the dotted paths of all numbers."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from _paths(value, f"{path}{key}.")
    if isinstance(tree, int | float):
        yield path.removesuffix(".")


def _key(objective: str) -> str:
    """Return the name of the objective among the numbers of a row."""
    return next((key for key, path in COLUMNS.items() if path == objective), objective)


def _said(estimate: Estimate | None) -> str:
    if estimate is None:
        return "no such number"
    return f"{estimate.text} (95\u00a0% interval {estimate.between})" if estimate.interval else estimate.text


def _place(trial: FrozenTrial | Trial) -> str:
    """Return where a trial's run is, inside the search's folder."""
    return f"trials/{trial.number + 1}"


def _name(trial: FrozenTrial | Trial) -> str:
    return f"trial {trial.number + 1}"


def _why(trial: FrozenTrial) -> str:
    """Return why a trial has no number; empty where it has one."""
    return str(trial.user_attrs.get("why", ""))


@contextmanager
def _alone(lock: FileLock, waits: str) -> Iterator[None]:
    """Hold a lock; say that one waits where it takes long."""
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        say(waits)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _refuse_other_prompts(own: Run) -> None:
    """Raise InputError where a trial has other prompts than an earlier one from the same settings: their source has changed."""
    for other in _others(own):
        same = (other.recipe.prompts, other.recipe.seed) == (own.recipe.prompts, own.recipe.seed)
        if same and other.state("prepare") == "done" and digest(other.prompts_jsonl) != digest(own.prompts_jsonl):
            raise InputError(
                f"{own.path}: has other prompts than {other.path}, as their source has changed since; put it back and delete "
                f"{own.path}, or start another search with --run DIR"
            )


def _others(own: Run) -> list[Run]:
    """Return the other trials' runs, in their order."""
    folders = [path.parent for path in own.path.parent.glob(f"*/{own.recipe_json.name}") if path.parent != own.path]
    return [Run(folder) for folder in sorted(folders, key=lambda folder: int(folder.name))]


def _carry(trial: Run, winner: Run) -> None:
    """Give the winner a trial's draws and verdicts: all training prompts are among its prompts, and only the test is owed."""
    if winner.state("generate") != "owed" or winner.completions_jsonl.exists() or winner.ready_made:
        return
    verdicts = trial.judgments("any").parent
    shutil.copytree(verdicts, winner.path / verdicts.name, dirs_exist_ok=True)
    shutil.copy2(trial.completions_jsonl, winner.completions_jsonl)
