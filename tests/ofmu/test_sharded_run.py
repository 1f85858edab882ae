"""A whole run under ZeRO-3, in which no rank ever holds a whole model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from fixed_weight_models import differing, fixed_names, write_source
from ofmu import UnlearnConfig, unlearn
from ofmu.config.files import validate
from ofmu.models.language import load_model
from ofmu.preparer import prepare
from ofmu.run_config import override
from ofmu.testing import run_script_on_ranks

RUN = Path(__file__).resolve().parents[1] / "helpers" / "sharded_run.py"


@pytest.mark.ranks
@pytest.mark.timeout(250)
def test_a_sharded_run_ends_with_the_model_and_the_scores_of_one_process(
    tiny_mapping: dict[str, Any], tmp_path: Path
) -> None:
    # The moments of AdamW turn rounding errors of tiny gradients into whole steps, so the runs use plain descent.
    overrides = ("engine.zero_stage=3", "method.name=simnpo", "method.steps=3", "method.update=sgd", "method.lr=0.1")
    config = validate(UnlearnConfig, override(tiny_mapping, overrides))
    prepared = prepare(config)
    alone = unlearn(config, tmp_path / "alone", prepared=prepared)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    run_script_on_ranks(RUN, 2, str(tmp_path))

    found = load_file(tmp_path / "ranks" / "model" / "model.safetensors")
    expected = load_file(alone.model_dir / "model.safetensors")
    before = load_file(prepared.target / "model.safetensors")
    assert found.keys() == expected.keys()
    moved = sum(float((expected[name] - before[name]).norm() ** 2) for name in expected) ** 0.5
    apart = sum(float((expected[name] - found[name]).norm() ** 2) for name in expected) ** 0.5
    assert apart < 1e-3 * moved
    files = {
        place: sorted(path.name for path in (tmp_path / place / "model").iterdir()) for place in ("alone", "ranks")
    }
    assert files["alone"] == files["ranks"]
    for name in files["alone"]:
        if name.endswith(".json"):
            assert (tmp_path / "ranks" / "model" / name).read_text() == (alone.model_dir / name).read_text()
    metrics = json.loads((tmp_path / "ranks" / "metrics.json").read_text())["metrics"]
    for name in ("forget_probability", "retain_probability"):
        assert metrics[name] == pytest.approx(alone.metrics[name], rel=1e-3)
    assert all(torch.isfinite(tensor).all() for tensor in found.values())


@pytest.mark.ranks
@pytest.mark.timeout(250)
def test_a_sharded_run_saves_the_targets_buffers_and_frozen_parameters(
    tiny_mapping: dict[str, Any], tmp_path: Path
) -> None:
    places = [tmp_path / kind for kind in ("gemma4_text", "pegasus")]
    for place in places:
        target = write_source(place.name, place / "target")
        overrides = (
            "engine.zero_stage=3", "method.name=simnpo", "method.steps=2", "method.lr=0.01", "model.is_target=true",
            f"model.path={target}", "reference.source=none",
        )  # fmt: skip
        config = validate(UnlearnConfig, override({**tiny_mapping, "model": {}}, overrides))
        (place / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    run_script_on_ranks(RUN, 2, *map(str, places))

    for place in places:
        target, saved = load_model(place / "target"), load_model(place / "ranks" / "model")
        moved = differing(saved.state_dict(), target.state_dict())
        assert fixed_names(target).isdisjoint(moved)
        assert len(moved) > len(target.state_dict()) / 2
        files = [load_file(folder / "model.safetensors") for folder in (place / "target", place / "ranks" / "model")]
        assert files[0].keys() == files[1].keys()
