"""Compare the hidden states of two models on the same rows, layer by layer.

Linear CKA follows Kornblith et al. (arXiv 1905.00414). The representation of a row is the mean of the hidden states at
its answer tokens (EOS included). The model reads prompt and answer together. Layer 0 is the embeddings, and layer l is
the output of block l.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ofmu.data.collate import collate
from ofmu.data.config import DataConfig
from ofmu.data.encoding import Tokenizer, pad_id
from ofmu.data.row_encoder import RowEncoder
from ofmu.data.rows import Example, UnlearnData
from ofmu.evaluation.config import EvaluationConfig
from ofmu.evaluation.metrics.formulas import FloatArray
from ofmu.evaluation.robustness.result import RobustnessResult
from ofmu.evaluation.scoring.batches import global_batches
from ofmu.evaluation.sets import FORGET, RETAIN

ALIGNMENT_SETS = (FORGET, RETAIN)
"""Evaluation sets on which the models are compared."""


def linear_cka(states: FloatArray, other_states: FloatArray) -> float:
    """Return the linear CKA of two representations of the same rows.

    1: the representations differ only by a rotation, a shift and a scale. 0: they are uncorrelated.

    Args:
        states: shape (rows, width).
        other_states: shape (rows, any width).

    Raises:
        ValueError: there are fewer than two rows, or a representation is the same for all rows.
    """
    if len(states) != len(other_states) or len(states) < 2:
        raise ValueError("linear CKA needs the same rows on both sides, at least two")
    centred, other_centred = states - states.mean(axis=0), other_states - other_states.mean(axis=0)
    # Gram matrices give the same norms as covariances, and they are smaller if rows are fewer than dimensions.
    gram, other_gram = centred @ centred.T, other_centred @ other_centred.T
    scale = float(np.linalg.norm(gram) * np.linalg.norm(other_gram))
    if not scale > 0:
        raise ValueError("linear CKA needs representations that differ between rows")
    return float((gram * other_gram).sum() / scale)


def mean_cosine(states: FloatArray, other_states: FloatArray) -> float:
    """Return the mean over rows of the cosine between two representations, shape (rows, width) each.

    Raises:
        ValueError: the shapes differ, or a row's representation is zero.
    """
    if states.shape != other_states.shape:
        raise ValueError(f"cosines need equal shapes, not {states.shape} and {other_states.shape}")
    norms = np.linalg.norm(states, axis=1) * np.linalg.norm(other_states, axis=1)
    if not (norms > 0).all():
        raise ValueError("cosines need representations other than zero")
    return float(np.mean((states * other_states).sum(axis=1) / norms))


_COMPARISONS = {"cka": linear_cka, "cosine": mean_cosine}


@torch.no_grad()
def answer_states(model: Any, examples: Sequence[Example], pad: int, batch_size: int) -> FloatArray:
    """Return the mean hidden state over each row's answer tokens at every layer, shape (layers + 1, rows, width)."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    states: dict[int, torch.Tensor] = {}
    for indices in global_batches([len(example.input_ids) for example in examples], batch_size):
        batch = collate([examples[index] for index in indices], pad, device)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        layers = model(**inputs, use_cache=False, output_hidden_states=True).hidden_states
        for row, index in enumerate(indices):
            answer = slice(examples[index].answer_start, len(examples[index].input_ids))
            states[index] = torch.stack([layer[row, answer].double().mean(dim=0) for layer in layers]).cpu()
    model.train(was_training)
    return torch.stack([states[index] for index in range(len(examples))], dim=1).numpy()


def alignment(
    model: Any,
    reference: Any,
    tokenizer: Tokenizer,
    data: UnlearnData,
    evaluation: EvaluationConfig,
    encoding: DataConfig,
) -> RobustnessResult:
    """Compare a model with the retrained model on the forget and retain rows of the evaluation.

    Returns:
        Each metric (``alignment_forget_cka`` and so on) is the mean over all layers but the embeddings. The details
        hold ``layers``: one list per metric with a value for each layer, embeddings first.
    """
    metrics: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    layers: dict[str, list[float]] = {}
    for name in ALIGNMENT_SETS:
        rows = data.evaluation[name].rows if name in data.evaluation else ()
        encoder = RowEncoder(tokenizer, encoding, model.config, data.prompting_of(name))
        examples = encoder.encode_rows(f"evaluation set {name}", rows)
        states: list[FloatArray] = []
        if examples:
            size = evaluation.batch_size
            states = [answer_states(side, examples, pad_id(tokenizer), size) for side in (model, reference)]
        for kind, compare in _COMPARISONS.items():
            metric = f"alignment_{name}_{kind}"
            try:
                values = _values_by_layer(states, compare, name)
            except ValueError as reason:
                metrics[metric], reasons[metric] = None, str(reason)
            else:
                metrics[metric], layers[metric] = float(np.mean(values[1:])), values
    return RobustnessResult(metrics=metrics, reasons=reasons, details={"layers": layers})


def _values_by_layer(
    states: Sequence[FloatArray], compare: Callable[[FloatArray, FloatArray], float], set_name: str
) -> list[float]:
    if not states:
        raise ValueError(f"the data has no evaluation set '{set_name}'")
    if len(states[0]) != len(states[1]):
        raise ValueError(f"the models have {len(states[0]) - 1} and {len(states[1]) - 1} layers")
    return [compare(layer, other_layer) for layer, other_layer in zip(*states, strict=True)]
