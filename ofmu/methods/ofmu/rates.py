"""The learning rates of OFMU where the config states none: shares of what a range test finds on the target.

η_in = 2·r_f/(K·T). Here r_f is the rate with which one step of the inner rule up g_f raises the loss of forget rows by
δ, or by 3 nats without a margin. So the K·T inner steps together lead twice as far as the straight way to the margin.
η_out = r_r/10. Here r_r is the rate with which one step of the outer rule up g_r raises the loss of retain rows by 3
nats.

Under ``sgd`` the factors are 2/200 and 1/100. The target has small gradients, so r_f and r_r are large. The norm of a
gradient grows a hundredfold on the way from memorised to forgotten, and a step of ``sgd`` grows with it, while the
other rules take steps of one length.

The numbers come from measurements: docs/results.md, "Rates that suit the model".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from ofmu.engine.base import Engine
from ofmu.io.progress import announce
from ofmu.losses import RowwiseLoss
from ofmu.methods.ofmu.config import INNER_REACH, OfmuConfig
from ofmu.methods.range_test import ascent_reach, spread

RowT = TypeVar("RowT")

RISE = 3.0
"""Nats by which the range test raises a loss where no margin says how far."""
SGD_INNER_REACH = 0.01
"""``INNER_REACH`` under ``sgd``, if the norm of the gradient stayed as it is at the target."""
OUTER_SHARE, SGD_OUTER_SHARE = 0.1, 0.01
"""η_out as a share of the rate that raises the retain loss by ``RISE``."""


@dataclass(frozen=True, slots=True)
class Rates:
    """The learning rates of a run."""

    inner: float
    """η_in"""
    outer: float
    """η_out"""


def find_rates(
    engine: Engine,
    config: OfmuConfig,
    loss: RowwiseLoss[RowT],
    forget_rows: Sequence[RowT],
    retain_rows: Sequence[RowT],
) -> Rates:
    """Return the rates of the config, or those of range tests at the engine's parameters; collective.

    A range test uses ``batch_size`` rows at equal distances over the set. So all seeds get the same rates.

    Args:
        engine: the engine at the target.
        config: the config of the method.
        loss: the loss of the task, without a margin.
        forget_rows: D_f.
        retain_rows: D_r.

    Raises:
        ConfigError: a range test finds no rate.
        NonFiniteLossError: the loss of the target is NaN or infinite.
    """
    inner, outer = config.inner_lr, config.outer_lr
    if inner is None and config.inner_steps == 0:
        inner = 0.0
    if inner is None or outer is None:
        missing = [name for name, rate in (("inner_lr", inner), ("outer_lr", outer)) if rate is None]
        announce(f"Setting {' and '.join(missing)} by range tests on the target, before the first round")
    if inner is None:
        rows = spread(forget_rows, config.batch_size)
        reach = ascent_reach(engine, loss, rows, config.inner_update, config.forget_margin or RISE)
        multiple = SGD_INNER_REACH if config.inner_update == "sgd" else INNER_REACH
        inner = multiple * reach / (config.outer_steps * config.inner_steps)
    if outer is None:
        rows = spread(retain_rows, config.batch_size)
        share = SGD_OUTER_SHARE if config.outer_update == "sgd" else OUTER_SHARE
        outer = share * ascent_reach(engine, loss, rows, config.outer_update, RISE)
    return Rates(inner * config.inner_lr_scale, outer * config.outer_lr_scale)
