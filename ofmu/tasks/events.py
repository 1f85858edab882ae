"""Progress events of a preparation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class PreparationStarted:
    """The preparation begins."""


@dataclass(frozen=True, kw_only=True)
class PartReady:
    """A part of the preparation is in the cache."""

    part: str
    """``base``, ``target``, ``retrain``, ``target_scores`` or ``reference_scores``."""
    created: bool
    """True: this call made the part. False: the cache had the part."""
    seconds: float
    """Seconds that this call spent on the part."""


@dataclass(frozen=True, kw_only=True)
class TrainingEpoch:
    """One epoch of a model's training has ended."""

    part: str
    """``target`` or ``retrain``."""
    epoch: int
    """Epochs count from 1."""
    epochs: int
    """Epochs of the whole training."""
    loss: float
    """Mean loss of the epoch's minibatches."""


@dataclass(frozen=True, kw_only=True)
class TrainingContinued:
    """A model's training continues from the last checkpoint of an earlier attempt."""

    part: str
    """``target`` or ``retrain``."""
    epoch: int
    """Epochs that are done."""
    epochs: int
    """Epochs of the whole training."""


PreparationEvent = PreparationStarted | PartReady | TrainingEpoch | TrainingContinued
PreparationCallback = Callable[[PreparationEvent], None]


def event_to_json(event: PreparationEvent) -> dict[str, Any]:
    """Return an event as JSON values, for another process."""
    return {"event": type(event).__name__, **asdict(event)}


def event_from_json(content: Mapping[str, Any]) -> PreparationEvent:
    """Return the event that :func:`event_to_json` described."""
    kinds = {kind.__name__: kind for kind in (PreparationStarted, PartReady, TrainingEpoch, TrainingContinued)}
    fields = {key: value for key, value in content.items() if key != "event"}
    return kinds[content["event"]](**fields)
