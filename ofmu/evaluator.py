"""The verb evaluate: from a saved model to ``metrics.json`` and ``scores.json``."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ofmu.changed_rows import changed_rows
from ofmu.errors import ConfigError, DataError, ModelError, ReferenceMismatchError, RunError
from ofmu.evaluation.metrics.custom import with_custom_metrics
from ofmu.evaluation.open_unlearning_export import LOG_NAMES, Log
from ofmu.io.environment import environment
from ofmu.io.files import expanded, file_hash, read_json, write_json
from ofmu.io.library_logging import silence_libraries
from ofmu.io.ranks import launched_ranks
from ofmu.plan.decision import decide_run
from ofmu.preparer import find_reference_scores, find_retrained_model, find_target_model, find_target_scores
from ofmu.provenance import config_of_run, read_config_of_model
from ofmu.run_config import UnlearnConfig
from ofmu.run_files import METRICS, REPORT, SCORES, RunFiles, check_output, is_report, made_by_ofmu
from ofmu.tasks.beside import read_beside
from ofmu.tasks.family import TaskFamily
from ofmu.tasks.load import task_family
from ofmu.tasks.reference_path import reference_scores_file

ExportFormat = Literal["open-unlearning"]
"""Other software whose files ``ofmu evaluate`` writes."""


def evaluate(
    model: str | Path,
    config: UnlearnConfig | None = None,
    *,
    reference: str | Path | None = None,
    beside: Sequence[str | Path] = (),
    output_dir: str | Path | None = None,
    export: ExportFormat | None = None,
    allow_code: bool = False,
) -> dict[str, Any]:
    """Score a saved model in fp32, or read its scores from a file, and return what ``metrics.json`` holds.

    The report maps ``metrics`` to numbers or None. ``reasons`` says why a metric is None. ``utility_components`` names
    the parts of model utility, which is their harmonic mean. ``baseline_metrics`` holds the same metrics of ``target``
    and ``retrained`` where the cache has their scores, and ``baseline_scores`` names the files of these scores.

    Call this function in one process, or on every rank of a launcher. Several ranks score a language model together, in
    the engine that ``config.engine`` names. Rank 0 alone writes, and makes the attacks and comparisons, for which it
    loads whole models. The other ranks return without them.

    Args:
        model: a directory, a hub name, or a JSON file of scores: ``scores.json``, an official TOFU log, or a log of
            open-unlearning. No data are loaded for a file.
        config: the run. None: the config of the run that made the model, if the model still lies in its run
            directory, else the defaults.
        reference: a saved model, or a file of scores. None: what ``config.reference`` names, or the retrained model's
            scores if the cache has them.
        beside: files whose metrics are added to ``baseline_metrics``: see :func:`ofmu.tasks.beside.read_beside`.
        output_dir: where to write ``metrics.json`` and ``scores.json``. None: nothing is written.
        export: also write the scores in the files of other software into ``output_dir``.
        allow_code: whether custom metrics and tasks of lm-eval that the config of the model's run names may run, if
            ``config`` is None.

    Raises:
        OfmuError: the model, the data or the reference cannot be read, the reference covers other rows, or
            ``output_dir`` holds such files of a run or of the user.
    """
    started = time.monotonic()
    if output_dir is not None:
        _check_evaluation_output(Path(output_dir), export)
    elif export is not None:
        raise ConfigError(f"The files of {export} need a folder: name it with --output")
    silence_libraries()
    if config is None:
        source = config_of_run(model)
        config = UnlearnConfig() if source is None else read_config_of_model(source, allow_code=allow_code)
    if export is not None and not config.data.traits.open_unlearning:
        raise ConfigError(f"{export} has no files for data.source '{config.data.source}': leave --export out")
    if config.engine.undecided and launched_ranks().world_size > 1:
        config = decide_run(config, None).config
    family = task_family(config.data.kind)
    file = expanded(model)
    if file.suffix == ".json" and file.is_file():
        found = _read(file, config, family, reference, beside)
    else:
        found = _score(str(model), config, family, reference, beside)
    measured = with_custom_metrics(family.metrics_of, config.evaluation.custom_metrics)(found.scores, found.expected)
    report = measured.to_json() | {
        "model": str(model),
        "reference": None if found.reference is None else str(found.reference),
        "baseline_metrics": found.baselines,
        "baseline_scores": found.baseline_scores,
        "data_hash": found.scores.data_hash if found.data is None else found.data.content_hash,
        "seconds": time.monotonic() - started,
        "environment": environment(),
        "config": config.model_dump(mode="json"),
    }
    if launched_ranks().rank != 0:
        return report
    extra: dict[str, Any] = {}
    if found.data is not None:
        find_retrained = partial(_retrained_model, found.reference, config)
        find_target = partial(_target_model, config)
        extra = family.robustness(str(model), found.data, config, measured, found.expected, find_retrained, find_target)
    for name in ("metrics", "reasons"):
        report[name] |= extra.pop(name, {})
    report |= extra
    if output_dir is not None:
        files = RunFiles(Path(output_dir))
        found.scores.save(files.scores)
        if export is not None:
            report |= _export(family.open_unlearning_log(found.scores, found.expected), files.directory)
        files.write_report(report)
    return report


@dataclass(frozen=True, kw_only=True)
class _Scored:
    """The scores of one model, and what they are compared with."""

    scores: Any
    data: Any
    """None: the scores come from a file, and no data were loaded."""
    reference: str | Path | None
    expected: Any
    """The reference's scores, or None."""
    baselines: Mapping[str, Mapping[str, float | None]]
    baseline_scores: Mapping[str, str]


def _score(
    model: str, config: UnlearnConfig, family: TaskFamily, reference: str | Path | None, beside: Sequence[str | Path]
) -> _Scored:
    """Score a saved model. All files are read first, so that a wrong one is reported at once."""
    family.check_evaluation(config)
    data = family.load_data(config)
    family.check_robustness(data, config)
    changed = changed_rows(model, config, data)
    if changed is not None and launched_ranks().rank == 0:
        warnings.warn(changed.sentence, stacklevel=3)
    reference = _default_reference(config) if reference is None else reference
    expected = None if reference is None else family.resolve_reference(reference, config, data)
    check = partial(family.check_reference, data=data, config=config, model=model)
    if expected is not None:
        check(expected)
    columns = read_beside(beside, family, config, expected, check)
    baselines = baseline_metrics(config, family, expected)
    if changed is not None and "target" not in baselines and (kept := changed.target_metrics(config, family)):
        baselines = {"target": kept, **baselines}
    return _Scored(
        scores=family.score_saved(model, data, config),
        data=data,
        reference=reference,
        expected=expected,
        baselines=baselines | columns,
        baseline_scores=_baseline_scores(config, reference),
    )


def _read(
    file: Path, config: UnlearnConfig, family: TaskFamily, reference: str | Path | None, beside: Sequence[str | Path]
) -> _Scored:
    """Read the scores of a model from a file."""
    scores = family.load_scores(file, config)
    if reference is None and config.reference.source == "scores":
        reference = config.reference.path
    expected_file = None if reference is None else reference_scores_file(reference)
    if reference is not None and expected_file is None:
        raise DataError(
            f"The reference {reference} is a model, and no data are loaded to score it for a file of scores: give a "
            "file of the reference's scores"
        )
    expected = None if expected_file is None else family.load_scores(expected_file, config)
    baselines: dict[str, Mapping[str, float | None]] = {}
    if expected is not None:
        baselines["retrained"] = family.metrics_of(expected, expected).values

    def check(other: Any) -> None:
        family.metrics_of(scores, other)  # it raises for a reference of other rows

    return _Scored(
        scores=scores,
        data=None,
        reference=reference,
        expected=expected,
        baselines=baselines | read_beside(beside, family, config, expected, check),
        baseline_scores={} if expected_file is None else {"retrained": str(expected_file.absolute())},
    )


def _export(log: Log, directory: Path) -> dict[str, Any]:
    """Write the files of a log, and return entries for the report."""
    hashes = {}
    for name, content in log.files.items():
        write_json(directory / name, content)
        hashes[name] = file_hash(directory / name)
    return {"exported": hashes, "not_exported": dict(log.left_out)}


def _check_evaluation_output(directory: Path, export: ExportFormat | None = None) -> None:
    """Check that an evaluation replaces nothing but an earlier evaluation, and ``export`` nothing but its own files.

    Raises:
        RunError: the directory holds a run, or other files of the names that an evaluation writes.
    """
    files = RunFiles(directory)
    if made_by_ofmu(directory):
        raise RunError(f"{directory} holds a run or a search, whose metrics would be replaced: name a new directory")
    theirs = []
    if not _read_mapping(files.metrics).keys() >= {"model", "config", "environment", "baseline_metrics"}:
        theirs.append(METRICS)
    if not str(_read_mapping(files.scores).get("format")).startswith("ofmu-"):
        theirs.append(SCORES)
    if not is_report(directory / REPORT):
        theirs.append(REPORT)
    if export is not None:
        ours = _read_mapping(files.metrics).get("exported")
        written = ours if isinstance(ours, dict) else {}
        theirs += [name for name in LOG_NAMES if not _is_unchanged(directory / name, written.get(name))]
    check_output(directory, theirs)


def _is_unchanged(path: Path, expected_hash: Any) -> bool:
    """Return whether a file still has the bytes that an evaluation wrote."""
    return path.is_file() and not path.is_symlink() and file_hash(path) == expected_hash


def _read_mapping(path: Path) -> dict[str, Any]:
    """Return what a JSON file holds; an empty mapping if the file holds no mapping."""
    with suppress(DataError):
        content = read_json(path)
        return content if isinstance(content, dict) else {}
    return {}


def baseline_metrics(config: UnlearnConfig, family: TaskFamily, expected: Any) -> dict[str, Mapping[str, float | None]]:
    """Return the metrics of ``target`` (if the cache has its scores) and of ``retrained`` (the reference).

    Args:
        config: the run.
        family: the kind of task.
        expected: the reference's scores, or None.

    Raises:
        DataError: the data cannot be read.
    """
    measure = with_custom_metrics(family.metrics_of, config.evaluation.custom_metrics)
    found: dict[str, Mapping[str, float | None]] = {}
    # The target may be deleted by now, and the user's own reference may cover other rows than the cached scores.
    with suppress(ModelError, ReferenceMismatchError):
        path = find_target_scores(config)
        if path is not None:
            found["target"] = measure(family.load_scores(path), expected).values
    if expected is not None:
        found["retrained"] = measure(expected, expected).values
    return found


def _baseline_scores(config: UnlearnConfig, reference: str | Path | None) -> dict[str, str]:
    """Return the files of the scores of ``target`` and ``retrained``, where there are files."""
    files: dict[str, Path] = {}
    with suppress(ModelError):  # the target may be deleted by now
        path = find_target_scores(config)
        if path is not None:
            files["target"] = path
    if reference is not None and expanded(reference).is_file():
        files["retrained"] = expanded(reference).absolute()
    return {name: str(path) for name, path in files.items()}


def _default_reference(config: UnlearnConfig) -> str | Path | None:
    if config.reference.source == "retrain":
        return find_reference_scores(config)
    return config.reference.path if config.reference.source in ("model", "scores") else None


def _retrained_model(reference: str | Path | None, config: UnlearnConfig) -> str | None:
    """Return the saved model behind ``reference``, else the retrained model in the cache, else None."""
    if reference is not None:
        place = expanded(reference)
        if (place / "config.json").is_file():
            return str(place)
        if not place.exists() and place.suffix != ".json":
            return str(reference)  # a hub name
    found = find_retrained_model(config)
    return None if found is None else str(found)


def _target_model(config: UnlearnConfig) -> str | None:
    """Return the target's directory; None if the cache lacks the target, or the target was deleted."""
    with suppress(ModelError):
        found = find_target_model(config)
        return None if found is None else str(found)
    return None
