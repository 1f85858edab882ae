from __future__ import annotations

import random
import time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from ofmu.evaluation.scoring.rouge import rouge_1_recall, rouge_l_f1, rouge_l_recall
from ofmu.evaluation.scoring.rouge_words import unicode_words

SCORER = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
WORDS = st.lists(st.sampled_from(["Running", "runs", "run", "a", "the", "Geneva,", "é", "Zürich", "x1"]), max_size=20)
# The micro sign is a Greek letter.
LATIN = st.text(st.characters(max_codepoint=0x24F, exclude_characters="µ"), max_size=60)


class UnicodeTokenizer:
    def tokenize(self, text: str) -> list[str]:
        return unicode_words(text)


@pytest.mark.slow
@given(WORDS.map(" ".join), WORDS.map(" ".join))
def test_recall_is_that_of_rouge_score(truth: str, generated: str) -> None:
    assume(SCORER.score(truth, truth)["rougeL"].recall == 1 or truth.isascii())
    assert rouge_l_recall(truth, generated) == SCORER.score(truth, generated)["rougeL"].recall


@given(LATIN, st.text(max_size=60))
def test_scores_of_a_latin_answer_are_those_of_rouge_score(truth: str, generated: str) -> None:
    expected = SCORER.score(truth, generated)
    # An answer without a to z and digits, such as "É", has no words in rouge_score.
    assume(SCORER.score(truth, truth)["rougeL"].recall == 1 or truth.isascii())
    assert rouge_l_recall(truth, generated) == expected["rougeL"].recall
    assert rouge_1_recall(truth, generated) == expected["rouge1"].recall
    assert rouge_l_f1(truth, generated) == pytest.approx(expected["rougeL"].fmeasure)


@pytest.mark.parametrize(
    ("truth", "generated"),
    [
        ("Émile Zola wrote “Germinal”.", "Emile Zola wrote Nana"),
        ("Nguyễn Trãi ở Hà Nội", "Nguyễn Du ở Huế"),
        ("5 µm at Kraków", "5 µm"),
        ("Kraków", "Краков"),
    ],
)
def test_an_answer_that_only_loses_accents_keeps_its_words(truth: str, generated: str) -> None:
    assert rouge_l_recall(truth, generated) == SCORER.score(truth, generated)["rougeL"].recall


@pytest.mark.parametrize(
    ("truth", "generated", "recall"),
    [
        ("Пушкин родился в Москве в 1799 году.", "Он родился в Москве в 1799", 5 / 7),
        ("魯迅是中國作家", "魯迅是日本人", 3 / 7),
        ("東京は2020年", "東京", 2 / 5),
        ("ชาวไทย", "ไทยชาว", 3 / 6),
        ("Ο Όμηρος", "ΌΜΗΡΟΣ", 1 / 2),
        ("हिन्दी हीन", "हिन्दी", 1 / 2),
        ("نجيب محفوظ ١٩٨٨", "محفوظ", 1 / 3),
        ("١٩٨٨", "١٩٨٨", 1.0),
        ("한강은 작가이다", "작가이다 한강은", 1 / 2),
        ("The novelist (魯迅) wrote", "novelists writing 魯迅", 3 / 5),
        ("Ý", "Ý", 1.0),
        ("Ｈｅｌｌｏ", "hello", 1.0),
        ("می‌خواهم", "میخواهم", 1.0),
    ],
)
def test_an_answer_in_another_script_has_a_score(truth: str, generated: str, recall: float) -> None:
    assert rouge_l_recall(truth, generated) == pytest.approx(recall)
    assert rouge_l_recall(truth, truth) == rouge_l_f1(truth, truth) == rouge_1_recall(truth, truth) == 1.0


OTHER = st.text(st.sampled_from("Пу東京กิไท हि ab1é,. 한글"), max_size=30)


@given(OTHER, OTHER)
def test_scores_in_another_script_are_those_of_rouge_score_with_its_words(truth: str, generated: str) -> None:
    truth = f"Пу {truth}"
    expected = RougeScorer(["rouge1", "rougeL"], tokenizer=UnicodeTokenizer()).score(truth, generated)
    assert rouge_l_recall(truth, generated) == expected["rougeL"].recall
    assert rouge_1_recall(truth, generated) == expected["rouge1"].recall
    assert rouge_l_f1(truth, generated) == pytest.approx(expected["rougeL"].fmeasure)


@pytest.mark.slow
@pytest.mark.timeout(30)
def test_a_long_answer_takes_seconds() -> None:
    """The table of rouge_score would have 40 million cells."""
    generator = random.Random(0)
    words = [f"word{generator.randrange(1000)}" for _ in range(200_000)]
    started = time.process_time()
    assert rouge_l_recall(" ".join(words), " ".join(words[:200])) == 200 / 200_000
    assert time.process_time() - started < 10
