"""The local sampler: what it draws is what the model would draw alone, again after a restart, and nothing twice."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig

from conftest import make_causal, make_tokenizer
from tiebreak import models
from tiebreak.recipe import LocalSampling, Model, Recipe
from tiebreak.records import Completion, InputError, Message, Prompt
from tiebreak.samplers.build import build_sampler
from tiebreak.samplers.local import Local

TEXTS = ("hi", "a somewhat longer prompt that goes on", "x" * 70, "tell me now", "why", "b" * 33)
PROMPTS = [Prompt.of((Message(role="user", content=text),), "train") for text in TEXTS]
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 12}


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 differs in its last bits with the batch a row stands in."""
    monkeypatch.setattr(models, "has_bf16", lambda device: False)


@pytest.fixture(scope="module")
def lively(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama whose answers differ: the head is its own, the weights are large."""
    folder = tmp_path_factory.mktemp("lively")
    return make_causal(folder, seed=3, tie_word_embeddings=False, initializer_range=0.3)


def local(folder: Path, label: str = "base", seed: int = 42, **sampling: Any) -> Local:
    return Local(label, Model(name_or_path=str(folder)), LocalSampling(**sampling), seed)


def by_draw(completions: Any) -> dict[tuple[str, int], Completion]:
    return {(each.prompt_id, each.draw): each for each in completions}


def alone(folder: Path, ids: list[int], new: int) -> str:
    """What transformers answers to one prompt without padding, cache tricks or company."""
    apart = AutoConfig.from_pretrained(folder).is_encoder_decoder
    model = (AutoModelForSeq2SeqLM if apart else AutoModelForCausalLM).from_pretrained(folder).eval()
    tokenizer = models.load_tokenizer(Model(name_or_path=str(folder)))
    out = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=new, pad_token_id=tokenizer.pad_token_id)
    answer = out[0, 1 if apart else len(ids) :].tolist()
    end = answer.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in answer else len(answer)
    return str(tokenizer.decode(answer[:end], skip_special_tokens=True))


def ids_of(folder: Path, prompt: Prompt, *, apart: bool = False) -> list[int]:
    tokenizer = models.load_tokenizer(Model(name_or_path=str(folder)))
    return models.prompt_ids(tokenizer, prompt.messages, encoder_decoder=apart)


# --- seeds and restarts --------------------------------------------------------------------------------------------


def test_the_same_seed_draws_the_same(lively: Path) -> None:
    def draw(**other: Any) -> list[Completion]:
        return list(local(lively, **{"n": 3, "max_new_tokens": 8, "batch_size": 6, **other}).sample(PROMPTS))

    first = draw()
    assert len(by_draw(first)) == len(first) == 3 * len(PROMPTS)
    assert draw() == first
    assert {each.text for each in draw(seed=7)} != {each.text for each in first}
    assert {each.text for each in draw(label="other")} != {each.text for each in first}
    assert len({each.text for each in first}) > 10


def test_every_batch_has_a_seed_of_its_own(lively: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds, seeded = list[int](), torch.manual_seed
    monkeypatch.setattr(torch, "manual_seed", lambda seed: seeds.append(seed) or seeded(seed))
    list(local(lively, n=3, max_new_tokens=2, batch_size=6).sample(PROMPTS))
    assert len(set(seeds)) == len(seeds) == len(PROMPTS) / 2


def test_drawing_leaves_the_seed_of_the_process_alone(lively: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    list(local(lively, max_new_tokens=4).sample(PROMPTS[:2]))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("seed", range(4))
def test_a_restart_draws_exactly_what_is_missing(lively: Path, seed: int) -> None:
    settings: dict[str, Any] = {"n": 3, "max_new_tokens": 6, "batch_size": 6}
    whole = by_draw(local(lively, **settings).sample(PROMPTS))
    kept = torch.rand(len(whole), generator=torch.Generator().manual_seed(seed)) < 0.7
    have = frozenset(key for key, keep in zip(whole, kept.tolist(), strict=True) if keep)
    rest = list(local(lively, **settings).sample(reversed(PROMPTS), have))
    assert len(rest) == len(whole) - len(have)
    assert by_draw(rest) == {key: draw for key, draw in whole.items() if key not in have}


def test_no_model_is_loaded_where_nothing_is_owed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "load_model", lambda *_: pytest.fail("loaded"))
    have = frozenset((prompt.id, draw) for prompt in PROMPTS for draw in range(2))
    assert list(local(Path("absent"), n=2).sample(PROMPTS, have)) == []


# --- the same as alone ---------------------------------------------------------------------------------------------


def family(name: str, folder: Path) -> Path:
    tokenizer = make_tokenizer()
    small = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id, "tie_word_embeddings": False,
    }  # fmt: skip
    config = {
        "llama": lambda: transformers.LlamaConfig(**small),
        "mistral": lambda: transformers.MistralConfig(**small, sliding_window=16),
        "lfm2": lambda: transformers.Lfm2Config(**small, layer_types=["conv", "full_attention"]),
        "gpt2": lambda: transformers.GPT2Config(
            vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=128, eos_token_id=2, bos_token_id=1,
            initializer_range=0.3, tie_word_embeddings=False,
        ),
    }[name]()  # fmt: skip
    torch.manual_seed(1)
    with models.quiet():
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2", "lfm2"])
def test_a_shared_prompt_answers_as_it_does_alone(name: str, tmp_path: Path) -> None:
    """Absolute positions, a sliding window shorter than the prompts, and a recurrent state that cannot be shared."""
    folder = family(name, tmp_path)
    expected = {prompt.id: alone(folder, ids_of(folder, prompt), 12) for prompt in PROMPTS}
    assert len(set(expected.values())) == len(PROMPTS)
    for batch_size in (1, 4, 160):
        drawn = local(folder, batch_size=batch_size, **GREEDY).sample(PROMPTS)
        assert {each.prompt_id: each.text for each in drawn} == expected
    # Next to no temperature: each of the draws is the greedy one, of its own prompt.
    drawn = list(local(folder, n=3, temperature=1e-6, max_new_tokens=12, batch_size=9).sample(PROMPTS))
    assert len(drawn) == 3 * len(PROMPTS)
    assert all(each.text == expected[each.prompt_id] for each in drawn)


def test_an_encoder_decoder_answers_as_it_does_alone(tiny_t5: Path) -> None:
    expected = {prompt.id: alone(tiny_t5, ids_of(tiny_t5, prompt, apart=True), 12) for prompt in PROMPTS}
    for batch_size in (1, 160):
        drawn = list(local(tiny_t5, batch_size=batch_size, **GREEDY).sample(PROMPTS))
        assert {each.prompt_id: each.text for each in drawn} == expected
    several = list(local(tiny_t5, n=3, max_new_tokens=8).sample(PROMPTS))
    assert len(by_draw(several)) == 3 * len(PROMPTS)
    assert len({each.text for each in several}) > len(PROMPTS)
    greedy = local(tiny_t5, n=2, temperature=1e-6, max_new_tokens=12).sample(PROMPTS)
    assert all(each.text == expected[each.prompt_id] for each in greedy)


def test_what_a_model_brings_along_changes_nothing(lively: Path, tmp_path: Path) -> None:
    """Beams, penalties and thresholds of a generation_config.json are in no record, so they are not used."""
    folder = tmp_path / "model"
    shutil.copytree(lively, folder)
    GenerationConfig(
        eos_token_id=2, do_sample=True, num_beams=4, repetition_penalty=5.0, no_repeat_ngram_size=1, min_length=100,
        typical_p=0.1, min_p=0.9, temperature=0.1, top_k=1, top_p=0.1,
    ).save_pretrained(folder)  # fmt: skip
    for sampling in (GREEDY, {"n": 2, "temperature": 1.0, "max_new_tokens": 8}):
        assert list(local(folder, **sampling).sample(PROMPTS)) == list(local(lively, **sampling).sample(PROMPTS))


# --- records -------------------------------------------------------------------------------------------------------


def test_where_an_answer_ends(lively: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = models.load_tokenizer(Model(name_or_path=str(lively)))
    a, b, end, pad = (tokenizer.convert_tokens_to_ids(token) for token in ("a", "b", "<|end|>", "<pad>"))
    answers = [[a, b, end, pad], [a, b, a, b], [end, pad, pad, pad], [a, b, a, end]]
    monkeypatch.setattr(Local, "_generate", lambda *_: answers)
    drawn = list(local(lively, label="me", n=4, temperature=0.5, top_p=0.9, top_k=3, max_new_tokens=4).sample(PROMPTS[:1]))
    assert [(each.draw, each.text, each.finish_reason, each.tokens) for each in drawn] == [
        (0, "ab", "stop", 3),
        (1, "abab", "length", 4),
        (2, "", "stop", 1),
        (3, "aba", "stop", 4),
    ]
    assert {each.sampler for each in drawn} == {"me"}
    assert drawn[0].sampling == {"temperature": 0.5, "top_p": 0.9, "top_k": 3, "max_new_tokens": 4}
    assert drawn[0].id == Completion.of(PROMPTS[0].id, "ab", sampler="x").id


def test_every_end_that_the_model_names_ends_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_causal(tmp_path)
    tokenizer = models.load_tokenizer(Model(name_or_path=str(folder)))
    a, b, end = (tokenizer.convert_tokens_to_ids(token) for token in ("a", "b", "<|end|>"))
    asked = []
    monkeypatch.setattr(Local, "_generate", lambda *seen: asked.append(seen) or [[a, b, a, a]])
    for own, text in ((b, "a"), ([b, a], ""), ([], "abaa"), (None, "abaa")):
        GenerationConfig(eos_token_id=own).save_pretrained(folder)
        drawn = next(local(folder, max_new_tokens=4).sample(PROMPTS[:1]))
        assert (drawn.text, drawn.finish_reason) == (text, "length" if text == "abaa" else "stop")
        assert set(asked[-1][3]) == {end, *(own if isinstance(own, list) else [own])} - {None}


def test_drawing_stops_at_every_end(lively: Path) -> None:
    model = models.load_model(Model(name_or_path=str(lively)), torch.float32).eval()
    sampler, ids = local(lively, **GREEDY), ids_of(lively, PROMPTS[0])
    (whole,) = sampler._generate(model, [ids], [], 0, seed=1)
    assert len(whole) == 12
    (short,) = sampler._generate(model, [ids], [whole[4]], 0, seed=1)
    assert short == whole[: whole.index(whole[4]) + 1]


def test_two_samplers_side_by_side(lively: Path) -> None:
    """The legal system's: 0.3/0.8 against 0.8/0.9."""
    recipe = Recipe.model_validate(
        {
            "name": "r",
            "model": {"name_or_path": str(lively)},
            "prompts": {"items": ("a", "b")},
            "generate": tuple(
                {"type": "local", "n": 8, "temperature": temperature, "top_p": top_p, "max_new_tokens": 6}
                for temperature, top_p in ((0.3, 0.8), (0.8, 0.9))
            ),
            "judges": ({"type": "rules", "checks": ({"check": "one_line"},)},),
        }
    )
    cold, warm = (list(build_sampler(section, recipe).sample(PROMPTS)) for section in recipe.generate)
    assert {each.sampler for each in cold} == {"base@0.3/0.8"}
    assert {each.sampler for each in warm} == {"base@0.8/0.9"}
    assert {each.text for each in cold} != {each.text for each in warm}
    assert len({each.id for each in cold}) < len({each.id for each in warm})


# --- prompts that are too long -------------------------------------------------------------------------------------


@pytest.mark.parametrize("new", [15, 20, 31])
def test_a_long_prompt_is_cut_from_the_left_and_that_is_said(
    new: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_causal(tmp_path, seed=3, tie_word_embeddings=False, initializer_range=0.3, max_position_embeddings=32)
    room = 32 - new
    drawn = {each.prompt_id: each.text for each in local(folder, temperature=0.0, max_new_tokens=new).sample(PROMPTS)}
    ids = {prompt.id: ids_of(folder, prompt) for prompt in PROMPTS}
    cut = sum(len(each) > room for each in ids.values())
    said = f"base: {cut} prompts are longer than the model's context; cut from the left to {room} tokens\n"
    assert capsys.readouterr().out == said
    assert drawn == {key: alone(folder, each[-room:], new) for key, each in ids.items()}


def test_an_encoder_has_all_its_positions_for_the_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A BART, whose positions are learnt: one more would be an index error."""
    tokenizer = make_tokenizer(template=None)
    config = transformers.BartConfig(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=32, init_std=0.3,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(2)
    with models.quiet():
        transformers.BartForConditionalGeneration(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    drawn = {each.prompt_id: each.text for each in local(tmp_path, **GREEDY).sample(PROMPTS)}
    assert drawn == {prompt.id: alone(tmp_path, ids_of(tmp_path, prompt, apart=True)[-32:], 12) for prompt in PROMPTS}
    assert "base: 3 prompts are longer than the model's context; cut from the left to 32 tokens" in capsys.readouterr().out


def test_no_room_for_a_prompt_is_one_line(tmp_path: Path) -> None:
    folder = make_causal(tmp_path, max_position_embeddings=32)
    with pytest.raises(InputError, match=r"^base: max_new_tokens 32 leaves no room for a prompt; the model takes 32$"):
        list(local(folder, max_new_tokens=32).sample(PROMPTS))
