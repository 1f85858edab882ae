"""TensorBoard: event files in the search's directory. ``tensorboard --logdir RUN/tensorboard`` shows them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tune.config import SearchConfig
from tune.results.result import SearchResult
from tune.rundir.search_files import FRONT_PLOT
from tune.study.finished_trial import FinishedTrial
from tune.tracking.trackers.tracker import Tracker, curves_of, numbers_of, trial_name

FOLDER = "tensorboard"


class TensorBoardTracker(Tracker):
    """Writes scalars of the search, and settings, metrics and curves of each trial."""

    def __init__(self, folder: Path, config: SearchConfig) -> None:
        super().__init__(folder, config)
        # Imported here: most searches have no tracker.
        from tensorboardX import SummaryWriter

        self._make_writer = SummaryWriter
        self._writer: Any = None

    def open(self) -> None:
        """Open the event file of the search."""
        self._writer = self._make_writer(str(self.folder / FOLDER / "search"))

    def log_search(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars of the search."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def log_trial(self, trial: FinishedTrial) -> None:
        """Write the curves of a trial, and its settings beside its metrics."""
        place = self.folder / FOLDER / trial_name(trial)
        with self._make_writer(str(place)) as writer:
            for step, values in curves_of(trial):
                for name, value in values.items():
                    writer.add_scalar(f"curves/{name}", value, step)
            if trial.reason is not None:
                writer.add_text("reason", trial.reason)
            settings = {name: _setting(value) for name, value in trial.settings.items()} | {"state": trial.state}
            writer.add_hparams(settings, numbers_of(trial), name="hparams")

    def close(self, result: SearchResult, artifacts: list[Path]) -> None:
        """Write the picture of the front."""
        import numpy as np
        from PIL import Image

        for path in artifacts:
            if path.name == FRONT_PLOT:
                with Image.open(path) as image:
                    self._writer.add_image("front", np.asarray(image.convert("RGB")), dataformats="HWC")
        self._writer.close()


def _setting(value: Any) -> Any:
    """Return a value that TensorBoard can show as a setting."""
    return value if isinstance(value, bool | int | float | str) else str(value)
