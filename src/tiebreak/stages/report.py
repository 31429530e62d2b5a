"""report: one self-contained page that says whether the model got better, and shows on what grounds."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import combinations
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tiebreak.files import read_json, read_jsonl, write_text
from tiebreak.metrics.agreement import Agreement, Verdicts, agreement
from tiebreak.metrics.findings import Finding
from tiebreak.metrics.rules import SEVERITIES
from tiebreak.metrics.versus import headline_of
from tiebreak.recipe import CascadeJudge, PanelJudge
from tiebreak.recipe_yaml import SHIPPED
from tiebreak.records import InputError, Logged
from tiebreak.reporting.charts import CHOSEN, REJECTED, TUNED, Curve, Estimate, curves
from tiebreak.reporting.figures import Cell, Chart, Table, Value, leading, write_figures
from tiebreak.reporting.funnel import funnel, funnel_table
from tiebreak.reporting.meetings import read_meetings
from tiebreak.reporting.reading import to_read
from tiebreak.reporting.repeated import Loop, of_loop, read_loop, repeated
from tiebreak.reporting.results import (
    agreeing,
    before_after,
    categories,
    everybody,
    models_of,
    n_of,
    probabilities,
    qualifications,
)
from tiebreak.reporting.view import CSS, AuditFile, Seen, as_html
from tiebreak.run import STAGES, Counts, Run
from tiebreak.samplers.ledger import dollars, spent
from tiebreak.stages.trust import judge_table, trust
from tiebreak.stages.twos import twos

LARGEST = 2_000_000
"""Bytes of the page."""
FOLDED, LONGEST = 480, (10_000, 3_000, 1_000, 300)
"""Characters of a text that is folded, and of one whose rest is left to its file: the most that keep the page small enough."""
MOST_POINTS = 300
"""Of a curve, which is less than 300 pixels wide."""


def report(run: Run) -> Counts:
    """Write `report.html` and `figures/` from whatever the other stages left; raise InputError on a broken file."""
    summary, loop = run.summary, read_loop(run)
    word, sentence = _headline(run, summary, loop)
    met, audit, steps, trusted = read_meetings(run), _audit(run), funnel(run, summary), trust(run)
    findings = audit.findings if audit else ()
    compared, results = before_after(summary, met.rows)
    meetings, tables = everybody(summary)
    courses, children = repeated(run)
    training, examples = _training(run), to_read(met.rows, run.recipe.seed)
    measures, *lines = judge_table(trusted)
    judges = Table(
        "judges",
        ("measure", *measures[1]),
        [
            [measure, *(Cell(cell.replace("n = ", "n\u00a0=\u00a0"), value=leading(cell)) for cell in cells)]
            for measure, cells in lines
        ],
    )
    named = {
        "results": results,
        "probabilities": probabilities(summary),
        "judges": judges,
        "agreement": _agreement(run),
        "agreeing": agreeing(summary),
        "categories": categories(summary),
        "stages": Table("stages", ("stage", "state", "time"), _stages(run)),
    }
    values = named | {
        "run": run,
        "summary": summary,
        "word": word,
        "sentence": sentence,
        "qualified": [*qualifications(summary), *_found(findings)],
        "skipped": run.counts("train").get("skipped"),
        "numbers": _numbers(run, summary, loop),
        "finished": _finished(run),
        "funnel": steps,
        "courses": courses,
        "children": children,
        "audit": audit,
        "together": trusted.together,
        "accepted": run.accepts_canary_failures and any(own.canaries and own.canaries.failed for own in trusted.judges),
        "compared": compared,
        "meetings": meetings,
        "tables": tables,
        "met": met,
        "models": models_of(summary),
        "trained": {"steps": 0, "pairs": 0, "rows": {}} | run.counts("train"),
        "training": training,
        "warned": [
            (line.step, told) for line in read_jsonl(run.metrics_jsonl, Logged) if (told := getattr(line, "sentence", None))
        ],
        "examples": examples,
        "shown": (shown := sum(len(group) for _, group in examples)),
        "all_examples": len(met.rows),
        "verdicts": sorted({row.verdict for _, group in examples for row in group}),
        "versions": _versions(run),
        "command": _command(run),
        "recipe": yaml.safe_dump(run.recipe.model_dump(mode="json", exclude={"profiles"}), sort_keys=False, allow_unicode=True),
        "folded": FOLDED,
    }
    page = _page(values)
    write_text(run.report_html, page)
    charts = [*courses, *compared, *meetings, *training]
    every = (*children, *named.values(), *tables, funnel_table(steps), _findings_table(findings))
    files = [table for table in every if table and table.rows]
    write_figures(run.figures, charts, files)
    return {"charts": len(charts), "tables": len(files), "examples": shown, "bytes": len(page.encode())}


def _page(values: dict[str, Any]) -> str:
    """Return the page, its texts cut as far as it takes to keep it small."""
    loader = PackageLoader("tiebreak.reporting", "")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template, page = environment.get_template("report.html"), ""
    script = loader.get_source(environment, "report.js")[0]
    values = {
        **values,
        "look_of_tokens": Markup(CSS),  # noqa: S704
        "script": Markup(script),  # noqa: S704  our own file
        "allowed": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }
    drawn = {id(chart): chart.drawing.inline for key in ("courses", "compared", "meetings", "training") for chart in values[key]}
    for longest in LONGEST:
        page = template.render(values, longest=longest, inline=lambda chart: drawn[id(chart)], tokens=_tokens)
        page = page.encode("utf-8", "replace").decode()  # a lone surrogate from a model has no place in UTF-8
        if len(page.encode()) <= LARGEST:
            break
    return page


# --- the answer ----------------------------------------------------------------------------------------------------


def _headline(run: Run, summary: dict[str, Any], loop: Loop | None) -> tuple[str, str]:
    if summary:
        return summary["verdict"]["word"], summary["verdict"]["sentence"].replace(" %", "\u00a0%")
    if loop and loop.sentence:  # rounds that came to nothing, or trials, which have verdicts of their own
        first = loop.sentence.replace(" %", "\u00a0%").split(". ")[0].rstrip(".")
        return (loop.kind, f"{first}.") if loop.rows else ("not trained", loop.sentence)
    if skipped := run.counts("train").get("skipped"):
        return "not trained", f"The model was not trained: {str(skipped).rstrip('.')}."
    owed = [stage for stage in run.stages[:-1] if run.state(stage) != "done"]
    if owed not in ([], ["evaluate"]):
        return "not finished", f"This run is not finished: {owed[0]} is {run.state(owed[0])}."
    why = "the recipe has no evaluate section" if run.recipe.evaluate is None else f"evaluate is {run.state('evaluate')}"
    if run.recipe.train is not None or run.recipe.evaluate is not None:
        trained = "The model was trained, but not compared with its base"
        return "not compared", f"{trained if run.recipe.train is not None else 'The models were not compared'}: {why}."
    usable = run.counts("pair").get("train", {}).get("usable", 0)
    return "pairs made", f"{usable:,} preference pairs to train on; nothing was trained, as the recipe says."


def _numbers(run: Run, summary: dict[str, Any], loop: Loop | None) -> list[tuple[str, str, str]]:
    """Return the numbers at the top as (name, value, note)."""
    if not summary and loop and loop.rows:
        return [*of_loop(loop), ("cost", *_cost(run))]
    numbers, (model, against), rate = [], headline_of(summary), summary.get("win_rate") or {}
    if run.recipe.train is not None or run.recipe.evaluate is not None:
        won = ("–", "not measured")
        if estimate := Estimate.of(rate):
            on = f"{n_of(estimate.n)} comparisons on {rate.get('prompts') or 0:,} prompts"
            won = (estimate.text, f"95 % interval {estimate.between}, {on}")
        numbers.append((f"win rate of {model} over {against}", *won))
    if run.recipe.makes_pairs:
        used, pairs = ("–", "none made yet"), run.counts("pair").get("train")
        if pairs:
            share = 100 * pairs["usable"] / max(1, pairs["attempted"])
            used = (f"{pairs['usable']:,} of {pairs['attempted']:,}", f"{share:.0f} % of those for training")
        numbers.append(("pairs used of attempted", *used))
    else:
        told = ("–", "none yet")
        if rate:
            asked = (rate.get("n") or 0) + (rate.get("failed") or 0)
            ties = rate.get("tie") or 0
            kinds = f"{ties:,} tie{'s' * (ties != 1)}, {rate.get('inconsistent') or 0:,} that turned with the order"
            told = (f"{rate.get('n') or 0:,} of {asked:,}", kinds)
        numbers.append(("comparisons with a verdict", *told))
    return [*numbers, ("cost", *_cost(run))]


def _cost(run: Run) -> tuple[str, str]:
    used = spent(run.calls_sqlite).values()
    known = [part.cost for part in used if part.cost is not None]
    if len(known) < len(used):
        return "unknown", f"at least {dollars(sum(known))}; no price is known of some models" if any(
            known
        ) else "no price is known"
    return (f"${sum(known):,.2f}", "paid to the providers") if any(known) else ("free", "nothing was paid")


def _finished(run: Run) -> str:
    times = [entry["finished"] for stage, entry in run.manifest["stages"].items() if stage != "report" and "finished" in entry]
    day = datetime.fromtimestamp(max(times, default=0), UTC)
    return f"{day.day} {day:%B %Y}" if times else ""


# --- the audit, and who agrees with whom ---------------------------------------------------------------------------


def _audit(run: Run) -> AuditFile | None:
    """Return what the audit found, the worst first; None where there was none."""
    if not run.audit_json.exists():
        return None
    try:
        audit = AuditFile.model_validate(read_json(run.audit_json))
    except ValueError as error:
        why = str(error).partition(" [type=")[0]
        raise InputError(f"{run.audit_json}: cannot be read: {why}; repeat it with --redo audit") from None
    ordered = sorted(audit.findings, key=lambda finding: SEVERITIES.index(finding.severity))
    return audit.model_copy(update={"findings": tuple(ordered)})


def _tokens(seen: Seen, most: int) -> Markup:
    """Return an answer as training sees it, the prompt cut from the left."""
    if (count := len(seen.tokens)) > most:
        where = f"{seen.where}, the last {most:,} of {count:,} tokens"
        seen = seen.model_copy(update={"tokens": seen.tokens[-most:], "where": where})
    return Markup(as_html(seen))  # noqa: S704  which escapes the texts


def _found(findings: Sequence[Finding]) -> list[str]:
    counts = Counter(finding.severity for finding in findings)
    told = [f"{counts[name]:,} {name}{'s' * (counts[name] > 1)}" for name in SEVERITIES if counts[name] and name != "note"]
    return [f"The audit of the data has {' and '.join(told)}: see below."] if told else []


def _findings_table(findings: Sequence[Finding]) -> Table:
    heads = ("severity", "code", "count", "of", "sentence", "what_to_do")
    return Table("audit", heads, [[getattr(finding, head) for head in heads] for finding in findings])


def _agreement(run: Run) -> Table | None:
    """Return Cohen's kappa of every two judges; None with fewer than two that decide for themselves."""
    names = [judge.name for judge in run.recipe.judges if not isinstance(judge, PanelJudge | CascadeJudge)]
    verdicts = {name: Verdicts(found) for name in names if (found := run.verdicts(run.judgments(name)))}
    if len(verdicts) < 2:
        return None
    asked, kappas = twos(run), {}
    for one, other in combinations(verdicts, 2):
        kappas[one, other] = kappas[other, one] = _kappa(agreement([verdicts[one], verdicts[other]], asked))
    rows: list[list[Value]] = [[one, *(kappas.get((one, other)) for other in verdicts)] for one in verdicts]
    note = "Agreement of every two judges on the same twos beyond chance: Cohen's κ, 1 is full, 0 is what chance gives."
    return Table("agreement", ("judge", *verdicts), rows, note, shaded=True)


def _kappa(found: Agreement | None) -> Value:
    if found is None:
        return None
    if found.kappa is None:
        return Cell("all the same", f"n\u00a0=\u00a0{found.share.n:,}")
    value, low, high, n, _ = found.kappa
    return Estimate(value, (low, high), n)


# --- training ------------------------------------------------------------------------------------------------------


def _training(run: Run) -> list[Chart]:
    series: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for line in read_jsonl(run.metrics_jsonl, Logged):
        for key, value in line.model_dump().items():
            if isinstance(value, int | float) and isfinite(value):
                series[key].append((line.step, value))
    pairs = run.counts("pair")
    n = f"{n_of(pairs['train']['usable'])} training and {pairs['held_out']['usable']:,} held-out pairs." if pairs else ""
    charts = []
    for chart, title, names, caption, half in (
        ("loss", "Loss", {"loss": TUNED}, "Lower is better.", False),
        (
            "rewards",
            "Rewards",
            {"rewards/chosen": CHOSEN, "rewards/rejected": REJECTED},
            "How much likelier than before the tuning, times beta.",
            False,
        ),
        (
            "accuracy",
            "Accuracy",
            {"rewards/accuracies": TUNED},
            "Share of pairs whose chosen completion has the higher reward. Dashed: a coin.",
            True,
        ),
        ("margins", "Margin", {"rewards/margins": TUNED}, "Reward of the chosen less that of the rejected.", False),
    ):
        lines = []
        for name, colour in names.items():
            held_out, plain = (_thinned(series.get(key, [])) for key in (f"eval_{name}", name))
            word = name.rpartition("/")[2] if len(names) > 1 else ""
            if plain:
                lines.append(Curve("" if word and held_out else word or "training", colour, plain))
            if held_out:
                lines.append(Curve(word or "held-out", colour, held_out, held_out=True))
        if lines:
            thin = " Each point is the mean of several steps." if len(series.get(next(iter(names)), [])) > MOST_POINTS else ""
            charts.append(Chart(curves(chart, title, lines, half=half), f"{caption} {n}{thin}"))
    return charts


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return at most MOST_POINTS points, each the mean of as many neighbours, at the last one's step."""
    size = -(-len(points) // MOST_POINTS) or 1
    groups = [points[at : at + size] for at in range(0, len(points), size)]
    return [(group[-1][0], fmean(value for _, value in group)) for group in groups]


# --- settings ------------------------------------------------------------------------------------------------------


def _command(run: Run) -> str:
    folder = Path(run.manifest["recipe_folder"])
    recipe = run.recipe.name if folder == SHIPPED else run.manifest["recipe_file"]
    profile = ["--profile", run.manifest["profile"]] if run.manifest["profile"] else []
    return shlex.join(["tiebreak", "run", recipe, "--run", f"runs/{run.recipe.name}-again", *profile, *run.manifest["overrides"]])


def _stages(run: Run) -> list[list[Value]]:
    done = [(stage, run.manifest["stages"][stage]) for stage in STAGES[:-1] if stage in run.manifest["stages"]]
    return [[stage, entry["state"], Cell(_duration(entry["seconds"]), value=entry["seconds"])] for stage, entry in done]


def _versions(run: Run) -> dict[str, str]:
    """Return each package's version; more than one where stages ran with different ones."""
    seen: dict[str, dict[str, None]] = defaultdict(dict)
    for stage in STAGES[:-1]:
        for package, version in run.manifest["stages"].get(stage, {}).get("versions", {}).items():
            seen[package][version] = None
    return {package: ", then ".join(versions) for package, versions in seen.items()}


# --- files and words -----------------------------------------------------------------------------------------------


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
