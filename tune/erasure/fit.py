"""Whether one trial of a request fits this machine, and what makes it fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.capacity import check_trial_engine
from cluster.config import ClusterConfig
from ofmu.config.files import validate
from ofmu.errors import MemoryLimitError
from ofmu.plan.budget import device_memory
from ofmu.plan.check import gib, refusal
from ofmu.plan.plan import make_plan, runs_on_gpu
from ofmu.reports.numbers import big_number
from ofmu.run_config import UnlearnConfig
from tune.erasure.settings import run_settings
from tune.plan import search_cost

if TYPE_CHECKING:
    from ofmu.plan.plan import Plan
    from tune.config import SearchConfig


@dataclass(frozen=True)
class FittingPlan:
    """The plan of a search in words, and the change that it needs."""

    sentence: str
    change: tuple[str, ...]
    """Entries such as ``engine.gradient_checkpointing=true``; empty if a trial fits as it is."""


def check_device_of(mapping: Mapping[str, Any]) -> None:
    """Check that the trials of a request find the device that its settings name.

    Raises:
        ConfigError: the settings name a GPU, and no GPU is visible; or a setting is wrong, or is for one process only.
    """
    check_trial_engine(
        validate(UnlearnConfig, run_settings(mapping)), validate(ClusterConfig, mapping.get("cluster") or {})
    )


def plan_of(config: SearchConfig, hours: float | None = None) -> FittingPlan:
    """Plan a search on this machine. No weights are read.

    Args:
        config: the search.
        hours: hours for the whole request; None: no limit.

    Raises:
        MemoryLimitError: a trial does not fit, and no setting of the engine makes it fit.
    """
    unlearn, cluster = config.unlearn, config.cluster
    ranks = max(1, cluster.num_workers)
    on_gpu = cluster.reserved_gpus > 0 or (cluster.sees_gpu and runs_on_gpu(unlearn))
    memory = device_memory(on_gpu=on_gpu) if unlearn.engine.check_memory else None
    budget = None if memory is None else memory * min(1.0, cluster.reserved_gpus or 1.0) if on_gpu else memory / ranks
    keeps_round = config.search.checkpoint_selection.enabled
    plan = make_plan(unlearn, ranks=ranks, on_gpu=on_gpu, budget=budget, keeps_round=keeps_round)
    change = plan.smallest_change()
    if not plan.fits and change is None:
        raise MemoryLimitError(refusal(plan))
    needed = f"Plan: a trial needs {gib(plan.needed)} of memory"
    return FittingPlan(f"{needed}; {_amount(config, plan, hours)}", () if change is None else change.overrides)


def _amount(config: SearchConfig, plan: Plan, hours: float | None) -> str:
    """Return in words how much the search computes. How many trials a budget allows is not known before the search."""
    trials = config.search.num_trials
    if hours is not None:
        return f"the search runs as many trials as {hours:g} hours allow, at most {trials}"
    low, high = (big_number(cost.gradient_evaluations) for cost in search_cost(config, plan.work))
    return (
        f"{trials} trials are expected to compute from {low} to {high} gradients of a minibatch, without the runs on "
        "further seeds"
    )
