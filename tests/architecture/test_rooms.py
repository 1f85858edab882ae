"""The graph of rooms, drawn from every import: at the top of a file, inside functions and under TYPE_CHECKING.

A room is a folder without sub-folders. A file that stands beside sub-folders is a room of its own: such files compose
the folders beside them, or define what these folders share.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("ofmu", "tune", "cluster")
LAYERS = ("ofmu", "cluster", "tune")
"""From the lowest package to the highest. A package imports from itself and from lower packages."""


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def source_files() -> dict[str, Path]:
    return {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported_modules(tree: ast.AST, module: str, known: frozenset[str], is_package: bool) -> Iterator[str]:
    """Yield the modules of this project that a file names in any import statement."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".") if is_package else module.split(".")[:-1]
            base = ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])
            base = base if node.level else str(node.module)
            names = [name if (name := f"{base}.{alias.name}") in known else base for alias in node.names]
        else:
            continue
        yield from (name for name in names if name in known and name != module)


@cache
def file_graph() -> dict[str, set[str]]:
    files = source_files()
    known = frozenset(files)
    return {
        name: set(imported_modules(tree_of(path), name, known, path.name == "__init__.py"))
        for name, path in files.items()
    }


@cache
def folders_with_rooms() -> frozenset[Path]:
    return frozenset(path.parent.parent for path in source_files().values())


def room_of(module: str) -> str:
    folder = source_files()[module].parent
    return module if folder in folders_with_rooms() else ".".join(folder.relative_to(ROOT).parts)


def room_graph() -> dict[str, set[str]]:
    rooms: dict[str, set[str]] = {}
    for module, others in file_graph().items():
        room = rooms.setdefault(room_of(module), set())
        room |= {room_of(other) for other in others}
    return {room: others - {room} for room, others in rooms.items()}


def circle_in(graph: Mapping[str, set[str]]) -> list[str]:
    """Return the nodes of one circle, or nothing."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_circle_between_files():
    assert circle_in(file_graph()) == []


def test_no_circle_between_rooms():
    assert circle_in(room_graph()) == []


def test_no_package_imports_from_a_higher_one():
    # ofmu.cli is the command line, which composes the three packages
    upward = [
        f"{module} imports {other}"
        for module, others in file_graph().items()
        for other in others
        if not module.startswith("ofmu.cli") and layer(other) > layer(module)
    ]
    assert upward == []


def layer(module: str) -> int:
    return LAYERS.index(module.partition(".")[0])


def test_every_room_is_a_package_with_a_docstring():
    folders = {path.parent for path in source_files().values()}
    missing = [str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").is_file()]
    assert missing == []
    silent = [name for name, path in source_files().items() if not ast.get_docstring(tree_of(path))]
    assert silent == []


def late_imports(source: str, packages: tuple[str, ...] = PACKAGES) -> list[int]:
    """Return the lines of imports of our own modules inside functions, without a comment above their block."""
    lines, found = source.splitlines(), []
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] in packages:
                above = node.lineno - 2
                while lines[above].strip().startswith(("from ", "import ")):
                    above -= 1
                if not lines[above].strip().startswith("#"):
                    found.append(node.lineno)
    return found


def test_every_late_import_of_our_own_states_its_reason():
    # commands import late by the rule that the docstring of ofmu.cli states
    silent = [
        f"{name}:{line}"
        for name, path in source_files().items()
        if not name.startswith("ofmu.cli.")
        for line in late_imports(path.read_text(encoding="utf-8"))
    ]
    assert silent == []


def test_a_late_import_is_found_unless_it_states_its_reason():
    silent = "import os\ndef f():\n    x = 1\n    import re\n    from ofmu import errors\n"
    assert late_imports(silent) == [5]
    assert late_imports(silent.replace("x = 1", "# it loads torch")) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import ofmu.errors", {"ofmu.errors"}),
        ("from ofmu import errors", {"ofmu.errors"}),
        ("from ofmu.errors import OfmuError", {"ofmu.errors"}),
        ("from .errors import OfmuError", {"ofmu.errors"}),
        ("def f():\n    from ofmu import errors", {"ofmu.errors"}),
        ("if TYPE_CHECKING:\n    from ofmu.errors import OfmuError", {"ofmu.errors"}),
        ("import torch", set()),
    ],
)
def test_the_walk_finds_every_kind_of_import(source, found):
    known = frozenset({"ofmu", "ofmu.errors", "ofmu.trainer"})
    assert set(imported_modules(ast.parse(source), "ofmu.trainer", known, is_package=False)) == found


def test_a_circle_is_found():
    assert set(circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}})) == {"b", "c"}
