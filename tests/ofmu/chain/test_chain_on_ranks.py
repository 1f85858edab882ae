"""A run after a run on two ranks ends where the same run in one process does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ofmu.chain.run_record import RunChainRecord, read_run_chain
from ofmu.cli.main import main
from ofmu.data.load import load_data
from ofmu.data.records import json_lines
from ofmu.run_config import UnlearnConfig

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_mapping: dict[str, Any], tiny_config: UnlearnConfig) -> Path:
    """Two requests, of which each finds the other's rows among its retain rows; and the run of the first."""
    folder = tmp_path_factory.mktemp("chain")
    data = load_data(tiny_config.data, tiny_config.seed)
    requests = {"first": data.forget.rows[:4], "second": data.forget.rows[4:8]}
    for name, rows in requests.items():
        others = [row for other, each in requests.items() if other != name for row in each]
        (folder / f"{name}.jsonl").write_text(json_lines(rows))
        (folder / f"retain_{name}.jsonl").write_text(json_lines([*data.retain.rows[:12], *others]))
    sections = {"source": "files", "max_length": tiny_config.data.max_length}
    method = {"name": "graddiff", "steps": 3, "batch_size": 4, "lr": 0.01}
    (folder / "run.yaml").write_text(yaml.safe_dump({**tiny_mapping, "data": sections, "method": method}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(words("first", "one")) == 0
        assert main(words("second", "alone", "--after", "one")) == 0
    return folder


def words(request: str, output: str, *more: str) -> list[str]:
    files = [f"data.forget={request}.jsonl", f"data.retain=retain_{request}.jsonl"]
    return ["unlearn", "run.yaml", *files, "--output", output, *more]


def record_of(run: Path) -> RunChainRecord:
    record = read_run_chain(run)
    assert record is not None
    return record


@pytest.mark.long
def test_two_ranks_of_a_launcher_measure_what_one_process_does(place: Path) -> None:
    output = "ranks"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "ofmu"]
    more = ["--after", "one", "engine.backend=deepspeed", "engine.zero_stage=3"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, *words("second", output, *more)],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    for start in ("After 1 earlier run, from the model", "Not retained: 4 rows", "After 1 earlier request:"):
        assert len([line for line in done.stdout.splitlines() if line.startswith(start)]) == 1, done.stdout
    alone, ranks = record_of(place / "alone"), record_of(place / output)
    (expected,), (found,) = alone.chain.requests, ranks.chain.requests
    assert [each.name for each in found.metrics] == [each.name for each in expected.metrics]
    for ours, theirs in zip(found.metrics, expected.metrics, strict=True):
        assert [ours.before, *ours.values] == pytest.approx([theirs.before, *theirs.values], rel=1e-3, abs=1e-6)
    for mine, other in zip(ranks.utility, alone.utility, strict=True):
        assert [mine.first_target, mine.target, mine.result] == pytest.approx(
            [other.first_target, other.target, other.result], rel=1e-3
        )
    assert ranks.chain.gradient_evaluations == alone.chain.gradient_evaluations
