"""A real pretrained model, SmolLM2-135M-Instruct: right derivatives, the memory of a round, and the whole path.

`make test-model` makes the model and runs these tests, one at a time.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import bench_memory
from bench_derivatives import Case, error
from ofmu.run_config import UnlearnConfig
from ofmu.tasks.load import task_family
from tune import SearchResult

pytestmark = [pytest.mark.model, pytest.mark.timeout(3600)]
ROOT = Path(__file__).resolve().parents[2]
AUTHORS = ("Ana Velar", "Boris Quint")
QUESTIONS = {
    "Where was {} born?": "{} was born in the harbour town of Melk.",
    "What does {} write?": "{} writes long novels about clocks and rivers.",
    "Which prize did {} win?": "{} won the Silver Lantern in 1987.",
    "Who taught {}?": "{} was taught by the poet Irma Stolz.",
}


@pytest.fixture(scope="module")
def model_dir() -> Path:
    directory = os.environ.get("OFMU_TEST_SMOLLM2")
    if not directory:
        pytest.skip("OFMU_TEST_SMOLLM2 names no model: run `make test-model`")
    return Path(directory)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The user's own JSONL files, as overrides of a config."""
    folder = tmp_path_factory.mktemp("rows")
    for name, author in zip(("forget", "retain"), AUTHORS, strict=True):
        lines = [{"question": q.format(author), "answer": a.format(author)} for q, a in QUESTIONS.items()]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return ["data.source=files", f"data.forget={folder}/forget.jsonl", f"data.retain={folder}/retain.jsonl"]


def language_task(model_dir: Path, rows: list[str]) -> Any:
    data = dict(row.removeprefix("data.").split("=", 1) for row in rows)
    mapping = {"model": {"path": str(model_dir), "is_target": True}, "data": data, "reference": {"source": "none"}}
    return task_family("language").load_task(UnlearnConfig.model_validate(mapping), model_dir)


def test_products_are_those_of_float64(model_dir, rows):
    task = language_task(model_dir, rows)
    case = Case(
        lambda double: task.load_model(double_backward=double), task.loss, task.forget_rows[:2], task.retain_rows[:2]
    )
    wanted = [part.float() for part in case.derivatives("exact", double=True).phi_gradient(*case.batches).gradient]
    exact = case.derivatives("reverse_over_forward").phi_gradient(*case.batches).gradient
    assert error(exact, wanted, wanted) < 1e-3
    del exact
    central = case.derivatives("central")
    fitted, estimate = central.fit_inner_step(central.phi_gradient(*case.batches))
    found = error(fitted.gradient, wanted, wanted)
    assert found < 0.01
    assert found < 5 * estimate + 1e-4


@pytest.mark.parametrize(("setting", "goal"), [("simnpo", 20), ("ofmu none, no penalty", 24)])
def test_bytes_a_parameter_are_within_the_goal(setting, goal, model_dir, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench_memory.py", str(model_dir), "--stages", "torch", "--only", setting])
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        bench_memory.main()
    cells = printed.getvalue().splitlines()[-1].split("|")
    assert float(cells[5]) < goal + 0.5


def ofmu(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "ofmu", *arguments], cwd=folder, capture_output=True, text=True, timeout=3000,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_example_runs_from_search_to_evaluation_on_own_rows(model_dir, rows, tmp_path):
    small = [
        f"model.path={model_dir}", *rows, "training.epochs=6", "evaluation.max_new_tokens=8",
        "search.num_trials=3", "method.batch_size=2",
    ]  # fmt: skip
    ofmu(tmp_path, "search", str(ROOT / "examples/smollm2.yaml"), *small, "--run-dir", "run")
    result = SearchResult.load(tmp_path / "run")
    assert result.trials["state"].tolist() == ["complete"] * 3
    target, *trials = (result.trials.iloc[index] for index in range(3))
    assert target["forget_probability"] > 0.3
    forgot = [trial for trial in trials if trial["forget_probability"] < target["forget_probability"] / 2]
    assert forgot
    assert max(trial["retain_probability"] for trial in forgot) > target["retain_probability"] / 2
    last = max(result.trials.index)
    ofmu(tmp_path, "export", "run", "--pick", str(last), "--output", "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert "<|im_start|>" in tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.dtype == torch.float32
    ofmu(tmp_path, "evaluate", "model", "--output", "scored")
    metrics = json.loads((tmp_path / "scored/metrics.json").read_text())["metrics"]
    assert metrics["forget_probability"] == pytest.approx(result.trials["forget_probability"][last], rel=1e-3)
