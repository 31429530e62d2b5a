from __future__ import annotations

import base64
import copy
import csv
import hashlib
import html
import json
import math
import random
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

import tiebreak
from tiebreak.files import write_json, write_jsonl
from tiebreak.recipe import Price
from tiebreak.records import Comparison, Completion, InputError, Message, Prompt
from tiebreak.reporting.charts import BASE, CHOSEN, INK, REJECTED, TUNED, Estimate
from tiebreak.run import OPTIONAL, STAGES, Run
from tiebreak.samplers.ledger import Call, Ledger
from tiebreak.stages.report import report

STAGES = tuple(stage for stage in STAGES if stage not in OPTIONAL)  # the others: test_sft_stage.py

RECIPE = """
name: titles
model: {name_or_path: builtin:smollm2-135m-instruct}
prompts: {items: [A video about bees, A video about bread], test_fraction: 0.5}
generate: {type: local, n: 5, temperature: 0.9}
judges: {type: rules, checks: [{check: one_line}, {check: length, min: 30, max: 75}]}
pair: {min_margin: 0.1}
train: {learning_rate: 1.0e-5, num_train_epochs: 3}
"""
IDEAS = [
    "Repairing a hand-wound wristwatch from 1952 on the kitchen table",
    "Why the tide comes twice a day, shown with a bathtub and a lamp",
    "A week of lunches for under ten pounds, cooked without an oven",
    "How a small town brought its last cinema back from closing",
    "Learning to juggle three clubs in thirty days, filmed every day",
    "What the rings of an oak tell about the summers it lived through",
    "Building a loft bed with two saws and no screws",
    "The night train across Sweden, from the driver's seat",
]
COUNTS: dict[str, dict[str, Any]] = {
    "prepare": {
        "rows": 124, "kept": 120, "dropped": {"duplicate": 3, "max_characters": 1}, "prompts": 120, "train": 96, "test": 24,
    },
    "generate": {"drawn": 600, "distinct": 581, "identical": 19, "cut": 12, "failed": 0},
    "judge": {"rules": {"kind": "rules", "records": 581, "errors": 0, "ties": 0, "inconsistent": None}},
    "pair": {
        "train": {
            "attempted": 926, "usable": 586,
            "dropped": {"identical": 31, "tie": 208, "too close": 101, "inconsistent": 0, "unreadable": 0, "empty": 0},
        },
        "held_out": {
            "attempted": 231, "usable": 149,
            "dropped": {"identical": 7, "tie": 49, "too close": 26, "inconsistent": 0, "unreadable": 0, "empty": 0},
        },
    },
    "audit": {"pairs": 735, "errors": 1, "warnings": 1, "notes": 1},
    "train": {"steps": 222, "pairs": 586, "rows": {"prompt cut": 3}, "loss": 0.31},
    "evaluate": {"prompts": 24},
}  # fmt: skip


def _rate(rate: float, n: int) -> dict[str, Any]:
    """Wilson's interval, as evaluate has it."""
    spread = 1.96 * math.sqrt(rate * (1 - rate) / n + 1.96**2 / (4 * n * n))
    middle, scale = rate + 1.96**2 / (2 * n), 1 + 1.96**2 / n
    return {"rate": rate, "low": (middle - spread) / scale, "high": (middle + spread) / scale, "n": n}


def _mean(mean: float, half: float, n: int) -> dict[str, Any]:
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def _kappa(kappa: float, n: int) -> dict[str, Any]:
    return {"kappa": kappa, "low": kappa - 0.2, "high": kappa + 0.2, "n": n}


def a_summary() -> dict[str, Any]:
    checks = {
        "length 30 to 75 characters": (0.281, 0.865),
        "one line": (0.708, 0.990),
        "no quotes": (0.354, 0.948),
        'does not start with "Title:"': (0.823, 1.0),
        "no Markdown": (0.646, 0.979),
        "names the idea (2 words)": (0.906, 0.938),
    }
    sentence = "Better: the tuned model wins 84 % of 96 comparisons on 24 held-out prompts (95 % interval 75–90 %)."
    return {
        "verdict": {"word": "better", "sentence": sentence},
        "prompts": 24,
        "completions_per_prompt": 4,
        "judge": "rules",
        "win_rate": {**_rate(0.8385, 96), "prompts": 24, "win": 73, "tie": 15, "loss": 8, "inconsistent": 0, "failed": 0},
        "scores": {"base": _mean(0.613, 0.041, 96), "tuned": _mean(0.942, 0.022, 96)},
        "passing": {"base": _rate(6 / 96, 96), "tuned": _rate(70 / 96, 96)},
        "checks": [{"name": name, "base": _rate(b, 96), "tuned": _rate(t, 96)} for name, (b, t) in checks.items()],
        "lengths": {"base": _mean(141.3, 24.8, 96), "tuned": _mean(58.7, 4.1, 96)},
        "held_out_pairs": {"n": 149, "accuracy": _rate(0.872, 149), "margin": _mean(1.94, 0.31, 149)},
        "cost": None,
    }


def _versus(rate: float, n: int = 96, prompts: int = 24, **more: Any) -> dict[str, Any]:
    """All that evaluate says of two models."""
    found = {**_rate(rate, n), "prompts": prompts}
    won, lost = round(n * rate) - 7, n - round(n * rate) - 8
    counts = {"win": won, "tie": 11, "loss": lost, "inconsistent": 4, "failed": 3}
    return found | counts | {
        "bootstrap": {"low": found["low"] - 0.01, "high": found["high"] + 0.01},
        "p_value": 0.0004 if abs(rate - 0.5) > 0.2 else 0.31,
        "prompts_needed": 11 if abs(rate - 0.5) > 0.2 else 1240,
        "length_controlled": {**_rate(0.5 + (rate - 0.5) * 0.7, n), "prompts": prompts},
        "categories": [
            {"name": name, "prompts": 8, **_rate(rate + shift, 32)}
            for name, shift in (("how-to", 0.08), ("science", 0.0), ("travel", -0.1))
        ],
    } | more  # fmt: skip


MODELS = ("base", "tuned", "sft", "checkpoint-40", "gpt-4.1-mini")


def a_rich_summary() -> dict[str, Any]:
    """What evaluate writes where there is everything to say, of five models."""
    plain = a_summary()
    quality = dict(zip(MODELS, (0.0, 1.0, 0.35, 0.8, 1.3), strict=True))

    def every(base: float, tuned: float, estimate: Any) -> dict[str, Any]:
        return {model: estimate(base + min(1, own) * (tuned - base)) for model, own in quality.items()}

    checks = [
        {"name": check["name"], **every(check["base"]["rate"], check["tuned"]["rate"], lambda value: _rate(value, 96))}
        for check in plain["checks"]
    ]
    met = [(one, other) for at, other in enumerate(MODELS) for one in MODELS[at + 1 :]]
    texts = {"characters": (141.3, 58.7), "distinct_1": (0.41, 0.58), "repetition": (0.19, 0.06), "of my own": (0.12, 0.21)}
    changes = {"score": 0.33, "passing": 0.67, "length": -82.6, "no quotes": 0.59, "of my own": 0.09, "perplexity": 0.33}
    return plain | {
        "headline": ["tuned", "base"],
        "judge_labelled": True,
        "answers": {model: {"given": 96, "failed": 2 if model == "gpt-4.1-mini" else 0, "cut": 5} for model in MODELS},
        "agreement": {
            "with_labels": {"judge": "gemini", **_rate(0.72, 90), "asked": 100, "kappa": _kappa(0.44, 90)},
            "with_people": [{"judge": "people", **_rate(0.8, 40), "kappa": None}],
        },
        "models": list(MODELS),
        "win_rate": _versus(0.8385),
        "head_to_head": [
            {"model": one, "against": other, **_versus(1 / (1 + math.exp(1.6 * (quality[other] - quality[one]))))}
            for one, other in met
        ],
        "ratings": [
            {"model": model, "elo": 1000 + 280 * own, "low": 960 + 280 * own, "high": 1041 + 280 * own, "n": 384}
            for model, own in quality.items()
        ],
        "scores": every(0.613, 0.942, lambda value: _mean(value, 0.04, 96)),
        "passing": every(6 / 96, 70 / 96, lambda value: _rate(value, 96)),
        "checks": checks,
        "lengths": every(141.3, 58.7, lambda value: _mean(value, 12, 96)),
        "texts": [{"name": name, **every(*ends, lambda value: _mean(value, value / 9, 96))} for name, ends in texts.items()],
        "differences": {name: _mean(value, abs(value) / 4, 24) for name, value in changes.items()},
        "models_apart": {
            "perplexity": {"base": _mean(14.2, 1.1, 940), "tuned": _mean(18.9, 1.6, 940), "ratio": _mean(1.331, 0.04, 940)},
            "kl": _mean(9.31, 1.2, 96), "kl_k1": _mean(9.02, 1.9, 96), "kl_per_token": _mean(0.412, 0.05, 96),
            "chosen_change": _mean(-3.1, 0.8, 149), "chosen_fell": _rate(0.71, 149),
            "rejected_change": _mean(-22.0, 3.1, 149), "both_fell": _rate(0.68, 149), "unwarped": False,
        },
        "cost": 0.42,
    }  # fmt: skip


AUDIT: list[dict[str, Any]] = [
    {
        "code": "margins-equal", "severity": "note", "count": 586, "of": 586,
        "sentence": "All 586 margins are 1.0: they do not say which pairs are sure.", "examples": [],
        "what_to_do": "Ask for probabilities, or in both orders, to know.",
    },
    {
        "code": "length-bias", "severity": "warning", "count": 431, "of": 586,
        "sentence": "Length alone tells chosen from rejected: AUC 0.81 (0.76–0.85, n = 586 pairs of 96 prompts).",
        "examples": [{"where": "row 12", "text": "Bees: a story"}, {"where": "row 40", "text": "x" * 900}],
        "what_to_do": "Report length-controlled win rates, or balance the lengths.",
    },
    {
        "code": "leak", "severity": "error", "count": 4, "of": 149,
        "sentence": "4 of 149 test pairs have a prompt that is trained on too.",
        "examples": [
            {"where": "row 3", "text": "A week of lunches for under ten pounds"},
            {"where": "row 8", "text": "The night train across Sweden"},
            {"where": "row 9"},
        ],
        "what_to_do": "Split by prompt, not by row: what is measured on them is memory.",
    },
]  # fmt: skip


def metrics_lines() -> list[dict[str, Any]]:
    noise = random.Random(1)
    lines: list[dict[str, Any]] = []
    for step in range(5, 223, 5):
        learned = 1 - math.exp(-step / 80)
        margin, wobble = 2.3 * learned, noise.gauss(0, 0.12 * min(1, step / 20))
        values = {
            "loss": 0.6931 - 0.42 * learned + wobble / 3,
            "rewards/chosen": 0.5 * learned + wobble,
            "rewards/rejected": 0.5 * learned - margin + wobble / 2,
            "rewards/accuracies": min(1.0, max(0.0, 0.5 + 0.42 * learned + wobble / 2)),
            "rewards/margins": margin + wobble / 2,
        }
        lines.append({"step": step, "epoch": step / 74, "grad_norm": 4.2, "learning_rate": 1e-5, **values})
        if step % 25 == 0:
            held_out = {
                "loss": 0.6931 - 0.36 * learned,
                "rewards/chosen": 0.4 * learned,
                "rewards/rejected": 0.4 * learned - 1.94 * learned,
                "rewards/accuracies": 0.5 + 0.37 * learned,
                "rewards/margins": 1.94 * learned,
            }
            lines.append({"step": step, "epoch": step / 74, **{f"eval_{key}": value for key, value in held_out.items()}})
    lines.append({"step": 222, "epoch": 3.0, "train_runtime": 351.2, "train_loss": 0.41})
    return lines


def result_rows() -> list[dict[str, Any]]:
    rows = []
    for number, idea in enumerate(IDEAS):
        for draw in range(3):
            words = " ".join(idea.split()[:6]).rstrip(",")
            verdict = ("tuned", "tuned", "tuned", "base", "tie", "tuned")[(number * 3 + draw) % 6]
            base, tuned = (0.5, 0.97) if verdict == "tuned" else (0.9, 0.6) if verdict == "base" else (1.0, 1.0)
            chatter = (
                f'**Title:** "{words}: The Ultimate Guide You Did Not Know You Needed"\n\nThis title is engaging because '
                * (draw + 1)
            )
            rows.append(
                {
                    "prompt_id": f"p{number}",
                    "prompt": f"Given the YouTube video idea, write an engaging title.\n**Video Idea**: {idea}",
                    "base": chatter.strip() if verdict != "tie" else f"{words}: what I learned on the way",
                    "tuned": f"{words}, step by step" if verdict != "base" else f"{words}. {words}. {words}. {words}. {words}.",
                    "verdict": verdict,
                    "reason": "base fails one line, no quotes, no Markdown; tuned passes every check"
                    if verdict == "tuned"
                    else "tuned fails length 30 to 75 characters"
                    if verdict == "base"
                    else "both pass every check",
                    "base_score": base - draw / 50,
                    "tuned_score": tuned,
                }
            )
    return rows


def write_results(run: Run, rows: list[dict[str, Any]]) -> None:
    run.results_csv.parent.mkdir(exist_ok=True)
    with run.results_csv.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_metrics(run: Run, lines: list[dict[str, Any]]) -> None:
    run.metrics_jsonl.parent.mkdir(exist_ok=True)
    run.metrics_jsonl.write_text("".join(json.dumps(line) + "\n" for line in lines))


def bare_run(folder: Path, stages: tuple[str, ...] = STAGES[:-1], recipe: str = RECIPE) -> Run:
    """A run whose manifest says that `stages` are done, and that has no files yet."""
    (folder / "titles.yaml").write_text(recipe)
    run = Run.start(folder / "titles.yaml", folder / "run", overrides=("train.beta=0.2",))
    for number, stage in enumerate(stages):
        run.manifest["stages"][stage] = {
            "state": "done",
            "settings": {},
            "inputs": {},
            "counts": copy.deepcopy(COUNTS[stage]),
            "seconds": (0.4, 71.3, 0.9, 0.2, 1.4, 352.6, 66.0)[number],
            "versions": {"tiebreak": "0.1.0", "python": "3.11.7", "torch": "2.8.0", "transformers": "5.23.0"},
            "finished": 1_795_000_000.0 + number,
        }
    write_json(run.manifest_json, run.manifest)
    return run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return full_run(tmp_path)


def full_run(folder: Path) -> Run:
    run = bare_run(folder)
    write_json(run.summary_json, a_summary())
    write_results(run, result_rows())
    write_metrics(run, metrics_lines())
    return run


JUDGES = """judges:
  - {type: rules, name: rules, checks: [{check: one_line}, {check: length, min: 30, max: 75}]}
  - {type: llm, name: gemini, provider: gemini, model: gemini-2.5-flash, criteria: titles}
  - {type: human, name: people, file: verdicts.csv}
"""


def rich_run(folder: Path) -> Run:
    """A run that has all that a report can tell: five models, three judges, an audit."""
    recipe = re.sub(r"judges: .*\n", JUDGES, RECIPE).replace("min_margin: 0.1", "min_margin: 0.1, judge: rules")
    run = bare_run(folder, recipe=recipe)
    write_json(run.summary_json, a_rich_summary())
    write_results(
        run,
        [
            row | {"prompt_id": f"{row['prompt_id']}-{n}", "base": row["base"] + " more" * n}
            for n in range(8)
            for row in result_rows()
        ],
    )
    write_metrics(run, metrics_lines())
    write_audit(run, AUDIT)
    prompts = [Prompt.of((Message(role="user", content=f"prompt {at}"),), "train") for at in range(30)]
    draws = {each.id: [Completion.of(each.id, f"text {at}", sampler="s", draw=at) for at in range(2)] for each in prompts}
    write_jsonl(run.prompts_jsonl, prompts)
    write_jsonl(run.completions_jsonl, [draw for both in draws.values() for draw in both])
    for judge, contrary in (("rules", ()), ("gemini", range(0, 30, 5)), ("people", range(0, 30, 2))):
        verdicts = [
            Comparison(
                prompt_id=prompt,
                first=one.id,
                second=other.id,
                judge=judge,
                winner="first" if (at % 2 == 0) != (at in contrary) else "second",
            )
            for at, (prompt, (one, other)) in enumerate(draws.items())
        ]
        write_jsonl(run.judgments(judge), verdicts)
    return run


TOKENS = [("<user>", False, True), (" bees", False, False), (" Hive", True, False), ("<end>", True, True)]


def write_audit(run: Run, findings: list[dict[str, Any]], tokens: list[tuple[str, bool, bool]] = TOKENS) -> None:
    texts = [{"text": text, "learned": learned, "special": special} for text, learned, special in tokens]
    view = [{"where": f"pair {at}", "side": side, "tokens": texts} for at in range(3) for side in ("chosen", "rejected")]
    write_json(run.audit_json, {"pairs": 735, "findings": findings, "view": view})


def page_of(run: Run) -> str:
    report(run)
    return run.report_html.read_text(encoding="utf-8")


def words_of(page: str) -> str:
    """What one reads of a page: no tags, no style, no script, no drawings."""
    page = re.sub(r"<(style|svg|head|script)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).replace("\u00a0", " ").split())


# --- what it says --------------------------------------------------------------------------------------------------


def test_the_answer_comes_first_then_three_numbers(run: Run) -> None:
    words = words_of(page_of(run))
    parts = [
        "Better: the tuned model wins 84 % of 96 comparisons",
        "84 % 95 % interval 75–90 %, n = 96 comparisons on 24 prompts",
        "586 of 926 63 % of those for training",
        "free nothing was paid",
        "From prompts to pairs",
        "Before and after",
        "Training",
        "Examples to read",
        "Settings",
    ]
    places = [words.find(part) for part in parts]
    assert -1 not in places
    assert places == sorted(places)


def test_the_funnel_counts_every_step_and_every_reason(run: Run) -> None:
    run.manifest["stages"]["judge"]["counts"]["gemini"] = {
        "kind": "llm", "records": 1852, "errors": 4, "ties": 208, "inconsistent": 77, "unreadable": 3, "questions": 926
    }  # fmt: skip
    words = words_of(page_of(run))
    for part in (
        "Prompts 120 of 124 3 duplicate · 1 max_characters",
        "kept 120 for training 96 held out 24",
        "Completions 581 of 600 19 identical",
        "distinct 581 cut at the token limit 12 calls that failed 0",
        "Verdicts: rules 581 of 581",
        "Verdicts: gemini 1,848 of 1,852 4 failed or unreadable",
        "given 1,848 pairs asked about 926 ties 208 inconsistent 77",
        "Pairs for training 586 of 926 31 identical · 208 tie · 101 too close",
        "Held-out pairs 149 of 231",
        "attempted 926 − identical 31 − tie 208 − too close 101",
    ):
        assert part in words


def test_the_bars_of_a_step_are_its_shares(run: Run) -> None:
    page = page_of(run)
    bar = re.search(r"Pairs for training</span>\s*<span class=\"bar\".*?</span>", page, re.DOTALL)
    assert bar is not None
    widths = [float(width) for width in re.findall(r"width:([\d.]+)%", bar[0])]
    assert widths == [pytest.approx(100 * part / 926, abs=0.01) for part in (586, 31, 208, 101)]


def test_before_and_after_has_every_number_with_n_and_interval(run: Run) -> None:
    words = words_of(page_of(run))
    for row in (
        "Win rate over base – 84 % 75–90 % 96",
        "Passing every check 6 % 3–13 % 73 % 63–81 % 96",
        "no quotes 35 % 27–45 % 95 % 88–98 % 96",
        "Mean score 0.61 0.57–0.65 0.94 0.92–0.96 96",
        "Length in characters 141 117–166 59 55–63 96",
        "Accuracy on held-out pairs – 87 % 81–92 % 149",
        "Reward margin on held-out pairs – 1.9 1.6–2.2 149",
    ):
        assert row in words


def test_every_chart_has_a_caption_with_n_and_a_name_for_those_who_do_not_see_it(run: Run) -> None:
    page = page_of(run)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert len(captions) == page.count("<svg") == 10
    assert all("n\u00a0=\u00a0" in caption for caption in captions)
    assert len(re.findall(r'<svg[^>]* role="img" aria-label="[^"]+"', page)) == 10


def test_settings_say_how_to_do_it_again(run: Run) -> None:
    run.manifest["stages"]["train"]["versions"]["torch"] = "2.9.0"
    words = words_of(page_of(run))
    assert "tiebreak run titles.yaml --run runs/titles-again train.beta=0.2" in words
    assert "train done 5 min 53 s" in words
    assert "222 steps over 586 pairs, 3 prompt cut." in words
    assert "torch 2.8.0, then 2.9.0" in words
    assert "learning_rate: 1.0e-05" in words
    assert "beta: 0.2" in words
    assert str(run.path.parent) not in words  # a report is passed on: it names no folder of this machine


@pytest.mark.parametrize(
    ("price", "cost"),
    [
        (Price(input=1.0, output=2.0), "cost $1.23 paid to the providers"),
        (Price(input=0.0, output=0.0), "cost free nothing was paid"),
        (None, "cost unknown no price is known"),
    ],
)
def test_a_price_is_said_and_an_unknown_one_is_not_called_free(price: Price | None, cost: str, tmp_path: Path) -> None:
    run = bare_run(tmp_path)
    ledger = Ledger(run.calls_sqlite, "judges.llm", price)
    most = Call(prompt_tokens=2_000_000, tokens=100_000)
    ledger.reserve(most)
    ledger.settle(most, 1_134_000, 50_000)
    ledger.close()
    assert cost in words_of(page_of(run))


# --- several models, judges, findings ------------------------------------------------------------------------------


def test_everything_that_was_measured_stands_in_it(tmp_path: Path) -> None:
    words = words_of(page_of(rich_run(tmp_path)))
    parts = [
        # what qualifies the answer
        "At equal length: 74 % (64–81 %). Paired test over prompts: p < 0.001. The judge also made the labels:",
        "The judge agrees with gemini, who labelled, on 72 % (62–80 %, beyond chance κ 0.4 (0.2–0.6)) of 90 held-out pairs.",
        "It agrees with people (people) on 80 % (65–90 %) of 40 comparisons.",
        "3 of 99 comparisons have no readable verdict and are left out of the rate. 2 answers of gpt-4.1-mini could not be had. "
        "The audit of the data has 1 error and 1 warning: see below.",
        # the audit, the worst first
        "Error. 4 of 149 test pairs have a prompt that is trained on too. Split by prompt",
        "3 examples row 3 A week of lunches for under ten pounds row 8 The night train across Sweden row 9 Warning.",
        "n = 586 pairs of 96 prompts). 431 of 586 Report length-controlled win rates, or balance the lengths. "
        "2 examples row 12 Bees: a story row 40",
        "Note. All 586 margins are 1.0: they do not say which pairs are sure. 586 of 586 Ask for probabilities",
        # judges: gemini contradicts rules in 6 of 30, people in 15 of 30, and each other in 15 of 30
        "Who agrees with whom judge rules gemini people",
        "rules – 0.60 0.23–0.82, n = 30 0.00 −0.36 to 0.36, n = 30",
        "What the verdict of rules is worth rules agrees with share κ n",
        "gemini, who labelled, on held-out pairs 72 % 62–80 % 0.4 0.2–0.6 90 10 without a verdict people, people 80 % 65–90 %",
        # base, tuned, sft, checkpoint-40, gpt-4.1-mini, the difference, n
        "measure base tuned sft checkpoint-40 gpt-4.1-mini tuned less base n",
        "Win rate over base – 84 % 75–90 % 64 % 54–73 % 78 % 69–85 % 89 % 81–94 % – 96",
        "at equal length – 74 % 64–81 % 60 % 50–69 % 70 % 60–78 % 77 % 68–84 % – 96",
        "interval by bootstrap – 84 % 74–91 % 64 % 53–74 %",
        "Passing every check 6 % 3–13 % 73 % 63–81 % 30 % 21–39 % 60 % 50–69 % 73 % 63–81 % +67 points 50–84 96",
        "Length in characters 141 129–153 59 47–71 112 100–124 75 63–87 59 47–71 −83 −103 to −62 96",
        "distinct-1 of a prompt's completions 0.41 0.36–0.46 0.58 0.52–0.64",
        "of my own 0.12 0.11–0.13 0.21 0.19–0.23 0.15 0.13–0.17 0.19 0.17–0.21 0.21 0.19–0.23 +0.09 0.07–0.11 96",
        "Perplexity of held-out chosen 14 13–15 19 17–20 940 tuned by base – 1.33 1.29–1.37 940",
        "KL from base in nats, per completion – 9 8–11 96 by the other estimator – 9 7–11 96 per token – 0.41 0.36–0.46 96",
        "Log-prob of held-out chosen, change in nats – −3.1 −3.9 to −2.3 149 share that fell – 71 % 63–78 %",
        "share of pairs where both fell – 68 % 60–75 % 149 The draws were not at temperature 1: ",
        "Every meeting Share that the first one won",
        "Ratings Bradley-Terry ratings from all meetings, with 95 % intervals. 400 points apart means ten wins to one. n = 384",
        "model against win rate equal length p n prompts won tied lost turned unread prompts needed",
        "sft base 64 % 54–73 % 60 % 50–69 % 0.31 96 24 54 11 27 4 3 1,240",
        "gpt-4.1-mini 1,364 1,324–1,405 384 tuned 1,280 1,240–1,321 384 checkpoint-40",
        "how-to 92 % 77–97 % 72 % 54–84 % 86 % 70–94 % 97 % 84–99 % 32",
        "Of 3 intervals about one in twenty misses by chance alone.",
    ]
    assert [part for part in parts if part not in words] == []
    places = [words.find(part) for part in parts]
    assert places == sorted(places)


def test_the_share_of_the_agreement_is_its_shade(tmp_path: Path) -> None:
    page = page_of(rich_run(tmp_path))
    shades = re.findall(r'style="--shade:(\d+)%"><b>([^<]+)</b>', page)
    assert sorted(shades) == [("0", "0.00"), ("0", "0.00"), ("0", "−0.05"), ("0", "−0.05"), ("27", "0.60"), ("27", "0.60")]


def test_one_judge_agrees_with_nobody_and_two_models_have_no_ladder(run: Run) -> None:
    summary = a_summary()
    summary["head_to_head"] = [{"model": "tuned", "against": "base", **summary["win_rate"]}]
    write_json(run.summary_json, summary | {"ratings": None})
    words = words_of(page_of(run))
    for part in ("Who agrees", "Every model", "By kind of prompt", "Audit", "tuned less base", "At equal length", "Paired test"):
        assert part not in words
    assert "measure base tuned n" in words


@pytest.mark.parametrize(
    "content", ["[]", "4", "[", "{}", '{"pairs": 1, "findings": [4]}', '{"findings": [{"severity": "dire"}]}']
)
def test_an_audit_that_cannot_be_read_is_named(run: Run, content: str) -> None:
    run.audit_json.write_text(content)
    with pytest.raises(InputError, match=r"audit.json: cannot be read"):
        report(run)


def test_an_audit_without_findings_says_so(run: Run) -> None:
    write_audit(run, [])
    words = words_of(page_of(run))
    assert "Audit of the data Nothing was found." in words
    assert "The audit of the data has" not in words


def test_pairs_stand_as_training_sees_them_with_what_is_learned_marked(run: Run) -> None:
    write_audit(run, [])
    page = page_of(run)
    assert page.count('<div class="tokens chosen">') == page.count('<div class="tokens rejected">') == 3
    assert '<span class=""> bees</span><span class="learned"> Hive</span><span class="learned special">&lt;end&gt;</span>' in page
    write_audit(run, [], [("given", False, False)] * 4000 + [("learned", True, False)])
    page = page_of(run)
    assert "pair 0, the last 1,000 of 4,001 tokens, chosen" in words_of(page)
    assert page.count('<span class="">given<') == 6 * 999
    assert page.count('<span class="learned">learned<') == 6


def test_more_examples_of_a_finding_than_three_are_left_out(run: Run) -> None:
    write_audit(run, [AUDIT[1] | {"examples": [{"where": "", "text": f"found {at}"} for at in range(9)]}])
    words = words_of(page_of(run))
    assert "3 examples found 0 found 1 found 2" in words
    assert "found 3" not in words
    assert "The audit of the data has 1 warning: see below." in words


# --- examples ------------------------------------------------------------------------------------------------------


def groups_of(page: str) -> dict[str, list[str]]:
    """The prompts shown under each heading of the examples."""
    shown: dict[str, list[str]] = {}
    examples = page[page.index("<h2>Examples to read") :]
    for name, articles in re.findall(r'<h3 class="kind">(.*?)</h3>(.*?)(?=<h3 class="kind">|</section>)', examples, re.DOTALL):
        shown[name] = re.findall(r"<header>.*?<div[^>]*>(.*?)</div>", articles, re.DOTALL)
    return shown


def test_examples_are_the_biggest_wins_and_losses_one_per_prompt(run: Run) -> None:
    drawn = [
        ("a", "tuned", 0.5, 0.6),
        ("b", "tuned", 0.1, 0.9),
        ("b", "tuned", 0.1, 0.8),
        ("c", "base", 0.9, 0.8),
        ("d", "base", 1, 0),
        ("e", "tie", 0.5, 0.5),
        ("f", "error", "", ""),
    ]
    columns = list(result_rows()[0])
    rows = [
        dict(zip(columns, (prompt, f"prompt {prompt}", f"b{n}", f"t{n}", verdict, f"reason {n}", base, tuned), strict=True))
        for n, (prompt, verdict, base, tuned) in enumerate(drawn)
    ]
    write_results(run, rows)
    shown = groups_of(page_of(run))
    assert shown["Biggest wins"] == ["prompt b", "prompt a"]
    assert shown["Biggest losses"] == ["prompt d", "prompt c"]
    assert sorted(shown["Drawn at random from the others"]) == ["prompt b", "prompt e", "prompt f"]
    for row in rows:
        row |= {"base_score": "", "tuned_score": ""}
    words = words_of(run.report_html.read_text())
    write_results(run, rows)
    assert list(groups_of(page_of(run))) == ["Wins", "Losses", "Drawn at random from the others"]
    assert "tuned wins prompt b base 0.10 b1 tuned 0.90 t1 reason 1" in words


def test_a_long_text_is_folded_and_whole_inside(run: Run) -> None:
    rows = result_rows()[:1]
    rows[0]["base"] = "".join(f"sentence {number}. " for number in range(600))
    rows[0]["tuned"] = "x" * 12_000
    rows[0]["prompt"] = "line\n" * 12
    write_results(run, rows)
    page = page_of(run)
    assert page.count('<details class="long">') == 3
    assert page.count("sentence 599.") == 1
    assert page.count("sentence 1.") == 2  # the preview and the whole
    assert "All 12,000 characters" in page
    assert "The other 2,000 characters are in eval/results.csv." in page


def test_many_examples_stand_folded_and_counted(tmp_path: Path) -> None:
    page = page_of(rich_run(tmp_path))
    assert {name: len(prompts) for name, prompts in groups_of(page).items()} == {
        "Biggest wins": 20,
        "Biggest losses": 20,
        "Drawn at random from the others": 20,
    }
    assert page.count('<details class="rest"><summary>16 more</summary>') == 3
    assert "Held-out prompts; 60 of 192 comparisons. Every row is in eval/results.csv." in words_of(page)
    assert "Texts are cut" not in page


def test_size_stays_below_two_megabytes_whatever_the_models_wrote(tmp_path: Path) -> None:
    run, long = rich_run(tmp_path), '"' * 12_000
    rows = [
        row | {"prompt_id": str(at), "reason": long, "base": long, "tuned": "é" * 200_000}
        for at in range(9)
        for row in result_rows()
    ]
    write_results(run, [row | {"prompt_id": str(at)} for at, row in enumerate(rows)])
    finding = AUDIT[1] | {"examples": [{"where": "row 1", "text": long}] * 3, "sentence": "&" * 300}
    write_audit(run, [finding] * 40, [('"' * 40, True, True)] * 50_000)
    summary = a_rich_summary()
    models = [f"model {at} {'&' * 300}" for at in range(12)]
    met = {"against": "base", **_versus(0.6)}
    met["categories"] = [{"name": f"{'&' * 300} {at}", **_rate(0.5, 9)} for at in range(300)]
    summary |= {"models": ["base", "tuned", *models], "head_to_head": [{"model": each, **met} for each in models] * 20}
    summary["checks"] = [summary["checks"][0] | {"name": f"{'&' * 300} {at}"} for at in range(200)]
    write_json(run.summary_json, summary)
    write_metrics(run, [{"step": step, "loss": math.sin(step), "rewards/margins": math.cos(step)} for step in range(20_000)])
    assert 400_000 < report(run)["bytes"] < 2_000_000
    words = words_of(run.report_html.read_text())
    assert re.search(r"Texts are cut at (3,000|1,000|300) characters, to keep the page small.", words)
    assert "The other 243 rows are in figures/categories.csv." in words
    assert "The other 188 are in the table." in words
    assert len((run.path / "figures" / "categories.csv").read_text().splitlines()) == 304


def loss_line(page: str) -> list[tuple[str, str]]:
    """The points of the curve of the loss, in pixels."""
    drawing = re.search(r'<svg[^>]*aria-label="Loss".*?</svg>', page, re.DOTALL)
    assert drawing is not None
    return re.findall(r"[ML] ([\d.]+) ([\d.]+)", max(re.findall(r' d="([^"]*)"', drawing[0]), key=len))


def test_a_long_curve_is_thinned_to_means(run: Run) -> None:
    lines = [{"step": step, "loss": 2.0 if step % 2 else 0.0} for step in range(600)]
    write_metrics(run, lines)
    page = page_of(run)
    assert "Each point is the mean of several steps." in page
    write_metrics(run, [{"step": step, "loss": 1.0} for step in range(1, 600, 2)])
    same = page_of(run)
    assert "Each point" not in same
    assert loss_line(page) == loss_line(same)


# --- hostile content -----------------------------------------------------------------------------------------------

HOSTILE = [
    "<script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    "</pre></div></details></svg><svg onload=alert(1)>",
    '"><a href="javascript:alert(1)">x</a>',
    "{{ 7 * 7 }}{% raw %}",
    "<!-- $a_1$ & \u202e \x00 \x01 日本 😀",
]


class Elements(HTMLParser):
    """Collects what a browser would make of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


def elements(page: str) -> Elements:
    parser = Elements()
    parser.feed(page)
    return parser


def hostile_run(folder: Path) -> Run:
    run = rich_run(folder)
    evil = " ".join(HOSTILE)
    counts = run.manifest["stages"]
    counts["prepare"]["counts"] = COUNTS["prepare"] | {"dropped": {evil: 4}}
    counts["judge"]["counts"] = {evil: {"kind": "rules", "records": 5, "errors": 1}}
    counts["train"]["versions"] = {evil: evil}
    run.manifest["overrides"] = [evil]
    summary = json.loads(json.dumps(a_rich_summary()).replace("gpt-4.1-mini", "MODEL").replace("how-to", "KIND"))
    summary["verdict"]["sentence"] = evil
    summary["judge"] = evil
    summary["checks"] = [check | {"name": name} for check, name in zip(summary["checks"], HOSTILE, strict=True)]
    summary["texts"][0]["name"] = f"measure {evil}"
    text = (
        json.dumps(summary).replace("MODEL", json.dumps(f"model {evil}")[1:-1]).replace("KIND", json.dumps(f"kind {evil}")[1:-1])
    )
    run.summary_json.write_text(text)
    audit = copy.deepcopy(AUDIT)
    audit[1] |= {"code": evil, "sentence": f"sentence {evil}", "what_to_do": f"do {evil}"}
    audit[1]["examples"] = [{"where": f"where {evil}", "text": f"found {evil}" * 9}]
    write_audit(run, audit, [(f"token {evil}", True, False)])
    keys = ("prompt_id", "prompt", "base", "tuned", "reason")
    rows = [row | {key: f"{evil} {row[key]}" * (1 + row["base"].count("a") % 9) for key in keys} for row in result_rows()]
    write_results(run, [row | {"verdict": "tuned" if number % 2 else evil} for number, row in enumerate(rows)])
    return run


def test_what_models_and_files_wrote_stays_text(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    plain = elements(page_of(rich_run(tmp_path / "plain")))
    page = page_of(hostile_run(tmp_path))
    evil = elements(page)
    assert set(evil.tags) == set(plain.tags)
    assert {name for name, _ in evil.attributes} <= {name for name, _ in plain.attributes}
    assert page.count("<script") == evil.tags.count("script") == 1  # our own
    assert page.count("</style>") == 1
    shown = html.unescape(page)
    assert "{{ 7 * 7 }}" in shown  # not reckoned
    for text in HOSTILE[:-1]:
        assert text in shown
    for place in ("model", "kind", "measure", "sentence", "do", "where", "found", "token"):
        assert f"{place} {HOSTILE[0]}" in shown, place


def test_a_chart_file_escapes_what_it_names(tmp_path: Path) -> None:
    run = hostile_run(tmp_path)
    report(run)
    for path in (run.path / "figures").glob("*.svg"):
        root = ET.fromstring(path.read_text())
        assert not {element.tag.rpartition("}")[2] for element in root.iter()} & {"script", "img", "a", "image"}, path
    drawn = (run.path / "figures" / "checks.svg").read_text()
    assert html.unescape(drawn).count("<script>alert(1)</script>") == 1


def test_a_lone_surrogate_does_not_stop_the_report(run: Run) -> None:
    text = json.dumps(a_summary()).replace("one line", "one \\ud800 line").replace("Better:", "\\ud800:")
    run.summary_json.write_text(text)
    assert "?: the tuned model wins" in words_of(page_of(run))


# --- self-contained ------------------------------------------------------------------------------------------------


def test_the_page_is_self_contained_and_the_same_each_time(run: Run) -> None:
    page = page_of(run)
    assert page == page_of(run)
    assert "://" not in page.replace("default-src", "")
    assert not re.search(r"url\((?!#)|@import|<link(?! rel=\"icon\" href=\"data:,\")|<a |<img|<iframe", page)


def test_the_one_script_is_ours_and_no_other_may_run(run: Run) -> None:
    page = page_of(run)
    script = (Path(tiebreak.__file__).parent / "reporting" / "report.js").read_text(encoding="utf-8")
    assert f"<script>{script}</script>" in page
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{allowed}'\"" in page
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval|Function\(|fetch|XMLHttp|import", script)


def test_drawings_take_the_colours_of_the_page_and_share_no_ids(run: Run) -> None:
    page = page_of(run)
    drawings = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert INK.lower() not in drawings.lower()
    assert "currentColor" in drawings
    assert all(colour.lower() in drawings.lower() for colour in (BASE, TUNED, CHOSEN, REJECTED))
    assert "#000000" not in drawings
    assert "<metadata" not in drawings
    ids = [value for name, value in elements(page).attributes if name == "id"]
    assert len(ids) == len(set(ids))
    for reference in re.findall(r'(?:href="#|url\(#)([^")]+)', drawings):
        assert reference in ids


def test_bars_start_at_zero_and_are_as_long_as_their_values(run: Run) -> None:
    drawing = re.search(r'<svg[^>]*aria-label="Passing every check".*?</svg>', page_of(run), re.DOTALL)
    assert drawing is not None
    ticks = dict(re.findall(r'x="([\d.]+)"[^>]*>(\d+) %</text>', drawing[0]))
    at = {int(percent): float(x) for x, percent in ticks.items()}
    for colour, rate in ((BASE, 6 / 96), (TUNED, 70 / 96)):
        bar = re.search(rf'<path d="([^"]*)"[^>]*fill: {colour}', drawing[0], re.IGNORECASE)
        assert bar is not None
        across = [float(x) for x in re.findall(r"[ML] ([\d.]+)", bar[1])]
        assert min(across) == pytest.approx(at[0], abs=0.01)
        assert max(across) == pytest.approx(at[0] + rate * (at[100] - at[0]), abs=0.01)


# --- what is missing -----------------------------------------------------------------------------------------------


def test_a_run_that_was_not_trained_says_so_in_the_headline(tmp_path: Path) -> None:
    run = bare_run(tmp_path)
    run.manifest["stages"]["train"]["counts"] = {"skipped": "none of 11 pairs is usable"}
    page = page_of(run)
    assert "<h1>The model was not trained: none of 11 pairs is usable.</h1>" in page
    assert "Before and after" not in page
    verdict = {"word": "not compared", "sentence": "There is nothing to compare."}
    write_json(run.summary_json, {"verdict": verdict, "held_out_pairs": None})
    page = page_of(run)
    assert "<h1>There is nothing to compare.</h1>" in page
    assert "The model was not trained: none of 11 pairs is usable." in page
    assert "not measured" in page


@pytest.mark.parametrize(
    ("done", "recipe", "headline"),
    [
        (0, RECIPE, "This run is not finished: prepare is owed."),
        (3, RECIPE, "This run is not finished: pair is owed."),
        (6, RECIPE, "The model was trained, but not compared with its base: evaluate is owed."),
        (
            7,
            RECIPE + "evaluate: null\n",
            "The model was trained, but not compared with its base: the recipe has no evaluate section.",
        ),
    ],
)
def test_an_unfinished_run_gets_a_report_too(tmp_path: Path, done: int, recipe: str, headline: str) -> None:
    assert f"<h1>{headline}</h1>" in page_of(bare_run(tmp_path, STAGES[:done], recipe))


def test_ready_made_pairs_have_no_completions_and_no_verdicts(tmp_path: Path) -> None:
    run = bare_run(tmp_path)
    run.manifest["stages"]["generate"]["counts"] = {}
    run.manifest["stages"]["judge"]["counts"] = {"llm": {"kind": "llm", "records": 0, "errors": 0, "ties": 0, "inconsistent": 0}}
    words = words_of(page_of(run))
    assert "Completions" not in words
    assert "Verdicts" not in words
    assert "Pairs for training 586 of 926" in words


def test_without_a_judge_the_held_out_pairs_are_what_is_measured(tmp_path: Path) -> None:
    run = bare_run(tmp_path)
    summary = {key: a_summary()[key] for key in ("verdict", "held_out_pairs")}
    write_json(run.summary_json, summary)
    words = words_of(page_of(run))
    assert "– not measured" in words
    assert "Accuracy on held-out pairs – 87 % 81–92 % 149" in words
    assert "Win rate over base" not in words


def test_verdicts_that_turn_with_the_order_stand_with_the_ties(run: Run) -> None:
    assert "ties 15<" in page_of(run)
    summary = a_summary()
    summary["win_rate"] |= {"tie": 4, "inconsistent": 11, "failed": 3}
    write_json(run.summary_json, summary)
    page = page_of(run)
    assert "undecided 15<" in page
    assert "4 ties and 11 verdicts that turned with the order count half." in page
    assert "comparisons, and 3 without a readable verdict." in page


def test_one_prompt_gives_a_mean_without_an_interval(run: Run) -> None:
    summary = a_summary()
    summary["scores"]["base"] |= {"low": -math.inf, "high": math.inf}
    summary["lengths"]["tuned"] = None
    write_json(run.summary_json, summary)
    words = words_of(page_of(run))
    assert "Mean score 0.61 no interval 0.94 0.92–0.96" in words
    assert "Length in characters 141 117–166 – 96" in words


def test_what_training_was_warned_of_is_told(run: Run) -> None:
    assert "chosen fell" not in page_of(run)
    with run.metrics_jsonl.open("a") as stream:
        stream.write(json.dumps({"step": 30, "warning": "displacement", "sentence": "chosen fell <by> 2"}) + "\n")
    assert "<strong>Step 30:</strong> chosen fell &lt;by&gt; 2" in page_of(run)


def test_curves_skip_what_cannot_be_drawn_and_a_torn_last_line(run: Run) -> None:
    write_metrics(run, [{"step": 1, "loss": math.nan}, {"step": 2, "loss": 0.5, "rewards/margins": -0.25, "note": "text"}])
    with run.metrics_jsonl.open("a") as stream:
        stream.write('{"step": 3, "lo')
    assert report(run)["charts"] == 6 + 2  # before and after, loss, margin


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("metrics_jsonl", '{"step": 1}\nnonsense\n', "line 2: not a Logged"),
        ("metrics_jsonl", '{"loss": 1}\n', "line 1: not a Logged: step"),
        ("results_csv", "prompt,base\na,b\n", "cannot be read"),
        ("summary_json", "{", "cannot be read"),
    ],
)
def test_a_broken_file_is_named_in_one_line(run: Run, name: str, content: str, problem: str) -> None:
    path: Path = getattr(run, name)
    path.write_text(content)
    with pytest.raises(InputError) as error:
        report(run)
    assert str(error.value).startswith(str(path))
    assert problem in str(error.value)
    assert "\n" not in str(error.value)


# --- numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "text", "between"),
    [
        ({"rate": 0.8385, "low": 0.752, "high": 0.899, "n": 96}, "84 %", "75–90 %"),
        ({"rate": 0.83852, "low": 0.8361, "high": 0.8409, "n": 9600}, "83.9 %", "83.6–84.1 %"),
        ({"mean": -0.123, "low": -0.31, "high": 0.06, "n": 5}, "−0.1", "−0.3 to 0.1"),
        ({"mean": 1234.5, "low": 1200.0, "high": 1270.0, "n": 5}, "1,234", "1,200–1,270"),
        ({"mean": 1.0, "low": 1.0, "high": 1.0, "n": 5}, "1.00", "1.00–1.00"),
        ({"rate": 1.0, "low": None, "high": None, "n": 1}, "100 %", "no interval"),
    ],
)
def test_a_number_has_the_digits_its_interval_deserves(raw: dict[str, Any], text: str, between: str) -> None:
    estimate = Estimate.of(raw)
    assert estimate is not None
    assert (estimate.text.replace("\u00a0", " "), estimate.between.replace("\u00a0", " ")) == (text, between)


@pytest.mark.parametrize(
    "nothing", [None, {"rate": None, "low": None, "high": None, "n": 0}, {"mean": math.nan, "low": 0, "high": 0, "n": 0}]
)
def test_nothing_measured_is_no_estimate(nothing: dict[str, Any] | None) -> None:
    assert Estimate.of(nothing) is None


# --- in a browser --------------------------------------------------------------------------------------------------


FONT_SIZES = """all => all.map(each => each.getBoundingClientRect().width
    && parseFloat(getComputedStyle(each).fontSize) * (each.ownerSVGElement ? each.getScreenCTM().a : 1))"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("make", [full_run, rich_run, hostile_run, bare_run])
def test_a_browser_shows_it_quietly_at_400_pixels(chromium: Any, tmp_path: Path, make: Any, scheme: str) -> None:
    run = make(tmp_path)
    report(run)
    context = chromium.new_context(viewport={"width": 400, "height": 800}, color_scheme=scheme)
    page, heard = context.new_page(), []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("dialog", lambda dialog: heard.append(dialog.message))
    page.on("request", lambda request: heard.append(request.url) if request.url != run.report_html.as_uri() else None)
    page.goto(run.report_html.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert heard == []
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    ink, paper = page.evaluate("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
    light = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
    assert (light[0] < light[1]) == (scheme == "light")
    for selector in ("svg text", ".model", "figcaption", "td", ".count"):
        seen = page.locator(selector).evaluate_all(FONT_SIZES)
        sizes = [size for size in seen if size]
        assert all(size >= 11 for size in sizes), selector
    context.close()


@pytest.fixture(scope="module")
def rich_page(chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    run = rich_run(tmp_path_factory.mktemp("rich"))
    report(run)
    page = chromium.new_page()
    page.goto(run.report_html.as_uri())
    yield page
    page.close()


def column(page: Any, table: str, at: int) -> list[str]:
    texts = page.locator(f"table.{table} tbody tr > :nth-child({at})").all_inner_texts()
    return [text.split()[0] for text in texts]


def test_a_header_sorts_numbers_as_numbers_by_click_and_by_key(rich_page: Any) -> None:
    rich_page.reload()
    head = rich_page.locator("table.head_to_head thead th")
    assert head.count() == rich_page.locator("table.head_to_head thead button").count() == 13
    came = column(rich_page, "head_to_head", 13)
    assert set(came) == {"11", "1,240"}
    head.nth(12).locator("button").click()
    assert head.nth(12).get_attribute("aria-sort") == "ascending"
    assert column(rich_page, "head_to_head", 13) == sorted(came, key=lambda text: int(text.replace(",", "")))
    rich_page.keyboard.press("Enter")
    assert head.nth(12).get_attribute("aria-sort") == "descending"
    assert column(rich_page, "head_to_head", 13)[0] == "1,240"
    head.nth(3).locator("button").focus()
    rich_page.keyboard.press("Enter")
    assert [each.get_attribute("aria-sort") for each in head.all()].count("ascending") == 1
    rates = [int(text) for text in column(rich_page, "head_to_head", 4)]
    assert rates == sorted(rates)
    rich_page.keyboard.press("Enter")
    rich_page.keyboard.press("Enter")
    assert head.nth(3).get_attribute("aria-sort") is None
    assert column(rich_page, "head_to_head", 13) == came


@pytest.mark.parametrize("clicks", [1, 2])
def test_what_was_not_measured_sorts_last_either_way(rich_page: Any, clicks: int) -> None:
    rich_page.reload()
    for _ in range(clicks):
        rich_page.locator("table.before_after thead button").nth(6).click()  # tuned less base
    shown = column(rich_page, "before_after", 7)
    measured = ["−83", "+0.09", "+0.33", "+59", "+67"]  # the last two are points: 0.59 and 0.67
    assert shown == (measured if clicks == 1 else measured[::-1]) + ["–"] * (len(shown) - 5)


def test_words_sort_as_words_and_every_table_has_buttons(rich_page: Any) -> None:
    rich_page.reload()
    assert rich_page.locator("table").count() == rich_page.locator("table:has(thead button)").count() == 9
    rich_page.locator("table.stages thead button").nth(0).click()
    assert column(rich_page, "stages", 1) == ["audit", "evaluate", "generate", "judge", "pair", "prepare", "train"]
    rich_page.locator("table.stages thead button").nth(2).click()
    assert column(rich_page, "stages", 1) == ["pair", "prepare", "judge", "audit", "evaluate", "generate", "train"]


def shown_verdicts(page: Any) -> list[str]:
    return [each.get_attribute("data-verdict") for each in page.locator(".example").all() if each.is_visible()]


def test_examples_are_filtered_by_words_and_verdict(rich_page: Any) -> None:
    rich_page.reload()
    find, choice, count = (rich_page.locator(f".filter {name}") for name in ("input", "select", "output"))
    assert count.inner_text() == "60 of 60 examples"
    assert len(shown_verdicts(rich_page)) == 12  # the others are folded
    choice.select_option(label="base wins")
    assert set(shown_verdicts(rich_page)) == {"loss"}
    assert count.inner_text() == f"{len(shown_verdicts(rich_page))} of 60 examples"
    assert not rich_page.locator("h3.kind", has_text="Biggest wins").is_visible()
    find.fill("NIGHT TRAIN")
    texts = [each.inner_text().lower() for each in rich_page.locator(".example").all() if each.is_visible()]
    assert texts
    assert all("night train" in text for text in texts)
    assert set(shown_verdicts(rich_page)) == {"loss"}
    find.fill("no such words")
    assert shown_verdicts(rich_page) == []
    assert count.inner_text() == "0 of 60 examples"
    find.fill("")
    choice.select_option("")
    assert count.inner_text() == "60 of 60 examples"
    assert len(shown_verdicts(rich_page)) == 12


def test_without_its_script_the_page_has_no_dead_controls(chromium: Any, rich_page: Any) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(rich_page.url)
    assert not page.locator(".filter").is_visible()
    assert page.locator("button").count() == 0
    assert page.locator(".example").count() == 60
    assert page.locator("table.before_after").is_visible()
    context.close()


def test_a_script_that_slipped_in_would_not_run(chromium: Any, tmp_path: Path, run: Run) -> None:
    page = page_of(run).replace(
        "<body>", "<body><script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"
    )
    (tmp_path / "evil.html").write_text(page)
    tab = chromium.new_page()
    tab.goto((tmp_path / "evil.html").as_uri())
    assert tab.title() == "titles: better"
    tab.close()


def test_on_paper_nothing_is_cut_and_no_control_is_left(rich_page: Any) -> None:
    rich_page.reload()
    rich_page.emulate_media(media="print", color_scheme="dark")
    assert not rich_page.locator(".filter").is_visible()
    assert rich_page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert rich_page.evaluate(
        "[...document.querySelectorAll('.wide')].every(each => getComputedStyle(each).overflowX === 'visible')"
    )
    rich_page.emulate_media(media="screen")
