"""The verb evaluate: from a saved model to ``metrics.json`` and ``scores.json``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ofmu.errors import DataError, ModelError, ReferenceMismatchError, RunError
from ofmu.evaluation.metrics.custom import with_custom_metrics
from ofmu.io.environment import environment
from ofmu.io.files import read_json
from ofmu.io.library_logging import silence_libraries
from ofmu.preparer import find_reference_scores, find_retrained_model, find_target_model, find_target_scores
from ofmu.provenance import config_of_run, read_config_of_model
from ofmu.run_config import UnlearnConfig
from ofmu.run_files import METRICS, REPORT, SCORES, RunFiles, check_output, is_report, made_by_ofmu
from ofmu.tasks.family import TaskFamily
from ofmu.tasks.load import task_family


def evaluate(
    model: str | Path,
    config: UnlearnConfig | None = None,
    *,
    reference: str | Path | None = None,
    output_dir: str | Path | None = None,
    allow_code: bool = False,
) -> dict[str, Any]:
    """Score a saved model in fp32 and return what ``metrics.json`` holds.

    The report maps ``metrics`` to numbers or None. ``reasons`` says why a metric is None. ``utility_components`` names
    the parts of model utility, which is their harmonic mean. ``baseline_metrics`` holds the same metrics of ``target``
    and ``retrained`` where the cache has their scores, and ``baseline_scores`` names the files of these scores.

    Args:
        model: a directory or a hub name.
        config: the run. None: the config of the run that made the model, if the model still lies in its run
            directory, else the defaults.
        reference: a saved model, scores that this package wrote, or an official TOFU log. None: what
            ``config.reference`` names, or the retrained model's scores if the cache has them.
        output_dir: where to write ``metrics.json`` and ``scores.json``. None: nothing is written.
        allow_code: whether custom metrics that the config of the model's run names may run, if ``config`` is None.

    Raises:
        OfmuError: the model, the data or the reference cannot be read, the reference covers other rows, or
            ``output_dir`` holds such files of a run or of the user.
    """
    started = time.monotonic()
    if output_dir is not None:
        _check_evaluation_output(Path(output_dir))
    silence_libraries()
    if config is None:
        source = config_of_run(model)
        config = UnlearnConfig() if source is None else read_config_of_model(source, allow_code=allow_code)
    family = task_family(config.data.kind)
    data = family.load_data(config)
    reference = _default_reference(config) if reference is None else reference
    # The reference is checked first, so that a mismatch is reported before the model is scored.
    expected = None if reference is None else family.resolve_reference(reference, config, data)
    if expected is not None:
        family.check_reference(expected, data, config, str(model))
    scores = family.score_saved(str(model), data, config)
    measured = with_custom_metrics(family.metrics_of, config.evaluation.custom_metrics)(scores, expected)
    report = measured.to_json() | {
        "model": str(model),
        "reference": None if reference is None else str(reference),
        "baseline_metrics": baseline_metrics(config, family, expected),
        "baseline_scores": _baseline_scores(config, reference),
        "data_hash": data.content_hash,
        "seconds": time.monotonic() - started,
        "environment": environment(),
        "config": config.model_dump(mode="json"),
    }
    extra = family.robustness(
        str(model),
        data,
        config,
        measured,
        expected,
        lambda: _retrained_model(reference, config),
        lambda: _target_model(config),
    )
    for name in ("metrics", "reasons"):
        report[name] |= extra.pop(name, {})
    report |= extra
    if output_dir is not None:
        files = RunFiles(Path(output_dir))
        scores.save(files.scores)
        files.write_report(report)
    return report


def _check_evaluation_output(directory: Path) -> None:
    """Check that an evaluation replaces nothing but an earlier evaluation.

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
    check_output(directory, theirs)


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
    if reference is not None and Path(reference).is_file():
        files["retrained"] = Path(reference).absolute()
    return {name: str(path) for name, path in files.items()}


def _default_reference(config: UnlearnConfig) -> str | Path | None:
    if config.reference.source == "retrain":
        return find_reference_scores(config)
    return config.reference.path if config.reference.source in ("model", "scores") else None


def _retrained_model(reference: str | Path | None, config: UnlearnConfig) -> str | None:
    """Return the saved model behind ``reference``, else the retrained model in the cache, else None."""
    if reference is not None:
        place = Path(reference)
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
