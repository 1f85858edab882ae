"""The directory of a search, on a disk or at a URI."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from cluster.storage.mirror import Mirror
from cluster.storage.uri import is_uri, without_credentials
from ofmu.config.files import validate
from ofmu.errors import RunError
from ofmu.io.files import write_json
from ofmu.io.plugins import check_plugin, plugins_restricted, results_only
from ofmu.io.text import shell_word
from ofmu.run_files import CONFIG, CONTENT, ENVIRONMENT, MODEL, REPORT, read_stored, stored_values
from tune.config import SearchConfig
from tune.rundir.locked import LockedDirectory
from tune.rundir.search_files import (
    CONFIRMATION,
    CONFIRMATION_RUNS,
    FRONT_PLOT,
    FRONT_TABLE,
    REFERENCE,
    ROUNDS,
    RUNGS,
    STUDY,
    SUMMARY,
    TRIALS,
    TRIALS_TABLE,
    WARM_START,
    SearchSummary,
)
from tune.rundir.seed_runs import Confirmation
from tune.rundir.sync import RunDirectorySync, local_folder
from tune.rundir.trial_files import TEMPORARY_FOLDERS, TrialFiles

_STUDY_OF_0_1 = "study.db"


@dataclass(frozen=True)
class RunDirectory(LockedDirectory):
    """Paths, readers and writers of one search's directory. Every writer raises StorageError if the disk refuses.

    If the search is at a URI, ``path`` is this machine's working copy. A thread then copies changed files to the URI
    while the directory is locked.
    """

    kind = "search"
    command_name = "search"
    folder_name = TRIALS
    levels = 2
    resumable = (
        "search.num_trials",
        "search.max_gradient_evaluations",
        "search.max_hours",
        "search.max_concurrent_trials",
        "search.keep_models",
        "search.confirm_seeds",
        "search.confirm_points",
        "search.confirm_trials",
        "cluster.",
        "tracking",
    )
    written = (
        STUDY,
        TRIALS_TABLE,
        FRONT_TABLE,
        FRONT_PLOT,
        SUMMARY,
        REFERENCE,
        RUNGS,
        ROUNDS,
        WARM_START,
        CONFIRMATION,
        CONFIRMATION_RUNS,
    )

    uri: str | None = None
    """The URI of the directory; None for a directory on a disk."""
    _syncs: list[RunDirectorySync] = field(default_factory=list, repr=False, compare=False)
    """The running copy to the URI while the directory is locked, else empty."""

    @classmethod
    def create_new(cls, path: str | Path | None) -> Self:
        """Return the directory of a new search. Nothing is written; :meth:`mkdir` makes the directory.

        Args:
            path: a path or a URI. None names a directory under ``runs/``. A URI gets a working copy in the cache.

        Raises:
            RunError: a run is already there.
            StorageError: the URI's storage refuses.
        """
        if path is None or not is_uri(path):
            return super().create_new(path)
        new = cls(local_folder(str(path), "work"), str(path))
        new.mirror().require_bucket()
        if new.mirror().has(CONFIG):
            raise RunError(
                f"{new.display_path} already holds a run: continue it with --resume "
                f"{shell_word(new.display_path)}, or name another directory"
            )
        for name in (CONTENT, ENVIRONMENT, REPORT, *cls.written):
            if new.mirror().has(name):
                raise RunError(f"{new.display_path} holds {name}, which a search would replace: name another directory")
        return new

    @classmethod
    def open_existing(cls, path: str | Path, *, to_read: bool = False) -> Self:
        """Return the directory of a search that was started before.

        Args:
            path: a path or a URI.
            to_read: True if the caller only reads results. Of a search at a URI, the study is then downloaded to a
                copy that a running search does not use.

        Raises:
            RunError: there is no such directory, it belongs to no search, or ofmu 0.1 wrote it.
            StorageError: the URI's storage refuses.
        """
        if not is_uri(path):
            local = super().open_existing(path)
            local._check_version(lambda name: (local.path / name).is_file())
            return local
        found = cls(local_folder(str(path), "view" if to_read else "work"), str(path))
        mirror = found.mirror()
        if not mirror.has(CONFIG):
            raise RunError(f"There is no run directory {found.display_path}: check the URI")
        found._check_version(mirror.has)
        wanted = [CONFIG, CONTENT, SUMMARY, REFERENCE, *([STUDY] if to_read else [])]
        mirror.pull([name for name in wanted if mirror.has(name)])
        return found

    @property
    def display_path(self) -> str:
        """The name that users type for the directory: its path, or its URI without credentials."""
        return str(self.path) if self.uri is None else without_credentials(self.uri)

    def resume_words(self, config: SearchConfig) -> str:
        """Return what follows ``--resume`` in the command that continues the search."""
        return f"{shell_word(self.display_path)}{' --allow-code' if config.plugins else ''}"

    def _check_version(self, has: Callable[[str], bool]) -> None:
        if has(_STUDY_OF_0_1) and not has(STUDY):
            raise RunError(
                f"{self.display_path} was written by ofmu 0.1, and its study ({_STUDY_OF_0_1}) cannot be read: "
                "read or finish it with ofmu 0.1, or start a new search in another directory"
            )

    @property
    def study_file(self) -> Path:
        """The Optuna study, a journal file."""
        return self.path / STUDY

    @property
    def trials_table(self) -> Path:
        """One row per trial, as CSV."""
        return self.path / TRIALS_TABLE

    @property
    def front_table(self) -> Path:
        """One row per trial of the front, as CSV."""
        return self.path / FRONT_TABLE

    @property
    def front_plot(self) -> Path:
        """The plot of the front."""
        return self.path / FRONT_PLOT

    @property
    def summary_file(self) -> Path:
        """Counts, hypervolume and front, as JSON."""
        return self.path / SUMMARY

    @property
    def reference_file(self) -> Path:
        """The retrained model's metrics, as JSON."""
        return self.path / REFERENCE

    @property
    def rungs_file(self) -> Path:
        """The intermediate values that early stopping decides on, as JSON lines."""
        return self.path / RUNGS

    @property
    def rounds_file(self) -> Path:
        """The scores of rounds that checkpoint selection decides on, as JSON lines."""
        return self.path / ROUNDS

    @property
    def warm_start_file(self) -> Path:
        """The trials and settings that earlier searches give to this search, as JSON."""
        return self.path / WARM_START

    @property
    def confirmation_file(self) -> Path:
        """The results of the front's points on further seeds, as JSON."""
        return self.path / CONFIRMATION

    def confirmation_run(self, trial: int, seed: int) -> Path:
        """Return the directory of one point's run on a further seed."""
        return self.path / CONFIRMATION_RUNS / f"{trial:05d}-seed{seed}"

    def confirmation_runs(self) -> list[Path]:
        """Return the directories of all runs on further seeds, also those of points that were chosen earlier."""
        folder = self.path / CONFIRMATION_RUNS
        return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []

    @property
    def trials(self) -> Path:
        """The folder of the trials' directories."""
        return self.folder

    def trial(self, number: int) -> Path:
        """Return the directory of one trial."""
        return self.trials / f"{number:05d}"

    def read_config(
        self, overrides: Sequence[str] = (), *, plugins: Collection[str] | None = frozenset()
    ) -> SearchConfig:
        """Return the stored config, with the overrides of a resume. It can be run: modules that it names are imported.

        Args:
            overrides: entries such as ``search.num_trials=64``.
            plugins: the modules of the user that the config may name, since the directory may come from somebody else.
                None: all modules.

        Raises:
            ConfigError: an override changes a key that a resume may not change, or the config names another module.
        """
        mapping = self.read_mapping(overrides)
        if plugins is None:
            return validate(SearchConfig, mapping)
        with plugins_restricted(self._config_name, plugins):
            config = validate(SearchConfig, mapping)
            for module, key in config.plugins.items():
                check_plugin(module, key)
        return config

    def read_config_of_results(self) -> SearchConfig:
        """Return the stored config, for the results of the search. No module that it names is imported."""
        with results_only(self._config_name):
            return validate(SearchConfig, self.read_mapping())

    @property
    def _config_name(self) -> str:
        return f"{self.display_path}/{CONFIG}"

    def write_config(self, config: SearchConfig) -> None:
        """Store the config, the environment and the command line."""
        self.write_mapping(config.model_dump(mode="json"), replace_environment=True)

    def write_summary(self, summary: SearchSummary) -> None:
        """Write ``search.json``."""
        write_json(self.summary_file, summary.to_json())

    def read_summary(self) -> SearchSummary | None:
        """Return what ``search.json`` holds; None before the first report."""
        stored = read_stored(self.summary_file)
        with stored_values(self.summary_file):
            return None if stored is None else SearchSummary.from_json(stored)

    def seconds(self) -> float:
        """Return the seconds of search that the last report counts, over all sessions; 0 before the first report."""
        summary = self.read_summary()
        return 0.0 if summary is None else summary.seconds

    def write_confirmation(self, confirmation: Confirmation) -> None:
        """Write ``confirmation.json``."""
        write_json(self.confirmation_file, confirmation.model_dump(mode="json"))

    def read_confirmation(self) -> Confirmation | None:
        """Return what ``confirmation.json`` holds; None if no point was run again."""
        stored = read_stored(self.confirmation_file)
        with stored_values(self.confirmation_file):
            return None if stored is None else Confirmation.model_validate(stored)

    def write_reference(self, metrics: Mapping[str, float | None]) -> None:
        """Write the retrained model's metrics."""
        write_json(self.reference_file, dict(metrics))

    def read_reference(self) -> dict[str, float]:
        """Return the retrained model's metrics that are numbers; an empty dict if none were stored."""
        stored = read_stored(self.reference_file) or {}
        with stored_values(self.reference_file):
            return {name: float(value) for name, value in stored.items() if value is not None}

    def delete_model(self, number: int) -> None:
        """Delete a finished trial's model. Metrics and config stay."""
        self._delete(number, MODEL)

    def delete_models(self, ended: Iterable[int], front: Container[int], keep: str) -> None:
        """Delete the models that ``search.keep_models`` does not keep.

        Args:
            ended: numbers of trials that ended.
            front: numbers of the front's trials.
            keep: the value of ``search.keep_models``.
        """
        if keep == "all":
            return
        for number in ended:
            if keep == "none" or number not in front:
                self.delete_model(number)

    def delete_checkpoints(self, number: int) -> None:
        """Delete the folders that only an unfinished trial needs. A failed run does not delete them itself."""
        for name in TEMPORARY_FOLDERS:
            self._delete(number, name)

    def _delete(self, number: int, name: str) -> None:
        files = TrialFiles(self.trial(number))
        files.delete_folders([name])
        for sync in self._syncs:
            sync.delete((files.directory / name).relative_to(self.path).as_posix())

    def mirror(self) -> Mirror:
        """Return the mirror between the working copy and the URI.

        Raises:
            ValueError: the directory is on a disk.
        """
        if self.uri is None:
            raise ValueError("a local directory has no mirror")
        return Mirror(self.uri, self.path)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the directory against other processes.

        If the directory is at a URI, download it first, and copy changed files to the URI until the block ends.

        Raises:
            RunError: another process holds the lock.
            StorageError: the URI's storage refuses.
        """
        with super().lock():
            if self.uri is None:
                yield
                return
            sync = RunDirectorySync(self.mirror())
            sync.open()
            self._syncs.append(sync)
            try:
                yield
            except BaseException:
                sync.close(raise_errors=False)
                raise
            else:
                sync.close(raise_errors=True)
            finally:
                self._syncs.clear()

    def mark_dirty(self, *, check: bool = True) -> None:
        """Record that files of the working copy changed. Without a URI, do nothing.

        Args:
            check: whether to raise the error of an earlier copy.

        Raises:
            StorageError: with ``check``, an earlier copy to the URI failed.
        """
        for sync in self._syncs:
            sync.mark_dirty(check=check)

    def fetch_trial(self, number: int) -> None:
        """Download a trial's files from the URI, without its large folders. Without a URI, do nothing."""
        for sync in self._syncs:
            sync.fetch_trial(self.trial(number).name)
