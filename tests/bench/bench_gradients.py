"""How far gradients in bf16 are from float64 at the same rounded weights, in vectors of fp32 and of bf16.

    python tests/bench/bench_gradients.py [MODEL_DIRECTORY] [--products]

Eight rows are one micro-batch, or eight. Errors are relative: ‖found − reference‖/‖reference‖. The reference is the
gradient in float64 of a model whose weights are those that the engine has rounded to bf16. So the errors are those of
the passes and of the sums, not of the rounding of the weights. ``--products`` adds ∇Φ and ∇²Φ·∇Φ of OFMU with the
cosine, by exact products: their reference needs tens of copies of the model. Without a directory: a tiny Llama.
"""

from __future__ import annotations

import argparse
import copy
import math
from typing import Any

from measuring import random_rows

ROWS = 8


def error(found: list[Any], reference: list[Any]) -> float:
    """Return ‖found − reference‖/‖reference‖."""
    apart = size = 0.0
    for part, wanted in zip(found, reference, strict=True):
        for begin in range(0, len(part), 2**20):
            piece = slice(begin, begin + 2**20)
            apart += float((part[piece].double() - wanted[piece].double()).square().sum())
            size += float(wanted[piece].double().square().sum())
    return math.sqrt(apart / size)


def main() -> None:
    """Print a row for each number of micro-batches, with the errors of both types of vectors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="")
    parser.add_argument("--products", action="store_true")
    arguments = parser.parse_args()

    import torch
    from transformers import AutoModelForCausalLM

    from ofmu.engine.cost import CostTracker
    from ofmu.engine.torch import TorchEngine
    from ofmu.losses import AnswerLoss
    from ofmu.methods.ofmu.config import OfmuConfig
    from ofmu.methods.ofmu.derivatives import Derivatives
    from ofmu.testing import tiny_llama

    attention = "eager" if arguments.products else "sdpa"
    if arguments.model:
        settings = {"dtype": torch.float32, "attn_implementation": attention}
        model = AutoModelForCausalLM.from_pretrained(arguments.model, **settings)
    else:
        model = tiny_llama(attention)
    vocabulary = model.config.vocab_size
    forget, retain = (random_rows(ROWS, vocabulary, 24, prompt=8, seed=seed) for seed in (1, 2))
    loss: Any = AnswerLoss(0)
    config = OfmuConfig.model_validate({"derivative": "exact", "similarity_threshold": -1.0, "forget_margin": 20.0})

    def values(engine: TorchEngine) -> dict[str, Any]:
        found = {"∇L": engine.gradient(loss, forget)[1]}
        if arguments.products:
            derivatives = Derivatives(engine, loss, loss, config)
            found["H·∇L"] = engine.hvp(loss, forget, found["∇L"])
            phi = derivatives.phi_gradient(forget, retain)
            found |= {"∇Φ": phi.gradient, "∇²Φ·∇Φ": derivatives.penalty_product(phi)}
        return found

    def engine_of(gradients: torch.dtype, micro: int | None) -> TorchEngine:
        return TorchEngine(copy.deepcopy(model), CostTracker(), micro, rounded=True, gradients=gradients)

    exact = copy.deepcopy(model)
    with torch.no_grad():
        for parameter, rounded in zip(
            exact.parameters(), engine_of(torch.float32, None).model.parameters(), strict=True
        ):
            parameter.copy_(rounded)
    reference = values(TorchEngine(exact.double(), CostTracker()))
    print("| micro-batches | value | error: vectors in fp32 | in bf16 |")
    print("|---|---|---|---|")
    for micro in (None, 1):
        short, plain = (values(engine_of(dtype, micro)) for dtype in (torch.bfloat16, torch.float32))
        for name, wanted in reference.items():
            cells = f"{error(plain[name], wanted):.2%} | {error(short[name], wanted):.2%}"
            print(f"| {1 if micro is None else ROWS} | {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
