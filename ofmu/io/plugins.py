"""Import the user's own modules that a config names: methods and custom metrics.

A module is code, and not every config is the user's own: a run directory, or the folder of a model, may come from
somebody else. :func:`plugins_restricted` is the one place that decides which modules may be imported.
"""

from __future__ import annotations

import ast
import hashlib
import os
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

from ofmu.errors import ConfigError

ALLOW_CODE = "add --allow-code (in Python: allow_code=True) if you trust whoever wrote both"


@dataclass(frozen=True)
class _Restriction:
    """Which modules may be imported."""

    source: str
    """What names the modules, for errors."""
    allowed: frozenset[str]
    stand_in: bool
    """Whether a method of another module is replaced by a stand-in, so that results can be read without its code."""
    fix: str = ALLOW_CODE
    """What the user can do, for errors."""


_restriction: ContextVar[_Restriction | None] = ContextVar("restriction of plugins", default=None)
"""None: every module may be imported, since the user's own config names it."""
_imported: set[str] = set()
"""The modules that this process has imported. The user's own command named them, so they stay allowed."""


@contextmanager
def plugins_restricted(source: str, allowed: Collection[str], fix: str = ALLOW_CODE) -> Iterator[None]:
    """Refuse to import any module but ``allowed`` inside the block, which reads a config that others may have written.

    Args:
        source: the file or directory that names the modules, for errors.
        allowed: the modules that the user's own command, config or program names.
        fix: what the user can do, for errors.
    """
    token = _restriction.set(_Restriction(source, frozenset(allowed), stand_in=False, fix=fix))
    try:
        yield
    finally:
        _restriction.reset(token)


@contextmanager
def results_only(source: str) -> Iterator[None]:
    """Import no module inside the block, where only results are read: methods of other modules have a stand-in.

    Args:
        source: the file or directory that names the modules, for errors.
    """
    token = _restriction.set(_Restriction(source, frozenset(), stand_in=True))
    try:
        yield
    finally:
        _restriction.reset(token)


def reads_results_only() -> bool:
    """Return whether the caller is inside a block of :func:`results_only`."""
    restriction = _restriction.get()
    return restriction is not None and restriction.stand_in


def allowed_plugins(allow_code: bool | Collection[str]) -> Collection[str] | None:
    """Return the modules that ``allow_code`` allows: None for all of them, else their names."""
    if isinstance(allow_code, bool):
        return None if allow_code else frozenset()
    return allow_code


def check_plugin(module: str, key: str) -> None:
    """Check that a module may be imported, or that a folder may be read whose files run code.

    Args:
        module: the module's dotted name, or the folder.
        key: the config key that names it, for errors. The key of a folder ends in ``_path``.

    Raises:
        ConfigError: a file that others may have written names the module, and the user did not.
    """
    restriction = _restriction.get()
    if restriction is not None and module not in restriction.allowed and module not in _imported:
        what = (
            f"the folder '{module}' in {key}, whose tasks may run code"
            if key.endswith("_path")
            else f"the module '{module}' in {key}, and importing it runs its code"
        )
        raise ConfigError(f"{restriction.source} names {what}: {restriction.fix}")


def import_plugin(module: str, key: str) -> ModuleType:
    """Import a module. Search the working directory last, which an installed command would not search at all.

    Args:
        module: the module's dotted name.
        key: the config key that names the module, for errors.

    Raises:
        ConfigError: the module cannot be found, may not be imported, or raises an error during the import.
    """
    check_plugin(module, key)
    working_directory = os.getcwd()
    if working_directory not in sys.path and "" not in sys.path:
        sys.path.append(working_directory)
    try:
        found = import_module(module)
        _imported.add(module)
        return found
    except ImportError as error:
        raise ConfigError(
            f"{key} '{module}' cannot be imported ({error}): run the command in the module's directory, or install it"
        ) from error
    except Exception as error:
        # A user's module may raise anything. The user must fix the module, so our traceback would not help.
        raise ConfigError(
            f"{key} '{module}' fails while it is imported ({type(error).__name__}: {error}): correct the module"
        ) from error


def plugin_hash(module: str, key: str) -> str:
    """Return the SHA-256 (hex) of a module's source, and of the source beside it that the module imports.

    The source beside a module is everything below the directory from which the module is imported. Of an installed
    package, only the package itself counts.

    Args:
        module: the module's dotted name.
        key: the config key that names the module, for errors.

    Raises:
        ConfigError: the module cannot be imported.
    """
    file = getattr(import_plugin(module, key), "__file__", None)
    digest = hashlib.sha256()
    if file is not None:
        parts = module.split(".")
        levels = len(parts) - (Path(file).name != "__init__.py")
        root = Path(file).resolve().parents[levels]
        installed = root.name in ("site-packages", "dist-packages")
        for name, source in sorted(_sources(module, root, parts[0] if installed else None).items()):
            digest.update(f"{name} {len(source)}\n".encode() + source)
    return digest.hexdigest()


def _sources(module: str, root: Path, package: str | None) -> dict[str, bytes]:
    """Return the source of a module and of all modules below ``root`` that it imports, by name.

    ``package``: only modules of this package count. None: all below ``root`` count.
    """
    found: dict[str, bytes] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        place = root.joinpath(*name.split("."))
        path = next((each for each in (place.with_suffix(".py"), place / "__init__.py") if each.is_file()), None)
        if path is None or name in found or (package is not None and name.partition(".")[0] != package):
            continue
        found[name] = path.read_bytes()
        waiting += _imports(found[name], name if path.name == "__init__.py" else name.rpartition(".")[0])
    return found


def _imports(source: bytes, package: str) -> Iterator[str]:
    """Yield the names that a module imports, with the packages around them."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            around = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*around, *([node.module] if node.module else [])])
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[: end + 1]) for end in range(len(parts)))
