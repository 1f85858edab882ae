"""What the config section ``cluster`` refuses."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from cluster.config import ClusterConfig


@pytest.mark.parametrize(
    ("workers", "gpus", "said"),
    [
        (2, 0.5, "lets 2 workers of a run share a GPU, which NCCL refuses: set it to 1"),
        (1, 1.5, "neither a whole number nor a part of one GPU: use 1"),
    ],
)
def test_gpus_that_no_group_can_have_are_refused(workers: int, gpus: float, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ClusterConfig(num_workers=workers, gpus_per_worker=gpus)


@pytest.mark.parametrize(("workers", "gpus"), [(1, 0.5), (0, 0.5), (4, 1), (4, 0), (2, 2), (2, "auto")])
def test_other_gpus_are_accepted(workers: int, gpus: float | str) -> None:
    assert ClusterConfig.model_validate({"num_workers": workers, "gpus_per_worker": gpus}).num_workers == workers
