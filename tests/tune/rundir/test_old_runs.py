from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from ofmu.cli.export import export_command
from ofmu.cli.report import report_command
from ofmu.cli.search import search_command
from ofmu.errors import RunError
from ofmu.io.environment import environment
from tune import AskTell, ParetoSearch, SearchResult
from tune.rundir.search_dir import RunDirectory


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A run directory as ofmu 0.1 left it."""
    run = tmp_path / "old"
    (run / "trials").mkdir(parents=True)
    (run / "config.yaml").write_text("method:\n  name: ofmu\n  forget_level: 1.5\n")
    (run / "environment.json").write_text(json.dumps(environment()))
    (run / "study.db").write_bytes(b"SQLite format 3\0")
    return run


def test_a_run_of_version_0_1_is_refused_with_what_to_do(old, tmp_path):
    sentence = (
        rf"{old} was written by ofmu 0\.1, .*study\.db.*: read or finish it with ofmu 0\.1, or start a new search"
    )
    for call in (ParetoSearch.resume, AskTell.resume, SearchResult.load):
        with pytest.raises(RunError, match=sentence):
            call(old)
    for command in (
        [search_command, "--resume", str(old)],
        [report_command, str(old)],
        [export_command, str(old), "--output", str(tmp_path / "model")],
    ):
        result = CliRunner().invoke(command[0], command[1:])
        assert isinstance(result.exception, RunError)
        assert "written by ofmu 0.1" in str(result.exception)
    with pytest.raises(RunError, match=sentence):
        AskTell({}, run_dir=tmp_path / "new", warm_start=old)
    assert sorted(path.name for path in old.iterdir()) == ["config.yaml", "environment.json", "study.db", "trials"]


@pytest.mark.parametrize("to_read", [True, False])
def test_a_run_of_version_0_1_at_a_uri_is_refused(old, tmp_path, monkeypatch, to_read):
    monkeypatch.setenv("OFMU_CACHE", str(tmp_path / "cache"))
    with pytest.raises(RunError, match=r"file://.*old was written by ofmu 0\.1"):
        RunDirectory.open_existing(f"file://{old}", to_read=to_read)


def test_a_run_with_both_files_is_read(old):
    (old / "study.log").touch()
    (old / "config.yaml").write_text("{}\n")
    with pytest.raises(RunError, match="holds no trial yet"):
        SearchResult.load(old)
