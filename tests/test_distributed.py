"""Two processes, started by `accelerate launch` with the shipped configurations, train as one process does."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from safetensors.torch import load_file
from typer.testing import CliRunner

import launched
from launched import DDP, FSDP2, SCENARIOS, SPOKEN
from test_train_stage import metrics, start
from tiebreak import models
from tiebreak.cli import app
from tiebreak.files import appending, write_json
from tiebreak.progress import progress, say
from tiebreak.recipe import Model
from tiebreak.recipe_yaml import SHIPPED
from tiebreak.records import Logged
from tiebreak.run import Run
from tiebreak.training import base, head

pytestmark = [
    pytest.mark.usefixtures("modules_are_no_garbage"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),  # PEFT asks for it
]

CONFIGS = SHIPPED / "accelerate"
Known = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tiny: Path, tiny_t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    (folder / "causal").symlink_to(tiny)
    (folder / "t5").symlink_to(tiny_t5)
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Known]:
    """Return what one process comes to; a scenario is performed once."""
    out, done = tmp_path_factory.mktemp("alone"), dict[str, Known]()

    def known(name: str) -> Known:
        if name not in done:
            for one in ("model", name) if name == "resumed" and "model" not in done else (name,):
                launched.perform(one, folder, out)
                done[one] = torch.load(out / f"{one}-0.pt")
        return done[name]

    return known


@pytest.fixture(scope="module")
def launch(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Start two processes on this machine's processor, once: to import everything takes longer than all their trainings.

    They train models that are cut in two, then copies, then as a stage of a recipe, and at last one of them fails.
    """
    out = tmp_path_factory.mktemp("launch")
    ready(start(folder / "causal", out / "run", num_train_epochs=2))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / "fsdp2.yaml")]
    own = {"CUDA_VISIBLE_DEVICES": "", "XDG_CACHE_HOME": str(out / "cache")}
    return out, subprocess.run(
        [*command, str(launched.__file__), str(folder), str(out)],
        env=os.environ | own, check=False, capture_output=True, encoding="utf-8", timeout=100,
    )  # fmt: skip


def ready(run: Run) -> Run:
    """Mark as done what comes before training."""
    run.manifest["stages"] = {stage: {"state": "done", "counts": {}} for stage in run.stages[: run.stages.index("train")]}
    write_json(run.manifest_json, run.manifest)
    return run


def of(launch: tuple[Path, subprocess.CompletedProcess[str]], kind: str, name: str) -> tuple[Known, Known]:
    """Return what both processes know."""
    out, ended = launch[0] / kind, launch[1]
    assert (out / f"{name}-1.pt").exists(), ended.stderr[-4000:]
    return torch.load(out / f"{name}-0.pt"), torch.load(out / f"{name}-1.pt")


def check_same(one: Known, two: Known, tolerance: float = 1e-4) -> None:
    for name in ("logged", "weights"):
        torch.testing.assert_close(two[name], one[name], atol=tolerance, rtol=tolerance)
    assert len(one["evaluations"]) == len(two["evaluations"]) == 2
    for before, now in zip(one["evaluations"], two["evaluations"], strict=True):
        names = {name for name in before if "per_second" not in name and "runtime" not in name}
        assert len(names) >= 6
        assert {name: now[name] for name in names} == pytest.approx({name: before[name] for name in names}, abs=10 * tolerance)
    rewards = [torch.tensor([pair for group in known["rewards"] for pair in group]) for known in (one, two)]
    torch.testing.assert_close(*rewards, atol=tolerance, rtol=tolerance)


# --- the same training ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DDP)
def test_copies_train_as_one_process(name: str, alone: Callable[[str], Known], launch: Any) -> None:
    first, second = of(launch, "ddp", name)
    check_same(alone(name), first)
    assert torch.equal(first["weights"], second["weights"])
    assert first["kind"] == "DistributedType.MULTI_CPU"


@pytest.mark.parametrize("name", FSDP2)
def test_a_model_cut_in_two_trains_as_one(name: str, alone: Callable[[str], Known], launch: Any) -> None:
    first, _ = of(launch, "fsdp2", name)
    check_same(alone(name), first, 3e-3 if name == "bf16" else 1e-4)
    assert first["kind"] == "DistributedType.FSDP"


def test_what_makes_it_hard_is_there(alone: Callable[[str], Known], launch: Any) -> None:
    """Steps in which processes have different numbers of rows, and a last one in which only the first has pairs."""
    first, second = of(launch, "ddp", "model")
    assert any(one != other for one, other in zip(first["rows"], second["rows"], strict=True))
    assert len(first["rows"]) == len(alone("model")["rows"]) == 8
    assert alone("model")["logged"].shape == (8, 2)
    assert alone("resumed")["logged"].shape == (8, 2)
    assert [line["eval_rows"] for line in first["evaluations"]] == [5, 5]


def test_the_reference_is_shared_out(alone: Callable[[str], Known], launch: Any) -> None:
    first, second = of(launch, "ddp", "model")
    assert (alone("model")["asked"], first["asked"], second["asked"]) == ([15], [8], [7])
    one, two, other = (dict(known["reference"]) for known in (alone("model"), first, second))
    assert one.keys() == two.keys() == other.keys()
    for key, tokens in one.items():
        torch.testing.assert_close(two[key], tokens, atol=1e-5, rtol=1e-5)
        assert torch.equal(two[key], other[key])
    again, _ = of(launch, "ddp", "accumulated")
    assert again["asked"] == [], "the cache holds both shares"


def test_a_layer_cut_in_two_is_computed_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    class FSDPLinear(torch.nn.Linear):
        """What `fully_shard` makes of a layer's class."""

    layer, calls, forward = FSDPLinear(4, 8), [], head._Head.forward
    monkeypatch.setattr(head._Head, "forward", lambda *given: calls.append(1) or forward(*given))
    head.token_logps(layer, torch.randn(3, 4), torch.tensor([0, 1, 2]), torch.tensor([5, 6, 7]))
    assert calls


# --- what is written and said --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model", "adapter"])
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_the_saved_model_loads(name: str, kind: str, folder: Path, alone: Any, launch: Any) -> None:
    of(launch, kind, name)
    place = launch[0] / kind / name / "saved"
    saved = models.load_model(Model(name_or_path=str(place)), torch.float32).eval()
    if name == "model":
        weights = torch.cat([weight.flatten() for weight in saved.parameters()])
        torch.testing.assert_close(weights, alone(name)["weights"], atol=1e-4, rtol=1e-4)
    else:
        ids = torch.tensor([[10, 20, 30]])
        before = launched.load(folder / "causal").eval()
        assert (saved(ids).logits - before(ids).logits).abs().max() > 1e-3


def test_one_of_them_speaks(launch: Any) -> None:
    _, ended = launch
    assert ended.stdout.count(SPOKEN) == 1, ended.stderr[-4000:]


def test_one_of_them_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    write_json(tmp_path / "one.json", {})
    with appending(tmp_path / "lines.jsonl") as append, progress("train", 1, "steps") as advance:
        append(Logged(step=1))
        advance(1)
    say("nothing")
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


def test_a_recipe_is_trained_by_several(launch: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, ended = launch
    monkeypatch.setattr(models, "device", lambda: torch.device("cpu"))
    monkeypatch.setitem(base.ROW_TOKENS, "cpu", 1)
    run = ready(start(folder / "causal", tmp_path / "run", num_train_epochs=2, per_device_train_batch_size=8))
    assert CliRunner().invoke(app, ["train", str(run.path)]).exit_code == 0
    several = Run(out / "run")
    assert several.state("train") == "done", ended.stderr[-4000:]
    assert ended.stdout.count("steps on 16 pairs") == 1
    names = ("step", "loss", "grad_norm", "rewards/margins")
    lines = [[line[name] for name in names] for line in metrics(run) if line["loss"] is not None]
    assert [[line[name] for name in names] for line in metrics(several) if line["loss"] is not None] == [
        pytest.approx(line, abs=1e-4) for line in lines
    ]
    assert (out / "run" / "train" / "held_out.jsonl").read_text(encoding="utf-8").count("\n") == 3
    ours, theirs = (load_file(place.tuned / "model.safetensors") for place in (run, several))
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(theirs[name], weight, atol=1e-4, rtol=1e-4)


def test_one_that_fails_ends_all(launch: Any) -> None:
    _, ended = launch
    assert ended.returncode != 0
    assert "tiebreak: step 1: the loss of dataset row" in ended.stderr
    assert not any(line.startswith("tiebreak: ") and "loss" not in line for line in ended.stderr.splitlines())


@pytest.mark.parametrize("command", ["run", "prepare", "judge", "evaluate"])
def test_other_commands_are_one_process(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(Exception, match="accelerate launch is for pretrain, sft, train"):
        CliRunner().invoke(app, [command, "demo"], catch_exceptions=False)


# --- configurations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations(path: Path) -> None:
    """Every key is one that accelerate knows, at the top and below."""
    config = load_config_from_file(str(path))
    assert config.num_processes == 2
    options = {action.dest for action in launch_command_parser()._actions}
    assert {*config.fsdp_config, *config.deepspeed_config} <= options


def test_every_way_is_shipped() -> None:
    assert {path.stem for path in CONFIGS.iterdir()} == {"ddp", "fsdp2", "zero2", "zero3"}
    assert set(DDP) | set(FSDP2) == set(SCENARIOS)
