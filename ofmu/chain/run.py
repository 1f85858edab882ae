"""Runs of ``ofmu unlearn`` one after the other: each starts from the model of the one before."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ofmu.chain.records import EarlierRequestRecord, chain_record
from ofmu.chain.rows import EarlierRows, forget_files, index_of, read_earlier_rows, write_earlier
from ofmu.chain.run_record import CHAIN, RunChainRecord, UtilityRecord, read_run_chain
from ofmu.chain.scoring import MeasuredModel, measured_requests, scoring_of
from ofmu.config.files import validate
from ofmu.errors import ConfigError, ModelError, RunError, StorageError
from ofmu.io.cache import content_key, model_hashes
from ofmu.io.files import file_hash, looked_for, storage_errors, write_json
from ofmu.io.folders import new_folder
from ofmu.io.plugins import results_only
from ofmu.models.files import check_model_directory
from ofmu.models.hub import local_directory
from ofmu.preparer import find_prepared, find_target_model
from ofmu.run_config import UnlearnConfig
from ofmu.run_files import METRICS, RunFiles, check_is_no_link, check_no_links, check_output, stored_values
from ofmu.tasks.forgotten import Values
from ofmu.tasks.load import task_family

EARLIER = "earlier"
_UTILITY = (
    "model_utility",
    "retain_probability",
    "retain_rouge",
    "utility_choice_accuracy",
    "retain_knowledge_memorization",
    "testing_accuracy",
    "remaining_accuracy",
)
"""The metrics that tell what a chain costs in utility, where the data give them."""


@dataclass(frozen=True, kw_only=True)
class RunChain:
    """The runs before one run, the oldest first."""

    path: Path
    """The directory of the last run."""
    config: UnlearnConfig
    """The config of the last run."""
    known: tuple[EarlierRequestRecord, ...]
    """What the last run recorded of the runs before it."""
    own: EarlierRequestRecord
    """The record of the last run, without metrics."""
    earlier: tuple[EarlierRows, ...]
    given: tuple[str, ...]
    """Files of further earlier rows that the user wrote into ``data.earlier``. They are left out, and not measured."""
    first_target: Path
    first_path: str | None
    """``model.path`` in the config of the first run. The same config may go on naming it."""

    @property
    def model(self) -> Path:
        """The model from which the next run starts."""
        return RunFiles(self.path).model


def open_run(after: str | Path) -> RunChain:
    """Open the directory of a complete run, to run after it. Nothing is written.

    Raises:
        RunError: the directory holds no complete run, another version made it, or its rows changed.
        ModelError: the run's model, or the first target of the chain, is gone or was changed.
        DataError: the run's rows cannot be read.
    """
    place = Path(after).absolute()
    files = RunFiles(place)
    report, config = _complete_run(Path(after))
    check_model_directory(files.model)
    family = task_family(config.data.kind)
    data = family.load_data(config)
    if report.get("data_hash") != data.content_hash:
        raise RunError(f"The rows that {place} forgot changed since its run: restore the files that its config names")
    stored = read_run_chain(place)
    given = tuple(file for file in config.data.earlier if Path(file).parent != place / EARLIER)
    if len(given) < len(config.data.earlier) and stored is None:
        raise RunError(f"{after} ended before its earlier runs were measured: run its command again")
    known = () if stored is None else tuple(stored.chain.requests)
    taken = {request.id for request in known}
    name = str(place) if place.name in taken else place.name
    with stored_values(files.metrics):
        own = EarlierRequestRecord(
            id=name,
            finished=str(report["environment"].get("time", "")),
            hash=file_hash(files.metrics),
            forget_rows=family.row_counts(data)[0],
            metrics=[],
            gradient_evaluations=float(report["metrics"].get("gradient_evaluations") or 0.0),
            run_seconds=float(report["metrics"].get("seconds") or 0.0),
        )
    rows = EarlierRows(id=name, forget=family.forgotten.of(data), scoring=scoring_of(config))
    return RunChain(
        path=place,
        config=config,
        known=known,
        own=own,
        # Without a chain, such a folder is what an attempt at another run left there.
        earlier=(*(() if stored is None else read_earlier_rows(place / EARLIER, config.data.kind)), rows),
        given=given,
        first_target=_first_target(config, stored, place),
        first_path=config.model.path if stored is None else stored.first_path,
    )


@contextmanager
def chained_config(config: UnlearnConfig, chain: RunChain, output: str | Path) -> Iterator[UnlearnConfig]:
    """Write the rows of the earlier runs to ``output``, and yield the config of a run after a chain.

    The run starts from the model of the last run. Earlier forget rows are left out of its retain rows. A reference is
    retrained from the base of the last run, unless the config names another. If the block raises before its run has
    begun, the rows that were written here are removed.

    Raises:
        ConfigError: the config is for another kind of data than the last run's.
        ModelError: the config names another model than the last run left.
        DataError: the rows cannot be read, or do not fit those of the last run.
        RunError: ``output`` holds the rows of another chain, or files that no run made.
    """
    kind = chain.config.data.kind
    if config.data.kind != kind:
        names = {"language": "text", "vision": "images"}
        raise ConfigError(
            f"{chain.path} is a run on {names[kind]}, and data.source '{config.data.source}' holds "
            f"{names[config.data.kind]}: name a source of {names[kind]}, or leave --after out"
        )
    named = config.model.path
    if named is not None and named != chain.first_path and not _is_same_model(named, chain.model):
        raise ModelError(
            f"model.path names {named}, which is neither the model that {chain.path} left nor the one that the chain "
            f"started from: leave model.path out, or set it to {chain.model}"
        )
    check_output(output)
    task_family(kind).forgotten.check_follows(chain.config, config)
    with _written_rows(Path(output).absolute(), chain) as folder:
        settings = config.model_dump(mode="json")
        base = config.model.base or _base_of(chain.config)
        settings["model"] |= {"path": str(chain.model), "revision": None, "is_target": True, "base": base}
        files = (*chain.given, *config.data.earlier, *forget_files(folder, len(chain.earlier), kind))
        settings["data"]["earlier"] = list(dict.fromkeys(files))
        yield validate(UnlearnConfig, settings)


def count_left_out(before: UnlearnConfig, after: UnlearnConfig) -> int:
    """Return how many retain rows a chain leaves out. ``before`` is the config without the chain.

    Raises:
        DataError: the rows cannot be read, or no retain row is left.
    """
    return task_family(after.data.kind).forgotten.count_left_out(before, after)


def measure_chain(config: UnlearnConfig, chain: RunChain, output: str | Path, target: Values) -> RunChainRecord:
    """Measure the model of a complete run on the rows of the earlier runs, and write ``chain.json``.

    The first target is scored on the rows of this run. A chain that is measured already is read.

    Args:
        config: the run's config, see :func:`chained_config`.
        chain: the runs before it.
        output: the run's directory.
        target: the metrics of the model from which the run started.

    Raises:
        OfmuError: a model cannot be scored, or ``chain.json`` is damaged.
    """
    stored = read_run_chain(output)
    if stored is not None:
        return stored
    files = RunFiles(Path(output))
    metrics = files.read_metrics() or {}

    def measured(model: Path, rows: Sequence[EarlierRows]) -> list[Values]:
        # One model is in memory at a time.
        loaded = MeasuredModel(str(model), config)
        return [loaded.forget_metrics(each) for each in rows]

    now, last = measured(files.model, chain.earlier), chain.earlier[-1:]
    then = measured(chain.model, last)[0]
    first, before = _target_values(config, chain)
    requests = measured_requests(chain.known, chain.own, before, then, now)
    record = RunChainRecord(
        first_target=str(chain.first_target),
        first_target_hash=content_key(model_hashes(chain.first_target)),
        first_path=chain.first_path,
        utility=[
            UtilityRecord(name=name, first_target=first.get(name), target=target.get(name), result=metrics[name])
            for name in _UTILITY
            if metrics.get(name) is not None
        ],
        chain=chain_record(
            requests,
            gradient_evaluations=float(metrics.get("gradient_evaluations") or 0.0),
            run_seconds=float(metrics.get("seconds") or 0.0),
        ),
    )
    write_json(Path(output) / CHAIN, record.model_dump(mode="json"))
    return record


def _complete_run(after: Path) -> tuple[dict[str, Any], UnlearnConfig]:
    if not after.is_dir():
        raise RunError(f"There is no directory {looked_for(after)}: name the --output of an earlier ofmu unlearn")
    files = RunFiles(after)
    check_no_links(after, depth=1)
    report, stored = files.read_report(), files.read_config()
    if (after / "request.json").is_file():
        raise RunError(f"{after} holds a request of ofmu forget: use ofmu forget --after")
    if report is None or stored is None:
        raise RunError(
            f"{after} holds no complete run of ofmu unlearn: finish it with its own command, or name the --output of "
            "another ofmu unlearn"
        )
    try:
        with results_only(str(files.config)):
            config = validate(UnlearnConfig, stored)
    except ConfigError as error:
        raise RunError(f"The config in {files.config} cannot be used here ({error})") from error
    return report, config


def _target_values(config: UnlearnConfig, chain: RunChain) -> tuple[Values, Values]:
    """Return the metrics of two models: of the first target on all rows of the present run, and of the last run's
    target on the rows that the last run forgot."""
    model, target = MeasuredModel(str(chain.first_target), config), find_target_model(chain.config)
    utility = model.metrics()
    if target is None:
        return utility, {}
    # The last run's target is the first target in the second run of a chain, and is not loaded again.
    if target.resolve() != chain.first_target.resolve():
        model = MeasuredModel(str(target), config)
    return utility, model.forget_metrics(chain.earlier[-1])


def _first_target(config: UnlearnConfig, stored: RunChainRecord | None, place: Path) -> Path:
    fix = "put it back, or leave --after out to start a new chain"
    found = find_target_model(config) if stored is None else Path(stored.first_target)
    if found is None:
        raise ModelError(
            f"Utility is compared with the first target of the chain, and the cache has lost the target of {place}: "
            f"run ofmu prepare {place / 'config.yaml'}, or leave --after out to start a new chain"
        )
    if not found.is_dir():
        raise ModelError(f"Utility is compared with the first target of the chain, and {found} is gone: {fix}")
    if stored is not None and content_key(model_hashes(found)) != stored.first_target_hash:
        raise ModelError(f"Utility is compared with the first target of the chain, and {found} was changed: {fix}")
    return found


def _is_same_model(model: str, other: Path) -> bool:
    check_model_directory(model)
    # The metrics of a run may lie beside its model.
    hashes = [
        {name: value for name, value in model_hashes(place).items() if name != METRICS}
        for place in (local_directory(model), other)
    ]
    return hashes[0] == hashes[1]


def _base_of(config: UnlearnConfig) -> str | None:
    """Return the model before any training on the rows of a run, as far as it is known."""
    model = config.model
    if model.is_target or model.path is not None:
        return model.base if model.is_target else model.path
    prepared = find_prepared(config)
    return None if prepared is None or prepared.base is None else str(prepared.base)


@contextmanager
def _written_rows(output: Path, chain: RunChain) -> Iterator[Path]:
    """Write the rows of the earlier runs into a run's directory, and yield their folder.

    The rows are in clear, and another try may follow other runs. So they go again if the block raises before its run
    has written its config.
    """
    config, is_new = RunFiles(output).config, not output.exists()
    holds_run = config.exists()
    was_written = _write_rows(output / EARLIER, chain)
    try:
        yield output / EARLIER
    except BaseException:
        if was_written and (holds_run or not config.exists()):
            shutil.rmtree(output / EARLIER, ignore_errors=True)
            if is_new:
                with suppress(OSError):  # it holds other files by now
                    output.rmdir()
        raise


def _write_rows(folder: Path, chain: RunChain) -> bool:
    """Write the rows of the earlier runs, unless they are there. Return whether this call wrote them."""
    kind = chain.config.data.kind
    check_is_no_link(folder)
    was_written = False
    if not folder.exists():
        try:
            with storage_errors(folder), new_folder(folder) as made:
                write_earlier(made, chain.earlier, kind)
            was_written = True
        except (OSError, StorageError):
            if not folder.is_dir():  # else another rank of a launcher has written them
                raise
    if index_of(read_earlier_rows(folder, kind), kind) != index_of(chain.earlier, kind):
        raise RunError(f"{folder} holds the rows of other earlier runs than {chain.path}: name a new directory")
    return was_written
