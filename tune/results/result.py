"""What a search found, read from its run directory: tables, hypervolume, knee, plot and export."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from cluster.storage.mirror import Mirror, below
from ofmu.errors import RunError
from ofmu.io.files import storage_errors
from tune.config import SearchConfig
from tune.results.pareto import knee_index
from tune.results.tables import costs_of, front_table, hypervolume_of, trials_table
from tune.rundir.search_dir import RunDirectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Point:
    """One finished trial of a search."""

    number: int
    values: dict[str, Any]
    """Settings, objectives and metrics, as in the trials' table."""
    directory: Path
    uri: str | None = None
    """Where the directory really is, if not here."""

    def export(self, path: str | Path) -> Path:
        """Copy the trial's model with its metrics and config to ``path``, loadable with ``from_pretrained``.

        Raises:
            RunError: the model was not kept, or ``path`` already holds something.
            StorageError: the copy cannot be written.
        """
        model, target = self.directory / "model", Path(path)
        if self.uri is not None:
            shutil.rmtree(self.directory, ignore_errors=True)
            mirror = Mirror(self.uri, self.directory)
            mirror.pull(mirror.files())
        if not model.is_dir():
            raise RunError(
                f"The model of trial {self.number} was not kept: choose a trial of the front, or search again "
                "with search.keep_models 'all'"
            )
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise RunError(f"{target} already exists: name a new directory for the exported model")
        partial = target.with_name(f"{target.name}.partial")
        with storage_errors(target):
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(model, partial)
            for name in ("metrics.json", "config.yaml"):
                if (self.directory / name).is_file():
                    shutil.copy2(self.directory / name, partial / name)
            if target.exists():
                target.rmdir()
            partial.replace(target)
        return target


@dataclass(frozen=True)
class SearchResult:
    """A search's trials and its front."""

    run_dir: Path
    config: SearchConfig
    hypervolume: float
    hypervolume_reference: dict[str, float]
    """The corner the hypervolume is measured from: each objective's worst possible, or worst seen, value."""
    make_trials: Callable[[], pd.DataFrame] = field(repr=False, compare=False)
    make_front: Callable[[], pd.DataFrame] = field(repr=False, compare=False)
    """The tables are made when they are first asked for: of a long search, each takes a noticeable time."""
    uri: str | None = None
    """Where the run directory really is, if ``run_dir`` is a working copy."""

    @cached_property
    def trials(self) -> pd.DataFrame:
        """One row per trial: settings, objectives, metrics, cost, and the reason where it failed."""
        return self.make_trials()

    @cached_property
    def front(self) -> pd.DataFrame:
        """The complete trials that no other dominates, by the first objective."""
        return self.make_front()

    @classmethod
    def load(cls, run_dir: str | Path) -> SearchResult:
        """Read the search in ``run_dir``, finished or not.

        Raises:
            RunError: there is none.
        """
        run = RunDirectory.existing(run_dir, to_read=True)
        if not run.study_file.is_file():
            raise RunError(f"{run.place} holds no finished trial yet: continue it with --resume {run.place}")
        from tune.study.storage import read_study

        return cls.of(run, run.read_config(), read_study(run.study_file).get_trials(deepcopy=False))

    @classmethod
    def of(cls, run: RunDirectory, config: SearchConfig, study_trials: list[Any]) -> SearchResult:
        """Build the result from the study's trials."""
        trials = trials_table(study_trials, config)
        volume, corner = hypervolume_of(trials, config)
        return cls(run.path, config, volume, corner, lambda: trials, lambda: front_table(trials, config), run.uri)

    @property
    def place(self) -> str:
        """Return how a user names the run directory: its path, or its URI without keys."""
        return RunDirectory(self.run_dir, self.uri).place

    @property
    def knee(self) -> Point:
        """Return the front's point of the best trade-off: the one furthest below the chord of its extremes.

        Raises:
            RunError: no trial is complete.
        """
        self.require_front()
        by_number = self.front.sort_values("trial")
        return self._point(int(by_number["trial"].iloc[knee_index(costs_of(by_number, self.config))]))

    def require_front(self) -> None:
        """Do nothing where a trial is complete.

        Raises:
            RunError: none is; the sentence says where the reasons stand.
        """
        if len(self.front):
            return
        if (self.trials["state"] == "failed").any():
            raise RunError(f"No trial is complete: the column 'reason' of {self.place}/trials.csv says why")
        raise RunError(f"No trial of {self.place} is complete yet: wait for it, or continue it with --resume")

    def pick(self, choice: str | int) -> Point:
        """Return ``'knee'`` or the trial with this number.

        Raises:
            RunError: there is no such complete trial.
        """
        if choice == "knee":
            return self.knee
        complete = self.trials.loc[self.trials["state"] == "complete", "trial"].tolist()
        if not str(choice).isdecimal() or int(choice) not in complete:
            self.require_front()
            front = ", ".join(str(number) for number in self.front["trial"])
            raise RunError(
                f"'{choice}' is no complete trial of {self.place}: pick knee, or one of the front's, {front}"
            )
        return self._point(int(choice))

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw all trials, the front and the landmarks; with ``path``, save the picture too."""
        from tune.results.report import front_figure

        figure = front_figure(self)
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure

    def reference(self) -> dict[str, float]:
        """Return the retrained model's metrics, where the search has a reference and they were stored."""
        path = self.run_dir / "reference.json"
        stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return {name: float(value) for name, value in stored.items() if value is not None}

    def _point(self, number: int) -> Point:
        row = self.trials[self.trials["trial"] == number].iloc[0]
        directory = RunDirectory(self.run_dir).trial(number)
        uri = None if self.uri is None else below(self.uri, f"trials/{directory.name}")
        return Point(number, {str(key): value for key, value in row.dropna().items()}, directory, uri)
