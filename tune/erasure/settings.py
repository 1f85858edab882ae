"""The config of the search that an erasure request starts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ofmu.config.files import deep_copy, read_mapping
from ofmu.data.config import PROMPT_KEYS, VISION_SOURCES
from ofmu.erasure.chain import Chain
from ofmu.erasure.workspace import Workspace
from ofmu.errors import ConfigError, nearest_name
from ofmu.io.files import expanded
from ofmu.provenance import config_of_run, flat_settings
from ofmu.run_config import UnlearnConfig, check_sections
from tune.config import SearchConfig

SEARCH_SHARE = 0.6
"""Share of the budget after which the search starts no more trial. The rest is for further seeds and attacks."""
CONFIRM_SHARE = 0.25
"""Share of the budget that runs on further seeds may take."""
_OURS = {
    "model.path": "MODEL",
    "model.is_target": "MODEL",
    "model.base": "--base",
    "data.source": "--rows, --person or --questions",
    "data.forget": "--rows, --person or --questions",
    "data.retain": "--retain",
    "data.holdout": "--holdout",
    "data.earlier": "--after",
    "search.num_trials": "--trials",
    "search.max_hours": "--budget",
    "search.confirm_seeds": "--confirm",
    "search.confirm_trials": "--confirm",
    "search.keep_models": "nothing, since the result is a kept model",
}
"""Keys that ``ofmu forget`` sets, and the option that sets each."""


def check_settings(settings: Mapping[str, Any]) -> None:
    """Check the user's own settings.

    Raises:
        ConfigError: a key is one that ``ofmu forget`` sets, ``model.revision`` is given, the data are images, or a
            section is no mapping.
    """
    check_sections(settings)
    for key, value in flat_settings(settings):
        if key == "data.source" and value in VISION_SOURCES:
            raise ConfigError(
                f"ofmu forget takes rows of text, and data.source '{value}' holds images: use ofmu unlearn, and ofmu "
                "unlearn --after for later requests"
            )
        if key == "model.revision" and value is not None:
            # The request also hashes the model, asks it questions and measures it, all without this config.
            raise ConfigError(
                f"ofmu forget takes the default branch of MODEL, and model.revision is {value!r:.80}: download that "
                "revision, and name its folder as MODEL"
            )
        if key in _OURS:
            raise ConfigError(f"The setting {key} is set by ofmu forget ({_OURS[key]}): leave it out")


def prompt_settings(model: str) -> dict[str, Any]:
    """Return how the model's own run turned rows into tokens; empty if the model does not lie in a run directory."""
    file = config_of_run(model)
    data = read_mapping(file).get("data") if file is not None else None
    return {key: data[key] for key in PROMPT_KEYS if key in data} if isinstance(data, Mapping) else {}


def request_settings(
    model: str, base: str | None, settings: Mapping[str, Any], chain: Chain | None = None
) -> dict[str, Any]:
    """Return the config without the rows, as a mapping.

    Args:
        model: the model that must forget.
        base: the model before training on the rows; None if there is none. Then nothing can be retrained.
        settings: the user's own settings.
        chain: the requests before this one, whose prompts are kept.
    """
    mapping = deep_copy(settings)
    places = {"path": absolute_place(model), "base": None if base is None else absolute_place(base)}
    mapping["model"] = {**(mapping.get("model") or {}), **places, "is_target": True}
    prompts = prompt_settings(model) if chain is None else dict(chain.prompts)
    mapping["data"] = {**prompts, **(mapping.get("data") or {})}
    mapping["reference"] = mapping.get("reference") or {"source": "none" if base is None else "retrain"}
    return mapping


def run_settings(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections of a single run, without those of a search, such as ``cluster``.

    Raises:
        ConfigError: neither a run nor a search has a section.
    """
    unknown = next((name for name in mapping if name not in SearchConfig.model_fields), None)
    if unknown is not None:
        raise ConfigError(f"Unknown config key '{unknown}': {nearest_name(unknown, SearchConfig.model_fields)}")
    others = SearchConfig.model_fields.keys() - UnlearnConfig.model_fields.keys()
    return {name: value for name, value in mapping.items() if name not in others}


def search_settings(
    mapping: Mapping[str, Any], home: Workspace, *, has_holdout: bool, trials: int, hours: float | None
) -> dict[str, Any]:
    """Return the config of the search.

    Args:
        mapping: see :func:`request_settings`.
        home: the directory with the rows.
        has_holdout: whether there are holdout rows.
        trials: number of trials.
        hours: hours for the whole request; None: no limit.
    """
    files = {name: str(home.rows_file(name)) for name in ("forget", "retain")}
    holdout = {"holdout": str(home.rows_file("holdout"))} if has_holdout else {}
    # The rows were written with the default columns.
    data = {key: value for key, value in mapping["data"].items() if key != "columns"}
    search = {**(mapping.get("search") or {}), "num_trials": trials, "keep_models": "front"}
    if hours is not None:
        search["max_hours"] = hours * SEARCH_SHARE
    return {**mapping, "data": {**data, "source": "files", **files, **holdout}, "search": search}


def absolute_place(model: str) -> str:
    """Return the full path of a model's directory, so that the request may continue elsewhere; else the hub name."""
    folder = expanded(model)
    return str(folder.absolute()) if folder.is_dir() else model


def package_folders() -> list[Path]:
    """Return the folders of the packages whose code makes a result."""
    root = Path(__file__).resolve().parents[2]
    return [root / name for name in ("ofmu", "tune", "cluster")]
