"""MLflow: the search is a run, and its trials are runs nested below it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ofmu.errors import ConfigError
from ofmu.provenance import flat_settings
from tune.config import SearchConfig
from tune.results.result import SearchResult
from tune.study.finished_trial import FinishedTrial
from tune.tracking.trackers.tracker import Tracker, curves_of, numbers_of, trial_name

FOLDER = "mlflow"
_SEARCH_TAG, _TRIAL_TAG = "ofmu.search", "ofmu.trial"
_PARENT_TAG = "mlflow.parentRunId"
_BATCH = 900
"""MLflow takes at most 1000 metrics in one request."""
_MAX_TEXT = 500


class MlflowTracker(Tracker):
    """Logs to the server that ``MLFLOW_TRACKING_URI`` names, else to files in the search's directory.

    Raises:
        ConfigError: the server cannot be reached or refuses the login.
    """

    def __init__(self, folder: Path, config: SearchConfig) -> None:
        super().__init__(folder, config)
        # A server that is down must be known before trials are spent, and not after MLflow's many attempts.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        # Imported here: the package is an extra.
        import mlflow.entities
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        self._entities: Any = mlflow.entities
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            # MLflow asks for this consent to its plain files. The alternative needs SQLAlchemy.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self._client: Any = MlflowClient(tracking_uri=uri or (folder.absolute() / FOLDER).as_uri())
        self._experiment, self._run = "", ""
        if uri is None:
            return
        try:
            self._client.get_experiment_by_name(config.tracking.project)
        except MlflowException as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"The tracker mlflow cannot use the server {uri} of MLFLOW_TRACKING_URI ({reason}): check the address "
                "and the login, or unset that variable"
            ) from error

    def open(self) -> None:
        """Start or continue the run of the search."""
        project = self.config.tracking.project
        found = self._client.get_experiment_by_name(project)
        self._experiment = self._client.create_experiment(project) if found is None else found.experiment_id
        self._run = self._find_or_create(self.folder.name, {_SEARCH_TAG: self.search_id})
        self._client.update_run(self._run, status="RUNNING")
        settings = dict(flat_settings(self.config.model_dump(mode="json")))
        self._log_settings(self._run, settings)

    def log_search(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers of the search."""
        self._log(self._run, [(step, values)])

    def log_trial(self, trial: FinishedTrial) -> None:
        """Log the settings, the curves and the metrics of a trial as a nested run."""
        tags = {_TRIAL_TAG: f"{self.search_id}/{trial.number}", _PARENT_TAG: self._run}
        run = self._find_or_create(trial_name(trial), tags)
        self._log_settings(run, trial.settings)
        curves = [
            (step, {f"curves/{name}": value for name, value in values.items()}) for step, values in curves_of(trial)
        ]
        self._log(run, [*curves, (0, numbers_of(trial))])
        for name, text in {"state": trial.state, "role": trial.role, "reason": trial.reason}.items():
            if text:
                self._client.set_tag(run, f"ofmu.{name}", text)
        self._client.set_terminated(run, "FAILED" if trial.state == "failed" else "FINISHED")

    def close(self, result: SearchResult, artifacts: list[Path]) -> None:
        """Log the hypervolume, and keep the files of the search."""
        self._log(self._run, [(len(result.trials), {"hypervolume": result.hypervolume})])
        for path in artifacts:
            self._client.log_artifact(self._run, str(path))
        self._client.set_terminated(self._run, "FINISHED")

    def _find_or_create(self, name: str, tags: Mapping[str, str]) -> str:
        """Return the id of the run with the first of the tags, which an earlier session may have made."""
        key, value = next(iter(tags.items()))
        found = self._client.search_runs([self._experiment], filter_string=f"tags.`{key}` = '{value}'", max_results=1)
        run = found[0] if found else self._client.create_run(self._experiment, tags=dict(tags), run_name=name)
        return str(run.info.run_id)

    def _log_settings(self, run: str, settings: Mapping[str, Any]) -> None:
        """Log settings that the run does not have yet. MLflow refuses to change a setting."""
        known = self._client.get_run(run).data.params
        new = {_key(name): str(value)[:_MAX_TEXT] for name, value in settings.items() if _key(name) not in known}
        items = [self._entities.Param(name, value) for name, value in new.items()]
        for start in range(0, len(items), 90):  # MLflow takes at most 100 settings in one request
            self._client.log_batch(run, params=items[start : start + 90])

    def _log(self, run: str, values: list[tuple[int, Mapping[str, float]]]) -> None:
        now = int(time.time() * 1000)
        metrics = [
            self._entities.Metric(_key(name), float(value), now, step)
            for step, each in values
            for name, value in each.items()
        ]
        for start in range(0, len(metrics), _BATCH):
            self._client.log_batch(run, metrics=metrics[start : start + _BATCH])


def _key(name: str) -> str:
    """Return a name that MLflow takes. The name of a user's metric has a colon."""
    return name.replace(":", ".")
