"""Errors of a user: one sentence on standard error, a non-zero exit status, no traceback, and no lost files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from ofmu.cli.main import main
from ofmu.errors import RunError
from ofmu.models.language import load_model
from ofmu.preparer import prepare
from ofmu.run_config import UnlearnConfig
from ofmu.tasks.preparation import Prepared
from ofmu.trainer import unlearn

pytestmark = pytest.mark.timeout(120)

ROWS = [{"question": f"Who wrote book {number}?", "answer": f"Author {number} did."} for number in range(6)]
NOBODY = "127.0.0.1:9"
"""An address where no Ray listens: the discard port."""

ErrorOf = Callable[..., str]


@pytest.fixture
def error_of(capsys: pytest.CaptureFixture[str]) -> ErrorOf:
    """Return a function that runs the command line, checks that it fails, and returns the sentence that it prints."""

    def call(*arguments: object) -> str:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        output, errors = capsys.readouterr()
        assert status == 1, (output, errors)
        return sentence_of(errors)

    return call


def sentence_of(errors: str) -> str:
    """Return the text after ``Error: ``. Check that there is nothing else but warnings and the config that is read."""
    assert "Traceback" not in errors
    beside = ("Warning: ", "config: ")
    lines = [line for line in errors.splitlines() if line.strip() and not line.startswith(beside)]
    assert len(lines) == 1, errors
    assert lines[0].startswith("Error: ")
    return lines[0].removeprefix("Error: ")


@pytest.fixture(scope="module")
def prepared(tiny_config: UnlearnConfig) -> Prepared:
    """The tiny config's target and reference. All tests share their cache."""
    return prepare(tiny_config)


@pytest.fixture
def tiny(tmp_path: Path, tiny_mapping: dict[str, Any]) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_mapping))
    return path


def write_rows(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def files(tmp_path: Path, tiny_mapping: dict[str, Any]) -> Path:
    """A config with the user's own rows: two to forget and four to retain."""
    forget, retain = tmp_path / "forget.jsonl", tmp_path / "retain.jsonl"
    write_rows(forget, ROWS[:2])
    write_rows(retain, ROWS[2:])
    mapping = {**tiny_mapping, "data": {"source": "files", "forget": str(forget), "retain": str(retain)}}
    path = tmp_path / "files.yaml"
    path.write_text(yaml.safe_dump({**mapping, "cache_dir": str(tmp_path / "cache")}))
    return path


def test_a_missing_file(error_of, files, tmp_path):
    (tmp_path / "forget.jsonl").unlink()
    for arguments in (["prepare", files], ["unlearn", files, "--output", tmp_path / "run"]):
        assert f"There is no data file {tmp_path / 'forget.jsonl'}" in error_of(*arguments)
    assert not (tmp_path / "run").exists()


def test_a_missing_config(error_of, tmp_path):
    for command in ("prepare", "search"):
        assert f"Cannot read the config {tmp_path / 'gone.yaml'}" in error_of(command, tmp_path / "gone.yaml")


def test_a_wrong_column(error_of, files, tmp_path):
    renamed = [{"questoin": row["question"], "answer": row["answer"]} for row in ROWS[2:]]
    write_rows(tmp_path / "retain.jsonl", renamed)
    sentence = error_of("unlearn", files, "--output", tmp_path / "run")
    assert "retain.jsonl has no column 'question'" in sentence
    assert "did you mean 'questoin'?" in sentence
    assert not (tmp_path / "run").exists()


def test_an_empty_forget_set(error_of, files, tmp_path):
    write_rows(tmp_path / "forget.jsonl", [])
    assert "The forget set is empty" in error_of("unlearn", files, "--output", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_overlapping_rows(error_of, files, tmp_path):
    again = {"question": ROWS[1]["question"].upper(), "answer": ROWS[1]["answer"]}
    write_rows(tmp_path / "retain.jsonl", [*ROWS[2:], again])
    sentence = error_of("unlearn", files, "--output", tmp_path / "run")
    assert "A forget row is also in the retain set" in sentence
    assert "Who wrote book 1" not in sentence
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("method.inner_step=3", ["'method.inner_step'", "did you mean 'method.inner_steps'?"]),
        ("metod.inner_steps=3", ["'metod'", "did you mean 'method'?"]),
        ("cluster.num_worker=2", ["'cluster.num_worker'", "did you mean 'cluster.num_workers'?"]),
        ("engine.zero_stage=4", ["'engine.zero_stage'", "4", "at most 3 or 'auto'"]),
        ("method.inner_lr=-1", ["'method.inner_lr'", "-1", "greater than 0"]),
        ("method.inner_lr=.nan", ["'method.inner_lr'", "nan"]),
        ("engine.precision=fp8", ["'engine.precision'", "'fp8'", "'fp32' or 'bf16'"]),
        ("method.inner_steps=many", ["'method.inner_steps'", "'many'", "a whole number"]),
        ("method.inner_steps", ["'method.inner_steps'", "section.key=value"]),
    ],
)
def test_an_unknown_key_or_a_value_out_of_range(error_of, tiny, tmp_path, override, words):
    for arguments in (["unlearn", tiny, override, "--output"], ["search", tiny, override, "--run-dir"]):
        sentence = error_of(*arguments, tmp_path / "run")
        assert [word for word in words if word not in sentence] == []
    assert not (tmp_path / "run").exists()


def test_a_model_directory_without_tokenizer(error_of, prepared, tiny, tmp_path):
    load_model(prepared.target).save_pretrained(tmp_path / "bare")
    for arguments in (
        ["evaluate", tmp_path / "bare", tiny],
        ["unlearn", tiny, f"model.path={tmp_path / 'bare'}", "--output", tmp_path / "run"],
    ):
        assert f"'{tmp_path / 'bare'}' has no tokenizer" in error_of(*arguments)
    assert not (tmp_path / "run").exists()


def test_a_model_directory_that_is_not_there(error_of, tiny, tmp_path):
    sentence = error_of("evaluate", tmp_path / "gone", tiny)
    assert f"There is no model directory {tmp_path / 'gone'}" in sentence


@pytest.mark.slow
def test_an_official_reference_for_other_rows(error_of, prepared, shared_data, tmp_path):
    log = shared_data / "tofu_official_logs" / "llama2-7b_retain95.json"
    data = ["data.source=tofu", f"data.path={shared_data / 'tofu'}", "data.split=forget10"]
    sentence = error_of("evaluate", prepared.target, *data, "--reference", log, "--output", tmp_path / "scores")
    assert str(log) in sentence
    assert "the reference covers 200 forget rows and the model 400" in sentence
    assert not (tmp_path / "scores").exists()


def test_our_own_reference_for_other_rows(error_of, prepared, tiny, tmp_path):
    reference = prepared.reference_scores
    arguments = ["seed=1", "reference.source=scores", f"reference.path={reference}"]
    for command in (["evaluate", prepared.target, tiny], ["unlearn", tiny, "--output", tmp_path / "run"]):
        sentence = error_of(*command, *arguments)
        assert "cannot be compared" in sentence
        assert "forget row 1" in sentence
    assert not (tmp_path / "run").exists()


def test_a_reference_under_another_definition(error_of, prepared, tiny):
    override = "evaluation.truth_ratio=arithmetic"
    sentence = error_of("evaluate", prepared.target, tiny, override, "--reference", prepared.reference_scores)
    assert "the reference's truth ratio is geometric and the model's arithmetic" in sentence


def test_a_directory_that_is_not_a_run(error_of, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text("seed: 0\n")
    target = ("--output", tmp_path / "model")
    for arguments in (["search", "--resume"], ["report"], ["export", *target]):
        assert "is not the directory of a search" in error_of(*arguments, tmp_path / "other")
        assert "There is no run directory" in error_of(*arguments, tmp_path / "gone")
    assert [path.name for path in tmp_path.rglob("*")] == ["other", "config.yaml"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["search", "compare"])
def test_the_directory_of_a_search_or_a_comparison(kind, error_of, tiny, tmp_path):
    assert main(["unlearn", str(tiny), "method.outer_steps=0", "--output", str(tmp_path / "run")]) == 0
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text() + f"{kind}: {{}}\n")
    sentence = error_of("unlearn", tiny, "--output", tmp_path / "run")
    assert f"{tmp_path / 'run'} holds a {'search' if kind == 'search' else 'comparison'}: name another" in sentence
    assert "delete" not in sentence


def test_a_file_without_rows_is_named(error_of, files, tmp_path):
    (tmp_path / "forget.jsonl").write_text("")
    assert f"({tmp_path / 'forget.jsonl'} holds no row)" in error_of("prepare", files)


@pytest.mark.slow
def test_a_run_under_another_config(error_of, tiny, tmp_path):
    assert main(["unlearn", str(tiny), "method.outer_steps=0", "--output", str(tmp_path / "run")]) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    sentence = error_of("unlearn", tiny, "method.outer_steps=1", "--output", tmp_path / "run")
    assert f"{tmp_path / 'run'} holds a run under another config, which differs in method.outer_steps: name" in sentence
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_an_output_that_is_a_file(error_of, tiny, prepared, tmp_path):
    (tmp_path / "taken").write_text("mine")
    for arguments in (["unlearn", tiny, "--output"], ["evaluate", prepared.target, tiny, "--output"]):
        sentence = error_of(*arguments, tmp_path / "taken")
        assert str(tmp_path / "taken") in sentence
        assert "free some space" not in sentence
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.slow
def test_a_nan_loss_ends_a_run(error_of, tiny, tmp_path):
    sentence = error_of("unlearn", tiny, "method.inner_lr=1e30", "--output", tmp_path / "run")
    assert "Outer step 1 of 3 failed" in sentence
    assert "lower method.inner_lr" in sentence
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_an_address_without_a_cluster(error_of, tiny, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    place = ["cluster.num_workers=1", f"cache_dir={tmp_path / 'cache'}"]
    for arguments in (["search", tiny, "--run-dir"], ["unlearn", tiny, "--output"]):
        sentence = error_of(*arguments, tmp_path / "run", f"cluster.address={NOBODY}", *place)
        assert f"Nothing answers as a Ray cluster at the address '{NOBODY}'" in sentence
        with monkeypatch.context() as patch:
            patch.setenv("RAY_ADDRESS", NOBODY)
            assert NOBODY in error_of(*arguments, tmp_path / "run", *place)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "cache").exists(), "models were trained before the address was tried"


@pytest.mark.cluster
def test_more_workers_than_the_cluster_has(two_cpus, error_of, tiny, tmp_path):
    place = ["cluster.num_workers=3", f"cache_dir={tmp_path / 'cache'}"]
    for arguments in (["search", tiny, "--run-dir"], ["unlearn", tiny, "--output"]):
        sentence = error_of(*arguments, tmp_path / "run", *place)
        assert "One trial needs 3 CPUs (3 workers of 1), but the Ray cluster has 2" in sentence
        assert "lower cluster.num_workers" in sentence
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "cache").exists(), "models were trained before the cluster was measured"


@pytest.mark.cluster
def test_a_nan_loss_fails_its_trial_and_the_search_goes_on(two_cpus, prepared, tiny, tmp_path, capsys):
    searched = [
        "search.num_trials=4", "search.max_concurrent_trials=1", "search.space={method.inner_lr: [1.0e+30]}",
        "search.baselines=[target,published]",
    ]  # fmt: skip
    assert main(["search", str(tiny), *searched, "--run-dir", str(tmp_path / "run")]) == 0
    output, errors = capsys.readouterr()
    assert "2 trials complete, 2 failed" in output
    assert "Traceback" not in output + errors
    trials = pd.read_csv(tmp_path / "run" / "trials.csv")
    assert trials["state"].tolist() == ["complete", "complete", "failed", "failed"]
    assert trials["reason"].str.contains("lower method.inner_lr").tolist()[2:] == [True, True]
    assert set(pd.read_csv(tmp_path / "run" / "front.csv")["trial"]) <= {0, 1}


@pytest.mark.cluster
def test_an_objective_that_the_data_cannot_give_is_refused_before_any_trial(
    two_cpus, prepared, tiny, tmp_path, error_of
):
    objectives = "search.objectives={retain_rouge: max, gradient_evaluations: min}"
    settings = [objectives, "evaluation.rouge=false", "search.num_trials=2", "search.max_concurrent_trials=1"]
    sentence = error_of("search", tiny, *settings, "--run-dir", tmp_path / "run")
    assert "The objective 'retain_rouge' cannot be computed on this data" in sentence
    assert "evaluation.rouge is false" in sentence
    assert "name others in search.objectives" in sentence
    assert not (tmp_path / "run").exists()


@pytest.mark.cluster
def test_a_search_without_a_complete_trial_names_the_reason_that_all_trials_share(
    two_cpus, prepared, tiny, tmp_path, error_of, monkeypatch
):
    def fail(config: Any, cluster: Any, trial_dir: Path, prepared: Any) -> dict[str, float]:
        raise RunError("no model could be made: fix it")

    # The real executor would complete at least the untouched target.
    monkeypatch.setattr("cluster.train.trainer.run_trial", fail)
    settings = ["search.num_trials=2", "search.max_concurrent_trials=1"]
    sentence = error_of("search", tiny, *settings, "--run-dir", tmp_path / "run")
    assert (
        f"No trial of {tmp_path / 'run'} is complete, and all failed for this reason: no model could be made"
        in sentence
    )
    trials = pd.read_csv(tmp_path / "run" / "trials.csv")
    assert trials["state"].tolist() == ["failed", "failed"]
    assert trials["reason"].tolist() == ["no model could be made: fix it"] * 2


FULL_DISK = """
mount -t tmpfs -o size=32m tmpfs "$DISK" || exit 77
head -c $((32 * 1024 * 1024 - ROOM)) /dev/zero > "$DISK/filler" || exit 77
"$PYTHON" -m ofmu unlearn "$CONFIG" --output "$DISK/run" > first.out 2> first.err; echo $? > first.status
ls "$DISK/run/checkpoints" > first.checkpoints
rm "$DISK/filler"
"$PYTHON" -m ofmu unlearn "$CONFIG" --output "$DISK/run" > second.out 2> second.err; echo $? > second.status
cp "$DISK/run/metrics.json" "$DISK/run/history.jsonl" .
"""
"""Runs on an almost full disk of 32 MiB, which only these processes see, and then again with enough space."""


@pytest.mark.slow
def test_a_full_disk_while_checkpointing(prepared, tiny, tiny_config, tmp_path):
    disk, outside = tmp_path / "disk", tmp_path / "outside"
    disk.mkdir()
    # The parameters, and two moments of AdamW in each loop. One checkpoint fits, and half of the next.
    checkpoint = 5 * (prepared.target / "model.safetensors").stat().st_size
    environment = os.environ | {
        "DISK": str(disk),
        "ROOM": str(checkpoint * 3 // 2 + 65536),
        "CONFIG": str(tiny),
        "PYTHON": sys.executable,
    }
    isolated = ["unshare", "--user", "--map-root-user", "--mount"]
    probe = subprocess.run([*isolated, "mount", "-t", "tmpfs", "tmpfs", str(disk)], capture_output=True, check=False)
    if probe.returncode != 0:
        pytest.skip("a disk of its own cannot be mounted here: unshare --user --mount is not permitted")
    subprocess.run([*isolated, "bash", "-c", FULL_DISK], cwd=tmp_path, env=environment, check=True, timeout=100)

    assert (tmp_path / "first.status").read_text() == "1\n"
    sentence = sentence_of((tmp_path / "first.err").read_text())
    assert str(disk / "run") in sentence
    assert "No space left on device" in sentence
    assert "free some space there" in sentence
    assert (tmp_path / "first.checkpoints").read_text() == "step_000001\n"

    assert (tmp_path / "second.status").read_text() == "0\n", (tmp_path / "second.err").read_text()
    steps = [line for line in (tmp_path / "second.out").read_text().splitlines() if line.startswith("outer step")]
    assert [line.split(":")[0] for line in steps] == ["outer step 2", "outer step 3"]
    continued = json.loads((tmp_path / "metrics.json").read_text())["metrics"]
    undisturbed = unlearn(tiny_config, outside, prepared=prepared).metrics
    for name in ("ks_statistic", "model_utility", "gradient_evaluations", "outer_steps_taken"):
        assert continued[name] == pytest.approx(undisturbed[name], rel=1e-6), name
    numbers = [json.loads(line)["outer_step"] for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert numbers == [1, 2, 3]
