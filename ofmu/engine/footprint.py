"""Bytes that an engine holds on each rank: weights, fp32 masters, gradients, and DeepSpeed's buffers.

The numbers follow DeepSpeed 0.19 as ``ofmu/engine/deepspeed.py`` configures it.
"""

from __future__ import annotations

from dataclasses import dataclass

from ofmu.engine.config import EngineConfig
from ofmu.engine.deepspeed import BUCKET_ELEMENTS
from ofmu.models.quantization import BLOCK, SCALE_BLOCK

FP32, BF16 = 4, 2
"""Bytes of a value."""
FOUR_BIT = 0.5 + 1 / BLOCK + FP32 / (BLOCK * SCALE_BLOCK)
"""Bytes of a weight of 4 bits with its share of two levels of scales."""


@dataclass(frozen=True, kw_only=True)
class EngineBytes:
    """Bytes of one rank. With ``offload``, ``masters``, ``vector`` and a part of the gradients are in host memory."""

    vector: float
    """One vector of the parameter space, in fp32."""
    gradient_vector: float
    """One vector of gradients that a method holds."""
    weights: float
    """The weights that a forward pass reads, frozen ones included."""
    masters: float
    """What the fp32 masters take beside the weights. One process stores a master as a bf16 weight and a remainder."""
    gathered_weights: float
    """Weights that ZeRO-3 gathers for a pass, and on several ranks the buffer that they arrive in."""
    still_gathered: float
    """Weights that ZeRO-3 has gathered and not released when passes end: those that it fetched ahead."""
    in_backward: float
    """Gradients at the end of a backward pass, before the ranks exchange them."""
    in_reduction: float
    """Gradients and DeepSpeed's bucket while the ranks exchange them. A single rank exchanges them with itself."""
    gradients: float
    """Gradients after a pass, until the next pass clears them, and a bucket that is kept."""
    loading: float
    """Peak while the engine is built, weights and masters included."""
    gathered: float
    """One whole vector on every rank, as exact products gather it. 0: it shares the storage of the masters."""
    gathered_to_save: float
    """The largest weight, as saving gathers it. 0: it shares the storage of the masters."""
    read: float
    """What is read from files before the engine takes it: the whole model, or the largest weight."""


def engine_bytes(
    config: EngineConfig,
    trainable: int,
    frozen: int,
    ranks: int,
    *,
    quantized: int = 0,
    quantizing: float = 0.0,
    largest: int,
    one_by_one: bool,
    on_gpu: bool,
) -> EngineBytes:
    """Return the bytes of one rank.

    Args:
        config: the engine section.
        trainable: number of trainable weights.
        frozen: number of frozen weights that are not quantised.
        ranks: number of ranks.
        quantized: number of frozen weights of 4 bits. Not at stage 3.
        quantizing: bytes that quantising one weight takes for a moment.
        largest: number of values of the largest weight.
        one_by_one: whether weights can be read from and written to files one after the other.
        on_gpu: whether the device is a GPU. Host memory counts only where a buffer is written to.
    """
    deepspeed = config.backend_on(ranks) == "deepspeed"
    stage = config.stage if deepspeed else 0
    value = BF16 if config.precision == "bf16" else FP32
    share = FP32 * trainable / (ranks if stage else 1)
    packed = FOUR_BIT * quantized
    # A weight is quantised as soon as it is read, if weights can be read one by one.
    # A frozen weight is rounded before it is moved to a GPU.
    loaded = FP32 * trainable + (value if on_gpu else FP32) * frozen + (packed if one_by_one else FP32 * quantized)
    reading = max(FP32 * trainable, quantizing)
    bucket = value * float(BUCKET_ELEMENTS if on_gpu and deepspeed else min(trainable, BUCKET_ELEMENTS))
    if stage == 0:
        # Passes of one process add to the method's vector directly.
        gradients = FP32 * float(trainable) if deepspeed else 0.0
        rounded = value != FP32
        return EngineBytes(
            vector=share,
            gradient_vector=BF16 * float(trainable) if config.gradient_precision == "bf16" and rounded else share,
            weights=value * (trainable + frozen) + packed,
            masters=BF16 * float(trainable) if rounded else 0.0,
            gathered_weights=0.0,
            still_gathered=0.0,
            in_backward=gradients,
            in_reduction=gradients + bucket if gradients else 0.0,
            gradients=gradients,
            loading=loaded + reading,
            gathered=0.0,
            gathered_to_save=FP32 * float(largest) if rounded else 0.0,
            read=loaded,
        )
    # Stages 1 and 2 store fp32 masters in the weights themselves, and free a gradient once it was added to a vector.
    shared = stage < 3 and config.precision == "fp32" and config.offload != "cpu"
    whole = value * float(trainable) if stage == 1 else 0.0
    # Stage 3 keeps its bucket from the first pass on. While ranks exchange it, they hold a copy in another order.
    standing = share + bucket if stage == 3 else 0.0
    # A weight that is larger than the bucket is gathered, and its gradient exchanged, alone and as a whole.
    full = value * float(min(trainable, max(BUCKET_ELEMENTS, largest)))
    # Several ranks gather weights into one buffer, from which each weight is copied.
    copies = 2 if ranks > 1 else 1
    fetched = value * float(min(trainable + frozen, BUCKET_ELEMENTS)) if stage == 3 else 0.0
    in_pass = max(fetched, value * float(largest)) if stage == 3 else 0.0
    weights = value * ((trainable + frozen) / ranks if stage == 3 else trainable + frozen) + packed
    in_pieces = one_by_one and stage == 3 and ranks > 1
    loading = loaded + max(value * trainable + share, reading)
    if in_pieces:
        # A whole weight stands beside the pieces while weights are read; masters and gradients join them later.
        loading = weights + max(FP32 * float(largest), 2 * share)
    if stage == 3 and on_gpu:
        loading += bucket
    return EngineBytes(
        vector=share,
        gradient_vector=share,
        weights=weights,
        masters=0.0 if shared else share,
        gathered_weights=copies * in_pass,
        still_gathered=fetched,
        in_backward=standing or max(bucket, whole) + share,
        in_reduction=standing + full if stage == 3 else bucket + whole + share,
        gradients=standing,
        loading=loading,
        gathered=FP32 * float(trainable),
        gathered_to_save=FP32 * float(largest if one_by_one else trainable),
        read=FP32 * float(largest) if in_pieces else loaded,
    )
