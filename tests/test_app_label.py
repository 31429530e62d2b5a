"""Labelling in a browser: by keyboard, blind, two at once, and nothing that a model says runs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")

from browser import accessibility, scripts_ran, served, tab
from scripted import compared, completion, prompt, put, start
from tiebreak.app import label, queue, votes
from tiebreak.files import read_jsonl, write_jsonl
from tiebreak.records import Comparison, Message, Prompt
from tiebreak.run import Run

pytestmark = [
    # Gradio leaves a socket open for each port that it finds taken, and counts events with what pandas 3 is about to drop.
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning"),
]

HOSTILE = "<img src=x onerror=\"window.taken='img'\"><script>window.taken=1</script> ${window.taken=2} {{this}} `\\` &lt;b&gt;"
ASKED = Prompt.of((Message(role="system", content="Be brief."), Message(role="user", content=f"Why? {HOSTILE}")), "test")
IDEAS = [prompt(f"idea {at}") for at in range(6)]
MET = [completion(ASKED, f"{text} {HOSTILE}", 0, model) for text, model in (("mine", "base"), ("yours", "tuned"))]
KEYS = {"ArrowLeft": "first", "ArrowRight": "second", "ArrowDown": "tie", "ArrowUp": "tie"}


def a_run(root: Path, name: str = "titles") -> Run:
    (root / name).mkdir(parents=True)
    run = start(root / name, evaluate={"n": 1})
    asked = [(of, [f"{of.text} title {at}" for at in range(3)]) for of in IDEAS]
    asked += [(ASKED, [f"one {HOSTILE}", f"two </div></section>{HOSTILE}", "three\n  lines\u2028and \u202eturned"])]
    put(run, *asked)
    said = [
        each
        for of, texts in asked
        for each in (compared(of, texts[0], texts[1], "first"), compared(of, texts[1], texts[0], "second"))
    ]
    write_jsonl(run.eval_completions_jsonl, MET)
    write_jsonl(run.judgments("llm"), [each.model_copy(update={"reason": f"because {HOSTILE}"}) for each in said])
    return run


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    root = tmp_path_factory.mktemp("runs")
    a_run(root)
    with served(root) as url:
        yield url, root


@pytest.fixture
def run(address: tuple[str, Path]) -> Run:
    run = Run(address[1] / "titles" / "run")
    for path in (run.judgments("people"), run.eval_judgments("people")):
        path.unlink(missing_ok=True)
    queue._claims.clear()
    return run


def open_(page: Any, url: str) -> None:
    page.goto(f"{url}label?run=titles/run")
    page.wait_for_function("() => [...document.querySelectorAll('input')].some(each => each.value === 'titles/run')")


def sit(page: Any, url: str, who: str, order: str | None = None) -> None:
    open_(page, url)
    page.get_by_label("Your name").fill(who)
    if order:
        page.get_by_label(order).check()
    page.get_by_role("button", name="Start").click()
    page.locator(".desk:focus").wait_for()


def question(page: Any) -> str:
    return str(page.locator(".desk").get_attribute("data-question"))


def press(page: Any, key: str) -> None:
    before = question(page)
    page.keyboard.press(key)
    page.wait_for_function("before => document.querySelector('.desk').dataset.question !== before", arg=before)


def said(run: Run) -> list[Comparison]:
    return list(read_jsonl(run.judgments("people"), Comparison))


def judged(run: Run, who: str, but: Callable[[Prompt], bool] = lambda _: False) -> None:
    """Have somebody say that all is bad, but that of some prompts."""
    there = queue.desk(run)
    for two, (of, *_) in there.twos.items():
        if not but(of):
            votes.vote(run, queue.blind(there, two, who), "both bad", who, via="label")


def test_twenty_pairs_by_keyboard(chromium: Any, address: tuple[str, Path], run: Run) -> None:
    with tab(chromium) as page:
        sit(page, address[0], "Eva")
        shown, keys = [], [list(KEYS)[at % 4] for at in range(20)]
        for key in keys:
            cards = page.locator(".desk .two section .model").all_inner_texts()
            shown.append(cards)
            press(page, key)
        status = page.locator(".desk [role=status]").inner_text()
    kept = said(run)
    texts = {draw.id: draw.text for draw in run.draws()}
    assert [each.winner for each in kept] == [KEYS[key] for key in keys]
    assert [("both bad" in each.reason) for each in kept] == [key == "ArrowUp" for key in keys]
    assert [[texts[each.first].split(), texts[each.second].split()] for each in kept] == [
        [card.split() for card in cards] for cards in shown
    ]
    numbers = {id: at for at, id in enumerate(texts)}
    assert 3 <= sum(numbers[each.first] > numbers[each.second] for each in kept) <= 17  # random
    assert len({frozenset((each.first, each.second)) for each in kept}) == 20
    assert status.startswith("20 judged by you · 20 of 21 judged by anybody · 1 waiting here · ")
    assert re.search(r"· \d+ s each, about 0 min for the rest$", status)


def test_undo_and_skip_and_the_end(chromium: Any, address: tuple[str, Path], run: Run) -> None:
    judged(run, "Tom", lambda of: of.text in ("idea 1", "idea 2"))
    before = len(said(run))
    with tab(chromium) as page:
        sit(page, address[0], "Eva", "At random")
        assert page.get_by_role("button", name="Undo").is_disabled()
        first = question(page)
        press(page, "s")
        press(page, "u")
        assert question(page) == first
        press(page, "ArrowLeft")
        press(page, "U")
        assert question(page) == first
        assert [each.winner for each in said(run)[before:]] == ["first", None]
        press(page, "ArrowRight")
        for _ in range(5):
            press(page, "ArrowDown")
        assert page.get_by_text("All is judged.").is_visible()
        assert page.get_by_role("button", name="Tie").is_disabled()
        page.keyboard.press("ArrowLeft")
        press(page, "u")
    assert len(said(run)) - before == 2 + 1 + 5 + 1
    assert said(run)[-1].error == "withdrawn"


def test_keys_are_typed_where_one_types(chromium: Any, address: tuple[str, Path], run: Run) -> None:
    with tab(chromium) as page:
        sit(page, address[0], "Eva")
        page.get_by_label("Your name").fill("")
        page.get_by_label("Your name").press_sequentially("us")
        page.get_by_label("Your name").press("ArrowLeft")
        page.get_by_label("At random").focus()
        page.keyboard.press("ArrowUp")
        page.locator(".desk").focus()
        page.keyboard.press("Control+ArrowLeft")
        assert page.get_by_label("Your name").input_value() == "us"
        page.get_by_role("button", name="First is better").focus()  # a button is no place to type
        press(page, "ArrowRight")
        page.get_by_role("button", name="Tie").click()
        page.get_by_text("Tie", exact=True)
        page.wait_for_function("() => document.querySelector('.desk [role=status]').innerText.startsWith('2 judged')")
    assert [each.winner for each in said(run)] == ["second", "tie"]


def test_judges_are_shown_after_a_verdict_only(chromium: Any, address: tuple[str, Path], run: Run) -> None:
    with tab(chromium) as page:
        sit(page, address[0], "Eva", "At random")
        assert "llm" not in page.locator(".desk").inner_text()
        assert "script" not in page.locator(".desk").inner_text()  # who wrote them
        while "Cohen" not in page.locator(".desk").inner_text():
            press(page, "ArrowLeft")
        row = page.locator(".desk table").last.locator("tbody tr").inner_text()
        assert re.match(r"llm\s+(–|-?\d)", row)
        assert "1 of 1 prompts" in " ".join(row.split())
        press(page, "s")
        assert "llm" not in page.locator(".desk").inner_text()


def test_two_people_at_once(chromium: Any, address: tuple[str, Path], run: Run) -> None:
    with tab(chromium) as eva, tab(chromium) as tom:
        sit(eva, address[0], "Eva")
        sit(tom, address[0], "Tom")
        assert question(eva) != question(tom)
        for _ in range(8):
            before = [(page, question(page)) for page in (eva, tom)]
            eva.keyboard.press("ArrowLeft")  # both are on their way at the same time
            tom.keyboard.press("ArrowRight")
            for page, old in before:
                page.wait_for_function("old => document.querySelector('.desk').dataset.question !== old", arg=old)
    kept = said(run)
    people = [json.loads(line)["labeller"] for each in kept for line in each.raw.split("\n")]
    assert (len(kept), people.count("Eva"), people.count("Tom")) == (16, 8, 8)
    assert len({frozenset((each.first, each.second)) for each in kept}) == 16


def test_a_second_opinion(chromium: Any, address: tuple[str, Path], run: Run) -> None:
    judged(run, "Eva")
    with tab(chromium) as page:
        sit(page, address[0], "Tom", "Second opinion")
        for _ in range(7):  # the llm decided these
            press(page, "ArrowLeft")
        assert page.get_by_text("Nobody waits for your opinion").is_visible()
        assert "Eva (person)" in page.locator(".desk").inner_text()
    assert {each.reason for each in said(run)[-7:]} == {"1 to 0, 1 tie: both bad", "0 to 1, 1 tie: both bad"}


def test_models_on_held_out_prompts(chromium: Any, address: tuple[str, Path], run: Run) -> None:
    with tab(chromium) as page:
        open_(page, address[0])
        page.get_by_label("Your name").fill("Eva")
        page.get_by_label("Models on held-out prompts").check()
        page.get_by_role("button", name="Start").click()
        page.locator(".desk:focus").wait_for()
        assert not {"base", "tuned"} & set(page.locator(".desk").inner_text().split())
        press(page, "ArrowLeft")
        assert page.get_by_text("All is judged").is_visible()
        assert re.search(r"First\s+was written by (base|tuned)", page.locator(".desk").inner_text())
        assert page.get_by_text(f"tiebreak evaluate {run.path}").is_visible()
    (kept,) = read_jsonl(run.eval_judgments("people"), Comparison)
    assert {kept.first, kept.second} == {each.id for each in MET}
    assert not run.judgments("people").exists()


def test_what_models_say_is_text(chromium: Any, address: tuple[str, Path], run: Run) -> None:
    judged(run, "<b>Tom</b>", lambda of: of.id == ASKED.id)
    with tab(chromium) as page:
        sit(page, address[0], "<b>Eva</b>")
        seen = ""
        for _ in range(3):
            seen += page.locator(".desk").inner_text() + "\n"
            press(page, "ArrowLeft")
        seen += page.locator(".desk").inner_text()
        assert seen.count(f"Why? {HOSTILE}") == 3
        assert f"two </div></section>{HOSTILE}" in seen
        assert f"because {HOSTILE}" in seen
        assert "system" in seen
        assert page.locator(".desk img, .desk script, .desk b").count() == 0
        assert not scripts_ran(page)


def test_who_has_no_name_is_told(chromium: Any, address: tuple[str, Path], run: Run) -> None:
    with tab(chromium) as page:
        open_(page, address[0])
        page.get_by_role("button", name="Start").click()
        page.get_by_text("your name: give one").wait_for()
        assert page.locator(".desk").count() == 0


def test_the_name_is_remembered(chromium: Any, address: tuple[str, Path], run: Run) -> None:
    with tab(chromium) as page:
        sit(page, address[0], "Eva")
        page.reload()
        page.wait_for_function("() => [...document.querySelectorAll('input,textarea')].some(each => each.value === 'Eva')")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_telephone(chromium: Any, address: tuple[str, Path], run: Run, scheme: str) -> None:
    with tab(chromium, scheme=scheme, width=400) as page:
        sit(page, address[0], "Eva", "At random")
        page.get_by_role("button", name="First is better").click()
        page.locator(".desk table").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == 400
        assert accessibility(page) == []


def test_what_the_script_and_the_page_know_are_the_same() -> None:
    for word, (key, _, _) in label.KEYS.items():
        assert f"{key}: '{word}'" in label.SCRIPT
    assert completion(ASKED, "x").prompt_id == ASKED.id


def test_a_run_without_completions_says_so(tmp_path: Path) -> None:
    run = start(tmp_path)
    assert "has no two completions of a prompt yet" in label.board(run, queue.begin(run, "run", "Eva", "disputed"))


def test_the_pace_leaves_breaks_out() -> None:
    assert label._pace([0, 10, 20]) is None
    assert label._pace([0, 10, 20, 5000, 5012, 5024]) == pytest.approx(11)
