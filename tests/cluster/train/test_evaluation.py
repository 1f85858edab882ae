"""An evaluation in a real worker group gives what one process measures, and one rank writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.config import ClusterConfig
from cluster.train.evaluation import evaluations
from group_runs import wait_for_free_cpus
from ofmu import evaluator
from ofmu.config.files import validate
from ofmu.errors import ModelError
from ofmu.preparer import prepare
from ofmu.run_config import UnlearnConfig, override

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

TWO = ClusterConfig(num_workers=2, max_failures=1)


@pytest.fixture(scope="module", autouse=True)
def cluster(two_cpus_with_dashboard: None) -> Iterator[None]:
    yield
    wait_for_free_cpus(2)


def test_workers_measure_what_one_process_measures(
    tiny_mapping: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attacks = "evaluation.attacks=[quantization_8,few_shot]"
    keys = ["engine.zero_stage=3", f"cache_dir={tmp_path / 'cache'}", attacks]
    config = validate(UnlearnConfig, override(tiny_mapping, keys))
    prepared = prepare(config)
    target, reference = str(prepared.target), str(prepared.reference_scores)
    with evaluations(config, ClusterConfig()) as evaluate:
        alone = evaluate(target, config, reference=reference, output_dir=tmp_path / "alone")
    monkeypatch.setattr(evaluator, "evaluate", None)  # the driver must not load the model
    with evaluations(config, TWO) as evaluate:
        together = evaluate(target, config, reference=reference, output_dir=tmp_path / "together")
        with pytest.raises(ModelError, match="There is no model directory"):
            evaluate(str(tmp_path / "gone"), config, reference=None, output_dir=tmp_path / "gone-scored")
    assert together["metrics"].keys() == alone["metrics"].keys()
    assert together["metrics"]["quantization_8_forget_probability"] is not None
    for name, value in alone["metrics"].items():
        assert together["metrics"][name] == pytest.approx(value, rel=1e-3, abs=1e-4), name
    files = sorted(path.name for path in (tmp_path / "together").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "alone").iterdir())
    assert not [path for path in (tmp_path / "cache").iterdir() if path.name.startswith(".workers")]
