"""How long the app takes: to its first page with many runs in the directory, and to search many comparisons.

    python benchmarks/app.py [--runs 200] [--prompts 5000] [--comparisons 100000]

First page: from the start of `tiebreak app` in a new process to the last row of the table in a browser that is open
already; the runs have prompts and completions on disk, as links to one run's. Search: of one run, in this process; the
first search reads the files, the later ones find every text that has a word, one of them after a verdict was given, and one
after a judge has gone on.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tiebreak.files import appending, write_json, write_jsonl
from tiebreak.records import Comparison, Completion, Message, Prompt
from tiebreak.run import Run

RECIPE = """
name: titles
model: {name_or_path: builtin:smollm2-135m-instruct}
prompts: {source: ideas.csv, template: "Write a title: {idea}"}
generate: [{type: local, n: 5}]
judges: [{type: llm, name: judge, provider: openai, model: gpt-4o-mini, criteria: titles}]
"""
ESTIMATE = {"rate": 0.61, "low": 0.55, "high": 0.67, "n": 500, "prompts": 100}
SEARCHES = ("bread", "house river", '"the old bridge"', "zebra", "e", "judge", "a title that is long")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--prompts", type=int, default=5_000)
    parser.add_argument("--comparisons", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "runs"
        root.mkdir()
        (Path(folder) / "titles.yaml").write_text(RECIPE)
        one = filled(Path(folder) / "titles.yaml", root / "run-0", options.prompts, options.comparisons)
        for number in range(1, options.runs):
            shutil.copytree(one.path, root / f"run-{number}", copy_function=linked)
        print(
            f"{os.cpu_count()} cores; {options.runs} runs of {options.prompts:,} prompts; {options.comparisons:,} comparisons\n"
        )
        print("| what | seconds |\n|---|---|")
        for what, seconds in (*first_page(root, options.runs), *search(one)):
            print(f"| {what} | {seconds:.2f} |", flush=True)


def filled(recipe: Path, path: Path, prompts: int, comparisons: int) -> Run:
    """Write a run whose stages are done but for the report."""
    run, chance = Run.start(recipe, path), random.Random(0)
    words = [
        "bread",
        "house",
        "river",
        "bridge",
        "old",
        "the",
        "a",
        "of",
        "title",
        "garden",
        "light",
        "stone",
        "winter",
        "how",
        "to",
        "why",
        "in",
        "seven",
        "days",
        "judge",
    ]

    def text(length: int) -> str:
        return " ".join(chance.choices(words, k=length))

    asked = [Prompt.of((Message(role="user", content=f"{text(12)} {number}"),), "train") for number in range(prompts)]
    drawn = [Completion.of(each.id, f"{text(14)} {draw}", sampler="base", draw=draw) for each in asked for draw in range(5)]
    twos = [
        (drawn[at * 5 + one], drawn[at * 5 + two]) for at in range(prompts) for one in range(5) for two in range(5) if one != two
    ]
    write_jsonl(run.prompts_jsonl, asked)
    write_jsonl(run.completions_jsonl, drawn)
    write_jsonl(
        run.judgments("judge"),
        (
            Comparison(
                prompt_id=one.prompt_id, first=one.id, second=two.id, judge="judge",
                winner=chance.choice(("first", "second", "tie")), reason=text(20), raw=text(25),
            )
            for one, two in twos[:comparisons]
        ),
    )  # fmt: skip
    write_jsonl(run.pairs_jsonl, [])
    write_jsonl(run.held_out_pairs_jsonl, [])
    counts = {"pair": {part: {"attempted": 10, "usable": 7, "dropped": {"tie": 3}} for part in ("train", "held_out")}}
    for stage in run.stages[:-1]:
        run.manifest["stages"][stage] = {
            "state": "done",
            "settings": {},
            "inputs": {},
            "counts": counts.get(stage, {}),
            "seconds": 60,
        }
    write_json(run.manifest_json, run.manifest)
    write_json(run.summary_json, {"verdict": {"word": "better", "sentence": "Better."}, "win_rate": ESTIMATE})
    return run


def linked(source: str, target: str) -> None:
    (os.link if source.endswith(".jsonl") else shutil.copy2)(source, target)


def first_page(root: Path, runs: int) -> list[tuple[str, float]]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        executable = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        begun = time.monotonic()
        app = subprocess.Popen([sys.executable, "-m", "tiebreak", "app", str(root)], stdout=subprocess.PIPE, text=True)
        try:
            address = (app.stdout.readline() if app.stdout else "").split()[0]
            listening = time.monotonic()
            shown = []
            for _ in range(4):
                asked = time.monotonic()
                page.goto(address)
                page.wait_for_function(f"document.querySelectorAll('table.runs tbody tr').length >= {runs}")
                shown.append(time.monotonic() - asked)
            return [
                ("from the command to listening (mostly importing Gradio)", listening - begun),
                ("first page after that", shown[0]),
                ("from the command to the first page", listening - begun + shown[0]),
                ("first page again (median of three)", statistics.median(shown[1:])),
            ]
        finally:
            app.terminate()
            app.wait()
            browser.close()


def search(run: Run) -> list[tuple[str, float]]:
    from tiebreak.app.search import Index, Query
    from tiebreak.app.votes import Shown, vote

    index = Index(run.path)

    def took(text: str) -> float:
        begun = time.monotonic()
        index.find(Query(kind="comparisons", text=text))
        return time.monotonic() - begun

    first, *others = [took(text) for text in ("", *SEARCHES)]
    said = next(each for each in run.verdicts(run.judgments("judge")) if isinstance(each, Comparison))
    vote(run, Shown(said.prompt_id, said.first, said.second), "tie", "Eva")
    voted = took(SEARCHES[0])
    with appending(run.judgments("judge")) as append:
        append(said)
    return [
        ("search: the files are read, once", first),
        ("search: median of seven", statistics.median(others)),
        ("search: slowest of seven", max(others)),
        ("search after a verdict was given", voted),
        ("search after a judge has gone on", took(SEARCHES[0])),
    ]


if __name__ == "__main__":
    main()
