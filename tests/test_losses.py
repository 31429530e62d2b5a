"""Losses: closed forms, gradients, the same values as TRL's own code, and every option honoured or refused."""

import math
import warnings
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tiebreak.training import losses
from tiebreak.training.losses import LOSSES, PairLogps, Settings, check, preference_loss

ratios = st.floats(-30, 30)
smoothing = st.floats(0, 0.49)

LENGTHS = torch.tensor([[3, 5, 1, 4], [6, 2, 1, 4]])
"""Tokens of the chosen and rejected completions of four pairs."""
PLACE = torch.arange(int(LENGTHS.max()))
MASK = LENGTHS[..., None] > PLACE
"""(2, 4, 6), where padded rows hold a token."""
REQUIRED: dict[str, Any] = {"exo_pair": {"label_smoothing": 0.1}, "robust": {"label_smoothing": 0.1}}


def settings(*loss_type: str, **options: Any) -> Settings:
    """Return settings that pass the check, with what a loss cannot do without."""
    needed = {key: value for name in loss_type for key, value in REQUIRED.get(name, {}).items()}
    made = Settings(loss_type=loss_type, **needed | options)
    check(made)
    return made


class Tokens:
    """Random log-probs per token of both models, padded as TRL wants them, with all that any option asks for."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.policy = (-scale * torch.rand(MASK.shape, generator=draw, dtype=dtype) * MASK).requires_grad_()
        self.reference = -scale * torch.rand(MASK.shape, generator=draw, dtype=dtype) * MASK
        self.collision = -torch.rand(MASK.shape, generator=draw, dtype=dtype) * MASK
        self.flips = torch.rand(4, generator=draw, dtype=dtype) / 2

    def pairs(self, policy: Tensor | None = None) -> PairLogps:
        policy = (self.policy if policy is None else policy) * MASK
        index = {"owner": torch.arange(8).repeat_interleave(LENGTHS.flatten()), "pairs": torch.arange(8).view(2, 4)}
        index["tokens"] = LENGTHS.flatten()
        place = PLACE.expand_as(MASK)[MASK]
        shared = [losses.shared_logps(each[MASK], place=place, **index) for each in (policy, self.reference)]
        return PairLogps(
            logps=policy.sum(-1), ref_logps=self.reference.sum(-1), tokens=LENGTHS, shared_logps=(shared[0], shared[1]),
            weight=losses.pair_weights(policy[MASK], self.collision[MASK], **index), flip_probability=self.flips,
        )  # fmt: skip


# --- TRL's own code ---------------------------------------------------------------------------------------------------


class FakeModel(torch.nn.Module):
    """Answers with what it was given, whatever it is asked."""

    is_gradient_checkpointing = False

    def __init__(self, **outputs: Tensor) -> None:
        super().__init__()
        self.outputs = SimpleNamespace(**outputs)

    def forward(self, *_: Any, **__: Any) -> SimpleNamespace:
        return self.outputs


ACCELERATOR = SimpleNamespace(device="cpu", gather=lambda values: values, gather_for_metrics=lambda values: values)


def filled(per_token: Tensor, **more: Tensor) -> FakeModel:
    zeros = torch.zeros_like(per_token)
    return FakeModel(log_probs=per_token, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool(), **more)


def trl_dpo(tokens: Tokens, made: Settings) -> Tensor:
    """Return what TRL's DPOTrainer makes of a batch."""
    from trl import DPOTrainer

    policy = filled(tokens.policy.flatten(0, 1), log_sum_sq_probs=tokens.collision.flatten(0, 1)).eval()
    trainer = SimpleNamespace(
        model=policy, ref_model=filled(tokens.reference.flatten(0, 1)), accelerator=ACCELERATOR, aux_loss_enabled=False,
        precompute_ref_logps=False, ld_alpha=made.ld_alpha, f_divergence_type=made.f_divergence_type,
        f_alpha_divergence_coef=made.f_alpha_divergence_coef, loss_types=made.loss_type,
        loss_weights=made.loss_weights or [1.0] * len(made.loss_type), beta=made.beta, label_smoothing=made.label_smoothing,
        use_weighting=made.use_weighting, _total_train_tokens=0, _metrics={"eval": defaultdict(list)},
        args=SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=made.discopop_tau),
    )  # fmt: skip
    # One token of prompt before each completion.
    mask = torch.nn.functional.pad(MASK.flatten(0, 1).long(), (1, 0))
    inputs = {"input_ids": torch.ones_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask}
    return DPOTrainer._compute_loss(trainer, policy, inputs, False)


def value_and_gradient(loss: Tensor, leaf: Tensor) -> tuple[float, Tensor]:
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.item(), gradient


DPO_LIST = [name for name in LOSSES if name not in {"simpo", "orpo", "cpo"}]
SMOOTHED = ["robust", "exo_pair", "aot", "aot_unpaired"]  # elsewhere TRL leaves label_smoothing aside
BY_MARGIN = ["sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop"]
DIVERGENCES: list[dict[str, Any]] = [
    {"f_divergence_type": "forward_kl"}, {"f_divergence_type": "js_divergence"}, {"f_divergence_type": "alpha_divergence"},
    {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1.7},
    {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1.0},
]  # fmt: skip
CASES = (
    [settings(name) for name in DPO_LIST]
    + [settings(name, beta=0.7) for name in DPO_LIST if name != "sft"]
    + [settings(name, label_smoothing=0.3) for name in SMOOTHED]
    + [settings(name, **divergence) for name in BY_MARGIN for divergence in DIVERGENCES]
    + [settings(name, ld_alpha=alpha) for name in DPO_LIST for alpha in (0.0, 0.4, 1.0) if name != "sft"]
    + [settings(name, use_weighting=True) for name in DPO_LIST if name not in {"sft", "aot", "aot_unpaired"}]
    + [
        settings("discopop", discopop_tau=0.5),
        settings("sigmoid", "sft"),
        settings("sigmoid", "bco_pair", "sft", loss_weights=(0.8, 0.2, 1.0)),
        settings("ipo", "sft", ld_alpha=0.3, f_divergence_type="forward_kl", loss_weights=(1.0, 0.1)),
        settings("hinge", "apo_down", use_weighting=True, beta=0.3),
    ]
)


def changed(made: Settings) -> str:
    default = Settings()
    return " ".join(f"{key}={value}" for key, value in vars(made).items() if value != getattr(default, key)) or "sigmoid"


@pytest.mark.parametrize("made", CASES, ids=changed)
def test_trls_value_and_gradient(made: Settings) -> None:
    for seed, scale in ((0, 1.0), (1, 8.0)):
        tokens = Tokens(seed, scale=scale)
        ours = value_and_gradient(preference_loss(tokens.pairs(), made).mean(), tokens.policy)
        loss = trl_dpo(tokens, made)
        assert ours[0] == pytest.approx(loss.item(), rel=2e-5, abs=1e-6)
        if "hinge" in made.loss_type and made.use_weighting:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()
            continue  # TRL 1.16 multiplies the hinge in place, which its own backward pass refuses
        theirs = value_and_gradient(loss, tokens.policy)
        # TRL sums over the padding, which holds zeros.
        torch.testing.assert_close(ours[1], theirs[1] * MASK, rtol=1e-4, atol=1e-6)
        assert theirs[1].abs().sum() > 0


def test_smoothed_sigmoid_is_trls_aot_of_one_pair() -> None:
    """TRL's sigmoid leaves label_smoothing aside; its `aot`, on a single pair, is the same loss with it."""
    tokens = Tokens(3)
    each = preference_loss(tokens.pairs(), settings("sigmoid", label_smoothing=0.2))
    for at in range(4):
        one = Tokens(3)
        for name in ("policy", "reference", "collision"):
            setattr(one, name, getattr(one, name)[:, [at] * 4])
        assert each[at].item() == pytest.approx(trl_dpo(one, settings("aot", label_smoothing=0.2)).item(), abs=1e-6)
    plain = preference_loss(tokens.pairs(), settings("sigmoid"))
    assert plain.mean().item() == pytest.approx(
        trl_dpo(tokens, replace(settings("sigmoid"), label_smoothing=0.2)).item(), abs=1e-6
    )


@pytest.mark.parametrize(
    ("loss_type", "options"),
    [
        ("cpo", {}), ("cpo", {"beta": 0.5, "label_smoothing": 0.2, "cpo_alpha": 0.3}), ("cpo", {"cpo_alpha": 0.0}),
        ("simpo", {"beta": 2.0}), ("simpo", {"beta": 2.5, "simpo_gamma": 1.5, "label_smoothing": 0.1}),
        ("orpo", {}), ("orpo", {"beta": 0.8}),
    ],
)  # fmt: skip
def test_trls_value_and_gradient_without_reference(loss_type: str, options: dict[str, Any]) -> None:
    """With a prompt of one token, whose log-prob nobody has, TRL's ORPO too counts completions only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "experimental"
        from trl.experimental.cpo import CPOTrainer
        from trl.experimental.orpo import ORPOTrainer
    made = settings(loss_type, **options)
    draw = torch.Generator().manual_seed(5)
    logits = torch.randn(8, 7, 11, generator=draw, requires_grad=True)
    mask = torch.nn.functional.pad(MASK.flatten(0, 1), (1, 0))
    ids = torch.randint(11, (8, 7), generator=draw)
    labels = ids.masked_fill(~mask, -100)
    attention = mask.long().index_fill(1, torch.tensor([0]), 1)
    batch = {
        f"{side}_{name}": values[rows]
        for side, rows in (("chosen", slice(4)), ("rejected", slice(4, None)))
        for name, values in (("input_ids", ids), ("labels", labels), ("attention_mask", attention))
    }
    kind = ORPOTrainer if loss_type == "orpo" else CPOTrainer
    trainer = object.__new__(kind)
    vars(trainer).update(
        accelerator=ACCELERATOR, is_encoder_decoder=False, aux_loss_enabled=False, pad_token_id=0, padding_value=0, alpha=0.0,
        loss_type="simpo" if loss_type == "simpo" else "sigmoid", beta=made.beta, label_smoothing=made.label_smoothing,
        simpo_gamma=made.simpo_gamma, cpo_alpha=made.cpo_alpha if loss_type == "cpo" else 0.0,
    )  # fmt: skip
    theirs = value_and_gradient(trainer.get_batch_loss_metrics(FakeModel(logits=logits), batch)[0], logits)

    token_logps = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0].view(MASK.shape) * MASK
    pairs = PairLogps(logps=token_logps.sum(-1), ref_logps=None, tokens=LENGTHS)
    ours = value_and_gradient(preference_loss(pairs, made).mean(), logits)
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("gap", [-0.7, 0.9])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.3, 0.4)])
def test_kto_is_trls(gap: float, weights: tuple[float, float]) -> None:
    from trl import KTOTrainer

    draw = torch.Generator().manual_seed(6)
    policy = (-torch.rand(5, 3, generator=draw)).requires_grad_()
    reference, mismatched = -torch.rand(5, generator=draw) * 3, -torch.rand(5, generator=draw) * 3
    desirable = torch.tensor([True, False, False, True, True])
    models = {0: filled(policy), 1: filled(torch.stack([mismatched + gap, *torch.zeros(2, 5)], 1))}
    trainer = object.__new__(KTOTrainer)
    vars(trainer).update(
        model=SimpleNamespace(training=False), accelerator=ACCELERATOR, aux_loss_enabled=False, precompute_ref_logps=True,
        calculate_KL=True, loss_type="kto", beta=0.4, desirable_weight=weights[0], undesirable_weight=weights[1],
        _total_train_tokens=0, _metrics={"eval": defaultdict(list)},
    )  # fmt: skip
    ids = torch.zeros(5, 4, dtype=torch.long)
    mask = torch.tensor([[0, 1, 1, 1]]).expand(5, 4)
    batch = {
        "input_ids": ids, "attention_mask": mask, "completion_mask": mask, "label": desirable, "ref_logps": reference,
        "KL_input_ids": ids + 1, "KL_attention_mask": mask, "KL_completion_mask": mask, "ref_KL_logps": mismatched,
    }  # fmt: skip
    loss = KTOTrainer._compute_loss(trainer, lambda **given: models[int(given["input_ids"][0, 0])](), batch, False)
    theirs = value_and_gradient(loss, policy)
    each = losses.kto(
        policy.sum(-1),
        reference,
        desirable,
        torch.tensor(gap),
        beta=0.4,
        desirable_weight=weights[0],
        undesirable_weight=weights[1],
    )
    ours = value_and_gradient(each.mean(), policy)
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    torch.testing.assert_close(ours[1], theirs[1])


# --- values by hand ---------------------------------------------------------------------------------------------------


def two(chosen: float, rejected: float, tokens: tuple[int, int] = (1, 1), **more: Any) -> PairLogps:
    """One pair in float64 whose reference gives both completions a log-prob of -1."""
    logps = torch.tensor([[chosen], [rejected]], dtype=torch.float64)
    return PairLogps(logps=logps, ref_logps=torch.full_like(logps, -1), tokens=torch.tensor(tokens)[:, None], **more)


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


LN = math.log
HAND: list[tuple[Settings, float]] = [
    # log-ratios 2 and -3 (margin 5) of 2 and 4 tokens
    (settings("sigmoid"), LN(1 + math.exp(-0.5))),
    (settings("sigmoid", label_smoothing=0.2), 0.8 * LN(1 + math.exp(-0.5)) + 0.2 * LN(1 + math.exp(0.5))),
    (settings("robust"), (0.9 * LN(1 + math.exp(-0.5)) - 0.1 * LN(1 + math.exp(0.5))) / 0.8),
    (settings("hinge"), 0.5),
    (settings("hinge", beta=0.3), 0.0),
    (settings("ipo"), (2 / 2 + 3 / 4 - 5) ** 2),
    (settings("sigmoid_norm", beta=2.0), LN(1 + math.exp(-2 * 1.75))),
    (settings("sppo_hard"), (2 - 5) ** 2 + (-3 + 5) ** 2),
    (settings("nca_pair"), -LN(sigma(0.2)) - 0.5 * LN(sigma(-0.2)) - 0.5 * LN(sigma(0.3))),
    (settings("bco_pair"), -LN(sigma(0.2)) - LN(sigma(0.3))),
    (settings("apo_zero"), 1 - sigma(0.2) + sigma(-0.3)),
    (settings("apo_down"), sigma(0.2) + 1 - sigma(0.5)),
    (settings("exo_pair"), sigma(0.5) * LN(sigma(0.5) / 0.9) + sigma(-0.5) * LN(sigma(-0.5) / 0.1)),
    (settings("discopop", discopop_tau=0.5), -LN(sigma(0.5)) * (1 - sigma(1)) + math.exp(-0.5) * sigma(1)),
    (settings("sft"), -1 / 2),
    (settings("simpo", beta=2.0), -LN(sigma(2 * (1 / 2 + 4 / 4) - 0.5))),
    (settings("cpo"), -LN(sigma(0.5)) - 1 / 2),
    (settings("sigmoid", f_divergence_type="forward_kl"), -LN(sigma(0.1 * ((1 - math.exp(-2)) - (1 - math.exp(3)))))),
    (settings("sigmoid", f_divergence_type="js_divergence"), -LN(sigma(0.1 * (LN(2 * sigma(2)) - LN(2 * sigma(-3)))))),
    (settings("sigmoid", f_divergence_type="alpha_divergence"), -LN(sigma(0.1 * (math.exp(-1) - math.exp(1.5)) / -0.5))),
    (settings("sigmoid", "hinge", loss_weights=(0.5, 3.0)), 0.5 * LN(1 + math.exp(-0.5)) + 1.5),
]  # fmt: skip


@pytest.mark.parametrize(("made", "expected"), HAND, ids=[changed(made) for made, _ in HAND])
def test_value_by_hand(made: Settings, expected: float) -> None:
    assert preference_loss(two(1, -4, (2, 4)), made).item() == pytest.approx(expected, rel=1e-12)


def test_orpo_by_hand() -> None:
    """Mean probabilities of 1/2 and 1/5 have odds of 1 and 1/4, thus an odds ratio of 4: σ(log 4) = 4/5."""
    each = preference_loss(two(2 * LN(1 / 2), 3 * LN(1 / 5), (2, 3)), settings("orpo", beta=0.25))
    assert each.item() == pytest.approx(LN(2) + 0.25 * LN(5 / 4), rel=1e-12)


def test_kto_by_hand() -> None:
    policy, reference = torch.tensor([-1.0, -1.0]), torch.tensor([-4.0, -4.0])
    options: dict[str, float] = {"beta": 0.5, "desirable_weight": 2.0, "undesirable_weight": 3.0}
    each = losses.kto(policy, reference, torch.tensor([True, False]), torch.tensor(1.0), **options)
    assert each.tolist() == pytest.approx([2 * sigma(-1), 3 * sigma(1)])
    clamped = losses.kto(policy, reference, torch.tensor([True, False]), torch.tensor(-9.0), **options)
    assert clamped.tolist() == pytest.approx([2 * sigma(-1.5), 3 * sigma(1.5)])
    kl = torch.tensor(1.0, requires_grad=True)
    assert not losses.kto(policy, reference, torch.tensor([True, False]), kl, **options).requires_grad


def test_aot_matches_ranks_not_pairs() -> None:
    logps = torch.tensor([[5.0, 1.0], [0.0, 0.0]])
    ref_logps = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    each = preference_loss(PairLogps(logps, ref_logps, torch.ones(2, 2)), settings("aot", beta=1.0))
    assert each.tolist() == pytest.approx([-LN(sigma(1 - 1)), -LN(sigma(5 - 2))])
    unpaired = preference_loss(PairLogps(logps, ref_logps, torch.ones(2, 2)), settings("aot_unpaired", beta=1.0))
    assert unpaired.tolist() == pytest.approx([-LN(sigma(-1 + 0)), -LN(sigma(4 - 0))])


# --- limits and properties --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sigmoid", "robust", "aot", "aot_unpaired", "sigmoid_norm", "discopop"])
def test_ln_2_where_policy_and_reference_agree(name: str) -> None:
    pairs = Tokens().pairs()
    same = replace(pairs, ref_logps=pairs.logps)
    expected = (1 + LN(2)) / 2 if name == "discopop" else LN(2)
    assert preference_loss(same, settings(name)).tolist() == pytest.approx([expected] * 4)


def test_small_beta_is_ln_2() -> None:
    assert preference_loss(two(1, -4), settings("sigmoid", beta=1e-9)).item() == pytest.approx(LN(2), abs=1e-8)


@given(ratios, ratios, st.floats(0.01, 2), smoothing)
def test_swapping_a_pair_is_turning_its_label(chosen: float, rejected: float, beta: float, epsilon: float) -> None:
    won, lost = torch.tensor([[chosen], [rejected]], dtype=torch.float64)
    swapped = losses.sigmoid(lost, won, beta=beta, label_smoothing=epsilon)
    assert swapped.item() == pytest.approx(losses.sigmoid(won, lost, beta=beta, label_smoothing=1 - epsilon).item(), abs=1e-9)
    exo = losses.exo_pair(lost, won, beta=beta, label_smoothing=epsilon + 0.01)
    assert exo.item() == pytest.approx(losses.exo_pair(won, lost, beta=beta, label_smoothing=0.99 - epsilon).item(), abs=1e-9)


@given(ratios, ratios, smoothing)
def test_robust_is_dpo_on_average(chosen: float, rejected: float, epsilon: float) -> None:
    """Over labels that are turned with probability ε."""
    won, lost = torch.tensor([[chosen], [rejected]], dtype=torch.float64)
    as_is, turned = (losses.robust(*pair, beta=0.2, label_smoothing=epsilon) for pair in ((won, lost), (lost, won)))
    mean = (1 - epsilon) * as_is + epsilon * turned
    assert mean.item() == pytest.approx(losses.sigmoid(won, lost, beta=0.2).item(), abs=1e-9)


@given(ratios, ratios, smoothing)
def test_gradient_of_sigmoid(chosen: float, rejected: float, epsilon: float) -> None:
    """d loss / d chosen = -beta ((1 - ε) σ(-βΔ) - ε σ(βΔ)), and its opposite for rejected."""
    beta = 0.2
    values = torch.tensor([chosen, rejected], dtype=torch.float64, requires_grad=True)
    losses.sigmoid(values[:1], values[1:], beta=beta, label_smoothing=epsilon).sum().backward()
    right = sigma(beta * (chosen - rejected))
    expected = -beta * ((1 - epsilon) * (1 - right) - epsilon * right)
    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx([expected, -expected], abs=1e-12)


FALLING = set(LOSSES) - {"sft", "orpo", "sppo_hard", "ipo", "exo_pair", "discopop"}  # the last four bend back up


@given(ratios, ratios, st.sampled_from(sorted(FALLING)), st.floats(0.1, 5))
def test_a_better_chosen_completion_never_costs_more(chosen: float, rejected: float, name: str, step: float) -> None:
    held_back = name in {"nca_pair", "apo_down"}  # the chosen completion, on purpose
    better = two(chosen, rejected - step) if held_back else two(chosen + step, rejected)
    made = replace(settings(name), label_smoothing=0.0)
    assert preference_loss(better, made).item() <= preference_loss(two(chosen, rejected), made).item() + 1e-12


def test_smoothing_has_its_least_loss_where_the_odds_are_its_own() -> None:
    margins = torch.linspace(-20, 20, 41, dtype=torch.float64)
    for loss in (losses.sigmoid, losses.exo_pair):
        smoothed = loss(margins, torch.zeros_like(margins), beta=0.5, label_smoothing=0.2)
        assert smoothed.argmin() == (margins - LN(0.8 / 0.2) / 0.5).abs().argmin()


@pytest.mark.parametrize("f_divergence_type", losses.F_ALPHA)
@pytest.mark.parametrize("name", LOSSES)
def test_no_overflow_far_out(name: str, f_divergence_type: str) -> None:
    if f_divergence_type != "reverse_kl" and "f_divergence_type" not in LOSSES[name].options:
        return
    if name == "ipo" and f_divergence_type in {"forward_kl", "alpha_divergence"}:
        return  # the square of an exponential is as large as it is
    logps = torch.tensor([[-1e4, 0.0, -1e-9, -1.0], [0.0, -1e4, -1.0, -1e-9]], requires_grad=True)
    pairs = PairLogps(logps=logps, ref_logps=logps.detach().flip(0), tokens=torch.ones(2, 4))
    loss = preference_loss(pairs, settings(name, f_divergence_type=f_divergence_type))
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert logps.grad is not None
    assert torch.isfinite(logps.grad).all()


@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck(name: str) -> None:
    tokens = Tokens(7, torch.float64)
    offered = [option for option in ("ld_alpha", "use_flip_probability", "use_weighting") if option in LOSSES[name].options]
    values = {"ld_alpha": 0.5, "use_flip_probability": True, "use_weighting": False}
    made = settings(name, **{option: values[option] for option in offered})
    assert torch.autograd.gradcheck(lambda policy: preference_loss(tokens.pairs(policy), made), tokens.policy)


def test_alpha_divergence_is_continuous() -> None:
    ratio = torch.linspace(-3, 3, 7, dtype=torch.float64)
    near = losses.f_score(ratio, "alpha_divergence", 1 + 2e-6)
    torch.testing.assert_close(near, losses.f_score(ratio, "reverse_kl"), rtol=0, atol=1e-4)
    torch.testing.assert_close(losses.f_score(ratio, "alpha_divergence", 0.0), losses.f_score(ratio, "forward_kl"))


# --- options ----------------------------------------------------------------------------------------------------------

OPTIONS: dict[str, dict[str, Any]] = {
    "beta": {"beta": 0.37}, "label_smoothing": {"label_smoothing": 0.23}, "use_flip_probability": {"use_flip_probability": True},
    "f_divergence_type": {"f_divergence_type": "forward_kl"}, "ld_alpha": {"ld_alpha": 0.5},
    "use_weighting": {"use_weighting": True}, "discopop_tau": {"discopop_tau": 0.7}, "simpo_gamma": {"simpo_gamma": 0.9},
    "cpo_alpha": {"cpo_alpha": 0.2},
}  # fmt: skip
WITHOUT_REFERENCE = {"sft", "simpo", "orpo", "cpo"}
HONOURED: dict[str, set[str]] = {
    "beta": set(LOSSES) - {"sft"},
    "label_smoothing": {"sigmoid", "sigmoid_norm", "robust", "exo_pair", "aot", "aot_unpaired", "simpo", "cpo"},
    "use_flip_probability": {"sigmoid", "sigmoid_norm", "robust", "exo_pair", "simpo", "cpo"},
    "f_divergence_type": set(BY_MARGIN),
    "ld_alpha": set(LOSSES) - WITHOUT_REFERENCE,
    "use_weighting": set(LOSSES) - {"sft", "orpo", "cpo", "aot", "aot_unpaired"},
    "discopop_tau": {"discopop"},
    "simpo_gamma": {"simpo"},
    "cpo_alpha": {"cpo"},
}


def test_every_option_is_in_the_table() -> None:
    assert set(OPTIONS) | {"loss_type", "loss_weights", "f_alpha_divergence_coef"} == set(vars(Settings()))
    assert {option for loss in LOSSES.values() for option in loss.options} == set(OPTIONS)
    assert set(losses.COMMON) <= set(OPTIONS)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", LOSSES)
def test_an_option_changes_the_loss_or_raises(name: str, option: str) -> None:
    asked = Settings(loss_type=(name,), **REQUIRED.get(name, {}) | OPTIONS[option])
    if name not in HONOURED[option]:
        with pytest.raises(ValueError, match=f"^{option} does nothing for loss_type {name}: [^\n]+$"):
            check(asked)
        return
    check(asked)
    pairs = Tokens(8, scale=3.0).pairs()
    difference = preference_loss(pairs, asked) - preference_loss(pairs, settings(name))
    assert (difference.abs() > 1e-6).any()


@pytest.mark.parametrize("option", OPTIONS)
def test_a_combination_honours_an_option_as_a_whole(option: str) -> None:
    """Options of every comparison bind all losses but `sft`; the numbers of one loss need that loss alone."""
    taker = next(name for name in ("sigmoid", "discopop", "simpo", "cpo") if name in HONOURED[option])
    check(Settings(loss_type=(taker, "sft"), **OPTIONS[option]))
    mixed = Settings(loss_type=(taker, "orpo"), **OPTIONS[option])
    if option in losses.COMMON:
        with pytest.raises(ValueError, match=f"^{option} does nothing for loss_type orpo: "):
            check(mixed)
    else:
        check(mixed)
    if option != "beta":
        with pytest.raises(
            ValueError, match=f"^{option} does nothing for loss_type orpo, sft|{option} does nothing for loss_type orpo"
        ):
            check(replace(mixed, loss_type=("orpo", "sft")))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"loss_type": ()}, r"loss_type \[\]: choose from sigmoid"),
    ({"loss_type": ("sigmoid", "dpo")}, "loss_type dpo: choose from"),
    ({"beta": 0.0}, "beta 0.0: must be above 0"),
    ({"beta": math.nan}, "beta nan"),
    ({"beta": math.inf}, "beta inf"),
    ({"label_smoothing": 0.5}, r"label_smoothing 0.5: must be in \[0, 0.5\)"),
    ({"label_smoothing": -0.1}, "label_smoothing -0.1"),
    ({"f_divergence_type": "kl"}, "f_divergence_type kl: must be one of reverse_kl, forward_kl"),
    ({"f_alpha_divergence_coef": 0.7}, "f_alpha_divergence_coef does nothing for f_divergence_type reverse_kl"),
    ({"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": math.inf}, "f_alpha_divergence_coef inf"),
    ({"ld_alpha": 1.1}, "ld_alpha 1.1"),
    ({"loss_type": ("simpo",), "simpo_gamma": -1.0}, "simpo_gamma -1.0"),
    ({"loss_type": ("cpo",), "cpo_alpha": -1.0}, "cpo_alpha -1.0"),
    ({"loss_type": ("discopop",), "discopop_tau": 0.0}, "discopop_tau 0.0"),
    ({"loss_weights": (1.0, 2.0)}, "loss_weights: 2 weights for 1 loss types"),
    ({"loss_weights": (0.0,)}, "loss_weights .*: must be all above 0"),
    ({"loss_type": ("robust",)}, "loss_type robust: without label_smoothing"),
    ({"loss_type": ("robust",), "label_smoothing": 0.5}, "label_smoothing 0.5"),
    ({"loss_type": ("exo_pair",)}, "loss_type exo_pair: label_smoothing must be above 0"),
    ({"loss_type": ("exo_pair",), "use_flip_probability": True}, "loss_type exo_pair: label_smoothing must be above 0"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}[^\n]*$"):
        check(Settings(**options))


@pytest.mark.parametrize("name", LOSSES)
def test_who_needs_a_reference(name: str) -> None:
    made = settings(name)
    assert losses.needs_reference(made) == (name not in WITHOUT_REFERENCE)
    without = replace(Tokens().pairs(), ref_logps=None)
    if name in WITHOUT_REFERENCE:
        assert torch.equal(preference_loss(without, made), preference_loss(Tokens().pairs(), made))
        with pytest.raises(ValueError, match=r"^sync_ref_model does nothing for loss_type"):
            check(made, sync_ref_model=True)
    else:
        check(made, sync_ref_model=True)
        with pytest.raises(ValueError, match="the pairs lack ref_logps"):
            preference_loss(without, made)
    assert losses.needs_reference(replace(made, loss_type=(name, "sigmoid")))


@pytest.mark.parametrize("name", sorted(HONOURED["use_flip_probability"]))
def test_each_pair_has_its_own_smoothing(name: str) -> None:
    """The smoothing of all pairs is the least of any."""
    pairs, made = Tokens(9).pairs(), settings(name, label_smoothing=0.01, use_flip_probability=True)
    pairs = replace(pairs, flip_probability=torch.tensor([0.0, 0.005, 0.2, 0.4]))
    each = preference_loss(pairs, made)
    for at, epsilon in enumerate([0.01, 0.01, 0.2, 0.4]):
        alike = preference_loss(pairs, settings(name, label_smoothing=epsilon))
        assert each[at].item() == pytest.approx(alike[at].item(), rel=1e-6)
    with pytest.raises(ValueError, match="the pairs lack flip_probability"):
        preference_loss(replace(pairs, flip_probability=None), made)


def test_flip_probabilities_are_checked_before_training() -> None:
    made = settings("sigmoid", use_flip_probability=True)
    losses.check_flip_probabilities([0.0, 0.3, 0.5], made)
    for wrong in (0.6, -0.1, math.nan):
        with pytest.raises(ValueError, match=f"^pair 2: flip_probability {wrong} is not in"):
            losses.check_flip_probabilities([0.1, wrong], made)
    with pytest.raises(ValueError, match=r"^pair 3: flip_probability 0.5 leaves robust nothing"):
        losses.check_flip_probabilities([0.0, 0.3, 0.5], settings("robust", use_flip_probability=True))


# --- tokens, steps, and what goes on between steps --------------------------------------------------------------------


def test_shared_log_probs_and_weights_of_a_completion_in_many_pairs() -> None:
    """Three completions of 4, 2 and 7 tokens, tokens in no order, all ordered pairs, against loops in plain Python."""
    lengths = [4, 2, 7]
    at = [(owner, place) for owner, length in enumerate(lengths) for place in range(length)]
    order = torch.randperm(len(at), generator=torch.Generator().manual_seed(1)).tolist()
    owner, place = torch.tensor([at[i] for i in order]).T
    logps = (-torch.rand(len(at), dtype=torch.float64)).requires_grad_()
    collision = -torch.rand(len(at), dtype=torch.float64)
    value = {at[i]: (logps[n].item(), collision[n].item()) for n, i in enumerate(order)}
    sides = [(won, lost) for won in range(3) for lost in range(3) if won != lost]
    index: dict[str, Tensor] = {"owner": owner, "pairs": torch.tensor(sides).T, "tokens": torch.tensor(lengths)}

    shared = losses.shared_logps(logps, place=place, **index)
    for pair, both in enumerate(sides):
        for side, completion in enumerate(both):
            first = range(min(lengths[each] for each in both))
            assert shared[side, pair].item() == pytest.approx(sum(value[completion, token][0] for token in first))
    assert torch.autograd.gradcheck(lambda given: losses.shared_logps(given, place=place, **index), logps)

    weights = losses.pair_weights(logps, collision, **index)
    assert not weights.requires_grad
    for pair, both in enumerate(sides):
        aligned = [
            sum(value[each, token][0] - value[each, token][1] for token in range(lengths[each])) / lengths[each] for each in both
        ]
        assert weights[pair].item() == pytest.approx(math.exp(sum(aligned)))


@pytest.mark.parametrize("name", ["sft", "orpo", "cpo"])
def test_micro_batches_add_up_to_the_step(name: str) -> None:
    """When each is told the step's tokens per chosen completion; by itself, each would weigh its own tokens alike."""
    pairs, made = Tokens(4).pairs(), settings(name)
    whole = preference_loss(pairs, made)
    mean = LENGTHS[0].float().mean()

    def part(rows: slice, mean: Tensor | None) -> Tensor:
        cut = PairLogps(pairs.logps[:, rows], None, pairs.tokens[:, rows], mean_chosen_tokens=mean)
        return preference_loss(cut, made)

    parts = [part(slice(at, at + 1), mean) for at in range(4)]
    torch.testing.assert_close(torch.cat(parts), whole)
    assert not torch.allclose(torch.cat([part(slice(at, at + 1), None) for at in range(4)]), whole)


def test_sft_is_the_loss_per_token() -> None:
    pairs = Tokens(4).pairs()
    expected = -pairs.logps[0].sum() / LENGTHS[0].sum()
    assert preference_loss(pairs, settings("sft")).mean().item() == pytest.approx(expected.item())


def test_sft_is_never_weighted() -> None:
    """TRL weights it too; WPO's weights are of pairs, and `sft` compares nothing."""
    pairs = Tokens(4).pairs()
    mixed = preference_loss(pairs, settings("sigmoid", "sft", use_weighting=True))
    apart = preference_loss(pairs, settings("sigmoid", use_weighting=True)) + preference_loss(pairs, settings("sft"))
    torch.testing.assert_close(mixed, apart)
    with pytest.raises(ValueError, match="the pairs lack weight"):
        preference_loss(replace(pairs, weight=None), settings("sigmoid", use_weighting=True))
