"""What summary.json comes to: what qualifies the answer, and charts and tables of every model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tiebreak.metrics.versus import headline_of
from tiebreak.recipe import GIVEN
from tiebreak.reporting.charts import BASE, OTHERS, TUNED, Bar, Estimate, bars, columns, ladder, outcome
from tiebreak.reporting.figures import Cell, Chart, Table, Value
from tiebreak.reporting.meetings import Met
from tiebreak.reporting.reading import by_length

MOST_GROUPS = 12
"""Of bars in a chart; a table has the others."""
SHORT = 12
"""Characters of two models' names that have room in a chart."""
HALF = 0.5
Summary = Mapping[str, Any]
TEXTS = {
    "words": "Length in words",
    "repetition": "Three words in a row that repeat",
    "compression": "Compression (above 2.4 it goes in circles)",
    **{f"distinct_{order}": f"distinct-{order} of a prompt's completions" for order in (1, 2, 3)},
    **{f"distinct_{order}_overall": f"distinct-{order} of all completions" for order in (1, 2, 3)},
    "self_bleu": "Self-BLEU of a prompt's completions",
    "exact_match": "Exact match with the reference",
    "rouge_l": "ROUGE-L with the reference",
    "chrf": "chrF with the reference",
}
APART = {
    "kl": "KL from base in nats, per completion",
    "kl_k1": "by the other estimator",
    "kl_per_token": "per token",
    "chosen_change": "Log-prob of held-out chosen, change in nats",
    "chosen_fell": "share that fell",
    "rejected_change": "Log-prob of held-out rejected, change in nats",
    "both_fell": "share of pairs where both fell",
}
"""In words; lower case is a part of the line above."""


class Measure(NamedTuple):
    """What was measured of every model; `part` of the measure above it."""

    name: str
    of: Mapping[str, Any]
    change: Mapping[str, Any] | None = None
    part: bool = False


def models_of(summary: Summary) -> list[str]:
    """Return the models, those of the headline first, the one that is measured by in front."""
    met = [row.get("model") for row in summary.get("head_to_head") or []]
    named = dict.fromkeys([*reversed(headline_of(summary)), *(summary.get("models") or []), *met])
    return [name for name in named if name]


# --- what qualifies the answer -------------------------------------------------------------------------------------


def qualifications(summary: Summary) -> list[str]:
    """Return what one must know beside the win rate, a sentence each."""
    return [sentence.replace(" %", "\u00a0%") for sentence in _qualifications(summary)]


def _qualifications(summary: Summary) -> Iterator[str]:
    wins = summary.get("win_rate") or {}
    raw, even = Estimate.of(wins), Estimate.of(wins.get("length_controlled"))
    if even:
        doubt = ", which shows no difference" if _shows(raw) and not _shows(even) else ""
        turned = _shows(raw) and _shows(even) and (even.value > HALF) != (raw is not None and raw.value > HALF)
        yield f"At equal length: {even.text} ({even.between}){', which turns the verdict round' if turned else doubt}."
    if (p := wins.get("p_value")) is not None:
        yield f"Paired test over prompts: p {'< 0.001' if p < 0.001 else f'= {p:.2g}'}."
    if (needed := wins.get("prompts_needed")) and not _shows(raw):
        yield f"A difference of this size would take about {needed:,} prompts to show."
    if summary.get("judge_labelled"):
        yield "The judge also made the labels: this shows that the model learned its taste, not that anyone shares it."
    agreement = summary.get("agreement") or {}
    labels = agreement.get("with_labels") or {}
    if found := Estimate.of(labels):
        yield f"The judge agrees with {_labeller(labels)}, on {_agreed(found, labels)} held-out pairs."
    for people in agreement.get("with_people") or []:
        if found := Estimate.of(people):
            yield f"It agrees with people ({people['judge']}) on {_agreed(found, people)} comparisons."
    if failed := wins.get("failed"):
        total = failed + (wins.get("n") or 0)
        yield f"{failed:,} of {total:,} comparisons have no readable verdict and are left out of the rate."
    for name, own in (summary.get("answers") or {}).items():
        if failed := own["failed"]:
            yield f"{failed:,} answer{'s' * (failed != 1)} of {name} could not be had."


def _agreed(share: Estimate, raw: Mapping[str, Any]) -> str:
    kappa = Estimate.of(raw.get("kappa"))
    beyond = f", beyond chance κ {kappa.text} ({kappa.between})" if kappa else ""
    return f"{share.text} ({share.between}{beyond}) of {share.n:,}"


def _shows(estimate: Estimate | None) -> bool:
    """Whether an interval lies on one side of a half."""
    return bool(estimate and estimate.interval and not estimate.interval[0] <= HALF <= estimate.interval[1])


def agreeing(summary: Summary) -> Table:
    """Return how far the evaluating judge agrees with who made the labels, and with people."""
    known = summary.get("agreement") or {}
    labels = known.get("with_labels")
    rows: list[list[Value]] = []
    if labels:
        unread = (labels.get("asked") or 0) - labels["n"]
        n = Cell(f"{labels['n']:,}", f"{unread:,} without a verdict" if unread > 0 else "", labels["n"])
        rows.append([f"{_labeller(labels)}, on held-out pairs", *_both(labels), n])
    rows += [[f"{each['judge']}, people", *_both(each), each["n"]] for each in known.get("with_people") or []]
    note = "Equal verdicts, and Cohen's κ: the same beyond chance; 1 is full, 0 is what chance gives."
    return Table("agreeing", (f"{summary.get('judge') or 'the judge'} agrees with", "share", "κ", "n"), rows, note)


def _labeller(labels: Mapping[str, Any]) -> str:
    return "the labels that came" if labels["judge"] == GIVEN else f"{labels['judge']}, who labelled"


def _both(raw: Mapping[str, Any]) -> list[Value]:
    return [Estimate.of(raw), Estimate.of(raw.get("kappa"))]


# --- before and after ----------------------------------------------------------------------------------------------


def before_after(summary: Summary, rows: Sequence[Met]) -> tuple[list[Chart], Table]:
    """Return the charts of the headline's models and any others, and the table of all that was measured of them."""
    models, pairs, (model, against) = models_of(summary), summary.get("held_out_pairs") or {}, headline_of(summary)
    checks = [Measure(check["name"], check, part=True) for check in summary.get("checks") or []]
    passing, scores, lengths = (summary.get(key) or {} for key in ("passing", "scores", "lengths"))
    each = "Share of completions that pass"
    charts = [
        *_outcome(summary.get("win_rate") or {}, model, against),
        *_by_length(rows, model, against),
        *_every("passing", "Passing every check", f"{each} every check", [Measure("", passing)], models),
        *_every("scores", "Mean score", "Mean score of the judge", [Measure("", scores)], models),
        *_every("checks", "Each check", each, checks, (against, model)),
        *_held_out(Estimate.of(pairs.get("accuracy"))),
    ]
    met = {row["model"]: row for row in summary.get("head_to_head") or [] if row.get("against") == against}
    met[model] = summary.get("win_rate") or {}
    changes = summary.get("differences") or {}
    measures = [
        Measure(f"Win rate over {against}", met),
        Measure("at equal length", {name: row.get("length_controlled") for name, row in met.items()}, part=True),
        Measure("interval by bootstrap", {name: _bootstrap(row) for name, row in met.items()}, part=True),
        Measure("Passing every check", passing, changes.get("passing")),
        *(check._replace(change=changes.get(check.name)) for check in checks),
        Measure("Mean score", scores, changes.get("score")),
        Measure("Length in characters", lengths, changes.get("length")),
        *(
            Measure(TEXTS.get(text["name"], text["name"]), text, changes.get(text["name"]))
            for text in summary.get("texts") or []
            if text["name"] != "characters" or not lengths
        ),
    ]
    note = "In grey: 95 % intervals. n counts the values of each model"
    return charts, _sheet("before_after", measures, models, note, change=f"{model} less {against}")


def _sheet(
    name: str, measures: Sequence[Measure], models: Sequence[str], note: str, *, head: str = "measure", change: str = ""
) -> Table:
    """Return a table of the measures that some model has, with a column `change` of differences where they are known."""
    measures = [measure for measure in measures if any(Estimate.of(measure.of.get(model)) for model in models)]
    changed = any(measure.change for measure in measures)
    heads = (head, *models, *([change] if changed else []), "n")
    parts = frozenset(at for at, measure in enumerate(measures) if measure.part)
    note += f"; {change} pairs them by prompt." if changed else "."
    return Table(name, heads, [_line(measure, models, changed=changed) for measure in measures], note, parts)


def probabilities(summary: Summary) -> Table:
    """Return what tuning did to the model's probabilities, which no judge is needed for."""
    pairs, apart = summary.get("held_out_pairs") or {}, summary.get("models_apart") or {}
    perplexity = apart.get("perplexity") or {}
    measures = [
        Measure("Accuracy on held-out pairs", {"tuned": pairs.get("accuracy")}),
        Measure("Reward margin on held-out pairs", {"tuned": pairs.get("margin")}),
        Measure("Perplexity of held-out chosen", perplexity),
        Measure("tuned by base", {"tuned": perplexity.get("ratio")}, part=True),
        *(Measure(name, {"tuned": apart.get(key)}, part=name.islower()) for key, name in APART.items()),
    ]
    warped = apart.get("kl") and not apart.get("unwarped", True)
    note = "The draws were not at temperature 1: what is called KL is not the model's. " if warped else ""
    return _sheet("probabilities", measures, ("base", "tuned"), f"{note}In grey: 95 % intervals")


def _bootstrap(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, **ends} if (ends := row.get("bootstrap")) else {}


def _line(measure: Measure, models: Sequence[str], *, changed: bool) -> list[Value]:
    found = [Estimate.of(measure.of.get(model)) for model in models]
    counts = sorted({each.n for each in found if each})
    n: Value = counts[0] if len(counts) == 1 else Cell(f"{counts[0]:,}–{counts[-1]:,}", value=counts[-1])
    change = Estimate.of(measure.change)
    if change:
        change = change._replace(rate=any(each.rate for each in found if each), change=True)
    return [measure.name, *found, *([change] if changed else []), n]


def _outcome(wins: Mapping[str, Any], model: str, against: str) -> list[Chart]:
    win, tie, loss, inconsistent, failed = (wins.get(key) or 0 for key in ("win", "tie", "loss", "inconsistent", "failed"))
    estimate = Estimate.of(wins)
    if estimate is None or not win + tie + loss + inconsistent:
        return []
    half = f"undecided {tie + inconsistent:,}" if inconsistent else f"ties {tie:,}"
    short = len(model) + len(against) <= SHORT
    words = (f"{model} wins", f"{against} wins") if short else ("won", "lost")
    shares = [(win, f"{words[0]} {win:,}"), (tie + inconsistent, half), (loss, f"{words[1]} {loss:,}")]
    worth = f"{tie:,} ties and {inconsistent:,} verdicts that turned with the order count" if inconsistent else "a tie counts"
    caption = "" if short else f"{model} against {against}. "
    caption += f"Win rate with its 95 % interval; {worth} half. Dashed: no difference. {n_of(estimate.n)} comparisons"
    caption += f", and {failed:,} without a readable verdict." if failed else "."
    return [Chart(outcome("outcome", "Head to head", shares, Bar("win rate", estimate, TUNED)), caption)]


def _every(name: str, title: str, caption: str, measures: Sequence[Measure], models: Sequence[str]) -> list[Chart]:
    looks = colours(models)
    groups = [
        (measure.name, [Bar(model, found, looks[model]) for model in models if (found := Estimate.of(measure.of.get(model)))])
        for measure in measures
    ]
    groups = [(name, group) for name, group in groups if group]
    if not groups:
        return []
    some, left = groups[:MOST_GROUPS], len(groups) - MOST_GROUPS
    counts = sorted({bar.estimate.n for _, group in some for bar in group})
    n = n_of(counts[0]) if len(counts) == 1 else f"{n_of(counts[0])} to {counts[-1]:,}"
    rest = f" The other {left:,} are in the table." if left > 0 else ""
    return [Chart(bars(name, title, some), f"{caption}, with 95 % intervals. {n} for each model.{rest}")]


def colours(models: Sequence[str]) -> dict[str, str]:
    """Return the colour of every model, in the order of `models_of`, the same in every chart."""
    return {model: (BASE, TUNED)[at] if at < 2 else OTHERS[(at - 2) % len(OTHERS)] for at, model in enumerate(models)}


def _held_out(accuracy: Estimate | None) -> list[Chart]:
    if accuracy is None:
        return []
    caption = f"Share of held-out pairs where tuning raised the chosen completion more. Dashed: a coin. {n_of(accuracy.n)}."
    return [Chart(bars("held_out", "Accuracy on held-out pairs", [("", [Bar("tuned", accuracy, TUNED)])], half=True), caption)]


def _by_length(rows: Sequence[Met], model: str, against: str) -> list[Chart]:
    bins = by_length(rows)
    if not bins:
        return []
    short = len(model) + len(against) <= SHORT
    n = n_of(sum(each.estimate.n for each in bins))
    caption = f"Share of comparisons that {model} won, ties counting half, with 95 % intervals. Where columns rise to the right, "
    caption += f"longer answers win. Dashed: no difference. {n}."
    across = f"characters that {model} is longer than {against}" if short else "characters that the model is longer"
    return [Chart(columns("length", "Length against outcome", across, bins), caption)]


# --- several models, several kinds of prompts ----------------------------------------------------------------------


def everybody(summary: Summary) -> tuple[list[Chart], list[Table]]:
    """Return the charts and tables of more meetings than the headline's: win rates and ratings."""
    charts, tables, looks = [], [], colours(models_of(summary))
    met = [row for row in summary.get("head_to_head") or [] if Estimate.of(row)]
    if len(met) > 1:
        some = met[:MOST_GROUPS]
        groups = [
            (f"{row['model']} against {row['against']}", [Bar(f"n = {found.n:,}", found, looks.get(row["model"], BASE))])
            for row in some
            if (found := Estimate.of(row))
        ]
        rest = f" The other {len(met) - len(some):,} are in the table." if len(met) > len(some) else ""
        caption = "Share that the first one won, ties counting half, with 95 % intervals. Dashed: no difference. "
        caption += f"{n_of(sum(row.get('n') or 0 for row in some))} comparisons in all.{rest}"
        charts.append(Chart(bars("head_to_head", "Every meeting", groups, half=True), caption))
        tables.append(_meetings(met))
    ratings = [(row["model"], found) for row in summary.get("ratings") or [] if (found := Estimate.of(row))]
    if ratings:
        rungs = [Bar(model, found, looks.get(model, BASE)) for model, found in ratings]
        caption = "Bradley-Terry ratings from all meetings, with 95 % intervals. 400 points apart means ten wins to one. "
        caption += f"{n_of(max(found.n for _, found in ratings))} comparisons for the one that met most."
        charts.append(Chart(ladder("ratings", "Ratings", rungs), caption))
        ordered = sorted(ratings, key=lambda each: -each[1].value)
        tables.append(Table("ratings", ("model", "rating", "n"), [[model, found, found.n] for model, found in ordered]))
    return charts, tables


def _meetings(met: Sequence[Mapping[str, Any]]) -> Table:
    counted = {"win": "won", "tie": "tied", "loss": "lost", "inconsistent": "turned", "failed": "unread"}
    plain = {"p_value": "p", "n": "n", "prompts": "prompts", **counted, "prompts_needed": "prompts needed"}
    heads = ("model", "against", "win rate", "equal length", *plain.values())
    rows = [
        [row["model"], row["against"], Estimate.of(row), Estimate.of(row.get("length_controlled")), *_counts(row, plain)]
        for row in met
    ]
    note = "Turned: verdicts that contradict each other after a swap count half. Unread: failed, and in no rate. "
    note += "p: paired test over prompts. Prompts needed: to show a difference of the size that was found."
    return Table("head_to_head", heads, rows, note)


def _counts(row: Mapping[str, Any], keys: Mapping[str, str]) -> list[Value]:
    return [Cell(f"{found:.2g}", value=found) if isinstance(found := row.get(key), float) else found for key in keys]


def categories(summary: Summary) -> Table | None:
    """Return the win rate over the baseline by category of prompts; None where prompts have none."""
    model, against = headline_of(summary)
    rows = [row for row in summary.get("head_to_head") or [] if row.get("against") == against and row.get("model") != model]
    met = {model: summary.get("win_rate") or {}, **{row["model"]: row for row in rows}}
    found = {name: {each["name"]: each for each in row.get("categories") or []} for name, row in met.items()}
    models = [name for name, own in found.items() if own]
    names = {name: None for model in models for name in found[model]}
    if not names:
        return None
    measures = [Measure(name, {model: found[model].get(name) for model in models}) for name in names]
    note = f"Win rate over {against}, ties counting half. Of {len(names)} intervals about one in twenty misses by chance alone"
    return _sheet("categories", measures, models, note, head="category")


def n_of(count: int) -> str:
    """Return n as captions say it."""
    return f"n\u00a0=\u00a0{count:,}"
