"""A tiny language problem: a Llama of two layers, and rows of random tokens that follow one rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ofmu.data.rows import Example
from ofmu.engine.base import Engine
from ofmu.losses import AnswerLoss
from ofmu.testing.task import MemoryTask

VOCABULARY = 61
PAD_ID = 0
_REFUSAL = (5, 6, 7)
_ALTERNATE = (8, 9)
_WEIGHT_SCALE = 3.0


class MemoryLanguageTask(MemoryTask[Example]):
    """A language task whose rows are in memory."""

    def __init__(self, forget_rows: Sequence[Example], retain_rows: Sequence[Example]) -> None:
        super().__init__("language", forget_rows, retain_rows, AnswerLoss(PAD_ID))

    @property
    def pad_id(self) -> int:
        """Id of the token that fills up short rows."""
        return PAD_ID

    def refusals(self) -> list[Example]:
        """Return one row per forget row: its prompt, answered by the same three tokens."""
        return [replace(row, input_ids=(*row.input_ids[: row.answer_start], *_REFUSAL)) for row in self.forget_rows]

    def alternates(self, engine: Engine) -> list[Example]:
        """Return one row per forget row: its prompt, answered by the same two tokens."""
        return [replace(row, input_ids=(*row.input_ids[: row.answer_start], *_ALTERNATE)) for row in self.forget_rows]


def tiny_llama(attention: str = "sdpa") -> LlamaForCausalLM:
    """Build an fp32 Llama with 61 tokens and 20,000 weights. All calls return the same weights.

    Args:
        attention: ``sdpa``, or ``eager`` for second derivatives by double backward.
    """
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        attn_implementation=attention,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                # Initial weights are so small that the logits hardly depend on the prompt.
                parameter.mul_(_WEIGHT_SCALE)
    return model


def tiny_rows(count: int, seed: int) -> list[Example]:
    """Return rows of unequal lengths. Ranks then hold unequal numbers of tokens.

    All rows follow one rule with noise. The gradients of two sets of rows are then similar, and their cosine is not
    close to 0, where a relative comparison would compare rounding errors.
    """
    generator = torch.Generator().manual_seed(seed)
    found = []
    for index in range(count):
        length = 8 + 3 * (index % 5)
        ids = [3 + (index * 7 + seed) % (VOCABULARY - 3)]
        for noise in torch.randint(0, 3, (length,), generator=generator).tolist():
            ids.append(3 + (2 * ids[-1] + noise) % 12)
        found.append(Example(tuple(ids), 2 + index % 3))
    return found


def tiny_language_task() -> MemoryLanguageTask:
    """Return a task of 12 forget rows and 30 retain rows."""
    return MemoryLanguageTask(tiny_rows(12, 1), tiny_rows(30, 2))
