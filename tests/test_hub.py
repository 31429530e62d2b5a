"""push and pull: what is sent is what the run holds, is sent once, and says in its card what it is."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard
from safetensors.torch import load_file
from typer.testing import CliRunner

from hub_server import READ_ONLY, TOKEN, Hub, hub_server
from scripted import llm, shorter, typed
from test_export import ASKED, HELD_OUT, finished, rows_of
from tiebreak.cli import app
from tiebreak.exchange import imports
from tiebreak.files import write_json, write_jsonl, write_text
from tiebreak.judges.canaries import canaries
from tiebreak.publish import export as exports
from tiebreak.publish.cards import escaped, known_as
from tiebreak.publish.pull import pull
from tiebreak.publish.push import push
from tiebreak.recipe import Price
from tiebreak.records import Comparison, InputError
from tiebreak.run import Run
from tiebreak.samplers.ledger import Call, Ledger
from tiebreak.stages.pair import pair
from tiebreak.stages.prepare import prepare

pytestmark = pytest.mark.filterwarnings("ignore:.(is_)?gradient_checkpointing. is deprecated:FutureWarning")  # PEFT's
BOTH = ("--dataset", "me/titles", "--model", "me/titles-model")
EVIL = '<img src=x onerror="alert(1)"> | **bold** `code` [a](http://x)\n# head'


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> Run:
    return finished(tmp_path / "made", monkeypatch, tiny)


def environment(home: Path, url: str, token: str | None = TOKEN) -> dict[str, str]:
    """Return what a process needs to take the stand-in for the Hub."""
    known = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    found = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return known | found | ({"HF_TOKEN": token} if token else {})


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """Take a stand-in for the Hub in this process."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.chdir(tmp_path)
    with hub_server() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        yield hub


# --- sent, and loaded back -----------------------------------------------------------------------------------------

LOAD = """
import hashlib, json, sys
from pathlib import Path
import datasets
from transformers import AutoModelForCausalLM, AutoTokenizer
from tiebreak.run import Run
from tiebreak.stages.prepare import prepare
from tiebreak.publish.pull import pull

model = AutoModelForCausalLM.from_pretrained("me/titles-model")
tokenizer = AutoTokenizer.from_pretrained("me/titles-model")
pulled = pull("me/titles", Path(sys.argv[1]))
run = Run.start(Path(sys.argv[1]), Path(sys.argv[2]))
prepare(run)
print(json.dumps({
    "splits": {name: list(table) for name, table in datasets.load_dataset("me/titles").items()},
    "tensors": {name: hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in model.state_dict().items()},
    "ids": tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], return_dict=False),
    "pulled": pulled,
    "prompts": {prompt.text: prompt.split for prompt in run.prompts()},
}))
"""


def test_what_is_pushed_loads_with_identical_content(
    run: Run, online: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoTokenizer

    online.part = 1 << 16
    done = typed(monkeypatch, capsys, "push", str(run.path), *BOTH)
    assert done == (0, f"{online.url}/datasets/me/titles\n{online.url}/me/titles-model\n", "")
    assert max(online.parts.values()) > 1  # the weights went in parts
    back = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path / "pulled.yaml"), str(tmp_path / "again")],
        env=environment(tmp_path / "fresh", online.url, None), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert back.returncode == 0, back.stderr
    found = json.loads(back.stdout.splitlines()[-1])
    for split, pairs in (("train", run.pairs(run.pairs_jsonl)), ("test", run.pairs(run.held_out_pairs_jsonl))):
        assert found["splits"][split] == [{**row, "split": split} for row in rows_of(pairs)]
    weights = load_file(run.tuned / "model.safetensors")
    tensors = {name: hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in weights.items()}
    assert {name: value for name, value in found["tensors"].items() if name != "lm_head.weight"} == tensors  # which is tied
    local = AutoTokenizer.from_pretrained(run.tuned)
    assert found["ids"] == local.apply_chat_template([{"role": "user", "content": "hi"}], return_dict=False)
    assert yaml.safe_load((tmp_path / "pulled.yaml").read_text(encoding="utf-8"))["prompts"]["source"] == "me/titles"
    assert "the split comes along: what was held out is held out" in found["pulled"]
    assert found["prompts"] == dict.fromkeys(ASKED, "train") | dict.fromkeys(HELD_OUT, "test")


def test_an_interrupted_push_goes_on_and_sends_nothing_twice(run: Run, online: Hub, tmp_path: Path, capfd: Any) -> None:
    online.stall_after = 2
    command = [sys.executable, "-m", "tiebreak", "push", str(run.path), *BOTH]
    with subprocess.Popen(command, env=environment(tmp_path / "home", online.url)) as first:
        assert online.stalled.wait(120), first.poll()
        first.send_signal(signal.SIGKILL)
    arrived = dict(online.sent)
    assert len(arrived) == 2
    assert online.repos["models", "me/titles-model"].files == {}
    online.stall_after = None
    online.stalled.clear()
    online.go_on.set()
    push(run, "me/titles", "me/titles-model")
    assert not list(run.path.glob(".push-*"))
    assert set(arrived) < set(online.sent)
    commits = {name: len(repo.commits) for name, repo in online.repos.items()}
    capfd.readouterr()
    push(run, "me/titles", "me/titles-model")
    assert capfd.readouterr().out.count("is there as it is, nothing was sent") == 2
    assert commits == {name: len(repo.commits) for name, repo in online.repos.items()}
    assert set(online.sent.values()) == set(online.committed.values()) == {1}
    weights = online.repos["models", "me/titles-model"].files["model.safetensors"]
    assert weights == (run.tuned / "model.safetensors").read_bytes()


def test_a_dry_run_writes_what_a_push_sends(run: Run, online: Hub, tmp_path: Path) -> None:
    assert push(run, "me/titles", "me/titles-model", folder=tmp_path / "dry") == [
        str(tmp_path / "dry" / kind) for kind in ("dataset", "model")
    ]
    assert online.requests == []
    push(run, "me/titles", "me/titles-model")
    for kind, name in (("dataset", "me/titles"), ("model", "me/titles-model")):
        folder = tmp_path / "dry" / kind
        written = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert online.repos[f"{kind}s", name].files == written
    assert set(written) == {
        "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja",
    }  # fmt: skip


def test_nothing_but_safetensors_and_no_path_of_this_machine(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for name in ("training_args.bin", "optimizer.pt", "modeling_x.py"):
        (run.tuned / name).write_bytes(b"x")
    config = json.loads((run.tuned / "config.json").read_text()) | {"_name_or_path": "/home/me/model"}
    write_json(run.tuned / "config.json", config)
    push(run, "me/titles", "me/titles-model", folder=tmp_path / "dry")
    files = [path for path in (tmp_path / "dry").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".md", ".json", ".jinja", ".safetensors", ".parquet"}
    for path in files:
        data = path.read_bytes()
        assert TOKEN.encode() not in data, path
        assert str(tmp_path).encode() not in data, path
        assert b"/home/me" not in data, path


def test_what_is_stale_goes_and_what_is_the_users_stays(run: Run, online: Hub, tmp_path: Path) -> None:
    push(run, None, "me/titles-model")
    repo = online.repos["models", "me/titles-model"]
    repo.files |= {
        "adapter_config.json": b"{}",
        "model-00001-of-00002.safetensors": b"x",
        "notes.md": b"mine",
        "gguf/model.safetensors": b"y",
    }
    push(run, None, "me/titles-model")
    assert {"notes.md", "gguf/model.safetensors", "model.safetensors"} < set(repo.files)
    assert not {"adapter_config.json", "model-00001-of-00002.safetensors"} & set(repo.files)


def test_private_stays_private(run: Run, online: Hub) -> None:
    push(run, "me/titles", None, private=True)
    assert online.repos["datasets", "me/titles"].private
    push(run, "me/open", None)
    assert not online.repos["datasets", "me/open"].private
    commits = len(online.repos["datasets", "me/open"].commits)
    with pytest.raises(InputError, match="dataset me/open: is there already and is public; make it private on the Hub"):
        push(run, "me/open", None, private=True)
    assert len(online.repos["datasets", "me/open"].commits) == commits


# --- cards ---------------------------------------------------------------------------------------------------------


def cards(run: Run, tmp_path: Path, **options: Any) -> tuple[str, str]:
    push(run, "me/titles", "me/titles-model", folder=tmp_path / "dry", **options)
    return tuple((tmp_path / "dry" / kind / "README.md").read_text(encoding="utf-8") for kind in ("dataset", "model"))  # type: ignore[return-value]


def test_the_cards_say_what_it_is_and_how_it_was_judged(run: Run, tmp_path: Path) -> None:
    dataset, model = cards(run, tmp_path)
    told, summary = DatasetCard(dataset), json.loads(run.summary_json.read_text(encoding="utf-8"))
    assert told.data.to_dict()["configs"][0]["data_files"] == [
        {"split": "train", "path": "data/train.parquet"}, {"split": "test", "path": "data/test.parquet"},
    ]  # fmt: skip
    assert told.data.license == "unknown"
    assert told.data.size_categories == ["n<1K"]
    assert "9 preference pairs for training and 2 that were held out" in told.text
    assert re.search(r"\| ties \| 0\.\d\d \(0\.\d\d–0\.\d\d\), n = \d+ \|", told.text)
    assert re.search(r"\| contradicts itself after a swap \| 0\.00 \(0\.00–0\.\d\d\), n = \d+ \|", told.text)
    assert "by these criteria:\n\n```text\nShort is good.\n```" in told.text
    for part in ('load_dataset("me/titles")', "## Limits", "## Licence", "## Citation", "- **pair**: 9 of 9 pairs usable"):
        assert part in told.text, part
    card = ModelCard(model)
    assert card.data.datasets == ["me/titles"]
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-generation")
    (wins, *_) = card.data.eval_results or []
    assert wins.metric_value == round(summary["win_rate"]["rate"], 4)
    assert re.search(
        r"judged by llm, which made the labels too \(95 % interval [\d.]+ to [\d.]+, n = 4 comparisons\)", wins.metric_name or ""
    )
    assert summary["verdict"]["sentence"] in card.text
    for part in (
        "| Win rate over base | – |", "| beta | 0.1 |", "| step | loss | held-out loss |", "| 3 | 0.670 | 0.660 | 0.500 |",
        'AutoTokenizer.from_pretrained("me/titles-model")', "made the labels too: that it wins", "rafailov2023direct",
    ):  # fmt: skip
        assert part in card.text, part


def test_equal_runs_make_equal_cards(run: Run, tmp_path: Path) -> None:
    assert cards(run, tmp_path / "one") == cards(run, tmp_path / "other")


def test_a_licence_that_is_named_is_in_both(run: Run, online: Hub, tmp_path: Path) -> None:
    for card in cards(run, tmp_path, license="cc-by-4.0"):
        assert "\nlicense: cc-by-4.0\n" in card
        assert "No licence was named" not in card
    with pytest.raises(InputError, match="dataset me/titles: the Hub does not take it: license 'mine' is not one"):
        push(run, "me/titles", None, license="mine")


def test_text_stays_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    assert escaped(EVIL) == (
        r'\<img src=x onerror="alert(1)"\> \| \*\*bold\*\* \`code\` \[a\](http://x) \# head'
    )  # fmt: skip
    rules = {"type": "rules", "checks": [{"check": "length", "max": 5, "name": EVIL}]}
    criteria = llm("llm", criteria=f"Short.\n```\n{EVIL}\n")
    made = finished(
        tmp_path / "made", monkeypatch, tiny, judges=[criteria, rules], pair={"judge": "llm"}, evaluate={"n": 2, "judge": "llm"}
    )
    Ledger(made.calls_sqlite, "judges.llm", Price(input=2.0, output=4.0)).reserve(Call(1000, 500))
    dataset, model = cards(made, tmp_path)
    for card in (dataset, model):
        assert re.search(r"\| agreement with the labelling judge \| – \| (κ|all the same)", card)
        assert "What it cost: judges.llm: \\$0.004, 1 calls" in card
        body = card.split("\n---\n", 1)[1]
        outside = re.sub(r"(?ms)^(`{3,}).*?^\1$", "", body)
        assert "````text" in body
        assert "<img" not in outside.replace(r"\<img", "")
        assert "\n# head" not in outside


def test_figures_of_the_report_go_along(run: Run, tmp_path: Path) -> None:
    run.figures.mkdir()
    for name in ("loss.png", "outcome.png", "loss.svg"):
        (run.figures / name).write_bytes(b"x")
    _, model = cards(run, tmp_path)
    assert "![outcome](figures/outcome.png)\n![loss](figures/loss.png)" in model
    assert sorted(path.name for path in (tmp_path / "dry" / "model" / "figures").iterdir()) == ["loss.png", "outcome.png"]


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", ("Qwen/Qwen2.5-0.5B-Instruct", None)),
        ("builtin:smollm2-135m-instruct", ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")),
        ("/models/mine", (None, None)),
        ("./mine", (None, None)),
        ("gpt2", ("gpt2", None)),
        ("a/b/c", (None, None)),
    ],
)
def test_models_that_others_have_are_named(name: str, known: tuple[str | None, str | None]) -> None:
    assert known_as(name) == known


# --- adapters ------------------------------------------------------------------------------------------------------


@pytest.fixture
def adapted(tmp_path: Path, tiny: Path) -> Callable[[Run, str], Run]:
    """Put an adapter in place of a run's model."""

    def put(run: Run, base: str) -> Run:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM, AutoTokenizer

        shutil.rmtree(run.tuned)
        adapter = get_peft_model(
            AutoModelForCausalLM.from_pretrained(tiny),
            LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False),
        )
        adapter.save_pretrained(run.tuned)
        AutoTokenizer.from_pretrained(tiny).save_pretrained(run.tuned)
        config = json.loads((run.tuned / "adapter_config.json").read_text()) | {"base_model_name_or_path": base}
        write_json(run.tuned / "adapter_config.json", config)
        return run

    return put


def test_an_adapter_names_its_base_as_others_know_it(run: Run, adapted: Any, tmp_path: Path) -> None:
    adapted(run, "builtin:smollm2-135m-instruct")
    _, model = cards(run, tmp_path)
    folder = tmp_path / "dry" / "model"
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert (folder / "adapter_model.safetensors").is_file()
    assert ModelCard(model).data.library_name == "peft"
    assert 'AutoPeftModelForCausalLM.from_pretrained("me/titles-model")' in model


def test_an_adapter_for_a_local_model_is_merged_or_stays(run: Run, adapted: Any, tiny: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from tiebreak.models import load_model
    from tiebreak.recipe import Model

    adapted(run, str(tiny))
    with pytest.raises(InputError, match="which is on this machine alone; push it with --merged"):
        cards(run, tmp_path)
    push(run, None, "me/titles-model", "merged", folder=tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged" / "model")
    expected = load_model(Model(name_or_path=str(run.tuned)), torch.float32)
    for name, value in expected.state_dict().items():
        assert torch.equal(value, merged.state_dict()[name]), name
    assert not torch.equal(
        merged.model.layers[0].mlp.up_proj.weight, AutoModelForCausalLM.from_pretrained(tiny).model.layers[0].mlp.up_proj.weight
    )
    assert str(tiny) not in (tmp_path / "merged" / "model" / "config.json").read_text(encoding="utf-8")


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ((), "push: name where to: --dataset OWNER/NAME, --model OWNER/NAME, or both"),
        (("--dataset", "titles"), "--dataset titles: name its owner too, as in owner/titles"),
        (("--model", "me/a b"), "--model me/a b: Repo id must use alphanumeric chars"),
        (("--dataset", "me/a/b"), "--dataset me/a/b: Repo id must be in the form"),
        (("--dataset", "me/x", "--merged"), "--merged is about the model; name where to with --model OWNER/NAME"),
        (("--model", "me/x", "--merged", "--adapter"), "push: --adapter or --merged, not both"),
        (("--model", "me/x", "--adapter"), "trained all weights, so there is no adapter; leave --adapter out"),
        (("--model", "me/x", "--dry-run", "full"), "--dry-run full: is there already; name an empty or new folder"),
    ],
)
def test_mistakes_are_one_line(
    options: tuple[str, ...],
    line: str,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    assert line in typed(monkeypatch, capsys, "push", str(run.path), *options).mistake


def test_a_run_that_trained_nothing_has_pairs_to_push(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    run = finished(tmp_path / "made", monkeypatch)
    said = typed(monkeypatch, capsys, "push", str(run.path), *BOTH, "--dry-run", str(tmp_path / "dry")).mistake
    assert said == f"{run.path}: no model was trained (train is owed), so there is none to push; leave --model out"
    assert push(run, "me/titles", None, folder=tmp_path / "dry") == [str(tmp_path / "dry" / "dataset")]
    write_jsonl(run.pairs_jsonl, [])
    with pytest.raises(InputError, match="has no pairs to push; run `tiebreak pair` first"):
        push(run, "me/titles", None, folder=tmp_path / "other")


def test_failed_canaries_are_not_pushed_unless_accepted_and_then_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path
) -> None:
    real = {text for texts in (*ASKED.values(), *HELD_OUT.values()) for text in texts}

    def sees(first: str, second: str) -> str:
        """Tell garbage from what was answered."""
        return shorter(first, second) if {first, second} <= real else "first" if first in real else "second"

    run = finished(tmp_path / "made", monkeypatch, tiny, decide=sees, judges=[llm("llm", canaries=2)])
    flown = canaries(run.prompts(), run.draws(), 2, run.recipe.seed)
    wrong = [
        Comparison(
            prompt_id=each.match.prompt.id, first=each.match.first.id, second=each.match.second.id, judge="llm", winner="first"
        )
        for each in flown
    ]
    write_jsonl(run.canaries("llm"), wrong)
    with pytest.raises(InputError, match="llm failed canaries, so nothing of this run is pushed"):
        push(run, "me/titles", None, folder=tmp_path / "dry")
    assert not (tmp_path / "dry").exists()
    run.accept_canary_failures()
    for card in cards(run, tmp_path):
        assert "**Read this first:** llm failed questions whose answer is known" in card
        assert "(failed)" in card


def test_what_looks_like_a_key_is_not_made_public(run: Run, online: Hub, tmp_path: Path) -> None:
    finding = {"code": "secret", "severity": "warning", "count": 2, "of": 11, "sentence": "A key.", "what_to_do": "Revoke it."}
    write_json(run.audit_json, {"pairs": 11, "findings": [finding]})
    with pytest.raises(InputError, match="the audit found what looks like a key or a password in 2 pairs"):
        push(run, "me/titles", None)
    push(run, "me/titles", None, private=True)
    assert b"- warning: A key. Revoke it." in online.repos["datasets", "me/titles"].files["README.md"]


@pytest.mark.parametrize(
    ("token", "name", "line"),
    [
        (None, "me/x", "no token for the Hub: run `hf auth login`, or set HF_TOKEN in the environment or in .env"),
        ("hf_wr ong", "me/x", "HF_TOKEN: holds spaces or signs that no token has; copy it again"),
        ("hf_wrong", "me/x", "dataset me/x: the Hub does not know this token; run `hf auth login`, or set another HF_TOKEN"),
        (READ_ONLY, "me/x", "this token may not do that (You don't have the rights to write here)"),
        (TOKEN, "somebody-else/x", "take one that may write there, or another id"),
    ],
)
def test_tokens_that_will_not_do(
    token: str | None,
    name: str,
    line: str,
    run: Run,
    online: Hub,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
    said = typed(monkeypatch, capsys, "push", str(run.path), "--dataset", name).mistake
    assert line in said
    assert token is None or token not in said


def test_a_token_may_stand_in_env_file(run: Run, online: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    write_text(Path(".env"), f"HF_TOKEN={TOKEN}\n")
    assert push(run, "me/titles", None) == [f"{online.url}/datasets/me/titles"]


@pytest.mark.parametrize(
    ("broken", "line"),
    [
        ({"HF_HUB_OFFLINE": True}, "dataset me/titles: HF_HUB_OFFLINE is set, so the Hub is not asked; unset it"),
        ({"ENDPOINT": "http://127.0.0.1:9"}, "check the network, and run it again to go on"),
    ],
)
def test_no_network_is_one_line(broken: dict[str, Any], line: str, run: Run, online: Hub, monkeypatch: Any, capsys: Any) -> None:
    for name, value in broken.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    assert line in typed(monkeypatch, capsys, "push", str(run.path), "--dataset", "me/titles").mistake


def test_a_text_of_the_library_never_carries_the_token(run: Run, online: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise OSError(f"header Bearer {TOKEN} broke")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", broken)
    with pytest.raises(InputError, match="header Bearer … broke"):
        push(run, "me/titles", None)


def test_an_error_of_the_server_is_told(run: Run, online: Hub) -> None:
    online.stall_after = 0
    online.go_on.set()
    with pytest.raises(InputError, match="dataset me/titles: the Hub answers 409: stalled; run it again to go on"):
        push(run, "me/titles", None)


# --- pull ----------------------------------------------------------------------------------------------------------


def test_pulled_pairs_are_split_as_they_were(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    push(run, "me/titles", None, folder=tmp_path / "dry")
    recipe = tmp_path / "pulled.yaml"
    lines = pull(str(tmp_path / "dry" / "dataset"), recipe)
    assert lines[0] == f"{recipe}: edit it, then run: tiebreak run {recipe}"
    assert any("flip_probability comes along" in line for line in lines)
    assert any("they were made for a model that is not on the Hub" in line for line in lines)
    again = Run.start(recipe, tmp_path / "again")
    again.perform("prepare", prepare)
    pair(again)
    for path in ("pairs_jsonl", "held_out_pairs_jsonl"):
        was, now = (each.pairs(getattr(each, path)) for each in (run, again))
        assert [(each.prompt, each.chosen, each.rejected, each.flip_probability) for each in now] == [
            (each.prompt, each.chosen, each.rejected, each.flip_probability) for each in was
        ]
    assert again.recipe.seed == run.recipe.seed
    push(again, "me/again", None, folder=tmp_path / "twice")
    card = (tmp_path / "twice" / "dataset" / "README.md").read_text(encoding="utf-8")
    assert "The pairs came ready-made with their source; their labels are the source's." in card


def test_pairs_of_others_are_pulled_without_their_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import Dataset

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for split in ("train", "test"):
        rows = [{"prompt": f"{split} {at}", "chosen": "a", "rejected": "b"} for at in range(4)]
        Dataset.from_list(rows).to_parquet(tmp_path / "others" / "data" / f"{split}.parquet")
    lines = pull(str(tmp_path / "others"), tmp_path / "pulled.yaml")
    assert any("split test is left alone" in line for line in lines)
    assert any("nothing says for which model they were made" in line for line in lines)
    again = Run.start(tmp_path / "pulled.yaml", tmp_path / "again", overrides=("prompts.test_fraction=0.5",))
    again.perform("prepare", prepare)
    assert {each.text.split()[0] for each in again.prompts()} == {"train"}


def test_what_a_stranger_wrote_does_nothing_but_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    write_text(tmp_path / "theirs" / "train.jsonl", '{"prompt": "q", "chosen": "a", "rejected": "b"}\n')
    train = {"beta": 0.2, "report_to": ["wandb"], "trainer_args": {"push_to_hub": True}, "made_up": 1}
    write_json(tmp_path / "theirs" / "tiebreak.json", {"model": "/etc", "seed": 3, "train": train, "judges": [{"type": "human"}]})
    pull(str(tmp_path / "theirs"), tmp_path / "pulled.yaml")
    made = yaml.safe_load((tmp_path / "pulled.yaml").read_text(encoding="utf-8"))
    assert (made["train"], made["seed"]) == ({"beta": 0.2}, 3)
    assert made["model"] == {"name_or_path": "builtin:smollm2-135m-instruct"}
    assert made.keys() == {"model", "prompts", "seed", "train"}
    write_json(tmp_path / "theirs" / "tiebreak.json", {"train": {"beta": "high"}})
    with pytest.raises(InputError, match=r"tiebreak.json: train.beta: input should be a valid number"):
        pull(str(tmp_path / "theirs"), tmp_path / "other.yaml")
    assert not (tmp_path / "other.yaml").exists()


@pytest.mark.parametrize(
    ("source", "recipe", "line"),
    [
        ("nowhere", "r.yaml", "pull nowhere: name its owner too, as in owner/nowhere"),
        ("me/gone", "r.yaml", "dataset me/gone: there is no such repository, or this token may not see it"),
        ("folder", "r.yaml", "folder: has no column chosen, so these are no pairs; there is prompt"),
        ("folder", "there.yaml", "there.yaml: is there already; name another file"),
        ("folder", "r.txt", "r.txt: name a .yaml file in a folder that is there"),
    ],
)
def test_what_cannot_be_pulled(
    source: str,
    recipe: str,
    line: str,
    online: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "train.jsonl").write_text('{"prompt": "q"}\n')
    (tmp_path / "there.yaml").write_text("mine: true\n")
    assert line in typed(monkeypatch, capsys, "pull", source, recipe).mistake
    assert (tmp_path / "there.yaml").read_text() == "mine: true\n"


# --- docs ----------------------------------------------------------------------------------------------------------

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_names_every_option() -> None:
    page = (DOCS / "hub.md").read_text(encoding="utf-8")
    shown = CliRunner().invoke(app, ["push", "--help"], env={"COLUMNS": "200"}).output
    assert set(re.findall(r"^\| `(--[\w-]+)", page, re.M)) == set(re.findall(r"--[\w-]+", shown)) - {"--help"}


def test_the_page_names_every_format() -> None:
    out, back = (DOCS / "formats.md").read_text(encoding="utf-8").split("## In")
    for part, formats in ((out, exports.Format), (back, imports.Format)):
        assert tuple(re.findall(r"^\| `([\w-]+)`", part, re.M)) == get_args(formats)
