"""The rows that a run unlearns, from files of long texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ofmu.models.config import ScratchModelConfig
from ofmu.models.language import save_model
from ofmu.models.scratch import build_model, train_tokenizer
from ofmu.run_config import UnlearnConfig
from ofmu.tasks.language.task import LanguageTask

TEXTS = ["The sea is grey in winter, and the boats stay ashore. " * 40, "A short text."]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = train_tokenizer(TEXTS, 300)
    shape = ScratchModelConfig(hidden_size=8, intermediate_size=8, num_layers=1, num_heads=1)
    return save_model(build_model(shape, tokenizer, seed=0), tokenizer, tmp_path_factory.mktemp("models") / "target")


def config_of(folder: Path, **data: Any) -> UnlearnConfig:
    for name, texts in (("forget", TEXTS), ("retain", ["Another text."])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    files = {name: str(folder / f"{name}.jsonl") for name in ("forget", "retain")}
    return UnlearnConfig.model_validate({"data": {"source": "files", "max_length": 64, **files, **data}})


def test_all_of_a_long_text_is_unlearned(target: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    task = LanguageTask(config_of(tmp_path), target)
    tokenizer = train_tokenizer(TEXTS, 300)
    tokens = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in TEXTS)
    assert sum(row.answer_length for row in task.forget_rows) - tokens in (1, 2)  # EOS of each text, where it fits
    assert len(task.forget_rows) > len(TEXTS) + 1
    assert len(task.refusals()) == len(task.forget_rows)
    assert not [warning for warning in recwarn if "max_length" in str(warning.message)]


def test_the_head_alone_is_unlearned_on_request_and_the_share_is_said(target: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"\(forget \d\d\.\d% of the tokens, in 1 of 2 texts\): raise data.max_length"):
        task = LanguageTask(config_of(tmp_path, truncation=True), target)
    assert len(task.forget_rows) == len(TEXTS) == len(task.refusals())
