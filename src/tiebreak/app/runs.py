"""Runs: how each one stands, one of them closely, and several side by side."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from time import time
from typing import Any
from urllib.parse import quote

import gradio as gr

from tiebreak.app import work
from tiebreak.app.curves import Metrics
from tiebreak.app.home import Home, Summary
from tiebreak.app.look import as_text, choose_runs, heading, sheet, told
from tiebreak.records import InputError
from tiebreak.reporting.charts import Estimate
from tiebreak.run import TRAINING, Counts, Run
from tiebreak.stages import describe
from tiebreak.stages.compare import compare

LOOK_EVERY, LIST_EVERY = 2.0, 5.0
"""Seconds between looks at the chosen run, and at all of them."""
MOST_FOLLOWED = 32
"""Trainings whose curves are kept in memory."""
ORDERS: dict[str, Callable[[Summary], Any]] = {
    "last changed": lambda one: -one.changed,
    "win rate": lambda one: -((one.win_rate or {}).get("rate") or -1.0),
    "name": lambda one: one.name.lower(),
}
# A click shows the run without loading the page again; the address names it, for a new tab, a bookmark and the way back.
FOLLOW_LINKS = """
element.addEventListener('click', event => {
  const link = event.target.closest('a[data-run]');
  if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  history.replaceState(null, '', link.href);
  trigger('click', {run: link.dataset.run});
});
"""
PARTS = 9
"""Of the page, that show one run."""
Seen = dict[str, Any]
"""What a page shows of a run, as far as that tells whether it is still so."""


def page(home: Home) -> None:
    """Build the page."""
    followed: dict[Path, Metrics] = {}
    heading("Runs", "" if home.only else f"Every run in {home.root}{os.sep}; choose one to see it closely.")
    chosen, seen, listed = gr.State(None), gr.State({}), gr.State(None)
    with gr.Column(visible=home.only is None):
        with gr.Row():
            find = gr.Textbox(label="Find", placeholder="a name, a model, a state, a verdict", max_lines=1, scale=3)
            order = gr.Dropdown(list(ORDERS), label="Order by", value="last changed", scale=1)
        table = gr.HTML(js_on_load=FOLLOW_LINKS)
    head = gr.HTML()
    with gr.Column(visible=False) as closely:
        with gr.Row(visible=home.may_start):
            stop = gr.Button("Stop", visible=False, size="sm", scale=0)
            resume = gr.Button("Resume", visible=False, size="sm", scale=0)
        with gr.Tab("Stages"):
            stages = gr.HTML()
            log = gr.Textbox(label="What it printed", lines=12, max_lines=12, interactive=False, autoscroll=True, visible=False)
        with gr.Tab("Curves"):
            drawn = gr.HTML()
        with gr.Tab("Report"):
            report = gr.HTML()
    with gr.Column(visible=home.only is None):
        gr.HTML("<h2>Side by side</h2>")
        several = choose_runs(home, "Two or three runs")
        compared = gr.HTML()
    details = [seen, head, closely, stop, resume, stages, log, drawn, report]

    def listing(words: str, by: str, before: Any) -> tuple[Any, Any]:
        summaries = home.summaries()
        now = (words, by, [(one.name, one.changed, one.state) for one in summaries])
        if now == before:
            return gr.skip(), gr.skip()
        return _table(sorted((one for one in summaries if _matches(one, words)), key=ORDERS[by]), len(summaries), home), now

    def look(name: str | None, before: Seen) -> list[Any]:
        return _details(home, followed, name, before)

    def first(request: gr.Request) -> tuple[str | None, Seen]:
        asked, names = request.query_params.get("run"), home.names()
        return (asked if asked in names else home.only), {}

    def choose(event: gr.EventData) -> tuple[str, Seen]:
        return str(event.run), {}

    def halt(name: str) -> None:
        work.stop(home, name)
        gr.Info("It was asked to stop, and does after the step that is under way.")

    quietly: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
    gr.on(None, listing, [find, order, listed], [table, listed], **quietly)
    gr.Timer(LIST_EVERY).tick(listing, [find, order, listed], [table, listed], **quietly)
    gr.on(None, first, [], [chosen, seen], **quietly).then(look, [chosen, seen], details, **quietly)
    table.click(choose, None, [chosen, seen], **quietly).then(look, [chosen, seen], details, **quietly)
    gr.Timer(LOOK_EVERY).tick(look, [chosen, seen], details, **quietly)
    several.change(told(lambda names: _compared(home, names)), several, compared, api_visibility="private")
    stop.click(told(halt), chosen, None, **quietly).then(look, [chosen, seen], details, **quietly)
    resume.click(told(lambda name: work.resume(home, name)), chosen, None, **quietly).then(
        look, [chosen, seen], details, **quietly
    )


# --- the table -----------------------------------------------------------------------------------------------------


def _matches(one: Summary, words: str) -> bool:
    text = " ".join((one.name, one.model, standing(one), one.verdict)).lower()
    return all(word in text for word in words.lower().split())


def _table(summaries: Sequence[Summary], of: int, home: Home) -> str:
    if not of:
        begin = 'Begin one on the page <a href="start">Start</a>, or with' if home.may_start else "Begin one with"
        return f"<p>There is no run yet. {begin} <code>tiebreak run demo</code>.</p>"
    if not summaries:
        return f"<p>None of {of:,} runs has these words.</p>"
    heads = ("run", "state", "pairs", "tuned is", "win rate over base", "model", "changed")
    shown = f'<p class="note">{len(summaries):,} of {of:,} runs.</p>' if len(summaries) < of else ""
    return sheet("runs", heads, [_row(one) for one in summaries]) + shown


def _row(one: Summary) -> list[str]:
    link = f'<a href="?run={quote(one.name, safe="")}" data-run="{as_text(one.name)}">{as_text(one.name)}</a>'
    pairs = (one.counts.get("pair") or {}).get("train") or {}
    used = f"{pairs['usable']:,} <span>of {pairs['attempted']:,}</span>" if pairs else "–"
    return [link, as_text(standing(one)), used, as_text(one.verdict or "–"), _rate(one), as_text(one.model), _ago(one.changed)]


def standing(one: Summary) -> str:
    """Say in words how a run stands."""
    at = f" in {one.stage}" if one.stage else ""
    return {"new": "not begun", "unfinished": f"{one.stage} is next", "broken": "cannot be read"}.get(one.state, one.state + at)


def _rate(one: Summary) -> str:
    found = Estimate.of(one.win_rate)
    return f"{as_text(found.text)} <span>{as_text(found.between)}, n = {found.n:,}</span>" if found else "–"


def _ago(then: float) -> str:
    seconds = max(0.0, time() - then)
    for most, unit in ((60, "second"), (60, "minute"), (24, "hour"), (365, "day")):
        if seconds < most:
            return f"{seconds:.0f} {unit}{'s' * (round(seconds) != 1)} ago"
        seconds /= most
    return f"{seconds:.1f} years ago"


# --- one run -------------------------------------------------------------------------------------------------------


def _details(home: Home, followed: dict[Path, Metrics], name: str | None, before: Seen) -> list[Any]:
    """Return what the page is to show of a run, leaving out what it shows already."""
    if name is None:
        return [gr.skip()] * PARTS if before == {"none": True} else _blank({"none": True}, "")
    try:
        run, one = home.open(name), home.summary(name)
        if one.state == "broken":
            raise InputError(one.error)
        metrics = [kept(followed, run, stage) for stage in run.stages if stage in TRAINING]
        looks = [each.look() for each in metrics]
        now: dict[str, object] = {"summary": repr(one), "metrics": looks, "report": _stamp(run.report_html)}
        printed = work.log(home, name)
    except InputError as error:
        if before == {"error": str(error)}:
            return [gr.skip()] * PARTS
        return _blank({"error": str(error)}, f'<p class="wrong said" role="alert">{as_text(error)}</p>')
    now["log"] = hash(printed)
    new = {part for part in now if now[part] != before.get(part)}
    if not new:
        return [gr.skip()] * PARTS
    running = one.state == "running"
    return [
        now,
        _head(run, one) if "summary" in new else gr.skip(),
        gr.update(visible=True),
        gr.update(visible=running),
        gr.update(visible=not running and one.state != "done"),
        _stages(run, one) if "summary" in new else gr.skip(),
        gr.update(value=printed, visible=bool(printed)) if "log" in new else gr.skip(),
        _curves(metrics) if "metrics" in new else gr.skip(),
        _report(home, run) if "report" in new else gr.skip(),
    ]


def _blank(now: Seen, head: str) -> list[Any]:
    return [now, head, gr.update(visible=False), *[gr.skip()] * (PARTS - 3)]


def kept(followed: dict[Path, Metrics], run: Run, stage: str) -> Metrics:
    """Return the metrics of a stage that trains, which are read once for all who look."""
    path = run.training(stage).metrics_jsonl
    if path not in followed:
        while len(followed) >= MOST_FOLLOWED:
            followed.pop(next(iter(followed)), None)
        followed[path] = Metrics(path, stage)
    return followed[path]


def _stamp(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_mtime_ns, stat.st_size


def _head(run: Run, one: Summary) -> str:
    where = quote(one.name, safe="")
    links = " · ".join(f'<a href="{page}?run={where}">{page.capitalize()}</a>' for page in ("data", "label", "playground"))
    found = Estimate.of(one.win_rate)
    answer = (
        f"<p>Tuned is <b>{as_text(one.verdict)}</b>: it wins {as_text(found.text)} of {found.n:,} comparisons with base, ties "
        f"counting half (95 % interval {as_text(found.between)}).</p>"
        if found
        else ""
    )
    told_of = as_text(standing(one).capitalize())
    return (
        f'<h2 class="said">{as_text(one.name)}</h2>{answer}'
        f'<p>{told_of}, after {as_text(_time(one.seconds))} of work. <span class="quiet said">{as_text(run.path)}</span></p>'
        f"<p>{links}</p>"
    )


def _stages(run: Run, one: Summary) -> str:
    rows = []
    for stage, state in one.stages.items():
        counts, entry = run.counts(stage), run.manifest["stages"].get(stage, {})
        rows.append([stage, state, as_text(_made(stage, counts)), _time(entry.get("seconds") or 0.0)])
    return sheet("stages", ("stage", "state", "what came of it", "time"), rows)


def _made(stage: str, counts: Counts) -> str:
    try:
        return describe(stage, counts) if counts else ""
    except (KeyError, TypeError, ValueError):  # another version counted otherwise
        return json.dumps(counts, ensure_ascii=False)


def _curves(metrics: Sequence[Metrics]) -> str:
    drawn = []
    for each in metrics:
        if each.lines:
            warned = "".join(f"<li>{as_text(sentence)}</li>" for sentence in each.told)
            title = f"<h3>{as_text(each.name)}</h3>" if len(metrics) > 1 else ""
            drawn.append(f'{title}<ul class="warned">{warned}</ul><div class="charts">{each.html()}</div>')
    return "".join(drawn) or '<p class="note">Training has logged nothing yet.</p>'


def _report(home: Home, run: Run) -> str:
    """Return the report in a frame that may run its own script and reach nothing of the page around it."""
    if not run.report_html.exists():
        return '<p class="note">The report is the last stage; there is none yet.</p>'
    try:
        text = home.inside(run.report_html).read_text(encoding="utf-8", errors="replace")
    except InputError as error:
        return f'<p class="said">{as_text(error)}</p>'
    title = as_text(f"Report of {run.recipe.name}")
    return f'<iframe class="report" sandbox="allow-scripts" title="{title}" srcdoc="{escape(text)}"></iframe>'


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{seconds:.1f} s" if seconds < 10 else f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


# --- several -------------------------------------------------------------------------------------------------------


def _compared(home: Home, names: Sequence[str] | None) -> str:
    names = names or []
    if len(names) < 2:
        return '<p class="note">Choose two runs or three.</p>'
    lines = compare([home.open(name) for name in names[:3]])
    return sheet(
        "compared", ("", *names[:3]), [[as_text(name), *(as_text(_cut(cell)) for cell in cells)] for name, cells in lines]
    )


def _cut(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}…"
