"""What summary.json and results.csv come to."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from test_report import MODELS, a_rich_summary, a_summary
from tiebreak.metrics.text import describe
from tiebreak.metrics.winrate import rate
from tiebreak.recipe_yaml import parse_yaml, validate_recipe
from tiebreak.reporting.charts import BASE, OTHERS, TUNED, Estimate
from tiebreak.reporting.figures import Cell, Table
from tiebreak.reporting.meetings import Met
from tiebreak.reporting.reading import BINS, FEWEST, MOST, by_length, to_read
from tiebreak.reporting.results import (
    TEXTS,
    before_after,
    categories,
    colours,
    everybody,
    models_of,
    probabilities,
    qualifications,
)
from tiebreak.stages.concord import MOST as MOST_PAIRS
from tiebreak.stages.report import LARGEST


def told(**wins: Any) -> str:
    """What qualifies a win rate with these properties."""
    rate = {"rate": 0.8, "low": 0.7, "high": 0.9, "n": 96}
    return " ".join(qualifications({"win_rate": rate | wins})).replace("\u00a0", " ")


NOTHING = {"rate": 0.55, "low": 0.45, "high": 0.65}


@pytest.mark.parametrize(
    ("wins", "sentence"),
    [
        ({}, ""),
        ({"length_controlled": {"rate": 0.7, "low": 0.6, "high": 0.8, "n": 96}}, "At equal length: 70 % (60–80 %)."),
        (
            {"length_controlled": {"rate": 0.52, "low": 0.42, "high": 0.62, "n": 96}},
            "At equal length: 52 % (42–62 %), which shows no difference.",
        ),
        (
            {"length_controlled": {"rate": 0.3, "low": 0.2, "high": 0.4, "n": 96}},
            "At equal length: 30 % (20–40 %), which turns the verdict round.",
        ),
        (NOTHING | {"length_controlled": {"rate": 0.52, "low": 0.42, "high": 0.62, "n": 96}}, "At equal length: 52 % (42–62 %)."),
        ({"length_controlled": None, "p_value": None, "prompts_needed": None, "failed": None}, ""),
        ({"p_value": 0.0004}, "Paired test over prompts: p < 0.001."),
        ({"p_value": 0.0123}, "Paired test over prompts: p = 0.012."),
        ({"p_value": 1.0}, "Paired test over prompts: p = 1."),
        ({"prompts_needed": 1240}, ""),
        (NOTHING | {"prompts_needed": 1240}, "A difference of this size would take about 1,240 prompts to show."),
        ({"failed": 0}, ""),
        ({"failed": 3}, "3 of 99 comparisons have no readable verdict and are left out of the rate."),
    ],
)
def test_what_qualifies_the_answer_is_said_in_a_sentence(wins: dict[str, Any], sentence: str) -> None:
    assert told(**wins) == sentence


def test_a_judge_that_made_the_labels_is_worth_what_is_said() -> None:
    assert qualifications({"judge_labelled": False}) == []
    (sentence,) = qualifications({"judge_labelled": True})
    assert sentence == "The judge also made the labels: this shows that the model learned its taste, not that anyone shares it."


# --- what may be missing -------------------------------------------------------------------------------------------

INNER = ("n", "prompts", "win", "tie", "loss", "inconsistent", "failed", "bootstrap", "p_value", "prompts_needed")
MISSING = [
    *([key] for key in a_rich_summary() if key != "verdict"),
    *(["win_rate", key] for key in (*INNER, "rate", "low", "length_controlled", "categories")),
    ["held_out_pairs", "accuracy"],
    ["held_out_pairs", "margin"],
    *(["models_apart", key] for key in a_rich_summary()["models_apart"]),
    ["models_apart", "perplexity", "ratio"],
]


@pytest.mark.parametrize("path", MISSING, ids=".".join)
@pytest.mark.parametrize("null", [True, False], ids=["null", "missing"])
def test_any_key_may_be_missing(path: list[str], null: bool) -> None:
    summary = a_rich_summary()
    place = summary
    for key in path[:-1]:
        place = place[key]
    if null:
        place[path[-1]] = None
    else:
        del place[path[-1]]
    qualifications(summary)
    charts, table = before_after(summary, [])
    more, tables = everybody(summary)
    other = categories(summary)
    assert len(charts) >= 4
    assert len(more) + len(tables) >= 2
    for each in (table, probabilities(summary), *tables, *filter(None, [other])):
        assert each.shown
        assert each.csv


def test_of_a_verdict_alone_there_is_nothing_to_show() -> None:
    summary = {"verdict": {"word": "not compared", "sentence": "Nothing."}}
    assert qualifications(summary) == []
    charts, table = before_after(summary, [])
    assert (charts, list(table.rows), everybody(summary), categories(summary)) == ([], [], ([], []), None)
    assert list(probabilities(summary).rows) == []


# --- tables --------------------------------------------------------------------------------------------------------


def line(table: Table, name: str) -> dict[str, Any]:
    """A row of a table by its columns."""
    return dict(zip(table.columns, next(row for row in table.rows if row[0] == name), strict=True))


def test_a_difference_is_in_points_where_it_is_of_shares() -> None:
    _, table = before_after(a_rich_summary(), [])
    passing, score, length = (
        line(table, name)["tuned less base"] for name in ("Passing every check", "Mean score", "Length in characters")
    )
    assert (passing.text, passing.between) == ("+67\u00a0points", "50–84")
    assert (score.text, length.text, length.between) == ("+0.33", "−83", "−103 to −62")
    assert line(table, "one line")["tuned less base"] is None


def test_n_is_a_range_where_models_have_different_ones() -> None:
    summary = a_summary()
    summary["scores"]["tuned"]["n"] = 90
    _, table = before_after(summary, [])
    assert line(table, "Mean score")["n"] == Cell("90–96", value=96)
    assert line(table, "Length in characters")["n"] == 96


def test_base_and_tuned_come_first_and_keep_their_colours() -> None:
    assert models_of({"models": ["sft", "tuned", "base"]}) == ["base", "tuned", "sft"]
    assert models_of({"head_to_head": [{"model": "gpt"}, {"model": "tuned"}]}) == ["base", "tuned", "gpt"]
    assert models_of({}) == ["base", "tuned"]
    looks = colours(MODELS)
    assert (looks["base"], looks["tuned"]) == (BASE, TUNED)
    assert [looks[model] for model in MODELS[2:]] == list(OTHERS)


def test_every_model_has_its_own_win_rate_over_base() -> None:
    summary = a_rich_summary()
    _, table = before_after(summary, [])
    row = line(table, "Win rate over base")
    assert row["base"] is None
    assert row["tuned"].value == summary["win_rate"]["rate"]
    (sft,) = [each for each in summary["head_to_head"] if (each["model"], each["against"]) == ("sft", "base")]
    assert row["sft"] == Estimate.of(sft)
    boot = line(table, "interval by bootstrap")["sft"]
    assert boot == Estimate.of(sft | sft["bootstrap"])
    assert boot.interval != row["sft"].interval


def test_a_table_of_meetings_stands_where_there_are_several() -> None:
    charts, tables = everybody(a_rich_summary())
    assert [chart.drawing.name for chart in charts] == ["head_to_head", "ratings"]
    assert [(table.name, len(table.rows)) for table in tables] == [("head_to_head", 10), ("ratings", 5)]
    summary = a_rich_summary()
    summary["head_to_head"], summary["ratings"] = summary["head_to_head"][:1], []
    assert everybody(summary) == ([], [])


def test_categories_have_a_column_for_every_model_that_met_the_base() -> None:
    table = categories(a_rich_summary())
    assert table is not None
    assert table.columns == ("category", "tuned", "sft", "checkpoint-40", "gpt-4.1-mini", "n")
    assert [row[0] for row in table.rows] == ["how-to", "science", "travel"]
    two = a_summary()
    two["win_rate"]["categories"] = copy.deepcopy(a_rich_summary()["win_rate"]["categories"])
    assert (table := categories(two)) is not None
    assert table.columns == ("category", "tuned", "n")


@pytest.mark.parametrize("unwarped", [True, False])
def test_kl_of_warped_draws_is_called_what_it_is(unwarped: bool) -> None:
    summary = a_rich_summary()
    summary["models_apart"]["unwarped"] = unwarped
    table = probabilities(summary)
    assert ("not at temperature 1" in table.note) == (not unwarped)
    assert line(table, "KL from base in nats, per completion")["tuned"].value == 9.31
    assert [row[0] for at, row in enumerate(table.rows) if at in table.parts] == [
        "tuned by base",
        "by the other estimator",
        "per token",
        "share that fell",
        "share of pairs where both fell",
    ]


# --- length against outcome ----------------------------------------------------------------------------------------


def example(prompt: str, longer: int, verdict: str) -> Met:
    return Met(prompt, prompt, "b" * (100 - min(0, longer)), "t" * (100 + max(0, longer)), verdict, "", "", "")


def test_lengths_fall_into_bins_of_equal_size() -> None:
    rows = [example(str(at % 20), 3 * at - 60, ("loss", "tie", "inconsistent", "win", "error")[at % 5]) for at in range(100)]
    bins = by_length(rows)
    assert [bar.estimate.n for bar in bins] == [16] * 5
    assert [bar.label for bar in bins] == ["−60\nto −6", "0\nto +54", "+60\nto +114", "+120\nto +174", "+180\nto +234"]
    worth = {"win": 1.0, "tie": 0.5, "inconsistent": 0.5, "loss": 0.0}
    known = sorted((row for row in rows if row.verdict in worth), key=lambda row: row.longer)[:16]
    groups: dict[str, list[float]] = {}
    for row in known:
        groups.setdefault(row.prompt_id, []).append(worth[row.verdict])
    expected = rate(list(groups.values()))
    assert expected is not None
    assert bins[0].estimate[:3] == (expected.value, (expected.low, expected.high), 16)


def test_a_judge_that_likes_length_makes_the_columns_rise() -> None:
    rows = [example(str(at), at - 40, "win" if at > 40 else "loss") for at in range(80)]
    values = [bar.estimate.value for bar in by_length(rows)]
    assert values == sorted(values)
    assert (values[0], values[-1]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("differences", "sizes"),
    [
        ([0] * 80, []),  # no two bins to compare
        (list(range(2 * FEWEST - 1)), []),
        (list(range(2 * FEWEST)), [FEWEST, FEWEST]),
        ([0] * 40 + list(range(1, 41)), [40, 16, 16, 8]),
        ([0] * 40 + list(range(1, 38)), [40, 16, 21]),  # what is left over joins its neighbour
        ([0] * 76 + [1, 2, 3, 4], []),
    ],
)
def test_bins_hold_enough_and_never_part_equal_differences(differences: Sequence[int], sizes: list[int]) -> None:
    bins = by_length([example(str(at), longer, "win") for at, longer in enumerate(differences)])
    assert [bar.estimate.n for bar in bins] == sizes
    assert len(bins) <= BINS
    assert all(size >= FEWEST for size in sizes)


# --- examples ------------------------------------------------------------------------------------------------------


def test_the_most_of_each_kind_are_read_and_the_draw_is_the_seeds() -> None:
    rows = [example(str(at), 0, ("win", "loss", "tie")[at % 3]) for at in range(300)]
    shown = dict(to_read(rows, seed=1))
    assert {name: len(group) for name, group in shown.items()} == {
        "Wins": MOST,
        "Losses": MOST,
        "Drawn at random from the others": MOST,
    }
    assert dict(to_read(rows, seed=1)) == shown
    assert dict(to_read(rows, seed=2)) != shown
    assert len({row.prompt_id for group in shown.values() for row in group}) == 3 * MOST


# --- docs/evaluation.md --------------------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8")


def keys_of(value: Any) -> set[str]:
    """Every key of a summary that is not the name of a model or a measure."""
    if isinstance(value, list):
        return {key for each in value for key in keys_of(each)}
    if not isinstance(value, dict):
        return set()
    kept = {key: each for key, each in value.items() if key not in {*MODELS, "score", "length", "no quotes", "of my own"}}
    return kept.keys() | {key for each in value.values() for key in keys_of(each)}


def test_its_schema_names_every_key_of_a_summary() -> None:
    schema = PAGE[PAGE.index("### eval/summary.json") :]
    named = set(re.findall(r'[`"](\w+)[`"]', schema))
    assert keys_of(a_rich_summary()) - named == set()
    rows = re.findall(r"^\| (`.*?`) \|", schema, re.M)
    assert {key for row in rows for key in re.findall(r"`(\w+)`", row)} == set(a_rich_summary())


def test_its_schema_names_every_measure_of_texts() -> None:
    described = set(describe([["one two three four", "one two"]], [["one"]])) - {"characters"}
    assert described == set(TEXTS)
    known = {re.sub(r"_\d.*", "_1", name) for name in described}
    assert known <= set(re.findall(r"`(\w+)`", PAGE))


def test_its_recipe_trains_nothing_and_loads() -> None:
    (text,) = [block for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.S) if "train: null" in block]
    recipe = validate_recipe(parse_yaml(text, "docs"), "docs")
    assert recipe.evaluate is not None
    assert (recipe.train, recipe.evaluate.headline, recipe.evaluate.own) == (None, ("mine", "gpt-4"), [])


def test_its_numbers_are_in_the_code() -> None:
    assert f"Another judge is asked about up to {MOST_PAIRS} held-out pairs" in " ".join(PAGE.split())
    assert f"up to {MOST} of the biggest wins, {MOST} of the biggest losses, and {MOST} drawn" in " ".join(PAGE.split())
    assert (BINS, LARGEST) == (5, 2_000_000)
    assert "up to five groups" in PAGE
    assert "under 2 MB" in PAGE
    assert len(PAGE.splitlines()) <= 150
