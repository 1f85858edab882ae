"""Rows that changed after the run that made a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ofmu.changed_rows import changed_rows
from ofmu.content import ROWS, write_content
from ofmu.data.load import load_data
from ofmu.data.rows import UnlearnData, row_key
from ofmu.evaluation.scores import AnswerLoss, RowScores, Scores
from ofmu.run_config import UnlearnConfig
from ofmu.run_files import RunFiles
from ofmu.tasks.load import task_family


def write_rows(file: Path, count: int) -> None:
    rows = [{"question": f"Who wrote {file.stem} {number}?", "answer": "Ann."} for number in range(count)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def config(tmp_path: Path) -> UnlearnConfig:
    for name in ("forget", "retain"):
        write_rows(tmp_path / f"{name}.jsonl", 3)
    data = {"source": "files", **{name: str(tmp_path / f"{name}.jsonl") for name in ("forget", "retain")}}
    return UnlearnConfig.model_validate({"data": data})


@pytest.fixture
def run(tmp_path: Path, config: UnlearnConfig) -> RunFiles:
    files = RunFiles(tmp_path / "run")
    files.model.mkdir(parents=True)
    files.write_config(config.model_dump(mode="json"))
    data = load_data(config.data, 0)
    write_content(files.directory, {ROWS: data.content_hash})
    scores_of(data).save(files.scores)
    return files


def scores_of(data: UnlearnData) -> Scores:
    loss = AnswerLoss(1.0, 2)
    sets = {
        name: tuple(
            RowScores(question=row.question, ground_truth=row.answer, row_hash=row_key(row), answer=loss)
            for row in rows.rows
        )
        for name, rows in data.evaluation.items()
    }
    return Scores(model="m", truth_ratio="geometric", sets=sets, data_hash=data.content_hash)


def note(run: RunFiles, config: UnlearnConfig) -> str | None:
    found = changed_rows(run.model, config, load_data(config.data, config.seed))
    return None if found is None else found.sentence


def test_the_rows_of_the_run_get_no_note(run: RunFiles, config: UnlearnConfig) -> None:
    assert note(run, config) is None


def test_the_file_that_lost_a_row_is_named(run: RunFiles, config: UnlearnConfig, tmp_path: Path) -> None:
    write_rows(tmp_path / "forget.jsonl", 2)
    sentence = note(run, config)
    assert sentence is not None
    assert f"{tmp_path / 'forget.jsonl'} has 2 scored rows, and had 3" in sentence
    assert "retain.jsonl" not in sentence
    assert f"run 'ofmu prepare {run.config}'" in sentence


def test_the_order_of_rows_is_named_too(run: RunFiles, config: UnlearnConfig, tmp_path: Path) -> None:
    file = tmp_path / "retain.jsonl"
    file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))
    assert f"{file} has other rows, or another order" in str(note(run, config))


def test_an_exported_model_has_the_hash_in_its_metrics(run: RunFiles, config: UnlearnConfig, tmp_path: Path) -> None:
    report = {"metrics": {}, "data_hash": load_data(config.data, 0).content_hash}
    run.write_report(report)
    (run.directory / "content.json").unlink()
    run.scores.unlink()
    assert note(run, config) is None
    write_rows(tmp_path / "forget.jsonl", 2)
    assert "The rows are not those of the run that made this model" in str(note(run, config))


def test_a_config_that_names_other_rows_wants_them(run: RunFiles, config: UnlearnConfig, tmp_path: Path) -> None:
    write_rows(tmp_path / "other.jsonl", 2)
    changed = config.model_copy(
        update={"data": config.data.model_copy(update={"forget": str(tmp_path / "other.jsonl")})}
    )
    assert note(run, changed) is None


def test_a_model_that_no_run_made_gets_no_note(config: UnlearnConfig, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    assert changed_rows(tmp_path / "own", config, load_data(config.data, 0)) is None


@pytest.mark.parametrize(
    ("changed", "kept", "gone"),
    [
        ("forget", {"retain_probability", "model_utility"}, {"forget_probability", "extraction_strength"}),
        ("retain", {"forget_probability"}, {"retain_probability", "model_utility"}),
        ("both", set(), {"forget_probability", "retain_probability"}),
    ],
)
def test_the_targets_metrics_on_the_other_rows_are_kept(
    run: RunFiles, config: UnlearnConfig, tmp_path: Path, changed: str, kept: set[str], gone: set[str]
) -> None:
    config = config.model_copy(update={"cache_dir": str(tmp_path / "cache")})
    stored = tmp_path / "cache" / "scores" / "key" / "scores.json"
    stored.parent.mkdir(parents=True)
    scores_of(load_data(config.data, 0)).save(stored)
    run.write_report({"metrics": {}, "prepared": {"target_scores": "key"}, "config": config.model_dump(mode="json")})
    for name in ("forget", "retain") if changed == "both" else (changed,):
        write_rows(tmp_path / f"{name}.jsonl", 2)
    found = changed_rows(run.model, config, load_data(config.data, 0))
    assert found is not None
    family = task_family("language")
    values = found.target_metrics(config, family)
    assert kept <= values.keys()
    assert not gone & values.keys()
    assert None not in values.values()
    # Scores of another evaluation do not compare.
    evaluation = config.evaluation.model_copy(update={"max_new_tokens": 3})
    assert found.target_metrics(config.model_copy(update={"evaluation": evaluation}), family) == {}
    stored.unlink()
    assert found.target_metrics(config, family) == {}
