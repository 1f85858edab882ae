"""A model in memory behind the interface of lm-eval, on one process or on all ranks of an engine.

lm-eval distributes documents over ranks by itself, but then each rank runs its own number of forward passes, and under
ZeRO-3 every pass is a collective. So lm-eval sees one process here, and every rank runs all of its code. Each batch of
requests is read on one rank, and all ranks get the results. Batches hold the same requests as those of lm-eval's own
``HFLM``, which reads each of them, so the numbers are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from itertools import chain
from typing import Any

from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from torch import nn

from ofmu.data.encoding import Tokenizer
from ofmu.errors import DataError
from ofmu.evaluation.scoring.sharding import Shard, run_sharded

_Likelihood = tuple[float, bool]
"""Log-likelihood of a continuation, and whether it is the greedy one."""


class EngineLM(HFLM):  # type: ignore[misc]  # lm-eval is an extra, and mypy does not read it
    """The model of an engine, or a model that this process has loaded.

    Args:
        model: a causal LM in evaluation mode.
        tokenizer: the model's tokenizer. It stays as it is.
        batch_size: rows per forward pass.
        shard: this process's rank.
    """

    def __init__(self, model: Any, tokenizer: Tokenizer, batch_size: int, shard: Shard) -> None:
        with _weights_kept(model):
            super().__init__(pretrained=model, tokenizer=deepcopy(tokenizer), batch_size=batch_size)
        self._shard, self._rows = shard, batch_size

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each text; collective."""
        # All windows in one call, so that the ranks share them. The call below cuts them into batches as lm-eval does.
        self.batch_size_per_gpu = 2**31
        try:
            likelihoods: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=True)
            return likelihoods
        finally:
            self.batch_size_per_gpu = self._rows

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[_Likelihood]:
        """Return the likelihood of each request's last tokens; collective. ``override_bs``: these are windows."""
        read = super()._loglikelihood_tokens

        def run(indices: list[int]) -> list[_Likelihood]:
            found: list[_Likelihood] = read([requests[index] for index in indices], disable_tqdm=True)
            return found

        in_order = [[index] for index in range(len(requests))]
        groups = in_order if override_bs is not None else _by_context(requests)
        batches = [list(chain(*groups[start : start + self._rows])) for start in range(0, len(groups), self._rows)]
        return run_sharded(batches, run, self._shard, name="lm-eval") if batches else []

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Return the generated text of each request; collective.

        Raises:
            DataError: the model has fewer positions than the task generates tokens.
        """
        generate = super().generate_until
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(index)
        batches: list[list[int]] = []
        for members in groups.values():
            new_tokens = normalize_gen_kwargs(requests[members[0]].args[1], self.max_gen_toks)["max_gen_toks"]
            # lm-eval asserts this, on the rank that reads the batch.
            if new_tokens >= self.max_length:
                raise DataError(
                    f"The task generates up to {new_tokens} tokens, and the model has {self.max_length} positions: set "
                    "generation_kwargs.max_gen_toks of the task"
                )
            members.sort(key=lambda index: self._length_and_text(requests[index].args[0]))
            batches += [members[start : start + self._rows] for start in range(0, len(members), self._rows)]

        def run(indices: list[int]) -> list[str]:
            texts: list[str] = generate([requests[index] for index in indices], disable_tqdm=True)
            return texts

        return run_sharded(batches, run, self._shard, name="lm-eval") if batches else []

    def _length_and_text(self, text: str) -> tuple[int, str]:
        """The longest text comes first, as in ``HFLM``."""
        return -len(self.tok_encode(text)), text

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **kwargs: Any) -> Any:
        if self._shard.synchronized and self._shard.world_size > 1:
            kwargs["synced_gpus"] = True  # ranks that have finished go on until all have
        return super()._model_generate(context, max_length, stop, **kwargs)


def _by_context(requests: Sequence[tuple[Any, list[int], list[int]]]) -> list[list[int]]:
    """Return groups of requests that one row of a forward pass serves, the longest first, in the order of ``HFLM``.

    Continuations that differ in their last token alone are such a group.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, (_, context, continuation) in enumerate(requests):
        groups.setdefault((*context, *continuation[:-1]), []).append(index)

    def order(members: list[int]) -> tuple[int, tuple[int, ...]]:
        _, context, continuation = max((requests[index] for index in members), key=lambda each: len(each[2]))
        return -len(context) - len(continuation), (*context, *continuation)

    return sorted(groups.values(), key=order)


@contextmanager
def _weights_kept(model: nn.Module) -> Iterator[None]:
    """Keep ``HFLM`` from tying the model's weights again: an engine holds and shards these very parameters."""
    object.__setattr__(model, "tie_weights", lambda: None)
    try:
        yield
    finally:
        object.__delattr__(model, "tie_weights")
