"""What `results.csv` holds: the two models that the verdict is about, and every meeting of theirs."""

from __future__ import annotations

import csv
from typing import NamedTuple

from tiebreak.records import InputError
from tiebreak.run import Run


class Met(NamedTuple):
    """One meeting; `verdict` is win, loss, tie, inconsistent or error, as the model sees it."""

    prompt_id: str
    prompt: str
    against: str
    """What the other one answered."""
    model: str
    """What the model answered."""
    verdict: str
    reason: str
    against_score: str
    model_score: str

    @property
    def scores(self) -> tuple[str, ...]:
        """The scores of the other one and of the model as one reads them."""
        return tuple(f"{float(score):.2f}".replace("-", "−") if score else "" for score in (self.against_score, self.model_score))

    @property
    def gain(self) -> float:
        """How much better the model's completion scored; 0 where the judge gave no scores."""
        return float(self.model_score) - float(self.against_score) if self.model_score and self.against_score else 0.0

    @property
    def longer(self) -> int:
        """By how many characters the model's completion is the longer one."""
        return len(self.model) - len(self.against)


class Meetings(NamedTuple):
    """The names of the two models, and their meetings."""

    model: str
    against: str
    rows: list[Met]

    def words(self, verdict: str) -> str:
        """Say a verdict: who wins."""
        return {"win": f"{self.model} wins", "loss": f"{self.against} wins"}.get(verdict, verdict)


def read_meetings(run: Run) -> Meetings:
    """Read `results.csv`, in which columns and verdicts carry the models' names; raises InputError where it is broken."""
    if not run.results_csv.exists():
        return Meetings("tuned", "base", [])
    csv.field_size_limit(1 << 30)
    try:
        with run.results_csv.open(encoding="utf-8", newline="") as stream:
            lines = csv.reader(stream)
            against, model = next(lines)[2:4]
            verdicts = {model: "win", against: "loss"}
            rows = [Met._make([*line[:4], verdicts.get(line[4], line[4]), *line[5:]]) for line in lines]
        sorted(rows, key=lambda row: row.gain)
    except (OSError, ValueError, TypeError, IndexError, StopIteration, csv.Error) as error:
        raise InputError(f"{run.results_csv}: cannot be read: {error!r}; repeat it with --redo evaluate") from None
    return Meetings(model, against, rows)
