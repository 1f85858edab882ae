"""What we write as open-unlearning does is what open-unlearning wrote, where it wrote the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ofmu.errors import DataError
from ofmu.evaluation.open_unlearning_export import to_open_unlearning
from ofmu.evaluation.score_files import parse_scores, read_scores
from ofmu.evaluation.scores import AnswerLoss, RowScores, Scores

LOGS = {
    "tofu_Llama-3.2-1B-Instruct_full/evals_forget01/TOFU_EVAL.json": "tofu_Llama-3.2-1B-Instruct_retain99",
    "tofu_Llama-3.2-1B-Instruct_full/evals_forget10/TOFU_EVAL.json": "tofu_Llama-3.2-1B-Instruct_retain90",
    "muse_Llama-2-7b-hf_News_target/MUSE_EVAL.json": "muse_Llama-2-7b-hf_News_retrain",
}


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from leaves(part, (*path, key))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from leaves(part, (*path, str(index)))
    else:
        yield path, value


@pytest.mark.slow
@pytest.mark.parametrize("name", LOGS)
def test_a_log_that_was_read_is_written_as_it_was(shared_data: Path, name: str) -> None:
    folder = shared_data / "open_unlearning_logs"
    original = json.loads((folder / name).read_text())
    reference = read_scores(folder / LOGS[name] / Path(name).name)
    log = to_open_unlearning(read_scores(folder / name), reference)
    assert log.left_out == {}
    written = log.files[Path(name).name]
    # These logs' reference attack read another pass over the retrained model than the retain log holds.
    expected = dict(leaves({key: value for key, value in original.items() if key != "mia_reference"}))
    found = dict(leaves({key: value for key, value in written.items() if key != "mia_reference"}))
    assert expected.keys() == found.keys()
    for path, value in expected.items():
        if path[-1] == "input":
            assert found[path].split()[-1].rstrip() in value
        elif isinstance(value, str):
            assert found[path] == value
        else:
            # The logs hold float32, and sums of float32.
            assert found[path] == pytest.approx(value, rel=2e-7, abs=1e-9), path
    summary = json.loads((folder / name).with_name(Path(name).name.replace("EVAL", "SUMMARY")).read_text())
    written_summary = log.files[Path(name).name.replace("EVAL", "SUMMARY")]
    assert {key: written_summary[key] for key in summary} == pytest.approx(summary, rel=2e-7, abs=2e-3)


@pytest.mark.slow
def test_what_is_written_reads_as_the_same_scores(shared_data: Path) -> None:
    scores = read_scores(shared_data / "open_unlearning_logs" / next(iter(LOGS)))
    log = to_open_unlearning(scores, None)
    assert log.left_out == {"forget_quality": "no reference was given"}
    again = parse_scores(json.loads(json.dumps(log.files["TOFU_EVAL.json"])), "again.json")
    for name, rows in scores.sets.items():
        assert [row.question for row in again.sets[name]] == [row.question for row in rows]
        assert [row.compressed_bytes for row in again.sets[name]] == [row.compressed_bytes for row in rows]
    # Without a log of the retrained model, open-unlearning compares with an AUC of 0.5.
    assert log.metrics["privleak"]["agg_value"] == pytest.approx(100 * (0.5 - 1.0) / 0.5, rel=1e-9)


def row(**changes: Any) -> RowScores:
    values: dict[str, Any] = {
        "question": "Who?",
        "ground_truth": "Ann",
        "row_hash": "h",
        "answer": AnswerLoss(2.0, 5),
        "extraction_strength": 0.0,
        "exact_memorization": 0.25,
    }
    return RowScores(**(values | changes))


def test_extraction_strength_is_at_least_that_of_the_last_token() -> None:
    scores = Scores(model="m", truth_ratio="geometric", sets={"forget": (row(), row(extraction_strength=0.5))})
    entry = to_open_unlearning(scores, None).metrics["extraction_strength"]
    assert [value["score"] for value in entry["value_by_index"].values()] == [0.25, 0.5]
    assert entry["agg_value"] == 0.375


def test_metrics_without_their_scores_are_left_out_with_a_reason() -> None:
    scores = Scores(model="m", truth_ratio="arithmetic", sets={"forget": (row(),)}, notes={"rouge": "no text"})
    log = to_open_unlearning(scores, None)
    assert set(log.metrics) == {"forget_Q_A_Prob", "extraction_strength", "exact_memorization"}
    assert log.left_out["forget_Q_A_ROUGE"] == "no text"
    assert log.left_out["model_utility"] == "the data has no evaluation set other than forget"
    assert json.loads(json.dumps(log.files["TOFU_SUMMARY.json"], allow_nan=False))["exact_memorization"] == 0.25


def test_a_loss_that_is_not_finite_is_left_out() -> None:
    scores = Scores(model="m", truth_ratio="geometric", sets={"forget": (row(answer=AnswerLoss(float("nan"), 3)),)})
    log = to_open_unlearning(scores, None)
    assert "forget_Q_A_Prob" not in log.metrics
    json.dumps(log.files["TOFU_EVAL.json"], allow_nan=False)


def test_scores_without_forget_rows_have_no_log() -> None:
    with pytest.raises(DataError, match="have no forget rows"):
        to_open_unlearning(replace(Scores(model="m", truth_ratio="geometric", sets={})), None)
