"""Weights of 4 bits in the frozen linear layers under adapters: NF4 with double quantisation, as in QLoRA.

Dettmers et al., arXiv 2305.14314. bitsandbytes makes and reads the weights. A layer dequantises its weight for each
product and drops it afterwards, so that one whole weight is alive at a time. The backward pass dequantises again. A
frozen weight needs no gradient, and the layer is linear in its input. So every derivative of the layer is the same kind
of product: double backward, triple backward and forward mode work, which they do not in bitsandbytes' own layer.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ofmu.errors import ModelError

BLOCK = 64
"""Weights that share one scale."""
SCALE_BLOCK = 256
"""Scales of 8 bits that share one fp32 scale."""
QUANTIZING_COPIES = 5
"""Copies of a weight in fp32 that quantising it makes."""
_MIN_SHARE = 0.5
"""Share of the weights outside of embeddings and output layer below which quantising saves little."""


class FourBitLinear(nn.Linear):
    """A frozen linear layer that takes the place of ``linear`` and has its parameters, until :meth:`quantize` packs
    the weight. The bias keeps its type.

    Args:
        linear: the layer, whose parameters may be on the meta device.
    """

    scales: Tensor
    """8-bit scales, one for each block of weights."""
    scale_of_scales: Tensor
    """fp32, one for each block of scales."""
    offset: Tensor
    """The mean of the scales, which was subtracted from them."""
    scale_code: Tensor
    """The 256 values of an 8-bit scale."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self._parameters.update(linear._parameters)
        self.train(linear.training)

    @torch.no_grad()
    def quantize(self) -> None:
        """Replace the weight by its packed form, two values a byte, and the scales. Neither is in the state dict."""
        from bitsandbytes import functional as quantized  # an extra, and slow to import

        weight = self._parameters.pop("weight")
        assert weight is not None
        packed, state = quantized.quantize_4bit(
            weight.detach().contiguous(), blocksize=BLOCK, compress_statistics=True, quant_type="nf4"
        )
        buffers = {
            "weight": packed,
            "scales": state.absmax,
            "scale_of_scales": state.state2.absmax,
            "offset": state.offset,
            "scale_code": state.state2.code,
        }
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor.clone(), persistent=False)

    @torch.no_grad()
    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weight, of shape (outputs, inputs), as a new tensor."""
        from bitsandbytes import functional as quantized  # an extra, and slow to import

        # The kernels write these three types.
        written = dtype if dtype in (torch.float32, torch.bfloat16, torch.float16) else torch.float32
        # For an odd width, bitsandbytes would compile its own Python code. The blocks run through the rows, so the
        # weight is also one long row, filled up to whole bytes.
        odd = self.in_features % 2 == 1
        shape = (1, 2 * self.weight.numel()) if odd else (self.out_features, self.in_features)
        make_state: Any = quantized.QuantState  # which has no types
        state = make_state(
            absmax=self.scales,
            shape=torch.Size(shape),
            dtype=written,
            blocksize=BLOCK,
            quant_type="nf4",
            offset=self.offset,
            state2=make_state(
                absmax=self.scale_of_scales, code=self.scale_code, blocksize=SCALE_BLOCK, dtype=torch.float32
            ),
        )
        weight: Tensor = quantized.dequantize_4bit(self.weight, state)
        if odd:
            values = self.out_features * self.in_features
            weight = weight.flatten()[:values].view(self.out_features, self.in_features)
        return weight.to(dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Return input·Wᵀ + bias in the type of the input."""
        result: Tensor = _Product.apply(input, self, False)  # type: ignore[no-untyped-call]
        return result if self.bias is None else result + self.bias

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FourBitLinear:
        # A cast of the model to bf16 would round the scales, and so change the weights.
        exact = {name: tensor for name, tensor in self._buffers.items() if tensor is not None}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, tensor in exact.items():
            self._buffers[name] = tensor.to(self.weight.device)
        return self


class _Product(torch.autograd.Function):
    """x·Wᵀ, or x·W if ``transposed``. W is constant and is not stored for the backward pass."""

    @staticmethod
    def forward(x: Tensor, layer: FourBitLinear, transposed: bool) -> Tensor:
        weight = layer.dequantized(x.dtype)
        return x @ weight if transposed else functional.linear(x, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, FourBitLinear, bool], output: Tensor) -> None:
        _, ctx.layer, ctx.transposed = inputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _Product.apply(gradients[0], ctx.layer, not ctx.transposed), None, None  # type: ignore[no-untyped-call]

    @staticmethod
    def jvp(ctx: Any, *rates: Any) -> Tensor:
        result: Tensor = _Product.apply(rates[0], ctx.layer, ctx.transposed)  # type: ignore[no-untyped-call]
        return result


def with_four_bit_layers(model: Any) -> Any:
    """Put a :class:`FourBitLinear` in the place of every linear layer but the output layer, and return the model.

    The weights stay as they are until :meth:`FourBitLinear.quantize`. Layers with tied weights are left out.

    Raises:
        ModelError: the model has no such layer.
    """
    output = model.get_output_embeddings()
    uses = Counter(
        id(weight) for module in model.modules() for weight in module._parameters.values() if weight is not None
    )
    chosen = {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear and module is not output and uses[id(module.weight)] == 1
    }
    if not chosen:
        raise ModelError(
            f"This {model.config.model_type} model has no linear layer of PyTorch, and only these are quantised: "
            "set model.adapter.quantization to none"
        )
    _warn_of_a_small_share(model, output, sum(module.weight.numel() for module in chosen.values()))
    for name, module in chosen.items():
        model.set_submodule(name, FourBitLinear(module))
    return model


def _warn_of_a_small_share(model: Any, output: Any, quantized: int) -> None:
    left_out = {id(layer.weight) for layer in (model.get_input_embeddings(), output) if layer is not None}
    inner = sum(weight.numel() for weight in model.parameters() if id(weight) not in left_out)
    if quantized < _MIN_SHARE * inner:
        warnings.warn(
            f"model.adapter.quantization covers {quantized / inner:.0%} of the weights of this "
            f"{model.config.model_type} model besides its embeddings, since the others are in no linear layer of "
            "PyTorch and stay as they are",
            stacklevel=2,
        )


def quantized_layers(model: nn.Module) -> list[FourBitLinear]:
    """Return the quantised layers of a model."""
    return [module for module in model.modules() if isinstance(module, FourBitLinear)]


def is_quantized(model: nn.Module) -> bool:
    """Return whether the model has quantised layers."""
    return bool(quantized_layers(model))


def quantize_model(model: Any) -> Any:
    """Quantise the weights of a loaded model's linear layers to 4 bits, in place, and return the model.

    Raises:
        ModelError: the model has no linear layer that can be quantised.
    """
    for layer in quantized_layers(with_four_bit_layers(model)):
        layer.quantize()
    return model


def dequantize_model(model: Any) -> Any:
    """Put an ordinary linear layer with the dequantised fp32 weight in the place of every quantised one, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, FourBitLinear):
            linear = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None, device="meta")
            linear._parameters.update(module._parameters)
            linear.weight = nn.Parameter(module.dequantized())
            model.set_submodule(name, linear)
    return model
