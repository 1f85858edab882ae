"""The rows that the run of ``ofmu unlearn`` forgot in whose directory a model lies."""

from __future__ import annotations

from pathlib import Path

from ofmu.chain.rows import EarlierRows
from ofmu.config.files import validate
from ofmu.data.earlier import read_earlier
from ofmu.errors import ConfigError, OfmuError, RunError
from ofmu.io.files import expanded
from ofmu.io.plugins import results_only
from ofmu.run_config import UnlearnConfig
from ofmu.run_files import RunFiles, made_by_ofmu
from ofmu.tasks.load import task_family


def forgotten_before(model: str | Path) -> EarlierRows | None:
    """Return the rows that a run of text, and the runs before it, forgot to make a model. Nothing is written.

    Args:
        model: directory or hub name of a model.

    Returns:
        The rows; None if the model is not the folder ``model`` of a run's directory.

    Raises:
        RunError: the rows cannot be read, or changed since the run. A request would then retain them unseen.
    """
    place = expanded(model).resolve().parent
    files = RunFiles(place)
    if expanded(model).resolve() != files.model or not files.model.is_dir() or not made_by_ofmu(place):
        return None
    stored = files.read_config()
    if stored is None:
        return None
    try:
        with results_only(str(files.config)):
            config = validate(UnlearnConfig, stored)
        if config.data.kind != "language":
            return None
        family = task_family(config.data.kind)
        data = family.load_data(config)
        rows = (*family.forgotten.of(data), *read_earlier(config.data.earlier))
    except ConfigError as error:
        raise RunError(
            f"The config in {files.config} says which rows the model forgot, and it cannot be used here ({error})"
        ) from error
    except OfmuError as error:
        raise RunError(
            f"The rows that the run in {place} forgot must not be retained, and they cannot be read ({error}): restore "
            f"the files that {files.config} names"
        ) from error
    report = files.read_report()
    if report is not None and report.get("data_hash") != data.content_hash:
        raise RunError(
            f"The rows that the run in {place} forgot must not be retained, and they changed since the run: restore "
            f"the files that {files.config} names"
        )
    return EarlierRows(id=place.name, forget=rows, is_run=True)
