from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path

from evidence_records import FORGET, KEY, record
from ofmu.data.rows import Row
from ofmu.erasure.evidence import Evidence, keyed_hash, row_text, rows_record, schema

SCHEMA = Path(__file__).resolve().parents[3] / "docs" / "evidence.schema.json"


def test_the_published_schema_is_that_of_the_code():
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == schema(), "run make docs"


def test_a_record_comes_back_as_it_was():
    for made in (record(), record(show_rows=True, retrained=False, seeds=False)):
        assert Evidence.model_validate_json(made.model_dump_json()) == made


def test_hashes_can_be_computed_from_the_documentation():
    """HMAC-SHA256 of a row as JSON with sorted keys and without spaces; of a set, over the hashes by line."""
    expected = [
        hmac.new(KEY, b'{"answer":"In <b>Porto</b> & so on.","question":"Where was Ana Silva born?"}', hashlib.sha256),
        hmac.new(KEY, b'{"answer":"A text about Ana Silva."}', hashlib.sha256),
    ]
    made = rows_record("forget", FORGET, "given", KEY, show=False)
    assert made.row_hashes == [each.hexdigest() for each in expected]
    assert made.hash == hmac.new(KEY, "\n".join(made.row_hashes).encode(), hashlib.sha256).hexdigest()
    assert (made.count, made.texts) == (2, None)
    assert keyed_hash(b"other", "x") != keyed_hash(KEY, "x")


def test_every_field_of_a_row_counts():
    row = Row(question="Q", answer="é", perturbed_answers=("a", "b"))
    assert row_text(row) == '{"answer":"é","perturbed_answers":["a","b"],"question":"Q"}'
    shown = rows_record("forget", [row], "given", KEY, show=True)
    assert shown.texts == [{"answer": "é", "perturbed_answers": ["a", "b"], "question": "Q"}]
