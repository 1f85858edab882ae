"""A search that is told to end, as a preempted node or a stopped job is, and taken up again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ofmu.cli.main import main
from tune.results.result import SearchResult

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def test_sigterm_ends_a_search_in_one_sentence_and_it_goes_on(
    ray_folder: Path, tmp_path: Path, tiny_mapping: dict[str, Any]
) -> None:
    """Ray's own handler would print a stack and abort with status 134."""
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
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert f"Interrupted: ofmu search --resume {run} continues it" in errors.splitlines()
    assert "***" not in errors
    assert process.returncode == 130
    assert main(["search", "--resume", str(run)]) == 0
    assert SearchResult.load(run).trials["state"].tolist() == ["complete"] * 4
