"""The actor that decides about running trials after their rounds, while a search needs one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import ray

from ofmu.errors import ConfigError
from tune.checkpoint_selection.callback import CheckpointSelection
from tune.checkpoint_selection.service import RoundArchiveClient, start_archive_actor
from tune.early_stopping.callback import EarlyStopping
from tune.early_stopping.service import SchedulerClient, start_scheduler_actor
from tune.study.limits import read_limits

if TYPE_CHECKING:
    import optuna

    from tune.config import SearchConfig
    from tune.rundir.search_dir import RunDirectory
    from tune.space.constraints import Limits


@contextmanager
def round_decider(
    run: RunDirectory, study: optuna.Study, config: SearchConfig
) -> Iterator[EarlyStopping | CheckpointSelection | None]:
    """Keep the actor of early stopping or of checkpoint selection alive. Yield None if the config asks for neither.

    Raises:
        ConfigError: checkpoint selection needs a bound that waits for the trial of the target.
    """
    search, objectives, names = config.search, config.objectives, tuple(config.objectives)
    stopping, selection = search.early_stopping, search.checkpoint_selection
    if stopping.enabled:
        actor = start_scheduler_actor(run.rungs_file, objectives, stopping)
        decider: EarlyStopping | CheckpointSelection = EarlyStopping(stopping, names, SchedulerClient(actor))
    elif selection.enabled:
        limits = _known_limits(study, config)
        actor = start_archive_actor(run.rounds_file, objectives, selection.stop_margin)
        decider = CheckpointSelection(selection, names, limits, RoundArchiveClient(actor))
    else:
        yield None
        return
    try:
        yield decider
    finally:
        ray.kill(actor)


def _known_limits(study: optuna.Study, config: SearchConfig) -> Limits:
    limits = read_limits(study, config)
    if limits is None:
        raise ConfigError(
            "A bound of search.constraints is a share of the target's value, which is not known before the first "
            "trial ends, and search.checkpoint_selection needs it earlier: give a number"
        )
    return limits
