"""The registry knows every metric, says which way is better, and makes the table of the docs."""

from __future__ import annotations

from pathlib import Path

import pytest

from ofmu.errors import ConfigError
from ofmu.evaluation.metrics.registry import REGISTRY, markdown, metric
from ofmu.evaluation.metrics.summary import metrics_of
from ofmu.evaluation.robustness.alignment import SETS
from ofmu.evaluation.robustness.attacks import COMPARED
from ofmu.evaluation.scores import Scores
from tune.space.objectives import NEEDS_REFERENCE, WORST

DOCS = Path(__file__).parents[4] / "docs" / "metrics.md"


def test_the_docs_are_what_the_registry_prints() -> None:
    assert DOCS.read_text(encoding="utf-8") == markdown()


def test_every_metric_of_a_report_is_registered() -> None:
    asked = Scores(model="m", truth_ratio="geometric", sets={}, notes={"membership": "no", "in_scope": "no"})
    reported = set(metrics_of(asked).values)
    reported |= {f"alignment_{name}_{kind}" for name in SETS for kind in ("cka", "cosine")}
    reported |= {f"quantization_{bits}_{name}" for bits in (8, 4) for name in COMPARED}
    assert reported <= set(REGISTRY)
    assert len(reported) > 60


def test_objectives_of_searches_agree_with_the_registry() -> None:
    assert set(WORST) <= set(REGISTRY)
    assert {name: REGISTRY[name].worst for name in WORST} == WORST
    for name in NEEDS_REFERENCE:
        assert "reference scores" in REGISTRY[name].needs


def test_every_entry_is_whole() -> None:
    for name, one in REGISTRY.items():
        assert name == one.name
        assert one.meaning
        assert "|" not in one.meaning
        assert one.source == "this project" or "arXiv" in one.source
        assert (one.target is not None) == (one.direction == "target")


def test_an_unknown_metric_offers_the_nearest() -> None:
    assert metric("ks_statistic").worst == 1.0
    with pytest.raises(ConfigError, match="Unknown metric 'ks_statistics': did you mean 'ks_statistic'"):
        metric("ks_statistics")
