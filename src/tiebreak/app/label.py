"""Label: people judge two completions at a time without knowing who wrote them, and then see how far judges agree."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import gradio as gr

from tiebreak.app import look, queue, votes
from tiebreak.app.home import Home
from tiebreak.app.queue import Order, Sitting, Standing
from tiebreak.app.votes import About
from tiebreak.metrics.winrate import Estimate
from tiebreak.records import Completion, InputError, Prompt
from tiebreak.run import Run

ABOUT: list[tuple[str, About]] = [("Answers to train on", "training"), ("Models on held-out prompts", "models")]
ORDERS: list[tuple[str, Order]] = [
    ("What judges dispute first", "disputed"),
    ("At random", "random"),
    ("Second opinion on what others said", "second opinion"),
]
KEYS: dict[str, tuple[str, str, str]] = {
    "first": ("ArrowLeft", "←", "First is better"),
    "tie": ("ArrowDown", "↓", "Tie"),
    "both bad": ("ArrowUp", "↑", "Both bad"),
    "second": ("ArrowRight", "→", "Second is better"),
    "undo": ("u", "U", "Undo"),
    "skip": ("s", "S", "Skip"),
}
"""Key, its sign, and what it says."""
BREAK = 120.0
"""Seconds between two verdicts from which on somebody was away."""


# --- what is shown -------------------------------------------------------------------------------------------------


def board(run: Run, sitting: Sitting) -> str:
    """Return the question and the keys; and, after a verdict, what judges said of it and how far they agree."""
    there, standing = sitting.desk, queue.standing(run, sitting.about)
    parts = [_progress(sitting, standing, len(queue.left(run, sitting)))]
    if sitting.shown is None:
        parts.append(f'<p class="end">{_nothing_left(sitting)}</p>')
    else:
        prompt, *both = there.twos[sitting.shown.both]
        texts = {each.id: each for each in both}
        parts.append(f'<section aria-label="Prompt" class="asked"><h2>Prompt</h2>{chat(prompt)}</section>')
        cards = (("First", texts[sitting.shown.first]), ("Second", texts[sitting.shown.second]))
        parts.append(f'<div class="two" aria-live="polite">{"".join(_card(name, each) for name, each in cards)}</div>')
    parts.append(_keys(sitting))
    if sitting.trail and sitting.trail[-1][1] != "skip":
        parts.append(_last(sitting, standing))
        parts.append(_agreement(sitting, standing))
        parts.append(f'<p class="note">{look.as_text(votes.reach(run, sitting.about))}</p>')
    return (
        f'<div class="desk" data-question="{look.as_text(sitting.question)}" data-sitting="{sitting.began}" tabindex="-1" '
        f'role="group" aria-label="Label">{"".join(parts)}</div>'
    )


def chat(prompt: Prompt) -> str:
    """Show a prompt's turns; who speaks only where there are several."""
    if len(prompt.messages) == 1:
        return look.said(prompt.messages[0].content)
    return "".join(f'<p class="role">{turn.role}</p>{look.said(turn.content)}' for turn in prompt.messages)


def _card(name: str, completion: Completion) -> str:
    return f'<section aria-label="{name}"><h2>{name}</h2>{look.said(completion.text)}</section>'


def _keys(sitting: Sitting) -> str:
    def button(word: str) -> str:
        key, sign, label = KEYS[word]
        dead = not sitting.trail if word == "undo" else sitting.shown is None
        return (
            f'<button type="button" data-say="{word}" aria-keyshortcuts="{key}"{" disabled" if dead else ""}>'
            f'<kbd aria-hidden="true">{sign}</kbd> {label}</button>'
        )

    return f'<div class="keys" role="group" aria-label="Your verdict">{"".join(map(button, KEYS))}</div>'


def _progress(sitting: Sitting, standing: Standing, left: int) -> str:
    there = sitting.desk
    mine = sum(any(vote.labeller == sitting.labeller for vote in standing.get(both, ())) for both in there.twos)
    judged = sum(1 for both in standing if both in there.twos and standing[both])
    words = [f"{mine:,} judged by you", f"{judged:,} of {len(there.twos):,} judged by anybody", f"{left:,} waiting here"]
    if pace := _pace(sitting.times):
        words.append(f"{pace:.0f} s each, about {_minutes(pace * left)} for the rest")
    bar = f'<progress max="{max(1, len(there.twos))}" value="{judged}" aria-label="Judged by anybody"></progress>'
    return f'<div class="progress">{bar}<p role="status">{" · ".join(words)}</p></div>'


def _pace(times: Sequence[float]) -> float | None:
    """Return the seconds that a verdict took lately; a break is none."""
    gaps = [gap for before, after in pairwise(times) if (gap := after - before) < BREAK]
    return statistics.median(gaps[-20:]) if len(gaps) > 2 else None


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _nothing_left(sitting: Sitting) -> str:
    if not sitting.desk.twos and sitting.about == "models":
        return "The models of this run have not answered held-out prompts yet; its stage evaluate has them do it."
    if not sitting.desk.twos:
        return "This run has no two completions of a prompt yet; its stage generate draws them."
    if sitting.skipped:
        return f"Nothing is left but what you skipped ({len(sitting.skipped)}). Start again to go through it."
    if sitting.order == "second opinion":
        return "Nobody waits for your opinion: others agree with each other and with the judges, or you have said yours."
    return "All is judged. A second opinion may be waiting: choose it above, and start again."


def _last(sitting: Sitting, standing: Standing) -> str:
    """Say what everybody said of what was judged last, in the order in which it was seen, and who wrote it."""
    shown, word = sitting.trail[-1]
    lines = [("You", KEYS[word][2].lower(), "")]
    for vote in standing.get(shown.both, ()):
        if vote.labeller != sitting.labeller:
            lines.append((f"{vote.labeller} (person)", WORDS[votes.turned(vote, shown.first).winner], vote.reason))
    for name, judge in sitting.desk.judges.items():
        outcome = judge.outcome(shown.first, shown.second)
        if outcome.kind != "unreadable":
            said = "contradicts itself" if outcome.kind == "inconsistent" else WORDS[outcome.vote(shown.first)]
            lines.append((name, said, outcome.reason))
    rows = "".join(
        f'<tr><th scope="row">{look.as_text(name)}</th><td>{said}</td><td>{look.said(why, "said") if why else ""}</td></tr>'
        for name, said, why in lines
    )
    wrote = {text.id: text.sampler for text in sitting.desk.twos[shown.both][1:]}
    rows += "".join(
        f'<tr><th scope="row">{place}</th><td colspan="2">was written by {look.as_text(wrote[id])}</td></tr>'
        for place, id in (("First", shown.first), ("Second", shown.second))
    )
    return _sheet("What you judged last", f"<table>{rows}</table>")


def _sheet(title: str, inside: str) -> str:
    return f'<section class="wide" tabindex="0" aria-label="{title}"><h2>{title}</h2>{inside}</section>'


WORDS = {"first": "first is better", "second": "second is better", "tie": "tie"}


def _agreement(sitting: Sitting, standing: Standing) -> str:
    found = queue.agreements(sitting.desk, standing, sitting.labeller)
    if not found:
        return '<p class="note">No judge has a verdict on what you judged, so there is no agreement to show.</p>'
    rows = "".join(
        f'<tr><th scope="row">{look.as_text(name)}</th><td class="number">{_between(each.kappa)}</td>'
        f'<td class="number">{_between(each.share)}</td>'
        f"<td>{each.share.n:,} <span>of {each.share.prompts:,} prompts</span></td></tr>"
        for name, each in found.items()
    )
    heads = "".join(f'<th scope="col"{" class=number" * (at in (1, 2))}>{head}</th>' for at, head in enumerate(HEADS))
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    return _sheet("Agreement with you", f'{table}<p class="note">{NOTE}</p>')


HEADS = ("", "Cohen’s κ", "same verdict", "n")
NOTE = (
    "With 95 % intervals, clustered by prompt; a contradiction counts as a tie. On what judges dispute, agreement is lower "
    "than on twos at random."
)


def _between(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    return f"{estimate.value:.2f} <span>{estimate.low:.2f} to {estimate.high:.2f}</span>".replace("-", "−")


# --- the page ------------------------------------------------------------------------------------------------------

REMEMBERED = "() => localStorage.getItem('tiebreak-name') || ''"
REMEMBER = "(...given) => { if (given[1]) localStorage.setItem('tiebreak-name', given[1]); return given; }"
"""The name is the second of what an event is given."""


def page(home: Home) -> None:
    """Build the page."""
    look.heading("Label", "Say which of two answers is better, without knowing who wrote them. Every verdict is kept at once.")
    sitting = gr.State(None)
    with gr.Row(elem_classes="who"):
        run = look.choose_run(home)
        who = gr.Textbox(label="Your name", max_lines=1, max_length=votes.LONGEST_NAME)
    with gr.Row():
        about = gr.Radio(ABOUT, value="training", label="What to judge", min_width=280)
        order = gr.Radio(ORDERS, value="disputed", label="What to go through", min_width=280)
    with gr.Row():
        start = gr.Button("Start", variant="primary", scale=0, min_width=160)
    shown = gr.HTML(js_on_load=SCRIPT, apply_default_css=False)

    @look.told
    def sit(name: str, labeller: str, about: About, order: Order) -> tuple[Sitting, str]:
        opened = home.open(name)
        begun = queue.begin(opened, name, labeller, order, about)
        return begun, board(opened, begun)

    @look.told
    def say(event: gr.EventData, sitting: Sitting | None) -> tuple[Sitting, str]:
        if sitting is None:
            raise InputError("the pages were started anew; press Start")
        opened = home.open(sitting.run)
        sitting = queue.answer(opened, sitting, str(event.question), str(event.word))
        return sitting, board(opened, sitting)

    quiet: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
    gr.on(None, None, inputs=[], outputs=who, js=REMEMBERED)
    slow = quiet | {"show_progress": "minimal"}  # where there are many twos
    gr.on([start.click, who.submit], sit, [run, who, about, order], [sitting, shown], js=REMEMBER, **slow)
    shown.say(say, sitting, [sitting, shown], **quiet)


SCRIPT = """
const question = () => element.querySelector('[data-question]');
const say = word => {
  const button = element.querySelector(`[data-say="${word}"]`);
  if (button && !button.disabled) trigger('say', {word, question: question().dataset.question});
};
element.addEventListener('click', event => {
  const button = event.target.closest('[data-say]');
  if (button) say(button.dataset.say);
});
const words = {ArrowLeft: 'first', ArrowRight: 'second', ArrowDown: 'tie', ArrowUp: 'both bad', u: 'undo', s: 'skip'};
const press = event => {
  if (!element.isConnected) return document.removeEventListener('keydown', press);
  const word = words[event.key.length > 1 ? event.key : event.key.toLowerCase()];
  const elsewhere = event.target.closest('input, textarea, select, [role=tab], [role=option], [role=listbox], [role=radio]');
  if (!word || elsewhere || !question() || event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  if (!event.repeat) say(word);
};
document.addEventListener('keydown', press);
let sitting = null, asked = null;
watch('value', () => {
  const now = question();
  if (!now) return;
  if (now.dataset.sitting !== sitting) now.focus();
  else if (now.dataset.question !== asked && now.getBoundingClientRect().top < 0) now.scrollIntoView();
  sitting = now.dataset.sitting;
  asked = now.dataset.question;
});
"""
CSS = """
.desk { display: flex; flex-direction: column; gap: 1rem; margin-top: 1rem; }
.desk:focus-visible { outline: none !important; } /* not in the order of tabs: only where the keys are heard */
.desk .wide { width: 0; min-width: 100%; } /* a broad table is no reason for a broad page */
.desk h2 { font-size: .875rem; font-weight: 400; color: var(--quiet); margin: 0 0 .25rem; }
.desk progress { appearance: none; display: block; width: 100%; height: .375rem; border: 0; background: var(--rule); }
.desk progress::-webkit-progress-bar { background: var(--rule); }
.desk progress::-webkit-progress-value { background: var(--accent); }
.desk progress::-moz-progress-bar { background: var(--accent); }
.desk .progress p { margin: .375rem 0 0; color: var(--quiet); font-size: .875rem; font-variant-numeric: tabular-nums; }
.desk .asked { max-width: 45rem; }
.desk .role { color: var(--quiet); font-size: .875rem; margin: .5rem 0 0; }
.desk .two { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; }
.desk .two section { border: 1px solid var(--rule); border-radius: .25rem; padding: .75rem 1rem 1rem; }
.desk .keys { display: flex; flex-wrap: wrap; gap: .5rem; padding: .5rem 0; }
.desk .keys { position: sticky; bottom: 0; background: var(--paper); }
.desk button { font: inherit; color: var(--ink); background: var(--wash); border: 1px solid var(--rule); border-radius: .25rem; }
.desk button { padding: .5rem .75rem; min-height: 2.75rem; cursor: pointer; }
.desk button:hover { border-color: var(--quiet); }
.desk button:disabled { color: var(--quiet); cursor: default; opacity: .6; }
.desk kbd { font: inherit; color: var(--accent); font-weight: 650; padding-right: .25rem; }
.desk .end { font-size: 1.125rem; margin: 1rem 0; }
@media (max-width: 40rem) {
  .desk .two { grid-template-columns: 1fr; }
  .desk .keys { display: grid; grid-template-columns: 1fr 1fr; }
}
"""
