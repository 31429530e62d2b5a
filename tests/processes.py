"""`tiebreak` in processes of its own, to be killed, without the seconds that each of them would import for."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([
    "pytest", "tiebreak.cli", "tiebreak.training.trainer", "transformers.trainer", "transformers.generation", "peft",
    "matplotlib.figure", "optuna", "scipy.stats", "tiebreak.samplers.local", "tiebreak.stages.audit", "tiebreak.stages.report",
    "tiebreak.stages.train", "tiebreak.stages.evaluate", "tiebreak.loops.search",
])  # fmt: skip


class Started:
    """A command at work; what it says, on whichever stream, goes to a file."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self.log = log
        self.process = FORKS.Process(target=_command, args=(log, arguments, dict(os.environ)))
        self.process.start()

    def finish(self) -> str:
        self.process.join(120)
        assert self.process.exitcode == 0, self.said
        return self.said

    def wait(self, until: Callable[[], bool]) -> None:
        """Wait for a condition, or for the end of the process."""
        while self.process.is_alive() and not until():
            time.sleep(0.002)

    def kill(self) -> bool:
        """Send SIGKILL, which no handler and no `finally` outlives; False where the process had ended by itself."""
        self.process.kill()
        self.process.join()
        assert self.process.exitcode in (0, -signal.SIGKILL), self.said
        return self.process.exitcode != 0

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")


def _command(log: Path, arguments: tuple[str, ...], environment: Mapping[str, str]) -> None:
    from tiebreak.cli import main

    os.environ.clear()
    os.environ.update(environment)
    with log.open("wb") as stream:
        for number in (1, 2):
            os.dup2(stream.fileno(), number)
    sys.argv = ["tiebreak", *arguments]
    main()
