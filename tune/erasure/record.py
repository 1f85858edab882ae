"""Compose the record of an erasure from what lies in the request's directory."""

from __future__ import annotations

import getpass
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ofmu.chain.records import ChainRecord
from ofmu.erasure.choice import Candidate, ChoiceRule
from ofmu.erasure.code import code_record
from ofmu.erasure.evidence import (
    CandidateRecord,
    CostRecord,
    Evidence,
    MethodRecord,
    ModelRecord,
    ModelRole,
    RequestRecord,
    RowsRecord,
    SearchRecord,
    json_hash,
    keyed_hash,
    review_record,
    rows_record,
)
from ofmu.erasure.limits import limits, reference_sentence
from ofmu.erasure.measure import Measured, attack_records, metric_records, not_run
from ofmu.erasure.request import ErasureRequest
from ofmu.erasure.request_rows import RequestRows
from ofmu.erasure.workspace import SETTINGS_BY_KEY, Workspace
from ofmu.evaluation.weak_reference import weakness_of_reference
from ofmu.io.cache import model_hashes
from ofmu.methods.registry import method_class
from ofmu.provenance import flat_settings
from ofmu.run_config import UnlearnConfig
from ofmu.run_files import METRICS, RunFiles, stored_values
from tune.erasure.pick import further_metrics
from tune.erasure.settings import package_folders
from tune.results.result import SearchResult
from tune.results.tables import own_trials
from tune.rundir.search_dir import RunDirectory

_HASHED = ("rows", "questions", "corpus", "retain", "holdout", "model", "base", "after")
"""What a request is told from others by, beside its settings."""
_SETS: tuple[Literal["forget", "retain", "holdout"], ...] = ("forget", "retain", "holdout")


def compose_record(
    home: Workspace,
    request: ErasureRequest,
    rows: RequestRows,
    result: SearchResult,
    rule: ChoiceRule,
    ordered: Sequence[Candidate],
    measured: Measured,
    models: Mapping[ModelRole, Path],
    run: UnlearnConfig,
    *,
    chain: ChainRecord | None,
    show_rows: bool,
) -> Evidence:
    """Return the record, without files and signature.

    Args:
        home: the request's directory.
        request: the request.
        rows: its rows.
        result: the search, with the runs on further seeds.
        rule: the rule of the choice.
        ordered: the candidates, the chosen one first.
        measured: the evaluations.
        models: directories of the models by role.
        run: the config of the chosen trial.
        chain: the requests before this one; None for a first request.
        show_rows: whether the record holds the texts of rows and the person's name.
    """
    state, key = home.state() or {}, home.hash_key()
    sets = _rows_records(rows, key, show=show_rows)
    further = further_metrics(result, ordered[0])
    metrics = metric_records(measured, further)
    skipped, source = not_run(measured, rows), run.reference.source
    person, cost = request.person, cost_record(result, home)
    return Evidence(
        request=RequestRecord(
            id=state["id"],
            kind=request.kind,
            received=state["received"],
            person_hash=None if person is None else keyed_hash(key, person),
            person=person if show_rows else None,
            rows=sets,
            review=review_record(home.read_review(), key),
            notes=list(rows.notes),
        ),
        operator=_operator(),
        host=platform.node(),
        finished=home.finish(),
        models=[ModelRecord(role=role, files=_model_files(path)) for role, path in models.items()],
        method=_method_record(run, _learning_rates(result, ordered[0].trial)),
        search=_search_record(result, rule, ordered, cost.seconds.get("search", 0.0)),
        reference=reference_sentence(source),
        metrics=metrics,
        attacks=attack_records(measured, len(rows.forget.rows)),
        not_run=skipped,
        cost=cost,
        code=code_record(package_folders()),
        limits=limits(
            request.kind,
            rows.retain_source,
            source,
            sets,
            metrics,
            skipped,
            weakness=weakness_of_reference(measured.target["metrics"], measured.retrained_metrics),
            seeds=len(further),
            in_chain=chain is not None,
        ),
        chain=chain,
        files={},
    )


def _rows_records(rows: RequestRows, key: bytes, *, show: bool) -> list[RowsRecord]:
    found = {name: getattr(rows, name) for name in _SETS}
    # Retain and holdout rows may be about other people, who asked for nothing.
    return [
        rows_record(name, each.rows, rows.origins[name], key, show=show and name == "forget")
        for name, each in found.items()
        if each is not None
    ]


def _learning_rates(result: SearchResult, trial: int) -> dict[str, float]:
    """Return what range tests found for a trial; empty for a trial of an older version."""
    files = RunFiles(result.pick(trial).directory)
    with stored_values(files.metrics):
        return dict((files.read_report() or {}).get("learning_rates") or {})


def _method_record(run: UnlearnConfig, rates: dict[str, float]) -> MethodRecord:
    method = run.method
    return MethodRecord(
        name=method.name,
        title=method_class(method.name, method.module).title,
        settings=method.model_dump(mode="json", exclude={"name", "module"}),
        learning_rates=rates,
        config_hash=json_hash(run.model_dump(mode="json")),
    )


def _search_record(
    result: SearchResult, rule: ChoiceRule, ordered: Sequence[Candidate], seconds: float
) -> SearchRecord:
    states = own_trials(result.trials)["state"]
    return SearchRecord(
        complete=int((states == "complete").sum()),
        failed=int((states == "failed").sum()),
        pruned=int((states == "pruned").sum()),
        seconds=seconds,
        objectives=dict(result.config.objectives),
        rule=rule.sentence,
        min_utility=rule.min_utility,
        candidates=[
            CandidateRecord(
                trial=each.trial,
                forgetting=each.forgetting,
                utility=each.utility,
                runs=each.runs,
                meets_constraint=rule.allows(each),
            )
            for each in ordered
        ],
        chosen_trial=ordered[0].trial,
    )


def cost_record(result: SearchResult, home: Workspace) -> CostRecord:
    """Return what a request cost: the trials of its search, and all runs of trials on further seeds.

    Earlier candidates, all of which the rule refused, are not in ``confirmation.json``, and their runs cost as much.
    """
    names = ("gradient_evaluations", "seconds")
    own = own_trials(result.trials)
    totals = {name: float(own[name].sum()) if name in own else 0.0 for name in names}
    for files in map(RunFiles, RunDirectory(result.run_dir).confirmation_runs()):
        metrics = files.read_metrics() or {}
        with stored_values(files.metrics):
            for name in names:
                totals[name] += float(metrics.get(name) or 0.0)
    return CostRecord(
        gradient_evaluations=totals["gradient_evaluations"],
        run_seconds=totals["seconds"],
        seconds=dict((home.state() or {})["seconds"]),
    )


def _model_files(directory: Path) -> dict[str, str]:
    # The metrics of the run lie beside the result, and are no part of the model.
    return {name: value for name, value in model_hashes(directory).items() if name != METRICS}


def _operator() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user may have no name
        return "unknown"


def asked_of(
    request: ErasureRequest, settings: Mapping[str, Any], key: bytes, hashes: Mapping[str, str]
) -> dict[str, Any]:
    """Return what the result of a request depends on, for ``request.json``. Names of people are hashed.

    Args:
        request: the request.
        settings: the config without the rows.
        key: the key of the hashes.
        hashes: hashes of the given files, of the models and of the evidence before this request, by name.
    """
    person = None if request.person is None else keyed_hash(key, request.person)
    return {
        "kind": request.kind,
        "person": person,
        "with_possible": request.with_possible,
        "settings": json_hash(settings),
        SETTINGS_BY_KEY: {name: json_hash(value) for name, value in flat_settings(settings)},
        **{name: hashes.get(name) for name in _HASHED},
    }
