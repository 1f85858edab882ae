"""Blocks of prompts: what they hold, against the bounds on memory and against a plain count of their tokens."""

from __future__ import annotations

import random

import pytest

from ofmu.data.rows import Example
from ofmu.evaluation.scoring.batches import MORE_ROWS, PASS_TOKENS
from ofmu.evaluation.scoring.prompt_blocks import ROWS_PER_BLOCK, PromptBlock, prompt_blocks


def random_examples(seed: int) -> list[Example]:
    """Return examples of which many share prompts. Some answers have one token."""
    chance = random.Random(seed)
    examples = []
    for number in range(chance.randint(1, 40)):
        prompt = (number, *[1] * chance.randint(0, 30))
        for _ in range(chance.choice((1, 1, 4, 7, 40))):
            examples.append(Example((*prompt, *[2] * chance.choice((1, 2, chance.randint(1, 50)))), len(prompt)))
    chance.shuffle(examples)
    return examples


def prompt_of(example: Example) -> tuple[int, ...]:
    return example.input_ids[: example.answer_start]


@pytest.mark.parametrize("size", [1, 2, 5, 32])
@pytest.mark.parametrize("seed", range(6))
def test_blocks_hold_every_example_once_after_its_prompt(seed: int, size: int) -> None:
    examples = random_examples(seed)
    blocks = prompt_blocks(examples, size)
    assert sorted(index for block in blocks for index in block) == list(range(len(examples)))
    for block in blocks:
        read = 0
        for rows in block.passes:
            assert all(block.prompts[row.prompt] == prompt_of(examples[row.index]) for row in rows)
            widths = [examples[row.index].answer_length - 1 for row in rows]
            assert widths == sorted(widths)
            assert widths[0] > 0
            read += len(rows) * widths[-1]
        assert all(block.prompts[row.prompt] == prompt_of(examples[row.index]) for row in block.at_once)
        assert all(examples[row.index].answer_length == 1 for row in block.at_once)
        assert block.tokens == len(block.prompts) * max(map(len, block.prompts)) + read
        assert block.forward_passes == 1 + len(block.passes)


@pytest.mark.parametrize("size", [1, 2, 5, 32])
@pytest.mark.parametrize("seed", range(6))
def test_blocks_need_no_more_memory_than_a_batch_of_the_longest_rows(seed: int, size: int) -> None:
    examples = random_examples(seed)
    rows = min(size, len(examples))
    prompt = max(example.answer_start for example in examples)
    answer = max(example.answer_length - 1 for example in examples)
    for block in prompt_blocks(examples, size):
        held = len(block.prompts) * max(map(len, block.prompts))
        assert len(block.prompts) <= rows
        assert held <= rows * (prompt + answer)
        assert len(list(block)) <= ROWS_PER_BLOCK * size or len(block.prompts) == 1
        for number, members in enumerate(block.passes):
            width = max(examples[row.index].answer_length - 1 for row in members)
            assert len(members) <= MORE_ROWS * size
            assert len(members) * width <= rows * answer
            # The rows of the last pass take the place of the prompts.
            beside = held if number < len(block.passes) - 1 else 0
            assert beside + len(members) * (max(map(len, block.prompts)) + width) <= rows * (prompt + answer)


def test_equal_prompts_stay_together_if_they_fit() -> None:
    examples = random_examples(3)
    blocks = prompt_blocks(examples, 20)  # no prompt has more than 40 answers
    prompts = [prompt for block in blocks for prompt in block.prompts]
    assert len(prompts) == len(set(prompts)) == len({prompt_of(example) for example in examples})
    many = prompt_blocks([Example((1, 2, 3), 1)] * 50, 3)
    assert [len(list(block)) for block in many] == [24, 24, 2]  # eight times three rows are a block
    assert [len(rows) for rows in many[0].passes] == [2] * 12  # six positions: one of the prompt, and two per row


def test_blocks_depend_on_nothing_but_their_examples() -> None:
    examples = random_examples(4)
    mine = [index for index in range(len(examples)) if index % 3]

    def found(blocks: list[PromptBlock]) -> list[list[Example]]:
        return [[examples[index] for index in block] for block in blocks]

    alone = prompt_blocks([examples[index] for index in mine], 8)
    assert found(prompt_blocks(examples, 8, mine)) == [[examples[mine[place]] for place in block] for block in alone]
    assert prompt_blocks(examples, 8, []) == []


def test_answers_of_different_lengths_read_little_padding_in_few_passes() -> None:
    """Seven answers to each prompt differ by up to a factor of four, as in TOFU."""
    chance = random.Random(0)
    examples = []
    for number in range(200):
        prompt, typical = (number, *[1] * chance.randint(10, 40)), chance.randint(20, 60)
        for _ in range(7):
            examples.append(Example((*prompt, *[2] * round(typical * chance.uniform(0.5, 2))), len(prompt)))
    blocks = prompt_blocks(examples, 32)
    own = sum({prompt_of(e): e.answer_start for e in examples}.values()) + sum(e.answer_length - 1 for e in examples)
    read = sum(block.tokens for block in blocks)
    assert 1 - own / read < 0.04
    # Batches of four prompts with all their answers, which are up to 32 rows, ordered by the longest answers.
    by_answer = sorted(
        (max(len(e.input_ids) - e.answer_start for e in examples[start : start + 7]), examples[start].answer_start)
        for start in range(0, len(examples), 7)
    )
    batches = [by_answer[start : start + 4] for start in range(0, len(by_answer), 4)]
    before = sum(4 * max(prompt for _, prompt in batch) + 28 * (batch[-1][0] - 1) for batch in batches)
    passes = sum(block.forward_passes for block in blocks)
    assert read + PASS_TOKENS * passes < 0.8 * (before + PASS_TOKENS * 2 * len(batches))
    assert passes <= 1.2 * 2 * len(batches)
