"""The models of a request: those that are measured, and the reference of the measurements."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ofmu.erasure.chain import Chain
from ofmu.erasure.evidence import ModelRole
from ofmu.io.cache import model_hashes
from ofmu.models.hub import local_directory
from ofmu.preparer import find_retrained_model
from ofmu.run_config import UnlearnConfig
from ofmu.run_files import RunFiles
from tune.erasure.chained import FIRST_TARGET
from tune.results.result import Point


def models_of(
    model: str, base: str | None, result: Path, chain: Chain | None, run: UnlearnConfig
) -> dict[ModelRole, Path]:
    """Return the directories of the models whose files are here.

    Args:
        model: directory or hub name of the model that must forget.
        base: the model before training on the rows; None if there is none.
        result: the model after unlearning.
        chain: the requests before this one; None for a first request.
        run: the config of the result.

    Raises:
        ModelError: the first target is gone, or was changed.
    """
    models: dict[ModelRole, Path] = {"target": local_directory(model), "result": result}
    if chain is not None:
        models[FIRST_TARGET] = chain.check_first_target()
    if base is not None:
        models["base"] = local_directory(base)
    if run.reference.source == "retrain":
        retrained = find_retrained_model(run)
        if retrained is not None:
            models["retrained"] = retrained
    elif run.reference.source == "model" and run.reference.path is not None:
        models["retrained"] = local_directory(run.reference.path)
    return models


def reference_of(run: UnlearnConfig, models: Mapping[ModelRole, Path]) -> str | None:
    """Return the reference of the evaluations: the retrained model, or its scores."""
    if "retrained" in models:
        return str(models["retrained"])
    return run.reference.path if run.reference.source == "scores" else None


def is_copy(directory: Path, point: Point) -> bool:
    """Return whether a directory holds the model of a trial. An export adds files of its own."""
    found = model_hashes(directory)
    return all(found.get(name) == value for name, value in model_hashes(RunFiles(point.directory).model).items())
