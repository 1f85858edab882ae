"""The verb prepare, on the workers that will run the trials."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cluster.train.worker_group import short_lived_pool
from ofmu.errors import StorageError
from ofmu.io.cache import cache_root
from ofmu.io.files import FileHashes
from ofmu.tasks.events import PartReady, PreparationEvent

if TYPE_CHECKING:
    from cluster.config import ClusterConfig
    from ofmu.run_config import UnlearnConfig
    from ofmu.tasks.events import PreparationCallback
    from ofmu.tasks.preparation import Prepared


def prepare(config: UnlearnConfig, cluster: ClusterConfig, callback: PreparationCallback | None = None) -> Prepared:
    """Make the parts that all runs under ``config`` share, or find them in the cache.

    With ``cluster.num_workers`` above 0, a worker group of the trials' layout makes what the cache lacks. This process
    may then have no GPU and little memory. The group needs a joined Ray cluster, and a cache that all nodes see.
    Otherwise this process makes the parts.

    Args:
        config: the run.
        cluster: the worker layout.
        callback: called when a part is ready, and after each epoch of a training.

    Raises:
        OfmuError: as :func:`ofmu.preparer.prepare` raises it.
        RunError: the worker group crashed more than ``cluster.max_failures`` times.
        StorageError: this process does not see what the workers made.
    """
    # Imported here: both import transformers, and an error of the cluster must come first.
    from ofmu import preparer

    if cluster.num_workers == 0:
        return preparer.prepare(config, callback=callback)
    in_cache: list[PreparationEvent] = []
    # What this process has read is not read again once the workers are done.
    hashes = FileHashes()
    found = preparer.find_prepared(config, callback=in_cache.append, hashes=hashes)
    if found is not None:
        if callback is not None:
            for event in in_cache:
                callback(event)
        return found
    created: dict[str, bool] = {}

    def hand_on(event: PreparationEvent) -> None:
        if isinstance(event, PartReady):
            created[event.part] = event.created
        if callback is not None:
            callback(event)

    _prepare_in_group(config, cluster, hand_on)
    found = preparer.find_prepared(config, hashes=hashes)
    if found is None:
        raise StorageError(
            f"The workers have prepared the models, but {cache_root(config.cache_dir)} does not hold them here: set "
            "cache_dir to a directory that all nodes share"
        )
    return replace(found, created=created)


def _prepare_in_group(config: UnlearnConfig, cluster: ClusterConfig, callback: PreparationCallback) -> None:
    with short_lived_pool(config) as (pool, storage):
        pool.prepare(config, cluster, storage, callback)
