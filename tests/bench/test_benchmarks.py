"""Two benchmarks measure what they say. Mypy checks that all of them still fit the code."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest


def rows_of(script: str, *arguments: str) -> list[str]:
    """Run a benchmark and return the lines that it prints."""
    command = [sys.executable, str(Path(__file__).with_name(script)), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("script", sorted(Path(__file__).parent.glob("bench_*.py")), ids=lambda path: path.stem)
def test_every_benchmark_runs_without_arguments(script: Path) -> None:
    """`make bench` gives none."""
    calls = [node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.Call)]
    for call in calls:
        if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument":
            name = next((str(part.value) for part in call.args if isinstance(part, ast.Constant)), "--computed")
            options = {keyword.arg: keyword.value for keyword in call.keywords}
            required = "required" in options or (not name.startswith("-") and "nargs" not in options)
            assert not required, f"{script.name} needs {name}"


@pytest.mark.long
def test_the_controller_benchmark_continues_a_search(tmp_path: Path) -> None:
    arguments = ("--finished", "12", "--in-flight", "1", "--trials", "2", "--place", str(tmp_path))
    header, *rows = rows_of("bench_controller.py", *arguments)
    assert [row.split()[0] for row in rows[:2]] == ["tpe", "random"]
    assert len(rows[0].split()) == len(header.replace("in flight", "in-flight").replace("its CPU", "its-CPU").split())


@pytest.mark.long
def test_the_overhead_benchmark_times_every_counted_pass() -> None:
    # The benchmark itself compares the passes that it timed with the gradient evaluations that the engine counted.
    _, _, *rows = rows_of("bench_overhead.py", "--rounds", "1", "--stages", "torch")
    assert [row.split("|")[2].strip() for row in rows] == ["inner", "outer"]
    assert [int(row.split("|")[3]) for row in rows] == [6, 18]
