"""How far metrics can be trusted to tell what a model knows, as far as somebody has measured it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reliability:
    """What a meta-evaluation found about a metric, from 0 to 1; 1 is best."""

    faithfulness: float
    """AUC with which the metric tells 30 models that were trained on the facts from 30 that were not. Chance: 0.5."""
    robustness: float
    """Harmonic mean of how little the metric changes after relearning, beyond the retrained model's change, and after
    quantization to 4 bits."""


MEASURED_RELIABILITY: dict[str, Reliability] = {
    "unlearning_depth": Reliability(0.971, 0.932),
    "forget_truth_ratio": Reliability(0.947, 0.379),
    "logit_lens": Reliability(0.927, 0.879),
    "membership_min_k": Reliability(0.907, 0.675),
    "membership_loss": Reliability(0.902, 0.668),
    "extraction_strength": Reliability(0.891, 0.859),
    "membership_zlib": Reliability(0.867, 0.641),
    "exact_memorization": Reliability(0.817, 0.750),
    "forget_probability": Reliability(0.816, 0.757),
    "membership_min_k_plus": Reliability(0.816, 0.579),
    "forget_rouge": Reliability(0.722, 0.333),
    "alignment_forget_cka": Reliability(0.648, 0.026),
}
"""Source: arXiv 2605.24614, for Llama-3.2-1B-Instruct on TOFU's split forget10, with its own prompts and its own
implementations. The published CKA weighs layers by the target's distance from the retrained model."""


def reliability_section() -> str:
    """Return the measured numbers as a section of docs/metrics.md, the most faithful metric first."""
    ordered = sorted(MEASURED_RELIABILITY.items(), key=lambda item: -item[1].faithfulness)
    rows = "".join(f"| `{name}` | {found.faithfulness:.3f} | {found.robustness:.3f} |\n" for name, found in ordered)
    return f"""## Which metrics to trust

Measured by the authors of the unlearning depth score (arXiv 2605.24614) on Llama-3.2-1B-Instruct and TOFU's split
`forget10`, with their prompts and their implementations of these metrics. Faithfulness is the AUC with which a
metric tells 30 models that were trained on the facts from 30 that were not; chance is 0.5. Robustness is the
harmonic mean of how little the metric changes after relearning, beyond the change of the retrained model, and after
quantization to 4 bits. CKA is the weakest of these metrics. The KS statistic compares truth ratios, which change
much under relearning. Nobody has published such numbers for the other metrics.

| metric | faithfulness | robustness |
|---|---|---|
{rows}
`unlearning_depth` and `logit_lens` follow the published definitions: 0 for the target and 1 for the retrained
model. The published values of single models cannot be compared with ours to the digit, since the prompts differ.
"""
