"""Run a method on a tiny problem, and return what a test compares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import SerializeAsAny, field_validator, model_validator
from torch import Tensor, nn

from ofmu.config.base import NonNegativeInt, PositiveInt, Section
from ofmu.data.kinds import TaskKind
from ofmu.engine.base import Engine
from ofmu.engine.build import build_engine
from ofmu.engine.checkpoint import load_checkpoint, save_checkpoint
from ofmu.engine.config import EngineConfig
from ofmu.engine.cost import CostTracker
from ofmu.methods.base import Context, Method
from ofmu.methods.build import build_method
from ofmu.methods.config import MethodConfig
from ofmu.methods.registry import method_config
from ofmu.models.config import AdapterConfig
from ofmu.models.lora import add_adapters
from ofmu.models.quantization import quantize_model
from ofmu.testing.images import tiny_classifier, tiny_image_task
from ofmu.testing.language import tiny_language_task, tiny_llama
from ofmu.testing.task import MemoryTask

SINGLE_PROCESS = EngineConfig(backend="torch", device="cpu")


class RunSpec(Section):
    """One run of a method on a tiny problem. The spec survives JSON, so that other processes can run it."""

    method: SerializeAsAny[MethodConfig]
    """The method's settings. A mapping with ``name``, and ``module`` for a method of your own, is accepted."""
    kind: TaskKind = "language"
    """The problem: :func:`ofmu.testing.tiny_language_task` or :func:`ofmu.testing.tiny_image_task`."""
    adapter: AdapterConfig = AdapterConfig()
    """Adapters of the language model."""
    engine: EngineConfig = SINGLE_PROCESS
    """The engine. The default is plain PyTorch on the CPU, with which the other engines are compared."""
    seed: NonNegativeInt = 5
    """Seed of the minibatches and of the adapters."""
    stop_after: PositiveInt | None = None
    """End the run after this many rounds."""
    save_to: Path | None = None
    """Existing directory for a checkpoint of the run's end."""
    resume_from: Path | None = None
    """Directory of a checkpoint from which the run continues."""

    def with_engine(self, engine: EngineConfig) -> Self:
        """Return the same run on another engine.

        Raises:
            ValueError: the method cannot run on the engine.
        """
        return self.changed(engine=engine)

    def changed(self, **fields: Any) -> Self:
        """Return the same run with other fields.

        Raises:
            ValueError: the fields are wrong, or do not fit together.
        """
        return type(self)(**{name: getattr(self, name) for name in type(self).model_fields} | fields)

    @field_validator("method", mode="before")
    @classmethod
    def _validate_as_the_named_method(cls, value: Any) -> Any:
        return method_config(value).model_validate(value) if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _check_method_against_engine(self) -> Self:
        self.method.check(self.engine, "auto")
        return self


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """What one run did. Tensors are on the CPU, by parameter name, and whole on every rank."""

    records: list[dict[str, Any]]
    """The fields of each round's record."""
    gradient_evaluations: float
    forward_evaluations: int
    tokens: int
    start: dict[str, Tensor]
    """The trainable parameters before the method was built."""
    parameters: dict[str, Tensor]
    """The trainable parameters at the end."""
    start_buffers: dict[str, Tensor]
    buffers: dict[str, Tensor]
    """The model's buffers at the end, such as the running statistics of a ResNet."""
    parameter_norm: float
    """Euclidean norm of the parameters at the end, as the engine computes it."""


def run(spec: RunSpec) -> RunOutcome:
    """Execute a run in this process, on one thread. On several ranks, every rank calls this function.

    Raises:
        OfmuError: the run fails.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        engine = build_engine(_build_model(spec), spec.engine, CostTracker())
        try:
            return _execute(spec, engine)
        finally:
            engine.close()
    finally:
        torch.set_num_threads(threads)


def _build_model(spec: RunSpec) -> nn.Module:
    if spec.kind == "vision":
        model: nn.Module = tiny_classifier()
        return model
    llama = tiny_llama("eager" if spec.method.needs_double_backward else "sdpa")
    if spec.adapter.is_quantized:
        quantize_model(llama)
    add_adapters(llama, spec.adapter, spec.seed)
    model = llama
    return model


def _build_task(kind: TaskKind) -> MemoryTask[Any]:
    return tiny_image_task() if kind == "vision" else tiny_language_task()


def _execute(spec: RunSpec, engine: Engine) -> RunOutcome:
    start, start_buffers = _parameters(engine), _copied(dict(engine.model.named_buffers()))
    method = build_method(Context(engine, _build_task(spec.kind), spec.seed), spec.method)
    if spec.resume_from is not None:
        method.restore(*load_checkpoint(spec.resume_from, engine.space))
    records = _take_rounds(method, spec.stop_after)
    if spec.save_to is not None:
        vectors, state = method.vectors(), method.state()
        save_checkpoint(spec.save_to, engine.space, vectors, state, engine.rank, engine.world_size)
    tracker = engine.cost_tracker
    return RunOutcome(
        records=records,
        gradient_evaluations=tracker.gradient_evaluations,
        forward_evaluations=tracker.forward_evaluations,
        tokens=tracker.tokens,
        start=start,
        parameters=_parameters(engine),
        start_buffers=start_buffers,
        buffers=_copied(dict(engine.model.named_buffers())),
        parameter_norm=engine.space.parameter_norm(),
    )


def _take_rounds(method: Method[Any], stop_after: int | None) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for record in method.rounds():
        records.append(asdict(record))
        if len(records) == stop_after:
            break
    return records


def _parameters(engine: Engine) -> dict[str, Tensor]:
    return _copied(dict(engine.space.gather_parameters()))


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
