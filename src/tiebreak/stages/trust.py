"""What a run's own records say of its judges: bias, agreement, canaries, cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tiebreak.judges.build import part_of
from tiebreak.judges.canaries import CanaryResult
from tiebreak.metrics.agreement import Agreement, Two, Verdicts, agreement
from tiebreak.metrics.bias import Bias, bias
from tiebreak.metrics.winrate import Estimate
from tiebreak.recipe import ApiModel, ApiSampler, CascadeJudge, Judge, LlmJudge, PairRmJudge, PanelJudge, RewardJudge
from tiebreak.run import Run
from tiebreak.samplers.ledger import Spent, spent
from tiebreak.stages.judge import canary_result
from tiebreak.stages.twos import met, twos


class Trust(NamedTuple):
    """One judge, as its records show it."""

    name: str
    kind: str
    records: int
    bias: Bias
    canaries: CanaryResult | None
    with_label: Agreement | None
    """With the judge whose verdicts make the pairs; None for itself."""
    spent: Spent | None


class Panel(NamedTuple):
    """All judges of a run, and how far those that decide for themselves agree."""

    judges: list[Trust]
    together: Agreement | None


def trust(run: Run) -> Panel:
    """Measure every judge of a run that has given verdicts: on its completions, or where it makes no pairs in its evaluation."""
    place = run.judgments if run.recipe.makes_pairs else run.eval_judgments
    sections = [section for section in run.recipe.judges if place(section.name).exists()]
    if not sections:
        return Panel([], None)
    asked, used = twos(run) if run.recipe.makes_pairs else met(run), spent(run.calls_sqlite)
    records = {section.name: run.verdicts(place(section.name)) for section in sections}
    verdicts = {name: Verdicts(own) for name, own in records.items()}
    deciders = [
        section.name for section in sections if not isinstance(section, PanelJudge | CascadeJudge) and records[section.name]
    ]
    deciding = run.recipe.labelling_judge
    if not run.recipe.makes_pairs and run.recipe.evaluating_judge is not None:
        deciding = run.recipe.evaluating_judge.name
    labels = Verdicts(run.verdicts(place(deciding)))
    judges = []
    for section in sections:
        name = section.name
        others = [verdicts[other] for other in deciders if other != name]
        judges.append(
            Trust(
                name,
                section.type,
                len(records[name]),
                bias(records[name], asked, own_samplers(run, section), others),
                _canaries(run, section, asked),
                agreement([labels, verdicts[name]], asked) if name != deciding else None,
                used.get(part_of(section)),
            )
        )
    return Panel(judges, agreement([verdicts[name] for name in deciders], asked) if len(deciders) > 2 else None)


def _canaries(run: Run, section: Judge, asked: list[Two]) -> CanaryResult | None:
    if not isinstance(section, LlmJudge | PairRmJudge | RewardJudge) or not run.canaries(section.name).exists():
        return None
    return canary_result(run, section, asked)


def own_samplers(run: Run, section: Judge) -> set[str]:
    """Return the labels of the samplers whose model is the judge's; where no pairs are made, of the models that meet."""
    if not isinstance(section, LlmJudge):
        return set()
    whole, own = run.recipe, set()
    if not whole.makes_pairs:
        other = whole.evaluate.named if whole.evaluate else {}
        api = {name: model for name, model in other.items() if isinstance(model, ApiModel)}
        return {name for name, model in api.items() if (model.provider, model.model) == (section.provider, section.model)}
    for sampler in whole.generate:
        if isinstance(sampler, ApiSampler):
            same = (sampler.provider, sampler.model) == (section.provider, section.model)
        else:
            same = section.provider == "local" and (sampler.model or whole.model).name_or_path == section.model
        if same:
            own.add(sampler.label)
    return own


# --- in words ------------------------------------------------------------------------------------------------------


def judge_table(panel: Panel) -> list[tuple[str, list[str]]]:
    """Return a line for each measure with a cell for each judge, in words; what nobody has is left out."""
    rows = [("", [f"{judge.name} ({judge.kind})" for judge in panel.judges])]
    for measure, of in MEASURES.items():
        cells = [of(judge) for judge in panel.judges]
        if any(cells):
            rows.append((measure, [cell or "–" for cell in cells]))
    return rows


def _between(estimate: Estimate | None) -> str:
    return f"{estimate.value:.2f} ({estimate.low:.2f}–{estimate.high:.2f}), n = {estimate.n:,}" if estimate else ""


def _agreed(found: Agreement | None) -> str:
    if found is None:
        return ""
    return f"κ {_between(found.kappa)}" if found.kappa else f"all the same, n = {found.share.n:,}"


def _passed(found: CanaryResult | None) -> str:
    if found is None:
        return ""
    parts = [
        (found.identical_passed, found.identical_asked, "beside itself"),
        (found.garbage_passed, found.garbage_asked, "garbage"),
    ]
    return ", ".join(f"{passed} of {asked} {what}" for passed, asked, what in parts if asked) + (
        " (failed)" if found.failed else ""
    )


MEASURES: dict[str, Callable[[Trust], str]] = {
    "verdicts": lambda judge: f"{judge.records:,}",
    "failed or unreadable": lambda judge: _between(judge.bias.errors),
    "ties": lambda judge: _between(judge.bias.ties),
    "contradicts itself after a swap": lambda judge: _between(judge.bias.flips),
    "names what came first (0.5 is fair)": lambda judge: _between(judge.bias.first),
    "names the text of twice the length": lambda judge: _between(judge.bias.length),
    "prefers its own model's text by": lambda judge: _between(judge.bias.own and judge.bias.own.excess),
    "agreement with the labelling judge": lambda judge: _agreed(judge.with_label),
    "canaries passed": lambda judge: _passed(judge.canaries),
    "cost": lambda judge: str(judge.spent or ""),
}
