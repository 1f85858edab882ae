"""Rows into token ids: one way, shared by training, evaluation and generation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ofmu.data.rows import Example
from ofmu.errors import ConfigError, DataError, ModelError
from ofmu.models.hub import hub_reason

if TYPE_CHECKING:
    from ofmu.data.config import DataConfig

Tokenizer = Any
"""A transformers tokenizer; the library gives its classes no usable static type."""

# Some chat templates print today's date unless they are given one: scores would change overnight.
_TEMPLATE_DATE = "26 Jul 2024"


def load_tokenizer(path: str, revision: str | None = None) -> Tokenizer:
    """Load the tokenizer of a model directory or hub name; a missing pad token becomes the EOS token.

    Raises:
        ModelError: there is no tokenizer, or it has no EOS token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        if not Path(path).is_dir():
            raise ModelError(
                f"There is no model directory '{path}' to take a tokenizer from, and {hub_reason(error)}"
            ) from error
        raise ModelError(
            f"The model '{path}' has no tokenizer that can be loaded: save one beside it with "
            "tokenizer.save_pretrained, or name a directory or hub model that has one"
        ) from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"The tokenizer of '{path}' has no EOS token: set its eos_token and save it again")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def encode_example(tokenizer: Tokenizer, question: str, answer: str, config: DataConfig) -> Example:
    """Tokenise a question and its answer: the ids of :func:`encode_prompt`, then the answer's, then EOS.

    An empty ``question`` means plain text: all tokens are the answer, after BOS, or after the first token where
    the tokenizer has no BOS. An answer cut at ``config.max_length`` loses its EOS, since it does not end there.

    Raises:
        DataError: the answer is empty, or the prompt leaves no room for it.
    """
    if not answer.strip():
        raise DataError(f"The answer to {_shorten(question)} is empty: fill it in or remove the row")
    if not question:
        prompt, rest = _context(tokenizer), _plain_ids(tokenizer, answer)
        if not prompt:
            prompt, rest = rest[:1], rest[1:]
    else:
        prompt = encode_prompt(tokenizer, question, config)
        rest = _answer_ids(tokenizer, prompt, question, answer, config)
    room = config.max_length - len(prompt)
    if room < 1:
        raise DataError(
            f"The prompt of {_shorten(question)} takes {len(prompt)} tokens and leaves no room for an answer within "
            f"data.max_length {config.max_length}: raise data.max_length or shorten the question"
        )
    return Example(tuple(prompt + [*rest, tokenizer.eos_token_id][:room]), len(prompt))


def encode_prompt(tokenizer: Tokenizer, question: str, config: DataConfig) -> list[int]:
    """Tokenise what stands before an answer; for plain text (an empty ``question``) that is BOS, or nothing.

    Raises:
        ConfigError: ``config.prompt_template`` has no ``{question}``.
    """
    if not question:
        return _context(tokenizer)
    start, text = _start_and_text(tokenizer, question, config)
    return start + _plain_ids(tokenizer, text)


def encode_continuation(tokenizer: Tokenizer, context: str, continuation: str, max_length: int) -> Example:
    """Tokenise a context and what may follow it, without EOS: the form in which answer choices are compared.

    Both are tokenised together; the continuation is what lies behind the context's own tokens. Where they are too
    long together, the context loses its beginning.

    Raises:
        DataError: the continuation alone takes more than ``max_length`` tokens.
    """
    start = _start(tokenizer)
    own = _plain_ids(tokenizer, context)
    together = _plain_ids(tokenizer, context + continuation)
    if together[: len(own)] != own:
        # the border's tokens merged: as many tokens of the whole as the context has alone are counted as context
        own = together[: len(own)]
    rest = together[len(own) :]
    room = max_length - len(start) - len(rest)
    if not rest or room < 1:
        raise DataError(
            f"The choice '{continuation.strip()[:60]}' takes {len(rest)} tokens and does not fit data.max_length "
            f"{max_length}: raise data.max_length"
        )
    prompt = start + own[-room:]
    return Example(tuple(prompt + rest), len(prompt))


def pad_id(tokenizer: Tokenizer) -> int:
    """Return the id that fills up short rows; they are masked, so EOS serves where there is no pad token."""
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)


def _start_and_text(tokenizer: Tokenizer, question: str, config: DataConfig) -> tuple[list[int], str]:
    """Return the special tokens that the tokenizer itself puts first, and the prompt's text."""
    if config.use_chat_template and getattr(tokenizer, "chat_template", None):
        messages = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, date_string=_TEMPLATE_DATE
        )
        return [], str(text)  # a chat template writes its special tokens itself
    if "{question}" not in config.prompt_template:
        raise ConfigError("data.prompt_template must contain {question}, the place where the question is put")
    return _start(tokenizer), config.prompt_template.replace("{question}", question)


def _start(tokenizer: Tokenizer) -> list[int]:
    """Return BOS where the tokenizer itself puts it before a text, else nothing."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and list(tokenizer("a")["input_ids"])[:1] == [bos] else []


def _answer_ids(tokenizer: Tokenizer, prompt: list[int], question: str, answer: str, config: DataConfig) -> list[int]:
    start, text = _start_and_text(tokenizer, question, config)
    separator = "" if text[-1:].isspace() else " "
    together = start + _plain_ids(tokenizer, text + separator + answer)
    if together[: len(prompt)] == prompt and len(together) > len(prompt):
        return together[len(prompt) :]
    # The last token of the prompt merged with the answer: tokenise apart, so that generation sees the same prompt.
    return _plain_ids(tokenizer, separator + answer)


def _context(tokenizer: Tokenizer) -> list[int]:
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]


def _plain_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _shorten(question: str) -> str:
    if not question:
        return "a plain-text row"
    return f"the question '{question}'" if len(question) <= 60 else f"the question '{question[:57]}...'"
