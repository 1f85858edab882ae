"""The tasks of lm-eval that a config names: what is missing, and what is not loaded, is said in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from harness_case import write_tasks
from ofmu.content import content_of
from ofmu.errors import ConfigError, DataError, OfmuError, nearest_name
from ofmu.evaluation.config import EvaluationConfig
from ofmu.evaluation.harness import tasks
from ofmu.run_config import UnlearnConfig


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of tasks. The index of lm-eval's own tasks, which takes ten seconds to read, is left out."""
    harness = pytest.importorskip("lm_eval.tasks", reason="the package lm-eval is not installed")
    monkeypatch.setattr(
        tasks, "_whole_index", lambda path, _: harness.TaskManager(include_path=path, include_defaults=False)
    )
    return write_tasks(tmp_path / "tasks")


def load(folder: Path, name: str) -> None:
    tasks.load_tasks(EvaluationConfig(lm_eval=(name,), lm_eval_path=str(folder)))


def test_a_task_in_the_folder_is_loaded(folder: Path) -> None:
    load(folder, "local_choice")


def test_an_unknown_task_is_named_with_its_nearest_name(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"Unknown task 'local_chioce' in evaluation.lm_eval: .*'local_choice'"):
        load(folder, "local_chioce")


def test_thousands_of_names_are_not_listed() -> None:
    names = [f"task_{number}" for number in range(5000)]
    assert nearest_name("zzz", names) == "none of the 5000 valid names is like it"
    assert nearest_name("task_49999", names) == "did you mean 'task_4999'?"
    assert nearest_name("zzz", names[:2]) == "valid names are task_0, task_1"


def test_the_path_of_a_task_file_is_no_name(folder: Path) -> None:
    """lm-eval would load the file, which may run code, without a look at evaluation.lm_eval_path."""
    with pytest.raises(ConfigError, match="Unknown task"):
        load(folder, str(folder / "local_choice.yaml"))


@pytest.mark.parametrize("text", ["task: [broken", "- a list", "include: nowhere.yaml\ntask: broken"])
def test_a_malformed_task_file_is_named(folder: Path, text: str) -> None:
    (folder / "broken.yaml").write_text(text)
    load(folder, "local_choice")
    with pytest.raises(ConfigError, match=r"The task file .*broken\.yaml cannot be read: ") as caught:
        load(folder, "broken")
    assert "\n" not in str(caught.value)


def test_missing_data_are_named(folder: Path) -> None:
    (folder / "data" / "test.json").unlink()
    with pytest.raises(DataError, match="The lm-eval task 'local_choice' cannot be loaded: FileNotFoundError"):
        load(folder, "local_choice")


def test_a_missing_folder_is_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluation.lm_eval_path '.*gone' is no folder"):
        load(folder / "gone", "local_choice")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric_list": [{"metric": "a_script_of_the_hub"}]}, "would run a script of the hub"),
        ({"metric_list": [{"metric": "accuracy", "hf_evaluate": True}]}, "would run a script of the hub"),
        ({"unsafe_code": True}, "runs code that the model writes"),
        ({"output_type": "nothing"}, "cannot be loaded: ValueError"),
    ],
)
def test_a_task_that_is_not_run_here_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    task = yaml.safe_load((folder / "local_choice.yaml").read_text()) | {"task": "changed"} | changes
    (folder / "changed.yaml").write_text(yaml.safe_dump(task))
    with pytest.raises(OfmuError, match=message) as caught:
        load(folder, "changed")
    assert "'changed'" in str(caught.value)


def test_without_the_package_one_sentence_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "find_spec", lambda _: None)
    with pytest.raises(
        ConfigError, match=r"needs the package lm-eval, which is missing: pip install 'ofmu\[lm-eval\]'"
    ):
        tasks.check_tasks(EvaluationConfig(lm_eval=("hellaswag",)))
    tasks.check_tasks(EvaluationConfig())


def test_a_config_stores_the_keys_that_are_set() -> None:
    assert not {"lm_eval", "lm_eval_path", "lm_eval_limit", "lm_eval_fewshot"} & EvaluationConfig().model_dump().keys()
    for setting in ({"lm_eval": ["a"]}, {"lm_eval_fewshot": 0}, {"lm_eval_limit": 5}, {"lm_eval_path": "mine"}):
        config = EvaluationConfig.model_validate(setting)
        assert EvaluationConfig.model_validate(config.model_dump(mode="json")) == config


def test_keys_without_a_task_have_no_effect() -> None:
    config = UnlearnConfig(evaluation=EvaluationConfig(lm_eval_fewshot=0, lm_eval_path="mine"))
    assert [note.partition(" has")[0] for note in config.ineffective()] == [
        "evaluation.lm_eval_path",
        "evaluation.lm_eval_fewshot",
    ]


def test_a_run_never_continues_on_other_tasks(tmp_path: Path) -> None:
    folder = write_tasks(tmp_path / "tasks")
    config = UnlearnConfig.model_validate(
        {
            "data": {"generated": {"authors": 4, "forget_authors": 1}},
            "evaluation": {"lm_eval": ["local_choice"], "lm_eval_path": str(folder)},
        }
    )
    before = content_of(config)
    assert content_of(config) == before
    (folder / "data" / "notes.txt").write_text("no task")
    assert content_of(config) == before
    (folder / "help.py").write_text("def f(doc): return doc")
    after = content_of(config)
    assert [name for name in before if after[name] != before[name]] == ["the tasks at evaluation.lm_eval_path"]
