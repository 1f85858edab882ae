from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofmu.errors import DataError
from simulation.curves import SYNTHETIC_SETTINGS, read_curves, synthetic_curve

NAMES = ["ks_statistic", "model_utility"]
ROWS = [
    ("a", 2, 30, 0.5, 0.7),
    ("a", 1, 10, 0.9, 0.8),
    ("b", 1, 5, None, 0.6),
]


def write_lines(path, rows):
    lines = [
        {"trial": trial, "round": round, "cost": cost, "objectives": dict(zip(NAMES, values, strict=True)), "more": 1}
        for trial, round, cost, *values in rows
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    return path


def write_csv(path, rows):
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    path.write_text("\n".join(",".join(row) for row in [["trial", "round", "cost", *NAMES], *cells]) + "\n")
    return path


@pytest.mark.parametrize(("name", "write"), [("curves.jsonl", write_lines), ("curves.csv", write_csv)])
def test_a_table_is_read_from_json_lines_and_from_csv(tmp_path, name, write):
    first, second = read_curves(write(tmp_path / name, ROWS), NAMES)
    assert first.costs.tolist() == [10, 30]
    assert first.values.tolist() == [[0.9, 0.8], [0.5, 0.7]]
    assert second.rounds == 1
    assert np.isnan(second.values[0, 0])


def test_the_objectives_are_chosen_by_name(tmp_path):
    curves = read_curves(write_lines(tmp_path / "curves.jsonl", ROWS), ["model_utility"])
    assert curves[0].values.tolist() == [[0.8], [0.7]]


@pytest.mark.parametrize(
    "rows",
    [[("a", 1, 10, 0.9, 0.8), ("a", 3, 30, 0.5, 0.7)], [("a", 1, 10, 0.9, 0.8), ("a", 2, 9, 0.5, 0.7)]],
)
def test_rounds_that_are_missing_and_costs_that_fall_are_refused(tmp_path, rows):
    with pytest.raises(DataError, match="trial a with rounds"):
        read_curves(write_lines(tmp_path / "curves.jsonl", rows), NAMES)


@pytest.mark.parametrize("text", ["no json", '{"trial": 1, "round": 1, "objectives": {}}', "[1]"])
def test_what_is_no_table_is_refused_by_name(tmp_path, text):
    path = tmp_path / "curves.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=r"curves\.jsonl"):
        read_curves(path, NAMES)
    with pytest.raises(DataError, match=r"absent\.csv"):
        read_curves(tmp_path / "absent.csv", NAMES)


@given(st.lists(st.floats(0, 1), min_size=6, max_size=6), st.integers(0, 2**32))
def test_a_synthetic_curve_is_a_plausible_trial(settings, seed):
    assert len(settings) == len(SYNTHETIC_SETTINGS)
    curve = synthetic_curve(settings, seed)
    assert 12 <= curve.rounds <= 36
    assert (np.diff(curve.costs, prepend=0.0) >= 7).all()
    assert ((curve.values >= 0) & (curve.values <= 1)).all()
    assert (synthetic_curve(settings, seed).values == curve.values).all()


def test_synthetic_forgetting_falls_utility_dips_and_recovers_and_curves_cross():
    slow, fast = (
        [synthetic_curve([s, 0.6, 0.4, 0.5, 0.8, 0.5], seed).values for seed in range(40)] for s in (0.2, 0.8)
    )
    slow_mean, fast_mean = np.mean(slow, axis=0), np.mean(fast, axis=0)
    assert slow_mean[0, 0] > slow_mean[10, 0] > slow_mean[-1, 0]
    assert fast_mean[:, 1].argmin() not in (0, len(fast_mean) - 1)
    assert fast_mean[3, 1] < slow_mean[3, 1]
    assert fast_mean[3, 0] < slow_mean[3, 0]


def test_the_settings_of_the_quickstarts_trials_are_those_of_its_curves():
    bench = Path(__file__).parents[1]
    curves = read_curves(bench / "quickstart_curves.csv", ["ks_statistic", "model_utility"])
    with (bench / "quickstart_settings.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(curves)
    for row, curve in zip(rows, curves, strict=True):
        assert int(row["method.outer_steps"]) == curve.rounds
        assert [float(row["ks_statistic"]), float(row["model_utility"])] == curve.values[-1].tolist()


def test_a_public_tables_training_sizes_become_rounds_of_equal_cost(tmp_path):
    sizes = {16: (0.5, 2.0), 64: (0.6, 1.5), 160: (0.7, 1.0), 256: (0.8, 0.5)}
    for name, column in (("accuracy", 0), ("logloss", 1)):
        lines = ["openmlid,learner,size_train,outer_seed,inner_seed,score_valid"]
        lines += [f"7,tree,{size},0,0,{values[column]}" for size, values in sizes.items()]
        lines += ["7,cut short,16,0,0,0.1", "8,tree,16,0,0,0.2"]
        (tmp_path / f"database-{name}.csv").write_text("\n".join(lines) + "\n")
    script = Path(__file__).parents[1] / "make_lcdb.py"
    subprocess.run([sys.executable, script, tmp_path, "7"], cwd=tmp_path, check=True)
    (curve,) = read_curves(tmp_path / "lcdb_7.csv", ["accuracy", "log_loss"])
    assert curve.costs.tolist() == [100 * number / 16 for number in range(1, 17)]
    assert curve.values.tolist() == [[0.5, 2.0]] * 3 + [[0.6, 1.5]] * 6 + [[0.7, 1.0]] * 6 + [[0.8, 0.5]]
