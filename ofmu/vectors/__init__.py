"""Linear algebra on gradients where they live: whole, or one ZeRO partition per rank."""

from ofmu.vectors.base import Segment, Vector, VectorSpace
from ofmu.vectors.whole import WholeVectors

__all__ = ["Segment", "Vector", "VectorSpace", "WholeVectors"]
