"""The baselines with which a search starts: the untouched target, and the setting that the authors published.

``search.baselines`` can leave the published setting out. Without this list, its cost decides.

A baseline may lie outside the searched space, but NSGA-II and GP learn only from trials whose parameters lie inside. So
the study stores a baseline under the nearest parameters inside the space. The trial's ``overrides`` hold what really
ran.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ofmu.errors import ConfigError
from ofmu.methods.registry import method_class
from tune.space.draw import drawn_evenly
from tune.space.space import fixed_values, is_whole, run_config

if TYPE_CHECKING:
    from ofmu.run_config import UnlearnConfig
    from tune.config import SearchConfig
    from tune.space.parameter import Parameter, Space

TARGET = "target"
"""Role of the baseline that does not unlearn at all."""
PUBLISHED = "published"
"""Role of the baseline with the setting that the method's authors published."""
SAMPLED = "sampled"
"""Role of a trial whose setting the sampler suggested."""
PRIOR = "prior"
"""Role of a trial of an earlier search, which informs the sampler of this search (:mod:`tune.study.warm_start`)."""
DRAWS = 64
"""Settings that are drawn from the space, whose mean cost stands for a sampled trial."""
MOST_TRIALS = 4
"""The mean trials that the published setting may cost where ``search.baselines`` does not ask for it."""
_ROWS = 100
"""Rows of a set for which costs are compared. Methods that count epochs cost in proportion to them."""


def baseline_settings(base: UnlearnConfig) -> dict[str, dict[str, Any]]:
    """Return what each baseline sets, by role and dotted key. The method declares both settings.

    What a variant of the method fixes holds in its published setting too.
    """
    method = method_class(base.method.name, base.method.module)
    settings = {TARGET: method.no_op_config, PUBLISHED: {**method.published, **base.variant_settings}}
    return {role: {f"method.{key}": value for key, value in given.items()} for role, given in settings.items()}


def with_decided_baselines(config: SearchConfig) -> tuple[SearchConfig, str | None]:
    """Return the config with a list of baselines, and the sentence to say if the published setting is left out."""
    if config.search.baselines is not None:
        return config, None
    chosen, sentence = config.search.first_trials, None
    base, space, generator = config.unlearn, config.search.space, random.Random(0)
    published = _gradient_evaluations(base, baseline_settings(base)[PUBLISHED])
    drawn = [_gradient_evaluations(base, drawn_evenly(space, base, generator)) for _ in range(DRAWS)]
    known = [count for count in drawn if count is not None]
    mean = sum(known) / len(known) if known else None
    if published is not None and mean is not None and published > MOST_TRIALS * mean:
        chosen = ["target"]
        sentence = (
            f"The published setting is left out, since it takes {published:,.0f} gradient evaluations and a trial of "
            f"the space {mean:,.0f}: search.baselines=[target,published] runs it"
        )
    search = config.search.model_copy(update={"baselines": chosen})
    return config.model_copy(update={"search": search}), sentence


def _gradient_evaluations(base: UnlearnConfig, settings: Mapping[str, Any]) -> float | None:
    """Return the least number of gradient evaluations of a run, or None if the method or an impossible run has none."""
    try:
        config = run_config(base, settings)
    except ConfigError:
        return None
    bounds = method_class(config.method.name, config.method.module).passes(config.method, _ROWS, _ROWS)
    return None if bounds is None else bounds[0].gradient_evaluations


def overrides_of(role: str, space: Space, base: UnlearnConfig, drawn: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a trial really sets: the drawn settings, or the settings of its baseline."""
    baselines = baseline_settings(base)
    return {**fixed_values(space), **baselines[role]} if role in baselines else dict(drawn)


def in_space_params(space: Space, base: UnlearnConfig) -> dict[str, dict[str, Any]]:
    """Return, by baseline, the parameters inside the space under which the study stores the baseline."""
    values, published = base.model_dump(mode="json"), baseline_settings(base)[PUBLISHED]

    def published_value(key: str) -> Any:
        section, name = key.split(".")
        return published.get(key, values[section][name])

    searched = {key: spec for key, spec in space.items() if spec.kind != "fixed"}
    return {
        TARGET: {key: _weakest_value(base, key, spec) for key, spec in searched.items()},
        PUBLISHED: {key: _nearest(base, key, spec, published_value(key)) for key, spec in searched.items()},
    }


def _weakest_value(base: UnlearnConfig, key: str, parameter: Parameter) -> Any:
    """Return the value with which a run changes the model least."""
    if parameter.choices is not None:
        return parameter.choices[0]
    # A high threshold closes the hinge. Every other setting has less effect when it is low.
    bound = parameter.high if key == "method.similarity_threshold" else parameter.low
    return _nearest(base, key, parameter, bound)


def _nearest(base: UnlearnConfig, key: str, parameter: Parameter, value: Any) -> Any:
    if parameter.choices is not None:
        return value if value in parameter.choices else parameter.choices[0]
    low, high = parameter.low or 0.0, parameter.high or 0.0
    inside = min(max(float(value), low), high) if isinstance(value, int | float) else low
    whole = is_whole(base, key, parameter)
    step = parameter.step or (1.0 if whole else None)
    if step is not None and not parameter.log:
        steps = min(round((inside - low) / step), int((high - low) / step + 1e-9))
        inside = low + steps * step
    return round(inside) if whole else inside
