"""A chain as tables, for the terminal and for pages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ofmu.chain.records import ChainRecord
from ofmu.io.console_table import Column, print_table
from ofmu.io.text import counted
from ofmu.reports.numbers import big_number, duration, number

Table = tuple[tuple[str, ...], ...]


def drift_rows(chain: ChainRecord) -> Table:
    """Return one row per earlier request and metric: request, metric, before, then, now, change since, better."""
    return tuple(
        (
            request.id,
            each.name,
            number(each.before, 3),
            number(each.then, 3),
            number(each.now, 3),
            _change(each.then, each.now),
            each.better,
        )
        for request in chain.requests
        for each in request.metrics
    )


def cost_rows(chain: ChainRecord, own_id: str) -> Table:
    """Return one row per request, the present one and the sum below: request, gradients, seconds of its runs.

    Args:
        chain: the earlier requests.
        own_id: the name of the present request.
    """
    gradients = chain.gradient_evaluations - sum(each.gradient_evaluations for each in chain.requests)
    seconds = chain.run_seconds - sum(each.run_seconds for each in chain.requests)
    return (
        *((each.id, big_number(each.gradient_evaluations), duration(each.run_seconds)) for each in chain.requests),
        (own_id, big_number(gradients), duration(seconds)),
        ("all requests", big_number(chain.gradient_evaluations), duration(chain.run_seconds)),
    )


DRIFT_HEADER = ("earlier request", "metric", "before it", "after it", "now", "change", "better")
COST_HEADER = ("request", "gradient evaluations", "time of all runs, added up")


def print_chain(chain: ChainRecord, own_id: str, utility: Sequence[str] = ()) -> None:
    """Print what became of the earlier requests, and what each request cost.

    Args:
        chain: the earlier requests.
        own_id: the name of the present request.
        utility: lines on utility, see :func:`utility_line`.
    """
    print(f"After {counted(len(chain.requests), 'earlier request')}:")
    for header, rows in ((DRIFT_HEADER, drift_rows(chain)), (COST_HEADER, cost_rows(chain, own_id))):
        print_table([Column(name, overflow="ellipsis") for name in header], rows)
    for line in utility:
        print(line)


def utility_line(name: str, first_target: float | None, target: float | None, result: float | None) -> str:
    """Return how a metric of utility went, from the first target of the chain to the present result."""
    values = f"{number(first_target, 3)} for the first target, {number(target, 3)} before this request"
    return f"{name}: {values}, {number(result, 3)} now, all on the rows of this request"


def drift_sentences(chain: ChainRecord) -> Iterator[str]:
    """Yield one sentence for each earlier request whose first metric is worse now than after that request."""
    for request in chain.requests:
        if not request.metrics:
            continue
        each = request.metrics[0]
        if each.then is None or each.now is None or each.then == each.now:
            continue
        worse = each.now > each.then if each.better == "lower" else each.now < each.then
        if worse:
            yield (
                f"On the rows of the earlier request {request.id}, {each.name} ({each.better} is better) went from "
                f"{number(each.then, 3)} after that request to {number(each.now, 3)} now."
            )


def _change(then: float | None, now: float | None) -> str:
    if then is None or now is None:
        return number(None)
    return f"{now - then:+.3g}"
