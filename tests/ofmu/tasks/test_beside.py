"""Columns of other software beside the metrics of a model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from ofmu.run_config import UnlearnConfig
from ofmu.tasks.beside import read_beside
from ofmu.tasks.load import task_family


@pytest.mark.parametrize(
    "content",
    [
        {"model_utility": 0.5, "forget_quality": math.nan, "privleak": math.inf, "mia_loss": 10**400},
        {
            "metrics": {
                "model_utility": 0.5,
                "forget_quality": math.nan,
                "privacy_leakage": "low",
                "membership_loss": True,
                "forget_rouge": None,
            }
        },
    ],
)
def test_what_is_no_finite_number_is_left_out(content: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "summary.json").write_text(json.dumps(content))
    columns = read_beside(
        [tmp_path / "theirs" / "summary.json"], task_family("language"), UnlearnConfig(), None, lambda scores: None
    )
    assert {name: value for name, value in columns["theirs"].items() if value is not None} == {"model_utility": 0.5}
