"""Scores survive saving and loading, and a malformed file raises one sentence."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from ofmu.data.rows import Row
from ofmu.errors import DataError, StorageError
from ofmu.evaluation.scores import AnswerLoss, RowScores, Scores, row_hash

ROW = RowScores(
    question="Wo?",
    ground_truth="Überall – 東京.",
    row_hash="abc",
    answer=AnswerLoss(1.5, 3),
    perturbed=(AnswerLoss(0.1 + 0.2, 7),),
    generated="\n",
    rouge=0.5,
)
SCORES = Scores(model="m", truth_ratio="arithmetic", sets={"forget": (ROW,)}, data_hash="d", notes={"rouge": "why"})


def test_loaded_scores_equal_saved_scores_bit_for_bit(tmp_path: Path) -> None:
    SCORES.save(tmp_path / "new" / "scores.json")
    assert Scores.load(tmp_path / "new" / "scores.json") == SCORES
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["scores.json"]


def test_a_non_finite_loss_is_stored_as_null_and_read_as_nan(tmp_path: Path) -> None:
    row = RowScores(question="q", ground_truth="a", row_hash=None, answer=AnswerLoss(math.inf, 2))
    scores = Scores(model="m", truth_ratio="geometric", sets={"forget": (row,)})
    scores.save(tmp_path / "scores.json")
    assert math.isnan(Scores.load(tmp_path / "scores.json").sets["forget"][0].answer.nll)
    json.loads((tmp_path / "scores.json").read_text(), parse_constant=pytest.fail)


def test_the_first_format_is_read_without_the_later_keys(tmp_path: Path) -> None:
    content = {**SCORES.to_json(), "format": "ofmu-scores/1"}
    del content["forward_tokens"]
    for row in content["sets"]["forget"]:
        for name in ("min_k", "min_k_plus", "gradient_norm"):
            del row[name]
    (tmp_path / "scores.json").write_text(json.dumps(content))
    assert Scores.load(tmp_path / "scores.json") == SCORES


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other/9"},
        {"truth_ratio": "median"},
        {"sets": {"forget": [{"question": "q"}]}},
        {"sets": {"forget": [dict(SCORES.to_json()["sets"]["forget"][0], answer=[1.0, 0])]}},
        {"sets": {"forget": [dict(SCORES.to_json()["sets"]["forget"][0], answer=[1.0, math.inf])]}},
        {"sets": {"forget": [dict(SCORES.to_json()["sets"]["forget"][0], rouge=10**400)]}},
        {"sets": {"forget": 3}},
        {"notes": None},
    ],
)
def test_malformed_scores_raise_a_sentence(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "scores.json"
    path.write_text(json.dumps({**SCORES.to_json(), **change}))
    with pytest.raises(DataError, match=r"scores\.json.* make (it|them)"):
        Scores.load(path)


def test_a_missing_file_raises_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Cannot read .*nothing\.json: No such file"):
        Scores.load(tmp_path / "nothing.json")


def test_a_failed_write_keeps_the_target_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    target = tmp_path / "scores.json"
    target.mkdir()  # A directory with the file's name makes the last step fail.
    with pytest.raises(StorageError, match=r"Cannot write .*scores\.json"):
        SCORES.save(target)
    assert list(tmp_path.iterdir()) == [target]


def test_a_row_hash_covers_the_fields_that_scores_depend_on() -> None:
    row = Row(question="q", answer="a", paraphrased_answer="p", perturbed_answers=("x", "y"))
    same = Row(question="q", answer="a", paraphrased_answer="p", perturbed_answers=("x", "y"), multi_hop_question="m")
    assert row_hash(row) == row_hash(same)
    others = [
        Row(question="r", answer="a", paraphrased_answer="p", perturbed_answers=("x", "y")),
        Row(question="q", answer="b", paraphrased_answer="p", perturbed_answers=("x", "y")),
        Row(question="q", answer="a", paraphrased_answer=None, perturbed_answers=("x", "y")),
        Row(question="q", answer="a", paraphrased_answer="p", perturbed_answers=("y", "x")),
    ]
    assert len({row_hash(row), *map(row_hash, others)}) == 5
