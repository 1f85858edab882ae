"""Attacks on a saved language model, and its alignment with the retrained model."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from ofmu.data.encoding import load_tokenizer
from ofmu.data.rows import UnlearnData
from ofmu.engine.build import resolve_device
from ofmu.evaluation.metrics.summary import Metrics
from ofmu.evaluation.robustness.alignment import ALIGNMENT_SETS, alignment
from ofmu.evaluation.robustness.attacks import quantization, relearning
from ofmu.evaluation.robustness.result import RobustnessResult
from ofmu.evaluation.scores import Scores
from ofmu.models.language import load_model
from ofmu.run_config import UnlearnConfig

Report = dict[str, Any]

NO_RETRAINED = "there is no retrained model: run ofmu prepare with the same config, or give a saved model as reference"


def measure_robustness(
    model: str,
    data: UnlearnData,
    config: UnlearnConfig,
    measured: Metrics,
    reference: Scores | None,
    find_retrained: Callable[[], str | None],
) -> Report:
    """Run the attacks and the alignment that ``evaluation.attacks`` and ``evaluation.alignment`` name.

    :meth:`ofmu.tasks.family.TaskFamily.robustness` documents the arguments.

    Returns:
        ``metrics`` and ``reasons``, and one entry per part (``alignment``, ``relearning``, ``quantization_8``,
        ``quantization_4``) with its curves, layers and ``seconds``. Empty if the config names no part.

    Raises:
        OfmuError: a model cannot be read, or the training of an attack diverged.
    """
    evaluation = config.evaluation
    parts = [*(["alignment"] if evaluation.alignment else []), *dict.fromkeys(evaluation.attacks)]
    if not parts:
        return {}
    loaded, tokenizer = _load(model, config), load_tokenizer(model)
    runs: dict[str, Callable[[], RobustnessResult]] = {
        "alignment": lambda: _alignment(loaded, tokenizer, data, config, find_retrained()),
        "relearning": lambda: relearning(
            loaded, tokenizer, data, evaluation, config.data, learning_rate=config.training.learning_rate,
            seed=config.seed,
        ),
    }  # fmt: skip
    for bits in (8, 4):
        runs[f"quantization_{bits}"] = partial(
            quantization, loaded, tokenizer, data, evaluation, config.data, measured, reference, bits=bits
        )
    report: Report = {"metrics": {}, "reasons": {}}
    for part in parts:
        started = time.monotonic()
        result = runs[part]()
        report["metrics"] |= result.metrics
        report["reasons"] |= result.reasons
        report[part] = {**result.details, "seconds": time.monotonic() - started}
    return report


def _alignment(
    model: Any, tokenizer: Any, data: UnlearnData, config: UnlearnConfig, retrained: str | None
) -> RobustnessResult:
    if retrained is None:
        names = [f"alignment_{name}_{kind}" for name in ALIGNMENT_SETS for kind in ("cka", "cosine")]
        return RobustnessResult(
            metrics=dict.fromkeys(names), reasons=dict.fromkeys(names, NO_RETRAINED), details={"layers": {}}
        )
    return alignment(model, _load(retrained, config), tokenizer, data, config.evaluation, config.data)


def _load(path: str, config: UnlearnConfig) -> Any:
    return load_model(path, config.model.attention).to(resolve_device(config.engine))
