"""Real runs that an archive on disk decides about, one after the other and without Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ofmu import UnlearnConfig, unlearn
from ofmu.config.files import validate
from ofmu.errors import PrunedError
from ofmu.preparer import prepare
from ofmu.round_decision import StopAfterRound
from ofmu.run_config import override
from tune.checkpoint_selection.callback import CheckpointSelection
from tune.checkpoint_selection.config import CheckpointSelectionConfig
from tune.checkpoint_selection.service import PersistentRoundArchive
from tune.space.constraints import Limit

OBJECTIVES = {"ks_statistic": "min", "model_utility": "max"}
pytestmark = pytest.mark.slow


def config_of(mapping: dict[str, Any], *overrides: str) -> UnlearnConfig:
    fixed = ("engine.backend=torch", "method.inner_steps=1", "method.outer_steps=4", *overrides)
    return validate(UnlearnConfig, override(mapping, list(fixed)))


def selection_in(folder: Path, limits: tuple[Limit, ...] = (), margin: float | None = 0.0) -> CheckpointSelection:
    settings = CheckpointSelectionConfig(enabled=True, rows=4, stop_margin=margin)
    archive = PersistentRoundArchive(folder / "rounds.jsonl", OBJECTIVES, margin)  # type: ignore[arg-type]
    return CheckpointSelection(settings, tuple(OBJECTIVES), limits, archive)


def test_a_trial_that_breaks_a_bound_stands_for_the_round_that_kept_it(tiny_mapping, tmp_path):
    """The bound lies between the utilities of two rounds, so that the run breaks it on its way."""
    config = config_of(tiny_mapping, "method.inner_lr=0.3", "method.outer_lr=0.000001")
    prepared = prepare(config)
    free = selection_in(tmp_path, margin=None)
    unlearn(config, tmp_path / "free", prepared=prepared, round_callback=free.callback_for(0))
    lines = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    utilities = {line["round"]: line["values"]["model_utility"] for line in lines if "round" in line}
    assert set(utilities) == {1, 2, 3, 4}
    assert utilities[1] > max(utilities[2], utilities[3]), "the run must lose utility, or the bound breaks nothing"
    bound = (utilities[1] + max(utilities[2], utilities[3])) / 2
    (tmp_path / "bounded").mkdir()
    bounded = selection_in(tmp_path / "bounded", (Limit("model_utility", "min", bound),), margin=None)
    result = unlearn(config, tmp_path / "run", prepared=prepared, round_callback=bounded.callback_for(0))
    alone = unlearn(config, tmp_path / "alone", prepared=prepared, round_callback=StopAfterRound(1))
    assert result.metrics["selected_round"] == 1
    for name in OBJECTIVES:
        assert result.metrics[name] == alone.metrics[name]
    assert (tmp_path / "run" / "scores.json").read_bytes() == (tmp_path / "alone" / "scores.json").read_bytes()


def test_a_trial_that_repeats_another_ends_at_its_first_scored_round(tiny_mapping, tmp_path):
    config = config_of(tiny_mapping)
    prepared = prepare(config)
    first = unlearn(
        config, tmp_path / "0", prepared=prepared, round_callback=selection_in(tmp_path).callback_for(0)
    ).metrics
    again = selection_in(tmp_path)
    assert unlearn(config, tmp_path / "0", prepared=prepared).metrics == first
    selected = int(first["selected_round"] or 0)
    with pytest.raises(PrunedError) as caught:
        unlearn(config, tmp_path / "1", prepared=prepared, round_callback=again.callback_for(1))
    assert caught.value.record.round <= max(selected, 1)
    assert not (tmp_path / "1" / "model").exists()
