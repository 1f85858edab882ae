"""Where and how wide a run is spread."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ofmu.config.base import NonNegativeFloat, NonNegativeInt, PositiveFloat, Section


class ClusterConfig(Section):
    """The ``cluster`` section of a config file."""

    address: str | None = None
    """host:port, ray://host:port or 'auto'; None: $RAY_ADDRESS, else Ray on this machine."""
    num_workers: NonNegativeInt = 0
    """Ranks of one run. 0: Ray Train's local mode, in the process that calls it, which costs no start-up."""
    cpus_per_worker: PositiveFloat = 1.0
    gpus_per_worker: NonNegativeFloat = 0.0
    checkpoint_every: NonNegativeInt = 1
    """Outer steps from one checkpoint to the next; 0 keeps none, and a failure then starts over."""
    max_failures: Annotated[int, Field(ge=-1)] = 1
    """How often a crashed run is started again from its last checkpoint; −1: without limit."""
