"""The tasks of lm-eval that a config names: what they need, and whether they may be loaded.

The tasks of lm-eval itself are code of an installed package. The user's own folder of tasks may hold Python functions
and templates, both of which run, so it is loaded only where a module of the user may be imported. Data sets load
without code, since the package ``datasets`` runs none. Metrics of the package ``evaluate`` are scripts of the hub, so
no task gets them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import lru_cache
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

from ofmu.errors import ConfigError, DataError, nearest_name
from ofmu.evaluation.config import EvaluationConfig
from ofmu.io.library_logging import asking_the_hub
from ofmu.io.plugins import check_plugin

PATH_KEY = "evaluation.lm_eval_path"


def check_tasks(evaluation: EvaluationConfig) -> None:
    """Check that the package is there, and that it or the user's folder has every task of ``evaluation.lm_eval``.

    Raises:
        ConfigError: the package or a task is missing, or the user's folder may not be loaded.
    """
    if evaluation.lm_eval:
        task_manager(evaluation)


def load_tasks(evaluation: EvaluationConfig) -> None:
    """Load the tasks and their data sets once, so that an evaluation does not fail at its end.

    Raises:
        ConfigError: as :func:`check_tasks` raises it, or a task needs what is not run here.
        DataError: a task or its data set cannot be loaded.
    """
    if not evaluation.lm_eval:
        return
    manager = task_manager(evaluation)
    for name in evaluation.lm_eval:
        with without_hub_metrics() as refused, asking_the_hub(), quiet():
            try:
                tasks = manager.load([name])["tasks"]
            except Exception as error:
                # A task's code may raise anything. The user must change the task, so our traceback would not help.
                _check_metrics(name, refused)
                raise DataError(f"The lm-eval task '{name}' cannot be loaded: {said_by(error)}") from error
        _check_metrics(name, refused)
        for task_name, task in tasks.items():
            _check_task(task_name, task)


def _check_task(name: str, task: Any) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise ConfigError(f"The lm-eval task '{name}' runs code that the model writes: leave it out")
    if getattr(task, "MULTIMODAL", False):
        raise ConfigError(f"The lm-eval task '{name}' needs images or sound, and the model reads text: leave it out")


def _check_metrics(name: str, refused: Sequence[str]) -> None:
    if refused:
        raise ConfigError(
            f"The lm-eval task '{name}' has the metric '{refused[0]}', for which the package evaluate would run a "
            "script of the hub: leave the task out, or name a metric of lm-eval in it"
        )


def task_manager(evaluation: EvaluationConfig) -> Any:
    """Return lm-eval's ``TaskManager``, which knows every task of ``evaluation.lm_eval``.

    Raises:
        ConfigError: the package or a task is missing, or the user's folder may not be loaded.
    """
    if find_spec("lm_eval") is None:
        raise ConfigError(
            "evaluation.lm_eval needs the package lm-eval, which is missing: pip install 'ofmu[lm-eval]', or leave the "
            "key out"
        )
    from lm_eval.tasks import TaskManager  # an extra, and slow to import

    folder = evaluation.lm_eval_path
    if folder is not None:
        check_plugin(folder, PATH_KEY)
        if not Path(folder).is_dir():
            raise ConfigError(f"{PATH_KEY} '{folder}' is no folder: name the folder of your task files")
        with quiet():
            own = TaskManager(include_path=folder, include_defaults=False)
        # lm-eval's own index takes ten seconds to read. Only groups may name tasks of it.
        if all(name in own.task_index and own.task_index[name].kind.name != "GROUP" for name in evaluation.lm_eval):
            return own
    manager = _whole_index(folder, None if folder is None else tuple(_stamps(Path(folder))))
    known = manager.all_tasks
    for name in evaluation.lm_eval:
        if name not in known:
            _check_files(folder)
            raise ConfigError(f"Unknown task '{name}' in evaluation.lm_eval: {nearest_name(name, known)}")
    return manager


@lru_cache(maxsize=4)
def _whole_index(folder: str | None, stamps: tuple[Any, ...] | None) -> Any:
    """Return the index of lm-eval's tasks and of a folder's. ``stamps``: what the folder held."""
    from lm_eval.tasks import TaskManager  # an extra, and slow to import

    with quiet():
        return TaskManager(include_path=folder)


def _stamps(folder: Path) -> Iterator[tuple[str, int]]:
    for path in sorted(folder.rglob("*.yaml")):
        yield str(path), path.stat().st_mtime_ns


def _check_files(folder: str | None) -> None:
    """Check the user's task files, of which lm-eval passes over those that it cannot read.

    Raises:
        ConfigError: a file is malformed.
    """
    from lm_eval.tasks._yaml_loader import load_yaml  # an extra, and slow to import

    for path in sorted(Path(folder).rglob("*.yaml")) if folder is not None else ():
        try:
            load_yaml(path, resolve_func=False)
        except Exception as error:  # of YAML, of a file that is included, or of the file's content
            raise ConfigError(f"The task file {path} cannot be read: {said_by(error)}") from error


def folder_files(folder: str) -> dict[str, Path]:
    """Return the files of the user's folder that decide what its tasks are, by their path in the folder."""
    root = Path(folder)
    files = sorted(path for path in root.rglob("*") if path.suffix in {".yaml", ".py"} and path.is_file())
    return {path.relative_to(root).as_posix(): path for path in files}


@contextmanager
def without_hub_metrics() -> Iterator[list[str]]:
    """Keep the package ``evaluate``, which lm-eval asks for metrics, from loading scripts of the hub in the block.

    Yields:
        The names of the metrics that were asked for.
    """
    import evaluate  # an extra, and slow to import

    refused: list[str] = []

    def refuse(path: str, *_: Any, **__: Any) -> None:
        refused.append(path)
        raise ConfigError(f"the metric '{path}' is a script of the hub, and no code of the hub is run here")

    load, evaluate.load = evaluate.load, refuse
    try:
        yield refused
    finally:
        evaluate.load = load


@contextmanager
def quiet() -> Iterator[None]:
    """Keep lm-eval from writing to the terminal, where the progress is ours."""
    from tqdm import tqdm  # comes with lm-eval

    logger, show = logging.getLogger("lm_eval"), tqdm.__init__
    level = logger.level

    def hide(bar: Any, *arguments: Any, **options: Any) -> None:
        show(bar, *arguments, **{**options, "disable": True})

    logger.setLevel(logging.ERROR)
    tqdm.__init__ = hide
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        tqdm.__init__ = show
        logger.setLevel(level)


def said_by(error: Exception) -> str:
    """Return an error's kind and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
