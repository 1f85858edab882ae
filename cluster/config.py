"""The config section ``cluster``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ofmu.config.base import NonNegativeFloat, NonNegativeInt, PositiveFloat, Section


class ClusterConfig(Section):
    """Which Ray cluster to use, and what one run reserves on it."""

    address: str | None = None
    """host:port, ray://host:port or 'auto'. None: $RAY_ADDRESS, else a Ray cluster on this machine."""
    num_workers: NonNegativeInt = 0
    """Ranks of one run. 0: the run is in the calling process, in Ray Train's local mode, without start-up cost."""
    cpus_per_worker: PositiveFloat = 1.0
    """CPUs that each rank reserves."""
    gpus_per_worker: NonNegativeFloat = 0.0
    """GPUs that each rank reserves."""
    checkpoint_every: NonNegativeInt = 1
    """Rounds between two checkpoints. 0: no checkpoints, so a run starts over after a failure."""
    max_failures: Annotated[int, Field(ge=-1)] = 1
    """How often a crashed run restarts from its last checkpoint. -1: without limit."""
