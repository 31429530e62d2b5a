"""Adapters: what is saved loads again as what was trained, whatever it was put on."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from conftest import make_causal, make_tokenizer, missing
from test_train_stage import metrics, start
from tiebreak import models
from tiebreak.recipe import Lora, Model
from tiebreak.records import InputError
from tiebreak.run import Run
from tiebreak.stages import check
from tiebreak.stages import train as stage
from tiebreak.stages.train import train

pytestmark = pytest.mark.filterwarnings("ignore:.(is_)?gradient_checkpointing. is deprecated:FutureWarning")

IDS = torch.arange(5, 25)[None]
LORA = {"r": 4}
BUILTIN = "builtin:smollm2-135m-instruct"


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "device", lambda: torch.device("cpu"))


@pytest.fixture
def in_training(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Return what gives the model of the last training, as it stood at its end."""
    kept: list[Any] = []
    held_out = stage._held_out
    monkeypatch.setattr(stage, "_held_out", lambda trainer, **how: kept.append(trainer.model) or held_out(trainer, **how))
    return lambda: kept[-1]


def logits(model: Any) -> torch.Tensor:
    ids = {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model.eval()(input_ids=IDS, **ids).logits


def load(folder: Path | str) -> Any:
    return models.load_model(Model(name_or_path=str(folder)), torch.float32)


def settings(run: Run) -> dict[str, Any]:
    return json.loads((run.tuned / "adapter_config.json").read_text(encoding="utf-8"))


def tune(model: Path | str, path: Path, **lora: Any) -> Run:
    run = start(model, path, learning_rate=1e-2, lora=LORA | lora)  # type: ignore[arg-type]
    train(run)
    return run


def check_saved(run: Run, base: Path, in_training: Callable[[], Any]) -> None:
    """What is loaded answers as what was trained, which is not what its base answers."""
    model = in_training()
    torch.testing.assert_close(logits(load(run.tuned)), logits(model), atol=1e-4, rtol=1e-4)
    assert (logits(load(base)) - logits(model)).abs().max() > 1e-3


# --- saved and loaded ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [{}, {"use_dora": True}, {"use_rslora": True, "lora_alpha": 8}, {"target_modules": ["q_proj"]}], ids=str
)
def test_loads_again(kind: dict[str, Any], tiny: Path, tmp_path: Path, in_training: Callable[[], Any]) -> None:
    run = tune(tiny, tmp_path / "run", **kind)
    check_saved(run, tiny, in_training)
    own = settings(run)
    assert (own["base_model_name_or_path"], own["revision"], own["task_type"]) == (str(tiny), None, "CAUSAL_LM")
    assert (own["r"], own["use_dora"], own["use_rslora"]) == (4, kind.get("use_dora", False), kind.get("use_rslora", False))
    assert metrics(run)[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert {path.name for path in run.tuned.iterdir()} >= {"adapter_config.json", "tokenizer.json"}
    assert not (run.tuned / "README.md").exists()
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(own["base_model_name_or_path"]), run.tuned)
    torch.testing.assert_close(logits(theirs), logits(in_training()), atol=1e-4, rtol=1e-4)


def test_an_encoder_decoder(tiny_t5: Path, tmp_path: Path, in_training: Callable[[], Any]) -> None:
    run = tune(tiny_t5, tmp_path / "run")
    check_saved(run, tiny_t5, in_training)
    assert settings(run)["task_type"] == "SEQ_2_SEQ_LM"


def test_layers_of_another_kind(tmp_path: Path, in_training: Callable[[], Any]) -> None:
    """GPT-2's weights are transposed; PEFT would say so at length."""
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_positions=256, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)
    ).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    check_saved(tune(tmp_path / "gpt2", tmp_path / "run"), tmp_path / "gpt2", in_training)


def test_merged_where_asked(tiny: Path, tmp_path: Path, in_training: Callable[[], Any]) -> None:
    run = tune(tiny, tmp_path / "run", merge=True)
    check_saved(run, tiny, in_training)
    assert {path.name for path in run.tuned.iterdir()} >= {"model.safetensors", "config.json", "tokenizer.json"}
    assert not list(run.tuned.glob("adapter*"))
    plain = AutoModelForCausalLM.from_pretrained(run.tuned)
    torch.testing.assert_close(logits(plain), logits(in_training()), atol=1e-4, rtol=1e-4)
    models.check(Model(name_or_path=str(run.tuned)))


def test_a_builtin_base_is_named_as_in_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_training: Callable[[], Any]
) -> None:
    """The user's cache may be emptied, and is elsewhere on another machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = make_causal(tmp_path / "cache" / "tiebreak" / "models" / "smollm2-135m-instruct")
    run = tune(BUILTIN, tmp_path / "run")
    assert settings(run)["base_model_name_or_path"] == BUILTIN
    check_saved(run, folder, in_training)


def test_a_base_named_from_here_is_found_from_elsewhere(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_training: Callable[[], Any]
) -> None:
    monkeypatch.chdir(tiny.parent)
    run = tune(tiny.name, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    check_saved(run, tiny, in_training)


def test_revision_and_remote_code_are_the_bases(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tune(tiny, tmp_path / "run")
    models.finish_adapter(run.tuned, Model(name_or_path="some/where", revision="v2"), Lora())
    asked: list[Model] = []
    monkeypatch.setattr(models, "load_model", lambda model, dtype: asked.append(model) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        models._load_adapter(Model(name_or_path=str(run.tuned), trust_remote_code=True), torch.float32, in_4bit=False)
    assert asked == [Model(name_or_path="some/where", revision="v2", trust_remote_code=True)]


# --- on top of an earlier one --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def earlier(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tune(tiny, tmp_path_factory.mktemp("runs") / "earlier", use_dora=True).tuned


@pytest.mark.parametrize("merge", [False, True])
def test_on_an_earlier_adapter(merge: bool, earlier: Path, tiny: Path, tmp_path: Path, in_training: Callable[[], Any]) -> None:
    """The earlier one is the reference: training starts at ln 2, and what is saved holds both."""
    run = tune(earlier, tmp_path / "run", merge=merge)
    first = metrics(run)[0]
    assert (first["loss"], first["rewards/chosen"]) == pytest.approx((0.693147, 0.0), abs=1e-5)
    start = torch.stack([logits(load(folder)) for folder in (tiny, earlier)])
    assert (start[0] - start[1]).abs().max() > 1e-2
    check_saved(run, earlier, in_training)
    if not merge:
        assert settings(run)["base_model_name_or_path"] == str(earlier)
        assert models.load_tokenizer(Model(name_or_path=str(run.tuned))).chat_template


def test_a_tokenizer_is_the_bases_where_the_adapter_has_none(earlier: Path, tmp_path: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes((earlier / name).read_bytes())
    assert models.load_tokenizer(Model(name_or_path=str(tmp_path))).pad_token == "<pad>"


# --- in four bits --------------------------------------------------------------------------------------------------


@pytest.fixture
def bitsandbytes() -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        missing("bitsandbytes is missing: pip install 'tiebreak[quant]'")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose every layer has whole blocks of 64 numbers, as bitsandbytes quantises them."""
    return make_causal(tmp_path_factory.mktemp("models") / "wide", hidden_size=64, intermediate_size=128, num_key_value_heads=4)


@pytest.mark.usefixtures("bitsandbytes")
@pytest.mark.parametrize("base", ["a model", "an adapter"])
def test_in_four_bits(
    base: str, wide: Path, tmp_path: Path, in_training: Callable[[], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = wide if base == "a model" else tune(wide, tmp_path / "earlier").tuned
    run = tune(folder, tmp_path / "run", load_in_4bit=True)
    model = in_training()
    assert "exact but slower" not in capsys.readouterr().out, "rounding does not speak against trees"
    kinds = {type(module.base_layer).__name__ for module in model.modules() if hasattr(module, "base_layer")}
    assert kinds == {"Linear4bit"}
    quant = next(module.base_layer.weight for module in model.modules() if hasattr(module, "base_layer")).quant_state
    assert (quant.quant_type, quant.nested) == ("nf4", True)
    assert metrics(run)[0]["loss"] == pytest.approx(0.693147, abs=2e-2)
    assert settings(run)["base_model_name_or_path"] == str(folder)
    # What is loaded is the whole base with what the adapter learned on the rounded one.
    tuned, rounded, whole = (logits(one) for one in (load(run.tuned), model, load(folder)))
    assert (tuned - rounded).abs().mean() < (whole - tuned).abs().mean() / 2
    assert not any("Linear4bit" in type(module).__name__ for module in load(run.tuned).modules())


@pytest.mark.usefixtures("bitsandbytes")
def test_four_bits_merged(wide: Path, tmp_path: Path) -> None:
    run = tune(wide, tmp_path / "run", load_in_4bit=True, merge=True)
    assert "quantization_config" not in json.loads((run.tuned / "config.json").read_text(encoding="utf-8"))
    assert AutoModelForCausalLM.from_pretrained(run.tuned).dtype == torch.float32


def test_bitsandbytes_is_missing(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "bitsandbytes" else find(name, *more))
    run = start(tiny, tmp_path / "run", lora={"load_in_4bit": True})
    with pytest.raises(InputError, match=r"^train.lora.load_in_4bit needs bitsandbytes, .*: pip install 'tiebreak\[quant\]'$"):
        check(run, ["train"])
    run = start(tiny, tmp_path / "other", optim="adamw_bnb_8bit")
    with pytest.raises(InputError, match=r"^train.optim adamw_bnb_8bit needs bitsandbytes, .*: pip install 'tiebreak\[quant\]'$"):
        check(run, ["train"])


# --- what cannot be ------------------------------------------------------------------------------------------------


def test_layers_that_are_not_there(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^lora: Target modules .*nowhere.* not found") as error:
        tune(tiny, tmp_path / "run", target_modules=["nowhere"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("act", [models.check, load], ids=["check", "load"])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base_model_name_or_path": "/no/such/model"}, "an adapter for /no/such/model, which is gone"),
        ({"base_model_name_or_path": None}, "does not say which model it is for"),
    ],
)
def test_a_base_that_is_gone(changes: dict[str, Any], words: str, act: Any, earlier: Path, tmp_path: Path) -> None:
    own = json.loads((earlier / "adapter_config.json").read_text(encoding="utf-8"))
    (tmp_path / "adapter_config.json").write_text(json.dumps(own | changes), encoding="utf-8")
    (tmp_path / "adapter_model.safetensors").write_bytes((earlier / "adapter_model.safetensors").read_bytes())
    with pytest.raises(InputError, match=words) as error:
        act(Model(name_or_path=str(tmp_path)) if act is models.check else tmp_path)
    assert str(error.value).startswith(f"model {tmp_path}: ")
