"""The evidence as one HTML page, for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ofmu.erasure.evidence import Evidence, MetricRecord
from ofmu.io.text import counted
from ofmu.reports.chain import COST_HEADER, DRIFT_HEADER, cost_rows, drift_rows, drift_sentences
from ofmu.reports.numbers import RATES_TITLE, big_number, duration, number, rates_text
from ofmu.reports.page import render

_FOLDER = Path(__file__).parent / "templates"
_MODEL_NAMES = {
    "target": "Target, before unlearning",
    "result": "Result, after unlearning",
    "base": "Base, before training on the rows",
    "retrained": "Retrained, without the forget rows",
    "first_target": "First target, before all requests of the chain",
}
_KINDS = {"rows": "the given rows", "person": "the rows that name a person", "questions": "the answers to questions"}


def evidence_page(record: Evidence) -> str:
    """Return the page of a record. Its hashes of other files are not shown, since the page is one of these files."""
    forget = next(rows for rows in record.request.rows if rows.role == "forget")
    return render(
        "evidence.html.j2",
        _FOLDER,
        title=f"Erasure request {record.request.id} · ofmu",
        kind="Record of an erasure",
        heading=f"Request {record.request.id}",
        sub=f"{counted(forget.count, 'row')} to forget: {_KINDS[record.request.kind]}",
        made=record.finished,
        record=record,
        summary=_summary(record),
        request_facts=_request_facts(record),
        has_retrained=any(metric.retrained is not None for metric in record.metrics),
        has_first=record.chain is not None,
        chain=_chain(record),
        has_seeds=any(metric.runs for metric in record.metrics),
        seed_runs=max((metric.runs for metric in record.metrics), default=0),
        has_texts=forget.texts is not None,
        forget_texts=forget.texts or [],
        objectives=list(record.search.objectives),
        method_facts=_method_facts(record),
        model_names=_MODEL_NAMES,
        facts=_facts(record),
    )


def _summary(record: Evidence) -> str:
    """Return the change of the two objectives and of the relearning attack, and which attacks got worse, in words."""
    known = {metric.name: metric for metric in record.metrics}
    known |= {metric.name: metric for attack in record.attacks for metric in attack.metrics}
    names = [*record.search.objectives, "relearning_probability"]
    changes = [_change(known[name]) for name in dict.fromkeys(names) if name in known]
    return " ".join([*changes, *_worse_attacks(record)])


def _worse_attacks(record: Evidence) -> list[str]:
    """Return one sentence that names every metric of an attack that got worse; empty if there is none."""
    metrics = {metric.name: metric for attack in record.attacks for metric in attack.metrics}
    worse = [
        f"{name} got worse: from {number(metric.target, 3)} to {number(metric.result, 3)}"
        for name, metric in metrics.items()
        if _is_worse(metric)
    ]
    return [f"{'; '.join(worse)}."] if worse else []


def _is_worse(metric: MetricRecord) -> bool:
    """Return whether the result is worse than the target by the direction that the record states."""
    before, after = metric.target, metric.result
    # Rounding differs between two evaluations of one model, so values that read the same do not differ.
    if before is None or after is None or number(before, 3) == number(after, 3):
        return False
    if metric.better in ("lower", "higher"):
        return after > before if metric.better == "lower" else after < before
    try:
        best = float(metric.better.removeprefix("near "))
    except ValueError:  # the metric states no direction
        return False
    return abs(after - best) > abs(before - best)


def _change(metric: MetricRecord) -> str:
    known = {"the retrained model": metric.retrained, "the first target": metric.first_target}
    others = "".join(f"; {number(value, 3)} for {name}" for name, value in known.items() if value is not None)
    return (
        f"{metric.name} ({metric.better} is better) went from {number(metric.target, 3)} to {number(metric.result, 3)}"
        f"{others}."
    )


def _chain(record: Evidence) -> dict[str, Any] | None:
    """Return the tables of the earlier requests; None for a first request."""
    chain = record.chain
    if chain is None:
        return None
    return {
        "count": counted(len(chain.requests), "earlier request"),
        "sentences": list(drift_sentences(chain)),
        "drift": (DRIFT_HEADER, drift_rows(chain)),
        "cost": (COST_HEADER, cost_rows(chain, record.request.id)),
        "links": [
            (each.id, [("measurements complete", each.finished), ("hash of its record", each.hash)])
            for each in chain.requests
        ],
    }


def _request_facts(record: Evidence) -> list[tuple[str, str]]:
    request = record.request
    facts = {
        "request": request.id,
        "received": request.received,
        "measurements complete": record.finished,
        "person": request.person or "",
        "hash of the person's name": request.person_hash or "",
    }
    return [(name, value) for name, value in facts.items() if value]


def _method_facts(record: Evidence) -> list[tuple[str, str]]:
    search, method = record.search, record.method
    settings = ", ".join(f"{name} {number(value)}" for name, value in method.settings.items() if value is not None)
    counts = f"{search.complete} complete, {search.failed} failed, {search.pruned} stopped early"
    return [
        ("method", method.title),
        ("settings", settings),
        *([(RATES_TITLE, rates_text(method.learning_rates))] if method.learning_rates else []),
        ("hash of the config", method.config_hash),
        ("trials of the search", counts),
        ("gradient evaluations", big_number(record.cost.gradient_evaluations)),
        ("time of all runs, added up", duration(record.cost.run_seconds)),
        *((f"time on the clock: {step}", duration(seconds)) for step, seconds in record.cost.seconds.items()),
    ]


def _facts(record: Evidence) -> list[tuple[str, str]]:
    code = record.code
    signed = "not signed"
    if record.signature is not None:
        signed = f"Ed25519, by the key with SHA-256 {record.signature.public_key_sha256}"
    return [
        ("run by", f"{record.operator} on {record.host}"),
        ("software", f"ofmu {code.version}, Python {code.python}"),
        ("hash of the source files", code.hash),
        ("versions", ", ".join(f"{name} {version}" for name, version in code.versions.items())),
        ("signature", signed),
    ]
