"""The directory of runs that the pages show, and nothing beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from subprocess import Popen
from typing import Any, NamedTuple

from tiebreak.files import read_json
from tiebreak.records import InputError
from tiebreak.run import FLOW, Run

DEEPEST = 3
"""Folders between the directory and a run: rounds and trials are runs inside others."""
OF_A_RUN = {"judgments", "eval", "figures", "logs", *FLOW}
"""Folders of a run, in which there are no runs."""
SMALL = ("recipe.json", "manifest.json", "eval/summary.json")
"""What a summary is made from; the large files of a run are not looked at."""
Stamp = tuple[tuple[int, int], ...]
"""Time of change in nanoseconds and size of each of these."""


class Summary(NamedTuple):
    """What the table of runs says of one."""

    name: str
    changed: float
    """When something last happened, in seconds since 1970."""
    model: str = ""
    state: str = "new"
    """new, unfinished, running, killed, stopped, failed, done or broken."""
    stage: str = ""
    """The stage that this is about."""
    stages: Mapping[str, str] = {}
    """The state of each stage, in their order."""
    counts: Mapping[str, Any] = {}
    """What each stage counted."""
    seconds: float = 0.0
    verdict: str = ""
    """Evaluate's word: better, worse, …"""
    win_rate: Mapping[str, Any] | None = None
    """rate, low, high, n and more, as summary.json has it."""
    error: str = ""
    """Why it cannot be read."""


class Home:
    """A directory of runs: nothing outside it is opened. Several pages may use one at the same time."""

    def __init__(self, root: Path, *, only: str | None = None, may_start: bool = True) -> None:
        self.root = root
        self.only = only
        """The one run that is shown."""
        self.may_start = may_start
        self.at_work: dict[str, Popen[bytes]] = {}
        """Processes that these pages started, by run."""
        self._seen: dict[str, tuple[Stamp, Summary]] = {}

    @classmethod
    def of(cls, runs: Path | Run | str, *, may_start: bool = True) -> Home:
        """Return the home of a directory of runs, or of one run. Raises InputError."""
        path = runs.path if isinstance(runs, Run) else Path(runs).expanduser()
        if path.exists() and not path.is_dir():
            raise InputError(f"{path}: is a file; name a directory of runs, or a run directory")
        if (path / "recipe.json").is_file():
            path = path.resolve()  # it may be called "."
            return cls(path.parent, only=path.name, may_start=may_start)
        if not path.exists() and not may_start:
            raise InputError(f"{path}: no such directory; name the one that holds the runs")
        return cls(path, may_start=may_start)

    @property
    def what(self) -> str:
        """What is shown, in words."""
        return f"the run {self.root / self.only}" if self.only else f"the runs in {self.root}"

    def names(self) -> list[str]:
        """Return every run's name, the last changed first; a run inside another folder is called `folder/run`."""
        found = {name: max(changed for changed, _ in stamp) for name, stamp in self._stamps().items()}
        return sorted(found, key=lambda name: (-found[name], name))

    def path(self, name: str) -> Path:
        """Return a run's directory. Raises InputError for anything that is no run in here."""
        if not (there := self._stamps()):
            raise InputError(f"{self.root}: there is no run in it yet; begin one on the page Start, or with tiebreak run demo")
        if not isinstance(name, str) or name not in there:
            raise InputError(f"no run {name!r} in {self.root}; choose one of the list")
        return self.root / name

    def open(self, name: str) -> Run:
        """Open a run. Raises InputError for anything that is no run in here, and for one that cannot be read."""
        return Run(self.path(name))

    def calls(self, name: str | None) -> Path:
        """Return the account of a run's calls; without a run, that of the directory. Raises InputError."""
        if name:
            return self.open(name).calls_sqlite
        self.root.mkdir(parents=True, exist_ok=True)
        return self.root / "calls.sqlite"

    def inside(self, path: Path) -> Path:
        """Return a path that, links followed, is in the directory. Raises InputError."""
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise InputError(f"{path}: leads out of {self.root}, so it is not shown")
        return path

    def alive(self, name: str) -> bool:
        """Tell whether a process is working on a run."""
        begun = self.at_work.get(name)
        if begun is not None and begun.poll() is None:
            return True  # it may not have reached the lock yet, and who looks whether that is free takes it for a moment
        try:
            return self.open(name).held()
        except (InputError, OSError):
            return False

    def summaries(self) -> list[Summary]:
        """Return every run's summary, the last changed first; what has not changed is not read again."""
        stamps = self._stamps()
        for name, stamp in stamps.items():
            if name not in self._seen or self._seen[name][0] != stamp:
                self._seen[name] = stamp, self._read(name, max(changed for changed, _ in stamp) / 1e9)
        return [self._now(self._seen[name][1]) for name in sorted(stamps, key=lambda name: (-self._seen[name][1].changed, name))]

    def summary(self, name: str) -> Summary:
        """Return one run's summary. Raises InputError for anything that is no run in here."""
        changed = max(changed for changed, _ in _stamp(self.path(name))) / 1e9
        return self._now(self._read(name, changed))

    def _now(self, summary: Summary) -> Summary:
        """Return a summary whose state is that of this moment: who was killed could not say so."""
        begun = self.at_work.get(summary.name)
        if summary.state == "running" and not self.alive(summary.name):
            return summary._replace(state="killed", stages={**summary.stages, summary.stage: "killed"})
        if summary.state not in ("running", "broken") and begun is not None and begun.poll() is None:
            return summary._replace(state="running")
        return summary

    def _read(self, name: str, changed: float) -> Summary:
        try:
            run = Run(self.root / name)
            found = read_json(run.summary_json) if run.summary_json.exists() else {}
            entries = run.manifest["stages"]
            stages = {stage: run.state(stage) for stage in run.stages}
            state, stage = _state(stages)
            return Summary(
                name, changed, run.recipe.model.name_or_path, state, stage, stages,
                counts={stage: run.counts(stage) for stage in entries},
                seconds=sum(entry.get("seconds") or 0.0 for entry in entries.values()),
                verdict=str((found.get("verdict") or {}).get("word") or ""),
                win_rate=found.get("win_rate"),
            )  # fmt: skip
        except InputError as error:
            return Summary(name, changed, state="broken", error=str(error))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            return Summary(name, changed, state="broken", error=f"{self.root / name}: not as tiebreak writes it: {error!r}")

    def _stamps(self) -> dict[str, Stamp]:
        if self.only is not None:
            return {self.only: _stamp(self.root / self.only)}
        return {path.relative_to(self.root).as_posix(): _stamp(path) for path in _runs(self.root, DEEPEST)}


def _runs(folder: Path, depth: int) -> Iterator[Path]:
    """Yield the run directories below a folder; links are not followed."""
    try:
        with os.scandir(folder) as found:
            entries = [entry for entry in found if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")]
    except OSError:  # not there, or not ours to read
        return
    for entry in entries:
        path = Path(entry.path)
        if not entry.name.isprintable():  # not text: neither JSON nor a page can hold the name
            continue
        if (path / "recipe.json").is_file():
            yield path
        if depth > 1 and entry.name not in OF_A_RUN:
            yield from _runs(path, depth - 1)


def _stamp(path: Path) -> Stamp:
    found = []
    for file in SMALL:
        try:
            stat = (path / file).stat()
        except OSError:
            found.append((0, 0))
        else:
            found.append((stat.st_mtime_ns, stat.st_size))
    return tuple(found)


def _state(stages: Mapping[str, str]) -> tuple[str, str]:
    """Return how a run stands as a whole, and which stage that is about."""
    for state in ("running", "failed", "stopped"):
        for stage, own in stages.items():
            if own == state:
                return state, stage
    owed = [stage for stage, own in stages.items() if own != "done"]
    if not owed:
        return "done", ""
    return ("new", "") if len(owed) == len(stages) else ("unfinished", owed[0])
