"""How the pages look: the report's colours and type; and how text becomes part of them as text."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import wraps
from html import escape
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr

from tiebreak.app.home import Home
from tiebreak.records import InputError

F = TypeVar("F", bound=Callable[..., Any])

CSS = Path(__file__).with_name("look.css").read_text(encoding="utf-8")
HEAD = '<link rel="icon" href="data:,">'
_TEMPLATE_MARKS = {ord(mark): f"&#{ord(mark)};" for mark in "${}`\\"}

_COLOURS = {
    "paper": (
        "background_fill_primary", "block_background_fill", "block_label_background_fill", "table_odd_background_fill",
        "input_background_fill", "input_background_fill_focus", "input_background_fill_hover",
        "button_primary_text_color", "checkbox_background_color", "checkbox_label_background_fill",
    ),
    "wash": (
        "background_fill_secondary", "panel_background_fill", "code_background_fill", "table_even_background_fill",
        "button_secondary_background_fill", "button_cancel_background_fill", "checkbox_label_background_fill_hover",
        "checkbox_label_background_fill_selected",
    ),
    "rule": (
        "border_color_primary", "block_border_color", "panel_border_color", "table_border_color",
        "button_secondary_background_fill_hover", "button_cancel_background_fill_hover",
    ),
    "ink": (
        "body_text_color", "block_label_text_color", "block_title_text_color", "accordion_text_color", "table_text_color",
        "button_secondary_text_color", "button_cancel_text_color", "checkbox_label_text_color",
        "checkbox_label_text_color_selected",
    ),
    "quiet": (  # and the edge of what one can fill in, which is to be seen
        "body_text_color_subdued", "block_info_text_color", "input_placeholder_color", "input_border_color",
        "input_border_color_hover", "checkbox_border_color", "checkbox_border_color_hover",
    ),
    "accent": (
        "link_text_color", "link_text_color_hover", "link_text_color_active", "link_text_color_visited", "slider_color",
        "border_color_accent", "input_border_color_focus", "button_primary_background_fill",
        "button_primary_background_fill_hover", "checkbox_background_color_selected", "checkbox_border_color_selected",
        "checkbox_border_color_focus", "loader_color",
    ),
}  # fmt: skip
"""Which of Gradio's variables takes which of the report's colours, whose values for light and dark are in look.css."""


def as_text(text: object) -> str:
    """Return a text for gr.HTML, gr.Error, gr.Warning and gr.Info, which render HTML, so that it shows as it is.

    What a component's `info=` is given is Markdown: it takes our own words alone. Labels, choices and values are text.
    """
    # Components of Gradio fill templates of their own, whose marks mean nothing in HTML.
    return escape(str(text)).translate(_TEMPLATE_MARKS)


def said(text: object, kind: str = "model") -> str:
    """Return an element that shows what a model or a file says, in the reading face, its line breaks kept."""
    return f'<div class="{kind}" dir="auto">{as_text(text)}</div>'


def heading(title: str, lead: str = "") -> gr.HTML:
    """Show a page's title and, in our own words, what it is for."""
    return gr.HTML(f"<h1>{as_text(title)}</h1>" + (f'<p class="lead">{as_text(lead)}</p>' if lead else ""))


def told(work: F) -> F:
    """Make a handler whose user's mistakes are a message on the page."""

    def message(error: InputError) -> gr.Error:
        return gr.Error(as_text(error), title="That did not work", duration=None, print_exception=False)

    if inspect.isgeneratorfunction(work):

        @wraps(work)
        def telling(*args: Any, **kwargs: Any) -> Any:
            try:
                yield from work(*args, **kwargs)
            except InputError as error:
                raise message(error) from None

    else:

        @wraps(work)
        def telling(*args: Any, **kwargs: Any) -> Any:
            try:
                return work(*args, **kwargs)
            except InputError as error:
                raise message(error) from None

    return telling  # type: ignore[return-value]


def choose_run(home: Home, label: str = "Run") -> gr.Dropdown:
    """Return a list of the runs, filled whenever the page loads; it starts at `?run=NAME` of the address, or the newest."""
    chosen = gr.Dropdown(choices=[], label=label, filterable=True)

    def fill(request: gr.Request) -> dict[str, Any]:
        names = home.names()
        asked = request.query_params.get("run")
        return gr.update(choices=names, value=asked if asked in names else next(iter(names), None))

    gr.on(None, fill, inputs=[], outputs=chosen, show_progress="hidden")
    return chosen


def choose_runs(home: Home, label: str, most: int = 3) -> gr.Dropdown:
    """Return a list of the runs to choose several of, filled whenever the page loads."""
    chosen = gr.Dropdown(choices=[], label=label, multiselect=True, max_choices=most)
    gr.on(None, lambda: gr.update(choices=home.names()), inputs=[], outputs=chosen, show_progress="hidden")
    return chosen


def sheet(name: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table. `heads` are text, `rows` are cells of HTML: what a file says comes in through `as_text`."""
    top = "".join(f'<th scope="col">{as_text(head)}</th>' for head in heads)
    named = [f' data-head="{as_text(head)}"' for head in heads[1:]]  # where a narrow page has no line of heads
    lines = "".join(
        f'<tr><th scope="row">{first}</th>'
        f"{''.join(f'<td{head}>{cell}</td>' for head, cell in zip(named, rest, strict=True))}</tr>"
        for first, *rest in rows
    )
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{as_text(name)}"><table class="{as_text(name)}">'
        f"<thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def theme() -> gr.themes.Base:
    """Return Gradio's plainest theme in the report's colours; its fonts are the system's, so that none is fetched."""
    sans = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Liberation Sans", "sans-serif")
    mono = ("ui-monospace", "SF Mono", "Menlo", "Consolas", "Liberation Mono", "monospace")
    plain = gr.themes.Base(
        primary_hue=gr.themes.colors.blue,
        neutral_hue=gr.themes.colors.gray,
        text_size=gr.themes.sizes.text_lg,
        radius_size=gr.themes.sizes.radius_sm,
        font=[gr.themes.Font(name) for name in sans],
        font_mono=[gr.themes.Font(name) for name in mono],
    )
    mapped = {
        f"{name}{mode}": f"var(--{colour})" for colour, names in _COLOURS.items() for name in names for mode in ("", "_dark")
    }
    return plain.set(
        **mapped,
        color_accent="var(--accent)",
        body_background_fill="#fff",  # used before the style sheet is there
        body_background_fill_dark="#15171b",
        block_border_width="0px",
        input_border_width="1px",
        input_border_width_dark="1px",
        block_padding="0.25rem 0",
        shadow_drop="none",
    )
