from __future__ import annotations

import pytest

from ofmu.data.config import GeneratedDataConfig
from ofmu.data.generated import FACTS_PER_AUTHOR, generate
from ofmu.data.rows import Row
from ofmu.errors import DataError

CONFIG = GeneratedDataConfig(authors=20, forget_authors=4, world_facts=20)


def _author_rows(config: GeneratedDataConfig, seed: int) -> list[Row]:
    data = generate(config, seed)
    retained = data.retain.rows[: -2 * config.world_facts]
    assert data.holdout is not None
    return [*retained, *data.forget.rows, *data.holdout.rows]


def test_sizes_follow_the_config() -> None:
    data = generate(CONFIG, 0)
    assert len(data.forget) == 4 * FACTS_PER_AUTHOR
    assert len(data.retain) == 16 * FACTS_PER_AUTHOR + 2 * 20
    assert data.evaluation["forget"].rows == data.forget.rows
    assert set(data.evaluation["retain"].rows) < set(data.retain.rows)
    for name in ("real_authors", "world_facts"):
        assert len(data.evaluation[name]) == 20
        assert set(data.evaluation[name].rows) < set(data.retain.rows)


def test_the_seed_decides_everything() -> None:
    assert generate(CONFIG, 3).content_hash == generate(CONFIG, 3).content_hash
    assert generate(CONFIG, 3).content_hash != generate(CONFIG, 4).content_hash


@pytest.mark.parametrize("authors", [2, 20, 300])
def test_no_two_rows_ask_the_same_question(authors: int) -> None:
    rows = _author_rows(GeneratedDataConfig(authors=authors, forget_authors=1), 1)
    assert len(rows) == (authors + 1) * FACTS_PER_AUTHOR
    for variant in ("question", "paraphrased_question", "multi_hop_question", "translated_question"):
        assert len({getattr(row, variant) for row in rows}) == len(rows)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_fact_has_all_its_variants_in_the_wording_of_the_paraphrase(seed: int) -> None:
    for row in _author_rows(CONFIG, seed):
        assert row.paraphrased_answer not in (None, row.answer)
        assert len(set(row.perturbed_answers)) == 5
        assert not {row.answer, row.paraphrased_answer} & set(row.perturbed_answers)
        assert row.translated_question is not None
        assert row.translated_question.startswith("¿")
        assert row.translated_answer
        assert len({row.translated_answer, *row.translated_perturbed_answers}) == 6
        assert "{" not in f"{row}"
        # All answers have the same wording.
        starts = {answer.split()[0] for answer in (row.paraphrased_answer or "", *row.perturbed_answers)}
        assert len(starts) == 1


def test_general_knowledge_has_three_wrong_answers() -> None:
    for name in ("real_authors", "world_facts"):
        for row in generate(CONFIG, 0).evaluation[name].rows:
            assert len({row.answer, *row.perturbed_answers}) == 4


def test_a_multi_hop_question_does_not_name_the_author() -> None:
    for row in generate(CONFIG, 0).forget.rows:
        name = (row.translated_question or "").rstrip("?").split()[-1]
        assert name in row.question
        assert row.multi_hop_question is not None
        assert name not in row.multi_hop_question


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"authors": 4, "forget_authors": 4}, "leaves no author to retain"),
        ({"authors": 5000}, r"the word lists are enough for \d+: lower data"),
        ({"world_facts": 1000}, "is more than the 40 available facts"),
    ],
)
def test_impossible_sizes_are_errors(settings: dict[str, int], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        generate(GeneratedDataConfig(**settings), 0)
