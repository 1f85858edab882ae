"""An actor that decides for the trials of a search, and how its failed writes reach a trial's process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ofmu.errors import StorageError

AnswerT = TypeVar("AnswerT")


def start_actor(kind: type, *arguments: Any) -> Any:
    """Start an actor on this node that reserves no CPU. If its process dies, Ray starts it again. Return its handle."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    remote = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)(kind)
    return remote.remote(*arguments)


def or_sentence(call: Callable[[], AnswerT]) -> AnswerT | str:
    """Return what ``call`` returns in the actor, or the sentence of a failed write. No answer may be a text itself."""
    try:
        return call()
    except StorageError as error:
        return str(error)


def answer_of(reference: Any) -> Any:
    """Return an actor's answer to a trial's process.

    Raises:
        StorageError: the actor could not store the call.
    """
    answer = ray.get(reference)
    if isinstance(answer, str):
        raise StorageError(answer)
    return answer
