"""What ``print`` shows of a search's result."""

from __future__ import annotations

from pathlib import Path

from ofmu.reports.numbers import number
from search_runs import write_search
from tune import AskTell

SPACE = {"method.outer_lr": {"low": 1e-5, "high": 1e-2, "log": True}, "method.inner_steps": {"low": 1, "high": 4}}


def test_a_result_prints_objectives_costs_and_settings_of_the_front(tmp_path: Path):
    result = write_search(tmp_path / "run", space=SPACE)
    head, names, *rows = str(result).splitlines()
    assert head == f"front {len(result.front)}, hypervolume {result.hypervolume:.4f}, {tmp_path / 'run'}"
    expected = "trial  role  ks_statistic  model_utility  gradient evaluations  time  settings"
    assert names.split() == expected.split()
    assert [int(row.split()[0]) for row in rows] == result.front["trial"].tolist()
    (knee,) = (row for row in rows if ", knee" in row)
    assert int(knee.split()[0]) == result.knee.number
    settings = {name: result.knee.values[f"method.{name}"] for name in ("outer_lr", "inner_steps")}
    assert dict(part.split() for part in knee[names.index("settings") :].split(", ")) == {
        "outer_lr": number(settings["outer_lr"], 3),
        "inner_steps": str(settings["inner_steps"]),
    }
    assert knee.index("outer_lr") == names.index("settings")


def test_many_settings_stand_below_the_objectives(tmp_path: Path):
    result = write_search(tmp_path / "run")
    lines = str(result).splitlines()[1:]
    assert max(map(len, lines)) <= 120
    below = [line for line in lines if line.startswith(" ")]
    assert len(lines) - len(below) == 1 + len(result.front)
    assert sum(line.count("inner_lr_scale") for line in below) == len(result.front)


def test_a_result_without_a_complete_trial_prints_that_its_front_is_empty(tmp_path: Path):
    with AskTell({"search": {"num_trials": 4}}, run_dir=tmp_path / "run") as loop:
        assert str(loop.result()) == f"front 0, hypervolume 0.0000, {tmp_path / 'run'}"
