"""The cache has other scores for answers that ROUGE reads in another way than earlier versions did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ofmu.run_config import UnlearnConfig
from ofmu.tasks.language.preparation import LanguagePreparation


def scoring_of(folder: Path, answer: str, *, rouge: bool = True, **row: Any) -> dict[str, Any]:
    (folder / "forget.jsonl").write_text(json.dumps({"question": "Who?", "answer": answer, **row}))
    (folder / "retain.jsonl").write_text(json.dumps({"question": "What?", "answer": "A novel."}))
    config = UnlearnConfig.model_validate(
        {
            "data": {"source": "files", **{name: str(folder / f"{name}.jsonl") for name in ("forget", "retain")}},
            "evaluation": {"rouge": rouge, "in_scope": True},
        }
    )
    return LanguagePreparation(config, None)._scoring()


@pytest.mark.parametrize(
    ("answer", "row", "changed"),
    [
        ("Émile Zola", {}, False),
        ("魯迅", {}, True),
        ("Lu Xun", {"translated_question": "谁?", "translated_answer": "魯迅"}, True),
        ("魯迅", {"rouge": False}, False),
    ],
)
def test_only_scores_with_words_that_rouge_score_drops_have_another_key(tmp_path, answer, row, changed):
    assert ("rouge_words" in scoring_of(tmp_path, answer, **row)) == changed
