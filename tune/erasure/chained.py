"""What a request measures for the requests before it: the first target, and the forget rows of earlier requests."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Final

from ofmu.chain.records import ChainRecord, chain_record
from ofmu.chain.rows import EarlierRows
from ofmu.chain.scoring import MeasuredModel, measured_requests
from ofmu.config.files import validate
from ofmu.erasure.chain import Chain
from ofmu.erasure.evidence import CostRecord
from ofmu.erasure.measure import Report
from ofmu.erasure.workspace import Workspace
from ofmu.io.cache import content_key, model_hashes
from ofmu.io.files import write_json
from ofmu.io.plugins import plugins_restricted
from ofmu.run_config import UnlearnConfig
from ofmu.run_files import RunFiles, read_stored, stored_values
from ofmu.tasks.forgotten import Values
from tune.results.result import SearchResult
from tune.study.baselines import TARGET

FIRST_TARGET: Final = "first_target"


def first_target_report(
    home: Workspace, chain: Chain, result: SearchResult, modules: Collection[str], say: Callable[[str], None]
) -> Report:
    """Evaluate the first target on the rows of this request, unless that is done.

    Args:
        home: the request's directory.
        chain: the requests before it.
        result: the search of this request, whose target trial gives the config.
        modules: modules of the user that may be imported.
        say: called before the evaluation starts.

    Raises:
        ModelError: the first target is gone, or was changed.
        OfmuError: it cannot be scored.
    """
    # This import loads Ray, which takes seconds.
    from cluster.train.evaluation import evaluations

    files = RunFiles(home.evaluation(FIRST_TARGET))
    report = files.read_report()
    if report is None:
        place = chain.check_first_target()
        say("Measuring the first target of the chain, with which utility is compared")
        run = run_of(result, _target_trial(result), modules)
        with evaluations(run, result.config.cluster) as evaluate:
            report = evaluate(str(place), run, reference=None, output_dir=files.directory)
    return report


def run_of(result: SearchResult, trial: int, modules: Collection[str]) -> UnlearnConfig:
    """Return the config of a trial, which may name only these modules of the user."""
    directory = result.pick(trial).directory
    with plugins_restricted(str(directory), frozenset(modules)):
        return validate(UnlearnConfig, RunFiles(directory).read_config() or {})


def earlier_requests(
    home: Workspace, chain: Chain, run: UnlearnConfig, cost: CostRecord, say: Callable[[str], None]
) -> ChainRecord:
    """Measure the result on the forget rows of each earlier request, and return the record of the chain.

    Args:
        home: the request's directory, which holds the result.
        chain: the requests before it.
        run: the config of the result.
        cost: the cost of this request.
        say: called before a model is measured.

    Raises:
        OfmuError: the model cannot be scored.
    """
    now, model, key = [], MeasuredModel(str(home.result), run), content_key(model_hashes(home.result))
    for number, request in enumerate(chain.earlier, start=1):
        say(f"Measuring the result on the rows of the earlier request {request.id}")
        now.append(_values(model, key, home.evaluation(f"earlier_{number}.json"), request))
    known = [] if chain.record.chain is None else chain.record.chain.requests
    metrics = {each.name: each for each in chain.record.metrics}
    before = {name: each.target for name, each in metrics.items()}
    then = {name: each.result for name, each in metrics.items()}
    records = measured_requests(known, chain.own_request(), before, then, now)
    return chain_record(records, gradient_evaluations=cost.gradient_evaluations, run_seconds=cost.run_seconds)


def _values(model: MeasuredModel, key: str, file: Path, request: EarlierRows) -> Values:
    """Return the metrics of the result on an earlier request's rows. They are stored with the hash of the result."""
    stored = read_stored(file) or {}
    if stored.get("model") != key:
        stored = {"model": key, "metrics": dict(model.forget_metrics(request))}
        write_json(file, stored)
    with stored_values(file):
        values: dict[str, Any] = dict(stored["metrics"])
        return values


def _target_trial(result: SearchResult) -> int:
    trials = result.trials
    return int(trials.loc[trials["role"] == TARGET, "trial"].iloc[0])
