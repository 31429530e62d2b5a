"""Start: a recipe as a form, checked while it is filled in; then a run of it, in a process of its own."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, count
from pathlib import Path
from typing import Any

import gradio as gr

from tiebreak.app import form, work
from tiebreak.app.estimate import estimate
from tiebreak.app.home import Home
from tiebreak.app.look import as_text, heading, sheet, told
from tiebreak.recipe import Recipe
from tiebreak.recipe_yaml import SHIPPED, load_recipe, parse_yaml
from tiebreak.records import InputError
from tiebreak.samplers.ledger import dollars

FOLLOW = "name => { if (name) window.location.href = './?run=' + encodeURIComponent(name); }"


def recipes(home: Home) -> dict[str, Path]:
    """Return the recipes that can be started, by what the page calls them: those in the directory of runs, and the shipped."""
    own = sorted(path for ending in ("*.yaml", "*.yml") for path in home.root.glob(ending) if path.name.isprintable())
    inside = {path.name: path for path in own if path.resolve().is_relative_to(home.root.resolve())}
    return inside | {f"{path.stem} (shipped)": path for path in sorted(SHIPPED.glob("*.yaml"))}


def page(home: Home) -> None:
    """Build the page."""
    heading(
        "Start a run",
        "Choose a recipe, change what you want to, and start it. The work goes on when this page is closed, and what stops can "
        "be resumed.",
    )
    with gr.Row():
        recipe = gr.Dropdown([], label="Recipe", info="Shipped ones, and the YAML files that lie with the runs.")
        profile = gr.Dropdown([""], value="", label="Profile", info="A named set of changes that the recipe brings.")
    began = gr.Textbox(visible=False, label="Begun")

    def check(asked: dict[str, Any]) -> dict[str, Any]:
        try:
            path, of, changed = _asked(home, asked)
            found = _taken(home, form.check(path, of, changed))
            cost = _cost(found.recipe, path)
        except InputError as error:
            found, cost = form.Checked(None, {}, str(error)), ""
        return {"wrong": {**found.beside, "": found.whole}, "cost": cost, "sound": found.recipe is not None}

    # The fields are no components of Gradio's, which would have events of their own: one that comes from a field while the
    # form is drawn anew would find nobody to handle it.
    shown = gr.HTML(js_on_load=SCRIPT, apply_default_css=False, server_functions=[check])

    def fill() -> Any:
        names = list(recipes(home))
        return gr.update(choices=names, value=next(iter(names), None))

    def choose(name: str | None) -> tuple[Any, str]:
        profiles = _profiles(recipes(home)[name]) if name in recipes(home) else []
        return gr.update(choices=["", *profiles], value=""), drawn(home, name, None)

    def begin(event: gr.EventData) -> str:
        path, of, changed = _asked(home, event._data)
        return work.start(home, path, of, tuple(changed.values()))

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    gr.on(None, fill, [], recipe, **quiet)
    recipe.change(told(choose), recipe, [profile, shown], **quiet)
    profile.input(lambda name, of: drawn(home, name, of), [recipe, profile], shown, **quiet)
    shown.begin(told(begin), None, began, **quiet).success(None, began, None, js=FOLLOW)


def _asked(home: Home, asked: dict[str, Any]) -> tuple[Path, str | None, dict[str, str]]:
    """Return the recipe, the profile and the overrides, by key, that a form stands for. Raises InputError."""
    path = recipes(home).get(str(asked["recipe"]))
    if path is None:
        raise InputError(f"{asked['recipe']}: is no longer there; choose another recipe")
    profile, values = str(asked["profile"]) or None, {key: str(text) for key, text in asked["values"].items()}
    every = form.fields(load_recipe(path, profile))
    changed = [field for field in every if values.get(field.key, field.text) != field.text]
    return path, profile, {field.key: field.override(values[field.key]) for field in changed}


def _profiles(path: Path) -> list[str]:
    try:
        data = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (InputError, OSError, ValueError):  # as the form says, where it would stand
        return []
    profiles = data.get("profiles") if isinstance(data, dict) else None
    return [str(name) for name in profiles] if isinstance(profiles, dict) else []


def _free(home: Home, name: str) -> str:
    """Return a name that no run has yet: titles, titles-2, titles-3."""
    names = chain((name,), (f"{name}-{number}" for number in count(2)))
    return next(name for name in names if not (home.root / name).exists())


def _taken(home: Home, found: form.Checked) -> form.Checked:
    """Refuse the name of a run that is there."""
    if found.recipe is None or not (path := home.root / found.recipe.name).exists():
        return found
    return form.Checked(None, {"name": f"{path} is there already; take another name, or resume it on the page Runs"}, "")


# --- the form ------------------------------------------------------------------------------------------------------


def drawn(home: Home, name: str | None, profile: str | None) -> str:
    """Return the form of a recipe: every key is in it, and those that nobody spoke of are hidden until they are added."""
    path = recipes(home).get(name or "")
    if path is None:
        return ""
    try:
        every = form.fields(load_recipe(path, profile or None))
    except InputError as error:
        return f'<p class="wrong said" role="alert">{as_text(error)}</p>'
    there = {field.key for field in form.shown(every)}
    parts = {part: [field for field in every if field.part == part] for part in dict.fromkeys(field.part for field in every)}
    rest = "".join(
        f'<option value="{as_text(field.key)}">{as_text(field.help)}</option>' for field in every if field.key not in there
    )
    return (
        f'<form class="recipe" autocomplete="off" data-recipe="{as_text(name)}" data-profile="{as_text(profile or "")}">'
        f"{''.join(_part(home, part, own, there) for part, own in parts.items())}"
        f'<div class="field"><label for="add">Add a key</label><p class="note" id="add:about">Every other key of the recipe.</p>'
        f'<input id="add" list="keys" aria-describedby="add:about"><datalist id="keys">{rest}</datalist></div>{_wrong("")}'
        '<div class="cost"></div><button type="button" disabled>Start</button></form>'
    )


def _part(home: Home, part: str, own: Iterable[form.Field], there: set[str]) -> str:
    boxes, hidden = "", True
    for field in own:
        text = _free(home, field.text) if field.key == "name" else field.text
        boxes += _box(field, text, hidden=field.key not in there)
        hidden = hidden and field.key not in there
    head = f"<details open{' hidden' * hidden}><summary>{as_text(part)}</summary>"
    return f'{head}<div class="fields">{boxes}</div></details>'


def _box(field: form.Field, text: str, *, hidden: bool) -> str:
    key, about = as_text(field.key), as_text(field.help or field.kind.capitalize() + ".")
    how = f'id="{key}" name="{key}" aria-describedby="{key}:about {key}:wrong"'
    long = len(text) > 60 or "\n" in text
    if field.choices:
        options = "".join(
            f'<option value="{as_text(choice)}"{" selected" * (choice == text)}>{as_text(choice or "not set")}</option>'
            for choice in field.choices
        )
        box = f"<select {how}>{options}</select>"
    elif long or field.kind not in ("number", "whole number"):
        lines = min(12, max(1, text.count("\n") + 1, len(text) // 90 + 1))
        box = f'<textarea {how} rows="{lines}" spellcheck="false">\n{as_text(text)}</textarea>'
    else:
        box = f'<input {how} value="{as_text(text)}" spellcheck="false">'
    return (
        f'<div class="field{" long" * long}"{" hidden" * hidden}><label for="{key}">{key}</label>'
        f'<p class="note" id="{key}:about">{about}</p>{box}{_wrong(field.key)}</div>'
    )


def _wrong(key: str) -> str:
    return f'<p class="wrong said" role="alert" id="{as_text(key)}:wrong" data-of="{as_text(key)}" hidden></p>'


def _cost(recipe: Recipe | None, path: Path) -> str:
    if recipe is None:
        return ""
    found = estimate(recipe, path.parent)
    rows = [[as_text(part.name), f"{part.calls:,}", "unknown" if part.cost is None else as_text(dollars(part.cost)),
             as_text(dollars(part.budget)) if part.budget else "–"] for part in found.parts]  # fmt: skip
    many = "" if found.prompts is None else f"At most {found.prompts:,} prompts. "
    table = (
        sheet("cost", ("part", "calls at most", "dollars at most", "budget"), rows) if rows and found.prompts is not None else ""
    )
    return f"<h3>What it costs</h3><p>{many}{as_text(found.sentence)}</p>{table}"


SCRIPT = """
const form = () => element.querySelector('form');
const asked = () => {
  const boxes = [...form().elements].filter(each => each.name);
  return {...form().dataset, values: Object.fromEntries(boxes.map(each => [each.name, each.value]))};
};
let turn = 0, later = null;
const check = async () => {
  const mine = ++turn, found = form() && await server.check(asked());
  if (mine !== turn || !found) return; // something else was written since
  for (const line of form().querySelectorAll('.wrong')) {
    line.textContent = found.wrong[line.dataset.of] || '';
    line.hidden = !line.textContent;
    form().elements.namedItem(line.dataset.of)?.setAttribute('aria-invalid', !line.hidden);
  }
  form().querySelector('.cost').innerHTML = found.cost;
  form().querySelector('button').disabled = !found.sound;
};
const add = list => {
  const box = list.value && form().elements.namedItem(list.value);
  if (!box?.name) return;
  for (const hidden of [box.closest('.field'), box.closest('details')]) hidden.hidden = false;
  list.value = '';
  box.focus();
};
element.addEventListener('input', event => {
  if (!event.target.name) return add(event.target);
  turn++;
  clearTimeout(later);
  later = setTimeout(check, 150);
});
element.addEventListener('click', event => {
  if (event.target.closest('button')) trigger('begin', asked());
});
watch('value', () => {
  form()?.reset(); // what was written into another form
  check();
});
"""
CSS = """
.recipe { display: flex; flex-direction: column; gap: 1rem; margin-top: 1rem; }
.recipe [hidden] { display: none; }
.recipe details { border-top: 1px solid var(--rule); padding-top: .5rem; }
.recipe summary { font-weight: 600; cursor: pointer; padding: .25rem 0; }
.recipe .fields { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); gap: 1rem 1.5rem; }
.recipe .long { grid-column: 1 / -1; }
.recipe .field { display: flex; flex-direction: column; gap: .25rem; min-width: 0; }
.recipe label { overflow-wrap: anywhere; }
.recipe .field .note { font-size: .875rem; margin: 0; }
.recipe :is(input, select, textarea) { width: 100%; box-sizing: border-box; padding: .375rem .5rem; font: inherit; }
.recipe :is(input, select, textarea) { color: var(--ink); background: var(--paper); border: 1px solid var(--quiet); }
.recipe :is(input, select, textarea, button) { border-radius: .25rem; }
.recipe textarea { field-sizing: content; max-height: 30rem; min-height: 2.375rem; resize: vertical; }
.recipe [aria-invalid=true] { border-color: var(--rejected); }
.recipe .field .wrong { margin: 0; }
.recipe .cost h3 { margin: .5rem 0; }
.recipe button { align-self: start; padding: .625rem 2rem; min-height: 2.75rem; border: 0; font: inherit; font-weight: 600; }
.recipe button { color: var(--paper); background: var(--accent); cursor: pointer; }
.recipe button:disabled { background: var(--quiet); cursor: default; }
"""
