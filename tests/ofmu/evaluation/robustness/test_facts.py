"""The tokens of a fact spell the fact, for each kind of tokenizer, and a wrong file of facts is one sentence."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from ofmu.data.config import ColumnsConfig, DataConfig
from ofmu.data.entities import with_entities
from ofmu.data.files import read_rows
from ofmu.data.row_encoder import RowEncoder
from ofmu.data.rows import Row, RowSet
from ofmu.errors import DataError
from ofmu.evaluation.robustness.facts import entity_span, find_facts
from ofmu.models.config import ScratchModelConfig
from ofmu.models.scratch import build_model, train_tokenizer

SHAPE = ScratchModelConfig(hidden_size=8, intermediate_size=8, num_layers=1, num_heads=1)
ROW = Row(question="Where?", answer="Ann lives in São Paulo, near 東京 Street.", entity="São Paulo")


def setup(texts: list[str], words: int = 300, **config: Any) -> tuple[RowEncoder, Any]:
    tokenizer = train_tokenizer(texts, words)
    model = build_model(SHAPE, tokenizer, seed=0, max_positions=512)
    return RowEncoder(tokenizer, DataConfig(**config), model.config), tokenizer


def spelled(fact: Any, tokenizer: Any) -> str:
    return str(tokenizer.decode(fact.tokens)).strip()


@pytest.mark.parametrize("texts", [["a b c"], [ROW.answer] * 8], ids=["bytes", "words"])
@pytest.mark.parametrize("entity", ["São Paulo", "東京 Street", "Ann", "Ann lives in São Paulo, near 東京 Street."])
def test_the_tokens_spell_the_entity(texts: list[str], entity: str) -> None:
    encoder, tokenizer = setup(texts)
    (fact,) = find_facts(encoder, tokenizer, "forget", [replace(ROW, entity=entity)])
    assert spelled(fact, tokenizer) == entity
    assert fact.start >= fact.example.answer_start


def test_a_token_that_holds_a_part_of_the_entity_belongs_to_it() -> None:
    encoder, tokenizer = setup(["Where? unbelievable"] * 20)
    row = Row(question="Where?", answer="an unbelievable day", entity="believable day")
    (fact,) = find_facts(encoder, tokenizer, "forget", [row])
    assert spelled(fact, tokenizer) == "unbelievable day"


def test_without_entities_the_answer_without_eos_is_the_fact() -> None:
    encoder, tokenizer = setup(["a b c"])
    plain = Row(question="", answer="Ann lives by the sea.")
    whole, text = find_facts(encoder, tokenizer, "forget", [replace(ROW, entity=None), plain])
    assert spelled(whole, tokenizer) == ROW.answer
    assert tokenizer.eos_token_id not in whole.tokens
    assert text.start >= 1


def test_rows_without_an_entity_are_left_out_if_others_have_one() -> None:
    encoder, tokenizer = setup(["a b c"])
    facts = find_facts(encoder, tokenizer, "forget", [replace(ROW, entity=None), ROW])
    assert [spelled(fact, tokenizer) for fact in facts] == ["São Paulo"]


def test_an_answer_that_is_cut_inside_the_entity_has_no_fact() -> None:
    encoder, tokenizer = setup(["a b c"], max_length=60)
    (example,) = encoder.encode("forget", ROW.question, ROW.answer)
    assert entity_span(example, ROW, tokenizer) is not None
    shorter, _ = setup(["a b c"], max_length=example.answer_start + 15)
    assert find_facts(shorter, tokenizer, "forget", [ROW]) == []


def test_a_column_gives_the_entity_and_must_be_a_part_of_the_answer(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    record = {"question": "Where?", "answer": "In Oslo.", "entity": "Oslo"}
    file.write_text(json.dumps(record))
    (row,) = read_rows(file, ColumnsConfig())
    assert row.entity == "Oslo"
    file.write_text(json.dumps(record | {"entity": "Bergen"}))
    with pytest.raises(DataError, match=r"Row 1 of .* has a text in column 'entity' which its answer does not contain"):
        read_rows(file, ColumnsConfig())
    file.write_text(json.dumps(record | {"entity": ["Oslo"]}))
    with pytest.raises(DataError, match="of type list in column 'entity'"):
        read_rows(file, ColumnsConfig())
    with pytest.raises(DataError, match="There is no data file"):
        with_entities([row], str(tmp_path / "none.json"))


def test_a_file_gives_the_entities_of_the_forget_rows_that_it_holds(tmp_path: Path) -> None:
    file = tmp_path / "entities.json"
    file.write_text(json.dumps([{"question": "Where?", "answer": "In Oslo.", "entity": "Oslo"}]))
    rows = [Row(question="Where?", answer="In Oslo."), Row(question="Where?", answer="In Rome.")]
    assert [row.entity for row in with_entities(rows, str(file))] == ["Oslo", None]
    with pytest.raises(DataError, match=r"No row of .*entities.json, which evaluation.entities names, is a forget row"):
        with_entities(rows[1:], str(file))
    file.write_text(json.dumps([{"question": "Where?", "answer": "In Oslo."}]))
    with pytest.raises(DataError, match=r"Row 1 of .* has no column 'entity'"):
        with_entities(rows, str(file))


def test_rows_without_an_entity_keep_their_hash() -> None:
    plain = RowSet("forget", (replace(ROW, entity=None),))
    fields = {
        name: value for name, value in asdict(plain.rows[0]).items() if name not in ("alternate_answer", "entity")
    }
    text = json.dumps([fields], sort_keys=True, ensure_ascii=False)
    assert plain.content_hash == hashlib.sha256(text.encode()).hexdigest()
    assert RowSet("forget", (ROW,)).content_hash != plain.content_hash


@pytest.mark.slow
def test_the_published_entities_of_tofu_are_found_in_every_answer(shared_data: Path) -> None:
    lines = (shared_data / "tofu" / "forget10.json").read_text(encoding="utf-8").splitlines()
    rows = [Row(question=row["question"], answer=row["answer"]) for row in map(json.loads, lines)]
    given = with_entities(rows, str(shared_data / "uds_tofu_1b" / "forget10_entities.json"))
    assert sum(row.entity is not None for row in given) == 367
    encoder, tokenizer = setup([row.answer for row in rows[:50]], 600, max_length=480)
    part = [row for row in given if row.entity is not None][::6]
    facts = find_facts(encoder, tokenizer, "forget", part)
    for fact, row in zip(facts, part, strict=True):
        # The border tokens may hold a character more than the entity.
        assert str(row.entity) in spelled(fact, tokenizer)
        assert len(spelled(fact, tokenizer)) < len(str(row.entity)) + 12
