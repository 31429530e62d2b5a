"""export: what is written loads where it is meant to, with everything in it."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import SHARED
from scripted import LLM, RULES, Draws, Says, prompt, put, put_in, shorter, start, typed
from tiebreak.exchange.formats import read_annotations, read_outputs
from tiebreak.exchange.mt_bench import read_mt_bench_answers, read_mt_bench_questions
from tiebreak.files import write_jsonl
from tiebreak.publish.export import export
from tiebreak.recipe import Evaluate, Model
from tiebreak.records import Comparison, Message, PreferencePair, Prompt, Rating
from tiebreak.run import Run
from tiebreak.stages.evaluate import evaluate
from tiebreak.stages.judge import judge
from tiebreak.stages.pair import pair
from tiebreak.stages.prepare import prepare

ASKED = {"say hi": ["hi", "hello there", "hi\u2028you"], "größe?": ["1", "12", '"quoted", twice'], "x|y <b>": ["a", "bb", "ccc"]}
HELD_OUT = {"held out 1": ["ok", "okay"], "held out 2": ["no", "nope"]}
COUNTS: dict[str, dict[str, Any]] = {
    "prepare": {"rows": 6, "kept": 5, "dropped": {"duplicate": 1}, "prompts": 5, "train": 3, "test": 2},
    "generate": {"drawn": 13, "distinct": 13, "identical": 0, "cut": 0},
    "audit": {"pairs": 11, "errors": 0, "warnings": 0, "notes": 0},
    "train": {"steps": 4, "pairs": 9, "prompts": 3, "rows": {}, "loss": 0.61, "resumed_at": 0},
}


def finished(
    folder: Path, patch: pytest.MonkeyPatch, model: Path | None = None, write: Any = None, decide: Any = shorter, **changes: Any
) -> Run:
    """Return a run whose stages are all done: verdicts and pairs are made by them, the model is a copy of `model`."""
    folder.mkdir(parents=True, exist_ok=True)
    run = start(
        folder,
        **{"name": "titles", "judges": [LLM], "evaluate": {"n": 2}, "model": {"name_or_path": str(model or "./gone")}, **changes},
    )
    put(
        run,
        *((prompt(text), said) for text, said in ASKED.items()),
        *((prompt(text, "test"), said) for text, said in HELD_OUT.items()),
    )
    for stage in ("prepare", "generate"):
        run.perform(stage, lambda _, stage=stage: COUNTS[stage])
    put_in(patch, Says(decide))
    run.perform("judge", judge)
    run.perform("pair", pair)
    run.perform("audit", lambda _: COUNTS["audit"])
    if model is None:
        return run
    shutil.copytree(model, run.tuned)
    lines = [
        {"step": at, "loss": 0.7 - at / 100, "rewards/accuracies": 0.5, **({"eval_loss": 0.66} if at == 3 else {})}
        for at in range(1, 5)
    ]
    run.metrics_jsonl.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    run.perform("train", lambda _: COUNTS["train"])
    answered(patch, write or (lambda model, text, at: f"{text[-1]}{at}" if model == "tuned" else f"{text[-1]}{at} and more"))
    run.perform("evaluate", evaluate)
    return run


def answered(patch: pytest.MonkeyPatch, write: Callable[[str, str, int], str]) -> None:
    """Put a scripted sampler where evaluate's models would draw."""

    class Scripted(Draws):
        def __init__(self, label: str, model: Model, sampling: Evaluate, seed: int) -> None:
            name = "tuned" if model.name_or_path.endswith("train/model") else "base"
            super().__init__(lambda text, at: write(name, text, at), label, sampling.n)

    patch.setattr("tiebreak.stages.evaluate.Local", Scripted)
    patch.setattr("tiebreak.stages.evaluate.of_models", lambda *_: {})


def rows_of(pairs: list[PreferencePair]) -> list[dict[str, Any]]:
    return [json.loads(each.model_dump_json()) for each in pairs]


def loaded(folder: Path, tmp_path: Path, **options: Any) -> dict[str, list[dict[str, Any]]]:
    from datasets import load_dataset

    found = load_dataset(str(folder), cache_dir=str(tmp_path / "cache"), **options)
    return {split: list(table) for split, table in found.items()}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    return finished(tmp_path / "made", monkeypatch)


# --- pairs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_a_folder_loads_as_what_the_run_holds(form: str, run: Run, tmp_path: Path) -> None:
    lines = export(run, tmp_path / "out", form)  # type: ignore[arg-type]
    found = loaded(tmp_path / "out", tmp_path)
    assert found == {"train": rows_of(run.pairs(run.pairs_jsonl)), "test": rows_of(run.pairs(run.held_out_pairs_jsonl))}
    assert [line.rpartition(": ")[2] for line in lines] == ["9 pairs", "2 pairs"]


def test_equal_pairs_make_equal_files(run: Run, tmp_path: Path) -> None:
    for name in ("one", "other"):
        export(run, tmp_path / f"{name}.parquet", "parquet")
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "other.parquet").read_bytes()


def test_trl_takes_it(run: Run, tmp_path: Path) -> None:
    from datasets import load_dataset
    from trl.data_utils import apply_chat_template, is_conversational, maybe_unpair_preference_dataset

    from conftest import make_tokenizer

    export(run, tmp_path / "out", "trl")
    found = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    pairs = run.pairs(run.pairs_jsonl)
    assert found["train"].column_names == ["prompt", "chosen", "rejected"]
    assert all(is_conversational(row) for split in found.values() for row in split)
    assert list(found["train"]) == [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows_of(pairs)]
    text = apply_chat_template(found["train"][0], make_tokenizer())
    assert (text["chosen"], text["rejected"]) == ("hi<|end|>\n", "hello there<|end|>\n")
    assert len(maybe_unpair_preference_dataset(found["train"])) == 2 * len(pairs)


@pytest.mark.parametrize("system", [False, True])
def test_a_csv_is_read_back_by_tiebreak(system: bool, run: Run, tmp_path: Path) -> None:
    pairs = run.pairs(run.pairs_jsonl)
    if system:
        pairs[0] = pairs[0].model_copy(update={"prompt": (Message(role="system", content="Be short."), *pairs[0].prompt)})
        write_jsonl(run.pairs_jsonl, pairs)
    lines = export(run, tmp_path / "out.csv", "csv")
    assert lines[1] == "2 pairs that were held out are not in it; name a folder to have them beside it"
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows[0]["prompt"] == ("say hi" if not system else json.dumps(rows_of(pairs)[0]["prompt"]))
    assert {row["judge"] for row in rows} == {"llm"}
    again = start(tmp_path, prompts={"source": "out.csv", "pairs": {}, "test_fraction": 0.5}, generate=None, judges=[])
    again.perform("prepare", prepare)
    pair(again)
    both = [*again.pairs(again.pairs_jsonl), *again.pairs(again.held_out_pairs_jsonl)]
    assert {(each.prompt, each.chosen, each.rejected) for each in both} == {
        (each.prompt, each.chosen, each.rejected) for each in pairs
    }


def test_llama_factory_finds_what_its_readme_describes(run: Run, tmp_path: Path) -> None:
    pairs = run.pairs(run.pairs_jsonl)
    odd = (Message(role="user", content="one"), Message(role="user", content="two"))
    chat = (Message(role="system", content="s"), *odd[:1], Message(role="assistant", content="1"), *odd[1:])
    write_jsonl(
        run.pairs_jsonl, [*pairs, pairs[0].model_copy(update={"prompt": odd}), pairs[0].model_copy(update={"prompt": chat})]
    )
    lines = export(run, tmp_path / "out", "llama-factory")
    info = json.loads((tmp_path / "out" / "dataset_info.json").read_text(encoding="utf-8"))
    assert list(info) == ["titles_train", "titles_test"]
    for about in info.values():
        columns = about.pop("columns")
        assert about.pop("file_name") in {path.name for path in (tmp_path / "out").iterdir()}
        assert about == {"formatting": "sharegpt", "ranking": True}
        assert columns == {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    (rows,) = loaded(tmp_path / "out", tmp_path, data_files="titles_train.json").values()
    assert len(rows) == len(pairs) + 1
    assert lines[1] == "1 pairs are left out: LLaMA-Factory skips chats whose turns do not alternate"
    demo = SHARED / "data" / "llamafactory_demo" / "dpo_en_demo.json"
    if demo.exists():  # its own
        (known, *_) = json.loads(demo.read_text(encoding="utf-8"))
        assert {name: type(value) for name, value in rows[0].items()} == {name: type(value) for name, value in known.items()}
        assert rows[0]["chosen"].keys() == known["chosen"].keys()
    assert [turn["from"] for turn in rows[-1]["conversations"]] == ["system", "human", "gpt", "human"]
    for row, each in zip(rows, pairs, strict=False):
        assert row["conversations"] == [{"from": "human", "value": each.prompt[0].content}]
        assert (row["chosen"], row["rejected"]) == (
            {"from": "gpt", "value": each.chosen[0].content},
            {"from": "gpt", "value": each.rejected[0].content},
        )


@pytest.mark.parametrize(
    ("form", "name", "line"),
    [
        ("parquet", "out.csv", "a file of parquet ends in .parquet; a name without an ending is a folder"),
        ("csv", "there.csv", "is there already; name another, or delete it"),
        ("jsonl", "full", "is there already and not empty; name another folder"),
        ("llama-factory", "out.json", "llama-factory is several files; name a folder"),
        ("alpaca_eval", "out", "no model answered held-out prompts; run `tiebreak evaluate` first"),
    ],
)
def test_mistakes_are_one_line(
    form: str, name: str, line: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there.csv").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    said = typed(monkeypatch, capsys, "export", str(run.path), str(tmp_path / name), "--format", form).mistake
    assert said.endswith(line)
    assert (tmp_path / "there.csv").read_text() == "mine"


def test_without_pairs_there_is_nothing_to_export(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    run = start(tmp_path)
    said = typed(monkeypatch, capsys, "export", str(run.path), str(tmp_path / "out"), "--format", "trl").mistake
    assert said == f"{run.path}: has no pairs to export; run `tiebreak pair` first"


# --- evaluated models ----------------------------------------------------------------------------------------------


def write(model: str, text: str, at: int) -> str:
    """Tuned is shorter, but once the two say the same and once tuned says nothing."""
    return "same" if text.endswith("1") and at else "" if model == "tuned" and at else model + "!!" * (model == "base")


def test_alpaca_eval_counts_as_evaluate_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    run = finished(tmp_path / "made", monkeypatch, tiny, write)
    lines = export(run, tmp_path / "out", "alpaca_eval")
    prompts = {each.id: each for each in run.prompts() if each.split == "test"}
    for name in ("base", "tuned"):
        read = read_outputs(tmp_path / "out" / name / "model_outputs.json")
        assert {each.text for each in read.prompts} == {each.text for each in prompts.values()}
        said = Counter(write(name, each.text, at) for at in (0, 1) for each in prompts.values())
        assert Counter(each.text for each in read.completions) == said
        assert read.generator == name
    file = tmp_path / "out" / "tuned-against-base" / "annotations.json"
    entries = json.loads(file.read_text(encoding="utf-8"))
    assert {(entry["generator_1"], entry["generator_2"], entry["annotator"]) for entry in entries} == {("base", "tuned", "llm")}
    wins = json.loads(run.summary_json.read_text(encoding="utf-8"))["win_rate"]
    told = Counter(entry["preference"] for entry in entries)
    assert (told[2], told[1], told[1.5]) == (wins["win"], wins["loss"], wins["tie"] + wins["inconsistent"]) == (2, 1, 1)
    assert len(read_annotations(file).comparisons) == 4
    assert lines[-1] == f"{file}: 4 verdicts"


def test_what_turned_is_a_tie_and_what_failed_has_no_preference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path
) -> None:
    def decide(first: str, second: str) -> str:
        return "first" if "turns" in first + second else "timed out" if "fails" in first + second else shorter(first, second)

    def say(model: str, text: str, at: int) -> str:
        return f"{model} {'turns' if text.endswith('1') else 'fails'}" + "!" * at

    run = finished(tmp_path / "made", monkeypatch, tiny, say, decide)
    lines = export(run, tmp_path / "out", "alpaca_eval")
    entries = json.loads((tmp_path / "out" / "tuned-against-base" / "annotations.json").read_text(encoding="utf-8"))
    assert sorted((entry["output_2"], entry["preference"], entry.get("error")) for entry in entries) == [
        ("tuned fails", None, "timed out"), ("tuned fails!", None, "timed out"),
        ("tuned turns", 1.5, None), ("tuned turns!", 1.5, None),
    ]  # fmt: skip
    assert lines[-1].endswith("annotations.json: 4 verdicts, 2 of them failed, without a preference")


def test_a_judge_that_scores_makes_annotations_too_and_failures_stay(tmp_path: Path, monkeypatch: Any, tiny: Path) -> None:
    run = finished(tmp_path / "made", monkeypatch, tiny, write, judges=[RULES])
    records = [one for one in run.verdicts(run.eval_judgments("rules")) if isinstance(one, Rating)]
    broken = records[0].model_copy(update={"score": None, "error": "broke"})
    write_jsonl(run.eval_judgments("rules"), [broken, *records[1:]])
    run.redo("evaluate")
    run.perform("evaluate", evaluate)
    lines = export(run, tmp_path / "out", "alpaca_eval")
    summary = json.loads(run.summary_json.read_text(encoding="utf-8"))
    entries = json.loads((tmp_path / "out" / "tuned-against-base" / "annotations.json").read_text(encoding="utf-8"))
    assert len(entries) == 4
    assert sum(entry["preference"] is None for entry in entries) == summary["win_rate"]["failed"]
    assert lines[-1].endswith("4 verdicts")


@pytest.mark.parametrize("kind", ["llm", "rules"])
def test_mt_bench_reads_back(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    run = finished(tmp_path / "made", monkeypatch, tiny, write, judges=[LLM if kind == "llm" else RULES])
    lines = export(run, tmp_path / "out", "mt_bench")
    prompts = read_mt_bench_questions(tmp_path / "out" / "question.jsonl")
    assert [each.text for each in prompts] == list(HELD_OUT)
    for name in ("base", "tuned"):
        answers = read_mt_bench_answers(tmp_path / "out" / "model_answer" / f"{name}.jsonl", prompts)
        assert {(each.text, each.draw) for each in answers} == {(write(name, text, at), at) for text in HELD_OUT for at in (0, 1)}
    ending = "pair" if kind == "llm" else "single"
    file = tmp_path / "out" / "model_judgment" / f"{kind}_{ending}.jsonl"
    told = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    records = run.verdicts(run.eval_judgments(kind))
    if kind == "llm":
        assert len(told) == len({frozenset((one.first, one.second)) for one in records if isinstance(one, Comparison)}) == 2
        assert {(row["g1_winner"], row["g2_winner"]) for row in told} <= {("model_1", "model_1"), ("model_2", "model_2")}
    assert any("decided without the judge" in line for line in lines)


def test_a_model_that_is_not_asked_for_any_more_is_exported_with_the_others(tmp_path: Path, monkeypatch: Any, tiny: Path) -> None:
    """Whoever answered is there, also where nothing was trained."""
    run = finished(tmp_path / "made", monkeypatch, tiny, write)
    lost = Prompt.of((Message(role="user", content="of another time"),), "test")
    with run.eval_completions_jsonl.open("a", encoding="utf-8") as stream:
        for draw in (*Draws(lambda *_: "x", "other", 1).sample([lost, run.prompts()[-1]]),):
            stream.write(draw.model_dump_json() + "\n")
    export(run, tmp_path / "out", "alpaca_eval")
    assert len(read_outputs(tmp_path / "out" / "other" / "model_outputs.json").completions) == 1
