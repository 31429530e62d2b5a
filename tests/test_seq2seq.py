"""Log-probs and gradients of encoder-decoders equal those of a plain computation with two encoder passes a pair."""

import copy
import socket
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    BlenderbotConfig,
    BlenderbotSmallConfig,
    MarianConfig,
    MT5Config,
    PegasusConfig,
    PreTrainedConfig,
    T5Config,
    UMT5Config,
)

from tiebreak.records import InputError
from tiebreak.training import seq2seq
from tiebreak.training.trees import Example, Ids, grow

pytestmark = pytest.mark.filterwarnings("ignore:.(is_)?gradient_checkpointing(_enable)?. is deprecated:FutureWarning")

PAD, EOS, START = 0, 1, 2
IDS: dict[str, Any] = {"vocab_size": 64, "pad_token_id": PAD, "eos_token_id": EOS, "decoder_start_token_id": START}
T5: dict[str, Any] = {**IDS, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
BART: dict[str, Any] = {
    **IDS, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 16,
    "dropout": 0.0, "bos_token_id": 3, "forced_eos_token_id": None,
}  # fmt: skip
CONFIGS: dict[str, PreTrainedConfig] = {
    "t5": T5Config(**T5, feed_forward_proj="relu"),
    "mt5": MT5Config(**T5, feed_forward_proj="gated-gelu"),
    "umt5": UMT5Config(**T5, feed_forward_proj="gated-gelu"),
    "bart": BartConfig(**BART),
    "blenderbot": BlenderbotConfig(**BART),
    "blenderbot-small": BlenderbotSmallConfig(**BART),
    "marian": MarianConfig(**BART, decoder_vocab_size=64),
    "pegasus": PegasusConfig(**BART),
}
SOME = ["t5", "mt5", "bart", "marian"]
PROMPTS: list[Ids] = [(5, 6, 7, 8, EOS), (9, EOS), (*range(20, 33), EOS)]
SHORT, MIDDLE, LONG = (13, EOS), (10, 11, 12, EOS), (16, 17, 18, 19, 20, EOS)
PAIRS = [
    Example(0, PROMPTS[0], (MIDDLE, SHORT)),
    Example(1, PROMPTS[1], ((14, 15, EOS), SHORT)),
    Example(2, PROMPTS[0], (MIDDLE, LONG)),
    Example(3, PROMPTS[0], (SHORT, LONG)),
    Example(4, PROMPTS[2], ((EOS,), (14, 15, 14, EOS))),
]
WEIGHTS = torch.linspace(-1, 1.5, 2 * len(PAIRS)).view(-1, 2)


def model_of(family: str) -> Any:
    torch.manual_seed(0)
    config = copy.deepcopy(CONFIGS[family])
    model = AutoModelForSeq2SeqLM.from_config(config)
    with torch.no_grad():  # the usual small start would hide a token that looks where it should not
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.normal_()
    return model.eval()


def padded(rows: list[Ids], value: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def plain(model: Any) -> torch.Tensor:
    """Log-probs (pairs, 2): every pair encodes its prompt twice, the model itself shifts the labels."""
    prompts = [pair.prompt for pair in PAIRS]
    mask = padded([(1,) * len(prompt) for prompt in prompts], 0)
    sides = []
    for side in range(2):
        labels = padded([pair.completions[side] for pair in PAIRS], -100)
        logits = model(input_ids=padded(prompts, PAD), attention_mask=mask, labels=labels).logits
        logps = logits.float().log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        sides.append((logps * (labels != -100)).sum(-1))
    return torch.stack(sides, -1)


def row_of() -> dict[str, torch.Tensor]:
    return seq2seq.lay(grow(PAIRS)[0], START)


def sums(row: dict[str, torch.Tensor], logps: torch.Tensor) -> torch.Tensor:
    each = logps.new_zeros(int(row["owner"][-1]) + 1).index_add(0, row["owner"], logps)
    return each[torch.tensor(grow(PAIRS)[1])]


def shared(model: Any) -> torch.Tensor:
    row = row_of()
    return sums(row, seq2seq.encoder_decoder_logps(model, row, False))


def gradients(model: Any, logps: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    (logps * WEIGHTS).sum().backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.requires_grad])


def assert_same_gradients(got: torch.Tensor, want: torch.Tensor) -> None:
    assert want.abs().max() > 0.1
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


def assert_same(model: Any) -> None:
    want, got = plain(model), shared(model)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert_same_gradients(gradients(model, got), gradients(model, want))


def test_every_family_is_tested() -> None:
    assert set(CONFIGS) == seq2seq.FAMILIES


@pytest.mark.parametrize("family", CONFIGS)
def test_equals_two_encoder_passes(family: str) -> None:
    assert_same(model_of(family))


@pytest.mark.parametrize("family", SOME)
def test_another_attention_is_replaced(family: str) -> None:
    model = model_of(family)
    model.set_attn_implementation("eager")
    want = plain(model)
    assert not torch.allclose(shared(model), want, atol=1e-2)
    seq2seq.prepare(model)
    torch.testing.assert_close(shared(model), want, rtol=1e-5, atol=1e-5)


def test_an_untied_output_layer() -> None:
    model = model_of("t5")
    assert model.lm_head.weight is model.shared.weight
    # T5Config's constructor does not honour tie_word_embeddings=False; T5 scales the decoder's output where they are tied.
    model.config.scale_decoder_outputs = False
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    assert_same(model)


def test_prompts_are_encoded_and_completions_decoded_once() -> None:
    row = row_of()
    assert row["input_ids"].tolist() == [token for prompt in PROMPTS for token in prompt]
    decoded = [MIDDLE, SHORT, LONG, (14, 15, EOS), SHORT, (EOS,), (14, 15, 14, EOS)]
    assert row["labels"].tolist() == [token for completion in decoded for token in completion]
    assert row["owner"].bincount().tolist() == [len(completion) for completion in decoded]
    model, seen = model_of("bart"), []
    for stack in (model.get_encoder(), model.get_decoder()):
        stack.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["input_ids"].tolist()), with_kwargs=True)
    seq2seq.encoder_decoder_logps(model, row, False)
    assert seen == [[row["input_ids"].tolist()], [row["decoder_input_ids"].tolist()]]


@pytest.mark.parametrize("family", SOME)
def test_the_model_itself_shifts_so(family: str) -> None:
    row, model = row_of(), model_of(family)
    shifted = [
        model.prepare_decoder_input_ids_from_labels(ids[None])[0] for ids in row["labels"].split(row["owner"].bincount().tolist())
    ]
    assert torch.equal(torch.cat(shifted), row["decoder_input_ids"])


@pytest.mark.parametrize("family", SOME)
@pytest.mark.parametrize("spoil", ["prompt", "prompt_of", "owner", "position_ids", "decoder_position_ids"])
def test_what_tells_them_apart_matters(family: str, spoil: str) -> None:
    model, row = model_of(family), row_of()
    at_work = not ("position" in spoil and family in ("t5", "mt5"))  # T5's positions are relative
    spoilt = row | {spoil: row[spoil].flip(0) if "position" in spoil else torch.zeros_like(row[spoil])}
    gap = (sums(row, seq2seq.encoder_decoder_logps(model, spoilt, False)) - plain(model)).abs().max()
    assert (gap > 1e-2) == at_work


@pytest.mark.parametrize("family", SOME)
def test_collision(family: str) -> None:
    model, row = model_of(family), row_of()
    tokens, collision = seq2seq.encoder_decoder_logps(model, row, True)
    wanted = []
    for tree in grow(PAIRS)[0]:
        for completion in tree.completions:
            logits = model(input_ids=torch.tensor([tree.prompt]), labels=torch.tensor([completion])).logits
            wanted.append(logits[0].log_softmax(-1))
    every = torch.cat(wanted)
    torch.testing.assert_close(collision, (2 * every).logsumexp(-1))
    torch.testing.assert_close(tokens, every.gather(-1, row["labels"][:, None])[:, 0])


@pytest.mark.parametrize("family", SOME)
@pytest.mark.parametrize("dora", [False, True])
def test_lora(family: str, dora: bool) -> None:
    model = get_peft_model(
        model_of(family),
        LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules="all-linear", init_lora_weights=False, use_dora=dora),
    ).eval()
    assert_same(model)


@pytest.mark.parametrize("family", SOME)
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(family: str, reentrant: bool) -> None:
    model = model_of(family)
    want = gradients(model, shared(model))
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    model.train()
    runs: list[int] = []
    first = next(layer for layer in model.get_decoder().modules() if isinstance(layer, torch.nn.Linear))
    first.register_forward_hook(lambda *_: runs.append(1))
    assert_same_gradients(gradients(model, shared(model)), want)
    assert len(runs) == 2  # forward, and once more for the backward pass


@pytest.mark.parametrize("family", SOME)
def test_bf16_autocast_is_close(family: str) -> None:
    model = model_of(family)
    want = shared(model)
    with torch.autocast("cpu", torch.bfloat16):
        got = shared(model)
    assert got.dtype == torch.float32
    assert not torch.equal(got, want)
    torch.testing.assert_close(got, want, rtol=2e-2, atol=0.3)


@pytest.mark.parametrize("family", ["t5", "bart"])
@pytest.mark.parametrize("find_unused", [False, True])
def test_ddp(family: str, find_unused: bool) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    model = model_of(family)
    want = gradients(model, shared(model))
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=find_unused)
        reduced: list[int] = []

        def reduce(_: None, bucket: torch.distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
            done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
            reduced.extend(id(parameter) for parameter in bucket.parameters())
            done.set_result(bucket.buffer() * 2)  # seen below: every gradient went through the reduction
            return done

        wrapped.register_comm_hook(None, reduce)
        got = gradients(wrapped, shared(wrapped))
    finally:
        torch.distributed.destroy_process_group()
    assert len(set(reduced)) == len(list(model.parameters()))
    torch.testing.assert_close(got, 2 * want)


@pytest.mark.parametrize("family", SOME)
def test_the_model_is_left_as_it_was(family: str) -> None:
    model = model_of(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(IndexError):
        seq2seq.encoder_decoder_logps(model, row_of() | {"labels": torch.full((22,), 99)}, False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert set(model.state_dict()) == set(before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    plain(model)


@pytest.mark.parametrize("family", ["t5", "mt5", "umt5"])
def test_half_precision_is_refused_for_t5(family: str) -> None:
    model = model_of(family)
    seq2seq.refuse_half(model)
    with pytest.raises(InputError, match="overflow fp16"):
        seq2seq.refuse_half(model, autocast=True)
    with pytest.raises(InputError, match=f"fp16 with a {family} model"):
        seq2seq.prepare(model.half())


def test_half_precision_is_not_refused_for_others() -> None:
    seq2seq.refuse_half(model_of("bart").half(), autocast=True)


def test_what_is_not_known_is_refused() -> None:
    model = model_of("bart")
    seq2seq.prepare(model)
    model.config.decoder_start_token_id = None
    with pytest.raises(InputError, match="no decoder_start_token_id in its config"):
        seq2seq.prepare(model)
    model.config.model_type = "mbart"
    with pytest.raises(InputError, match="type mbart is not available; take one of bart, "):
        seq2seq.prepare(model)
