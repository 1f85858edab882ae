"""How alike two models represent the same rows, layer by layer.

Linear CKA is that of Kornblith et al. (arXiv 1905.00414). A row's representation is
the mean of its answer tokens' hidden states (EOS included), prompt and answer being read together; layer 0 is the
embeddings, layer l the output of block l.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ofmu.data.collate import collate
from ofmu.data.config import DataConfig
from ofmu.data.encoding import Tokenizer, encode_example, pad_id
from ofmu.data.rows import Example, UnlearnData
from ofmu.evaluation.config import EvaluationConfig
from ofmu.evaluation.scoring.sharding import global_batches
from ofmu.evaluation.sets import FORGET, RETAIN

Floats = NDArray[np.float64]
Report = dict[str, Any]

SETS = (FORGET, RETAIN)


def linear_cka(ours: Floats, theirs: Floats) -> float:
    """Return the linear CKA of two representations of the same rows, shapes (rows, width) and (rows, any width).

    1 for representations that differ by a rotation, a shift and a scale; 0 for uncorrelated ones.

    Raises:
        ValueError: there are fewer than two rows, or one representation is the same for all of them.
    """
    if len(ours) != len(theirs) or len(ours) < 2:
        raise ValueError("linear CKA needs the same rows on both sides, at least two")
    mine, other = ours - ours.mean(axis=0), theirs - theirs.mean(axis=0)
    # The Gram matrices give the same norms as the covariances and are small where rows are few.
    gram_mine, gram_other = mine @ mine.T, other @ other.T
    scale = float(np.linalg.norm(gram_mine) * np.linalg.norm(gram_other))
    if not scale > 0:
        raise ValueError("linear CKA needs representations that differ between rows")
    return float((gram_mine * gram_other).sum() / scale)


def mean_cosine(ours: Floats, theirs: Floats) -> float:
    """Return the mean over rows of the cosine between both representations, shape (rows, width) each.

    Raises:
        ValueError: the shapes differ, or a representation is zero.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"cosines need equal shapes, not {ours.shape} and {theirs.shape}")
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    if not (norms > 0).all():
        raise ValueError("cosines need representations other than zero")
    return float(np.mean((ours * theirs).sum(axis=1) / norms))


@torch.no_grad()
def answer_states(model: Any, examples: Sequence[Example], pad: int, batch_size: int) -> Floats:
    """Return each row's mean answer hidden state at every layer, shape (layers + 1, rows, width)."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    found: dict[int, torch.Tensor] = {}
    for indices in global_batches([len(example.input_ids) for example in examples], batch_size):
        batch = collate([examples[index] for index in indices], pad, device)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        layers = model(**inputs, use_cache=False, output_hidden_states=True).hidden_states
        for row, index in enumerate(indices):
            answer = slice(examples[index].answer_start, len(examples[index].input_ids))
            found[index] = torch.stack([layer[row, answer].double().mean(dim=0) for layer in layers]).cpu()
    model.train(was_training)
    return torch.stack([found[index] for index in range(len(examples))], dim=1).numpy()


def alignment(
    model: Any,
    reference: Any,
    tokenizer: Tokenizer,
    data: UnlearnData,
    evaluation: EvaluationConfig,
    encoding: DataConfig,
) -> Report:
    """Compare a model with the retrained one on the evaluation's forget and retain rows.

    Returns:
        ``metrics`` (``alignment_forget_cka`` and so on: the mean over all layers but the embeddings), ``reasons``
        for those that are None, and ``layers``: the list by layer under the same names, embeddings first.
    """
    report: Report = {"metrics": {}, "reasons": {}, "layers": {}}
    for name in SETS:
        rows = data.evaluation[name].rows if name in data.evaluation else ()
        examples = [encode_example(tokenizer, row.question, row.answer, encoding) for row in rows]
        states: list[Floats] = []
        if examples:
            size = evaluation.batch_size
            states = [answer_states(side, examples, pad_id(tokenizer), size) for side in (model, reference)]
        for kind, compute in (("cka", linear_cka), ("cosine", mean_cosine)):
            _add(report, f"alignment_{name}_{kind}", states, compute, f"the data has no evaluation set '{name}'")
    return report


def _add(
    report: Report, metric: str, states: Sequence[Floats], compute: Callable[[Floats, Floats], float], absent: str
) -> None:
    try:
        if not states:
            raise ValueError(absent)
        if len(states[0]) != len(states[1]):
            raise ValueError(f"the models have {len(states[0]) - 1} and {len(states[1]) - 1} layers")
        layers = [compute(mine, other) for mine, other in zip(*states, strict=True)]
    except ValueError as reason:
        report["metrics"][metric], report["reasons"][metric] = None, str(reason)
        return
    report["layers"][metric] = layers
    report["metrics"][metric] = float(np.mean(layers[1:]))
