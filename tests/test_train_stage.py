"""The train stage: what it writes, and that a kill at any moment costs no more than the steps since the last checkpoint."""

import gc
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from tiebreak import models
from tiebreak.files import read_jsonl, write_jsonl
from tiebreak.recipe import Model
from tiebreak.records import InputError, Message, PreferencePair
from tiebreak.run import Run
from tiebreak.stages import train as stage
from tiebreak.stages.train import HeldOut, train

pytestmark = pytest.mark.filterwarnings("ignore:.(is_)?gradient_checkpointing. is deprecated:FutureWarning")

TRAIN = {
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 4,
    "logging_steps": 1,
    "eval_steps": 3,
    "save_steps": 2,
    "bf16": False,
}


@pytest.fixture(scope="module", autouse=True)
def _imported_modules_are_no_garbage() -> Iterator[None]:
    """Every training collects garbage first, and going through what torch imported takes longer than the training."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "device", lambda: torch.device("cpu"))


def pair(prompt: str, chosen: str, rejected: str) -> PreferencePair:
    return PreferencePair(
        prompt=(Message(role="user", content=prompt),),
        chosen=(Message(role="assistant", content=chosen),),
        rejected=(Message(role="assistant", content=rejected),),
        margin=1.0, flip_probability=0.0, provenance={},
    )  # fmt: skip


PAIRS = [pair(f"Idea {at}", f"Title {at}", worse) for at in range(6) for worse in ("No", f"A much longer {at}", "")][:-2]
"""16 pairs of six prompts: four steps an epoch."""
HELD_OUT = [pair("Idea 9", "Title", "No"), pair("Idea 9", "Title", "Other"), pair("Idea 10", "Title", "No")]


def start(
    model: Path, path: Path, pairs: list[PreferencePair] = PAIRS, held_out: list[PreferencePair] = HELD_OUT, **changes: Any
) -> Run:
    recipe = path.with_suffix(".yaml")
    recipe.write_text(
        yaml.safe_dump({
            "model": {"name_or_path": str(model)},
            "prompts": {"source": "ideas.csv"},
            "generate": [{"type": "local", "n": 2}],
            "judges": [{"type": "rules", "checks": [{"check": "one_line"}]}],
            "train": TRAIN | changes,
        }),
        encoding="utf-8",
    )  # fmt: skip
    run = Run.start(recipe, path)
    write_jsonl(run.pairs_jsonl, pairs)
    write_jsonl(run.held_out_pairs_jsonl, held_out)
    return run


def metrics(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics_jsonl.read_text(encoding="utf-8").splitlines()]


def weights(run: Run) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(run.tuned)
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch, event: str = "on_step_end") -> None:
    """Stop the next training where it comes to `step`, as Ctrl-C or a crash would."""
    follow = getattr(stage._Follow, event)

    def stopping(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == step:
            raise KeyboardInterrupt
        follow(self, args, state, control, **kwargs)

    monkeypatch.setattr(stage._Follow, event, stopping)


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An uninterrupted run of two epochs."""
    run = start(tiny, tmp_path_factory.mktemp("runs") / "whole", num_train_epochs=2)
    train(run)
    return run


# --- what it writes ------------------------------------------------------------------------------------------------


def test_metrics(whole: Run) -> None:
    lines = metrics(whole)
    assert [line["step"] for line in lines if line["loss"] is not None] == list(range(1, 9))
    assert [line["step"] for line in lines if "eval_loss" in line] == [3, 6, 8]
    assert lines[0]["loss"] == pytest.approx(math.log(2))
    fields = {"rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected"}
    assert all(fields | {"grad_norm", "learning_rate", "epoch"} <= line.keys() for line in lines if line["loss"] is not None)
    assert all({f"eval_{field}" for field in fields} <= line.keys() for line in lines if "eval_loss" in line)
    assert lines[-1]["eval_rewards/margins"] != 0


def test_counts(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = pair("Idea 0", "Title 0", "Title 0")
    run = start(tiny, tmp_path / "run", [*PAIRS, same])
    counts = train(run)
    loss = counts.pop("loss")
    assert counts == {"pairs": 16, "prompts": 6, "rows": {"identical": 1}, "steps": 4, "resumed_at": 0}
    assert loss == pytest.approx(sum(line["loss"] for line in metrics(run) if line["loss"]) / 4)
    assert "train: of the train pairs, 1 identical" in capsys.readouterr().out
    json.dumps(counts)


def test_the_model_is_a_model(whole: Run, tiny: Path) -> None:
    before = AutoModelForCausalLM.from_pretrained(tiny)
    after = weights(whole)
    assert not torch.equal(after, torch.cat([weight.detach().flatten() for weight in before.parameters()]))
    assert AutoTokenizer.from_pretrained(whole.tuned).chat_template == AutoTokenizer.from_pretrained(tiny).chat_template
    models.check(Model(name_or_path=str(whole.tuned)))


def test_held_out_rewards(whole: Run, tiny: Path) -> None:
    lines = list(read_jsonl(whole.held_out_jsonl, HeldOut))
    assert [line.prompt for line in lines] == [0, 0, 1]
    tokenizer = models.load_tokenizer(Model(name_or_path=str(tiny)))
    tuned, base = (models.load_model(Model(name_or_path=str(folder)), torch.float32).eval() for folder in (whole.tuned, tiny))

    def logp(model: Any, side: tuple[Message, ...]) -> float:
        prompt, completion = models.prompt_ids(tokenizer, HELD_OUT[2].prompt), models.completion_ids(tokenizer, side[0].content)
        with torch.no_grad():
            every = torch.log_softmax(model(torch.tensor([[*prompt, *completion]])).logits[0], -1)
        return sum(every[len(prompt) - 1 + at, token].item() for at, token in enumerate(completion))

    for value, side in ((lines[2].chosen, HELD_OUT[2].chosen), (lines[2].rejected, HELD_OUT[2].rejected)):
        assert value == pytest.approx(0.1 * (logp(tuned, side) - logp(base, side)), abs=1e-4)
        assert abs(value) > 1e-3


def test_checkpoints_are_kept_only_where_asked(whole: Run, tiny: Path, tmp_path: Path) -> None:
    assert list(whole.train.glob("checkpoint-*")) == []
    run = start(tiny, tmp_path / "run", keep_checkpoints=True)
    train(run)
    assert {path.name for path in run.train.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}


def test_no_pairs(tiny: Path, tmp_path: Path) -> None:
    run = start(tiny, tmp_path / "run", [])
    assert train(run) == {"skipped": "no usable pair to train on"}
    assert not run.train.exists()


def test_no_held_out_pairs(tiny: Path, tmp_path: Path) -> None:
    run = start(tiny, tmp_path / "run", held_out=[])
    train(run)
    assert not any("eval_loss" in line for line in metrics(run))
    assert not run.held_out_jsonl.exists()


def test_an_adapter(tiny: Path, tmp_path: Path) -> None:
    run = start(tiny, tmp_path / "run", lora={"r": 4, "target_modules": ["q_proj", "v_proj"]}, gradient_checkpointing=True)
    train(run)
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in run.tuned.iterdir()}
    settings = json.loads((run.tuned / "adapter_config.json").read_text(encoding="utf-8"))
    assert (settings["r"], set(settings["target_modules"])) == (4, {"q_proj", "v_proj"})
    tuned, base = (models.load_model(Model(name_or_path=str(folder)), torch.float32) for folder in (run.tuned, tiny))
    changed = {
        name
        for (name, one), other in zip(tuned.named_parameters(), base.parameters(), strict=True)
        if not torch.allclose(one, other)
    }
    assert changed
    assert all("q_proj" in name or "v_proj" in name for name in changed)


# --- settings ------------------------------------------------------------------------------------------------------


def test_settings_reach_the_trainer(tiny: Path, tmp_path: Path) -> None:
    run = start(
        tiny, tmp_path / "run", beta=0.3, label_smoothing=0.1, warmup_steps=0.5, lr_scheduler_type="cosine", eval_steps=None,
        save_steps=None, num_train_epochs=5, trainer_args={"max_steps": 3, "adam_beta2": 0.9},
    )  # fmt: skip
    config = stage._config(run, len(PAIRS), held_out=True)
    assert (config.beta, config.label_smoothing, config.warmup_steps, config.lr_scheduler_type) == (0.3, 0.1, 0.5, "cosine")
    assert (config.eval_steps, config.save_steps, config.seed, config.bf16) == (2, 4, 42, False)
    assert config.adam_beta2 == 0.9
    assert train(run)["steps"] == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"adam_beta_2": 0.9}, "train.trainer_args.adam_beta_2: transformers.TrainingArguments has no such field; did you"),
        ({"xyzzy": 1}, "train.trainer_args.xyzzy: transformers.TrainingArguments has no such field"),
        ({"save_strategy": "sometimes"}, "train: "),
        ({"load_best_model_at_end": True, "save_strategy": "epoch"}, "train: "),
        ({"train_sampling_strategy": "group_by_length"}, "train: train_sampling_strategy group_by_length"),
    ],
)  # fmt: skip
def test_wrong_settings_in_one_line(arguments: dict[str, Any], words: str, tiny: Path, tmp_path: Path) -> None:
    run = start(tiny, tmp_path / "run", trainer_args=arguments)
    with pytest.raises(InputError) as error:
        train(run)
    assert str(error.value).startswith(words)
    assert "\n" not in str(error.value)
    assert not run.tuned.exists()


# --- killed and started again --------------------------------------------------------------------------------------


def check_equals(run: Run, whole: Run) -> None:
    """Every step is logged once, with the same numbers, and the model is the same."""
    timed = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "eval_model_preparation_time")
    ours, theirs = ([{k: v for k, v in line.items() if k not in timed} for line in metrics(one)] for one in (run, whole))
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, abs=1e-6)
    torch.testing.assert_close(weights(run), weights(whole), atol=1e-6, rtol=1e-6)
    assert list(run.train.glob("checkpoint-*")) == []


@pytest.mark.parametrize(("stopped", "resumed"), [(1, 0), (3, 2), (5, 4), (8, 6)])
def test_killed_at_a_step(
    stopped: int, resumed: int, whole: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(tiny, tmp_path / "run", num_train_epochs=2)
    with monkeypatch.context() as patch:
        stop_at(stopped, patch)
        with pytest.raises(KeyboardInterrupt):
            train(run)
    with run.metrics_jsonl.open("ab") as stream:
        stream.write(b'{"step": 99, "los')  # torn
    assert train(run)["resumed_at"] == resumed
    check_equals(run, whole)


def test_killed_while_a_checkpoint_is_written(whole: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start(tiny, tmp_path / "run", num_train_epochs=2)
    with monkeypatch.context() as patch:
        stop_at(4, patch, "on_save")
        with pytest.raises(KeyboardInterrupt):
            train(run)
    half = run.train / "checkpoint-4"
    assert half.is_dir()
    (half / "model.safetensors").write_bytes(b"half")
    assert train(run)["resumed_at"] == 2
    check_equals(run, whole)


def test_killed_after_the_last_step(whole: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is trained twice: the model is saved from the last checkpoint."""
    run = start(tiny, tmp_path / "run", num_train_epochs=2)
    with monkeypatch.context() as patch:
        patch.setattr(stage.PreferenceTrainer, "held_out_rewards", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(run)
    shutil.rmtree(run.tuned)
    with monkeypatch.context() as patch:
        patch.setattr(stage.PreferenceTrainer, "training_step", lambda *_: 1 / 0)
        counts = train(run)
    assert (counts["resumed_at"], counts["steps"]) == (8, 8)
    assert counts["loss"] == pytest.approx(sum(line["loss"] for line in metrics(whole) if line["loss"]) / 8)
    check_equals(run, whole)
    assert [line.model_dump() for line in read_jsonl(run.held_out_jsonl, HeldOut)] == [
        pytest.approx(line.model_dump(), abs=1e-6) for line in read_jsonl(whole.held_out_jsonl, HeldOut)
    ]


def test_a_checkpoint_half_deleted_is_not_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (2, 4, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / stage.COMPLETE).touch()
        (tmp_path / f"checkpoint-{step}" / "model.safetensors").touch()
    (tmp_path / "checkpoint-12").mkdir()
    assert stage._last_whole(tmp_path) == tmp_path / "checkpoint-10", "by number, not by name"
    assert not (tmp_path / "checkpoint-12").exists()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            stage._discard(tmp_path / "checkpoint-10")
    assert stage._last_whole(tmp_path) == tmp_path / "checkpoint-4"
    assert stage._last_whole(tmp_path / "nowhere") is None
