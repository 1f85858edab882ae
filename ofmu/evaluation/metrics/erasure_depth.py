"""How much of the retrained model's gap in knowledge an unlearned model has, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ofmu.evaluation.metrics.formulas import FloatArray

GAP_THRESHOLD = 0.05
"""τ, in nats per token. A layer counts for a row if the retrained model's gap there is larger."""


@dataclass(frozen=True, slots=True)
class ErasureDepth:
    """Scores in [0, 1]. 0: the model knows what the target knows. 1: it knows as little as the retrained model."""

    by_row: tuple[float | None, ...]
    """None: the retrained model has no gap at any layer, so the row tells nothing."""
    by_layer: tuple[float | None, ...]
    """Mean over the rows for which the layer counts. None: it counts for no row."""
    rows_by_layer: tuple[int, ...]
    """Number of rows for which each layer counts."""

    @property
    def mean(self) -> float | None:
        """The mean over the rows that have a score. None: no row has one."""
        scores = [score for score in self.by_row if score is not None]
        return float(np.mean(scores)) if scores else None


def erasure_depth(gaps: FloatArray, retrained_gaps: FloatArray) -> ErasureDepth:
    """Compare the gaps of an unlearned model with those of the retrained model.

    With Δ^U the gaps and Δ^R the retrained model's gaps, a row scores Σ Δ^R_l · clip(Δ^U_l / Δ^R_l, 0, 1) / Σ Δ^R_l,
    both sums over the layers l with Δ^R_l > τ = 0.05. Source: unlearning depth score, arXiv 2605.24614, section 3.3.

    Args:
        gaps: by how many nats per token a fact is less likely than under the target, shape (rows, layers).
        retrained_gaps: the same of the retrained model.

    Raises:
        ValueError: the shapes differ, or a gap is not finite.
    """
    if gaps.shape != retrained_gaps.shape or gaps.ndim != 2:
        raise ValueError(f"gaps need equal shapes (rows, layers), not {gaps.shape} and {retrained_gaps.shape}")
    if not (np.isfinite(gaps).all() and np.isfinite(retrained_gaps).all()):
        raise ValueError("a model gives log-probabilities that are not finite")
    counts = retrained_gaps > GAP_THRESHOLD
    weights = np.where(counts, retrained_gaps, 0.0)
    shares = np.clip(gaps / np.where(counts, retrained_gaps, 1.0), 0.0, 1.0)
    by_row = [
        float((weight * share).sum() / weight.sum()) if counted.any() else None
        for weight, share, counted in zip(weights, shares, counts, strict=True)
    ]
    by_layer = [
        float(share[counted].mean()) if counted.any() else None
        for share, counted in zip(shares.T, counts.T, strict=True)
    ]
    return ErasureDepth(tuple(by_row), tuple(by_layer), tuple(int(count) for count in counts.sum(axis=0)))
