"""The playground: what is asked of whom, what a vote becomes, and the page in a browser."""

from __future__ import annotations

import json
import random
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from browser import accessibility, scripts_ran, served, tab
from conftest import make_causal, make_tokenizer
from servers import reply, stub
from test_streams import chunk, events, sent
from tiebreak import models
from tiebreak.app import asked, streams, votes
from tiebreak.app.answers import Answer, Stop, side_by_side
from tiebreak.app.asked import Round, caption, chat_of, choices, field_of, find, keep, settings_of, verdicts, writer_of
from tiebreak.app.home import Home
from tiebreak.files import read_jsonl, write_jsonl
from tiebreak.recipe import Endpoint, LocalSampling, Model
from tiebreak.records import Comparison, Completion, InputError, Message, Prompt
from tiebreak.run import Run
from tiebreak.samplers.ledger import spent

pytest.importorskip("gradio")
pytestmark = [
    # Gradio leaves a socket open for each port that it finds taken, and counts events with what pandas 3 is about to drop.
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning"),
]

MARKUP = "<img src=x onerror='window.taken = 1'><b>bold</b> **stars** ${taken} {{x}}"
TEMPLATE = f"Write a title, {{{{quickly}}}}.\n\n**Idea**: {{idea}} {MARKUP.replace('{{x}}', '')}".replace("${taken}", "")
CHAT = (
    Message(role="system", content="Be short."),
    Message(role="user", content="Who are you?"),
    Message(role="assistant", content="Nobody."),
    Message(role="user", content="And now?"),
)
SETTINGS = ("Temperature", "top_p", "top_k", "Most tokens", "Seed")
LIVELY = {"tie_word_embeddings": False, "initializer_range": 0.3, "max_position_embeddings": 2048}


def prompt(text: str, split: Any = "test") -> Prompt:
    return Prompt.of((Message(role="user", content=text),), split)


def start(path: Path, base: Path | str, **changes: Any) -> Run:
    data = {
        "model": {"name_or_path": str(base)},
        "prompts": {"items": ["a", "b"], "test_fraction": 0.5},
        "generate": [{"type": "local", "n": 2}],
        "judges": [{"type": "rules", "checks": [{"check": "one_line"}]}],
        "evaluate": {"temperature": 0.7, "top_p": 0.95, "top_k": 30, "max_new_tokens": 20},
        **changes,
    }
    recipe = path.parent.parent / "r.yaml"
    recipe.write_text(yaml.safe_dump(data), encoding="utf-8")
    return Run.start(recipe, path)


@pytest.fixture(scope="module")
def exact() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "device", lambda: torch.device("cpu"))
        patch.setattr(models, "has_bf16", lambda device: False)
        yield


def talkative(folder: Path, seed: int) -> Path:
    """Save a llama that says something, and does not come to an end among the likeliest tokens."""
    make_causal(folder, seed=seed, **LIVELY)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][make_tokenizer().eos_token_id] = 0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, exact: None) -> Path:
    """Two runs, one of them with a tuned model, a checkpoint and a template."""
    folder = tmp_path_factory.mktemp("playground")
    (folder / "runs").mkdir()
    base = talkative(folder / "base", seed=3)
    start(folder / "runs" / "plain", base, evaluate=None)
    (folder / "ideas.csv").write_text("idea\nx\n")
    run = start(folder / "runs" / "titles", base, prompts={"source": "ideas.csv", "template": TEMPLATE})
    talkative(run.tuned, seed=4)
    shutil.copytree(run.tuned, run.train / "checkpoint-7")
    (run.train / "checkpoint-7" / "complete").touch()
    write_jsonl(run.prompts_jsonl, [prompt("for training", "train"), prompt(MARKUP), prompt("Why?"), Prompt.of(CHAT, "test")])
    return folder / "runs"


@pytest.fixture
def home(root: Path) -> Home:
    return Home(root)


# --- what is asked of whom -----------------------------------------------------------------------------------------


def test_the_models_of_all_runs_are_offered_those_of_the_chosen_one_first(home: Home) -> None:
    own = ["titles: base", "titles: tuned", "titles: checkpoint-7"]
    assert choices(home, "titles") == [*own, "plain: base", *models.BUILTIN]
    assert choices(home, "plain") == ["plain: base", *own, *models.BUILTIN]


def test_a_run_that_cannot_be_read_offers_none(tmp_path: Path, root: Path) -> None:
    shutil.copytree(root / "plain", tmp_path / "runs" / "plain")
    shutil.copytree(root / "plain", tmp_path / "runs" / "broken")
    (tmp_path / "runs" / "broken" / "recipe.json").write_text("{")
    assert choices(Home(tmp_path / "runs"), None) == ["plain: base", *models.BUILTIN]


def test_a_name_leads_to_its_model(home: Home, root: Path) -> None:
    run = Run(root / "titles")
    assert find(home, "titles: base") == run.recipe.model
    assert find(home, "titles: tuned") == Model(name_or_path=str(run.tuned.resolve()))
    assert find(home, "titles: checkpoint-7") == Model(name_or_path=str((run.train / "checkpoint-7").resolve()))
    assert find(home, "org/name") == Model(name_or_path="org/name")
    assert find(home, "openai: gpt-4.1") == Endpoint(provider="openai", model="gpt-4.1")
    with pytest.raises(InputError, match="model titles: checkpoint-8"):
        find(home, "titles: checkpoint-8")


def test_without_a_run_calls_stand_in_an_account_of_the_directory(tmp_path: Path) -> None:
    home = Home(tmp_path / "runs")
    with stub([sent(events(chunk("Hi", "stop")))]) as seen:
        writer = writer_of(home, None, f"{seen.url}: m", [Message(role="user", content="Why?")], LocalSampling(), seed=1)
        assert [answer.text for answer in list(side_by_side([writer], Stop()))[-1]] == ["Hi"]
    assert spent(tmp_path / "runs" / "calls.sqlite")["playground.m"].calls == 1
    assert home.names() == []


def test_where_runs_may_not_be_started_only_models_that_are_there_answer(tmp_path: Path, root: Path) -> None:
    shutil.copytree(root / "titles", tmp_path / "runs" / "titles")
    start(tmp_path / "runs" / "api", "org/x", generate=[{"type": "api", "n": 1, "provider": "openai", "model": "gpt-4.1"}])
    shut = Home(tmp_path / "runs", may_start=False)
    assert isinstance(find(shut, "titles: tuned"), Model)
    assert find(shut, next(iter(models.BUILTIN))) == Model(name_or_path=next(iter(models.BUILTIN)))
    for name in ("org/name", "/etc", "openai: gpt-4.1", "http://127.0.0.1/v1: m", "api: gpt-4.1", "titles: no"):
        with pytest.raises(InputError, match="here no others are loaded or called"):
            find(shut, name)
    assert isinstance(find(Home(tmp_path / "runs"), "api: gpt-4.1"), Endpoint)


def test_numbers_become_settings_and_wrong_ones_a_line() -> None:
    assert settings_of(0.5, 0.9, 40.0, 12.0) == LocalSampling(temperature=0.5, top_p=0.9, top_k=40, max_new_tokens=12)
    assert settings_of(None, None, None, None) == LocalSampling()
    for values, key in (
        ((-1, 1, 0, 1), "temperature"),
        ((1, 0, 0, 1), "top_p"),
        ((1, 1, -2, 1), "top_k"),
        ((1, 1, 0, 0), "max_new"),
    ):
        with pytest.raises(InputError, match=key) as error:
            settings_of(*values)
        assert "\n" not in str(error.value)


def test_a_chat_is_put_together() -> None:
    assert chat_of("Be short.", CHAT[1:3], "And now?") == CHAT
    assert chat_of("  ", (), "Why?") == (Message(role="user", content="Why?"),)
    with pytest.raises(InputError, match="the prompt is empty"):
        chat_of("Be short.", CHAT[1:3], " \n")


@pytest.mark.parametrize(
    ("template", "field"),
    [(None, None), ("{idea}", "idea"), ("{a} {b}", None), ("{{a}} {b}", "b"), ("{{}}", None), ("{a}{a}", "a")],
)
def test_a_template_with_one_field_can_be_filled(template: str | None, field: str | None, root: Path) -> None:
    run = Run(root / "titles")
    run.recipe = run.recipe.model_copy(update={"prompts": run.recipe.prompts.model_copy(update={"template": template})})
    assert field_of(run) == field


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(), "loading the model"),
        (Answer(state="writing"), "reading the prompt"),
        (Answer("x", 3, 1.5, 0.5, "writing"), "3 tokens in 1.5 s, the first after 0.50 s, then 2 tokens/s"),
        (
            Answer("x", 1, 0.5, 0.5, "writing", "stop", cost=0.0012),
            "1 token in 0.5 s, the first after 0.50 s; ended by itself; $0.0012",
        ),
        (Answer("x", 9, 0.0, None, "writing", "length"), "9 tokens in 0.0 s; cut at 9 tokens"),
        (Answer("", 0, 0.0, None, "writing", "stopped"), "stopped"),
        (Answer("x", 0, 0, None, "writing", None, "no such model", ("cut",)), "no such model; cut"),
    ],
)
def test_captions(answer: Answer, said: str) -> None:
    assert caption(answer) == said


# --- votes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("winner", "count", "said"),
    [
        ("A", 2, [(0, 1, "first")]),
        ("B", 2, [(0, 1, "second")]),
        ("tie", 2, [(0, 1, "tie")]),
        ("C", 3, [(0, 2, "second"), (1, 2, "second")]),
        ("B", 3, [(0, 1, "second"), (1, 2, "first")]),
        ("both bad", 3, [(0, 1, "both bad"), (0, 2, "both bad"), (1, 2, "both bad")]),
    ],
)
def test_what_a_vote_tells_apart(winner: str, count: int, said: list[Any]) -> None:
    assert list(verdicts(winner, count)) == said


def voted_on(*texts: str, run: str = "titles", names: tuple[str, ...] = ("titles: tuned", "titles: base", "org/x")) -> Round:
    answers = tuple(Answer(text, len(text), 1.0, 0.1, "writing", "stop") for text in texts)
    return Round(run, prompt("Why?"), names[: len(texts)], answers, LocalSampling(temperature=0.7), 43, blind=True)


@pytest.fixture
def copy(tmp_path: Path, root: Path) -> Home:
    shutil.copytree(root / "titles", tmp_path / "runs" / "titles", ignore=shutil.ignore_patterns("train"))
    return Home(tmp_path / "runs")


def kept(home: Home, judge: str = votes.PLAYGROUND) -> list[Comparison]:
    return list(read_jsonl(home.open("titles").judgments(judge), Comparison))


def test_a_vote_is_a_comparison_of_the_run_with_order_models_and_settings(copy: Home) -> None:
    said = keep(copy, voted_on("because", "why not"), "A", "Ada")
    assert said == "Kept in judgments/playground.jsonl of titles, as Ada said it."
    (record,) = kept(copy)
    of = prompt("Why?").id
    texts = [Completion.of(of, text, sampler="x").id for text in ("because", "why not")]
    assert (record.prompt_id, record.first, record.second, record.winner) == (of, *texts, "first")
    line = json.loads(record.raw)
    assert (line["labeller"], line["first_model"], line["second_model"]) == ("Ada", "titles: tuned", "titles: base")
    assert (line["first_text"], line["second_text"], line["seed"], line["via"]) == ("because", "why not", "43", "playground")
    assert json.loads(line["sampling"])["temperature"] == 0.7


def test_of_three_the_best_wins_against_each(copy: Home) -> None:
    keep(copy, voted_on("x", "y", "z"), "C", "Ada")
    of = prompt("Why?").id
    x, y, z = (Completion.of(of, text, sampler="x").id for text in "xyz")
    assert {(each.first, each.second, each.winner) for each in kept(copy)} == {(x, z, "second"), (y, z, "second")}


def test_a_vote_on_what_the_run_has_goes_to_its_people(copy: Home) -> None:
    run = copy.open("titles")
    of = prompt("Why?")
    write_jsonl(run.completions_jsonl, [Completion.of(of.id, text, sampler="base") for text in ("because", "why not")])
    keep(copy, voted_on("because", "why not"), "tie", "Ada")
    assert [each.winner for each in kept(copy, votes.PEOPLE)] == ["tie"]
    assert kept(copy) == []


def test_equal_answers_are_no_question(copy: Home) -> None:
    assert keep(copy, voted_on("same", "same"), "A", "Ada") == "The answers are the same, so there is nothing to keep."
    keep(copy, voted_on("same", "same", "other"), "A", "Ada")
    assert len(kept(copy)) == 1, "it wins against the third, and not against itself"


def test_a_vote_needs_a_run(copy: Home) -> None:
    with pytest.raises(InputError, match="a vote is kept in a run; choose one"):
        keep(copy, voted_on("x", "y", run=""), "A", "Ada")
    with pytest.raises(InputError, match="no run"):
        keep(copy, voted_on("x", "y", run="../titles"), "A", "Ada")


# --- the page ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(root: Path) -> Iterator[str]:
    with served(root) as url:
        yield f"{url}playground?run=titles"


@pytest.fixture
def page(chromium: Any, address: str) -> Iterator[Any]:
    with tab(chromium) as opened:
        arrive(opened, address)
        yield opened


def arrive(page: Any, address: str) -> None:
    page.goto(address)
    page.wait_for_function("[...document.querySelectorAll('input')].some(each => each.value.startsWith('titles: tuned'))")


def box(page: Any, label: str) -> Any:
    return page.get_by_label(label, exact=True)


def press(page: Any, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def choose(page: Any, slot: str, name: str) -> None:
    model = box(page, f"Model {slot}")
    model.fill(name)
    model.press("Enter")
    model.blur()


def answer(page: Any) -> None:
    """Have the models answer."""
    page.evaluate("document.querySelectorAll('.answer').forEach(each => each.dataset.old = 1)")
    press(page, "Answer")
    page.locator(".answer:not([data-old])").first.wait_for()


def ended(page: Any, count: int = 2) -> list[str]:
    """Wait until the answers have ended, and return what is said of them."""
    page.wait_for_function(
        "count => document.querySelectorAll('.answer[aria-busy=false]:not([data-old])').length >= count && "
        "[...document.querySelectorAll('button')].some(each => each.innerText === 'Stop' && each.disabled)",
        arg=count,
    )
    return [went(page, slot) for slot in "ABC"[:count]]


def answer_of(page: Any, slot: str) -> Any:
    return page.locator("section.answer").nth("ABC".index(slot))


def went(page: Any, slot: str) -> str:
    return str(answer_of(page, slot).locator(".went").text_content())


def text_of(page: Any, slot: str) -> str:
    return plain(answer_of(page, slot).locator(".model").text_content())


def names(page: Any) -> list[str]:
    return [each.inner_text() for each in page.locator(".answer h2").all() if each.is_visible()]


def plain(text: str) -> str:
    """Return a text without what HTML has other signs for."""
    return re.sub(r"[\x00-\x1f\x7f\ufffd]", "", text)


def writes(root: Path, model: str, text: str, seed: int = 42) -> str:
    """Return what a model of the run writes with the run's settings."""
    choice = find(Home(root), model)
    assert isinstance(choice, Model)
    sampling = LocalSampling(temperature=0.7, top_p=0.95, top_k=30, max_new_tokens=20)
    from tiebreak.app.streams import local

    writer = local(asked.SHELF, choice, chat_of("", (), text), sampling, seed)
    *_, (answer,) = side_by_side([writer], Stop())
    return plain(answer.text)


def test_two_models_answer_side_by_side_with_their_speed(page: Any, root: Path) -> None:
    assert [box(page, f"Model {slot}").input_value() for slot in "ABC"] == ["titles: base", "titles: tuned", "none"]
    box(page, "Prompt").fill("Why is it so?")
    answer(page)
    for said in ended(page):
        assert re.match(r"20 tokens in \d+\.\d s, the first after \d+\.\d\d s, then [\d.e+]+ tokens/s; cut at 20 tokens", said)
    texts = [text_of(page, slot) for slot in "AB"]
    assert texts == [writes(root, f"titles: {name}", "Why is it so?") for name in ("base", "tuned")]
    assert texts[0] != texts[1]
    assert names(page) == ["A: titles: base", "B: titles: tuned"]
    answer(page)
    ended(page)
    page.get_by_text("System message and sampling").click()
    assert [box(page, name).input_value() for name in SETTINGS] == ["0.7", "0.95", "30", "20", "43"]
    assert text_of(page, "A") == writes(root, "titles: base", "Why is it so?", 43)


def test_an_example_a_chat_and_going_on_with_an_answer(page: Any, root: Path) -> None:
    box(page, "Example, from the run's test prompts").click()
    options = page.get_by_role("option").all_inner_texts()
    assert [re.sub(r"^✓\s*", "", each).strip() for each in options] == [" ".join(MARKUP.split()), "Why?", "And now?"]
    page.get_by_role("option", name="And now?").click()
    page.wait_for_function("[...document.querySelectorAll('textarea')].some(each => each.value === 'And now?')")
    turns = page.get_by_label("Earlier turns", exact=True)
    assert turns.inner_text().split("\n\n") == ["user", "Who are you?", "assistant", "Nobody."]
    with stub([sent(events(chunk("Me & you", "stop")))]) as seen:
        choose(page, "A", f"{seen.url}: m")
        answer(page)
        ended(page)
    assert [(turn["role"], turn["content"]) for turn in seen.requests[0]["messages"]] == [(t.role, t.content) for t in CHAT]
    text = text_of(page, "B")
    press(page, "Go on with B")
    turns.get_by_text("And now?").wait_for()
    assert box(page, "Prompt").input_value() == ""
    assert [plain(each) for each in turns.locator(".model").all_text_contents()] == ["Who are you?", "Nobody.", "And now?", text]
    assert turns.locator(".role").all_text_contents() == ["user", "assistant"] * 2
    press(page, "Begin a new chat")
    turns.wait_for(state="hidden")


@pytest.mark.parametrize("turned", [False, True])
def test_blind_hides_who_writes_and_a_vote_is_kept_with_the_order(
    page: Any, root: Path, turned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random.SystemRandom, "shuffle", lambda self, names: names.reverse() if turned else None)
    before = len(kept(Home(root)))
    text = f"Blind, and turned: {turned}"
    box(page, "Prompt").fill(text)
    page.get_by_label("Blind: hide who writes, and vote").check()
    answer(page)
    assert names(page) == ["A", "B"]
    page.get_by_role("button", name="A is better").wait_for()
    assert page.get_by_role("button", name="C is better").count() == 0
    assert ended(page) == ["who wrote it, and how fast, is told after the vote"] * 2
    assert names(page) == ["A", "B"]
    shown = [text_of(page, slot) for slot in "AB"]
    order = ["tuned", "base"] if turned else ["base", "tuned"]
    assert shown == [writes(root, f"titles: {name}", text) for name in order]
    press(page, "A is better")
    page.get_by_text("your name: give one of").wait_for()  # and nothing is lost
    box(page, "Your name, kept with your votes").fill("Ada")
    page.get_by_test_id("toast-close").click()
    press(page, "A is better")
    page.get_by_role("button", name="A is better").wait_for(state="hidden")
    page.get_by_text("judgments/playground.jsonl of titles, as Ada said it.").wait_for()
    assert names(page) == [f"{slot}: titles: {name}" for slot, name in zip("AB", order, strict=True)]
    *_, record = kept(Home(root))
    assert len(kept(Home(root))) == before + 1
    line = json.loads(record.raw)
    assert record.winner == "first"
    assert [plain(line["first_text"]), plain(line["second_text"])] == shown
    assert [line["first_model"], line["second_model"]] == [f"titles: {name}" for name in order]
    page.reload()
    page.get_by_label("Blind: hide who writes, and vote").wait_for()
    page.wait_for_function("localStorage.getItem('tiebreak-name') === 'Ada'")


def test_three_models_and_names_without_a_vote(page: Any, root: Path) -> None:
    choose(page, "C", "titles: checkpoint-7")
    before = len(kept(Home(root)))
    box(page, "Prompt").fill("Three of them")
    page.get_by_label("Blind: hide who writes, and vote").check()
    answer(page)
    page.get_by_role("button", name="C is best").wait_for()
    press(page, "Show the names without a vote")
    page.get_by_role("button", name="C is best").wait_for(state="hidden")
    assert sorted(name[3:] for name in names(page)) == ["titles: base", "titles: checkpoint-7", "titles: tuned"]
    assert all("token" in said for said in ended(page, 3))
    assert len(kept(Home(root))) == before


def test_stop_ends_both_and_the_page_goes_on(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put = streams._Pen.put
    monkeypatch.setattr(streams._Pen, "put", lambda self, value: (time.sleep(0.01), put(self, value)))  # or it would be done
    page.get_by_text("System message and sampling").click()
    box(page, "Most tokens").fill("1500")
    box(page, "Prompt").fill("A long one")
    answer(page)
    for slot in "AB":
        answer_of(page, slot).get_by_text("tokens in").wait_for()
    press(page, "Stop")
    assert all("; stopped" in said for said in ended(page))
    assert all(text_of(page, slot) for slot in "AB")
    box(page, "Most tokens").fill("5")
    answer(page)
    assert all("cut at 5" in said for said in ended(page))


def test_a_missing_model_is_a_message_beside_the_other_answer(page: Any, root: Path) -> None:
    choose(page, "B", "./absent <b>x</b>")
    box(page, "Prompt").fill("Why is it so?")
    answer(page)
    said = ended(page)
    assert said[1] == "model ./absent <b>x</b>: no such folder"
    assert text_of(page, "A") == writes(root, "titles: base", "Why is it so?")


def test_an_encoder_decoder_from_a_folder(page: Any, tiny_t5: Path) -> None:
    choose(page, "A", str(tiny_t5))
    choose(page, "B", "none")
    box(page, "Prompt").fill("Why is it so?")
    page.evaluate("document.querySelectorAll('.answer').forEach(each => each.dataset.old = 1)")
    box(page, "Prompt").press("Shift+Enter")
    (said,) = ended(page, 1)
    assert "token" in said
    assert names(page) == [f"A: {tiny_t5}"]


def test_a_model_behind_a_server_and_what_it_says_is_text(page: Any, home: Home) -> None:
    with stub([sent(events(chunk(MARKUP, "stop"), chunk(usage={"prompt_tokens": 7, "completion_tokens": 3})))]) as seen:
        page.get_by_text("Other models").click()
        box(page, "Provider").click()
        page.get_by_role("option", name="custom").click()
        box(page, "Model's name there").fill(MARKUP)
        box(page, "Address, for custom").fill(seen.url)
        press(page, "Put in")
        put_in = f"[...document.querySelectorAll('input')].some(each => each.value.startsWith('{seen.url}: '))"
        page.wait_for_function(put_in)
        box(page, "Prompt").fill(MARKUP)
        answer(page)
        assert "ended by itself" in ended(page)[1]
    assert text_of(page, "B") == MARKUP
    assert seen.requests[0]["model"] == MARKUP
    assert seen.requests[0]["messages"] == [{"role": "user", "content": MARKUP}]
    assert names(page)[1] == f"B: {seen.url}: {MARKUP}"
    used = spent(home.calls("titles"))[f"playground.{MARKUP}"]
    assert (used.calls, used.prompt_tokens, used.tokens) == (1, 7, 3)
    assert page.locator("img[src=x]").count() == 0
    assert not scripts_ran(page)


def test_the_template_is_offered_and_not_put_around_by_itself(page: Any) -> None:
    with stub([reply("ok")]) as seen:
        choose(page, "A", f"{seen.url}: m")
        choose(page, "B", "none")
        box(page, "Prompt").fill("bread {idea}")
        answer(page)
        ended(page, 1)
        page.get_by_label("Put the prompt into the run's template").check()
        page.get_by_text("Write a title, {{quickly}}.").wait_for()
        answer(page)
        ended(page, 1)
    contents = [asked["messages"][-1]["content"] for asked in seen.requests]
    assert contents == ["bread {idea}", TEMPLATE.replace("{{", "{").replace("}}", "}").replace("{idea}", "bread {idea}", 1)]


def test_mistakes_are_told_and_the_page_goes_on(page: Any) -> None:
    press(page, "Answer")
    page.get_by_text("the prompt is empty; write one, or choose an example").wait_for()
    box(page, "Prompt").fill("x")
    choose(page, "B", "none")
    page.get_by_label("Blind: hide who writes, and vote").check()
    press(page, "Answer")
    page.get_by_text("blind: choose two models or three").wait_for()
    page.get_by_label("Blind: hide who writes, and vote").uncheck()
    answer(page)
    ended(page, 1)


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 400)])
def test_it_can_be_seen_and_used_by_everybody(chromium: Any, address: str, scheme: str, width: int) -> None:
    with tab(chromium, scheme=scheme, width=width) as page:
        arrive(page, address)
        for title in ("Other models", "System message and sampling"):
            page.get_by_text(title).click()
        box(page, "Prompt").fill("Why?")
        page.get_by_label("Blind: hide who writes, and vote").check()
        answer(page)
        page.get_by_role("button", name="A is better").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.wait_for_function("document.getAnimations().every(each => each.playState !== 'running')")
        assert accessibility(page) == []
        assert not scripts_ran(page)


def test_a_keyboard_is_enough(page: Any) -> None:
    box(page, "Prompt").focus()
    page.keyboard.type("Why?")
    seen = []
    for _ in range(12):
        page.keyboard.press("Tab")
        seen.append(
            page.evaluate("document.activeElement.innerText || document.activeElement.ariaLabel || document.activeElement.type")
        )
        if seen[-1].strip() == "Answer":
            break
    assert seen[-1].strip() == "Answer", seen
    page.evaluate("document.querySelectorAll('.answer').forEach(each => each.dataset.old = 1)")
    page.keyboard.press("Enter")
    ended(page)


def test_where_runs_may_not_be_started_models_are_chosen_and_not_typed(chromium: Any, root: Path) -> None:
    with served(root, start=False) as url, tab(chromium) as page:
        arrive(page, f"{url}playground?run=titles")
        assert page.get_by_text("Other models").count() == 0
        choose(page, "B", "/etc")
        box(page, "Prompt").fill("Why?")
        answer(page)
        assert "here no others are loaded or called" in ended(page)[1]


def test_without_runs_there_is_the_builtin_model(chromium: Any, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with served(tmp_path / "runs") as url, tab(chromium) as page:
        page.goto(f"{url}playground")
        page.wait_for_function("[...document.querySelectorAll('input')].some(each => each.value.startsWith('builtin:'))")
        press(page, "Answer")
        page.get_by_text("the prompt is empty").wait_for()


def test_a_notebook_shows_the_pages_below_the_cell_and_goes_on(root: Path, tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    cells = [
        f"import tiebreak; run = tiebreak.Run(tiebreak.run.Path({str(root / 'titles')!r})); tiebreak.app(run)",
        "print('goes on')",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(book, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown, after = (cell["outputs"] for cell in book["cells"])
    pages = "".join(each["data"].get("text/html", "") for each in shown if "data" in each)
    assert re.search(r'<iframe src="http://127\.0\.0\.1:\d+/"', pages)
    assert "shows the run" in "".join(each.get("text", "") for each in shown)
    assert after[0]["text"] == "goes on\n"
