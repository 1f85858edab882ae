"""The examples, run by the very commands that their docstrings give, in a copy of their folder."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from transformers import AutoModelForCausalLM

from tune import SearchResult

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that holds the examples and nothing of this package."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def commands_of(name: str) -> list[list[str]]:
    """Return the indented ``python …`` lines of an example's docstring."""
    text = ast.get_docstring(ast.parse((ROOT / "examples" / name).read_text(encoding="utf-8"))) or ""
    return [match.split() for match in re.findall(r"^ {4}python (.+)$", text, re.MULTILINE)]


def run(folder: Path, arguments: list[str]) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=os.environ.copy(), capture_output=True, text=True, timeout=380
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def only_run(folder: Path) -> SearchResult:
    (run_dir,) = (folder / "runs").iterdir()
    return SearchResult.load(run_dir)


@pytest.mark.cluster
def test_pareto_search(folder, ray_folder):
    (command,) = commands_of("pareto_search.py")
    output = run(folder, command)
    result = only_run(folder)
    assert result.trials["state"].tolist() == ["complete"] * 4
    assert len(re.findall(r"^trial \d \(\w+\) is complete: ks_statistic \d", output, re.MULTILINE)) == 4
    assert AutoModelForCausalLM.from_pretrained(result.run_dir / "knee").num_parameters() > 0
    assert f"hypervolume {result.hypervolume:.3f}" in output


@pytest.mark.long
@pytest.mark.slow
def test_ask_tell(folder):
    command, again = commands_of("ask_tell.py")
    output = run(folder, command)
    result = only_run(folder)
    assert result.trials["state"].tolist() == ["complete"] * 4
    assert len(re.findall(r"^trial \d is complete", output, re.MULTILINE)) == 4
    assert again[:-1] == command
    output = run(folder, [*command, str(result.run_dir)])
    assert "is complete" not in output, "nothing is left to do"
    assert f"hypervolume {result.hypervolume:.3f}" in output


@pytest.mark.cluster
def test_own_method(folder, ray_folder, monkeypatch):
    (command,) = commands_of("own_method.py")
    output = run(folder, command)
    # whoever reads the run needs the module as well
    monkeypatch.syspath_prepend(folder / "examples")
    result = only_run(folder)
    assert result.trials["state"].tolist() == ["complete"] * 4, result.trials["reason"].tolist()
    table = pd.read_csv(result.run_dir / "trials.csv")
    assert table["own_module:best_remembered"].between(0, 1).all()
    assert table["method.half_life"].nunique() > 1
    assert f"hypervolume {result.hypervolume:.3f}" in output


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_short(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) < 80
    assert max(map(len, lines)) <= 120
