"""Build untrained language models and train their tokenizers."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ofmu.errors import ModelError
from ofmu.models.config import ScratchModelConfig
from ofmu.models.described_size import check_training_size

_MAX_WORD = 1000
_LONGER_THAN_A_WORD = re.compile(rf"\S{{{_MAX_WORD}}}|\s{{{_MAX_WORD}}}")

BOS, EOS, PAD = "<s>", "</s>", "<pad>"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer. The tokenizer starts every text with BOS and encodes any string.

    Raises:
        ModelError: ``vocab_size`` is less than 259: 256 bytes and three special tokens.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(alphabet) + 3:
        raise ModelError(
            f"model.scratch.vocab_size {vocab_size} has no room for the {len(alphabet)} bytes and 3 special "
            f"tokens: raise it to at least {len(alphabet) + 3}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator((piece for text in texts for piece in _pieces(text)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )


def _pieces(text: str) -> list[str]:
    """Return a text in parts, if a part of it is longer than any word. Training takes the square of a word's length."""
    if not _LONGER_THAN_A_WORD.search(text):
        return [text]
    return [text[start : start + _MAX_WORD] for start in range(0, len(text), _MAX_WORD)]


def build_model(
    shape: ScratchModelConfig, tokenizer: PreTrainedTokenizerBase, *, seed: int, max_positions: int = 2048
) -> LlamaForCausalLM:
    """Return an untrained Llama in fp32. The weights depend on ``seed`` and not on the global random state.

    Raises:
        ModelError: the model cannot be trained in this machine's memory.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_heads,
        max_position_embeddings=max_positions,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    check_training_size(lambda: LlamaForCausalLM(config), "model.scratch")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)
