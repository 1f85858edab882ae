"""Long texts: plain text is split without losing a token, and what is cut is reported with its share."""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, PreTrainedTokenizerFast

from ofmu.data.config import DataConfig
from ofmu.data.row_encoder import RowEncoder
from ofmu.data.rows import Row
from ofmu.errors import DataError
from ofmu.models.scratch import train_tokenizer


def make_tokenizer(*, bos: bool) -> PreTrainedTokenizerFast:
    tokenizer = train_tokenizer(["Ann wrote a book about the sea. " * 4], 300)
    if not bos:
        tokenizer.bos_token = None
    return tokenizer


def text_of(tokens: int, tokenizer: Any) -> str:
    words = random.Random(0).choices(["ann", "book", "sea", "kelp", "zinc"], k=tokens)
    ids = tokenizer(" ".join(words), add_special_tokens=False)["input_ids"][:tokens]
    text: str = tokenizer.decode(ids)
    assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) == tokens
    return text


@pytest.mark.parametrize("tokens", [1, 2, 14, 15, 16, 29, 30, 31, 200])
@pytest.mark.parametrize("bos", [True, False])
def test_every_token_of_plain_text_is_the_answer_of_one_chunk(tokens: int, bos: bool) -> None:
    tokenizer = make_tokenizer(bos=bos)
    text = text_of(tokens, tokenizer)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder = RowEncoder(tokenizer, DataConfig(max_length=16), LlamaConfig())
        chunks = encoder.encode_rows("forget", [Row(question="", answer=text)])
        encoder.warn_of_cuts()
    assert all(len(chunk.input_ids) <= 16 and chunk.answer_start == 1 for chunk in chunks)
    answers = [token for chunk in chunks for token in chunk.input_ids[1:]]
    expected = ids if bos else ids[1:]
    assert answers in (expected, [*expected, tokenizer.eos_token_id])
    assert tokenizer.eos_token_id not in answers[:-1]
    if not bos:
        before = [chunk.input_ids[-1] for chunk in chunks[:-1]]
        assert [chunk.input_ids[0] for chunk in chunks[1:]] == before


def test_truncation_keeps_the_head_and_says_the_share() -> None:
    tokenizer = make_tokenizer(bos=True)
    long, short = text_of(60, tokenizer), text_of(10, tokenizer)
    rows = [Row(question="", answer=long), Row(question="", answer=short)]
    whole = RowEncoder(tokenizer, DataConfig(max_length=16), LlamaConfig()).encode_rows("forget", rows)
    encoder = RowEncoder(tokenizer, DataConfig(max_length=16, truncation=True), LlamaConfig())
    assert encoder.encode_rows("forget", rows) == [whole[0], whole[-1]]
    encoder.encode_rows("retain", rows[1:])
    with pytest.warns(UserWarning, match="max_length 16") as caught:
        encoder.warn_of_cuts()
    assert len(caught) == 1
    assert "(forget 64.3% of the tokens, in 1 of 2 texts)" in str(caught[0].message)  # 45 of 70


def test_a_cut_answer_is_warned_of_and_an_answer_without_its_eos_is_not() -> None:
    tokenizer = make_tokenizer(bos=True)
    config = DataConfig(max_length=16, prompt_template="{question}")
    question, answer = text_of(5, tokenizer), text_of(20, tokenizer)
    encoder = RowEncoder(tokenizer, config, LlamaConfig())
    (example,) = encoder.encode("forget", question, answer)
    assert len(example.input_ids) == 16
    with pytest.warns(UserWarning, match=r"forget \d\d.\d% of the tokens, in 1 of 1 text"):
        encoder.warn_of_cuts()
    exact = RowEncoder(tokenizer, DataConfig(max_length=16, truncation=True), LlamaConfig())
    exact.encode("forget", "", text_of(15, tokenizer))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exact.warn_of_cuts()


def test_the_tokenizers_own_limit_does_not_cut(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(bos=True)
    tokenizer.model_max_length = 20
    text = text_of(100, tokenizer)
    chunks = RowEncoder(tokenizer, DataConfig(max_length=16), LlamaConfig()).encode("forget", "", text)
    assert sum(chunk.answer_length for chunk in chunks) == 101


def test_a_row_that_leaves_no_room_is_named_by_its_number_and_not_shown() -> None:
    tokenizer = make_tokenizer(bos=True)
    encoder = RowEncoder(tokenizer, DataConfig(max_length=16, prompt_template="{question}"), LlamaConfig())
    rows = [Row(question="a", answer="b"), Row(question=text_of(16, tokenizer), answer="b")]
    with pytest.raises(DataError, match="The prompt of text 2 of forget takes") as caught:
        encoder.encode_rows("forget", rows)
    assert rows[1].question[:8] not in str(caught.value)
