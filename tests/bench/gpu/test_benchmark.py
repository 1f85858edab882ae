from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gpu.benchmark import PARTS, ROOT, Part, failed, run_parts, show, table_lines
from gpu.parity import differences
from gpu.settings import case_row, need_deepspeed
from gpu.shapes import LLAMA_1B, LLAMA_8B, SMALL, TINY, build_llama, gradient_flops, multiplied_weights, peak_flops
from ofmu.testing import RunOutcome

GIVEN = {"device": "cpu", "size": "tiny", "seed": 3}
HEAD = """
import os, subprocess, sys, time
from gpu.settings import Row, Skip

def measure(settings):
    yield Row("first", {"figure": 1.5, "nothing": None, "infinite": float("inf")}, goals={"figure": ("<=", 1.0)})
"""
PART_BODIES = {
    "sound_part": "",
    "raising_part": "    raise ValueError('this part raises\\nand says more')",
    "crashing_part": "    os._exit(3)",
    "skipped_part": "    raise Skip('this part makes no sense here')",
    "hanging_part": """
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield Row("sleeper", {"pid": sleeper.pid})
    time.sleep(600)
""",
}


@pytest.fixture
def _parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, body in PART_BODIES.items():
        (tmp_path / f"{name}.py").write_text(HEAD + body)
    # The children see the modules that this process can import.
    monkeypatch.syspath_prepend(tmp_path)


def run_named(tmp_path: Path, *names: str, seconds: float = 60) -> dict[str, Any]:
    result: dict[str, Any] = run_parts([Part(name, name, seconds) for name in names], GIVEN, tmp_path / "gpu.json")
    return result


@pytest.mark.slow
@pytest.mark.usefixtures("_parts")
def test_a_part_that_fails_is_reported_and_stops_no_other(tmp_path: Path) -> None:
    result = run_named(tmp_path, "raising_part", "crashing_part", "skipped_part", "missing_part", "sound_part")
    found = {part["name"]: (part["status"], part.get("reason"), len(part["rows"])) for part in result["parts"]}
    assert found == {
        "raising_part": ("failed", "ValueError: this part raises", 1),
        "crashing_part": ("failed", "the process ended with exit status 3", 1),
        "skipped_part": ("skipped", "this part makes no sense here", 1),
        "missing_part": ("failed", "ModuleNotFoundError: No module named 'missing_part'", 0),
        "sound_part": ("done", None, 1),
    }
    assert failed(result)
    assert not failed({"parts": [part for part in result["parts"] if part["status"] in ("done", "skipped")]})
    lines = [line for part in result["parts"] for line in table_lines(part)]
    assert [line[2] for line in lines if line[0] == "raising_part"][1:] == ["failed: ValueError: this part raises"]


@pytest.mark.slow
@pytest.mark.usefixtures("_parts")
def test_a_part_that_runs_out_of_time_keeps_its_rows_and_ends_with_all_it_started(tmp_path: Path) -> None:
    parts = [Part("hanging_part", "hanging_part", 20), Part("sound_part", "sound_part", 60)]
    result = run_parts(parts, GIVEN, tmp_path / "gpu.json")
    hanging, sound = result["parts"]
    assert (hanging["status"], sound["status"]) == ("timed out", "done")
    pid = hanging["rows"][1]["figures"]["pid"]
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.usefixtures("_parts")
def test_the_file_is_json_of_what_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run_named(tmp_path, "sound_part")

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    stored = json.loads((tmp_path / "gpu.json").read_text(), parse_constant=refuse)
    assert stored["parts"][0]["rows"][0]["figures"] == {"figure": 1.5, "nothing": None, "infinite": "inf"}
    assert stored["parts"][0]["rows"][0]["goals"] == {"figure": {"goal": "<= 1", "met": False}}
    assert stored["parts"][0]["settings"] == {"device": "cpu", "size": "tiny", "seed": 3}
    assert stored["environment"]["versions"]["torch"] == result["environment"]["versions"]["torch"]
    assert stored["given"] == GIVEN
    show(stored)
    assert "figure 1.5, infinite inf" in capsys.readouterr().out


@pytest.mark.usefixtures("_parts")
@pytest.mark.parametrize("content", ["notes of mine", '{"format": "another"}', "[1]"])
def test_a_file_that_is_none_of_the_benchmarks_is_kept(tmp_path: Path, content: str) -> None:
    (tmp_path / "gpu.json").write_text(content)
    with pytest.raises(FileExistsError, match=r"gpu\.json is no result of this benchmark"):
        run_named(tmp_path, "sound_part")
    assert (tmp_path / "gpu.json").read_text() == content


def test_the_limits_leave_room_in_ten_minutes() -> None:
    assert sum(part.seconds for part in PARTS) <= 595


@pytest.mark.parametrize("shape", [TINY, SMALL])
def test_the_flops_of_a_gradient_are_those_that_torch_counts(shape: Mapping[str, Any]) -> None:
    rows, length = 3, 16
    model = build_llama(shape, "cpu", attention="eager")
    ids = torch.zeros((rows, length), dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, use_cache=False).logits.sum().backward()
    # The first block's input needs no gradient, and rotary embeddings are small products that PaLM does not count.
    counted = counter.get_total_flops()
    assert gradient_flops(shape, rows * length, length) == pytest.approx(counted, rel=0.02)


def test_only_the_weights_that_tokens_are_multiplied_by_count() -> None:
    # Llama-3.2-1B has 1.236 billion weights with tied embeddings. Llama-3.1-8B has 8.03 billion, of which 525 million
    # are embeddings that are only read.
    assert multiplied_weights(LLAMA_1B) == pytest.approx(1.236e9, rel=1e-3)
    assert multiplied_weights(LLAMA_8B) == pytest.approx(8.030e9 - 0.525e9, rel=1e-3)


@pytest.mark.parametrize(
    ("card", "bf16"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10G", 125e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("Tesla V100-SXM2-16GB", None),
        ("A card of next year", None),
        (None, None),
    ],
)
def test_the_peak_is_that_of_the_card(card: str | None, bf16: float | None) -> None:
    assert peak_flops(card, "bf16") == bf16


def test_differences_are_relative_to_the_expected_run() -> None:
    def outcome(loss: float, end: list[float]) -> RunOutcome:
        start = {"weight": torch.tensor([1.0, 1.0]), "still": torch.tensor([2.0])}
        ended = {"weight": torch.tensor(end), "still": torch.tensor([2.0])}
        return RunOutcome(
            records=[{"outer_step": 1, "forget_loss": loss, "retain_loss": None, "hinge_open": True}],
            gradient_evaluations=1, forward_evaluations=0, tokens=1, start=start, parameters=ended,
            start_buffers={}, buffers={}, parameter_norm=1.0,
        )  # fmt: skip

    wanted = outcome(4.0, [1.0, 3.0])
    assert differences(wanted, wanted) == {"losses": 0.0, "weights": 0.0}
    assert differences(outcome(5.0, [1.5, 3.0]), wanted) == {"losses": 0.25, "weights": 0.25}


@pytest.mark.slow
def test_a_case_without_deepspeed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)

    def measure() -> dict[str, float]:
        need_deepspeed()
        raise AssertionError("the case ran")

    row = case_row("ZeRO 3", measure, goals={"losses": ("<=", 1.0)})
    assert (row.skipped, row.failed, row.goals) == ("DeepSpeed is not installed", None, {})


@pytest.mark.slow
def test_a_case_that_raises_is_a_row_of_its_own() -> None:
    def measure() -> dict[str, float]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB\nmore")

    assert case_row("8B", measure).failed == "OutOfMemoryError: CUDA out of memory. Tried to allocate 20 GiB"


@pytest.mark.long
@pytest.mark.timeout(900)
def test_without_a_card_every_part_runs_tiny_shapes_on_the_cpu(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    command = [sys.executable, str(ROOT / "tests" / "bench" / "gpu"), "--device", "cpu", "--output", str(output)]
    done = subprocess.run([*command, "--patience", "8"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    parts = {part["name"]: part for part in json.loads(output.read_text())["parts"]}
    assert list(parts) == [part.name for part in PARTS]
    for part in parts.values():
        assert part["status"] == "done", part
        assert part["settings"] == {"device": "cpu", "size": "tiny", "seed": 0}
        assert any(row["figures"] for row in part["rows"])
        assert all(row["figures"] or row["skipped"] for row in part["rows"])
    for part in (parts["parity"], parts["products"]):
        goals = [goal["met"] for row in part["rows"] for goal in row["goals"].values()]
        assert goals
        assert all(goals), part
    steps = {row["case"]: row["figures"] for row in parts["full size"]["rows"]}
    assert len(steps) == 6
    assert all(figures["tokens/s"] > 0 and figures["bytes/parameter"] > 0 for figures in steps.values())
    # Central differences: g_f, g_r and four more inside; outside, the same at the point and at two displaced points.
    central = {case.split()[0]: figures["gradients"] for case, figures in steps.items() if "central" in case}
    assert central == {"inner": 6, "outer": 18}
    assert "there is no CUDA card" in done.stdout
    assert len(done.stdout.splitlines()) > sum(len(part["rows"]) for part in parts.values())
