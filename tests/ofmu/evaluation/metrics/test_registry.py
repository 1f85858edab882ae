"""The registry holds every metric with its direction, and makes docs/metrics.md."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ofmu.errors import ConfigError
from ofmu.evaluation.metrics.registry import DEPTHS, REGISTRY, markdown, metric
from ofmu.evaluation.metrics.reliability import MEASURED_RELIABILITY
from ofmu.evaluation.metrics.summary import metrics_of
from ofmu.evaluation.robustness.alignment import ALIGNMENT_SETS
from ofmu.evaluation.robustness.attacks import COMPARED_METRICS
from ofmu.evaluation.scores import Scores
from tune.space.objectives import NEEDS_REFERENCE, WORST

DOCS = Path(__file__).parents[4] / "docs" / "metrics.md"


def test_the_docs_equal_the_output_of_the_registry() -> None:
    assert DOCS.read_text(encoding="utf-8") == markdown()


def test_every_metric_of_a_report_is_registered() -> None:
    scores = Scores(model="m", truth_ratio="geometric", sets={}, notes={"membership": "no", "in_scope": "no"})
    reported = set(metrics_of(scores).values)
    reported |= {f"alignment_{name}_{kind}" for name in ALIGNMENT_SETS for kind in ("cka", "cosine")}
    reported |= set(DEPTHS)
    reported |= {f"quantization_{bits}_{name}" for bits in (8, 4) for name in COMPARED_METRICS}
    assert reported <= set(REGISTRY)
    assert len(reported) > 60


def test_objectives_of_searches_agree_with_the_registry() -> None:
    assert set(WORST) <= set(REGISTRY)
    assert {name: REGISTRY[name].worst for name in WORST} == WORST
    for name in NEEDS_REFERENCE:
        assert "reference scores" in REGISTRY[name].needs


def test_every_entry_has_a_meaning_and_a_source() -> None:
    for name, info in REGISTRY.items():
        assert name == info.name
        assert info.meaning
        assert "|" not in info.meaning
        assert info.source == "this project" or "arXiv" in info.source
        assert (info.target is not None) == (info.direction == "target")


def test_an_unknown_metric_raises_with_the_nearest_name() -> None:
    assert metric("ks_statistic").worst == 1.0
    with pytest.raises(ConfigError, match="Unknown metric 'ks_statistics': did you mean 'ks_statistic'"):
        metric("ks_statistics")


def test_the_measured_reliability_is_the_published_one(shared_data: Path) -> None:
    names = {
        "uds": "unlearning_depth",
        "logit_lens": "logit_lens",
        "es": "extraction_strength",
        "em": "exact_memorization",
        "prob": "forget_probability",
        "truth_ratio": "forget_truth_ratio",
        "rouge": "forget_rouge",
        "mia_loss": "membership_loss",
        "mia_zlib": "membership_zlib",
        "mia_min_k": "membership_min_k",
        "mia_min_kpp": "membership_min_k_plus",
        "cka": "alignment_forget_cka",
    }
    published = json.loads((shared_data / "uds_tofu_1b" / "meta_eval.json").read_text(encoding="utf-8"))
    assert set(names.values()) == set(MEASURED_RELIABILITY) <= set(REGISTRY)
    for key, name in names.items():
        found = MEASURED_RELIABILITY[name]
        assert found.faithfulness == pytest.approx(published["faithfulness"][key]["auc_roc"], abs=6e-4)
        assert found.robustness == pytest.approx(published["robustness"][key]["agg"], abs=6e-4)
