"""PreferenceTrainer: the same training as TRL's, whatever the batches, checkpoints and adapters."""

import copy
import inspect
import itertools
import math
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import tiebreak
from conftest import TEMPLATE, common, make_causal, tokenizer_of
from tiebreak import PreferenceConfig, PreferenceTrainer, models
from tiebreak.recipe import Model
from tiebreak.records import InputError
from tiebreak.training import base, logps
from tiebreak.training.examples import ByPrompt, Examples
from tiebreak.training.reference import Cache
from tiebreak.training.trees import Example

pytestmark = [
    pytest.mark.usefixtures("modules_are_no_garbage"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),  # PEFT asks for it
]
FIRST = ("trl.trainer.dpo_trainer",)
"""Imported before what is imported counts as no garbage."""

Row = dict[str, Any]
LOGGED = (
    "loss", "grad_norm", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins",
    "logps/chosen", "logps/rejected",
)  # fmt: skip
PLAIN = LOGGED[:2]


def chat(prompt: str, chosen: str, rejected: str) -> Row:
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


ROWS = [chat(f"Say {at}", f"number {at}" + "!" * (at % 3), f"{at * 7} or " + "so " * (at % 4)) for at in range(24)]
"""One pair a prompt."""
TREES = [
    chat(f"Idea {at}", *both)
    for at in range(5)
    for both in itertools.combinations([f"title {at}", "Another", f"{at} more words"], 2)
][:-1]
"""Three pairs a prompt, 14 in all: no batch size but 1, 2, 7 divides them."""


def adapter(**changes: Any) -> LoraConfig:
    return LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **changes)


def load(folder: Path, **options: Any) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)


def make(folder: Path, out: Path, rows: list[Row] = TREES, model: Any = None, **changes: Any) -> PreferenceTrainer:
    """Build a trainer; what is no part of its configuration goes to its constructor."""
    own = {name: changes.pop(name) for name in ("ref_model", "eval_dataset", "peft_config", "compute_metrics") if name in changes}
    return PreferenceTrainer(
        model if model is not None else load(folder),
        args=PreferenceConfig(**common(out, changes)),
        train_dataset=rows,
        processing_class=tokenizer_of(folder),
        **own,
    )


def trained(*args: Any, **changes: Any) -> PreferenceTrainer:
    trainer = make(*args, **changes)
    trainer.train()
    return trainer


def logged(trainer: Any, names: tuple[str, ...] = LOGGED) -> torch.Tensor:
    """Return what every step logged, (steps, names)."""
    return torch.tensor([[line[name] for name in names] for line in trainer.state.log_history if "loss" in line])


def weights(trainer: PreferenceTrainer) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in trainer.model.parameters()])


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# --- the public door -----------------------------------------------------------------------------------------------


def test_exported() -> None:
    assert tiebreak.PreferenceTrainer.__module__ == "tiebreak.training.trainer"
    with pytest.raises(AttributeError, match="no attribute 'PreferenceTrainr'"):
        tiebreak.PreferenceTrainr  # noqa: B018


def test_called_as_trl_is() -> None:
    from trl import DPOTrainer

    ours, theirs = (list(inspect.signature(one.__init__).parameters) for one in (PreferenceTrainer, DPOTrainer))
    assert ours == [name for name in theirs if name not in ("data_collator", "quantization_config")]


# --- the same training as TRL's ------------------------------------------------------------------------------------


def trl(folder: Path, out: Path, rows: list[Row], **changes: Any) -> Any:
    from trl import DPOConfig, DPOTrainer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = DPOTrainer(
            load(folder),
            args=DPOConfig(**common(out, {"gradient_checkpointing": False, **changes})),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer_of(folder),
        )
        trainer.train()
    return trainer


TEXT = [{"prompt": f"Q: Say {at}\nA:", "chosen": f" number {at}", "rejected": " no" * (1 + at % 3)} for at in range(20)]
SHAPES = {
    "messages": ROWS,
    "text": TEXT,
    "implicit messages": [{name: [*row["prompt"], *row[name]] for name in ("chosen", "rejected")} for row in ROWS],
    "implicit text": [{name: row["prompt"] + row[name] for name in ("chosen", "rejected")} for row in TEXT],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_tokens_are_trls(shape: str, tiny: Path, tmp_path: Path) -> None:
    theirs = trl(tiny, tmp_path, SHAPES[shape], max_steps=1)
    ours = make(tiny, tmp_path, SHAPES[shape])
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    assert [(one.prompt, *one.completions) for one in ours.train_dataset.examples] == [
        tuple(tuple(row[name]) for name in names) for row in theirs.train_dataset
    ]


LOSSES: dict[str, Row] = {
    "sigmoid": {"beta": 0.1},
    "sigmoid with a beta of 0.7": {"beta": 0.7},
    "ipo": {"loss_type": ["ipo"]},
    "hinge": {"loss_type": ["hinge"]},
    "robust": {"loss_type": ["robust"], "label_smoothing": 0.1},
    "apo_zero": {"loss_type": ["apo_zero"]},
    "sigmoid and sft": {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
    "bco_pair": {"loss_type": ["bco_pair"]},
    "aot": {"loss_type": ["aot"]},
    "forward KL": {"f_divergence_type": "forward_kl"},
    "LD-DPO": {"ld_alpha": 0.3},
    "WPO": {"use_weighting": True},
}


@pytest.mark.parametrize("loss", LOSSES)
def test_twenty_steps_are_trls(loss: str, tiny: Path, tmp_path: Path) -> None:
    same = {"max_steps": 20, "train_sampling_strategy": "sequential", **LOSSES[loss]}
    ours, theirs = trained(tiny, tmp_path, ROWS, **same), trl(tiny, tmp_path, ROWS, **{"label_smoothing": 0.0, **same})
    assert logged(ours).shape == (20, len(LOGGED))
    # TRL logs LD-DPO's shortened sums for log-probs.
    names = PLAIN if loss == "LD-DPO" else LOGGED
    torch.testing.assert_close(logged(ours, names), logged(theirs, names), atol=1e-4, rtol=1e-4)
    assert logged(ours)[-1, 6] != pytest.approx(float(logged(ours)[0, 6]), rel=0.01), "or equal would say little"


@pytest.mark.parametrize("loss", ["simpo", "orpo", "cpo"])
def test_without_a_reference(loss: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PreferenceTrainer, "_token_logps", lambda *_: pytest.fail("a reference was asked"))
    trainer = trained(tiny, tmp_path, loss_type=[loss], num_train_epochs=3)
    assert logged(trainer, ("loss",))[-1] < logged(trainer, ("loss",))[0]


def unpaired(row: Row) -> list[Row]:
    return [{"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"} for side in ("chosen", "rejected")]


def test_completions_without_partners(tiny: Path, tmp_path: Path) -> None:
    same: Row = {"loss_type": ["kto"], "num_train_epochs": 4, "learning_rate": 3e-3}
    rows = [one for row in ROWS for one in unpaired(row)]
    trainer = trained(tiny, tmp_path, rows, **same)
    line = [line for line in trainer.state.log_history if "kl" in line]
    assert line[0]["loss"] == pytest.approx(0.5, abs=1e-5), "at the reference every completion has value 1/2"
    assert line[-1]["loss"] < 0.45
    torch.testing.assert_close(logged(trained(tiny, tmp_path, ROWS, **same), PLAIN), logged(trainer, PLAIN))


def test_kto_by_hand(tiny: Path, tmp_path: Path) -> None:
    """After a step, the second step's loss from plain sequences; the KL from completions under the next prompt."""
    rows = [one for row in ROWS[:4] for one in unpaired(row)]
    trainer = make(tiny, tmp_path, rows, loss_type=["kto"], per_device_train_batch_size=8, beta=0.5, max_steps=1,
                   train_sampling_strategy="sequential", undesirable_weight=0.5)  # fmt: skip
    trainer.train()
    tokenizer, reference = tokenizer_of(tiny), load(tiny)

    def ratio(prompt: Row, completion: Row) -> float:
        made = {"prompt": prompt["prompt"], "it": completion["completion"]}
        return summed(trainer.model, tokenizer, made, "it") - summed(reference, tokenizer, made, "it")

    kl = max(0, sum(ratio(one, other) for one, other in zip(rows, [*rows[1:], rows[0]], strict=True)) / 8)
    each = [
        1 - 1 / (1 + math.exp(-0.5 * (ratio(row, row) - kl)))
        if row["label"]
        else 0.5 * (1 - 1 / (1 + math.exp(0.5 * (ratio(row, row) - kl))))
        for row in rows
    ]
    batch = trainer._collate(list(trainer.train_dataset))
    assert trainer.compute_loss(trainer.model.train(), batch).item() == pytest.approx(sum(each) / 8, abs=1e-5)


def test_every_pair_has_its_own_smoothing(tiny: Path, tmp_path: Path) -> None:
    rows = [row | {"flip_probability": 0.4 * (at % 2)} for at, row in enumerate(TREES)]
    (own,), (none,), (least,) = (
        logged(trained(tiny, tmp_path, rows, max_steps=2, per_device_train_batch_size=7, **how), ("loss",))[1]
        for how in ({"use_flip_probability": True}, {}, {"use_flip_probability": True, "label_smoothing": 0.2})
    )
    assert none < own < least
    with pytest.raises(InputError, match=r"flip_probability 0\.7 is not in"):
        make(tiny, tmp_path, [rows[0] | {"flip_probability": 0.7}], use_flip_probability=True)


def test_label_smoothing_is_honoured(tiny: Path, tmp_path: Path) -> None:
    """TRL's sigmoid loss ignores it; its `aot` loss, where a batch is one pair, is the same loss and does not."""
    same = {"max_steps": 20, "train_sampling_strategy": "sequential", "per_device_train_batch_size": 1, "beta": 0.5}
    ours = trained(tiny, tmp_path, ROWS, **same, label_smoothing=0.3)
    theirs = trl(tiny, tmp_path, ROWS, **same, label_smoothing=0.3, loss_type=["aot"])
    torch.testing.assert_close(logged(ours), logged(theirs), atol=1e-4, rtol=1e-4)
    plain = trained(tiny, tmp_path, ROWS, **same)
    assert (logged(plain, PLAIN) - logged(ours, PLAIN)).abs().max() > 1e-2


# --- one training, however it is cut -------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "accumulation"), [(1, 4), (2, 2)])
def test_accumulation_is_a_larger_batch(batch: int, accumulation: int, tiny: Path, tmp_path: Path) -> None:
    """14 pairs by 4: the last step of an epoch has two, and each pair weighs as in one batch."""
    same = {"optim": "sgd", "learning_rate": 0.1, "num_train_epochs": 2, "max_grad_norm": 100.0}
    whole = trained(tiny, tmp_path, **same)
    cut = trained(tiny, tmp_path, **same, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation)
    assert len(logged(whole)) == 8
    torch.testing.assert_close(logged(cut), logged(whole), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(weights(cut), weights(whole), atol=1e-5, rtol=1e-5)
    assert (weights(whole) - weights(make(tiny, tmp_path))).abs().max() > 1e-3


def test_the_mean_of_several_steps_weighs_every_pair(tiny: Path, tmp_path: Path) -> None:
    each, together = (trained(tiny, tmp_path, logging_steps=steps) for steps in (1, 4))
    names = LOGGED[2:]
    sizes = torch.tensor([4.0, 4.0, 4.0, 2.0])
    torch.testing.assert_close(
        logged(together, names)[0], (logged(each, names) * sizes[:, None]).sum(0) / 14, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("lora", [False, True], ids=["whole model", "adapter"])
def test_gradient_checkpointing_changes_nothing(lora: bool, reentrant: bool, tiny: Path, tmp_path: Path) -> None:
    how = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": reentrant}}
    plain, checkpointed = (trained(tiny, tmp_path, peft_config=adapter() if lora else None, **on) for on in ({}, how))
    assert checkpointed.model.is_activation_checkpointing
    assert logged(plain)[-1, 3] != 0
    torch.testing.assert_close(logged(checkpointed), logged(plain), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("row_tokens", [1, 60, 150])
def test_a_batch_in_many_rows_is_the_same_batch(
    row_tokens: int, accumulation: int, tiny: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    same: Row = {"per_device_train_batch_size": 7, "loss_type": ["sigmoid", "sft"], "gradient_accumulation_steps": accumulation}
    whole = trained(tiny, tmp_path, eval_dataset=TREES[:4], eval_strategy="epoch", **same)
    monkeypatch.setitem(base.ROW_TOKENS, "cpu", row_tokens)
    parts = make(tiny, tmp_path, eval_dataset=TREES[:4], eval_strategy="epoch", **same)
    assert len(parts._collate(list(parts.train_dataset))["parts"]) > 1
    parts.train()
    torch.testing.assert_close(logged(parts), logged(whole), atol=1e-5, rtol=1e-5)
    names = [
        name
        for name in whole.state.log_history[-2]
        if name.startswith("eval_") and "per_second" not in name and "runtime" not in name
    ]
    assert len(names) >= 7
    assert [parts.state.log_history[-2][name] for name in names] == pytest.approx(
        [whole.state.log_history[-2][name] for name in names], abs=1e-4
    )


def test_padded_rows_train_as_trees_do(tiny: Path, tmp_path: Path) -> None:
    tree, padded = trained(tiny, tmp_path), make(tiny, tmp_path)
    assert tree.engine.mode == padded.engine.mode == "tree"
    padded.engine.mode = "padded"
    padded.train()
    # Which of two equal rewards is the larger is a matter of rounding, so the first step ranks no pairs.
    unranked = tuple(name for name in LOGGED if name != "rewards/accuracies")
    torch.testing.assert_close(logged(padded, unranked), logged(tree, unranked), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logged(padded)[1:], logged(tree)[1:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("lora", [False, True], ids=["whole model", "adapter"])
@pytest.mark.parametrize("at", [2, 4, 6])
def test_resumed_is_uninterrupted(lora: bool, at: int, tiny: Path, tmp_path: Path) -> None:
    """Four steps an epoch: in the first epoch, at its end, in the second, where the order is another."""
    same: Row = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2}
    whole = trained(tiny, tmp_path, **same, peft_config=adapter() if lora else None)
    again = make(tiny, tmp_path, **same, peft_config=adapter() if lora else None)
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{at}"))
    assert len(logged(whole)) == len(logged(again)) == 8
    assert torch.equal(logged(again)[at:], logged(whole)[at:]), "bit for bit"
    assert torch.equal(weights(again), weights(whole))


def test_seeded(tiny: Path, tmp_path: Path) -> None:
    one, same, other = (trained(tiny, tmp_path, seed=seed, peft_config=adapter()) for seed in (1, 1, 2))
    assert torch.equal(weights(one), weights(same))
    assert not torch.equal(weights(one), weights(other))


# --- encoder-decoders ------------------------------------------------------------------------------------------------


def by_two_passes(folder: Path, rows: list[Row], steps: int, batch: int, rate: float) -> list[float]:
    """DPO as one would write it: two models, and each prompt encoded twice by each."""
    policy, reference = (AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval() for _ in range(2))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=rate)

    def logp(model: PreTrainedModel, prompt: str, text: str) -> torch.Tensor:
        labels = torch.tensor([[*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]])
        every = model(input_ids=torch.tensor([tokenizer(prompt)["input_ids"]]), labels=labels).logits.float().log_softmax(-1)
        return every.gather(-1, labels[..., None]).sum()

    losses = []
    for step in range(steps):
        margins = []
        for row in rows[step * batch : (step + 1) * batch]:
            won, lost = (logp(policy, row["prompt"], row[side]) for side in ("chosen", "rejected"))
            with torch.no_grad():
                ref_won, ref_lost = (logp(reference, row["prompt"], row[side]) for side in ("chosen", "rejected"))
            margins.append((won - ref_won) - (lost - ref_lost))
        loss = torch.nn.functional.softplus(-0.1 * torch.stack(margins)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


PLAIN_TEXT = [
    {"prompt": f"Say {at % 4}", "chosen": f"number {at % 4}" + "!" * at, "rejected": "no " * (1 + at % 3)} for at in range(20)
]


def seq2seq(folder: Path, out: Path, rows: list[Row] = PLAIN_TEXT, **changes: Any) -> PreferenceTrainer:
    own = {name: changes.pop(name) for name in ("eval_dataset", "peft_config") if name in changes}
    more = {"lr_scheduler_type": "constant", "train_sampling_strategy": "sequential", "optim": "adamw_torch", **changes}
    trainer = PreferenceTrainer(str(folder), args=PreferenceConfig(**common(out, more)), train_dataset=rows, **own)
    trainer.train()
    return trainer


def test_an_encoder_decoder_is_trained_as_two_passes_would(tiny_t5: Path, tmp_path: Path) -> None:
    trainer = seq2seq(tiny_t5, tmp_path)
    plain = by_two_passes(tiny_t5, PLAIN_TEXT, steps=5, batch=4, rate=1e-3)
    assert plain[0] == pytest.approx(math.log(2), abs=1e-5)
    assert plain[-1] < 0.6
    assert logged(trainer, ("loss",))[:, 0].tolist() == pytest.approx(plain, abs=1e-4)
    trainer.save_model(str(tmp_path / "saved"))
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.shared.weight, trainer.model.shared.weight)


def test_an_encoder_decoders_adapter_and_held_out_pairs(tiny_t5: Path, tmp_path: Path) -> None:
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_2_SEQ_LM", lora_alpha=64)
    trainer = seq2seq(tiny_t5, tmp_path, num_train_epochs=4, peft_config=lora, eval_dataset=PLAIN_TEXT[:4], learning_rate=5e-3)
    assert logged(trainer, ("loss",))[0, 0] == pytest.approx(math.log(2), abs=1e-5)
    assert logged(trainer, ("loss",))[-1, 0] < 0.5
    (rewards,) = {len(group) for group in trainer.held_out_rewards()}
    assert rewards == 1
    assert all(chosen > rejected for group in trainer.held_out_rewards() for chosen, rejected in group)


def test_another_model_as_an_encoder_decoders_reference(tiny_t5: Path, tmp_path: Path) -> None:
    reference = AutoModelForSeq2SeqLM.from_pretrained(tiny_t5, attn_implementation="eager")
    trainer = PreferenceTrainer(
        str(tiny_t5), reference, PreferenceConfig(**common(tmp_path, {"max_steps": 1})), train_dataset=PLAIN_TEXT
    )
    trainer.train()
    assert logged(trainer, ("loss",))[0, 0] == pytest.approx(math.log(2), abs=1e-5)


def test_a_reference_that_takes_no_tree(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained(tiny, tmp_path)
    reference = load(tiny)
    against = logps.against_trees
    monkeypatch.setattr(logps, "against_trees", lambda model: "it is a test" if model is reference else against(model))
    trainer = trained(tiny, tmp_path, ref_model=reference)
    assert (trainer.engine.mode, trainer.engine.why) == ("padded", "it is a test")
    torch.testing.assert_close(logged(trainer, PLAIN), logged(whole, PLAIN), atol=1e-5, rtol=1e-5)


def test_fp16_is_refused_for_t5(tiny_t5: Path, tmp_path: Path) -> None:
    half = AutoModelForSeq2SeqLM.from_pretrained(tiny_t5, dtype=torch.float16)
    half.name_or_path = str(tiny_t5)
    with pytest.raises(InputError) as error:
        PreferenceTrainer(half, args=PreferenceConfig(**common(tmp_path, {})), train_dataset=PLAIN_TEXT)
    assert "activations overflow fp16" in one_line(error)


# --- the reference -------------------------------------------------------------------------------------------------


def asked(trainer: PreferenceTrainer, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that will hold how many completions each pass of the reference is asked for."""
    found: list[int] = []
    compute = PreferenceTrainer._token_logps

    def counting(self: PreferenceTrainer, wanted: Any, model: Any, label: str, **how: Any) -> Any:
        if label == "reference":
            found.append(len(wanted))
        return compute(self, wanted, model, label, **how)

    monkeypatch.setattr(PreferenceTrainer, "_token_logps", counting)
    return found


def test_a_known_reference_is_not_asked_again(tiny: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make(tiny, tmp_path, TREES[:6])
    found = asked(first, monkeypatch)
    first.train()
    assert found == [6], "two prompts of three completions"
    changed: Row = {"beta": 0.5, "loss_type": ["ipo"], "learning_rate": 1e-4, "num_train_epochs": 2, "seed": 9}
    again = trained(tiny, tmp_path, TREES[:6], **changed)
    trained(tiny, tmp_path, TREES[:6], peft_config=adapter())
    assert found == [6], "other settings, and an adapter on the same model"
    assert again._references.keys() == first._references.keys()
    assert all(torch.equal(again._references[key], value) for key, value in first._references.items())
    trained(tiny, tmp_path, TREES[:9])
    assert found == [6, 3], "new rows cost themselves"
    trained(other, tmp_path, TREES[:6])
    trained(tiny, tmp_path, TREES[:6], bf16=True)
    assert found == [6, 3, 6, 6], "another model, another precision"


def test_a_wrong_cache_would_be_noticed(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(tiny, tmp_path)
    read = Cache.read
    monkeypatch.setattr(Cache, "read", lambda *of: {key: value + 0.1 for key, value in read(*of).items()})
    with pytest.raises(InputError, match="policy and reference differ by 0\\.1 per token"):
        trained(tiny, tmp_path)


def test_a_reference_pass_that_is_killed_goes_on(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(base.ROW_TOKENS, "cpu", 60)
    trainer = make(tiny, tmp_path)
    write, rows = Cache.write, []

    def once(cache: Cache, logps: Any) -> None:
        if rows:
            raise KeyboardInterrupt
        rows.append(len(logps))
        write(cache, logps)

    monkeypatch.setattr(Cache, "write", once)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    monkeypatch.setattr(Cache, "write", write)
    again = make(tiny, tmp_path)
    found = asked(again, monkeypatch)
    again.train()
    assert found == [15 - rows[0]]


def test_a_reference_that_follows(tiny: Path, tmp_path: Path) -> None:
    """After two steps of four it has gone all the way to the policy, so that margins begin at 0 again."""
    same: Row = {"sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 1.0}
    trainer = trained(tiny, tmp_path, **same)
    margins = logged(trainer)[:, 5].tolist()
    assert margins[0] == pytest.approx(0, abs=1e-5)
    assert abs(margins[1]) > 1e-3
    assert margins[2] == pytest.approx(0, abs=1e-5)
    assert torch.equal(weights(trainer), torch.cat([weight.flatten() for weight in trainer.ref_model.parameters()]))
    held_out = make(tiny, tmp_path, eval_dataset=TREES[:3], **same)
    held_out.train()
    assert [reward for group in held_out.held_out_rewards() for pair in group for reward in pair] == pytest.approx(
        [0] * 6, abs=1e-5
    )
    with pytest.raises(InputError, match="not available with an adapter"):
        make(tiny, tmp_path, peft_config=adapter(), **same)


def test_a_reference_that_follows_is_resumed(tiny: Path, tmp_path: Path) -> None:
    same: Row = {
        "sync_ref_model": True, "ref_model_sync_steps": 3, "ref_model_mixup_alpha": 0.5, "num_train_epochs": 2,
        "save_strategy": "steps", "save_steps": 2,
    }  # fmt: skip
    whole, again = trained(tiny, tmp_path, **same), make(tiny, tmp_path, **same)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert torch.equal(logged(again)[4:], logged(whole)[4:])
    assert torch.equal(weights(again), weights(whole))


# --- adapters ------------------------------------------------------------------------------------------------------


def test_an_adapter_alone_is_trained(tiny: Path, tmp_path: Path) -> None:
    trainer = make(tiny, tmp_path, peft_config=adapter())
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    changed = {name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    assert logged(trainer)[0].tolist()[2:6] == pytest.approx([0, 0, 0, 0], abs=1e-6), "the reference is the base model"
    assert logged(trainer)[-1].tolist()[2:4] != pytest.approx([0, 0], abs=1e-4)

    trainer.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "adapter_config.json").is_file()
    assert not (tmp_path / "saved" / "model.safetensors").exists()
    merged = models.load_model(Model(name_or_path=str(tmp_path / "saved")), torch.float32).eval()
    ids = torch.tensor([[10, 20, 30, 40]])
    torch.testing.assert_close(merged(ids).logits, trainer.model.eval()(ids).logits, atol=1e-5, rtol=1e-5)


def test_an_earlier_adapter_is_the_reference_of_its_own_training(tiny: Path, tmp_path: Path) -> None:
    """DPO after an adapter's fine-tuning: the base model as reference would be the wrong one."""
    model = get_peft_model(load(tiny), adapter(lora_dropout=0.3))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.2)
    trainer = trained(tiny, tmp_path, model=model)
    assert isinstance(trainer.model, PeftModel)
    assert logged(trainer)[0].tolist()[2:6] == pytest.approx([0, 0, 0, 0], abs=1e-5)
    with pytest.raises(InputError, match="ln 2"):
        trained(tiny, tmp_path, model=model, ref_model=load(tiny))


def test_an_adapters_own_dropout_is_kept(tiny: Path, tmp_path: Path) -> None:
    plain, dropped = (trained(tiny, tmp_path, peft_config=adapter(lora_dropout=rate)) for rate in (0.0, 0.5))
    assert logged(dropped)[0].tolist()[2:6] == pytest.approx([0, 0, 0, 0], abs=1e-6)
    assert (logged(dropped, PLAIN) - logged(plain, PLAIN)).abs().max() > 1e-4


# --- the reference -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_causal(tmp_path_factory.mktemp("models") / "other", seed=1)


def test_a_wrong_reference_is_refused(tiny: Path, other: Path, tmp_path: Path) -> None:
    with torch.no_grad():
        wrong = load(other)
        wrong.lm_head.weight.mul_(20)  # an untrained model says of all tokens about the same
    trainer = make(tiny, tmp_path, ref_model=wrong)
    with pytest.raises(InputError) as error:
        trainer.train()
    assert "ln 2" in one_line(error)
    assert trainer.state.global_step == 0
    meant = trained(tiny, tmp_path, ref_model=wrong, check_reference=False)
    assert abs(logged(meant)[0, 5]) > 1e-3
    right = trained(tiny, tmp_path, ref_model=load(tiny))
    assert torch.equal(logged(right), logged(trained(tiny, tmp_path)))


def test_a_reference_of_no_numbers_is_refused(tiny: Path, tmp_path: Path) -> None:
    broken = load(tiny)
    with torch.no_grad():
        broken.lm_head.weight.fill_(torch.nan)
    with pytest.raises(InputError, match="ln 2"):
        make(tiny, tmp_path, ref_model=broken).train()


def test_the_reference_in_bf16(tiny: Path, tmp_path: Path) -> None:
    trainer = trained(tiny, tmp_path, bf16=True)
    assert logged(trainer)[0, 0].item() == pytest.approx(math.log(2), abs=1e-2)


def test_the_policy_as_its_own_reference_is_refused(tiny: Path, tmp_path: Path) -> None:
    model = load(tiny)
    with pytest.raises(InputError) as error:
        make(tiny, tmp_path, model=model, ref_model=model)
    assert "leave it out" in one_line(error)


def test_training_goes_on_with_the_same_reference(tiny: Path, tmp_path: Path) -> None:
    """A second `train` starts from a policy that has left the reference; that is no mistake."""
    trainer = trained(tiny, tmp_path)
    moved = logged(trainer)[-1, 5]
    trainer.train()
    assert logged(trainer)[0, 5] != 0
    assert logged(trainer)[-1, 5] > moved


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_dropout_is_off(family: str, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = make_causal(tmp_path / "model", attention_dropout=0.5)
    if family == "gpt2":
        vocabulary = len(AutoTokenizer.from_pretrained(folder))
        config = GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)
        GPT2LMHeadModel(config).save_pretrained(folder)
    ids = torch.arange(20)[None]
    assert not torch.equal(load(folder).train()(ids).logits, load(folder).train()(ids).logits)
    trainer = trained(folder, tmp_path)
    assert logged(trainer)[0].tolist()[2:6] == pytest.approx([0, 0, 0, 0], abs=1e-5)
    model = trainer.model.train()
    assert torch.equal(model(ids).logits, model(ids).logits)
    kept = trained(folder, tmp_path, model=load(folder).train(), disable_dropout=False)
    assert logged(kept)[0].tolist()[2:6] != pytest.approx([0, 0, 0, 0], abs=1e-5)
    assert kept._references.keys() == trainer._references.keys()
    for asked, ours in kept._references.items():
        torch.testing.assert_close(ours, trainer._references[asked], atol=1e-4, rtol=1e-4, msg="a reference has no dropout")


def test_dropout_that_could_not_be_switched_off_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_causal(tmp_path / "model", attention_dropout=0.5)
    monkeypatch.setattr(base, "disable_dropout", lambda _: None)
    with pytest.raises(InputError, match="policy and reference differ"):
        trained(folder, tmp_path)


# --- order ---------------------------------------------------------------------------------------------------------


def test_pairs_of_a_prompt_stay_together() -> None:
    sampler = ByPrompt([[0] * size for size in (3, 1, 2, 4)], seed=0, step=8)
    orders = []
    for epoch in range(6):
        sampler.set_epoch(epoch)
        order = list(sampler)
        orders.append(tuple(order))
        assert sorted(order) == list(range(10))
        assert len(sampler) == 10
        for prompt in ([0, 1, 2], [3], [4, 5], [6, 7, 8, 9]):
            at = order.index(prompt[0])
            assert order[at : at + len(prompt)] == prompt
    assert len(set(orders)) > 3, "an epoch has its own order"
    again = ByPrompt([[0] * size for size in (3, 1, 2, 4)], seed=0, step=8)
    again.set_epoch(4)
    assert tuple(again) == orders[4], "and always the same"
    other = ByPrompt([[0] * size for size in (3, 1, 2, 4)], seed=1, step=8)
    assert any(tuple(other) != orders[0] for other.epoch in range(3))


@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(1, 13), st.integers(0, 3))
def test_a_prompt_with_many_pairs_comes_in_equal_pieces(sizes: list[int], step: int, epoch: int) -> None:
    most = max(1, step // 2)
    groups = [[prompt] * size for prompt, size in enumerate(sizes)]
    sampler = ByPrompt(groups, seed=0, step=step)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(sum(sizes)))
    assert len(sampler) == sum(sizes)
    owner = [prompt for group in groups for prompt in group]
    last = dict.fromkeys(range(len(sizes)), -1)
    pieces = Counter[int]()
    for at, place in enumerate(order):
        prompt = owner[place]
        following = at > 0 and order[at - 1] == place - 1 and owner[place - 1] == prompt
        pieces[prompt] += not following
        assert place > last[prompt], "the pieces keep their order"
        last[prompt] = place
    # Two pieces that happen to be neighbours look like one.
    assert all(pieces[prompt] <= -(-size // most) for prompt, size in enumerate(sizes))
    assert {len(places) for _, _, places in sampler.pieces} <= set(range(1, most + 1))
    for prompt in range(len(sizes)):
        own = [len(places) for _, _, places in sampler.pieces if owner[places[0]] == prompt]
        assert len(own) == -(-sizes[prompt] // most)
        assert max(own) - min(own) <= 1


def test_no_step_holds_a_single_prompt(tiny: Path, tmp_path: Path) -> None:
    pairs = [{"prompt": f"{at} asks", "chosen": f"yes {n}", "rejected": f"no {n}"} for at in range(12) for n in range(8)]
    for batch, accumulation in ((8, 1), (4, 2), (2, 4)):
        trainer = make(tiny, tmp_path, pairs, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation)
        seen = watched(trainer)
        trainer.train()
        steps = [{pairs[row]["prompt"] for row in seen[at : at + 8]} for at in range(0, len(pairs), 8)]
        assert {len(prompts) for prompts in steps} == {2}, "a prompt's eight pairs come in two pieces"
        halves = [Counter(pairs[row]["prompt"] for row in part) for part in (seen[:48], seen[48:])]
        assert all(set(half.values()) == {4} for half in halves), "one of them in each half of the epoch"


def test_a_prompt_scattered_over_the_dataset_is_gathered(tiny: Path, tmp_path: Path) -> None:
    trainer = make(tiny, tmp_path, TREES[::3] + TREES[1::3] + TREES[2::3])
    assert Counter(map(len, trainer.train_dataset.groups)) == {3: 4, 2: 1}


def watched(trainer: PreferenceTrainer) -> list[int]:
    """Return a list that will hold the row of every pair that a step is given."""
    seen: list[int] = []
    collate = trainer.data_collator

    def noting(pairs: list[Any]) -> Any:
        seen.extend(pair.row for pair in pairs)
        return collate(pairs)

    trainer.data_collator = noting
    return seen


def test_every_epoch_has_every_pair_in_its_own_order(tiny: Path, tmp_path: Path) -> None:
    orders = []
    for data_seed in (None, None, 5):
        trainer = make(tiny, tmp_path, num_train_epochs=2, data_seed=data_seed, per_device_train_batch_size=7)
        seen = watched(trainer)
        trainer.train()
        first, second = seen[:14], seen[14:]
        assert first != second
        assert sorted(first) == sorted(second)
        assert len(set(first)) == 14
        orders.append((first, second))
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


def test_sequential_is_the_order_of_the_dataset(tiny: Path, tmp_path: Path) -> None:
    trainer = make(tiny, tmp_path, TREES[::3] + TREES[1::3] + TREES[2::3], train_sampling_strategy="sequential")
    seen = watched(trainer)
    trainer.train()
    assert seen == list(range(14))
    assert trainer.train_dataset[1].row != 1, "though a prompt's pairs are kept side by side"


# --- held out ------------------------------------------------------------------------------------------------------


def summed(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, row: Row, name: str) -> float:
    prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
    whole = torch.tensor([[*prompt, *tokenizer(row[name][0]["content"] + "<|end|>")["input_ids"]]])
    every = torch.log_softmax(model.eval()(whole).logits.float(), -1)[0]
    return sum(every[at - 1, whole[0, at]].item() for at in range(len(prompt), whole.shape[1]))


def test_held_out_metrics_by_hand(tiny: Path, tmp_path: Path) -> None:
    held_out = [*TREES[:4], chat("Odd one", "short", "a much longer answer than the others")]
    trainer = trained(
        tiny, tmp_path, eval_dataset=held_out, per_device_eval_batch_size=2, num_train_epochs=3, beta=0.4, label_smoothing=0.1
    )
    metrics = trainer.evaluate()
    tokenizer, reference = tokenizer_of(tiny), load(tiny)
    logps, rewards = ([], [])
    with torch.no_grad():
        for row in held_out:
            policy = [summed(trainer.model, tokenizer, row, name) for name in ("chosen", "rejected")]
            before = [summed(reference, tokenizer, row, name) for name in ("chosen", "rejected")]
            logps.append(policy)
            rewards.append([0.4 * (now - then) for now, then in zip(policy, before, strict=True)])
    margins = [won - lost for won, lost in rewards]
    softplus = [(0.9 * math.log1p(math.exp(-margin)) + 0.1 * math.log1p(math.exp(margin))) for margin in margins]
    expected = {
        "eval_loss": sum(softplus) / 5,
        "eval_rewards/chosen": sum(won for won, _ in rewards) / 5,
        "eval_rewards/rejected": sum(lost for _, lost in rewards) / 5,
        "eval_rewards/accuracies": sum(margin > 0 for margin in margins) / 5,
        "eval_rewards/margins": sum(margins) / 5,
        "eval_logps/chosen": sum(won for won, _ in logps) / 5,
        "eval_logps/rejected": sum(lost for _, lost in logps) / 5,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert abs(expected["eval_rewards/margins"]) > 0
    held = trainer.held_out_rewards()
    assert [len(group) for group in held] == [3, 1, 1]
    assert torch.tensor([both for group in held for both in group]) == pytest.approx(torch.tensor(rewards), abs=1e-4)


def test_measuring_does_not_disturb(tiny: Path, tmp_path: Path) -> None:
    trainer = make(tiny, tmp_path, eval_dataset=TREES[:3])
    trainer.model.train()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(math.log(2)), "before training, policy and reference are one"
    trainer.model.train()
    assert torch.tensor(trainer.held_out_rewards()).abs().max() < 1e-5
    assert trainer.model.training
    during = trained(tiny, tmp_path, eval_dataset=TREES[:3], eval_strategy="steps", eval_steps=1)
    assert torch.equal(logged(during), logged(trained(tiny, tmp_path)))
    assert make(tiny, tmp_path).held_out_rewards() == []


def test_an_evaluation_broken_off_counts_for_nothing(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trained(tiny, tmp_path, eval_dataset=TREES[:5], per_device_eval_batch_size=2, num_train_epochs=2)
    whole = trainer.evaluate()
    step, calls = trainer.prediction_step, itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "prediction_step", lambda *given, **named: step(*given, **named) if next(calls) < 1 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trainer.evaluate()
    assert trainer.evaluate()["eval_rewards/margins"] == pytest.approx(whole["eval_rewards/margins"], rel=1e-6)


def test_compute_metrics_is_given_rewards(tiny: Path, tmp_path: Path) -> None:
    def accuracy(prediction: Any) -> dict[str, float]:
        assert prediction.predictions.shape == (5, 2)
        return {"mine": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    trainer = trained(
        tiny, tmp_path, eval_dataset=TREES[:5], compute_metrics=accuracy, per_device_eval_batch_size=2, num_train_epochs=3
    )
    metrics = trainer.evaluate()
    assert metrics["eval_mine"] == pytest.approx(metrics["eval_rewards/accuracies"])


def test_other_held_out_pairs_come_too_late(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        trained(tiny, tmp_path).evaluate(TREES)
    assert "constructor" in one_line(error)
    with pytest.raises(InputError, match="trained already"):
        trained(tiny, tmp_path).evaluate(Examples([Example(0, (1,), ((2,), (3,)))]))


def test_a_preference_is_learned(tiny: Path, tmp_path: Path) -> None:
    """Shouting is preferred; the held-out prompts and words are new."""
    words = ["apple", "river", "stone", "cloud", "table", "green", "paper", "light", "mouse", "bread", "chair", "water"]
    rows = [chat(f"Say {word}", f"{word.upper()}!", f"{word}.") for word in words]
    trainer = make(
        tiny, tmp_path, [row for row in rows[:9] for _ in range(2)], eval_dataset=rows[9:], num_train_epochs=6, learning_rate=3e-3
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert before["eval_rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert after["eval_rewards/accuracies"] == 1
    assert after["eval_loss"] < before["eval_loss"] / 2
    assert after["eval_rewards/margins"] > 1


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss_type": ["dpo"]}, "loss_type dpo: choose from sigmoid, hinge, ipo"),
        ({"loss_type": ["sigmoid", "kto"]}, "loss_type kto: choose from"),
        ({"loss_type": ["ipo"], "label_smoothing": 0.1}, "label_smoothing does nothing for loss_type ipo"),
        ({"loss_type": ["kto"], "label_smoothing": 0.1}, "label_smoothing does nothing for loss_type kto"),
        ({"loss_type": ["simpo"], "sync_ref_model": True}, "sync_ref_model does nothing for loss_type simpo"),
        ({"ref_model_sync_steps": 3}, "do nothing without sync_ref_model"),
        ({"desirable_weight": 2.0}, "are kto's"),
        ({"loss_type": []}, "loss_type"),
        ({"label_smoothing": 0.5}, r"label_smoothing 0\.5: must be in \[0, 0\.5\)"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
        ({"label_smoothing_factor": 0.1}, "use label_smoothing"),
        ({"beta": 0.0}, "beta 0.0: must be above 0"),
        ({"train_sampling_strategy": "group_by_length"}, "only random and sequential"),
    ],
)
def test_refused_settings(changes: Row, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        PreferenceConfig(**common(tmp_path, changes))


def test_unknown_settings(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="padding_free"):
        PreferenceConfig(**common(tmp_path, {"padding_free": True}))


def test_loss_type_as_a_word(tmp_path: Path) -> None:
    assert PreferenceConfig(**common(tmp_path, {"loss_type": "sigmoid"})).loss_type == ["sigmoid"]


def test_a_row_of_no_number_is_named(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make(tiny, tmp_path, ROWS, check_reference=False)
    monkeypatch.setattr(Cache, "read", lambda *_: {})
    trainer._refer(trainer.train_dataset)
    example = trainer.train_dataset.examples[7]
    trainer._references[example.prompt, example.completions[1]] *= math.nan
    with pytest.raises(InputError) as error:
        trainer.train()
    assert f"the loss of dataset row {example.row} is not a number" in one_line(error)
    assert "learning_rate" in one_line(error)


@pytest.mark.parametrize(
    "kind", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_too_little_memory_says_what_to_lower(
    kind: Exception, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise kind

    monkeypatch.setattr(PreferenceTrainer, "compute_loss", fails)
    with pytest.raises(InputError) as error:
        trained(tiny, tmp_path)
    assert "lower max_length (now 1024) or per_device_train_batch_size (now 4" in one_line(error)
    monkeypatch.setattr(PreferenceTrainer, "compute_loss", lambda *_, **__: {}["x"])
    with pytest.raises(KeyError):
        trained(tiny, tmp_path)


def test_nothing_to_train_on(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="train_dataset is missing"):
        make(tiny, tmp_path, rows=None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"train dataset: no pair is left to use \(it is empty\)"):
        make(tiny, tmp_path, rows=[])
    with pytest.raises(InputError) as error:
        make(tiny, tmp_path, rows=[chat("a", "b", "b"), *TREES], max_length=3)
    assert "no pair is left to use (1 identical, 14 too long)" in one_line(error)
    with pytest.raises(InputError, match="eval dataset: no pair is left"):
        make(tiny, tmp_path, eval_dataset=[chat("a", "b", "b")])


def test_without_a_chat_template_it_says_what_it_does(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tiny, tmp_path)
    assert "template" not in capsys.readouterr().out
    tokenizer = tokenizer_of(tiny)
    tokenizer.chat_template = None
    for rows, told in ((TREES, 1), (TEXT, 0)):
        PreferenceTrainer(
            load(tiny), args=PreferenceConfig(**common(tmp_path, {})), train_dataset=rows, processing_class=tokenizer
        )
        assert capsys.readouterr().out.count("no chat template; turns become plain text, and <|end|> ends an answer") == told


def test_dropped_rows_are_counted(tiny: Path, tmp_path: Path) -> None:
    trainer = make(tiny, tmp_path, [*TREES, chat("a", "b", "b")], eval_dataset=TREES, max_length=20)
    assert trainer.row_counts == {"train": {"identical": 1, "prompt cut": 9}, "eval": {"prompt cut": 9}}


# --- what is saved -------------------------------------------------------------------------------------------------


def test_by_name_and_saved(tiny: Path, tmp_path: Path) -> None:
    trainer = PreferenceTrainer(str(tiny), args=PreferenceConfig(**common(tmp_path, {})), train_dataset=TREES)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    again = load(tmp_path / "saved")
    assert torch.equal(torch.cat([weight.flatten() for weight in again.parameters()]), weights(trainer))
    assert again.config.use_cache, "the Trainer's own setting would make every later generation slow"
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").chat_template == TEMPLATE


def test_several_gpus_in_one_process_are_not_split_over(tiny: Path, tmp_path: Path) -> None:
    args = PreferenceConfig(**common(tmp_path, {}))
    args._n_gpu = 2
    trainer = PreferenceTrainer(load(tiny), args=args, train_dataset=TREES, processing_class=tokenizer_of(tiny))
    assert trainer.args.n_gpu == 1
    assert trainer.args.train_batch_size == 4


def test_the_callers_rows_are_left_alone(tiny: Path, tmp_path: Path) -> None:
    rows = copy.deepcopy(TREES)
    trained(tiny, tmp_path, rows, eval_dataset=Dataset.from_list(rows))
    assert rows == TREES
