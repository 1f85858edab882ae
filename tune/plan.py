"""What the trials of a search cost, from the method's own counts."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ofmu.plan.cost import Cost, run_cost
from tune.space.draw import drawn_evenly
from tune.space.space import run_config
from tune.study.baselines import DRAWS, PUBLISHED, TARGET, baseline_settings, with_decided_baselines

if TYPE_CHECKING:
    from ofmu.plan.workload import Workload
    from ofmu.run_config import UnlearnConfig
    from tune.config import SearchConfig


def search_cost(config: SearchConfig, work: Workload) -> tuple[Cost, Cost]:
    """Return the least and the most that a search costs: its baselines, sampled trials, and runs on further seeds.

    A sampled trial, and a run on a further seed, costs the mean over settings that are drawn evenly from the space. A
    sampler that learns may favour other settings. What early stopping saves, and what it scores, is not counted.

    Under ``search.checkpoint_selection`` a trial is scored on a few rows, at least after its last round and at most
    after all its scored rounds. A trial that kept a round is scored twice in full.

    Raises:
        ConfigError: the settings of a trial contradict each other.
    """
    config, _ = with_decided_baselines(config)
    base, space, generator = config.unlearn, config.search.space, random.Random(0)
    first_trials = config.search.first_trials
    published = baseline_settings(base)
    settings = {TARGET: published[TARGET], PUBLISHED: published[PUBLISHED]}
    baselines = [_bounds(base, settings[name], work) for name in first_trials]
    baselines = baselines[: config.search.num_trials]
    sampled = [_bounds(base, drawn_evenly(space, base, generator), work) for _ in range(DRAWS)]
    count = config.search.num_trials - len(baselines)
    # The target takes no round.
    scored = count + sum(name != TARGET for name in first_trials[: len(baselines)])
    selection = [part * scored for part in _selection_cost(config, work)]
    points = len(config.search.confirm_trials) or min(config.search.confirm_points, max(count, 0))
    again = config.search.confirm_seeds * points
    least, most = (
        sum((bounds[side] for bounds in baselines), Cost())
        + sum((bounds[side] for bounds in sampled), Cost()) * ((count + again) / DRAWS)
        + selection[side]
        for side in (0, 1)
    )
    return least, most


def _selection_cost(config: SearchConfig, work: Workload) -> tuple[Cost, Cost]:
    """Return the least and the most that one trial's checkpoint selection costs."""
    selection = config.search.checkpoint_selection
    if not selection.enabled:
        return Cost(), Cost()
    partial = work.partial_tokens(selection.rows)
    most = partial * (len(selection.rounds) + 1) + work.evaluation_tokens
    return Cost(forward_tokens=partial), Cost(forward_tokens=most)


def _bounds(base: UnlearnConfig, settings: Mapping[str, Any], work: Workload) -> tuple[Cost, Cost]:
    return run_cost(run_config(base, settings), work) or (Cost(), Cost())
