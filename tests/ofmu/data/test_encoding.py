"""Token ids of rows, compared with those that the tokenizer gives for the whole text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ofmu.data.config import DataConfig
from ofmu.data.encoding import encode_example, encode_prompt, load_tokenizer, pad_id
from ofmu.errors import ConfigError, DataError, ModelError
from ofmu.models.config import ScratchModelConfig
from ofmu.models.scratch import build_model, train_tokenizer

CONFIG = DataConfig()
CHAT = (
    "{{ bos_token }}[{{ date_string }}]{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["Question: Who wrote it?\nAnswer: Ann wrote it. " * 4], 300)


TOKENIZER = make_tokenizer()


def without_bos() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    vocabulary = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner.model = models.BPE(vocab=vocabulary, merges=[])
    inner.add_special_tokens(["<end>"])
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")


def test_prompt_and_answer_follow_the_template() -> None:
    example = encode_example(TOKENIZER, "Who?", "Ann.", CONFIG)
    assert TOKENIZER.decode(example.input_ids) == "<s>Question: Who?\nAnswer: Ann.</s>"
    assert TOKENIZER.decode(example.input_ids[example.answer_start :]) == " Ann.</s>"
    assert list(example.input_ids[:-1]) == TOKENIZER("Question: Who?\nAnswer: Ann.")["input_ids"]


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1), st.text(min_size=1).filter(lambda text: text.strip()))
def test_an_example_is_the_prompt_then_the_answer_then_eos(question: str, answer: str) -> None:
    config = DataConfig(max_length=100_000)
    prompt = encode_prompt(TOKENIZER, question, config)
    example = encode_example(TOKENIZER, question, answer, config)
    assert list(example.input_ids[: example.answer_start]) == prompt
    assert example.input_ids[-1] == TOKENIZER.eos_token_id
    assert example.answer_length >= 2


@pytest.mark.slow
def test_a_chat_template_is_used_with_a_fixed_date() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT
    example = encode_example(tokenizer, "Who?", "Ann.", CONFIG)
    assert tokenizer.decode(example.input_ids) == "<s>[26 Jul 2024]<user>Who?<assistant>\nAnn.</s>"
    plain = encode_example(tokenizer, "Who?", "Ann.", DataConfig(use_chat_template=False))
    assert plain == encode_example(TOKENIZER, "Who?", "Ann.", CONFIG)


def test_a_template_that_ends_in_white_space_gets_no_second_space() -> None:
    config = DataConfig(prompt_template="Q {question}\n")
    assert TOKENIZER.decode(encode_example(TOKENIZER, "Who?", "Ann.", config).input_ids) == "<s>Q Who?\nAnn.</s>"


def test_braces_in_a_question_are_text() -> None:
    ids = encode_prompt(TOKENIZER, "What is {x} {question}?", CONFIG)
    assert TOKENIZER.decode(ids) == "<s>Question: What is {x} {question}?\nAnswer:"


def test_plain_text_follows_bos_or_its_own_first_token() -> None:
    with_bos = encode_example(TOKENIZER, "", "Ann wrote", CONFIG)
    assert (TOKENIZER.decode(with_bos.input_ids), with_bos.answer_start) == ("<s>Ann wrote</s>", 1)
    tokenizer = without_bos()
    bare = encode_example(tokenizer, "", "Ann", CONFIG)
    assert (tokenizer.decode(bare.input_ids), bare.answer_start) == ("Ann<end>", 1)
    assert encode_prompt(tokenizer, "", CONFIG) == []
    assert pad_id(tokenizer) == tokenizer.eos_token_id


def test_a_cut_answer_has_no_eos() -> None:
    whole = encode_example(TOKENIZER, "Who?", "Ann wrote it. " * 5, CONFIG)
    cut = encode_example(TOKENIZER, "Who?", "Ann wrote it. " * 5, DataConfig(max_length=whole.answer_start + 3))
    assert cut.input_ids == whole.input_ids[: whole.answer_start + 3]


def test_a_prompt_without_room_for_an_answer_is_an_error() -> None:
    length = len(encode_prompt(TOKENIZER, "Who?", CONFIG))
    with pytest.raises(DataError, match=rf"^The prompt of a row takes {length} tokens .* data.max_length {length}"):
        encode_example(TOKENIZER, "Who?", "Ann.", DataConfig(max_length=length))


def test_an_empty_answer_and_a_template_without_question_are_errors() -> None:
    with pytest.raises(DataError, match="is empty"):
        encode_example(TOKENIZER, "Who?", "  ", CONFIG)
    with pytest.raises(ConfigError, match=r"\{question\}"):
        encode_prompt(TOKENIZER, "Who?", DataConfig(prompt_template="Q: {0}"))


def test_a_saved_tokenizer_is_loaded_and_padded(tmp_path: Path) -> None:
    without_bos().save_pretrained(tmp_path)
    tokenizer: Any = load_tokenizer(str(tmp_path))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert encode_prompt(tokenizer, "Who?", CONFIG) == encode_prompt(without_bos(), "Who?", CONFIG)


def test_a_model_directory_without_tokenizer_is_one_sentence(tmp_path: Path) -> None:
    shape = ScratchModelConfig(hidden_size=8, intermediate_size=8, num_layers=1, num_heads=1)
    build_model(shape, TOKENIZER, seed=0).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"has no tokenizer that can be loaded: name .* as model\.tokenizer"):
        load_tokenizer(str(tmp_path))


def test_a_missing_directory_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model directory"):
        load_tokenizer(str(tmp_path / "nothing"))
