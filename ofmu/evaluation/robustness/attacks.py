"""Attacks on an unlearned model: training steps, rounded weights, or several samples may recover forgotten rows.

Relearning trains on a few forget rows (Hu et al., arXiv 2406.13356; Lynch et al., arXiv 2402.16835). Quantization
rounds weights to nearest, symmetrically per output channel (Zhang et al., arXiv 2410.16454). Both change a copy of the
model. Sampling asks each question several times (Reisizadeh et al., arXiv 2511.04934).
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ofmu.data.config import DataConfig
from ofmu.data.encoding import Tokenizer, pad_id
from ofmu.data.row_encoder import RowEncoder, with_prompting
from ofmu.data.rows import Example, Row, UnlearnData
from ofmu.errors import DataError
from ofmu.evaluation.config import RELEARNING_ROWS, RELEARNING_STEPS, EvaluationConfig
from ofmu.evaluation.metrics.summary import Metrics, metrics_of
from ofmu.evaluation.robustness.result import RobustnessResult
from ofmu.evaluation.scores import Scores, hash_sample
from ofmu.evaluation.scoring.generation import sample_answers
from ofmu.evaluation.scoring.model import evaluation_mode, score_model, with_token_limit
from ofmu.evaluation.scoring.rouge import rouge_l_recall
from ofmu.evaluation.scoring.sharding import Shard
from ofmu.evaluation.scoring.teacher_forcing import score_examples
from ofmu.evaluation.sets import FORGET
from ofmu.finetuning.config import TrainingConfig
from ofmu.finetuning.loop import Continued, EpochEnd, finetune

SAMPLES = 8
SAMPLED_ROWS = 64
RELEARNED_METRICS = ("probability", "extraction_strength")
COMPARED_METRICS = ("forget_probability", "extraction_strength", "ks_statistic", "model_utility")
"""Metrics of a quantized model that are reported beside the model's own metrics."""
LEAST_ROUNDED_SHARE = 0.5
"""Share of the weights of a model's blocks below which their rounding says little of a quantized model."""


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
) -> RobustnessResult:
    """Train a copy of ``model`` on some forget rows, and measure the other forget rows after each step.

    Each step trains on all drawn rows. If all forget rows are drawn, the drawn rows are measured.

    A text that is longer than ``data.max_length`` is trained on its first chunk, and measured on all its chunks. A step
    is one batch with one update. All chunks of a long text in one batch could exceed the memory, and chunks spread over
    several updates would make a step of long texts a stronger attack than one of short texts. The first chunks stand
    for what an attacker knows, and the curve shows whether the rest comes back.

    Args:
        model: the model. It is not changed.
        tokenizer: the model's tokenizer.
        data: the data with the forget rows.
        evaluation: gives the batch size of the measurement.
        encoding: the data section, which rules how rows become tokens.
        learning_rate: the first learning rate. It falls linearly to a tenth.
        seed: draws the rows, and seeds the training.
        steps: number of training steps.
        rows: number of forget rows to train on.

    Returns:
        The metrics are each curve's mean level over the steps (area over number of steps) and its last level. The
        details hold ``curve`` (one mapping per step, from step 0), and the numbers of ``rows`` and ``watched`` rows.

    Raises:
        DataError: there is no forget row, or a row cannot be encoded.
        NonFiniteLossError: the training diverged.
    """
    drawn, watched = _split_forget_rows(data, rows, seed)
    trained_copy = copy.deepcopy(model)
    # The forget rows have the prompts in which their forgetting is measured.
    encoder = RowEncoder(tokenizer, encoding, model.config, data.prompting_of(FORGET))
    examples = [encoder.encode("drawn rows", row.question, row.answer)[0] for row in drawn]
    watched_examples = encoder.encode_rows("watched rows", watched)

    def measure() -> dict[str, float | None]:
        return _mean_levels(trained_copy, tokenizer, watched_examples, evaluation.batch_size)

    curve: list[dict[str, Any]] = [{"step": 0, **measure()}]

    def record(_: EpochEnd | Continued) -> None:
        trained_copy.eval()
        curve.append({"step": len(curve), **measure()})
        trained_copy.train()

    training = TrainingConfig(epochs=steps, batch_size=len(examples), learning_rate=learning_rate, warmup_fraction=0.0)
    cost = finetune(trained_copy, examples, training, seed=seed, pad_id=pad_id(tokenizer), callback=record)
    metrics, reasons = _curve_metrics(curve)
    details = {"curve": curve, "rows": len(drawn), "watched": len(watched)}
    return RobustnessResult(
        metrics=metrics,
        reasons=reasons,
        details=details,
        gradient_evaluations=int(cost["gradient_evaluations"]),
        tokens=int(cost["tokens"]),
    )


def sampling(
    model: Any,
    tokenizer: Tokenizer,
    data: UnlearnData,
    evaluation: EvaluationConfig,
    encoding: DataConfig,
    *,
    seed: int,
    samples: int = SAMPLES,
    rows: int = SAMPLED_ROWS,
) -> RobustnessResult:
    """Sample several answers to forget questions, and keep the answer that leaks most (leak@k, arXiv 2511.04934).

    A greedy answer may hide what a sampled answer tells. The paper lets a judge score the answers; here the score of an
    answer is its ROUGE-L recall of the right answer, as everywhere in an evaluation.

    Args:
        model: the model.
        tokenizer: the model's tokenizer.
        data: the data with the forget rows.
        evaluation: gives the batch size and the number of new tokens.
        encoding: the data section, which rules how rows become tokens.
        seed: seed of the samples.
        samples: number k of answers per question.
        rows: largest number of forget rows. Those with the lowest content hashes are asked, so every model gets the
            same questions.

    Returns:
        ``sampled_leakage`` is the mean over the rows of the best score among a row's answers. The details hold the
        ``curve`` of that mean over the first 1, 2, ..., k answers.

    Raises:
        DataError: a prompt fills all positions of the model.
    """
    asked = asked_rows(data, rows)
    if not asked:
        reason = "no forget row has a question"
        return RobustnessResult(metrics={"sampled_leakage": None}, reasons={"sampled_leakage": reason}, details={})
    own = data.prompting_of(FORGET)
    limits, prompts = with_token_limit(evaluation, own), with_prompting(encoding, own)
    with evaluation_mode(model):
        answers = sample_answers(model, tokenizer, [row.question for row in asked], samples, limits, prompts, seed)
    scores = [[rouge_l_recall(row.answer, text) for text in texts] for row, texts in zip(asked, answers, strict=True)]
    curve = np.maximum.accumulate(np.array(scores), axis=1).mean(axis=0).tolist()
    details = {"curve": curve, "rows": len(asked), "samples": samples}
    return RobustnessResult(metrics={"sampled_leakage": curve[-1]}, reasons={}, details=details)


def asked_rows(data: UnlearnData, count: int) -> list[Row]:
    """Return the forget rows whose questions an attack asks: of the rows with a question, the lowest content hashes."""
    questions = [row for row in data.evaluation.get(FORGET, data.forget).rows if row.question]
    return [questions[index] for index in hash_sample(questions, count)]


def curve_area(levels: Sequence[float]) -> float:
    """Return the trapezoidal area under levels at equally spaced steps, divided by the number of steps.

    Raises:
        ValueError: there are fewer than two levels.
    """
    if len(levels) < 2:
        raise ValueError("an area needs at least two levels")
    return float(np.trapezoid(levels) / (len(levels) - 1))


def quantized(model: Any, bits: int) -> Any:
    """Return a copy of the model whose linear layers have weights rounded to ``bits`` bits.

    Weights keep their dtype. Each output channel becomes s·round(w/s) with s = max|w| / (2^(bits−1) − 1). Embeddings,
    norms and biases are not rounded. If the output layer shares its weights with the embeddings, both are rounded.
    """
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for module in _linear_layers(copied):
            # The output channels of the layers of GPT-2 are the columns.
            channels = module.weight.T if isinstance(module, Conv1D) else module.weight
            channels.copy_(round_to_nearest(channels, bits))
    return copied


def rounded_share(model: Any) -> float:
    """Return the share of the weights of a model's blocks that :func:`quantized` rounds.

    Vectors such as norms and biases do not count. Experts that are stored as one tensor are not rounded.
    """
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    outside = {id(module.weight) for module in (*embeddings, model.get_output_embeddings()) if module is not None}
    sizes: dict[int, int] = {id(weight): weight.numel() for weight in model.parameters() if weight.dim() > 1}
    inside = {key: size for key, size in sizes.items() if key not in outside}
    rounded = {id(module.weight) for module in _linear_layers(model)}
    return sum(size for key, size in inside.items() if key in rounded) / max(1, sum(inside.values()))


def _linear_layers(model: Any) -> list[nn.Linear | Conv1D]:
    return [module for module in model.modules() if isinstance(module, nn.Linear | Conv1D)]


def round_to_nearest(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """Return a matrix, shape (output channels, inputs), rounded by the formula of :func:`quantized`.

    Raises:
        ValueError: ``bits`` is below 2, so 0 is the only level.
    """
    if bits < 2:
        raise ValueError(f"symmetric rounding needs at least 2 bits, not {bits}")
    levels = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(dim=1, keepdim=True) / levels
    # A row of zeros has scale 0 and is not rounded.
    return torch.where(scale > 0, torch.round(weight / scale) * scale, weight)


def quantization(
    model: Any,
    tokenizer: Tokenizer,
    data: UnlearnData,
    evaluation: EvaluationConfig,
    encoding: DataConfig,
    before: Metrics,
    reference: Scores | None,
    *,
    bits: int,
) -> RobustnessResult:
    """Score a copy of the model with weights rounded to ``bits`` bits.

    Args:
        model: the model. It is not changed.
        tokenizer: the model's tokenizer.
        data: the data.
        evaluation: the evaluation that the model itself had.
        encoding: the data section, which rules how rows become tokens.
        before: the model's metrics without rounding.
        reference: the reference's scores, or None.
        bits: bits per weight.

    Returns:
        The metrics are named ``quantization_4_extraction_strength`` and so on. The details hold all metrics ``before``
        and ``after`` rounding. The metrics are None if most weights of the model's blocks cannot be rounded.
    """
    name, share = f"quantization_{bits}", rounded_share(model)
    if share < LEAST_ROUNDED_SHARE:
        missing = [f"{name}_{metric}" for metric in COMPARED_METRICS]
        reason = f"{share:.0%} of the weights of the model's blocks are in linear layers, and no others can be rounded"
        return RobustnessResult(metrics=dict.fromkeys(missing), reasons=dict.fromkeys(missing, reason), details={})
    scores = score_model(
        quantized(model, bits), tokenizer, data, evaluation, encoding, name=f"the model at {bits} bits"
    )
    after = metrics_of(scores, reference)
    return RobustnessResult(
        metrics={f"{name}_{metric}": after.values[metric] for metric in COMPARED_METRICS},
        reasons={f"{name}_{metric}": after.reasons[metric] for metric in COMPARED_METRICS if metric in after.reasons},
        details={"before": dict(before.values), "after": dict(after.values)},
    )


def _split_forget_rows(data: UnlearnData, count: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Return ``count`` drawn forget rows, and the others. If there are no others, return the drawn rows twice."""
    rows = list(data.forget.rows)
    if not rows or count < 1:
        raise DataError("Relearning needs at least one forget row to train on: name a source with forget rows")
    chosen = set(random.Random(seed).sample(range(len(rows)), min(count, len(rows))))
    drawn = [row for index, row in enumerate(rows) if index in chosen]
    return drawn, [row for index, row in enumerate(rows) if index not in chosen] or drawn


def _curve_metrics(curve: Sequence[Mapping[str, Any]]) -> tuple[dict[str, float | None], dict[str, str]]:
    metrics: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    for name in RELEARNED_METRICS:
        levels = [point[name] for point in curve if point[name] is not None]
        names = (f"relearning_{name}_area", f"relearning_{name}")
        if len(levels) < len(curve):
            metrics |= dict.fromkeys(names, None)
            reasons |= dict.fromkeys(names, "the watched answers have no token but EOS, or the losses are NaN")
        else:
            metrics |= dict(zip(names, (curve_area(levels), levels[-1]), strict=True))
    return metrics, reasons


def _mean_levels(
    model: Any, tokenizer: Tokenizer, examples: Sequence[Example], batch_size: int
) -> dict[str, float | None]:
    """Return the mean probability and the mean extraction strength of answers. None: no answer has a value."""
    scores, _ = score_examples(model, tokenizer, examples, batch_size, Shard())
    strengths = [score.extraction_strength for score in scores if score.extraction_strength is not None]
    probability = float(np.mean([np.exp(-score.nll / score.tokens) for score in scores]))
    return {
        "probability": probability if np.isfinite(probability) else None,
        "extraction_strength": float(np.mean(strengths)) if strengths else None,
    }
