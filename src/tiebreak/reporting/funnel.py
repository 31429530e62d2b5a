"""Where every prompt, completion, verdict and pair of a run went, step by step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tiebreak.reporting.figures import Table, Value
from tiebreak.run import Run


class Step(NamedTuple):
    """One step of the funnel: what came out of what went in, and where the rest went."""

    name: str
    kept: int
    of: int
    went_in: str
    came_out: str
    dropped: dict[str, int]
    also: dict[str, int]

    @property
    def why(self) -> str:
        """Where the rest went."""
        return " · ".join(f"{count:,} {reason}" for reason, count in self.dropped.items() if count)


def funnel(run: Run, summary: Mapping[str, Any]) -> list[Step]:
    """Return the steps from prompts to pairs, or to the verdict where no pairs are made."""
    steps = []
    if prepared := run.counts("prepare"):
        also = {"for training": prepared["train"], "held out": prepared["test"]} if prepared["train"] else {}
        if prepared["prompts"] != prepared["kept"]:  # ready-made pairs may share a prompt
            also = {"distinct prompts": prepared["prompts"], **also}
        steps.append(Step("Prompts", prepared["kept"], prepared["rows"], "rows read", "kept", prepared["dropped"], also))
    if labels := prepared.get("labels"):
        good, bad, disputed = labels["good"], labels["bad"], labels["disputed"]
        dropped, also = {"called good as often as bad": disputed}, {"good": good, "bad": bad}
        steps.append(Step("Labelled answers", good + bad, good + bad + disputed, "labelled", "good or bad", dropped, also))
    return [*steps, *(_to_pairs(run) if run.recipe.makes_pairs else _to_verdict(summary))]


def _to_pairs(run: Run) -> Iterator[Step]:
    drawn = run.counts("generate")
    if drawn.get("drawn"):
        also = {"cut at the token limit": drawn["cut"], "calls that failed": drawn.get("failed", 0)}
        yield Step("Completions", drawn["distinct"], drawn["drawn"], "drawn", "distinct", {"identical": drawn["identical"]}, also)
    for name, judged in run.counts("judge").items():
        asked, errors = judged["records"], judged["errors"]
        words = {"questions": "pairs asked about", "ties": "ties", "inconsistent": "inconsistent"}
        also = {word: judged[key] for key, word in words.items() if judged.get(key) is not None}
        if asked:
            dropped = {"failed or unreadable": errors}
            yield Step(f"Verdicts: {name}", asked - errors, asked, "asked for", "given", dropped, also)
    paired = run.counts("pair")
    for part, name in (("train", "Pairs for training"), ("held_out", "Held-out pairs")):
        if part in paired:
            made = paired[part]
            yield Step(name, made["usable"], made["attempted"], "attempted", "usable", made["dropped"], {})


def _to_verdict(summary: Mapping[str, Any]) -> Iterator[Step]:
    for name, own in (summary.get("answers") or {}).items():
        given, failed = own["given"], own["failed"]
        if given + failed:
            also = {"cut at the token limit": own["cut"]}
            yield Step(f"Answers: {name}", given, given + failed, "wanted", "given", {"not to be had": failed}, also)
    wins = summary.get("win_rate") or {}
    kinds = {"tie": "ties", "inconsistent": "inconsistent", "failed": "unreadable"}
    dropped = {word: wins.get(key) or 0 for key, word in kinds.items()}
    won = (wins.get("win") or 0) + (wins.get("loss") or 0)
    if whole := won + sum(dropped.values()):
        yield Step("Comparisons", won, whole, "answers met", "won or lost", dropped, {})


def funnel_table(steps: Sequence[Step]) -> Table:
    """Return every count of the steps."""
    lines: list[list[Value]] = []
    for step in steps:
        counts = [(step.went_in, step.of), *step.dropped.items(), (step.came_out, step.kept), *step.also.items()]
        lines += [[step.name, what, count] for what, count in counts]
    return Table("funnel", ("step", "what", "count"), lines)
