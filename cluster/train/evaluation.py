"""The verb evaluate, on the workers that ran the trials."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cluster.capacity import check_trial_engine
from cluster.session import ray_session
from cluster.train.worker_group import short_lived_pool
from ofmu.errors import StorageError
from ofmu.run_files import RunFiles

if TYPE_CHECKING:
    from cluster.config import ClusterConfig
    from ofmu.run_config import UnlearnConfig


class Evaluate(Protocol):
    """:func:`ofmu.evaluator.evaluate`, here or on workers."""

    def __call__(self, model: str, config: UnlearnConfig, *, reference: str | None, output_dir: Path) -> dict[str, Any]:
        """Evaluate a saved model, and return what ``metrics.json`` holds."""


@contextmanager
def evaluations(config: UnlearnConfig, cluster: ClusterConfig) -> Iterator[Evaluate]:
    """Yield the verb evaluate. With ``cluster.num_workers`` above 0, a worker group of the trials' layout runs it.

    The group shards the model while its answers are scored. Rank 0 makes the attacks on whole models. All nodes must
    see the models and the folders of the evaluations.

    Args:
        config: the run, whose cache all nodes see.
        cluster: the worker layout.

    Raises:
        ClusterError: the cluster cannot be joined.
        ConfigError: the engine does not work on the workers.
        StorageError: the cache cannot be written.
    """
    # Imported here: it imports transformers, and an error of the cluster must come first.
    from ofmu.evaluator import evaluate

    if cluster.num_workers == 0:
        yield evaluate
        return
    check_trial_engine(config, cluster)
    with ray_session(cluster, config.engine.device) as layout, short_lived_pool(config) as (pool, storage):

        def on_workers(model: str, config: UnlearnConfig, *, reference: str | None, output_dir: Path) -> dict[str, Any]:
            output = output_dir.absolute()
            pool.evaluate(model, config, layout, storage, reference=reference, output_dir=output)
            report = RunFiles(output).read_report()
            if report is None:
                raise StorageError(
                    f"The workers have measured {model}, but {output} does not hold the result here: name a directory "
                    "that all nodes share"
                )
            return report

        yield on_workers
