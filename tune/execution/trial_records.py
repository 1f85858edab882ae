"""What a trial runs, and how a trial ended: the records that a search and the processes of its trials exchange."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ofmu.errors import PruningRecord
from ofmu.run_config import UnlearnConfig
from ofmu.run_files import RunFiles


@dataclass(frozen=True, kw_only=True)
class TrialSpec:
    """What one trial runs."""

    number: int
    trial_dir: Path
    run: UnlearnConfig
    early_stopping: bool = False
    """Whether the trial may be stopped early, and may stand for an earlier round than its last."""
    last_round: int | None = None
    """The run ends after this round. None: the run ends where its method does."""

    def to_json(self) -> dict[str, Any]:
        """Return the spec as JSON values. Ray Tune passes them to the trial's process as the trial's config."""
        return {
            "number": self.number,
            "trial_dir": str(self.trial_dir),
            "run": self.run.model_dump(mode="json"),
            "early_stopping": self.early_stopping,
            "last_round": self.last_round,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the spec that :meth:`to_json` wrote."""
        return cls(
            number=values["number"],
            trial_dir=Path(values["trial_dir"]),
            run=UnlearnConfig.model_validate(values["run"]),
            early_stopping=values["early_stopping"],
            last_round=values["last_round"],
        )


@dataclass(frozen=True, kw_only=True)
class TrialOutcome:
    """How one trial ended. At most one field is set; without any field the trial reported nothing."""

    metrics: Mapping[str, Any] | None = None
    """The trial ran to its end and has these metrics."""
    pruned: PruningRecord | None = None
    """The trial was stopped early."""
    failure: str | None = None
    """The trial failed for this reason, and would fail again."""
    storage_error: str | None = None
    """A write failed. The search must stop until the disk is fixed, and the trial must run again."""

    @classmethod
    def stored_in(cls, files: RunFiles) -> Self | None:
        """Return the outcome that a run left in its directory; None if the run has not ended."""
        metrics = files.read_metrics()
        if metrics is not None:
            return cls(metrics=metrics)
        record = files.read_pruning_record()
        return None if record is None else cls(pruned=record)

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as JSON values. Fields that are not set are left out."""
        values = {
            "metrics": None if self.metrics is None else dict(self.metrics),
            "pruned": None if self.pruned is None else self.pruned.to_json(),
            "failure": self.failure,
            "storage_error": self.storage_error,
        }
        return {key: value for key, value in values.items() if value is not None}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the outcome that :meth:`to_json` wrote."""
        pruned = values.get("pruned")
        return cls(
            metrics=values.get("metrics"),
            pruned=None if pruned is None else PruningRecord.from_json(pruned),
            failure=values.get("failure"),
            storage_error=values.get("storage_error"),
        )
