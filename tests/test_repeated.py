"""What the report of a loop shows: a curve for every number that rounds share, and one table with all of it."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import pytest

from scripted import start
from tiebreak.files import write_json
from tiebreak.records import InputError
from tiebreak.reporting.charts import BASE, TUNED, Estimate
from tiebreak.reporting.figures import Cell
from tiebreak.reporting.repeated import Loop, Row, course, read_loop, repeated
from tiebreak.run import Run
from tiebreak.stages.report import report


def rate(value: float, n: int = 120, half: float = 0.05) -> dict[str, Any]:
    return {"rate": round(value, 9), "low": round(value - half, 9), "high": round(value + half, 9), "n": n}


def mean(value: float, n: int = 120) -> dict[str, Any]:
    return {"mean": value, "low": value - 2, "high": value + 2, "n": n}


def rounds(number: int = 3) -> Loop:
    rows = [Row(name="base", numbers={"passing": rate(0.3), "length": mean(60)})]
    for at in range(1, number + 1):
        numbers = {"passing": rate(0.4 + at / 10, 118 + at), "length": mean(60 - at), "win_rate": rate(0.5 + at / 10)}
        numbers |= {
            "controlled": rate(0.5 + at / 10),
            "kl": mean(3.0 * at),
            "rating": {"elo": 9.0 * at, "low": 1, "high": 20, "n": 9},
        }
        rows.append(Row(name=f"round-{at}", path=f"rounds/{at}", numbers=numbers, pairs=700, cost=0.5, notes=("drift",)))
    return Loop(kind="rounds", sentence="Stopped after round 3. Take round 2.", best="round-2", rows=tuple(rows))


def put(folder: Path, loop: Loop) -> Run:
    run = start(folder)
    write_json(run.loop_json, loop.model_dump(mode="json"))
    return run


def test_a_loop_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_loop(put(tmp_path, rounds())) == rounds()


def test_a_run_of_its_own_has_nothing_repeated(tmp_path: Path) -> None:
    run = start(tmp_path)
    assert read_loop(run) is None
    assert repeated(run) == ([], [])
    stopped = put(tmp_path, Loop(kind="rounds", sentence="Stopped after round 1, as nothing was trained."))
    assert repeated(stopped) == ([], [])
    report(stopped)
    assert "<h1>Stopped after round 1, as nothing was trained.</h1>" in stopped.report_html.read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"kind": "laps"}', '{"kind": "rounds", "rows": [{"numbers": {}}]}'])
def test_a_broken_file_is_one_line(text: str, tmp_path: Path) -> None:
    run = start(tmp_path)
    run.loop_json.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"loop\.json: cannot be read") as error:
        repeated(run)
    assert "\n" not in str(error.value)


def test_rounds_have_a_curve_for_each_number_they_share(tmp_path: Path) -> None:
    charts, _ = repeated(put(tmp_path, rounds()))
    assert [chart.drawing.name for chart in charts] == ["rounds_win_rate", "rounds_passing", "rounds_length", "rounds_kl"]
    assert [chart.drawing.title for chart in charts][1] == "Passing every check"
    labels = [[each.get_text() for each in chart.drawing.figure.axes[0].get_xticklabels()] for chart in charts[:2]]
    assert labels == [["round-1", "round-2", "round-3"], ["base", "round-1", "round-2", "round-3"]], "base does not meet itself"
    captions = [chart.caption.replace("\u00a0", " ") for chart in charts]
    assert "Dashed: a coin. n = 120 for each." in captions[0]
    assert captions[1].endswith("n = 119 to 121 for each."), captions[1]
    assert "Dashed" not in captions[1]
    assert "temperature is 1" in captions[3]


def test_one_round_is_no_curve_but_beside_base(tmp_path: Path) -> None:
    charts, tables = repeated(put(tmp_path, rounds(1)))
    assert [chart.drawing.name for chart in charts] == ["rounds_passing", "rounds_length"]
    assert len(tables[0].rows) == 2


def test_the_table_has_every_number_and_its_n(tmp_path: Path) -> None:
    _, (table,) = repeated(put(tmp_path, rounds()))
    rows = list(csv.DictReader(io.StringIO(table.csv)))
    assert table.name == "rounds"
    assert [row["round"] for row in rows] == ["base", "round-1", "round-2 (taken)", "round-3"]
    assert [row["Passing every check"] for row in rows] == ["0.3", "0.5", "0.6", "0.7"]
    assert [row["Passing every check n"] for row in rows] == ["120", "119", "120", "121"]
    assert (rows[2]["Win rate over base low"], rows[2]["Win rate over base high"]) == ("0.65", "0.75")
    assert rows[0]["Win rate over base"] == ""
    assert (rows[1]["training pairs"], rows[1]["cost"], rows[1]["notes"]) == ("700", "$0.50", "drift")
    assert table.note == "In grey: 95 % intervals. Stopped after round 3. Take round 2."


def test_what_nobody_has_is_no_column(tmp_path: Path) -> None:
    loop = Loop(kind="rounds", rows=(Row(name="base"), Row(name="round-1", cost=0.0, numbers={"passing": {"rate": None}})))
    _, (table,) = repeated(put(tmp_path, loop))
    assert list(table.columns) == ["round"]


def test_the_settings_of_trials_and_variants_stand_beside_their_numbers(tmp_path: Path) -> None:
    some: list[dict[str, Any]] = [
        {"train.beta": 0.1, "train.lora": None, "mixed": True},
        {"train.beta": 1e-6, "model": "<b>gpt2</b>"},
    ]
    rows = tuple(Row(name=str(at), settings=own, numbers={"own": rate(0.5)}) for at, own in enumerate(some))
    charts, (table,) = repeated(put(tmp_path, Loop(kind="variants", rows=rows)))
    assert charts == []
    assert list(table.columns) == ["variant", "train.beta", "train.lora", "mixed", "model", "own"]
    assert list(table.rows[0][:5]) == ["0", Cell("0.1", value=0.1), None, "true", None]
    assert list(table.rows[1][:5]) == ["1", Cell("1e-06", value=1e-6), None, None, "<b>gpt2</b>"]


def test_a_search_says_what_it_came_to_and_shows_what_differs(tmp_path: Path) -> None:
    """A key that is the same in all trials has no column and no chart, and the number on top is the winner's."""
    own = [{"train.beta": beta, "train.epochs": 1} for beta in (0.1, 0.3)]
    rows = [
        Row(name=f"trial {at}", path=f"trials/{at}", settings=each, numbers={"win_rate": rate(0.6)})
        for at, each in enumerate(own)
    ]
    rows.append(Row(name="winner", path="winner", settings=own[1], numbers={"win_rate": rate(0.55, 40)}))
    importance = {"train.beta": 0.9, "train.epochs": 0.1}
    loop = Loop(
        kind="trials", sentence="Trial 1 is the best of 2. The winner has 55 %.", best="trial 1", rows=tuple(rows),
        settings={"objective": "win_rate", "importance": importance},
    )  # fmt: skip
    charts, (table,) = repeated(run := put(tmp_path, loop))
    assert [chart.drawing.name for chart in charts] == ["trials_importance", "trials_train_beta"]
    assert "train.epochs" not in table.columns
    assert "train.epochs" not in charts[0].drawing.inline
    assert table.note.startswith("In grey: 95 % intervals. All have train.epochs 1. Trial 1")
    report(run)
    page = run.report_html.read_text(encoding="utf-8")
    assert "<h1>Trial 1 is the best of 2.</h1>" in page
    assert re.search(r"55.%</dd>", page)
    assert "not finished" not in page


def test_a_search_under_way_is_not_finished(tmp_path: Path) -> None:
    run = put(tmp_path, Loop(kind="trials", rows=(Row(name="trial 1", path="trials/1", settings={"train.beta": 0.1}),)))
    report(run)
    assert "<h1>This run is not finished: prepare is owed.</h1>" in run.report_html.read_text(encoding="utf-8")


# --- the curve -----------------------------------------------------------------------------------------------------


def drawn(values: list[float], *, rates: bool = True, names: list[str] | None = None, half: bool = False) -> Any:
    points = [(at, Estimate(value, (value - 0.1, value + 0.1), 9, rates)) for at, value in enumerate(values)]
    return course("c", "C", names or ["base", *(f"round-{at}" for at in range(1, len(values)))], points, half=half).figure.axes[0]


def test_a_curve_shows_values_whiskers_and_where_they_are() -> None:
    axes = drawn([0.3, 0.8, 0.9])
    line = next(line for line in axes.lines if len(line.get_xdata()) == 3 and line.get_linestyle() == "-")
    assert list(line.get_ydata()) == [0.3, 0.8, 0.9]
    (whiskers,) = axes.collections
    assert [[round(float(y), 3) for _, y in segment] for segment in whiskers.get_segments()] == [
        [0.2, 0.4],
        [0.7, 0.9],
        [0.8, 1.0],
    ]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["base", "round-1", "round-2"]
    assert [text.get_text().replace("\u00a0", " ") for text in axes.texts] == ["30 %", "80 %", "90 %"]
    dots = [line.get_color() for line in axes.lines if line.get_marker() == "o"]
    assert dots == [BASE, TUNED, TUNED]
    assert axes.get_ylim() == (0, 1)


def test_a_curve_of_other_values_brings_zero_into_view() -> None:
    low, high = drawn([-3.0, -5.0], rates=False).get_ylim()
    assert low < -5 < 0 <= high
    low, high = drawn([50.0, 55.0], rates=False).get_ylim()
    assert low <= 0 < 55 < high


def test_a_coin_is_marked_where_it_means_something() -> None:
    levels = [[list(line.get_ydata()) == [0.5, 0.5] for line in drawn([0.3, 0.8], half=half).lines] for half in (True, False)]
    assert [any(level) for level in levels] == [True, False]


def test_a_long_curve_names_its_rounds_short_and_its_end() -> None:
    axes = drawn([0.1 * at for at in range(1, 9)])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["base", *map(str, range(1, 8))]
    assert [text.get_text().replace("\u00a0", " ") for text in axes.texts] == ["80 %"]


def test_a_value_without_an_interval_has_no_whisker() -> None:
    points = [(0, Estimate(0.4, None, 1, rate=True)), (1, Estimate(0.5, (0.4, 0.6), 9, rate=True))]
    (whiskers,) = course("c", "C", ["base", "round-1"], points).figure.axes[0].collections
    assert [float(high - low) for (_, low), (_, high) in whiskers.get_segments()] == pytest.approx([0, 0.2])
