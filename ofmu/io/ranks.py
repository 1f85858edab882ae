"""Which rank this process is. A launcher such as torchrun says so in environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

LAUNCHER = "OFMU_LAUNCHER"
"""Who starts ranks without one of the launchers below sets this variable to any text."""

_MARKS = (
    ("TORCHELASTIC_RUN_ID",),  # torchrun, accelerate launch, torch.distributed.run
    ("CROSS_RANK", "LOCAL_SIZE"),  # deepspeed
    ("SLURM_STEP_ID", "SLURM_PROCID"),  # srun
    ("OMPI_COMM_WORLD_RANK",),  # mpirun of Open MPI
    ("PMI_RANK",),  # mpirun of MPICH and Intel MPI
    ("PET_NNODES",),  # Kubeflow's PyTorchJob
    (LAUNCHER,),
)
"""Variables that a launcher sets beside RANK and WORLD_SIZE. One group must be there whole."""

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


@dataclass(frozen=True)
class Ranks:
    """This process's place among the processes of one run."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """The rank on this machine, which chooses the GPU."""


def launched_ranks(environment: Mapping[str, str] = os.environ) -> Ranks:
    """Return the place that a launcher gave to this process. Without a launcher, the process is alone.

    RANK and WORLD_SIZE alone do not count. Both outlive a launcher in a shell that exported them, and a run would wait
    for ranks that nobody starts.
    """
    if not any(all(environment.get(name) for name in mark) for mark in _MARKS):
        return Ranks()
    try:
        rank, world_size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        local_rank = int(environment.get("LOCAL_RANK") or 0)
    except (KeyError, ValueError):
        return Ranks()
    complete = bool(environment.get("MASTER_ADDR")) and bool(environment.get("MASTER_PORT")) and local_rank >= 0
    return Ranks(rank, world_size, local_rank) if complete and 0 <= rank < world_size else Ranks()


def drop_stale_ranks(environment: MutableMapping[str, str] = os.environ) -> str | None:
    """Remove the variables of ranks that no launcher set. Return a sentence if they had named several ranks.

    Libraries and child processes read these variables too.
    """
    if launched_ranks(environment) != Ranks():
        return None
    found = {name: environment[name] for name in _VARIABLES if name in environment}
    for name in found:
        del environment[name]
    if all(value in ("", "0") or (name, value) == ("WORLD_SIZE", "1") for name, value in found.items()):
        return None
    values = " ".join(f"{name}={value}" for name, value in found.items())
    return (
        f"{values} is set but no launcher started this process, so it runs alone: unset {' '.join(found)}, or start "
        f"the ranks with torchrun (other launchers set {LAUNCHER})"
    )
