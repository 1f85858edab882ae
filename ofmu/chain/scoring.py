"""Measure a model on the forget rows of earlier requests, as these requests measured them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ofmu.chain.records import EarlierMetricRecord, EarlierRequestRecord
from ofmu.chain.rows import EarlierRows
from ofmu.config.files import validate
from ofmu.data.config import PROMPT_KEYS
from ofmu.data.encoding import Tokenizer
from ofmu.data.files import MAX_EVALUATION_ROWS
from ofmu.data.rows import RowSet, UnlearnData
from ofmu.data.sampler import sample_in_order
from ofmu.evaluation.metrics.registry import metric
from ofmu.evaluation.metrics.summary import metrics_of
from ofmu.evaluation.scoring.model import score_model
from ofmu.run_config import UnlearnConfig
from ofmu.tasks.language.reference import load_saved

METRICS = ("forget_probability", "forget_rouge", "forget_truth_ratio", "extraction_strength", "exact_memorization")
"""The metrics of forget rows that need no reference."""
_EVALUATION_KEYS = ("rouge", "max_new_tokens", "truth_ratio")

Values = Mapping[str, float | None]


def scoring_of(config: UnlearnConfig) -> dict[str, Any]:
    """Return the settings that the scores of a request's forget rows depend on, apart from model and rows."""
    return {
        "data": config.data.model_dump(mode="json", include=set(PROMPT_KEYS)),
        "evaluation": config.evaluation.model_dump(mode="json", include=set(_EVALUATION_KEYS)),
        "seed": config.seed,
    }


class MeasuredModel:
    """A saved model that is measured on the forget rows of earlier requests. The first measurement loads the model.

    Args:
        path: a directory or a hub name.
        config: the present run. It gives the device, the attention and the batch size.
    """

    def __init__(self, path: str, config: UnlearnConfig) -> None:
        self._path, self._config = path, config
        self._loaded: tuple[Any, Tokenizer] | None = None

    def forget_metrics(self, request: EarlierRows) -> Values:
        """Return the metrics :data:`METRICS` on an earlier request's forget rows. None: the rows do not give it.

        The settings are those under which that request scored its rows. Of more than 400 rows, those are scored that
        the request scored.

        Raises:
            OfmuError: the settings are damaged, the model cannot be loaded, or a row cannot be encoded.
        """
        settings = _settings(request.scoring, self._config)
        rows = sample_in_order(request.forget, MAX_EVALUATION_ROWS, random.Random(settings.seed))
        scored = RowSet("forget", rows)
        data = UnlearnData(forget=scored, retain=RowSet("retain", ()), holdout=None, evaluation={"forget": scored})
        if self._loaded is None:
            self._loaded = load_saved(self._path, self._config)
        model, tokenizer = self._loaded
        found = metrics_of(
            score_model(model, tokenizer, data, settings.evaluation, settings.data, name=self._path)
        ).values
        return {name: found[name] for name in METRICS}


def _settings(scoring: Mapping[str, Any], config: UnlearnConfig) -> UnlearnConfig:
    """Return the config under which an earlier request scored its rows, with the batch size of the present run."""
    own = {"batch_size": config.evaluation.batch_size}
    return validate(
        UnlearnConfig,
        {
            "data": {"source": "generated", **scoring["data"]},
            "evaluation": {**own, **scoring["evaluation"]},
            "seed": scoring["seed"],
        },
    )


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
    """Return the metrics of the request that the present one follows.

    Args:
        before: the values of the model that had to forget the rows.
        then: the values after that request.
        now: the values after the present request.
    """
    return list(_records(before, {name: [then.get(name)] for name in METRICS}, now))


def further_values(earlier: Sequence[EarlierMetricRecord], now: Values) -> list[EarlierMetricRecord]:
    """Return the metrics of a request that was an earlier one already, with the values after the present request."""
    before = {each.name: each.before for each in earlier}
    return list(_records(before, {each.name: each.values for each in earlier}, now))


def _records(before: Values, values: Mapping[str, list[float | None]], now: Values) -> Iterator[EarlierMetricRecord]:
    for name in METRICS:
        if name in values and (now.get(name) is not None or any(value is not None for value in values[name])):
            yield EarlierMetricRecord(
                name=name, better=metric(name).better, before=before.get(name), values=[*values[name], now.get(name)]
            )
