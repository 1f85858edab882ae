"""Teacher forcing: losses, token matches and token statistics of given answers, from the same forward passes.

A prompt that several answers share is read once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from ofmu.data.encoding import Tokenizer, pad_id
from ofmu.data.rows import Example
from ofmu.evaluation.metrics.formulas import exact_memorization, extraction_strength
from ofmu.evaluation.metrics.membership import min_k, min_k_plus
from ofmu.evaluation.scoring.kv_cache import Prefill, extend, prefill, supports_prompt_cache
from ofmu.evaluation.scoring.sharding import Shard, batches_by_label, global_batches, run_sharded
from ofmu.models.chunked_logits import ChunkedLogits, chunk_width, layer_for_chunks
from ofmu.vectors.direct import replaced_forward


@dataclass(frozen=True, slots=True)
class AnswerScore:
    """Scores of one answer."""

    nll: float
    """Negative log-likelihood in nats, summed over the answer's tokens, EOS included."""
    tokens: int
    """Number of the answer's tokens, EOS included."""
    extraction_strength: float | None
    """Without EOS. None: the answer has no token but EOS."""
    exact_memorization: float | None
    """Without EOS. None: the answer has no token but EOS."""
    min_k: float | None = None
    """:func:`ofmu.evaluation.metrics.membership.min_k` with EOS. None: token statistics were not requested."""
    min_k_plus: float | None = None
    """:func:`ofmu.evaluation.metrics.membership.min_k_plus` with EOS. None: as for ``min_k``."""


@torch.no_grad()
def score_examples(
    model: Any,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    batch_size: int,
    shard: Shard,
    *,
    labels: Sequence[str] | None = None,
    detailed: Collection[int] = (),
) -> tuple[list[AnswerScore], int]:
    """Score every example's answer.

    Args:
        model: a causal LM in evaluation mode.
        tokenizer: the model's tokenizer.
        examples: the prompts and answers.
        batch_size: rows per forward pass.
        shard: this process's rank.
        labels: the evaluation set of each example. Only examples of one set share a batch. None: one set.
        detailed: indices of the examples that also get token statistics (min-k).

    Returns:
        The scores in the order of the examples, and the number of tokens that the forward passes of all ranks read,
        padding included.
    """
    with_statistics, prompt_cache = frozenset(detailed), supports_prompt_cache(model)
    read = _read_after_prefill if prompt_cache else _read_in_one_pass

    def make_batches(indices: list[int]) -> list[list[int]]:
        members = [examples[index] for index in indices]
        lengths = [len(example.input_ids) for example in members]
        batches = prompt_batches(members, batch_size) if prompt_cache else global_batches(lengths, batch_size)
        return [[indices[position] for position in batch] for batch in batches]

    batches = batches_by_label(labels or [""] * len(examples), make_batches)

    def run(indices: list[int]) -> list[AnswerScore]:
        batch = [examples[index] for index in indices]
        scores: list[AnswerScore] = []

        def score(logits: AnswerLogits) -> None:
            row = len(scores)
            scores.append(_score_answer(logits, batch[row], tokenizer.eos_token_id, indices[row] in with_statistics))

        read(model, batch, pad_id(tokenizer), score)
        return scores

    work = [batch_tokens([examples[index] for index in batch], prompt_cache) for batch in batches]
    return run_sharded(batches, run, shard, name="scoring", work=work), sum(work)


def prompt_batches(examples: Sequence[Example], batch_size: int) -> list[list[int]]:
    """Return batches of at most ``batch_size`` indices. Examples with the same prompt are neighbours.

    Prompts are ordered by the length of their longest answer, because that length decides most of the padding. Equal
    prompts keep their order.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(_prompt(example), []).append(index)
    ordered = sorted(groups.items(), key=lambda item: (_answer_width([examples[i] for i in item[1]]), len(item[0])))
    batches: list[list[int]] = [[]]
    for _, members in ordered:
        for start in range(0, len(members), batch_size):
            part = members[start : start + batch_size]
            if len(batches[-1]) + len(part) > batch_size:
                batches.append([])
            batches[-1].extend(part)
    return [batch for batch in batches if batch]


def batch_tokens(batch: Sequence[Example], prompt_cache: bool) -> int:
    """Return the number of tokens that the forward passes of one batch read, padding included."""
    if not prompt_cache:
        return len(batch) * max(len(example.input_ids) for example in batch)
    prompts = [prompt for prompt, _ in groupby(map(_prompt, batch))]
    return len(prompts) * max(map(len, prompts)) + len(batch) * _answer_width(batch)


def _prompt(example: Example) -> tuple[int, ...]:
    return example.input_ids[: example.answer_start]


def _answer_width(examples: Sequence[Example]) -> int:
    """Return the number of answer tokens that each row of a batch reads.

    The last token of an answer is predicted but not read. Each row reads at least one token.
    """
    return max(1, max(example.answer_length for example in examples) - 1)


@dataclass(frozen=True)
class AnswerLogits:
    """The logits at the tokens of one answer."""

    vocabulary: int
    """Number of words."""
    of: Callable[[slice], torch.Tensor]
    """Returns the logits of some tokens, shape (tokens, vocabulary)."""


Consumer = Callable[[AnswerLogits], None]
"""Takes the logits of one answer of a batch, in the order of the batch."""


def _read_after_prefill(model: Any, batch: Sequence[Example], pad: int, consume: Consumer) -> None:
    """Give each row's logits at its answer tokens to ``consume``. Read each prompt once."""
    runs = [(prompt, len(list(members))) for prompt, members in groupby(map(_prompt, batch))]
    state = prefill(model, [prompt for prompt, _ in runs], pad)
    device = state.logits.device
    sizes = torch.tensor([size for _, size in runs])
    state.select(torch.repeat_interleave(torch.arange(len(runs)), sizes).to(device))
    ids = torch.full((len(batch), _answer_width(batch)), pad, dtype=torch.long)
    for row, example in enumerate(batch):
        ids[row, : example.answer_length - 1] = torch.tensor(example.input_ids[example.answer_start : -1])
    lengths = [example.answer_length for example in batch]
    read_answers(model, state, ids.to(device), lengths, consume)


def read_answers(model: Any, state: Prefill, ids: torch.Tensor, lengths: Sequence[int], consume: Consumer) -> None:
    """Read answers after their prompts, and give each answer's logits to ``consume``.

    Logits of a large vocabulary are formed when they are asked for, see :mod:`ofmu.models.chunked_logits`.

    Args:
        model: the model.
        state: the prompts, one per row.
        ids: the tokens of each answer without the last one, padded on the right, shape (rows, tokens).
        lengths: number of tokens of each answer.
        consume: takes the logits. It must not keep them.
    """
    first = state.logits

    def give(row: int, rest: Callable[[slice], torch.Tensor]) -> None:
        def logits(tokens: slice) -> torch.Tensor:
            start, stop, _ = tokens.indices(lengths[row])
            behind = rest(slice(max(0, start - 1), stop - 1))
            return behind if start else torch.cat([first[row : row + 1], behind])

        consume(AnswerLogits(first.shape[-1], logits))

    layer = layer_for_chunks(model, ids.numel())
    if layer is None:
        whole = extend(model, state, ids)
        for row in range(len(ids)):
            give(row, whole[row].__getitem__)
        return

    def formed_from(hidden: torch.Tensor) -> Callable[[slice], torch.Tensor]:
        return lambda tokens: ChunkedLogits(hidden[tokens], layer).whole()

    def in_chunks(hidden: torch.Tensor) -> torch.Tensor:
        # Under ZeRO-3 the layer has its weight only here.
        for row in range(len(ids)):
            give(row, formed_from(hidden[row]))
        return hidden[..., :1]

    with replaced_forward(layer, in_chunks):
        extend(model, state, ids)


def _read_in_one_pass(model: Any, batch: Sequence[Example], pad: int, consume: Consumer) -> None:
    """Give each row's logits at its answer tokens to ``consume``. Read each row as a whole."""
    for logits in logits_of_one_pass(model, batch, pad):
        consume(AnswerLogits(logits.shape[-1], logits.__getitem__))


def logits_of_one_pass(model: Any, batch: Sequence[Example], pad: int) -> Iterator[torch.Tensor]:
    """Yield each row's logits at its answer tokens, shape (answer tokens, vocabulary). Read each row as a whole."""
    device = next(model.parameters()).device
    width = max(len(example.input_ids) for example in batch)
    ids = torch.full((len(batch), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, example in enumerate(batch):
        ids[row, : len(example.input_ids)] = torch.tensor(example.input_ids)
        mask[row, : len(example.input_ids)] = 1
    logits = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
    for row, example in enumerate(batch):
        yield logits[row, example.answer_start - 1 : len(example.input_ids) - 1]


def _score_answer(logits: AnswerLogits, example: Example, eos: int, detailed: bool) -> AnswerScore:
    # A few tokens at a time: with a large vocabulary, fp32 copies of a whole batch's logits would double the peak.
    labels = torch.tensor(example.input_ids[example.answer_start :])
    values = token_values(logits, labels, detailed)
    nll = float(values.nll.double().sum())
    statistics: tuple[float | None, float | None] = (None, None)
    if values.moments is not None:
        chosen, means, deviations = (tensor.cpu().numpy() for tensor in values.moments)
        statistics = min_k(chosen), min_k_plus(chosen, means, deviations)
    matches = values.matches.cpu().numpy()
    if example.input_ids[-1] == eos:
        matches = matches[:-1]
    if len(matches) == 0:
        return AnswerScore(nll, len(labels), None, None, *statistics)
    return AnswerScore(nll, len(labels), extraction_strength(matches), exact_memorization(matches), *statistics)


@dataclass(frozen=True)
class TokenValues:
    """Values of an answer's tokens, shape (tokens,) each."""

    nll: torch.Tensor
    matches: torch.Tensor
    """Whether the token is the most probable one."""
    moments: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None
    """Log-probability, and mean and deviation of the log-probabilities of all words. None: not requested."""


def token_values(logits: AnswerLogits, labels: torch.Tensor, detailed: bool) -> TokenValues:
    """Return the values of an answer's tokens, whose labels have the shape (tokens,). ``detailed``: moments too."""
    parts: list[tuple[torch.Tensor, ...]] = []
    width = chunk_width(logits.vocabulary, 4)
    for start in range(0, len(labels), width):
        predicted = logits.of(slice(start, start + width)).float()
        of_part = labels[start : start + width].to(predicted.device)
        chosen = predicted.gather(-1, of_part[:, None])[:, 0]
        nll = torch.logsumexp(predicted, dim=-1) - chosen
        moments = _token_moments(predicted, of_part) if detailed else ()
        parts.append((nll, predicted.argmax(dim=-1) == of_part, *moments))
    nll, matches, *all_moments = (torch.cat(values) for values in zip(*parts, strict=True))
    return TokenValues(nll, matches, (all_moments[0], all_moments[1], all_moments[2]) if detailed else None)


def _token_moments(predicted: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return log-probability, and mean and deviation of log-probabilities, from logits, shape (tokens, vocabulary)."""
    # Log-probabilities are bounded, so that a token of probability 0 adds 0 to the moments and not NaN.
    log_probs = torch.log_softmax(predicted, dim=-1).clamp(min=-1e4).double()
    probs = log_probs.exp()
    means = (probs * log_probs).sum(dim=-1)
    deviations = (probs * (log_probs - means[:, None]).square()).sum(dim=-1).sqrt()
    return log_probs.gather(-1, labels[:, None])[:, 0], means, deviations
