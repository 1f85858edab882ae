from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from ofmu.errors import DataError
from tune import round_decider as module
from tune.config import SearchConfig, search_config
from tune.rundir.search_dir import RunDirectory

OBJECTIVES = {"ks_statistic": "min", "model_utility": "max"}


def config_of(mapping: dict[str, Any], section: str) -> SearchConfig:
    return search_config({**mapping, "search": {"objectives": OBJECTIVES, section: {"enabled": True}}})


@pytest.mark.parametrize(
    ("section", "file"), [("early_stopping", "rungs.jsonl"), ("checkpoint_selection", "rounds.jsonl")]
)
def test_a_malformed_log_stops_the_search_before_an_actor_starts(
    tiny_mapping: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: str, file: str
) -> None:
    """An actor would read the log in another process, where its error fails every trial that calls the actor."""

    def start(*arguments: object) -> None:
        pytest.fail("an actor was started")

    monkeypatch.setattr(module, "start_scheduler_actor", start)
    monkeypatch.setattr(module, "start_archive_actor", start)
    (tmp_path / file).write_text("nonsense\n")
    config, study = config_of(tiny_mapping, section), optuna.create_study(directions=["minimize", "maximize"])
    local = RunDirectory(tmp_path)
    for run, shown in (
        (local, tmp_path / file),
        (replace(local, uri="s3://me:hush@bucket/x"), f"s3://bucket/x/{file}"),
    ):
        with pytest.raises(DataError) as refused, module.round_decider(run, study, config):
            pass
        assert str(refused.value).startswith(f"{shown} is malformed in line 1: delete the file")
