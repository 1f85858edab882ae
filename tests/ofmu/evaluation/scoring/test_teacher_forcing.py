"""Scores from chunks of logits, compared with the scores from whole logits."""

from __future__ import annotations

from dataclasses import astuple
from types import SimpleNamespace

import pytest

from ofmu.evaluation.scoring.gradients import gradient_norms
from ofmu.evaluation.scoring.sharding import Shard
from ofmu.evaluation.scoring.teacher_forcing import score_examples
from ofmu.testing import tiny_llama, tiny_rows


@pytest.mark.parametrize("chunk_bytes", [500, 2000])
def test_chunks_give_the_scores_of_whole_logits(chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """500 bytes hold the logits of two tokens: a row is cut too. Half the rows share a prompt."""
    model, tokenizer = tiny_llama().eval(), SimpleNamespace(eos_token_id=2, pad_token_id=0)
    rows = [*tiny_rows(6, 1), *tiny_rows(6, 1)]

    def scores() -> list[float]:
        answers, _ = score_examples(model, tokenizer, rows, 5, Shard(), detailed=[0, 3, 7])
        norms, _ = gradient_norms(model, rows[:4], Shard())
        return [value for answer in answers for value in astuple(answer) if value is not None] + norms

    whole = scores()
    monkeypatch.setattr("ofmu.models.chunked_logits.CHUNK_BYTES", chunk_bytes)
    assert scores() == pytest.approx(whole, rel=1e-4, abs=1e-5)
    assert len(whole) == 12 * 4 + 3 * 2 + 4
