from __future__ import annotations

from pathlib import Path

import pytest

from ofmu.cli.main import main


@pytest.mark.parametrize(
    "arguments",
    [
        ["unlearn", "quickstart", "--output"],
        ["evaluate", "a model", "--output"],
        ["export", "a run", "--pick", "knee", "--output"],
    ],
    ids=lambda words: words[0],
)
def test_a_uri_is_not_taken_for_a_folder(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "s3://bucket/run"]) == 2
    assert "--output" in (said := capsys.readouterr().err)
    assert "must be a folder" in said
    assert not list(tmp_path.iterdir())
