"""The curves of a training, drawn from its metrics.jsonl as that grows."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from statistics import fmean
from threading import Lock
from typing import NamedTuple

from pydantic import ValidationError

from tiebreak.app.look import as_text
from tiebreak.records import InputError, Logged
from tiebreak.reporting.charts import BASE, CHOSEN, REJECTED, TUNED, Curve, curves

MOST_POINTS = 300
"""Of a curve, which is less than 300 pixels wide."""
_DRAWING = Lock()
"""matplotlib's settings are those of the whole process."""


class Shown(NamedTuple):
    """One chart: its title, a line for each key of metrics.jsonl, what it says, and whether it runs from 0 to 1."""

    name: str
    title: str
    lines: Mapping[str, tuple[str, str]]
    caption: str
    half: bool = False


CHARTS = (
    Shown("loss", "Loss", {"loss": ("", TUNED)}, "Lower is better."),
    Shown(
        "rewards",
        "Rewards",
        {"rewards/chosen": ("chosen", CHOSEN), "rewards/rejected": ("rejected", REJECTED)},
        "How much likelier than before the tuning, times beta.",
    ),
    Shown("margins", "Margin", {"rewards/margins": ("", TUNED)}, "Reward of the chosen less that of the rejected."),
    Shown(
        "accuracy",
        "Accuracy",
        {"rewards/accuracies": ("", TUNED)},
        "Share of pairs whose chosen completion has the higher reward. Dashed: a coin.",
        half=True,
    ),
    Shown("speed", "Tokens per second", {"tokens_per_second": ("", TUNED)}, "All tokens that went through the model."),
    Shown(
        "memory",
        "Memory in GB",
        {"memory_gb": ("process", BASE), "gpu_memory_gb": ("GPU", TUNED)},
        "Of the process, and of its GPU where it has one.",
    ),
    Shown("gpu", "GPU at work", {"gpu_utilisation": ("", TUNED)}, "Share of the time in which the GPU was busy.", half=True),
)


class Metrics:
    """One metrics.jsonl that is followed: each look reads only what was appended since the last one."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self.lines = 0
        """Lines read so far; what was drawn of fewer is old."""
        self.told: list[str] = []
        """What the training was warned of."""
        self._series: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self._file, self._at = (0, 0), 0
        self._drawn = (0, "")
        self._lock = Lock()

    def look(self) -> int:
        """Read what is new and return `lines`; 0 where there is no file. Raises InputError for a line that is none."""
        with self._lock:
            try:
                with self.path.open("rb") as stream:
                    stat = os.fstat(stream.fileno())
                    if (stat.st_dev, stat.st_ino) != self._file or stat.st_size < self._at:
                        self._forget((stat.st_dev, stat.st_ino))  # a training that goes on writes it anew, up to its checkpoint
                    stream.seek(self._at)
                    for line in stream:
                        if not line.endswith(b"\n"):
                            break  # half written
                        self._take(line)
            except FileNotFoundError:
                self._forget((0, 0))
            return self.lines

    def html(self) -> str:
        """Return charts of what was read."""
        with self._lock, _DRAWING:
            if self._drawn[0] != self.lines:
                self._drawn = self.lines, "".join(self._charts())
            return self._drawn[1]

    def _forget(self, file: tuple[int, int]) -> None:
        self._series.clear()
        self.told.clear()
        self.lines, self._file, self._at, self._drawn = 0, file, 0, (0, "")

    def _take(self, line: bytes) -> None:
        try:
            logged = Logged.model_validate_json(line)
        except ValidationError:
            raise InputError(f"{self.path}, line {self.lines + 1}: not a line of metrics; mend or delete it") from None
        self._at += len(line)
        self.lines += 1
        for key, value in logged.model_dump().items():
            if isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value):
                self._series[key].append((logged.step, value))
        if sentence := getattr(logged, "sentence", None):
            self.told.append(f"Step {logged.step}: {sentence}")

    def _charts(self) -> Iterator[str]:
        for shown in CHARTS:
            lines = []
            for key, (word, colour) in shown.lines.items():
                held_out, plain = (_thinned(self._series.get(name, [])) for name in (f"eval_{key}", key))
                if plain:
                    lines.append(Curve("" if word and held_out else word or "training", colour, plain))
                if held_out:
                    lines.append(Curve(word or "held-out", colour, held_out, held_out=True))
            if lines:
                drawing = curves(f"{self.name}-{shown.name}", shown.title, lines, half=shown.half)
                last = max(line.points[-1][0] for line in lines)
                yield (
                    f"<figure><h3>{as_text(shown.title)}</h3>{drawing.inline}"
                    f"<figcaption>{as_text(shown.caption)} Up to step {last:,.0f}.</figcaption></figure>"
                )


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return at most MOST_POINTS points, each the mean of as many neighbours, at the last one's step."""
    size = -(-len(points) // MOST_POINTS) or 1
    groups = [points[at : at + size] for at in range(0, len(points), size)]
    return [(group[-1][0], fmean(value for _, value in group)) for group in groups]
