"""What a request records of the requests before it."""

from __future__ import annotations

from collections.abc import Sequence

from ofmu.config.base import Section


class EarlierMetricRecord(Section):
    """One metric on the forget rows of an earlier request."""

    name: str
    better: str
    """Which values are better, in words."""
    before: float | None = None
    """The value of the model that had to forget these rows."""
    values: list[float | None]
    """The value after the earlier request itself, and after each later request. The last is that of the present one."""

    @property
    def then(self) -> float | None:
        """The value after the earlier request itself."""
        return self.values[0]

    @property
    def now(self) -> float | None:
        """The value after the present request."""
        return self.values[-1]


class EarlierRequestRecord(Section):
    """An earlier request, and what the present model gives on its forget rows."""

    id: str
    finished: str
    """When its measurements were complete, in ISO format."""
    hash: str
    """SHA-256 (hex) of its ``evidence.json`` without ``files`` and ``signature``, as JSON with sorted keys. So it stays
    the same if the evidence is signed later. For a run of ``ofmu unlearn``: of its ``metrics.json``."""
    public_key_sha256: str | None = None
    """The key that had signed its evidence when the next request followed it; None if it was not signed."""
    forget_rows: int
    metrics: list[EarlierMetricRecord]
    gradient_evaluations: float
    """Minibatch gradients of all its runs."""
    run_seconds: float
    """Seconds of all these runs together."""


class ChainRecord(Section):
    """The requests before the present one, the oldest first, and the cost of all of them."""

    requests: list[EarlierRequestRecord]
    gradient_evaluations: float
    """Minibatch gradients of all requests, the present one included."""
    run_seconds: float
    """Seconds of the runs of all requests, the present one included."""


def chain_record(
    requests: Sequence[EarlierRequestRecord], *, gradient_evaluations: float, run_seconds: float
) -> ChainRecord:
    """Return the record of a chain.

    Args:
        requests: the earlier requests, the oldest first.
        gradient_evaluations: the cost of the present request.
        run_seconds: the seconds of its runs.
    """
    return ChainRecord(
        requests=list(requests),
        gradient_evaluations=gradient_evaluations + sum(each.gradient_evaluations for each in requests),
        run_seconds=run_seconds + sum(each.run_seconds for each in requests),
    )
