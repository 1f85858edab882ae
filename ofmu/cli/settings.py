"""The settings of a single run: the config of the run, and the worker layout."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.config import ClusterConfig
    from ofmu.cli.params import ConfigChoice
    from ofmu.run_config import UnlearnConfig

_UNUSED = ("search", "compare")
"""Sections that a single run does not read."""


def read_settings(config: ConfigChoice) -> tuple[UnlearnConfig, ClusterConfig]:
    """Return the run and the worker layout that a config names.

    Raises:
        ConfigError: the file is missing, is not YAML, or a setting is wrong.
    """
    # pydantic is slow to import, and the help of a command does not need it.
    from ofmu.config.files import validate
    from ofmu.run_config import UnlearnConfig
    from tune.config import SearchConfig

    settings = validate(SearchConfig, config.read_mapping(_UNUSED))
    if settings.tracking.trackers:
        warnings.warn("tracking has no effect here: trackers follow searches and comparisons", stacklevel=2)
    shared = settings.model_dump(mode="json", exclude={"search", "cluster", "tracking"})
    return UnlearnConfig.model_validate(shared), settings.cluster
