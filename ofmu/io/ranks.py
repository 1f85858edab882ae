"""Which rank this process is. A launcher such as torchrun says so in environment variables."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from ofmu.errors import ClusterError
from ofmu.io.text import listed

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
_MEETING_PLACE = ("MASTER_ADDR", "MASTER_PORT")
_RAY_WORKER = "RAY_RAYLET_PID"
"""Ray sets this variable in its workers. What a worker has besides is the numbering of the ``ray start`` commands."""
_SPECIAL_STEPS = 2**32 - 16
"""Slurm's ids of steps from here on are those of batch scripts and of interactive shells, which are one process."""


@dataclass(frozen=True)
class Ranks:
    """This process's place among the processes of one run."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """The rank on this machine, which chooses the GPU."""


@dataclass(frozen=True)
class _Numbering:
    """The variables with which a launcher numbers its processes without RANK and WORLD_SIZE."""

    launcher: str
    mark: str
    """The launcher has set this variable."""
    rank: str
    world_size: str
    local_rank: str
    per_machine: tuple[str, ...]
    """The processes on this machine, or on each machine as Slurm writes them: ``4(x2),3``. The first one counts."""


def _of_mpi(mark: str, rank: str, world_size: str, local_rank: str, on_machine: str) -> _Numbering:
    return _Numbering("mpirun", mark, rank, world_size, local_rank, (on_machine,))


def _of_slurm(world_size: str) -> _Numbering:
    per_machine = ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE")
    return _Numbering("srun", "SLURM_STEP_ID", "SLURM_PROCID", world_size, "SLURM_LOCALID", per_machine)


_NUMBERINGS = (
    # mpirun may start its daemons with srun, and srun then numbers the daemons. srun itself may set PMI_RANK.
    _of_mpi(
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    _of_mpi("MPI_LOCALRANKID", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    _of_slurm("SLURM_STEP_NUM_TASKS"),
    _of_slurm("SLURM_NTASKS"),
    _of_mpi("PMI_RANK", "PMI_RANK", "PMI_SIZE", "PMI_LOCAL_RANK", "PMI_LOCAL_SIZE"),
)
"""The first whose variables are set counts."""


def launched_ranks(environment: Mapping[str, str] = os.environ) -> Ranks:
    """Return the place that a launcher gave to this process. Without a launcher, the process is alone.

    RANK and WORLD_SIZE alone do not count. Both outlive a launcher in a shell that exported them, and a run would wait
    for ranks that nobody starts. Where both are missing, the numbers of srun and mpirun count.
    """
    if not any(all(environment.get(name) for name in mark) for mark in _MARKS):
        return Ranks()
    names, numbering = ("RANK", "WORLD_SIZE"), _numbering(environment)
    if numbering is not None and not _names_ranks(environment):
        names = numbering.rank, numbering.world_size
    rank, world_size = (_number(environment, name) for name in names)
    local_rank = _local_rank(environment)
    complete = all(environment.get(name) for name in _MEETING_PLACE) and local_rank >= 0
    return Ranks(rank, world_size, local_rank) if complete and 0 <= rank < world_size else Ranks()


def ranks_on_this_machine(environment: Mapping[str, str] = os.environ) -> int:
    """Return how many ranks of the launcher are on this machine; 1 if the launcher does not say."""
    numbering = _numbering(environment)
    if environment.get("LOCAL_WORLD_SIZE"):
        return max(_number(environment, "LOCAL_WORLD_SIZE"), 1)
    if numbering is None or launched_ranks(environment) == Ranks():
        return 1
    stated = next((environment[name] for name in numbering.per_machine if environment.get(name)), "")
    counts = [
        int(count) for count, machines in re.findall(r"(\d+)(?:\(x(\d+)\))?", stated) for _ in range(int(machines or 1))
    ]
    machine = max(_number(environment, "SLURM_NODEID"), 0) if len(counts) > 1 else 0
    return counts[machine] if machine < len(counts) else 1


def check_launch(environment: Mapping[str, str] = os.environ) -> None:
    """Check that the processes that srun or mpirun has started can find each other.

    Otherwise each of them would run alone, and all would write the same files.

    Raises:
        ClusterError: variables are missing.
    """
    numbering, missing = _numbering(environment), _missing(environment)
    if numbering is None or not missing:
        return
    launcher = numbering.launcher
    fixes = [f"before {launcher}, export MASTER_ADDR, the machine of rank 0, and MASTER_PORT, a free port there"]
    if "LOCAL_RANK" in missing:
        fixes.append("in each process, export LOCAL_RANK, its number on its machine")
    raise ClusterError(
        f"{launcher} has started {environment[numbering.world_size]} processes, which cannot find each other without "
        f"{listed(missing)}: {'; '.join(fixes)}; or export WORLD_SIZE=1 if each process is a run of its own"
    )


def _missing(environment: Mapping[str, str]) -> list[str]:
    """Return what processes that srun or mpirun has started lack to find each other."""
    alone = environment.get("WORLD_SIZE") == "1"
    if _numbering(environment) is None or alone or launched_ranks(environment) != Ranks():
        return []
    wanted = [*(("RANK", "WORLD_SIZE") if _names_ranks(environment) else ()), *_MEETING_PLACE]
    missing = [name for name in wanted if not environment.get(name)]
    return missing if _local_rank(environment) >= 0 else ["LOCAL_RANK", *missing]


def _numbering(environment: Mapping[str, str]) -> _Numbering | None:
    """Return the numbering of a launcher that has started several processes, of which this is one."""
    if environment.get(_RAY_WORKER):
        return None
    in_step = 0 <= _number(environment, "SLURM_STEP_ID") < _SPECIAL_STEPS
    for numbering in _NUMBERINGS:
        is_set = all(environment.get(name) for name in (numbering.mark, numbering.rank, numbering.world_size))
        if is_set and (in_step or numbering.launcher != "srun"):
            return numbering if _number(environment, numbering.world_size) > 1 else None
    return None


def _local_rank(environment: Mapping[str, str]) -> int:
    """Return the rank on this machine; -1 if it is unknown."""
    numbering = _numbering(environment)
    names = ("LOCAL_RANK",) if numbering is None else ("LOCAL_RANK", numbering.local_rank)
    for name in names:
        if environment.get(name):
            return _number(environment, name)
    return 0 if numbering is None or _names_ranks(environment) else -1


def _names_ranks(environment: Mapping[str, str]) -> bool:
    return bool(environment.get("RANK") or environment.get("WORLD_SIZE"))


def _number(environment: Mapping[str, str], name: str) -> int:
    """Return the number in a variable; -1 if there is none."""
    try:
        return int(environment.get(name, ""))
    except ValueError:
        return -1


def drop_stale_ranks(environment: MutableMapping[str, str] = os.environ) -> str | None:
    """Remove the variables of ranks that no launcher set. Return a sentence if they had named several ranks.

    Libraries and child processes read these variables too.
    """
    if launched_ranks(environment) != Ranks() or _missing(environment):
        return None
    found = {name: environment[name] for name in _VARIABLES if name in environment}
    if found.get("WORLD_SIZE") == "1":
        # This says that a process of srun or mpirun is alone.
        del found["WORLD_SIZE"]
    for name in found:
        del environment[name]
    if all(value in ("", "0") for value in found.values()):
        return None
    values = " ".join(f"{name}={value}" for name, value in found.items())
    return (
        f"{values} is set but no launcher started this process, so it runs alone: unset {' '.join(found)}, or start "
        f"the ranks with torchrun (other launchers set {LAUNCHER})"
    )
