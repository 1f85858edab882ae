"""What every unlearning method must do, as checks that raise ``AssertionError`` with one sentence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from ofmu.data.kinds import TaskKind
from ofmu.engine.config import EngineConfig
from ofmu.methods.base import Method
from ofmu.methods.config import MethodConfig
from ofmu.methods.registry import method_class
from ofmu.methods.single_loop import SingleLoopConfig
from ofmu.testing.ranks import run_on_ranks
from ofmu.testing.runs import RunOutcome, RunSpec, run

COSTS = ("gradient_evaluations", "forward_evaluations", "tokens")
_ROUNDING = 1e-7
_UNKNOWN = "no_method_has_this_setting"


def check_method(
    name: str,
    module: str | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    kinds: Iterable[TaskKind] | None = None,
    zero_stages: Sequence[int] = (0, 3),
    world_size: int = 2,
    timeout: float = 240,
) -> None:
    """Check that a method keeps the contract of every method, on tiny problems.

    - The class declares its title, source, search space and settings, and its settings refuse an unknown key.
    - The run moves the weights, and leaves the model's buffers as they are.
    - With micro-batches of one row, and on several ranks at every ZeRO stage, the run is the same up to rounding. Its
      cost in gradient evaluations, forward evaluations and tokens is exactly the same.
    - A run that continues from a checkpoint ends with the same bits as a run without a break.
    - Under ``no_op_config`` the target keeps its bits.

    The check takes seconds in one process. The ranks take about half a minute more.

    Args:
        name: the name under which the method is registered.
        module: importable module that registers the method. None: a built-in method.
        settings: settings that differ from :func:`small_spec`. A run of two or more rounds is best: the checkpoint of
            the first round then lies within the run.
        kinds: the kinds of task to check. None: all kinds that the method works on.
        zero_stages: the ZeRO stages at which several ranks run the method. With none, no process is started.
        world_size: number of ranks.
        timeout: seconds for all runs on several ranks.

    Raises:
        AssertionError: the method breaks the contract.
        OfmuError: the method is unknown, its settings are wrong, or a run fails.
    """
    method = check_declaration(name, module, settings)
    specs = [small_spec(name, module, kind=kind, settings=settings) for kind in sorted(kinds or method.tasks)]
    outcomes = [run(spec) for spec in specs]
    for spec, alone in zip(specs, outcomes, strict=True):
        _require(len(alone.records) > 0, "the run takes no round: give settings under which the method does something")
        check_weights_move(alone)
        check_micro_batches(spec, alone)
        check_checkpoint(spec, alone)
        check_no_op(spec)
    if zero_stages:
        _check_ranks(specs, outcomes, zero_stages, world_size, timeout)


def small_spec(
    name: str, module: str | None = None, *, kind: TaskKind = "language", settings: Mapping[str, Any] | None = None
) -> RunSpec:
    """Return a short run of a method: minibatches of 6 rows, and for a method of one loop 4 steps of one round each.

    Args:
        name: the name under which the method is registered.
        module: importable module that registers the method. None: a built-in method.
        kind: the kind of task.
        settings: settings that differ from the short run, or are added to it.

    Raises:
        ConfigError: there is no such method.
    """
    single_loop = issubclass(method_class(name, module).Config, SingleLoopConfig)
    short = {"steps": 4, "lr": 1e-3, "round_steps": 1} if single_loop else {}
    method = {"name": name, "module": module, "batch_size": 6} | short | dict(settings or {})
    return RunSpec(method=method, kind=kind)


def check_declaration(
    name: str, module: str | None = None, settings: Mapping[str, Any] | None = None
) -> type[Method[Any]]:
    """Check what a method's class declares. Return the class.

    Args:
        name: the name under which the method is registered.
        module: importable module that registers the method. None: a built-in method.
        settings: the settings that have no default.

    Raises:
        AssertionError: a declaration is missing, or contradicts the settings.
        ConfigError: there is no such method.
    """
    method = method_class(name, module)
    config, title = method.Config, method.__name__
    _require(method.name == name, f"the class is registered as '{name}' and its name is '{method.name}'")
    for part in ("title", "source", "__doc__"):
        _require(bool(getattr(method, part, None)), f"the class {title} has no {part}")
    given = {"name": name, "module": module} | dict(settings or {})
    declared = [(f"{title}.{part}", dict(getattr(method, part))) for part in ("published", "no_op_config")]
    for key, drawn in method.space.items():
        edges = [drawn[bound] for bound in ("low", "high") if bound in drawn] + list(drawn.get("choices", ()))
        declared += [(f"{title}.space", {key: edge}) for edge in edges]
    for place, values in declared:
        unknown = sorted(set(values) - set(config.model_fields))
        _require(not unknown, f"{place} has {unknown}, which {config.__name__} lacks")
        accepted = _accepted(config, given | values)
        _require(accepted is not None, f"{place} has {values}, which {config.__name__} refuses")
        again = _accepted(config, accepted.model_dump(mode="json")) if accepted else None
        _require(again == accepted, f"{config.__name__} with the {values} of {place} does not survive JSON")
    _require(_accepted(config, given | {_UNKNOWN: 1}) is None, f"{config.__name__} accepts an unknown setting")
    return method


def _accepted(config: type[MethodConfig], values: Mapping[str, Any]) -> MethodConfig | None:
    """Return the config with ``values``; None if the config refuses them."""
    try:
        return config.model_validate(values)
    except ValueError:
        return None


def check_weights_move(alone: RunOutcome) -> None:
    """Check that a run moved the weights by gradients that the engine counted, and left the buffers as they were.

    Raises:
        AssertionError: the run did not.
    """
    _require(not _equal(alone.parameters, alone.start), "the run leaves every weight as it was")
    _require(alone.gradient_evaluations > 0, "the run moves the weights without a gradient of the engine")
    _require(_equal(alone.buffers, alone.start_buffers), "the run changes the model's buffers")


def check_micro_batches(spec: RunSpec, alone: RunOutcome) -> None:
    """Check that micro-batches of one row give the trajectory and the cost of ``alone``, the run of ``spec``.

    Raises:
        AssertionError: the runs differ.
    """
    cut = run(spec.with_engine(spec.engine.model_copy(update={"micro_batch_size": 1})))
    assert_same_run(cut, alone)
    check_same_cost(cut, alone)


def check_checkpoint(spec: RunSpec, alone: RunOutcome) -> None:
    """Check that a run from the checkpoint of the first round ends with the bits of ``alone``, the run of ``spec``.

    Raises:
        AssertionError: the runs differ.
    """
    with TemporaryDirectory() as folder:
        begun = run(spec.changed(stop_after=1, save_to=Path(folder)))
        ended = run(spec.changed(resume_from=Path(folder)))
    _require(begun.records + ended.records == alone.records, "a restored run has other records than a whole run")
    _require(_equal(ended.parameters, alone.parameters), "a restored run ends with other weights than a whole run")


def check_no_op(spec: RunSpec) -> None:
    """Check that the method of ``spec`` takes no round under its ``no_op_config``, and leaves the target's bits.

    Raises:
        AssertionError: the method takes a round, or a weight changes.
    """
    method = method_class(spec.method.name, spec.method.module)
    settings = spec.method.model_dump(mode="json") | dict(method.no_op_config)
    found = run(spec.changed(method=settings))
    _require(found.records == [], f"with no_op_config {dict(method.no_op_config)} the run takes a round")
    _require(_equal(found.parameters, found.start), f"no_op_config {dict(method.no_op_config)} changes the target")


def check_same_cost(found: RunOutcome, wanted: RunOutcome) -> None:
    """Check that two runs have exactly the same cost.

    Raises:
        AssertionError: the runs differ in gradient evaluations, forward evaluations, or tokens.
    """
    for name in COSTS:
        left, right = getattr(found, name), getattr(wanted, name)
        _require(left == right, f"the run costs {left} {name.replace('_', ' ')}, and {right} are expected")


def assert_same_run(
    found: RunOutcome, wanted: RunOutcome, *, tolerance: float = 1e-3, weight_tolerance: float = 0.02
) -> None:
    """Check that two runs have the same trajectory up to rounding.

    Args:
        found: the run that is checked.
        wanted: the run that is expected.
        tolerance: largest difference of a number in a record, relative to the expected number. A field whose name ends
            in ``_error`` is an estimate of rounding, as a fraction: such fractions themselves differ by at most this.
        weight_tolerance: largest distance of a weight tensor, relative to the distance that the expected run moved it.

    Raises:
        AssertionError: the runs differ.
    """
    _require(
        len(found.records) == len(wanted.records),
        f"the run takes {len(found.records)} rounds, and {len(wanted.records)} are expected",
    )
    for record, expected in zip(found.records, wanted.records, strict=True):
        step = expected.get("outer_step")
        for key, value in expected.items():
            unit = 1.0 if key.endswith("_error") else 0.0
            _require(
                _close(record[key], value, tolerance, unit),
                f"{key} at step {step} is {record[key]}, and {value} is expected",
            )
    for name, end in wanted.parameters.items():
        moved = (end.double() - wanted.start[name].double()).norm().item()
        apart = (found.parameters[name].double() - end.double()).norm().item()
        _require(apart <= weight_tolerance * moved + _ROUNDING, f"{name} is {apart:g} away after moving by {moved:g}")


def _check_ranks(
    specs: Sequence[RunSpec], outcomes: Sequence[RunOutcome], stages: Sequence[int], world_size: int, timeout: float
) -> None:
    engines = [EngineConfig(zero_stage=stage, device="cpu") for stage in stages]
    pairs = [(spec.with_engine(engine), alone) for engine in engines for spec, alone in _pairs(specs, outcomes)]
    found = run_on_ranks([spec for spec, _ in pairs], world_size, timeout=timeout)
    for (spec, alone), outcome in zip(pairs, found, strict=True):
        try:
            assert_same_run(outcome, alone)
            check_same_cost(outcome, alone)
            _require(_equal(outcome.buffers, alone.buffers), "the run changes the model's buffers")
        except AssertionError as error:
            place = f"on {world_size} ranks at ZeRO stage {spec.engine.zero_stage}, {spec.kind} task"
            raise AssertionError(f"{place}: {error}") from None


def _pairs(specs: Sequence[RunSpec], outcomes: Sequence[RunOutcome]) -> list[tuple[RunSpec, RunOutcome]]:
    return list(zip(specs, outcomes, strict=True))


def _close(found: Any, wanted: Any, tolerance: float, unit: float) -> bool:
    """Whether two values agree, up to ``tolerance`` relative to the larger of ``unit`` and the wanted number."""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (found, wanted))
    if not numbers or math.isinf(wanted):
        return bool(found == wanted)
    return bool(abs(found - wanted) <= max(tolerance * max(abs(wanted), unit), _ROUNDING))


def _equal(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise AssertionError(sentence)
