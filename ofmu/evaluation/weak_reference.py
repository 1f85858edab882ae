"""Whether a retrained model knows enough to be compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MIN_SHARE = 0.75
"""Share of the target's model utility below which the retrained model counts as undertrained. Both models were trained
on the retain rows, so both should answer them about equally well."""


def weak_reference(target: Mapping[str, Any], retrained: Mapping[str, Any]) -> str | None:
    """Return why the retrained model is no reference, in words; None if it is one, or if that is not known.

    Args:
        target: the metrics of the untouched target.
        retrained: the metrics of the retrained model.
    """
    before, other = target.get("model_utility"), retrained.get("model_utility")
    if not before or other is None or other >= _MIN_SHARE * before:
        return None
    return (
        f"the retrained model knows little (model_utility {other:.3g}, the target's {before:.3g}), so a comparison "
        "with it says little: train it as the target was fine-tuned (section training), or name another reference"
    )
