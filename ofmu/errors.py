"""The errors that a user can cause. Each message is one sentence that names the thing and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self


class OfmuError(ValueError):
    """Root of every error that the user can fix. The command line prints the message without a traceback."""


class ConfigError(OfmuError):
    """A setting is unknown, out of range, or contradicts another setting."""


class DataError(OfmuError):
    """A data file is missing, malformed, or inconsistent with another data file."""


class ModelError(OfmuError):
    """A model directory lacks something, or the model cannot do what the run asks of it."""


class ReferenceMismatchError(OfmuError):
    """Reference scores cover other rows, or follow another truth-ratio definition."""


class NonFiniteLossError(OfmuError):
    """A loss or a gradient became NaN or infinite during a run."""


class DerivativeError(OfmuError):
    """A finite difference is too inaccurate on this model."""


class StorageError(OfmuError):
    """A write failed, such as on a full disk or in a read-only directory."""


class ClusterError(OfmuError):
    """The Ray cluster is unreachable, or smaller than the run needs."""


class MemoryLimitError(OfmuError):
    """A run needs more memory than the device has."""


class RunError(OfmuError):
    """A directory is not a run, or the run is in the wrong state for the command."""


@dataclass(frozen=True, kw_only=True)
class PruningRecord:
    """Where a run ended early, and why. ``pruned.json`` stores this record."""

    round: int
    """The run ended after this round. Rounds count from 1."""
    total: int
    """Rounds of a whole run."""
    rung: float | None = None
    """The rung, as a fraction of all rounds; None if no rung ended the run."""
    objectives: Mapping[str, float | None] = field(default_factory=dict)
    """The objectives at that round."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """What the run had cost by then."""

    @property
    def sentence(self) -> str:
        """The reason, for a table or a message."""
        return f"stopped early, after round {self.round} of {self.total}"

    def with_metrics(self, metrics: Mapping[str, Any]) -> Self:
        """Return the record with ``metrics``."""
        return replace(self, metrics=dict(metrics))

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values. Fields without content are left out."""
        optional = {"rung": self.rung, "objectives": dict(self.objectives), "metrics": dict(self.metrics)}
        kept = {key: value for key, value in optional.items() if value not in (None, {})}
        return {"round": self.round, "total": self.total} | kept

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the record that :meth:`to_json` wrote."""
        return cls(**{key: values[key] for key in ("round", "total", "rung", "objectives", "metrics") if key in values})


class PrunedError(Exception):
    """A run ended early because other runs are better. This is not a failure, and the user has nothing to fix."""

    def __init__(self, record: PruningRecord) -> None:
        super().__init__(record)

    def __str__(self) -> str:
        return self.record.sentence

    @property
    def record(self) -> PruningRecord:
        """Where the run ended, and why."""
        record: PruningRecord = self.args[0]
        return record


class EvidenceError(OfmuError):
    """Evidence of an erasure was altered, is not signed, or is signed with another key than the expected one."""


_MOST_LISTED = 300
"""Number of names above which a message lists none. lm-eval has more than ten thousand tasks."""
_MOST_RELATED = 3
"""Number of names of the same kind above which a message names the closest one instead."""


def error_named(kind: str, text: str) -> OfmuError:
    """Return the error of a class of this module, as another process has told it. An unknown class gives OfmuError."""
    named: type[OfmuError] = globals().get(kind, OfmuError)
    return named(text)


def nearest_name(name: str, known: Iterable[str], section: str = "", limit: int | None = None) -> str:
    """Return a hint such as ``did you mean 'method.inner_steps'?``.

    Without a close name, the hint lists the valid names if they are few, or the first ``limit`` of them.

    Args:
        name: the unknown name.
        known: the valid names.
        section: a prefix such as ``method.`` for the suggested name, so that the user can copy the suggestion.
        limit: how many names are listed. The number of all follows. None: all of them.
    """
    names = sorted(known)
    # Another method may have only one rate where this one has an inner and an outer one, or the other way round.
    related = [each for each in names if each.endswith(f"_{name}") or name.endswith(f"_{each}")]
    if 0 < len(related) <= _MOST_RELATED:
        return f"did you mean {' or '.join(repr(section + each) for each in related)}?"
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{section}{close[0]}'?"
    if limit is None and len(names) > _MOST_LISTED:
        return f"none of the {len(names)} valid names is like it"
    if limit is None or len(names) <= limit:
        return f"valid names are {', '.join(names)}"
    return f"valid names are {', '.join(names[:limit])} and {len(names) - limit} others"
