"""Which settings cannot work together (an error that names the mend) and which have no effect (a warning)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ofmu.run_config import UnlearnConfig


def refuse_impossible(config: UnlearnConfig) -> None:
    """Raise ValueError with one sentence for the first contradiction found."""
    from ofmu.methods import method_class

    engine = config.engine
    works_on = method_class(config.method.name, config.method.module).tasks
    if config.data.kind not in works_on:
        raise ValueError(
            f"The method '{config.method.name}' works on {' and '.join(sorted(works_on))} tasks, and data.source "
            f"'{config.data.source}' makes this a {config.data.kind} task: choose another method or source"
        )
    config.method.refuse_impossible(config)
    if config.model.adapter.kind != "none" and config.data.kind != "language":
        raise ValueError("model.adapter adapts language models, and these data are images: leave it out")
    if engine.precision == "bf16" and (engine.backend == "torch" or engine.zero_stage == 0):
        raise ValueError(
            "engine.precision 'bf16' keeps fp32 masters in DeepSpeed's shards: "
            "use engine.backend 'deepspeed' with a zero_stage of at least 1"
        )
    if engine.offload == "cpu" and (engine.backend == "torch" or engine.zero_stage == 0):
        raise ValueError(
            "engine.offload 'cpu' moves DeepSpeed's shards: "
            "use engine.backend 'deepspeed' with a zero_stage of at least 1"
        )


def ineffective_settings(config: UnlearnConfig) -> list[str]:
    """Return one sentence for every setting that this run will ignore."""
    notes = config.method.ineffective()
    if config.engine.backend == "torch" and config.engine.zero_stage not in (0, 2):
        notes.append("engine.zero_stage has no effect: engine.backend is 'torch'")
    if config.data.kind == "vision":
        for name in ("rows", "in_scope", "membership", "alignment", "attacks"):
            if getattr(config.evaluation, name):
                notes.append(f"evaluation.{name} has no effect: it is for text, and these data are images")
    return notes
