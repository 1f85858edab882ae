"""``ofmu unlearn`` as a user types it: interrupted and repeated, and started by torchrun."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ofmu.cli import unlearn as command
from ofmu.cli.main import main
from ofmu.io.files import storage_errors


@pytest.fixture
def tiny(tmp_path: Path, tiny_mapping: dict[str, Any]) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_mapping))
    return path


def steps_in(output: str) -> list[str]:
    return [line.split(":")[0] for line in output.splitlines() if line.startswith("outer step")]


@pytest.mark.slow
def test_an_interrupted_run_prints_how_to_continue_and_continues(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(printer: command.StepPrinter, record: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    arguments = ["unlearn", str(tiny), "--output", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr(command.StepPrinter, "__call__", interrupt)
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
    assert stopped.value.code == 130
    errors = capsys.readouterr().err
    assert (
        errors
        == f"Interrupted: the same command, with --output {tmp_path / 'run'}, continues from the last checkpoint\n"
    )
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert steps_in(output) == ["outer step 2", "outer step 3"]
    columns = {line.split()[0]: line.split()[1:] for line in output.splitlines() if line}
    assert columns["metric"] == ["value", "target", "retrained"]
    assert float(columns["ks_statistic"][1]) > float(columns["ks_statistic"][2]) == 0
    complete = f"The run in {tmp_path / 'run'} was already complete: nothing was run"
    assert complete not in output
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.name != "report.html"}
    assert main(arguments) == 0
    again = capsys.readouterr().out
    assert complete in again
    assert steps_in(again) == []
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(
    ("entries", "end"),
    [([], "no checkpoint is written yet"), (["cluster.checkpoint_every=0"], "cluster.checkpoint_every is 0")],
)
def test_a_run_that_is_interrupted_before_its_first_checkpoint_says_so(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    entries: list[str],
    end: str,
) -> None:
    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_run_locked", interrupt)
    with pytest.raises(SystemExit) as stopped:
        main(["unlearn", str(tiny), *entries, "--output", str(tmp_path / "run")])
    assert stopped.value.code == 130
    assert capsys.readouterr().err.endswith(
        f"begins with the first round, since {end}; what is prepared stays in the cache\n"
    )


@pytest.mark.parametrize(("number", "continues"), [(errno.ENOSPC, True), (errno.EROFS, False)])
def test_a_full_disk_is_told_that_the_same_command_continues(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    continues: bool,
) -> None:
    def fail(*arguments: Any) -> None:
        with storage_errors(tmp_path / "run"):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(command, "_run_locked", fail)
    assert main(["unlearn", str(tiny), "--output", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    end = f"free some space there; then the same command, with --output {tmp_path / 'run'}, begins with the first round"
    assert (end in error) == continues
    assert error.count("Cannot write") == 1


@pytest.mark.slow
def test_too_few_steps_are_named_at_the_start_and_beside_the_loss(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The utility of a model as small as this one's says nothing.
    monkeypatch.setattr("ofmu.reports.verdict.great_loss", lambda metrics, target: "keeps 4 % of the model_utility")
    few = ["method.inner_lr=null", "method.outer_steps=1", "method.inner_lr_scale=20"]
    assert main(["unlearn", str(tiny), *few, "--output", str(tmp_path / "run")]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "Each inner step covers 2000%" in line]
    assert [line.partition(" Each")[0] for line in lines] == [
        "Warning:",
        "Warning: this model keeps 4 % of the model_utility: ofmu search finds settings that keep more, if there are "
        "any.",
    ]


def test_diagnostics_with_gaps_are_announced_once(capsys: pytest.CaptureFixture[str]) -> None:
    printer = command.StepPrinter("ofmu", every=10)
    whole = {"forget_loss": 1.0, "retain_loss": 0.5, "similarity": 0.1, "phi_norm": 2.0, "gradient_evaluations": 4}
    gaps = whole | {"forget_loss": None, "similarity": None, "phi_norm": None}
    for step in range(1, 13):
        printer({"outer_step": step} | (whole if step in (1, 11) else gaps))
    lines = capsys.readouterr().out.splitlines()
    notice = "forget loss, similarity, ‖∇Φ‖: every 10 outer steps (method.diagnostics_every), and at the last one"
    assert [number for number, line in enumerate(lines) if line == notice] == [1]
    assert lines[0] == (
        "outer step 1: forget loss 1, retain loss 0.5, similarity +0.100, ‖∇Φ‖ 2, 4 gradient evaluations"
    )
    assert lines[2] == "outer step 2: retain loss 0.5, 4 gradient evaluations"
    assert len(lines) == 13
    # A method that never records them, and a run that always does, have no gaps.
    for every, record in ((None, {"retain_loss": 0.5, "similarity": None}), (10, whole)):
        printer = command.StepPrinter("ofmu", every)
        for step in (1, 2):
            printer({"outer_step": step} | record)
    assert len(capsys.readouterr().out.splitlines()) == 4
    command.StepPrinter("npo", None)({"outer_step": 5, "forget_loss": 0.65, "direction_norm": 1.0})
    assert capsys.readouterr().out == "round 5: npo's forget loss 0.65, ‖direction‖ 1\n"


@pytest.mark.ranks
@pytest.mark.timeout(180)
def test_under_torchrun_one_rank_prints(tiny: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    arguments = ["-m", "ofmu", "unlearn", str(tiny), "method.outer_steps=1", "--output", str(tmp_path / "run")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, *arguments], env=environment, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    assert steps_in(done.stdout) == ["outer step 1"]
    for start in ("ks_statistic ", "model utility is the harmonic mean of", "the model is in"):
        assert len([line for line in done.stdout.splitlines() if line.startswith(start)]) == 1, done.stdout
