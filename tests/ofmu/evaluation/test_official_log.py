"""Official TOFU logs give the numbers of the official scripts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ofmu.errors import DataError, ReferenceMismatchError
from ofmu.evaluation.metrics.summary import metrics_of
from ofmu.evaluation.official_log import read_official_log
from ofmu.evaluation.scoring.rouge import rouge_l_recall

LOGS = [f"llama2-7b_{name}.json" for name in ("full", "retain90", "retain95", "retain99")]
SETS = {"Real Authors": "real_authors", "Real World": "world_facts", "Retain": "retain", "Forget": "forget"}


def metric_names(truth_ratio: str) -> dict[str, str]:
    """Map the official name of each number to the metric's name."""
    names = {"Model Utility": "model_utility"}
    for official, name in SETS.items():
        if truth_ratio == "geometric":
            components = {f"ROUGE {official}": "rouge", f"Prob. {official}": "probability"}
            components[f"Truth Ratio {official}"] = "truth_ratio"
        else:
            components = {f"{official} ROUGE": "rouge", f"{official} Probability": "probability"}
            components[f"{official} Truth Ratio"] = "truth_ratio"
        names.update({spelling: f"{name}_{component}" for spelling, component in components.items()})
    return names


@pytest.fixture(scope="module")
def logs(shared_data: Path) -> Path:
    return shared_data / "tofu_official_logs"


@pytest.fixture(scope="module")
def official(logs: Path) -> dict[str, Any]:
    return json.loads((logs / "official_scores.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("truth_ratio", ["geometric", "arithmetic"])
@pytest.mark.parametrize("log", LOGS)
def test_every_official_component_is_reproduced(
    logs: Path, official: dict[str, Any], log: str, truth_ratio: str
) -> None:
    expected = official["models"][log][f"{truth_ratio}_truth_ratio"]
    result = metrics_of(read_official_log(logs / log, truth_ratio))
    names = metric_names(truth_ratio)
    assert set(names) == set(expected)
    for official_name, name in names.items():
        assert result.values[name] == pytest.approx(expected[official_name], rel=0, abs=1e-9), name
    assert len(result.utility_components) == 9
    assert result.reasons["extraction_strength"] == "an official TOFU log holds no token matches"


def test_official_forget_quality_is_reproduced(logs: Path, official: dict[str, Any]) -> None:
    (expected,) = official["forget_quality"]
    model, reference = (read_official_log(logs / expected[side]) for side in ("model", "reference"))
    values = metrics_of(model, reference).values
    assert values["ks_statistic"] == pytest.approx(expected["ks_statistic"], rel=1e-9)
    assert values["forget_quality"] == pytest.approx(expected["pvalue"], rel=1e-9)
    assert values["log10_forget_quality"] == pytest.approx(expected["log10_pvalue"], rel=1e-9)
    assert values["forget_quality_rows"] == expected["n_retain"]


@pytest.mark.slow
@pytest.mark.parametrize("log", LOGS)
def test_rouge_of_the_logged_texts_equals_the_logged_rouge(logs: Path, log: str) -> None:
    rows = [row for rows in read_official_log(logs / log).sets.values() for row in rows]
    assert [rouge_l_recall(row.ground_truth, row.generated) for row in rows] == pytest.approx(
        [row.rouge for row in rows], rel=0, abs=1e-12
    )


@pytest.mark.parametrize("log", ["llama2-7b_retain95.json", "llama2-7b_retain99.json"])
def test_a_reference_with_another_number_of_rows_raises(logs: Path, log: str) -> None:
    model, reference = read_official_log(logs / "llama2-7b_full.json"), read_official_log(logs / log)
    with pytest.raises(ReferenceMismatchError, match=r"llama2-7b_full") as error:
        metrics_of(model, reference)
    assert log in str(error.value)


@pytest.mark.slow
def test_a_reference_of_equal_length_with_other_rows_raises(logs: Path) -> None:
    model, reference = (read_official_log(logs / f"llama2-7b_{name}.json") for name in ("full", "retain90"))
    rows = reference.sets["forget"]
    swapped = type(reference)(model="swapped", truth_ratio="geometric", sets={"forget": (rows[1], rows[0], *rows[2:])})
    with pytest.raises(ReferenceMismatchError, match="forget row 1 has another question"):
        metrics_of(model, swapped)


def test_a_reference_under_another_definition_raises(logs: Path) -> None:
    model = read_official_log(logs / "llama2-7b_full.json", "geometric")
    reference = read_official_log(logs / "llama2-7b_retain90.json", "arithmetic")
    with pytest.raises(ReferenceMismatchError, match=r"truth ratio is arithmetic and the model's geometric"):
        metrics_of(model, reference)


def test_logged_questions_equal_the_questions_of_the_data(logs: Path, shared_data: Path) -> None:
    lines = (shared_data / "tofu" / "forget05_perturbed.json").read_text().splitlines()
    rows = read_official_log(logs / "llama2-7b_retain95.json").sets["forget"]
    for line, row in zip(lines, rows, strict=True):
        data = json.loads(line)
        assert row.question.split() == data["question"].split()
        assert row.ground_truth.split() == data["answer"].split()
        assert len(row.perturbed) == len(data["perturbed_answer"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "no official TOFU log"),
        ('{"eval_log.json": {"avg_gt_loss": {"0": 1.0}}}', "malformed"),
    ],
)
def test_a_malformed_log_raises_a_sentence(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "log.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_official_log(path)


@pytest.mark.parametrize("tokens", ["0", "-1", "Infinity", "NaN"])
def test_an_answer_without_a_number_of_tokens_is_malformed(tmp_path: Path, tokens: str) -> None:
    path = tmp_path / "log.json"
    path.write_text(
        f"""{{"eval_log.json": {{
            "avg_gt_loss": {{"0": 1.0}}, "num_token_gt": {{"0": {tokens}}},
            "avg_paraphrased_loss": {{"0": 1.0}}, "num_token_paraphrased": {{"0": 3}},
            "average_perturb_loss": {{"0": [1.0]}}, "num_token_perturb": {{"0": [3]}},
            "generated_text": {{"0": ["Who?", "Ann.", "Ann."]}}, "rougeL_recall": {{"0": 1.0}}
        }}}}"""
    )
    with pytest.raises(DataError, match=r"log\.json is malformed"):
        metrics_of(read_official_log(path))
