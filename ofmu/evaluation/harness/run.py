"""Run the tasks of ``evaluation.lm_eval`` and return their results as metrics of ours."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from numbers import Real
from typing import Any

import numpy as np
import torch

from ofmu.data.encoding import Tokenizer
from ofmu.evaluation.config import LM_EVAL_PREFIX, EvaluationConfig
from ofmu.evaluation.harness.tasks import quiet, said_by, task_manager, without_hub_metrics
from ofmu.evaluation.robustness.result import RobustnessResult
from ofmu.evaluation.scoring.model import evaluation_mode
from ofmu.evaluation.scoring.sharding import Shard

_BOOTSTRAPS = 100_000
"""lm-eval's own number of resamples for standard errors without a formula."""


def run_tasks(model: Any, tokenizer: Tokenizer, evaluation: EvaluationConfig, shard: Shard) -> RobustnessResult:
    """Run the tasks of ``evaluation.lm_eval`` with the defaults of ``lm_eval.simple_evaluate``; collective.

    Args:
        model: a causal LM. It runs in evaluation mode and returns to its own mode.
        tokenizer: the model's tokenizer.
        evaluation: names the tasks, the limit of documents and the number of examples in the prompt.
        shard: this process's rank. The first rank alone computes standard errors that need resamples.

    Returns:
        The metrics ``lm_eval/<task>/<metric>`` of the named tasks and groups. The details hold all results, of the
        members of groups too. If lm-eval raises an error, ``lm_eval/<task>`` is missing with that reason.

    Raises:
        ConfigError: the package or a task is missing, or the user's folder may not be loaded.
    """
    names, manager = list(evaluation.lm_eval), task_manager(evaluation)
    import lm_eval  # an extra, and slow to import

    # This file imports lm-eval too.
    from ofmu.evaluation.harness.model import EngineLM

    try:
        with evaluation_mode(model), _random_state_kept(), quiet(), without_hub_metrics(), torch.no_grad():
            found = lm_eval.simple_evaluate(
                model=EngineLM(model, tokenizer, evaluation.batch_size, shard),
                tasks=names,
                num_fewshot=evaluation.lm_eval_fewshot,
                limit=evaluation.lm_eval_limit,
                batch_size=evaluation.batch_size,
                log_samples=False,
                task_manager=manager,
                bootstrap_iters=_BOOTSTRAPS if shard.rank == 0 else 0,
            )
    except Exception as error:
        # Tasks are code of lm-eval or of the user, and an error in them must not end a run that took hours.
        missing = [f"{LM_EVAL_PREFIX}{name}" for name in names]
        return RobustnessResult(
            metrics=dict.fromkeys(missing), reasons=dict.fromkeys(missing, said_by(error)), details={}
        )
    # Launchers of several ranks set LOCAL_RANK, and simple_evaluate then returns nothing on the others.
    return _as_metrics(found, names, manager, lm_eval.__version__) if found is not None else _NOTHING


_NOTHING = RobustnessResult(metrics={}, reasons={}, details={})


def _as_metrics(found: Mapping[str, Any], names: list[str], manager: Any, version: str) -> RobustnessResult:
    metrics: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    for name in dict.fromkeys(chain(*(_with_values(named, found, manager) for named in names))):
        for metric, value in _values(found["results"][name]).items():
            metrics[f"{LM_EVAL_PREFIX}{name}/{metric}"] = value
            if value is None:
                reasons[f"{LM_EVAL_PREFIX}{name}/{metric}"] = "lm-eval gives no number for it"
    tasks = {
        name: {
            "version": found["versions"].get(name),
            "documents": found["n-samples"].get(name, {}).get("effective", results.get("sample_len")),
            "documents_of_task": found["n-samples"].get(name, {}).get("original"),
            "fewshot": found["n-shot"].get(name),
            "higher_is_better": found["higher_is_better"].get(name),
            "results": _values(results),
        }
        for name, results in found["results"].items()
    }
    return RobustnessResult(metrics=metrics, reasons=reasons, details={"version": version, "tasks": tasks})


def _with_values(name: str, found: Mapping[str, Any], manager: Any) -> Iterator[str]:
    """Yield a name of the config, or what it stands for: a tag, and a group without values, stand for their members."""
    if _values(found["results"].get(name, {})):
        yield name
        return
    members = found["group_subtasks"].get(name) or sorted(manager.task_index[name].tags)
    for member in members:
        if member != name:
            yield from _with_values(member, found, manager)


def _values(results: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the values of a task by metric. lm-eval's key is ``metric,filter``; the filter ``none`` is left out."""
    values: dict[str, float | None] = {}
    for key, value in results.items():
        if "," in key:
            is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
            values[key.removesuffix(",none")] = float(value) if is_number else None
    return values


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Give the global generators, which lm-eval seeds, their state back."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
