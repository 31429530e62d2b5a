"""The run directory: lines that survive a crash, and a stage that is never built on what has changed."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tiebreak.files import appending, read_json, read_jsonl, write_json, write_jsonl
from tiebreak.recipe_yaml import SHIPPED
from tiebreak.records import Comparison, Completion, InputError, Message, Prompt, Rating
from tiebreak.run import FLOW, OPTIONAL, STAGES, Counts, Run

STAGES = tuple(stage for stage in STAGES if stage not in OPTIONAL)  # the others: test_sft_stage.py

RULES = {"type": "rules", "checks": [{"check": "length", "max": 75}]}
LLM = {"type": "llm", "name": "llm", "provider": "gemini", "model": "m", "criteria": "criteria.txt"}
BASE: dict[str, Any] = {
    "model": {"name_or_path": "m"},
    "prompts": {"source": "ideas.csv"},
    "generate": [{"type": "local", "name": "warm", "n": 2}],
    "judges": [RULES, LLM],
    "pair": {"judge": "rules"},
}


@pytest.fixture(autouse=True)
def _no_wait_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tiebreak.run.os.fsync", lambda _: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "ideas.csv").write_text("idea\na\n", encoding="utf-8")
    (tmp_path / "criteria.txt").write_text("Be short.", encoding="utf-8")
    return tmp_path


def start(folder: Path, *overrides: str, **changes: Any) -> Run:
    recipe = folder / "r.yaml"
    recipe.write_text(yaml.safe_dump({**BASE, **changes}), encoding="utf-8")
    return Run.start(recipe, folder / "run", overrides=overrides)


def work(stage: str, **counts: Any) -> Callable[[Run], Counts]:
    """Return a stage that writes every file it should, in one line each, and counts its calls."""

    def make(run: Run) -> Counts:
        for name in FLOW[stage].writes:
            path = run.path / name
            if not path.suffix:
                path = path / "rules.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as stream:
                stream.write(f"{stage}\n")
        return counts

    return make


def untouched(run: Run) -> Counts:
    raise AssertionError("the stage was performed")


def perform(run: Run, until: str = "report") -> Run:
    for stage in STAGES[: STAGES.index(until) + 1]:
        run.perform(stage, work(stage))
    return run


def refusal(run: Run, stage: str) -> str:
    with pytest.raises(InputError) as caught:
        run.perform(stage, untouched)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- lines ---------------------------------------------------------------------------------------------------------

texts = st.text(max_size=8) | st.sampled_from(
    ["\u2028", "\u2029", "\x85", "a\nb\r\n", "\x0b\x0c\x1c", "🎉", '"\\', "日本", "\\u2028"]
)
completions = st.lists(st.builds(Completion.of, st.just("p"), texts, sampler=st.just("s")), min_size=1, max_size=5)
same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(completions, st.data())
@same_folder
def test_a_file_cut_at_any_byte_goes_on_where_it_was(tmp_path: Path, records: list[Completion], data: st.DataObject) -> None:
    path = tmp_path / "completions.jsonl"
    write_jsonl(path, records)
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])

    have = list(read_jsonl(path, Completion))
    assert have == records[: len(have)]
    assert len(have) == path.read_bytes().count(b"\n")
    with appending(path) as append:
        for record in records[len(have) :]:
            append(record)
    assert path.read_bytes() == whole
    assert list(read_jsonl(path, Completion)) == records


@given(completions)
@same_folder
def test_a_record_is_one_line_to_every_reader(tmp_path: Path, records: list[Completion]) -> None:
    path = tmp_path / "completions.jsonl"
    write_jsonl(path, records)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["text"] for line in lines] == [record.text for record in records]


def test_a_line_is_in_the_file_as_soon_as_it_is_appended(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "completions.jsonl"
    with appending(path) as append:
        for count in (1, 2):
            append(Completion.of("p", "text", sampler="s"))
            assert len(list(read_jsonl(path, Completion))) == count


def test_a_torn_line_longer_than_a_block_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "completions.jsonl"
    write_jsonl(path, [Completion.of("p", "first", sampler="s")])
    whole = path.read_bytes()
    for torn in (b"x" * (1 << 16), b"x" * ((1 << 17) + 1)):
        path.write_bytes(whole + torn)
        with appending(path):
            pass
        assert path.read_bytes() == whole
        path.write_bytes(torn)
        with appending(path):
            pass
        assert path.read_bytes() == b""


BROKEN_LINES = [
    b"{}",
    b"",
    b"not json",
    b'{"id": 5}',
    b"\xff\xfe",
    b"[]",
    b'{"id":"a","prompt_id":"p","text":true,"sampler":"s"}',
]


@pytest.mark.parametrize("line", BROKEN_LINES)
def test_a_broken_line_in_the_middle_is_named(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "completions.jsonl"
    write_jsonl(path, [Completion.of("p", text, sampler="s") for text in ("one", "two")])
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + line + b"\n" + second)
    with pytest.raises(InputError) as caught:
        list(read_jsonl(path, Completion))
    assert str(caught.value).startswith(f"{path}, line 2: not a Completion: ")
    assert "\n" not in str(caught.value)


def test_an_absent_file_holds_nothing(folder: Path) -> None:
    run = start(folder)
    assert list(read_jsonl(folder / "absent.jsonl", Completion)) == []
    assert (run.prompts(), run.draws(), run.pairs(run.pairs_jsonl), run.verdicts(run.judgments("rules"))) == ([], [], [], [])


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    prompts = [Prompt.of((Message(role="user", content="hi"),), "train")]
    write_jsonl(path, prompts)
    before = path.read_bytes()

    def broken() -> Any:
        yield prompts[0]
        yield prompts[0]
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_jsonl(path, broken())
    assert path.read_bytes() == before


def test_the_last_verdict_on_a_question_counts(folder: Path) -> None:
    run = start(folder)
    fields = {"prompt_id": "p", "judge": "llm"}
    comparisons = [
        Comparison(first="a", second="b", error="timed out", **fields),
        Comparison(first="b", second="a", winner="tie", **fields),
        Comparison(first="a", second="b", winner="second", **fields),
    ]
    write_jsonl(run.judgments("llm"), comparisons)
    assert sorted(str(one.winner) for one in run.verdicts(run.judgments("llm")) if isinstance(one, Comparison)) == [
        "second",
        "tie",
    ]
    ratings = [Rating(prompt_id="p", completion_id="a", judge="completion_id", score=score) for score in (0.0, 1.0)]
    write_jsonl(run.judgments("rules"), ratings)
    assert run.verdicts(run.judgments("rules")) == ratings[1:]


# --- opening -------------------------------------------------------------------------------------------------------


def test_a_run_directory_holds_the_recipe(folder: Path) -> None:
    run = perform(start(folder, "seed=7"), "prepare")
    again = Run(run.path)
    assert again.recipe == run.recipe
    assert again.recipe.seed == 7
    assert (run.path / "recipe.yaml").read_text(encoding="utf-8") == (folder / "r.yaml").read_text(encoding="utf-8")
    assert again.manifest["overrides"] == ["seed=7"]
    assert {"tiebreak", "python", "torch"} <= set(again.manifest["stages"]["prepare"]["versions"])
    assert again.resolve("ideas.csv") == folder / "ideas.csv"
    assert again.resolve("absent.csv") == folder / "absent.csv"
    assert again.resolve("long text " * 100).name.startswith("long text")


def test_what_is_no_run_directory(folder: Path) -> None:
    with pytest.raises(InputError, match="not a run directory"):
        Run(folder)
    (folder / "run").write_text("")
    with pytest.raises(InputError, match="is a file, not a run directory"):
        start(folder)
    (folder / "run").unlink()
    (folder / "run").mkdir()
    (folder / "run" / "thesis.txt").write_text("")
    with pytest.raises(InputError, match="holds other files"):
        start(folder)
    assert [path.name for path in (folder / "run").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("name", ["recipe.json", "manifest.json"])
def test_a_broken_run_directory_is_one_line(name: str, folder: Path) -> None:
    run = start(folder)
    (run.path / name).write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=f"{name}: cannot be read"):
        Run(run.path)


# --- stages --------------------------------------------------------------------------------------------------------


def test_a_done_stage_is_left_alone_unless_asked_again(folder: Path) -> None:
    run = start(folder)
    assert run.state("prepare") == "owed"
    assert run.perform("prepare", work("prepare", prompts=3)) == {"prompts": 3}
    run = start(folder)
    assert run.state("prepare") == "done"
    assert run.perform("prepare", untouched) == {"prompts": 3} == run.counts("prepare")
    assert run.perform("prepare", work("prepare", prompts=4), again=True) == {"prompts": 4}
    assert Run(run.path).counts("prepare") == {"prompts": 4}


@pytest.mark.parametrize(
    ("error", "state"), [(ValueError("x"), "failed"), (KeyboardInterrupt(), "stopped"), (SystemExit(1), "stopped")]
)
def test_a_stage_that_broke_off_is_owed(error: BaseException, state: str, folder: Path) -> None:
    run = start(folder)

    def broken(run: Run) -> Counts:
        assert Run(run.path).state("prepare") == "running"
        raise error

    with pytest.raises(type(error)):
        run.perform("prepare", broken)
    run = start(folder)
    assert run.state("prepare") == state
    spent = run.manifest["stages"]["prepare"]["seconds"]
    assert run.perform("prepare", work("prepare", prompts=1)) == {"prompts": 1}
    assert run.state("prepare") == "done"
    assert run.manifest["stages"]["prepare"]["seconds"] >= spent > 0


def test_stages_come_in_their_order(folder: Path) -> None:
    run = start(folder)
    assert refusal(run, "generate").endswith("generate comes after prepare, which is not done; run `tiebreak prepare` first")
    run.perform("report", work("report"))  # a report on nothing is a report
    perform(run, "generate")
    assert "pair comes after judge" in refusal(run, "pair")


CHANGES: list[tuple[str, dict[str, Any], str]] = [
    ("prepare", {"seed": 7}, "seed (was 42, is 7)"),
    ("prepare", {"prompts": {"source": "ideas.csv", "test_fraction": 0.5}}, "prompts.test_fraction (was null, is 0.5)"),
    ("prepare", {"prompts": {"source": "ideas.csv", "filters": {"first": 3}}}, "prompts.filters.first (was null, is 3)"),
    ("generate", {"generate": [{"type": "local", "name": "warm", "n": 3}]}, "generate.warm.n (was 2, is 3)"),
    ("generate", {"model": {"name_or_path": "other"}}, 'model.name_or_path (was "m", is "other")'),
    ("judge", {"judges": [RULES, {**LLM, "temperature": 0.5}]}, "judges.llm.temperature (was 0.0, is 0.5)"),
    ("pair", {"pair": {"judge": "rules", "min_margin": 0.25}}, "pair.min_margin (was 0.0, is 0.25)"),
    ("train", {"train": {"beta": 0.2, "lora": {}}}, "train.beta (was 0.1, is 0.2), train.lora (was null, is {"),
    ("evaluate", {"evaluate": {"n": 3}}, "evaluate.n (was 1, is 3)"),
]


@pytest.mark.parametrize(("stage", "change", "told"), CHANGES)
def test_a_changed_recipe_is_refused_by_the_stage_it_changes(stage: str, change: dict[str, Any], told: str, folder: Path) -> None:
    perform(start(folder))
    before = {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()}
    run = start(folder, **change)
    for earlier in STAGES[: STAGES.index(stage)]:
        run.perform(earlier, work(earlier) if earlier == "audit" else untouched)
    line = refusal(run, stage)
    assert f"{stage} was made with other settings or inputs: {told}" in line
    assert line.endswith(f"repeat it with --redo {stage}, or start another run with --run DIR")
    assert {path: path.read_bytes() for path in before} == before  # a refusal changes nothing


def test_a_key_that_came_later_means_its_default_to_an_older_run(folder: Path) -> None:
    """As if the run had been made by a version that did not know the keys: at the top, in a list, in a union, in an optional."""
    perform(start(folder))
    stages = read_json(folder / "run" / "manifest.json")
    settings = {name: entry["settings"] for name, entry in stages["stages"].items()}
    del settings["prepare"]["prompts"]["held_out"], settings["prepare"]["prompts"]["filters"]["first"]
    del settings["generate"]["generate.warm"]["n"], settings["judge"]["judges.rules"]["checks"][0]["min"]
    del settings["train"]["train"]["beta"], settings["evaluate"]["evaluate"]["n"]
    write_json(folder / "run" / "manifest.json", stages)
    for stage in ("prepare", "judge", "train", "evaluate"):
        start(folder).perform(stage, untouched)
    # What is no default differs from what an older version did.
    assert "generate.warm.n (was null, is 2)" in refusal(start(folder), "generate")
    assert "train.beta (was null, is 0.2)" in refusal(start(folder, train={"beta": 0.2}), "train")
    filters = {"source": "ideas.csv", "filters": {"first": 3}}
    assert "prompts.filters.first (was null, is 3)" in refusal(start(folder, prompts=filters), "prepare")


def test_a_change_is_refused_while_the_stage_is_half_done(folder: Path) -> None:
    run = perform(start(folder), "prepare")

    def broken(run: Run) -> Counts:
        run.completions_jsonl.write_bytes(b"")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.perform("generate", broken)
    assert "generate.warm.n" in refusal(start(folder, "generate.0.n=3"), "generate")


def test_a_change_before_anything_was_written_is_none(folder: Path) -> None:
    run = start(folder)

    def broken(run: Run) -> Counts:
        raise InputError("no such column")

    with pytest.raises(InputError):
        run.perform("prepare", broken)
    start(folder, "prompts.column=idea").perform("prepare", work("prepare"))


def test_how_fast_the_work_goes_is_no_change(folder: Path) -> None:
    perform(start(folder))
    fast = {**LLM, "concurrency": 2, "max_retries": 9, "timeout": 5.0}
    warm = {**BASE["generate"][0], "batch_size": 3}
    run = start(folder, generate=[warm], judges=[RULES, fast], train={"keep_checkpoints": True}, evaluate={"batch_size": 5})
    for stage in STAGES:
        run.perform(stage, untouched)


def test_a_new_judge_is_owed_and_no_change(folder: Path) -> None:
    perform(start(folder, judges=[RULES]), "judge")
    run = start(folder)
    run.perform("generate", untouched)
    assert run.perform("judge", work("judge", new=1)) == {"new": 1}
    start(folder).perform("judge", untouched)
    start(folder, judges=[RULES]).perform("judge", untouched)


@pytest.mark.parametrize(
    ("name", "stage", "told"),
    [
        ("ideas.csv", "prepare", "the content of prompts.source"),
        ("criteria.txt", "judge", "the content of judges.llm.criteria"),
        ("run/prompts.jsonl", "generate", "the content of prompts.jsonl"),
        ("run/completions.jsonl", "judge", "the content of completions.jsonl"),
        ("run/judgments/rules.jsonl", "pair", "the content of judgments/rules.jsonl"),
        ("run/pairs.jsonl", "train", "the content of pairs.jsonl"),
        ("run/eval/pairs.jsonl", "train", "the content of eval/pairs.jsonl"),
    ],
)
def test_a_changed_file_is_refused_by_the_stage_that_reads_it(name: str, stage: str, told: str, folder: Path) -> None:
    perform(start(folder))
    (folder / name).write_text("more\n" + (folder / name).read_text(encoding="utf-8"), encoding="utf-8")
    run = start(folder)
    for earlier in STAGES[: STAGES.index(stage)]:
        run.perform(earlier, work(earlier) if earlier == "audit" else untouched)
    assert told in refusal(run, stage)


def test_more_completions_are_owed_a_verdict_and_no_change(folder: Path) -> None:
    perform(start(folder))
    with (folder / "run" / "completions.jsonl").open("a", encoding="utf-8") as stream:
        stream.write("more\n")
    assert start(folder).perform("judge", work("judge", new=1)) == {"new": 1}
    start(folder).perform("judge", untouched)
    assert "the content of completions.jsonl" in refusal(start(folder), "pair")


def test_another_training_makes_another_evaluation(folder: Path) -> None:
    run = perform(start(folder))
    run.perform("train", work("train"), again=True)
    assert "the output of train" in refusal(run, "evaluate")


def test_criteria_may_be_a_long_text(folder: Path) -> None:
    perform(start(folder, judges=[RULES, {**LLM, "criteria": "Be short and kind. " * 50}]), "judge")


# --- redo ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_redo_deletes_a_stage_and_those_after_it(stage: str, folder: Path) -> None:
    run = perform(start(folder))
    (run.path / "mine").mkdir()
    run.redo(stage)
    at = STAGES.index(stage)
    run = Run(run.path)
    gone = ("audit", "report") if stage == "audit" else STAGES[at:]  # nothing rests on what an audit says
    for kept in (one for one in STAGES if one not in gone):
        assert run.state(kept) == "done"
        assert all((run.path / name).exists() for name in FLOW[kept].writes)
    for later in gone:
        assert run.state(later) == "owed"
        assert not any((run.path / name).exists() for name in FLOW[later].writes)
    assert run.recipe_json.is_file()
    assert (run.path / "mine").is_dir()
    perform(start(folder))


def test_redo_lets_a_change_through(folder: Path) -> None:
    perform(start(folder))
    run = start(folder, "train.beta=0.2")
    run.redo("train")
    assert perform(run).state("report") == "done"
    assert Run(run.path).recipe.train.beta == 0.2


@pytest.mark.parametrize("stage", ["prepare", "generate", "judge"])
def test_redo_of_ready_made_pairs_starts_at_their_source(stage: str, folder: Path) -> None:
    ready = {"prompts": {"source": "ideas.csv", "pairs": {}}, "generate": [], "judges": [], "pair": {}}
    run = perform(start(folder, **ready))
    assert run.given_jsonl == run.path / "judgments" / "given.jsonl"
    run.redo(stage)
    assert run.manifest["stages"] == {}


# --- the lock ------------------------------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from tiebreak.run import Run
with Run(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_told_at_once(folder: Path) -> None:
    run = start(folder)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        asked = time.monotonic()
        with pytest.raises(InputError, match="another tiebreak process is working on this run"), run.lock():
            pytest.fail("two hold one run")
        assert time.monotonic() - asked < 5
        other.kill()  # a process that dies lets go
    with run.lock():
        pass


def test_the_lock_brings_what_another_process_did_meanwhile(folder: Path) -> None:
    run = start(folder)
    perform(start(folder), "prepare")
    assert run.state("prepare") == "owed"
    with run.lock():
        run.perform("prepare", untouched)


def test_a_lock_does_not_hide_what_goes_wrong_inside(folder: Path) -> None:
    run = start(folder)
    with pytest.raises(ZeroDivisionError), run.lock():
        raise ZeroDivisionError
    with run.lock():
        pass


def test_json_is_kept_readable(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "x.json", {"idea": "é", "path": Path("x")})
    assert (tmp_path / "a" / "x.json").read_text(encoding="utf-8") == '{\n  "idea": "é",\n  "path": "x"\n}\n'


def test_a_file_is_looked_for_beside_the_recipe_then_here_then_among_the_shipped(folder: Path, monkeypatch) -> None:
    here = folder / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    run = start(folder)
    assert run.resolve("titles.txt").parent == SHIPPED
    (here / "titles.txt").write_text("mine", encoding="utf-8")
    assert run.resolve("titles.txt").resolve() == here / "titles.txt"
    (folder / "titles.txt").write_text("the recipe's", encoding="utf-8")
    assert run.resolve("titles.txt") == folder / "titles.txt"
    assert run.resolve("absent.txt") == folder / "absent.txt"


@pytest.mark.parametrize("stage", ["judge", "evaluate"])
def test_redo_leaves_what_people_said_in_the_app(stage: str, folder: Path) -> None:
    """Nobody can be asked for it again; verdicts from a file come back from the file."""
    people = [{"type": "human", "name": "anna"}, {"type": "human", "name": "listed", "file": "people.csv"}]
    run = start(folder, judges=[LLM, *people], pair={"judge": "anna"})
    place = run.judgments if stage == "judge" else run.eval_judgments
    for name in ("llm", "anna", "listed", "people", "playground", "canaries/llm"):
        place(name).parent.mkdir(parents=True, exist_ok=True)
        place(name).write_text("{}\n", encoding="utf-8")
    run.redo(stage)
    assert {path.stem for path in place("llm").parent.glob("*")} == {"anna", "people", "playground"}


# --- what another run made -----------------------------------------------------------------------------------------


def beside(folder: Path, name: str, **changes: Any) -> Run:
    """Start another run of the same recipe with changes."""
    recipe = folder / "r.yaml"
    recipe.write_text(yaml.safe_dump({**BASE, **changes}), encoding="utf-8")
    return Run.start(recipe, folder / name)


def test_a_run_takes_over_what_would_come_out_the_same(folder: Path) -> None:
    first = perform(start(folder))
    second = beside(folder, "second", train={"beta": 0.5})
    assert second.take_over(first) == ["prepare", "generate", "judge", "pair", "audit"]
    assert second.take_over(first) == []
    for stage in ("prepare", "generate", "judge", "pair", "audit"):
        second.perform(stage, untouched)
        for name in FLOW[stage].writes:
            path = second.path / name
            path = path if path.is_file() else path / "rules.jsonl"
            assert path.read_text() == f"{stage}\n"
    assert second.manifest["stages"]["pair"]["taken_from"] == "../run"
    assert not (second.path / "train").exists()
    second.perform("train", work("train"))
    # What the second appends is its own.
    with (second.path / "completions.jsonl").open("a") as stream:
        stream.write("more\n")
    assert (first.path / "completions.jsonl").read_text() == "generate\n"


@pytest.mark.parametrize(
    ("changes", "taken"),
    [
        ({"seed": 7}, ["pair"][:0]),
        ({"generate": [{"type": "local", "name": "warm", "n": 3}]}, ["prepare"]),
        ({"pair": {"judge": "llm"}}, ["prepare", "generate", "judge"]),
        ({"pair": {"judge": "rules", "min_margin": 0.5}}, ["prepare", "generate", "judge"]),
        ({"evaluate": {"n": 2}}, ["prepare", "generate", "judge", "pair", "audit", "train"]),
        ({}, ["prepare", "generate", "judge", "pair", "audit", "train", "evaluate"]),
    ],
)
def test_nothing_is_taken_over_that_rests_on_something_else(changes: dict[str, Any], taken: list[str], folder: Path) -> None:
    first = perform(start(folder))
    assert beside(folder, "second", **changes).take_over(first) == taken


def test_what_was_not_finished_is_not_taken_over(folder: Path) -> None:
    first = perform(start(folder), "generate")
    with pytest.raises(RuntimeError):
        first.perform("judge", broken)
    assert beside(folder, "second").take_over(first) == ["prepare", "generate"]


def broken(run: Run) -> Counts:
    (run.path / "judgments").mkdir(exist_ok=True)
    raise RuntimeError


def test_a_model_that_is_compared_too_is_owed_and_no_change(folder: Path) -> None:
    """The draws of the others stay."""
    others = [{"type": "outputs", "name": name, "file": "ideas.csv"} for name in ("one", "two", "three")]
    run = perform(start(folder, train=None, generate=[], evaluate={"models": others[:2]}), "prepare")
    assert run.stages == ("prepare", "evaluate", "report")
    run.perform("evaluate", work("evaluate"))
    run = start(folder, train=None, generate=[], evaluate={"models": others})
    with pytest.raises(AssertionError):
        run.perform("evaluate", untouched)
    swapped = [others[0], {**others[1], "file": "criteria.txt"}]
    assert "evaluate.models.two.file" in refusal(start(folder, train=None, generate=[], evaluate={"models": swapped}), "evaluate")


def test_a_changed_file_of_answers_is_refused(folder: Path) -> None:
    for name in ("one", "two", "three"):
        (folder / f"{name}.json").write_text("[]", encoding="utf-8")
    models = [{"type": "outputs", "name": name, "file": f"{name}.json"} for name in ("one", "two", "three")]
    run = perform(start(folder, train=None, generate=[], evaluate={"models": models[:2]}), "prepare")
    run.perform("evaluate", work("evaluate"))
    with pytest.raises(AssertionError):  # a third model is owed
        start(folder, train=None, generate=[], evaluate={"models": models}).perform("evaluate", untouched)
    (folder / "two.json").write_text("[{}]", encoding="utf-8")
    again = start(folder, train=None, generate=[], evaluate={"models": models[:2]})
    assert "the content of evaluate.models.two.file" in refusal(again, "evaluate")
