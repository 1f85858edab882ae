"""Decide the settings of the engine that are ``auto``, from what a run needs and what a rank has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from ofmu.config.files import validate
from ofmu.engine.config import DECIDED_BY_PLAN, EngineConfig
from ofmu.errors import ConfigError, OfmuError
from ofmu.io.ranks import launched_ranks, ranks_on_this_machine
from ofmu.plan.check import gib, has_gpu, model_config, rank_budget, surely_fits
from ofmu.run_config import UnlearnConfig
from ofmu.vectors.base import sum_over_ranks

_CHOICES: dict[str, tuple[Any, ...]] = {
    "offload": ("none", "cpu"),
    "zero_stage": (2, 3),
    "gradient_checkpointing": (False, True),
}
"""The values of each setting, the fastest first. A setting further up costs more time."""


@dataclass(frozen=True)
class Decision:
    """A config without ``auto``, and how it came about."""

    config: UnlearnConfig
    sentence: str | None
    """What was decided, and why. None: the config had nothing to decide."""


def decide_engine(
    config: UnlearnConfig,
    *,
    ranks: int = 1,
    on_gpu: bool | None = None,
    share: float = 1.0,
    keeps_round: bool = False,
    budget: float | None = None,
    unknown: str | None = None,
) -> Decision:
    """Decide each setting of the engine that is ``auto``. Other settings stay as they are.

    The fastest settings with which a rank fits are taken. If none fits, or nothing can be computed, the defaults are,
    and :func:`ofmu.plan.check.check_fit` may refuse the run.

    Args:
        config: the run.
        ranks: ranks on one machine. Without GPUs they share its memory.
        on_gpu: whether ranks run on GPUs. None: as ``engine.device`` says on this machine.
        share: the share of one GPU that a rank may use.
        keeps_round: whether the run may keep the weights of an earlier round.
        budget: bytes that a rank may use. None: what this machine has.
        unknown: why nothing can be computed, in words. None: it can.

    Raises:
        OfmuError: rows or model, which the plan reads, are wrong.
    """
    undecided = config.engine.undecided
    if not undecided:
        return Decision(config, None)
    defaults = _with(config, {name: EngineConfig.model_fields[name].default for name in undecided})
    model = model_config(config) if config.data.kind == "language" else None
    if unknown is None and model is None:
        images = config.data.kind != "language"
        unknown = "a plan is for language models" if images else "the model is not on this machine yet"
    if unknown is not None or model is None:
        return _decided(defaults, undecided, f"the defaults, since {unknown}")
    gpu = has_gpu(config) if on_gpu is None else on_gpu
    available = rank_budget(ranks=ranks, on_gpu=gpu, share=share) if budget is None else budget
    if available is None:
        return _decided(defaults, undecided, "the defaults, since the memory of this machine is unknown")
    if surely_fits(defaults, model, available, keeps_round=keeps_round):
        return _decided(defaults, undecided, f"since a rank needs far less than the {gib(available)} that it has")
    # Transformers takes seconds to import, and most runs are far below the bound.
    from ofmu.plan.plan import make_plan

    plan = make_plan(defaults, ranks=ranks, on_gpu=gpu, budget=available, keeps_round=keeps_round)
    for changed in _choices(config, ranks, on_gpu=gpu):
        needed = plan.needed_with(changed)
        if needed <= available:
            return _decided(changed, undecided, f"since a rank then needs {gib(needed)} of {gib(available)}")
    return _decided(defaults, undecided, f"the defaults, since no choice makes a rank fit {gib(available)}")


def decide_run(
    config: UnlearnConfig, stored: Mapping[str, Any] | None, decide: Callable[[], Decision] | None = None
) -> Decision:
    """Decide the engine of a single run; collective on the processes of a launcher.

    A run that continues keeps what was decided at its start. Rank 0 decides for all ranks, since the free memory that
    two ranks see may differ.

    Args:
        config: the run.
        stored: the stored config of a run that continues. None: a new run.
        decide: decides for a new run. None: the run is in this process, or in the processes of a launcher.

    Raises:
        OfmuError: as :func:`decide_engine` raises it.
    """
    undecided = config.engine.undecided
    if not undecided:
        return Decision(config, None)
    kept = (stored or {}).get("engine", {})
    if all(name in kept for name in undecided):
        return _decided(_with(config, {name: kept[name] for name in undecided}), undecided, "as at the run's start")
    if decide is not None:
        return decide()
    local = ranks_on_this_machine()
    if launched_ranks().world_size == 1:
        return decide_engine(config, ranks=local)
    return _decide_together(config, local)


def _decide_together(config: UnlearnConfig, local: int) -> Decision:
    """Let rank 0 decide, and give its choice to all ranks as numbers."""
    # The engines take seconds to import, and only several ranks need their process group here.
    from ofmu.engine.build import resolve_device
    from ofmu.engine.process_group import join_process_group

    join_process_group(resolve_device(config.engine))
    first, failure = launched_ranks().rank == 0, None
    decision, numbers = Decision(config, None), torch.zeros(len(_CHOICES) + 1, dtype=torch.float64)
    if first:
        try:
            decision = decide_engine(config, ranks=local)
            chosen = decision.config.engine
            places = [
                values.index(getattr(chosen, name)) if name in config.engine.undecided else 0
                for name, values in _CHOICES.items()
            ]
            numbers[1:] = torch.tensor(places, dtype=torch.float64)
        except OfmuError as error:
            failure, numbers[0] = error, 1.0
    numbers = sum_over_ranks(numbers)
    if failure is not None:
        raise failure
    if float(numbers[0]):
        raise ConfigError("The engine could not be planned: the message of rank 0 says why")
    if first:
        return decision
    chosen_places = {name: int(numbers[index]) for index, name in enumerate(_CHOICES, start=1)}
    values = {name: _CHOICES[name][chosen_places[name]] for name in config.engine.undecided}
    return Decision(_with(config, values), None)


def _choices(config: UnlearnConfig, ranks: int, *, on_gpu: bool) -> Iterator[UnlearnConfig]:
    """Yield the config with each choice that makes sense, the fastest first."""
    sensible = {**_CHOICES}
    if not on_gpu:
        sensible["offload"] = ("none",)
    if ranks == 1:
        sensible["zero_stage"] = (2,)
    values = [sensible[name] if getattr(config.engine, name) == "auto" else (None,) for name in sensible]
    for combination in product(*values):
        chosen = {name: value for name, value in zip(sensible, combination, strict=True) if value is not None}
        try:
            yield _with(config, chosen)
        except OfmuError:
            continue  # this method or model does not have the setting


def _with(config: UnlearnConfig, values: Mapping[str, Any]) -> UnlearnConfig:
    """Return the config with settings of the engine set."""
    # A copy by pydantic would not be validated, and sections are checked together.
    mapping = config.model_dump(mode="json")
    return validate(UnlearnConfig, {**mapping, "engine": {**mapping["engine"], **values}})


def _decided(config: UnlearnConfig, undecided: tuple[str, ...], reason: str) -> Decision:
    chosen = config.engine.model_dump(mode="json")
    settings = " ".join(f"engine.{name}={_word(chosen[name])}" for name in DECIDED_BY_PLAN if name in undecided)
    return Decision(config, f"auto: {settings}, {reason}")


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
