"""The base class of unlearning methods. An instance is one run of a method, round by round, on any engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from ofmu.data.kinds import TaskKind
from ofmu.data.sampler import MinibatchSampler
from ofmu.engine.base import Engine
from ofmu.methods.config import MethodConfig
from ofmu.models.config import AdapterConfig
from ofmu.task import Task
from ofmu.vectors.base import Vector
from ofmu.vectors.held import HeldVectors, Passes

RowT = TypeVar("RowT")


@dataclass(frozen=True)
class Context(Generic[RowT]):
    """The inputs of a run, apart from the config of the method."""

    engine: Engine
    """The engine at the target's parameters θ_0. A checkpoint is restored later."""
    task: Task[RowT]
    """The rows to forget and to retain, and the loss on them."""
    seed: int
    """Seed of the minibatches and of every other draw."""

    def minibatches(self, rows: Sequence[RowT], config: MethodConfig, name: str) -> MinibatchSampler[RowT]:
        """Return the draws of minibatches of ``rows`` under ``config``. ``name`` names the set of the rows."""
        length = self.task.loss.tokens if config.group_by_length else None
        return MinibatchSampler(rows, config.batch_size, self.seed, name, length)


class Record(Protocol):
    """The record of one round: a dataclass whose fields become a line of ``history.jsonl``."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def outer_step(self) -> int:
        """Number of outer steps taken. For a method with one loop: number of steps taken."""


def without_settings(space: Mapping[str, Mapping[str, Any]], left_out: Collection[str]) -> dict[str, Mapping[str, Any]]:
    """Return a method's space without some of its settings, and without the conditions on these settings."""

    def without_conditions(spec: Mapping[str, Any]) -> Mapping[str, Any]:
        when = {key: value for key, value in spec.get("when", {}).items() if key.partition(".")[2] not in left_out}
        kept = {key: value for key, value in spec.items() if key not in ("when", "otherwise")}
        return {**spec, "when": when} if when else kept

    return {key: without_conditions(spec) for key, spec in space.items() if key not in left_out}


class Method(ABC, Generic[RowT]):
    """One run of an unlearning method.

    A subclass states the class of its config, its source and its search space, and is registered with
    :func:`ofmu.methods.register`. A method works on :class:`ofmu.vectors.base.VectorSpace` and on global minibatches.
    So its trajectory does not depend on the ZeRO stage or on the number of ranks.

    The constructor takes the inputs of the run, and a config of the class ``Config``.
    """

    name: ClassVar[str]
    """The name under which the method is registered."""
    Config: ClassVar[type[MethodConfig]]
    """The class of the ``method`` section of a config."""
    title: ClassVar[str]
    """The name that papers use."""
    source: ClassVar[str]
    """The paper and the equation, or the implementation whose definition is followed."""
    tasks: ClassVar[frozenset[TaskKind]] = frozenset({"language"})
    """The kinds of task that the method works on."""
    space: ClassVar[Mapping[str, Mapping[str, Any]]]
    """The default search space: settings of ``Config`` to ranges, in the form of ``search.space``."""
    published: ClassVar[Mapping[str, Any]]
    """The settings that the authors state."""
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Named sets of settings, which ``method.variant`` chooses."""
    whole_logits: ClassVar[bool] = False
    """Whether a loss on text forms the logits of a whole minibatch, however large the vocabulary is."""
    answers_in_pass: ClassVar[int] = 1
    """Answers to each row of a forget minibatch that one pass reads together."""
    no_op_config: ClassVar[Mapping[str, Any]] = {"steps": 0}
    """Settings under which a run leaves the target as it is."""

    @classmethod
    def search_space(cls, variant: str | None = None) -> Mapping[str, Mapping[str, Any]]:
        """Return the default search space of the method, or of a variant: without settings that the variant fixes."""
        return without_settings(cls.space, cls.variants.get(variant, {}) if variant else ())

    @classmethod
    def held_vectors(cls, config: Any) -> HeldVectors | None:
        """Return how many vectors a run under ``config`` holds. None: the method does not say."""
        return None

    @classmethod
    def keeps_target_logits(cls, config: Any) -> bool:
        """Return whether a step keeps the target's logits at the answer tokens of a minibatch."""
        return False

    @classmethod
    def passes(cls, config: Any, forget_rows: int, retain_rows: int) -> tuple[Passes, Passes] | None:
        """Return the fewest and the most passes of a run under ``config``. None: the method does not say.

        The passes of the constructor count, and those of a saliency mask do not.

        Args:
            config: the config of the method.
            forget_rows: number of rows to forget.
            retain_rows: number of rows to retain.
        """
        return None

    @classmethod
    def check_model(cls, config: Any, description: Mapping[str, Any], adapter: AdapterConfig) -> None:
        """Check the settings that name parts of the model, before anything is prepared.

        Args:
            config: the config of the method.
            description: the content of the model's ``config.json``.
            adapter: the adapters of the run.

        Raises:
            ConfigError: the model has no such part.
            ModelError: the model cannot be built from its config.
        """
        return

    stationary: bool = False
    """Whether the run ended early because it reached a stationary point."""

    @abstractmethod
    def __init__(self, context: Context[RowT], config: Any) -> None: ...

    @property
    @abstractmethod
    def steps_taken(self) -> int:
        """Number of outer steps taken. For a method with one loop: number of steps taken."""

    @property
    def learning_rates(self) -> dict[str, float]:
        """The learning rates of the run by the name of their setting, if range tests found them; else empty."""
        return {}

    @property
    def total_rounds(self) -> int | None:
        """Number of rounds of a run that does not become stationary.

        None: the number is unknown. Early stopping then never ends the run.
        """
        return None

    @abstractmethod
    def rounds(self) -> Iterator[Record]:
        """Run the remaining rounds. Yield a record after each round. A checkpoint may be written at each yield.

        Raises:
            NonFiniteLossError: a loss or a norm is NaN or infinite. The message names the step and the fix.
        """

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return the state of the loop as JSON values, for a checkpoint."""

    @abstractmethod
    def vectors(self) -> dict[str, Vector]:
        """Return the vectors that a checkpoint must hold, by name. ``theta`` names the parameters.

        The vectors are the live tensors, no copies.
        """

    @abstractmethod
    def restore(self, state: dict[str, Any], vectors: dict[str, Vector]) -> None:
        """Continue from a checkpoint. The run continues bit for bit as the interrupted run would have continued."""
