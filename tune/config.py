"""The config of a search: a run's config, the section ``search`` and the section ``cluster``.

The sections of a search live beside the code that reads them:

- ``search.space``: :class:`tune.space.parameter.Parameter`
- ``search.constraints``: :class:`tune.space.constraints.ConstraintConfig`
- ``search.checkpoint_selection``: :class:`tune.checkpoint_selection.config.CheckpointSelectionConfig`
- ``search.early_stopping``: :class:`tune.early_stopping.config.EarlyStoppingConfig`
- ``cluster``: :class:`cluster.config.ClusterConfig`
- ``tracking``: :class:`tune.tracking.config.TrackingConfig`

:class:`tune.compare.config.CompareConfig` adds the section ``compare``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from cluster.config import ClusterConfig
from ofmu.config.base import NonNegativeInt, PositiveFloat, PositiveInt, Section
from ofmu.config.files import parse_scalar, validate
from ofmu.errors import ConfigError
from ofmu.evaluation.metrics.custom import is_custom_metric
from ofmu.io.plugins import reads_results_only
from ofmu.methods.config import MethodConfig
from ofmu.run_config import UnlearnConfig, check_sections
from tune.checkpoint_selection.config import CheckpointSelectionConfig
from tune.early_stopping.config import EarlyStoppingConfig
from tune.space.constraints import ConstraintConfig, check_constraints
from tune.space.measured import measured_at_the_end, measured_by_request, missing_input, with_requested
from tune.space.objectives import Direction, check_objectives, default_objectives, missing_objective_sentence
from tune.space.parameter import Parameter, default_space, flatten_space
from tune.space.space import check_space, reachable_part
from tune.tracking.config import TrackingConfig

_SHORT_DIRECTIONS = {"minimize": "min", "maximize": "max"}


class SearchOptions(Section):
    """What is searched, and how."""

    space: dict[str, Parameter] = Field(default_factory=dict)
    """The searched settings, by config key such as ``method.inner_lr``. Left out: the method's own space."""
    objectives: dict[str, Direction] | None = None
    """Two or three objectives, each with ``min`` or ``max``. None: minimise ks_statistic (extraction_strength without a
    reference) and maximise model_utility. A name such as ``my_package.my_module:my_function`` is a function of the
    scores, see :data:`ofmu.evaluation.metrics.custom.CustomMetric`."""
    constraints: dict[str, ConstraintConfig] = Field(default_factory=dict)
    """Bounds on metrics, by the metric's name: ``{model_utility: {min: 0.95 of target}, kl_retain: {max: 0.01}}``. The
    front, the knee and the sampler prefer trials that keep all bounds."""
    sampler: Literal["tpe", "nsga2", "gp", "random"] = "tpe"
    """Optuna's sampler."""
    num_trials: PositiveInt = 32
    """Number of trials to finish, whether complete, failed or pruned. The baselines count."""
    baselines: list[Literal["target", "published"]] | None = None
    """The trials with which the search starts. ``target``: the untouched target, which every search needs.
    ``published``: the setting that the method's authors published. None: both, but without the published setting where
    it costs more than four times as much as a trial of the space in the mean."""
    max_gradient_evaluations: PositiveInt | None = None
    """No trial starts once the finished trials have used this many gradient evaluations together. None: no limit."""
    max_hours: PositiveFloat | None = None
    """No trial starts once the search has run for this many hours, preparation included. The baselines always start.
    None: no limit."""
    max_concurrent_trials: PositiveInt | None = None
    """Number of trials that run at the same time. None: as many as the cluster's CPUs and GPUs hold."""
    keep_models: Literal["front", "all", "none"] = "front"
    """``front``: delete a model once another trial dominates its trial."""
    warm_start: list[str] = Field(default_factory=list)
    """Run directories of earlier searches. Complete trials of the same task inform the sampler, but they count neither
    as trials nor for the front. If an earlier search had another model or other data, the settings of its front run
    first, after the baselines."""
    confirm_seeds: NonNegativeInt = 0
    """Number of further seeds on which the best points of the front run again after the search. On the seed of the
    search, where they were chosen, points look better than they are. 0: nothing runs again."""
    confirm_points: PositiveInt = 5
    """Largest number of points that run again. The chosen points cover the most hypervolume together."""
    confirm_trials: list[NonNegativeInt] = Field(default_factory=list)
    """Numbers of the complete trials that run again, in place of the front's best points. Empty: the best points."""
    early_stopping: EarlyStoppingConfig = EarlyStoppingConfig()
    """Stop trials early that other trials dominate. Such trials end as pruned."""
    checkpoint_selection: CheckpointSelectionConfig = CheckpointSelectionConfig()
    """Let a trial stand for the round that adds most to the front, in place of its last round."""

    @property
    def first_trials(self) -> list[Literal["target", "published"]]:
        """The trials with which the search starts, as far as their cost does not decide."""
        return ["target", "published"] if self.baselines is None else self.baselines

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
        return {name: _SHORT_DIRECTIONS.get(way, way) if isinstance(way, str) else way for name, way in value.items()}

    @field_validator("space", mode="before")
    @classmethod
    def _flatten(cls, value: Any) -> Any:
        return flatten_space(value) if isinstance(value, Mapping) else value


class SearchConfig(UnlearnConfig):
    """A whole search: the config that all trials share, what is searched, the cluster, and the trackers."""

    search: SearchOptions = SearchOptions()
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="before")
    @classmethod
    def _default_space(cls, values: Any) -> Any:
        search = values.get("search") if isinstance(values, Mapping) else None
        if not isinstance(values, Mapping) or not isinstance(search, Mapping | None) or (search or {}).get("space"):
            return values
        method = values.get("method") or {}
        if isinstance(method, MethodConfig):
            name, module, variant = method.name, method.module, getattr(method, "variant", None)
        elif isinstance(method, Mapping):
            name, module, variant = method.get("name", "ofmu"), method.get("module"), method.get("variant")
        else:
            return values
        if not isinstance(module, str | None) or not isinstance(variant, str | None):
            return values  # the section's own validation refuses it
        return {**values, "search": {**(search or {}), "space": default_space(str(name), module, variant)}}

    @model_validator(mode="after")
    def _check_search(self) -> SearchConfig:
        check_objectives(self.objectives, self.has_reference)
        check_constraints(self.search.constraints)
        for name in self.objectives:
            if (reason := missing_input(name, self)) is not None:
                raise ConfigError(missing_objective_sentence(name, reason))
        for name in self.search.constraints:
            if (reason := missing_input(name, self)) is not None:
                raise ConfigError(f"search.constraints names {name}, which a trial does not compute: {reason}")
        if "target" not in self.search.first_trials:
            raise ConfigError("search.baselines lacks 'target', with which the front is compared: add 'target'")
        self._check_scores_during_a_run()
        if not reads_results_only():
            # The settings of a method whose module is not imported are not known.
            check_space(self.search.space, self.unlearn)
        return self

    def _check_scores_during_a_run(self) -> None:
        """Check that early stopping and checkpoint selection can score trials during their runs.

        Raises:
            ConfigError: both are on, the data are images, or what they compare is measured at a trial's end.
        """
        search = self.search
        asked = {
            "early_stopping": search.early_stopping.enabled,
            "checkpoint_selection": search.checkpoint_selection.enabled,
        }
        enabled = [name for name, is_on in asked.items() if is_on]
        if len(enabled) == 2:
            raise ConfigError(
                "search.checkpoint_selection stops trials by its own rule: set search.early_stopping.enabled to false"
            )
        for name in enabled:
            fix = f"set search.{name}.enabled to false"
            if not self.traits.partial_evaluation:
                raise ConfigError(
                    f"search.{name} scores language models during a run, and these data are images: {fix}"
                )
            at_the_end = next(filter(measured_at_the_end, self.objectives), None)
            # Searches of earlier versions did without the scores, and their results are still read.
            if at_the_end is not None and not reads_results_only():
                raise ConfigError(
                    f"search.{name} compares objectives during a run, and {at_the_end} is measured at its end: {fix}"
                )
        at_the_end = next(filter(measured_by_request, search.constraints), None)
        if search.checkpoint_selection.enabled and at_the_end is not None:
            raise ConfigError(
                f"search.checkpoint_selection compares several rounds of a trial, and {at_the_end}, which "
                "search.constraints bounds, is measured of one round: set search.checkpoint_selection.enabled to false"
            )

    @property
    def has_reference(self) -> bool:
        """Whether trials can be compared with a retrained model."""
        return self.reference.source != "none"

    @property
    def plugins(self) -> dict[str, str]:
        """The modules of the user that a search imports, each with the key that names it."""
        search: dict[str, Iterable[str]] = {
            "search.objectives": self.search.objectives or {},
            "search.constraints": self.search.constraints,
        }
        named = {
            name.partition(":")[0]: key for key, names in search.items() for name in filter(is_custom_metric, names)
        }
        return super().plugins | named

    @property
    def measured(self) -> tuple[str, ...]:
        """The metrics that every trial must report: the objectives, then the other constrained metrics."""
        return tuple(dict.fromkeys([*self.objectives, *self.search.constraints]))

    @property
    def objectives(self) -> dict[str, Direction]:
        """The objectives in order. If the config names none, these are the defaults."""
        return dict(self.search.objectives or default_objectives(self.has_reference, self.data.kind))

    def departures(self) -> dict[str, str]:
        """Return one sentence for every setting in which trials differ from ``method.variant``, by dotted key."""
        space, variant = self.search.space, getattr(self.method, "variant", None)
        notes = {key: note for key, note in super().departures().items() if key not in space}
        for name, value in self.variant_settings.items():
            parameter = space.get(f"method.{name}")
            if parameter is None or parameter == Parameter(value=value):
                continue
            how = f"sets method.{name} to {parameter.value}" if parameter.kind == "fixed" else f"draws method.{name}"
            notes[f"method.{name}"] = f"The search {how}, and method.variant '{variant}' sets it to {value}"
        return notes

    def shared_settings(self) -> dict[str, Any]:
        """Return the config that all trials share, as a mapping. Its evaluation computes the objectives.

        The evaluation also computes the metrics of the constraints.
        """
        shared = self.model_dump(mode="json", include=set(UnlearnConfig.model_fields))
        shared["evaluation"] = with_requested(shared["evaluation"], self.measured)
        return shared

    @property
    def unlearn(self) -> UnlearnConfig:
        """The config that all trials share. Each access makes a new object."""
        return UnlearnConfig.model_validate(self.shared_settings())


def search_config(
    config: SearchConfig | UnlearnConfig | Mapping[str, Any],
    objectives: Mapping[str, str] | None = None,
    num_trials: int | None = None,
    warm_start: str | Path | Sequence[str | Path] | None = None,
) -> SearchConfig:
    """Return the config of a search.

    Args:
        config: a search's config or mapping, of which a section ``compare`` is left out; or a run's config, which gets
            the defaults of a search.
        objectives: replaces ``search.objectives``.
        num_trials: replaces ``search.num_trials``.
        warm_start: replaces ``search.warm_start``.

    Raises:
        ConfigError: a setting is unknown, out of range, or contradicts another setting.
    """
    _check_arguments(config, objectives, num_trials)
    mapping = config.model_dump(mode="json") if isinstance(config, UnlearnConfig) else dict(config)
    check_sections(mapping)
    mapping.pop("compare", None)
    search = dict(mapping.get("search") or {})
    if objectives is not None:
        search["objectives"] = dict(objectives)
    if num_trials is not None:
        search["num_trials"] = num_trials
    if warm_start is not None:
        given = [warm_start] if isinstance(warm_start, str | Path) else warm_start
        search["warm_start"] = [str(each) for each in given]
    return validate(SearchConfig, {**mapping, "search": search})


def _check_arguments(config: object, objectives: object, num_trials: object) -> None:
    """Check for a path in another argument's place, which is easily written in a call by position.

    Raises:
        ConfigError: an argument has another type.
    """
    if not isinstance(config, UnlearnConfig | Mapping):
        given = str(config)
        raise ConfigError(f"A search takes a config or a mapping, not {given!r}: read a file with SearchConfig.read()")
    for name, value, is_right in (
        ("objectives", objectives, objectives is None or isinstance(objectives, Mapping)),
        ("num_trials", num_trials, not isinstance(num_trials, str | Path) or str(num_trials).isdigit()),
    ):
        if not is_right and isinstance(value, str | Path):
            given = str(value)
            raise ConfigError(f"The argument {name} is {given!r}: for a directory, write run_dir={given!r}")
        if not is_right:
            raise ConfigError(f"The argument {name} is {value!r}: give a mapping of names to min or max")


def searched_and_named(
    mapping: Mapping[str, Any], overrides: Sequence[str], *, through_variant: bool = False
) -> dict[str, Any]:
    """Return the settings that a command line names although the search draws them, with their values.

    Args:
        mapping: the config, with the overrides applied.
        overrides: the entries of the command line, such as ``method.outer_steps=5``.
        through_variant: whether ``method.variant=NAME`` names the settings that the variant sets, but for those whose
            range the command line names.

    Raises:
        ConfigError: the config is invalid, or the command line names both a setting and its range.
    """
    config = search_config(mapping)
    values, found = config.model_dump(mode="json"), {}
    uses_variant = through_variant and _names(overrides, "method.variant")
    by_variant = {f"method.{name}" for name in config.variant_settings} if uses_variant else set[str]()
    for key, parameter in config.search.space.items():
        if parameter.kind == "fixed":
            continue
        is_named, has_range = _names(overrides, key), _names(overrides, f"search.space.{key}")
        if is_named and has_range:
            raise ConfigError(f"The command line names both {key} and search.space.{key}: leave one of them out")
        if is_named or (key in by_variant and not has_range):
            section, _, name = key.partition(".")
            found[key] = values[section][name]
    return found


def with_named_settings(mapping: Mapping[str, Any], overrides: Sequence[str]) -> tuple[Mapping[str, Any], list[str]]:
    """Take what a command line names out of the search. Return the config, and one sentence for each such setting.

    Args:
        mapping: the config, with the overrides applied.
        overrides: the entries of the command line. ``method.variant=NAME`` names what the variant sets.

    Raises:
        ConfigError: the config is invalid, or the command line names both a setting and its range.
    """
    fixed = searched_and_named(mapping, overrides, through_variant=True)
    notes = [f"{key} is {value} in every trial but the baselines, and is not searched" for key, value in fixed.items()]
    return (fix_settings(mapping, fixed) if fixed else mapping), notes


def fix_settings(mapping: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Take settings out of the search, as a plain value in Ray Tune's ``param_space`` does.

    Settings whose condition cannot hold any more leave the space.

    Args:
        mapping: a search's config.
        values: the settings' values in every trial, by dotted key.
    """
    space = search_config(mapping).search.space | {key: Parameter(value=value) for key, value in values.items()}
    stored = {key: parameter.model_dump(mode="json") for key, parameter in reachable_part(space).items()}
    return {**mapping, "search": {**(mapping.get("search") or {}), "space": stored}}


def _names(overrides: Sequence[str], key: str) -> bool:
    """Return whether an entry sets ``key``, a part of it, or, by a whole section, ``key`` too."""
    for entry in overrides:
        path, _, text = entry.partition("=")
        if path == key or path.startswith(f"{key}."):
            return True
        inner = parse_scalar(text) if key.startswith(f"{path}.") else None
        for part in key.removeprefix(f"{path}.").split("."):
            inner = inner.get(part, _ABSENT) if isinstance(inner, Mapping) else _ABSENT
        if inner is not _ABSENT:
            return True
    return False


_ABSENT = object()
