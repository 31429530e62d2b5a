"""show: all that is known of one prompt, in words, whatever stage the run is at."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripted import LLM, RULES, compared, completion, prompt, put, rated, start
from tiebreak.files import write_jsonl, write_text
from tiebreak.records import Completion, InputError, Message, Prompt
from tiebreak.run import Run
from tiebreak.show import life

CHAT = (Message(role="system", content="Be short."), Message(role="user", content="Why is\nthe sky blue?"))
P = Prompt.of(CHAT, "train", {"idea": "sky", "n": 3})
Q = prompt("held out?", "test")
TEXTS = ["Light.", "Because.", "Light.", "", "Rayleigh\nscattering"]


def done(run: Run, *stages: str) -> None:
    for stage in stages:
        run.manifest["stages"][stage] = {"state": "done", "counts": {}}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = start(tmp_path, judges=[LLM, RULES], pair={"judge": "llm", "min_margin": 0.6})
    put(run, (P, TEXTS), (Q, ["x", "y"]))
    return run


def judged(run: Run) -> Run:
    says = [
        ("Light.", "Because.", "first", "second"),
        ("Light.", TEXTS[4], "first", "tie"),
        ("Because.", TEXTS[4], "first", "first"),
    ]
    verdicts = [
        compared(P, *two, said) for one, other, there, back in says for two, said in (((one, other), there), ((other, one), back))
    ]
    write_jsonl(run.judgments("llm"), [*verdicts, compared(Q, "x", "y", "timed out")])
    write_jsonl(run.judgments("rules"), [rated(P, "Light.", 1.0), rated(P, "Because.", 0.125), rated(P, "", None)])
    return run


def test_a_whole_life(run: Run) -> None:
    done(judged(run), "prepare", "generate", "judge", "pair")
    assert (
        life(run, P.id)
        == f"""\
Prompt {P.id} (train)
  system: Be short.
  user: Why is
        the sky blue?
  idea = sky
  n = 3

Completions: 4 distinct of 5 drawn
[1] script, drawn twice
  Light.
  rules 1.00: so it is
[2] script, drawn once
  Because.
  rules 0.12: so it is
[3] script, drawn once
  (empty)
  rules error: broke
[4] script, drawn once
  Rayleigh
  scattering

Verdicts of llm: 6 twos
  [1] beats [2] by 1.00: says first
  [1] and [3], unreadable: not judged
  [1] beats [4] by 0.50: says first
  [2] and [3], unreadable: not judged
  [2] and [4], inconsistent: says first
  [3] and [4], unreadable: not judged
Verdicts of rules: 6 twos
  [1] beats [2] by 0.88: 1.00 (so it is) against 0.12 (so it is)
  [1] and [3], unreadable: broke
  [1] and [4], unreadable: not rated
  [2] and [3], unreadable: broke
  [2] and [4], unreadable: not rated
  [3] and [4], unreadable: broke

Pairs by llm: 1 of 10 usable
  [1] chosen, [2] rejected, margin 1.00
  [1] and [1]: identical
  [1] and [3]: empty
  [1] and [4]: too close
  [1] and [2]: repeated
  [2] and [3]: empty
  [2] and [4]: inconsistent
  [1] and [3]: repeated
  [1] and [4]: repeated
  [3] and [4]: empty"""
    )


def test_a_held_out_prompt_shows_both_models(run: Run) -> None:
    done(judged(run), "pair", "train")
    assert life(run, Q.id).endswith("\n\nBase against tuned: not yet, evaluate is owed")
    done(run, "evaluate")
    table = (
        "prompt_id,prompt,base,tuned,verdict,reason,base_score,tuned_score\n"
        f'{Q.id},held out?,"It, well","So\nit is",tuned,clearer,0.6666666,1.0\n'
        f"other,another,a,b,base,no,,\n"
        f"{Q.id},held out?,x,,base,an empty answer loses,,\n"
        f"{Q.id},held out?,x,x,tie,the same text,,\n"
        f"{Q.id},held out?,x,z,error,timed out,,\n"
    )
    write_text(run.results_csv, table)
    assert life(run, Q.id).endswith("""\
Verdicts of llm: 1 twos
  [1] and [2], unreadable: timed out
Verdicts of rules: 1 twos
  [1] and [2], unreadable: not rated

Pairs by llm: 0 of 1 usable
  [1] and [2]: unreadable

Base against tuned: 4 comparisons
  base 0.67: It, well
  tuned 1.00: So
              it is
  tuned wins: clearer
  base: x
  tuned: (empty)
  base wins: an empty answer loses
  base: x
  tuned: x
  tie: the same text
  base: x
  tuned: z
  error: timed out""")
    assert "Base against tuned" not in life(run, P.id)


def test_a_life_that_has_only_begun(run: Run) -> None:
    """What is not there yet is said, or left out; a stage that was never performed is no error."""
    text = life(run, P.id)
    assert "Verdicts" not in text
    assert text.endswith("\n\nPairs: none yet, pair is owed")
    run.completions_jsonl.unlink()
    assert "\n\nCompletions: 0 distinct of 0 drawn\n\n" in life(run, P.id)


def test_ready_made_pairs_show_what_came(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("", encoding="utf-8")
    run = start(tmp_path, prompts={"source": "pairs.jsonl", "pairs": {}}, generate=None, judges=None)
    put(run, (Q, ["good", "bad", "worse"]))
    write_jsonl(run.given_jsonl, [compared(Q, "good", "bad", "first", "given"), compared(Q, "bad", "worse", "first", "given")])
    done(run, "pair")
    text = life(run, Q.id)
    assert "Verdicts of given: 2 twos\n  [1] beats [2] by 1.00: says first\n  [2] beats [3] by 1.00: says first\n" in text
    assert "Pairs by given: 2 of 2 usable\n  [1] chosen, [2] rejected, margin 1.00\n" in text


def test_draws_of_several_samplers(run: Run) -> None:
    draws = [completion(P, "same", at, sampler) for sampler in ("cold", "warm") for at in range(3)]
    draws[0] = draws[0].model_copy(update={"finish_reason": "length"})
    write_jsonl(run.completions_jsonl, draws)
    assert "[1] cold, warm, drawn 6 times, cut at the token limit\n  same\n" in life(run, P.id)


def test_signs_that_a_terminal_would_obey_are_spelled_out(run: Run) -> None:
    text = "\x1b[2Jred\rx\u2028y\ttab\x07 \u200d🎉 naïve 日本\n\nlast"
    write_jsonl(run.completions_jsonl, [Completion.of(P.id, text, sampler="s")])
    shown = life(run, P.id)
    assert "  \\x1b[2Jred\\rx\\u2028y\\ttab\\x07 \u200d🎉 naïve 日本\n  \n  last\n" in shown
    assert "\x1b" not in shown


def test_the_beginning_of_an_id_is_enough(run: Run) -> None:
    assert life(run, P.id[:6]) == life(run, P.id)
    with pytest.raises(InputError, match=rf"no prompt 'zz'; {run.prompts_jsonl} lists the ids$"):
        life(run, "zz")
    with pytest.raises(InputError, match=r"2 prompts begin with '', such as [0-9a-f]{16}, [0-9a-f]{16}; give more of the id$"):
        life(run, "")


def test_reading_changes_nothing_and_needs_no_torch(run: Run) -> None:
    done(judged(run), "pair")
    before: dict[Path, Any] = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    code = (
        "import sys; from pathlib import Path; from tiebreak.run import Run; from tiebreak.show import life;"
        f"life(Run(Path({str(run.path)!r})), {P.id!r});"
        "print([name for name in ('torch', 'transformers', 'openai', 'scipy', 'numpy', 'datasets') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before
