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
from tiebreak.app.look import as_text, heading, sheet
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
    failed = gr.HTML()

    def choose(event: gr.EventData) -> str:
        return drawn(home, str(event._data["recipe"]), str(event._data["profile"]))

    def begin(event: gr.EventData) -> tuple[str, str]:
        try:
            path, of, changed = _asked(home, event._data)
            return work.start(home, path, of, tuple(changed.values())), ""
        except InputError as error:
            return "", f'<p class="wrong said" role="alert">{as_text(error)}</p>'

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    gr.on(None, lambda: drawn(home, "", ""), [], shown, **quiet)
    shown.choose(choose, None, shown, trigger_mode="multiple", **quiet)
    # Not in the queue, whose stream would still be open when the page is left. Nor a server function as `check` is: those
    # heed requests that a page elsewhere sends, too.
    shown.begin(begin, None, [began, failed], queue=False, **quiet).success(None, began, None, js=FOLLOW)


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


def drawn(home: Home, name: str, profile: str) -> str:
    """Return the form of a recipe, by default of the first: with all keys, hidden where nobody spoke of them or added them."""
    there = recipes(home)
    name, profile = (name, profile) if name in there else (next(iter(there)), "")
    path, about = there[name], ("Shipped ones, and the YAML files that lie with the runs.", "A named set of changes in it.")
    top = _labelled("recipe", "Recipe", about[0], _select(_named("recipe"), there, name))
    top += _labelled("profile", "Profile", about[1], _select(_named("profile"), ("", *_profiles(path)), profile))
    try:
        inside = _fields(home, form.fields(load_recipe(path, profile or None)))
    except InputError as error:
        inside = f'<p class="wrong said" role="alert">{as_text(error)}</p>'
    of = f'data-recipe="{as_text(name)}" data-profile="{as_text(profile)}"'
    return f'<form class="recipe" autocomplete="off" {of}><div class="fields">{top}</div>{inside}</form>'


def _fields(home: Home, every: list[form.Field]) -> str:
    there = {field.key for field in form.shown(every)}
    parts = {part: [field for field in every if field.part == part] for part in dict.fromkeys(field.part for field in every)}
    inside = "".join(_part(home, part, own, there) for part, own in parts.items())
    rest = "".join(
        f'<option value="{as_text(field.key)}">{as_text(field.help)}</option>' for field in every if field.key not in there
    )
    add = f'<input {_named("add")} list="keys"><datalist id="keys">{rest}</datalist>'
    return (
        f"<fieldset>{inside}{_labelled('add', 'Add a key', 'Every other key of the recipe.', add)}{_wrong('')}"
        '<div class="cost"></div><button type="button" disabled>Start</button></fieldset>'
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
    how = f'{_named(field.key, f" wrong:{field.key}")} name="{as_text(field.key)}" spellcheck="false"'
    long = len(text) > 60 or "\n" in text
    if field.choices:
        box = _select(how, dict.fromkeys((*field.choices, text)), text)  # of a section that is not there, nothing is chosen
    elif long or field.kind not in ("number", "whole number"):
        lines = min(12, max(1, text.count("\n") + 1, len(text) // 90 + 1))
        box = f'<textarea {how} rows="{lines}">\n{as_text(text)}</textarea>'
    else:
        box = f'<input {how} value="{as_text(text)}">'
    about = field.help or field.kind.capitalize() + "."
    return _labelled(field.key, field.key, about, box + _wrong(field.key), " long" * long, hidden=hidden)


def _labelled(key: str, label: str, about: str, inside: str, kind: str = "", *, hidden: bool = False) -> str:
    key = as_text(key)
    return (
        f'<div class="field{kind}"{" hidden" * hidden}><label for="key:{key}">{as_text(label)}</label>'
        f'<p class="note" id="about:{key}">{as_text(about)}</p>{inside}</div>'
    )


def _named(key: str, also: str = "") -> str:
    return f'id="key:{as_text(key)}" aria-describedby="about:{as_text(key)}{as_text(also)}"'


def _select(how: str, choices: Iterable[str], chosen: str) -> str:
    options = "".join(
        f'<option value="{as_text(choice)}"{" selected" * (choice == chosen)}>{as_text(choice or "none")}</option>'
        for choice in choices
    )
    return f"<select {how}>{options}</select>"


def _wrong(key: str) -> str:
    return f'<p class="wrong said" role="alert" id="wrong:{as_text(key)}" data-of="{as_text(key)}" hidden></p>'


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
  const boxes = [...form().elements].filter(each => each.name && !each.closest('[hidden]'));
  return {...form().dataset, values: Object.fromEntries(boxes.map(each => [each.name, each.value]))};
};
let turn = 0, later = null;
const check = async () => {
  const mine = ++turn, found = form()?.querySelector('fieldset') && await server.check(asked());
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
const choose = ({id, value}) => {
  const {recipe, profile} = form().dataset;
  if (value === (id === 'key:recipe' ? recipe : profile)) return;
  form().querySelector('fieldset')?.setAttribute('disabled', ''); // what were written from now on would be lost
  trigger('choose', id === 'key:recipe' ? {recipe: value, profile: ''} : {recipe, profile: value});
};
element.addEventListener('input', ({target}) => {
  if (target.id === 'key:add') return add(target);
  turn++;
  clearTimeout(later);
  if (target.name) later = setTimeout(check, 150);
  else choose(target);
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
.recipe [hidden] { display: none !important; }
.recipe fieldset { display: contents; border: 0; }
.recipe details { border-top: 1px solid var(--rule); padding-top: .5rem; }
.recipe summary { font-weight: 600; cursor: pointer; padding: .25rem 0; }
.recipe .fields { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); gap: .25rem 1.5rem; }
.recipe .fields { align-items: start; margin-top: .25rem; }
.recipe .long { grid-column: 1 / -1; }
.recipe .field { display: flex; flex-direction: column; gap: .25rem; min-width: 0; }
.recipe .fields > .field { display: grid; grid-template-rows: subgrid; grid-row: span 4; } /* boxes of a line side by side */
.recipe .fields > .field { padding-bottom: .5rem; }
.recipe label { overflow-wrap: anywhere; }
.recipe .field .note { font-size: .875rem; margin: 0; }
.recipe :is(input, select, textarea) { width: 100%; box-sizing: border-box; padding: .375rem .5rem; font: inherit; }
.recipe :is(input, select, textarea) { color: var(--ink); background: var(--paper); border: 1px solid var(--quiet); }
.recipe :is(input, select, textarea, button) { border-radius: .25rem; }
.recipe select { appearance: auto; min-height: 2.375rem; }
.recipe textarea { field-sizing: content; max-height: 30rem; min-height: 2.375rem; resize: none; }
.recipe .long textarea { resize: vertical; }
.recipe [aria-invalid=true] { border-color: var(--rejected); }
.recipe .field .wrong { margin: 0 0 .5rem; }
.recipe .cost h3 { margin: .5rem 0; }
.recipe button { align-self: start; padding: .625rem 2rem; min-height: 2.75rem; border: 0; font: inherit; font-weight: 600; }
.recipe button { color: var(--paper); background: var(--accent); cursor: pointer; }
.recipe button:disabled { background: var(--quiet); cursor: default; }
"""
