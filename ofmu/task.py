"""What a run is about: the rows to forget and to keep, the loss on them, the model, and how it is judged.

Methods and trainer know only this protocol, so the same code unlearns text and images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from torch import nn

from ofmu.engine import Engine
from ofmu.losses import RowwiseLoss

if TYPE_CHECKING:
    from ofmu.evaluation import Metrics
    from ofmu.preparer import Prepared
    from ofmu.run_config import UnlearnConfig

RowT = TypeVar("RowT")

TaskKind = Literal["language", "vision"]


class Task(Protocol[RowT]):
    """One unlearning problem, loaded and encoded."""

    @property
    def kind(self) -> TaskKind:
        """What is unlearned."""

    @property
    def forget_rows(self) -> Sequence[RowT]:
        """D_f, encoded."""

    @property
    def retain_rows(self) -> Sequence[RowT]:
        """D_r, encoded."""

    @property
    def loss(self) -> RowwiseLoss[RowT]:
        """L_f and L_r of method.md: token-mean answer NLL for text, cross-entropy for images."""

    @property
    def content_hash(self) -> str:
        """SHA-256 (hex) over all rows."""

    def load_model(self, *, exact: bool) -> nn.Module:
        """Load the target model in fp32; ``exact``: second derivatives will be taken of it."""

    def score(self, engine: Engine) -> Any:
        """Score the engine's model; collective. Every rank gets all the scores, which have ``save(path)``."""

    def metrics(self, scores: Any, reference: Path | None) -> Metrics:
        """Return the metrics of ``scores``, compared with the reference scores in a file where there is one."""

    def save(self, model: nn.Module, directory: Path, weights: dict[str, Any]) -> None:
        """Save ``weights`` in the form that ``from_pretrained`` loads."""


def stored_metrics(kind: TaskKind, scores: Path, reference: Path | None, functions: Sequence[str] = ()) -> Metrics:
    """Return the metrics of scores that a file holds, compared with those of another file where there is one.

    ``functions`` names metrics of the user's own.

    Raises:
        ConfigError: a function cannot be found.
        DataError: a file holds no scores of this kind of task.
        ReferenceMismatchError: the reference covers other rows.
    """
    from ofmu.evaluation.metrics.custom import with_functions

    if kind == "vision":
        from ofmu.vision.metrics import metrics_of_images
        from ofmu.vision.scores import ImageScores

        images = ImageScores.load(scores)
        retrained = None if reference is None else ImageScores.load(reference)
        return with_functions(metrics_of_images, functions)(images, retrained)
    from ofmu.evaluation import Scores, metrics_of

    rows, expected = Scores.load(scores), None if reference is None else Scores.load(reference)
    return with_functions(metrics_of, functions)(rows, expected)


def load_task(config: UnlearnConfig, prepared: Prepared) -> Task[Any]:
    """Load the rows, or images, that ``config`` names and encode them for the prepared target.

    Raises:
        DataError: the data cannot be loaded or encoded.
        ModelError: the target has no tokenizer.
    """
    if config.data.kind == "vision":
        from ofmu.tasks.vision.task import VisionTask

        return VisionTask(config, prepared.target)
    from ofmu.tasks.language.task import LanguageTask

    return LanguageTask(config, prepared.target)
