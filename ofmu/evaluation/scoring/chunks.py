"""Scores of a text that is split into chunks, from the scores of its chunks."""

from __future__ import annotations

from collections.abc import Sequence

from ofmu.data.rows import Example
from ofmu.evaluation.scoring.teacher_forcing import AnswerScore


def join_scores(chunks: Sequence[Example], scores: Sequence[AnswerScore], eos: int) -> AnswerScore:
    """Return the scores of a whole text. One chunk keeps its scores.

    The negative log-likelihood and the number of tokens are sums. Every other score is the mean over the chunks,
    weighted by their tokens without EOS. So exact memorization is that of the whole text.
    """
    if len(scores) == 1:
        return scores[0]
    weights = [chunk.answer_length - (chunk.input_ids[-1] == eos) for chunk in chunks]
    return AnswerScore(
        nll=sum(score.nll for score in scores),
        tokens=sum(score.tokens for score in scores),
        extraction_strength=_mean([score.extraction_strength for score in scores], weights),
        exact_memorization=_mean([score.exact_memorization for score in scores], weights),
        min_k=_mean([score.min_k for score in scores], weights),
        min_k_plus=_mean([score.min_k_plus for score in scores], weights),
    )


def join_norms(chunks: Sequence[Example], norms: Sequence[float]) -> float:
    """Return the mean gradient norm of a text's chunks, weighted by their answer tokens."""
    if len(norms) == 1:
        return norms[0]
    tokens = sum(chunk.answer_length for chunk in chunks)
    return sum(norm * chunk.answer_length for norm, chunk in zip(norms, chunks, strict=True)) / tokens


def _mean(values: Sequence[float | None], weights: Sequence[int]) -> float | None:
    """Return the weighted mean. Chunks without a value do not count. None: no chunk has a value."""
    known = [(value, weight) for value, weight in zip(values, weights, strict=True) if value is not None]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else None
