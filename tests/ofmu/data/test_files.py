from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ofmu.data.config import ColumnsConfig, DataConfig
from ofmu.data.files import read_rows
from ofmu.data.load import load_data
from ofmu.data.rows import Row
from ofmu.errors import ConfigError, DataError

RECORDS = [
    {"question": "Who?", "answer": 'Ada, "the first"'},
    {"question": "¿Dónde?", "answer": "Zwei\nZeilen\u2028hier"},
    {"question": "Null?", "answer": "NA"},
]
ROWS = tuple(Row(question=record["question"], answer=record["answer"]) for record in RECORDS)


def _write(path: Path, records: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in records), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(records, indent=1), encoding="utf-8")
    elif path.suffix == ".csv":
        pd.DataFrame(records).to_csv(path, index=False)
    else:
        pd.DataFrame(records).to_parquet(path)
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    assert read_rows(_write(tmp_path / name, RECORDS), ColumnsConfig()) == ROWS


def test_a_json_file_may_hold_one_object_per_line(tmp_path: Path) -> None:
    path = _write(tmp_path / "rows.jsonl", RECORDS).rename(tmp_path / "rows.json")
    assert read_rows(path, ColumnsConfig()) == ROWS


def test_the_config_names_the_columns(tmp_path: Path) -> None:
    path = _write(tmp_path / "rows.csv", [{"q": "Who?", "a": "Ada", "p": "It was Ada"}])
    columns = ColumnsConfig(question="q", answer="a", paraphrased_answer="p")
    assert read_rows(path, columns) == (Row(question="Who?", answer="Ada", paraphrased_answer="It was Ada"),)


def test_plain_text_is_all_answer(tmp_path: Path) -> None:
    path = _write(tmp_path / "rows.parquet", [{"text": "Call me Ishmael."}])
    assert read_rows(path, ColumnsConfig()) == (Row(question="", answer="Call me Ishmael."),)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_perturbed_answers_are_lists(tmp_path: Path, name: str) -> None:
    path = _write(tmp_path / name, [{"question": "Who?", "answer": "Ada", "perturbed_answer": ["Bob", "Cy"]}])
    assert read_rows(path, ColumnsConfig())[0].perturbed_answers == ("Bob", "Cy")


WRONG = ["Oto.", "Vey, or 'Vay'.", 'A "quote"\nand a line.', "Über\xa0uns [1]."]


@pytest.mark.parametrize(
    "cell",
    [WRONG, tuple(WRONG), np.array(WRONG), np.array(WRONG, dtype=object), json.dumps(WRONG), " " + str(WRONG) + " "],
    ids=["list", "tuple", "array", "array of objects", "JSON", "white space around"],
)
def test_a_list_in_a_csv_cell_is_a_list_in_every_spelling(tmp_path: Path, cell: Any) -> None:
    path = _write(tmp_path / "rows.csv", [{"question": "Who?", "answer": "Ada", "perturbed_answer": cell}])
    assert read_rows(path, ColumnsConfig())[0].perturbed_answers == tuple(WRONG)


@pytest.mark.parametrize(
    ("cell", "texts"),
    [
        ("['Oto.']", ("Oto.",)),
        ("('Oto.',)", ("Oto.",)),
        ("[]", ()),
        ("", ()),
        ("(unknown)", ("(unknown)",)),
        ("[Oto] said so.", ("[Oto] said so.",)),
        ("'Oto.'", ("'Oto.'",)),
    ],
)
def test_short_lists_and_texts_with_brackets(tmp_path: Path, cell: str, texts: tuple[str, ...]) -> None:
    path = _write(tmp_path / "rows.csv", [{"question": "Who?", "answer": "Ada", "perturbed_answer": cell}])
    assert read_rows(path, ColumnsConfig())[0].perturbed_answers == texts


@pytest.mark.parametrize(
    "cell",
    [
        "['Oto.', 'Ve",
        "[Oto., Vey.]",
        "['Oto.' 'Vey.', 'Kel.']",
        "['Oto.''Vey.']",
        "('Oto.' 'Vey.')",
        "['Oto.' 'Vey.' ... 'Kel.']",
        "{'Oto.', 'Vey.'}",
        "array(['Oto.', 'Vey.'], dtype=object)",
        "[open('x')]",
        pytest.param("[" * 100_000 + "]", id="deep"),
    ],
)
@pytest.mark.parametrize("column", ["perturbed_answer", "translated_perturbed_answers"])
def test_what_looks_like_a_list_is_never_one_answer(tmp_path: Path, cell: str, column: str) -> None:
    rows = [{"question": "Who?", "answer": "Ada", column: wrong} for wrong in ("Bob", cell)]
    with pytest.raises(DataError, match=rf"Row 2 of .*rows\.csv has a list in column '{column}' that cannot be read"):
        read_rows(_write(tmp_path / "rows.csv", rows), ColumnsConfig())


@pytest.mark.parametrize("column", ["answer", "paraphrased_answer", "multi_hop_question"])
def test_a_list_in_a_csv_cell_is_no_single_text(tmp_path: Path, column: str) -> None:
    row = {"question": "Who?", "answer": "Ada", column: ["Oto.", "Vey."]}
    with pytest.raises(DataError, match=f"Row 1 .* has a list in column '{column}', where one text belongs"):
        read_rows(_write(tmp_path / "rows.csv", [row]), ColumnsConfig())
    path = _write(tmp_path / "rows.jsonl", [{**row, column: "['Oto.', 'Vey.']"}])
    assert "['Oto.', 'Vey.']" in vars_of(read_rows(path, ColumnsConfig())[0])


def vars_of(row: Row) -> list[Any]:
    return [getattr(row, name) for name in Row.__slots__]


def test_evaluation_sets_are_samples_of_at_most_400_rows_drawn_by_the_seed(tmp_path: Path) -> None:
    forget = _write(tmp_path / "forget.jsonl", [{"question": f"f{i}", "answer": "a"} for i in range(3)])
    retain = _write(tmp_path / "retain.jsonl", [{"question": f"r{i}", "answer": "a"} for i in range(1000)])
    holdout = _write(tmp_path / "holdout.jsonl", [{"question": f"h{i}", "answer": "a"} for i in range(3)])
    config = DataConfig(source="files", forget=str(forget), retain=str(retain), holdout=str(holdout))

    data, again, other = load_data(config, 0), load_data(config, 0), load_data(config, 1)

    assert data.holdout is not None
    assert (len(data.forget), len(data.retain), len(data.holdout)) == (3, 1000, 3)
    assert data.evaluation["forget"].rows == data.forget.rows
    sample = data.evaluation["retain"].rows
    assert len(set(sample)) == 400
    assert set(sample) < set(data.retain.rows)
    assert data.content_hash == again.content_hash != other.content_hash


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("rows.txt", b"Who?", r"unknown suffix '\.txt': use \.jsonl, \.json, \.csv, \.parquet"),
        ("rows.jsonl", b'{"question": "a", "answer": "b"}\n{"question"', r"Line 2 of .*rows\.jsonl is not valid JSON"),
        ("rows.json", b'[{"question": "a",]', r"not valid JSON in line 1"),
        ("rows.json", b'["a"]', r"Row 1 .* is of type str and no JSON object"),
        ("rows.csv", b'question,answer\n"a,b\n', r"not valid CSV"),
        ("rows.parquet", b"no parquet", r"not valid Parquet"),
        ("rows.jsonl", b"\xff\xfe", r"not UTF-8 at byte 0"),
        ("rows.jsonl", b'{"questions": "a", "answer": "b"}', r"no column 'question'.*did you mean 'questions'\?"),
        ("rows.jsonl", b'{"question": "a", "anser": "b"}', r"no column 'answer'.*did you mean 'anser'\?"),
        ("rows.jsonl", b'{"question": "a", "answer": 7}', r"Row 1 .* has a value of type int in column 'answer'"),
        ("rows.jsonl", b'{"question": null, "answer": "b"}', r"no value in column 'question'"),
        ("rows.jsonl", b'{"question": "a", "answer": " "}', r"Row 1 .* empty 'answer'"),
        ("rows.jsonl", b'{"question": "a", "answer": "b", "perturbed_answer": [1]}', r"has a value of type int"),
        ("rows.jsonl", b'{"question": "a", "answer": "b", "perturbed_answer": 1}', r"a list of texts"),
        (
            "rows.jsonl",
            b'{"question": "a", "answer": "b"}\n{"question": "\\ud83d?", "answer": "b"}',
            r"Row 2 .* \\ud83d",
        ),
        (
            "rows.jsonl",
            b'{"question": "a", "answer": "b", "perturbed_answer": ["c\\udc00"]}',
            r"half character \\udc00",
        ),
        ("rows.json", b'[{"text": "a"}, {"text": "b \\ud800"}]', r"Row 2 .* half character \\ud800"),
        ("rows.jsonl", b'{"question": "a", "answer": "b", "answer": "c"}', r"Row 1 .* has the column 'answer' twice"),
        ("rows.json", b'[{"text": "a", "text": "b"}]', r"Row 1 .* has the column 'text' twice"),
        ("rows.csv", b"question,answer,answer\na,b,c\n", r"has the column 'answer' twice: keep one"),
    ],
)
def test_an_invalid_file_gets_one_sentence(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=sentence) as caught:
        read_rows(path, ColumnsConfig())
    assert "\n" not in str(caught.value)


def test_both_halves_of_a_character_are_a_character(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "\\ud83d\\ude42?", "answer": "b"}')
    assert read_rows(tmp_path / "rows.jsonl", ColumnsConfig())[0].question == "🙂?"


def test_a_missing_file_and_a_missing_setting_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no data file .*gone\.csv"):
        read_rows(tmp_path / "gone.csv", ColumnsConfig())
    with pytest.raises(ConfigError, match=r"needs data\.retain"):
        load_data(DataConfig(source="files", forget=str(tmp_path / "gone.csv")), 0)


def test_columns_of_in_scope_variants_are_read(tmp_path: Path) -> None:
    record = {
        "question": "Who?", "answer": "Ann.", "paraphrased_question": "Which person?", "multi_hop_question": "Whose?",
        "translated_question": "¿Quién?", "translated_answer": "Ana.", "translated_perturbed_answers": ["Eva.", "Luz."],
    }  # fmt: skip
    row = read_rows(_write(tmp_path / "rows.jsonl", [record]), ColumnsConfig())[0]
    assert (row.paraphrased_question, row.multi_hop_question) == ("Which person?", "Whose?")
    assert (row.translated_question, row.translated_answer) == ("¿Quién?", "Ana.")
    assert row.translated_perturbed_answers == ("Eva.", "Luz.")
    del record["translated_answer"]
    with pytest.raises(DataError, match=r"Row 1 of .* has only one of 'translated_question' and 'translated_answer'"):
        read_rows(_write(tmp_path / "rows.jsonl", [record]), ColumnsConfig())
