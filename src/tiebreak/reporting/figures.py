"""What a report shows, also as files: a chart is an SVG and a PNG, a table is a CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tiebreak.files import write_text
from tiebreak.progress import first_process
from tiebreak.reporting.charts import Drawing, Estimate

MOST_ROWS = 60
"""Of a table in the page; its file has all."""
LONGEST_NAME = 200


class Chart(NamedTuple):
    """A drawing and what one needs to read it."""

    drawing: Drawing
    caption: str


class Cell(NamedTuple):
    """What a cell shows: a text, a grey note after it, and the number it is sorted by."""

    text: str
    note: str = ""
    value: float | None = None
    shade: float | None = None
    """How dark it is, from 0 to 1."""

    @property
    def kind(self) -> str:
        """Its class in the page."""
        return "shaded" if self.shade is not None else "word" if self.value is None and self.text != "–" else ""


Value = Estimate | int | float | str | Cell | None


class Table(NamedTuple):
    """A table; the first cell of a row names it."""

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Value]]
    note: str = ""
    parts: frozenset[int] = frozenset()
    """Rows that are a part of the row above them."""
    shaded: bool = False

    @property
    def heads(self) -> list[str]:
        """The columns' names in the page."""
        return [_cut(name) for name in self.columns]

    @property
    def shown(self) -> list[list[Cell]]:
        """The rows of the page."""
        return [[self._cell(value) for value in row] for row in self.rows[:MOST_ROWS]]

    @property
    def words(self) -> list[bool]:
        """Which columns hold words, not numbers."""
        kinds = [{cell.kind for cell in column} for column in zip(*self.shown, strict=True)]
        return [kind == {"word"} for kind in kinds] or [False] * len(self.columns)

    @property
    def csv(self) -> str:
        """The table as a file; an estimate is its value, both ends of its interval and n."""
        stream = io.StringIO()
        writer = csv.writer(stream)
        wide = [any(isinstance(value, Estimate) for value in column) for column in zip(*self.rows, strict=True)]
        wide = wide or [False] * len(self.columns)
        ends = ("", " low", " high", " n")
        writer.writerow(
            [f"{name}{end}" for name, estimates in zip(self.columns, wide, strict=True) for end in (ends if estimates else ("",))]
        )
        for row in self.rows:
            writer.writerow([part for value, estimates in zip(row, wide, strict=True) for part in _parts(value, wide=estimates)])
        return stream.getvalue()

    def _cell(self, value: Value) -> Cell:
        match value:
            case None:
                return Cell("–")
            case Cell():
                return value._replace(text=_cut(value.text))
            case str():
                return Cell(_cut(value))
            case Estimate(number, interval, n) if self.shaded:
                ends = [_plain(end) for end in interval or ()]
                note = " to ".join(ends) if "−" in "".join(ends) else "–".join(ends)
                return Cell(_plain(number), f"{note}, n\u00a0=\u00a0{n:,}", number, min(1.0, max(0.0, number)))
            case Estimate():
                return Cell(value.text, value.between, value.value)
            case _:
                return Cell(f"{value:,}", value=value)


def write_figures(folder: Path, charts: Sequence[Chart], tables: Sequence[Table]) -> None:
    """Write every chart and table into `folder`, and delete those of an earlier report that are no more."""
    if not first_process():
        return
    folder.mkdir(parents=True, exist_ok=True)
    written = set()
    for chart in charts:
        write_text(folder / f"{chart.drawing.name}.svg", chart.drawing.svg(chart.caption))
        (folder / f"{chart.drawing.name}.png").write_bytes(chart.drawing.png(chart.caption))
        written |= {f"{chart.drawing.name}.svg", f"{chart.drawing.name}.png"}
    for table in tables:
        write_text(folder / f"{table.name}.csv", table.csv.encode("utf-8", "replace").decode())
        written.add(f"{table.name}.csv")
    for path in folder.iterdir():
        if path.suffix in (".svg", ".png", ".csv") and path.name not in written:
            path.unlink()


def leading(text: str) -> float | None:
    """Return the number that a text begins with, after a κ or a $; None without one."""
    found = re.match(r"[κ$\s]*([−-]?[\d,]*\.?\d+)", text)
    return float(found[1].replace(",", "").replace("−", "-")) if found else None


def _parts(value: Value, *, wide: bool) -> Iterator[str | float | int | None]:
    match value:
        case Estimate():
            yield from (value.value, *(value.interval or (None, None)), value.n)
        case Cell():
            yield from (value.text, *[None] * 3 * wide)
        case _:
            yield from (value, *[None] * 3 * wide)


def _plain(number: float) -> str:
    return f"{round(number, 2) + 0.0:.2f}".replace("-", "−")  # the sum has no −0


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_NAME else f"{text[:LONGEST_NAME]}…"
