"""What one kind of task does with the rows that earlier runs forgot: keep them as files, find them, measure them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ofmu.run_config import UnlearnConfig

Values = Mapping[str, float | None]


class ChainScorer(Protocol):
    """A saved model that is measured for a chain. The first measurement loads the model."""

    def forget_metrics(self, rows: Sequence[Any], scoring: Mapping[str, Any]) -> Values:
        """Return the metrics of the forget rows of one earlier run. None: the rows do not give a metric.

        Args:
            rows: the rows, see :meth:`ForgottenRows.of`.
            scoring: how that run scored them, see :meth:`ForgottenRows.scoring_of`.

        Raises:
            OfmuError: the settings are damaged, the model cannot be loaded, or a row cannot be scored.
        """

    def metrics(self) -> Values:
        """Return the metrics on all rows of the present run that need no reference.

        Raises:
            OfmuError: the model or the data cannot be loaded, or a row cannot be scored.
        """


class ForgottenRows(ABC):
    """The rows that runs of one kind of task forgot. A later run neither retains them nor scores utility on them."""

    suffix: str
    """The ending of the files, with a dot."""

    @abstractmethod
    def of(self, data: Any) -> tuple[Any, ...]:
        """Return the forget rows of a run's data, with all that their scores need."""

    @abstractmethod
    def write(self, path: Path, rows: Sequence[Any]) -> None:
        """Write rows to a file that ``data.earlier`` may name.

        Raises:
            StorageError: the file cannot be written.
        """

    @abstractmethod
    def read(self, path: Path) -> tuple[Any, ...]:
        """Return the rows that :meth:`write` wrote.

        Raises:
            DataError: the file is missing or malformed.
        """

    @abstractmethod
    def content_hash(self, rows: Sequence[Any]) -> str:
        """Return the SHA-256 (hex) of the rows in order."""

    @abstractmethod
    def scoring_of(self, config: UnlearnConfig) -> dict[str, Any]:
        """Return the settings that the scores of a run's forget rows depend on, apart from model and rows."""

    @abstractmethod
    def scorer(self, model: str, config: UnlearnConfig) -> ChainScorer:
        """Return a scorer of a saved model.

        Args:
            model: a directory or a hub name.
            config: the present run. It gives the device and the batch size.
        """

    @abstractmethod
    def count_left_out(self, before: UnlearnConfig, after: UnlearnConfig) -> int:
        """Return how many retain rows a chain leaves out. ``before`` is the config without the chain.

        Raises:
            DataError: the rows cannot be read, or no retain row is left.
        """

    def check_follows(self, earlier: UnlearnConfig, config: UnlearnConfig) -> None:
        """Check that a run under ``config`` can follow a run under ``earlier``.

        Raises:
            DataError: the rows cannot be read, or do not fit the earlier run.
        """
        return
