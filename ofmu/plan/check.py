"""Refuse a run that cannot fit, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ofmu.errors import MemoryLimitError
from ofmu.evaluation.config import HELD_BYTES, HELD_STATE_BYTES
from ofmu.methods.registry import method_class
from ofmu.models.hub import config_directory
from ofmu.models.sizes import ModelSizes, read_config, scratch_config, sizes_of
from ofmu.plan.budget import device_memory, host_memory
from ofmu.run_config import UnlearnConfig
from ofmu.vectors.held import HeldVectors

if TYPE_CHECKING:
    from ofmu.plan.plan import Plan

GIB = 2**30
_SURE_SHARE = 0.5
"""Share of the memory below which a generous bound makes the exact computation needless. That takes seconds."""
_COPIES = 8
"""Copies of the weights, besides the method's vectors, that no engine exceeds."""
_STATES = 60
"""Values that a block keeps for one token, in multiples of its width, that no known architecture exceeds."""


def check_fit(
    config: UnlearnConfig,
    *,
    ranks: int = 1,
    on_gpu: bool | None = None,
    share: float = 1.0,
    keeps_round: bool = False,
) -> None:
    """Check that a run fits the memory of this machine.

    A model that is not on this machine yet, images, and ``engine.check_memory`` false are not checked.

    Args:
        config: the run.
        ranks: ranks on this machine. Without GPUs they share its memory.
        on_gpu: whether ranks run on GPUs. None: as ``engine.device`` says on this machine.
        share: the share of one GPU that a rank may use.
        keeps_round: whether the run may keep the weights of an earlier round.

    Raises:
        MemoryLimitError: the run does not fit. The message names the smallest change that makes it fit.
    """
    if not config.engine.check_memory or config.data.kind != "language":
        return
    model = model_config(config)
    if model is None:
        return
    gpu = has_gpu(config) if on_gpu is None else on_gpu
    budget = rank_budget(ranks=ranks, on_gpu=gpu, share=share)
    if budget is None or surely_fits(config, model, budget, keeps_round=keeps_round):
        return
    # Transformers takes seconds to import, and most runs are far below the bound.
    from ofmu.plan.plan import make_plan

    plan = make_plan(config, ranks=ranks, on_gpu=gpu, budget=budget, keeps_round=keeps_round)
    if not plan.fits:
        raise MemoryLimitError(refusal(plan))
    _check_host(plan)


def rank_budget(*, ranks: int, on_gpu: bool, share: float = 1.0) -> float | None:
    """Return the bytes that a rank may use on its device: see :func:`check_fit`. None: unknown."""
    memory = device_memory(on_gpu=on_gpu)
    if memory is None:
        return None
    return memory * share if on_gpu else memory / ranks


def surely_fits(config: UnlearnConfig, model: Mapping[str, Any], budget: float, *, keeps_round: bool) -> bool:
    """Return whether a generous bound, which takes no time, shows that a rank fits."""
    return _bound(config, model, sizes_of(model), keeps_round=keeps_round) <= _SURE_SHARE * budget


def refusal(plan: Plan) -> str:
    """Return the sentence for a run that does not fit, with the smallest change that makes it fit."""
    peak = plan.memory.peak(on_gpu=plan.on_gpu)
    where = "GPU" if plan.on_gpu else "machine" if plan.ranks == 1 else f"share of one of {plan.ranks} ranks"
    text = (
        f"The run needs {gib(plan.needed)} of memory on a rank (phase {peak.name}), and the {where} has "
        f"{gib(plan.budget or 0.0)}: "
    )
    change = plan.smallest_change()
    if change is None:
        text += "neither the engine's settings, moments in 8 bits nor an adapter make it fit: "
        text += "take a smaller model or more memory"
    else:
        text += f"set {' '.join(change.overrides)}, which needs {gib(change.needed)}"
        text += f" and {gib(change.host)} of host memory a rank" if change.offloads else ""
    return f"{text}; see ofmu plan, or set engine.check_memory to false"


def gib(size: float) -> str:
    """Return a number of bytes in words."""
    amount = size / GIB
    if amount >= 1e6:
        return f"{amount:.1e} GiB"
    return (
        f"{amount:,.0f} GiB" if amount >= 100 else f"{amount:.3g} GiB" if amount >= 0.1 else f"{size / 2**20:.1f} MiB"
    )


def _check_host(plan: Plan) -> None:
    """Check the host memory of a run on GPUs: of the model as it is read, and of what is offloaded."""
    available = host_memory()
    if not plan.on_gpu or available is None:
        return
    phase = max(plan.memory.phases, key=lambda phase: phase.host)
    if phase.host * plan.ranks > available:
        raise MemoryLimitError(
            f"The run needs {gib(phase.host)} of host memory on each of {plan.ranks} ranks (phase {phase.name}), and "
            f"the machine has {gib(available)}: run fewer ranks on this machine, or set engine.check_memory to false"
        )


def model_config(config: UnlearnConfig) -> Mapping[str, Any] | None:
    """Return the content of ``config.json``. None: the model is not on this machine yet."""
    if config.model.path is None:
        return scratch_config(config.model.scratch, config.data.max_length + config.evaluation.max_new_tokens)
    directory = config_directory(config.model.path, config.model.revision)
    return None if directory is None else read_config(directory)


def has_gpu(config: UnlearnConfig) -> bool:
    """Return whether ranks on this machine run on GPUs."""
    if config.engine.device == "cpu":
        return False
    # The device decides whose memory counts, and torch is the only one that knows the devices.
    import torch

    return torch.cuda.is_available()


def _bound(config: UnlearnConfig, model: Mapping[str, Any], sizes: ModelSizes, *, keeps_round: bool) -> float:
    """Return bytes that no rank of the run exceeds, from a few multiplications."""
    held = method_class(config.method.name, config.method.module).held_vectors(config.method) or HeldVectors()
    copies = _COPIES + held.kept + held.in_pass + held.between + (2 if config.method.saliency_fraction < 1 else 0)
    # A saved model, its trained copy, two moments and gradients; the last round and an earlier one; the run's weights.
    copies += (
        (5 if config.evaluation.run_attacks else 2 if config.evaluation.depth else 0)
        + (2 if keeps_round else 0)
        + (1 if config.evaluation.kl else 0)
    )
    rows = max(config.method.batch_size, config.training.batch_size, config.evaluation.batch_size)
    tokens = rows * (config.data.max_length + config.evaluation.max_new_tokens)
    width = sizes.embeddings // max(1, int(model.get("vocab_size", 1)))
    widest = max((max(linear.inputs, linear.outputs) for linear in sizes.linears), default=width)
    scores = 32 * config.data.max_length if config.method.needs_double_backward else 0
    states = sizes.layers * (_STATES * width + 8 * widest + scores)
    derivatives = 8 if config.method.needs_double_backward else 1
    logits = 8 * int(model.get("vocab_size", 1))
    held_at_end = 2.0 * HELD_BYTES if config.evaluation.kl else 0.0
    held_at_end += float(HELD_STATE_BYTES) if config.evaluation.depth else 0.0
    return held_at_end + 4.0 * (copies * sizes.parameters + derivatives * tokens * (states + logits))
