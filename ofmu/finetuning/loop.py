"""The training loop: AdamW, or AdamW in 8 bits, with warm-up and a linear decay of the learning rate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ofmu.data.collate import IGNORE_INDEX, collate
from ofmu.data.rows import Example
from ofmu.data.sampler import grouped_by_length
from ofmu.errors import NonFiniteLossError
from ofmu.finetuning.checkpoints import ParameterSpace, Position, TrainingCheckpoints
from ofmu.finetuning.config import TrainingConfig
from ofmu.finetuning.optimizers import training_optimizer
from ofmu.io.progress import track
from ofmu.losses import answer_nll, padded_tokens
from ofmu.models.chunked_logits import layer_for_chunks


@dataclass(frozen=True, kw_only=True)
class EpochEnd:
    """One epoch has ended."""

    epoch: int
    """Epochs count from 1."""
    epochs: int
    """Epochs of the whole training."""
    loss: float
    """Mean loss of the epoch's minibatches."""


@dataclass(frozen=True, kw_only=True)
class Continued:
    """A training continues from its last checkpoint."""

    epoch: int
    """Epochs that are done."""
    epochs: int
    """Epochs of the whole training."""


EpochCallback = Callable[[EpochEnd | Continued], None]

FINAL_RATE = 0.1
"""Factor of the learning rate at the last step."""

RowT = TypeVar("RowT")


def finetune(
    model: nn.Module,
    examples: Sequence[Example],
    training: TrainingConfig,
    *,
    seed: int,
    pad_id: int,
    callback: EpochCallback | None = None,
    checkpoints: Path | None = None,
) -> dict[str, float]:
    """Minimise the negative log-likelihood of the answers, in place.

    The loss is the mean over the answer tokens of a minibatch. The model keeps its dtype and its device.
    :func:`train` documents the optimizer, the callback and the returned cost.

    Args:
        model: a causal language model.
        examples: the training rows.
        training: epochs, batch size, optimizer and learning rate.
        seed: seed of the order of the rows.
        pad_id: id of the padding token.
        callback: called after each epoch, and when a training continues.
        checkpoints: see :func:`train`.

    Raises:
        NonFiniteLossError: the loss became NaN or infinite.
    """
    device = next(model.parameters()).device
    return train(
        model,
        examples,
        training,
        batch_loss=lambda batch: _answer_loss(model, batch, pad_id, device),
        tokens=lambda example: len(example.input_ids),
        seed=seed,
        callback=callback,
        checkpoints=checkpoints,
    )


def train(
    model: nn.Module,
    rows: Sequence[RowT],
    training: TrainingConfig,
    *,
    batch_loss: Callable[[Sequence[RowT]], Tensor],
    tokens: Callable[[RowT], int],
    seed: int,
    callback: EpochCallback | None = None,
    checkpoints: Path | None = None,
) -> dict[str, float]:
    """Minimise the mean loss of minibatches, in place. Afterwards the model is in evaluation mode.

    ``training.optimizer`` names the optimizer. The learning rate rises linearly in the warm-up and then falls linearly
    to a tenth.

    Args:
        model: the model to train.
        rows: the training rows.
        training: epochs, batch size, optimizer and learning rate.
        batch_loss: returns the mean loss of a minibatch, a differentiable scalar.
        tokens: returns the number of tokens that a forward pass of a row reads.
        seed: seed of the order of the rows, which changes every epoch.
        callback: called after each epoch, and when a training continues from a checkpoint.
        checkpoints: where checkpoints are kept. A training whose directory holds a checkpoint continues from there, to
            the same bits, and deletes the directory at its end. None: no checkpoints.

    Returns:
        The cost: ``seconds``, ``steps``, ``gradient_evaluations``, ``tokens`` (without padding), and the mean ``loss``
        of the last epoch.

    Raises:
        NonFiniteLossError: the loss became NaN or infinite.
    """
    started = time.perf_counter()
    total = training.epochs * math.ceil(len(rows) / training.batch_size)
    space = ParameterSpace(model)
    optimizer = training_optimizer(space, training)
    kept, position = TrainingCheckpoints(checkpoints, space), Position()
    latest = kept.latest()
    if latest is not None:
        position, vectors = latest
        space.restore(vectors.pop("parameters"))
        optimizer.restore(position.step, vectors)
        if callback is not None:
            callback(Continued(epoch=position.epoch, epochs=training.epochs))
    space.clear_gradient()
    before = position.seconds
    steps = track(range(position.step, total), "training")
    model.train()
    orders = epoch_orders([tokens(row) for row in rows], training, seed, position.epoch)
    for epoch, batches in enumerate(orders, start=position.epoch):
        losses: list[Tensor] = []
        for indices, step in zip(batches, steps, strict=False):
            batch = [rows[index] for index in indices]
            loss = batch_loss(batch)
            torch.autograd.backward(loss)
            optimizer.step(training.learning_rate * rate_factor(step, total, training.warmup_fraction))
            losses.append(loss.detach())
            position.tokens += sum(map(tokens, batch))
            position.step = step + 1
        mean = float(torch.stack(losses).mean())
        if not math.isfinite(mean):
            raise NonFiniteLossError(
                f"The training loss became {mean} in epoch {epoch + 1}: lower training.learning_rate "
                f"(it is {training.learning_rate:g})"
            )
        position.epoch, position.loss = epoch + 1, mean
        position.seconds = before + time.perf_counter() - started
        if epoch + 1 < training.epochs:
            kept.on_epoch_end(position, lambda: {"parameters": space.masters(), **optimizer.vectors()})
        if callback is not None:
            callback(EpochEnd(epoch=epoch + 1, epochs=training.epochs, loss=mean))
    next(steps, None)  # reports the last step
    model.eval()
    kept.delete()
    return {
        "seconds": before + time.perf_counter() - started,
        "steps": total,
        "gradient_evaluations": total,
        "tokens": position.tokens,
        "loss": position.loss,
    }


def rate_factor(step: int, total: int, warmup_fraction: float) -> float:
    """Return the factor of the learning rate at ``step``, which counts from 0.

    The factor rises linearly to 1 over ``warmup_fraction`` of the ``total`` steps, then falls linearly to a tenth.
    """
    warmup = math.ceil(total * warmup_fraction)
    if step < warmup:
        return (step + 1) / warmup
    return 1 - (1 - FINAL_RATE) * (step - warmup) / max(1, total - 1 - warmup)


def _answer_loss(model: nn.Module, batch: Sequence[Example], pad_id: int, device: torch.device) -> Tensor:
    if layer_for_chunks(model, padded_tokens(batch)) is not None:
        return answer_nll(model, batch, pad_id, device).sum() / sum(row.answer_length for row in batch)
    padded = collate(batch, pad_id, device)
    logits = model(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"], use_cache=False).logits
    labels = padded["labels"][:, 1:]
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX)


def epoch_orders(lengths: Sequence[int], training: TrainingConfig, seed: int, done: int) -> Iterator[list[list[int]]]:
    """Yield the indices of the rows of each minibatch, epoch by epoch, for all epochs but the first ``done`` ones.

    The order of an epoch depends on the epochs before it, so the orders of the first epochs are drawn too. It depends
    on the seed and on the lengths of the rows, and on nothing else.

    Args:
        lengths: tokens of each row.
        training: epochs, batch size, and whether rows of similar length share a minibatch.
        seed: seed of the orders.
        done: epochs that are left out.
    """
    generator = torch.Generator().manual_seed(seed)
    size = training.batch_size
    for epoch in range(training.epochs):
        order = torch.randperm(len(lengths), generator=generator).tolist()
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        if training.group_by_length:
            batches = grouped_by_length(order, lengths, size)
            batches = [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]
        if epoch >= done:
            yield batches
