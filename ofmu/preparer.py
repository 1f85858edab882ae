"""The verb prepare: make, or find in the cache, the target, the retrained model, and the scores of both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ofmu.engine.device import release_memory
from ofmu.engine.process_group import number_of_ranks
from ofmu.io.files import FileHashes
from ofmu.io.library_logging import silence_libraries
from ofmu.preflight import check_retrain_has_base
from ofmu.run_config import UnlearnConfig
from ofmu.tasks.events import PreparationCallback
from ofmu.tasks.load import task_family
from ofmu.tasks.preparation import NotCachedError, Preparation, Prepared

__all__ = [
    "Prepared",
    "find_prepared",
    "find_reference_scores",
    "find_retrained_model",
    "find_target_model",
    "find_target_scores",
    "prepare",
]


def prepare(config: UnlearnConfig, *, callback: PreparationCallback | None = None) -> Prepared:
    """Make, or find in the cache, the parts that all runs under ``config`` share.

    Call this function in one process, or on every rank of a process group. Several ranks train and score language
    models together, in the engine that ``config.engine`` names but in fp32. Their results differ from those of one
    process by rounding only, so both share the cache.

    The target is trained on forget and retain rows, unless ``model.is_target`` names it. With ``reference.source``
    'retrain' the same base model is trained on the retain rows only.

    Args:
        config: the run.
        callback: called when a part is ready, and after each epoch of a training.

    Raises:
        ClusterError: a rank of the launcher has not come, or the ranks cannot find each other.
        ConfigError: a retrained model is needed, but the config names no model to start from; a package that the config
            needs is missing; or a setting of the engine is for one process only.
        DataError: the data cannot be loaded.
        ModelError: the model cannot be loaded.
        ReferenceMismatchError: the given reference covers other rows, or follows another truth-ratio definition.
        NonFiniteLossError: the training diverged.
        StorageError: the cache cannot be written.
    """
    silence_libraries()
    config.engine.check_ranks(number_of_ranks())
    check_retrain_has_base(config)
    config.model.adapter.check_packages()
    try:
        with _torch_threads(config.engine.threads):
            return task_family(config.data.kind).preparation(config, callback).run()
    finally:
        # The trials of a search may share the GPU with this process.
        release_memory()


def find_prepared(
    config: UnlearnConfig, *, callback: PreparationCallback | None = None, hashes: FileHashes | None = None
) -> Prepared | None:
    """Return what :func:`prepare` would return, if the cache has every part; else None. Nothing is made.

    Args:
        config: the run.
        callback: called for each part that the cache has.
        hashes: keeps the hashes of files, so that a further call with the same object reads no file again.

    Raises:
        OfmuError: as :func:`prepare` raises it.
    """
    silence_libraries()
    check_retrain_has_base(config)
    try:
        return task_family(config.data.kind).preparation(config, callback, only_cached=True, hashes=hashes).run()
    except NotCachedError:
        return None


def find_target_scores(config: UnlearnConfig) -> Path | None:
    """Return the file of the target's scores in the cache; None if the target was not prepared.

    Raises:
        DataError: the data cannot be loaded.
        ModelError: the target, or the base model, cannot be loaded.
    """
    return _cached_or_none(config, lambda preparation: preparation.target()[1])


def find_reference_scores(config: UnlearnConfig) -> Path | None:
    """Return the file of the retrained model's scores in the cache; None if that model was not prepared.

    Raises:
        DataError: the data cannot be loaded.
        ModelError: the base model cannot be loaded.
    """
    return _cached_or_none(config, lambda preparation: preparation.reference()[1]) if _can_retrain(config) else None


def find_target_model(config: UnlearnConfig) -> Path | None:
    """Return the directory of the target; None if the target was not prepared.

    Raises:
        DataError: the data cannot be loaded.
        ModelError: the base model or the target cannot be loaded.
    """
    return _cached_or_none(config, lambda preparation: preparation.target_model())


def find_retrained_model(config: UnlearnConfig) -> Path | None:
    """Return the directory of the retrained model in the cache; None if that model was not prepared.

    Raises:
        DataError: the data cannot be loaded.
        ModelError: the base model cannot be loaded.
    """
    return _cached_or_none(config, lambda preparation: preparation.retrained()) if _can_retrain(config) else None


def _can_retrain(config: UnlearnConfig) -> bool:
    return config.reference.source == "retrain" and not (config.model.is_target and config.model.base is None)


def _cached_or_none(config: UnlearnConfig, part: Callable[[Preparation], Path]) -> Path | None:
    try:
        return part(task_family(config.data.kind).preparation(config, None, only_cached=True))
    except NotCachedError:
        return None


@contextmanager
def _torch_threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
