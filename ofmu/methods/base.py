"""The contract of an unlearning method: one run of it, round by round, on any engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from ofmu.data.kinds import TaskKind
from ofmu.engine.base import Engine
from ofmu.methods.config import MethodConfig
from ofmu.task import Task
from ofmu.vectors.base import Vector

RowT = TypeVar("RowT")


@dataclass(frozen=True)
class Context(Generic[RowT]):
    """What a method is given to work on."""

    engine: Engine
    """At the target's parameters θ_0, whatever checkpoint is restored later."""
    task: Task[RowT]
    seed: int


class Record(Protocol):
    """What one round saw; a dataclass whose fields go into ``history.jsonl``."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def outer_step(self) -> int:
        """Outer steps taken so far; for a method of one loop, its steps."""


class Method(ABC, Generic[RowT]):
    """One run of an unlearning method.

    A subclass names its settings, its source and what is searched of it, and is registered under a name with
    :func:`ofmu.methods.register`. All methods work on :class:`ofmu.vectors.VectorSpace` and global minibatches,
    so their trajectories do not depend on the ZeRO stage or the number of ranks.
    """

    name: ClassVar[str]
    Config: ClassVar[type[MethodConfig]]
    title: ClassVar[str]
    """As the field writes it."""
    source: ClassVar[str]
    """Paper and equation, or the implementation whose definition is followed."""
    tasks: ClassVar[frozenset[TaskKind]] = frozenset({"language"})
    space: ClassVar[Mapping[str, Mapping[str, Any]]]
    """Its settings' names to what a search draws them from, in the form of ``search.space``."""
    published: ClassVar[Mapping[str, Any]]
    """The setting that the method's authors publish, as far as they state it."""
    no_op_config: ClassVar[Mapping[str, Any]] = {"steps": 0}
    """The setting under which the target stays as it is."""

    stationary: bool = False
    """True where the run ended before its last step because nothing was left to do."""

    @abstractmethod
    def __init__(self, context: Context[RowT], settings: Any) -> None: ...

    @property
    @abstractmethod
    def steps_taken(self) -> int:
        """Outer steps taken so far."""

    @property
    def total_rounds(self) -> int | None:
        """Rounds that a whole run takes, unless it ends stationary; None: unknown, and it is never ended early."""
        return None

    @abstractmethod
    def rounds(self) -> Iterator[Record]:
        """Run what is left, yielding after each round, where a checkpoint may be taken.

        Raises:
            NonFiniteLossError: a loss or a norm is NaN or infinite; the sentence names step and mend.
        """

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return the loop's position as JSON values."""

    @abstractmethod
    def vectors(self) -> dict[str, Vector]:
        """Return all vectors that a checkpoint must hold, live, the parameters as ``theta``."""

    @abstractmethod
    def restore(self, state: dict[str, Any], vectors: dict[str, Vector]) -> None:
        """Continue from a checkpoint as if nothing had happened."""
