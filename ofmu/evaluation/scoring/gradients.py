"""Norms of loss gradients. The norm is small if the model was trained on the row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from ofmu.data.rows import Example
from ofmu.evaluation.scoring.sharding import Shard, run_sharded
from ofmu.losses import answer_nll
from ofmu.models.chunked_logits import layer_for_chunks


def gradient_norms(model: Any, examples: Sequence[Example], shard: Shard) -> tuple[list[float], int]:
    """Return ‖∇θ mean NLL‖₂ of each answer over all trainable parameters, and the number of tokens read.

    Wang et al. (arXiv 2402.17012) use this norm as a membership score. Each row costs one forward and one backward
    pass. No gradient is stored on the model. Under ZeRO-3 no rank has the whole parameters, so ZeRO-3 is not supported.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def run(indices: list[int]) -> list[float]:
        return [_gradient_norm(model, parameters, examples[index]) for index in indices]

    norms = run_sharded([[index] for index in range(len(examples))], run, shard, name="gradients")
    return norms, sum(len(example.input_ids) for example in examples)


@torch.enable_grad()
def _gradient_norm(model: Any, parameters: Sequence[torch.nn.Parameter], example: Example) -> float:
    device = parameters[0].device
    if layer_for_chunks(model, len(example.input_ids)) is not None:
        loss = answer_nll(model, [example], 0, device).sum() / example.answer_length
    else:
        ids = torch.tensor([example.input_ids], device=device)
        logits = model(input_ids=ids, use_cache=False).logits[0]
        start = example.answer_start
        loss = functional.cross_entropy(logits[start - 1 : -1].float(), ids[0, start:])
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    squares = [gradient.double().square().sum() for gradient in gradients if gradient is not None]
    return float(torch.stack(squares).sum().sqrt())
