"""The task family of text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ofmu.data.entities import rows_with_facts
from ofmu.data.load import load_data
from ofmu.data.rows import UnlearnData
from ofmu.evaluation.harness.tasks import load_tasks
from ofmu.evaluation.metrics.summary import Metrics, metrics_of
from ofmu.evaluation.open_unlearning_export import Log, to_open_unlearning
from ofmu.evaluation.score_files import read_scores
from ofmu.evaluation.scores import Scores
from ofmu.io.files import FileHashes
from ofmu.run_config import UnlearnConfig
from ofmu.tasks.events import PreparationCallback
from ofmu.tasks.family import TaskFamily
from ofmu.tasks.language.forgotten import ForgottenTexts
from ofmu.tasks.language.on_ranks import joins_ranks, score_on_ranks
from ofmu.tasks.language.preparation import LanguagePreparation
from ofmu.tasks.language.reference import ScoreModel, check_reference, resolve_reference, score_saved
from ofmu.tasks.language.robustness import measure_robustness
from ofmu.tasks.language.task import LanguageTask


class LanguageFamily(TaskFamily):
    """Causal language models on questions and answers, or on plain text."""

    forgotten = ForgottenTexts()

    def load_task(self, config: UnlearnConfig, target: Path) -> LanguageTask:
        """Load the rows and encode them with the target's tokenizer."""
        return LanguageTask(config, target)

    def preparation(
        self,
        config: UnlearnConfig,
        callback: PreparationCallback | None,
        *,
        only_cached: bool = False,
        hashes: FileHashes | None = None,
    ) -> LanguagePreparation:
        """Return a preparation of language models."""
        return LanguagePreparation(config, callback, only_cached=only_cached, hashes=hashes)

    def load_data(self, config: UnlearnConfig) -> UnlearnData:
        """Load the rows."""
        return load_data(config.data, config.seed)

    def row_counts(self, data: UnlearnData) -> tuple[int, int]:
        """Return the number of forget rows and of retain rows."""
        return len(data.forget), len(data.retain)

    def load_scores(self, path: Path, config: UnlearnConfig | None = None) -> Scores:
        """Read a file of scores."""
        return read_scores(path, "geometric" if config is None else config.evaluation.truth_ratio)

    def metrics_of(self, scores: Scores, reference: Scores | None) -> Metrics:
        """Return the metrics of ``scores``."""
        return metrics_of(scores, reference)

    def score_saved(self, model: str, data: UnlearnData, config: UnlearnConfig) -> Scores:
        """Load a saved model in fp32 and return the model's scores. Several ranks share the model and the rows."""
        return _scorer(config)(model, data, config, name=model)

    def resolve_reference(self, path: str | Path, config: UnlearnConfig, data: UnlearnData) -> Scores:
        """Return the reference scores at ``path``."""
        return resolve_reference(path, config, data, _scorer(config))

    def check_reference(self, reference: Scores, data: UnlearnData, config: UnlearnConfig, model: str) -> None:
        """Check that reference scores fit the rows and the truth-ratio definition."""
        check_reference(reference, data, config, model)

    def check_evaluation(self, config: UnlearnConfig) -> None:
        """Load the tasks of lm-eval."""
        load_tasks(config.evaluation)

    def open_unlearning_log(self, scores: Scores, reference: Scores | None) -> Log:
        """Return the scores as a log of open-unlearning."""
        return to_open_unlearning(scores, reference)

    def check_robustness(self, data: UnlearnData, config: UnlearnConfig) -> None:
        """Check the file of entities."""
        if config.evaluation.depth:
            rows_with_facts(data, config.evaluation.entities)

    def robustness(
        self,
        model: str,
        data: UnlearnData,
        config: UnlearnConfig,
        measured: Metrics,
        reference: Scores | None,
        find_retrained: Callable[[], str | None],
        find_target: Callable[[], str | None],
    ) -> dict[str, Any]:
        """Run the attacks and comparisons that the config asks for."""
        return measure_robustness(model, data, config, measured, reference, find_retrained, find_target)


def _scorer(config: UnlearnConfig) -> ScoreModel:
    return score_on_ranks if joins_ranks(config.engine) else score_saved
