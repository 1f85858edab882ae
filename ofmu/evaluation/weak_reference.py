"""Whether a retrained model knows enough to be compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MIN_SHARE = 0.75
"""Share of the target's model utility below which the retrained model counts as undertrained. Both models were trained
on the retain rows, so both should answer them about equally well."""


def weakness_of_reference(target: Mapping[str, Any], retrained: Mapping[str, Any]) -> str | None:
    """Return why a comparison with the retrained model says little, in words; None if it does not, or nothing is known.

    Args:
        target: the metrics of the untouched target.
        retrained: the metrics of the retrained model.
    """
    before, other = target.get("model_utility"), retrained.get("model_utility")
    if not before or other is None or other >= _MIN_SHARE * before:
        return None
    return (
        f"the retrained model knows little (model_utility {other:.3g}, the target's {before:.3g}), so a comparison "
        "with it says little"
    )


def weak_reference(target: Mapping[str, Any], retrained: Mapping[str, Any]) -> str | None:
    """Return the result of :func:`weakness_of_reference`, and the fix."""
    weakness = weakness_of_reference(target, retrained)
    fix = "train it as the target was fine-tuned (section training), or name another reference"
    return None if weakness is None else f"{weakness}: {fix}"
