"""The training loop on an engine: the same steps as :mod:`ofmu.finetuning.loop`, on any ranks and ZeRO stage."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from ofmu.checkpointing import LocalCheckpointer
from ofmu.engine.base import Engine
from ofmu.engine.checkpoint import load_checkpoint, save_checkpoint
from ofmu.errors import NonFiniteLossError
from ofmu.finetuning.config import TrainingConfig
from ofmu.finetuning.loop import EpochCallback, EpochEnd, minibatches, rate_factor
from ofmu.io.progress import track
from ofmu.losses import Loss
from ofmu.vectors.base import Vector, sum_over_ranks
from ofmu.vectors.optimizers import ShardOptimizer

RowT = TypeVar("RowT")

CHECKPOINT_SECONDS = 120.0
"""Seconds of training after which the next end of an epoch writes a checkpoint, which holds three copies of a model."""


def finetune_on_engine(
    engine: Engine,
    loss: Loss[RowT],
    rows: Sequence[RowT],
    training: TrainingConfig,
    *,
    seed: int,
    checkpoints: Path,
    callback: EpochCallback | None = None,
) -> dict[str, float]:
    """Minimise the mean loss of minibatches with AdamW, in place; collective.

    Args:
        engine: holds the model.
        loss: the loss of a minibatch.
        rows: the training rows.
        training: epochs, batch size and learning rate.
        seed: seed of the order of the rows, which changes every epoch.
        checkpoints: where checkpoints are kept. All ranks see the directory. A training whose directory holds a
            checkpoint continues from there, and deletes the directory at its end.
        callback: called after each epoch, on every rank.

    Returns:
        The cost, as :func:`ofmu.finetuning.loop.train` returns it.

    Raises:
        NonFiniteLossError: the loss became NaN or infinite.
        StorageError: a checkpoint cannot be written.
    """
    run = _Training(engine, loss, rows, training, checkpoints)
    run.resume()
    generator = torch.Generator().manual_seed(seed)
    # The order of an epoch depends on the epochs before it.
    for _ in range(run.epoch):
        list(minibatches(len(rows), training.batch_size, generator))
    steps = track(range(run.total - run.step), "training")
    engine.model.train()
    while run.epoch < training.epochs:
        losses = []
        for indices, _ in zip(minibatches(len(rows), training.batch_size, generator), steps, strict=False):
            losses.append(run.take_step([rows[index] for index in indices]))
        run.end_epoch(sum(losses) / len(losses))
        if callback is not None:
            callback(EpochEnd(epoch=run.epoch, epochs=training.epochs, loss=run.mean_loss))
    next(steps, None)  # reports the last step
    engine.model.eval()
    if engine.rank == 0:
        shutil.rmtree(checkpoints, ignore_errors=True)
    return run.cost()


class _Training:
    """The state of a training: what a checkpoint holds."""

    def __init__(
        self, engine: Engine, loss: Loss[Any], rows: Sequence[Any], training: TrainingConfig, checkpoints: Path
    ) -> None:
        self._engine, self._loss, self._training = engine, loss, training
        self.total = training.epochs * math.ceil(len(rows) / training.batch_size)
        self.epoch, self.step, self.mean_loss = 0, 0, math.nan
        self._tokens, self._seconds_before = 0, 0.0
        self._started = self._saved = time.perf_counter()
        self._optimizer = ShardOptimizer(
            engine.space, "adamw", training.learning_rate, weight_decay=training.weight_decay
        )
        self._checkpointer = LocalCheckpointer(checkpoints, engine.rank)

    def resume(self) -> None:
        """Continue from the newest complete checkpoint, if there is one."""
        latest = self._checkpointer.latest_checkpoint()
        if latest is None:
            return
        state, vectors = load_checkpoint(latest, self._engine.space)
        self._engine.space.restore(vectors.pop("parameters"))
        self._optimizer.restore(state["step"], vectors)
        self.epoch, self.step, self.mean_loss = state["epoch"], state["step"], state["loss"]
        self._tokens, self._seconds_before = state["tokens"], state["seconds"]

    def take_step(self, batch: Sequence[Any]) -> float:
        """Take one optimizer step. Return the loss before the step.

        Raises:
            NonFiniteLossError: the loss became NaN or infinite.
        """
        try:
            value, gradient = self._engine.gradient(self._loss, batch)
        except NonFiniteLossError as error:
            raise NonFiniteLossError(
                f"The training diverged in epoch {self.epoch + 1} ({error}): lower training.learning_rate "
                f"(it is {self._training.learning_rate:g})"
            ) from error
        factor = rate_factor(self.step, self.total, self._training.warmup_fraction)
        self._optimizer.lr = self._training.learning_rate * factor
        self._optimizer.step(gradient)
        self.step += 1
        self._tokens += sum(map(self._loss.tokens, batch))
        return value

    def end_epoch(self, mean_loss: float) -> None:
        """Count the epoch, and write a checkpoint if the last one is old enough."""
        self.epoch, self.mean_loss = self.epoch + 1, mean_loss
        if self.epoch < self._training.epochs and self._is_due():
            self._saved = time.perf_counter()
            self._checkpointer.on_round_end({"outer_step": self.epoch}, self._write)

    def _is_due(self) -> bool:
        """Return rank 0's decision. The clocks of the ranks differ."""
        due = self._engine.rank == 0 and time.perf_counter() - self._saved >= CHECKPOINT_SECONDS
        return bool(sum_over_ranks(torch.tensor([float(due)], dtype=torch.float64))[0])

    def _write(self, directory: Path) -> None:
        engine = self._engine
        vectors: dict[str, Vector] = {"parameters": engine.space.masters(), **self._optimizer.vectors()}
        state = {
            "epoch": self.epoch,
            "step": self.step,
            "loss": self.mean_loss,
            "tokens": self._tokens,
            "seconds": self._seconds(),
        }
        save_checkpoint(directory, engine.space, vectors, state, engine.rank, engine.world_size)

    def _seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self._started

    def cost(self) -> dict[str, float]:
        """Return seconds, steps, gradient evaluations, tokens without padding, and the mean loss of the last epoch."""
        return {
            "seconds": self._seconds(),
            "steps": self.total,
            "gradient_evaluations": self.total,
            "tokens": self._tokens,
            "loss": self.mean_loss,
        }
