"""Attacks after the fact: does what was forgotten come back by a little training, or by rounding the weights?

Relearning: a few steps on a few forget rows (Hu et al., arXiv 2406.13356; Lynch et al., 2402.16835). Quantisation:
symmetric rounding to nearest per output channel (Zhang et al., 2410.16454). Both work on a copy of the model.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ofmu.data.config import DataConfig
from ofmu.data.encoding import Tokenizer, encode_example, pad_id
from ofmu.data.rows import Example, Row, UnlearnData
from ofmu.errors import DataError
from ofmu.evaluation.config import EvaluationConfig
from ofmu.evaluation.metrics.summary import Metrics, metrics_of
from ofmu.evaluation.scores import Scores
from ofmu.evaluation.scoring.model import score_model
from ofmu.evaluation.scoring.sharding import Shard
from ofmu.evaluation.scoring.teacher_forcing import score_examples
from ofmu.finetuning.config import TrainingConfig
from ofmu.finetuning.loop import EpochEnd, finetune

RELEARNING_STEPS = 10
RELEARNING_ROWS = 8
COMPARED = ("forget_probability", "extraction_strength", "ks_statistic", "model_utility")
"""Metrics of which an attack's effect is reported beside the others'."""

Report = dict[str, Any]


def relearning(
    model: Any,
    tokenizer: Tokenizer,
    data: UnlearnData,
    evaluation: EvaluationConfig,
    encoding: DataConfig,
    *,
    learning_rate: float,
    seed: int,
    steps: int = RELEARNING_STEPS,
    rows: int = RELEARNING_ROWS,
) -> Report:
    """Train a copy of ``model`` on ``rows`` forget rows drawn by ``seed`` and watch the others come back.

    Each step sees all drawn rows, at ``training.learning_rate`` falling linearly to a tenth. Watched are the forget
    rows that were not drawn, or all where all were.

    Returns:
        ``metrics``: the area under each curve over the steps, divided by their number (0 to 1: the mean level), and
        the level at the end; ``reasons`` of those that are None; ``curve``: one mapping per step from 0 on;
        ``rows`` drawn and ``watched`` in number.

    Raises:
        DataError: there is no forget row to draw, or a row cannot be encoded.
        NonFiniteLossError: training diverged.
    """
    drawn, watched = _draw(data, rows, seed)
    copied = copy.deepcopy(model)
    examples, targets = (
        [encode_example(tokenizer, row.question, row.answer, encoding) for row in group] for group in (drawn, watched)
    )
    curve: list[dict[str, Any]] = [{"step": 0, **_levels(copied, tokenizer, targets, evaluation.batch_size)}]

    def watch(_: EpochEnd) -> None:
        copied.eval()
        curve.append({"step": len(curve), **_levels(copied, tokenizer, targets, evaluation.batch_size)})
        copied.train()

    training = TrainingConfig(epochs=steps, batch_size=len(examples), learning_rate=learning_rate, warmup_fraction=0.0)
    finetune(copied, examples, training, seed=seed, pad_id=pad_id(tokenizer), callback=watch)
    report: Report = {"metrics": {}, "reasons": {}, "curve": curve, "rows": len(drawn), "watched": len(watched)}
    for name in ("probability", "extraction_strength"):
        levels = [point[name] for point in curve if point[name] is not None]
        names = (f"relearning_{name}_area", f"relearning_{name}")
        if len(levels) < len(curve):
            report["metrics"] |= dict.fromkeys(names, None)
            report["reasons"] |= dict.fromkeys(
                names, "the watched answers have no token but EOS, or the losses are NaN"
            )
        else:
            report["metrics"] |= dict(zip(names, (curve_area(levels), levels[-1]), strict=True))
    return report


def curve_area(levels: Sequence[float]) -> float:
    """Return the trapezoidal area under levels at equally spaced steps, divided by the number of steps.

    Raises:
        ValueError: there are fewer than two levels.
    """
    if len(levels) < 2:
        raise ValueError("an area needs at least two levels")
    return float(np.trapezoid(levels) / (len(levels) - 1))


def quantized(model: Any, bits: int) -> Any:
    """Return a copy whose linear layers' weights are rounded to ``bits`` bits, stored in their own dtype.

    Per output channel (row), weights become s·round(w/s) with s = max|w| / (2^(bits−1) − 1). Embeddings, norms and
    biases stay; an output layer that is tied to the embeddings is rounded with them.
    """
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for module in copied.modules():
            if isinstance(module, nn.Linear):
                module.weight.copy_(round_to_nearest(module.weight, bits))
    return copied


def round_to_nearest(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """Return a matrix rounded symmetrically per row; see :func:`quantized`.

    Raises:
        ValueError: ``bits`` is below 2, which leaves no level but 0.
    """
    if bits < 2:
        raise ValueError(f"symmetric rounding needs at least 2 bits, not {bits}")
    levels = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(dim=1, keepdim=True) / levels
    # A row of zeros has no scale and stays.
    return torch.where(scale > 0, torch.round(weight / scale) * scale, weight)


def quantization(
    model: Any, tokenizer: Tokenizer, data: UnlearnData, evaluation: EvaluationConfig, encoding: DataConfig,
    before: Metrics, reference: Scores | None, *, bits: int,
) -> Report:  # fmt: skip
    """Score a rounded copy as the model itself was scored.

    Returns:
        ``metrics`` (``quantization_4_extraction_strength`` and so on), ``reasons`` of those that are None, and all
        metrics ``before`` and ``after``.
    """
    name = f"quantization_{bits}"
    scores = score_model(
        quantized(model, bits), tokenizer, data, evaluation, encoding, name=f"the model at {bits} bits"
    )
    after = metrics_of(scores, reference)
    return {
        "metrics": {f"{name}_{metric}": after.values[metric] for metric in COMPARED},
        "reasons": {f"{name}_{metric}": after.reasons[metric] for metric in COMPARED if metric in after.reasons},
        "before": dict(before.values),
        "after": dict(after.values),
    }


def _draw(data: UnlearnData, count: int, seed: int) -> tuple[list[Row], list[Row]]:
    rows = list(data.forget.rows)
    if not rows or count < 1:
        raise DataError("Relearning needs at least one forget row to train on: name a source with forget rows")
    chosen = set(random.Random(seed).sample(range(len(rows)), min(count, len(rows))))
    drawn = [row for index, row in enumerate(rows) if index in chosen]
    return drawn, [row for index, row in enumerate(rows) if index not in chosen] or drawn


def _levels(model: Any, tokenizer: Tokenizer, targets: Sequence[Example], batch_size: int) -> dict[str, float | None]:
    scores, _ = score_examples(model, tokenizer, targets, batch_size, Shard())
    extracted = [score.extraction_strength for score in scores if score.extraction_strength is not None]
    probability = float(np.mean([np.exp(-score.nll / score.tokens) for score in scores]))
    return {
        "probability": probability if np.isfinite(probability) else None,
        "extraction_strength": float(np.mean(extracted)) if extracted else None,
    }
