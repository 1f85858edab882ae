"""The parts of MUSE from JSONL files, and from a directory with the layout of the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hub_clone import write_clone
from ofmu.data.config import DataConfig
from ofmu.data.load import load_data
from ofmu.errors import ConfigError, DataError

PARTS: dict[str, list[dict[str, str]]] = {
    "raw/forget": [{"text": f"The forget text {number}."} for number in range(4)],
    "raw/retain1": [{"text": f"The retain text {number}."} for number in range(4)],
    "sust/forget_2": [{"text": "The second request."}],
    "privleak/forget": [{"text": "The forget text 1."}],
    "privleak/holdout": [{"text": "Nobody read this."}, {"text": "Nor this."}],
    "verbmem/forget": [{"prompt": "The forget", "gt": "text 0."}],
    "knowmem/forget_qa": [{"question": "Which text?", "answer": "The first."}],
    "knowmem/retain_qa": [{"question": "Which other?", "answer": "None."}],
    "knowmem/forget_qa_icl": [{"question": "Who?", "answer": "Ann"}, {"question": "When?", "answer": "1472"}],
    "knowmem/retain_qa_icl": [{"question": "Where?", "answer": "Here"}],
}


def write_parts(folder: Path, **changes: list[dict[str, str]]) -> Path:
    for part, records in (PARTS | {name.replace("__", "/"): value for name, value in changes.items()}).items():
        path = folder / f"{part}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def config(path: Path, **muse: Any) -> DataConfig:
    return DataConfig.model_validate({"source": "muse", "path": str(path), "muse": muse})


def test_files_give_the_sets_of_the_benchmark(tmp_path: Path) -> None:
    data = load_data(config(write_parts(tmp_path)), seed=0)
    assert [row.answer for row in data.forget.rows] == [record["text"] for record in PARTS["raw/forget"]]
    assert len(data.retain) == 4
    assert data.holdout is not None
    assert len(data.holdout) == 2
    assert set(data.evaluation) == {"forget", "forget_knowledge", "retain_knowledge", "members"}
    verbatim = data.evaluation["forget"]
    assert (verbatim.rows[0].question, verbatim.rows[0].answer) == ("The forget", "text 0.")
    assert verbatim.prompting is not None
    assert (verbatim.prompting.template, verbatim.prompting.max_new_tokens) == ("{question}", 128)
    knowledge = data.evaluation["forget_knowledge"].prompting
    assert knowledge is not None
    assert knowledge.max_new_tokens == 32
    assert knowledge.template == (
        "Question: Who?\nAnswer: Ann\n\nQuestion: When?\nAnswer: 1472\n\nQuestion: {question}\nAnswer:"
    )


def test_the_examples_before_a_question_are_part_of_the_hash(tmp_path: Path) -> None:
    one = load_data(config(write_parts(tmp_path / "one")), seed=0)
    other = [{"question": "Who?", "answer": "Eve"}]
    two = load_data(config(write_parts(tmp_path / "two", knowmem__forget_qa_icl=other)), seed=0)
    assert one.content_hash != two.content_hash


def test_another_request_and_a_sample(tmp_path: Path) -> None:
    data = load_data(config(write_parts(tmp_path), forget="sust/forget_2", max_documents=2), seed=0)
    assert [row.answer for row in data.forget.rows] == ["The second request."]
    assert len(data.retain) == 2


@pytest.mark.slow
def test_a_clone_of_the_hubs_data_set_gives_the_same_rows(tmp_path: Path) -> None:
    files = load_data(config(write_parts(tmp_path / "files")), seed=0)
    hub = write_clone(tmp_path / "hub", PARTS)
    assert load_data(config(hub), seed=0).content_hash == files.content_hash


@pytest.mark.slow
def test_the_shortened_news(shared_data: Path) -> None:
    folder = shared_data / "muse_news"
    data = load_data(config(folder, forget="sust/forget_1", retain="privleak/retain"), seed=0)
    assert len(data.forget) == 25
    assert len(data.evaluation["forget_knowledge"]) == 100
    assert data.evaluation["retain_knowledge"].prompting is not None
    assert data.evaluation["retain_knowledge"].prompting.template.count("Question:") == 11


@pytest.mark.parametrize(
    ("changes", "muse", "error", "message"),
    [
        ({}, {"forget": "raw"}, ConfigError, "name configuration and split"),
        ({}, {"forget": "../raw/forget"}, ConfigError, "name configuration and split"),
        ({}, {"forget": "raw/forgotten"}, DataError, "forgotten.jsonl"),
        ({"privleak__holdout": []}, {}, DataError, "is empty"),
        ({"knowmem__forget_qa": [{"question": "Who?"}]}, {}, DataError, "has no column 'answer'"),
        ({"verbmem__forget": [{"prompt": "The", "gt": " "}]}, {}, DataError, "has no text in column 'gt'"),
        (
            {"privleak__holdout": [{"text": "The forget text 1."}]},
            {},
            DataError,
            r"is also in the forget set.*remove holdout row 1$",
        ),
    ],
)
def test_bad_parts_are_one_sentence(
    tmp_path: Path, changes: Any, muse: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        load_data(config(write_parts(tmp_path, **changes), **muse), seed=0)


def test_a_directory_that_is_not_there() -> None:
    with pytest.raises(DataError, match="There is no MUSE directory /nowhere"):
        load_data(config(Path("/nowhere")), seed=0)


def test_a_config_of_other_data_is_stored_as_before_there_was_muse() -> None:
    assert "muse" not in DataConfig().model_dump(mode="json")
    changed = DataConfig.model_validate({"muse": {"corpus": "books"}})
    assert DataConfig.model_validate(changed.model_dump(mode="json")) == changed
