"""Everything that the command line does has a typed and documented call: here is which."""

from __future__ import annotations

import inspect
import typing
from importlib import import_module

import pytest

from ofmu.cli.main import COMMANDS
from ofmu.errors import ConfigError
from ofmu.run_config import UnlearnConfig
from tune.config import SearchConfig

CALLS: dict[str, tuple[str, ...]] = {
    "prepare": ("ofmu.prepare",),
    "unlearn": ("ofmu.unlearn", "cluster.unlearn"),
    "evaluate": ("ofmu.evaluate",),
    "search": ("tune.ParetoSearch", "tune.ParetoSearch.run", "tune.ParetoSearch.resume"),
    "compare": ("tune.Comparison", "tune.Comparison.run", "tune.Comparison.resume"),
    "report": (
        "ofmu.write_run_page",
        "tune.write_report",
        "tune.SearchResult.load",
        "tune.SearchResult.plot",
        "tune.ComparisonResult.load",
    ),
    "runs": ("tune.list_runs",),
    "show": ("tune.SearchResult.trial", "tune.Point.fetch"),
    "export": ("tune.SearchResult.pick", "tune.Point.export"),
    "forget": ("tune.forget", "ofmu.ErasureRequest", "tune.ForgetOptions", "tune.ForgetCallbacks"),
    "verify": ("ofmu.verify_evidence",),
    "plan": ("ofmu.make_plan", "ofmu.Plan.smallest_change", "tune.search_cost"),
    "doctor": ("cluster.examine_machine", "cluster.examine_cluster", "cluster.examine_job_server"),
    "submit": ("cluster.JobServer", "cluster.JobServer.submit", "cluster.plan_package", "cluster.check_missing_files"),
    "jobs": ("cluster.JobServer.jobs", "cluster.JobServer.job"),
    "logs": ("cluster.JobServer.logs", "cluster.JobServer.follow"),
    "stop": ("cluster.JobServer.stop",),
}
"""Command line command to its calls from Python."""

BY_HAND = (
    "tune.AskTell",
    *(f"tune.AskTell.{name}" for name in ("ask", "tell", "fail", "prune", "result", "resume", "close")),
    "tune.SearchCallback.on_trial_end",
    "ofmu.UnlearnConfig.read",
    "tune.SearchConfig.read",
)


def find(path: str) -> typing.Any:
    package, *names = path.split(".")
    found: typing.Any = import_module(package)
    for name in names:
        found = getattr(found, name)
    return found


def test_every_command_has_its_calls():
    assert set(CALLS) == set(COMMANDS)


@pytest.mark.parametrize("path", [*(call for calls in CALLS.values() for call in calls), *BY_HAND])
def test_a_call_is_documented_and_typed(path):
    found = find(path)
    assert inspect.getdoc(found)
    function = found.__init__ if inspect.isclass(found) else found
    for name, parameter in inspect.signature(function).parameters.items():
        assert name == "self" or parameter.annotation is not inspect.Parameter.empty, name
    assert inspect.signature(function).return_annotation is not inspect.Signature.empty


@pytest.mark.parametrize("package", ["ofmu", "tune", "cluster"])
def test_every_public_name_can_be_loaded(package):
    module = import_module(package)
    for name in module.__all__:
        assert getattr(module, name) is not None
    assert set(module.__all__) <= set(dir(module))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        module.nonsense  # noqa: B018


def test_a_config_is_read_as_the_command_line_reads_it(tmp_path):
    config = SearchConfig.read("quickstart", ["search.num_trials=3", "method.inner_lr=2e-2"])
    assert (config.search.num_trials, config.method.model_dump()["inner_lr"]) == (3, 0.02)
    run = UnlearnConfig.read("quickstart", ["seed=4"])
    assert run.seed == 4
    assert run.training == config.training
    assert UnlearnConfig.read() == UnlearnConfig()
    (tmp_path / "mine.yaml").write_text("seed: 9\nsearch: {num_trials: 7}\n")
    assert SearchConfig.read(tmp_path / "mine.yaml").search.num_trials == 7
    with pytest.raises(ConfigError, match=r"did you mean 'search\.num_trials'"):
        SearchConfig.read("quickstart", ["search.num_trails=3"])
