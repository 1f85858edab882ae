"""How right are ∇S, ∇Φ and ∇²Φ·∇Φ on a model: differences at fixed steps and at the fitted step, against float64.

    python tests/bench/bench_derivatives.py                                # the target of the preset quickstart
    python tests/bench/bench_derivatives.py CONFIG --rows 4 [--no-penalty] [section.key=value ...]

CONFIG is a preset or a YAML file, as for ``ofmu unlearn``. Its target is prepared, or found in the cache. The reference
is the exact product by double and triple backward in float64, which needs a few tens of copies of the fp32 model in
memory, and about half of that with ``--no-penalty``. Errors are relative to the reference's norm. ``est`` is the error
that a run would record.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

from torch import nn

from ofmu.config.files import read_mapping, validate
from ofmu.engine.base import Engine
from ofmu.engine.cost import CostTracker
from ofmu.engine.torch import TorchEngine
from ofmu.losses import RowwiseLoss
from ofmu.methods.ofmu.config import OfmuConfig
from ofmu.methods.ofmu.derivatives import INNER_STEP, Derivatives
from ofmu.methods.ofmu.loss import ClampedLoss
from ofmu.preparer import prepare
from ofmu.run_config import UnlearnConfig, override
from ofmu.tasks.load import task_family
from ofmu.vectors.base import Vector

MakeEngine = Callable[[nn.Module], Engine]
STEPS = (3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6, 3e-7)


def _torch_engine(model: nn.Module) -> Engine:
    return TorchEngine(model, CostTracker())


class Case:
    """The derivatives of a task on one pair of minibatches.

    Args:
        load_model: returns a new model; its argument says whether second derivatives are taken by double backward.
        loss: L_r, and L_f before the clamp.
        forget_rows: minibatch of D_f.
        retain_rows: minibatch of D_r.
    """

    def __init__(
        self, load_model: Callable[[bool], nn.Module], loss: RowwiseLoss[Any], forget_rows: Any, retain_rows: Any
    ) -> None:
        self._load_model, self.loss = load_model, loss
        self.batches = list(forget_rows), list(retain_rows)

    def derivatives(
        self, mode: str, *, double: bool = False, make_engine: MakeEngine = _torch_engine, **settings: Any
    ) -> Derivatives[Any]:
        """Return new derivatives on a new model. ``settings`` are those of OFMU that differ from the paper's hinge."""
        config = OfmuConfig.model_validate({"derivative": mode, "similarity_threshold": -1} | settings)
        model = self._load_model(mode == "exact")
        engine = make_engine(model.double() if double else model)
        margin, sharpness = config.forget_margin or 0.0, config.forget_sharpness
        return Derivatives(engine, ClampedLoss(self.loss, margin, sharpness), self.loss, config)


def error(found: Vector, wanted: Vector, unit: Vector) -> float:
    """Return ‖found − wanted‖/‖unit‖."""
    apart = sum(float((x.double() - y.double()).square().sum()) for x, y in zip(found, wanted, strict=True))
    return math.sqrt(apart / sum(float(x.double().square().sum()) for x in unit))


def print_row(*cells: object) -> None:
    """Print one row of a table."""
    texts = [f"{cell:.1e}" if isinstance(cell, float) else str(cell) for cell in cells]
    print("| " + " | ".join(texts) + " |", flush=True)


def measure(case: Case, *, penalty: bool) -> None:
    """Print both tables."""
    exact = case.derivatives("exact", double=True)
    phi = exact.phi_gradient(*case.batches)
    similarity_part = exact.space.combine((1.0, phi.gradient), (-1.0, phi.point.forget_gradient))
    wanted = [part.float() for part in phi.gradient]
    size = [part.float() for part in similarity_part]
    product = [part.float() for part in exact.penalty_product(phi)] if penalty else None
    print(f"‖θ‖ {exact.space.norm(exact.space.masters()):.4g}, S {phi.point.similarity.value:+.4f}\n")
    del exact, phi, similarity_part
    print_row("way", "c", "∇S", "∇Φ", "est ∇Φ", "gradient evaluations of the fit")
    print_row(*["---"] * 6)
    for mode in ("exact", "reverse_over_forward", "central", "forward"):
        found = case.derivatives(mode)
        for step in STEPS if INNER_STEP[mode] else (0.0,):
            found.inner_step = step
            at = found.phi_gradient(*case.batches)
            print_row(mode, step, error(at.gradient, wanted, size), error(at.gradient, wanted, wanted), "", "")
        if INNER_STEP[mode]:
            found.inner_step = INNER_STEP[mode]
            at = found.phi_gradient(*case.batches)
            costs = found._engine.cost_tracker
            before = costs.gradient_evaluations
            at, estimate = found.fit_inner_step(at)
            cells = error(at.gradient, wanted, size), error(at.gradient, wanted, wanted), estimate
            print_row(f"{mode}, fitted", found.inner_step, *cells, costs.gradient_evaluations - before)
    if product is None:
        return
    print()
    print_row("way", "c inside", "c outside", "∇²Φ·∇Φ", "est", "gradient evaluations of the fit")
    print_row(*["---"] * 6)
    for mode in ("central", "forward"):
        found = case.derivatives(mode)
        costs = found._engine.cost_tracker
        at, _ = found.fit_inner_step(found.phi_gradient(*case.batches))
        first = found.penalty_product(at)
        print_row(mode, found.inner_step, found.outer_steps[at.hinge], error(first, product, product), "", "")
        before = costs.gradient_evaluations
        fitted, estimate = found.fit_outer_step(at, first, found.space.norm)
        steps = found.inner_step, found.outer_steps[at.hinge]
        wrong, cost = error(fitted, product, product), costs.gradient_evaluations - before
        print_row(f"{mode}, fitted", *steps, wrong, estimate, cost)


def main() -> None:
    """Prepare the target of a config, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="quickstart")
    parser.add_argument("--rows", type=int, default=6, help="of each minibatch")
    parser.add_argument("--no-penalty", action="store_true", help="leave out ∇²Φ·∇Φ")
    arguments, overrides = parser.parse_known_args()
    mapping = override(read_mapping(arguments.config), overrides)
    config = validate(UnlearnConfig, {key: mapping[key] for key in UnlearnConfig.model_fields if key in mapping})
    task = task_family(config.data.kind).load_task(config, prepare(config).target)
    forget_rows, retain_rows = task.forget_rows[: arguments.rows], task.retain_rows[: arguments.rows]
    case = Case(lambda double: task.load_model(double_backward=double), task.loss, forget_rows, retain_rows)
    measure(case, penalty=not arguments.no_penalty)


if __name__ == "__main__":
    main()
