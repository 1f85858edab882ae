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
