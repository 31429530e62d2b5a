"""The train stage: what it writes, and that a kill at any moment costs no more than the steps since the last checkpoint."""

import importlib.util
import json
import math
import shutil
from pathlib import Path
from typing import Any, ClassVar, get_args

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from typer.testing import CliRunner

from conftest import missing
from tiebreak import models
from tiebreak.cli import app
from tiebreak.files import read_jsonl, write_jsonl
from tiebreak.recipe import LossType, Model
from tiebreak.records import InputError, Message, PreferencePair
from tiebreak.run import Run
from tiebreak.stages import check, describe, fitting
from tiebreak.stages import train as stage
from tiebreak.stages.train import HeldOut, train
from tiebreak.training import losses

pytestmark = [
    pytest.mark.usefixtures("modules_are_no_garbage"),
    pytest.mark.filterwarnings("ignore:.(is_)?gradient_checkpointing. is deprecated:FutureWarning"),
]

TRAIN = {
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 4,
    "logging_steps": 1,
    "eval_steps": 3,
    "save_steps": 2,
    "bf16": False,
}


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
    follow = getattr(fitting._Follow, event)

    def stopping(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == step:
            raise KeyboardInterrupt
        follow(self, args, state, control, **kwargs)

    monkeypatch.setattr(fitting._Follow, event, stopping)


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
    assert "train: of the train rows, 1 identical" in capsys.readouterr().out
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
    config = stage._config(run, held_out=True)
    assert (config.beta, config.label_smoothing, config.warmup_steps, config.lr_scheduler_type) == (0.3, 0.1, 0.5, "cosine")
    assert (config.eval_steps, config.save_steps, config.seed, config.bf16) == (0.1, 0.1, 42, False)
    assert config.adam_beta2 == 0.9
    assert train(run)["steps"] == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"adam_beta_2": 0.9}, "train.trainer_args: transformers has no 'adam_beta_2'; did you mean 'adam_beta2'?"),
        ({"xyzzy": 1}, "train.trainer_args: transformers has no 'xyzzy'"),
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
        (tmp_path / f"checkpoint-{step}" / fitting.COMPLETE).touch()
        (tmp_path / f"checkpoint-{step}" / "model.safetensors").touch()
    (tmp_path / "checkpoint-12").mkdir()
    assert fitting.last_whole(tmp_path) == tmp_path / "checkpoint-10", "by number, not by name"
    assert not (tmp_path / "checkpoint-12").exists()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fitting.discard(tmp_path / "checkpoint-10")
    assert fitting.last_whole(tmp_path) == tmp_path / "checkpoint-4"
    assert fitting.last_whole(tmp_path / "nowhere") is None


# --- losses --------------------------------------------------------------------------------------------------------


def test_the_recipe_names_every_loss() -> None:
    assert set(get_args(LossType)) == {*losses.LOSSES, "kto"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss_type": ["ipo"], "label_smoothing": 0.1}, "train: label_smoothing does nothing for loss_type ipo"),
        ({"loss_type": "robust"}, "train: loss_type robust: without label_smoothing"),
        ({"loss_type": ["kto", "sft"]}, "train: loss_type kto: choose from"),
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]}, "train: loss_weights: 1 weights for 2 loss types"),
        ({"loss_type": "kto", "ld_alpha": 0.5}, "train: ld_alpha does nothing for loss_type kto"),
        ({"desirable_weight": 2.0}, "train: desirable_weight and undesirable_weight are kto's"),
        ({"ref_model_sync_steps": 4}, "train: ref_model_mixup_alpha and ref_model_sync_steps do nothing without sync_ref_model"),
        ({"sync_ref_model": True, "loss_type": "simpo"}, "train: sync_ref_model does nothing for loss_type simpo"),
        ({"f_alpha_divergence_coef": 0.3}, "train: f_alpha_divergence_coef does nothing"),
        ({"simpo_gamma": 1.0}, "train: simpo_gamma does nothing for loss_type sigmoid"),
        ({"optim": "adamw_torch_fusd"}, "train.optim: transformers has no 'adamw_torch_fusd'; did you mean 'adamw_torch_fused'?"),
        ({"lr_scheduler_type": "cosin"}, "train.lr_scheduler_type: transformers has no 'cosin'; did you mean 'cosine'?"),
        ({"lr_scheduler_type": "xyzzy"}, "train.lr_scheduler_type: transformers has no 'xyzzy'; there is constant, "),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "train: optim adamw_torch_fused, lr_scheduler_type cosine_with_min_lr: "),
        ({"optim": "grokadamw"}, "train: optim grokadamw, lr_scheduler_type linear: Please install grokadamw"),
        ({"report_to": ["wand"]}, "train.report_to: transformers has no 'wand'; did you mean 'wandb'?"),
        ({"report_to": ["comet_ml"]}, "train.report_to comet_ml: its package is missing; install it: pip install comet-ml"),
        ({"trainer_args": {"xyzzy": 1}}, "train.trainer_args: transformers has no 'xyzzy'"),
    ],
)  # fmt: skip
def test_refused_before_anything_is_loaded_or_paid(
    changes: dict[str, Any], words: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(tiny, tmp_path / "run", **changes)
    monkeypatch.setattr(models, "load_model", lambda *_, **__: 1 / 0)
    with pytest.raises(InputError) as error:
        check(run, ["generate", "train"])
    assert str(error.value).startswith(words)
    assert "\n" not in str(error.value)


def test_what_holds_is_not_refused(tiny: Path, tmp_path: Path) -> None:
    scheduler = {"lr_scheduler_type": "cosine_with_min_lr", "trainer_args": {"lr_scheduler_kwargs": {"min_lr": 1e-7}}}
    for number, changes in enumerate(({}, scheduler, {"optim": "adafactor"}, {"loss_type": "kto", "desirable_weight": 2.0})):
        check(start(tiny, tmp_path / str(number), **changes), ["train"])


def test_each_pairs_own_flip_probability(tiny: Path, tmp_path: Path) -> None:
    """At the first step every margin is 0: robust's loss is then ln 2 whatever ε is, its gradient is not."""
    pairs = [one.model_copy(update={"flip_probability": 0.4}) for one in PAIRS]
    norms = []
    for name, changes in {
        "certain": {}, "ignored": {"trainer_args": {}}, "own": {"use_flip_probability": True}, "all": {"label_smoothing": 0.4}
    }.items():  # fmt: skip
        run = start(tiny, tmp_path / name, PAIRS if name in ("certain", "all") else pairs, [], **changes)
        train(run)
        norms.append(metrics(run)[0]["grad_norm"])
    certain, ignored, own, everywhere = norms
    assert ignored == pytest.approx(certain)
    assert own == pytest.approx(everywhere)
    assert own == pytest.approx(0.2 * certain, rel=1e-3)


def test_a_flip_probability_that_a_loss_cannot_take(tiny: Path, tmp_path: Path) -> None:
    pairs = [one.model_copy(update={"flip_probability": 0.5}) for one in PAIRS]
    run = start(tiny, tmp_path / "run", pairs, loss_type="robust", use_flip_probability=True)
    with pytest.raises(InputError, match=r"pair 1: flip_probability 0.5 leaves robust nothing to learn"):
        train(run)
    train(start(tiny, tmp_path / "other", pairs, [], loss_type="robust", label_smoothing=0.1))


@pytest.mark.parametrize(
    "changes",
    [
        {"loss_type": "kto", "desirable_weight": 1.5},
        {"loss_type": "simpo"},
        {"loss_type": "orpo"},
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2], "use_weighting": False},
        {"ld_alpha": 0.5, "sync_ref_model": True, "ref_model_sync_steps": 2},
        {"loss_type": "kto", "early_stopping_patience": 1, "lora": {"r": 2}},
    ],
    ids=lambda changes: str(changes.get("loss_type", "sync")),
)  # fmt: skip
def test_from_recipe_to_report(changes: dict[str, Any], tiny: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"Idea {at}", "chosen": f"Title {at}", "rejected": "No " * (at % 3 + 1)} for at in range(30)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    prompts = {"source": "pairs.jsonl", "pairs": {}, "test_fraction": 0.3}
    recipe.write_text(
        yaml.safe_dump({"model": {"name_or_path": str(tiny)}, "prompts": prompts, "train": TRAIN | changes}), encoding="utf-8"
    )
    done = CliRunner().invoke(app, ["run", str(recipe), "--run", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    run = Run(tmp_path / "run")
    held_out = run.pairs(run.held_out_pairs_jsonl)
    lines = list(read_jsonl(run.held_out_jsonl, HeldOut))
    assert len(lines) == len(held_out) > 3
    assert run.counts("train")["pairs"] == len(run.pairs(run.pairs_jsonl))
    summary = json.loads(run.summary_json.read_text(encoding="utf-8"))
    if changes.get("loss_type") not in ("simpo", "orpo"):  # whose rewards the shorter completion begins with
        assert summary["held_out_pairs"]["accuracy"]["rate"] > 0.5
    assert "<svg" in run.report_html.read_text(encoding="utf-8")


def test_kto_keeps_held_out_pairs_together(tiny: Path, tmp_path: Path) -> None:
    """With pairs that share completions, and the same rewards as a paired loss gives for the model that was trained."""
    shared = [pair("Idea 9", "Title", "No"), pair("Idea 9", "No", "Other"), pair("Idea 10", "A title", "No")]
    run = start(tiny, tmp_path / "run", held_out=shared, loss_type="kto")
    train(run)
    first, second, third = read_jsonl(run.held_out_jsonl, HeldOut)
    assert (first.prompt, second.prompt, third.prompt) == (0, 0, 1)
    assert first.rejected == pytest.approx(second.chosen, abs=1e-6)
    assert len({first.chosen, first.rejected, second.rejected, third.chosen}) == 4
    assert {"rewards/completions", "kl"} <= metrics(run)[0].keys()


# --- the best state ------------------------------------------------------------------------------------------------

WORSE = [pair(f"Idea {at}", "No", f"Title {at}") for at in (9, 10)]
"""Held-out pairs that say the opposite of those trained on: the first state that is evaluated is the best."""
STOPPING = {"num_train_epochs": 4, "eval_steps": 2, "save_steps": 3, "early_stopping_patience": 2, "keep_checkpoints": True}


@pytest.fixture(scope="module", params=[{}, {"lora": {"r": 4, "use_dora": True}}], ids=["whole", "adapter"])
def stopped(request: pytest.FixtureRequest, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, Any]]:
    """A run that stops early, and its settings."""
    run = start(tiny, tmp_path_factory.mktemp("runs") / "stopped", held_out=WORSE, **STOPPING, **request.param)
    counts = train(run)
    assert (counts["steps"], counts["best_step"]) == (6, 2)
    return run, request.param


def saved(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(folder.glob("*.safetensors")))


def test_the_best_state_is_saved(stopped: tuple[Run, dict[str, Any]]) -> None:
    run, _ = stopped
    assert [line["step"] for line in metrics(run) if "eval_loss" in line] == [2, 4, 6]
    evaluated = [line["eval_loss"] for line in metrics(run) if "eval_loss" in line]
    assert evaluated == sorted(evaluated)
    assert {path.name for path in run.train.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4", "checkpoint-6"}
    model, best, last = saved(run.tuned), saved(run.train / "checkpoint-2"), saved(run.train / "checkpoint-6")
    assert all(torch.equal(weight, best[name]) for name, weight in model.items())
    assert not all(torch.equal(weight, last[name]) for name, weight in model.items())
    # Its rewards, and not the last state's, are those of the held-out pairs.
    line = next(line for line in metrics(run) if "eval_loss" in line)
    rewards = [held.chosen for held in read_jsonl(run.held_out_jsonl, HeldOut)]
    assert sum(rewards) / len(rewards) == pytest.approx(line["eval_rewards/chosen"], abs=1e-5)


@pytest.mark.parametrize("at", [1, 3, 5, 6, "saved"])
def test_stopping_early_survives_a_kill(
    at: int | str, stopped: tuple[Run, dict[str, Any]], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even once training has stopped, and even where the run has been moved since."""
    whole, changes = stopped
    run = start(tiny, tmp_path / "run", held_out=WORSE, **STOPPING, **changes)
    with monkeypatch.context() as patch:
        if isinstance(at, int):
            stop_at(at, patch)
        else:
            patch.setattr(stage.PreferenceTrainer, "held_out_rewards", lambda _: stop())
        with pytest.raises(KeyboardInterrupt):
            train(run)
    run.path.rename(tmp_path / "moved")
    run = Run(tmp_path / "moved")
    counts = train(run)
    assert (counts["steps"], counts["best_step"]) == (6, 2)
    assert counts["resumed_at"] == {1: 0, 3: 2, 5: 4, 6: 4, "saved": 6}[at]
    assert [line["step"] for line in metrics(run)] == [line["step"] for line in metrics(whole)]
    for name, weight in saved(run.tuned).items():
        torch.testing.assert_close(weight, saved(whole.tuned)[name], atol=1e-6, rtol=1e-6)


def test_stopping_in_the_first_epoch_survives_a_kill(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start(tiny, tmp_path / "run", held_out=WORSE, **STOPPING | {"eval_steps": 1, "early_stopping_patience": 1})
    with monkeypatch.context() as patch:
        patch.setattr(stage.PreferenceTrainer, "held_out_rewards", lambda _: stop())
        with pytest.raises(KeyboardInterrupt):
            train(run)
    assert train(run)["steps"] == 2


def stop() -> None:
    raise KeyboardInterrupt


def test_the_best_by_accuracy_without_stopping(tiny: Path, tmp_path: Path) -> None:
    run = start(tiny, tmp_path / "run", num_train_epochs=2, metric_for_best_model="rewards/accuracies", keep_checkpoints=True)
    counts = train(run)
    evaluated = {line["step"]: line["eval_rewards/accuracies"] for line in metrics(run) if "eval_loss" in line}
    assert counts["steps"] == 8 == max(evaluated)
    assert counts["best_step"] == max(evaluated, key=lambda step: (evaluated[step], -step))
    assert describe("train", counts).endswith(f", best at step {counts['best_step']}")


def test_nothing_held_out_to_be_best_on(tiny: Path, tmp_path: Path) -> None:
    run = start(tiny, tmp_path / "run", held_out=[], early_stopping_patience=1)
    with pytest.raises(InputError, match=r"^train: no held-out pair to measure loss on; raise prompts.test_fraction"):
        train(run)


# --- optimisers, schedulers, trackers ------------------------------------------------------------------------------


@pytest.mark.parametrize("optim", ["adafactor", "adamw_bnb_8bit"])
def test_an_optimiser_and_a_schedule_by_name(optim: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "bnb" in optim and importlib.util.find_spec("bitsandbytes") is None:
        missing("bitsandbytes is missing: pip install 'tiebreak[quant]'")
    used = []
    monkeypatch.setattr(
        fitting._Follow, "on_train_begin", lambda _, *args, **kwargs: used.append((kwargs["optimizer"], kwargs["lr_scheduler"]))
    )
    train(start(tiny, tmp_path / "run", optim=optim, lr_scheduler_type="constant", warmup_steps=0))
    ((optimizer, scheduler),) = used
    assert type(getattr(optimizer, "optimizer", optimizer)).__name__ == {"adafactor": "Adafactor"}.get(optim, "AdamW")
    assert scheduler.get_last_lr() == [1e-3, 1e-3]


def test_a_tracker(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Tracker(TrainerCallback):
        seen: ClassVar[list[dict[str, float]]] = []

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.seen.append(kwargs["logs"])

    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "wandb", Tracker)
    run = start(tiny, tmp_path / "run", report_to=["wandb"])
    train(run)
    assert any("eval_rewards/margins" in logs for logs in Tracker.seen)
    changed = start(tiny, tmp_path / "run", report_to=[])
    assert changed._settings("train") == run._settings("train"), "who is told is no part of what comes out"
