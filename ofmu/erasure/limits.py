"""What the evidence of an erasure does not show, in plain words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ofmu.erasure.evidence import MetricRecord, NotRunRecord, RowsRecord
from ofmu.erasure.request import Kind
from ofmu.erasure.request_rows import RetainSource
from ofmu.io.text import counted

_KNOWN_SHARE = 0.3
"""Mean probability of the forget answers below which the target hardly knew them."""
_FEW_ROWS = 30
"""Number of forget rows below which metrics of the forget set are coarse."""


def reference_sentence(source: str) -> str:
    """Return what the result is compared with.

    Args:
        source: ``reference.source`` of the config.
    """
    return {
        "retrain": "The base model, trained on the retain rows alone by the settings of the config.",
        "model": "A retrained model that the user gave.",
        "scores": "The scores of a retrained model that the user gave.",
        "none": "There is no retrained model, so the result is compared with the target only.",
    }[source]


def limits(
    kind: Kind,
    retain_source: RetainSource,
    reference: str,
    rows: Sequence[RowsRecord],
    metrics: Sequence[MetricRecord],
    skipped: Sequence[NotRunRecord],
    *,
    weakness: str | None = None,
    seeds: int = 0,
    in_chain: bool = False,
) -> list[str]:
    """Return the limits, one sentence or two each.

    Args:
        kind: what the request names.
        retain_source: where the retain rows come from.
        reference: ``reference.source`` of the config.
        rows: the rows of the request.
        metrics: the measured metrics.
        skipped: the attacks that were not made.
        weakness: why the retrained model is no good reference, in words; None if it is one.
        seeds: number of runs of the same setting on further seeds.
        in_chain: whether there were requests before this one.
    """
    return [
        "The numbers are measurements of one model on the listed rows. They do not prove that the model holds nothing "
        "about these rows, and an attack that is not listed may recover more.",
        "Copies of the target, its training data, backups, logs and other models are not part of this record.",
        *_of_reference(reference),
        *((f"{weakness[0].upper()}{weakness[1:]}.",) if weakness else ()),
        *_of_request(kind),
        *_of_retain(retain_source),
        *_of_numbers(rows, metrics),
        *_of_attacks(skipped),
        *_of_chain(in_chain=in_chain),
        *_of_seeds(seeds),
    ]


def _of_seeds(seeds: int) -> Iterator[str]:
    if seeds == 0:
        yield "The result is one run. How much runs on other seeds differ was not measured."
    elif seeds == 1:
        yield "The result is one run, on the seed of the search. One run on one further seed gives no interval."
    else:
        yield (
            "Intervals are over runs of the same setting on further seeds. The result itself is one run, on the seed "
            "of the search."
        )


def _of_reference(source: str) -> Iterator[str]:
    if source == "none":
        yield (
            "How a model that never saw the forget rows would answer cannot be known without a retrained model. So it "
            "cannot be known which part of the remaining probability of an answer is memory, and which part any model "
            "of the language has. It can also not be known whether the result forgets more than retraining would."
        )
    elif source == "retrain":
        yield (
            "Whether the target was once trained as the retrained model is trained here is not checked. If the "
            "settings differ, the distance to the retrained model differs too."
        )
    else:
        yield "That the given reference was trained without the forget rows is a statement of the user."


def _of_request(kind: Kind) -> Iterator[str]:
    if kind == "person":
        yield (
            "Rows were found by the person's name. Rows that mean the person by a pronoun, a nickname, a role or "
            "another spelling were not found."
        )
    elif kind == "questions":
        yield (
            "The forget rows are the answers that the target gave to the questions. What the target knows beyond these "
            "answers was not measured."
        )


def _of_retain(source: RetainSource) -> Iterator[str]:
    if source == "generated":
        yield (
            "The retain rows are answers of the target itself to neutral questions. Utility on the user's own tasks "
            "was not measured."
        )
    elif source == "corpus":
        yield "The retain rows were chosen from the given corpus. Utility on other data was not measured."


def _of_numbers(rows: Sequence[RowsRecord], metrics: Sequence[MetricRecord]) -> Iterator[str]:
    count = next(each.count for each in rows if each.role == "forget")
    if count < _FEW_ROWS:
        yield f"The request has only {counted(count, 'forget row')}, so numbers on the forget set are coarse."
    probability = next((each.target for each in metrics if each.name == "forget_probability"), None)
    if probability is not None and probability < _KNOWN_SHARE:
        yield (
            f"The target hardly knew the forget rows in the prompts that were used (mean probability "
            f"{probability:.2f}). If it was trained with other prompts, the numbers say little about it."
        )


def _of_attacks(skipped: Sequence[NotRunRecord]) -> Iterator[str]:
    if skipped:
        yield f"These attacks were not made: {', '.join(each.name for each in skipped)}."


def _of_chain(*, in_chain: bool) -> Iterator[str]:
    if in_chain:
        yield (
            "The rows of earlier requests were measured again, and not attacked again. The rule of the choice does not "
            "bound what the result knows of them."
        )
