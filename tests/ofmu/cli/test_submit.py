"""What ``ofmu submit`` refuses before it reaches a cluster."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from ofmu.cli.submit import submit_command
from ofmu.errors import ConfigError


@pytest.mark.parametrize(
    "words",
    [
        ["search", "mine.yaml", "--run-dir", "s3://key:hush@bucket/run"],
        ["search", "mine.yaml", "--run-dir=s3://bucket/run?secret_key=hush"],
        ["search", "mine.yaml", "--output", "s3://key:hush@bucket/run"],
        ["search", "mine.yaml", "search.warm_start=s3://key:hush@bucket/old"],
        ["export", "s3://key:hush@bucket/run", "--output", "/shared/model"],
    ],
)
def test_credentials_in_the_jobs_command_are_refused_and_not_repeated(words):
    error = CliRunner().invoke(submit_command, ["--address", "http://127.0.0.1:1", "--", *words]).exception
    assert isinstance(error, ConfigError)
    assert "stand in clear in the job's table" in str(error)
    assert "s3://bucket/" in str(error)
    assert "hush" not in str(error)


@pytest.mark.parametrize("command", [["search", "mine.yaml"], ["search"], ["search", "quickstart"]])
def test_a_misspelt_key_is_named_before_a_file_that_is_not_uploaded(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model.safetensors").write_text("")
    (tmp_path / "mine.yaml").write_text("model: {path: weights, is_target: true}\nsearch: {num_trials: 4}\n")
    words = ["--dry-run", "--", *command, "search.num_trails=2", "--run-dir", "/shared/run"]
    error = CliRunner().invoke(submit_command, words).exception
    assert isinstance(error, ConfigError)
    assert str(error) == "Unknown config key 'search.num_trails': did you mean 'search.num_trials'?"


def test_a_request_is_no_job() -> None:
    error = CliRunner().invoke(submit_command, ["--dry-run", "--", "forget", "model"]).exception
    assert isinstance(error, ConfigError)
    assert "cluster.address=auto" in str(error)


def test_settings_that_the_command_does_not_read_are_not_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("search: {num_trails: 4}\nmethod: {module: theirs, name: own}\n")
    for words in (["unlearn", "mine.yaml", "--output", "/shared/one"], ["search", "--resume", "/shared/run"]):
        found = CliRunner().invoke(submit_command, ["--dry-run", "--", *words])
        assert found.exit_code == 0, found.output
