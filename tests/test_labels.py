"""Labelled answers, good or bad each: from a log of thumbs to a model that kto trained, and to pairs where a prompt has both."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tiebreak.cli import app
from tiebreak.files import read_jsonl
from tiebreak.records import InputError, Rating
from tiebreak.run import Run
from tiebreak.stages import check
from tiebreak.stages.pair import pair
from tiebreak.stages.prepare import prepare
from tiebreak.stages.train import HeldOut

pytestmark = pytest.mark.usefixtures("modules_are_no_garbage")

Row = dict[str, Any]


def row(asked: str, said: str, label: Any) -> Row:
    return {"prompt": asked, "completion": said, "label": label}


SINGLE = [row(f"Idea {at}", f"Title {at}" if at % 2 else "No", "up" if at % 2 else "down") for at in range(12)]
"""One answer to each prompt: there is no pair in them."""
BOTH = [row(f"Thing {at}", said, said != "No") for at in range(6) for said in (f"Title {at}", f"A title {at}", "No")]
"""Two good answers and a bad one to each prompt."""


def start(folder: Path, model: Path, rows: list[Row], loss: str = "kto", **changes: Any) -> Run:
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in rows))
    tree = {
        "model": {"name_or_path": str(model)},
        "prompts": {"source": "rows.jsonl", "labels": {}, "test_fraction": 0.34} | changes,
        "train": {"learning_rate": 1e-2, "num_train_epochs": 4, "bf16": False, "loss_type": loss, "logging_steps": 1},
        "evaluate": {"max_new_tokens": 4},
    }
    (folder / "r.yaml").write_text(yaml.safe_dump(tree))
    return Run.start(folder / "r.yaml", folder / "run")


def test_a_log_of_thumbs_becomes_a_model(tiny: Path, tmp_path: Path) -> None:
    """By the two commands that a user types; prompts with both kinds give held-out pairs to measure on."""
    start(tmp_path, tiny, [])
    log = [{"question": each["prompt"], "answer": each["completion"], "thumb": "👍" if each["label"] in (True, "up") else "👎"}
           for each in SINGLE + BOTH]  # fmt: skip
    (tmp_path / "log.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in log))
    (tmp_path / "rows.jsonl").unlink()
    folders = [str(tmp_path / name) for name in ("log.jsonl", "rows.jsonl", "r.yaml", "again")]
    told = CliRunner().invoke(app, ["import", *folders[:2], "--format", "thumbs", "--unpaired"])
    assert told.exit_code == 0
    assert "prompts: {source: rows.jsonl, labels: {}}, train: {loss_type: kto}" in told.output
    told = CliRunner().invoke(app, ["run", folders[2], "--run", folders[3]])
    assert told.exit_code == 0, told.output
    assert "30 labelled answers (18 good, 12 bad, 0 disputed)" in told.output
    run = Run(tmp_path / "again")
    counts, splits = run.counts("train"), {prompt.id: prompt.split for prompt in run.prompts()}
    labelled = [rating for rating in read_jsonl(run.given_jsonl, Rating) if splits[rating.prompt_id] == "train"]
    assert (counts["labelled"], counts["pairs"]) == (True, len(labelled))
    assert counts["pairs"] > sum(made["usable"] for made in run.counts("pair").values()) > 0
    held_out = list(read_jsonl(run.held_out_jsonl, HeldOut))
    assert len(held_out) == len(run.pairs(run.held_out_pairs_jsonl)) > 0
    assert all(each.chosen > each.rejected for each in held_out)
    summary = run.summary["held_out_pairs"]["accuracy"]
    assert (summary["rate"], summary["n"]) == (1.0, len(held_out))
    assert "Labelled answers" in run.report_html.read_text(encoding="utf-8")


def test_what_is_called_bad_goes_down(tiny: Path, tmp_path: Path) -> None:
    """The negative control: with the labels the other way round, so are the rewards."""
    from tiebreak.stages.train import train

    means = []
    for name, rows in (("straight", BOTH), ("turned", [each | {"label": not each["label"]} for each in BOTH])):
        run = start(tmp_path / name, tiny, rows)
        for stage in (prepare, pair, train):
            run.manifest["stages"][stage.__name__] = {"state": "done", "counts": stage(run)}
        rewards = list(read_jsonl(run.held_out_jsonl, HeldOut))
        means.append(sum(each.chosen - each.rejected for each in rewards) / len(rewards))
    assert all(mean > 0 for mean in means)  # in both, what was labelled good is the chosen one
    good = [run_pair.chosen[0].content for run_pair in run.pairs(run.held_out_pairs_jsonl)]
    assert set(good) == {"No"}


def test_labels_alone_make_no_pairs_and_other_losses_learn_nothing(tiny: Path, tmp_path: Path) -> None:
    from tiebreak.stages.train import train

    run = start(tmp_path, tiny, SINGLE, loss="sigmoid")
    prepare(run)
    assert pair(run)["train"] == {"attempted": 0, "usable": 0, "dropped": {}}
    assert train(run) == {"skipped": "no usable pair to train on"}


def test_answers_that_are_called_both_say_nothing(tiny: Path, tmp_path: Path) -> None:
    from tiebreak.stages.train import _labelled

    rows = [row("Idea", "Title", True), row("Idea", "Title", False), row("Idea", "No", 0), row("Other", "Fine", 1)]
    rows += [row("Idea", " ", True), row("Other", "Fine", None), row("Other", "Fine", 1)]
    run = start(tmp_path, tiny, rows, test_fraction=0.5)
    counts = prepare(run)
    assert (counts["labels"], counts["dropped"]) == ({"good": 1, "bad": 1, "disputed": 1}, {"empty": 2, "duplicate": 1})
    assert {rating.score for rating in read_jsonl(run.given_jsonl, Rating)} == {0.0, 0.5, 1.0}
    both = [each for split in ("train", "test") for each in _labelled(run, split)]
    assert [(each["completion"][0].content, each["label"]) for each in both] in (
        [("No", False), ("Fine", True)],
        [("Fine", True), ("No", False)],
    )


@pytest.mark.parametrize(
    ("rows", "changes", "told"),
    [
        ([row("Idea", "Title", "maybe")], {}, "rows.jsonl, line 1: 'maybe' is no thumb; up is true"),
        ([{"prompt": "Idea", "completion": "Title"}], {}, "prompts.labels.label: no column 'label'"),
        ([{"prompt": "Idea", "text": "Title", "label": 1}], {}, "prompts.labels.completion: no column 'completion'"),
    ],
)
def test_a_mistake_is_one_line(rows: list[Row], changes: Row, told: str, tiny: Path, tmp_path: Path) -> None:
    run = start(tmp_path, tiny, rows, **changes)
    with pytest.raises(InputError, match=r"rows\.jsonl|prompts\.labels") as caught:
        prepare(run)
    assert told in str(caught.value)


def test_recipes_that_cannot_be(tiny: Path, tmp_path: Path) -> None:
    for changes, told in (
        ({"pairs": {}}, "pairs and labels exclude each other"),
        ({"source": None, "items": ["a"]}, "need a source"),
    ):
        with pytest.raises(InputError, match=told):
            start(tmp_path, tiny, SINGLE, **changes)
    check(start(tmp_path, tiny, SINGLE), ("prepare", "pair", "train"))


def test_a_log_without_any_pair_is_learned_whole(tiny: Path, tmp_path: Path) -> None:
    start(tmp_path, tiny, SINGLE)
    told = CliRunner().invoke(app, ["run", str(tmp_path / "r.yaml"), "--run", str(tmp_path / "run")])
    assert told.exit_code == 0, told.output
    run = Run(tmp_path / "run")
    assert (run.counts("pair")["train"]["attempted"], run.counts("train")["pairs"]) == (0, 8)
    assert not run.held_out_jsonl.read_text()
    assert run.summary["held_out_pairs"] is None
    assert "0 of 0 pairs" in told.output
