"""The rows that the run of a model forgot: the run in whose directory the model lies, or from which it was exported."""

from __future__ import annotations

from contextlib import suppress
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
        The rows; None if the model neither is the folder ``model`` of a run's directory, nor was exported from one.

    Raises:
        RunError: the rows cannot be read, or changed since the run. A request would then retain them unseen.
    """
    files = _files_of_run(expanded(model).resolve())
    stored = None if files is None else files.read_config()
    if files is None or stored is None:
        return None
    place = files.directory
    fix = f"restore the files that {files.config} names"
    if files.model != expanded(model).resolve():
        # The model may come from somebody else, whose rows are not here.
        fix += f", or move {files.metrics} away if none of them can be among the rows to retain"
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
            f"The rows that the run in {place} forgot must not be retained, and they cannot be read ({error}): {fix}"
        ) from error
    report = files.read_report()
    if report is not None and report.get("data_hash") != data.content_hash:
        raise RunError(
            f"The rows that the run in {place} forgot must not be retained, and they changed since the run: {fix}"
        )
    # The rows of a chain of runs lie in data.earlier. A run without --after knows only the model that it started from.
    before = forgotten_before(config.model.path) if config.model.path and not config.data.earlier else None
    return EarlierRows(
        id=place.name, forget=tuple(dict.fromkeys((*(before.forget if before else ()), *rows))), is_run=True
    )


def _files_of_run(folder: Path) -> RunFiles | None:
    """Return the files of the run that made the model in a folder; None if ofmu did not write them."""
    around, inside = RunFiles(folder.parent), RunFiles(folder)
    if folder == around.model and folder.is_dir() and made_by_ofmu(folder.parent):
        return around
    # An export has the run's config and metrics beside the weights. Others may have files of these names.
    with suppress(RunError):
        report = inside.read_report()
        if report is not None and {"data_hash", "metrics"} <= report.keys():
            return inside
    return None
