"""How many vectors OFMU holds, and how many passes it takes: counted along :mod:`ofmu.methods.ofmu.derivatives`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ofmu.engine.base import FORWARD_MODE_HVP_COST, HVP_COST, HVP_DERIVATIVE_COST
from ofmu.methods.ofmu.config import OfmuConfig
from ofmu.methods.ofmu.product_rows import counted_share
from ofmu.methods.range_test import FEWEST_PASSES, MOST_PASSES
from ofmu.vectors.held import HeldVectors, Passes
from ofmu.vectors.optimizers import moments_of

_POINT = 2
"""g_f and g_r."""
_COMPARED = 2
"""Differences beside the one that a fit computes: the last and the best."""
_MOST_FITTED = 8
"""Differences of a long fit. Two steps without a smaller error end a fit, so most fits take one."""


def held_vectors(config: OfmuConfig) -> HeldVectors:
    """Return the vectors of both loops, with the hinge open if the config decorrelates."""
    kept = moments_of(config.inner_update) + moments_of(config.outer_update)
    most = max(_inner_pass(config), _outer_pass(config))
    # With the cosine, an exact product is added to the outer direction, which then is in fp32.
    exact = int(_is_cosine(config) and config.penalty_weight > 0 and config.outer_hvp_mode == "exact")
    return HeldVectors(kept=kept, in_pass=most, between=most, exact_in_pass=exact, exact_between=exact)


def passes(config: OfmuConfig) -> tuple[Passes, Passes]:
    """Return the passes with the hinge closed in every step and without long fits, and with the hinge always open."""
    least = _passes(config, hinge_open=_always_open(config), fitted=1, stopped=config.has_forget_stop)
    most = _passes(config, hinge_open=config.decorrelates, fitted=_MOST_FITTED)
    return least + _range_tests(config, FEWEST_PASSES), most + _range_tests(config, MOST_PASSES)


def _range_tests(config: OfmuConfig, forward: int) -> Passes:
    """Return the passes of the range tests, with so many forward passes each."""
    total = Passes()
    if config.outer_steps > 0 and config.inner_steps > 0 and config.inner_lr is None:
        total += Passes(forget=1, forget_forward=forward)
    if config.outer_steps > 0 and config.outer_lr is None:
        total += Passes(retain=1, retain_forward=forward)
    return total


def _has_differences(config: OfmuConfig) -> bool:
    return config.decorrelates and config.has_inner_differences


def _is_cosine(config: OfmuConfig) -> bool:
    return config.decorrelation == "cosine" and config.decorrelates


def _phi(config: OfmuConfig) -> int:
    """Return the vectors of ∇Φ and its point. ∇Φ is g_f itself if the hinge is closed, and p takes the place of g_f."""
    return _POINT + (1 if _is_cosine(config) else 0)


def _inner_pass(config: OfmuConfig) -> int:
    if not config.decorrelates:
        return 1
    if not _is_cosine(config):
        return _POINT
    # the sum; and the origin of the differences, or the direction of an exact product
    return _POINT + 2 + (_COMPARED if _has_differences(config) else 0)


def _outer_pass(config: OfmuConfig) -> float:
    if config.penalty_weight == 0:
        return _inner_pass(config) if config.decorrelates else _POINT
    cosine = _is_cosine(config)
    if config.outer_hvp_mode == "exact":
        # the product; and with the cosine ġ_f and ġ_r, which a direction and its rate replace
        return _phi(config) + (3 if cosine else 1)
    # ∇Φ, the direction, the origin; g_f and g_r of the displaced point
    displaced = 3 + (_POINT if cosine else 0)
    # The first fit may compare three differences, but comes before the moments exist. Later ones compare two.
    return displaced + max(_COMPARED, 1 + _COMPARED - moments_of(config.outer_update))


def _always_open(config: OfmuConfig) -> bool:
    return config.decorrelates and config.similarity_threshold == -1


def _passes(config: OfmuConfig, *, hinge_open: bool, fitted: int, stopped: bool = False) -> Passes:
    """Return the passes without range tests. ``stopped``: the stop of forgetting ends every inner step."""
    steps = config.outer_steps
    if steps == 0:
        return Passes()
    regularized = [step for step in range(steps) if config.regularizes(step)]
    with_phi = [step for step in range(steps) if config.computes_phi(step)]
    with_products = [step for step in with_phi if config.regularizes(step)]
    ascents = Passes(forget=1) * (steps - len(regularized))
    ascents += (_similarity(config, hinge_open) if config.decorrelates else Passes(forget=1)) * len(regularized)
    total = Passes() if stopped else ascents * config.inner_steps
    total += Passes(forget_forward=int(config.has_forget_stop)) * (config.inner_steps * steps)
    total += Passes(forget=1) * len(with_phi) + Passes(retain=1) * steps
    total += _products(config, hinge_open) * len(with_products)
    product = _penalty_product(config, hinge_open) if config.penalty_weight else Passes()
    total += product * len(regularized)
    if _has_differences(config) and hinge_open:
        uses = sorted({*with_products, *(regularized if config.inner_steps and not stopped else ())})
        total += _products(config, hinge_open) * (_checks(config, uses) * fitted)
    total += _outer_difference(config, hinge_open) * (_checks(config, regularized) * fitted)
    if hinge_open and not _always_open(config):
        # Where the hinge is closed for once, that difference is checked too.
        total += _outer_difference(config, False) * (_checks(config, regularized, uses_per_span=2) * fitted)
    return total


def _checks(config: OfmuConfig, uses: Sequence[int], *, uses_per_span: int = 1) -> int:
    """Return in how many spans between two checks so many outer steps use a difference. One of them checks it."""
    every = config.derivative_check_every
    spans = Counter(step // every if every else 0 for step in uses)
    return sum(count >= uses_per_span for count in spans.values())


def _outer_difference(config: OfmuConfig, hinge_open: bool) -> Passes:
    """Return the passes of ∇²Φ·∇Φ where it is a difference, which a check repeats. An exact product is not checked."""
    is_plain = not hinge_open or config.decorrelation == "projection"
    is_exact = config.outer_hvp_mode == "exact" or (is_plain and config.plain_products_in_forward_mode)
    return Passes() if is_exact or config.penalty_weight == 0 else _penalty_product(config, hinge_open)


def _products(config: OfmuConfig, hinge_open: bool) -> Passes:
    """Return the passes of ∇S inside ∇Φ."""
    if not hinge_open or config.decorrelation != "cosine":
        return Passes()
    costs = {"central": 2, "forward": 1, "reverse_over_forward": FORWARD_MODE_HVP_COST, "exact": HVP_COST}
    each = costs[config.derivative]
    return Passes(forget=each, retain=each).on_share(_share(config))


def _share(config: OfmuConfig) -> float:
    """Return the share of a minibatch that a product reads."""
    return counted_share(config.batch_size, config.product_share)


def _similarity(config: OfmuConfig, hinge_open: bool) -> Passes:
    return Passes(forget=1, retain=1) + _products(config, hinge_open)


def _penalty_product(config: OfmuConfig, hinge_open: bool) -> Passes:
    """Return the passes of ∇²Φ·∇Φ."""
    share = _share(config)
    exact = config.outer_hvp_mode == "exact"
    each = HVP_COST if exact else FORWARD_MODE_HVP_COST if config.plain_products_in_forward_mode else 2
    if not hinge_open:
        return Passes(forget=each).on_share(share)
    if config.decorrelation == "projection":
        return Passes(forget=each, retain=each).on_share(share)
    if exact:
        both = HVP_COST + HVP_DERIVATIVE_COST
        return Passes(forget=both, retain=both).on_share(share)
    return (Passes(forget=1, retain=1).on_share(share) + _products(config, hinge_open)) * 2
