"""The actor that decides about running trials after their rounds, while a search needs one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import ray

from ofmu.errors import ConfigError
from tune.checkpoint_selection.callback import CheckpointSelection
from tune.checkpoint_selection.service import PersistentRoundArchive, RoundArchiveClient, start_archive_actor
from tune.early_stopping.callback import EarlyStopping
from tune.early_stopping.service import PersistentRungScheduler, SchedulerClient, start_scheduler_actor
from tune.rundir.search_files import ROUNDS, RUNGS
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
        DataError: the log of an earlier start is malformed.
        StorageError: the log's incomplete last line cannot be removed.
    """
    search, objectives, names = config.search, config.objectives, tuple(config.objectives)
    stopping, selection = search.early_stopping, search.checkpoint_selection
    # An actor reads its log in another process, where an error would fail every trial that calls the actor. So each log
    # is read here first.
    if stopping.enabled:
        PersistentRungScheduler(run.rungs_file, objectives, stopping, f"{run.display_path}/{RUNGS}")
        actor = start_scheduler_actor(run.rungs_file, objectives, stopping)
        decider: EarlyStopping | CheckpointSelection = EarlyStopping(stopping, names, SchedulerClient(actor))
    elif selection.enabled:
        limits = _known_limits(study, config)
        PersistentRoundArchive(run.rounds_file, objectives, selection.stop_margin, f"{run.display_path}/{ROUNDS}")
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
