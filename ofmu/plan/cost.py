"""Gradient evaluations and tokens of a run and of its preparation."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ofmu.evaluation.config import RELEARNING_ROWS, RELEARNING_STEPS
from ofmu.evaluation.robustness.attacks import SAMPLES
from ofmu.evaluation.robustness.few_shot import EXAMPLES
from ofmu.methods.registry import method_class
from ofmu.methods.retain_subset import drawn_count
from ofmu.plan.workload import Workload
from ofmu.run_config import UnlearnConfig

FORWARD_SHARE = 1 / 3
"""Time of a forward pass, in gradient evaluations: a backward pass takes twice as long as a forward pass."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What is computed."""

    gradient_evaluations: float = 0.0
    gradient_tokens: float = 0.0
    """Tokens of gradient evaluations."""
    forward_tokens: float = 0.0
    """Tokens of passes without a backward pass: a frozen target, and evaluations."""

    @property
    def tokens(self) -> float:
        """All tokens."""
        return self.gradient_tokens + self.forward_tokens

    def hours(self, tokens_per_second: float) -> float:
        """Return the hours at a rate of training, in tokens that a plain fine-tuning step reads per second."""
        return (self.gradient_tokens + FORWARD_SHARE * self.forward_tokens) / tokens_per_second / 3600

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            gradient_evaluations=self.gradient_evaluations + other.gradient_evaluations,
            gradient_tokens=self.gradient_tokens + other.gradient_tokens,
            forward_tokens=self.forward_tokens + other.forward_tokens,
        )

    def __mul__(self, count: float) -> Cost:
        return Cost(
            gradient_evaluations=self.gradient_evaluations * count,
            gradient_tokens=self.gradient_tokens * count,
            forward_tokens=self.forward_tokens * count,
        )


def run_cost(config: UnlearnConfig, work: Workload) -> tuple[Cost, Cost] | None:
    """Return the least and the most that one run costs, with its evaluation and its attacks.

    None: the method does not say.
    """
    method = method_class(config.method.name, config.method.module)
    retain_rows = drawn_count(work.retain_rows, config.method.retain_share)
    bounds = method.passes(config.method, work.forget_rows, retain_rows)
    if bounds is None:
        return None
    forget = min(config.method.batch_size, work.forget_rows) * work.forget_tokens
    retain = min(config.method.batch_size, retain_rows) * work.retain_tokens
    least, most = (
        Cost(
            gradient_evaluations=float(passes.gradient_evaluations),
            gradient_tokens=passes.forget * forget * method.answers_in_pass + passes.retain * retain,
            forward_tokens=passes.forget_forward * forget + passes.retain_forward * retain + work.evaluation_tokens,
        )
        for passes in bounds
    )
    robustness = _robustness_cost(config, work)
    return least + robustness, most + robustness


def _robustness_cost(config: UnlearnConfig, work: Workload) -> Cost:
    """Return the cost of the divergence from the target, of the depth of forgetting, and of a run's attacks."""
    evaluation, cost = config.evaluation, Cost()
    if evaluation.kl:
        cost += Cost(forward_tokens=2 * work.divergence_tokens)
    if evaluation.depth and config.reference.source in ("retrain", "model"):
        cost += Cost(forward_tokens=work.depth_tokens)
    if "sampling" in evaluation.run_attacks:
        cost += Cost(forward_tokens=work.sampled_tokens)
    if "few_shot" in evaluation.run_attacks:
        # One answer to each question that is sampled, after examples.
        examples = EXAMPLES * work.sampled_rows * work.forget_tokens
        cost += Cost(forward_tokens=work.sampled_tokens / SAMPLES + examples)
    if "relearning" in evaluation.run_attacks:
        rows = min(RELEARNING_ROWS, work.forget_rows)
        cost += Cost(
            gradient_evaluations=RELEARNING_STEPS,
            gradient_tokens=RELEARNING_STEPS * rows * work.forget_tokens,
            # The other rows are measured before the first step and after each one.
            forward_tokens=(RELEARNING_STEPS + 1) * (work.forget_rows - rows or rows) * work.forget_tokens,
        )
    scored = sum(name.startswith("quantization") for name in evaluation.run_attacks)
    return cost + Cost(forward_tokens=scored * work.evaluation_tokens)


def preparation_cost(config: UnlearnConfig, work: Workload) -> Cost:
    """Return the cost of training and scoring the target and the retrained model, if nothing is in the cache."""
    training, retrains = config.training, config.reference.source == "retrain"
    parts = Cost(forward_tokens=work.evaluation_tokens)
    forget_tokens = work.forget_rows * work.forget_tokens
    retain_tokens = work.retain_rows * work.retain_tokens
    if not config.model.is_target:
        parts += _training(work.forget_rows + work.retain_rows, forget_tokens + retain_tokens, training.batch_size) * (
            training.epochs
        )
    if retrains:
        parts += _training(work.retain_rows, retain_tokens, training.batch_size) * training.epochs
        parts += Cost(forward_tokens=work.evaluation_tokens)
    return parts


def _training(rows: int, tokens: float, batch_size: int) -> Cost:
    return Cost(gradient_evaluations=math.ceil(rows / batch_size), gradient_tokens=tokens)
