"""The notebooks: clean as they are committed, written with public names alone, and each of them runs, on models of no size."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import tiebreak
from tiebreak.cli import app
from tiebreak.recipe_yaml import SHIPPED
from tiebreak.tiny import TINY_T5

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parents[1]
BOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
RECIPES = {"human-like", "legal-flan-t5", "lima-judge-vs-pairrm", "truthful-qwen", "youtube-titles"}
DOORS = {"perform", "iterate", "search", "app", "Run", "InputError", "PreferenceConfig", "PreferenceTrainer"}
each = pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def source(book: Any, *kinds: str) -> str:
    return "\n".join(cell.source for cell in book.cells if cell.cell_type in kinds)


def tags(cell: Any) -> list[str]:
    return list(cell.metadata.get("tags", []))


# --- as they are committed -----------------------------------------------------------------------------------------


def test_there_is_one_for_each_system() -> None:
    assert {path.stem for path in BOOKS} == RECIPES
    assert all((SHIPPED / f"{path.stem}.yaml").is_file() for path in BOOKS)
    listed = (ROOT / "docs" / "notebooks.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`notebooks/([\w-]+)\.ipynb`", listed)) == RECIPES


@each
def test_it_is_short_and_clean(path: Path) -> None:
    book = read(path)
    nbformat.validate(book)
    assert set(book.metadata) == {"kernelspec", "language_info"}
    assert 5 <= len(book.cells) <= 10
    assert book.cells[0].source.startswith("# ")
    for cell in book.cells:
        assert cell.cell_type in ("markdown", "code")
        assert set(cell.metadata) <= {"tags"}
        assert cell.cell_type == "markdown" or (cell.outputs, cell.execution_count) == ([], None)
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.])(?:/(?:home|root|Users|work|tmp|mnt)\b|~/|[A-Z]:\\)", text), "a path of somebody's machine"


@each
def test_it_says_how_to_use_the_full_form(path: Path) -> None:
    first = next(cell for cell in read(path).cells if cell.cell_type == "code")
    assert tags(first) == ["parameters"]
    names: dict[str, Any] = {}
    exec(first.source, names)
    assert (names["profile"], names["overrides"]) == ("offline", {})
    assert re.search(r"# None: the full form", first.source)


@each
def test_it_uses_public_names_alone(path: Path) -> None:
    book = read(path)
    for node in ast.walk(ast.parse(source(book, "code"))):
        if isinstance(node, ast.Import):
            assert not [alias.name for alias in node.names if alias.name.startswith("tiebreak.")]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tiebreak":
            assert node.module == "tiebreak"
            assert {alias.name for alias in node.names} <= set(tiebreak.__all__)
        elif isinstance(node, ast.Attribute):
            assert not node.attr.startswith("_")
    assert set(re.findall(r"\btiebreak\.(\w+)", source(book, "code", "markdown"))) <= set(tiebreak.__all__)


def test_together_they_open_every_door() -> None:
    code = "\n".join(source(read(path), "code") for path in BOOKS)
    assert set(re.findall(r"\b(?:tiebreak\.|from tiebreak import )(\w+)", code)) == DOORS
    for records in ("prompts()", "draws()", "verdicts(", "pairs(", "summary[", "report_html", "given_jsonl", "metrics_jsonl"):
        assert f".{records}" in code, records


@each
def test_what_it_names_is_there(path: Path) -> None:
    text = source(read(path), "markdown", "code")
    commands = set(re.findall(r"`tiebreak (\w+)", text))
    assert commands <= set(get_command(app).commands)  # type: ignore[attr-defined]
    assert all((path.parent / link).is_file() for link in re.findall(r"\]\(([\w-]+\.ipynb)\)", text))


# --- as they run ---------------------------------------------------------------------------------------------------

LONG_OR_SHORT = {"judges.0.checks": [{"check": "length", "max": 60}], "judges.1.checks": [{"check": "length", "min": 61}]}
"""All that can be told of what a model writes whose words are bytes."""
SMALLER: dict[str, Callable[[str], dict[str, Any]]] = {
    "youtube-titles": lambda tiny: {
        **{"model.name_or_path": tiny, "prompts.filters": {"random": 10}, "train.num_train_epochs": 1, "evaluate.n": 1},
    },
    "legal-flan-t5": lambda tiny: {
        **{f"{part}.model.name_or_path": tiny for part in ("prompts.write.sampler", "generate.0", "generate.1")},
        **{"prompts.write.n": 18, "prompts.filters": {}, "pretrain.num_train_epochs": 1, "sft.num_train_epochs": 1},
        **{"judges.0.checks": LONG_OR_SHORT["judges.0.checks"], "evaluate.max_new_tokens": 8},
    },
    "human-like": lambda tiny: {
        **{"prompts.filters.random": 16, "evaluate.max_new_tokens": 8, "train.num_train_epochs": 1},
        "variants": {
            "t5": {"model.name_or_path": TINY_T5, "sft.num_train_epochs": 1},
            "gpt2": {"model.name_or_path": tiny},
        },
    },
    "truthful-qwen": lambda tiny: {
        **{"model.name_or_path": tiny, "prompts.filters.first": 20, "search.space": {"train.beta": [0.1, 0.3]}},
    },
    "lima-judge-vs-pairrm": lambda tiny: {
        **{"model.name_or_path": tiny, "prompts.filters": {"random": 15}, "evaluate.n": 1, "iterate.stop": []},
        **LONG_OR_SHORT,
    },
}
"""Overrides for less of the same, on a model in whose place the embedded one would take long."""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One kernel for all: importing what they need takes longer than what they do."""
    first = nbformat.v4.new_code_cell("import gc, transformers.trainer; gc.collect(); gc.freeze()")  # see conftest.py
    book = nbformat.v4.new_notebook(cells=[first])
    client = nbclient.NotebookClient(book, timeout=120, kernel_name="python3", shutdown_kernel="immediate")
    # tqdm asks for ipywidgets, which nothing here needs.
    own = {"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")), "PYTHONWARNINGS": "ignore:IProgress not found"}
    with client.setup_kernel(env={**os.environ, **own}):
        client.execute_cell(first, 0)
        yield client


@each
def test_it_runs(path: Path, client: Any, tiny: Path, tmp_path: Path) -> None:
    book = read(path)
    # The folder before it may be gone by now.
    fresh = nbformat.v4.new_code_cell(f"__import__('os').chdir({str(tmp_path)!r})\n%reset -f")
    book.cells.insert(0, fresh)
    for cell in book.cells:
        if tags(cell) == ["parameters"]:
            cell.source = f"profile, overrides = 'offline', {SMALLER[path.stem](str(tiny))!r}"
    client.nb = book
    client.reset_execution_trackers()
    for at, cell in enumerate(book.cells):
        client.execute_cell(cell, at)  # raises what the cell raises
        if cell.cell_type == "code" and cell is not fresh and not tags(cell):
            assert cell.outputs, f"{cell.id} shows nothing"
            said = "".join(output.text for output in cell.outputs if output.get("name") == "stderr")
            assert "Warning" not in said, said
    skipped = [cell.id for cell in book.cells if "skip-execution" in tags(cell)]
    assert skipped == (["app"] if path.stem == "human-like" else [])  # test_app_playground.py has one run in a notebook
    runs = {run.name for run in (tmp_path / "runs").iterdir() if (run / "recipe.json").exists()}
    assert runs == {report.parent.name for report in tmp_path.glob("runs/*/report.html")} != set()
