"""The config section ``cluster``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

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
    a GPU lets two trials share one. Several ranks of one run cannot share a GPU."""
    checkpoint_every: NonNegativeInt = 1
    """Rounds between two checkpoints. 0: no checkpoints, so a run starts over after a failure."""
    max_failures: Annotated[int, Field(ge=-1)] = 1
    """How often a crashed run restarts from its last checkpoint. -1: without limit."""

    @model_validator(mode="after")
    def _check_gpus(self) -> ClusterConfig:
        """NCCL refuses two ranks of one group on the same GPU, and Ray gives parts of one GPU only."""
        gpus = self.reserved_gpus
        if self.num_workers > 1 and 0 < gpus < 1:
            raise ValueError(
                f"cluster.gpus_per_worker {gpus:g} lets {self.num_workers} workers of a run share a GPU, which NCCL "
                "refuses: set it to 1, to 0 for the CPU, or cluster.num_workers to 1"
            )
        if gpus > 1 and gpus % 1:
            raise ValueError(
                f"cluster.gpus_per_worker {gpus:g} is neither a whole number nor a part of one GPU: use {gpus // 1:g}"
            )
        return self

    @property
    def reserved_gpus(self) -> float:
        """GPUs that each rank reserves; 0 while this is not decided. See :func:`cluster.session.ray_session`."""
        return 0.0 if self.gpus_per_worker == "auto" else self.gpus_per_worker

    @property
    def sees_gpu(self) -> bool:
        """Whether ranks may run on a GPU. Workers that reserve none see none."""
        return self.num_workers == 0 or self.gpus_per_worker != 0
