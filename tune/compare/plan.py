"""What a comparison will do, settled and refused before anything runs: one search's config per method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ofmu.config.files import validate
from ofmu.errors import ConfigError, nearest_name
from ofmu.methods import BUILT_IN
from ofmu.methods.config import MethodConfig
from ofmu.methods.registry import method_class
from tune.config import Parameter, SearchConfig, default_space, flatten_space

TRIALS_PER_TRIAL = 10
"""Under a budget of gradient evaluations a method gets at most so many times ``search.num_trials``: a method whose
trials fail spends nothing, and would go on for ever."""

_YARDSTICK = "ofmu"
_RANGE = frozenset({"low", "high", "log", "step", "int"})


def method_configs(mapping: Mapping[str, Any]) -> dict[str, SearchConfig]:
    """Return each compared method's search, from one config mapping with a ``compare`` section, in the order named.

    Raises:
        ConfigError: fewer than two methods, an unknown one, one that does not work on the task, or a setting that is
            wrong for one of them.
    """
    shared = validate(SearchConfig, mapping)
    names = shared.compare.methods
    own = dict(mapping.get("method") or {})
    if len(names) < 2:
        raise ConfigError("A comparison needs at least two methods: name them with --methods, such as ofmu,npo")
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"The method '{name}' is named twice in compare.methods: leave one out")
        _refuse_unusable(name, own.get("module"), shared)
    for name in shared.compare.spaces:
        if name not in names and name not in BUILT_IN:
            raise ConfigError(f"Unknown method '{name}' in compare.spaces: {nearest_name(name, {*BUILT_IN, *names})}")
    configs = {name: _method_config(name, mapping, shared) for name in names}
    settings = {key for name in {*BUILT_IN, *configs} for key in _settings(name, own.get("module"))}
    for key in shared.compare.space:
        if key not in settings:
            raise ConfigError(f"compare.space cannot range over '{key}': {nearest_name(key, settings)}")
    return configs


def yardstick(names: tuple[str, ...]) -> str:
    """Return the method whose search sets the budget where it is given in trials: OFMU, else the first one."""
    return _YARDSTICK if _YARDSTICK in names else names[0]


def with_budget(config: SearchConfig, evaluations: int) -> SearchConfig:
    """Return the search bounded by gradient evaluations in place of trials."""
    search = config.search.model_copy(
        update={
            "max_gradient_evaluations": evaluations,
            "num_trials": TRIALS_PER_TRIAL * config.search.num_trials,
        }
    )
    return config.model_copy(update={"search": search})


def _settings(name: str, module: str | None) -> list[str]:
    return [f"method.{key}" for key in method_class(name, None if name in BUILT_IN else module).Config.model_fields]


def _refuse_unusable(name: str, module: str | None, shared: SearchConfig) -> None:
    try:
        method = method_class(name, None if name in BUILT_IN else module)
    except ConfigError as error:
        raise ConfigError(str(error).replace("in method.name", "in compare.methods")) from None
    kind = shared.data.kind
    if kind not in method.tasks:
        works = [other for other in BUILT_IN if kind in method_class(other).tasks]
        raise ConfigError(
            f"The method '{name}' works on {' and '.join(sorted(method.tasks))} tasks, and data.source "
            f"'{shared.data.source}' is a {kind} task: choose among {', '.join(works)}"
        )


def _method_config(name: str, mapping: Mapping[str, Any], shared: SearchConfig) -> SearchConfig:
    """Return one method's search: the config's own ``method`` section for the method it names, what all share else."""
    section, search = dict(mapping.get("method") or {}), dict(mapping.get("search") or {})
    is_own = section.get("name", "ofmu") == name
    if not is_own:
        section = {key: value for key, value in section.items() if key in MethodConfig.model_fields}
        if name in BUILT_IN:
            section.pop("module", None)
    section["name"] = name
    given = flatten_space(search.get("space") or {}) if is_own else {}
    search["space"] = _space(name, section.get("module"), given, shared)
    rest = {key: value for key, value in mapping.items() if key != "compare"}
    try:
        return validate(SearchConfig, {**rest, "method": section, "search": search})
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def _space(name: str, module: str | None, given: Mapping[str, Any], shared: SearchConfig) -> dict[str, Any]:
    space: dict[str, Any] = dict(given)
    if not given:
        space = {key: _plain(spec) for key, spec in default_space(name, module).items()}
        for key, spec in shared.compare.space.items():
            if key in space:
                space[key] = _merged(space[key], spec)
    for key, spec in shared.compare.spaces.get(name, {}).items():
        space[key] = _merged(space.get(key, {}), spec)
    return space


def _merged(old: Any, new: Any) -> dict[str, Any]:
    """Return the new specification, which may change parts of a range and keeps the rest of it."""
    before, after = _plain(old), _plain(new)
    return {**before, **after} if set(after) <= _RANGE and "low" in before else after


def _plain(spec: Any) -> dict[str, Any]:
    return spec.model_dump(exclude_unset=True) if isinstance(spec, Parameter) else dict(spec)
