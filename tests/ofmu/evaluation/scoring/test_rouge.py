from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from ofmu.evaluation.scoring.rouge import rouge_l_recall

SCORER = RougeScorer(["rougeL"], use_stemmer=True)
WORDS = st.lists(st.sampled_from(["Running", "runs", "run", "a", "the", "Geneva,", "é", "日本", "x1"]), max_size=20)


@pytest.mark.slow
@given(WORDS.map(" ".join), WORDS.map(" ".join))
def test_recall_is_that_of_rouge_score(truth: str, generated: str) -> None:
    assert rouge_l_recall(truth, generated) == SCORER.score(truth, generated)["rougeL"].recall


@given(st.text(max_size=60), st.text(max_size=60))
def test_recall_of_any_text_is_that_of_rouge_score(truth: str, generated: str) -> None:
    assert rouge_l_recall(truth, generated) == SCORER.score(truth, generated)["rougeL"].recall


@pytest.mark.slow
@pytest.mark.timeout(30)
def test_a_long_answer_takes_seconds() -> None:
    """The table of rouge_score would have 40 million cells."""
    generator = random.Random(0)
    words = [f"word{generator.randrange(1000)}" for _ in range(200_000)]
    started = time.process_time()
    assert rouge_l_recall(" ".join(words), " ".join(words[:200])) == 200 / 200_000
    assert time.process_time() - started < 10
