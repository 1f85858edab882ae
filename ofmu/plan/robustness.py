"""Memory of what a run measures after its evaluation: the divergence from the target, and its own attacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ofmu.engine.footprint import FP32, EngineBytes
from ofmu.evaluation.config import HELD_BYTES, HELD_STATE_BYTES, RELEARNING_ROWS
from ofmu.evaluation.robustness.attacks import SAMPLES
from ofmu.evaluation.robustness.few_shot import EXAMPLES
from ofmu.evaluation.scoring.batches import MORE_ROWS
from ofmu.models.config import AdapterConfig
from ofmu.models.sizes import ModelSizes
from ofmu.plan.passes import divergence_pass, scoring_pass, training_pass
from ofmu.plan.phases import Component, Phase
from ofmu.plan.workload import Workload
from ofmu.run_config import UnlearnConfig

_DEPTH = "depth"


def divergence(
    config: UnlearnConfig,
    model: Mapping[str, Any],
    sizes: ModelSizes,
    work: Workload,
    engine: EngineBytes,
    standing: tuple[Component, ...],
    attention: Any,
    *,
    buildable: bool,
    offloaded: bool,
) -> tuple[Phase, ...]:
    """Return the phase of ``evaluation.kl``. No second model is loaded.

    The target's weights come from the disk into the place of the run's weights, of which a copy stands beside them. The
    target's logits of many answers are held in host memory, up to a bound that only a single batch may exceed.
    """
    if not config.evaluation.kl or not work.divergence_rows:
        return ()
    rows = min(config.evaluation.batch_size, work.divergence_rows)
    vocabulary = int(model.get("vocab_size") or 0)
    all_logits = float(FP32 * vocabulary * work.divergence_answer_tokens)
    # Rows with short prompts share a batch of the same tokens, and up to MORE_ROWS times as many rows.
    answers = min(MORE_ROWS * work.longest_answer, work.longest_prompt + work.longest_answer)
    of_batch = float(FP32 * vocabulary * rows * answers)
    passing = 0.0
    if buildable:
        passing = divergence_pass(
            model,
            sizes.layers,
            rows,
            work.longest_prompt + work.longest_answer,
            work.longest_answer,
            attention=attention,
            dtype=torch.bfloat16 if config.engine.precision == "bf16" else torch.float32,
        )
    held = Component("the target's logits", min(all_logits, max(float(HELD_BYTES), of_batch)), True)
    # The copy is gone when the logits of the run are compared, so the two are never alive together in full.
    moments = (
        Component("the run's weights, while the target takes their place", engine.vector, offloaded),
        Component("logits and their divergence", passing),
    )
    return (Phase("divergence", (*standing, held, *moments)),)


def attacks(
    config: UnlearnConfig,
    model: Mapping[str, Any],
    sizes: ModelSizes,
    work: Workload,
    standing: tuple[Component, ...],
    largest: int,
    *,
    buildable: bool,
) -> tuple[Phase, ...]:
    """Return the phase of ``evaluation.run_attacks`` and of ``evaluation.depth``, on the first rank.

    The phase loads the saved model beside the engine. Relearning trains a copy of that model, and quantisation rounds
    one. Sampled answers and answers after examples read the model itself. The depth loads the target and the retrained
    model, one after the other.
    """
    names: list[str] = [*config.evaluation.run_attacks]
    if config.evaluation.depth and config.reference.source in ("retrain", "model"):
        names.append(_DEPTH)
    if not names:
        return ()
    whole = float(FP32 * sizes.parameters)
    needs = [_attack(name, config, model, sizes, work, largest, buildable=buildable) for name in names]
    most = max(needs, key=lambda parts: sum(part.size for part in parts))
    return (Phase("attacks", (*standing, Component("the saved model", whole), *most)),)


def _attack(
    name: str,
    config: UnlearnConfig,
    model: Mapping[str, Any],
    sizes: ModelSizes,
    work: Workload,
    largest: int,
    *,
    buildable: bool,
) -> tuple[Component, ...]:
    """Return what one attack holds beside the saved model."""
    whole = float(FP32 * sizes.parameters)
    attention: Any = "eager" if config.model.attention == "eager" else "sdpa"
    if name == "relearning":
        peaks = 0.0
        if buildable:
            found = training_pass(
                model,
                sizes.layers,
                min(RELEARNING_ROWS, work.forget_rows),
                work.longest,
                attention=attention,
                dtype=torch.float32,
                checkpointing=False,
                adapter=AdapterConfig(),
            )
            peaks = max(found.start - whole, found.end - FP32 * sizes.embeddings, 0.0)
        passing = max(peaks, 2.0 * FP32 * largest)
        return (
            Component("the copy that is trained", whole),
            Component("its optimizer and gradients", 3 * whole),
            Component("activations, or temporary vectors of a step", passing),
        )
    rows = min(config.evaluation.batch_size, work.evaluation_rows)
    asked = name in ("sampling", "few_shot")
    prompt = work.longest_prompt
    if asked:
        rows = min(config.evaluation.batch_size, work.sampled_rows * (SAMPLES if name == "sampling" else 1))
    if name == "few_shot":
        longest = prompt + EXAMPLES * work.longest
        positions = int(model.get("max_position_embeddings") or 0)
        prompt = min(longest, max(prompt, positions - config.evaluation.max_new_tokens)) if positions else longest
    passing = 0.0
    if buildable and rows:
        forced, generated = scoring_pass(
            model,
            sizes.layers,
            rows,
            prompt,
            1 if asked else work.longest_answer,
            config.evaluation.max_new_tokens if asked or (config.evaluation.rouge and name != _DEPTH) else 0,
            dtype=torch.float32,
            attention=attention,
            detailed=config.evaluation.membership and not asked and name != _DEPTH,
        )
        passing = max(forced, generated)
    caches = Component("caches and logits", passing)
    if name == _DEPTH:
        width = sizes.embeddings // max(1, int(model.get("vocab_size") or 1))
        states = 2.0 * FP32 * sizes.layers * width * work.forget_rows * work.longest_answer
        held = Component("hidden states of the facts", min(states, float(HELD_STATE_BYTES)), True)
        return (Component("the target, or the retrained model", whole), held, caches)
    return (caches,) if asked else (Component("the copy with rounded weights", whole), caches)
