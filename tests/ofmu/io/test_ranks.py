from __future__ import annotations

import pytest

from ofmu.errors import ClusterError
from ofmu.io.ranks import (
    LAUNCHER,
    Ranks,
    check_launch,
    drop_stale_ranks,
    launched_ranks,
    ranks_on_this_machine,
)

SECOND = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}

MARKS = [
    {"TORCHELASTIC_RUN_ID": "none"},
    {"CROSS_RANK": "0", "CROSS_SIZE": "1", "LOCAL_SIZE": "2"},
    {"SLURM_STEP_ID": "0", "SLURM_PROCID": "1"},
    {"OMPI_COMM_WORLD_RANK": "1"},
    {"PMI_RANK": "1"},
    {"PET_NNODES": "2"},
    {LAUNCHER: "mine"},
]


@pytest.mark.parametrize("mark", MARKS)
def test_ranks_of_a_launcher_count(mark: dict[str, str]) -> None:
    environment = SECOND | mark
    assert launched_ranks(environment) == Ranks(1, 2, 1)
    assert drop_stale_ranks(environment) is None
    assert environment == SECOND | mark


@pytest.mark.parametrize(
    "left",
    [
        SECOND,
        {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},
        {"WORLD_SIZE": "2"},
        {"RANK": "3"},
        {"WORLD_SIZE": "many"},
        {"LOCAL_RANK": "-1"},
        SECOND | {"SLURM_PROCID": "0"},
        SECOND | {"TORCHELASTIC_RUN_ID": "none", "RANK": "2"},
        SECOND | {"TORCHELASTIC_RUN_ID": "none", "RANK": "-1"},
        SECOND | {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": ""},
        SECOND | {"TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": ""},
    ],
)
def test_variables_that_a_launcher_left_in_the_shell_do_not_count(left: dict[str, str]) -> None:
    environment = dict(left)
    assert launched_ranks(environment) == Ranks()
    sentence = drop_stale_ranks(environment)
    assert sentence is not None
    assert "unset" in sentence
    assert "torchrun" in sentence
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} & set(environment)
    assert set(left) - set(environment) <= {"RANK", "WORLD_SIZE", "LOCAL_RANK"}


@pytest.mark.parametrize(
    "left", [{}, {"WORLD_SIZE": ""}, {"RANK": "", "WORLD_SIZE": ""}, {"RANK": "0", "WORLD_SIZE": "1"}]
)
def test_variables_that_name_one_process_need_no_word(left: dict[str, str]) -> None:
    assert drop_stale_ranks(dict(left)) is None
    assert launched_ranks(left) == Ranks()


PLACE = {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
SRUN = {
    "SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_NTASKS": "7",
    "SLURM_STEP_NUM_TASKS": "7", "SLURM_STEP_TASKS_PER_NODE": "4,3", "SLURM_TASKS_PER_NODE": "4,3",
}  # fmt: skip
NUMBERED = {
    "srun": (SRUN, Ranks(5, 7, 1), 3),
    "srun of old": ({name: value for name, value in SRUN.items() if "STEP_" not in name} | {"SLURM_STEP_ID": "3"},
                    Ranks(5, 7, 1), 3),
    "srun on like machines": (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "2(x3),1"}, Ranks(5, 7, 1), 2),
    "Open MPI": (
        {"OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_SIZE": "7", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
         "OMPI_COMM_WORLD_LOCAL_SIZE": "3"},
        Ranks(5, 7, 1), 3,
    ),
    "MPICH": ({"PMI_RANK": "5", "PMI_SIZE": "7", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "3"}, Ranks(5, 7, 1), 3),
    "srun, which also sets the variables of MPI": (SRUN | {"PMI_RANK": "5", "PMI_SIZE": "7"}, Ranks(5, 7, 1), 3),
    "Open MPI, whose daemons srun has started": (
        SRUN | {"OMPI_COMM_WORLD_RANK": "9", "OMPI_COMM_WORLD_SIZE": "14", "OMPI_COMM_WORLD_LOCAL_RANK": "2",
                "OMPI_COMM_WORLD_LOCAL_SIZE": "7"},
        Ranks(9, 14, 2), 7,
    ),
}  # fmt: skip


@pytest.mark.parametrize("launcher", NUMBERED)
def test_the_numbers_of_srun_and_mpirun_count_where_rank_and_world_size_are_missing(launcher: str) -> None:
    numbers, expected, on_this_machine = NUMBERED[launcher]
    assert launched_ranks(numbers | PLACE) == expected
    assert ranks_on_this_machine(numbers | PLACE) == on_this_machine
    check_launch(numbers | PLACE)
    assert drop_stale_ranks(dict(numbers | PLACE)) is None
    own = {"RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    assert launched_ranks(numbers | PLACE | own) == Ranks(2, 3, 0)
    assert ranks_on_this_machine(numbers | PLACE | own) == 1


def test_the_local_rank_of_srun_counts_beside_the_user_s_own_numbers() -> None:
    assert launched_ranks(SRUN | PLACE | {"RANK": "5", "WORLD_SIZE": "7"}) == Ranks(5, 7, 1)


@pytest.mark.parametrize("launcher", NUMBERED)
@pytest.mark.parametrize("given", [{}, {"MASTER_ADDR": "node1"}, {"MASTER_ADDR": "", "MASTER_PORT": "29500"}])
def test_processes_that_cannot_find_each_other_are_refused(launcher: str, given: dict[str, str]) -> None:
    numbers, expected, _ = NUMBERED[launcher]
    missing = " and ".join(name for name in PLACE if not given.get(name))
    with pytest.raises(ClusterError) as caught:
        check_launch(numbers | given)
    program = "srun" if launcher.startswith("srun") else "mpirun"
    assert str(caught.value) == (
        f"{program} has started {expected.world_size} processes, which cannot find each other without {missing}: "
        f"before {program}, export MASTER_ADDR, the machine of rank 0, and MASTER_PORT, a free port there; or export "
        "WORLD_SIZE=1 if each process is a run of its own"
    )
    # The command line drops variables of ranks first, and must not take this process for a lone one.
    left = dict(numbers | given | {"RANK": "5"})
    assert drop_stale_ranks(left) is None
    with pytest.raises(ClusterError, match="without WORLD_SIZE"):
        check_launch(left)


def test_a_process_whose_local_rank_is_unknown_is_refused() -> None:
    """It would take the first GPU of its machine, and so would the others."""
    with pytest.raises(ClusterError, match=r"without LOCAL_RANK: .*; in each process, export LOCAL_RANK"):
        check_launch({"PMI_RANK": "1", "PMI_SIZE": "2"} | PLACE)
    assert launched_ranks({"PMI_RANK": "1", "PMI_SIZE": "2", "LOCAL_RANK": "1"} | PLACE) == Ranks(1, 2, 1)


@pytest.mark.parametrize(
    "lone",
    {
        "no launcher": {},
        "salloc": {"SLURM_JOB_ID": "8", "SLURM_NTASKS": "4", "SLURM_TASKS_PER_NODE": "4"},
        "sbatch": {"SLURM_JOB_ID": "8", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
        "a batch step": SRUN | {"SLURM_STEP_ID": str(2**32 - 5), "SLURM_PROCID": "0"},
        "salloc's interactive step": SRUN | {"SLURM_STEP_ID": str(2**32 - 6), "SLURM_PROCID": "0"},
        "srun -n 1 in salloc -n 4": SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"},
        "mpirun -n 1": {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},
        "mpirun -n 1 in srun -n 7": SRUN | {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},
        "a worker of Ray, which srun has started": SRUN | {"RAY_RAYLET_PID": "1234"},
        "one of seven runs": SRUN | {"WORLD_SIZE": "1"},
    }.items(),
    ids=lambda item: item[0],
)
def test_a_lone_process_stays_alone(lone: tuple[str, dict[str, str]]) -> None:
    for place in ({}, PLACE):
        environment = dict(lone[1] | place)
        for _ in range(2):
            check_launch(environment)
            assert launched_ranks(environment) == Ranks()
            assert ranks_on_this_machine(environment) == 1
            assert drop_stale_ranks(environment) is None
