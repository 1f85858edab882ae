"""One evaluation from a saved model to ``metrics.json`` and ``scores.json``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ofmu.data.encoding import load_tokenizer
from ofmu.data.rows import UnlearnData
from ofmu.engine import resolve_device
from ofmu.errors import DataError
from ofmu.evaluation.extras import add_extras
from ofmu.evaluation.matching import outline_of, require_match
from ofmu.evaluation.metrics.custom import with_functions
from ofmu.evaluation.metrics.summary import metrics_of
from ofmu.evaluation.official_log import is_official_log, parse_official_log
from ofmu.evaluation.scores import Scores
from ofmu.evaluation.scoring.model import score_model
from ofmu.evaluation.sets import FORGET
from ofmu.evaluation.yardsticks import yardsticks
from ofmu.io.environment import environment
from ofmu.io.files import write_json
from ofmu.io.json_files import read_json
from ofmu.io.library_logging import quiet_libraries
from ofmu.provenance import config_of_run, read_run_config
from ofmu.run_config import UnlearnConfig


def evaluate(
    model: str | Path,
    config: UnlearnConfig | None = None,
    *,
    reference: str | Path | None = None,
    output_dir: str | Path | None = None,
) -> dict[str, Any]:
    """Score a saved model (directory or hub name) in fp32 and return what ``metrics.json`` holds.

    The result's ``metrics`` maps names to numbers or None, ``reasons`` says why a metric is None, and
    ``utility_components`` names what model utility is the harmonic mean of; ``yardsticks`` holds the same metrics of
    ``target`` and ``retrained``, as far as their scores are at hand. ``reference`` is a saved model, scores
    that this package wrote, or an official TOFU log; None takes what ``config.reference`` names, or the
    retrained model's scores where the cache has them. Without ``config``, that of the run which made the model is
    taken, where the model still lies in its run directory, else the defaults.

    Raises:
        OfmuError: the model, data or reference cannot be read, or the reference covers other rows.
    """
    from ofmu.data.load import load_data

    started = time.monotonic()
    quiet_libraries()
    config = config or read_run_config(config_of_run(model))
    if config.data.kind == "vision":
        from ofmu.tasks.vision.reference import evaluate_images

        return evaluate_images(model, config, reference=reference, output_dir=output_dir)
    data = load_data(config.data, config.seed)
    reference = _chosen_reference(config) if reference is None else reference
    # The reference comes first: if it does not fit, that is said before the model is scored.
    expected = None if reference is None else resolve_reference(reference, config, data)
    if expected is not None:
        require_match(outline_of(str(model), data, config.evaluation.truth_ratio), expected)
    scores = _score_saved(str(model), data, config)
    measure = with_functions(metrics_of, config.evaluation.functions)
    measured = measure(scores, expected)
    report = measured.to_json() | {
        "model": str(model),
        "reference": None if reference is None else str(reference),
        "yardsticks": yardsticks(config, expected, Scores.load, measure),
        "data_hash": data.content_hash,
        "seconds": time.monotonic() - started,
        "environment": environment(),
        "config": config.model_dump(mode="json"),
    }
    add_extras(report, str(model), data, config, measured, expected, reference)
    if output_dir is not None:
        scores.save(Path(output_dir) / "scores.json")
        write_json(Path(output_dir) / "metrics.json", report)
    return report


def resolve_reference(path: str | Path, config: UnlearnConfig, data: UnlearnData) -> Scores:
    """Return reference scores from a file of ours, an official TOFU log, or a saved model that is scored here.

    A log holds losses, so it is read under the config's truth-ratio definition.

    Raises:
        OfmuError: nothing usable is there.
    """
    place = Path(path)
    if place.is_dir() and not (place / "config.json").is_file() and (place / "scores.json").is_file():
        place = place / "scores.json"
    if place.is_file():
        content = read_json(place)
        if is_official_log(content):
            return parse_official_log(content, str(path), config.evaluation.truth_ratio)
        return Scores.from_json(content, str(path))
    if place.suffix == ".json":
        raise DataError(f"There is no reference file {path}: check the name")
    return score_reference(str(path), data, config)


def score_reference(path: str, data: UnlearnData, config: UnlearnConfig) -> Scores:
    """Score a saved reference model on the forget set alone, without generation: all that forget quality needs."""
    silent = config.evaluation.model_copy(update={"rouge": False})
    return _score_saved(path, _forget_only(data), config.model_copy(update={"evaluation": silent}))


def _forget_only(data: UnlearnData) -> UnlearnData:
    sets = {name: rows for name, rows in data.evaluation.items() if name == FORGET}
    return UnlearnData(forget=data.forget, retain=data.retain, holdout=data.holdout, evaluation=sets)


def _score_saved(path: str, data: UnlearnData, config: UnlearnConfig) -> Scores:
    from ofmu.models.language import load_model

    attention = "sdpa" if config.model.attention == "auto" else config.model.attention
    model = load_model(path, attention).to(resolve_device(config.engine))
    return score_model(model, load_tokenizer(path), data, config, name=path)


def _chosen_reference(config: UnlearnConfig) -> str | Path | None:
    if config.reference.source == "retrain":
        from ofmu.preparer import find_reference_scores

        return find_reference_scores(config)
    return config.reference.path if config.reference.source in ("model", "scores") else None
