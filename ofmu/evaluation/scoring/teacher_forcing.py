"""Teacher forcing: losses, token matches and token statistics of given answers, from the same forward passes.

A prompt that several answers share is read once: see :mod:`ofmu.evaluation.scoring.prompt_blocks`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ofmu.data.encoding import Tokenizer, pad_id
from ofmu.data.rows import Example
from ofmu.evaluation.metrics.formulas import exact_memorization, extraction_strength
from ofmu.evaluation.metrics.membership import min_k, min_k_plus
from ofmu.evaluation.scoring.batches import batches_by_label, global_batches
from ofmu.evaluation.scoring.kv_cache import Prefill, extend, prefill, supports_prompt_cache
from ofmu.evaluation.scoring.prompt_blocks import AnswerRow, PromptBlock, prompt_blocks
from ofmu.evaluation.scoring.sharding import PassCounts, Shard, run_sharded
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
        batch_size: rows of a forward pass over the longest rows. Short rows share larger passes.
        shard: this process's rank.
        labels: the evaluation set of each example. Only examples of one set share a batch. None: one set.
        detailed: indices of the examples that also get token statistics (min-k).

    Returns:
        The scores in the order of the examples, and the number of tokens that the forward passes of all ranks read,
        padding included.
    """
    scorer = _Scorer(model, tokenizer, examples, frozenset(detailed))
    labels = labels or [""] * len(examples)
    if supports_prompt_cache(model):
        blocks = batches_by_label(labels, lambda indices: prompt_blocks(examples, batch_size, indices))
        work = [block.tokens for block in blocks]
        passes = PassCounts([block.forward_passes for block in blocks], scorer.read_one_token)
        return run_sharded(blocks, scorer.score_block, shard, name="scoring", work=work, passes=passes), sum(work)

    def make_batches(indices: list[int]) -> list[list[int]]:
        batches = global_batches([len(examples[index].input_ids) for index in indices], batch_size)
        return [[indices[position] for position in batch] for batch in batches]

    batches = batches_by_label(labels, make_batches)
    work = [len(batch) * max(len(examples[index].input_ids) for index in batch) for batch in batches]
    return run_sharded(batches, scorer.score_batch, shard, name="scoring", work=work), sum(work)


@dataclass(frozen=True)
class _Scorer:
    model: Any
    tokenizer: Tokenizer
    examples: Sequence[Example]
    detailed: frozenset[int]
    """Indices of the examples that get token statistics."""

    def score_block(self, block: PromptBlock) -> list[AnswerScore]:
        """Score a block's answers, in its order."""
        scores, score = self._consumer(list(block))
        pad = pad_id(self.tokenizer)
        # The cache belongs to the block, so it grows once, by the answers, and needs no other free positions.
        state = prefill(self.model, block.prompts, pad, growth=0)
        first = state.logits.unsqueeze(1).unbind()
        for row in block.at_once:
            score(AnswerLogits(state.logits.shape[-1], first[row.prompt].__getitem__))
        for number, rows in enumerate(block.passes):
            self._read_pass(state, rows, first, score, keep=number < len(block.passes) - 1)
        return scores

    def score_batch(self, indices: list[int]) -> list[AnswerScore]:
        """Score examples that are read as a whole."""
        scores, score = self._consumer(indices)
        batch = [self.examples[index] for index in indices]
        for logits in logits_of_one_pass(self.model, batch, pad_id(self.tokenizer)):
            score(AnswerLogits(logits.shape[-1], logits.__getitem__))
        return scores

    def read_one_token(self) -> None:
        """Run a forward pass whose result is not used."""
        device = next(self.model.parameters()).device
        self.model(input_ids=torch.full((1, 1), pad_id(self.tokenizer), device=device), use_cache=False)

    def _consumer(self, indices: Sequence[int]) -> tuple[list[AnswerScore], Consumer]:
        """Return a list, and a function that appends to it the score of the next index."""
        scores: list[AnswerScore] = []

        def score(logits: AnswerLogits) -> None:
            index = indices[len(scores)]
            eos = self.tokenizer.eos_token_id
            scores.append(_score_answer(logits, self.examples[index], eos, index in self.detailed))

        return scores, score

    def _read_pass(
        self,
        state: Prefill,
        rows: Sequence[AnswerRow],
        first: Sequence[torch.Tensor],
        score: Consumer,
        *,
        keep: bool,
    ) -> None:
        batch = [self.examples[row.index] for row in rows]
        device = state.logits.device
        ids = torch.full((len(batch), batch[-1].answer_length - 1), pad_id(self.tokenizer), dtype=torch.long)
        for place, example in enumerate(batch):
            ids[place, : example.answer_length - 1] = torch.tensor(example.input_ids[example.answer_start : -1])
        own = state.rows(torch.tensor([row.prompt for row in rows], device=device), keep=keep)
        lengths = [example.answer_length for example in batch]
        read_answers(self.model, own, ids.to(device), lengths, [first[row.prompt] for row in rows], score)


@dataclass(frozen=True)
class AnswerLogits:
    """The logits at the tokens of one answer."""

    vocabulary: int
    """Number of words."""
    of: Callable[[slice], torch.Tensor]
    """Returns the logits of some tokens, shape (tokens, vocabulary)."""


Consumer = Callable[[AnswerLogits], None]
"""Takes the logits of one answer of a batch, in the order of the batch."""


def read_answers(
    model: Any,
    state: Prefill,
    ids: torch.Tensor,
    lengths: Sequence[int],
    first: Sequence[torch.Tensor],
    consume: Consumer,
) -> None:
    """Read answers after their prompts, and give each answer's logits to ``consume``.

    Logits of a large vocabulary are formed when they are asked for, see :mod:`ofmu.models.chunked_logits`.

    Args:
        model: the model.
        state: the prompts, one per row.
        ids: the tokens of each answer without the last one, padded on the right, shape (rows, tokens).
        lengths: number of tokens of each answer.
        first: the logits of each answer's first token, shape (1, vocabulary) each.
        consume: takes the logits. It must not keep them.
    """

    def give(row: int, rest: Callable[[slice], torch.Tensor]) -> None:
        def logits(tokens: slice) -> torch.Tensor:
            start, stop, _ = tokens.indices(lengths[row])
            behind = rest(slice(max(0, start - 1), stop - 1))
            return behind if start else torch.cat([first[row], behind])

        consume(AnswerLogits(first[row].shape[-1], logits))

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
