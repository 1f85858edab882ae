"""The kinds of task, text and images, and what each kind supports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

TaskKind = Literal["language", "vision"]


@dataclass(frozen=True, kw_only=True)
class KindTraits:
    """What a kind of task supports."""

    adapters: bool
    """Whether ``model.adapter`` applies."""
    partial_evaluation: bool
    """Whether a model can be scored on a few rows during a run. Early stopping needs these scores."""
    model_directories: bool
    """Whether ``model.path`` must hold a language model's files."""
    open_unlearning: bool
    """Whether open-unlearning has logs of such tasks."""
    ignored_evaluation: tuple[str, ...]
    """Keys of the ``evaluation`` section that have no effect."""
    objectives: Mapping[str, Literal["min", "max"]]
    """Default objectives of a search."""
    objectives_without_reference: Mapping[str, Literal["min", "max"]]
    """Default objectives of a search whose config has no reference."""


TRAITS: Mapping[TaskKind, KindTraits] = {
    "language": KindTraits(
        adapters=True,
        partial_evaluation=True,
        model_directories=True,
        open_unlearning=True,
        ignored_evaluation=(),
        objectives={"ks_statistic": "min", "model_utility": "max"},
        objectives_without_reference={"extraction_strength": "min", "model_utility": "max"},
    ),
    "vision": KindTraits(
        adapters=False,
        partial_evaluation=False,
        model_directories=False,
        open_unlearning=False,
        ignored_evaluation=(
            "max_rows",
            "in_scope",
            "membership",
            "alignment",
            "depth",
            "entities",
            "kl",
            "attacks",
            "run_attacks",
            "lm_eval",
        ),
        objectives={"unlearning_accuracy_gap": "min", "testing_accuracy": "max"},
        objectives_without_reference={"unlearning_accuracy": "max", "testing_accuracy": "max"},
    ),
}
