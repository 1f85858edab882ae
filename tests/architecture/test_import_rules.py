"""The direction of imports (cluster and tune on ofmu, never back), lazy starts, file lengths, sound presets."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ofmu.config.files import preset_names
from tune.compare.config import CompareConfig

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for package in ("ofmu", "tune", "cluster") for path in (ROOT / package).rglob("*.py"))
MAX_LINES = 400

FORBIDDEN = {
    "ofmu": {"ray", "optuna", "tune", "cluster", "tests"},
    "cluster": {"tune", "optuna", "tests"},
    "tune": {"tests"},
}
SLOW_TO_IMPORT = {"torch", "transformers", "ray", "deepspeed", "optuna", "pandas", "pydantic", "matplotlib"}


def composes(path: Path) -> bool:
    """Whether ``path`` is the command line, which may import all packages where it needs them."""
    relative = path.relative_to(ROOT).as_posix()
    return relative.startswith("ofmu/cli/")


def imported_names(tree: ast.AST, package: str) -> Iterator[tuple[str, int, bool]]:
    """Yield the top-level name of every import, its line, and whether importing the module runs it.

    ``import_module("x")`` and ``__import__("x")`` with a constant count as imports.
    """

    def walk(node: ast.AST, immediate: bool) -> Iterator[tuple[str, int, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name.split(".")[0], child.lineno, immediate) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                name = package if child.level else str(child.module).split(".")[0]
                yield name, child.lineno, immediate
            elif isinstance(child, ast.Call) and _is_import_call(child):
                yield str(child.args[0].value).split(".")[0], child.lineno, immediate  # type: ignore[attr-defined]
            if isinstance(child, ast.If) and _is_type_checking(child.test):
                for part in child.body:
                    yield from walk(ast.Module([part], []), False)
                for part in child.orelse:
                    yield from walk(ast.Module([part], []), immediate)
                continue
            deferred = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from walk(child, immediate and not deferred)

    return walk(tree, True)


def _is_import_call(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    constant = bool(call.args) and isinstance(call.args[0], ast.Constant) and isinstance(call.args[0].value, str)
    return name in ("import_module", "__import__") and constant


def _is_type_checking(test: ast.expr) -> bool:
    return "TYPE_CHECKING" in (getattr(test, "id", ""), getattr(test, "attr", ""))


def violations(path: Path, source: str) -> list[str]:
    package = path.relative_to(ROOT).parts[0]
    found = []
    for name, line, immediate in imported_names(ast.parse(source), package):
        if name not in FORBIDDEN[package]:
            continue
        if composes(path) and not immediate and name != "tests":
            continue
        found.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    return found


def test_packages_import_in_one_direction():
    assert {path.relative_to(ROOT).parts[0] for path in SOURCES} == {"ofmu", "tune", "cluster"}
    assert [found for path in SOURCES for found in violations(path, path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    ("place", "source", "caught"),
    [
        ("ofmu/trainer.py", "import ray.train", True),
        ("ofmu/trainer.py", "from optuna import samplers", True),
        ("ofmu/trainer.py", "def f():\n    if True:\n        from cluster.train.trainer import train", True),
        ("ofmu/trainer.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import tune", True),
        ("ofmu/trainer.py", "from importlib import import_module\nimport_module('ray.tune')", True),
        ("ofmu/trainer.py", "import rayleigh\nfrom . import config\nfrom ofmu import cli", False),
        ("ofmu/cli/search.py", "import tune", True),
        ("ofmu/cli/search.py", "class A:\n    import optuna", True),
        ("ofmu/cli/search.py", "def f():\n    from tune.search import ParetoSearch", False),
        ("ofmu/cli/search.py", "import typing\nif typing.TYPE_CHECKING:\n    import tune", False),
        ("ofmu/cli/search.py", "def f():\n    import tests.conftest", True),
        ("cluster/train/trainer.py", "def f():\n    import tune.search", True),
        ("cluster/train/trainer.py", "import ray\nfrom ofmu import errors", False),
        ("tune/search.py", "import ray, optuna\nfrom cluster.train.trainer import train", False),
    ],
)
def test_the_walk_itself_finds_what_it_should(place, source, caught):
    assert bool(violations(ROOT / place, source)) is caught


def top_level_modules(script: str) -> set[str]:
    """Run ``script`` in a fresh interpreter and return the packages that it has loaded."""
    report = "\nimport json, sys\nprint('\\n' + json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    output = subprocess.run(
        [sys.executable, "-c", script + report], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    return set(json.loads(output.stdout.splitlines()[-1]))


@pytest.mark.parametrize("package", ["ofmu", "tune", "cluster"])
def test_importing_a_package_starts_nothing(package):
    loaded = top_level_modules(f"import {package}")
    assert package in loaded
    assert not {"ray", "deepspeed", "torch"} & loaded


def test_reading_a_config_needs_neither_ray_nor_torch():
    assert not {"ray", "deepspeed", "torch", "optuna"} & top_level_modules("import ofmu.run_config, tune.config")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["search", "--help"], ["unlearn", "--help"]])
def test_help_imports_nothing_slow(arguments):
    loaded = top_level_modules(f"from ofmu.cli.main import main\nassert main({arguments!r}) == 0")
    assert "click" in loaded
    assert not SLOW_TO_IMPORT & loaded


def test_no_file_is_longer_than_it_may_be():
    lengths = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8").count("\n") for path in SOURCES}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_every_preset_is_a_sound_search():
    names = preset_names()
    assert {"quickstart", "tofu"} <= set(names)
    for name in names:
        config = CompareConfig.read(name)
        assert config.objectives
