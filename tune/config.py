"""The schema of a search: a run's config plus what is searched, for what, and where it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from cluster.config import ClusterConfig
from ofmu.config.base import PositiveInt, Section
from ofmu.config.files import validate
from ofmu.errors import ConfigError
from ofmu.evaluation.metrics.custom import is_custom_metric
from ofmu.methods.registry import method_class
from ofmu.run_config import UnlearnConfig
from tune.compare.config import CompareSettings
from tune.early_stopping.rungs import RungSettings
from tune.space.objectives import Direction, default_objectives, refuse_unusable

Scalar = str | int | float | bool | None
_DIRECTIONS = {"minimize": "min", "maximize": "max"}
_SPEC_KEYS = frozenset({"low", "high", "log", "step", "int", "choices", "value", "when"})


class Parameter(Section):
    """One searched setting: a range (low, high), a list of choices, or one fixed value."""

    low: Annotated[float, Field(allow_inf_nan=False)] | None = None
    high: Annotated[float, Field(allow_inf_nan=False)] | None = None
    log: bool = False
    step: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    int: bool | None = None
    """None: whole numbers exactly where the config's own field is one."""
    choices: Annotated[list[Scalar], Field(min_length=1)] | None = None
    value: Scalar = None
    when: dict[str, Scalar | list[Scalar]] = Field(default_factory=dict)
    """Other searched settings and the value, or values, under which this one counts."""

    @model_serializer(mode="wrap")
    def _only_what_was_set(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Keep a stored space readable, and ``value: null`` apart from no value at all."""
        return {key: value for key, value in handler(self).items() if key in self.model_fields_set}

    @property
    def kind(self) -> Literal["range", "choices", "fixed"]:
        """Return which of the three forms this parameter has."""
        if self.choices is not None:
            return "choices"
        return "range" if self.low is not None or self.high is not None else "fixed"


def default_space(method: str = "ofmu", module: str | None = None) -> dict[str, Parameter]:
    """Return the space over a method's settings that the method itself declares."""
    space = method_class(method, module).space
    return {f"method.{key}": Parameter.model_validate(spec) for key, spec in space.items()}


class SearchSettings(Section):
    """What is searched and how."""

    space: dict[str, Parameter] = Field(default_factory=dict)
    """Config key, such as ``method.inner_lr``, to what it may be; left out, it is the method's own space."""
    objectives: dict[str, Direction] | None = None
    """None: ks_statistic down (extraction_strength where there is no reference) and model_utility up.
    A name ``my_package.my_module:my_function`` is a function of the scores, see
    :data:`ofmu.evaluation.metrics.custom.CustomMetric`. ``minimize`` and ``maximize`` may be written out."""
    sampler: Literal["tpe", "nsga2", "gp", "random"] = "tpe"
    num_trials: PositiveInt = 32
    """Trials that finish, complete or failed; the untouched target and the paper's setting are two of them."""
    max_gradient_evaluations: PositiveInt | None = None
    """No trial starts once the finished ones have used this many together; None: num_trials alone decides."""
    max_concurrent_trials: PositiveInt | None = None
    """Trials at a time; None: as many as the cluster's CPUs and GPUs hold."""
    keep_models: Literal["front", "all", "none"] = "front"
    """``front``: a model is deleted once its trial is dominated."""
    warm_start: list[str] = Field(default_factory=list)
    """Run directories of earlier searches, one or several. Complete trials of the same task inform the sampler, and
    count neither as trials nor to the front; of another model's or other data's search, the front's settings are the
    first to be run, behind the two landmarks."""
    early_stopping: RungSettings = RungSettings()
    """Early stopping: trials that others outdo on their way are ended there, and told as pruned."""

    @field_validator("warm_start", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        if value is None:
            return []
        return [str(value)] if isinstance(value, str | Path) else value

    @field_validator("objectives", mode="before")
    @classmethod
    def _short_directions(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {name: _DIRECTIONS.get(way, way) if isinstance(way, str) else way for name, way in value.items()}

    @field_validator("space", mode="before")
    @classmethod
    def _flatten(cls, value: Any) -> Any:
        return flatten_space(value) if isinstance(value, Mapping) else value


class SearchConfig(UnlearnConfig):
    """A whole search: the settings every trial shares, the search's own, and the cluster's."""

    search: SearchSettings = SearchSettings()
    cluster: ClusterConfig = ClusterConfig()
    compare: CompareSettings = Field(default=CompareSettings(), exclude=True)
    """Read by a comparison alone; no single run or search stores it."""

    @model_validator(mode="before")
    @classmethod
    def _space_of_the_method(cls, values: Any) -> Any:
        search = values.get("search") if isinstance(values, Mapping) else None
        if not isinstance(values, Mapping) or isinstance(search, SearchSettings) or (search or {}).get("space"):
            return values
        method = values.get("method") or {}
        if isinstance(method, Mapping):
            name, module = method.get("name", "ofmu"), method.get("module")
        else:
            name, module = method.name, method.module
        return {**values, "search": {**(search or {}), "space": default_space(str(name), module)}}

    @model_validator(mode="after")
    def _searchable(self) -> SearchConfig:
        from tune.space.space import refuse_impossible_space

        refuse_unusable(self.objectives, self.has_reference)
        if self.search.early_stopping.enabled and not self.traits.partial_evaluation:
            raise ConfigError(
                "search.early_stopping judges language models on their way, and these data are images: "
                "set search.early_stopping.enabled to false"
            )
        refuse_impossible_space(self)
        return self

    @property
    def has_reference(self) -> bool:
        """Return whether forget quality can be measured."""
        return self.reference.source != "none"

    @property
    def objectives(self) -> dict[str, Direction]:
        """Return the objectives in order, the defaults filled in."""
        return dict(self.search.objectives or default_objectives(self.has_reference, self.data.kind))

    def shared_settings(self) -> dict[str, Any]:
        """Return the mapping of the UnlearnConfig that every trial starts from; its evaluation gives the objectives."""
        shared = self.model_dump(mode="json", exclude={"search", "cluster"})
        functions = [*self.evaluation.custom_metrics, *filter(is_custom_metric, self.objectives)]
        if functions:
            shared["evaluation"]["custom_metrics"] = list(dict.fromkeys(functions))
        return shared

    @property
    def unlearn(self) -> UnlearnConfig:
        """Return the config of a run without the search."""
        return UnlearnConfig.model_validate(self.shared_settings())


def search_config(
    config: SearchConfig | UnlearnConfig | Mapping[str, Any],
    objectives: Mapping[str, str] | None = None,
    num_trials: int | None = None,
    warm_start: str | Path | Sequence[str | Path] | None = None,
) -> SearchConfig:
    """Return the search's config; from an UnlearnConfig with the search's defaults, and with what is given replaced.

    Raises:
        ConfigError: a setting is unknown, out of range, or contradicts another.
    """
    mapping = config.model_dump(mode="json") if isinstance(config, UnlearnConfig) else dict(config)
    search = dict(mapping.get("search") or {})
    if objectives is not None:
        search["objectives"] = dict(objectives)
    if num_trials is not None:
        search["num_trials"] = num_trials
    if warm_start is not None:
        given = [warm_start] if isinstance(warm_start, str | Path) else warm_start
        search["warm_start"] = [str(each) for each in given]
    return validate(SearchConfig, {**mapping, "search": search})


def flatten_space(space: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the space with dotted keys, a list as ``{'choices': ...}`` and a plain value as ``{'value': ...}``.

    Nested sections come from dotted overrides on the command line; they are merged into dotted keys.
    """
    flat: dict[str, Any] = {}
    for key, value in space.items():
        name = f"{prefix}{key}"
        if isinstance(value, Parameter):
            flat[name] = value
        elif isinstance(value, Mapping) and "." not in key and not _SPEC_KEYS & set(value):
            for inner, spec in flatten_space(value, f"{name}.").items():
                merge = isinstance(flat.get(inner), dict) and isinstance(spec, dict)
                flat[inner] = {**flat[inner], **spec} if merge else spec
        elif isinstance(value, Mapping):
            merge = isinstance(flat.get(name), dict)
            flat[name] = {**flat[name], **value} if merge else dict(value)
        else:
            flat[name] = {"choices": value} if isinstance(value, list) else {"value": value}
    return flat
