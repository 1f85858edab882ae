"""Weights & Biases: the search and its trials are runs of one group."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ofmu.errors import ConfigError
from tune.config import SearchConfig
from tune.results.result import SearchResult
from tune.study.finished_trial import FinishedTrial
from tune.tracking.trackers.tracker import Tracker, curves_of, numbers_of, trial_name

_WITHOUT_LOGIN = ("offline", "disabled", "dryrun")


class WandbTracker(Tracker):
    """Logs the search as a run of the type ``search``, and each trial as a run of the type ``trial`` in its group.

    Raises:
        ConfigError: the package has no login or a refused one, and is not offline.
    """

    def __init__(self, folder: Path, config: SearchConfig) -> None:
        super().__init__(folder, config)
        # Imported here: the package is an extra.
        import wandb

        self._wandb: Any = wandb
        self._run: Any = None
        if os.environ.get("WANDB_MODE", "online") not in _WITHOUT_LOGIN:
            self._check_login()

    def _check_login(self) -> None:
        try:
            has_login = self._wandb.login(prompt=False)
        except Exception as error:
            # The package has errors of its own for a refused key, and its network client has others.
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ConfigError(
                f"The tracker wandb cannot log in ({reason}): run 'wandb login' again, or set WANDB_MODE=offline"
            ) from error
        if not has_login:
            raise ConfigError(
                "The tracker wandb has no login: run 'wandb login', set WANDB_API_KEY, or set WANDB_MODE=offline"
            )

    def open(self) -> None:
        """Start or continue the run of the search."""
        settings = self.config.model_dump(mode="json")
        self._run = self._init(self.folder.name, "search", settings, self.search_id)

    def log_search(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers of the search."""
        self._run.log({**values, "trials/ended": step})

    def log_trial(self, trial: FinishedTrial) -> None:
        """Log the curves and the metrics of a trial as a run of its own."""
        name = trial_name(trial)
        run = self._init(f"{self.folder.name}/{name}", "trial", dict(trial.settings), f"{self.search_id}-{name}")
        for step, values in curves_of(trial):
            run.log({**values, "outer_step": step})
        more = {"state": trial.state, "role": trial.role} | ({"reason": trial.reason} if trial.reason else {})
        run.summary.update({**numbers_of(trial), **more})
        run.finish(exit_code=int(trial.state == "failed"))

    def close(self, result: SearchResult, artifacts: list[Path]) -> None:
        """Log the front as a table, and keep the files of the search as an artifact."""
        self._run.summary["hypervolume"] = result.hypervolume
        if len(result.front):
            table = result.front.astype(object).where(result.front.notna(), None)
            self._run.log({"front": self._wandb.Table(columns=list(map(str, table)), data=table.values.tolist())})
        artifact = self._wandb.Artifact(f"search-{self.search_id}", type="search")
        for path in artifacts:
            artifact.add_file(str(path))
        self._run.log_artifact(artifact)
        self._run.finish()

    def _init(self, name: str, kind: str, settings: Mapping[str, Any], run_id: str) -> Any:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self._wandb.init(
            project=self.config.tracking.project,
            group=self.folder.name,
            job_type=kind,
            name=name,
            id=run_id,
            resume="allow",
            config=dict(settings),
            dir=str(self.folder),
            reinit="create_new",
            settings=self._wandb.Settings(silent=True, console="off"),
        )
