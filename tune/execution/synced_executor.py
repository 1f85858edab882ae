"""An executor that fetches a trial's files from a URI before the run, and stores them there after the run."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.storage.mirror import Mirror
from cluster.storage.uri import join_uri
from ofmu.errors import PrunedError, StorageError
from ofmu.io.cache import Cache
from ofmu.run_files import CHECKPOINTS
from tune.rundir.prepared import download_prepared
from tune.rundir.search_files import TRIALS
from tune.rundir.sync import delete_visible_files, local_folder
from tune.rundir.trial_files import LARGE_FOLDERS, TEMPORARY_FOLDERS, TrialFiles

if TYPE_CHECKING:
    from cluster.config import ClusterConfig
    from ofmu.run_config import UnlearnConfig
    from tune.execution.trainable import Executor


class SyncedExecutor:
    """An executor that downloads a trial's files from a URI before the run, and uploads the files after the run.

    The files at the URI replace those in the trial's directory on the node. An executor with a keyword ``mirror``
    gets the trial's mirror and writes its checkpoints there.
    """

    def __init__(self, executor: Executor, uri: str) -> None:
        self._executor, self._uri = executor, uri

    def __call__(
        self, config: UnlearnConfig, cluster: ClusterConfig, trial_dir: Path, prepared: Any, **further: Any
    ) -> Mapping[str, Any]:
        """Run one trial and return its metrics. A finished trial returns its stored metrics at once.

        Raises:
            StorageError: the storage refuses.
            Exception: whatever the executor raises.
        """
        mirror, files = Mirror(join_uri(self._uri, f"{TRIALS}/{trial_dir.name}"), trial_dir), TrialFiles(trial_dir)
        self._fetch(mirror, files, config)
        finished = files.read_metrics()
        if finished is not None:
            return finished
        execute: Callable[..., Mapping[str, Any]] = self._executor
        if "mirror" in inspect.signature(execute).parameters:
            execute = partial(execute, mirror=mirror)
        started = time.monotonic()
        try:
            metrics = dict(execute(config, cluster, trial_dir, self._download(prepared), **further))
        except (PrunedError, ValueError):
            with suppress(StorageError):
                mirror.push(without=LARGE_FOLDERS)
            raise
        metrics.setdefault("seconds", time.monotonic() - started)
        files.write_metrics_if_missing(metrics)
        mirror.push(without=TEMPORARY_FOLDERS)
        mirror.delete(CHECKPOINTS)
        files.delete_folders(LARGE_FOLDERS)
        return metrics

    def close(self) -> None:
        """Close the executor. A worker group keeps CPUs and GPUs between trials."""
        close = getattr(self._executor, "close", None)
        if close is not None:
            close()

    def _fetch(self, mirror: Mirror, files: TrialFiles, config: UnlearnConfig) -> None:
        """Replace the directory's files by those at the URI.

        Files of another config come from an attempt that the study does not hold. They are deleted.
        """
        delete_visible_files(mirror.local)
        mirror.pull([name for name in mirror.files() if name.split("/")[0] not in LARGE_FOLDERS])
        stored = files.read_config()
        if stored is not None and stored != config.model_dump(mode="json"):
            mirror.delete("")
            delete_visible_files(mirror.local)

    def _download(self, prepared: Any) -> Any:
        if prepared is None:
            return None
        return download_prepared(prepared, self._uri, Cache(local_folder(self._uri, "prepared")))
