"""The config section ``cluster``."""

from __future__ import annotations

from typing import Annotated, Literal

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
    gpus_per_worker: NonNegativeFloat | Literal["auto"] = "auto"
    """GPUs that each rank reserves. ``auto``: 1 if ``engine.device`` allows a GPU and the cluster has one, else 0. Half
    a GPU lets two trials share one."""
    checkpoint_every: NonNegativeInt = 1
    """Rounds between two checkpoints. 0: no checkpoints, so a run starts over after a failure."""
    max_failures: Annotated[int, Field(ge=-1)] = 1
    """How often a crashed run restarts from its last checkpoint. -1: without limit."""

    @property
    def reserved_gpus(self) -> float:
        """GPUs that each rank reserves; 0 while this is not decided. See :func:`cluster.session.ray_session`."""
        return 0.0 if self.gpus_per_worker == "auto" else self.gpus_per_worker

    @property
    def sees_gpu(self) -> bool:
        """Whether ranks may run on a GPU. Workers that reserve none see none."""
        return self.num_workers == 0 or self.gpus_per_worker != 0
