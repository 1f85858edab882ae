"""Token ids and lengths for which a model has no row: one sentence when rows are encoded, wherever they are encoded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import BloomConfig, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from ofmu.data.config import DataConfig
from ofmu.data.questions import Question, QuestionSet
from ofmu.data.row_encoder import RowEncoder
from ofmu.data.rows import Row, RowSet, UnlearnData
from ofmu.errors import DataError, ModelError, OfmuError
from ofmu.evaluation.config import EvaluationConfig
from ofmu.evaluation.scoring.model import score_model
from ofmu.models.language import save_model
from ofmu.models.scratch import train_tokenizer
from ofmu.run_config import UnlearnConfig
from ofmu.tasks.language.task import LanguageTask

TEXTS = ["Question: Who wrote it?\nAnswer: Ann wrote it."] * 4


def pair(positions: int = 64, added: int = 0, **tokens: str) -> tuple[Any, Any]:
    """Return a tokenizer with added tokens, and a model whose embeddings end before these."""
    tokenizer = train_tokenizer(TEXTS, 300)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=positions,
    )  # fmt: skip
    tokenizer.add_tokens([f"<new{number}>" for number in range(added)])
    if tokens:
        tokenizer.add_special_tokens(tokens)
    return tokenizer, LlamaForCausalLM(config).eval()


def data_of(answer: str, questions: dict[str, QuestionSet] | None = None) -> UnlearnData:
    rows = RowSet("forget", (Row(question="Who wrote it?", answer=answer),))
    return UnlearnData(rows, RowSet("retain", (Row(question="", answer="a"),)), None, {"forget": rows}, questions or {})


@pytest.mark.parametrize("name", ["pad_token", "bos_token", "eos_token"])
def test_a_special_token_beyond_the_embeddings_is_one_sentence(name: str, tmp_path: Path) -> None:
    tokenizer, model = pair(**{name: "[MORE]"})
    count = model.config.vocab_size
    sentence = rf"gives '\[MORE\]' the id {count}, and the model has embeddings for {count} tokens"
    with pytest.raises(ModelError, match=sentence):
        RowEncoder(tokenizer, DataConfig(), model.config)
    with pytest.raises(ModelError, match=sentence):
        score_model(model, tokenizer, data_of("Ann."), EvaluationConfig(), DataConfig())
    folder = save_model(model, tokenizer, tmp_path / "model")
    with pytest.raises(ModelError, match=sentence):
        LanguageTask(UnlearnConfig.model_validate({"data": {"generated": {"authors": 2, "forget_authors": 1}}}), folder)


def test_a_token_of_a_row_beyond_the_embeddings_is_one_sentence() -> None:
    tokenizer, model = pair(added=3)
    encoder = RowEncoder(tokenizer, DataConfig(), model.config)
    encoder.encode("forget set", "Who?", "Ann.")
    for question, answer in (("Who is <new1>?", "Ann."), ("Who?", "Ann <new1>."), ("", "a <new1>")):
        with pytest.raises(ModelError, match=r"gives '<new1>' the id"):
            encoder.encode("forget set", question, answer)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_row_that_is_longer_than_the_model_is_one_sentence(family: str) -> None:
    tokenizer, model = pair(positions=32)
    if family == "gpt2":
        config = GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=len(tokenizer), n_positions=32)
        model = GPT2LMHeadModel(config).eval()
    encoder = RowEncoder(tokenizer, DataConfig(max_length=40), model.config)
    with pytest.raises(DataError, match="takes 40 tokens, and the model has 32 positions"):
        encoder.encode("forget set", "", "b c d e " * 20)
    fitting = RowEncoder(tokenizer, DataConfig(max_length=32), model.config)
    assert max(len(chunk.input_ids) for chunk in fitting.encode("forget set", "", "b c d e " * 20)) == 32


def test_multiple_choice_questions_are_checked(tmp_path: Path) -> None:
    def score(question: str, positions: int) -> None:
        tokenizer, model = pair(positions=positions, added=1)
        asked = QuestionSet("forget", (Question(question=question, choices=("a", "b"), answer=0),))
        score_model(model, tokenizer, data_of("A.", {"forget": asked}), EvaluationConfig(rouge=False), DataConfig())

    score("Who?", 512)
    for question, positions in (("Who is <new0>?", 512), ("Who wrote " + "it and it " * 20, 64)):
        with pytest.raises(OfmuError, match=r"embeddings for|multiple-choice questions takes"):
            score(question, positions)


def test_a_model_without_such_limits_passes() -> None:
    tokenizer, _ = pair()
    config = BloomConfig(vocab_size=1000, hidden_size=8, n_layer=1, n_head=1)
    assert not hasattr(config, "max_position_embeddings")
    RowEncoder(tokenizer, DataConfig(), config).encode("forget set", "", "b c d e " * 200)
