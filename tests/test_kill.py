"""Kill it anywhere and start it again: nothing is lost, nothing is done twice, and what comes out is the same."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from processes import Started
from scripted import LLM, RULES, Draws, Says, prompt, shorter, start
from tiebreak.files import read_jsonl, write_jsonl
from tiebreak.judges.build import build_judge
from tiebreak.records import Completion
from tiebreak.run import Run
from tiebreak.stages.generate import generate
from tiebreak.stages.judge import judge
from tiebreak.stages.pair import pair

KILLS = int(os.environ.get("TIEBREAK_KILLS", "4"))
ORDERED = ("prompts.jsonl", "pairs.jsonl", "eval/pairs.jsonl")
APPENDED = ("completions.jsonl", "judgments/rules.jsonl")

RECIPE: dict[str, Any] = {
    "prompts": {"items": ["one", "two", "three", "four", "five", "six", "seven", "eight"], "test_fraction": 0.25},
    # Three draws a batch, so that a kill may fall between two lines of a batch and between two batches.
    "generate": {"type": "local", "n": 3, "max_new_tokens": 8, "batch_size": 3},
    "judges": {
        "type": "rules",
        "checks": [{"check": "match", "pattern": "[a-m]"}, {"check": "length", "max": 9}, {"check": "match", "pattern": "[A-Z]"}],
    },
    "train": {"num_train_epochs": 2, "per_device_train_batch_size": 4, "logging_steps": 1, "save_steps": 1},
    "evaluate": {"n": 2, "max_new_tokens": 8, "batch_size": 2},
}


def begin(recipe: Path, run: Path) -> Started:
    return Started(recipe.with_name("said"), "run", str(recipe), "--run", str(run))


def progress(run: Path) -> int:
    """Return how much of a run is on disk: its files, and the lines in them."""
    files = [Path(folder, name) for folder, _, names in os.walk(run) for name in names]  # a folder may go meanwhile
    return len(files) + sum(lines_of(path) for path in files if path.suffix == ".jsonl")


def lines_of(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:  # renamed since
        return 0


def same(run: Path, whole: Path) -> None:
    for name in ORDERED:
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    for name in APPENDED:
        lines = [Counter((folder / name).read_bytes().splitlines(keepends=True)) for folder in (run, whole)]
        assert lines[0] == lines[1], name
    # A tuned model that went on from a checkpoint may answer a little differently, but as often.
    evaluated = [list(read_jsonl(folder / "eval/completions.jsonl", Completion)) for folder in (run, whole)]
    drawn = [Counter((each.sampler, each.prompt_id, each.draw) for each in draws) for draws in evaluated]
    assert drawn[0] == drawn[1]


@pytest.mark.timeout(60 + 30 * KILLS)
def test_a_run_that_is_killed_at_random_moments(tmp_path: Path, tiny: Path) -> None:
    """Four kills a run: after an amount of work, for stages are not equally long, then after a time; again both."""
    recipe, whole = tmp_path / "r.yaml", tmp_path / "whole"
    recipe.write_text(yaml.safe_dump({"model": {"name_or_path": str(tiny)}, **RECIPE}), encoding="utf-8")
    Started(tmp_path / "said", "--version").finish()  # the imports before the first are no part of a run's time
    begun = time.monotonic()
    said = begin(recipe, whole).finish()
    seconds, work = time.monotonic() - begun, progress(whole)
    assert said.splitlines()[-1] == str(whole / "report.html")
    assert (whole / "pairs.jsonl").stat().st_size > 0
    assert (whole / "train/model").is_dir()
    assert (len(Run(whole).draws()), len(Run(whole).prompts())) == (24, 8)

    chance, killed = random.Random(KILLS), list[str]()
    while len(killed) < KILLS:
        run = tmp_path / f"killed {len(killed)}"
        for left in range(min(4, KILLS - len(killed)), 0, -1):
            started = begin(recipe, run)
            if left % 2:
                moment = chance.uniform(0, seconds)
                deadline = time.monotonic() + moment
                started.wait(lambda deadline=deadline: time.monotonic() >= deadline)
            else:
                least = max(progress(run), 3)
                moment = least + 1 + chance.random() * (work - least) / left
                started.wait(lambda run=run, moment=moment: progress(run) >= moment)
            if started.kill():
                stages = Run(run).manifest["stages"] if (run / "recipe.json").exists() else {}
                killed.append(f"{moment:.1f} {'s' if left % 2 else 'lines and files'} ({next(reversed(stages), 'start')})")
        begin(recipe, run).finish()
        same(run, whole)
    print(f"killed {len(killed)} times; a whole run is {seconds:.1f} s, {work} lines and files: {'; '.join(killed)}")


@pytest.mark.parametrize("left", ["manifest.json", "manifest.json.partial", "recipe.json.partial"])
def test_a_start_that_was_killed_begins_again(left: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / left).write_text("{}", encoding="utf-8")
    assert start(tmp_path).state("prepare") == "owed"


# --- without processes ---------------------------------------------------------------------------------------------

PROMPTS = [prompt(str(at), "test" if at == 3 else "train") for at in range(4)]
TEXTS = st.sampled_from(["", "x", "yy", "zzz", "\u2028", "a\nb", "🎉"])


def perform(run: Run, texts: dict[tuple[str, int], str], patch: pytest.MonkeyPatch) -> tuple[Draws, Says]:
    """Generate and judge with scripted parts."""
    draws, says = Draws(lambda text, at: texts[text, at]), Says(shorter)
    patch.setattr("tiebreak.stages.generate.build_sampler", lambda section, recipe, ledger: draws)
    patch.setattr(
        "tiebreak.stages.judge.build_judge", lambda section, run: says if section.type == "llm" else build_judge(section, run)
    )
    generate(run)
    judge(run)
    pair(run)
    return draws, says


def lines(run: Run) -> dict[str, Counter[bytes]]:
    """Return the lines of every file of records, empty files aside."""
    found = {str(path.relative_to(run.path)): Counter(path.read_bytes().splitlines(True)) for path in run.path.rglob("*.jsonl")}
    return {name: counted for name, counted in found.items() if counted}


@given(
    texts=st.lists(TEXTS, min_size=12, max_size=12),
    orders=st.sampled_from(["both", "random", "first"]),
    cuts=st.lists(
        st.tuples(st.sampled_from(["completions.jsonl", "judgments/llm.jsonl", "judgments/rules.jsonl"]), st.floats(0, 1))
    ),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_files_cut_at_any_byte_come_to_the_same(
    texts: list[str], orders: str, cuts: list[tuple[str, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is still there is neither drawn nor asked again."""
    written = {(each.text, at): texts[3 * number + at] for number, each in enumerate(PROMPTS) for at in range(3)}
    folder = tmp_path / "again"
    folder.mkdir(exist_ok=True)
    run = start(folder, judges=[{**LLM, "orders": orders}, RULES], pair={"judge": "llm"})
    for path in run.path.rglob("*.jsonl"):
        path.unlink()
    write_jsonl(run.prompts_jsonl, PROMPTS)
    with monkeypatch.context() as patch:
        perform(run, written, patch)
        whole = lines(run)
        for name, share in cuts:
            path = run.path / name
            content = path.read_bytes()
            path.write_bytes(content[: round(share * len(content))])
        kept = lines(run)
        draws, says = perform(run, written, patch)
        assert lines(run) == whole
        assert len(draws.asked) == 12 - sum(line.endswith(b"\n") for line in kept.get("completions.jsonl", Counter()).elements())
        verdicts = kept.get("judgments/llm.jsonl", Counter())
        assert len(says.asked) == whole.get("judgments/llm.jsonl", Counter()).total() - sum(
            line.endswith(b"\n") for line in verdicts.elements()
        )
        draws, says = perform(run, written, patch)
        assert (draws.asked, says.asked) == ([], [])
