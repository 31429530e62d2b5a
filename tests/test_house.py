"""The house: imports run downwards, and the light modules stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tiebreak

SOURCE = Path(tiebreak.__file__).parent
ORDER = (
    *("records", "progress", "files", "recipe", "recipe_yaml", "flow", "run", "hub", "tiny", "models", "metrics"),
    *("training", "samplers", "judges", "exchange", "reporting", "stages", "publish", "show", "loops", "api", "app", "cli"),
)
"""Lowest first; a module imports its own package and what stands before it."""
HEAVY = ("torch", "transformers", "datasets", "peft", "accelerate", "openai", "matplotlib", "sklearn", "scipy", "pandas")
MODULES = sorted(SOURCE.rglob("*.py"))


def dotted(path: Path) -> str:
    """Return a module's name inside the package: `run`, `judges.rules`, `judges`, and `` for the package itself."""
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def imported(tree: ast.AST, module: str, *, is_package: bool) -> set[str]:
    """Return the modules of tiebreak that a syntax tree imports anywhere, named as `dotted` names them."""
    known = {dotted(path) for path in MODULES}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("tiebreak.") for alias in node.names if alias.name.startswith("tiebreak.")}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # from . import x
                parts = module.split(".") if is_package else module.split(".")[:-1]
                base = ".".join(["tiebreak", *parts[: len(parts) - node.level + 1], *([base] if base else [])])
            if base.split(".")[0] == "tiebreak":
                inner = base.removeprefix("tiebreak").removeprefix(".")
                names = {f"{inner}.{alias.name}".lstrip(".") for alias in node.names}
                found |= (names & known) | ({inner} if inner in known else set())
    return found - {""}


def test_every_module_has_its_place() -> None:
    assert {dotted(path).split(".")[0] for path in MODULES} - {"", "__main__"} <= set(ORDER)


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_imports_run_downwards(path: Path) -> None:
    module = dotted(path)
    place = module.split(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for other in imported(tree, module, is_package=path.name == "__init__.py"):
        below = other.split(".")[0]
        if place in ORDER:
            assert below == place or ORDER.index(below) < ORDER.index(place), f"{module} imports {other}, which stands above it"
        if other == "stages.report":
            assert place in ("cli", "app", "loops") or module == other, f"{module} imports {other}, which only the doors name"


def test_this_test_sees_imports() -> None:
    """Every way of writing an import, inside functions too."""
    code = """
import tiebreak.cli
from tiebreak import run, __version__
from tiebreak.stages import report
def f():
    from . import rules
    from .llm import x
    from ..recipe import y
    from tiebreak.judges.rules import z
    import torch
"""
    found = imported(ast.parse(code), "judges.other", is_package=False)
    assert found >= {"cli", "run", "stages", "judges", "judges.rules", "judges.llm", "recipe"}
    assert "torch" not in found


def loaded(code: str) -> set[str]:
    """Return the heavy libraries in sys.modules after `code`."""
    code = f"{code}\nimport sys\nprint('LOADED', *[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rsplit("LOADED", 1)[1].split())


@pytest.mark.parametrize(
    "module", ["", ".records", ".progress", ".recipe", ".recipe_yaml", ".run", ".judges.rules", ".stages", ".show"]
)
def test_light_modules_stay_light(module: str) -> None:
    assert loaded(f"import tiebreak{module}") == set()


def test_reading_a_recipe_stays_light() -> None:
    assert loaded("from tiebreak.recipe_yaml import outline; outline()") == set()


HELP = """
from typer.testing import CliRunner
from tiebreak.cli import app
result = CliRunner().invoke(app, {arguments!r})
assert result.exit_code == 0, result.output
assert "Usage" in result.output
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["status", "--help"], ["show", "--help"], ["init", "--help"]]
)
def test_help_stays_light(arguments: list[str]) -> None:
    assert loaded(HELP.format(arguments=arguments)) == set()


def test_help_from_the_shell() -> None:
    done = subprocess.run([sys.executable, "-m", "tiebreak", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
