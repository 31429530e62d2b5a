"""What is released: both archives are whole, and the wheel alone runs the demo."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from importlib.util import find_spec
from pathlib import Path

import pytest

import tiebreak
from conftest import missing

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
STEM = f"tiebreak-{tiebreak.__version__}"
MUST = (
    *("py.typed", "reporting/report.html", "reporting/report.js", "publish/card_model.md.j2", "publish/card_dataset.md.j2"),
    *("publish/card_judges.md.j2", "app/look.css", "recipes/demo.yaml", "recipes/starter.yaml", "recipes/ideas.csv"),
    *("recipes/offline/truthful.jsonl", "recipes/offline/instructions.csv", "recipes/accelerate/ddp.yaml", "recipes/titles.txt"),
)
"""Files that no import would miss."""
SMALLER = (
    *("prompts.filters.random=8", "prompts.test_fraction=0.25", "generate.0.n=4", "evaluate.n=1"),
    *("judges.0.checks=[{check: length, max: 40}]", "train.num_train_epochs=1", "evaluate.max_new_tokens=8"),
)


def python(*arguments: str, **how: object) -> str:
    """Return what a Python process prints, which must end well."""
    ended = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, **how)  # type: ignore[call-overload]
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return str(ended.stdout)


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both archives, the wheel made from the other one, as `python -m build` does it."""
    for needed in ("build", "hatchling", "twine"):
        if find_spec(needed) is None:
            missing(f"{needed} is not installed")
    out = tmp_path_factory.mktemp("dist")
    python("-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT), env={**os.environ, "PYTHONWARNINGS": "default"})
    return out


def files(folder: Path) -> set[str]:
    """Return the files below a folder of the source tree, by their path in the tree."""
    found = [folder] if folder.is_file() else [path for path in folder.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(ROOT))
        for path in found
        if not {"__pycache__", "runs", ".ipynb_checkpoints"} & set(path.relative_to(ROOT).parts)
    }


def test_both_archives_are_there_and_twine_has_nothing_to_say(dist: Path) -> None:
    assert {path.name for path in dist.iterdir()} == {f"{STEM}.tar.gz", f"{STEM}-py3-none-any.whl"}
    said = python("-m", "twine", "--no-color", "check", "--strict", *map(str, dist.iterdir()))
    assert said.count("PASSED") == 2, said


def test_the_wheel_is_the_package_and_nothing_else(dist: Path) -> None:
    with zipfile.ZipFile(dist / f"{STEM}-py3-none-any.whl") as wheel:
        names = set(wheel.namelist())
        metadata = Parser().parsestr(wheel.read(f"{STEM}.dist-info/METADATA").decode())
    own = {name for name in names if not name.startswith(f"{STEM}.dist-info/")}
    assert own == {name.removeprefix("src/") for name in files(ROOT / "src" / "tiebreak")}
    assert {f"tiebreak/{name}" for name in MUST} <= own
    assert {name for name in names - own if "LICENSE" in name}
    assert metadata["Version"] == tiebreak.__version__
    assert metadata["License-Expression"] == "MIT"
    assert metadata.get_all("Requires-Dist")
    assert metadata.get_payload().startswith("# tiebreak")


def test_the_source_archive_holds_what_the_project_file_says(dist: Path) -> None:
    with tarfile.open(dist / f"{STEM}.tar.gz") as archive:
        names = {name.removeprefix(f"{STEM}/") for name in archive.getnames()}
    named = PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    wanted = {name for one in named for name in files(ROOT / one.strip("/"))}
    assert names - {"PKG-INFO", ".gitignore", "pyproject.toml"} == wanted
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("*.py"))
    read = {name for name in re.findall(r'ROOT / "([\w.-]+)"', tests) if (ROOT / name).exists()}
    assert {name for name in read if not (name in names or any(each.startswith(f"{name}/") for each in names))} == set()


def test_the_version_is_said_in_one_place() -> None:
    assert PROJECT["project"]["dynamic"] == ["version"]
    history = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    latest = re.search(r"^## (\S+)", history, re.M)
    assert latest is not None
    assert latest[1] == tiebreak.__version__


@pytest.mark.skipif(find_spec("pip") is None, reason="an environment without pip")
def test_the_wheel_alone_runs_the_demo(dist: Path, tiny: Path, tmp_path: Path) -> None:
    place = tmp_path / "installed"
    wheel = str(dist / f"{STEM}-py3-none-any.whl")
    python("-m", "pip", "--isolated", "install", "--no-deps", "--no-index", "--no-compile", "--target", str(place), wheel)
    assert (place / "bin" / "tiebreak").is_file()
    alone = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(place)}}
    where = python("-c", "import tiebreak; print(tiebreak.__path__)", **alone)
    assert where.strip() == str([str(place / "tiebreak")])
    assert python("-m", "tiebreak", "--version", **alone).strip() == f"tiebreak {tiebreak.__version__}"
    said = python("-m", "tiebreak", "run", "demo", f"model.name_or_path={tiny}", *SMALLER, **alone)
    assert re.search(r"^train: \d+ steps on .*^report: \d+ charts", said, re.M | re.S), said
    assert (tmp_path / "runs" / "demo" / "report.html").is_file()
