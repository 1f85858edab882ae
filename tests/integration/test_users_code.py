"""A method and an objective of the user's own, in a module of the working directory, found by every kind of worker."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "examples" / "own_module.py"
OFMU = Path(sys.executable).with_name("ofmu")
"""The installed command: unlike ``python -m``, it does not put the working directory on the path."""

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def own_search(smallest: dict[str, Any]) -> dict[str, Any]:
    """The smallest search, of the example's method by the example's objective."""
    search = {
        "num_trials": 3,
        "space": {"method.half_life": {"low": 2.0, "high": 50.0}},
        "objectives": {"own_module:best_remembered": "min", "model_utility": "max"},
    }
    method = {"name": "fadingascent", "module": "own_module", "batch_size": 2, "steps": 2}
    return {**smallest, "method": method, "search": search}


@pytest.mark.parametrize(
    "workers", [0, pytest.param(2, marks=pytest.mark.long)], ids=["trial processes", "worker groups"]
)
def test_workers_import_the_users_module(ray_folder, tmp_path, smallest_search, workers):
    shutil.copy2(MODULE, tmp_path)
    mapping = own_search(smallest_search) | {"cluster": {"num_workers": workers}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(mapping))
    done = subprocess.run(
        [OFMU, "search", "own.yaml", "--run-dir", "run", "search.max_concurrent_trials=1"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    check_own_search(tmp_path / "run")


def check_own_search(run_dir: Path) -> None:
    table = pd.read_csv(run_dir / "trials.csv")
    assert table["state"].tolist() == ["complete"] * 3, table["reason"].tolist()
    assert table["own_module:best_remembered"].between(0, 1).all()
    assert table.loc[2, "method.half_life"] != table.loc[1, "method.half_life"]
    report = yaml.safe_load((run_dir / "trials" / "00002" / "config.yaml").read_text())
    assert report["method"]["name"] == "fadingascent"
