"""Names that the rooms of the evaluation share."""

from __future__ import annotations

from typing import Literal

TruthRatio = Literal["geometric", "arithmetic"]
TRUTH_RATIOS: tuple[TruthRatio, ...] = ("geometric", "arithmetic")

FORGET = "forget"
RETAIN = "retain"
GENERAL_SETS = ("real_authors", "world_facts")
"""Sets of general knowledge: their right answer is the answer itself, their probability is normalised."""
UTILITY_SETS = (RETAIN, *GENERAL_SETS)
SETS = (FORGET, *UTILITY_SETS)
KINDS = ("rouge", "probability", "truth_ratio")
"""The three components that each set contributes to model utility."""
HOLDOUT = "holdout"
IN_SCOPE = ("paraphrase", "multi_hop", "translation")
"""Hard sets made of the forget rows; the scores call them ``in_scope_paraphrase`` and so on."""
