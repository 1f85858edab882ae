"""The training loop on an engine: the same steps as :mod:`ofmu.finetuning.loop`, on any ranks and ZeRO stage."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from ofmu.engine.base import Engine
from ofmu.errors import NonFiniteLossError
from ofmu.finetuning.checkpoints import Position, TrainingCheckpoints
from ofmu.finetuning.config import TrainingConfig
from ofmu.finetuning.loop import Continued, EpochCallback, EpochEnd, epoch_orders, rate_factor
from ofmu.io.progress import track
from ofmu.losses import Loss
from ofmu.vectors.base import Vector
from ofmu.vectors.optimizers import ShardOptimizer

RowT = TypeVar("RowT")


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
    """Minimise the mean loss of minibatches with ``training.optimizer``, in place; collective.

    Args:
        engine: holds the model.
        loss: the loss of a minibatch.
        rows: the training rows.
        training: epochs, batch size, optimizer and learning rate.
        seed: seed of the order of the rows, which changes every epoch.
        checkpoints: where checkpoints are kept. All ranks see the directory. A training whose directory holds a
            checkpoint continues from there, and deletes the directory at its end.
        callback: called after each epoch, and when a training continues from a checkpoint, on every rank.

    Returns:
        The cost, as :func:`ofmu.finetuning.loop.train` returns it.

    Raises:
        NonFiniteLossError: the loss became NaN or infinite.
        StorageError: a checkpoint cannot be written.
    """
    run = _Training(engine, loss, rows, training, checkpoints)
    if callback is not None and run.position.epoch > 0:
        callback(Continued(epoch=run.position.epoch, epochs=training.epochs))
    steps = track(range(run.total - run.position.step), "training")
    engine.model.train()
    for batches in epoch_orders([loss.tokens(row) for row in rows], training, seed, run.position.epoch):
        losses = [run.take_step([rows[index] for index in indices]) for indices, _ in zip(batches, steps, strict=False)]
        run.end_epoch(sum(losses) / len(losses))
        if callback is not None:
            callback(EpochEnd(epoch=run.position.epoch, epochs=training.epochs, loss=run.position.loss))
    next(steps, None)  # reports the last step
    engine.model.eval()
    return run.finish()


class _Training:
    """The state of a training: what a checkpoint holds."""

    def __init__(
        self, engine: Engine, loss: Loss[Any], rows: Sequence[Any], training: TrainingConfig, checkpoints: Path
    ) -> None:
        self._engine, self._loss, self._training = engine, loss, training
        self.total = training.epochs * math.ceil(len(rows) / training.batch_size)
        self.position = Position()
        self._started = time.perf_counter()
        self._optimizer = ShardOptimizer(
            engine.space, training.optimizer, training.learning_rate, weight_decay=training.weight_decay
        )
        self._checkpoints = TrainingCheckpoints(checkpoints, engine.space, engine.rank, engine.world_size)
        latest = self._checkpoints.latest()
        if latest is not None:
            self.position, vectors = latest
            engine.space.restore(vectors.pop("parameters"))
            self._optimizer.restore(self.position.step, vectors)
        self._seconds_before = self.position.seconds

    def take_step(self, batch: Sequence[Any]) -> float:
        """Take one optimizer step. Return the loss before the step.

        Raises:
            NonFiniteLossError: the loss became NaN or infinite.
        """
        try:
            value, gradient = self._engine.gradient(self._loss, batch)
        except NonFiniteLossError as error:
            raise NonFiniteLossError(
                f"The training diverged in epoch {self.position.epoch + 1} ({error}): lower training.learning_rate "
                f"(it is {self._training.learning_rate:g})"
            ) from error
        factor = rate_factor(self.position.step, self.total, self._training.warmup_fraction)
        self._optimizer.lr = self._training.learning_rate * factor
        self._optimizer.step(gradient)
        self.position.step += 1
        self.position.tokens += sum(map(self._loss.tokens, batch))
        return value

    def end_epoch(self, mean_loss: float) -> None:
        """Count the epoch, and write a checkpoint if the last one is old enough."""
        position = self.position
        position.epoch, position.loss = position.epoch + 1, mean_loss
        position.seconds = self._seconds_before + time.perf_counter() - self._started
        if position.epoch < self._training.epochs:
            self._checkpoints.on_epoch_end(position, self._vectors)

    def _vectors(self) -> dict[str, Vector]:
        return {"parameters": self._engine.space.masters(), **self._optimizer.vectors()}

    def finish(self) -> dict[str, float]:
        """Delete the checkpoints. Return the cost."""
        self._checkpoints.delete()
        return {
            "seconds": self._seconds_before + time.perf_counter() - self._started,
            "steps": self.total,
            "gradient_evaluations": self.total,
            "tokens": self.position.tokens,
            "loss": self.position.loss,
        }
