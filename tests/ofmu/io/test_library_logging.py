"""The output of a process that imports ofmu, and the waiting of its threads."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ofmu.io.library_logging import asking_the_hub, silence_libraries

RUN = """
import sys
from ofmu import UnlearnConfig, evaluate, unlearn
shape = {"hidden_size": 16, "intermediate_size": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 300}
config = UnlearnConfig.model_validate({
    "model": {"scratch": shape},
    "data": {"generated": {"authors": 2, "forget_authors": 1, "world_facts": 2}, "max_length": 96},
    "training": {"epochs": 1},
    "method": {"outer_steps": 1, "inner_steps": 1, "batch_size": 2, "inner_lr": 1e-2, "outer_lr": 1e-3},
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


def test_a_note_about_missing_kernels_is_not_written(caplog: pytest.LogCaptureFixture) -> None:
    notes = logging.getLogger("bitsandbytes.backends.cpu.ops")
    before = notes.level
    try:
        silence_libraries()
        notes.warning("Failed to load CPU gemm_4bit_forward")
    finally:
        notes.setLevel(before)
    assert caplog.records == []


@pytest.mark.slow
@pytest.mark.parametrize(("configured", "used"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads_do_not_spin_unless_the_user_says_so(configured: str | None, used: str) -> None:
    """OpenMP prints the settings that it was loaded with."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_DISPLAY_ENV": "TRUE"} | ({} if configured is None else {"OMP_WAIT_POLICY": configured})
    script = "import ofmu, torch"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert f"OMP_WAIT_POLICY = '{used}'" in done.stderr


REQUESTS, DATASETS = (logging.getLogger(name) for name in ("huggingface_hub.utils._http", "datasets.load"))


@asking_the_hub()
def _ask_in_vain() -> None:
    for number in range(1, 6):
        REQUESTS.warning("'[Errno 111]' thrown while requesting HEAD")
        REQUESTS.warning("Retrying in 1s [Retry %s/5].", number)
    DATASETS.warning("Using the latest cached version of the dataset")


@asking_the_hub()
def _fail_at_once() -> None:
    REQUESTS.info("sent")
    raise ZeroDivisionError


def test_requests_that_are_repeated_give_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.warns(UserWarning, match="does not answer at once, so it is asked again") as caught:
        _ask_in_vain()
    assert len(caught) == 1
    assert caplog.records == []
    REQUESTS.warning("outside of the block")
    DATASETS.warning("outside too")
    assert [record.message for record in caplog.records] == ["outside of the block", "outside too"]


def test_a_hub_that_answers_gives_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    with pytest.raises(ZeroDivisionError):
        _fail_at_once()
    assert not recwarn.list
    assert REQUESTS.filters == []


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "words", [["plan", "tofu"], pytest.param(["plan", "quickstart", "data.source=wmdp"], marks=pytest.mark.long)]
)
def test_a_plan_without_a_network_is_one_error(words: list[str], tmp_path: Path) -> None:
    """Nothing listens on port 9 of this machine."""
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "ofmu", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    lines = done.stderr.splitlines()
    assert done.returncode == 1
    assert re.match(r"Error: The (hub )?data set .* cannot be ", lines[-1])
    assert lines[:-1] in ([], ["Warning: the Hugging Face hub does not answer at once, so it is asked again"])
