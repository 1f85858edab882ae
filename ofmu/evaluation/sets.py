"""Names of the evaluation sets, and the definitions of the truth ratio."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

TruthRatio = Literal["geometric", "arithmetic"]
TRUTH_RATIOS: tuple[TruthRatio, ...] = ("geometric", "arithmetic")

FORGET = "forget"
RETAIN = "retain"
GENERAL_SETS = ("real_authors", "world_facts")
"""Sets of general knowledge. Their probability is normalised over the right and the wrong answers."""
UTILITY_SETS = (RETAIN, *GENERAL_SETS)
SETS = (FORGET, *UTILITY_SETS)
COMPONENTS = ("rouge", "probability", "truth_ratio")
"""The metrics of each set. Those of the utility sets are the components of model utility."""
HOLDOUT = "holdout"
MEMBERS = "members"
"""Forget texts that membership attacks compare with the holdout rows, where these are other rows than the set
``forget``. Of the published benchmarks, MUSE has such a set."""
FORGET_KNOWLEDGE, RETAIN_KNOWLEDGE = "forget_knowledge", "retain_knowledge"
"""MUSE: questions about the forget texts and about the retain texts."""
LUME_PARTS = tuple(f"task{task}_{kind}" for task in (1, 2, 3) for kind in ("regurgitation", "knowledge"))
"""LUME: sentence completions and questions of each task."""
RWKU_PROBES: Mapping[str, str] = {
    "rwku_forget_fb": "forget_blanks",
    "rwku_forget_qa": FORGET,
    "rwku_forget_aa": "forget_attacks",
    "rwku_neighbor_fb": "neighbor_blanks",
    "rwku_neighbor_qa": RETAIN,
}
"""RWKU: the set behind each metric of generated answers."""
RWKU_TEXTS: Mapping[str, str] = {"rwku_mia_forget": "mia_forget", "rwku_mia_retain": "mia_retain"}
"""RWKU: the set behind each metric of texts that models were trained on."""
IN_SCOPE_KINDS: Mapping[str, str] = {
    "paraphrase": "paraphrased",
    "multi_hop": "multi-hop",
    "translation": "translated",
}
"""Kinds of hard questions about the forget rows, each with its adjective for messages."""
IN_SCOPE_PREFIX = "in_scope_"
"""The hard questions of one kind form the evaluation set ``in_scope_<kind>``."""
