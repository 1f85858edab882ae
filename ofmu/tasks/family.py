"""The interface of one kind of task. Preparation, training and evaluation know a kind by this class only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ofmu.errors import DataError
from ofmu.evaluation.metrics.custom import with_custom_metrics
from ofmu.evaluation.metrics.summary import Metrics
from ofmu.evaluation.open_unlearning_export import Log
from ofmu.io.files import FileHashes
from ofmu.run_config import UnlearnConfig
from ofmu.task import Task
from ofmu.tasks.events import PreparationCallback
from ofmu.tasks.forgotten import ForgottenRows
from ofmu.tasks.preparation import Preparation


class TaskFamily(ABC):
    """Data, preparation, scores and metrics of one kind of task."""

    forgotten: ForgottenRows
    """The rows that earlier runs forgot."""

    @abstractmethod
    def load_task(self, config: UnlearnConfig, target: Path) -> Task[Any]:
        """Load the rows and encode them for the target in the directory ``target``.

        Raises:
            DataError: the rows cannot be loaded or encoded.
            ModelError: the target's tokenizer or normalisation cannot be loaded.
        """

    @abstractmethod
    def preparation(
        self,
        config: UnlearnConfig,
        callback: PreparationCallback | None,
        *,
        only_cached: bool = False,
        hashes: FileHashes | None = None,
    ) -> Preparation:
        """Return a preparation: :class:`ofmu.tasks.preparation.Preparation` documents the arguments."""

    @abstractmethod
    def load_data(self, config: UnlearnConfig) -> Any:
        """Load the data. The result has a ``content_hash``.

        Raises:
            DataError: the data cannot be loaded.
        """

    @abstractmethod
    def row_counts(self, data: Any) -> tuple[int, int]:
        """Return the number of forget rows and of retain rows."""

    @abstractmethod
    def load_scores(self, path: Path, config: UnlearnConfig | None = None) -> Any:
        """Read a file of scores. ``config`` rules how a log of other software is read; None: the defaults.

        Raises:
            DataError: the file holds no scores of this kind of task.
        """

    @abstractmethod
    def metrics_of(self, scores: Any, reference: Any) -> Metrics:
        """Return the metrics of ``scores``. ``reference``: the reference's scores, or None."""

    @abstractmethod
    def score_saved(self, model: str, data: Any, config: UnlearnConfig) -> Any:
        """Load a saved model in fp32 and return the model's scores.

        Raises:
            OfmuError: the model cannot be loaded, or a row cannot be encoded.
        """

    @abstractmethod
    def resolve_reference(self, path: str | Path, config: UnlearnConfig, data: Any) -> Any:
        """Return the reference scores at ``path``, which is a saved model or a file of scores.

        Raises:
            OfmuError: there are no usable scores at ``path``.
        """

    @abstractmethod
    def check_reference(self, reference: Any, data: Any, config: UnlearnConfig, model: str) -> None:
        """Check that reference scores fit the data.

        Raises:
            ReferenceMismatchError: the reference covers other rows, or follows another definition.
        """

    def check_evaluation(self, config: UnlearnConfig) -> None:  # noqa: B027  # images need no check
        """Check before any work that what the config asks to be measured at the end can be measured.

        Raises:
            ConfigError: a package is missing, or a task of lm-eval is unknown or may not be loaded.
            DataError: a task of lm-eval cannot be loaded.
        """

    def open_unlearning_log(self, scores: Any, reference: Any) -> Log:
        """Return the scores as a log of open-unlearning. ``reference``: the reference's scores, or None.

        Raises:
            DataError: open-unlearning has no log of such scores.
        """
        raise DataError("open-unlearning has logs of language models only")

    def check_robustness(self, data: Any, config: UnlearnConfig) -> None:
        """Check the files that :meth:`robustness` will read, before the model is scored.

        Raises:
            DataError: a file cannot be read, or does not fit the data.
        """
        return

    def robustness(
        self,
        model: str,
        data: Any,
        config: UnlearnConfig,
        measured: Metrics,
        reference: Any,
        find_retrained: Callable[[], str | None],
        find_target: Callable[[], str | None],
    ) -> dict[str, Any]:
        """Run the attacks and comparisons that the config asks for. Return entries to merge into the report.

        Args:
            model: directory or hub name of the evaluated model.
            data: the data.
            config: the run.
            measured: the model's metrics.
            reference: the reference's scores, or None.
            find_retrained: returns the retrained model's directory or hub name, or None.
            find_target: returns the target's directory, or None.
        """
        return {}

    def stored_metrics(self, scores: Path, reference: Path | None, custom_metrics: tuple[str, ...] = ()) -> Metrics:
        """Return the metrics of a file of scores. ``reference``: the file of the reference's scores.

        Raises:
            ConfigError: a custom metric cannot be found.
            DataError: a file holds no scores of this kind of task.
            ReferenceMismatchError: the reference covers other rows.
        """
        expected = None if reference is None else self.load_scores(reference)
        return with_custom_metrics(self.metrics_of, custom_metrics)(self.load_scores(scores), expected)
