"""The four parts of WMDP from files, and from a local directory with the layout of the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ofmu.data.config import DataConfig
from ofmu.data.load import load_data
from ofmu.errors import ConfigError, DataError
from wmdp_corpus import write_corpus


def config(**wmdp: Any) -> DataConfig:
    return DataConfig.model_validate({"source": "wmdp", "wmdp": wmdp})


def test_files_give_corpora_and_questions(tmp_path: Path) -> None:
    data = load_data(config(**write_corpus(tmp_path)), seed=0)
    assert len(data.forget) == len(data.retain) == 24
    assert all(row.question == "" for row in data.forget.rows)
    assert {name: len(group) for name, group in data.questions.items()} == {"forget": 8, "utility": 8}
    first = data.questions["forget"].questions[0]
    assert first.choices[first.answer] == "sleep"


def test_a_directory_with_the_hubs_layout_gives_the_same_rows(tmp_path: Path) -> None:
    files = write_corpus(tmp_path)
    hub = tmp_path / "corpora"
    parts = {"cyber-forget-corpus": ("forget_corpus", "train"), "cyber-retain-corpus": ("retain_corpus", "train")}
    configs = []
    for name, (part, split) in parts.items():
        (hub / name).mkdir(parents=True)
        records = [json.loads(line) for line in Path(files[part]).read_text().splitlines()]
        pd.DataFrame(records).to_parquet(hub / name / f"{split}-00000-of-00001.parquet")
        configs.append(f"- config_name: {name}\n  data_files:\n  - split: {split}\n    path: {name}/{split}-*\n")
    (hub / "README.md").write_text("---\nconfigs:\n" + "".join(configs) + "---\n")
    from_hub = {"forget_corpus": f"{hub}:cyber-forget-corpus", "retain_corpus": f"{hub}:cyber-retain-corpus"}
    assert load_data(config(**files | from_hub), 0).content_hash == load_data(config(**files), 0).content_hash


def test_the_seed_draws_the_rows_within_the_limits(tmp_path: Path) -> None:
    files = write_corpus(tmp_path)
    limited = config(**files, max_documents=20, max_questions=5, scored_documents=4)
    data = load_data(limited, seed=0)
    assert len(data.forget) == len(data.retain) == 20
    assert len(data.evaluation["forget"]) == 4
    assert len(data.questions["utility"]) == 5
    assert load_data(limited, 0).content_hash == data.content_hash != load_data(limited, 1).content_hash


def test_other_questions_give_another_hash(tmp_path: Path) -> None:
    files = write_corpus(tmp_path)
    before = load_data(config(**files), 0).content_hash
    path = Path(files["utility_questions"])
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    assert load_data(config(**files), 0).content_hash != before


def test_missing_parts_are_named(tmp_path: Path) -> None:
    files = write_corpus(tmp_path)
    with pytest.raises(DataError, match=r"There is no data file .*nowhere\.jsonl"):
        load_data(config(**files | {"forget_questions": str(tmp_path / "nowhere.jsonl")}), 0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"The data set '.*/empty' cannot be loaded"):
        load_data(config(**files | {"forget_corpus": str(tmp_path / "empty")}), 0)
    with pytest.raises(ConfigError, match="no chem corpora"):
        load_data(config(domain="chem"), 0)
    with pytest.raises(DataError, match="no column 'text'"):
        load_data(config(**files | {"forget_corpus": files["forget_questions"]}), 0)
