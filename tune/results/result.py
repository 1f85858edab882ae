"""The result of a search: tables, hypervolume, knee, plot and model export."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pandas as pd

from cluster.storage.mirror import Mirror
from cluster.storage.uri import join_uri
from ofmu.config.files import shortened
from ofmu.errors import RunError
from ofmu.io.files import storage_errors
from ofmu.io.folders import holds_something, new_folder
from ofmu.io.text import shell_word
from ofmu.reports.model_card import CARD, write_card_or_warn
from ofmu.reports.stored import StoredRun
from ofmu.run_files import CONFIG, HISTORY, METRICS, PRUNED, SCORES, RunFiles, check_no_links, stored_values
from tune.config import SearchConfig
from tune.pareto import as_costs, hypervolume, knee_index
from tune.results.plot import front_figure
from tune.results.tables import (
    check_round,
    complete_of_role,
    costs_of,
    feasible_rows,
    front_table,
    hypervolume_of,
    lost_objectives,
    split_round,
    trial_name,
    trials_table,
)
from tune.results.text import front_lines
from tune.rundir.search_dir import RunDirectory
from tune.rundir.search_files import TRIALS, TRIALS_TABLE
from tune.rundir.seed_runs import Confirmation, ConfirmedPoint, PointRuns
from tune.space.constraints import Limits, broken_sentence
from tune.study.baselines import TARGET
from tune.study.checks import check_results_are_stored, check_study
from tune.study.limits import read_limits
from tune.study.storage import read_study

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
    """The URI of the trial's directory; None if the search is on a disk."""

    @property
    def name(self) -> str:
        """How the point is called: ``trial 17``, or ``trial 17, round 24`` if its search selects rounds."""
        return f"trial {trial_name({**self.values, 'trial': self.number})}"

    def fetch(self) -> Path:
        """Return the trial's directory. Of a search at a URI, the trial's small files are downloaded first.

        Raises:
            StorageError: the URI's storage refuses.
        """
        if self.uri is not None:
            mirror = Mirror(self.uri, self.directory)
            mirror.pull([name for name in (CONFIG, HISTORY, METRICS, PRUNED, SCORES) if mirror.has(name)])
        return self.directory

    def export(self, path: str | Path, *, of_request: bool = False) -> Path:
        """Copy the trial's model, metrics and config to ``path``, and write a model card. ``from_pretrained`` loads it.

        For ``of_request`` see :func:`ofmu.reports.model_card.model_card`.

        Raises:
            RunError: the model was not kept, ``path`` is a file or holds something, or the directory of the trial
                holds a link.
            StorageError: the copy cannot be written.
        """
        files, target = RunFiles(self.directory), Path(path)
        if self.uri is not None:
            shutil.rmtree(self.directory, ignore_errors=True)
            mirror = Mirror(self.uri, self.directory)
            mirror.pull(mirror.files())
        check_no_links(self.directory, depth=1)
        if not files.model.is_dir():
            raise RunError(
                f"The model of trial {self.number} was not kept: choose a trial of the front, or search again "
                "with search.keep_models 'all'"
            )
        check_no_links(self.directory)
        with storage_errors(target):
            if target.is_symlink() and not target.exists():
                raise RunError(f"{target} is a link that leads nowhere: name a new directory for the exported model")
            if target.exists() and (not target.is_dir() or holds_something(target)):
                raise RunError(f"{target} already exists and is not empty: name a new directory for the exported model")
            with new_folder(target) as partial:
                shutil.copytree(files.model, partial, dirs_exist_ok=True)
                for source in (files.metrics, files.config):
                    if source.is_file():
                        shutil.copy2(source, partial / source.name)
                # A loop of the user's own may make models without the files of a run.
                if files.metrics.is_file() and files.config.is_file() and not (partial / CARD).exists():
                    write_card_or_warn(StoredRun(self.directory), partial, of_request=of_request)
        return target


@dataclass(frozen=True)
class SearchResult:
    """A search's trials and its front."""

    run_dir: Path
    config: SearchConfig
    hypervolume: float
    hypervolume_reference: dict[str, float]
    """The hypervolume's reference point: each objective's worst possible value, or else the worst value of a trial."""
    make_trials: Callable[[], pd.DataFrame] = field(repr=False, compare=False)
    make_front: Callable[[], pd.DataFrame] = field(repr=False, compare=False)
    """The tables are made on first use. Each table of a long search takes a noticeable time."""
    uri: str | None = None
    """The URI of the run directory if ``run_dir`` is a working copy, else None."""
    limits: Limits = ()
    """The bounds of the constraints as numbers. Empty without constraints, or as long as they wait for the target."""

    @cached_property
    def trials(self) -> pd.DataFrame:
        """One row per trial: settings, objectives, metrics, cost, and the reason of a failure."""
        return self.make_trials()

    @cached_property
    def front(self) -> pd.DataFrame:
        """The complete trials that no other trial dominates, sorted by the first objective.

        With constraints, these are feasible trials if there are any, and else the trials nearest to the constraints.
        """
        return self.make_front()

    def __str__(self) -> str:
        """Return the front as a short table. The table ``front`` has all columns."""
        knee = self.knee.number if self.has_feasible else None
        lines = front_lines(self.front, self.config, knee) if len(self.front) else []
        return "\n".join((f"front {len(self.front)}, hypervolume {self.hypervolume:.4f}, {self.display_path}", *lines))

    @classmethod
    def load(cls, run_dir: str | Path) -> SearchResult:
        """Read the search in ``run_dir``, finished or not. No module of the user is imported.

        Raises:
            RunError: there is no search, or no trial has finished.
        """
        run = RunDirectory.open_existing(run_dir, to_read=True)
        if not run.study_file.is_file():
            check_results_are_stored(None, run.study_file)
            raise RunError(
                f"{run.display_path} holds no finished trial yet: continue it with --resume "
                f"{shell_word(run.display_path)}"
            )
        config, study = run.read_config_of_results(), read_study(run.study_file)
        check_study(study, config, run.study_file)
        with stored_values(run.study_file):
            limits = read_limits(study, config) or ()
        return cls.from_trials(run, config, study.get_trials(deepcopy=False), limits)

    @classmethod
    def from_trials(
        cls, run: RunDirectory, config: SearchConfig, study_trials: list[Any], limits: Limits = ()
    ) -> SearchResult:
        """Return the result of an Optuna study's trials."""
        trials = trials_table(study_trials, config)
        volume, reference = hypervolume_of(trials, config)
        return cls(
            run.path,
            config,
            volume,
            reference,
            make_trials=lambda: trials,
            make_front=lambda: front_table(trials, config),
            uri=run.uri,
            limits=limits,
        )

    @property
    def display_path(self) -> str:
        """The name that users type for the run directory: its path, or its URI without credentials."""
        return self._run.display_path

    @property
    def resume_words(self) -> str:
        """What follows ``--resume`` in the command that continues the search."""
        return self._run.resume_words(self.config)

    @property
    def knee(self) -> Point:
        """Return the front's best trade-off: the trial furthest below the chord between the front's extremes.

        Raises:
            RunError: no trial is complete, or none of them keeps all constraints.
        """
        chosen = self.chosen
        if sentence := self.nearest_sentence:
            raise RunError(f"{sentence}: pick {chosen.number} to take it, or search on with --resume")
        return chosen

    @cached_property
    def chosen(self) -> Point:
        """The knee; or the trial nearest to the constraints if no trial keeps all of them.

        Raises:
            RunError: no trial is complete.
        """
        self.require_front()
        by_number = self.front.sort_values("trial")
        return self._point(int(by_number["trial"].iloc[knee_index(costs_of(by_number, self.config))]))

    @cached_property
    def has_feasible(self) -> bool:
        """Whether some complete trial keeps all constraints. Without constraints, whether some trial is complete."""
        return len(feasible_rows(self.trials)) > 0

    @property
    def nearest_sentence(self) -> str:
        """Which trial comes nearest to the constraints, if complete trials keep none of them; empty otherwise."""
        if self.has_feasible or not len(self.front):
            return ""
        nearest = self.chosen
        return (
            f"No trial keeps all constraints; the nearest is {nearest.name}: "
            f"{broken_sentence(nearest.values, self.limits)}"
        )

    @property
    def beyond_knee(self) -> Point | None:
        """The trial of the front that forgets most, if it forgets more than the knee; None if the knee forgets most.

        None also if no trial is feasible. Trials whose model has no utility left do not count.
        """
        if not len(self.front) or not self.has_feasible:
            return None
        costs = dict(zip(self.front["trial"], costs_of(self.front, self.config)[:, 0], strict=True))
        lost = {row["trial"] for row in self.front.to_dict("records") if lost_objectives(row, self.trials, self.config)}
        best = min(costs.keys() - lost | {self.knee.number}, key=lambda number: (costs[number], number))
        return self._point(best) if costs[best] < costs[self.knee.number] else None

    @property
    def forgets_more_than_target(self) -> bool:
        """Whether some complete trial has a better first objective than the untouched target."""
        target = complete_of_role(self.trials, TARGET)
        if not len(target) or not len(self.front):
            return len(self.front) > 0
        return bool(costs_of(self.front, self.config)[:, 0].min() < costs_of(target, self.config)[:, 0].min())

    @cached_property
    def confirmation(self) -> Confirmation | None:
        """The front's best points on further seeds; None if no point ran again."""
        return self._run.read_confirmation()

    def confirmed_points(self) -> list[ConfirmedPoint]:
        """Return the first two objectives of the points that ran again on further seeds."""
        x, y, *_ = self.config.objectives
        return self.confirmation.plotted(x, y) if self.confirmation else []

    @property
    def confirmed_hypervolumes(self) -> tuple[float, float] | None:
        """What the confirmed points dominate by their means over the further seeds, and on the seed of the search.

        None if no point was confirmed. Points whose runs all failed are left out of both. A point whose means do not
        keep the constraints dominates nothing over the further seeds.
        """
        objectives, confirmation = list(self.config.objectives), self.confirmation
        means, chosen = [], []
        for point in confirmation.points if confirmation else ():
            spreads = [point.spread(name) for name in objectives]
            row = self.trials[self.trials["trial"] == point.trial]
            if len(row) and all(spread is not None for spread in spreads):
                chosen.append(row.iloc[0][objectives].tolist())
                if self._keeps_limits_on_seeds(point):
                    means.append([spread.mean for spread in spreads if spread is not None])
        if not chosen:
            return None
        directions = list(self.config.objectives.values())
        reference = as_costs([[self.hypervolume_reference[name] for name in objectives]], directions)[0]
        confirmed, found = (hypervolume(as_costs(values, directions), reference) for values in (means, chosen))
        return confirmed, found

    def _keeps_limits_on_seeds(self, point: PointRuns) -> bool:
        spreads = [(limit, point.spread(limit.metric)) for limit in self.limits]
        return all(spread is not None and limit.is_kept(spread.mean) for limit, spread in spreads)

    def require_front(self) -> None:
        """Check that at least one trial is complete.

        Raises:
            RunError: no trial is complete. The message names the reason, or the file with the reasons.
        """
        if len(self.front):
            return
        reasons = set(self.trials.loc[self.trials["state"] == "failed", "reason"])
        if len(reasons) == 1:
            raise RunError(
                f"No trial of {self.display_path} is complete, and all failed for this reason: {reasons.pop()}"
            )
        if reasons:
            raise RunError(f"No trial is complete: the column 'reason' of {self.display_path}/{TRIALS_TABLE} says why")
        raise RunError(f"No trial of {self.display_path} is complete yet: wait for it, or continue it with --resume")

    def pick(self, choice: str | int) -> Point:
        """Return the knee for ``'knee'``, else the trial with this number. Warn of a trial that is not feasible.

        ``17, round 24`` and ``17:24`` name the point of trial 17 if that is the round for which the trial stands.

        Raises:
            RunError: there is no such complete trial, the trial stands for another round, or the knee is asked for and
                no trial keeps all constraints.
        """
        if choice == "knee":
            return self.knee
        choice, round = split_round(str(choice))
        complete = {str(number) for number in self.trials.loc[self.trials["state"] == "complete", "trial"]}
        # Directories of trials have names such as 00017. As text, a number may have any number of digits.
        number = str(choice).lstrip("0") or "0"
        if not str(choice) or number not in complete:
            self.require_front()
            front = ", ".join(str(number) for number in self.front["trial"])
            raise RunError(
                f"{shortened(str(choice))} is no complete trial of {self.display_path}: pick knee, or one of the "
                f"front's, {front}"
            )
        point = self._point(int(number))
        check_round(point.values, round)
        if broken := broken_sentence(point.values, self.limits):
            warnings.warn(f"{point.name} does not keep all constraints: {broken}", stacklevel=2)
        return point

    def trial(self, choice: str | int) -> Point:
        """Return the knee for ``'knee'``, else the trial with this number, which need not be complete.

        Raises:
            RunError: there is no such trial, or it stands for another round than the named one.
        """
        if choice == "knee":
            return self.knee
        choice, round = split_round(str(choice))
        numbers = self.trials["trial"].tolist()
        if not str(choice).isdecimal() or int(choice) not in numbers:
            last = f"0 … {max(numbers)}" if numbers else "none yet"
            raise RunError(f"'{choice}' is no trial of {self.display_path}: name knee, or a number of {last}")
        point = self._point(int(choice))
        check_round(point.values, round)
        return point

    def plot(self, path: str | Path | BinaryIO | None = None) -> Figure:
        """Plot all trials, the front, the baselines and the retrained model. Save the plot if ``path`` is given."""
        text = json.dumps(self.config.model_dump(mode="json"), sort_keys=True)
        config_hash = hashlib.sha256(text.encode()).hexdigest()[:10]
        figure = front_figure(
            self.trials,
            self.front,
            self.config.objectives,
            hypervolume=self.hypervolume,
            knee=self.chosen.number if len(self.front) else None,
            retrained=self.reference(),
            caption=f"config {config_hash} · seed {self.config.seed}",
            confirmed=self.confirmed_points(),
            limits=self.limits,
        )
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure

    def reference(self) -> dict[str, float]:
        """Return the retrained model's metrics; an empty dict if the search has no reference."""
        return self._run.read_reference()

    @property
    def _run(self) -> RunDirectory:
        return RunDirectory(self.run_dir, self.uri)

    def _point(self, number: int) -> Point:
        row = self.trials[self.trials["trial"] == number].iloc[0]
        directory = self._run.trial(number)
        uri = None if self.uri is None else join_uri(self.uri, f"{TRIALS}/{directory.name}")
        values = {
            str(key): value.item() if isinstance(value, np.generic) else value for key, value in row.dropna().items()
        }
        return Point(number, values, directory, uri)
