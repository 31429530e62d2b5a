"""The app in a browser: its pages, runs that are looked at while they train, and one that is started, killed and resumed."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from browser import accessibility, scripts_ran, served, tab
from test_app import finished, set_state, write_lines
from test_report import hostile_run, metrics_lines, page_of
from tiebreak.app import work
from tiebreak.app.home import Home
from tiebreak.files import read_json
from tiebreak.run import Run

PAGES = {
    "": "table.runs",
    "start": ".recipe .cost p",
    "label": "[aria-label=Run]",
    "data": ".data article",
    "playground": ".answer",
}
"""What there is on a page once it is whole."""
EVIL = "<img src=x onerror=window.taken=1>"
EVIL_RECIPE = f"""
name: evil
model: {{name_or_path: "<script>window.taken=1</script>{EVIL}"}}
prompts: {{items: ["{EVIL}", "${{window.taken=1}}", "{{{{window.taken}}}}"], test_fraction: 0.5, system: "{EVIL}"}}
generate: [{{type: local, n: 2, name: warm}}]
judges: [{{type: rules, checks: [{{check: one_line, name: "{EVIL}"}}]}}]
profiles: {{"{EVIL}": {{seed: 3}}}}
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, a hostile one with a hostile name, one that cannot be read, and a recipe with a hostile name."""
    root = tmp_path_factory.mktemp("runs")
    page_of(finished(root / "titles"))
    finished(root / "other")
    finished(root / "broken")
    (root / "broken" / "manifest.json").write_text(json.dumps({"stages": EVIL}))
    made = root / ".hostile"
    made.mkdir()
    page_of(hostile_run(made))
    (made / "run").rename(root / EVIL)
    recipe = read_json(root / EVIL / "recipe.json")
    recipe["model"]["name_or_path"] = f"<script>window.taken=1</script>{EVIL}"
    (root / EVIL / "recipe.json").write_text(json.dumps(recipe))
    (root / EVIL / "logs").mkdir()
    (root / EVIL / "logs" / "run.log").write_text(f"{EVIL}\n")
    write_lines(root / EVIL / "train" / "metrics.jsonl", [{"step": 5, "loss": 0.5, "warning": EVIL, "sentence": EVIL}], "a")
    (root / f"{EVIL}.yaml").write_text(EVIL_RECIPE)
    return root


@pytest.fixture(scope="module")
def address(root: Path) -> Iterator[str]:
    with served(root) as address:
        yield address


def show(page: Any, address: str, run: str) -> None:
    """Open the page of runs and choose one by its link."""
    page.goto(address)
    page.locator("table.runs a", has_text=run).first.click()
    page.locator("h2.said", has_text=run).wait_for()


# --- every page ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 400)])
def test_every_page_loads_quietly_in_light_and_dark_and_on_a_phone(
    chromium: Any, address: str, name: str, scheme: str, width: int
) -> None:
    with tab(chromium, scheme=scheme, width=width) as page:
        page.goto(f"{address}{name}")
        page.locator(PAGES[name]).first.wait_for()
        asked = page.evaluate("performance.getEntriesByType('resource').map(each => each.name)")
        assert len(asked) > 10
        assert [each for each in asked if not each.startswith((address, "data:"))] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        ink, paper = page.evaluate("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
        light = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
        assert (light[0] < light[1]) == (scheme == "light")
        assert float(page.evaluate("parseFloat(getComputedStyle(document.querySelector('h1 + *, p')).fontSize)")) >= 16
        assert accessibility(page) == []
        assert not scripts_ran(page)


def test_the_pages_lead_to_each_other(chromium: Any, address: str) -> None:
    with tab(chromium) as page:
        page.goto(address)
        names = [name.capitalize() or "Runs" for name in PAGES]
        page.get_by_role("link", name="Playground").wait_for()
        assert [link.strip() for link in page.locator("nav a, nav button").all_inner_texts() if link.strip()] == names
        show(page, address, "titles")
        for name in list(PAGES)[2:]:
            assert page.locator(f'a[href="{name}?run=titles"]').is_visible()


# --- runs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1200, 400])
def test_on_a_phone_the_parts_of_a_row_stand_below_each_other(width: int, chromium: Any, address: str) -> None:
    with tab(chromium, width=width) as page:
        show(page, address, "titles")
        for table in (page.locator("table.runs"), page.locator("table.stages")):
            table.wait_for()
            assert table.locator("thead").is_visible() == (width == 1200)
            assert table.evaluate("each => each.scrollWidth <= each.parentElement.clientWidth")


def test_the_table_says_how_each_run_stands(chromium: Any, address: str) -> None:
    with tab(chromium) as page:
        page.goto(address)
        row = page.locator("table.runs tr", has=page.get_by_role("link", name="titles", exact=True))
        row.wait_for()
        words = " ".join(row.inner_text().replace("\u00a0", " ").split())
        for part in ("586 of 926", "better", "84 %", "75–90 %, n = 96", "builtin:smollm2-135m-instruct", "ago"):
            assert part in words
        assert "cannot be read" in page.locator("table.runs tr", has_text="broken").inner_text()


def test_runs_are_found_by_words_and_ordered(chromium: Any, address: str) -> None:
    with tab(chromium) as page:
        page.goto(address)
        page.get_by_role("link", name="titles", exact=True).wait_for()
        page.get_by_label("Find").fill("better oth")
        page.get_by_text("1 of 4 runs").wait_for()
        assert page.locator("table.runs tbody th").all_inner_texts() == ["other"]
        page.get_by_label("Find").fill("no such words")
        page.get_by_text("None of 4 runs").wait_for()


def test_a_run_opens_by_its_link_its_address_and_the_keyboard(chromium: Any, address: str) -> None:
    with tab(chromium) as page:
        show(page, address, "titles")
        assert page.url.endswith("?run=titles")
        page.goto(f"{address}?run=other")
        page.locator("h2.said", has_text="other").wait_for()
        page.get_by_role("link", name="titles", exact=True).focus()
        page.keyboard.press("Enter")
        page.locator("h2.said", has_text="titles").wait_for()
        assert "581 distinct completions of 600" in page.locator("table.stages").inner_text()


def test_a_run_that_cannot_be_read_says_why(chromium: Any, address: str) -> None:
    with tab(chromium) as page:
        page.goto(f"{address}?run=broken")
        page.locator(".wrong", has_text="not as tiebreak writes it").wait_for()
        assert not scripts_ran(page)


def test_the_report_is_shown_in_a_frame_that_reaches_nothing(chromium: Any, address: str, root: Path) -> None:
    report = root / "titles" / "report.html"
    good = report.read_text()
    report.write_text(good.replace("<body>", "<body><script>parent.taken = 1</script><img src=x onerror='parent.taken = 1'>"))
    try:
        with tab(chromium, expected=lambda what: "Content Security Policy" in what or "violates" in what) as page:
            show(page, address, "titles")
            page.get_by_role("tab", name="Report").click()
            frame = page.frame_locator("iframe.report")
            frame.locator("h1", has_text="84").wait_for()
            assert page.locator("iframe.report").get_attribute("sandbox") == "allow-scripts"
            frame.locator("thead button").first.click()  # its own script sorts
            frame.locator("thead [aria-sort]").first.wait_for()
            assert not scripts_ran(page)
    finally:
        report.write_text(good)


def test_runs_are_compared_side_by_side(chromium: Any, address: str) -> None:
    with tab(chromium) as page:
        page.goto(address)
        several = page.get_by_label("Two or three runs")
        for name in ("titles", "other"):
            several.click()
            page.get_by_role("option", name=name, exact=True).click()
        page.keyboard.press("Escape")
        page.locator("table.compared th", has_text="win rate of tuned over base").wait_for()
        assert page.locator("table.compared thead th").all_inner_texts() == ["", "titles", "other"]


def test_what_files_say_is_shown_as_text(chromium: Any, address: str) -> None:
    with tab(chromium) as page:
        show(page, address, EVIL)
        assert EVIL in page.locator("table.runs").inner_text()
        assert f"<script>window.taken=1</script>{EVIL}" in page.locator("table.runs").inner_text()
        page.get_by_role("tab", name="Report").click()
        page.frame_locator("iframe.report").locator("h1").wait_for()
        page.get_by_role("tab", name="Curves").click()
        assert EVIL in page.locator(".warned").inner_text()
        several = page.get_by_label("Two or three runs")
        for run in (EVIL, "titles"):
            several.click()
            page.get_by_role("option", name=run, exact=True).click()
        page.locator("table.compared").wait_for()
        assert not scripts_ran(page)
        assert page.locator("#root img[src=x], .gradio-container img[src=x]").count() == 0


def test_a_live_curve_moves(chromium: Any, tmp_path: Path) -> None:
    run, lines = finished(tmp_path / "titles"), metrics_lines()
    write_lines(run.metrics_jsonl, lines[:4])
    set_state(run.path, train="running", evaluate="owed", report="owed")
    with run.lock(), served(tmp_path) as address, tab(chromium) as page:
        show(page, address, "titles")
        page.get_by_text("Running in train, after").wait_for()
        page.get_by_role("tab", name="Curves").click()
        loss = page.locator("figure", has=page.get_by_role("heading", name="Loss", exact=True))
        loss.get_by_text(f"Up to step {lines[3]['step']}.").wait_for()
        before = loss.locator("svg").inner_html()
        write_lines(run.metrics_jsonl, lines[4:12], "a")
        loss.get_by_text(f"Up to step {lines[11]['step']}.").wait_for()
        assert loss.locator("svg").inner_html() != before
        drawn = page.locator(".charts h3").all_inner_texts()
        assert drawn == ["Loss", "Rewards", "Margin", "Accuracy"]


# --- start ---------------------------------------------------------------------------------------------------------


def box(page: Any, key: str) -> Any:
    """Return what one writes a key's value into."""
    return page.get_by_label(key, exact=True)


def wrong(page: Any, text: str = "") -> Any:
    """Return the messages of what is wrong."""
    return page.locator(".recipe .wrong:visible", has_text=text)


def write_recipe(folder: Path, model: Path) -> None:
    recipe = {
        "name": "tiny",
        "model": {"name_or_path": str(model)},
        "prompts": {"items": [f"Question {number}" for number in range(8)], "test_fraction": 0.25},
        "generate": {"type": "local", "n": 3, "max_new_tokens": 8},
        "judges": {"type": "rules", "checks": [{"check": "match", "pattern": "[a-m]"}, {"check": "length", "max": 9}]},
        "train": {"num_train_epochs": 1, "logging_steps": 1, "per_device_train_batch_size": 2},
        "evaluate": {"max_new_tokens": 8},
        "profiles": {
            "long": {"train.num_train_epochs": 900, "train.save_steps": 1, "train.eval_steps": 1}
        },  # does not end by itself
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe))


def state(run: Path, stage: str) -> str:
    try:
        return Run(run).state(stage)
    except Exception:
        return ""


def steps(run: Path) -> int:
    """Return how far a training is."""
    lines = (run / "train" / "metrics.jsonl").read_text().split("\n")[:-1]
    return max((json.loads(line)["step"] for line in lines), default=0)


def end(run: Path) -> None:
    """Kill what works on a run."""
    if (process := work._process(run)) is not None:
        process.kill()


def wait_until(there: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_run_is_started_from_the_form_killed_and_resumed(
    chromium: Any, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr("tiebreak.app.runs.LOOK_EVERY", 0.5)
    heeded = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a script that puts the app in the background has it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, heeded))
    write_recipe(tmp_path, tiny)
    run = tmp_path / "tiny"
    request.addfinalizer(lambda: end(run))
    with served(tmp_path) as address, tab(chromium) as page:
        page.goto(f"{address}start")
        box(page, "Profile").select_option("long")
        beta = box(page, "train.beta")
        beta.fill("-1")
        wrong(page, "input should be greater than").wait_for()
        assert page.get_by_role("button", name="Start").is_disabled()
        beta.fill("0.2")
        wrong(page).wait_for(state="hidden")
        page.get_by_text("Nothing is paid").wait_for()
        page.get_by_role("button", name="Start").click()
        page.wait_for_url(re.compile(r"/\?run=tiny$"))
        page.locator("h2.said", has_text="tiny").wait_for()

        wait_until(lambda: state(run, "train") == "running" and (run / "train" / "metrics.jsonl").exists())
        page.get_by_text("Running in train, after").wait_for()
        page.get_by_role("button", name="Stop").click()
        page.get_by_text("Stopped in train, after").wait_for()
        page.get_by_role("button", name="Resume").click()
        wait_until(lambda: state(run, "train") == "running")
        os.kill(read_json(run / "logs" / "process.json")["pid"], signal.SIGKILL)
        page.get_by_text("Killed in train, after").wait_for()

        recipe = read_json(run / "recipe.json")
        assert (recipe["train"]["beta"], recipe["train"]["num_train_epochs"]) == (0.2, 900)
    # Started again by a page of another app, and not by the one that began it.
    with served(tmp_path) as address, tab(chromium) as page:
        page.goto(f"{address}?run=tiny")
        page.get_by_text("Killed in train, after").wait_for()
        reached = steps(run)
        page.get_by_role("button", name="Resume").click()
        wait_until(lambda: steps(run) > reached + 1)
        page.get_by_text("Running in train, after").wait_for()
        page.get_by_role("button", name="Stop").click()
        page.get_by_text("Stopped in train, after").wait_for()


def test_recipes_are_text_too(chromium: Any, address: str, root: Path) -> None:
    with tab(chromium) as page:
        page.goto(f"{address}start")
        box(page, "Recipe").select_option(f"{EVIL}.yaml")
        box(page, "model.name_or_path").fill(f"{EVIL}2")
        assert box(page, "prompts.system").input_value() == EVIL
        box(page, "pair.min_margin").fill(EVIL)
        wrong(page).wait_for()
        box(page, "Profile").select_option(EVIL)
        box(page, "seed").and_(page.locator("[value='3']")).wait_for()
        assert box(page, "model.name_or_path").input_value() == f"<script>window.taken=1</script>{EVIL}"
        wrong(page).wait_for(state="hidden")
        assert page.locator(".recipe :is(img, script, b)").count() == 0
        assert not scripts_ran(page)


def test_what_is_said_of_a_form_that_is_gone_is_not_said(chromium: Any, address: str) -> None:
    """Nor is anything written into it lost in the next one, or asked of somebody who is gone: there is no error either."""
    with tab(chromium) as page:
        page.goto(f"{address}start")
        box(page, "seed").fill("many")
        wrong(page).wait_for()
        for name in ("legal-flan-t5 (shipped)", "human-like (shipped)", "demo (shipped)") * 2:
            box(page, "seed").fill("many")
            box(page, "Recipe").select_option(name)
            box(page, "seed").fill("2")
            assert page.locator("form.recipe").get_attribute("data-recipe") == name
            assert box(page, "seed").input_value() == "2"
        page.get_by_role("button", name="Start").and_(page.locator(":enabled")).wait_for()
        assert wrong(page).count() == 0


def test_a_taken_name_is_refused_beside_its_field(chromium: Any, address: str) -> None:
    with tab(chromium) as page:
        page.goto(f"{address}start")
        box(page, "name").fill("titles")
        wrong(page, "is there already").wait_for()
        assert page.get_by_role("button", name="Start").is_disabled()


def test_keys_are_added_to_the_form(chromium: Any, address: str) -> None:
    with tab(chromium) as page:
        page.goto(f"{address}start")
        box(page, "name").fill("mine")
        assert box(page, "train.weight_decay").is_hidden()
        assert page.locator("#keys option[value='train.weight_decay']").count() == 1
        page.get_by_label("Add a key").fill("train.weight_decay")
        assert page.evaluate("document.activeElement.name") == "train.weight_decay"
        page.keyboard.type("-1")
        wrong(page, "input should be greater than").wait_for()
        assert box(page, "name").input_value() == "mine"


def test_pages_that_may_not_start_have_no_way_to(chromium: Any, root: Path) -> None:
    with served(root, start=False) as address, tab(chromium) as page:
        show(page, address, "titles")
        assert page.get_by_role("button", name="Resume").count() == 0
        assert page.locator('a[href="start"]').count() == 0


def test_names_are_found_by_home_as_they_are(root: Path) -> None:
    assert EVIL in Home(root).names()
