"""The shelf: each model is loaded once, when it is asked for; memory decides what stays; what is missing is one line."""

from __future__ import annotations

import json
import math
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from conftest import make_causal
from scripted import start
from tiebreak import models
from tiebreak.app import shelf as module
from tiebreak.app.shelf import Shelf, models_of, named, weight
from tiebreak.recipe import Endpoint, Model
from tiebreak.records import InputError
from tiebreak.run import Run
from tiebreak.samplers import local

GIB = 1 << 30


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "device", lambda: torch.device("cpu"))
    monkeypatch.setattr(models, "has_bf16", lambda device: False)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the models that were loaded, in their order."""
    names: list[str] = []
    load = local.load
    monkeypatch.setattr(local, "load", lambda model: names.append(Path(model.name_or_path).name) or load(model))
    return names


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[Model]:
    folder = tmp_path_factory.mktemp("three")
    return [Model(name_or_path=str(make_causal(folder / name, seed=at))) for at, name in enumerate("abc")]


def use(shelf: Shelf, model: Model) -> None:
    with shelf.borrow(model):
        pass


# --- loading -------------------------------------------------------------------------------------------------------


def test_nothing_is_loaded_before_it_is_asked_for_and_nothing_twice(loads: list[str], three: list[Model]) -> None:
    shelf = Shelf()
    assert loads == []
    assert three[0] not in shelf
    with shelf.borrow(three[0]) as first, shelf.borrow(three[0]) as again:
        assert first.model is again.model
        assert not first.model.training
        assert first.stops == [first.tokenizer.eos_token_id]
    with shelf.borrow(three[0].model_copy()) as later:
        assert later.model is first.model
    use(shelf, three[1])
    assert loads == ["a", "b"]
    assert three[0] in shelf


def test_who_asks_while_it_loads_waits_for_that_one(
    loads: list[str], three: list[Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf, found, begun, go = Shelf(), list[Any](), threading.Event(), threading.Event()
    load = local.load
    monkeypatch.setattr(local, "load", lambda model: begun.set() or (go.wait(30) and load(model)))

    def ask() -> None:
        with shelf.borrow(three[0]) as loaded:
            found.append(loaded.model)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert begun.wait(30)
    go.set()
    for thread in threads:
        thread.join(60)
    assert len(found) == 4
    assert len({id(each) for each in found}) == 1
    assert loads == ["a"]


def test_what_was_trained_anew_is_loaded_anew_and_the_old_one_goes(loads: list[str], tmp_path: Path) -> None:
    folder = make_causal(tmp_path / "model")
    model, shelf = Model(name_or_path=str(folder)), Shelf()
    with shelf.borrow(model) as loaded:
        old = weakref.ref(loaded.model)
    del loaded
    make_causal(tmp_path / "other", seed=5)
    (folder / "model.safetensors").write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    with shelf.borrow(model) as loaded:
        weights = load_file(folder / "model.safetensors")
        assert torch.equal(loaded.model.get_input_embeddings().weight, weights["model.embed_tokens.weight"])
    assert loads == ["model", "model"]
    assert old() is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("./absent", "model ./absent: no such folder"),
        ("builtin:gpt", "no such builtin model; there is builtin:smollm2-135m-instruct"),
        ("someone/nothing", "neither a local folder nor loadable from the Hub"),
        ("<img src=x onerror=alert(1)>", "neither a local folder nor loadable from the Hub"),
    ],
)
def test_a_model_that_is_missing_is_one_line_and_the_shelf_goes_on(three: list[Model], name: str, said: str) -> None:
    shelf = Shelf()
    with pytest.raises(InputError) as error:
        use(shelf, Model(name_or_path=name))
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    use(shelf, three[0])
    assert three[0] in shelf


def test_weights_that_cannot_be_read_are_one_line(three: list[Model], tmp_path: Path) -> None:
    folder = make_causal(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="model"):
        use(Shelf(), Model(name_or_path=str(folder)))


# --- memory --------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_what_a_model_takes_is_what_its_files_hold(
    three: list[Model], tiny_t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = sum(each.numel() for each in load_file(Path(three[0].name_or_path) / "model.safetensors").values())
    assert weight(three[0]) == 4 * count
    monkeypatch.setattr(models, "has_bf16", lambda device: True)
    assert weight(three[0]) == 2 * count
    monkeypatch.undo()
    base = AutoModelForCausalLM.from_pretrained(three[0].name_or_path)
    base.save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    monkeypatch.setattr(models, "has_bf16", lambda device: False)
    monkeypatch.setattr(models, "device", lambda: torch.device("cpu"))
    assert weight(Model(name_or_path=str(tmp_path / "parts"))) == 4 * count
    policy = get_peft_model(base, LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"]))
    policy.save_pretrained(tmp_path / "adapter")
    own = sum(each.numel() for each in load_file(tmp_path / "adapter" / "adapter_model.safetensors").values())
    assert weight(Model(name_or_path=str(tmp_path / "adapter"))) == 4 * (count + own)


def test_a_model_of_the_hub_is_weighed_by_what_the_hub_says_and_by_nothing_where_it_says_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Told:
        parameter_count = {"F32": 3, "BF16": 4}  # noqa: RUF012

    monkeypatch.setattr("huggingface_hub.get_safetensors_metadata", lambda name, revision: Told())
    assert weight(Model(name_or_path="someone/nothing")) == 4 * 7
    monkeypatch.setattr("huggingface_hub.get_safetensors_metadata", lambda name, revision: 1 / 0)
    assert weight(Model(name_or_path="someone/nothing")) == 0


@pytest.fixture
def small(three: list[Model], monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Shelf]:
    """Return what makes a shelf with room for so many of the models."""
    monkeypatch.setattr(module, "SPARE", 0)
    each = weight(three[0])

    def make(room: float) -> Shelf:
        shelf = Shelf(lambda: int(each * (room - len(shelf._held))))
        return shelf

    return make


def test_the_one_that_was_not_asked_for_longest_makes_room(
    loads: list[str], three: list[Model], small: Callable[[float], Shelf]
) -> None:
    a, b, c = three
    shelf = small(2)
    for model in (a, b, a, c):
        use(shelf, model)
    assert loads == ["a", "b", "c"]
    assert [a in shelf, b in shelf, c in shelf] == [True, False, True]
    use(shelf, b)
    assert [a in shelf, b in shelf, c in shelf] == [False, True, True]
    assert loads == ["a", "b", "c", "b"]


def test_no_more_goes_than_has_to(three: list[Model], small: Callable[[float], Shelf]) -> None:
    shelf = small(3)
    for model in three:
        use(shelf, model)
    assert all(model in shelf for model in three)


def test_what_goes_is_no_longer_in_memory(three: list[Model], small: Callable[[float], Shelf]) -> None:
    shelf = small(1)
    with shelf.borrow(three[0]) as loaded:
        loaded.model.__dict__["itself"] = loaded.model  # as some models do
        gone = weakref.ref(loaded.model)
    del loaded
    use(shelf, three[1])
    assert gone() is None


def test_a_model_that_answers_stays_and_who_finds_no_room_is_told(three: list[Model], small: Callable[[float], Shelf]) -> None:
    a, b, c = three
    shelf = small(2)
    use(shelf, b)
    with shelf.borrow(a), shelf.borrow(a):
        use(shelf, c)  # b went, though a was borrowed first
        assert [a in shelf, b in shelf, c in shelf] == [True, False, True]
        with shelf.borrow(c), pytest.raises(InputError, match=r"takes 0\.\d MiB|takes \d+ MiB") as error:
            use(shelf, b)
        assert "what else is loaded is answering" in str(error.value)
        assert "\n" not in str(error.value)
    use(shelf, b)
    use(shelf, c)
    assert a not in shelf


def test_a_model_that_never_fits_unloads_the_others_first_and_is_told(
    three: list[Model], small: Callable[[float], Shelf]
) -> None:
    shelf = small(0.5)
    with pytest.raises(InputError, match="close other programs, or choose a smaller model") as error:
        use(shelf, three[0])
    assert "answering" not in str(error.value)


def test_there_is_something_to_spare(three: list[Model]) -> None:
    needed = weight(three[0]) + module.SPARE
    use(Shelf(lambda: needed), three[0])
    with pytest.raises(InputError, match="takes 256 MiB of memory, and 256 MiB is free"):
        use(Shelf(lambda: needed - 1), three[0])


def test_who_fails_to_load_leaves_nothing_lent(three: list[Model], monkeypatch: pytest.MonkeyPatch) -> None:
    shelf, load = Shelf(), local.load
    monkeypatch.setattr(local, "load", lambda model: (_ for _ in ()).throw(RuntimeError("no room\nat all")))
    with pytest.raises(InputError, match=r"cannot be loaded: no room$"):
        use(shelf, three[0])
    monkeypatch.setattr(local, "load", load)
    use(shelf, three[0])
    assert three[0] in shelf


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 8 * GIB),
        ({"max": "max\n", "current": "1\n", "stat": "inactive_file 1\n"}, 8 * GIB),
        ({"max": f"{4 * GIB}\n", "current": f"{3 * GIB}\n", "stat": f"anon 5\ninactive_file {GIB}\n"}, 2 * GIB),
        ({"max": f"{40 * GIB}\n", "current": "0\n", "stat": "inactive_file 0\n"}, 8 * GIB),
    ],
)
def test_a_container_may_have_less_than_the_machine(
    files: dict[str, str], free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / f"memory.{name}").write_text(text)
    monkeypatch.setattr(module, "CGROUP", tmp_path)

    class Memory:
        available = 8 * GIB

    monkeypatch.setattr("psutil.virtual_memory", Memory)
    assert module.free_memory() == free


def test_memory_is_told() -> None:
    assert 0 < module.free_memory() < math.inf


# --- which models there are ----------------------------------------------------------------------------------------


def folder_of(path: Path, *, whole: bool = True) -> Path:
    path.mkdir(parents=True)
    if whole:
        (path / "complete").touch()
    return path


def test_a_run_offers_what_it_has_made_and_what_its_recipe_names(tmp_path: Path) -> None:
    run = start(
        tmp_path,
        model={"name_or_path": "org/base", "revision": "v1", "trust_remote_code": True},
        generate=[
            {"type": "local", "n": 1},
            {"type": "local", "name": "other", "model": {"name_or_path": "org/other"}},
            {"type": "api", "provider": "openai", "model": "gpt-4.1", "n": 2, "temperature": 0.5, "budget_usd": 1.0},
        ],
        evaluate={
            "models": [
                "base", "tuned", {"type": "api", "name": "mine", "provider": "vllm", "model": "m"},
                {"type": "local", "name": "else", "model": {"name_or_path": "org/else"}},
                {"type": "api", "name": "here", "provider": "local", "model": "org/here"},
            ]
        },
    )  # fmt: skip
    assert list(models_of(run)) == ["base", "other", "gpt-4.1", "m", "else", "org/here"]
    for step in (9, 10, 100):
        folder_of(run.train / f"checkpoint-{step}")
    folder_of(run.train / "checkpoint-200", whole=False)
    folder_of(run.training("sft").model)
    folder_of(run.tuned)
    found = models_of(run)
    assert list(found)[:6] == ["base", "sft", "tuned", "checkpoint-9", "checkpoint-10", "checkpoint-100"]
    assert "checkpoint-200" not in found
    assert found["base"] == run.recipe.model
    assert found["tuned"] == Model(name_or_path=str(run.tuned.resolve()), trust_remote_code=True)
    assert found["gpt-4.1"] == Endpoint(provider="openai", model="gpt-4.1", budget_usd=1.0)
    assert found["else"] == found["org/here"].model_copy(update={"name_or_path": "org/else"})


def test_a_run_without_evaluate_offers_its_own(tmp_path: Path) -> None:
    assert list(models_of(start(tmp_path, evaluate=None))) == ["base"]


@pytest.mark.parametrize(
    ("typed", "model"),
    [
        ("org/name", Model(name_or_path="org/name")),
        (" ~/models/mine ", Model(name_or_path="~/models/mine")),
        ("builtin:smollm2-135m-instruct", Model(name_or_path="builtin:smollm2-135m-instruct")),
        ("openai: gpt-4.1", Endpoint(provider="openai", model="gpt-4.1")),
        ("ollama:  llama3:8b", Endpoint(provider="ollama", model="llama3:8b")),
        (
            "http://127.0.0.1:8000/v1: org/name",
            Endpoint(provider="custom", base_url="http://127.0.0.1:8000/v1", model="org/name"),
        ),
    ],
)
def test_what_is_typed_in(typed: str, model: Any) -> None:
    assert named(typed) == model


@pytest.mark.parametrize(
    ("typed", "why"),
    [
        ("demo: tuned", "starts with http:// or https://"),
        ("local: org/name", "starts with http:// or https://"),
        ("custom: org/name", "needs base_url"),
        ("https://user:secret@host/v1: m", "holds a user, a password or a query"),
    ],
)
def test_what_is_typed_in_wrongly(typed: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        named(typed)


def test_no_key_goes_to_an_address_that_was_typed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    from tiebreak.samplers.api import read_key

    for name in ("OPENAI_API_KEY", "GEMINI_API_KEY"):
        monkeypatch.setenv(name, "secret")
    section = named("http://evil.example/v1: m")
    assert isinstance(section, Endpoint)
    assert read_key(section) is None


def test_a_key_that_a_recipe_names_goes_where_the_recipe_says(tmp_path: Path) -> None:
    own = {"provider": "custom", "base_url": "https://mine.example/v1", "api_key_env": "MINE", "model": "m"}
    run: Run = start(tmp_path, generate=[{"type": "api", "n": 1, **own}])
    assert json.loads(models_of(run)["m"].model_dump_json(exclude_defaults=True)) == own
