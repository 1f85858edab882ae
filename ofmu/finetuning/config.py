"""The ``training`` section of a config file."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ofmu.config.base import NonNegativeFloat, PositiveFloat, PositiveInt, Section


class TrainingConfig(Section):
    """How preparation trains the target and the retrained reference."""

    epochs: PositiveInt = 30
    """Passes over the training rows."""
    batch_size: PositiveInt = 16
    """Rows per optimizer step."""
    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate of AdamW."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay of AdamW."""
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the steps in which the learning rate rises linearly. It then falls linearly to a tenth of its peak."""
