"""How far a model's answers have moved from those of the target, the model from which unlearning started."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from ofmu.data.config import DataConfig
from ofmu.data.encoding import Tokenizer, pad_id
from ofmu.data.row_encoder import RowEncoder
from ofmu.data.rows import Example, UnlearnData
from ofmu.evaluation.config import HELD_BYTES, EvaluationConfig
from ofmu.evaluation.metrics.registry import DIVERGENCES
from ofmu.evaluation.robustness.portions import portions
from ofmu.evaluation.robustness.result import RobustnessResult
from ofmu.evaluation.scoring.batches import batches_by_label, global_batches
from ofmu.evaluation.scoring.model import evaluation_mode, scored_sets
from ofmu.evaluation.scoring.sharding import Shard, gather
from ofmu.evaluation.scoring.teacher_forcing import logits_of_one_pass
from ofmu.evaluation.sets import GENERAL_SETS, RETAIN

OpenTarget = Callable[[], AbstractContextManager[Any]]
"""Opens a block in which the returned model is the target. It may be the model itself with other parameters."""

_SETS = dict(zip(DIVERGENCES, ((RETAIN,), GENERAL_SETS), strict=True))
COMPARED_SETS = (RETAIN, *GENERAL_SETS)
"""The evaluation sets on whose answers the divergence is measured."""
_NO_ROWS = "the data has no evaluation set {}"
_NOT_FINITE = "the model or the target gives logits that are not finite"


@torch.no_grad()
def divergence(
    model: Any,
    open_target: OpenTarget,
    tokenizer: Tokenizer,
    data: UnlearnData,
    evaluation: EvaluationConfig,
    encoding: DataConfig,
    shard: Shard | None = None,
) -> RobustnessResult:
    """Return KL(target ‖ model), the mean over the answer tokens (EOS included) of all rows, in nats per token.

    The divergence of one token is Σ p·(log p − log q) over the vocabulary. The target's probabilities p and the model's
    q follow the prompt and the right answer so far.

    Args:
        model: a causal LM. It runs in evaluation mode and returns to its own mode.
        open_target: gives the target.
        tokenizer: the tokenizer of both.
        data: the evaluation sets.
        evaluation: gives the batch size and the largest number of rows per set.
        encoding: the data section, which rules how rows become tokens.
        shard: this process's rank. None: there is one process.

    Returns:
        ``kl_retain`` on retain rows, and ``kl_general`` on the sets of general knowledge. The details hold the number
        of tokens of each set.

    Raises:
        DataError: a row cannot be encoded.
    """
    shard = shard or Shard()
    labels, examples = list[str](), list[Example]()
    for name, rows in scored_sets(data, evaluation).items():
        if name not in COMPARED_SETS:
            continue
        encoder = RowEncoder(tokenizer, encoding, model.config, data.prompting_of(name))
        found = encoder.encode_rows(f"evaluation set {name}", rows)
        labels += [name] * len(found)
        examples += found
    batches = batches_by_label(
        labels,
        lambda indices: [
            [indices[place] for place in batch]
            for batch in global_batches([len(examples[index].input_ids) for index in indices], evaluation.batch_size)
        ],
    )
    with evaluation_mode(model):
        summed = _summed_divergences(model, open_target, examples, batches, pad_id(tokenizer), shard)
    return _result(labels, examples, summed)


def _summed_divergences(
    model: Any,
    open_target: OpenTarget,
    examples: Sequence[Example],
    batches: Sequence[list[int]],
    pad: int,
    shard: Shard,
) -> dict[int, float]:
    """Return the divergence of each example, summed over its answer tokens, on every rank; collective."""
    found: dict[int, float] = {}
    own = [_own_batch(batches, round, shard) for round in range(-(-len(batches) // shard.world_size))]
    for portion in _portions(examples, batches, model.config.get_text_config().vocab_size, shard):
        with open_target() as target:
            target.eval()
            # Always a copy: a view of one row's answer would keep the logits of the whole batch, its prompts included.
            held = [
                [row.to("cpu", torch.float32, copy=True) for row in _logits(target, examples, own[round], pad)]
                for round in portion
            ]
        model.eval()
        for round, kept in zip(portion, held, strict=True):
            for index, before, after in zip(own[round], kept, _logits(model, examples, own[round], pad), strict=True):
                found[index] = summed_divergence(before.to(after.device), after)
    merged: dict[int, float] = {}
    for part in gather(found, shard):
        merged.update(part)
    return merged


def _own_batch(batches: Sequence[list[int]], round: int, shard: Shard) -> list[int]:
    """Return this rank's batch of a round. A rank without a batch takes part in the others' collectives."""
    place = round * shard.world_size + shard.rank
    if place < len(batches):
        return batches[place]
    return batches[-1] if shard.synchronized else []


def _portions(
    examples: Sequence[Example], batches: Sequence[list[int]], vocabulary: int, shard: Shard
) -> Iterator[list[int]]:
    """Return consecutive rounds whose logits of the target fit the memory. Every rank gets the same rounds."""
    sizes = list[tuple[int, int]]()
    for round in range(-(-len(batches) // shard.world_size)):
        of_round = batches[round * shard.world_size : (round + 1) * shard.world_size]
        tokens = max(sum(examples[index].answer_length for index in batch) for batch in of_round)
        sizes.append((round, 4 * vocabulary * tokens))
    return portions(sizes, HELD_BYTES)


def _logits(model: Any, examples: Sequence[Example], indices: Sequence[int], pad: int) -> Iterator[torch.Tensor]:
    batch = [examples[index] for index in indices]
    return logits_of_one_pass(model, batch, pad) if batch else iter(())


def summed_divergence(before: torch.Tensor, after: torch.Tensor) -> float:
    """Return Σ over tokens of KL(before ‖ after) from logits, shape (tokens, vocabulary)."""
    log_p, log_q = (torch.log_softmax(logits.double(), dim=-1) for logits in (before, after))
    # A token that the target rules out adds 0, also where the model rules it out too.
    parts = torch.where(log_p > -math.inf, log_p.exp() * (log_p - log_q), 0.0)
    return float(parts.sum())


def _result(labels: Sequence[str], examples: Sequence[Example], summed: dict[int, float]) -> RobustnessResult:
    metrics: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    tokens = dict.fromkeys(labels, 0)
    for label, example in zip(labels, examples, strict=True):
        tokens[label] += example.answer_length
    for metric, names in _SETS.items():
        count = sum(tokens.get(name, 0) for name in names)
        total = math.fsum(summed[index] for index, label in enumerate(labels) if label in names)
        metrics[metric] = total / count if count and math.isfinite(total) else None
        if metrics[metric] is None:
            reasons[metric] = _NOT_FINITE if count else _NO_ROWS.format(" or ".join(f"'{name}'" for name in names))
    return RobustnessResult(metrics=metrics, reasons=reasons, details={"tokens": tokens})
