"""Drawings: where bars, whiskers and dots stand, and the files they make."""

from __future__ import annotations

import io
from xml.etree import ElementTree as ET

import matplotlib.image
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tiebreak.reporting.charts import INK, OTHERS, TUNED, WIDTH, Bar, Curve, Drawing, Estimate, bars, columns, curves, ladder

SHARE = Estimate(0.6, (0.45, 0.72), 40, rate=True)


def axes_of(drawing: Drawing) -> Axes:
    (axes,) = drawing.figure.axes
    return axes


def texts(drawing: Drawing) -> list[str]:
    return [text.get_text() for text in axes_of(drawing).texts]


def spans(drawing: Drawing) -> list[tuple[float, float]]:
    """Both ends of every whisker, in the units of the axes."""
    (lines,) = [each for each in axes_of(drawing).collections if each.get_linewidth()[0] == 1.5]
    return [tuple(sorted(segment[:, 0] if np.ptp(segment[:, 0]) else segment[:, 1])) for segment in lines.get_segments()]


def test_columns_stand_on_zero_with_their_n_and_their_interval() -> None:
    drawing = columns("c", "C", "characters", [Bar("−5\nto 0", SHARE, TUNED)])
    axes = axes_of(drawing)
    (bar,) = axes.patches
    assert (bar.get_y(), bar.get_height()) == (0, 0.6)
    assert axes.get_ylim() == (0, 1)
    assert spans(drawing) == [(pytest.approx(0.45), pytest.approx(0.72))]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["−5\nto 0\nn = 40"]
    assert axes.get_xlabel() == "characters"


@pytest.mark.parametrize("interval", [None, (0.0, 0.0), (1.0, 1.0), (0.95, 1.0000000000000002)])
def test_columns_take_any_interval(interval: tuple[float, float] | None) -> None:
    value = interval[1] if interval else 0.5
    assert columns("c", "C", "x", [Bar("1", Estimate(value, interval, 3, rate=True), TUNED)]).inline


def test_a_ladder_is_in_order_and_has_no_zero() -> None:
    rungs = [
        Bar(name, Estimate(value, (value - 40, value + 40), 9), OTHERS[0])
        for name, value in (("a", 990), ("c", 1300), ("b", 1105))
    ]
    drawing = ladder("l", "L", rungs)
    names = [text for text in texts(drawing) if text in "abc"]
    assert names == ["c", "b", "a"]
    dots = [line.get_xdata()[0] for line in axes_of(drawing).lines if line.get_marker() == "o"]
    ticks = {text.get_text(): text.get_position()[0] for text in axes_of(drawing).texts if text.get_size() == 11}
    assert "0" not in ticks
    (one, left), *_, (other, right) = ticks.items()
    scale = (right - left) / (int(other.replace(",", "")) - int(one.replace(",", "")))
    assert np.diff(dots) == pytest.approx([-195 * scale, -115 * scale])
    for dot, (low, high) in zip(dots, spans_of_each(drawing), strict=True):
        assert (dot - low, high - dot) == (pytest.approx(40 * scale), pytest.approx(40 * scale))


def spans_of_each(drawing: Drawing) -> list[tuple[float, float]]:
    found = [each.get_segments()[0][:, 0] for each in axes_of(drawing).collections if each.get_linewidth()[0] == 1.5]
    return [(min(segment), max(segment)) for segment in found]


def test_a_ladder_of_equals_without_intervals_is_drawn() -> None:
    assert ladder("l", "L", [Bar(name, Estimate(1000, None, 0), TUNED) for name in "ab"]).inline


@pytest.mark.parametrize("name", ["base", "checkpoint-1200", "a-very-long-name-of-a-model"])
def test_names_stand_beside_bars_not_on_them(name: str) -> None:
    drawing = bars("b", "B", [("", [Bar(name, SHARE, TUNED)])])
    figure = drawing.figure
    (label,) = [text for text in axes_of(drawing).texts if text.get_position()[0] == 0]
    assert label.get_window_extent(FigureCanvasAgg(figure).get_renderer()).x1 < axes_of(drawing).patches[0].get_x()
    assert label.get_text() == (name if len(name) <= 17 else f"{name[:16]}…")


def test_a_name_without_end_takes_three_lines() -> None:
    lines = [text for text in texts(bars("b", "B", [("word " * 900, [Bar("base", SHARE, TUNED)])])) if "word" in text]
    assert len(lines) == 3
    assert max(lines, key=len)
    assert sum(line.endswith("…") for line in lines) == 1


def test_a_file_has_the_chart_its_title_and_its_caption() -> None:
    drawing = bars("b", "Bars & <more>", [("a check", [Bar("tuned", SHARE, TUNED)])])
    root = ET.fromstring(drawing.svg("n = 40 <b>"))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    (title,) = root.findall("{http://www.w3.org/2000/svg}title")
    assert title.text == "Bars & <more>"
    assert [each.text for each in root.iter() if each.tag.endswith("}description")] == ["n = 40 <b>"]
    text = drawing.svg("caption")
    assert f"fill: {INK.lower()}" in text
    assert "fill: #ffffff" in text
    assert "currentColor" not in text
    assert "sans-serif" in text
    assert "currentColor" in drawing.inline
    assert INK.lower() not in drawing.inline.lower()
    assert drawing.svg("x") == drawing.svg("x")


def test_a_png_is_white_with_ink_on_it_and_sharp() -> None:
    drawing = bars("b", "B", [("", [Bar("tuned", SHARE, TUNED)])])
    image = matplotlib.image.imread(io.BytesIO(drawing.png("n\u00a0=\u00a040")), format="png")
    assert image.shape[1] >= 3 * WIDTH
    assert (image[0, 0] == 1).all()
    ink = [int(INK[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    assert (np.abs(image[:, :, :3] - ink).sum(axis=2) < 0.02).any()
    assert b"n = 40" in drawing.png("n\u00a0=\u00a040")


def test_names_at_the_ends_of_curves_stay_where_they_are_in_every_file() -> None:
    points = [(step, step / 10) for step in range(11)]
    drawing = curves("r", "R", [Curve("chosen", TUNED, points, held_out=True)])

    def gap(figure: Figure) -> float:
        """How far the name is from the end of its curve, of the width of the axes."""
        axes = figure.axes[0]
        (name,) = [text for text in axes.texts if text.get_text() == "chosen"]
        x = name.get_transform().transform(name.get_position())[0]
        return float((x - axes.bbox.x1) / axes.bbox.width)

    before = gap(drawing.figure)
    figure = drawing.figure
    figure.set_dpi(216)
    assert gap(figure) == pytest.approx(before)


def test_a_share_that_is_a_difference_is_in_points() -> None:
    change = Estimate(0.12, (-0.01, 0.25), 24, rate=True, change=True)
    assert (change.text, change.between) == ("+12\u00a0points", "−1 to 25")
    assert Estimate(-0.001, (-0.2, 0.2), 24, change=True).text == "0.0"  # no −0.0
    assert Estimate.of({"elo": 1012.0, "low": 990, "high": 1034, "n": 8}) == Estimate(1012.0, (990, 1034), 8)
    assert Estimate.of({"mean": 1.0}) == Estimate(1.0, None, 0)
