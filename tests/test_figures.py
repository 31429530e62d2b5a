"""Figures as files, and the tables of the page."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from test_report import page_of, rich_run
from tiebreak.reporting.charts import TUNED, Bar, Estimate, bars
from tiebreak.reporting.figures import LONGEST_NAME, MOST_ROWS, Cell, Chart, Table, leading, write_figures

SHARE = Estimate(0.625, (0.5, 0.75), 40, rate=True)
TABLE = Table("t", ("measure", "tuned", "verdict"), [["a, b", SHARE, "better"], ["c", None, Cell("3 s", value=3.0)]])


def rows_of(table: Table) -> list[list[str]]:
    return list(csv.reader(io.StringIO(table.csv)))


def test_a_file_has_every_estimate_with_its_interval_and_n() -> None:
    assert rows_of(TABLE) == [
        ["measure", "tuned", "tuned low", "tuned high", "tuned n", "verdict"],
        ["a, b", "0.625", "0.5", "0.75", "40", "better"],
        ["c", "", "", "", "", "3 s"],
    ]
    single = Table("t", ("m", "x"), [["a", SHARE._replace(interval=None)]])
    assert rows_of(single)[1] == ["a", "0.625", "", "", "40"]


def test_the_page_shows_text_note_and_what_it_sorts_by() -> None:
    assert TABLE.shown == [
        [Cell("a, b"), Cell("62\u00a0%", "50–75\u00a0%", 0.625), Cell("better")],
        [Cell("c"), Cell("–"), Cell("3 s", value=3.0)],
    ]
    assert TABLE.words == [True, False, False]
    assert Table("t", ("a", "b"), [["x", "y"], ["z", "–"]]).words == [True, False]
    assert Table("t", ("a", "b"), []).words == [False, False]
    assert Table("t", ("a", "b"), [["x", 12345]]).shown[0][1] == Cell("12,345", value=12345)


@pytest.mark.parametrize(("kappa", "shade"), [(-0.4, 0.0), (0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_a_shade_is_the_value_between_0_and_1(kappa: float, shade: float) -> None:
    table = Table("t", ("judge", "b"), [["a", Estimate(kappa, (kappa - 0.101, kappa), 1200)]], shaded=True)
    cell = table.shown[0][1]
    assert (cell.shade, cell.value, cell.kind) == (shade, kappa, "shaded")
    assert cell.note.endswith(", n\u00a0=\u00a01,200")
    assert (" to " in cell.note) == (kappa < 0.11)


def test_many_rows_and_long_names_are_cut_in_the_page_alone() -> None:
    table = Table("t", ("n" * 999, "x"), [["m" * 999, at] for at in range(300)])
    assert len(table.shown) == MOST_ROWS
    assert table.heads[0] == "n" * LONGEST_NAME + "…"
    assert table.shown[0][0].text == "m" * LONGEST_NAME + "…"
    rows = rows_of(table)
    assert len(rows) == 301
    assert rows[300] == ["m" * 999, "299"]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0.52 (0.44–0.60), n = 200", 0.52),
        ("κ −0.10 (…)", -0.1),
        ("1,852", 1852),
        ("$0.42, 9 calls", 0.42),
        ("–", None),
        ("all the same, n = 3", None),
    ],
)
def test_the_number_that_words_begin_with(text: str, number: float | None) -> None:
    assert leading(text) == number


def chart(name: str) -> Chart:
    return Chart(bars(name, "Bars", [("", [Bar("tuned", SHARE, TUNED)])]), "n = 40")


def test_every_chart_and_table_becomes_a_file_and_old_ones_go(tmp_path: Path) -> None:
    folder = tmp_path / "figures"
    write_figures(folder, [chart("one"), chart("two")], [TABLE])
    assert {path.name for path in folder.iterdir()} == {"one.svg", "one.png", "two.svg", "two.png", "t.csv"}
    (folder / "notes.txt").write_text("mine")
    write_figures(folder, [chart("two")], [])
    assert {path.name for path in folder.iterdir()} == {"two.svg", "two.png", "notes.txt"}
    assert (folder / "two.png").read_bytes().startswith(b"\x89PNG")


def test_a_lone_surrogate_does_not_stop_a_table(tmp_path: Path) -> None:
    write_figures(tmp_path, [], [TABLE._replace(rows=[["\ud800", SHARE, "x"]])])
    assert (tmp_path / "t.csv").read_text().splitlines()[1].startswith("?,0.625")


def test_a_run_has_a_file_for_every_chart_and_table_of_its_page(tmp_path: Path) -> None:
    run = rich_run(tmp_path)
    page = page_of(run)
    names = {path.name for path in (run.path / "figures").iterdir()}
    charts = {
        "outcome",
        "length",
        "passing",
        "scores",
        "checks",
        "held_out",
        "head_to_head",
        "ratings",
        "loss",
        "rewards",
        "accuracy",
        "margins",
    }
    tables = {
        "before_after",
        "head_to_head",
        "ratings",
        "categories",
        "probabilities",
        "judges",
        "agreement",
        "agreeing",
        "audit",
        "funnel",
        "stages",
    }
    assert names == {f"{name}.{kind}" for name in charts for kind in ("svg", "png")} | {f"{name}.csv" for name in tables}
    assert page.count("<figure>") == len(charts)
    rows = list(csv.DictReader((run.path / "figures" / "before_after.csv").read_text().splitlines()))
    passing = next(row for row in rows if row["measure"] == "Passing every check")
    assert (float(passing["tuned"]), float(passing["tuned less base"]), passing["n"]) == (pytest.approx(70 / 96), 0.67, "96")
    audit = list(csv.DictReader((run.path / "figures" / "audit.csv").read_text().splitlines()))
    assert [(row["code"], row["count"], row["of"]) for row in audit] == [
        ("leak", "4", "149"),
        ("length-bias", "431", "586"),
        ("margins-equal", "586", "586"),
    ]
