"""The ``training`` section of a config file."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ofmu.config.base import NonNegativeFloat, PositiveFloat, PositiveInt, Section


class TrainingConfig(Section):
    """How preparation trains the target and the retrained reference."""

    added_later: ClassVar[frozenset[str]] = frozenset(("optimizer", "group_by_length"))

    epochs: PositiveInt = 30
    """Passes over the training rows."""
    batch_size: PositiveInt = 16
    """Rows per optimizer step."""
    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate of AdamW."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """The rule of a step. ``adamw_8bit``: AdamW with moments in 8 bits, which take 2 bytes a parameter instead of 8."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay of AdamW."""
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the steps in which the learning rate rises linearly. It then falls linearly to a tenth of its peak."""
    group_by_length: bool = False
    """True: rows of similar length share a minibatch, so that little of it is padding. The order of the minibatches is
    random, and each row is read once an epoch. False: the rows of a minibatch are drawn at random."""
