"""Scores of saved language models, and the reference of forget quality."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from ofmu.data.encoding import Tokenizer, load_tokenizer
from ofmu.data.rows import UnlearnData
from ofmu.engine.build import resolve_device
from ofmu.evaluation.matching import require_match, unscored_copy
from ofmu.evaluation.score_files import parse_scores
from ofmu.evaluation.scores import Scores
from ofmu.evaluation.scoring.model import score_model
from ofmu.evaluation.sets import FORGET, MEMBERS
from ofmu.io.files import read_json
from ofmu.models.language import load_model
from ofmu.run_config import UnlearnConfig
from ofmu.tasks.reference_path import reference_scores_file


class ScoreModel(Protocol):
    """Scores a saved model: :func:`score_saved`, or the same on several ranks."""

    def __call__(self, path: str, data: UnlearnData, config: UnlearnConfig, *, name: str) -> Scores:
        """Return the model's scores."""


def resolve_reference(
    path: str | Path, config: UnlearnConfig, data: UnlearnData, score: ScoreModel | None = None
) -> Scores:
    """Return reference scores from a file of this package, a log of TOFU or open-unlearning, or a saved model.

    A saved model is scored here. A log holds losses and is read under the config's truth-ratio definition.

    Args:
        path: the file, or the model.
        config: the run.
        data: the rows.
        score: scores a saved model. None: :func:`score_saved`.

    Raises:
        OfmuError: there are no usable scores at ``path``.
    """
    file = reference_scores_file(path)
    if file is None:
        return score_reference(str(path), data, config, score or score_saved)
    return parse_scores(read_json(file), str(path), config.evaluation.truth_ratio)


def check_reference(reference: Scores, data: UnlearnData, config: UnlearnConfig, model: str) -> None:
    """Check that reference scores fit the rows of ``data`` and the config's truth-ratio definition.

    Raises:
        ReferenceMismatchError: the reference covers other rows, or follows another definition.
    """
    require_match(unscored_copy(model, data, config.evaluation.truth_ratio), reference)


def score_reference(path: str, data: UnlearnData, config: UnlearnConfig, score: ScoreModel) -> Scores:
    """Score a saved reference model on the forget set, without generation. Forget quality needs no other scores."""
    sets = {name: rows for name, rows in data.evaluation.items() if name in (FORGET, MEMBERS)}
    forget = UnlearnData(forget=data.forget, retain=data.retain, holdout=data.holdout, evaluation=sets)
    evaluation = config.evaluation.model_copy(update={"rouge": False})
    return score(path, forget, config.model_copy(update={"evaluation": evaluation}), name=path)


def score_saved(path: str, data: UnlearnData, config: UnlearnConfig, *, name: str, quantized: bool = False) -> Scores:
    """Load a saved model in fp32 and score the model on every evaluation set.

    Args:
        path: a directory or a hub name.
        data: the rows.
        config: the run.
        name: the model's name in reports.
        quantized: whether the weights of the linear layers are quantised to 4 bits first.

    Raises:
        OfmuError: the model cannot be loaded, or a row cannot be encoded.
    """
    model, tokenizer = load_saved(path, config, quantized=quantized)
    return score_model(model, tokenizer, data, config.evaluation, config.data, name=name)


def load_saved(path: str, config: UnlearnConfig, *, quantized: bool = False) -> tuple[Any, Tokenizer]:
    """Load a saved model in fp32 onto the config's device, and its tokenizer.

    Raises:
        ModelError: one of them cannot be loaded.
    """
    model = load_model(path, config.model.attention, quantized=quantized).to(resolve_device(config.engine))
    return model, load_tokenizer(path, fallback=config.model.tokenizer)
