"""A search that is told to end, as a preempted node or a closed terminal does, and taken up again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from ofmu.cli.main import main
from tune.results.result import SearchResult

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.long)])
def test_a_signal_ends_a_search_in_one_sentence_and_it_goes_on(
    ray_folder: Path, tmp_path: Path, tiny_mapping: dict[str, Any], number: signal.Signals
) -> None:
    """Ray's own handler of SIGTERM would print a stack and abort with status 134."""
    config, run = tmp_path / "tiny.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump({**tiny_mapping, "search": {"num_trials": 4}}))
    with subprocess.Popen(
        [sys.executable, "-m", "ofmu", "search", str(config), "--run-dir", str(run)],
        env={**os.environ, "RAY_TMPDIR": str(ray_folder)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("Searching"):
                break
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert f"Interrupted: ofmu search --resume {run} continues it" in errors.splitlines()
    assert "***" not in errors
    assert process.returncode == 130
    assert main(["search", "--resume", str(run)]) == 0
    assert SearchResult.load(run).trials["state"].tolist() == ["complete"] * 4


def test_a_run_directory_that_is_deleted_ends_the_search_in_one_sentence(
    ray_folder: Path, tmp_path: Path, tiny_mapping: dict[str, Any]
) -> None:
    config, run = tmp_path / "tiny.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump({**tiny_mapping, "search": {"num_trials": 30}}))
    with subprocess.Popen(
        [sys.executable, "-m", "ofmu", "search", str(config), "--run-dir", str(run), "search.max_concurrent_trials=1"],
        env={**os.environ, "RAY_TMPDIR": str(ray_folder)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        while process.poll() is None and not (run / "trials" / "00001").is_dir():
            time.sleep(0.2)
        shutil.rmtree(run, ignore_errors=True)
        _, errors = process.communicate(timeout=240)
    assert process.returncode == 1, errors
    (line,) = [line for line in errors.splitlines() if not line.startswith("Warning: ")]
    assert line.startswith("Error: ")
    assert f"{run}/" in line
    assert "deleted or moved" in line
