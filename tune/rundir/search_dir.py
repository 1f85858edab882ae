"""The directory of a search: where everything lies, how it is written so that a kill leaves no half file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from cluster.storage.mirror import Mirror, is_uri, without_keys
from ofmu.config.files import validate
from ofmu.errors import RunError
from tune.config import SearchConfig
from tune.rundir.locked import OwnedDirectory
from tune.rundir.sync import STUDY, DriverFiles, folder_of

_STUDY_OF_0_1 = "study.db"


@dataclass(frozen=True)
class RunDirectory(OwnedDirectory):
    """Paths in the directory of one search."""

    kind = "search"
    command_name = "search"
    folder_name = "trials"
    resumable = (
        "search.num_trials",
        "search.max_gradient_evaluations",
        "search.max_concurrent",
        "search.keep_models",
        "cluster.",
    )

    uri: str | None = None
    """Where the directory really is, if not here; ``path`` is then this machine's working copy."""
    _driver: list[DriverFiles] = field(default_factory=list, repr=False, compare=False)

    @classmethod
    def fresh(cls, path: str | Path | None) -> Self:
        """Return a directory, not yet made; None names one under ``runs/``, and a URI is mirrored in the cache.

        Raises:
            RunError: a run already lies there.
            StorageError: the URI's storage refuses.
        """
        if path is None or not is_uri(path):
            return super().fresh(path)
        made = cls(folder_of(str(path), "work"), str(path))
        made.mirror().require_bucket()
        if made.mirror().has("config.yaml"):
            raise RunError(
                f"{made.place} already holds a run: continue it with --resume {made.place}, or name another directory"
            )
        return made

    @classmethod
    def existing(cls, path: str | Path, *, to_read: bool = False) -> Self:
        """Return a directory in which a search was started before; ``to_read``: only to look at what it found.

        Raises:
            RunError: it is none, or ofmu 0.1 wrote it.
            StorageError: the URI's storage refuses.
        """
        if not is_uri(path):
            local = super().existing(path)
            local._check_version(lambda name: (local.path / name).is_file())
            return local
        found = cls(folder_of(str(path), "view" if to_read else "work"), str(path))
        mirror = found.mirror()
        if not mirror.has("config.yaml"):
            raise RunError(f"There is no run directory {found.place}: check the URI")
        found._check_version(mirror.has)
        wanted = ["config.yaml", "search.json", "reference.json", *([STUDY] if to_read else [])]
        mirror.pull([name for name in wanted if mirror.has(name)])
        return found

    @property
    def place(self) -> str:
        """Return how a user names the directory: its path, or its URI without keys."""
        return str(self.path) if self.uri is None else without_keys(self.uri)

    def _check_version(self, has: Callable[[str], bool]) -> None:
        if has(_STUDY_OF_0_1) and not has(STUDY):
            raise RunError(
                f"{self.place} was written by ofmu 0.1, and its study ({_STUDY_OF_0_1}) cannot be read: "
                "read or finish it with ofmu 0.1, or start a new search in another directory"
            )

    def mirror(self) -> Mirror:
        """Return the way to the URI."""
        if self.uri is None:
            raise ValueError("a local directory has no mirror")
        return Mirror(self.uri, self.path)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory for one process at a time; one at a URI is fetched first, and kept in step until the end.

        Raises:
            RunError: another process is at work in it.
            StorageError: the URI's storage refuses.
        """
        with super().lock():
            if self.uri is None:
                yield
                return
            driver = DriverFiles(self.mirror())
            driver.open()
            self._driver.append(driver)
            try:
                yield
            except BaseException:
                driver.close(orderly=False)
                raise
            else:
                driver.close(orderly=True)
            finally:
                self._driver.clear()

    def changed(self, *, check: bool = True) -> None:
        """Note that files here have changed.

        Raises:
            StorageError: with ``check``, where an earlier change could not be sent.
        """
        for driver in self._driver:
            driver.changed(check=check)

    def fetch_trial(self, number: int) -> None:
        """Fetch what a trial left at the URI but for its model."""
        for driver in self._driver:
            driver.fetch_trial(f"{number:05d}")

    @property
    def study_file(self) -> Path:
        """The Optuna study, a journal file."""
        return self.path / STUDY

    @property
    def rungs_file(self) -> Path:
        """What trials reported on their way, for early stopping: JSON lines."""
        return self.path / "rungs.jsonl"

    @property
    def warm_start_file(self) -> Path:
        """What earlier searches gave to this one; see :mod:`tune.study.warm_start`."""
        return self.path / "warm_start.json"

    @property
    def trials(self) -> Path:
        """The folder of the trials' directories."""
        return self.folder

    def trial(self, number: int) -> Path:
        """Return the directory of one trial."""
        return self.trials / f"{number:05d}"

    def read_config(self, overrides: Sequence[str] = ()) -> SearchConfig:
        """Return the stored config, with overrides of what may change when a search is continued.

        Raises:
            ConfigError: an override would make the finished trials incomparable with the coming ones.
        """
        return validate(SearchConfig, self.read_mapping(overrides))

    def write_config(self, config: SearchConfig) -> None:
        """Store the config and a description of this machine."""
        self.write_mapping(config.model_dump(mode="json"), again=True)

    def delete_model(self, number: int) -> None:
        """Remove a finished trial's model; its metrics and config stay."""
        self._delete(number, "model")

    def delete_models(self, ended: Iterable[int], front: Container[int], keep: str) -> None:
        """Remove the models of some ended trials, as far as ``search.keep_models`` does not keep them."""
        if keep == "all":
            return
        for number in ended:
            if keep == "none" or number not in front:
                self.delete_model(number)

    def seconds(self) -> float:
        """Return for how long the search has been at work, as far as its reports say."""
        path = self.path / "search.json"
        return float(json.loads(path.read_text(encoding="utf-8"))["seconds"]) if path.is_file() else 0.0

    def delete_checkpoints(self, number: int) -> None:
        """Remove what only an unfinished trial needs; a failed one would keep it otherwise."""
        for name in ("checkpoints", "ray_train"):
            self._delete(number, name)

    def _delete(self, number: int, name: str) -> None:
        folder = self.trial(number) / name
        shutil.rmtree(folder, ignore_errors=True)
        for driver in self._driver:
            driver.delete(folder.relative_to(self.path).as_posix())
