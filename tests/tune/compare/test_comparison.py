"""How a comparison runs its searches. No search trains anything here."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from rich.console import Console

from ofmu.cli.main import main
from ofmu.config.files import read_mapping
from tune import AskTell
from tune.compare import comparison
from tune.compare.analysis import MethodRuns
from tune.compare.callback import CompareCallback
from tune.compare.comparison import Comparison
from tune.compare.console import CompareConsoleCallback
from tune.compare.directory import CompareDirectory
from tune.results.importances import load_trials
from tune.results.result import SearchResult
from tune.rundir.search_dir import RunDirectory


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, int | None]]:
    """Return a function that starts a comparison or adds methods to it, and returns the limits of all searches.

    Each search stores its config and spends 730 gradient evaluations.
    """

    def search(session, name, config, callbacks):
        run = RunDirectory(session._home.search(name))
        if not run.config_file.is_file():
            run.mkdir()
            run.write_config(config)
        trials = pd.DataFrame({"gradient_evaluations": [400.0, 330.0], "state": ["complete", "complete"]})
        return SimpleNamespace(run_dir=run.path, trials=trials)

    def start(*methods: str, budget: str | int = "evaluations") -> dict[str, int | None]:
        home = CompareDirectory(tmp_path / "run")
        if home.config_file.is_file():
            mapping = home.read_mapping([f"compare.methods={','.join(methods)}"])
        else:
            mapping = Comparison(read_mapping("quickstart"), methods, budget=budget, run_dir=home.path).mapping
            home.mkdir()
        home.write_mapping(mapping, replace_environment=False)
        comparison._Session(home, mapping, None, CompareCallback())._search_all()
        stored = {name: RunDirectory(home.search(name)).read_mapping()["search"] for name in methods}
        return {name: section["max_gradient_evaluations"] for name, section in stored.items()}

    monkeypatch.setattr(comparison._Session, "_search", search)
    return start


@pytest.mark.parametrize("wider", [("npo", "graddiff", "ofmu"), ("ofmu", "graddiff", "npo")])
def test_methods_that_a_resume_adds_get_the_budget_of_the_others(started, wider):
    """OFMU sets the budget of a new comparison. Here the first method has set it before OFMU was added."""
    assert started("npo", "graddiff") == {"npo": None, "graddiff": 730}
    assert started(*wider) == {"npo": None, "graddiff": 730, "ofmu": 730}
    assert started(*wider, "simnpo") == {"npo": None, "graddiff": 730, "ofmu": 730, "simnpo": 730}


def test_a_resume_before_the_first_search_chooses_the_method_anew(started, tmp_path):
    home = CompareDirectory(tmp_path / "run")
    home.mkdir()
    home.write_mapping(
        Comparison(read_mapping("quickstart"), ["npo", "graddiff"], budget="evaluations").mapping,
        replace_environment=False,
    )
    assert started("npo", "graddiff", "ofmu") == {"npo": 730, "graddiff": 730, "ofmu": None}


@pytest.mark.slow
def test_the_console_says_why_no_point_of_a_method_runs_again(tmp_path):
    """Both trials forget more than the target. They break the constraint."""
    stream = io.StringIO()
    session = without_points(tmp_path / "run", CompareConsoleCallback(Console(file=stream, width=200)))
    assert runs_of(session, searched(session, "npo")).points == ()
    cause = "no trial but the untouched target keeps the constraints (model_utility ≥ 0.75)"
    assert stream.getvalue() == f"npo: nothing runs on other seeds, since {cause}\n"


@pytest.mark.slow
def test_trials_of_an_earlier_search_count_neither_as_trials_nor_as_cost(tmp_path):
    session = without_points(tmp_path / "run")
    earlier = searched(session, "earlier")
    found = searched(session, "npo", warm_start=earlier.run_dir)
    assert (found.trials["state"] == "prior").sum() == 1, "the earlier search has two baselines"
    runs = runs_of(session, found)
    assert (runs.trials, runs.search_gradient_evaluations, runs.search_seconds) == (3, 30, 6)
    assert comparison._spent(found) == 30


def without_points(run_dir: Path, callback: CompareCallback | None = None) -> comparison._Session:
    """Return a comparison in which only the untouched target of :func:`searched` keeps the constraint."""
    search = {"num_trials": 3, "constraints": {"model_utility": {"min": 0.75}}, "sampler": "random"}
    mapping = Comparison({"search": search}, ["npo", "graddiff"], run_dir=run_dir).mapping
    return comparison._Session(CompareDirectory(run_dir), mapping, fail, callback or CompareCallback())


def searched(session: comparison._Session, name: str, **more: object) -> SearchResult:
    with AskTell(session._configs["npo"], run_dir=session._home.search(name), **more) as loop:
        for value in (0.8, 0.1, 0.2):
            metrics = {"ks_statistic": value, "model_utility": value, "gradient_evaluations": 10.0, "seconds": 2.0}
            loop.tell(loop.ask(), metrics)
        return loop.result()


def runs_of(session: comparison._Session, found: SearchResult) -> MethodRuns:
    return session._run_points("npo", found, load_trials(RunDirectory(found.run_dir).study_file), None)


def fail(*arguments: object) -> dict[str, float]:
    raise AssertionError("nothing should run")


def test_an_interrupted_command_says_how_to_continue_it(tmp_path, monkeypatch, capsys):
    def run(self):
        self._home.mkdir()
        self._home.write_mapping(self.mapping, replace_environment=False)
        self._callback.on_start(self.run_dir, tuple(self.configs))
        raise KeyboardInterrupt

    monkeypatch.setattr(Comparison, "run", run)
    with pytest.raises(SystemExit) as stopped:
        main(["compare", "--methods", "npo,graddiff", "--run-dir", str(tmp_path / "a b")])
    assert stopped.value.code == 130
    assert capsys.readouterr().err == f"Interrupted: ofmu compare --resume '{tmp_path}/a b' continues it\n"
