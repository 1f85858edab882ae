"""How deep a model has forgotten: what its hidden states still tell of the forget rows' facts, layer by layer.

Two readings of the hidden states h_l at the tokens of a fact, both through the target (arXiv 2605.24614):

- ``unlearning_depth``, activation patching: the target runs with h_l of another model behind block l. The gap
  Δ_l is by how much the fact's tokens become less likely than in the target itself.
- ``logit_lens``: the target's final norm and output layer read h_l. Δ_l is by how much the fact's tokens are
  less likely than from the target's own h_l.

:func:`ofmu.evaluation.metrics.erasure_depth.erasure_depth` compares the gaps of the evaluated model with those of the
retrained model. The prompts are those of this package, and the published scores have others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ofmu.data.config import DataConfig
from ofmu.data.encoding import Tokenizer, pad_id
from ofmu.data.entities import rows_with_facts
from ofmu.data.row_encoder import RowEncoder
from ofmu.data.rows import UnlearnData
from ofmu.errors import ModelError
from ofmu.evaluation.config import HELD_STATE_BYTES, EvaluationConfig
from ofmu.evaluation.metrics.erasure_depth import GAP_THRESHOLD, erasure_depth
from ofmu.evaluation.metrics.registry import DEPTHS
from ofmu.evaluation.robustness.facts import Fact, find_facts
from ofmu.evaluation.robustness.patching import FactBatch, fact_states, lens_log_probabilities, log_probabilities
from ofmu.evaluation.robustness.portions import portions
from ofmu.evaluation.robustness.result import RobustnessResult
from ofmu.evaluation.scoring.batches import global_batches
from ofmu.evaluation.scoring.model import evaluation_mode
from ofmu.evaluation.sets import FORGET
from ofmu.models.blocks import decoder_blocks

OpenModel = Callable[[], AbstractContextManager[Any]]
"""Opens a block in which the returned model stands in memory."""

_NO_FACT = "no forget row has tokens of a fact: the answers are cut before it, or hold nothing but EOS"
_NO_GAP = f"the retrained model knows the facts as the target does: no gap exceeds {GAP_THRESHOLD} nats per token"


@dataclass
class _Readings:
    """Mean log-probabilities of facts, by the index of the fact: one value per layer."""

    patched: dict[str, dict[int, Tensor]] = field(default_factory=lambda: {"model": {}, "retrained": {}})
    lens: dict[str, dict[int, Tensor]] = field(default_factory=lambda: {"model": {}, "retrained": {}, "target": {}})
    target: dict[int, Tensor] = field(default_factory=dict)
    """The target itself, shape (1,)."""
    tokens: int = 0
    """Tokens that all forward passes read, padding included."""


@torch.no_grad()
def depth(
    model: Any,
    open_target: OpenModel,
    open_retrained: OpenModel,
    tokenizer: Tokenizer,
    data: UnlearnData,
    evaluation: EvaluationConfig,
    encoding: DataConfig,
) -> RobustnessResult:
    """Measure both depths of a model on the facts of the forget rows.

    With L blocks, the target reads each row L + 1 times for each of the two models, beside one pass of each model.

    Args:
        model: a causal language model. It runs in evaluation mode and returns to its own mode.
        open_target: gives the model from which unlearning started.
        open_retrained: gives the model that was trained without the forget rows. It is closed before the target opens.
        tokenizer: the tokenizer of all three.
        data: the forget rows.
        evaluation: gives the batch size, and the file of entities.
        encoding: the data section, which rules how rows become tokens.

    Returns:
        ``unlearning_depth`` and ``logit_lens``, the means over the rows for which the retrained model has a gap. The
        details hold for each of them the mean of each block and the number of ``rows`` that it counts for, the
        numbers of forget rows and of ``facts``, the facts' ``tokens``, and ``forward_tokens``.

    Raises:
        DataError: a row cannot be encoded, or the file of entities does not fit the rows.
    """
    rows = rows_with_facts(data, evaluation.entities)
    encoder = RowEncoder(tokenizer, encoding, model.config, data.prompting_of(FORGET))
    facts = find_facts(encoder, tokenizer, f"evaluation set {FORGET}", rows)
    details = {"forget_rows": len(rows), "facts": len(facts), "tokens": sum(len(fact.tokens) for fact in facts)}
    if not facts:
        return RobustnessResult(metrics=dict.fromkeys(DEPTHS), reasons=dict.fromkeys(DEPTHS, _NO_FACT), details=details)
    try:
        with evaluation_mode(model):
            readings = _read(model, open_target, open_retrained, facts, pad_id(tokenizer), evaluation.batch_size)
    except ModelError as error:
        reasons = dict.fromkeys(DEPTHS, str(error))
        return RobustnessResult(metrics=dict.fromkeys(DEPTHS), reasons=reasons, details=details)
    return _result(readings, details)


def _read(
    model: Any, open_target: OpenModel, open_retrained: OpenModel, facts: Sequence[Fact], pad: int, batch_size: int
) -> _Readings:
    readings, device = _Readings(), next(model.parameters()).device
    for portion in _portions(model, facts, global_batches([len(fact.example.input_ids) for fact in facts], batch_size)):
        batches = [FactBatch([facts[index] for index in indices], pad, device) for indices in portion]
        held = {"model": [fact_states(model, batch).cpu() for batch in batches]}
        held["retrained"] = _retrained_states(open_retrained, batches, model)
        _read_through_target(open_target, batches, portion, held, model, readings)
    return readings


# Each of the two functions lets go of its model before the next model is loaded.
def _retrained_states(open_retrained: OpenModel, batches: Sequence[FactBatch], model: Any) -> list[Tensor]:
    with open_retrained() as retrained:
        _check_shape("retrained model", retrained, model)
        retrained.eval()
        return [fact_states(retrained, batch).cpu() for batch in batches]


def _read_through_target(
    open_target: OpenModel,
    batches: Sequence[FactBatch],
    indices: Sequence[Sequence[int]],
    held: Mapping[str, Sequence[Tensor]],
    model: Any,
    readings: _Readings,
) -> None:
    with open_target() as target:
        _check_shape("target", target, model)
        target.eval()
        for place, batch in enumerate(batches):
            states = {name: each[place].to(batch.labels.device) for name, each in held.items()}
            _add_readings(target, batch, states, indices[place], readings)


def _add_readings(
    target: Any, batch: FactBatch, states: Mapping[str, Tensor], indices: Sequence[int], readings: _Readings
) -> None:
    """Add what the target reads from the states of both models, and from its own."""
    readings.target.update(zip(indices, log_probabilities(target, batch)[:, None], strict=True))
    for name, of_model in states.items():
        values = [log_probabilities(target, batch, block, each) for block, each in enumerate(of_model)]
        readings.patched[name].update(zip(indices, torch.stack(values, dim=1), strict=True))
    for name, of_model in {**states, "target": fact_states(target, batch)}.items():
        values = [lens_log_probabilities(target, batch, each) for each in of_model]
        readings.lens[name].update(zip(indices, torch.stack(values, dim=1), strict=True))
    blocks = len(states["model"])
    # Each model's states; the target itself and patched by both models; the lens on three models' states.
    readings.tokens += (4 + 2 * blocks) * batch.tokens + 3 * blocks * batch.alone().tokens


def _portions(model: Any, facts: Sequence[Fact], batches: Sequence[list[int]]) -> Iterator[list[list[int]]]:
    """Return consecutive batches whose hidden states, of two models, fit the memory."""
    weight = next(model.parameters())
    bytes_per_token = (
        2 * len(decoder_blocks(model)) * model.config.get_text_config().hidden_size * weight.element_size()
    )
    sizes = ((batch, bytes_per_token * sum(len(facts[index].tokens) for index in batch)) for batch in batches)
    return portions(sizes, HELD_STATE_BYTES)


def _check_shape(name: str, other: Any, model: Any) -> None:
    """Check that the hidden states of two models are comparable.

    Raises:
        ModelError: the numbers of blocks, the widths or the vocabularies differ.
    """
    shapes = [
        (len(decoder_blocks(each)), text.hidden_size, text.vocab_size)
        for each in (other, model)
        for text in (each.config.get_text_config(),)
    ]
    if shapes[0] != shapes[1]:
        sizes = [f"{blocks} blocks of width {width} and {words} tokens" for blocks, width, words in shapes]
        raise ModelError(f"the {name} has {sizes[0]}, and the model has {sizes[1]}: their hidden states differ in kind")


def _result(readings: _Readings, details: dict[str, Any]) -> RobustnessResult:
    metrics: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    layers: dict[str, Any] = {}
    sides = ((readings.target, readings.patched), (readings.lens["target"], readings.lens))
    for metric, (before, after) in zip(DEPTHS, sides, strict=True):
        gaps = {
            name: np.stack([(before[index] - after[name][index]).numpy() for index in sorted(before)])
            for name in ("model", "retrained")
        }
        try:
            found = erasure_depth(gaps["model"], gaps["retrained"])
        except ValueError as error:
            metrics[metric], reasons[metric] = None, str(error)
            continue
        metrics[metric] = found.mean
        if found.mean is None:
            reasons[metric] = _NO_GAP
        layers[metric] = {"layers": list(found.by_layer), "rows": list(found.rows_by_layer)}
    return RobustnessResult(
        metrics=metrics, reasons=reasons, details={**details, **layers, "forward_tokens": readings.tokens}
    )
