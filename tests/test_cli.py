"""The door: what it prints, and that every mistake ends in one line, exit code 2 and nothing half-written."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripted import LLM, RULES, Typed, typed
from servers import reply, slow, stub
from tiebreak import __version__
from tiebreak.files import write_json
from tiebreak.recipe import Recipe
from tiebreak.recipe_yaml import SHIPPED, load_recipe, parse_yaml, validate_recipe
from tiebreak.run import OPTIONAL, STAGES, Run

STAGES = tuple(stage for stage in STAGES if stage not in OPTIONAL)  # the others: test_sft_stage.py

IDEAS = "idea,kind\n" + "".join(f"idea {at},k\n" for at in range(10))
API: dict[str, Any] = {"type": "api", "name": "api", "provider": "custom", "base_url": "http://127.0.0.1:9/v1", "model": "m"}


Command = Callable[..., Typed]
Mistake = Callable[..., str]


@pytest.fixture
def tiebreak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Return what runs `tiebreak` in this process, in the test's own folder, with changes to the environment."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str, **environment: str | None) -> Typed:
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.delenv(name, raising=False) if value is None else patch.setenv(name, value)
            return typed(patch, capfd, *arguments)

    return command


@pytest.fixture
def mistake(tiebreak: Command, tmp_path: Path) -> Mistake:
    """Return what runs `tiebreak` likewise, and returns the one line of a mistake."""
    return lambda *arguments, **environment: line_of(tiebreak(*arguments, **environment), tmp_path)


def line_of(ended: Typed, folder: Path) -> str:
    assert "Traceback" not in ended.out
    assert not list(folder.rglob("*.partial"))
    return ended.mistake


def apart(*arguments: str, cwd: Path, **environment: str | None) -> Typed:
    """Run `tiebreak` in a process of its own, where all that is imported may speak too."""
    changed = {name: value for name, value in {**os.environ, **environment}.items() if value is not None}
    command = [sys.executable, "-m", "tiebreak", *arguments]
    ended = subprocess.run(command, cwd=cwd, env=changed, capture_output=True, text=True, check=False, timeout=60)
    return Typed(ended.returncode, ended.stdout, ended.stderr)


@pytest.fixture
def recipe(tmp_path: Path, tiny: Path) -> Path:
    """A recipe that could run, on the tiny model."""
    (tmp_path / "ideas.csv").write_text(IDEAS, encoding="utf-8")
    return write(tmp_path, tiny)


def write(folder: Path, tiny: Path, **changes: Any) -> Path:
    data = {
        "model": {"name_or_path": str(tiny)},
        "prompts": {"source": "ideas.csv", "column": "idea"},
        "generate": {"type": "local", "n": 2, "max_new_tokens": 4},
        "judges": RULES,
        **changes,
    }
    path = folder / "r.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


# --- mistakes ------------------------------------------------------------------------------------------------------

MISTAKES: list[tuple[list[str], dict[str, Any], str]] = [
    (["train.learning_rat=1"], {}, r"^r\.yaml: train\.learning_rat: unknown key; did you mean 'learning_rate'\?$"),
    (["train.beta=much"], {}, r"^r\.yaml: train\.beta: input should be a valid number$"),
    (["generate.0.n=true"], {}, r"^r\.yaml: generate\.0\.n: input should be a valid integer$"),
    (["train.beta"], {}, r"^'train\.beta': an override is written key=value"),
    (["--profile", "fast"], {}, r"^r\.yaml: no profile 'fast'; there is none$"),
    (["prompts.source=absent.csv"], {}, r"absent\.csv"),
    (["prompts.column=title"], {}, r"'title'.*'idea'.*'kind'"),
    (["prompts.template='{title}'", "prompts.column=null"], {}, r"'title'.*'idea'.*'kind'"),
    ([], {"ideas.csv": ""}, r"ideas\.csv"),
    ([], {"ideas.csv": "idea,kind\n"}, r"ideas\.csv|none is left of 0 rows"),
    (["model.name_or_path=weightless"], {"weightless/config.json": "{}"}, r"^model weightless: no \.safetensors weights"),
    (["model.name_or_path=hollow"], {"hollow/note.txt": ""}, r"^model hollow: no config\.json in this folder"),
    (["model.name_or_path=./absent"], {}, r"^model \./absent: no such folder$"),
    (["model.name_or_path=builtin:nothing"], {}, r"^model builtin:nothing: no such builtin model; there is builtin:smollm2"),
    (["model.name_or_path=nobody/nothing"], {}, r"^model nobody/nothing: neither a local folder nor loadable from the Hub"),
    (["prompts.source=nobody/nothing"], {}, r"^prompts\.source: dataset 'nobody/nothing': .*check the name and the network$"),
    (["generate.0={type: api, provider: together, model: m}"], {}, r"^provider together needs a key: set TOGETHER_API_KEY in"),
    (["judges.0={type: llm, provider: gemini, model: m, criteria: short}"], {}, r"^provider gemini needs a key: set GEMINI_API"),
    (
        ["judges.0={type: llm, provider: vllm, model: m, criteria: absent.txt}"],
        {},
        r"^judges\.llm\.criteria: no file 'absent\.txt'",
    ),
    (
        ["prompts.test_fraction=0.01"],
        {},
        r"^prompts: test_fraction 0\.01 of 10 prompts leaves no test prompt; use at least 0\.1$",
    ),
    (["prompts.filters.min_words=9"], {}, r"^prompts: none is left of 10 rows \(10 too short\); loosen prompts\.filters$"),
]


@pytest.mark.parametrize(
    ("arguments", "files", "line"), MISTAKES, ids=[" ".join(case[0])[:40] or str(case[1]) for case in MISTAKES]
)
def test_a_mistake_is_one_line(arguments: list[str], files: dict[str, str], line: str, recipe: Path, mistake: Mistake) -> None:
    for name, text in files.items():
        (recipe.parent / name).parent.mkdir(exist_ok=True)
        (recipe.parent / name).write_text(text, encoding="utf-8")
    said = mistake("run", "r.yaml", *arguments, TOGETHER_API_KEY=None, GEMINI_API_KEY=None)
    assert re.search(line, said), said
    run = recipe.parent / "runs" / "r"
    assert {path.name for path in run.rglob("*")} <= {"recipe.yaml", "recipe.json", "manifest.json", ".lock"}
    for path in run.glob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("command", "override", "line"),
    [
        (
            "prepare",
            "prompts.source=nobody/nothing",
            r"^prompts\.source: dataset 'nobody/nothing': .*; check the name and the network$",
        ),
        (
            "run",
            "model.name_or_path=nobody/nothing",
            r"^model nobody/nothing: neither a local folder nor loadable from the Hub \(.*\); check the name and the network$",
        ),
    ],
)
def test_no_network_is_one_line_and_quick(command: str, override: str, line: str, recipe: Path) -> None:
    begun = time.monotonic()
    ended = apart(command, "r.yaml", override, cwd=recipe.parent, HF_HUB_OFFLINE=None, HF_ENDPOINT="http://127.0.0.1:9")
    said = line_of(ended, recipe.parent)
    assert re.search(line, said), said
    assert time.monotonic() - begun < 15


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["run", "nothing"], r"^no recipe 'nothing': neither a file nor one of the shipped recipes \(.*demo.*starter.*\)$"),
        (["run", "."], r"^no recipe '\.': neither a file"),
        (["run", "broken.yaml"], r"^broken\.yaml, line 2: not valid YAML: "),
        (["run", "r.yaml", "--redo", "sampling"], r"^--redo sampling: no such stage; there is prepare, generate, judge, pair, "),
        (["run", "r.yaml", "--run", "thesis"], r"^thesis: holds other files; name an empty or new folder with --run$"),
        (["run", "r.yaml", "--run", "r.yaml"], r"^r\.yaml: is a file, not a run directory$"),
        (["pair", "r.yaml"], r"^runs/r: pair comes after prepare, which is not done; run `tiebreak prepare` first$"),
        (["status", "nowhere"], r"^nowhere: not a run directory \(no recipe\.json\)$"),
        (["show", "thesis", "abc"], r"^thesis: not a run directory \(no recipe\.json\)$"),
        (["init", "r.yaml"], r"^r\.yaml: is there already; name another file$"),
        (["init", "no/such/r.yaml"], r"^no/such: no such folder$"),
        (["keys", "trian"], r"^no key starts with 'trian'; tiebreak keys lists them all$"),
    ],
)
def test_a_mistaken_command_changes_nothing(arguments: list[str], line: str, recipe: Path, mistake: Mistake) -> None:
    (recipe.parent / "thesis").mkdir()
    (recipe.parent / "thesis" / "chapter.txt").write_text("1", encoding="utf-8")
    (recipe.parent / "broken.yaml").write_text("a: 1\na: 2\n", encoding="utf-8")
    before = {path: path.read_bytes() for path in recipe.parent.rglob("*") if path.is_file()}
    said = mistake(*arguments)
    assert re.search(line, said), said
    after = {path: path.read_bytes() for path in recipe.parent.rglob("*") if path.is_file()}
    run = recipe.parent / "runs"
    assert {path: content for path, content in after.items() if run not in path.parents} == before
    assert run.exists() == (arguments[0] == "pair")  # a run that may go on


def test_a_mended_mistake_goes_on(recipe: Path) -> None:
    folder = recipe.parent
    line_of(apart("prepare", "r.yaml", "prompts.column=title", cwd=folder), folder)
    assert apart("prepare", "r.yaml", cwd=folder) == (0, "prepare: 10 prompts of 10 rows (9 train, 1 test)\n", "")


def test_a_changed_recipe_is_told_from_the_run(recipe: Path, tiebreak: Command, mistake: Mistake) -> None:
    folder = recipe.parent
    assert tiebreak("prepare", "r.yaml").code == 0
    before = (folder / "runs/r/prompts.jsonl").read_bytes()
    said = mistake("run", "r.yaml", "seed=7")
    assert said == (
        "runs/r: prepare was made with other settings or inputs: seed (was 42, is 7); "
        "repeat it with --redo prepare, or start another run with --run DIR"
    )
    (folder / "ideas.csv").write_text(IDEAS + "one more,k\n", encoding="utf-8")
    assert "the content of prompts.source" in mistake("run", "r.yaml")
    assert "has its settings" in mistake("prepare", "runs/r", "seed=7")
    assert (folder / "runs/r/prompts.jsonl").read_bytes() == before
    # What was asked for is checked before anything is deleted.
    assert "no such folder" in mistake("run", "r.yaml", "model.name_or_path=./absent", "--redo", "prepare")
    assert (folder / "runs/r/prompts.jsonl").read_bytes() == before
    ended = tiebreak("prepare", "r.yaml", "seed=7", "--redo")
    assert ended.out == "prepare: 11 prompts of 11 rows (10 train, 1 test)\n"


def test_a_second_process_is_told_at_once(recipe: Path, tiebreak: Command, mistake: Mistake) -> None:
    folder = recipe.parent
    assert tiebreak("prepare", "r.yaml").code == 0
    with Run(folder / "runs/r").lock():
        before = (folder / "runs/r/manifest.json").read_bytes()
        refused = "runs/r: another tiebreak process is working on this run; wait for it or stop it"
        assert apart("run", "r.yaml", cwd=folder).mistake == refused
        for command in (["prepare", "runs/r"], ["run", "r.yaml", "--redo", "prepare"]):
            assert mistake(*command) == refused
        assert (folder / "runs/r/manifest.json").read_bytes() == before
        assert tiebreak("status", "runs/r").code == 0  # looking is free
    assert tiebreak("prepare", "runs/r").code == 0


def test_only_what_a_stage_needs_is_asked_for(recipe: Path, tiny: Path, tiebreak: Command, mistake: Mistake) -> None:
    """Neither the key of a judge nor the weights of a model are needed to read prompts or to look at a run."""
    folder = recipe.parent
    write(folder, tiny, judges={**LLM, "provider": "gemini"}, model={"name_or_path": "./absent"})
    assert tiebreak("prepare", "r.yaml", GEMINI_API_KEY=None).code == 0
    assert tiebreak("report", "runs/r", GEMINI_API_KEY=None).code == 0
    assert "no such folder" in mistake("generate", "r.yaml", GEMINI_API_KEY=None)
    assert "GEMINI_API_KEY" in mistake("judge", "r.yaml", GEMINI_API_KEY=None)
    assert "GEMINI_API_KEY" in mistake("run", "r.yaml", GEMINI_API_KEY=None)


# --- judges --------------------------------------------------------------------------------------------------------


def test_judges_are_checked_without_a_model(recipe: Path, tiebreak: Command, mistake: Mistake) -> None:
    """Rules need none; a mistake is one line, and is found before anybody is asked."""
    folder = recipe.parent
    rows = ["prompt,first,second,winner", *(f"q{at},short,far too long,first" for at in range(40))]
    (folder / "gold.csv").write_text("\n".join(rows), encoding="utf-8")
    ended = tiebreak("judges", "check", "r.yaml", "--gold", "gold.csv")
    assert (ended.code, ended.err) == (0, "")
    *table, sentence = ended.out.splitlines()
    assert sentence == "rules: right 1.00 (0.91–1.00) of 40: fit"
    assert all(len(line) <= 160 for line in table)
    assert [word in table[1] for word in ("judge", "accuracy", "flips", "$ per 1,000")] == [True] * 4
    assert (folder / "runs/r/checks/gold.csv/table.csv").is_file()
    assert "torch" not in loaded_by("judges", "check", "r.yaml", "--gold", "gold.csv", cwd=folder)
    for arguments, line in (
        (["--gold", "absent.csv"], "absent.csv: cannot be read: No such file or directory"),
        (["--gold", "gold.csv", "--judge", "llm"], "--judge llm: no such judge in the recipe; there is rules"),
        (["--gold", "runs/r"], "runs/r: nobody has labelled anything in this run; name a file, or label some pairs first"),
    ):
        assert mistake("judges", "check", "r.yaml", *arguments) == line


def loaded_by(*arguments: str, cwd: Path) -> list[str]:
    """Return the heavy libraries that a command loads."""
    code = f"""
import sys
sys.argv = ["tiebreak", *{arguments!r}]
from tiebreak.cli import main
try:
    main()
finally:
    print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=True)
    return json.loads(ended.stderr.replace("'", '"'))


# --- a whole run ---------------------------------------------------------------------------------------------------


def test_a_run_over_a_server_ends_with_the_path_of_its_report(
    recipe: Path, tiny: Path, tiebreak: Command, mistake: Mistake
) -> None:
    """Every verdict is a tie, so there is nothing to train on: said, counted, and no error."""
    folder = recipe.parent

    def answer(number: int, asked: dict[str, Any]) -> Any:
        judging = "Verdict: TIE" in asked["messages"][-1]["content"]
        return reply("Both are good.\nVerdict: TIE" if judging else f"Title {number}")

    with stub(answer) as server:
        api = {**API, "base_url": server.url, "n": 2}
        write(folder, tiny, generate=api, judges={**LLM, "provider": "custom", "base_url": server.url})
        ended = apart("run", "r.yaml", "--run", "here", cwd=folder)
        assert (ended.code, ended.err) == (0, "")
        calls = server.calls
        again = tiebreak("run", "r.yaml", "--run", "here")
        assert server.calls == calls == 40
    lines = [line for line in ended.out.splitlines() if not line.startswith(("audit error:", "audit warning:"))]
    assert [line.split(":")[0] for line in lines] == [*STAGES, "here/report.html"]
    assert [*lines[1:4], *lines[5:7]] == [
        "generate: 20 distinct completions of 20 drawn (0 identical)",
        "judge: llm made 20 comparisons of 10 twos (10 ties, 0 inconsistent, 0 unreadable) in 20 calls for nothing",
        "pair: 0 of 9 pairs usable to train on (dropped 9 tie); 0 of 1 pairs usable held out (dropped 1 tie)",
        "train: skipped: no usable pair to train on",
        "evaluate: Base and tuned were not compared: nothing was trained: no usable pair to train on.",
    ]
    assert (folder / "here/report.html").is_file()
    assert again.out.splitlines()[:7] == [f"{line} (done before)" for line in lines[:7]]
    assert again.out.splitlines()[-1] == "here/report.html"

    status = tiebreak("status", "here").out.splitlines()
    assert [line.split()[:2] for line in status[: len(STAGES)]] == [[stage, "done"] for stage in STAGES]
    assert status[len(STAGES) :] == [
        "generate.api: $0.00, 20 calls, 140 tokens in and 60 out",
        "judges.llm: $0.00, 20 calls, 140 tokens in and 60 out",
    ]
    assert status[3].endswith(lines[3].removeprefix("pair: "))

    drawn = (folder / "here/completions.jsonl").read_bytes()
    keyless = ["generate.0.api_key_env=NO_SUCH_KEY", "--redo", "generate"]
    assert "set NO_SUCH_KEY" in mistake("run", "r.yaml", "--run", "here", *keyless)
    assert (folder / "here/completions.jsonl").read_bytes() == drawn  # what is repeated is checked before it is deleted

    prompt = Run(folder / "here").prompts()[0]
    shown = tiebreak("show", "here", prompt.id[:8])
    assert shown.code == 0
    assert shown.out.startswith(f"Prompt {prompt.id} (")
    assert "[1] and [2], tie: Both are good.\n" in shown.out
    assert "no prompt 'zz'" in mistake("show", "here", "zz")


def test_who_is_alone_in_a_session_can_be_interrupted(recipe: Path, tiny: Path, tiebreak: Command) -> None:
    """A job in the background ignores interrupts, and so would all that it starts, such as the app's runs."""
    with stub(lambda number, asked: slow(120, reply("late"))) as server:
        write(recipe.parent, tiny, generate={**API, "base_url": server.url, "concurrency": 1})
        assert tiebreak("prepare", "r.yaml").code == 0
        command = f"trap '' INT; exec {sys.executable} -m tiebreak generate r.yaml"
        with subprocess.Popen(
            ["sh", "-c", command], cwd=recipe.parent, stderr=subprocess.PIPE, start_new_session=True
        ) as process:
            deadline = time.monotonic() + 60
            while not server.calls and time.monotonic() < deadline:
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) == 130


def test_an_interrupt_is_one_line_and_the_run_goes_on(recipe: Path, tiny: Path, tiebreak: Command, mistake: Mistake) -> None:
    folder = recipe.parent
    with stub(lambda number, asked: reply(f"{number}") if number < 3 else slow(120, reply("late"))) as server:
        write(folder, tiny, generate={**API, "base_url": server.url, "n": 2, "concurrency": 1})
        assert tiebreak("prepare", "r.yaml").code == 0
        command = [sys.executable, "-m", "tiebreak", "generate", "r.yaml"]
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            deadline = time.monotonic() + 120
            while server.calls < 4 and time.monotonic() < deadline:
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (130, "", "tiebreak: stopped; the same command goes on from here\n")
    run = Run(folder / "runs/r")
    assert (run.state("generate"), len(run.draws())) == ("stopped", 3)
    assert "generate  stopped" in tiebreak("status", "runs/r").out
    with stub([reply("more")]) as server:
        write(folder, tiny, generate={**API, "base_url": server.url, "n": 2, "concurrency": 1})
        assert "generate.api.base_url (was" in mistake("generate", "r.yaml")
        assert server.calls == 0


# --- init, keys, version, help -------------------------------------------------------------------------------------


def test_init_writes_a_recipe_that_loads(tmp_path: Path, tiebreak: Command, mistake: Mistake) -> None:
    ended = tiebreak("init")
    assert ended.out == "recipe.yaml: edit it, then run: tiebreak run recipe.yaml\n"
    assert load_recipe(tmp_path / "recipe.yaml").name == "recipe"
    text = (tmp_path / "recipe.yaml").read_text(encoding="utf-8")
    assert text == (SHIPPED / "starter.yaml").read_text(encoding="utf-8")
    assert mistake("init") == "recipe.yaml: is there already; name another file"
    assert (tmp_path / "recipe.yaml").read_text(encoding="utf-8") == text
    assert tiebreak("init", "other.yaml").out.startswith("other.yaml: edit it")


def snippet(first: str, text: str) -> Any:
    """Return what the commented lines of the starter say, from the one that begins with `first` to the next of its depth."""
    lines = [line.removeprefix("  ").removeprefix("# ") for line in text.splitlines()]
    at = next(number for number, line in enumerate(lines) if line.startswith(first))
    rest = takewhile(lambda line: line.startswith(" "), lines[at + 1 :])
    return parse_yaml("\n".join([lines[at], *rest]), first)


MORE_TRAINING = ("lora", "loss_type", "early_stopping_patience", "report_to", "trainer_args")


def test_what_the_starter_comments_out_is_valid_too() -> None:
    text = (SHIPPED / "starter.yaml").read_text(encoding="utf-8")
    data = {"name": "starter", **parse_yaml(text, "starter.yaml")}

    def recipe(**changes: Any) -> Recipe:
        return validate_recipe({key: value for key, value in {**data, **changes}.items() if value is not None}, "starter.yaml")

    more = recipe(
        generate=[*data["generate"], *snippet("- {type: local, n: 2", text), *snippet("- {type: api", text)],
        judges=[*data["judges"], *snippet("- type: llm", text)],
        pair={**data["pair"], **snippet("judge: gemini", text)},
        train={
            **data["train"],
            **{key: value for name in MORE_TRAINING for key, value in snippet(f"{name}:", text).items()},
        },
        **snippet("model: {name_or_path: Qwen", text),
    )
    assert (len(more.generate), [judge.type for judge in more.judges], more.pair.judge) == (3, ["rules", "llm"], "gemini")
    assert more.train.lora is not None
    assert '"evaluate": null' in json.dumps(snippet("evaluate: null", text))
    source = {**snippet("source: questions", text), **snippet("system:", text), **snippet("filters:", text)}
    for key in ("column", "template"):
        assert recipe(prompts={**source, **snippet(f"{key}:", text)}).prompts.filters.first == 500
    ready_made = recipe(generate=None, judges=None, profiles={}, **snippet("prompts:", text.split("Ready-made")[1]))
    assert ready_made.prompts.pairs is not None
    assert load_recipe(SHIPPED / "starter.yaml", "quick").generate[0].n == 2


def test_keys(tmp_path: Path, tiebreak: Command) -> None:
    every = tiebreak("keys").out.splitlines()
    assert len(every) > 100
    assert "train.beta  (number, default 0.1)  Strength of the pull to the reference." in every
    some = tiebreak("keys", "train.lora.").out.splitlines()
    assert len(some) == 8
    assert set(some) < set(every)


def test_version(tmp_path: Path, tiebreak: Command) -> None:
    assert tiebreak("--version").out == f"tiebreak {__version__}\n"


HEAVY = ("torch", "transformers", "openai", "numpy", "yaml")


COMMANDS = ("", "run", *STAGES, "status", "show", "init", "keys", "judges", "judges check")


@pytest.fixture(scope="module")
def helped() -> dict[str, list[Any]]:
    """Ask one process for all help; by command: its exit code, what it said, and what was loaded by then."""
    code = f"""
import contextlib, io, json, sys
from tiebreak.cli import main
found = {{}}
for command in {COMMANDS!r}:
    sys.argv = ["tiebreak", *command.split(), "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        try:
            main()
        except SystemExit as end:
            found[command] = [end.code, said.getvalue(), [name for name in {(*HEAVY, "pydantic")!r} if name in sys.modules]]
print(json.dumps(found))
"""
    return json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_quick(command: str, helped: dict[str, list[Any]]) -> None:
    """Under half a second, which a busy machine cannot promise; that no heavy library is loaded, it can."""
    code, said, heavy = helped[command]
    assert "Usage" in said
    assert f"tiebreak {command}".rstrip() in said
    # Of typer's own, only what runs or stages need may be there; the first help of all does without pydantic too.
    assert (code, heavy if command == "" else [name for name in heavy if name != "pydantic"]) == (0, [])


def test_status_tells_a_killed_stage_from_one_at_work(recipe: Path, tiebreak: Command) -> None:
    run = Run.start(recipe, recipe.parent / "run")
    write_json(run.manifest_json, run.manifest | {"stages": {"generate": {"state": "running"}}})
    with run.lock():
        assert "generate  running" in tiebreak("status", "run").out
    assert "generate  killed" in tiebreak("status", "run").out
