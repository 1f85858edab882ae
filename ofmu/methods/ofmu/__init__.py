"""OFMU (Asif & Amiri, arXiv 2509.22483), the bilevel method.

- :mod:`~ofmu.methods.ofmu.bilevel`: Algorithm 1, the two loops
- :mod:`~ofmu.methods.ofmu.derivatives`: ∇Φ and ∇²Φ·∇Φ
- :mod:`~ofmu.methods.ofmu.similarity`: S = cos(g_f, g_r) and the derivatives of S
- :mod:`~ofmu.methods.ofmu.loss`: the clamped forget loss
- :mod:`~ofmu.methods.ofmu.config`: the settings
"""

from ofmu.methods.ofmu.bilevel import OFMU, OuterRecord
from ofmu.methods.ofmu.config import OfmuConfig

__all__ = ["OFMU", "OfmuConfig", "OuterRecord"]
