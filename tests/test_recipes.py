"""The five recipes: every offline profile goes through all its stages, and every full form resolves."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from tiebreak.cli import app
from tiebreak.files import read_json
from tiebreak.loops.search import search
from tiebreak.loops.variants import variants
from tiebreak.recipe import Endpoint, LlmJudge, Model, Recipe, Section
from tiebreak.recipe_yaml import SHIPPED, load_recipe, parse_yaml, validate_recipe
from tiebreak.reporting.repeated import read_loop
from tiebreak.run import Run
from tiebreak.samplers.api import PRESETS
from tiebreak.samplers.prices import price_of
from tiebreak.stages import check, perform
from tiebreak.tiny import TINY_T5

pytestmark = pytest.mark.usefixtures("modules_are_no_garbage")

NAMES = ("legal-flan-t5", "human-like", "youtube-titles", "truthful-qwen", "lima-judge-vs-pairrm")
EMBEDDED = "builtin:smollm2-135m-instruct"
DESIGN = {
    "legal-flan-t5": {"google/flan-t5-small", "gemini", "coastalcph/lex_glue"},
    "human-like": {"google-t5/t5-small", "openai-community/gpt2", "HumanLLMs/Human-Like-DPO-Dataset"},
    "youtube-titles": {"Qwen/Qwen2.5-0.5B-Instruct", "together", "gemini"},
    "truthful-qwen": {"Qwen/Qwen2-0.5B-Instruct", "jondurbin/truthy-dpo-v0.1"},
    "lima-judge-vs-pairrm": {"meta-llama/Llama-3.2-1B-Instruct", "GAIR/lima", "gemini", "llm-blender/PairRM-hf"},
}
"""Models, data sets and providers that a full form is made of."""


def text(name: str) -> str:
    return (SHIPPED / f"{name}.yaml").read_text(encoding="utf-8")


def recipe(name: str, profile: str | None = None) -> Recipe:
    return load_recipe(SHIPPED / f"{name}.yaml", profile)


def each(name: str, profile: str | None = None) -> list[Recipe]:
    """Return a recipe, and those of its variants."""
    whole = recipe(name, profile)
    data = whole.model_dump(mode="json")
    return [whole, *(validate_recipe(replaced(data, keys), name) for keys in whole.variants.values())]


def replaced(data: Any, keys: dict[str, Any]) -> Any:
    """Return a tree with other values under dotted keys, in another way than the package has."""
    data = json.loads(json.dumps(data))
    for key, value in keys.items():
        *path, last = key.split(".")
        at = data
        for part in path:
            at = at[part]
        at[last] = value
    return {**data, "variants": {}}


def parts(section: Any) -> list[Section]:
    """Return every section in a recipe."""
    inner = section if isinstance(section, tuple) else [getattr(section, key) for key in type(section).model_fields]
    found = [part for one in inner if isinstance(one, Section | tuple) for part in parts(one)]
    return [section, *found] if isinstance(section, Section) else found


# --- full forms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_full_form_is_made_of_what_the_design_names(name: str) -> None:
    found: set[str] = set()
    for one in each(name):
        for part in parts(one):
            found |= {part.provider} if isinstance(part, Endpoint) else set()
            found |= {part.name_or_path} if isinstance(part, Model) else set()
        sources = [section.source for section in (one.prompts, one.pretrain, one.sft) if section is not None]
        found |= {source for source in sources if source and "/" in source}
    assert found == DESIGN[name]
    hub = [one for one in found if "/" in one]
    assert all(re.fullmatch(r"[\w-]+/[\w.-]+", one) for one in hub)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("profile", [None, "offline"])
def test_its_files_are_there_and_its_providers_known(name: str, profile: str | None, tmp_path: Path) -> None:
    run = Run.start(SHIPPED / f"{name}.yaml", tmp_path / "run", profile)
    for one in each(name, profile):
        for section in (one.prompts, one.pretrain, one.sft):
            if section and section.source and section.source not in DESIGN[name]:
                assert run.resolve(section.source).is_file(), section.source
        for part in parts(one):
            if isinstance(part, LlmJudge):
                assert run.resolve(part.criteria).is_file(), part.criteria
            if isinstance(part, Endpoint):
                assert part.provider in PRESETS
                assert price_of(part) is not None, f"{part.provider} {part.model} has no price"
                assert part.budget_usd is not None, f"{part.provider} {part.model} has no budget"


@pytest.mark.parametrize("name", NAMES)
def test_the_offline_profile_needs_no_network_and_goes_through_the_same_stages(name: str, tmp_path: Path) -> None:
    for one in each(name, "offline"):
        for part in parts(one):
            assert not isinstance(part, Endpoint)
            assert not isinstance(part, Model) or part.name_or_path in (EMBEDDED, TINY_T5)
    full, offline = (Run.start(SHIPPED / f"{name}.yaml", tmp_path / str(profile), profile) for profile in (None, "offline"))
    assert offline.stages == full.stages
    assert list(offline.recipe.variants) == list(full.recipe.variants)
    assert bool(offline.recipe.search) == bool(full.recipe.search)
    assert offline.recipe.evaluate is not None
    assert full.recipe.evaluate is not None
    assert offline.recipe.evaluate.names == full.recipe.evaluate.names
    assert len(offline.recipe.judges) == len(full.recipe.judges)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_recipe_comments_out_is_valid_too(name: str) -> None:
    data = {"name": name, **parse_yaml(text(name), name)}
    blocks = re.findall(r"(?m)^((?:  )?# (?:judges:|- \{).*\n(?:(?:  )?# .*\n)*)", text(name))
    for block in blocks:
        more = parse_yaml(re.sub(r"(?m)^(  )?# ", r"\1", block), name)
        changes = more if isinstance(more, dict) else {"judges": [*data["judges"], *more]}
        assert any(isinstance(judge, LlmJudge) for judge in validate_recipe(data | changes, name).judges)
    assert bool(blocks) == (name in ("human-like", "truthful-qwen"))


def commands() -> list[list[str]]:
    """Return the commands that recipes and their pages name, as words."""
    root = Path(__file__).parents[1]
    files = [path for name in NAMES for path in (SHIPPED / f"{name}.yaml", root / "docs" / "recipes" / f"{name}.md")]
    lines = [line for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    return [shlex.split(found[1], comments=True) for line in lines if (found := re.match(r"(?:#  |   ) +tiebreak (.+)", line))]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_the_commands_that_it_names_exist(words: list[str]) -> None:
    command = get_command(app).commands[words[0]]  # type: ignore[attr-defined]
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options
    shipped = [word for word in words[1:] if word in NAMES]
    overrides = tuple(word for word in words[1:] if "=" in word and not word.startswith("-"))
    if shipped:
        profile = words[words.index("--profile") + 1] if "--profile" in words else None
        load_recipe(SHIPPED / f"{shipped[0]}.yaml", profile, overrides)


# --- offline profiles ----------------------------------------------------------------------------------------------

SMALLER: dict[str, tuple[str, ...]] = {
    "legal-flan-t5": (
        *("prompts.write.n=18", "prompts.filters={}", "pretrain.num_train_epochs=1", "sft.num_train_epochs=1"),
        "judges.0.checks=[{check: length, max: 60}]",  # of bytes, which are all that it writes
    ),
    "human-like": ("prompts.filters.random=16", "evaluate.max_new_tokens=8"),
    "youtube-titles": ("prompts.filters.random=10", "train.num_train_epochs=1", "evaluate.n=1"),
    "truthful-qwen": ("prompts.filters.first=20", "search.space={train.beta: [0.1, 0.3]}"),
    "lima-judge-vs-pairrm": (
        *("prompts.filters.random=15", "train.num_train_epochs=1", "evaluate.n=1"),
        *("judges.0.checks=[{check: length, max: 60}]", "judges.1.checks=[{check: length, min: 61}]"),  # its words are bytes
    ),
}
"""Less of the same, where it would take long."""


@pytest.fixture
def offline(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that starts a recipe's offline profile with a tiny model in place of the embedded one."""
    monkeypatch.chdir(tmp_path)

    def start(name: str) -> Run:
        path = tmp_path / f"{name}.yaml"
        path.write_text(text(name).replace(EMBEDDED, str(tiny)).replace("epochs: 60", "epochs: 2"), encoding="utf-8")
        return Run.start(path, None, "offline", SMALLER[name])

    return start


def go_through(run: Run) -> Run:
    with run.lock():
        check(run, run.stages)
        for stage in run.stages:
            perform(run, stage)
    return run


def test_legal_flan_t5(offline: Any) -> None:
    run = go_through(offline("legal-flan-t5"))
    assert {"pretrain", "sft", "train"} < set(run.stages)
    assert {prompt.meta["topic"] for prompt in run.prompts()} <= set(run.recipe.prompts.write.topics)
    assert {draw.sampler for draw in run.draws()} == {"careful", "daring"}
    assert run.counts("pair")["train"]["usable"]
    config = read_json(run.tuned / "config.json")
    assert (config["model_type"], config["is_encoder_decoder"]) == ("t5", True)
    summary = read_json(run.summary_json)
    assert summary["models"] == ["base", "sft", "tuned"]
    assert len(summary["head_to_head"]) == 3
    found = read_json(run.audit_json)["findings"]
    assert any(one["code"] == "few_prompts" or "cannot show" in one["sentence"] for one in found)
    assert run.report_html.exists()


def test_human_like(offline: Any) -> None:
    run = offline("human-like")
    with run.lock():
        loop = variants(run)
    assert [row.name for row in loop.rows] == ["t5-base", "gpt2-base", "t5", "gpt2"]
    kinds = {name: read_json(run.path / "variants" / name / "train" / "model" / "config.json") for name in ("t5", "gpt2")}
    assert {name: config["model_type"] for name, config in kinds.items()} == {"t5": "t5", "gpt2": "llama"}
    assert all(row.numbers["accuracy"]["n"] for row in loop.rows[2:])
    assert len(read_json(run.summary_json)["head_to_head"]) == 6


def test_youtube_titles(offline: Any) -> None:
    run = go_through(offline("youtube-titles"))
    pairs = [*run.pairs(run.pairs_jsonl), *run.pairs(run.held_out_pairs_jsonl)]
    assert pairs
    assert run.counts("pair")["train"]["attempted"] == 80  # ten of each of eight ideas
    sides = [{pair.provenance["prompt_id"] for pair in run.pairs(path)} for path in (run.pairs_jsonl, run.held_out_pairs_jsonl)]
    assert not sides[0] & sides[1]
    assert run.results_csv.read_text(encoding="utf-8").startswith("prompt_id,prompt,base,tuned,verdict,reason")


def test_truthful_qwen(offline: Any) -> None:
    run = offline("truthful-qwen")
    search(run)
    loop = read_loop(run)
    assert loop is not None
    assert [row.settings for row in loop.rows[:2]] in (
        [{"train.beta": 0.1}, {"train.beta": 0.3}],
        [{"train.beta": 0.3}, {"train.beta": 0.1}],
    )
    winner = Run(run.path / "winner")
    for pair in [*winner.pairs(winner.pairs_jsonl), *winner.pairs(winner.held_out_pairs_jsonl)]:
        texts = [pair.prompt[-1].content, pair.chosen[-1].content, pair.rejected[-1].content]
        assert all(30 <= len(one) <= 300 for one in texts)


def test_lima_judge_vs_pairrm(offline: Any) -> None:
    run = offline("lima-judge-vs-pairrm")
    with run.lock():
        loop = variants(run)
    assert [row.name for row in loop.rows] == ["base", "judge", "pairrm"]
    for name in ("judge", "pairrm"):
        assert (run.path / "variants" / name / "train" / "model" / "adapter_config.json").is_file()
    summary = read_json(run.summary_json)
    assert {row["model"] for row in summary["ratings"]} == {"base", "judge", "pairrm"}
    assert summary["judge"] == "both"


# --- the data that is shipped --------------------------------------------------------------------------------------


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (SHIPPED / "offline" / name).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", ["truthful.jsonl", "human-like.jsonl"])
def test_neither_answer_is_told_by_its_length(name: str) -> None:
    apart = [len(row["chosen"]) - len(row["rejected"]) for row in rows(name)]
    longer = sum(each > 0 for each in apart) / len(apart)
    assert 0.3 < longer < 0.7


def test_the_filters_have_something_to_do(offline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SMALLER, "truthful-qwen", ())
    run = offline("truthful-qwen")
    with run.lock():
        assert perform(run, "prepare")["dropped"] == {"too short": 1, "too long": 1, "duplicate": 1}
