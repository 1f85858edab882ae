"""Provenance of a saved model: the config of its run, and how another config differs from that config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ofmu.io.files import expanded
from ofmu.io.plugins import check_plugin, results_only
from ofmu.run_config import UnlearnConfig

_CUSTOM_METRICS = "evaluation.custom_metrics"
_LM_EVAL = "evaluation.lm_eval"
"""The key, and what the keys about it begin with."""
_WITHOUT_EFFECT_ON_REFERENCE = (
    "method.",
    "engine.",
    "model.attention",
    "model.adapter.",
    "evaluation.batch_size",
    "evaluation.alignment",
    "evaluation.attacks",
    "evaluation.depth",
    "evaluation.entities",
    "evaluation.kl",
    _LM_EVAL,
    "evaluation.run_attacks",
    _CUSTOM_METRICS,
)
"""Keys that do not change the cached scores of a reference: see :mod:`ofmu.tasks.preparation`."""


def config_of_run(model: str | Path) -> Path | None:
    """Return the config file of the run that made ``model``; None if the model is not in its run directory."""
    folder = expanded(model)
    places = (folder / "config.yaml", folder.resolve().parent / "config.yaml") if folder.is_dir() else ()
    return next((place for place in places if place.is_file()), None)


def read_config_of_model(source: Path, overrides: Sequence[str] = (), *, allow_code: bool = False) -> UnlearnConfig:
    """Return the config of the run that made a model, for an evaluation. The model may come from somebody else.

    An evaluation does not need the method, so the method's module is not imported.

    Args:
        source: the config file.
        overrides: the user's own entries such as ``evaluation.rouge=false``. Custom metrics that they name may run.
        allow_code: whether custom metrics and tasks of lm-eval that only the file names may run.

    Raises:
        ConfigError: a setting is wrong, or the file names a custom metric or a folder of tasks that may not run.
    """
    with results_only(str(source)):
        config = UnlearnConfig.read(source, overrides)
        own = UnlearnConfig.read(None, [entry for entry in overrides if entry.startswith((_CUSTOM_METRICS, _LM_EVAL))])
        for module, key in config.plugins.items():
            if key.startswith("evaluation.") and module not in own.plugins and not allow_code:
                check_plugin(module, key)
    return config


def differing_keys(config: UnlearnConfig, other: UnlearnConfig) -> list[str]:
    """Return the dotted keys in which two configs differ. Keys that do not change a reference are left out."""
    settings = differing_settings(other.model_dump(mode="json"), config.model_dump(mode="json"))
    return [key for key in settings if not key.startswith(_WITHOUT_EFFECT_ON_REFERENCE)]


def differing_settings(stored: Mapping[str, Any], mapping: Mapping[str, Any]) -> list[str]:
    """Return the dotted keys in which a stored config differs from another one."""
    ours, theirs = dict(flat_settings(mapping)), dict(flat_settings(stored))
    keys = [*ours, *(key for key in theirs if key not in ours)]
    return [key for key in keys if ours.get(key) != theirs.get(key)]


def flat_settings(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every setting of nested sections with its dotted key."""
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from flat_settings(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
