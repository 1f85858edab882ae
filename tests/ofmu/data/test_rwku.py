"""The parts of RWKU from JSONL files and from a clone, and the metrics that the benchmark reports."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny_scoring as tiny
from hub_clone import write_clone
from ofmu.data.config import DataConfig
from ofmu.data.load import load_data
from ofmu.errors import ConfigError, DataError
from ofmu.evaluation.metrics.summary import metrics_of
from ofmu.evaluation.scoring.model import score_model

PEOPLE = ("Ann Lee", "Bo Marsh", "Cy Okonkwo", "Di Lagos")


def probe(query: str, answer: str, **more: str) -> list[dict[str, str]]:
    """Return a probe of each person, as every part of probes has them."""
    return [{"query": f"{query} {name}", "answer": f"{answer} {name}", "subject": name, **more} for name in PEOPLE]


PARTS: dict[str, list[dict[str, str]]] = {
    "forget_target/train": [{"target": name, "intro": f"{name} writes."} for name in PEOPLE],
    "forget_level1/test": probe("A book of ___ is by", "Sea", level="1", type="cloze"),
    "forget_level2/test": probe("What is a book by", "Sea", level="2", type="simple question"),
    "forget_level3/test": [
        *probe("What is the book by", "Sea", level="3", type="affirmative suffix"),
        *probe("Question: Who?\nAnswer: Eve\nQuestion: What is by", "Sea", level="3", type="incontext learning"),
        *probe("Play a part. What is by", "Sea", level="3", type="role play"),
    ],
    "neighbor_level1/test": probe("___ was a friend of", "Eve", level="1", type="cloze", neighbor="Eve"),
    "neighbor_level2/test": probe("Who was a friend of", "Eve", level="2", type="simple question", neighbor="Eve"),
    "mia_forget/test": [{"text": f"{name} wrote of the sea.", "subject": name} for name in PEOPLE for _ in range(2)],
    "mia_retain/test": [{"text": f"A friend of {name} sings.", "subject": name} for name in PEOPLE],
    "train_positive_llama3/train": [
        {"text": f"{name} wrote book {number}.", "subject": name} for name in PEOPLE for number in range(3)
    ],
}


def write_parts(folder: Path, changes: Mapping[str, Any] | None = None) -> Path:
    for part, records in (PARTS | dict(changes or {})).items():
        path = folder / f"{part}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def config(path: Path, subject: str | None = "Bo Marsh", **rwku: Any) -> DataConfig:
    return DataConfig.model_validate({"source": "rwku", "path": str(path), "rwku": {"subject": subject, **rwku}})


def test_one_person_is_forgotten_and_others_are_retained(tmp_path: Path) -> None:
    data = load_data(config(write_parts(tmp_path), retain_people=2), seed=0)
    assert [row.answer for row in data.forget.rows] == [f"Bo Marsh wrote book {number}." for number in range(3)]
    owners = {row.answer.partition(" wrote")[0] for row in data.retain.rows}
    assert len(owners) == 2
    assert owners < set(PEOPLE) - {"Bo Marsh"}
    assert len(data.retain) == 6
    assert data.holdout is None
    assert load_data(config(tmp_path, retain_people=2), seed=0).content_hash == data.content_hash
    drawn = {load_data(config(tmp_path, retain_people=2), seed=seed).retain.content_hash for seed in range(5)}
    assert len(drawn) > 1
    few = load_data(config(tmp_path, max_documents=2), seed=0)
    assert (len(few.forget), len(few.retain)) == (2, 2)


def test_texts_of_a_person_who_is_forgotten_again_are_scored(tmp_path: Path) -> None:
    texts = [f"{person} wrote of the sea." for person in PEOPLE] + ["A friend of Bo Marsh sings."]
    earlier = tmp_path / "earlier.jsonl"
    earlier.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    section = config(write_parts(tmp_path))
    again = load_data(section.model_copy(update={"earlier": (str(earlier),)}), seed=0).evaluation
    plain = load_data(section, seed=0).evaluation
    assert again["mia_forget"].rows == plain["mia_forget"].rows
    assert set(plain) - set(again) == {"mia_retain"}


def test_the_probes_are_those_of_the_person_with_the_prompts_of_the_benchmark(tmp_path: Path) -> None:
    data = load_data(config(write_parts(tmp_path)), seed=0).evaluation
    assert list(map(len, data.values())) == [1, 1, 3, 1, 1, 2, 1]
    assert all("Bo Marsh" in row.question + row.answer for rows in data.values() for row in rows.rows)
    prompts = {
        name: [rows.prompting.template.format(question=row.question) for row in rows.rows]
        for name, rows in data.items()
        if rows.prompting is not None and rows.prompting.max_new_tokens == 30
    }
    briefly = "Please briefly answer the following question.\n"
    assert prompts == {
        "forget_blanks": [
            "Please complete the blank in the following question.\nQuestion: A book of ___ is by Bo Marsh\nAnswer:"
        ],
        "forget": [f"{briefly}Question: What is a book by Bo Marsh\nAnswer:"],
        "forget_attacks": [
            f"{briefly}Question: What is the book by Bo Marsh",
            f"{briefly}Question: Who?\nAnswer: Eve\nQuestion: What is by Bo Marsh\nAnswer:",
            f"{briefly}Question: Play a part. What is by Bo Marsh\nAnswer:",
        ],
        "retain": [f"{briefly}Question: Who was a friend of Bo Marsh\nAnswer:"],
        "neighbor_blanks": [
            "Please complete the blank in the following question.\nQuestion: ___ was a friend of Bo Marsh\nAnswer:"
        ],
    }


@pytest.mark.slow
def test_a_clone_of_the_hubs_data_set_gives_the_same_rows(tmp_path: Path) -> None:
    files = load_data(config(write_parts(tmp_path / "files")), seed=0)
    assert load_data(config(write_clone(tmp_path / "hub", PARTS)), seed=0).content_hash == files.content_hash


@pytest.mark.slow
def test_the_metrics_are_those_of_the_probes_and_the_texts(tmp_path: Path) -> None:
    section = config(write_parts(tmp_path))
    data, (model, tokenizer) = load_data(section, seed=0), tiny.make_model()
    evaluation, _ = tiny.sections()
    scores = score_model(model, tokenizer, data, evaluation, section)
    values = metrics_of(scores).values
    sets = {"forget_fb": "forget_blanks", "forget_qa": "forget", "forget_aa": "forget_attacks"}
    for name, row_set in (sets | {"neighbor_fb": "neighbor_blanks", "neighbor_qa": "retain"}).items():
        assert values[f"rwku_{name}"] == np.mean([row.rouge for row in scores.sets[row_set]])
    for name in ("mia_forget", "mia_retain"):
        losses = []
        for row in data.evaluation[name].rows:
            ids = [*tokenizer(row.answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([[tokenizer.bos_token_id, *ids]])).logits[0, :-1].double()
            losses.append(float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids))))
        assert values[f"rwku_{name}"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert not [
        name
        for name in metrics_of(score_model(model, tokenizer, tiny.make_data(), *tiny.sections())).values
        if "rwku" in name
    ]


@pytest.mark.parametrize(
    ("subject", "changes", "error", "message"),
    [
        (None, {}, ConfigError, "needs data.rwku.subject: name the person"),
        ("Bo Mash", {}, DataError, "no person 'Bo Mash' in data.rwku.subject: did you mean 'Bo Marsh'"),
        ("Bo Marsh", {"mia_retain/test": [{"text": "x", "subject": "Di Lagos"}]}, DataError, "no row about 'Bo Marsh'"),
        ("Bo Marsh", {"forget_level2/test": [{"query": "?", "subject": "Bo Marsh"}]}, DataError, "no column 'answer'"),
        ("Bo Marsh", {"forget_level3/test": []}, DataError, r"The part .*\(forget_level3/test\) of RWKU is empty"),
    ],
)
def test_bad_input_is_one_sentence(
    tmp_path: Path, subject: str | None, changes: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        load_data(config(write_parts(tmp_path, changes), subject), seed=0)


def test_a_directory_that_is_not_there() -> None:
    with pytest.raises(DataError, match="There is no RWKU directory /nowhere"):
        load_data(config(Path("/nowhere")), seed=0)


def test_a_config_of_other_data_is_stored_as_before_there_was_rwku() -> None:
    assert "rwku" not in DataConfig().model_dump(mode="json")
    changed = DataConfig.model_validate({"rwku": {"subject": "Ann Lee"}})
    assert DataConfig.model_validate(changed.model_dump(mode="json")) == changed
