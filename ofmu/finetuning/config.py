"""The ``training`` section of a config file."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ofmu.config.base import NonNegativeFloat, PositiveFloat, PositiveInt, Section


class TrainingConfig(Section):
    """How preparation trains the target model and the retrain reference."""

    epochs: PositiveInt = 30
    batch_size: PositiveInt = 16
    learning_rate: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.0
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the steps in which the rate rises linearly; it then falls linearly to a tenth."""
