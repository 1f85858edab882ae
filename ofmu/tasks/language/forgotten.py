"""Rows of text that earlier runs forgot, and a model's metrics on them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ofmu.config.files import validate
from ofmu.data.config import PROMPT_KEYS, ColumnsConfig
from ofmu.data.earlier import read_earlier, without_earlier
from ofmu.data.encoding import Tokenizer
from ofmu.data.files import MAX_EVALUATION_ROWS, read_rows
from ofmu.data.load import load_data
from ofmu.data.normalized import normalized
from ofmu.data.records import json_lines
from ofmu.data.rows import Row, RowSet, UnlearnData
from ofmu.data.sampler import sample_in_order
from ofmu.evaluation.metrics.summary import metrics_of
from ofmu.evaluation.scoring.model import score_model
from ofmu.io.files import write_text
from ofmu.run_config import UnlearnConfig
from ofmu.tasks.forgotten import ForgottenRows, Values
from ofmu.tasks.language.reference import load_saved

METRICS = ("forget_probability", "forget_rouge", "forget_truth_ratio", "extraction_strength", "exact_memorization")
"""The metrics of forget rows that need no reference."""
_EVALUATION_KEYS = ("rouge", "max_new_tokens", "truth_ratio")


class ForgottenTexts(ForgottenRows):
    """Questions and answers, and plain texts."""

    suffix = ".jsonl"

    def of(self, data: UnlearnData) -> tuple[Row, ...]:
        """Return the forget rows, with the paraphrases and wrong answers that the evaluation set has of them."""
        scored = data.evaluation.get("forget")
        known = {} if scored is None else {normalized(row): row for row in scored.rows}
        return tuple(known.get(normalized(row), row) for row in data.forget.rows)

    def write(self, path: Path, rows: Sequence[Row]) -> None:
        """Write rows as JSONL."""
        write_text(path, json_lines(rows))

    def read(self, path: Path) -> tuple[Row, ...]:
        """Return the rows of a file."""
        return tuple(read_rows(path, ColumnsConfig()))

    def content_hash(self, rows: Sequence[Row]) -> str:
        """Return the hash of the rows."""
        return RowSet("rows", tuple(rows)).content_hash

    def scoring_of(self, config: UnlearnConfig) -> dict[str, Any]:
        """Return how a run turns rows into tokens and scores them."""
        return {
            "data": config.data.model_dump(mode="json", include=set(PROMPT_KEYS)),
            "evaluation": config.evaluation.model_dump(mode="json", include=set(_EVALUATION_KEYS)),
            "seed": config.seed,
        }

    def scorer(self, model: str, config: UnlearnConfig) -> TextScorer:
        """Return a scorer of a saved language model."""
        return TextScorer(model, config)

    def count_left_out(self, before: UnlearnConfig, after: UnlearnConfig) -> int:
        """Return how many retain rows a chain leaves out."""
        # The two configs load the same rows, apart from the earlier ones.
        data = load_data(before.data, before.seed)
        return len(data.retain) - len(without_earlier(data, read_earlier(after.data.earlier)).retain)


class TextScorer:
    """A saved language model. The first measurement loads it.

    Args:
        path: a directory or a hub name.
        config: the present run. It gives the device, the attention and the batch size.
    """

    def __init__(self, path: str, config: UnlearnConfig) -> None:
        self._path, self._config = path, config
        self._loaded: tuple[Any, Tokenizer] | None = None

    def forget_metrics(self, rows: Sequence[Row], scoring: Mapping[str, Any]) -> Values:
        """Return the metrics :data:`METRICS`, under the settings of the earlier run.

        Of more than 400 rows, those are scored that the earlier run scored.
        """
        settings = _settings(scoring, self._config)
        scored = RowSet("forget", sample_in_order(rows, MAX_EVALUATION_ROWS, random.Random(settings.seed)))
        data = UnlearnData(forget=scored, retain=RowSet("retain", ()), holdout=None, evaluation={"forget": scored})
        found = self._score(data, settings)
        return {name: found[name] for name in METRICS}

    def metrics(self) -> Values:
        """Return the metrics on the rows of the present run."""
        config = self._config
        plain = config.evaluation.model_copy(update={"membership": False})
        return self._score(load_data(config.data, config.seed), config.model_copy(update={"evaluation": plain}))

    def _score(self, data: UnlearnData, settings: UnlearnConfig) -> Values:
        if self._loaded is None:
            self._loaded = load_saved(self._path, self._config)
        model, tokenizer = self._loaded
        return metrics_of(
            score_model(model, tokenizer, data, settings.evaluation, settings.data, name=self._path)
        ).values


def _settings(scoring: Mapping[str, Any], config: UnlearnConfig) -> UnlearnConfig:
    """Return the config under which an earlier run scored its rows, with the batch size of the present run."""
    own = {"batch_size": config.evaluation.batch_size}
    return validate(
        UnlearnConfig,
        {
            "data": {"source": "generated", **scoring["data"]},
            "evaluation": {**own, **scoring["evaluation"]},
            "seed": scoring["seed"],
        },
    )
