"""Short runs of the built-in methods on the tiny problems of ``ofmu.testing``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ofmu.data.kinds import TaskKind
from ofmu.models.config import AdapterConfig
from ofmu.testing import RunSpec, small_spec

INFLUENCE = {"strength": 0.3, "damping": 0.1, "fisher_rows": 4}
LANGUAGE: Mapping[str, Mapping[str, Any]] = {
    # With similarity_weight 0.5, rounding in ∇S reaches embeddings whose gradient is close to 0, and AdamW enlarges it.
    "ofmu": {"outer_steps": 2, "inner_steps": 2, "inner_lr": 0.02, "outer_lr": 1e-3, "similarity_weight": 0.2},
    "influence": INFLUENCE,
    "repselect": {"rise": 0.5},
    # At the target, the gradient of KL(target ‖ model) is 0. AdamW would make whole steps of its rounding noise in the
    # embeddings of tokens that no forget row has.
    "klmin": {"update": "sgd", "lr": 0.01},
}
"""Settings under which a method moves far within a few steps. The other methods have those of ``small_spec``."""
VISION: Mapping[str, Mapping[str, Any]] = {
    # Without finite differences: the network has kinks. The fit of a difference's step, and its cost, would depend on
    # rounding. EXACT has the other terms.
    "ofmu": {
        "outer_steps": 2,
        "inner_steps": 1,
        "inner_lr": 0.02,
        "outer_lr": 1e-3,
        "forget_sharpness": 1.0,
        "decorrelation": "projection",
        "penalty_weight": 0.0,
    },
    "influence": INFLUENCE,
}
# With a larger β, this random problem amplifies rounding a thousandfold from step to step.
EXACT: Mapping[str, Any] = {
    "decorrelation": "cosine",
    "derivative": "exact",
    "similarity_weight": 0.05,
    "similarity_scale": "absolute",
    "penalty_weight": 1e-3,
}
"""The settings of OFMU on images with the similarity term and the penalty."""

LORA = AdapterConfig(kind="lora", rank=4)

# A step must not amplify rounding. With similarity_weight 0.5, ∇S rules the ascent, and two ways of adding up the same
# minibatch drift apart by a thousandth of S within ten steps. With 0.2 they drift apart by a hundredth of that. At this
# margin and sharpness, the rows' gates stand half open.
TRAJECTORY: Mapping[str, Any] = {
    "outer_steps": 10,
    "inner_steps": 3,
    "inner_update": "normalized",
    "inner_lr": 0.02,
    "outer_update": "adamw",
    "outer_lr": 1e-3,
    "forget_margin": 5.0,
    "forget_sharpness": 1.0,
    "similarity_weight": 0.2,
    "similarity_scale": "absolute",
    "similarity_threshold": -1.0,
    "penalty_weight": 0.01,
    "penalty_growth": 1.1,
    "penalty_max": 0.02,
}

STOP: Mapping[str, Any] = {"min_forget_loss": 4.15, "stop_penalty": 20.0, "multiplier_step": 5.0}
"""A stop of forgetting on the tiny language problem, whose forget rows have losses of 4.0 to 4.3."""


def short_spec(name: str, kind: TaskKind = "language", **settings: Any) -> RunSpec:
    """Return a short run of a built-in method. ``settings`` overrides its settings."""
    short = LANGUAGE.get(name, {}) if kind == "language" else VISION.get(name, {"steps": 3})
    return small_spec(name, kind=kind, settings={**short, **settings})


def ofmu_trajectory(**settings: Any) -> RunSpec:
    """Return an OFMU run of ten outer steps on text. ``settings`` overrides its settings."""
    return small_spec("ofmu", settings={**TRAJECTORY, **settings})


def contract_specs() -> dict[str, RunSpec]:
    """Return the runs beyond the methods' own: other terms, exact derivatives, adapters, masks."""
    # Plain outer steps: Adam would make whole steps of the rounding noise in gradients of A, which are 0 while B is 0.
    plain = {"outer_update": "sgd", "outer_lr": 0.02, "similarity_weight": 0.05}
    return {
        "ofmu-projection": short_spec("ofmu", decorrelation="projection"),
        # A product reads one row, so that a rank of two has none.
        "ofmu-product-share": short_spec("ofmu", product_share=0.25),
        "ofmu-forward-mode": short_spec("ofmu", derivative="reverse_over_forward", similarity_weight=0.05),
        # AdamW's first step turns the rounding of a gradient near 0 into a step of full length.
        "ofmu-range-test": short_spec(
            "ofmu", inner_lr=None, inner_lr_scale=0.2, outer_lr=None, forget_sharpness=1.0, inner_update="normalized"
        ),
        "ofmu-lora": short_spec("ofmu", **plain).changed(adapter=LORA),
        "npo-lora": short_spec("npo").changed(adapter=LORA),
        "rmu-lora": short_spec("rmu").changed(adapter=LORA),
        "npo-parts": short_spec("npo", conflict="project", separate_moments=True),
        # The level lies between the losses of the steps, so that some steps forget and others do not.
        "graddiff-stop": short_spec("graddiff", **STOP),
        "npo-parts-stop": short_spec("npo", separate_moments=True, **STOP),
        "klmin-switch": short_spec("klmin", forget_stop="switch", **STOP),
        "ofmu-stop": short_spec("ofmu", **STOP),
        "vision-boundaryexpand-stop": short_spec("boundaryexpand", "vision", min_forget_loss=1.1, stop_penalty=10.0),
        "hamu-retain": short_spec("hamu", priority="retain", improvement=0.05),
        "npo-drawn": short_spec("npo", retain_share=0.5, retain_draw=2),
        "npo-salient": short_spec("npo", saliency_fraction=0.5),
        # At stage 3, exact products reach a vector by another way than gradients.
        "ofmu-exact-salient": short_spec("ofmu", derivative="exact", similarity_weight=0.05, saliency_fraction=0.5),
        "vision-ofmu-exact": short_spec("ofmu", "vision", **EXACT),
        "vision-ofmu-salient": short_spec("ofmu", "vision", saliency_fraction=0.5),
        "vision-graddiff-salient": short_spec("graddiff", "vision", saliency_fraction=0.5),
    }
