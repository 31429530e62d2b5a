"""The recipe: what YAML means, and one line for every mistake."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tiebreak.recipe import LlmJudge, Recipe, RulesJudge, Section
from tiebreak.recipe_yaml import SHIPPED, find_recipe, load_recipe, outline, parse_yaml, validate_recipe
from tiebreak.records import InputError

RULES = {"type": "rules", "checks": [{"check": "length", "max": 9}, {"check": "one_line"}]}
API = {"type": "api", "provider": "gemini", "model": "m"}
LLM = {"type": "llm", "name": "gemini", "provider": "gemini", "model": "m", "criteria": "be short"}
BASE: dict[str, Any] = {
    "name": "x",
    "model": {"name_or_path": "m"},
    "prompts": {"items": ["a", "b"]},
    "generate": [{"type": "local"}, API],
    "judges": [RULES],
    "train": {"lora": {"r": 4}},
}


def with_value(dotted: str, value: Any) -> dict[str, Any]:
    """Return BASE with a value at `dotted`, set in another way than the package does."""
    data = copy.deepcopy(BASE)
    *path, last = [int(part) if part.isdigit() else part for part in dotted.split(".")]
    at: Any = data
    for part in path:
        at = at.setdefault(part, {}) if isinstance(at, dict) else at[part]
    at[last] = value
    return data


def refusal(dotted: str, value: Any) -> str:
    with pytest.raises(InputError) as caught:
        validate_recipe(with_value(dotted, value), "r.yaml")
    return str(caught.value)


def write(folder: Path, data: Any, name: str = "r.yaml") -> Path:
    path = folder / name
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data), encoding="utf-8")
    return path


def load_refusal(path: Path, profile: str | None = None, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load_recipe(path, profile, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- mistakes ------------------------------------------------------------------------------------------------------

MISTAKES = [
    # unknown keys, with the nearest known one
    ("modle", 1, "modle: unknown key; did you mean 'model'?"),
    ("train.bta", 1, "train.bta: unknown key; did you mean 'beta'?"),
    ("train.lora.lora_alfa", 1, "train.lora.lora_alfa: unknown key; did you mean 'lora_alpha'?"),
    ("prompts.filters.max_chars", 1, "prompts.filters.max_chars: unknown key; did you mean 'max_characters'?"),
    ("generate.0.temprature", 1, "generate.0.temprature: unknown key; did you mean 'temperature'?"),
    ("judges.0.checks.0.maxi", 1, "judges.0.checks.0.maxi: unknown key; did you mean 'max'?"),
    ("generate.0.base_url", "http://h", "generate.0.base_url: unknown key"),  # of another type of sampler
    ("colour", 1, "colour: unknown key"),
    ("train.beta\nx", 1, "train.beta x: unknown key; did you mean 'beta'?"),
    # wrong types
    ("train.beta", "0.1", "train.beta: input should be a valid number"),
    ("train.beta", True, "train.beta: input should be a valid number"),
    ("seed", True, "seed: input should be a valid integer"),
    ("seed", 1.5, "seed: input should be a valid integer"),
    ("seed", "1", "seed: input should be a valid integer"),
    ("prompts.items", [True], "prompts.items.0: input should be a valid string"),
    ("prompts.items", "a", "prompts.items: input should be a valid array"),
    ("prompts.system", False, "prompts.system: input should be a valid string"),
    ("prompts.column", 3, "prompts.column: input should be a valid string"),
    ("train.gradient_checkpointing", 1, "train.gradient_checkpointing: input should be a valid boolean"),
    ("train.gradient_checkpointing", "yes", "train.gradient_checkpointing: input should be a valid boolean"),
    ("model", "m", "model: input should be an object"),
    ("model", None, "model: input should be an object"),
    ("train.lora", [], "train.lora: input should be an object"),
    ("judges", [3], "judges.0: input should be an object"),
    ("profiles", {"x": 3}, "profiles.x: input should be an object"),
    # wrong values
    ("train.beta", 0, "train.beta: input should be greater than 0"),
    ("train.beta", float("inf"), "train.beta: input should be a finite number"),
    ("train.loss_type", ["dpo"], "train.loss_type.0: input should be 'sigmoid', 'hinge'"),
    ("train.loss_type", [], "train.loss_type: tuple should have at least 1 item"),
    ("train.loss_type", "dpo", "train.loss_type.0: input should be 'sigmoid', 'hinge'"),
    ("train.loss_type", 1, "train.loss_type: input should be a valid array"),
    ("train.ld_alpha", 1.5, "train.ld_alpha: input should be less than or equal to 1"),
    ("train.f_divergence_type", "kl", "train.f_divergence_type: input should be 'reverse_kl'"),
    ("train.metric_for_best_model", "margins", "train.metric_for_best_model: input should be 'loss' or 'rewards/accuracies'"),
    ("train.early_stopping_patience", 0, "train.early_stopping_patience: input should be greater than or equal to 1"),
    ("train", {"loss_type": ["kto"], "metric_for_best_model": "rewards/accuracies"}, "train: metric_for_best_model rewards/acc"),
    ("train.lora", {"bias": "all"}, "train.lora.bias: unknown key"),
    ("prompts.test_fraction", 1.5, "prompts.test_fraction: input should be less than or equal to 1"),
    ("prompts.split", "part", "prompts: column, template and split need a source"),
    ("prompts.filters.match", "(", "prompts.filters.match: not a regular expression:"),
    ("judges.0.checks.1", {"check": "match", "pattern": "["}, "judges.0.checks.1.pattern: not a regular expression:"),
    ("judges.0.checks.0.min", 10, "judges.0.checks.0: no text is at least 10 and at most 9 characters long"),
    ("judges.0.checks.0.weight", 0, "judges.0.checks.0.weight: input should be greater than 0"),
    ("name", "../x", "name: string should match pattern"),
    ("generate.0.n", 0, "generate.0.n: input should be greater than or equal to 1"),
    ("generate.0", {"type": "local", "temperature": 0, "n": 2}, "generate.0: temperature 0 draws the same completion 2 times"),
    ("train.trainer_args", {"seed": 1}, "train.trainer_args: seed is set by the recipe itself"),
    ("train.trainer_args", {"beta": 1}, "train.trainer_args: beta is set by the recipe itself"),
    ("evaluate.models", ["base"], "evaluate.models: one alone meets nobody; name two or more"),
    ("evaluate.models", ["base", "checkpoint-4"], "evaluate.models: checkpoint-4 is deleted when training ends; set train.keep"),
    # unions
    ("generate.0", {"n": 1}, "generate.0: needs 'type', one of local, api"),
    ("generate.0.type", "vllm", "generate.0: 'type' 'vllm' is not known; one of 'local', 'api'"),
    ("judges.0.checks.0.check", "lenght", "judges.0.checks.0: 'check' 'lenght' is not known; one of 'length', 'one_line'"),
    ("generate.1.provider", "gemni", "generate.1.provider: input should be 'gemini', 'together'"),
    # what does not fit together
    ("model", {}, "model.name_or_path: missing"),
    ("model.name_or_path", "none", "model: missing; only a recipe in which"),
    ("prompts.source", "a.csv", "prompts: needs exactly one of source, items, write"),
    ("prompts", {}, "prompts: needs exactly one of source, items, write"),
    ("prompts", {"source": "a.csv", "column": "x", "template": "{x}"}, "prompts: column and template exclude each other"),
    ("prompts.template", "{x}", "prompts: column, template and split need a source"),
    ("prompts.pairs", {}, "prompts: ready-made pairs and labels need a source"),
    ("prompts.filters.on", ["chosen"], "prompts: filters.on may name chosen and rejected only with ready-made pairs"),
    (
        "prompts",
        {"source": "a.csv", "pairs": {}},
        "generate: ready-made pairs (prompts.pairs, prompts.labels) bring their completions",
    ),
    ("generate", [], "generate: missing; without ready-made pairs"),
    ("judges", [], "judges: missing; without ready-made pairs"),
    ("generate", [API, API], "generate: two are called 'm@1/1'; give each a name of its own"),
    ("judges", [RULES, {**LLM, "name": "Rules"}], "judges: two are called 'rules'; give each a name of its own"),
    ("judges", [RULES, LLM], "pair.judge: say which of rules, gemini"),
    ("judges.0.name", "given", "judges: the name 'given' is kept for ready-made pairs"),
    ("pair.judge", "gemini", "pair.judge: no judge 'gemini'; there is rules"),
    ("evaluate.judge", "gemini", "evaluate.judge: no judge 'gemini'; there is rules"),
    ("generate.1", {**API, "provider": "custom"}, "generate.1: provider custom needs base_url"),
    ("prompts", {"write": {"topics": [], "n": 1, "sampler": API}}, "prompts.write.topics: tuple should have at least 1 item"),
    (
        "prompts",
        {"write": {"topics": ["law"], "n": 1, "sampler": API, "instruction": "Ask {n}"}},
        "prompts.write.instruction: needs both {n} and {topic}",
    ),
]


@pytest.mark.parametrize(("dotted", "value", "line"), MISTAKES, ids=[f"{key}-{line[:30]}" for key, _, line in MISTAKES])
def test_a_mistake_is_one_line_with_its_key(dotted: str, value: Any, line: str) -> None:
    told = refusal(dotted, value)
    assert told.startswith(f"r.yaml: {line}")
    assert "\n" not in told


def test_the_base_of_these_mistakes_is_a_recipe() -> None:
    recipe = validate_recipe(BASE, "r.yaml")
    assert recipe.generate[0].label == "base@1/1"
    assert recipe.generate[1].label == "m@1/1"
    assert recipe.train.lora is not None
    assert recipe.labelling_judge == "rules"
    assert isinstance(recipe.evaluating_judge, RulesJudge)


SECRETS = [
    ("api_key_env", "sk-proj-SECRETsecret0123"),
    ("api_key_env", "AIzaSySECRETsecret0123_abc"),
    ("api_key_env", "gsk_SECRETsecret0123"),
    ("api_key_env", "deadbeef00secret"),
    ("base_url", "https://user:secret@host/v1"),
    ("base_url", "https://secret@host/v1"),
    ("base_url", "user:secret@host/v1"),
    ("base_url", "https://host/v1?key=secret"),
    ("api_key", "secret"),
]


@pytest.mark.parametrize(("key", "value"), SECRETS)
def test_a_secret_is_refused_and_not_repeated(key: str, value: str, tmp_path: Path) -> None:
    told = [refusal(f"generate.1.{key}", value), load_refusal(write(tmp_path, BASE), None, f"generate.1.{key}={value}")]
    for line in told:
        assert f"generate.1.{key}: " in line
        assert "secret" not in line.lower().split(": ", 1)[1].replace(key, "")


def test_a_token_for_the_hub_is_refused_and_not_repeated() -> None:
    assert "hf_abc" not in refusal("train.trainer_args", {"hub_token": "hf_abc"})


def test_names_of_variables_and_plain_urls_are_fine() -> None:
    for key, value in (("api_key_env", "MY_KEY_2"), ("base_url", "http://127.0.0.1:8000/v1"), ("base_url", "https://h/@me")):
        validate_recipe(with_value(f"generate.1.{key}", value), "r.yaml")


def test_the_recipe_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        validate_recipe(BASE, "r.yaml").train.beta = 1  # type: ignore[misc]


# --- YAML ----------------------------------------------------------------------------------------------------------

SCALARS = [
    ("5e-7", 5e-7),
    ("1E3", 1000.0),
    ("1.", 1.0),
    (".5", 0.5),
    ("-2", -2),
    ("+3", 3),
    ("010", 10),
    ("08", 8),
    ("true", True),
    ("False", False),
    ("no", "no"),
    ("on", "on"),
    ("Yes", "Yes"),
    ("2024-01-31", "2024-01-31"),
    ("12:30:00", "12:30:00"),
    ("1_000", "1_000"),
    ("0x1f", "0x1f"),
    (".inf", ".inf"),
    ("e5", "e5"),
    ("~", None),
    ("", None),
    ("null", None),
    ("'5'", "5"),
]


@pytest.mark.parametrize(("text", "value"), SCALARS)
def test_scalars(text: str, value: object) -> None:
    parsed = parse_yaml(f"key: {text}", "r.yaml")["key"]
    assert parsed == value
    assert type(parsed) is type(value)


BROKEN = [
    ("a: 1\nb: 2\na: 3", "r.yaml, line 3: not valid YAML: key 'a' stands twice"),
    ("x:\n  a: {b: 1, b: 2}", "r.yaml, line 2: not valid YAML: key 'b' stands twice"),
    ("a: [1", "r.yaml, line 1: not valid YAML: "),
    ("a:\n\tb: 1", "r.yaml, line 2: not valid YAML: "),
    ("a: b: c", "r.yaml, line 1: not valid YAML: "),
    ("? [a]\n: b", "r.yaml: not valid YAML: "),
    ("a: \x00", "r.yaml: not valid YAML: "),
    ("a: !!python/object/apply:os.system [ls]", "r.yaml, line 1: not valid YAML: could not determine a constructor"),
    ("a: !!int x", "r.yaml: not valid YAML: "),
    ("a: !!bool maybe", "r.yaml: not valid YAML: "),
    (f"a: {'9' * 5000}", "r.yaml: not valid YAML: "),
    ("[" * 5000, "r.yaml: not valid YAML: "),
]


@pytest.mark.parametrize(("text", "line"), BROKEN, ids=[text[:12] for text, _ in BROKEN])
def test_broken_yaml_is_one_line(text: str, line: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_yaml(text, "r.yaml")
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


@given(st.text(alphabet=" \n-:{}[]&*!|>'\"%@`#,?~ab01.e+<=", max_size=30) | st.text(max_size=20))
def test_any_text_is_yaml_or_an_input_error(text: str) -> None:
    with pytest.raises(InputError) as caught:
        validate_recipe(parse_yaml(text, "r.yaml"), "r.yaml")
    assert len(str(caught.value).splitlines()) == 1


def test_values_that_json_cannot_hold(tmp_path: Path) -> None:
    assert "holds a value that JSON cannot" in load_refusal(write(tmp_path, "name: !!binary aGk="))


# --- files, profiles, overrides ------------------------------------------------------------------------------------


def test_a_file_that_is_no_recipe(tmp_path: Path) -> None:
    assert "a recipe is a mapping of keys; this holds list" in load_refusal(write(tmp_path, "- a"))
    assert "a recipe is a mapping of keys; this holds NoneType" in load_refusal(write(tmp_path, ""))
    assert "cannot be read" in load_refusal(tmp_path / "absent.yaml")
    assert "cannot be read" in load_refusal(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("name: é".encode("latin-1"))
    assert "cannot be read" in load_refusal(tmp_path / "latin.yaml")


def test_the_name_is_the_files_by_default(tmp_path: Path) -> None:
    data = {key: value for key, value in BASE.items() if key != "name"}
    assert load_recipe(write(tmp_path, data, "titles.yaml")).name == "titles"


def test_one_sampler_or_judge_needs_no_list(tmp_path: Path) -> None:
    path = write(tmp_path, {**BASE, "generate": {"type": "local"}, "judges": RULES, "profiles": {"api": {"generate": API}}})
    assert [sampler.label for sampler in load_recipe(path, None, ("generate.0.n=3",)).generate] == ["base@1/1"]
    assert [sampler.label for sampler in load_recipe(path, "api").generate] == ["m@1/1"]
    assert [sampler.label for sampler in load_recipe(path, None, ("generate={type: local, name: a}",)).generate] == ["a"]


def test_a_profile_then_the_overrides(tmp_path: Path) -> None:
    profile = {"train.beta": 0.3, "train.learning_rate": 5e-7, "generate.0.n": 4, "evaluate": None, "train.lora": None}
    path = write(tmp_path, {**BASE, "profiles": {"small": profile, "bad": {"train.bta": 1}}})
    recipe = load_recipe(
        path, "small", ("train.beta=0.05", "generate.1.model=other", "prompts.filters.first=5", "train.lora.r=2")
    )
    assert (recipe.train.beta, recipe.train.learning_rate) == (0.05, 5e-7)
    assert (recipe.generate[0].n, recipe.generate[1].label, recipe.prompts.filters.first) == (4, "other@1/1", 5)
    assert recipe.evaluate is None
    assert recipe.train.lora is not None
    assert recipe.train.lora.r == 2

    plain = load_recipe(path)
    assert (plain.train.beta, plain.generate[0].n) == (0.1, 1)
    assert "train.bta: unknown key; did you mean 'beta'?" in load_refusal(path, "bad")


OVERRIDES = [
    ("train.beta", "'train.beta': an override is written key=value, e.g. train.beta=0.05"),
    ("=5", "'=5': an override is written key=value, e.g. train.beta=0.05"),
    ("train.beta=", "train.beta: input should be a valid number"),
    ("train.beta=[", "train.beta=[, line 1: not valid YAML: "),
    ("train.beta.x=1", "train.beta: input should be a valid number"),
    ("name.x=1", "name.x: name is a single value; there is no 'x' in it"),
    ("generate.2.n=1", "generate.2.n: generate is a list of 2; there is no '2' in it"),
    ("generate.first.n=1", "generate.first.n: generate is a list of 2; there is no 'first' in it"),
    ("generate.-1.n=1", "generate.-1.n: generate is a list of 2; there is no '-1' in it"),
    ("a\nb=1", "a b: unknown key"),
]


@pytest.mark.parametrize(("override", "line"), OVERRIDES)
def test_a_mistaken_override(override: str, line: str, tmp_path: Path) -> None:
    assert line in load_refusal(write(tmp_path, {**BASE, "train": {}}), None, override)


PROFILES = [
    ({"big": {"seed": 1}}, "no profile 'small'; there is big"),
    ({"big": {}, 3: {}}, "no profile 'small'; there is big, 3"),
    (None, "no profile 'small'; there is none"),
    (["small"], "no profile 'small'; there is none"),
    (3, "no profile 'small'; there is none"),
    ({"small": [1]}, "profiles.small: a mapping of dotted keys"),
    ({"small": {1: 2}}, "1: unknown key"),
]


@pytest.mark.parametrize(("profiles", "line"), PROFILES)
def test_a_mistaken_profile(profiles: object, line: str, tmp_path: Path) -> None:
    assert line in load_refusal(write(tmp_path, {**BASE, "profiles": profiles}), "small")


def test_several_mistakes_are_counted(tmp_path: Path) -> None:
    assert load_refusal(write(tmp_path, {**BASE, "a": 1, "b": 2, "c": 3})).endswith("(and 2 more)")


# --- the judges of a recipe ----------------------------------------------------------------------------------------


def test_which_judge_labels_and_which_evaluates() -> None:
    two = {**BASE, "judges": [RULES, LLM], "pair": {"judge": "rules"}, "evaluate": {"judge": "gemini"}}
    recipe = validate_recipe(two, "r.yaml")
    assert recipe.labelling_judge == "rules"
    assert isinstance(recipe.evaluating_judge, LlmJudge)
    given_pairs = {"name": "x", "model": BASE["model"], "prompts": {"source": "a.csv", "pairs": {}}}
    recipe = validate_recipe(given_pairs, "r.yaml")
    assert (recipe.labelling_judge, recipe.evaluating_judge) == ("given", None)
    recipe = validate_recipe({**given_pairs, "judges": [RULES], "pair": {"judge": "rules"}}, "r.yaml")
    assert isinstance(recipe.evaluating_judge, RulesJudge)


A_JUDGE = {**LLM, "name": "a", "provider": "vllm"}
PANEL = {"type": "panel", "judges": ["rules", "gemini"]}
CASCADE = {"type": "cascade", "judges": ["rules", "panel", "a"]}
REWARD = {"type": "reward", "model": {"name_or_path": "m"}}
JUDGES = [
    ([RULES, PANEL], "judges.panel: no judge 'gemini' stands before it; there is rules"),
    ([PANEL, RULES, LLM], "judges.panel: no judge 'rules' stands before it; it stands first"),
    ([RULES, LLM, {**PANEL, "judges": ["rules", "panel"]}], "judges.panel: no judge 'panel' stands before it; there is rules, g"),
    ([RULES, LLM, {**CASCADE, "judges": ["rules", "Gemini"]}], "judges.cascade: no judge 'Gemini' stands before it"),
    ([RULES, {**PANEL, "judges": ["rules"]}], "judges.1.judges: tuple should have at least 2 items"),
    ([RULES, LLM, {**PANEL, "combine": "median"}], "judges.2.combine: input should be 'majority', 'mean' or 'bradley_terry'"),
    ([RULES, LLM, {**CASCADE, "unsure": 0.5}], "judges.2.unsure: input should be less than 0.5"),
    ([RULES, LLM, {**PANEL, "unsure": 0.1}], "judges.2.unsure: unknown key"),
    ([{**RULES, "canaries": 3}], "judges.0.canaries: unknown key"),
    ([{**LLM, "canaries": -1}], "judges.0.canaries: input should be greater than or equal to 0"),
    ([{**LLM, "ask": "ranking"}], "judges.0.ask: input should be 'pairwise', 'pointwise' or 'listwise'"),
    ([{**LLM, "orders": "swapped"}], "judges.0.orders: input should be 'both', 'random' or 'first'"),
    ([{**LLM, "ask": "listwise", "logprobs": True}], "judges.0: logprobs: a ranking has no one place to read a probability from"),
    ([{**LLM, "provider": "local", "budget_usd": 1.0}], "judges.0: budget_usd is about calls to a server; provider local is"),
    ([{**LLM, "provider": "local", "price": {"input": 0, "output": 0}}], "judges.0: price is about calls to a server"),
    ([{**LLM, "price": {"input": 1}}], "judges.0.price.output: missing"),
    ([{**LLM, "price": {"input": 1, "output": -1}}], "judges.0.price.output: input should be greater than or equal to 0"),
    ([{**LLM, "budget_usd": 0}], "judges.0.budget_usd: input should be greater than 0"),
    ([{**REWARD, "model": None}], "judges.0.model: input should be an object"),
    ([{"type": "pairrm", "criteria": "short"}], "judges.0.criteria: unknown key"),
    ([{"type": "human", "path": "a.csv"}], "judges.0.path: unknown key"),
    ([{"type": "jury"}], "judges.0: 'type' 'jury' is not known; one of 'rules', 'llm', 'pairrm', 'reward', 'human', 'panel', "),
]


@pytest.mark.parametrize(("judges", "line"), JUDGES, ids=[line[:40] for _, line in JUDGES])
def test_a_mistake_in_a_judge(judges: list[dict[str, Any]], line: str) -> None:
    with pytest.raises(InputError) as caught:
        validate_recipe({**BASE, "judges": judges, "pair": {"judge": judges[0].get("name", judges[0]["type"])}}, "r.yaml")
    assert str(caught.value).startswith(f"r.yaml: {line}")


def test_who_is_asked_when_a_judge_is() -> None:
    data = {**BASE, "judges": [RULES, LLM, PANEL, A_JUDGE, CASCADE, REWARD], "pair": {"judge": "cascade"}}
    recipe = validate_recipe(data, "r.yaml")
    assert recipe.members("reward") == {"reward"}
    assert recipe.members("panel") == {"panel", "rules", "gemini"}
    assert recipe.members("cascade") == {"cascade", "panel", "a", "rules", "gemini"}
    assert recipe.members("reward", None, "panel") == {"reward", "panel", "rules", "gemini"}
    assert recipe.members(None) == recipe.members("given") == recipe.members() == set()


def test_what_a_judge_reads() -> None:
    """By key, so that a change can be told."""
    own = {"check": "python", "file": "own.py", "function": "good"}
    rules = {"type": "rules", "checks": [{"check": "one_line"}, own]}
    judges = [rules, LLM, {"type": "human", "file": "a.csv"}, {"type": "human", "name": "app"}, REWARD, {"type": "pairrm"}]
    recipe = validate_recipe({**BASE, "judges": judges, "pair": {"judge": "rules"}}, "r.yaml")
    assert [judge.files for judge in recipe.judges] == [
        {"checks.1.file": "own.py"}, {"criteria": "be short"}, {"file": "a.csv"}, {}, {}, {},
    ]  # fmt: skip


# --- shipped recipes -----------------------------------------------------------------------------------------------

RECIPES = sorted(SHIPPED.glob("*.yaml"))


def profiles() -> list[tuple[Path, str | None]]:
    named = {path: list(parse_yaml(path.read_text(encoding="utf-8"), path.name).get("profiles") or {}) for path in RECIPES}
    return [(path, profile) for path, names in named.items() for profile in [None, *names]]


@pytest.mark.parametrize(("path", "profile"), profiles(), ids=lambda value: value.stem if isinstance(value, Path) else str(value))
def test_a_shipped_recipe_loads(path: Path, profile: str | None) -> None:
    recipe = load_recipe(find_recipe(path.stem), profile)
    assert recipe.name
    # What it names beside it is shipped too.
    named = [judge.criteria for judge in recipe.judges if isinstance(judge, LlmJudge)] + [recipe.prompts.source]
    for name in named:
        if name is not None and re.fullmatch(r"[\w-]+\.(txt|csv|jsonl?|parquet)", name):
            assert (SHIPPED / name).is_file()


def test_a_recipe_is_found_by_path_or_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, BASE)
    assert find_recipe("r.yaml") == Path("r.yaml")
    assert find_recipe(str(path)) == path
    for absent in ("absent", "absent.yaml", "../recipes/ideas", "a\nb", "", "."):
        with pytest.raises(InputError, match=r"neither a file nor one of the shipped recipes") as caught:
            find_recipe(absent)
        assert "\n" not in str(caught.value)


# --- the list of keys ----------------------------------------------------------------------------------------------

PLAIN_NAMES = {
    *("min", "max", "unit", "seed", "type", "check", "weight", "name", "models", "pattern", "texts", "checks", "method"),
    *("min_characters", "max_characters", "min_words", "max_words", "temperature", "max_new_tokens"),
    *("r", "lora_alpha", "lora_dropout", "target_modules"),  # PEFT's words; the section's help names the paper
    *("loss_type", "learning_rate", "num_train_epochs", "gradient_accumulation_steps", "lr_scheduler_type", "weight_decay"),
    *("max_grad_norm", "gradient_checkpointing", "logging_steps"),  # Hugging Face's words
}
"""Keys that say what they are."""


def sections(section: type[Section] = Section) -> list[type[Section]]:
    return [section, *(inner for one in section.__subclasses__() for inner in sections(one))]


def test_the_outline_lists_every_key_and_says_what_it_is() -> None:
    rows = outline()
    listed = {key.rsplit(".", 1)[-1] for key, *_ in rows}
    assert {name for section in sections() for name in section.model_fields} <= listed
    keys = [key for key, *_ in rows]
    assert {"train.lora.r", "prompts.filters.match", "generate.local.top_k", "generate.api.api_key_env"} <= set(keys)
    assert "judges.rules.checks.prompt_words.of" in keys
    assert len(keys) == len(set(keys))
    for key, kind, _, help_text in rows:
        assert kind, key
        assert help_text or key.rsplit(".", 1)[-1] in PLAIN_NAMES, f"{key} needs a line of help"
        assert "\n" not in help_text, key


def test_the_outline_says_what_is_required_and_what_is_the_default() -> None:
    rows = {key: (kind, default, help_text) for key, kind, default, help_text in outline()}
    assert rows["model.name_or_path"][:2] == ("text", "required")
    assert rows["train.beta"] == ("number", "0.1", "Strength of the pull to the reference.")
    assert rows["train.bf16"][:2] == ("true | false", "null")
    assert rows["prompts.items"][0] == "list of text"
    assert rows["judges.rules.checks"][0] == "list of section"
    assert rows["pair.strategy"][0] == "all | best_worst | best_vs_rest"


OUTPUTS = [{"type": "outputs", "name": name, "file": f"{name}.json"} for name in ("one", "two", "three")]


def recipe_of(**changes: Any) -> Recipe:
    return validate_recipe({**copy.deepcopy(BASE), **changes}, "r.yaml")


def test_a_recipe_that_only_evaluates() -> None:
    """The first model is the baseline, and every prompt is held out."""
    recipe = recipe_of(train=None, generate=[], evaluate={"models": OUTPUTS})
    assert recipe.evaluate is not None
    assert not recipe.makes_pairs
    assert recipe.test_fraction == 1.0
    assert recipe.evaluate.own == []
    assert (recipe.evaluate.baseline, recipe.evaluate.headline) == ("one", ("two", "one"))
    assert recipe.evaluate.pairs == [("two", "one"), ("three", "one")]
    every = recipe_of(train=None, generate=[], evaluate={"models": OUTPUTS, "against": "all"}).evaluate
    assert every is not None
    assert every.pairs[0] == ("two", "one")
    assert {frozenset(both) for both in every.pairs} == {
        frozenset(both) for both in (("one", "two"), ("one", "three"), ("two", "three"))
    }


def test_base_and_tuned_are_the_headline_wherever_they_stand() -> None:
    evaluate = recipe_of(evaluate={"models": [OUTPUTS[0], "tuned", "base"]}).evaluate
    assert evaluate is not None
    assert (evaluate.baseline, evaluate.headline) == ("base", ("tuned", "base"))
    with pytest.raises(InputError, match="base and tuned are always among them"):
        recipe_of(evaluate={"models": [OUTPUTS[0], "base"]})


def test_a_recipe_that_only_makes_pairs() -> None:
    recipe = recipe_of(train=None)
    assert recipe.evaluate is None  # there is nothing tuned
    assert recipe.makes_pairs
    assert recipe.test_fraction == 0.1
    assert validate_recipe(recipe.model_dump(mode="json"), "again") == recipe


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"train": None, "generate": [], "evaluate": None}, "train: without it the recipe does nothing"),
        ({"train": None, "evaluate": {}}, "evaluate.models: tuned is none without a section train"),
        ({"train": None, "sft": {}}, "sft: comes before train, which is null"),
        (
            {"train": None, "generate": [], "judges": [RULES, LLM], "evaluate": {"models": OUTPUTS}},
            "evaluate.judge: say which of",
        ),
        ({"generate": []}, "generate: missing"),
    ],
)
def test_what_a_recipe_without_training_must_say(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=re.escape(line)):
        recipe_of(**changes)


def test_one_loss_needs_no_list() -> None:
    both = [validate_recipe({**BASE, "train": {"loss_type": given}}, "r.yaml").train for given in ("ipo", ["ipo"])]
    assert both[0] == both[1]
    assert both[0].loss_type == ("ipo",)


def test_a_recipe_survives_json() -> None:
    recipe = validate_recipe({**BASE, "judges": [RULES, LLM], "pair": {"judge": "gemini"}}, "r.yaml")
    assert validate_recipe(recipe.model_dump(mode="json"), "recipe.json") == recipe
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
