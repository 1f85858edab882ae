"""Blocks of prompts that are read once, and the passes that read their answers.

A prompt often has several answers of different lengths. A block reads its prompts, which have similar lengths, in one
forward pass. It then reads all answers to them in order of length, a part at a time. So neither prompts nor answers
need much padding, and no prompt is read twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ofmu.data.rows import Example
from ofmu.evaluation.scoring.batches import MORE_ROWS, PASS_TOKENS, partition

PASSES_PER_BLOCK = 3
"""Forward passes that one more block costs: one over its prompts, and about two over answers, since fewer answers share
a pass. On TOFU, such blocks cost less than 1 % more than the best blocks in the same order."""
ROWS_PER_BLOCK = 8
"""A block holds up to this many times ``evaluation.batch_size`` answers, so that several ranks get work: a block is the
work of one rank."""


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """An answer in a block."""

    index: int
    """Index of the example."""
    prompt: int
    """Index of its prompt among the prompts of the block."""


@dataclass(frozen=True, slots=True)
class PromptBlock:
    """Prompts, and their answers. Iterating gives the indices of the examples in the order in which they are read."""

    prompts: tuple[tuple[int, ...], ...]
    """Token ids of each prompt."""
    at_once: tuple[AnswerRow, ...]
    """Answers of one token. The pass over the prompts predicts them."""
    passes: tuple[tuple[AnswerRow, ...], ...]
    """The answers that each further pass reads."""
    tokens: int
    """Tokens that all passes read, padding included."""

    def __iter__(self) -> Iterator[int]:
        for rows in (self.at_once, *self.passes):
            for row in rows:
                yield row.index

    @property
    def forward_passes(self) -> int:
        """Number of forward passes."""
        return 1 + len(self.passes)


def prompt_blocks(
    examples: Sequence[Example], batch_size: int, indices: Sequence[int] | None = None
) -> list[PromptBlock]:
    """Return blocks that hold every example once. They depend on nothing but these examples and ``batch_size``.

    First the prompts are cut into blocks, then the answers of each block into passes, each time with the least padded
    tokens plus an overhead per pass. The bounds on the memory are what ``batch_size`` of the longest rows take, with
    the longest prompt and the longest answer, or all rows if they are fewer:

    - a cache of ``batch_size * (prompt + answer)`` positions, where a block holds that of its prompts and a copy for
      the rows of a pass,
    - passes over ``batch_size * prompt`` tokens of prompts or ``batch_size * answer`` tokens of answers,
    - logits of the next token of ``batch_size`` prompts.

    Args:
        examples: prompts and answers.
        batch_size: rows, see above. Short answers share passes of up to ``MORE_ROWS`` times as many rows.
        indices: the examples that the blocks hold. None: all.
    """
    chosen = range(len(examples)) if indices is None else indices
    if not chosen:
        return []
    rows = min(batch_size, len(chosen))
    limits = _Limits(
        batch_size,
        positions=rows * max(examples[i].answer_start for i in chosen)
        + rows * max(_width(examples[i]) for i in chosen),
        tokens=rows * max(_width(examples[i]) for i in chosen),
    )
    # One row fills the memory of a batch of one row, so a prompt cannot stay for the next answer.
    parts = _prompts(examples, chosen, ROWS_PER_BLOCK * batch_size if rows > 1 else 1)
    cuts = partition(
        [len(prompt) for prompt, _ in parts],
        PASSES_PER_BLOCK * PASS_TOKENS,
        limits.prompts,
        [len(members) for _, members in parts],
        ROWS_PER_BLOCK * batch_size,
    )
    return [_block(examples, parts[start:end], limits) for start, end in cuts]


def tokens_without_padding(examples: Sequence[Example]) -> int:
    """Return the tokens that blocks read, padding aside: each prompt once, and each answer without its last token."""
    prompts = {example.input_ids[: example.answer_start] for example in examples}
    return sum(map(len, prompts)) + sum(map(_width, examples))


@dataclass(frozen=True, slots=True)
class _Limits:
    batch_size: int
    positions: int
    """Positions of the cache."""
    tokens: int
    """Tokens of a pass over answers."""

    def prompts(self, width: int) -> int:
        """Return the most prompts of this width in a block. Half of the cache remains for the rows of a pass."""
        return min(self.batch_size, self.positions // (2 * max(1, width)))

    def answers(self, prompts: int, prompt: int, width: int) -> int:
        """Return the most answers of this width in a pass, after ``prompts`` prompts of ``prompt`` tokens."""
        of_cache = (self.positions - prompts * prompt) // (prompt + width)
        return min(MORE_ROWS * self.batch_size, self.tokens // width, of_cache)


_Prompt = tuple[tuple[int, ...], list[int]]
"""Token ids of a prompt, and the indices of its examples."""


def _prompts(examples: Sequence[Example], indices: Sequence[int], most: int) -> list[_Prompt]:
    """Return the prompts in order of length, then of the tokens of their answers.

    A prompt with more than ``most`` answers stands there several times. The order by answers puts similar ones into a
    block.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for index in indices:
        example = examples[index]
        groups.setdefault(example.input_ids[: example.answer_start], []).append(index)
    ordered = sorted(groups.items(), key=lambda item: (len(item[0]), sum(_width(examples[i]) for i in item[1])))
    return [
        (prompt, by_width[start : start + most])
        for prompt, members in ordered
        for by_width in [sorted(members, key=lambda index: _width(examples[index]))]
        for start in range(0, len(by_width), most)
    ]


def _block(examples: Sequence[Example], parts: Sequence[_Prompt], limits: _Limits) -> PromptBlock:
    rows = [AnswerRow(index, number) for number, (_, members) in enumerate(parts) for index in members]
    rows.sort(key=lambda row: _width(examples[row.index]))
    widths = [_width(examples[row.index]) for row in rows]
    short = widths.count(0)
    prompt = max(len(ids) for ids, _ in parts)
    cuts = partition(widths[short:], PASS_TOKENS, lambda width: limits.answers(len(parts), prompt, width))
    return PromptBlock(
        prompts=tuple(ids for ids, _ in parts),
        at_once=tuple(rows[:short]),
        passes=tuple(tuple(rows[short + start : short + end]) for start, end in cuts),
        tokens=len(parts) * prompt + sum((end - start) * widths[short + end - 1] for start, end in cuts),
    )


def _width(example: Example) -> int:
    """Return the number of answer tokens that are read. The last one is predicted but not read."""
    return example.answer_length - 1
