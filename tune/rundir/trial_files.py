"""The files of one trial: those of a run, and those that only a search or a comparison writes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.train.files import RAY_TRAIN
from ofmu.io.files import write_json, write_text
from ofmu.run_files import (
    CHECKPOINTS,
    METRICS,
    MODEL,
    PRUNED,
    RunFiles,
    check_is_no_link,
    finite_only,
    read_stored,
    stored_values,
)

ERROR = "error.txt"
FAILED = "failed.json"
END_MARKERS = (METRICS, PRUNED, ERROR)
"""Files that a search's trial has only after it ended."""
TEMPORARY_FOLDERS = (CHECKPOINTS, RAY_TRAIN)
"""Folders that only an unfinished trial needs."""
LARGE_FOLDERS = (MODEL, *TEMPORARY_FOLDERS)
"""Folders that the driver never downloads."""


@dataclass(frozen=True)
class FailureRecord:
    """Why a comparison's run failed."""

    reason: str
    """One sentence."""


@dataclass(frozen=True)
class TrialFiles(RunFiles):
    """Typed readers and writers of a trial's directory. Every writer raises StorageError if the disk refuses."""

    @property
    def error(self) -> Path:
        """The text that Ray Tune keeps of the crashes of a trial's process."""
        return self.directory / ERROR

    @property
    def failed(self) -> Path:
        """The record of a comparison's run that failed."""
        return self.directory / FAILED

    def write_metrics_if_missing(self, metrics: Mapping[str, Any]) -> None:
        """Write ``metrics.json`` with the metrics, unless the run wrote its own. NaN and infinities become None."""
        if not self.metrics.exists():
            self.write_report({"metrics": finite_only(plain_numbers(metrics))})

    def write_error(self, text: str) -> None:
        """Write the text of the crashes."""
        write_text(self.error, text)

    def write_failure(self, record: FailureRecord) -> None:
        """Write that the run failed."""
        write_json(self.failed, asdict(record))

    def read_failure(self) -> FailureRecord | None:
        """Return the record of a run that failed; None for any other run."""
        stored = read_stored(self.failed)
        with stored_values(self.failed):
            return None if stored is None else FailureRecord(reason=str(stored["reason"]))

    def delete_folders(self, names: Iterable[str]) -> None:
        """Delete folders of the trial. A folder that cannot be deleted is left, and so is a link.

        Raises:
            RunError: the trial's directory is itself a link.
        """
        check_is_no_link(self.directory)
        for name in names:
            shutil.rmtree(self.directory / name, ignore_errors=True)


def plain_numbers(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics with Python's own numbers in place of those of NumPy or torch, which JSON does not have."""
    return dict(json.loads(json.dumps(dict(metrics), default=float)))
