"""Measure the result of an erasure beside the target and the retrained model, with every attack that the rows allow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from ofmu.erasure.evidence import AttackRecord, MetricRecord, NotRunRecord
from ofmu.erasure.intervals import mean_interval
from ofmu.erasure.request_rows import RequestRows
from ofmu.evaluation.config import RELEARNING_ROWS, RELEARNING_STEPS, Attack
from ofmu.evaluation.metrics.registry import GROUPS, REGISTRY, MetricInfo
from ofmu.evaluation.sets import IN_SCOPE_KINDS, IN_SCOPE_PREFIX
from ofmu.evaluator import evaluate
from ofmu.run_config import UnlearnConfig
from ofmu.run_files import RunFiles

_REPORTED = (
    "Forgetting",
    "Utility",
    "Fluency of the answers to forget questions",
    "Alignment with the retrained model",
)
"""Groups of metrics that are no attacks."""
_FIELDS = {
    "paraphrase": "paraphrased_question",
    "multi_hop": "multi_hop_question",
    "translation": "translated_question",
}
_ATTACKS = {
    "membership": "Tries to tell forget rows from holdout rows, on which no model was trained, by the model's losses. "
    "An AUC of 0.5 means that it cannot.",
    "relearning": f"Trains a copy of the model on {RELEARNING_ROWS} of the forget rows for {RELEARNING_STEPS} steps, "
    "and measures the others.",
    "quantization_8": "Rounds the weights to 8 bits, which can undo small changes of the weights.",
    "quantization_4": "Rounds the weights to 4 bits, which can undo small changes of the weights.",
    "sampling": "Draws several answers at random to each of at most 64 forget questions, and takes the one that tells "
    "most.",
    "few_shot": "Asks at most 64 forget questions after other forget rows with their answers, four of them if there "
    "are so many.",
    **{
        f"{IN_SCOPE_PREFIX}{kind}": f"Asks {adjective} questions about the forget rows, which no training step used."
        for kind, adjective in IN_SCOPE_KINDS.items()
    },
}
_RELEARNING_ALL = (
    f"Trains a copy of the model on all forget rows for {RELEARNING_STEPS} steps, and measures the same rows, since "
    "there are no others. So the numbers are high for any model."
)
Report = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The reports of ``ofmu evaluate`` on each model."""

    target: Report
    result: Report
    retrained: Report | None
    """None: there is no retrained model, or only its scores are there."""
    first_target: Report | None = None
    """None: the request is the first of its chain. No attack is made on the first target."""

    @property
    def retrained_metrics(self) -> Mapping[str, float | None]:
        """The metrics of the retrained model; empty without any."""
        if self.retrained is not None:
            return dict(self.retrained["metrics"])
        return dict((self.result.get("baseline_metrics") or {}).get("retrained") or {})


def evaluation_config(config: UnlearnConfig, rows: RequestRows) -> UnlearnConfig:
    """Return the config of the search with all attacks that the rows allow."""
    evaluation = config.evaluation.model_copy(
        update={
            "membership": rows.holdout is not None,
            "in_scope": any(getattr(row, name) for row in rows.forget.rows for name in _FIELDS.values()),
            "alignment": config.reference.source in ("retrain", "model"),
            "attacks": get_args(Attack),
        }
    )
    return config.model_copy(update={"evaluation": evaluation})


def measure(
    models: Mapping[str, str],
    config: UnlearnConfig,
    reference: str | None,
    directory: Callable[[str], Path],
    callback: Callable[[str], None],
    evaluate: Callable[..., Report] = evaluate,
) -> Measured:
    """Evaluate the models. An evaluation that is there already is not made again.

    Args:
        models: directories by role: ``target``, ``result``, and ``retrained`` if there is one.
        config: the evaluation, see :func:`evaluation_config`.
        reference: the retrained model or its scores; None if there are none.
        directory: returns the directory of a model's evaluation.
        callback: called with the role before an evaluation starts.
        evaluate: :func:`ofmu.evaluator.evaluate`, or the same on workers.

    Raises:
        OfmuError: a model, the rows or the reference cannot be read.
    """
    reports: dict[str, Report] = {}
    # The retrained model comes first, since its scores are the reference of the others.
    for role in sorted(models, key=("retrained", "target", "result").index):
        files = RunFiles(directory(role))
        report: Report | None = files.read_report()
        if report is None:
            callback(role)
            report = evaluate(models[role], config, reference=reference, output_dir=files.directory)
        reports[role] = report
        if role == "retrained" and config.reference.source == "retrain":
            # Its scores need not be computed again, and the cache has the model itself.
            reference = str(files.scores)
    return Measured(target=reports["target"], result=reports["result"], retrained=reports.get("retrained"))


def metric_records(measured: Measured, further: Sequence[Mapping[str, Any]]) -> list[MetricRecord]:
    """Return the metrics that are no attacks.

    Args:
        measured: the evaluations.
        further: the metrics of each run of the same setting on a further seed.
    """
    infos = (info for title in _REPORTED for info in GROUPS[title])
    return [record for info in infos if (record := _record(info, measured, further)) is not None]


def attack_records(measured: Measured, forget_rows: int) -> list[AttackRecord]:
    """Return the attacks that gave a number.

    Args:
        measured: the evaluations.
        forget_rows: number of forget rows. Of a few rows, relearning trains on all.
    """
    texts = _ATTACKS | ({"relearning": _RELEARNING_ALL} if forget_rows <= RELEARNING_ROWS else {})
    found = ((name, list(_metrics_of(name, measured))) for name in _ATTACKS)
    return [AttackRecord(name=name, description=texts[name], metrics=metrics) for name, metrics in found if metrics]


def not_run(measured: Measured, rows: RequestRows) -> list[NotRunRecord]:
    """Return the attacks that were not made, each with the reason."""
    made = {attack.name for attack in attack_records(measured, len(rows.forget.rows))}
    reasons = measured.result.get("reasons") or {}
    records = []
    for name in _ATTACKS:
        if name in made:
            continue
        if name == "membership" and rows.holdout is None:
            reason = "no rows are known on which the model was never trained: --holdout FILE gives them"
        elif name.startswith(IN_SCOPE_PREFIX):
            reason = f"no forget row has a {_FIELDS[name.removeprefix(IN_SCOPE_PREFIX)]}"
        else:
            stated = [
                reason for metric, reason in reasons.items() if metric in REGISTRY and _is_of(REGISTRY[metric], name)
            ]
            reason = stated[0] if stated else "it gave no number"
        records.append(NotRunRecord(name=name, reason=reason))
    return records


def _metrics_of(attack: str, measured: Measured) -> Iterator[MetricRecord]:
    for info in REGISTRY.values():
        if _is_of(info, attack) and (record := _record(info, measured, ())) is not None:
            yield record


def _is_of(info: MetricInfo, attack: str) -> bool:
    """Return whether an attack measures a metric."""
    if info.attack is not None:
        return info.attack == attack
    return info.name.startswith(f"{attack}_") or (attack == "membership" and info.name == "privacy_leakage")


def _record(info: MetricInfo, measured: Measured, further: Sequence[Mapping[str, Any]]) -> MetricRecord | None:
    """Return a metric of all models; None if the result does not have it."""
    result = measured.result["metrics"].get(info.name)
    if result is None:
        return None
    values = [float(value) for run in further if (value := run.get(info.name)) is not None]
    interval = mean_interval(values)
    return MetricRecord(
        name=info.name,
        better=info.better,
        meaning=info.meaning.replace("`", ""),
        target=measured.target["metrics"].get(info.name),
        result=result,
        retrained=measured.retrained_metrics.get(info.name),
        first_target=None if measured.first_target is None else measured.first_target["metrics"].get(info.name),
        mean=interval.mean,
        low=interval.low,
        high=interval.high,
        runs=len(values),
    )
