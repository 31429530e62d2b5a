"""Log-probs over trees equal those of two padded sequences; where they would not, no tree is used."""

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from tiebreak.training import trees
from tiebreak.training.logps import TREE_FAMILIES, completion_logps, layout, takes_trees

SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
FAMILIES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SMALL),
    "qwen2": Qwen2Config(**SMALL),
    "qwen3": Qwen3Config(**SMALL, head_dim=8),
    "gpt2": GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    ),
}  # fmt: skip
FOREST = [
    trees.Tree((1, 5, 6, 7), ((8, 9, 10, 2), (11, 2), (8, 9, 12, 13, 14, 2))),
    trees.Tree((1, 20), ((21, 22, 2), (2,))),
    trees.Tree((1, *range(30, 42)), ((43, 2), (44, 45, 2))),
]
WEIGHTS = torch.linspace(-1, 1, 7)


def model_of(config: PreTrainedConfig, attention: str = "sdpa") -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    with torch.no_grad():  # the usual small start would hide a token that looks where it should not
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.3)
    return model.eval()


def by_hand(model: PreTrainedModel) -> torch.Tensor:
    """Two plain sequences a pair: no padding, no mask, the whole log-softmax."""
    logps = []
    for tree in FOREST:
        for completion in tree.completions:
            ids = torch.tensor([[*tree.prompt, *completion]])
            every = torch.log_softmax(model(input_ids=ids).logits.float(), -1)[0]
            logps.append(sum(every[at - 1, ids[0, at]] for at in range(len(tree.prompt), ids.shape[1])))
    return torch.stack(logps)


def gradient(model: PreTrainedModel, logps: torch.Tensor) -> torch.Tensor:
    return torch.cat([grad.flatten() for grad in torch.autograd.grad((logps * WEIGHTS).sum(), list(model.parameters()))])


def test_every_family_is_tested() -> None:
    assert set(FAMILIES) == TREE_FAMILIES


@pytest.mark.parametrize("row_tokens", [8, 26, trees.ROW_TOKENS], ids=["a tree a row", "two in a row", "all in a row"])
@pytest.mark.parametrize("family", FAMILIES)
def test_trees_equal_two_sequences(family: str, row_tokens: int) -> None:
    model = model_of(FAMILIES[family])
    assert takes_trees(model.config)
    hand = by_hand(model)
    tree = completion_logps(model, trees.pack(FOREST, row_tokens))
    padded = completion_logps(model, [trees.pad(FOREST, 0)])
    assert tree.dtype == torch.float32
    assert tree.shape == (7,)
    torch.testing.assert_close(tree, hand, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(padded, hand, atol=1e-5, rtol=1e-5)
    expected = gradient(model, hand)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(gradient(model, tree), expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-4)
    torch.testing.assert_close(gradient(model, padded), expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_mask_and_the_positions_are_needed(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(FAMILIES[family])
    with torch.no_grad():
        hand = by_hand(model)
        running = [{**row, "position_ids": torch.arange(len(row["input_ids"]))} for row in trees.pack(FOREST)]
        assert (completion_logps(model, running) - hand).abs().max() > 1e-2
        causal = lambda tree, _: torch.ones(1, 1, len(tree), len(tree), dtype=torch.bool).tril()  # noqa: E731
        monkeypatch.setattr(trees, "tree_mask", causal)
        assert (completion_logps(model, trees.pack(FOREST)) - hand).abs().max() > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_eager_attention_takes_no_tree(family: str) -> None:
    """It adds the mask to its scores, so that truth values would let every token look everywhere."""
    model = model_of(FAMILIES[family], "eager")
    with torch.no_grad():
        hand = by_hand(model)
        assert (completion_logps(model, trees.pack(FOREST)) - hand).abs().max() > 1e-3
        rows = layout(FOREST, tree=takes_trees(model.config), pad_id=0)
        torch.testing.assert_close(completion_logps(model, rows), hand, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(**SMALL, sliding_window=4),
        Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=4),
        Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=4, max_window_layers=1),
    ],
    ids=lambda config: config.model_type,
)
def test_a_sliding_window_takes_no_tree(config: PreTrainedConfig) -> None:
    model = model_of(config)
    assert not takes_trees(model.config)
    rows = layout(FOREST, tree=takes_trees(model.config), pad_id=0)
    with torch.no_grad():
        hand = by_hand(model)
        torch.testing.assert_close(completion_logps(model, rows), hand, atol=1e-5, rtol=1e-5)
        assert (completion_logps(model, trees.pack(FOREST)) - hand).abs().max() > 1e-3, "a tree would have been wrong"


@pytest.mark.parametrize("attention", ["flash_attention_2", "flash_attention_3", "flex_attention"])
def test_other_attention_takes_no_tree(attention: str) -> None:
    config = LlamaConfig(**SMALL)
    config._attn_implementation = "sdpa"
    assert takes_trees(config)
    config._attn_implementation_internal = attention  # the library itself would ask for the package
    assert not takes_trees(config)


def test_layouts() -> None:
    assert [set(row) for row in layout(FOREST, tree=False, pad_id=0)] == [{"input_ids", "attention_mask", "completion_mask"}]
    assert all("owner" in row for row in layout(FOREST, tree=True, pad_id=0))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_in_bf16_the_sum_is_still_fp32(family: str) -> None:
    model = model_of(FAMILIES[family])
    with torch.no_grad():
        hand = by_hand(model)
        with torch.autocast("cpu", torch.bfloat16):
            for rows in (trees.pack(FOREST), [trees.pad(FOREST, 0)]):
                logps = completion_logps(model, rows)
                assert logps.dtype == torch.float32
                assert (logps - hand).abs().max() < 0.05 * hand.abs().max()
