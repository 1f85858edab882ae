"""The page of one run or one evaluation."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ofmu.chain.run_record import read_run_chain
from ofmu.evaluation.scores import Scores
from ofmu.reports.answers import Answer, AnsweredSet, answered_sets
from ofmu.reports.chain import COST_HEADER, DRIFT_HEADER, cost_rows, drift_rows, drift_sentences, utility_line
from ofmu.reports.curves import history_charts, phase_chart
from ofmu.reports.metric_table import metric_groups, missing_metrics
from ofmu.reports.numbers import MISSING, RATES_TITLE, big_number, duration, memory, number, rates_text
from ofmu.reports.page import render, write_page
from ofmu.reports.stored import RETRAINED, TARGET, StoredRun
from ofmu.reports.verdict import verdict

_FOLDER = Path(__file__).parent / "templates"
_HEADLINES = {
    "ks_statistic": "KS distance D to retrained",
    "model_utility": "Model utility",
    "extraction_strength": "Extraction strength",
    "forget_choice_accuracy": "Forget questions right",
    "utility_choice_accuracy": "Other questions right",
    "average_gap": "Mean gap to retraining",
    "unlearning_accuracy": "Unlearning accuracy",
    "remaining_accuracy": "Remaining accuracy",
}
_MAX_TILES = 3


def run_page(directory: str | Path, *, live: bool = False, is_ours: bool = False) -> str:
    """Return the page of the run or the evaluation in ``directory``, complete or not.

    Args:
        directory: the run's directory.
        live: whether the page asks its server for changes.
        is_ours: whether the caller's own config made the run, so that its modules may be imported.

    Raises:
        RunError: the directory holds neither.
    """
    run = StoredRun.open(directory, is_ours=is_ours)
    metrics = dict(run.report.get("metrics") or (run.pruned.metrics if run.pruned else {}) or {})
    baselines = run.baseline_metrics
    models = {"this model": metrics, **baselines}
    answers = answers_of(run)
    charts = list(history_charts(run.history))
    seconds = dict((run.report.get("cost") or {}).get("seconds") or {})
    phases = phase_chart(seconds) if any(seconds.values()) else None
    return render(
        "run.html.j2",
        _FOLDER,
        charts=[*charts, *([phases] if phases else [])],
        live=live,
        title=f"{_heading(run)} · ofmu",
        kind="Evaluation" if run.is_evaluation else "Unlearning run",
        heading=_heading(run),
        sub=str(run.directory),
        state=_state(run),
        verdict=verdict(metrics, baselines),
        tiles=_tiles(metrics, baselines),
        models=[(name, _KEYS.get(name, "other")) for name in models],
        groups=metric_groups(list(models.values())) if metrics else [],
        missing=missing_metrics(run.report.get("reasons") or {}),
        answers=answers,
        answer_keys={shown: _KEYS[name] for name, shown in _SHOWN.items()},
        without_answers=_why_no_answers(run) if not answers else "",
        chain=_chain(run.directory),
        history=charts,
        phases=phases,
        facts=_facts(run),
        command=_command(run),
    )


def write_run_page(directory: str | Path) -> Path:
    """Write ``report.html`` of the run or the evaluation in ``directory``, and return its path.

    Raises:
        RunError: the directory holds neither, or another file of this name.
        StorageError: the disk refuses the write.
    """
    return write_page(run_page(directory), Path(directory))


def _chain(directory: Path) -> dict[str, Any] | None:
    """Return the tables of the runs before this one; None if it follows no other run."""
    record = read_run_chain(directory)
    if record is None:
        return None
    return {
        "drift": (DRIFT_HEADER, drift_rows(record.chain)),
        "cost": (COST_HEADER, cost_rows(record.chain, directory.absolute().name)),
        "sentences": list(drift_sentences(record.chain)),
        "utility": [utility_line(each.name, each.first_target, each.target, each.result) for each in record.utility],
    }


_KEYS = {"this model": "model", TARGET: "target", RETRAINED: "retrained"}
"""The symbol of each model."""
_SHOWN = {TARGET: "Before (target)", "this model": "After (this model)", RETRAINED: "Retrained"}


def answers_of(run: StoredRun) -> list[dict[str, Any]]:
    """Return the answers of the target, this model and the retrained model, by set; empty without generated answers."""
    if not isinstance(run.scores, Scores):
        return []
    models = {"this model": run.scores, **run.baseline_scores}
    if not any(row.generated for rows in run.scores.sets.values() for row in rows):
        return []
    found = {name: scores for name, scores in models.items() if isinstance(scores, Scores)}
    sets = answered_sets({_SHOWN[name]: scores for name, scores in found.items()})
    return [_in_order(part) for part in sets]


def _in_order(part: AnsweredSet) -> dict[str, Any]:
    """Return a set whose answers stand in the order before, after, retrained."""
    rows = []
    for row in part.rows:
        ordered: list[Answer] = sorted(row.answers, key=_place)
        rows.append({"question": row.question, "truth": row.truth, "answers": ordered})
    return {"title": part.title, "rows": rows, "total": part.total, "is_main": part.is_main}


def _place(answer: Answer) -> int:
    return list(_SHOWN.values()).index(answer.model)


def _why_no_answers(run: StoredRun) -> str:
    if isinstance(run.scores, Scores):
        return run.scores.notes.get("rouge", "no answers were generated")
    return ""


def _heading(run: StoredRun) -> str:
    if run.is_evaluation:
        return str(run.report["model"])
    if run.config is None:
        return run.directory.name
    return f"{run.method_title} on {run.config.data.source}"


def _state(run: StoredRun) -> str:
    if run.report:
        return ""
    if run.pruned is not None:
        return f"Early stopping ended this run after round {run.pruned.round} of {run.pruned.total}."
    return f"This run is not complete: {len(run.history)} rounds are done."


def _tiles(metrics: Mapping[str, Any], baselines: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    shown = [name for name in _HEADLINES if metrics.get(name) is not None][:_MAX_TILES]
    tiles = []
    for name in shown:
        known = {who: values[name] for who, values in baselines.items() if values.get(name) is not None}
        others = [f"{who} {number(value, 3)}" for who, value in known.items()]
        tiles.append({"label": _HEADLINES[name], "value": number(metrics[name], 3), "note": " · ".join(others)})
    costs = {
        "gradient_evaluations": ("Gradient evaluations", big_number),
        "seconds": ("Time", duration),
        "peak_memory_bytes": ("Peak memory", memory),
    }
    for name, (label, form) in costs.items():
        if metrics.get(name) is not None:
            tiles.append({"label": label, "value": form(metrics[name]), "note": ""})
    return tiles


def _facts(run: StoredRun) -> list[tuple[str, str]]:
    """Return what the numbers depend on."""
    report, environment = run.report, run.report.get("environment") or {}
    settings = run.config.method.model_dump(mode="json", exclude={"name", "module"}) if run.config else {}
    versions = environment.get("versions") or {}
    facts = {
        "model": report.get("model") or (str(run.files.model) if run.files.model.is_dir() else ""),
        "reference": report.get("reference"),
        "method": ", ".join(f"{name} {number(value)}" for name, value in settings.items() if value is not None)
        if not run.is_evaluation
        else "",
        RATES_TITLE: rates_text(report.get("learning_rates") or {}),
        "seed": report.get("seed", run.config.seed if run.config else None),
        "hash of the rows": report.get("data_hash"),
        "truth ratio": report.get("truth_ratio"),
        "parts of model utility": ", ".join(report.get("utility_components") or ()),
        "machine": " ".join(str(environment[key]) for key in ("host", "platform") if environment.get(key)),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
    }
    return [(name, str(value)) for name, value in facts.items() if value not in (None, "", MISSING)]


def _command(run: StoredRun) -> str:
    """Return the command that makes the run again; empty without a file of its config, as for an evaluation."""
    if run.is_evaluation or not run.files.config.is_file():
        return ""
    return shlex.join(["ofmu", "unlearn", str(run.files.config), "--output", "DIR"])
