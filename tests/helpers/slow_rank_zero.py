"""A run on every rank, whose rank 0 checks the saved model and attacks it for longer than a collective may last."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import _set_pg_timeout, default_pg_timeout

from ofmu import UnlearnConfig, unlearn
from ofmu.errors import ModelError, OfmuError
from ofmu.io.ranks import launched_ranks
from ofmu.models import language
from ofmu.tasks.language import task
from ofmu.trainer import UnlearnResult

LIMIT, LONG = 3.0, 6.0
"""Seconds that a collective may last after the last round, and that each work of rank 0 takes."""


def slowly(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        time.sleep(LONG)
        return function(*arguments, **named)

    return call


def score_and_set_limit(*arguments: Any) -> Any:
    scores = score(*arguments)
    _set_pg_timeout(timedelta(seconds=LIMIT))
    return scores


def refuse(*_: Any) -> Any:
    raise ModelError("the attack cannot read the model")


def outcome(run: Callable[[], UnlearnResult]) -> Any:
    if dist.is_initialized():
        _set_pg_timeout(default_pg_timeout)
    try:
        return run().metrics["relearning_probability"]
    except OfmuError as error:
        return str(error)


score = task.LanguageTask.score

if __name__ == "__main__":
    config, folder = UnlearnConfig.model_validate(json.loads(Path(sys.argv[1]).read_text())), Path(sys.argv[2])
    task.LanguageTask.score = score_and_set_limit  # type: ignore[method-assign]
    language.check_written = slowly(language.check_written)  # type: ignore[attr-defined]
    task.attack_saved = slowly(task.attack_saved)  # type: ignore[attr-defined]
    found = [outcome(lambda: unlearn(config, folder / "run"))]
    task.attack_saved = slowly(refuse)  # type: ignore[attr-defined]
    found.append(outcome(lambda: unlearn(config, folder / "failed")))
    (folder / f"{launched_ranks().rank}.json").write_text(json.dumps(found))
