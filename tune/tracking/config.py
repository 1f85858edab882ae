"""The config section ``tracking``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from ofmu.config.base import Section

TrackerName = Literal["tensorboard", "wandb", "mlflow"]


class TrackingConfig(Section):
    """The experiment trackers that follow a search. A list such as ``tracking: [tensorboard]`` names them, too."""

    trackers: list[TrackerName] = Field(default=[])
    """``tensorboard``: event files in the run directory. ``wandb``: Weights & Biases, by the login of its package or
    offline (``WANDB_MODE=offline``). ``mlflow``: the server of ``MLFLOW_TRACKING_URI``, else files in the run
    directory."""
    project: str = Field(default="ofmu", min_length=1)
    """The project of Weights & Biases, and the experiment of MLflow."""

    @model_validator(mode="before")
    @classmethod
    def _a_list_names_the_trackers(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"trackers": [value]}
        return {"trackers": list(value)} if isinstance(value, list | tuple) else value
