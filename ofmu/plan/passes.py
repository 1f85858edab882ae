"""Memory of forward and backward passes, found by running them on PyTorch's meta device.

The real code of the losses and of the evaluation runs on a model without weights, and every tensor's size is added
while the tensor lives. Two depths give the memory of a block, so a deep model costs no more time than a shallow one.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ofmu.data.rows import Example
from ofmu.evaluation.robustness.divergence import summed_divergence
from ofmu.evaluation.scoring.kv_cache import GROWTH, extend, prefill, supports_prompt_cache
from ofmu.evaluation.scoring.teacher_forcing import AnswerLogits, logits_of_one_pass, read_answers, token_values
from ofmu.losses import answer_nll
from ofmu.models.chunked_logits import whole_logits
from ofmu.models.config import AdapterConfig
from ofmu.models.meta import build_meta_model
from ofmu.vectors.direct import GradientSink, direct_gradients, replaced_forward, takes_sink

_DEPTHS = (2, 3)
_META = torch.device("meta")
_FUSED = "ofmu_fused"
"""Name under which Transformers finds the fused attention of this file."""


@dataclass(frozen=True)
class PassPeaks:
    """Bytes of one backward pass beyond weights and accumulated gradients."""

    start: float
    """Peak while the output layer and the last blocks are differentiated: all activations are alive."""
    end: float
    """Peak while the first block and the embeddings are differentiated: almost all gradients are alive."""


def training_pass(
    config: Mapping[str, Any],
    layers: int,
    rows: int,
    length: int,
    *,
    attention: Literal["sdpa", "eager"],
    dtype: torch.dtype,
    checkpointing: bool,
    adapter: AdapterConfig,
    derivatives: int = 1,
    whole: bool = False,
    direct: bool = False,
) -> PassPeaks:
    """Return the peaks of one backward pass of the answers' loss. Equal calls are computed once.

    Args:
        config: the content of ``config.json``.
        layers: number of blocks of the model.
        rows: rows of the micro-batch.
        length: tokens of the longest row.
        attention: the attention implementation.
        dtype: the type of the weights.
        checkpointing: whether activations are computed again in the backward pass.
        adapter: the adapters.
        derivatives: 1 for a gradient, 2 for a Hessian-vector product by double backward, 3 for its derivative.
        whole: whether the logits are formed as a whole, however large the vocabulary is.
        direct: whether large gradients are added to a vector part by part, see :mod:`ofmu.vectors.direct`.
    """
    whole = whole or derivatives > 1

    return _training_pass(
        json.dumps(config, sort_keys=True),
        layers,
        rows,
        length,
        attention,
        dtype,
        checkpointing,
        adapter,
        derivatives,
        whole,
        direct and derivatives == 1,
    )


@lru_cache(maxsize=64)
def _training_pass(
    config: str,
    layers: int,
    rows: int,
    length: int,
    attention: str,
    dtype: torch.dtype,
    checkpointing: bool,
    adapter: AdapterConfig,
    derivatives: int,
    whole: bool,
    direct: bool,
) -> PassPeaks:
    shape = json.loads(config)

    def peaks_at(depth: int) -> PassPeaks:
        model = build_meta_model(shape, depth, attention=_name(attention), dtype=dtype, adapter=adapter)
        model.train()
        if checkpointing:
            options = {"use_reentrant": False}
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)  # type: ignore[operator]
        batch = [Example((0,) * length, 1)] * rows
        with whole_logits() if whole else nullcontext():
            return _backward_peaks(model, lambda: answer_nll(model, batch, 0, _META).sum(), derivatives, direct)

    shallow, deep = (peaks_at(depth) for depth in _DEPTHS)
    return PassPeaks(_extrapolate(shallow.start, deep.start, layers), _extrapolate(shallow.end, deep.end, layers))


def scoring_pass(
    config: Mapping[str, Any],
    layers: int,
    rows: int,
    prompt: int,
    answer: int,
    new_tokens: int,
    *,
    dtype: torch.dtype,
    attention: Literal["sdpa", "eager"],
    detailed: bool = False,
) -> tuple[float, float]:
    """Return the peak bytes of scoring given answers and of generating answers, beyond the weights.

    Args:
        config: the content of ``config.json``.
        layers: number of blocks of the model.
        rows: rows of a batch.
        prompt: tokens of the longest prompt.
        answer: tokens of the longest answer.
        new_tokens: tokens of the longest generated answer.
        dtype: the type of the weights.
        attention: the attention implementation.
        detailed: whether token statistics are computed too.
    """

    return _scoring_pass(
        json.dumps(config, sort_keys=True), layers, rows, prompt, answer, new_tokens, dtype, attention, detailed
    )


@lru_cache(maxsize=64)
def _scoring_pass(
    config: str,
    layers: int,
    rows: int,
    prompt: int,
    answer: int,
    new_tokens: int,
    dtype: torch.dtype,
    attention: str,
    detailed: bool,
) -> tuple[float, float]:
    shape = json.loads(config)

    def at(depth: int, steps: tuple[int, ...], growth: int) -> float:
        labels = torch.zeros(steps[-1] + 1, dtype=torch.long)

        def score(logits: AnswerLogits) -> None:
            token_values(logits, labels, detailed)

        model = build_meta_model(shape, depth, attention=_name(attention), dtype=dtype)
        model.eval()
        with torch.no_grad(), _Live(model) as live:
            if not supports_prompt_cache(model):
                ids = torch.zeros((rows, prompt + sum(steps)), dtype=torch.long, device=_META)
                model(input_ids=ids, use_cache=False)
                return float(live.peak)
            state = prefill(model, [[0] * prompt] * rows, 0, growth)
            *before, last = (torch.zeros((rows, step), dtype=torch.long, device=_META) for step in steps)
            for ids in before:
                # Generation reads token by token, and never has the logits of several tokens.
                with _without_logits(model):
                    extend(model, state, ids)
            read_answers(model, state, last, [len(labels)] * rows, state.logits.unsqueeze(1).unbind(), score)
        return float(live.peak)

    def extrapolated(steps: tuple[int, ...], growth: int) -> float:
        shallow, deep = (at(depth, steps, growth) for depth in _DEPTHS)
        return _extrapolate(shallow, deep, layers)

    # Scoring bounds its passes by what these rows take, see prompt_blocks. Short rows only share it in other ways.
    forced = extrapolated((max(1, answer - 1),), 0)
    # A longer cache is one allocation, so two steps reach the peak of a whole generation.
    return forced, extrapolated((max(1, new_tokens - 1), 1), GROWTH) if new_tokens else 0.0


def divergence_pass(
    config: Mapping[str, Any],
    layers: int,
    rows: int,
    length: int,
    answer: int,
    *,
    attention: Literal["sdpa", "eager"],
    dtype: torch.dtype,
) -> float:
    """Return the peak bytes of comparing a batch's logits with those of the target, beyond the weights.

    Args:
        config: the content of ``config.json``.
        layers: number of blocks of the model.
        rows: rows of a batch.
        length: tokens of the longest row.
        answer: tokens of the longest answer.
        attention: the attention implementation.
        dtype: the type of the weights.
    """
    return _divergence_pass(json.dumps(config, sort_keys=True), layers, rows, length, answer, attention, dtype)


@lru_cache(maxsize=64)
def _divergence_pass(
    config: str, layers: int, rows: int, length: int, answer: int, attention: str, dtype: torch.dtype
) -> float:
    shape = json.loads(config)
    batch = [Example((0,) * length, max(1, length - answer))] * rows

    def at(depth: int) -> float:
        model = build_meta_model(shape, depth, attention=_name(attention), dtype=dtype)
        model.eval()
        with torch.no_grad(), _Live(model) as live:
            for logits in logits_of_one_pass(model, batch, 0):
                summed_divergence(torch.empty_like(logits, dtype=torch.float32), logits)
        return float(live.peak)

    shallow, deep = (at(depth) for depth in _DEPTHS)
    return _extrapolate(shallow, deep, layers)


@contextmanager
def _without_logits(model: Any) -> Iterator[None]:
    layer = model.get_output_embeddings()
    with replaced_forward(layer, lambda hidden: hidden[..., :1]) if layer is not None else nullcontext():
        yield


def _name(attention: str) -> str:
    return _FUSED if attention == "sdpa" else attention


def _extrapolate(shallow: float, deep: float, layers: int) -> float:
    per_block = max(0.0, (deep - shallow) / (_DEPTHS[1] - _DEPTHS[0]))
    return shallow + per_block * (layers - _DEPTHS[0])


def _backward_peaks(model: nn.Module, loss: Callable[[], Tensor], derivatives: int, direct: bool) -> PassPeaks:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    first_block = _first_block(model)
    sinks = {id(p): GradientSink(torch.empty_like(p), 1.0) for p in trainable if direct and takes_sink(p)}
    with _Live(model, [sink.target for sink in sinks.values()]) as live, direct_gradients(model, sinks):
        late = False
        start = 0.0

        def drop_gradient(parameter: Tensor) -> None:
            # An accumulated gradient belongs to the engine, which counts it.
            nonlocal late, start
            if id(parameter) in first_block and not late:
                late, start = True, float(live.peak)
                live.peak = live.now
            parameter.grad = None

        for parameter in trainable:
            parameter.register_post_accumulate_grad_hook(drop_gradient)  # type: ignore[no-untyped-call]
        scalar = loss()
        for _ in range(derivatives - 1):
            gradients = torch.autograd.grad(scalar, trainable, create_graph=True, allow_unused=True)
            scalar = torch.stack(
                [(g * p.detach()).sum() for g, p in zip(gradients, trainable, strict=True) if g is not None]
            ).sum()
        torch.autograd.backward(scalar)
        return PassPeaks(start or float(live.peak), float(live.peak))


def _first_block(model: nn.Module) -> set[int]:
    """Return the ids of the trainable parameters of the first block."""
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == "0":
            return {id(parameter) for parameter in module.parameters() if parameter.requires_grad}
    return set()


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not type its modes
    """Counts the bytes of all tensors that are alive and that neither the model nor a vector of the caller holds."""

    def __init__(self, model: nn.Module, held_elsewhere: Sequence[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        held = [*model.parameters(), *model.buffers(), *held_elsewhere]
        self._seen = {tensor.untyped_storage()._cdata for tensor in held}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 0  # a meta tensor has no values; a mask that is not all ones is the general case
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device == _META:
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._seen:
            return
        self._seen.add(key)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def _fused_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as one operation. On the meta device, PyTorch would choose the form that stores all scores."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    causal = attention_mask is None and query.shape[2] > 1 and bool(is_causal or getattr(module, "is_causal", True))
    output = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, causal, attn_mask=attention_mask, scale=scaling
    )[0]
    return output.transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(_FUSED, _fused_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(_FUSED, sdpa_mask)
