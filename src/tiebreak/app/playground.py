"""Playground: up to three models answer one prompt side by side, in the open or blind, and people say which did better."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Any

import gradio as gr

from tiebreak.app import look, votes
from tiebreak.app.answers import Answer, Stop, side_by_side
from tiebreak.app.asked import (
    SAMPLING,
    SLOTS,
    Round,
    caption,
    chat_of,
    choices,
    field_of,
    keep,
    settings_of,
    writer_of,
)
from tiebreak.app.home import Home
from tiebreak.app.label import REMEMBER, REMEMBERED
from tiebreak.app.shelf import models_of, named
from tiebreak.models import BUILTIN
from tiebreak.recipe import LocalSampling, Model
from tiebreak.records import InputError, Message, Prompt
from tiebreak.run import Run
from tiebreak.samplers.api import PRESETS
from tiebreak.stages.prepare import fill

NONE = "none"
EXAMPLES = 100
"""Test prompts that are offered."""
LEAD = (
    "Models answer one prompt side by side. Those in this process take turns, token by token, so that the seconds of each "
    "are its own."
)
STOPS: dict[str, Stop] = {}
"""What ends the answers that are being written, by the session of the browser."""

Updates = dict[Any, Any]

CSS = """
.says textarea { font: 1.0625rem/1.5 Charter, "Bitstream Charter", "Iowan Old Style", "Source Serif 4", Georgia, serif; }
.answer { border: 1px solid var(--rule); border-radius: .25rem; padding: .75rem 1rem 1rem; min-height: 9rem; }
.answer h2, .turns .role { font-size: .875rem; font-weight: 400; color: var(--quiet); margin: 0 0 .25rem; }
.answer h2 { overflow-wrap: anywhere; }
.answer .went { font-size: .875rem; color: var(--quiet); margin: .75rem 0 0; font-variant-numeric: tabular-nums; }
.answer .went, .turns { overflow-wrap: anywhere; }
.turns .role:not(:first-child) { margin-top: .75rem; }
.turns { border-left: 3px solid var(--rule); padding-left: 1rem; max-height: 24rem; overflow-y: auto; }
"""


def page(home: Home) -> None:
    """Build the page."""
    look.heading("Playground", LEAD)
    _Page(home)


class _Page:
    """The page's components, and what happens when they are used."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.run = look.choose_run(home, "Run, for its models, examples and votes")
        with gr.Row():
            self.models = [
                gr.Dropdown([NONE], value=NONE, label=f"Model {slot}", allow_custom_value=True, min_width=220) for slot in SLOTS
            ]
        self._server()
        self._settings()
        self._prompt()
        self._answers()
        self._wire()

    def _server(self) -> None:
        with gr.Accordion("Other models", open=False, visible=self.home.may_start):
            gr.HTML(
                '<p class="note">Write a Hub id or a folder straight into the field of a model. A model behind a server is put '
                "together here; its key is read from the environment, and none is sent to an address of your own.</p>"
            )
            with gr.Row():
                self.provider = gr.Dropdown([*PRESETS], value="openai", label="Provider")
                self.served = gr.Textbox(label="Model's name there", max_lines=1)
                self.address = gr.Textbox(label="Address, for custom", placeholder="http://127.0.0.1:8000/v1", max_lines=1)
                self.slot = gr.Radio([*SLOTS], value="B", label="Put in")
            self.put = gr.Button("Put in", size="sm")

    def _settings(self) -> None:
        with gr.Accordion("System message and sampling", open=False):
            self.system = gr.Textbox(label="System message", lines=1, max_lines=6)
            with gr.Row():
                self.sampling = [
                    gr.Number(label=label, value=value, minimum=0, step=step, precision=precision, min_width=110)
                    for label, value, step, precision in (
                        ("Temperature", 1.0, 0.1, None),
                        ("top_p", 1.0, 0.05, None),
                        ("top_k", 0, 1, 0),
                        ("Most tokens", 256, 1, 0),
                    )
                ]
                self.seed = gr.Number(label="Seed", value=42, minimum=0, step=1, precision=0, min_width=110)
            gr.HTML('<p class="note">Temperature 0 takes the likeliest token; top_p 1 and top_k 0 leave none out.</p>')
            self.anew = gr.Checkbox(label="Another seed for the next answers", value=True)

    def _prompt(self) -> None:
        self.turns = gr.State([])
        with gr.Column(visible=False) as self.chat:
            self.earlier = gr.HTML()
            self.over = gr.Button("Begin a new chat", size="sm")
        self.example = gr.Dropdown([], label="Example, from the run's test prompts", visible=False)
        self.prompt = gr.Textbox(label="Prompt", lines=3, max_lines=12, elem_classes="says")
        self.template = gr.Checkbox(label="Put the prompt into the run's template", visible=False)
        self.template_text = gr.HTML(visible=False)
        self.blind = gr.Checkbox(label="Blind: hide who writes, and vote")
        with gr.Row():
            self.go = gr.Button("Answer", variant="primary")
            self.halt = gr.Button("Stop", variant="stop", interactive=False)

    def _answers(self) -> None:
        self.asked = gr.State(None)
        self.columns, self.cards, self.on = [], [], []
        with gr.Row():
            for at, slot in enumerate(SLOTS):
                with gr.Column(visible=at < 2, min_width=280) as column:
                    self.cards.append(gr.HTML(card(slot, "", "")))
                    self.on.append(gr.Button(f"Go on with {slot}", size="sm", visible=False))
                self.columns.append(column)
        with gr.Column(visible=False) as self.voting:
            self.labeller = gr.Textbox(label="Your name, kept with your votes", max_lines=1, max_length=votes.LONGEST_NAME)
            with gr.Row():
                self.best = [gr.Button(f"{slot} is better", min_width=120) for slot in SLOTS]
                self.tie, self.bad = gr.Button("Tie", min_width=120), gr.Button("Both bad", min_width=120)
            self.tell = gr.Button("Show the names without a vote", size="sm")
        self.kept = gr.HTML(visible=False)

    def _wire(self) -> None:
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        self.run.change(
            look.told(self.enter),
            self.run,
            [
                *self.models, self.example, self.template, self.template_text, self.system, *self.sampling, self.seed,
                self.prompt, *self._chat,
            ],
            **quiet,
        )  # fmt: skip
        gr.on(None, self.enter_without_runs, [], self.models, **quiet)
        self.put.click(look.told(self.put_in), [self.provider, self.served, self.address, self.slot], self.models, **quiet)
        self.example.input(
            look.told(self.take_example),
            [self.run, self.example],
            [self.system, self.prompt, self.template, *self._chat],
            **quiet,
        )
        self.template.change(lambda used: gr.update(visible=used), self.template, self.template_text, **quiet)
        shown = [*self.columns, *self.cards, *self.on, *self.best, self.bad]
        shown += [self.go, self.halt, self.voting, self.kept, self.asked, self.seed]
        gr.on(
            [self.go.click, self.prompt.submit],
            look.told(self.answer),
            [
                self.run, *self.models, self.system, self.turns, self.prompt, self.template, *self.sampling, self.seed,
                self.anew, self.blind, self.asked,
            ],
            shown,
            concurrency_limit=4,
            **quiet,
        )  # fmt: skip
        gr.on(None, None, inputs=[], outputs=self.labeller, js=REMEMBERED)
        self.halt.click(self.stop, [], [], queue=False, **quiet)
        for slot, button in (*zip(SLOTS, self.best, strict=True), ("tie", self.tie), ("both bad", self.bad)):
            button.click(look.told(self.voter(slot)), [self.asked, self.labeller], shown, js=REMEMBER, **quiet)
        self.tell.click(lambda asked: self.reveal(asked, ""), self.asked, shown, **quiet)
        for at, button in enumerate(self.on):
            button.click(self.goer(at), [self.asked], [self.prompt, self.template, *self._chat], **quiet)
        self.over.click(lambda: self.chat_with([]), [], self._chat, **quiet)

    # --- before the answers ----------------------------------------------------------------------------------------

    def enter(self, name: str | None) -> Updates:
        """Show what a run offers."""
        if not name:
            return {self.example: gr.update(visible=False)}
        run, names = self.home.open(name), choices(self.home, name)
        own = [f"{name}: {model}" for model, choice in models_of(run).items() if isinstance(choice, Model)]
        tuned = f"{name}: tuned" if f"{name}: tuned" in own else own[-1]
        chosen = [own[0], tuned if tuned != own[0] else NONE, NONE]
        sampling = run.recipe.evaluate or LocalSampling()
        prompts = self.examples(run)
        examples = list(zip(_told_apart([prompt.text for prompt in prompts]), [prompt.id for prompt in prompts], strict=True))
        field = field_of(run)
        return {
            **{slot: gr.update(choices=[NONE, *names], value=value) for slot, value in zip(self.models, chosen, strict=True)},
            self.example: gr.update(choices=examples, value=None, visible=bool(examples)),
            self.template: gr.update(value=False, visible=field is not None),
            self.template_text: gr.update(value=look.said(run.recipe.prompts.template or ""), visible=False),
            self.system: run.recipe.prompts.system or "",
            **{box: getattr(sampling, key) for box, key in zip(self.sampling, SAMPLING, strict=True)},
            self.seed: run.recipe.seed,
            self.prompt: "",
            **self.chat_with([]),
        }

    def enter_without_runs(self) -> list[Any]:
        """Offer what there is where no run is."""
        if self.home.names():
            return [gr.skip()] * len(self.models)
        return [gr.update(choices=[NONE, *BUILTIN], value=value) for value in (next(iter(BUILTIN)), NONE, NONE)]

    def examples(self, run: Run) -> list[Prompt]:
        """Return the test prompts that end with a user's turn, which the field of the prompt can hold."""
        prompts = run.prompts() if run.prompts_jsonl.exists() else []
        return [each for each in prompts if each.split == "test" and each.messages[-1].role == "user"][:EXAMPLES]

    def put_in(self, provider: str, model: str, address: str, slot: str) -> list[Any]:
        """Put a model behind a server into a slot."""
        if not model.strip():
            raise InputError("the model's name there is empty; write the one that the provider gives it")
        name = f"{address.strip() if provider == 'custom' else provider}: {model.strip()}"
        named(name)
        return [name if each == slot else gr.skip() for each in SLOTS]

    def take_example(self, name: str, prompt_id: str) -> Updates:
        """Put an example into the fields."""
        prompt = next((each for each in self.examples(self.home.open(name)) if each.id == prompt_id), None)
        if prompt is None:
            return {self.prompt: gr.skip()}
        system = prompt.messages[0].content if prompt.messages[0].role == "system" else ""
        earlier = list(prompt.messages[1 if system else 0 : -1])
        return {
            self.system: system, self.prompt: prompt.messages[-1].content, self.template: False, **self.chat_with(earlier),
        }  # fmt: skip

    @property
    def _chat(self) -> list[Any]:
        return [self.turns, self.earlier, self.chat]

    def chat_with(self, earlier: list[Message]) -> Updates:
        """Show a chat's earlier turns."""
        turns = "".join(f'<p class="role">{turn.role}</p>{look.said(turn.content)}' for turn in earlier)
        shown = f'<section class="turns" aria-label="Earlier turns" tabindex="0">{turns}</section>'
        return {self.turns: earlier, self.earlier: shown, self.chat: gr.update(visible=bool(earlier))}

    # --- the answers -----------------------------------------------------------------------------------------------

    def answer(self, request: gr.Request, name: str | None, *given: Any) -> Iterator[Updates]:
        """Have the models answer, and show what they write while they do."""
        slots, (system, earlier, text, templated), rest = given[:3], given[3:7], given[7:]
        *numbers, seed, anew, blind, before = rest
        names = [slot.strip() for slot in slots if slot and slot.strip() not in ("", NONE)]
        if len(names) < (2 if blind else 1):
            raise InputError("blind: choose two models or three" if blind else "choose a model")
        if templated and name and text.strip():
            run = self.home.open(name)
            text = fill(run.recipe.prompts.template or "", {field_of(run) or "": text})
        prompt, sampling, seed = Prompt.of(chat_of(system, earlier, text), "test"), settings_of(*numbers), int(seed or 0)
        if anew and before is not None and before.seed == seed:
            seed += 1
        if blind:
            random.SystemRandom().shuffle(names)
        STOPS[str(request.session_hash)] = stop = Stop()
        answers: list[Answer] = []
        try:
            yield {**self.begin(names, blind=blind), self.seed: seed}
            writers = [writer_of(self.home, name, each, prompt.messages, sampling, seed=seed) for each in names]
            for answers in side_by_side(writers, stop):
                yield self.show(names, answers, blind=blind)
        finally:  # whoever asked may be gone
            stop.set()
            STOPS.pop(str(request.session_hash), None)
        asked = Round(name or "", prompt, tuple(names), tuple(answers), sampling, seed, bool(blind))
        yield self.end(asked)

    def begin(self, names: list[str], *, blind: bool) -> Updates:
        """Make room for answers."""
        used = len(names)
        updates: Updates = {self.go: gr.update(interactive=False), self.halt: gr.update(interactive=True)}
        updates |= {self.voting: gr.update(visible=False), self.kept: gr.update(visible=False), self.asked: None}
        for at, column in enumerate(self.columns):
            label = SLOTS[at] if blind or at >= used else f"{SLOTS[at]}: {names[at]}"
            updates |= {column: gr.update(visible=at < used), self.cards[at]: card(label, "", "", busy=at < used)}
            updates |= {self.on[at]: gr.update(visible=False)}
        return updates

    def show(self, names: list[str], answers: list[Answer], *, blind: bool) -> Updates:
        """Show answers as far as they are written; blind, not how fast each one comes, which would tell models apart."""
        if blind:
            done = f"{sum(answer.tokens for answer in answers)} tokens so far; answers are shown when all have ended"
            return {self.cards[at]: card(SLOTS[at], "", done, busy=True) for at in range(len(answers))}
        return {
            box: card(f"{slot}: {name}", each.text, caption(each), busy=not each.ended)
            for box, slot, name, each in zip(self.cards, SLOTS, names, answers, strict=False)
        }

    def end(self, asked: Round) -> Updates:
        """Show whole answers; blind, without names until there is a vote."""
        updates: Updates = {self.go: gr.update(interactive=True), self.halt: gr.update(interactive=False)}
        if not (asked.blind and asked.sound):
            why = "Not all answers came to their end, so there is nothing to vote on." if asked.blind else ""
            return updates | self.reveal(asked, why)
        better = "better" if len(asked.names) == 2 else "best"
        for at, answer in enumerate(asked.answers):
            updates[self.cards[at]] = card(SLOTS[at], answer.text, "who wrote it, and how fast, is told after the vote")
        for at, button in enumerate(self.best):
            updates[button] = gr.update(value=f"{SLOTS[at]} is {better}", visible=at < len(asked.names))
        updates[self.bad] = "Both bad" if len(asked.names) == 2 else "All bad"
        return updates | {self.voting: gr.update(visible=True), self.asked: asked}

    def reveal(self, asked: Round, said: str) -> Updates:
        """Show who wrote what."""
        updates: Updates = {self.asked: asked, self.voting: gr.update(visible=False)}
        updates[self.kept] = gr.update(value=f'<p role="status" class="said">{look.as_text(said)}</p>', visible=bool(said))
        updates |= self.show(list(asked.names), list(asked.answers), blind=False)
        for button, answer in zip(self.on, asked.answers, strict=False):
            updates[button] = gr.update(visible=answer.problem is None and bool(answer.text))
        return updates

    def stop(self, request: gr.Request) -> None:
        """End what this browser has asked for."""
        if (stop := STOPS.get(str(request.session_hash))) is not None:
            stop.set()

    def voter(self, winner: str) -> Any:
        """Return what keeps a vote and shows the names."""

        def vote(asked: Round, labeller: str) -> Updates:
            return self.reveal(asked, keep(self.home, asked, winner, votes.named(labeller)))

        return vote

    def goer(self, at: int) -> Any:
        """Return what makes an answer a part of the chat."""

        def go_on(asked: Round) -> Updates:
            turns = [turn for turn in asked.prompt.messages if turn.role != "system"]
            answer = Message(role="assistant", content=asked.answers[at].text)
            return {self.prompt: "", self.template: False, **self.chat_with([*turns, answer])}

        return go_on


def card(name: str, text: str, went: str, *, busy: bool = False) -> str:
    """Show an answer, and how it went."""
    head, written = look.as_text(name), look.said(text) if text else ""
    return (
        f'<section class="answer" aria-label="{head}" aria-busy="{str(busy).lower()}"><h2>{head}</h2>{written}'
        f'<p class="went">{look.as_text(went)}</p></section>'
    )


def _told_apart(texts: list[str]) -> list[str]:
    """Return short names for prompts, without what a template puts before each."""
    lines = [" ".join(text.split()) for text in texts]
    same = os.path.commonprefix(lines) if len(lines) > 1 else ""  # noqa: RUF071  letters are what is meant
    at = same.rfind(" ") + 1 if len(same) > 20 else 0
    return [f"{'…' * bool(at)}{line[at:][:100]}{'…' * (len(line) > at + 100)}" for line in lines]
