"""The files of the working directory that a job takes along.

Data, runs, virtual environments, caches, secrets, and whatever a link names outside of the directory stay here. Ray
itself uploads the files; :func:`plan_package` gives Ray the patterns of what to leave out. The plan also needs the
exact list of files before the upload: for the size check, and to find a config or a data file that would be missing on
the cluster. Ray has no public function that lists the files, so this module calls the functions with which Ray lists
them.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE
from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE, _dir_travel, _get_excludes

from cluster.jobs.left_out import DATA, EXCLUDED, NO_SECRETS, SECRETS, any_case
from ofmu.config.files import read_mapping
from ofmu.errors import ClusterError, ConfigError, nearest_name
from ofmu.run_config import override

LIMIT: int = min(DASHBOARD_CLIENT_MAX_SIZE, GCS_STORAGE_MAX_SIZE)
"""Maximum size of a package in bytes. The job server's HTTP limit is far below the limit of Ray's store."""

_ZIP_ENTRY_BYTES = 130
"""The two headers of an entry in a zip file, without the name that each contains. Ray does not compress the files."""
_PATH_KEYS = (
    "data.path",
    "data.forget",
    "data.retain",
    "data.holdout",
    "model.path",
    "model.base",
    "reference.path",
    "evaluation.entities",
    "evaluation.lm_eval_path",
)


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

    def missing(self, path: Path) -> Path | None:
        """Return the file, or the first file of the directory, that the package does not contain. None: all are in."""
        files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
        absolute = (Path(os.path.normpath(self.root / each)) for each in files)
        return next((each for each in absolute if not self._holds(each)), None)

    def _holds(self, file: Path) -> bool:
        return file.is_relative_to(self.root) and file.relative_to(self.root).as_posix() in self.sizes


def plan_package(
    root: Path, command: Sequence[str] = (), *, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> Package:
    """Return the files of ``root`` that Ray would upload. Ray also reads .gitignore and .rayignore files.

    Args:
        root: the working directory.
        command: the job's command. Data files that its config names are uploaded.
        include: patterns of :mod:`cluster.jobs.left_out` to upload, with or without their leading slash.
        exclude: further patterns to leave out.

    Raises:
        ConfigError: ``include`` names no such pattern, or the command's config is missing or wrong.
        ClusterError: the package is larger than Ray's limit.
    """
    root = root.absolute()
    names = {pattern.removeprefix("/") for pattern in (*EXCLUDED, *DATA, *SECRETS)}
    wanted = {name.strip("/") for name in include}
    if wanted - names:
        raise ConfigError(_unknown_pattern(sorted(wanted - names)[0], root, names))
    data = [pattern for pattern in DATA if pattern not in wanted]
    rest = [pattern for pattern in EXCLUDED if pattern.removeprefix("/") not in wanted]
    secrets = [
        *(any_case(pattern) for pattern in SECRETS if pattern not in wanted),
        *(f"!{any_case(pattern)}" for pattern in NO_SECRETS),
    ]
    opened = [*_named_data(root, command), *(name for name in wanted if f"/{name}" in EXCLUDED)]
    named = [f"!{_literal(path)}{below}" for path in opened for below in ("", "/**")]
    # Of two patterns that match, the later one counts.
    excludes = (*data, *named, *rest, *secrets, *_folders_and_links_to_skip(root), *exclude)
    sizes = _sizes(root, excludes)
    hidden = [name for name in sizes if _is_second_name_of_a_hidden_file(root, name, sizes)]
    if hidden:
        excludes = (*excludes, *(_literal(name) for name in hidden))
        sizes = _sizes(root, excludes)
    package = Package(root, excludes, sizes)
    if package.bytes > LIMIT:
        name, size = _largest_part(package.sizes)
        raise ClusterError(
            f"The working directory {root} makes a package of {_mib(package.bytes)}, above Ray's limit of "
            f"{_mib(LIMIT)}; its largest part is {name} ({_mib(size)}): leave it out with --exclude /{name}, and put "
            "the files that the job needs on storage that every node sees"
        )
    return package


def left_out_secrets(package: Package) -> dict[str, str]:
    """Return what stays here because of its name alone, with the pattern of :data:`SECRETS` that matches it.

    A folder stands for all of its files. What another pattern or a .gitignore leaves out is not among them.
    """
    patterns = {any_case(pattern) for pattern in SECRETS}
    sizes = _sizes(package.root, [pattern for pattern in package.excludes if pattern not in patterns])
    found = {}
    for name in sorted(sizes.keys() - package.sizes.keys()):
        parts = PurePosixPath(name).parts
        for depth, part in enumerate(parts, start=1):
            pattern = next((each for each in SECRETS if _matches(part, each)), None)
            if pattern is not None:
                found["/".join(parts[:depth]) + "/" * (depth < len(parts))] = pattern
                break
    return found


def check_missing_files(package: Package, command: Sequence[str]) -> None:
    """Check that the command's config, and the files that the config names, are uploaded if they exist here.

    A data file or model that does not exist here is assumed to exist on the cluster.

    Raises:
        ConfigError: a file would be missing on the cluster.
    """
    for source in _config_files(command):
        _check_uploaded("The config", source, package)
    for key, value in _named_paths(package.root, command):
        _check_uploaded(f"{key} names", value, package)


def overrides_of(command: Sequence[str]) -> list[str]:
    """Return the words of the command that set a key of its config."""
    return [word for word in command[1:] if re.match(r"[\w.]+=", word)]


def _config_files(command: Sequence[str]) -> list[str]:
    """Return the config files in the working directory that the command names."""
    positional = [word for word in command[1:2] if not word.startswith("-") and "=" not in word]
    for word, following in zip(command, (*command, "")[1:], strict=True):
        if word.partition("=")[0] == "--benchmark":
            positional.append(word.partition("=")[2] or following)
    return [
        source for source in positional if Path(source).suffix in (".yaml", ".yml") and not Path(source).is_absolute()
    ]


def _named_paths(root: Path, command: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the key and the path of each file or folder in ``root`` that the command's config names."""
    mapping: Mapping[str, Any] = {}
    for source in _config_files(command):
        if (root / source).exists():
            mapping = read_mapping(root / source)
    # The job's own command warns of settings that another method lacks.
    mapping = override(mapping, overrides_of(command), users_own=False)
    for key in _PATH_KEYS:
        section, _, name = key.partition(".")
        value = mapping[section].get(name) if isinstance(mapping.get(section), Mapping) else None
        if isinstance(value, str) and not Path(value).is_absolute() and (root / value).exists():
            yield key, value


def _named_data(root: Path, command: Sequence[str]) -> Iterator[str]:
    """Yield the data files, or folders, that the command's config names, relative to ``root``."""
    for key, value in _named_paths(root, command):
        path = Path(os.path.normpath(root / value))
        if key.startswith(("data.", "reference.")) and path.is_relative_to(root) and path != root:
            yield path.relative_to(root).as_posix()


def _check_uploaded(what: str, path: str, package: Package) -> None:
    if not (package.root / path).exists():
        raise ConfigError(f"{what} {path} does not exist here: correct the path")
    missing = package.missing(package.root / path)
    if missing is None:
        return
    name = os.path.relpath(missing, package.root)
    pattern = _pattern_of(PurePosixPath(name))
    fix = "take it out of the .gitignore" if pattern is None else f"upload it with --include '{pattern}'"
    whole = "which" if name == os.path.normpath(path) else f"whose file {name}"
    raise ConfigError(
        f"{what} {path}, {whole} is not uploaded with the working directory: put it on storage that every node "
        f"sees and name it by its absolute path, or {fix}"
    )


def _unknown_pattern(given: str, root: Path, names: Collection[str]) -> str:
    """Return why ``--include`` cannot take ``given``, and what it takes instead."""
    pattern = _pattern_of(PurePosixPath(given)) if (root / given).exists() else None
    if pattern is not None:
        return f"--include takes a pattern, and the pattern that leaves {given} out is --include '{pattern}'"
    if (root / given).exists():
        return f"--include {given} has no effect: if a .gitignore leaves it out, remove it from that .gitignore"
    return f"--include {given} has no effect: {nearest_name(given, names, limit=5)}"


def _pattern_of(path: PurePosixPath) -> str | None:
    """Return the pattern of :mod:`cluster.jobs.left_out` that leaves the file out, as ``--include`` takes it."""
    is_module = any(_matches(path.name, pattern) for pattern in NO_SECRETS)
    for pattern in (*EXCLUDED, *DATA, *SECRETS):
        parts = path.parts[:1] if pattern.startswith("/") else path.parts
        if is_module and pattern in SECRETS:
            parts = parts[:-1]
        name = pattern.removeprefix("/")
        if any(_matches(part, name) for part in parts):
            return name
    return None


def _matches(part: str, pattern: str) -> bool:
    return fnmatchcase(part.lower(), pattern.lower())


def _folders_and_links_to_skip(root: Path) -> Iterator[str]:
    """Yield patterns for what names do not show: run directories, virtual environments, links, and special files.

    A link to a file in ``root`` is followed. A link to a folder is followed unless Ray could walk in circles.
    """
    top, links = root.resolve(), []
    for folder, subfolders, files in os.walk(root):
        is_run = "study.log" in files or ("config.yaml" in files and "trials" in subfolders)
        if Path(folder) != root and (is_run or "pyvenv.cfg" in files):
            yield _literal(Path(folder).relative_to(root).as_posix())
            subfolders.clear()
            continue
        for name in (*subfolders, *files):
            path = Path(folder, name)
            if path.is_symlink():
                links.append(path)
            elif name in files and not stat.S_ISREG(path.lstat().st_mode):
                yield _literal(path.relative_to(root).as_posix())
        subfolders[:] = [name for name in subfolders if name not in (".git", "__pycache__", "node_modules")]
    for link in links:
        target = Path(os.path.realpath(link))
        is_inside = target.is_relative_to(top) and target.exists()
        if not is_inside or any(Path(os.path.realpath(other.parent)).is_relative_to(target) for other in links):
            yield _literal(link.relative_to(root).as_posix())


def _is_second_name_of_a_hidden_file(root: Path, name: str, sizes: Mapping[str, int]) -> bool:
    """Return whether a file is reached through a link, and is left out under its own name."""
    real = Path(os.path.realpath(root / name))
    top = root.resolve()
    return not real.is_relative_to(top) or real.relative_to(top).as_posix() not in sizes


def _literal(name: str) -> str:
    """Return the pattern that matches one path of the working directory."""
    return "/" + re.sub(r"([\\*?\[\]! ])", r"\\\1", name)


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
