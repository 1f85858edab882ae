"""Attacks on a saved language model, comparisons with the retrained model and the target, and tasks of lm-eval."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch

from ofmu.data.encoding import load_tokenizer
from ofmu.data.rows import UnlearnData
from ofmu.engine.build import resolve_device
from ofmu.errors import OfmuError
from ofmu.evaluation.config import Attack
from ofmu.evaluation.harness.run import run_tasks
from ofmu.evaluation.metrics.registry import DEPTHS, DIVERGENCES, REGISTRY
from ofmu.evaluation.metrics.summary import Metrics
from ofmu.evaluation.robustness.alignment import ALIGNMENT_SETS, alignment
from ofmu.evaluation.robustness.attacks import quantization, relearning, sampling
from ofmu.evaluation.robustness.depth import depth
from ofmu.evaluation.robustness.divergence import divergence
from ofmu.evaluation.robustness.few_shot import few_shot
from ofmu.evaluation.robustness.result import RobustnessResult
from ofmu.evaluation.scores import Scores
from ofmu.evaluation.scoring.sharding import Shard
from ofmu.models.language import load_model
from ofmu.run_config import UnlearnConfig
from ofmu.tasks.reference_path import reference_scores_file

Report = dict[str, Any]

NO_RETRAINED = "there is no retrained model: run ofmu prepare with the same config, or give a saved model as reference"
NO_TARGET = "the target is not in the cache: run ofmu prepare with the same config"


def measure_robustness(
    model: str,
    data: UnlearnData,
    config: UnlearnConfig,
    measured: Metrics,
    reference: Scores | None,
    find_retrained: Callable[[], str | None],
    find_target: Callable[[], str | None],
) -> Report:
    """Run the attacks and comparisons of models that ``evaluation`` asks for.

    :meth:`ofmu.tasks.family.TaskFamily.robustness` documents the arguments.

    Returns:
        ``metrics`` and ``reasons``, and one entry per part (``alignment``, ``depth``, ``kl``, ``lm_eval`` and the
        names of the attacks) with its curves, layers and ``seconds``. Empty if the config names no part.

    Raises:
        OfmuError: a model cannot be read.
    """
    evaluation = config.evaluation
    attacks = dict.fromkeys([*evaluation.attacks, *evaluation.run_attacks])
    if not (evaluation.alignment or evaluation.depth or evaluation.kl or evaluation.lm_eval or attacks):
        return {}
    loaded, tokenizer = _load(model, config), load_tokenizer(model, fallback=config.model.tokenizer)
    runs: dict[str, Callable[[], RobustnessResult]] = {}
    if evaluation.alignment:
        runs["alignment"] = lambda: _alignment(loaded, tokenizer, data, config, find_retrained())
    if evaluation.depth:
        runs["depth"] = lambda: _depth(loaded, tokenizer, data, config, find_target(), find_retrained())
    if evaluation.kl:
        runs["kl"] = lambda: _divergence(loaded, tokenizer, data, config, find_target())
    if evaluation.lm_eval:
        runs["lm_eval"] = lambda: run_tasks(loaded, tokenizer, evaluation, Shard())
    for name in attacks:
        runs[name] = partial(attack, name, loaded, tokenizer, data, config, measured, reference)
    report: Report = {"metrics": {}, "reasons": {}}
    for part, run in runs.items():
        started = time.monotonic()
        result = run()
        report["metrics"] |= result.metrics
        report["reasons"] |= result.reasons
        report[part] = {**result.details, "seconds": time.monotonic() - started}
    return report


def given_model(config: UnlearnConfig) -> str | None:
    """Return the retrained model that ``reference.path`` names; None if the path names scores, or there is none."""
    reference = config.reference
    if reference.source != "model" or reference.path is None or reference_scores_file(reference.path) is not None:
        return None
    return reference.path


def attack_saved(
    model: str,
    data: UnlearnData,
    config: UnlearnConfig,
    measured: Metrics,
    reference: Scores | None,
    target: str,
    retrained: str | None,
) -> dict[str, RobustnessResult]:
    """Run the attacks of ``evaluation.run_attacks`` on a saved model, and measure its depth if the config asks.

    Args:
        model: the model's directory.
        data: the data.
        config: the run.
        measured: the model's metrics.
        reference: the reference's scores, or None.
        target: the directory of the target.
        retrained: the retrained model, or None.

    Returns:
        The result of each attack, by its name, and of the part ``depth``.

    Raises:
        OfmuError: the model cannot be read.
    """
    names = dict.fromkeys(config.evaluation.run_attacks)
    if not (names or config.evaluation.depth):
        return {}
    loaded, tokenizer = _load(model, config), load_tokenizer(model, fallback=config.model.tokenizer)
    found: dict[str, RobustnessResult] = {
        name: attack(name, loaded, tokenizer, data, config, measured, reference) for name in names
    }
    if config.evaluation.depth:
        try:
            found["depth"] = _depth(loaded, tokenizer, data, config, target, retrained)
        except OfmuError as error:
            found["depth"] = _no_depth(str(error))
    return found


def attack(
    name: Attack,
    model: Any,
    tokenizer: Any,
    data: UnlearnData,
    config: UnlearnConfig,
    measured: Metrics,
    reference: Scores | None,
) -> RobustnessResult:
    """Run one attack on a model, which stays as it is.

    If the attack cannot be made, since a training diverges or the memory is too small, its metrics are None, with
    the reason.
    """
    evaluation, encoding = config.evaluation, config.data
    runs: dict[Attack, Callable[[], RobustnessResult]] = {
        "relearning": lambda: relearning(
            model, tokenizer, data, evaluation, encoding, learning_rate=config.training.learning_rate, seed=config.seed
        ),
        "sampling": lambda: sampling(model, tokenizer, data, evaluation, encoding, seed=config.seed),
        "few_shot": lambda: few_shot(model, tokenizer, data, evaluation, encoding, seed=config.seed),
        "quantization_8": lambda: quantization(
            model, tokenizer, data, evaluation, encoding, measured, reference, bits=8
        ),
        "quantization_4": lambda: quantization(
            model, tokenizer, data, evaluation, encoding, measured, reference, bits=4
        ),
    }
    try:
        return runs[name]()
    except OfmuError as error:
        reason = str(error)
    except torch.OutOfMemoryError:
        # The model itself was scored. A copy of it, or the optimizer of such a copy, did not fit beside it.
        reason = f"the device has too little memory for the attack '{name}': set engine.device=cpu, or leave it out"
    missing = [info.name for info in REGISTRY.values() if info.attack == name]
    return RobustnessResult(metrics=dict.fromkeys(missing), reasons=dict.fromkeys(missing, reason), details={})


def _divergence(
    model: Any, tokenizer: Any, data: UnlearnData, config: UnlearnConfig, target: str | None
) -> RobustnessResult:
    if target is None:
        return RobustnessResult(
            metrics=dict.fromkeys(DIVERGENCES), reasons=dict.fromkeys(DIVERGENCES, NO_TARGET), details={}
        )

    def open_target() -> AbstractContextManager[Any]:
        return nullcontext(_load(target, config, quantized=config.model.adapter.is_quantized))

    return divergence(model, open_target, tokenizer, data, config.evaluation, config.data)


def _depth(
    model: Any, tokenizer: Any, data: UnlearnData, config: UnlearnConfig, target: str | None, retrained: str | None
) -> RobustnessResult:
    if target is None or retrained is None:
        return _no_depth(NO_TARGET if target is None else NO_RETRAINED)
    return depth(
        model,
        lambda: nullcontext(_load(target, config)),
        lambda: nullcontext(_load(retrained, config)),
        tokenizer,
        data,
        config.evaluation,
        config.data,
    )


def _no_depth(reason: str) -> RobustnessResult:
    return RobustnessResult(metrics=dict.fromkeys(DEPTHS), reasons=dict.fromkeys(DEPTHS, reason), details={})


def _alignment(
    model: Any, tokenizer: Any, data: UnlearnData, config: UnlearnConfig, retrained: str | None
) -> RobustnessResult:
    if retrained is None:
        names = [f"alignment_{name}_{kind}" for name in ALIGNMENT_SETS for kind in ("cka", "cosine")]
        return RobustnessResult(
            metrics=dict.fromkeys(names), reasons=dict.fromkeys(names, NO_RETRAINED), details={"layers": {}}
        )
    return alignment(model, _load(retrained, config), tokenizer, data, config.evaluation, config.data)


def _load(path: str, config: UnlearnConfig, *, quantized: bool = False) -> Any:
    return load_model(path, config.model.attention, quantized=quantized).to(resolve_device(config.engine))
