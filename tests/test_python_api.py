"""The doors from Python: the same runs as the command makes, and every public name is there and typed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import tiebreak
from tiebreak.records import InputError


def test_every_public_name_is_there_and_no_other() -> None:
    for name in tiebreak.__all__:
        assert getattr(tiebreak, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'preform'"):
        tiebreak.preform  # noqa: B018
    places = {name for names in tiebreak._PLACES.values() for name in names}
    assert places | {"app", "__version__"} == set(tiebreak.__all__)


def test_a_type_checker_sees_the_public_names(tmp_path: Path) -> None:
    names = [name for name in tiebreak.__all__ if name != "__version__"]
    (tmp_path / "use.py").write_text("import tiebreak\n" + "".join(f"reveal_type(tiebreak.{name})\n" for name in names))
    # The types of torch and its like are not asked about, and to read them takes half a minute.
    (tmp_path / "mypy.ini").write_text("[mypy]\nfollow_imports = skip\n[mypy-tiebreak.*]\nfollow_imports = silent\n")
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path), "use.py"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout
    assert told.count("Revealed type") == len(names), told
    assert 'Revealed type is "Any"' not in told


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two files of answers that rules decide between: nothing is loaded."""
    monkeypatch.chdir(tmp_path)
    for name, text in (("mine", "short"), ("theirs", "a good deal longer")):
        rows = [{"instruction": f"p{at}", "output": text, "generator": name} for at in range(4)]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    data: dict[str, Any] = {
        "prompts": {"items": [f"p{at}" for at in range(4)]},
        "train": None,
        "judges": [{"type": "rules", "checks": [{"check": "length", "max": 9}]}],
        "evaluate": {"models": [{"type": "outputs", "name": name, "file": f"{name}.json"} for name in ("theirs", "mine")]},
    }
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def test_a_recipe_goes_in_and_its_run_comes_out(recipe: Path) -> None:
    run = tiebreak.perform(recipe)
    assert run.path == Path("runs/r")
    assert run.report_html.is_file()
    assert run.summary["headline"] == ["mine", "theirs"]
    assert (run.summary["win_rate"]["rate"], run.summary["win_rate"]["n"]) == (1.0, 4)
    again = tiebreak.perform(recipe, run_dir="elsewhere", overrides={"judges.0.checks.0.max": 99})
    assert again.path == Path("elsewhere")
    assert again.summary["win_rate"]["rate"] == 0.5
    assert tiebreak.perform("elsewhere").recipe == again.recipe
    assert tiebreak.perform("elsewhere", redo="evaluate").summary["win_rate"]["rate"] == 0.5


def test_a_mistake_is_an_input_error_and_leaves_nothing(recipe: Path) -> None:
    with pytest.raises(tiebreak.InputError, match="no such stage"):
        tiebreak.perform(recipe, redo="cook")
    with pytest.raises(InputError, match=r"train\.bta"):
        tiebreak.perform(recipe, overrides={"train.bta": 0.1})
    assert not Path("runs").exists()
    tiebreak.perform(recipe)
    with pytest.raises(InputError, match="is a run directory"):
        tiebreak.perform("runs/r", overrides={"seed": 3})
