"""The files of the working directory that a job takes along.

Data, runs, virtual environments, caches and secrets stay here. Ray itself uploads the files; :func:`plan_package` gives
Ray the patterns of what to leave out. The plan also needs the exact list of files before the upload: for the size
check, and to find a config or a data file that would be missing on the cluster. Ray has no public function that lists
the files, so this module calls the functions with which Ray lists them.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE
from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE, _dir_travel, _get_excludes

from ofmu.config.files import read_mapping
from ofmu.errors import ClusterError, ConfigError
from ofmu.run_config import override

LIMIT: int = min(DASHBOARD_CLIENT_MAX_SIZE, GCS_STORAGE_MAX_SIZE)
"""Maximum size of a package in bytes. The job server's HTTP limit is far below the limit of Ray's store."""

EXCLUDED = (
    "/data", "/datasets", "/models", "/checkpoints", "/runs", "/build", "/dist",
    "*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.arrow", "*.parquet",
    ".git", ".hg", ".svn", ".venv", "venv", "node_modules", "*.egg-info",
    "__pycache__", "*.pyc", ".cache", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis",
    ".tox", ".nox", ".ipynb_checkpoints",
    ".env", ".netrc", "*.pem",
)  # fmt: skip
"""Patterns with the syntax of a .gitignore. A leading slash stands for the working directory itself. The last line is
for secrets."""

_ZIP_ENTRY_BYTES = 130
"""The two headers of an entry in a zip file, without the name that each contains. Ray does not compress the files."""
_PATH_KEYS = ("data.path", "data.forget", "data.retain", "data.holdout", "model.path", "model.base", "reference.path")


@dataclass(frozen=True)
class Package:
    """The files to upload, and the patterns that make Ray leave out all other files."""

    root: Path
    excludes: tuple[str, ...]
    sizes: Mapping[str, int]
    """Size in bytes by path. Paths are relative to ``root`` and contain slashes."""

    @property
    def bytes(self) -> int:
        """Size of the upload."""
        return sum(size + _ZIP_ENTRY_BYTES + 2 * len(name.encode()) for name, size in self.sizes.items())

    def holds(self, path: Path) -> bool:
        """Return whether the package contains the file, or every file of the directory."""
        files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
        absolute = (Path(os.path.normpath(self.root / each)) for each in files)
        return all(
            each.is_relative_to(self.root) and each.relative_to(self.root).as_posix() in self.sizes for each in absolute
        )


def plan_package(root: Path, *, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Package:
    """Return the files of ``root`` that Ray would upload. Ray also reads .gitignore and .rayignore files.

    Args:
        root: the working directory.
        include: entries of :data:`EXCLUDED` to upload, with or without their leading slash.
        exclude: further patterns to leave out.

    Raises:
        ConfigError: ``include`` names something that is not in :data:`EXCLUDED`.
        ClusterError: the package is larger than Ray's limit.
    """
    root = root.absolute()
    names = {pattern.removeprefix("/") for pattern in EXCLUDED}
    wanted = {name.strip("/") for name in include}
    if wanted - names:
        raise ConfigError(
            f"--include {sorted(wanted - names)[0]} has no effect: it takes one of {', '.join(sorted(names))}, and a "
            "file that a .gitignore leaves out must be removed from that .gitignore"
        )
    kept = [pattern for pattern in EXCLUDED if pattern.removeprefix("/") not in wanted]
    excludes = (*kept, *_run_and_environment_folders(root), *exclude)
    package = Package(root, excludes, _sizes(root, excludes))
    if package.bytes > LIMIT:
        name, size = _largest_part(package.sizes)
        raise ClusterError(
            f"The working directory {root} makes a package of {_mib(package.bytes)}, above Ray's limit of "
            f"{_mib(LIMIT)}; its largest part is {name} ({_mib(size)}): leave it out with --exclude /{name}, and put "
            "the files that the job needs on storage that every node sees"
        )
    return package


def check_missing_files(package: Package, command: Sequence[str]) -> None:
    """Check that the command's config, and the files that the config names, are uploaded if they exist here.

    A data file or model that does not exist here is assumed to exist on the cluster.

    Raises:
        ConfigError: a file would be missing on the cluster.
    """
    positional = [word for word in command[1:2] if not word.startswith("-") and "=" not in word]
    for word, following in zip(command, (*command[1:], ""), strict=True):
        if word.partition("=")[0] == "--benchmark":
            positional.append(word.partition("=")[2] or following)
    mapping: Mapping[str, Any] = {}
    for source in positional:
        if Path(source).suffix not in (".yaml", ".yml") or Path(source).is_absolute():
            continue
        _check_uploaded("The config", source, package)
        mapping = read_mapping(package.root / source)
    overrides = [word for word in command[1:] if re.match(r"[\w.]+=", word)]
    mapping = override(mapping, overrides)
    for key in _PATH_KEYS:
        section, _, name = key.partition(".")
        value = mapping[section].get(name) if isinstance(mapping.get(section), Mapping) else None
        if isinstance(value, str) and not Path(value).is_absolute() and (package.root / value).exists():
            _check_uploaded(f"{key} names", value, package)


def _check_uploaded(what: str, path: str, package: Package) -> None:
    if not (package.root / path).exists():
        raise ConfigError(f"{what} {path} does not exist here: correct the path")
    if not package.holds(package.root / path):
        names = {pattern.removeprefix("/") for pattern in EXCLUDED}
        patterns = [each for each in (*PurePosixPath(path).parts, f"*{PurePosixPath(path).suffix}") if each in names]
        fix = f"upload it with --include '{patterns[0]}'" if patterns else "take it out of the .gitignore"
        raise ConfigError(
            f"{what} {path}, which is not uploaded with the working directory: put it on storage that every node "
            f"sees and name it by its absolute path, or {fix}"
        )


def _run_and_environment_folders(root: Path) -> Iterator[str]:
    """Yield patterns for run directories and virtual environments. Their content identifies them, not their names."""
    for folder, subfolders, files in os.walk(root):
        is_run = "study.log" in files or ("config.yaml" in files and "trials" in subfolders)
        if Path(folder) != root and (is_run or "pyvenv.cfg" in files):
            relative = Path(folder).relative_to(root).as_posix()
            yield "/" + re.sub(r"([\\*?\[\]! ])", r"\\\1", relative)
            subfolders.clear()
        subfolders[:] = [name for name in subfolders if name not in (".git", "__pycache__", "node_modules")]


def _sizes(root: Path, excludes: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}

    def add(path: Path) -> None:
        if path.is_file():
            found[path.relative_to(root).as_posix()] = path.stat().st_size

    # Ray would log every .gitignore, every large file and every folder that Ray itself leaves out.
    for name in ("packaging", "working_dir"):
        logging.getLogger(f"ray._private.runtime_env.{name}").setLevel(logging.ERROR)
    ignore = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0") != "1"
    _dir_travel(root, [_get_excludes(root, list(excludes))], add, include_gitignore=ignore)
    return found


def _largest_part(sizes: Mapping[str, int]) -> tuple[str, int]:
    """Return the path and the bytes of the deepest folder, or file, that has most of its parent folder's bytes."""
    prefix, total = "", 0
    while True:
        parts: dict[str, int] = {}
        for name, size in sizes.items():
            if name.startswith(prefix):
                head, slash, _ = name.removeprefix(prefix).partition("/")
                parts[head + slash] = parts.get(head + slash, 0) + size
        largest = max(parts, key=lambda part: parts[part])
        if prefix and (not largest.endswith("/") or 2 * parts[largest] <= total):
            return prefix.rstrip("/"), total
        prefix, total = prefix + largest, parts[largest]
        if not largest.endswith("/"):
            return prefix, total


def _mib(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"
