"""Runs side by side, and AlpacaEval's annotations beside them: what came of each, and in which settings runs differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tiebreak.exchange.formats import read_annotations
from tiebreak.files import read_json
from tiebreak.metrics.agreement import WORTH
from tiebreak.metrics.length_control import length_controlled
from tiebreak.metrics.versus import headline_of, plain, word
from tiebreak.metrics.winrate import rate
from tiebreak.records import Comparison
from tiebreak.run import Run
from tiebreak.samplers.ledger import spent

Column = Run | Path
"""A run, or a file of annotations."""


def compare(columns: Sequence[Column]) -> list[tuple[str, list[str]]]:
    """Return lines of (measure or key, a cell for each column): results first, then every setting that runs do not share."""
    results = [_results(column) if isinstance(column, Run) else _annotated(column) for column in columns]
    names = {name: None for result in results for name in result}
    lines = [(name, [result.get(name, "–") for result in results]) for name in names]
    recipes = [column.recipe for column in columns if isinstance(column, Run)]
    settings = [_flat(recipe.model_dump(mode="json", exclude={"name", "profiles"})) for recipe in recipes]
    for key in {key: None for own in settings for key in own}:
        values = [json.dumps(own[key], ensure_ascii=False) if key in own else "–" for own in settings]
        if len(set(values)) > 1:
            cells = iter(values)
            lines.append((key, [next(cells) if isinstance(column, Run) else "–" for column in columns]))
    return lines


def _results(run: Run) -> dict[str, str]:
    summary = read_json(run.summary_json) if run.summary_json.exists() else {}
    pairs = run.counts("pair").get("train") or {}
    costs = [part.cost for part in spent(run.calls_sqlite).values()]
    accuracy = (summary.get("held_out_pairs") or {}).get("accuracy")
    wins, (model, against) = summary.get("win_rate") or {}, headline_of(summary)
    found = {
        "verdict": (summary.get("verdict") or {}).get("word", "not evaluated"),
        **_won(wins, model, against),
        "accuracy on held-out pairs": _estimate(accuracy),
        "judged by": summary.get("judge") or "",
        "training pairs": f"{pairs['usable']:,} of {pairs['attempted']:,}" if pairs else "",
        "cost": "unknown" if None in costs else f"${sum(each for each in costs if each is not None):,.2f}",
        "seconds": f"{sum(entry.get('seconds', 0) for entry in run.manifest['stages'].values()):,.0f}",
    }
    for name in ("scores", "passing", "lengths"):
        found |= {f"{name}, {model}": _estimate(each) for model, each in (summary.get(name) or {}).items()}
    return {name: text for name, text in found.items() if text}


def _annotated(path: Path) -> dict[str, str]:
    """Return what annotations come to, generator_2 over generator_1, as AlpacaEval counts them; raises InputError."""
    annotations = read_annotations(path)
    lengths = {each.id: len(each.text) for each in annotations.completions}
    met: dict[tuple[str, str], list[Comparison]] = {}
    for one in annotations.comparisons:
        said = json.loads(one.raw)  # what the entry holds beside its texts
        against, model = (str(said.get(f"generator_{at}") or f"output_{at}") for at in (1, 2))
        met.setdefault((model, against), []).append(one)
    found: dict[str, str] = {}
    for (model, against), verdicts in met.items():
        wins = _counted(verdicts, lengths)
        found |= {"verdict": word(wins["low"], wins["high"]) if wins["n"] else "not compared"} if len(met) == 1 else {}
        found |= _won(wins, model, against, f", {model} over {against}" if len(met) > 1 else "")
    costs = [one.cost for one in annotations.comparisons if one.cost is not None]
    found["judged by"] = ", ".join(dict.fromkeys(one.judge for one in annotations.comparisons))
    found["cost"] = f"${sum(costs):,.2f}" if costs else ""
    return {name: text for name, text in found.items() if text}


def _counted(verdicts: Sequence[Comparison], lengths: Mapping[str, int]) -> dict[str, Any]:
    """Return the second one's win rate as summary.json has it; a preference between 1 and 2 counts as the share it is."""
    by_prompt: dict[str, list[tuple[float, int, int]]] = {}
    for one in verdicts:
        if one.winner is not None:
            share = 1 - (WORTH[one.winner] if one.probability is None else one.probability)
            by_prompt.setdefault(one.prompt_id, []).append((share, lengths[one.second], lengths[one.first]))
    rows = list(by_prompt.values())
    won, even = rate([[row[0] for row in group] for group in rows]), length_controlled(rows)
    return {
        **(plain(won) if won else {"n": 0}),
        "length_controlled": plain(even.estimate) if even.estimate else None,
        "tie": sum(one.winner == "tie" for one in verdicts),
        "failed": sum(one.winner is None for one in verdicts),
    }


def _won(wins: Mapping[str, Any], model: str, against: str, who: str = "") -> dict[str, str]:
    """Return a win rate with what qualifies it, in words; `who` tells several of one column apart."""
    counts = {"ties": wins.get("tie"), "without a verdict": wins.get("failed")}
    return {
        f"win rate of {model} over {against}": _estimate(wins),
        f"length-controlled{who}": _estimate(wins.get("length_controlled")),
        **{f"{name}{who}": "" if count is None else f"{count:,}" for name, count in counts.items()},
    }


def _estimate(raw: Mapping[str, Any] | None) -> str:
    """Write an estimate of summary.json."""
    if not raw or raw.get("rate", raw.get("mean")) is None:
        return ""
    value = raw.get("rate", raw.get("mean"))
    between = "" if raw["low"] is None else f" ({raw['low']:.3g}–{raw['high']:.3g})"
    return f"{value:.3g}{between}, n = {raw['n']:,}"


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested settings by dotted key."""
    if isinstance(tree, dict):
        return {key: value for name, inner in tree.items() for key, value in _flat(inner, f"{prefix}.{name}".lstrip(".")).items()}
    if isinstance(tree, list) and any(isinstance(each, dict) for each in tree):
        return {key: value for at, inner in enumerate(tree) for key, value in _flat(inner, f"{prefix}.{at}").items()}
    return {prefix: tree}
