"""Runs of ``ofmu unlearn`` one after the other: each starts from the model of the one before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ofmu.chain.records import EarlierRequestRecord, chain_record
from ofmu.chain.rows import EarlierRows, forget_files, read_earlier_rows, write_earlier
from ofmu.chain.run_record import CHAIN, RunChainRecord, UtilityRecord, read_run_chain
from ofmu.chain.scoring import MeasuredModel, Values, measured_requests, scoring_of
from ofmu.config.files import validate
from ofmu.data.earlier import read_earlier, without_earlier
from ofmu.data.load import load_data
from ofmu.data.normalized import normalized
from ofmu.data.rows import Row, UnlearnData
from ofmu.errors import ConfigError, ModelError, RunError, StorageError
from ofmu.evaluator import evaluate
from ofmu.io.cache import content_key, model_hashes
from ofmu.io.files import file_hash, looked_for, storage_errors, write_json
from ofmu.io.folders import new_folder
from ofmu.io.plugins import results_only
from ofmu.models.files import check_model_directory
from ofmu.models.hub import local_directory
from ofmu.preparer import find_prepared, find_target_model
from ofmu.run_config import UnlearnConfig
from ofmu.run_files import METRICS, RunFiles, check_is_no_link, check_no_links, check_output, stored_values

EARLIER = "earlier"
_UTILITY = (
    "model_utility",
    "retain_probability",
    "retain_rouge",
    "utility_choice_accuracy",
    "retain_knowledge_memorization",
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
        ConfigError: the run is one on images.
        ModelError: the run's model, or the first target of the chain, is gone or was changed.
        DataError: the run's rows cannot be read.
    """
    place = Path(after).absolute()
    files = RunFiles(place)
    report, config = _complete_run(Path(after))
    check_model_directory(files.model)
    data = _data_of(config, report, place)
    stored = read_run_chain(place)
    if config.data.earlier and stored is None:
        raise RunError(f"{after} ended before its earlier runs were measured: run its command again")
    known = () if stored is None else tuple(stored.chain.requests)
    taken = {request.id for request in known}
    name = str(place) if place.name in taken else place.name
    with stored_values(files.metrics):
        own = EarlierRequestRecord(
            id=name,
            finished=str(report["environment"].get("time", "")),
            hash=file_hash(files.metrics),
            forget_rows=len(data.forget),
            metrics=[],
            gradient_evaluations=float(report["metrics"].get("gradient_evaluations") or 0.0),
            run_seconds=float(report["metrics"].get("seconds") or 0.0),
        )
    rows = EarlierRows(id=name, forget=_with_variants(data), scoring=scoring_of(config))
    return RunChain(
        path=place,
        config=config,
        known=known,
        own=own,
        earlier=(*read_earlier_rows(place / EARLIER), rows),
        first_target=_first_target(config, stored, place),
        first_path=config.model.path if stored is None else stored.first_path,
    )


def chained_config(config: UnlearnConfig, chain: RunChain, output: str | Path) -> UnlearnConfig:
    """Return the config of a run after a chain, and write the rows of the earlier runs to ``output``.

    The run starts from the model of the last run. Earlier forget rows are left out of its retain rows. A reference is
    retrained from the base of the last run, unless the config names another.

    Raises:
        ConfigError: the config is one for images.
        ModelError: the config names another model than the last run left.
        RunError: ``output`` holds the rows of another chain, or files that no run made.
    """
    if config.data.kind != "language":
        raise ConfigError(f"--after is for text, and data.source '{config.data.source}' holds images: leave it out")
    named = config.model.path
    if named is not None and named != chain.first_path and not _is_same_model(named, chain.model):
        raise ModelError(
            f"model.path names {named}, which is neither the model that {chain.path} left nor the one that the chain "
            f"started from: leave model.path out, or set it to {chain.model}"
        )
    check_output(output)
    folder = Path(output).absolute() / EARLIER
    _write_rows(folder, chain)
    settings = config.model_dump(mode="json")
    base = config.model.base or _base_of(chain.config)
    settings["model"] |= {"path": str(chain.model), "revision": None, "is_target": True, "base": base}
    settings["data"]["earlier"] = [*config.data.earlier, *forget_files(folder, len(chain.earlier))]
    return validate(UnlearnConfig, settings)


def count_left_out(before: UnlearnConfig, after: UnlearnConfig) -> int:
    """Return how many retain rows a chain leaves out. ``before`` is the config without the chain.

    Raises:
        DataError: the rows cannot be read, or no retain row is left.
    """
    # The two configs load the same rows, apart from the earlier ones.
    data = load_data(before.data, before.seed)
    return len(data.retain) - len(without_earlier(data, read_earlier(after.data.earlier)).retain)


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
    earlier_target = find_target_model(chain.config)
    before: Values = {} if earlier_target is None else measured(earlier_target, last)[0]
    then = measured(chain.model, last)[0]
    requests = measured_requests(chain.known, chain.own, before, then, now)
    record = RunChainRecord(
        first_target=str(chain.first_target),
        first_target_hash=content_key(model_hashes(chain.first_target)),
        first_path=chain.first_path,
        utility=list(_utility(config, chain.first_target, target, metrics)),
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
    if config.data.kind != "language":
        raise ConfigError(f"--after is for text, and {after} is a run on images: leave it out")
    return report, config


def _data_of(config: UnlearnConfig, report: Mapping[str, Any], place: Path) -> UnlearnData:
    data = load_data(config.data, config.seed)
    if report.get("data_hash") != data.content_hash:
        raise RunError(f"The rows that {place} forgot changed since its run: restore the files that its config names")
    return data


def _with_variants(data: UnlearnData) -> tuple[Row, ...]:
    """Return the forget rows, with the paraphrases and wrong answers that the evaluation set has of them."""
    scored = data.evaluation.get("forget")
    known = {} if scored is None else {normalized(row): row for row in scored.rows}
    return tuple(known.get(normalized(row), row) for row in data.forget.rows)


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


def _write_rows(folder: Path, chain: RunChain) -> None:
    """Write the rows of the earlier runs, unless they are there."""
    check_is_no_link(folder)
    if not folder.exists():
        try:
            with storage_errors(folder), new_folder(folder) as made:
                write_earlier(made, chain.earlier)
        except (OSError, StorageError):
            if not folder.is_dir():  # else another rank of a launcher has written them
                raise
    if read_earlier_rows(folder) != chain.earlier:
        raise RunError(f"{folder} holds the rows of other earlier runs than {chain.path}: name a new directory")


def _utility(config: UnlearnConfig, first_target: Path, target: Values, result: Values) -> Iterator[UtilityRecord]:
    plain = config.evaluation.model_copy(
        update={"attacks": (), "alignment": False, "depth": False, "kl": False, "membership": False}
    )
    first = evaluate(str(first_target), config.model_copy(update={"evaluation": plain}))["metrics"]
    for name in _UTILITY:
        if result.get(name) is not None:
            yield UtilityRecord(
                name=name, first_target=first.get(name), target=target.get(name), result=result.get(name)
            )
