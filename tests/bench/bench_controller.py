"""Measure what a search's controller costs per trial, and how long a resume takes.

    python tests/bench/bench_controller.py                                  # some minutes; the table of docs/scale.md
    python tests/bench/bench_controller.py --finished 10000 --in-flight 1 --samplers tpe

The benchmark fills a study of the quickstart's space with finished trials. A search's controller then continues the
study without Ray: it suggests TRIALS more trials, stores their ends, and keeps its tables and files.

Columns in milliseconds per trial: ``suggest`` (draw and store the next trial), ``tell`` (store an end), ``reports``
(tables, files, models and callbacks, when a trial starts and when it ends), ``sum`` of these three, ``slowest``
single trial, and ``CPU`` time of the sum, which depends less on other load of the machine. ``tables`` is the time in
milliseconds of one writing of all trials' tables; a search spends at most a fiftieth of its time on them. ``resume``
is the time in seconds from the run directory to the first suggestion, and ``its CPU`` the CPU time of that.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from ofmu.config.files import read_mapping
from ofmu.run_config import override
from tune.callbacks.callback_list import CallbackList
from tune.callbacks.console import ConsoleCallback
from tune.config import SearchConfig, search_config
from tune.rundir.search_dir import RunDirectory
from tune.search import RaySearch
from tune.space.draw import draw
from tune.study.searcher import StudySearcher, open_study

TRIALS = 200
DIMENSIONS = ("penalty_weight", "similarity_weight", "similarity_threshold", "forget_margin", "inner_lr", "outer_lr")


def objectives(settings: dict[str, Any]) -> dict[str, float]:
    """Return made-up metrics of a run: a smooth trade-off with noise, whose front grows with the number of trials.

    The values are continuous, which is harder than real searches: KS statistics are multiples of 1/rows, so real
    fronts are smaller.
    """
    # A trial without decorrelation has no similarity.
    values = [float(settings.get(f"method.{name}", 1.0)) for name in DIMENSIONS]
    rates = [abs(np.log(abs(value) + 1e-9)) % 1 for value in values]
    along, away = rates[0], float(np.mean(rates[1:]))
    return {
        "ks_statistic": float(np.clip(along**2 + 0.3 * away, 0, 1)),
        "model_utility": float(np.clip(0.9 * along**0.5 - 0.3 * away + 0.1, 0, 1)),
        "forget_truth_ratio": 0.5 + 0.1 * away,
        "extraction_strength": along,
        "exact_memorization": along,
        "gradient_evaluations": 300.0,
        "tokens": 123456.0,
        "seconds": 12.5,
        "peak_memory_bytes": 1.0e9,
    }


def make_config(num_trials: int, sampler: str) -> SearchConfig:
    """Return the quickstart's search config with ``num_trials`` trials."""
    changes = [f"search.num_trials={num_trials}", f"search.sampler={sampler}"]
    return search_config(override(read_mapping("quickstart"), changes))


def fill(run: RunDirectory, config: SearchConfig, finished: int) -> None:
    """Write a study with ``finished`` complete trials, of which the first two are the target and the baseline."""
    run.mkdir()
    run.write_config(config)
    study = open_study(run.study_file, config)
    searcher = StudySearcher(study, config, run.trial)
    for name in ("target", "published"):
        specification = searcher.suggest(name)
        assert isinstance(specification, dict)
        metrics = {"ks_statistic": 0.99, "model_utility": 0.7 if name == "target" else 0.1, "seconds": 12.5}
        searcher.on_trial_complete(name, {"outcome": json.dumps({"metrics": metrics})})
    drawing = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    with patch("os.fsync"):
        for _ in range(finished - 2):
            trial = drawing.ask()
            overrides = draw(trial, config.search.space, config.unlearn)
            add_trial(study, drawing._storage.get_trial(trial._trial_id), overrides, list(config.objectives))


def add_trial(study: optuna.Study, drawn: FrozenTrial, overrides: dict[str, Any], names: list[str]) -> None:
    """Add a complete trial by the operations that a search uses; ``study.add_trial`` writes only one entry."""
    storage = study._storage
    number = storage.create_new_trial(study._study_id)
    for name, distribution in drawn.distributions.items():
        storage.set_trial_param(number, name, distribution.to_internal_repr(drawn.params[name]), distribution)
    metrics = objectives(overrides)
    attributes = {"role": "sampled", "overrides": overrides, "metrics": metrics, "seconds": metrics["seconds"]}
    attributes["gradient_evaluations"] = metrics["gradient_evaluations"]
    for key, value in attributes.items():
        storage.set_trial_user_attr(number, key, value)
    storage.set_trial_state_values(number, TrialState.COMPLETE, [metrics[name] for name in names])


class Clock:
    """Wall seconds by name, and CPU seconds in all."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.cpu = 0.0

    @contextmanager
    def run(self, name: str) -> Iterator[None]:
        """Add the wall time of the block to ``name``, and its CPU time to ``cpu``."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall[name] = self.wall.get(name, 0.0) + time.perf_counter() - wall
        self.cpu += time.process_time() - cpu


def open_search(run: RunDirectory, config: SearchConfig) -> RaySearch:
    """Return a search that is ready to suggest its first trial."""
    view = ConsoleCallback(Console(file=io.StringIO()))
    search = RaySearch(run, config, lambda *_: {}, CallbackList((view,)))
    search.is_over()
    search.session.open()
    view.on_start(search.progress())
    return search


def drive(search: RaySearch, in_flight: int, trials: int) -> tuple[Clock, float]:
    """Fill ``in_flight`` slots with trials; then, ``trials`` times, store the oldest trial's end and suggest another.

    Returns the times without those of filling the slots, and the seconds of the slowest trial.
    """
    searcher, slowest = search.session.searcher, 0.0
    clock, reports = Clock(), Clock()
    finish = searcher._on_finished

    def timed(number: int) -> None:
        with reports.run("reports"):
            finish(number)

    searcher._on_finished = timed
    live: deque[tuple[str, dict[str, Any]]] = deque()

    def suggest(index: int) -> None:
        with clock.run("suggest"):
            specification = searcher.suggest(str(index))
        assert isinstance(specification, dict)
        live.append((str(index), specification))
        with clock.run("reports"):
            search.notify()

    for index in range(in_flight):
        suggest(index)
    clock = Clock()
    for index in range(in_flight, in_flight + trials):
        before = sum(clock.wall.values())
        name, specification = live.popleft()
        settings = {f"method.{key}": value for key, value in specification["run"]["method"].items()}
        metrics = objectives(settings)
        place = Path(specification["trial_dir"])
        (place / "model").mkdir(parents=True)
        (place / "metrics.json").write_text(json.dumps({"metrics": metrics}))
        reports.wall.clear()
        with clock.run("tell"):
            searcher.on_trial_complete(name, {"outcome": json.dumps({"metrics": metrics})})
        clock.wall["tell"] -= reports.wall["reports"]
        clock.wall["reports"] = clock.wall.get("reports", 0.0) + reports.wall["reports"]
        suggest(index)
        slowest = max(slowest, sum(clock.wall.values()) - before)
    return clock, slowest


def measure(sampler: str, finished: int, in_flight: int, trials: int, place: str) -> str:
    """Return one line of the table; ``place`` is the folder for the run directory."""
    config = make_config(finished + in_flight + trials + 1, sampler)
    with tempfile.TemporaryDirectory(prefix="c", dir=place) as folder:
        run = RunDirectory.create_new(Path(folder) / "run")
        fill(run, config, finished)
        opening, writing = Clock(), Clock()
        with opening.run("resume"):
            search = open_search(RunDirectory.open_existing(run.path), run.read_config())
        clock, slowest = drive(search, in_flight, trials)
        with writing.run("tables"):
            result = search.report()
    cells = [clock.wall[name] * 1000 / trials for name in ("suggest", "tell", "reports")]
    return (
        f"{sampler:<8}{finished:>9}{in_flight:>10}{len(result.front):>7}"
        + "".join(f"{cell:>9.1f}" for cell in [*cells, sum(cells), slowest * 1000, clock.cpu * 1000 / trials])
        + f"{writing.wall['tables'] * 1000:>9.1f}{opening.wall['resume']:>9.2f}{opening.cpu:>9.2f}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--finished", type=int, nargs="+", default=[100, 1_000, 10_000])
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--samplers", nargs="+", default=["tpe", "random"])
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--place", default="/tmp", help="the folder for run directories, whose disk is measured too")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    columns = ("suggest", "tell", "reports", "sum", "slowest", "CPU", "tables", "resume", "its CPU")
    print(f"{'sampler':<8}{'finished':>9}{'in flight':>10}{'front':>7}" + "".join(f"{name:>9}" for name in columns))
    for sampler in arguments.samplers:
        for finished in arguments.finished:
            for in_flight in arguments.in_flight:
                print(measure(sampler, finished, in_flight, arguments.trials, arguments.place), flush=True)
    print(f"milliseconds per trial, resume in seconds; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
