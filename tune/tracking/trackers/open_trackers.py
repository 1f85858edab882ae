"""Make the trackers that a config names, or say in one sentence what one lacks."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from ofmu.errors import ConfigError
from tune.config import SearchConfig
from tune.tracking.config import TrackerName
from tune.tracking.trackers.tracker import Tracker

_TRACKERS: dict[TrackerName, tuple[str, str]] = {
    "tensorboard": ("tensorboard", "TensorBoardTracker"),
    "wandb": ("weights_and_biases", "WandbTracker"),
    "mlflow": ("mlflow_runs", "MlflowTracker"),
}
"""Module and class of each tracker. Only the modules of chosen trackers are imported."""


def open_trackers(folder: Path, config: SearchConfig) -> list[Tracker]:
    """Return the trackers of a search. Nothing is written yet.

    Args:
        folder: the search's directory on this machine.
        config: the search.

    Raises:
        ConfigError: a tracker's package is missing, or it has no login.
    """
    return [_open(name, folder, config) for name in dict.fromkeys(config.tracking.trackers)]


def _open(name: TrackerName, folder: Path, config: SearchConfig) -> Tracker:
    module, cls = _TRACKERS[name]
    try:
        tracker: Tracker = getattr(import_module(f"tune.tracking.trackers.{module}"), cls)(folder, config)
    except ImportError as error:
        raise ConfigError(
            f"The tracker {name} needs a package that is missing ({error}): pip install 'ofmu[{name}]', or take {name} "
            "out of tracking"
        ) from error
    return tracker
