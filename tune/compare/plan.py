"""The plan of a comparison: one search's config per method. Everything is checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ofmu.config.files import validate
from ofmu.config.renamed import renamed_key_sentence
from ofmu.errors import ConfigError, nearest_name
from ofmu.methods import BUILT_IN
from ofmu.methods.config import MethodConfig
from ofmu.methods.registry import method_class
from tune.compare.config import CompareConfig, CompareOptions
from tune.config import SearchConfig
from tune.space.parameter import Parameter, default_space, flatten_space

MAX_TRIALS_FACTOR = 10
"""Under a budget of gradient evaluations, a method gets at most this many times ``search.num_trials``. Failed trials
use no gradient evaluations, so a method of which all trials fail would otherwise never end."""

_BUDGET_REFERENCE = "ofmu"
_RANGE_KEYS = frozenset({"low", "high", "log", "step", "int"})


def method_configs(mapping: Mapping[str, Any]) -> dict[str, SearchConfig]:
    """Return one search's config per compared method, in the order of ``compare.methods``.

    Args:
        mapping: a config with the section ``compare``.

    Raises:
        ConfigError: there are fewer than two methods, a method is unknown or does not work on the task, or a setting is
            wrong for a method.
    """
    shared = validate(CompareConfig, mapping)
    names = shared.compare.methods
    own = dict(mapping.get("method") or {})
    if len(names) < 2:
        raise ConfigError("A comparison needs at least two methods: name them with --methods, such as ofmu,npo")
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"The method '{name}' is named twice in compare.methods: leave one out")
        _check_method(name, own.get("module"), shared)
    for name in shared.compare.spaces:
        if name not in names and name not in BUILT_IN:
            raise ConfigError(f"Unknown method '{name}' in compare.spaces: {nearest_name(name, {*BUILT_IN, *names})}")
    if shared.compare.retain_draws:
        _check_all_retain_rows(own, shared)
    configs = {name: _method_config(name, mapping, shared) for name in names}
    settings = {key for name in {*BUILT_IN, *configs} for key in _settings(name, own.get("module"))}
    for key in shared.compare.space:
        if key not in settings:
            hint = renamed_key_sentence(key) or nearest_name(key, settings)
            raise ConfigError(f"compare.space cannot range over '{key}': {hint}")
    return configs


def unused_settings(mapping: Mapping[str, Any]) -> list[str]:
    """Return the dotted keys of ``method`` and ``search`` that no compared method takes.

    The method of the section ``method`` takes all of that section and ``search.space``. Every other method takes what
    all methods share, so the rest has no effect if that method is not compared.

    Args:
        mapping: a config with the section ``compare``.
    """
    section = mapping.get("method") or {}
    own = section.get("name", "ofmu")
    compared = validate(CompareOptions, mapping.get("compare") or {}).methods
    if any(split_variant(name)[0] == own for name in compared):
        return []
    unused = [f"method.{key}" for key in section if key not in MethodConfig.model_fields]
    return [*unused, *(["search.space"] if (mapping.get("search") or {}).get("space") else [])]


def budget_reference(names: tuple[str, ...], unlimited: Sequence[str] = ()) -> str:
    """Return the method whose search sets the budget ``evaluations``: OFMU, else the first method.

    Args:
        names: the compared methods.
        unlimited: the methods whose searches an earlier start began without this budget. The first of them sets it,
            since no other method that is added now may have a search without a limit.
    """
    if unlimited:
        return unlimited[0]
    return _BUDGET_REFERENCE if _BUDGET_REFERENCE in names else names[0]


def with_budget(config: SearchConfig, evaluations: int) -> SearchConfig:
    """Return the search with a limit on gradient evaluations instead of trials."""
    search = config.search.model_copy(
        update={
            "max_gradient_evaluations": evaluations,
            "num_trials": MAX_TRIALS_FACTOR * config.search.num_trials,
        }
    )
    return config.model_copy(update={"search": search})


def split_variant(name: str) -> tuple[str, str | None]:
    """Return the method and the variant of an entry of ``compare.methods``, such as ``ofmu@first_order``."""
    method, _, variant = name.partition("@")
    return method, variant or None


def _settings(name: str, module: str | None) -> list[str]:
    name, _ = split_variant(name)
    return [f"method.{key}" for key in method_class(name, None if name in BUILT_IN else module).Config.model_fields]


def _check_method(name: str, module: str | None, shared: SearchConfig) -> None:
    name, _ = split_variant(name)
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


def _check_all_retain_rows(section: Mapping[str, Any], shared: CompareConfig) -> None:
    """Check that the runs on the seeds use all retain rows, with which the draws are compared."""
    keys = {*shared.compare.space, *shared.search.space}
    keys.update(key for space in shared.compare.spaces.values() for key in space)
    if section.get("retain_share", 1) != 1 or "method.retain_share" in keys:
        raise ConfigError(
            "compare.retain_draws compares runs on draws with runs on all retain rows, and method.retain_share leaves "
            "rows out of these: leave method.retain_share out, and set compare.retain_share"
        )


def _method_config(name: str, mapping: Mapping[str, Any], shared: CompareConfig) -> SearchConfig:
    """Return one method's search. Only the method of the section ``method`` gets all settings of that section."""
    section, search = dict(mapping.get("method") or {}), dict(mapping.get("search") or {})
    method, variant = split_variant(name)
    is_own = section.get("name", "ofmu") == method and variant in (None, section.get("variant"))
    if not is_own:
        section = {key: value for key, value in section.items() if key in MethodConfig.model_fields}
        if method in BUILT_IN:
            section.pop("module", None)
    section["name"] = method
    if variant is not None:
        section["variant"] = variant
    given = flatten_space(search.get("space") or {}) if is_own else {}
    # A comparison runs the points of all fronts again, on seeds of its own.
    search.pop("confirm_seeds", None)
    search["space"] = _space(name, section.get("module"), given, shared)
    rest = {key: value for key, value in mapping.items() if key != "compare"}
    try:
        return validate(SearchConfig, {**rest, "method": section, "search": search})
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def _space(name: str, module: str | None, given: Mapping[str, Any], shared: CompareConfig) -> dict[str, Any]:
    space: dict[str, Any] = dict(given)
    if not given:
        method, variant = split_variant(name)
        space = {key: _as_dict(spec) for key, spec in default_space(method, module, variant).items()}
        for key, spec in shared.compare.space.items():
            if key in space:
                space[key] = _merged(space[key], spec)
    for key, spec in shared.compare.spaces.get(name, {}).items():
        space[key] = _merged(space.get(key, {}), spec)
    return space


def _merged(old: Any, new: Any) -> dict[str, Any]:
    """Return the new specification. If it changes only parts of a range, the other parts stay."""
    before, after = _as_dict(old), _as_dict(new)
    return {**before, **after} if set(after) <= _RANGE_KEYS and "low" in before else after


def _as_dict(spec: Any) -> dict[str, Any]:
    return spec.model_dump(exclude_unset=True) if isinstance(spec, Parameter) else dict(spec)
