"""Tasks of lm-eval on a model in memory: the numbers of lm-eval's own class on the same model."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import tiny_scoring as tiny
from harness_case import TASKS, write_tasks
from ofmu.config.files import validate
from ofmu.evaluation.config import EvaluationConfig
from ofmu.evaluation.harness.run import run_tasks
from ofmu.evaluation.scoring.sharding import Shard
from ofmu.evaluator import evaluate
from ofmu.models.language import save_model
from ofmu.preparer import prepare
from ofmu.run_config import UnlearnConfig, override
from ofmu.testing import run_script_on_ranks

lm_eval = pytest.importorskip("lm_eval", reason="the package lm-eval is not installed: pip install 'ofmu[lm-eval]'")

RUN = Path(__file__).resolve().parents[3] / "helpers" / "sharded_run.py"
VALUES = {
    "local_choice": ("acc", "acc_stderr", "acc_norm", "acc_norm_stderr"),
    "local_answer": ("exact_match", "exact_match_stderr", "chrf", "chrf_stderr"),
    "local_text": ("word_perplexity", "word_perplexity_stderr", "byte_perplexity", "byte_perplexity_stderr"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    """A model, its tokenizer, and its directory."""
    model, tokenizer = tiny.make_model()
    directory = tmp_path_factory.mktemp("model")
    save_model(model, tokenizer, directory)
    return model, tokenizer, directory


def evaluation_of(folder: Path, **settings: Any) -> EvaluationConfig:
    return EvaluationConfig(**{"lm_eval": TASKS, "lm_eval_path": str(folder), "batch_size": 2, **settings})


def by_lm_eval(directory: Path, folder: Path, batch_size: int = 2, **options: Any) -> dict[str, Any]:
    """Return what lm-eval's own class gives for a saved model, by our names."""
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    found = lm_eval.simple_evaluate(
        model=HFLM(pretrained=str(directory), device="cpu", dtype="float32", batch_size=batch_size),
        tasks=list(TASKS),
        batch_size=batch_size,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        log_samples=False,
        **options,
    )["results"]
    values = {f"lm_eval/{task}/{name}": found[task][f"{name},none"] for task in TASKS for name in VALUES[task]}
    return {name: None if value == "N/A" else value for name, value in values.items()}


def test_results_are_those_of_lm_eval(
    saved: tuple[Any, Any, Path], folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer, directory = saved
    model.train()
    random.seed(5), np.random.seed(6), torch.manual_seed(7)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index]
    found = run_tasks(model, tokenizer, evaluation_of(folder), Shard())
    assert model.training
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]  # type: ignore[index]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert "Running" not in "".join(capfd.readouterr())
    expected = by_lm_eval(directory, folder)
    assert dict(found.metrics) == expected
    assert 0 < (found.metrics["lm_eval/local_choice/acc"] or 0) < 1, "this model is right at times"
    assert 0 < (found.metrics["lm_eval/local_answer/chrf"] or 0) < 100, "its texts have a few characters of the answers"
    assert found.reasons.keys() == {name for name, value in expected.items() if value is None}
    task = found.details["tasks"]["local_choice"]
    assert found.details["version"] == lm_eval.__version__
    assert (task["version"], task["documents"], task["fewshot"]) == (2.0, 7, 0)
    assert task["higher_is_better"] == {"acc": True, "acc_norm": True}


def test_examples_in_the_prompt_and_the_limit_are_those_of_lm_eval(saved: tuple[Any, Any, Path], folder: Path) -> None:
    model, tokenizer, directory = saved
    evaluation = evaluation_of(folder, lm_eval_limit=3, lm_eval_fewshot=1, lm_eval=TASKS[:1])
    found = run_tasks(model, tokenizer, evaluation, Shard())
    assert found.details["tasks"]["local_choice"]["documents"] == 3
    assert found.details["tasks"]["local_choice"]["documents_of_task"] == 7
    assert found.details["tasks"]["local_choice"]["fewshot"] == 1
    expected = by_lm_eval(directory, folder, limit=3, num_fewshot=1)
    assert dict(found.metrics) == {name: expected[name] for name in found.metrics}


def test_a_group_has_its_own_values_and_a_tag_those_of_its_tasks(saved: tuple[Any, Any, Path], tmp_path: Path) -> None:
    model, tokenizer, _ = saved
    folder = write_tasks(tmp_path / "tasks")
    task = yaml.safe_load((folder / "local_choice.yaml").read_text())
    for name in ("one", "two"):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**task, "task": name, "tag": "both"}))
    found = run_tasks(model, tokenizer, evaluation_of(folder, lm_eval=("both",)), Shard()).metrics
    assert {name.split("/")[1] for name in found} == {"one", "two"}
    alone = run_tasks(model, tokenizer, evaluation_of(folder, lm_eval=("local_choice",)), Shard()).metrics
    assert found["lm_eval/two/acc"] == found["lm_eval/one/acc"] == alone["lm_eval/local_choice/acc"]


def test_a_task_that_fails_is_missing_with_its_reason(saved: tuple[Any, Any, Path], tmp_path: Path) -> None:
    model, tokenizer, _ = saved
    folder = write_tasks(tmp_path / "tasks")
    file = folder / "local_answer.yaml"
    file.write_text(file.read_text().replace("max_gen_toks: 12", "max_gen_toks: 99999"))
    found = run_tasks(model, tokenizer, evaluation_of(folder, lm_eval=("local_answer",)), Shard())
    assert dict(found.metrics) == {"lm_eval/local_answer": None}
    assert "generates up to 99999 tokens, and the model has" in found.reasons["lm_eval/local_answer"]


@pytest.mark.ranks
@pytest.mark.timeout(300)
def test_a_run_under_zero_3_on_two_ranks_measures_what_lm_eval_measures_of_its_model(
    tiny_mapping: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    overrides = ("engine.zero_stage=3", "method.name=graddiff", "method.steps=2", "method.lr=0.002")
    mapping = override(tiny_mapping, overrides)
    mapping["evaluation"] |= {"lm_eval": list(TASKS), "lm_eval_path": str(folder), "batch_size": 2, "rouge": False}
    config = validate(UnlearnConfig, mapping)
    prepare(config)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    run_script_on_ranks(RUN, 2, str(tmp_path / "config.yaml"), str(tmp_path / "run"))

    report = json.loads((tmp_path / "run" / "metrics.json").read_text())
    expected = by_lm_eval(tmp_path / "run" / "model", folder)
    found = {name: report["metrics"][name] for name in expected}
    assert found == pytest.approx(expected, rel=1e-5, nan_ok=True)
    assert report["lm_eval"]["tasks"]["local_choice"]["documents"] == 7
    own = evaluate(tmp_path / "run" / "model", config)
    assert {name: own["metrics"][name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert own["lm_eval"]["version"] == lm_eval.__version__
