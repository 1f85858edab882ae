"""The run that a saved model comes from: its config, and where another config departs from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ofmu.run_config import UnlearnConfig

# What the cached scores of a reference do not depend on: see ofmu.preparer.
_WITHOUT_EFFECT = (
    "method.",
    "engine.",
    "model.attention",
    "model.adapter.",
    "evaluation.batch_size",
    "evaluation.alignment",
    "evaluation.attacks",
    "evaluation.functions",
)


def config_of_run(model: str | Path) -> Path | None:
    """Return the config with which a run made this model, if the model still lies in its run directory."""
    folder = Path(model)
    places = (folder / "config.yaml", folder.resolve().parent / "config.yaml") if folder.is_dir() else ()
    return next((place for place in places if place.is_file()), None)


def read_run_config(source: str | Path | None, overrides: Sequence[str] = ()) -> UnlearnConfig:
    """Return the run's share of a config file, be it a run's, a search's or a preset; None stands for the defaults.

    Raises:
        ConfigError: the file is missing, is not YAML, or a setting in it or in ``overrides`` is wrong.
    """
    return UnlearnConfig.read(source, overrides)


def differing_keys(config: UnlearnConfig, other: UnlearnConfig) -> list[str]:
    """Return the dotted keys in which two configs differ, of those that prepared references depend on."""
    ours, theirs = dict(_flat(config.model_dump(mode="json"))), dict(_flat(other.model_dump(mode="json")))
    keys = [*ours, *(key for key in theirs if key not in ours)]
    return [key for key in keys if not key.startswith(_WITHOUT_EFFECT) and ours.get(key) != theirs.get(key)]


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
