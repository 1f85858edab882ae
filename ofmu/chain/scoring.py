"""Measure a model on the forget rows of earlier requests, as these requests measured them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ofmu.chain.records import EarlierMetricRecord, EarlierRequestRecord
from ofmu.chain.rows import EarlierRows
from ofmu.evaluation.metrics.registry import metric
from ofmu.run_config import UnlearnConfig
from ofmu.tasks.forgotten import ChainScorer, Values
from ofmu.tasks.load import task_family


def scoring_of(config: UnlearnConfig) -> dict[str, Any]:
    """Return the settings that the scores of a request's forget rows depend on, apart from model and rows."""
    return task_family(config.data.kind).forgotten.scoring_of(config)


class MeasuredModel:
    """A saved model that is measured for a chain. The first measurement loads the model.

    Args:
        path: a directory or a hub name.
        config: the present run. It gives the device, the attention and the batch size.
    """

    def __init__(self, path: str, config: UnlearnConfig) -> None:
        self._scorer: ChainScorer = task_family(config.data.kind).forgotten.scorer(path, config)

    def forget_metrics(self, request: EarlierRows) -> Values:
        """Return the metrics of an earlier request's forget rows, under the settings of that request.

        Raises:
            OfmuError: the settings are damaged, the model cannot be loaded, or a row cannot be scored.
        """
        return self._scorer.forget_metrics(request.forget, request.scoring)

    def metrics(self) -> Values:
        """Return the metrics on the rows of the present run that need no reference.

        Raises:
            OfmuError: the model or the data cannot be loaded, or a row cannot be scored.
        """
        return self._scorer.metrics()


def measured_requests(
    known: Sequence[EarlierRequestRecord],
    own: EarlierRequestRecord,
    before: Values,
    then: Values,
    now: Sequence[Values],
) -> list[EarlierRequestRecord]:
    """Return the records of all earlier requests, the oldest first, with the values after the present request.

    Args:
        known: the requests before the last one, as the last one recorded them.
        own: the last request, without metrics.
        before: the values of the model that had to forget the last request's rows.
        then: the values after the last request.
        now: the values after the present request, on the rows of each earlier request.
    """
    records = [
        each.model_copy(update={"metrics": further_values(each.metrics, values)})
        for each, values in zip(known, now[:-1], strict=True)
    ]
    return [*records, own.model_copy(update={"metrics": first_values(before, then, now[-1])})]


def first_values(before: Values, then: Values, now: Values) -> list[EarlierMetricRecord]:
    """Return the metrics of the request that the present one follows. ``now`` names them.

    Args:
        before: the values of the model that had to forget the rows.
        then: the values after that request.
        now: the values after the present request.
    """
    return list(_records(before, {name: [then.get(name)] for name in now}, now))


def further_values(earlier: Sequence[EarlierMetricRecord], now: Values) -> list[EarlierMetricRecord]:
    """Return the metrics of a request that was an earlier one already, with the values after the present request."""
    before = {each.name: each.before for each in earlier}
    return list(_records(before, {each.name: each.values for each in earlier}, now))


def _records(before: Values, values: Mapping[str, list[float | None]], now: Values) -> Iterator[EarlierMetricRecord]:
    for name, earlier in values.items():
        if now.get(name) is not None or any(value is not None for value in earlier):
            yield EarlierMetricRecord(
                name=name, better=metric(name).better, before=before.get(name), values=[*earlier, now.get(name)]
            )
