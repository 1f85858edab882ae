from __future__ import annotations

import pytest

from ofmu.io.ranks import LAUNCHER, Ranks, drop_stale_ranks, launched_ranks

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
