"""The output of a process that imports ofmu, and the waiting of its threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = """
import sys
from ofmu import UnlearnConfig, evaluate, unlearn
shape = {"hidden_size": 16, "intermediate_size": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 300}
config = UnlearnConfig.model_validate({
    "model": {"scratch": shape},
    "data": {"generated": {"authors": 2, "forget_authors": 1, "world_facts": 2}, "max_length": 96},
    "training": {"epochs": 1},
    "method": {"outer_steps": 1, "inner_steps": 1, "batch_size": 2},
    "engine": {"device": "cpu", "threads": 1},
    "evaluation": {"max_new_tokens": 2},
    "cache_dir": sys.argv[1] + "/cache",
})
evaluate(unlearn(config, sys.argv[1] + "/run").model_dir, config)
"""


@pytest.mark.slow
def test_the_python_interface_prints_nothing(tmp_path: Path) -> None:
    # In the second iteration the run is complete, so only the evaluation runs.
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", RUN, str(tmp_path)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "run" / "metrics.json").is_file()
        assert done.stdout == ""
        assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize(("configured", "used"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads_do_not_spin_unless_the_user_says_so(configured: str | None, used: str) -> None:
    """OpenMP prints the settings that it was loaded with."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_DISPLAY_ENV": "TRUE"} | ({} if configured is None else {"OMP_WAIT_POLICY": configured})
    script = "import ofmu, torch"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert f"OMP_WAIT_POLICY = '{used}'" in done.stderr
