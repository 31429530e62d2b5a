"""Run the recipes on real pretrained models and real data, and as they are offline; print what they learned in how long.

    python benchmarks/recipes.py --models DIR --data DIR [--out DIR] [--only NAME…]

Each case is one command, printed below the table. Reward accuracy is the share of held-out pairs whose chosen completion
gained more log-prob by training than the rejected one; 0.50 is a coin. Run again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple


class Case(NamedTuple):
    """A command, in which MODELS and DATA are folders, and where in its run's folder the result is."""

    command: str
    result: str = "."


LEGAL = (
    "run legal-flan-t5 --profile offline model.name_or_path=MODELS/flan-t5-small-titles generate.0.model=null "
    "generate.1.model=null pretrain.learning_rate=1.0e-4 pretrain.num_train_epochs=3 sft.learning_rate=1.0e-4 "
    "sft.num_train_epochs=3"
)
TITLES = (
    "run youtube-titles --profile offline generate=[] pair.judge=given evaluate.judge=rules "
    "prompts='{source: DATA/youtube_titles/preferences.csv, pairs: {}, test_fraction: 0.1}'"
)
TRUTHFUL = (
    "search truthful-qwen --profile offline prompts.source=DATA/truthfulqa/TruthfulQA.csv prompts.column=Question "
    "prompts.pairs='{chosen: Best Answer, rejected: Best Incorrect Answer}' "
    "search.space='{train.learning_rate: [1.0e-6, 1.0e-5], train.per_device_train_batch_size: [4, 8], "
    "train.num_train_epochs: [1], train.beta: [0.1, 0.3]}'"
)
CASES = {
    "legal, two answers to 45 questions": Case(LEGAL),
    "legal, six answers to 90 questions": Case(f"{LEGAL} prompts.write.n=90 generate.0.n=3 generate.1.n=3"),
    "titles, at the recipe's rate": Case(f"{TITLES} train.learning_rate=1.0e-6"),
    "titles, at ten times that": Case(f"{TITLES} train.learning_rate=1.0e-5"),
    "truthful, best of a grid of eight": Case(TRUTHFUL, "winner"),
    **{
        f"offline, {name}": Case(f"run {name} --profile offline")
        for name in ("youtube-titles", "legal-flan-t5", "human-like", "lima-judge-vs-pairrm")
    },
    "offline, truthful-qwen": Case("search truthful-qwen --profile offline", "winner"),
}
HEADS = ("case", "pairs of attempted", "reward accuracy", "win rate over base", "seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "tiebreak-recipes")
    parser.add_argument("--only", nargs="*", default=list(CASES))
    options = parser.parse_args()
    for place in (options.models, options.data):
        if not place.is_dir():
            sys.exit(f"{place}: not found")
    rows, told = [], []
    for name in options.only:
        case, folder, begun = CASES[name], options.out / re.sub(r"\W+", "-", name), time.monotonic()
        command = case.command.replace("MODELS", str(options.models.resolve())).replace("DATA", str(options.data.resolve()))
        subprocess.run([sys.executable, "-m", "tiebreak", *shlex.split(command), "--run", str(folder)], check=True)
        rows.append(row(name, folder / case.result, time.monotonic() - begun))
        told += [*grid(folder), f"    tiebreak {case.command}"]
    print(f"\n| {' | '.join(HEADS)} |\n{'|---' * len(HEADS)}|")
    print("\n".join([*rows, "", *told]))


def row(name: str, result: Path, seconds: float) -> str:
    """Return a case's line of the table; `seconds` are of this start."""
    pairs = json.loads((result / "manifest.json").read_text())["stages"]["pair"]["counts"]["train"]
    summary = json.loads((result / "eval" / "summary.json").read_text())
    accuracy = (summary.get("held_out_pairs") or {}).get("accuracy")
    cells = [
        f"{pairs['usable']} of {pairs['attempted']}",
        estimate(accuracy),
        estimate(summary.get("win_rate")),
        f"{seconds:.0f}",
    ]
    return f"| {name} | {' | '.join(cells)} |"


def grid(folder: Path) -> Iterator[str]:
    """Yield the trials of a search, and what it says of them."""
    if not (folder / "loop.json").exists():
        return
    loop = json.loads((folder / "loop.json").read_text())
    keys = list(loop["rows"][0]["settings"])
    yield f"| trial | {' | '.join(keys)} | reward accuracy |\n{'|---' * (len(keys) + 2)}|"
    for trial in loop["rows"]:
        settings = [f"{trial['settings'].get(key, '')}" for key in keys]
        yield f"| {' | '.join([trial['name'], *settings, estimate(trial['numbers'].get('accuracy'))])} |"
    yield f"\n{loop['sentence']}"


def estimate(raw: dict[str, Any] | None) -> str:
    """Write a rate with its interval and n."""
    if not raw:
        return "–"
    return f"{raw['rate']:.2f} ({raw['low']:.2f}–{raw['high']:.2f}), n = {raw['n']}"


if __name__ == "__main__":
    main()
